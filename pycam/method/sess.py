"""SESS: a method's maps of crops at several scales, put together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from pycam.errors import MethodError
from pycam.graph.builder import Builder
from pycam.graph.locate import dims
from pycam.head.graph import heatmaps

from .combine import shaped, split
from .registry import CHANNELS, POSITIONS, method
from .scene import Scene

_RATIO = 2 / 7  # of the window: how much larger than the last each scale is
_BLUR, _SIGMA = 11, 5.0


@method(
    "sess",
    "SESS",
    "2207.01769",
    plan="perturb",
    cost="1 forward + (1 forward + backward of the tail) per window: 122 for a square image at 12 scales",
)
def sess(s: Scene, *, scales: int = 12) -> ir.Value:
    """Grad-CAM of windows of the image at several scales, each times the window's share of the target's probability,
    put back to where it lies; the mean of those that cover a pixel, blurred.

    The window is a square as large as the image's shorter side, or, where a model fixes the size of its input, that
    size; scale i is the window's shorter side times 1 + 2i/7, and windows do not overlap but for the last in a row.

    Options:
        scales: Of the image, 1 or more, each with more windows than the last: 1, 6, 12 are 1, 31 and 122 of a square
            one.  Few for large things, 6 to 12 for small ones.
    """
    if scales < 1:
        raise MethodError(f"scales={scales}: give 1 or more")
    if s.axes != 2:
        raise s.needs("windows of a picture")
    g, layer = s.g, s.layer
    table, window, count = _windows(s, scales)
    place = g.Gather(table, s.vary(s.range_along(table, 0) if count is None else count), axis=0)  # (M, 4)
    top, left, height, width = (g.Unsqueeze(g.Slice(place, [i], [i + 1], [1]), [2]) for i in range(4))  # (M, 1, 1)
    large, small = _parts(g, s.size), _parts(g, window)
    image = s.read(s.pixels)
    # Row i of a window shows the image at a place between two of its rows: a matrix with two entries per row.
    down = _tents(g, small[0], large[0], top, height, into=True)  # (M, window, H)
    across = _tents(g, small[1], large[1], left, width, into=True)
    crops = _sampled(g, image, down, across)
    crops.shape = ir.Shape([None, dims(image)[1], *_known(window)])
    x = s.as_image(crops)
    found = s.run({s.x: g.Cast(x, to=s.x.dtype) if s.x.dtype != x.dtype else x}, keep=[layer])

    at = found.at(layer)
    a = s.read(at)
    w = g.ReduceMean(split(g, found.gradient(layer), at, s.chosen.count), POSITIONS, keepdims=1)
    raw = g.Transpose(g.ReduceSum(g.Mul(w, a), [CHANNELS], keepdims=0), perm=[1, 0, 2, 3])  # (M, K, h, w)
    maps = heatmaps(g, [raw], window)
    probability = g.GatherElements(g.Softmax(found.classes, axis=1), found.chosen.explained, axis=1)  # (M, K)
    weighted = g.Mul(maps, g.Unsqueeze(probability, [2, 3]))
    # The other way round: the image's row i shows the canvas, which is empty but for the window.
    up = _tents(g, large[0], small[0], top, height, into=False)  # (M, H, window)
    along = _tents(g, large[1], small[1], left, width, into=False)
    put = _sampled(g, weighted, up, along)  # (M, K, H, W)

    best = g.Unsqueeze(g.ReduceMax(s.stack(probability), [0], keepdims=1), [2, 3])  # (1, K, 1, 1)
    total = s.total(g.ReduceSum(put, [0], keepdims=1))
    covered = s.total(g.ReduceSum(g.Cast(g.Greater(put, 0.0), to=ir.DataType.FLOAT), [0], keepdims=1))
    mean = g.Div(total, g.Mul(g.Max(covered, 1.0), best))
    rows, columns = (2, 3) if s.layout == "NCHW" else (1, 2)
    return shaped(s, _blurred(g, mean, s.size), [dims(s.x)[rows], dims(s.x)[columns]])


def _windows(s: Scene, scales: int) -> tuple[ir.Value, ir.Value, int | None]:
    """Float32 (V, 4): top, left of each window in the scaled image, and that image's height and width; the window's
    size, int64 (2,); V where it is known."""
    g = s.g
    size = dims(s.x)[2:] if s.layout == "NCHW" else dims(s.x)[1:3]
    height, width = size
    if isinstance(height, int) and isinstance(width, int):
        shorter = min(height, width)
        rows: list[tuple[int, int, int, int]] = []
        for factor in _scaled_sides(shorter, scales):
            high, wide = height * factor // shorter, width * factor // shorter
            rows += [(y, x, high, wide) for y in _starts(high, height) for x in _starts(wide, width)]
        return g.constant(np.array(rows, np.float32)), s.size, len(rows)
    if isinstance(height, int) or isinstance(width, int):
        raise MethodError(
            f"{s.title} runs the model on square windows, or on windows of its input's size, and the input "
            f"{s.x.name!r} fixes one side alone {list(dims(s.x))}: export it with both sides free, or both fixed"
        )
    return _table(g, s.size, scales), g.Expand(_shorter(g, s.size), [2]), None


def _scaled_sides(window: int, scales: int) -> list[int]:
    step = round(window * _RATIO)
    return [window + step * i for i in range(scales)]


def _starts(length: int, window: int) -> list[int]:
    return [min(i * window, length - window) for i in range(math.ceil(length / window))]


def _table(g: Builder, size: ir.Value, scales: int) -> ir.Value:
    """The windows of an image whose size is known when the graph runs: squares of its shorter side."""
    window = _shorter(g, size)
    step = g.Cast(g.Round(g.Mul(g.Cast(window, to=ir.DataType.FLOAT), float(_RATIO))), to=ir.DataType.INT64)
    parts = []
    for i in range(scales):
        side = g.Add(window, g.Mul(step, [i]))
        scaled = g.Div(g.Mul(size, side), window)  # (2,), rounded down
        count = g.Div(g.Sub(g.Add(scaled, window), [1]), window)
        last = g.Sub(scaled, window)
        starts = []
        for axis in range(2):
            every = g.Range(g.constant(0), g.Squeeze(_part(g, count, axis), [0]), g.constant(1))
            starts.append(g.Min(g.Mul(every, window), _part(g, last, axis)))
        grid = g.Concat(count, [1], axis=0)
        both = (g.Unsqueeze(starts[0], [1, 2]), g.Unsqueeze(starts[1], [0, 2]))
        cells = [g.Expand(v, grid) for v in both]
        sizes = g.Expand(scaled, g.Concat(count, [2], axis=0))
        parts.append(g.Reshape(g.Concat(*cells, sizes, axis=2), [-1, 4]))
    table = g.Cast(g.Concat(*parts, axis=0), to=ir.DataType.FLOAT)
    table.shape = ir.Shape([None, 4])
    return table


def _tents(g: Builder, rows: ir.Value, columns: ir.Value, start: ir.Value, scaled: ir.Value, *, into: bool) -> ir.Value:
    """Bilinear sampling along one axis as matrices (M, rows, columns), half-pixel, edges repeated.

    `into`: a window's rows, `start` of them into the scaled image, out of the image's columns; else the image's rows
    out of the columns of a window which lies there in a scaled image of zeros.
    """
    i, j = g.Unsqueeze(_range(g, rows), [1]), _range(g, columns)  # (rows, 1), (columns,)
    length = g.Cast(columns if into else rows, to=ir.DataType.FLOAT)  # of the image
    if into:
        place = g.Sub(g.Div(g.Mul(g.Add(g.Add(i, start), 0.5), length), scaled), 0.5)
        last = g.Sub(length, 1.0)
    else:
        place = g.Sub(g.Div(g.Mul(g.Add(i, 0.5), scaled), length), 0.5)
        last, j = g.Sub(scaled, 1.0), g.Add(j, start)
    inside = g.Max(g.Min(place, last), 0.0)
    return g.Relu(g.Sub(1.0, g.Abs(g.Sub(inside, j))))


def _sampled(g: Builder, maps: ir.Value, down: ir.Value, across: ir.Value) -> ir.Value:
    """(M or 1, C, H, W) at the places that the matrices (M, H', H) and (M, W', W) say."""
    rows = g.MatMul(g.Unsqueeze(down, [1]), maps)
    return g.MatMul(rows, g.Transpose(g.Unsqueeze(across, [1]), perm=[0, 1, 3, 2]))


def _blurred(g: Builder, maps: ir.Value, size: ir.Value) -> ir.Value:
    """(1, K, H, W) under a Gaussian of 11 × 11, σ = 5, mirrored at the edges."""
    line = np.exp(-((np.arange(_BLUR) - _BLUR // 2) ** 2) / (2 * _SIGMA**2))
    line = (line / line.sum()).astype(np.float32)
    # As images of one channel each, whatever K.
    maps = g.Transpose(maps, perm=[1, 0, 2, 3])
    edge = _BLUR // 2
    maps = g.Pad(maps, g.constant([0, 0, edge, edge, 0, 0, edge, edge]), mode="reflect")
    for kernel in (line.reshape(1, 1, -1, 1), line.reshape(1, 1, 1, -1)):
        maps = g.Conv(maps, g.constant(kernel))
    return g.Transpose(maps, perm=[1, 0, 2, 3])


def _range(g: Builder, size: ir.Value) -> ir.Value:
    every = g.Range(g.constant(0), g.Squeeze(size, [0]), g.constant(1))
    return g.Cast(every, to=ir.DataType.FLOAT)


def _shorter(g: Builder, size: ir.Value) -> ir.Value:
    return g.ReduceMin(size, [0], keepdims=1)


def _part(g: Builder, pair: ir.Value, axis: int) -> ir.Value:
    return g.Slice(pair, [axis], [axis + 1], [0])


def _parts(g: Builder, pair: ir.Value) -> list[ir.Value]:
    return [_part(g, pair, axis) for axis in range(2)]


def _known(size: ir.Value) -> Sequence[int | None]:
    if size.const_value is None:
        return [None, None]
    return [int(n) for n in size.const_value.numpy()]
