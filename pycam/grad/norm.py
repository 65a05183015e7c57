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


@rule("LayerNormalization")
def layer_norm(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """Standardised over the axes from `axis` on; the scale broadcasts to `x`."""
    _refuse_statistics(n)
    return _standardised(g, n).gradient(g, g.Mul(dy, n.x(1)))


@rule("LayerNormalization", 1, broadcasts=True)
def layer_norm_scale(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`d scale = dy·x̂`; the walk sums it to the shape of the scale."""
    _refuse_statistics(n)
    return g.Mul(dy, _standardised(g, n).value)


@rule("LayerNormalization", 2, broadcasts=True)
def layer_norm_bias(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`dB = dy`; the walk sums it to the shape of the bias."""
    _refuse_statistics(n)
    return dy


def _standardised(g: Builder, n: Call) -> Standardised:
    axes = _axes_from(n)
    return standardise(g, n.x(0), axes, n.attr("epsilon", 1e-5))


def _axes_from(n: Call) -> list[int]:
    rank = n.rank(0)
    return list(range(n.attr("axis", -1) % rank, rank))


def _refuse_statistics(n: Call) -> None:
    if n.dys[0] is None or any(dy is not None for dy in n.dys[1:]):
        raise n.refuse("the score depends on its outputs Mean or InvStdDev: only Y has a gradient rule")


@rule("RMSNormalization")
def rms_norm(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`x̂ = x·r`, `r = 1/√(mean(x²) + ε)`, `y = x̂·scale` ⇒ `dx = r·(dx̂ − x̂·mean(dx̂·x̂))`, `dx̂ = dy·scale`."""
    x, r, axes = _root_mean_square(g, n)
    d = g.Mul(dy, n.x(1))
    normed = g.Mul(x, r)
    return g.Mul(r, g.Sub(d, g.Mul(normed, g.ReduceMean(g.Mul(d, normed), axes, keepdims=1))))


@rule("RMSNormalization", 1, broadcasts=True)
def rms_norm_scale(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`d scale = dy·x̂`; the walk sums it to the shape of the scale."""
    x, r, _ = _root_mean_square(g, n)
    return g.Mul(dy, g.Mul(x, r))


def _root_mean_square(g: Builder, n: Call) -> tuple[ir.Value, ir.Value, list[int]]:
    """`x`, `1/√(mean(x²) + ε)`, and the axes of that mean."""
    x, axes = n.x(0), _axes_from(n)
    mean_square = g.ReduceMean(g.Mul(x, x), axes, keepdims=1)
    return x, g.Reciprocal(g.Sqrt(g.Add(mean_square, n.attr("epsilon", 1e-5)))), axes


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
