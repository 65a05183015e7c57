"""The in-graph head: raw maps → heatmaps as ONNX nodes, so that an exported graph needs nothing of pycam.

The pipeline of pytorch-grad-cam: with `s(x) = (x − min)/(1e-7 + max(x − min))` per map,
`heatmap = s(mean_l relu(resize(s(relu(raw_l)))))`, or the maximum or the product of the layers' own heatmaps; resize is
bilinear, half-pixel, without antialias.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce

import numpy as np
import onnx_ir as ir

from pycam.graph.axes import dims
from pycam.graph.builder import Builder, constant_of
from pycam.graph.pixels import Image, image_size, sizes_at
from pycam.graph.views import View, as_positions
from pycam.runtime.layouts import position_axes
from pycam.runtime.spec import ROUNDING

_AXES = [-2, -1]
EPSILON = 1e-7
_BILINEAR = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}


def map_heatmaps(
    g: Builder, raws: Sequence[ir.Value], grids: Sequence[View | None], image: Image, combine: str
) -> ir.Value:
    """Raw maps (N, K, p, q), one per layer, of whatever an image is → heatmaps in [0, 1] of its sizes: (N, K, H, W),
    of a signal (N, K, L), of a volume (N, K, D, H, W).

    `grids` says where a volume's raw maps have their depth, rows and columns.
    """
    size, where = image_size(g, image), position_axes(image.layout)
    if len(where) == 2:
        return heatmaps(g, raws, size, [dims(raw)[2:] for raw in raws], combine)
    if len(where) == 1:
        rows = [g.Reshape(raw, [0, 0, 1, -1]) for raw in raws]
        made = heatmaps(g, rows, _vector(g, [1], size), [(1, dims(raw)[-1]) for raw in raws], combine)
    else:
        views = [grid for grid in grids if grid is not None]
        made = volume_heatmaps(g, raws, [sizes_at(g, v.source, v.axes) for v in views], size, combine)
    return as_positions(g, made, View(image.value, where), len(where))


def heatmaps(
    g: Builder,
    raws: Sequence[ir.Value],
    size: ir.Value,
    small: Sequence[Sequence[int | str]] | None = None,
    combine: str = "mean",
) -> ir.Value:
    """Raw maps (N, K, h_l, w_l), one per layer, and `size` int64 (2,) → heatmaps (N, K, H, W) in [0, 1].

    `small` has the (h_l, w_l) as far as they are known; `combine` is "mean", "max" or "product".
    """
    layers = []
    for i, raw in enumerate(raws):
        layers.append(_resized(g, _min_max(g, g.Relu(raw)), size, small[i] if small is not None else None))
    return _combined(g, layers, combine)


def volume_heatmaps(
    g: Builder, raws: Sequence[ir.Value], grids: Sequence[ir.Value], size: ir.Value, combine: str = "mean"
) -> ir.Value:
    """Raw maps (N, K, d_l, h_l·w_l), one per layer, with d, h and w of each as `grids`, int64 (3,), and `size` int64
    (3,) → heatmaps (N, K, D, H·W) in [0, 1], trilinear: first each plane is resized, then the depth."""
    planes = _part(g, size, 1, 3)
    area = _count(g, planes)
    lines = _vector(g, _part(g, size, 0, 1), area)
    layers = []
    for raw, grid in zip(raws, grids, strict=True):
        depth, plane = _part(g, grid, 0, 1), _part(g, grid, 1, 3)
        unit = _min_max(g, g.Relu(raw))
        flat = g.Reshape(unit, _vector(g, [0, -1], plane))  # (N, K·d, h, w)
        flat = _resized(g, flat, planes, _ints(plane))
        tall = g.Reshape(flat, _vector(g, [0, -1], depth, area))  # (N, K, d, H·W)
        layers.append(_resized(g, tall, lines, _ints(_vector(g, depth, area))))
    return _combined(g, layers, combine)


def _combined(g: Builder, layers: Sequence[ir.Value], combine: str) -> ir.Value:
    return _min_max(g, layers[0] if len(layers) == 1 else _COMBINED[combine](g, layers))


def _resized(g: Builder, maps: ir.Value, size: ir.Value, small: Sequence[int | str] | None) -> ir.Value:
    """Maps (…, …, h, w) at `size`, int64 (2,); `small` is (h, w), as far as it is known."""
    scales = _scales(size, small) if g.portable and small is not None else None
    if scales is not None:  # tract resizes to sizes only if it knows the batch's as well
        return g.Resize(maps, None, g.constant(scales), **_BILINEAR)
    shape = g.Concat(g.Slice(g.Shape(maps), [0], [2], [0]), size, axis=0)
    return g.Resize(maps, None, None, shape, **_BILINEAR)


def _ints(sizes: ir.Value) -> list[int] | None:
    """Sizes, if they are known."""
    array = constant_of(sizes)
    return [int(d) for d in array] if array is not None else None


def _part(g: Builder, sizes: ir.Value, start: int, end: int) -> ir.Value:
    known = _ints(sizes)
    return g.constant(known[start:end]) if known is not None else g.Slice(sizes, [start], [end], [0])


def _count(g: Builder, sizes: ir.Value) -> ir.Value:
    """Their product, int64 (1,)."""
    known = _ints(sizes)
    return g.constant([math.prod(known)]) if known is not None else g.ReduceProd(sizes, [0], keepdims=1)


def _vector(g: Builder, *parts: ir.Value | list[int]) -> ir.Value:
    """Sizes one after another, int64."""
    known = [part if isinstance(part, list) else _ints(part) for part in parts]
    if any(part is None for part in known):
        return g.Concat(*parts, axis=0)
    return g.constant([d for part in known for d in part or ()])


def _mean(g: Builder, layers: Sequence[ir.Value]) -> ir.Value:
    return g.Mul(g.Sum(*layers), 1.0 / len(layers))


def _max(g: Builder, layers: Sequence[ir.Value]) -> ir.Value:
    return g.Max(*(_min_max(g, layer) for layer in layers))


def _product(g: Builder, layers: Sequence[ir.Value]) -> ir.Value:
    maps = reduce(g.Mul, (_min_max(g, layer) for layer in layers))
    top = g.ReduceMax(maps, _AXES, keepdims=1)
    return g.Div(maps, g.Where(g.Greater(top, 0.0), top, 1.0))  # that of many layers is small everywhere


_COMBINED = {"mean": _mean, "max": _max, "product": _product}


def from_minimum(g: Builder, x: ir.Value) -> ir.Value:
    """Each map, of levels of a score, less its minimum; 0 where it differs by rounding alone."""
    lifted = _lifted(g, x)
    noise = g.Mul(g.ReduceMax(g.Abs(x), _AXES, keepdims=1), ROUNDING)
    return g.Where(g.LessOrEqual(g.ReduceMax(lifted, _AXES, keepdims=1), noise), 0.0, lifted)


def _lifted(g: Builder, x: ir.Value) -> ir.Value:
    return g.Sub(x, g.ReduceMin(x, _AXES, keepdims=1))


def _min_max(g: Builder, x: ir.Value) -> ir.Value:
    lifted = _lifted(g, x)
    return g.Div(lifted, g.Add(g.ReduceMax(lifted, _AXES, keepdims=1), EPSILON))


def _scales(size: ir.Value, small: Sequence[int | str]) -> np.ndarray | None:
    """From the sizes of a map to `size`, if both are known; a runtime rounds what they give downwards."""
    large = constant_of(size)
    if large is None or not all(isinstance(s, int) for s in small):
        return None
    before, after = np.array(small, np.float64), large.astype(np.float64)
    scales = (after / before).astype(np.float32)
    scales = np.where(before * scales < after, np.nextafter(scales, np.float32(np.inf)), scales)
    return np.concatenate([np.ones(2, np.float32), scales])
