"""Values that are held pass no gradient on, in the graph itself and in copies of it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from pycam.grad import differentiate
from pycam.graph.builder import Builder
from pycam.graph.clone import clone
from pycam.graph.depend import hold

MODEL = """
    <ir_version: 9, opset_import: ["" : 18]>
    held (float[N, 3] x) => (float[N, 3] y) {
        a = Exp(x)
        b = Sin(a)
        c = Mul(a, b)
        y = Add(c, x)
    }"""


def gradient(copied: bool) -> np.ndarray:
    """`dy/dx` with `b` held."""
    model = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(MODEL)))
    graph = model.graph
    values = {y.name: y for node in graph for y in node.outputs}
    x, y = graph.inputs[0], graph.outputs[0]
    hold(values["b"])
    g = Builder(graph)
    wrt = x
    if copied:
        wrt = g.Mul(x, 1.0)
        wrt.shape, wrt.type = x.shape, x.type
        y = clone(g, {x: wrt}, [y], g.Slice(g.Shape(x), [0], [1], [0]))[y]
    seed = g.Expand(g.constant(1.0, ir.DataType.FLOAT), g.Shape(y))
    (found,), _ = differentiate(g, {y: seed}, [wrt])
    assert found is not None
    found.name = "gradient"
    graph.outputs[:] = [found]
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString())
    return np.asarray(session.run(None, {"x": X})[0])


X = np.array([[0.3, -0.5, 1.0], [0.1, 0.7, -0.2]], np.float32)
WANTED = np.exp(X) * np.sin(np.exp(X)) + 1


def test_a_held_value_is_a_constant() -> None:
    np.testing.assert_allclose(gradient(copied=False), WANTED, rtol=1e-5)


def test_its_copy_is_as_well() -> None:
    np.testing.assert_allclose(gradient(copied=True), WANTED, rtol=1e-5)
