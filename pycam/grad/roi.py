"""Ops that pool regions of images: RoiAlign and MaxRoiPool.

Both work on rows and columns apart, so a region is two matrices (or masks), one per axis.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from pycam.graph.builder import Builder

from .call import Call
from .index import positions
from .registry import expansion
from .sample import Size, axis_matrix, linear_taps


@expansion("RoiAlign")
def roi_align(g: Builder, n: Call) -> ir.Value:
    """`y[r] = A_r·x[batch_r]·B_rᵀ`: each bin is the mean of samples between pixels, which weigh rows and columns apart.

    The regions have a gradient too (through the weights); in how many samples they are taken only changes in steps.
    """
    if n.attr("mode", "avg") != "avg":
        raise n.refuse("mode=max: runtimes take the largest of weighted pixels, not of samples, by mistake")
    x = g.Gather(n.x(0), n.x(2), axis=0)
    left, top, right, bottom = g.emit("Split", [n.x(1)], {"axis": 1, "num_outputs": 4}, outputs=4)
    rows = _bins(g, n, 2, top, bottom, int(n.attr("output_height", 1)))  # (R, H, bins)
    columns = _bins(g, n, 3, left, right, int(n.attr("output_width", 1)))
    y = g.MatMul(g.Transpose(g.Unsqueeze(rows, [1]), perm=[0, 1, 3, 2]), x)
    return g.MatMul(y, g.Unsqueeze(columns, [1]))


def _bins(g: Builder, n: Call, axis: int, begin: ir.Value, end: ir.Value, bins: int) -> ir.Value:
    """How much each position of an axis weighs in each bin: (R, size, bins); `begin` and `end` are (R, 1).

    Bin `p` has `k` samples at `begin + (p + (s + ½)/k)·length/bins`: those further than a pixel outside are 0, those
    beside the border are on it.
    """
    dtype, scale = begin.dtype, float(n.attr("spatial_scale", 1.0))
    shift = 0.5 if n.attr("coordinate_transformation_mode", "half_pixel") == "half_pixel" else 0.0
    begin, end = (g.Sub(g.Mul(v, scale), shift) for v in (begin, end))
    length = g.Sub(end, begin) if shift else g.Max(g.Sub(end, begin), 1.0)
    bin_size, fixed = g.Div(length, float(bins)), int(n.attr("sampling_ratio", 0))
    if fixed > 0:
        count = g.constant(float(fixed), dtype)
        s = g.constant(np.arange(fixed), dtype)
    else:
        count = g.Max(g.Ceil(bin_size), 0.0)  # (R, 1)
        counts = g.Concat(g.Reshape(count, [-1]), g.constant([1.0], dtype), axis=0)  # there may be no region
        most = g.Cast(g.ReduceMax(counts, keepdims=0), to=ir.DataType.INT64)
        s = g.Cast(g.Range(0, most, 1), to=dtype)
    sampled = g.Less(s, count)  # (R or none, S)
    within = g.Div(g.Add(s, 0.5), g.Max(count, 1.0))  # (R or none, S)
    within = g.Unsqueeze(within, [-2])
    place = g.Add(g.constant(np.arange(bins).reshape(-1, 1), dtype), within)  # (R or none, bins, S)
    c = g.Add(g.Unsqueeze(begin, [2]), g.Mul(place, g.Unsqueeze(bin_size, [2])))  # (R, bins, S)
    dim = n.dims(0)[axis]
    size: Size = dim if isinstance(dim, int) else n.size(axis, 0)
    high = g.constant(float(size), dtype) if isinstance(size, int) else g.Cast(size, to=dtype)
    seen = g.And(g.And(g.GreaterOrEqual(c, -1.0), g.LessOrEqual(c, high)), g.Unsqueeze(sampled, [-2]))
    zero, last = g.constant(0.0, dtype), g.Sub(high, 1.0)
    c = g.Where(g.LessOrEqual(c, zero), zero, g.Where(g.GreaterOrEqual(c, last), last, c))
    weights = axis_matrix(g, linear_taps(g, c), size, 3)  # (R, size, bins, S)
    weights = g.Mul(weights, g.Unsqueeze(g.Cast(seen, to=dtype), [1]))
    total = g.ReduceSum(weights, [3], keepdims=0)
    return g.Div(total, g.Unsqueeze(g.Max(count, 1.0), [2]) if fixed <= 0 else count)


@expansion("MaxRoiPool")
def max_roi_pool(g: Builder, n: Call) -> ir.Value:
    """The maximum over each bin, whole pixels: over its columns, then over its rows; the first of equal ones.

    The corners are rounded: the regions have no gradient.  An empty bin is 0.
    """
    parts = g.emit("Split", [n.x(1)], {"axis": 1, "num_outputs": 5}, outputs=5)
    index = g.Cast(g.Squeeze(parts[0], [1]), to=ir.DataType.INT64)
    left, top, right, bottom = (_rounded(g, g.Mul(v, float(n.attr("spatial_scale", 1.0)))) for v in parts[1:])
    height, width = (int(v) for v in n.attr("pooled_shape"))
    x = g.Gather(n.x(0), index, axis=0)  # (R, C, H, W)
    columns = g.Unsqueeze(_inside(g, n, 3, left, right, width), [1, 2])  # (R, 1, 1, bins, W)
    x = _first_maximum(g, g.Unsqueeze(x, [3]), columns)  # (R, C, H, bins)
    rows = g.Unsqueeze(_inside(g, n, 2, top, bottom, height), [1, 3])  # (R, 1, bins, 1, H)
    y = _first_maximum(g, g.Unsqueeze(g.Transpose(x, perm=[0, 1, 3, 2]), [2]), rows)  # (R, C, bins, bins)
    empty = g.LessOrEqual(y, g.constant(-math.inf, y.dtype))
    return g.Where(empty, g.constant(0.0, y.dtype), y)


def _rounded(g: Builder, v: ir.Value) -> ir.Value:
    """To the nearest whole number, halves away from 0, as C's `round`."""
    return g.Mul(g.Sign(v), g.Floor(g.Add(g.Abs(v), 0.5)))


def _inside(g: Builder, n: Call, axis: int, begin: ir.Value, end: ir.Value, bins: int) -> ir.Value:
    """Whether bin `p` holds position `i`: (R, bins, size)."""
    dim = n.dims(0)[axis]
    size: Size = dim if isinstance(dim, int) else n.size(axis, 0)
    i = g.Cast(positions(g, size), to=begin.dtype)
    bin_size = g.Div(g.Max(g.Add(g.Sub(end, begin), 1.0), 1.0), float(bins))  # (R, 1)
    p = g.constant(np.arange(bins), begin.dtype)
    low = g.Add(g.Floor(g.Mul(p, bin_size)), begin)
    high = g.Add(g.Ceil(g.Mul(g.Add(p, 1.0), bin_size)), begin)
    return g.And(g.GreaterOrEqual(i, g.Unsqueeze(low, [2])), g.Less(i, g.Unsqueeze(high, [2])))


def _first_maximum(g: Builder, x: ir.Value, inside: ir.Value) -> ir.Value:
    """The largest `x` along the last axis among those inside; -∞ where there are none."""
    masked = g.Where(inside, x, g.constant(-math.inf, x.dtype))
    first = g.Equal(g.ArgMax(masked, axis=-1, keepdims=1), g.Range(0, g.Squeeze(g.Shape(masked, start=-1), [0]), 1))
    return g.ReduceSum(g.Where(first, masked, g.constant(0.0, x.dtype)), [-1], keepdims=0)
