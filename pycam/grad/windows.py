"""Windows over spatial axes: the algebra that convolutions and pools share.

A window op lays `O` windows over a spatial axis of size `I`: window `o` covers the positions `o·s - b + t·δ`,
`t = 0…k-1` (stride `s`, dilation `δ`, pads `b` before and `e` after).  Hence on every axis

    b + I + e = (O - 1)·s + δ(k - 1) + 1 + r

where `r` is what no window reaches (`0 ≤ r < s`; below 0 where ceil_mode lets the last window stick out).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from pycam.graph.builder import Builder, constant_of

from .call import Call

END = int(np.iinfo(np.int64).max)
"""A Slice's end: of the axis, whatever its size."""


@dataclass(frozen=True)
class Axis:
    """How windows lie on one spatial axis; None is what only the running graph knows."""

    kernel: int
    stride: int
    dilation: int
    begin: int | None  # b
    end: int | None  # e
    size: int | None  # I
    auto_pad: str

    @property
    def reach(self) -> int:
        """δ(k - 1): how far a window reaches behind its first position."""
        return self.dilation * (self.kernel - 1)

    def count(self, ceil_mode: bool = False) -> int | None:
        """O: how many windows there are.  A window that would begin in the end pad is left out, as in PyTorch."""
        if self.size is None or self.begin is None or self.end is None:
            return None
        room = self.begin + self.size + self.end - self.reach - 1
        count = (-(-room // self.stride) if ceil_mode else room // self.stride) + 1
        return count - 1 if ceil_mode and (count - 1) * self.stride >= self.begin + self.size else count

    def overhang(self, ceil_mode: bool = False) -> int | None:
        """e - r: how far the last window reaches over the end of the input (below 0: what stays uncovered)."""
        if self.stride == 1 and self.end is not None:
            return self.end  # r = 0 whatever the size
        count = self.count(ceil_mode)
        if count is None or self.begin is None or self.size is None:
            return None
        return (count - 1) * self.stride + self.reach + 1 - self.begin - self.size


def windows(n: Call, kernel: Sequence[int]) -> list[Axis]:
    """The windows of `n` on each spatial axis of its input 0, from the attributes that all window ops have."""
    rank = len(kernel)
    dims = n.dims(0)[2:]
    if len(dims) != rank:
        raise n.refuse(
            f"a kernel of rank {rank} over an input of rank {rank + 2} is wanted, the input's is {len(dims) + 2}"
        )
    strides = n.attr("strides") or [1] * rank
    dilations = n.attr("dilations") or [1] * rank
    pads = n.attr("pads") or [0] * 2 * rank
    auto_pad = n.attr("auto_pad", "NOTSET")
    axes = []
    for j, (k, s, d) in enumerate(zip(kernel, strides, dilations, strict=True)):
        dim = dims[j]
        size = dim if isinstance(dim, int) else None
        begin, end = _pads(auto_pad, int(k), int(s), int(d), size, (int(pads[j]), int(pads[rank + j])))
        axes.append(Axis(int(k), int(s), int(d), begin, end, size, auto_pad))
    return axes


def _pads(
    auto_pad: str, k: int, s: int, d: int, size: int | None, explicit: tuple[int, int]
) -> tuple[int | None, int | None]:
    if auto_pad == "VALID":
        return 0, 0
    if not auto_pad.startswith("SAME"):
        return explicit
    if s == 1:
        return share(d * (k - 1), auto_pad == "SAME_UPPER")
    if size is None:
        return None, None
    return share(max((-(-size // s) - 1) * s + d * (k - 1) + 1 - size, 0), auto_pad == "SAME_UPPER")


def share(total: int, upper: bool) -> tuple[int, int]:
    """`total` padding as (begin, end); an odd one goes to the end if `upper`."""
    return (total // 2, total - total // 2) if upper else (total - total // 2, total // 2)


def scatter(
    g: Builder,
    n: Call,
    value: ir.Value,
    weight: ir.Value,
    axes: Sequence[Axis],
    *,
    group: int = 1,
    ceil_mode: bool = False,
) -> ir.Value:
    """Add windows up where they came from: the adjoint of cutting them out of the input.

    `dx[c, i] = Σ weight[m, c, t]·value[m, o]` over all `o·s - b + t·δ = i`: one ConvTranspose, made as long as the
    input by cutting its end or by output_padding.  Where the size is known only when the graph runs it is made longer
    by `s - 1` (always enough, as `r < s`) and cut to `I`: what no window reaches is then zero, as it must be.

    Args:
        g: The builder.
        n: The window op: `axes` are those of its input 0.
        value: (B, M, O…).
        weight: (M, C/group, k…).
        axes: One per spatial axis.
        group: Of the channels.
        ceil_mode: Whether the last window may stick out of the padded input.

    Returns:
        (B, C, I…).
    """
    begins, ends, extra, cuts = [], [], [], []
    for j, a in enumerate(axes):
        overhang = a.overhang(ceil_mode)
        begins.append(a.begin or 0)
        ends.append(max(overhang or 0, 0))
        extra.append(a.stride - 1 if overhang is None else max(-overhang, 0))
        if overhang is None:
            cuts.append(j)
    if group > 1 and g.portable:
        result = _scatter_by_conv(g, value, weight, axes, begins, ends, extra, group)
    else:
        result = g.ConvTranspose(
            value,
            weight,
            strides=[a.stride for a in axes],
            dilations=[a.dilation for a in axes],
            pads=begins + ends,
            output_padding=extra if any(extra) else None,
            group=group,
        )
    if not cuts:
        return result
    starts = [begin_pad(g, n, axes[j], j, value) for j in cuts]
    starts = [
        0 if axes[j].begin is not None else start for j, start in zip(cuts, starts, strict=True)
    ]  # else it is cut
    stops = [plus(g, start, n.size(2 + j, 0)) for j, start in zip(cuts, starts, strict=True)]
    return g.Slice(result, join(g, starts), join(g, stops), [2 + j for j in cuts])


def _scatter_by_conv(
    g: Builder,
    value: ir.Value,
    weight: ir.Value,
    axes: Sequence[Axis],
    begins: Sequence[int],
    ends: Sequence[int],
    extra: Sequence[int],
    group: int,
) -> ir.Value:
    """The same ConvTranspose as a Conv with groups, which all runtimes have: zeros between the windows, taps reversed.

    `(O-1)·s + 1` positions after the zeros are put in, `δ(k-1)` more on both sides, less the pads.
    """
    rank = len(axes)
    for j, a in enumerate(axes):
        if a.stride > 1:
            value = _spread(g, value, 2 + j, a.stride, 2 + rank)
    for j, a in enumerate(axes):
        value = fit(g, value, 2 + j, a.reach - begins[j], a.reach - ends[j] + extra[j])
    return g.Conv(value, flipped(g, weight, group, rank), dilations=[a.dilation for a in axes], group=group)


def _spread(g: Builder, value: ir.Value, axis: int, stride: int, rank: int) -> ir.Value:
    """`stride - 1` zeros between the positions of an axis."""
    apart = g.Pad(g.Unsqueeze(value, [axis + 1]), [0, stride - 1], None, [axis + 1])
    after = [axis_size(g, value, a) for a in range(axis + 1, rank)]
    return fit(g, g.Reshape(apart, join(g, [0] * axis + [-1, *after])), axis, 0, 1 - stride)


def flipped(g: Builder, weight: ir.Value, group: int, rank: int) -> ir.Value:
    """(M, C/g, k…) → (C, M/g, k…): in and out channels swapped within each group, spatial axes reversed."""
    known = constant_of(weight)
    if known is not None:
        m, c, *kernel = known.shape
        grouped = known.reshape(group, m // group, c, *kernel).swapaxes(1, 2)
        spatial = tuple(range(2, 2 + rank))
        return g.constant(np.ascontiguousarray(np.flip(grouped.reshape(group * c, m // group, *kernel), spatial)))
    axes = list(range(2, 2 + rank))
    turned = g.Slice(weight, [-1] * rank, [-END] * rank, axes, [-1] * rank)
    kernel = [axis_size(g, weight, axis) for axis in axes]
    channels = axis_size(g, weight, 1)
    apart = g.Reshape(turned, join(g, [group, -1, channels, *kernel]))
    swapped = g.Transpose(apart, perm=[0, 2, 1, *range(3, 3 + rank)])
    return g.Reshape(swapped, join(g, [g.Mul(channels, [group]), g.Div(axis_size(g, weight, 0), [group]), *kernel]))


def begin_pad(g: Builder, n: Call, a: Axis, j: int, y: ir.Value) -> int | ir.Value:
    """`b` of spatial axis `j`, computed in the graph for `auto_pad=SAME_*`; `y` has one position per window there."""
    if a.begin is not None:
        return a.begin
    covered = g.Add(g.Mul(axis_size(g, y, 2 + j), [a.stride]), [a.reach + 1 - a.stride])
    total = g.Max(g.Sub(covered, n.size(2 + j, 0)), [0])
    return g.Div(total if a.auto_pad == "SAME_UPPER" else g.Add(total, [1]), [2])


def axis_size(g: Builder, value: ir.Value, axis: int) -> ir.Value:
    """The run-time size of one axis as an int64 vector of length 1."""
    return g.Shape(value, start=axis, end=axis + 1)


def join(g: Builder, parts: Sequence[int | ir.Value]) -> ir.Value:
    """Sizes or positions, each an int or an int64 vector, as one int64 vector."""
    if all(isinstance(p, int) for p in parts):
        return g.constant([p for p in parts if isinstance(p, int)])
    vectors = [[p] if isinstance(p, int) else p for p in parts]
    return g.Concat(*vectors, axis=0) if len(vectors) > 1 else g.Identity(vectors[0])


def plus(g: Builder, a: int | ir.Value, b: int | ir.Value) -> int | ir.Value:
    """The sum of two sizes, each an int or an int64 vector of length 1."""
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    if isinstance(a, int):
        return b if a == 0 else g.Add(b, [a])
    return a if isinstance(b, int) and b == 0 else g.Add(a, [b] if isinstance(b, int) else b)


def fit(g: Builder, value: ir.Value, axis: int, before: int, after: int, fill: float = 0.0) -> ir.Value:
    """`value` with `before` and `after` more positions (of `fill`) on an axis; cut where they are negative."""
    if before > 0 or after > 0:
        value = g.Pad(value, [max(before, 0), max(after, 0)], g.constant(fill, value.dtype) if fill else None, [axis])
    if before < 0 or after < 0:
        value = g.Slice(value, [max(-before, 0)], [after if after < 0 else END], [axis])
    return value
