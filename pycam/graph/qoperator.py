"""QOperator form → QDQ form.

An op on integers that stand for floats (`QLinearConv`, …) becomes DequantizeLinear → op → QuantizeLinear.  onnxruntime
fuses that back into the same integer kernels: on EfficientNet-Lite0 its optimised graph is node for node the one of the
QOperator model, the scores are bitwise equal, and it takes as long.  But now there are float values, which can be
layers, and ops that have gradients; and nothing but standard ops.

A quantised value keeps its name.  The floats it stands for take the name without `_quantized`, which the quantiser
appended, where nobody else has that; nodes are called as in onnxruntime's own QDQ form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes

from .builder import Builder, constant_of
from .quantised import FORMS, MOVES, scales_of

MSFT = "com.microsoft"

Form: TypeAlias = "Callable[[Builder, Operator], ir.Value]"
"""Emits an op in floats, and says how its result is quantised."""

_SAME_SCALE = {*MOVES - {"Split"}, "MaxPool", "Max", "Min", "Concat", "Clip", "Pad"}
"""Ops of ai.onnx that are spelled out where they compute on quantised integers."""


def spell_out(skeleton: onnx.ModelProto) -> onnx.ModelProto:
    """`skeleton` (left as it is) with its quantised operators in QDQ form."""
    makers = {("", "QuantizeLinear"), *FORMS}
    if not any((node.domain, node.op_type) in makers for node in skeleton.graph.node):
        return skeleton
    model = ir.from_proto(skeleton)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    g, changed = Builder(model.graph, prefix="pycam/quantised"), False
    for node in list(model.graph):
        emit = FORMS.get((node.domain, node.op_type)) or _same_scale(node)
        if emit is not None:
            _replace(g, node, emit)
            changed = True
    return ir.to_proto(model) if changed else skeleton


class Operator:
    """A QOperator node as its float form sees it."""

    def __init__(self, g: Builder, node: ir.Node) -> None:
        self.g = g
        self.node = node
        self.result: list[ir.Value] = []  # scale and zero point of the output; none: it is float

    def __len__(self) -> int:
        return len(self.node.inputs)

    def input(self, i: int) -> ir.Value | None:
        """Input `i`, None where it is left out."""
        return self.node.inputs[i] if i < len(self) else None

    def scale(self, i: int) -> ir.Value:
        """A scale or zero point; one that stands for the whole tensor is a scalar."""
        value = self.input(i)
        assert value is not None, f"input {i} of {self.node.op_type} is missing"
        known = constant_of(value)
        return self.g.constant(known.reshape(())) if known is not None and known.shape == (1,) else value

    def scales(self, i: int) -> list[ir.Value]:
        """Scale and zero point at inputs `i` and `i + 1`, as far as they are given."""
        return [self.scale(j) for j in (i, i + 1) if self.input(j) is not None]

    def real(self, i: int, axis: int | None = None) -> ir.Value:
        """Input `i` as floats, by the scale and zero point behind it; `axis` is that of a scale per channel."""
        value = self.input(i)
        assert value is not None, f"input {i} of {self.node.op_type} is missing"
        return dequantised(self.g, value, self.scales(i + 1), axis)

    def attributes(self, *but: str) -> dict[str, Any]:
        """The node's attributes, for the float op."""
        return {name: a.value for name, a in self.node.attributes.items() if name not in but}

    def channels_first(self, i: int, emit: Callable[[ir.Value], ir.Value]) -> ir.Value:
        """`emit(real(i))`, between two transpositions where the node's images have their channels last.

        What is transposed is rounded as well, so that the runtime transposes integers and fuses what is between.
        """
        if not self.node.attributes.get_int("channels_last", 0):
            return emit(self.real(i))
        x = self._rounded(self.g.Transpose(self.real(i), perm=[0, 3, 1, 2]), self.scales(i + 1))
        return self.g.Transpose(self._rounded(emit(x), self.result), perm=[0, 2, 3, 1])

    def _rounded(self, value: ir.Value, scales: list[ir.Value]) -> ir.Value:
        return self.g.DequantizeLinear(self.g.QuantizeLinear(value, *scales), *scales)


def dequantised(g: Builder, value: ir.Value, scales: list[ir.Value], axis: int | None = None) -> ir.Value:
    """The floats that `value` stands for; what was made once is used again."""
    for use in value.uses():
        if use.node.meta.get("spelled out") and scales_of(use.node) == scales:
            return use.node.outputs[0]
    scalar = scales[0].shape is not None and len(scales[0].shape) == 0
    real = g.DequantizeLinear(value, *scales, axis=None if scalar else axis)
    node, producer = real.producer(), value.producer()
    assert node is not None
    node.meta["spelled out"] = True
    if producer is not None:
        name = value.name or ""
        plain = name.removesuffix("_quantized")
        node.name = g.free(f"{(producer.name or plain).removesuffix('_QuantizeLinear')}_DequantizeLinear")
        real.name = _first_free(g, *([plain] if plain != name else []), f"{name}_DequantizeLinear_Output")
        node.metadata_props.update(producer.metadata_props)
    return real


def quantised(g: Builder, n: Operator, real: ir.Value) -> ir.Value:
    """The result of the float form, quantised as that of `n` is."""
    return g.QuantizeLinear(real, *n.result) if n.result else real


def _replace(g: Builder, node: ir.Node, emit: Form) -> None:
    """Put the float form of `node` in its place."""
    before, n, y = len(g.graph), Operator(g, node), node.outputs[0]
    real = emit(g, n)
    result = quantised(g, n, real)
    made, last = real.producer(), result.producer()
    assert made is not None and last is not None
    if last is not made:
        plain = (y.name or "").removesuffix("_quantized")
        real.name = g.free(f"{plain}_QuantizeLinear_Input")
        last.name = g.free(f"{(node.name or plain).removesuffix('_quant')}_QuantizeLinear")
    new = list(g.graph)[before:]
    made.name, node.name = node.name, None
    for each in new:
        if each.op_type != "DequantizeLinear":
            each.metadata_props.update(node.metadata_props)
    g.graph.remove(new)
    g.graph.insert_before(node, new)
    result.name, y.name = y.name, None
    result.type, result.shape = y.type or result.type, y.shape
    y.replace_all_uses_with(result, replace_graph_outputs=True)
    g.graph.remove(node, safe=True)


def _first_free(g: Builder, *names: str) -> str:
    """The first name that nobody has, or the last one with a suffix."""
    return next((name for name in names[:-1] if g.free(name) == name), None) or g.free(names[-1])


def form(op: str, *domains: str) -> Callable[[Form], Form]:
    """Register the float form of an op (of com.microsoft unless said otherwise)."""

    def register(emit: Form) -> Form:
        FORMS.update({(domain, op): emit for domain in domains or (MSFT,)})
        return emit

    return register


@form("QLinearConv", "", MSFT)
def qlinear_conv(g: Builder, n: Operator) -> ir.Value:
    """`y = x ∗ w + b`; the bias has the scale `x_scale·w_scale`."""
    n.result = n.scales(6)
    weights, bias = [n.real(3, axis=0)], n.input(8)
    if bias is not None:
        weights.append(dequantised(g, bias, [g.Mul(n.scale(1), n.scale(4))], axis=0))
    attributes = n.attributes("channels_last")
    return n.channels_first(0, lambda x: g.Conv(x, *weights, **attributes))


@form("QLinearMatMul", "")
def qlinear_matmul(g: Builder, n: Operator) -> ir.Value:
    """`y = a·b`; scales that are not one for all are those of the rows of `a` and of the columns of `b`."""
    n.result = n.scales(6)
    return g.MatMul(n.real(0, axis=-2), n.real(3, axis=-1))


@form("QGemm")
def qgemm(g: Builder, n: Operator) -> ir.Value:
    """`y = α·a·b + c`; `c` has the scale `α·a_scale·b_scale`.  Without a scale the result is float."""
    n.result = n.scales(7)
    attributes, c = n.attributes(), n.input(6)
    operands = [n.real(0), n.real(3, axis=0 if attributes.get("transB", 0) else 1)]
    if c is not None:
        scale, alpha = g.Mul(n.scale(1), n.scale(4)), float(attributes.get("alpha", 1.0))
        operands.append(dequantised(g, c, [g.Mul(scale, alpha) if alpha != 1.0 else scale], axis=-1))
    return g.Gemm(*operands, **attributes)


@form("QLinearAdd")
@form("QLinearMul")
def qlinear_binary(g: Builder, n: Operator) -> ir.Value:
    """`y = a + b`; `y = a·b`."""
    n.result = n.scales(6)
    return g.emit(n.node.op_type.removeprefix("QLinear"), [n.real(0), n.real(3)])[0]


@form("QLinearSigmoid")
@form("QLinearLeakyRelu")
def qlinear_unary(g: Builder, n: Operator) -> ir.Value:
    """`y = f(x)`."""
    n.result = n.scales(3)
    return g.emit(n.node.op_type.removeprefix("QLinear"), [n.real(0)], n.attributes())[0]


@form("QLinearSoftmax")
def qlinear_softmax(g: Builder, n: Operator) -> ir.Value:
    """`y = softmax(x)` over an axis, or, where the attribute `opset` is below 13, over that one and all behind it."""
    n.result = n.scales(3)
    axis, x = n.node.attributes.get_int("axis", -1), n.real(0)
    if n.node.attributes.get_int("opset", 13) >= 13:
        return g.Softmax(x, axis=axis)
    return g.Reshape(g.Softmax(g.Flatten(x, axis=axis), axis=-1), g.Shape(x))


@form("QLinearGlobalAveragePool")
@form("QLinearAveragePool")
def qlinear_pool(g: Builder, n: Operator) -> ir.Value:
    """The mean over all positions, or over windows."""
    n.result = n.scales(3)
    op, attributes = n.node.op_type.removeprefix("QLinear"), n.attributes("channels_last")
    return n.channels_first(0, lambda x: g.emit(op, [x], attributes)[0])


@form("QLinearReduceMean")
def qlinear_reduce_mean(g: Builder, n: Operator) -> ir.Value:
    """`y = mean(x)` over some axes, or all."""
    n.result = n.scales(3)
    attributes = n.attributes()
    axes = attributes.get("axes")
    return g.ReduceMean(n.real(0), g.constant(list(axes)) if axes else None, keepdims=attributes.get("keepdims", 1))


@form("QLinearConcat")
def qlinear_concat(g: Builder, n: Operator) -> ir.Value:
    """`y = [x₁, x₂, …]`; each has its own scale."""
    n.result = n.scales(0)
    return g.Concat(*(n.real(i) for i in range(2, len(n), 3)), **n.attributes())


@form("QLinearWhere")
def qlinear_where(g: Builder, n: Operator) -> ir.Value:
    """`z = c ? x : y`."""
    n.result = n.scales(7)
    return g.Where(n.input(0), n.real(1), n.real(4))


@form("QuantizeLinear")
@form("DequantizeLinear")
def contrib(g: Builder, n: Operator) -> ir.Value:
    """Microsoft's, which had 16 bits before ai.onnx's: the same ops."""
    return g.emit(n.node.op_type, [n.input(0), *n.scales(1)], n.attributes())[0]


def _same_scale(node: ir.Node) -> Form | None:
    """The form of an op of ai.onnx on integers that were quantised with one scale, if `node` is one."""
    if (
        node.domain != ""
        or node.op_type not in _SAME_SCALE
        or node.attributes.get_string("mode", "nearest") == "linear"
    ):
        return None
    data = list(_data(node))
    scales = _scale_of(data[0]) if data else None
    lone = all(not y.uses() and not y.is_graph_output() for y in node.outputs[1:])
    if scales is None or not lone or any(x.const_value is None and _scale_of(x) != scales for x in data):
        return None

    def emit(g: Builder, n: Operator) -> ir.Value:
        n.result = scales
        real = [_float_of(g, x, scales) if x in data else x for x in node.inputs]
        if node.op_type == "Pad" and n.input(2) is None:  # with the integer 0
            dtype = (scales[1].dtype if len(scales) > 1 else None) or ir.DataType.UINT8
            real[2:3] = [_float_of(g, g.constant(0, dtype), scales)]
        return g.emit(node.op_type, real, n.attributes())[0]

    return emit


def _float_of(g: Builder, value: ir.Value, scales: list[ir.Value]) -> ir.Value:
    """What `value` stands for; a constant as a constant, which onnxruntime wants for the value of a Pad."""
    q, scale, *zero = (constant_of(x) for x in (value, *scales))
    if q is None or scale is None or any(z is None for z in zero):
        return dequantised(g, value, scales)
    units = q.astype(np.float32) - (zero[0].astype(np.float32).reshape(()) if zero and zero[0] is not None else 0)
    return g.constant((units * scale.reshape(())).astype(scale.dtype))


def _data(node: ir.Node) -> Iterator[ir.Value]:
    """The inputs of an op of `_SAME_SCALE` that hold quantised integers."""
    count = {"Max": None, "Min": None, "Concat": None, "Clip": 3, "Pad": 3}.get(node.op_type, 1)
    chosen = node.inputs[:count]
    yield from (x for i, x in enumerate(chosen) if x is not None and not (node.op_type == "Pad" and i == 1))


def _scale_of(value: ir.Value) -> list[ir.Value] | None:
    """Scale and zero point of integers that QuantizeLinear made, if they are one for the whole tensor."""
    node = value.producer()
    if node is None or node.domain != "" or node.op_type != "QuantizeLinear":
        return None
    scales = scales_of(node)
    one = all(s.shape is not None and all(d == 1 for d in s.shape) for s in scales)
    return scales if one and not node.attributes.get_int("block_size", 0) else None
