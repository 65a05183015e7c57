"""Ops that sample images between pixels: AffineGrid, GridSample, DeformConv.

A sample lies at a coordinate `c` (in pixels) of each axis and takes from a few pixels there, the taps: `Σ w(c)·x[at]`,
at whole positions `at` that depend on `c` in steps only.  The samples of an image are written out as products of these
weights, so that the gradients for the image and for the coordinates (through the weights) both follow.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from pycam.graph.builder import Builder

from .call import Call
from .index import positions
from .registry import expansion, rule, stop
from .windows import END, axis_size, join, windows

stop("AffineGrid", 1, why="a shape holds integers", kind="integer")

Size = int | ir.Value
"""The size of an axis: known, or an int64 vector of length 1."""

_CUBIC = -0.75  # of the bicubic kernel, as in PyTorch


class Tap(NamedTuple):
    """One pixel that each sample takes from on one axis."""

    at: ir.Value  # (B, P): whole numbers, as floats; outside of the image it gives nothing
    weight: ir.Value | None  # (B, P); None is 1


def linear_taps(g: Builder, c: ir.Value) -> list[Tap]:
    """`(1 − t)·x[⌊c⌋] + t·x[⌊c⌋ + 1]`, `t = c − ⌊c⌋`: at a pixel the gradient is that of the right, as PyTorch."""
    low = g.Floor(c)
    t = g.Sub(c, low)
    return [Tap(low, g.Sub(1.0, t)), Tap(g.Add(low, 1.0), t)]


def _cubic_taps(g: Builder, c: ir.Value) -> list[Tap]:
    """Keys' kernel over four pixels: `(a+2)d³ − (a+3)d² + 1` at distances `d ≤ 1`, `a(d³ − 5d² + 8d − 4)` up to 2."""
    low = g.Floor(c)
    t = g.Sub(c, low)
    a, s = _CUBIC, g.Sub(1.0, t)

    def near(d: ir.Value) -> ir.Value:
        return g.Add(g.Mul(g.Mul(g.Sub(g.Mul(d, a + 2), a + 3), d), d), 1.0)

    def far(d: ir.Value) -> ir.Value:
        return g.Mul(g.Sub(g.Mul(g.Add(g.Mul(g.Sub(d, 5.0), d), 8.0), d), 4.0), a)

    weights = [far(g.Add(t, 1.0)), near(t), near(s), far(g.Add(s, 1.0))]
    return [Tap(g.Add(low, float(k - 1)), weight) for k, weight in enumerate(weights)]


def sample(g: Builder, x: ir.Value, taps: Sequence[Sequence[Tap]], sizes: Sequence[Size]) -> ir.Value:
    """`y[b, c, p] = Σ w·x[b, c, at…]` over all combinations of the taps of the axes.

    Args:
        g: The builder.
        x: (B, C, sizes…).
        taps: For each axis.
        sizes: Of the axes.

    Returns:
        (B, C, P).
    """
    flat = g.Reshape(x, join(g, [0, 0, -1]))
    return _by_matrix(g, flat, taps, sizes) if g.portable else _by_rows(g, flat, taps, sizes)


def _by_matrix(g: Builder, flat: ir.Value, taps: Sequence[Sequence[Tap]], sizes: Sequence[Size]) -> ir.Value:
    """`y = x·S`, `S[b, i, p] = Π_axes Σ_taps w·[at = i]`: no op but comparisons and products."""
    matrix: ir.Value | None = None
    for of_axis, size in zip(taps, sizes, strict=True):
        total = axis_matrix(g, of_axis, size)
        if matrix is None:
            matrix = total
            continue
        matrix = g.Mul(g.Unsqueeze(matrix, [2]), g.Unsqueeze(total, [1]))
        matrix = g.Reshape(matrix, join(g, [0, -1, axis_size(g, of_axis[0].at, 1)]))
    return g.MatMul(flat, matrix)


def axis_matrix(g: Builder, taps: Sequence[Tap], size: Size, rank: int = 2) -> ir.Value:
    """`Σ_taps w·[at = i]` (B, size, P…), for taps (B, P…) of `rank` axes."""
    total: ir.Value | None = None
    for tap in taps:
        at = g.Unsqueeze(tap.at, [1])
        i = g.Unsqueeze(g.Cast(positions(g, size), to=at.dtype), list(range(1, rank)))
        here = g.Cast(g.Equal(at, i), to=at.dtype)
        part = here if tap.weight is None else g.Mul(here, g.Unsqueeze(tap.weight, [1]))
        total = part if total is None else g.Add(total, part)
    assert total is not None
    return total


def _by_rows(g: Builder, flat: ir.Value, taps: Sequence[Sequence[Tap]], sizes: Sequence[Size]) -> ir.Value:
    """Pick the pixels as rows of channels, weigh, and sum: its gradient adds rows up, which is fast on a CPU."""
    places: list[list[tuple[ir.Value, ir.Value]]] = []  # position · stride, and weight, per axis and tap
    stride: Size = 1
    for of_axis, size in reversed(list(zip(taps, sizes, strict=True))):
        places.append([_place(g, tap, size, stride) for tap in of_axis])
        stride = stride * size if isinstance(stride, int) and isinstance(size, int) else g.Mul(_of(stride), _of(size))
    picks, weights = [], []
    for combination in itertools.product(*places):
        at, weight = combination[0]
        for other, factor in combination[1:]:
            at, weight = g.Add(at, other), g.Mul(weight, factor)
        picks.append(g.Unsqueeze(at, [1]))
        weights.append(g.Unsqueeze(weight, [1]))
    chosen = g.Unsqueeze(_joined(g, picks), [3])  # (B, T, P, 1)
    rows = g.GatherND(g.Transpose(flat, perm=[0, 2, 1]), chosen, batch_dims=1)  # (B, T, P, C)
    mixed = g.ReduceSum(g.Mul(rows, g.Unsqueeze(_joined(g, weights), [3])), [1], keepdims=0)
    return g.Transpose(mixed, perm=[0, 2, 1])


def _place(g: Builder, tap: Tap, size: Size, stride: Size) -> tuple[ir.Value, ir.Value]:
    at = g.Cast(tap.at, to=ir.DataType.INT64)
    last = g.constant([size - 1]) if isinstance(size, int) else g.Sub(size, [1])
    inside = g.And(g.GreaterOrEqual(at, 0), g.LessOrEqual(at, last))
    known = g.Cast(inside, to=tap.at.dtype)
    weight = known if tap.weight is None else g.Mul(tap.weight, known)
    clipped = g.Min(g.Max(at, g.constant([0])), last)
    return clipped if stride == 1 else g.Mul(clipped, _of(stride)), weight


def _of(size: Size) -> ir.Value | list[int]:
    return [size] if isinstance(size, int) else size


def _joined(g: Builder, values: list[ir.Value]) -> ir.Value:
    return g.Concat(*values, axis=1) if len(values) > 1 else values[0]


@rule("AffineGrid")
def affine_grid(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y[p] = θ·(x_p, y_p, …, 1)` ⇒ `dθ = Σ_p dy[p]·(x_p, y_p, …, 1)ᵀ`, for the positions `p` of the grid."""
    rank, known = _rank_of_grid(n), n.const(1)
    ones: ir.Value | None = None
    axes = []
    for j in range(rank):
        count: Size = int(known[2 + j]) if known is not None else axis_size(g, dy, 1 + j)
        along = g.Reshape(_grid(g, count, bool(n.attr("align_corners", 0)), dy.dtype), [-1] + [1] * (rank - 1 - j))
        axes.append(along)
        ones = g.Add(g.Mul(along, 0.0), 1.0) if ones is None else g.Mul(ones, g.Add(g.Mul(along, 0.0), 1.0))
    assert ones is not None
    columns = [g.Unsqueeze(g.Mul(ones, x), [rank]) for x in reversed(axes)]
    base = g.Reshape(g.Concat(*columns, g.Unsqueeze(ones, [rank]), axis=rank), [-1, rank + 1])
    return g.MatMul(g.Transpose(g.Reshape(dy, [0, -1, rank]), perm=[0, 2, 1]), base)


def _rank_of_grid(n: Call) -> int:
    """2 for images, 3 for volumes: θ is (N, 2, 3) or (N, 3, 4), the sizes are 4 or 5."""
    rows, columns, sizes = n.dims(0)[1], n.dims(0)[2], n.dims(1)[0]
    found = (d - less for d, less in ((rows, 0), (columns, 1), (sizes, 2)) if isinstance(d, int))
    rank = next(found, None)
    if rank is None:
        raise n.refuse("whether it is for images or for volumes is known only when the graph runs")
    return rank


def _grid(g: Builder, size: Size, align_corners: bool, dtype: ir.DataType | None) -> ir.Value:
    """The normalised coordinates of the pixels of one axis: -1 … 1 between the corners (or their centres)."""
    if isinstance(size, int):
        numbers = np.arange(size)
        ends = 2 * numbers / max(size - 1, 1) - (size > 1)  # a single pixel is in the middle, as in PyTorch
        return g.constant(ends if align_corners else (2 * numbers + 1) / size - 1, dtype)
    at, count = g.Cast(positions(g, size), to=dtype), g.Cast(size, to=dtype)
    if not align_corners:
        return g.Sub(g.Div(g.Add(g.Mul(at, 2.0), 1.0), count), 1.0)
    steps = g.Sub(count, 1.0)
    return g.Sub(g.Div(g.Mul(at, 2.0), g.Max(steps, 1.0)), g.Min(steps, 1.0))


@expansion("GridSample")
def grid_sample(g: Builder, n: Call) -> ir.Value:
    """`y[n, c, o] = x[n, c]` at the coordinates `grid[n, o]` (the last axis first), -1 … 1 over the image.

    Pixels beyond the border are 0, the border's, or reflected; as in PyTorch the coordinate has no gradient where it is
    at or beyond the border (border, reflection), nor anywhere in the mode nearest.
    """
    rank, align = n.rank(0) - 2, bool(n.attr("align_corners", 0))
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(n.attr("mode", "linear"), n.attr("mode", "linear"))
    padding = n.attr("padding_mode", "zeros")
    if mode not in ("linear", "nearest", "cubic") or padding not in ("zeros", "border", "reflection"):
        raise n.refuse(f"mode={mode} with padding_mode={padding}")
    sizes = [_size(n, 2 + j, 0) for j in range(rank)]
    grid = n.x(1) if n.dtype(1) == n.dtype(0) else g.Cast(n.x(1), to=n.dtype(0))
    parts = g.emit("Split", [grid], {"axis": rank + 1, "num_outputs": rank}, outputs=rank)
    taps = []
    for part, size in zip(reversed(parts), sizes, strict=True):
        count = g.constant(float(size), part.dtype) if isinstance(size, int) else g.Cast(size, to=part.dtype)
        c = g.Add(g.Reshape(part, [0, -1]), 1.0)
        c = g.Mul(c, g.Mul(g.Sub(count, 1.0), 0.5)) if align else g.Mul(g.Sub(g.Mul(c, count), 1.0), 0.5)
        if mode == "cubic":
            taps.append([Tap(_padded(g, at, count, padding, align), w) for at, w in _cubic_taps(g, c)])
        else:
            c = _padded(g, c, count, padding, align)
            taps.append(linear_taps(g, c) if mode == "linear" else [Tap(g.Round(c), None)])
    y = sample(g, n.x(0), taps, sizes)
    return g.Reshape(y, join(g, [0, 0, *(_size(n, 1 + j, 1) for j in range(rank))]))


def _size(n: Call, axis: int, i: int) -> Size:
    dim = n.dims(i)[axis]
    return dim if isinstance(dim, int) else n.size(axis, i)


def _padded(g: Builder, c: ir.Value, count: ir.Value, padding: str, align: bool) -> ir.Value:
    """Where a coordinate beyond the border looks instead."""
    if padding == "zeros":
        return c
    last = g.Sub(count, 1.0)
    if padding == "reflection":
        c = _reflected(g, c, last if align else count, 0.0 if align else -0.5)
    zero = g.constant(0.0, c.dtype)
    return g.Where(g.LessOrEqual(c, zero), zero, g.Where(g.GreaterOrEqual(c, last), last, c))


def _reflected(g: Builder, c: ir.Value, span: ir.Value, low: float) -> ir.Value:
    """Mirrored at `low` and `low + span` until it is between: `m = |c − low| mod span`, from the other end if odd."""
    far = g.Abs(g.Sub(c, low))
    flips = g.Floor(g.Div(far, g.Max(span, 1e-6)))
    rest = g.Sub(far, g.Mul(flips, span))
    odd = g.Sub(flips, g.Mul(g.Floor(g.Mul(flips, 0.5)), 2.0))
    return g.Add(g.Where(g.Equal(odd, 0.0), rest, g.Sub(span, rest)), low)


@expansion("DeformConv")
def deform_conv(g: Builder, n: Call) -> ir.Value:
    """A convolution whose window `o` takes `x` at `o·s − b + t·δ + offset[t, o]`, times `mask[t, o]`; 0 outside of `x`.

    The samples of all windows, (C·k, O), times the weights (M, C·k): the gradient for every input follows.
    """
    rank, groups, groups_of_offsets = n.rank(0) - 2, int(n.attr("group", 1)), int(n.attr("offset_group", 1))
    kernel, channels = n.attr("kernel_shape") or n.static(1, start=2), n.dims(1)[1]
    if kernel is None or not isinstance(channels, int):
        raise n.refuse("the shape of its weights is unknown")
    taps_count = math.prod(kernel)
    out = [_size(n, 2 + j, 2) for j in range(rank)]
    offsets = g.Reshape(n.x(2), join(g, [-1, taps_count, rank, *out]))
    parts = g.emit("Split", [offsets], {"axis": 2, "num_outputs": rank}, outputs=rank) if rank > 1 else (offsets,)
    at = np.indices(kernel).reshape(rank, taps_count)
    taps = []
    for j, a in enumerate(windows(n, kernel)):
        o = g.Cast(positions(g, out[j]), to=offsets.dtype)
        starts = g.Reshape(g.Sub(g.Mul(o, float(a.stride)), float(a.begin or 0)), [-1] + [1] * (rank - 1 - j))
        within = g.constant((at[j] * float(a.dilation)).reshape(-1, *[1] * (rank + 1)), offsets.dtype)
        c = g.Add(parts[j], g.Add(within, starts))
        taps.append(linear_taps(g, g.Reshape(c, [0, -1])))
    sizes = [_size(n, 2 + j, 0) for j in range(rank)]
    images = g.Reshape(n.x(0), join(g, [-1, channels * groups // groups_of_offsets, *sizes]))
    columns = sample(g, images, taps, sizes)  # (N·offset groups, C/offset groups, k·O)
    places = g.ReduceProd(g.Slice(n.shape(2), [2], [END], [0]), [0], keepdims=1)
    if n.has(4):
        columns = g.Mul(columns, g.Reshape(n.x(4), join(g, [-1, 1, g.Mul(places, [taps_count])])))
    columns = g.Reshape(columns, join(g, [-1, groups, channels * taps_count, places]))
    y = g.MatMul(g.Reshape(n.x(1), [groups, -1, channels * taps_count]), columns)
    y = g.Reshape(y, join(g, [0, -1, *out]))
    return g.Add(y, g.Reshape(n.x(3), [-1] + [1] * rank)) if n.has(3) else y
