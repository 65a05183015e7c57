"""Subgraphs in normal form."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import parser

from pycam.gradient import vjp
from pycam.graph.branches import inner_graphs
from pycam.graph.load import load
from pycam.graph.normalise import normalise


def _normal(text: str) -> ir.Model:
    return normalise(load(parser.parse_model(text)))


def _ops(graph: ir.Graph) -> list[str]:
    return [node.op_type for node in graph]


HEAD = '<ir_version: 10, opset_import: ["" : 21]> f (float[2, 3] x, bool c) => (float[2, 3] y) '


@pytest.mark.parametrize(("condition", "op"), [(1, "Tanh"), (0, "Exp")])
def test_an_if_whose_condition_is_known_is_its_branch(condition: int, op: str) -> None:
    model = _normal(
        HEAD + f"{{ k = Constant<value = bool {{{condition}}}>() z = If(k) <then_branch = t () => (float[2, 3] a) "
        "{ p = Tanh(x) a = Neg(p) }, else_branch = e () => (float[2, 3] b) { p = Exp(x) b = Neg(p) }> y = Relu(z) }"
    )
    assert _ops(model.graph) == [op, "Neg", "Relu"]
    assert [y.name for node in model.graph for y in node.outputs] == ["p", "z", "y"]
    assert all(y.shape == ir.Shape([2, 3]) for node in model.graph for y in node.outputs)


def test_a_branch_may_give_what_lies_around_it() -> None:
    model = _normal(
        HEAD
        + "{ k = Constant<value = bool {1}>() y = If(k) <then_branch = t () => (float[2, 3] a) { a = Identity(x) }, "
        "else_branch = e () => (float[2, 3] b) { b = Exp(x) }> }"
    )
    assert _ops(model.graph) == ["Identity"]
    assert model.graph.outputs[0].name == "y"


def test_what_is_known_of_a_shape_decides() -> None:
    """As TorchScript writes `if x.dim() == 2` and `x.squeeze(0)`, one inside of the other."""
    model = _normal(
        '<ir_version: 10, opset_import: ["" : 21]> f (float[N, 1, 3] x) => (float[N, 3] y) '
        "{ s = Shape(x) i = Constant<value = int64 {1}>() d = Gather(s, i) k = Equal(d, i) "
        "z = If(k) <then_branch = t () => (float[A, B] a) { m = Constant<value = int64[1] {1}>() a = Squeeze(x, m) }, "
        "else_branch = e () => (float[A, B, C] b) { b = Identity(x) }> "
        "t = Shape(z) r = Size(t) two = Constant<value = int64 {2}>() l = Equal(r, two) "
        "y = If(l) <then_branch = t2 () => (float[D, E] a2) { a2 = Tanh(z) }, "
        "else_branch = e2 () => (float[D, E] b2) { o = Constant<value = int64[1] {0}>() q = Squeeze(z, o) "
        "b2 = Exp(q) }> }"
    )
    assert _ops(model.graph) == ["Squeeze", "Tanh"]


def test_constants_are_lifted_and_names_differ() -> None:
    branches = (
        "then_branch = t () => (float[2, 3] a) { k = Constant<value = float {2.0}>() j = Add(k, k) x1 = Mul(x, j) "
        "a = Tanh(x1) }, else_branch = e () => (float[2, 3] b) { k = Constant<value = float {3.0}>() x1 = Mul(x, k) "
        "b = Tanh(x1) }"
    )
    model = _normal(HEAD + f"{{ x0 = Neg(x) z = If(c) <{branches}> y = Mul(z, x0) }}")
    bodies = list(inner_graphs(model.graph))
    assert [_ops(body) for body in bodies] == [["Mul", "Tanh"], ["Mul", "Tanh"]]
    assert not any(body.initializers for body in bodies)
    assert sorted(float(v.const_value.numpy()) for v in model.graph.initializers.values()) == [3.0, 4.0]
    names = [y.name for graph in (model.graph, *bodies) for node in graph for y in node.outputs]
    assert len(set(names)) == len(names)
    assert "x0" in [y.name for node in model.graph for y in node.outputs]


def test_shapes_are_inferred_with_the_constants_around() -> None:
    model = _normal(
        HEAD + "{ m = Constant<value = int64[1] {0}>() z = If(c) <then_branch = t () => (float[P, Q] a) "
        "{ u = Unsqueeze(x, m) v = Neg(u) a = Squeeze(v, m) }, else_branch = e () => (float[P, Q] b) { b = Exp(x) }> "
        "y = Relu(z) }"
    )
    body = next(inner_graphs(model.graph))
    assert [node.outputs[0].shape for node in body] == [ir.Shape([1, 2, 3]), ir.Shape([1, 2, 3]), ir.Shape([2, 3])]


def test_old_opsets_are_brought_up_inside_as_well() -> None:
    model = parser.parse_model(
        '<ir_version: 7, opset_import: ["" : 11]> f (bool c, float[2, 1, 3] x) => (float[2, 3] y) { y = If(c) '
        "<then_branch = t () => (float[2, 3] a) { q = ReduceSum<axes = [1], keepdims = 1>(x) "
        "a = Squeeze<axes = [1]>(q) }, "
        "else_branch = e () => (float[2, 3] b) { r = Neg(x) b = Squeeze<axes = [1]>(r) }> }"
    )
    differentiated = vjp(model, ["x"])
    onnx.checker.check_model(differentiated, full_check=True)
    cotangent = np.arange(6, dtype=np.float32).reshape(2, 3)
    for condition, sign in ((True, 1), (False, -1)):
        feed = {"c": np.array(condition), "x": np.ones((2, 1, 3), np.float32), "y.cotangent": cotangent}
        got = ort.InferenceSession(differentiated.SerializeToString()).run(["x.gradient"], feed)[0]
        np.testing.assert_array_equal(got, sign * cotangent[:, None])


@pytest.mark.parametrize(
    ("dims", "step", "want"),
    [
        ("2, 3", "h1 = Tanh(h)", [2, 3]),
        ("N, 3", "h1 = Tanh(h)", [ir.SymbolicDim("N"), 3]),
        ("2, 3", "h1 = Concat<axis = 0>(h, h)", [None, 3]),
        ("2, 3", "h1 = Unsqueeze(h, m)", None),
    ],
)
def test_a_loop_keeps_the_shape_that_its_step_keeps(
    dims: str, step: str, want: list[int | ir.SymbolicDim | None] | None
) -> None:
    model = _normal(
        f'<ir_version: 10, opset_import: ["" : 21]> f (int64 n, float[{dims}] x) => (float[] y) '
        "{ m = Constant<value = int64[1] {0}>() y = Loop<body = b (int64 i, bool go, float[] h) => "
        f"(bool on, float[] h1) {{ on = Identity(go) {step} }}>(n, , x) }}".replace("float[] y", "float[A, B] y")
    )
    shape = next(node for node in model.graph if node.op_type == "Loop").attributes["body"].as_graph().inputs[2].shape
    known = None if shape is None else [d if isinstance(d, int) or d.value == "N" else None for d in shape]
    assert known == want
