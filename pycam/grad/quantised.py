"""Rules of quantisation and of casts: straight-through, in float, while the forward pass stays quantised.

The gradient of a quantised value is that for the floats it stands for.  The normaliser has spelled QOperator nodes out
(`pycam.graph.qoperator`); what it does not reach, within subgraphs, is expanded in the same forms here.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pycam.graph.builder import Builder, constant_of
from pycam.graph.qoperator import Form, Operator, quantised
from pycam.graph.quantised import FORMS, MOVES, along_axis, is_quantised, quantiser_of

from .call import Call
from .elementwise import masked
from .registry import CONTRIB, Rectifier, expansion, refuse, rule, stop

RELU6 = 6.0


@rule("DequantizeLinear")
def straight_through(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """Quantising and back is taken for the identity: `dx = dy`.  Its true gradient is 0 almost everywhere."""
    return dy


@rule("DynamicQuantizeLinear")
def dynamic(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`dx = dy`: its range is that of `x`, so nothing saturates; scale and zero point count as settings."""
    return dy


@rule("QuantizeLinear")
def quantize(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`dx = dy`, but `dx = dy·[0 < y]` where the range begins at 0, and `dy·[0 < y < 6]` where it is 0 … 6.

    Such a quantiser has absorbed a ReLU or a ReLU6, whose gradient would be lost with it.  `y` is the dequantised
    value: what came before the rounding would have the runtime compute the layer once more, in float, and tells no more
    (measured against the float model: input gradients of EfficientNet-Lite0 correlate 0.64 this way, 0.63 that way,
    and 0.00 without the mask).  What else is cut off keeps its gradient, other than with PyTorch's fake-quantise: a cut
    at the top is the quantiser's doing, not the network's, and is where the strongest activations and the best class
    are (a ReLU network cut at the 99th percentile: 0.81 without that mask, 0.75 with it).
    """
    bounds = _absorbed(n)
    if bounds is None:
        return dy
    low, high = bounds
    y = n.y()
    if is_quantised(y) or y is n.node.outputs[0]:  # nobody has dequantised it
        y = g.DequantizeLinear(y, *(n.node.inputs[1:3]), axis=n.attr("axis"), block_size=n.attr("block_size"))
        y = g.Cast(y, to=dy.dtype) if y.dtype != dy.dtype else y
    inside = g.Greater(y, low)
    inside = inside if high is None else g.And(inside, g.Less(y, high))
    if n.rule_set is not None and isinstance(low, float) and _follows_linear(n.node):
        return n.rule_set(g, n, dy, Rectifier(lambda g, n: inside))
    return masked(g, dy, inside)


def _follows_linear(node: ir.Node) -> bool:
    """Whether what is quantised comes from a layer, whose ReLU was absorbed; an image is not negative by itself."""
    made = node.inputs[0].producer() if node.inputs[0] is not None else None
    return made is not None and made.op_type in _LAYERS


_LAYERS = {"Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Sum", "BatchNormalization"}


def _absorbed(n: Call) -> tuple[float | NDArray[np.float32], float | NDArray[np.float32] | None] | None:
    """Between which values of `y` a gradient passes; None: everywhere."""
    scale, limits = n.const(1), _LIMITS.get((n.node.outputs[0].dtype or ir.DataType.UNDEFINED).name)
    zero = n.const(2) if n.has(2) else None if scale is None else np.zeros(scale.shape)
    if scale is None or zero is None or limits is None or _nonnegative(n.node.inputs[0]):
        return None
    scale, zero = scale.astype(np.float64), zero.astype(np.float64)
    relu = zero == limits[0]
    top = (limits[1] - zero) * scale
    relu6 = relu & (np.abs(top - RELU6) < 0.01 * RELU6)
    if not relu.any():
        return None
    low = _bound(n, np.where(relu, 0.0, -np.inf))
    return low, _bound(n, np.where(relu6, top - scale / 2, np.inf)) if relu6.any() else None


def _bound(n: Call, values: NDArray[np.float64]) -> float | NDArray[np.float32]:
    if (values == values.flat[0]).all():
        return float(values.flat[0])
    if n.attr("block_size", 0) and n.static() is None:
        raise n.refuse("its blocks are quantised differently, and its size is known only when the graph runs")
    sizes = [d if isinstance(d, int) else 0 for d in n.dims()]
    return along_axis(values, n.node, tuple(sizes)).astype(np.float32)


_LIMITS = {
    **{f"UINT{bits}": (0, 2**bits - 1) for bits in (2, 4, 8, 16)},
    **{f"INT{bits}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (2, 4, 8, 16)},
}
"""Type → its least and greatest value; float8 has none that an activation could have become."""

_RECTIFIERS = {"Relu", "Sigmoid", "HardSigmoid", "Softmax", "Softplus", "Abs", "Exp", "Sqrt"}
_SIGN_KEEPING = {
    *MOVES,
    *("GlobalAveragePool", "AveragePool", "GlobalMaxPool", "MaxPool", "ReduceMean", "ReduceMax", "ReduceSum"),
    *("Dropout", "Cast", "QuantizeLinear"),
}


def _nonnegative(value: ir.Value | None) -> bool:
    """Whether `value` cannot be negative, so that a range that begins at 0 cuts nothing off."""
    node = value.producer() if value is not None else None
    if node is None or node.domain != "":
        return False
    if node.op_type == "Clip":
        low = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
        return low is not None and bool((low >= 0).all())
    if node.op_type == "DequantizeLinear":
        return _begins_at_0(node) or _nonnegative(node.inputs[0])
    if node.op_type == "Resize" and node.attributes.get_string("mode", "nearest") == "cubic":
        return False
    if node.op_type in ("Add", "Mul", "Concat", "Max"):
        return all(_nonnegative(x) for x in node.inputs)
    return node.op_type in _RECTIFIERS or (node.op_type in _SIGN_KEEPING and _nonnegative(node.inputs[0]))


def _begins_at_0(node: ir.Node) -> bool:
    q = node.inputs[0]
    limits = _LIMITS.get(q.dtype.name) if q is not None and q.dtype is not None else None
    if limits is None:
        return False
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return bool(limits[0] == 0)
    zero = constant_of(node.inputs[2])
    return zero is not None and bool((zero.astype(np.int64) == limits[0]).all())


@rule("Cast")
def cast(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """Float to float: `dx` is `dy` cast back.  Other integers than quantised floats carry no gradient."""
    dtype = n.node.inputs[0].dtype if n.node.inputs[0] is not None else None
    if dtype is not None and not dtype.is_floating_point():
        return dy
    return dy if n.dtype() == dy.dtype else g.Cast(dy, to=n.dtype())


for _op in ("QuantizeLinear", "DequantizeLinear"):
    stop(_op, 1, 2, why="scale and zero point are settings")


# ── ops on integers ─────────────────────────────────────────────────────────────────────────────────────────────────


def _expand(form: Form) -> Callable[[Builder, Call], ir.Value]:
    def expand(g: Builder, n: Call) -> ir.Value:
        operator = Operator(g, n.node)
        return quantised(g, operator, form(g, operator))

    expand.__name__, expand.__doc__ = form.__name__, form.__doc__
    return expand


for (_domain, _op), _form in FORMS.items():
    expansion(_op, _domain)(_expand(_form))


@expansion("MatMulInteger")
def matmul_integer(g: Builder, n: Call) -> ir.Value:
    """`y = (a − a_zero)·(b − b_zero)`, in integers that count units of the scales."""
    return g.MatMul(_units(g, n, 0, 2, [-1, 1]), _units(g, n, 1, 3, [-1]))


@expansion("ConvInteger")
def conv_integer(g: Builder, n: Call) -> ir.Value:
    """`y = (x − x_zero) ∗ (w − w_zero)`, in integers that count units of the scales."""
    attributes = {name: a.value for name, a in n.node.attributes.items()}
    per_channel = [-1] + [1] * (n.rank(0) - 1)
    return g.Conv(_units(g, n, 0, 2, []), _units(g, n, 1, 3, per_channel), **attributes)


def _units(g: Builder, n: Call, i: int, zero: int, shape: list[int]) -> ir.Value:
    """Integers less their zero point, as floats; `shape` makes zero points that are not one for all broadcast."""
    value, z = n.node.inputs[i], n.node.inputs[zero] if n.has(zero) else None
    assert value is not None
    quantiser = quantiser_of(value)
    if quantiser is None:
        x = g.Cast(value, to=ir.DataType.FLOAT)
        if z is None:
            return x
        single = z.shape is None or len(z.shape) == 0
        return g.Sub(x, g.Cast(z if single else g.Reshape(z, shape), to=ir.DataType.FLOAT))
    scale = quantiser.outputs[1] if quantiser.op_type == "DynamicQuantizeLinear" else quantiser.inputs[1]
    if scale is None or scale.shape is None or any(d != 1 for d in scale.shape):
        raise n.refuse("its activations have several scales")
    return g.Div(g.DequantizeLinear(value, scale, z), scale)


@expansion("MatMulIntegerToFloat", CONTRIB)
def matmul_integer_to_float(g: Builder, n: Call) -> ir.Value:
    """`y = a·b + bias` of dequantised operands."""
    a, b, a_scale, b_scale, a_zero, b_zero, bias = _padded(n, 7)
    return _plus(g, g.MatMul(g.DequantizeLinear(a, a_scale, a_zero), _columns(g, b, b_scale, b_zero)), bias)


@expansion("DynamicQuantizeMatMul", CONTRIB)
def dynamic_quantize_matmul(g: Builder, n: Call) -> ir.Value:
    """`y = a·b + bias`; `a` is quantised on the way, `b` dequantised."""
    a, b, b_scale, b_zero, bias = _padded(n, 5)
    return _plus(g, g.MatMul(a, _columns(g, b, b_scale, b_zero)), bias)


@expansion("QAttention", CONTRIB)
def qattention(g: Builder, n: Call) -> list[ir.Value | None]:
    """Microsoft's Attention of dequantised activations and weights, which expands further."""
    x, weight, bias, x_scale, weight_scale, mask, x_zero, weight_zero, past = _padded(n, 9)
    real, columns = g.DequantizeLinear(x, x_scale, x_zero), _columns(g, weight, weight_scale, weight_zero)
    node = ir.Node(
        CONTRIB,
        "Attention",
        [real, columns, bias, mask, past],
        list(n.node.attributes.values()),
        num_outputs=len(n.node.outputs),
        name=g.fresh("Attention"),
    )
    for i, y in enumerate(node.outputs):
        y.name, y.type = f"{node.name}.{i}", ir.TensorType(ir.DataType.FLOAT)
    g.graph.append(node)
    return list(node.outputs)


def _padded(n: Call, count: int) -> list[ir.Value | None]:
    return [*n.node.inputs, *[None] * (count - len(n.node.inputs))]


def _columns(g: Builder, b: ir.Value | None, scale: ir.Value | None, zero: ir.Value | None) -> ir.Value:
    """`b` dequantised, by one scale or by one per column."""
    assert b is not None and scale is not None
    several = scale.shape is not None and len(scale.shape) == 1 and scale.shape[0] != 1
    return g.DequantizeLinear(b, scale, zero, axis=len(b.shape or []) - 1 if several else None)


def _plus(g: Builder, y: ir.Value, bias: ir.Value | None) -> ir.Value:
    return g.Add(y, bias) if bias is not None else y


refuse("DynamicQuantizeLSTM", why="a quantised recurrent layer: export it in float, as LSTM", domain=CONTRIB)
refuse("QEmbedLayerNormalization", why="quantised embeddings of token numbers", domain=CONTRIB)
refuse("QMoE", why="quantised experts in one node: export the model in float or in QDQ form", domain=CONTRIB)
for _op in ("MulInteger", "ReduceSumInteger", "MatMulInteger16"):
    refuse(_op, why="integers whose scale the op does not know: export the model in QDQ form", domain=CONTRIB)
for _op in ("Attention", "Gelu", "LayerNormalization", "LongformerAttention", "MatMul"):
    refuse(f"QOrdered{_op}", why="int8 in a memory layout of one GPU: export the model in QDQ form", domain=CONTRIB)
for _op in ("QuantizeWithOrder", "DequantizeWithOrder"):
    refuse(_op, why="int8 in a memory layout of one GPU: export the model in QDQ form", domain=CONTRIB)
