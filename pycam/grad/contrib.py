"""Ops of com.microsoft: what onnxruntime's optimiser makes of standard ones.

The forward pass keeps them, the gradient is standard ONNX.  Most are expanded; where the derivative can be read from
the fused op's output (an activation in a convolution), a rule does that: an expansion would compute the convolution
once more.  Attention and what belongs to it is in `contrib_attention.py`, integers are in `quantised.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pycam.graph.builder import Builder

from . import conv, linear
from .activation import swish_gradient
from .call import Call
from .elementwise import masked, where
from .norm import rescale, standardise
from .rectifiers import bounds_activation
from .registry import ALL, CONTRIB, Rectifier, expansion, refuse, rule, stop

# ── activations ─────────────────────────────────────────────────────────────────────────────────────────────────────


@expansion("Gelu", CONTRIB)
def gelu(g: Builder, n: Call) -> ir.Value:
    """The standard's."""
    return g.Gelu(n.x(0))


@expansion("FastGelu", CONTRIB)
def fast_gelu(g: Builder, n: Call) -> ir.Value:
    """`gelu(x + bias)` by tanh."""
    return g.Gelu(_biased(g, n), approximate="tanh")


@expansion("BiasGelu", CONTRIB)
def bias_gelu(g: Builder, n: Call) -> ir.Value:
    """`gelu(x + bias)`."""
    return g.Gelu(_biased(g, n))


@expansion("BiasSplitGelu", CONTRIB)
def bias_split_gelu(g: Builder, n: Call) -> ir.Value:
    """`a·gelu(b)` with `(a, b) = x + bias`."""
    a, b = g.emit("Split", [_biased(g, n)], {"axis": -1, "num_outputs": 2}, outputs=2)
    return g.Mul(a, g.Gelu(b))


def _biased(g: Builder, n: Call) -> ir.Value:
    return g.Add(n.x(0), n.x(1)) if n.has(1) else n.x(0)


@rule("QuickGelu", domain=CONTRIB)
def quick_gelu(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = x·sigmoid(αx)`: Swish."""
    return swish_gradient(g, n, dy, float(n.attr("alpha", 1.702)))


@expansion("ScaledSiLU", CONTRIB)
def scaled_silu(g: Builder, n: Call) -> ir.Value:
    """`z·sigmoid(z)`, `z = scale·x`."""
    z = g.Mul(n.x(0), n.x(1) if n.has(1) else float(n.attr("alpha", 1.0)))
    return g.Mul(z, g.Sigmoid(z))


@expansion("SwiGLU", CONTRIB)
def swiglu(g: Builder, n: Call) -> ir.Value:
    """`G·sigmoid(αG)·(L + β)`, `G = min(gate, limit)`, `L = clip(up, −limit, limit)`."""
    gate, up = (n.x(0), n.x(1)) if n.has(1) else g.emit("Split", [n.x(0)], {"axis": -1, "num_outputs": 2}, outputs=2)
    limit = float(n.attr("limit", 0.0))
    if limit > 0:
        gate, up = g.Clip(gate, None, limit), g.Clip(up, -limit, limit)
    alpha, beta = float(n.attr("activation_alpha", 1.0)), float(n.attr("activation_beta", 0.0))
    gated = g.Mul(gate, g.Sigmoid(g.Mul(gate, alpha)))
    return g.Mul(gated, g.Add(up, beta) if beta else up)


Slope: TypeAlias = "Callable[[Builder, ir.Value, ir.Value, tuple[float, float]], ir.Value]"
"""`(g, dy, y, (α, β)) → dy·f'` where `f'` is read from `y = f(x; α, β)`."""


def _between(g: Builder, dy: ir.Value, y: ir.Value, low: float, high: float) -> ir.Value:
    return masked(g, dy, g.And(g.Greater(y, low), g.Less(y, high)))


def _mul(slope: Callable[[Builder, ir.Value, float, float], ir.Value]) -> Slope:
    return lambda g, dy, y, p: g.Mul(dy, slope(g, y, *p))


def _step(g: Builder, y: ir.Value, above: ir.Value | float, below: ir.Value | float) -> ir.Value:
    return where(g, g.Greater(y, 0.0), above, below, y)


_SLOPES: dict[str, tuple[tuple[float, float], Slope]] = {
    "Relu": ((0.0, 0.0), lambda g, dy, y, p: masked(g, dy, g.Greater(y, 0.0))),
    "LeakyRelu": ((0.01, 0.0), _mul(lambda g, y, a, b: _step(g, y, 1.0, a))),
    "ThresholdedRelu": ((1.0, 0.0), lambda g, dy, y, p: masked(g, dy, g.Greater(y, 0.0))),
    "Elu": ((1.0, 0.0), _mul(lambda g, y, a, b: _step(g, y, 1.0, g.Add(y, a)))),
    "Sigmoid": ((0.0, 0.0), _mul(lambda g, y, a, b: g.Mul(y, g.Sub(1.0, y)))),
    "Tanh": ((0.0, 0.0), _mul(lambda g, y, a, b: g.Sub(1.0, g.Mul(y, y)))),
    "HardSigmoid": ((0.2, 0.5), lambda g, dy, y, p: g.Mul(_between(g, dy, y, 0.0, 1.0), p[0])),
    "Clip": ((-np.inf, np.inf), lambda g, dy, y, p: _between(g, dy, y, *p)),
    "Softplus": ((0.0, 0.0), _mul(lambda g, y, a, b: g.Sub(1.0, g.Exp(g.Neg(y))))),
    "Softsign": ((0.0, 0.0), _mul(lambda g, y, a, b: _squared(g, g.Sub(1.0, g.Abs(y))))),
}
"""Fused activations: default parameters, and the slope.  Kinks are as in `activation.py`."""

_FROM_INPUT = ("LeakyRelu", "Elu", "ThresholdedRelu")
"""Activations whose output tells the sign of their input only if α is not negative."""

_LINEAR_ABOVE_0 = ("Relu", "LeakyRelu", "ThresholdedRelu", "Elu")


def _squared(g: Builder, x: ir.Value) -> ir.Value:
    return g.Mul(x, x)


def _before_activation(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """The gradient for what goes into the fused activation, read from what comes out of it."""
    name = str(n.attr("activation", ""))
    if not name:
        return dy
    if name not in _SLOPES:
        raise n.refuse(f"its activation is {name}")
    defaults, slope = _SLOPES[name]
    listed = n.attr("activation_params") or [n.attr(f"activation_{p}") for p in ("alpha", "beta")]
    given = [float(d if v is None else v) for d, v in zip(defaults, (*listed, None, None), strict=False)]
    if name in _FROM_INPUT and given[0] < 0:
        raise n.refuse(f"{name} with a negative alpha, fused")
    rectifier = _fused_rectifier(name, (given[0], given[1])) if n.rule_set is not None else None
    if n.rule_set is not None and rectifier is not None:
        return n.rule_set(g, n, dy, rectifier)
    return slope(g, dy, n.y(), (given[0], given[1]))


def _fused_rectifier(name: str, parameters: tuple[float, float]) -> Rectifier | None:
    """A ReLU-like fused activation, read from its output; Clip is one if it is a ReLU6."""
    if name == "Softplus":  # log 2 at 0
        slope = _SLOPES[name][1]
        return Rectifier(lambda g, n: g.Greater(n.y(), math.log(2.0)), lambda g, n, dy: slope(g, dy, n.y(), parameters))
    if name == "Clip" and bounds_activation(*parameters):
        return Rectifier(lambda g, n: g.And(g.Greater(n.y(), 0.0), g.Less(n.y(), parameters[1])))
    return Rectifier(lambda g, n: g.Greater(n.y(), 0.0)) if name in _LINEAR_ABOVE_0 else None


# ── products and convolutions ───────────────────────────────────────────────────────────────────────────────────────


@rule("FusedConv", 0, domain=CONTRIB)
def fused_conv(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = f(W∗x + B + Z)` ⇒ that of Conv for `dy·f'`."""
    return conv.conv(g, n, _before_activation(g, n, dy))


@rule("FusedConv", 1, domain=CONTRIB)
def fused_conv_weights(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = f(W∗x + B + Z)` ⇒ that of Conv for `dy·f'`."""
    return conv.weights(g, n, _before_activation(g, n, dy))


@rule("FusedConv", 2, domain=CONTRIB)
def fused_conv_bias(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = f(W∗x + B + Z)` ⇒ that of Conv for `dy·f'`."""
    return conv.bias(g, n, _before_activation(g, n, dy))


@rule("FusedConv", 3, domain=CONTRIB)
def fused_conv_sum(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = f(W∗x + B + Z)` ⇒ `dZ = dy·f'`."""
    return _before_activation(g, n, dy)


@rule("FusedGemm", 0, domain=CONTRIB)
def fused_gemm_a(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = f(α·A'·B' + β·C)` ⇒ that of Gemm for `dy·f'`."""
    return linear.gemm_a(g, n, _before_activation(g, n, dy))


@rule("FusedGemm", 1, domain=CONTRIB)
def fused_gemm_b(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = f(α·A'·B' + β·C)` ⇒ that of Gemm for `dy·f'`."""
    return linear.gemm_b(g, n, _before_activation(g, n, dy))


@rule("FusedGemm", 2, broadcasts="output", domain=CONTRIB)
def fused_gemm_c(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = f(α·A'·B' + β·C)` ⇒ that of Gemm for `dy·f'`."""
    return linear.gemm_c(g, n, _before_activation(g, n, dy))


@expansion("TransposeMatMul", CONTRIB)
@expansion("FusedMatMul", CONTRIB)
def fused_matmul(g: Builder, n: Call) -> ir.Value:
    """`α·A'·B'`.  `transBatch` takes axis 0 for the rows (of B: for those summed over); then `trans` exchanges the last
    two.  Vectors are not transposed."""
    a, b = (_operand(g, n, i, side) for i, side in enumerate("AB"))
    y, alpha = g.MatMul(a, b), float(n.attr("alpha", 1.0))
    return g.Mul(y, alpha) if alpha != 1.0 else y


def _operand(g: Builder, n: Call, i: int, side: str) -> ir.Value:
    rank = n.rank(i)
    perm = list(range(rank))
    if rank < 2:
        return n.x(i)
    if n.attr(f"transBatch{side}", 0):
        perm = [*range(1, rank - 1), 0, rank - 1]
    if n.attr(f"trans{side}", 0):
        perm[-2:] = perm[:-3:-1]
    return g.Transpose(n.x(i), perm=perm) if perm != list(range(rank)) else n.x(i)


@expansion("GemmFastGelu", CONTRIB)
def gemm_fast_gelu(g: Builder, n: Call) -> ir.Value:
    """`gelu(x·W + bias)` by tanh."""
    y = g.MatMul(n.x(0), n.x(1))
    return g.Gelu(g.Add(y, n.x(2)) if n.has(2) else y, approximate="tanh")


@expansion("MatMulNBits", CONTRIB)
def matmul_n_bits(g: Builder, n: Call) -> ir.Value:
    """`x·Wᵀ + bias`: the weights are dequantised at compile time."""
    weights = n_bits(n)
    y = g.MatMul(n.x(0), g.constant(np.ascontiguousarray(weights.T), n.dtype(0)))
    return g.Add(y, n.x(5)) if n.has(5) else y


def n_bits(n: Call) -> NDArray[Any]:
    """The weights of MatMulNBits, `(N, K)`: `(q − zero point)·scale` per block along K, low bits first."""
    q, scales, zero, groups = (n.const(i) for i in (1, 2, 3, 4))
    size, features, bits = int(n.attr("K")), int(n.attr("N")), int(n.attr("bits", 4))
    if q is None or scales is None or (n.has(3) and zero is None) or n.attr("weight_prepacked", 0):
        raise n.refuse("its weights are computed when the graph runs, or packed for one device")
    if q.size == 0:
        return np.zeros((features, size), np.float32)
    block, blocks = int(n.attr("block_size")), -(-size // int(n.attr("block_size")))
    values = unpack(q.reshape(features, -1), bits).reshape(features, blocks, block)
    scales = scales.reshape(features, blocks, 1).astype(np.float32)
    if zero is None:
        zero = np.full((features, blocks), 1 << bits - 1)
    elif zero.dtype == np.uint8:
        zero = unpack(zero.reshape(features, -1), bits)[:, :blocks]
    zero = zero.reshape(features, blocks, 1).astype(np.float32)
    if groups is not None:  # which block's scale each position has
        flat = values.reshape(features, -1)[:, :size]
        return np.asarray((flat - zero[:, groups, 0]) * scales[:, groups, 0], np.float32)
    return np.asarray(((values - zero) * scales).reshape(features, -1)[:, :size], np.float32)


def unpack(packed: NDArray[Any], bits: int) -> NDArray[Any]:
    """Bytes → the numbers of `bits` bits in them, along the last axis, low bits first."""
    each = (packed[..., None] >> np.arange(0, 8, bits)) & ((1 << bits) - 1)
    return each.reshape(*packed.shape[:-1], -1).astype(np.float32)


@rule("Inverse", domain=CONTRIB)
def inverse(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`Y = X⁻¹` ⇒ `dX = −Yᵀ·dY·Yᵀ`."""
    rank = n.rank()
    transposed = g.Transpose(n.y(), perm=[*range(rank - 2), rank - 1, rank - 2])
    return g.Neg(g.MatMul(g.MatMul(transposed, dy), transposed))


@expansion("CDist", CONTRIB)
def cdist(g: Builder, n: Call) -> ir.Value:
    """`‖a_m − b_k‖`, squared or not; the distance 0 has the gradient 0, as in PyTorch."""
    metric = str(n.attr("metric", "sqeuclidean"))
    difference = g.Sub(g.Unsqueeze(n.x(0), [1]), g.Unsqueeze(n.x(1), [0]))
    if metric == "sqeuclidean":
        return g.ReduceSumSquare(difference, [2], keepdims=0)
    if metric == "euclidean":
        return g.ReduceL2(difference, [2], keepdims=0)
    raise n.refuse(f"metric={metric}")


# ── normalisations ──────────────────────────────────────────────────────────────────────────────────────────────────


@expansion("SkipLayerNormalization", CONTRIB)
def skip_layer_norm(g: Builder, n: Call) -> list[ir.Value | None]:
    """LayerNormalization of `x + skip + bias`; that sum is output 3."""
    total = _sum_of(g, n, 0, 1, 4)
    beta = n.x(3) if n.has(3) else None
    y = g.LayerNormalization(total, n.x(2), beta, axis=-1, epsilon=n.attr("epsilon", 1e-12))
    return [y, None, None, total]


@rule("SkipSimplifiedLayerNormalization", 0, 1, 3, broadcasts="output", domain=CONTRIB)
def skip_rms_norm(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`s = x + skip + bias` (output 3), `y = s·r·scale` ⇒ `ds` is that of RMSNormalization, and what `s` itself got."""
    parts = [] if n.dys[0] is None else [_skip_rescaled(g, n).gradient(g, g.Mul(dy, n.x(2)))]
    parts += [d for d in n.dys[3:] if d is not None]
    return parts[0] if len(parts) == 1 else g.Add(*parts)


@rule("SkipSimplifiedLayerNormalization", 2, broadcasts="output", domain=CONTRIB)
def skip_rms_norm_scale(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`d scale = dy·x̂`; the walk sums it to the shape of the scale.  The sum (output 3) does not depend on it."""
    normed = _skip_rescaled(g, n).value
    return g.Mul(dy, normed) if n.dys[0] is not None else g.Mul(normed, 0.0)


def _skip_rescaled(g: Builder, n: Call) -> Any:
    if any(d is not None for d in n.dys[1:3]):
        raise n.refuse("the score depends on its outputs mean or inv_std_var")
    total = n.y(3) if len(n.node.outputs) > 3 and n.node.outputs[3].name else _sum_of(g, n, 0, 1, 3)
    return rescale(g, total, [n.rank(0) - 1], n.attr("epsilon", 1e-12))


def _sum_of(g: Builder, n: Call, *inputs: int) -> ir.Value:
    total = n.x(inputs[0])
    for i in inputs[1:]:
        total = g.Add(total, n.x(i)) if n.has(i) else total
    return total


@expansion("GroupNorm", CONTRIB)
def group_norm(g: Builder, n: Call) -> ir.Value:
    """`(N, H, W, C)`, or channels second: standardised per group of channels, then SiLU if `activation` is 1."""
    return _grouped(g, n, n.x(0))


@expansion("SkipGroupNorm", CONTRIB)
def skip_group_norm(g: Builder, n: Call) -> list[ir.Value | None]:
    """GroupNorm of `x + skip + bias`; that sum is output 1."""
    last = int(n.attr("channels_last", 1))
    skip = g.Unsqueeze(n.x(3), [1, 2] if last else [2, 3]) if n.rank(3) == 2 else n.x(3)
    total = g.Add(n.x(0), skip)
    if n.has(4):
        total = g.Add(total, n.x(4) if last else g.Unsqueeze(n.x(4), [1, 2]))
    return [_grouped(g, n, total), total]


def _grouped(g: Builder, n: Call, x: ir.Value) -> ir.Value:
    last, groups = int(n.attr("channels_last", 1)), int(n.attr("groups"))
    channels = n.dims(0)[-1 if last else 1]
    if not isinstance(channels, int):
        raise n.refuse("its number of channels is unknown")
    shape, axes = ([0, -1, groups, channels // groups], [1, 3]) if last else ([0, groups, -1], [2])
    epsilon = float(n.attr("epsilon", 1e-5))
    y = n.reshape_like(standardise(g, g.Reshape(x, shape), axes, epsilon).value, 0)
    gamma, beta = (n.x(i) if last else g.Reshape(n.x(i), [-1, 1, 1]) for i in (1, 2))
    y = g.Add(g.Mul(y, gamma), beta)
    return g.Mul(y, g.Sigmoid(y)) if int(n.attr("activation", 0)) else y


# ── the standard's, under another name or in another layout ─────────────────────────────────────────────────────────


@expansion("BiasAdd", CONTRIB)
def bias_add(g: Builder, n: Call) -> ir.Value:
    """`x + bias + skip`."""
    return _sum_of(g, n, 0, 1, 2)


@expansion("BiasDropout", CONTRIB)
def bias_dropout(g: Builder, n: Call) -> ir.Value:
    """`x + bias + residual` at inference."""
    training = n.const(4)
    if n.has(4) and (training is None or bool(training.reshape(()))):
        raise n.refuse("it may be in training mode: export the model in evaluation mode")
    return _sum_of(g, n, 0, 1, 2)


@expansion("GatedAdd", CONTRIB)
def gated_add(g: Builder, n: Call) -> ir.Value:
    """`x + y·gate`."""
    if n.has(3):
        raise n.refuse("a gate that is projected, in bfloat16")
    return g.Add(n.x(0), g.Mul(n.x(1), n.x(2)))


@expansion("ExpandDims", CONTRIB)
def expand_dims(g: Builder, n: Call) -> ir.Value:
    """Unsqueeze."""
    axis = n.const(1)
    if axis is None:
        raise n.refuse("its axis is computed when the graph runs")
    return g.Unsqueeze(n.x(0), [int(axis.reshape(-1)[0])])


@expansion("Trilu", CONTRIB)
def trilu(g: Builder, n: Call) -> ir.Value:
    """The standard's."""
    return g.Trilu(n.x(0), n.x(1) if n.has(1) else None, upper=n.attr("upper"))


@expansion("Pad", CONTRIB)
def pad(g: Builder, n: Call) -> ir.Value:
    """The standard's."""
    pads = n.x(1) if n.rank(1) == 1 else g.Reshape(n.x(1), [-1])
    value = None
    if n.has(2):
        value = n.x(2) if n.rank(2) == 0 else g.Squeeze(n.x(2), [0])
    return g.Pad(n.x(0), pads, value, mode=n.attr("mode"))


@expansion("GatherND", CONTRIB)
def gather_nd(g: Builder, n: Call) -> ir.Value:
    """The standard's."""
    return g.GatherND(n.x(0), g.Cast(n.x(1), to=ir.DataType.INT64))


@expansion("GridSample", CONTRIB)
def grid_sample(g: Builder, n: Call) -> ir.Value:
    """The standard's, which calls its modes otherwise."""
    mode = str(n.attr("mode", "bilinear"))
    return g.GridSample(
        n.x(0),
        n.x(1),
        mode={"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode),
        padding_mode=n.attr("padding_mode"),
        align_corners=n.attr("align_corners"),
    )


@expansion("NhwcMaxPool", CONTRIB)
def nhwc_max_pool(g: Builder, n: Call) -> ir.Value:
    """MaxPool with the channels last."""
    names = ("kernel_shape", "strides", "pads", "dilations", "ceil_mode", "auto_pad")
    pooled = g.MaxPool(g.Transpose(n.x(0), perm=[0, 3, 1, 2]), **{name: n.attr(name) for name in names})
    return g.Transpose(pooled, perm=[0, 2, 3, 1])


# ── declared ────────────────────────────────────────────────────────────────────────────────────────────────────────

for _i, _why in ((0, "numbers of words"), (1, "numbers of segments"), (7, "a mask"), (8, "positions")):
    stop("EmbedLayerNormalization", _i, why=f"{_why} are integers", kind="integer", domain=CONTRIB)
refuse(
    "EmbedLayerNormalization", 2, 3, 4, 5, 6,
    why="the tables of words and positions are parameters; their entries are chosen by integers", domain=CONTRIB,
)  # fmt: skip
for _op, _why in {
    "Range": "a range is set by its bounds",
    "IsAllFinite": "the output is boolean",
    "Unique": "sorting out equal values is piecewise constant",
    "MurmurHash3": "a hash is an integer",
    "NGramHashMapping": "hashes are integers",
    "BifurcationDetector": "tokens are integers",
    "NGramRepeatBlock": "scores are only blocked by what tokens came before",
    "Tokenizer": "text carries no gradient",
}.items():
    stop(_op, ALL, why=_why, kind="integer", domain=CONTRIB)
for _why, _ops in {
    "a Fourier transform that onnxruntime has for CUDA only: export the model with DFT": "Rfft Irfft",
    "products of complex numbers, for Rfft and Irfft": "ComplexMul ComplexMulConj",
    "weights in a 4-bit or 8-bit float code: give the model before it was quantised":
        "MatMulBnb4 MatMulFpQ4 MatMulBlockQuantizedFp4Weight MatMulBlockQuantizedFp8Weight GemmFloat8 "
        "MatMulNBitsMlp MatMulNBitsQLoRA MatMulNBitsQkv GatherBlockQuantized QuantizeBFP DequantizeBFP",
    "the softmax of a sum, which onnxruntime fuses for GPUs only: save the model on a CPU": "BiasSoftmax",
    "a dropout of training": "BitmaskDropout BitmaskBiasDropout",
    "an op of onnxruntime's DirectML provider: save the model on a CPU": "FusedMatMulActivation",
    "a loop that generates text; explain the decoder itself":
        "BeamSearch GreedySearch Sampling WhisperBeamSearch SpeculativePrefixCommit",
    "a mixture of experts in one node": "MoE MoEPacked MoEGroupRouter RouterGateUpProj",
    "no model of images that the authors know has it; export it with standard ops":
        "AttnLSTM ConvTransposeWithDynamicPads CropAndResize DynamicTimeWarping MaxpoolWithMask RelativePositionBias "
        "GatedRelativePositionBias SparseToDenseMatMul UnfoldTensor WordConvEmbedding TorchEmbedding SampleOp Snpe "
        "EPContext EngramGate HyperConnectionPreMix HyperConnectionPostMix HyperConnectionLowRankMix "
        "BranchwiseRMSNorm GatedRMSNorm RMSNormRotary GatherPacked MatMulPacked",
}.items():  # fmt: skip
    for _op in _ops.split():
        refuse(_op, why=_why, domain=CONTRIB)
