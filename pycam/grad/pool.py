"""Rules of the pools."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from pycam.graph.builder import Builder
from pycam.graph.simplify import Moved

from .call import Call
from .elementwise import masked
from .registry import rule
from .windows import END, Axis, axis_size, begin_pad, fit, join, plus, scatter, windows


@rule("GlobalAveragePool")
def global_average_pool(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = mean(x)` ⇒ `dx = dy/HW` at every position; divided while small, so that a mean over it is free."""
    axes = list(range(2, n.rank()))
    sizes = n.static(start=2)
    if sizes is not None:
        return n.expand_like(g.Mul(dy, 1.0 / math.prod(sizes)), axes)
    area = g.Cast(g.ReduceProd(g.Slice(n.shape(), [2], [END], [0]), keepdims=0), to=dy.dtype)
    return n.expand_like(g.Div(dy, area), axes)


@rule("GlobalMaxPool")
def global_max_pool(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`dx = dy` at the first maximum in row-major order, as PyTorch's adaptive_max_pool; 0 elsewhere."""
    sizes = n.static(start=2)
    area = math.prod(sizes) if sizes is not None else g.ReduceProd(g.Slice(n.shape(), [2], [END], [0]), [0], keepdims=1)
    flat = g.Reshape(n.x(), join(g, [0, 0, area]))  # -1 has no value in an empty batch
    if sizes is not None:
        positions = g.constant(np.arange(math.prod(sizes)))
    else:
        positions = g.Range(0, g.Squeeze(axis_size(g, flat, 2), [0]), 1)
    first = g.Cast(g.Equal(g.ArgMax(flat, axis=2, keepdims=1), positions), to=dy.dtype)
    return n.reshape_like(g.Mul(first, g.Reshape(dy, [0, 0, 1])))


@rule("AveragePool")
def average_pool(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y[o] = Σ_t x[o·s - b + t·δ] / count[o]` ⇒ `dx` is `dy/count` added up over the windows of each position.

    At stride 1 these are windows too, with pads `k - 1 - b`: an average pool again, of `dy·k^d/count`.
    Where windows tile the input, it is a nearest upsampling.
    """
    axes = windows(n, n.attr("kernel_shape"))
    if _whole(axes):
        return global_average_pool(g, n, dy)
    ceil_mode, area = bool(n.attr("ceil_mode", 0)), math.prod(a.kernel for a in axes)
    share = _share(g, n, dy, axes, ceil_mode)
    dy = dy if share is None else g.Mul(dy, share)
    if all(a.stride == a.dilation == 1 for a in axes):
        pads = [a.reach - (a.begin or 0) for a in axes] + [a.reach - (a.end or 0) for a in axes]
        return g.AveragePool(dy, kernel_shape=[a.kernel for a in axes], pads=pads, count_include_pad=1)
    if all(a.kernel == a.stride and a.dilation == 1 and a.begin == a.overhang(ceil_mode) == 0 for a in axes):
        scales = np.array([1, 1, *(a.kernel for a in axes)], np.float32)
        asymmetric = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return g.Resize(g.Mul(dy, 1.0 / area), None, g.constant(scales), mode="nearest", **asymmetric)
    weight = g.constant(np.full((1, 1, *(a.kernel for a in axes)), 1.0 / area), dy.dtype)
    return n.reshape_like(scatter(g, n, _one_channel(g, dy, len(axes)), weight, axes, ceil_mode=ceil_mode))


@rule("MaxPool")
def max_pool(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`dx[i] = Σ dy[o]` over the windows whose first maximum in row-major order is at `i`, as PyTorch.

    Separable: a maximum over rows of the maxima over columns, and the first maximum of a window is in the first row
    that holds it, at the first column there.  So one axis after the other, from the outermost, with `Σ k` steps
    in place of `Π k`; the maxima in between are computed again, by MaxPools over one axis.
    """
    axes = windows(n, n.attr("kernel_shape"))
    if _whole(axes):
        return global_max_pool(g, n, dy)
    rank, ceil_mode = len(axes), bool(n.attr("ceil_mode", 0))
    pooled = [j for j, a in enumerate(axes) if (a.kernel, a.stride, a.begin, a.end) != (1, 1, 0, 0)]
    if not pooled:
        return dy
    maxima = [_one_channel(g, n.x(), rank)]
    for j in reversed(pooled[1:]):
        maxima.append(_max_over_axis(g, n, maxima[-1], axes[j], j, rank))
    maxima.append(_one_channel(g, n.y(), rank))
    dx = _one_channel(g, dy, rank)
    for x, y, j in zip(maxima[-2::-1], maxima[:0:-1], pooled, strict=True):
        dx = _first_maximum(g, n, x, y, dx, axes, j, ceil_mode)
    dx = n.reshape_like(dx)
    sizes, pooled_sizes = n.static(start=2), [d for d in n.out_dims()[2:] if isinstance(d, int)]
    if sizes is not None and len(pooled_sizes) == rank:
        dx.meta["moved"] = Moved(dy, tuple(pooled_sizes), tuple(sizes))
    return dx


@rule("LpPool")
def lp_pool(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = (Σ|x|^p)^(1/p)` ⇒ `dx = sign(x)·|x|^(p-1)·Σ dy·y^(1-p)` over the windows of each position; 0 where y = 0."""
    axes = windows(n, n.attr("kernel_shape"))
    weight = g.constant(np.ones((1, 1, *(a.kernel for a in axes))), dy.dtype)
    share = _one_channel(g, _lp_share(g, n, dy), len(axes))
    back = n.reshape_like(scatter(g, n, share, weight, axes, ceil_mode=bool(n.attr("ceil_mode", 0))))
    return g.Mul(back, _lp_slope(g, n))


@rule("GlobalLpPool")
def global_lp_pool(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """As LpPool, over the whole input."""
    return g.Mul(_lp_share(g, n, dy), _lp_slope(g, n))


def _lp_share(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    p, y = float(n.attr("p", 2)), n.y()
    zero = g.Equal(y, 0.0)
    return g.Where(
        zero, g.constant(0.0, dy.dtype), g.Div(dy, g.Pow(g.Where(zero, g.constant(1.0, dy.dtype), y), p - 1))
    )


def _lp_slope(g: Builder, n: Call) -> ir.Value:
    p, x = float(n.attr("p", 2)), n.x()
    if p == 1.0:
        return g.Sign(x)
    return x if p == 2.0 else g.Mul(g.Sign(x), g.Pow(g.Abs(x), p - 1))


def _whole(axes: Sequence[Axis]) -> bool:
    """Whether one window covers the input exactly."""
    return all(a.size == a.kernel and a.begin == a.end == 0 and a.dilation == 1 for a in axes)


def _one_channel(g: Builder, value: ir.Value, rank: int) -> ir.Value:
    """(N, C, …) → (N·C, 1, …)."""
    return g.Reshape(value, [-1, 1] + [0] * rank)


def _share(g: Builder, n: Call, dy: ir.Value, axes: Sequence[Axis], ceil_mode: bool) -> ir.Value | None:
    """k^d/count[o…], what a window's average weighs its positions by; None if that is 1 everywhere."""
    padded = bool(n.attr("count_include_pad", 0))
    result: ir.Value | None = None
    for j, a in enumerate(axes):
        if not ceil_mode and (padded or a.begin == a.end == 0):
            continue  # every window is full
        count = a.count(ceil_mode)
        lo, hi = (-(a.begin or 0), a.end or 0) if padded else (0, 0)
        if count is not None and a.begin is not None and a.size is not None:
            at = (np.arange(count) * a.stride - a.begin)[:, None] + np.arange(a.kernel) * a.dilation
            inside = ((at >= lo) & (at < a.size + hi)).sum(axis=1)
            if (inside == a.kernel).all():
                continue
            factor = g.constant((a.kernel / inside).reshape(-1, *[1] * (len(axes) - 1 - j)), dy.dtype)
        else:
            factor = _run_time_share(g, n, dy, a, j, (lo, hi), len(axes))
        result = factor if result is None else g.Mul(result, factor)
    return result


def _run_time_share(g: Builder, n: Call, dy: ir.Value, a: Axis, j: int, bounds: tuple[int, int], rank: int) -> ir.Value:
    """k/count[o] of one axis whose size only the running graph knows."""
    begin = begin_pad(g, n, a, j, dy)
    count = g.Squeeze(axis_size(g, dy, 2 + j), [0])
    starts = g.Sub(g.Mul(g.Range(0, count, 1), a.stride), [begin] if isinstance(begin, int) else begin)
    at = g.Add(g.Unsqueeze(starts, [1]), g.constant(np.arange(a.kernel) * a.dilation))
    inside = g.And(g.GreaterOrEqual(at, bounds[0]), g.Less(at, plus(g, n.size(2 + j), bounds[1])))
    counts = g.ReduceSum(g.Cast(inside, to=dy.dtype), [1], keepdims=0)
    return g.Reshape(g.Div(g.constant(float(a.kernel), dy.dtype), counts), [-1] + [1] * (rank - 1 - j))


def _max_over_axis(g: Builder, n: Call, x: ir.Value, a: Axis, j: int, rank: int) -> ir.Value:
    """The forward MaxPool, over spatial axis `j` alone."""

    def only(value: int, other: int) -> list[int]:
        return [value if k == j else other for k in range(rank)]

    same = a.auto_pad if a.begin is None else None
    pads = None if same else only(a.begin or 0, 0) + only(a.end or 0, 0)
    return g.MaxPool(
        x, kernel_shape=only(a.kernel, 1), strides=only(a.stride, 1), dilations=only(a.dilation, 1), pads=pads,
        auto_pad=same, ceil_mode=n.attr("ceil_mode", 0),
    )  # fmt: skip


def _first_maximum(
    g: Builder, n: Call, x: ir.Value, y: ir.Value, dy: ir.Value, axes: Sequence[Axis], j: int, ceil_mode: bool
) -> ir.Value:
    """The gradient of a maximum over windows of one axis: what no earlier position took goes where `x = y`."""
    a = axes[j]
    x = _exact(g, n, x, y, a, j, ceil_mode)
    taken, left = [], dy
    for t in range(a.kernel - 1):
        start, stop = t * a.dilation, (t + 1 - a.kernel) * a.dilation
        at = g.Slice(x, [start], [stop], [2 + j], [a.stride])
        taken.append(masked(g, left, g.Equal(at, y)))
        left = g.Sub(left, taken[-1])
    taken.append(left)
    if a.dilation == 1 and a.kernel <= a.stride:
        return _interleave(g, n, taken, axes, j, ceil_mode)
    rank = len(axes)
    offsets = [a.kernel if k == j else 1 for k in range(rank)]
    weight = g.constant(np.eye(a.kernel).reshape(a.kernel, 1, *offsets), dy.dtype)
    lone = [a if k == j else Axis(1, 1, 1, 0, 0, None, "NOTSET") for k in range(rank)]
    return scatter(g, n, g.Concat(*taken, axis=1), weight, lone, ceil_mode=ceil_mode)


def _exact(g: Builder, n: Call, x: ir.Value, y: ir.Value, a: Axis, j: int, ceil_mode: bool) -> ir.Value:
    """`x` padded with -∞ and cut to what the windows cover: `(O-1)·s + δ(k-1) + 1` positions."""
    overhang = a.overhang(ceil_mode)
    if a.begin is not None and overhang is not None:
        return fit(g, x, 2 + j, a.begin, overhang, -math.inf)
    after = a.reach if a.end is None else a.end + (a.stride - 1 if ceil_mode else 0)  # or more than is needed
    pads = join(g, [begin_pad(g, n, a, j, y), after])
    covered = g.Add(g.Mul(axis_size(g, y, 2 + j), [a.stride]), [a.reach + 1 - a.stride])
    return g.Slice(g.Pad(x, pads, g.constant(-math.inf, x.dtype), [2 + j]), [0], covered, [2 + j])


def _interleave(
    g: Builder, n: Call, parts: Sequence[ir.Value], axes: Sequence[Axis], j: int, ceil_mode: bool
) -> ir.Value:
    """Scatter back where no two windows overlap: position `o·s - b + t` is `parts[t][o]`, which is a reshape."""
    a, axis = axes[j], 2 + j
    stacked = g.Concat(*(g.Unsqueeze(part, [axis + 1]) for part in parts), axis=axis + 1)
    stacked = fit(g, stacked, axis + 1, 0, a.stride - a.kernel)
    counts = [b.count(ceil_mode) for b in axes]
    after = [c if c is not None else axis_size(g, parts[0], 2 + k) for k, c in enumerate(counts) if k > j]
    merged = counts[j]
    positions = merged * a.stride if merged is not None else g.Mul(axis_size(g, parts[0], axis), [a.stride])
    flat = g.Reshape(stacked, join(g, [0] * axis + [positions, *after]))
    overhang = a.overhang(ceil_mode)
    if a.begin is not None and overhang is not None:
        return fit(g, flat, axis, -a.begin, a.kernel - a.stride - overhang)
    begin = begin_pad(g, n, a, j, parts[0])
    flat = fit(g, flat, axis, 0, max(a.stride - 1 - (a.end or 0), 0))
    return g.Slice(flat, join(g, [begin]), join(g, [plus(g, begin, n.size(axis))]), [axis])
