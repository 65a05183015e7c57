"""Rules of the normalisations at inference.

All but BatchNormalization and LRN standardise over some axes: `x̂ = (x − μ)·r`, `r = 1/√(σ² + ε)`, `y = x̂·scale + B`, so

    dx = r·(dx̂ − mean(dx̂) − x̂·mean(dx̂·x̂)),   dx̂ = dy·scale.

`x̂` and `r` are computed again, from centred values (`mean((x − μ)²)`, not `mean(x²) − μ²`): the op does not give them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from pycam.graph.builder import Builder

from .call import Call
from .elementwise import where
from .index import one_target
from .registry import rule


class Standardised(NamedTuple):
    """`x̂ = (x − μ)·r` over `axes`."""

    value: ir.Value
    inverse_std: ir.Value
    axes: list[int]

    def gradient(self, g: Builder, d: ir.Value) -> ir.Value:
        """`r·(d − mean(d) − x̂·mean(d·x̂))` for `d = dx̂`."""
        mean = g.ReduceMean(d, self.axes, keepdims=1)
        along = g.ReduceMean(g.Mul(d, self.value), self.axes, keepdims=1)
        return g.Mul(self.inverse_std, g.Sub(g.Sub(d, mean), g.Mul(self.value, along)))


def standardise(g: Builder, x: ir.Value, axes: list[int], epsilon: float) -> Standardised:
    """`x` with mean 0 and variance 1 over `axes`."""
    centred = g.Sub(x, g.ReduceMean(x, axes, keepdims=1))
    variance = g.ReduceMean(g.Mul(centred, centred), axes, keepdims=1)
    inverse_std = g.Reciprocal(g.Sqrt(g.Add(variance, epsilon)))
    return Standardised(g.Mul(centred, inverse_std), inverse_std, axes)


@rule("BatchNormalization")
def batch_norm(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = (x − mean)·scale/√(var + ε) + B` with stored mean and var ⇒ `dx = dy·scale/√(var + ε)`."""
    if n.attr("training_mode", 0):
        raise n.refuse("it is in training mode: export the model in evaluation mode")
    epsilon = n.attr("epsilon", 1e-5)
    scale, variance = n.const(1), n.const(4)
    if scale is not None and variance is not None:
        factor = g.constant((scale / np.sqrt(variance.astype(np.float64) + epsilon)).astype(scale.dtype))
    else:
        factor = g.Div(n.x(1), g.Sqrt(g.Add(n.x(4), epsilon)))
    return g.Mul(dy, _per_channel(g, n, factor))


@rule("BatchNormalization", 1, 3, 4)
def batch_norm_parameters(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """With `c = x − mean`, `r = 1/√(var + ε)`: `d scale = Σ dy·c·r`, `d mean = −Σ dy·scale·r`,
    `d var = −½·Σ dy·scale·c·r³`, over all positions of a channel."""
    if n.attr("training_mode", 0):
        raise n.refuse("it is in training mode: export the model in evaluation mode")
    r = g.Reciprocal(g.Sqrt(g.Add(n.x(4), n.attr("epsilon", 1e-5))))
    if n.i == 3:
        return g.Neg(g.Mul(_channel_sum(g, n, dy), g.Mul(n.x(1), r)))
    along = _channel_sum(g, n, g.Mul(dy, g.Sub(n.x(0), _per_channel(g, n, n.x(3)))))
    if n.i == 1:
        return g.Mul(along, r)
    return g.Mul(g.Mul(along, n.x(1)), g.Mul(g.Mul(g.Mul(r, r), r), -0.5))


@rule("BatchNormalization", 2)
@rule("InstanceNormalization", 2)
@rule("GroupNormalization", 2)
def channel_bias(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`dB = Σ dy` over all positions of a channel."""
    return _channel_sum(g, n, dy)


def _channel_sum(g: Builder, n: Call, value: ir.Value) -> ir.Value:
    one_target(n, "adds up the batch for one of its parameters")
    return g.ReduceSum(value, [0, *range(2, n.rank(0))], keepdims=0)


@rule("LayerNormalization")
def layer_norm(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """Standardised over the axes from `axis` on; the scale broadcasts to `x`.

    The other outputs are `μ` (`dx = dμ/n`) and `r` (`dx = −dr·r²·x̂/n`), of size 1 on these axes.
    """
    x = _standardised(g, n)
    parts = [x.gradient(g, g.Mul(dy, n.x(1)))] if n.dys[0] is not None else []
    d_mean, d_inverse_std = (d and g.Cast(d, to=n.dtype(0)) for d in (*n.dys[1:], None, None)[:2])
    if d_mean is not None:
        parts.append(n.expand_like(g.Div(d_mean, _count(g, n, x.axes)), x.axes, 0))
    if d_inverse_std is not None:
        squared = g.Mul(x.inverse_std, x.inverse_std)
        parts.append(g.Mul(x.value, g.Neg(g.Div(g.Mul(d_inverse_std, squared), _count(g, n, x.axes)))))
    return parts[0] if len(parts) == 1 else g.Sum(*parts)


def _count(g: Builder, n: Call, axes: list[int]) -> float | ir.Value:
    """How many numbers of input 0 there are over `axes`, which follow each other."""
    sizes = [size for axis in axes if isinstance(size := n.dims(0)[axis], int)]
    if len(sizes) == len(axes):
        return float(np.prod(np.array(sizes, np.int64)))
    at_run_time = g.Slice(n.shape(0), [axes[0]], [axes[-1] + 1], [0])
    return g.Cast(g.ReduceProd(at_run_time, [0], keepdims=0), to=n.dtype(0))


@rule("LayerNormalization", 1, broadcasts="inputs")
def layer_norm_scale(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`d scale = dy·x̂`; the walk sums it to the shape of the scale.  The statistics do not depend on it."""
    return g.Mul(_of_first(g, n), _standardised(g, n).value)


@rule("LayerNormalization", 2, broadcasts="inputs")
def layer_norm_bias(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`dB = dy`; the walk sums it to the shape of the bias.  The statistics do not depend on it."""
    return _of_first(g, n)


def _of_first(g: Builder, n: Call) -> ir.Value:
    """The gradient of the first output, 0 where the score depends on the others alone."""
    return n.dys[0] if n.dys[0] is not None else g.Mul(n.x(0), 0.0)


def _standardised(g: Builder, n: Call) -> Standardised:
    axes = _axes_from(n)
    return standardise(g, n.x(0), axes, n.attr("epsilon", 1e-5))


def _axes_from(n: Call) -> list[int]:
    rank = n.rank(0)
    return list(range(n.attr("axis", -1) % rank, rank))


class Scaled(NamedTuple):
    """`x̂ = x·r`, `r = 1/√(mean(x²) + ε)` over `axes`."""

    value: ir.Value
    inverse_root: ir.Value
    axes: list[int]

    def gradient(self, g: Builder, d: ir.Value) -> ir.Value:
        """`r·(d − x̂·mean(d·x̂))` for `d = dx̂`."""
        along = g.ReduceMean(g.Mul(d, self.value), self.axes, keepdims=1)
        return g.Mul(self.inverse_root, g.Sub(d, g.Mul(self.value, along)))


def rescale(g: Builder, x: ir.Value, axes: list[int], epsilon: float) -> Scaled:
    """`x` with mean square 1 over `axes`."""
    r = g.Reciprocal(g.Sqrt(g.Add(g.ReduceMean(g.Mul(x, x), axes, keepdims=1), epsilon)))
    return Scaled(g.Mul(x, r), r, axes)


# SimplifiedLayerNormalization is onnxruntime's name for RMSNormalization; its second output is r.
@rule("SimplifiedLayerNormalization")
@rule("RMSNormalization")
def rms_norm(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`x̂ = x·r`, `r = 1/√(mean(x²) + ε)`, `y = x̂·scale` ⇒ `dx = r·(dx̂ − x̂·mean(dx̂·x̂))`, `dx̂ = dy·scale`."""
    return _rescaled(g, n).gradient(g, g.Mul(dy, n.x(1)))


@rule("SimplifiedLayerNormalization", 1, broadcasts="inputs")
@rule("RMSNormalization", 1, broadcasts="inputs")
def rms_norm_scale(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`d scale = dy·x̂`; the walk sums it to the shape of the scale."""
    return g.Mul(dy, _rescaled(g, n).value)


def _rescaled(g: Builder, n: Call) -> Scaled:
    if any(d is not None for d in n.dys[1:]):
        raise n.refuse("the score depends on its output InvStdVar: only Y has a gradient rule")
    return rescale(g, n.x(0), _axes_from(n), n.attr("epsilon", 1e-5))


@rule("MeanVarianceNormalization")
def mean_variance_norm(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = c/(σ + 1e-9)`, `c = x − μ` ⇒ `dx = (dy − mean(dy) − c·mean(dy·c)/(σ(σ + 1e-9)))/(σ + 1e-9)`.

    Where `σ = 0` the last term is 0.
    """
    axes = n.axes(n.attr("axes", [0, 2, 3]))
    if 0 in axes:
        one_target(n, "standardises over the batch")
    centred = g.Sub(n.x(), g.ReduceMean(n.x(), axes, keepdims=1))
    std = g.Sqrt(g.ReduceMean(g.Mul(centred, centred), axes, keepdims=1))
    divisor = g.Add(std, 1e-9)
    along = g.Div(g.ReduceMean(g.Mul(dy, centred), axes, keepdims=1), g.Mul(std, divisor))
    along = where(g, g.Equal(std, 0.0), 0.0, along, dy)
    rest = g.Sub(g.Sub(dy, g.ReduceMean(dy, axes, keepdims=1)), g.Mul(centred, along))
    return g.Div(rest, divisor)


@rule("InstanceNormalization")
def instance_norm(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """Standardised over the positions, per sample and channel."""
    x = standardise(g, n.x(0), list(range(2, n.rank(0))), n.attr("epsilon", 1e-5))
    return x.gradient(g, g.Mul(dy, _per_channel(g, n, n.x(1))))


@rule("GroupNormalization")
def group_norm(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """Standardised over the channels of a group and the positions; the scale is per channel."""
    grouped = [0, n.attr("num_groups"), -1]  # (N, groups, channels of a group · positions)
    x = standardise(g, g.Reshape(n.x(0), grouped), [2], n.attr("epsilon", 1e-5))
    d = g.Reshape(g.Mul(dy, _per_channel(g, n, n.x(1))), grouped)
    return n.reshape_like(x.gradient(g, d))


@rule("InstanceNormalization", 1)
def instance_norm_scale(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`d scale = Σ dy·x̂` over all positions of a channel."""
    x = standardise(g, n.x(0), list(range(2, n.rank(0))), n.attr("epsilon", 1e-5))
    return _channel_sum(g, n, g.Mul(dy, x.value))


@rule("GroupNormalization", 1)
def group_norm_scale(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`d scale = Σ dy·x̂` over all positions of a channel."""
    x = standardise(g, g.Reshape(n.x(0), [0, n.attr("num_groups"), -1]), [2], n.attr("epsilon", 1e-5))
    return _channel_sum(g, n, g.Mul(dy, n.reshape_like(x.value, 0)))


@rule("LpNormalization")
def lp_norm(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = x/‖x‖` ⇒ `dx = (dy − u·Σ dy·y)/‖x‖` with `u = y` (p = 2) or `sign(x)` (p = 1); 0 where `‖x‖ = 0`."""
    axes, p = [n.attr("axis", -1) % n.rank()], n.attr("p", 2)
    norm = (g.ReduceL2 if p == 2 else g.ReduceL1)(n.x(), axes, keepdims=1)
    along = g.ReduceSum(g.Mul(dy, n.y()), axes, keepdims=1)
    rest = g.Sub(dy, g.Mul(n.y() if p == 2 else g.Sign(n.x()), along))
    return where(g, g.Equal(norm, 0.0), 0.0, g.Div(rest, norm), dy)


@rule("LRN")
def lrn(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = x·s^−β`, `s_c = k + α/size·Σ_{j ∈ W(c)} x_j²`, `W(c) = [c − ⌊(size−1)/2⌋, c + ⌈(size−1)/2⌉]`.

    `dx_j = dy_j·s_j^−β − 2αβ/size·x_j·Σ_{c: j ∈ W(c)} dy_c·y_c/s_c`.  The sums over channels are average pools with the
    channels as positions, which divide by `size`; the second one looks through the window from the other side.
    """
    size, alpha, beta = n.attr("size"), n.attr("alpha", 1e-4), n.attr("beta", 0.75)
    before, after = (size - 1) // 2, size // 2
    x = n.x()
    s = g.Add(g.Mul(_channel_mean(g, n, g.Mul(x, x), before, after), alpha), n.attr("bias", 1.0))
    back = _channel_mean(g, n, g.Div(g.Mul(dy, n.y()), s), after, before)
    return g.Sub(g.Mul(dy, g.Pow(s, -beta)), g.Mul(g.Mul(x, back), 2.0 * alpha * beta))


def _channel_mean(g: Builder, n: Call, value: ir.Value, before: int, after: int) -> ir.Value:
    """`Σ value_j / size` over the channels `c − before … c + after`; missing ones are 0."""
    channels = n.dims()[1]
    shape = [0, 1, channels, -1] if isinstance(channels, int) else g.Concat([0, 1], n.size(1), [-1], axis=0)
    mean = g.AveragePool(
        g.Reshape(value, shape),
        kernel_shape=[before + after + 1, 1],
        pads=[before, 0, after, 0],
        count_include_pad=1,
    )
    return n.reshape_like(mean)


def _per_channel(g: Builder, n: Call, value: ir.Value) -> ir.Value:
    """A vector over the channels, shaped to broadcast against `(N, C, …)`."""
    return g.Reshape(value, [-1] + [1] * (n.rank(0) - 2)) if n.rank(0) > 2 else value
