"""`pycam.vjp`: the differentiation itself, as a model."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx_ir as ir

from .errors import InputError, LayerError, nearest
from .grad import differentiate
from .grad.call import HALF
from .graph.builder import LOWERS, Builder, Lower
from .graph.emit import add_output, finish
from .graph.load import Source, load
from .graph.locate import dims
from .graph.normalise import normalise


def vjp(
    model: Source,
    wrt: Sequence[str],
    output: str | None = None,
    *,
    lower: Lower = "fast",
    rules: str = "exact",
) -> onnx.ModelProto:
    """Add a vector-Jacobian product to a model.

    Args:
        model: Path, bytes or ModelProto.
        wrt: Names of the values to differentiate for: graph inputs or any values inside, but no weights.
        output: Name of the differentiated value; the model's first output if None.
        lower: "fast": what measures fastest on onnxruntime; "portable": only forms that every runtime gets right.
        rules: "exact": the gradient.  "guided" (Guided Backprop, arXiv 1412.6806) and "deconvnet" (arXiv 1311.2901)
            replace it at ReLU-like activations, see docs/guided.md.

    Returns:
        The model with one more input, `<output>.cotangent` (shape and dtype of that output), and one more output per
        name, `<wrt>.gradient` (shape and dtype of that value): `Σ cotangent · d output / d wrt`.  A name that the model
        has already, as a gradient of a gradient may, ends in `_pycam`.  Quantised integers are taken for the floats
        that they stand for.  What is added are standard ONNX ops.

    Raises:
        ModelError: the model cannot be read.
        LayerError: a name is unknown, or no differentiable path leads from it to the output.
        UnsupportedOpError: an op on the path has no gradient rule.
        InputError: `lower` is neither, or there is no rule set called `rules`.
    """
    if lower not in LOWERS:
        raise InputError(f"lower={lower!r}: choose one of {', '.join(LOWERS)}")
    graph_model = normalise(load(model))
    graph = graph_model.graph
    y = find_value(graph, output) if output is not None else graph.outputs[0]
    names = [wrt] if isinstance(wrt, str) else list(wrt)
    xs = [find_value(graph, name) for name in names]
    g = Builder(graph, lower=lower)
    cotangent = ir.Value(name=g.free(f"{output or y.name}.cotangent"), shape=y.shape, type=ir.TensorType(_type(y)))
    graph.inputs.append(cotangent)
    grads, _ = differentiate(g, {y: cotangent}, xs, rules=rules)
    for name, x, grad in zip(names, xs, grads, strict=True):
        if grad is None:
            raise LayerError(f"no differentiable path leads from {name!r} to {output or y.name!r}")
        grad = g.Cast(grad, to=x.dtype) if x.dtype in HALF else grad
        add_output(
            graph,
            grad,
            g.free(f"{name}.gradient"),
            list(dims(x)) if x.shape is not None else None,
            _type(x),
        )
    return finish(graph_model, stand_alone=True, portable=g.portable)


def _type(value: ir.Value) -> ir.DataType:
    """The dtype of a gradient for `value`: its own; for quantised integers that of the floats they stand for."""
    floating = value.dtype is not None and value.dtype.is_floating_point()
    return value.dtype if floating and value.dtype is not None else ir.DataType.FLOAT


def find_value(graph: ir.Graph, name: str) -> ir.Value:
    """The value called `name`: a graph input, a node's output, or a copy of one that normalising left out."""
    values = {v.name or "": v for v in [*graph.inputs, *(y for n in graph for y in n.outputs)]}
    for value in list(values.values()):
        for copy in value.meta.get("dropped", ()):
            values.setdefault(copy.outputs[0].name or "", value)
    if name in graph.initializers:
        raise LayerError(f"{name!r} is a weight: pycam has gradients of activations only")
    if name not in values:
        raise LayerError(f"the model has no value called {name!r}; nearest: {nearest(name, values)}")
    return values[name]
