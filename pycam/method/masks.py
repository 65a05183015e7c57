"""Methods that look at the score behind an image of which parts are taken away, and at no layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from pycam.errors import MethodError
from pycam.graph.builder import constant_of

from .checks import at_least, check_seed, maskable
from .combine import shaped
from .pixel import image_positions
from .registry import method
from .scene import Scene

_CUBIC = {"mode": "cubic", "cubic_coeff_a": -0.75, "coordinate_transformation_mode": "half_pixel"}
_WINDOWS = 8
"""Windows beside each other that an image's side holds, if nothing else is said."""


@method("rise", "RISE", "1806.07421", plan="perturb", cost="1 forward per sample + 1", layers="none", levels=True)
def rise(s: Scene, *, samples: int = 2000, cells: int = 8, probability: float = 0.5, seed: int = 0) -> ir.Value:
    """`Σ_i y(x ⊙ M_i)·M_i / (samples·probability)`: the mean score of the images that keep a pixel.

    As openvino_xai makes its masks: a grid of `cells`×`cells` bits, 1 with `probability`, enlarged (bicubic) to
    (cells + 1) cells of `ceil(size/cells)` pixels, shifted by less than a cell at random, cropped, clipped to 0 … 1.
    openvino_xai does not divide the sum, and swaps height and width of images that are not square.

    The bits are `u < probability`, and a shift, down and then right, `int(u·cell)`, of uniform numbers `u` of two
    streams of the seed (`runtime.noise.draw`).

    Options:
        samples: Masks, a forward pass each; the error falls with their root: 500 for a first look, then 2000 to 8000.
        cells: Of the grid along a side: more find smaller things, and need more samples; 4 to 16 are sensible.
        probability: That a cell is kept, above 0, at most 1: lower where a class needs little to be seen; 0.1 to 0.5.
        seed: Of the masks, 0 … 2⁶⁴ − 1.
    """
    at_least("samples", samples, 1)
    at_least("cells", cells, 1)
    if not 0 < probability <= 1:
        raise MethodError(f"probability={probability}: that of keeping a cell lies above 0, and is 1 at most")
    check_seed(seed)
    size = constant_of(s.size)
    if size is not None and cells > (size.min() if s.axes == 2 else size[1]):
        raise MethodError(f"cells={cells}: the image is {size[0]}×{size[1]}, and a cell has a pixel at least")
    g, x = s.g, maskable(s)
    s.vary(samples)
    bits = g.Less(s.noise("uniform", [cells, cells], seed), float(probability))
    shift = s.noise("uniform", [2], seed, stream=1)  # (M, 2), in cells
    tall, wide = (_cropped(s, axis, cells, g.Slice(shift, [axis], [axis + 1], [1])) for axis in (0, 1))
    grid = g.Cast(bits, to=ir.DataType.FLOAT)
    mask = g.MatMul(g.MatMul(tall, grid), g.Transpose(wide, perm=[0, 2, 1]))
    mask = g.Clip(mask, 0.0, 1.0)  # (M, H, W)
    y = _score(s, x, g.Mul(x, _as_masks(s, mask, x.dtype)))  # (M, K)
    found = s.total(g.MatMul(g.Transpose(y, perm=[1, 0]), g.Reshape(mask, [0, -1])))  # (K, H·W)
    mean = g.Mul(found, 1.0 / (samples * probability))
    return shaped(s, g.Reshape(mean, g.Concat([1, -1], s.size, axis=0)), image_positions(s))


def _cropped(s: Scene, axis: int, cells: int, u: ir.Value) -> ir.Value:
    """How much of each cell a row (axis 0) or a column (1) of a mask takes, (M, size, cells), for shifts `u` (M, 1) in
    0 … 1 of a cell."""
    g = s.g
    cell = g.Div(g.Add(g.Slice(s.size, [axis], [axis + 1], [0]), [cells - 1]), [cells])  # pixels, rounded upwards
    enlarged = g.Concat(g.Mul(cell, [cells + 1]), [cells], axis=0)
    weights = g.Resize(g.constant(np.eye(cells, dtype=np.float32)), None, None, enlarged, **_CUBIC)
    shift = g.Cast(g.Mul(u, g.Cast(cell, to=ir.DataType.FLOAT)), to=ir.DataType.INT64)  # rounds downwards
    length = g.Squeeze(g.Slice(s.size, [axis], [axis + 1], [0]), [0])
    return g.Gather(weights, g.Add(shift, g.Range(g.constant(0), length, g.constant(1))), axis=0)


@method("occlusion", "Occlusion", "1311.2901", plan="perturb", cost="1 forward per window + 1", layers="none")
def occlusion(s: Scene, *, window: Any = None, stride: Any = None, baseline: float = 0.0) -> ir.Value:
    """The mean of `y − y(x with a window set to the baseline)` over the windows that cover a pixel.

    As captum's with a window over all channels: windows lie `stride` apart, the last of a row or column is cut at the
    border.

    Options:
        window: Pixels, one number or [rows, columns]; None: an eighth of the image.  About the size of what is looked
            for: a smaller one may hide too little to change the score.
        stride: Pixels, as `window`, and at most that; None: half a window.  Half of it costs four times as many passes.
        baseline: The value put in, as the model takes it (normalised: 0 is the mean colour).
    """
    if not math.isfinite(baseline):
        raise MethodError(f"baseline={baseline}: give the value of a pixel, a finite number")
    g, x = s.g, maskable(s)
    sides, steps = _pair("window", window), _pair("stride", stride)
    _check_windows(constant_of(s.size), sides, steps)
    side = g.constant(sides) if sides else g.Div(g.Add(s.size, [_WINDOWS - 1]), [_WINDOWS])
    step = g.constant(steps) if steps else g.Div(g.Add(side, [1]), [2])
    gaps = g.Div(g.Add(g.Sub(s.size, side), g.Sub(step, [1])), step)
    counts = g.Add(g.Max(gaps, [0]), [1])  # (2,): windows along rows and columns
    rows, columns = (_covered(s, axis, side, step, counts) for axis in (0, 1))  # (ny, H), (nx, W)
    many = g.Slice(counts, [1], [2], [0])
    known = _known_count(constant_of(s.size), sides, steps)
    every = g.Range(g.constant(0), g.ReduceProd(counts, [0], keepdims=0), g.constant(1))
    variant = s.vary(known if known is not None else every)
    down = g.Div(variant, many)
    tall, wide = g.Gather(rows, down, axis=0), g.Gather(columns, g.Sub(variant, g.Mul(down, many)), axis=0)
    mask = g.Mul(g.Unsqueeze(tall, [2]), g.Unsqueeze(wide, [1]))  # (M, H, W)
    y = s.stack(_score(s, x, g.Where(g.Greater(_as_masks(s, mask), 0.0), g.constant(baseline, x.dtype), x)))
    drop = g.Transpose(g.Sub(s.first.y, y), perm=[1, 0])  # (K, ny·nx)
    drop = g.Reshape(drop, g.Concat([-1], counts, axis=0))
    summed = g.MatMul(g.MatMul(g.Transpose(rows, perm=[1, 0]), drop), columns)  # (K, H, W)
    often = g.MatMul(g.Unsqueeze(g.ReduceSum(rows, [0], keepdims=0), [1]), g.ReduceSum(columns, [0], keepdims=1))
    return shaped(s, g.Unsqueeze(g.Div(summed, often), [0]), image_positions(s))


def _covered(s: Scene, axis: int, side: ir.Value, step: ir.Value, counts: ir.Value) -> ir.Value:
    """Whether each window along an axis covers each pixel, 0 or 1 (windows, pixels)."""
    g = s.g

    def own(pair: ir.Value) -> ir.Value:
        return g.Slice(pair, [axis], [axis + 1], [0])

    def span(pair: ir.Value) -> ir.Value:
        return g.Range(g.constant(0), g.Squeeze(own(pair), [0]), g.constant(1))

    into = g.Sub(span(s.size), g.Unsqueeze(g.Mul(span(counts), own(step)), [1]))  # a pixel's place in a window
    inside = g.And(g.GreaterOrEqual(into, [0]), g.Less(into, own(side)))
    return g.Cast(inside, to=ir.DataType.FLOAT)


def _pair(name: str, given: Any) -> list[int]:
    """Rows and columns; [] for None.

    Raises:
        MethodError: it is neither a number nor two.
    """
    pair = [given, given] if isinstance(given, int) else given
    if pair is None:
        return []
    if not (isinstance(pair, Sequence) and len(pair) == 2 and all(type(side) is int and side > 0 for side in pair)):
        raise MethodError(f"{name}={given!r}: give a number of pixels, or [rows, columns], 1 or more")
    return list(pair)


def _check_windows(size: Any, sides: Sequence[int], steps: Sequence[int]) -> None:
    """Raise MethodError where a window is larger than the image, or windows leave pixels out."""
    if size is not None and sides and any(side > length for side, length in zip(sides, size, strict=True)):
        raise MethodError(f"window={sides}: the image is {size[0]}×{size[1]}")
    known = sides or ([-(-int(length) // _WINDOWS) for length in size] if size is not None else [])
    if known and steps and any(step > side for step, side in zip(steps, known, strict=True)):
        raise MethodError(f"stride={steps}: windows of {known} would leave pixels out; {known} at most")


def _known_count(size: Any, sides: Sequence[int], steps: Sequence[int]) -> int | None:
    """How many windows there are, if the image's size is known."""
    if size is None:
        return None
    lengths = [int(length) for length in size]
    sides = sides or [-(-length // _WINDOWS) for length in lengths]
    steps = steps or [-(-side // 2) for side in sides]
    return math.prod(-(-(n - side) // step) + 1 for n, side, step in zip(lengths, sides, steps, strict=True))


def _as_masks(s: Scene, mask: ir.Value, dtype: ir.DataType | None = None) -> ir.Value:
    """(M, H, W) as one channel of an image in the model's layout, of `dtype`."""
    one = s.g.Unsqueeze(mask, [1 if s.layout == "NCHW" else 3])
    return s.g.Cast(one, to=dtype) if dtype not in (None, ir.DataType.FLOAT) else one


def _score(s: Scene, x: ir.Value, varied: ir.Value) -> ir.Value:
    return s.run({x: varied}).y
