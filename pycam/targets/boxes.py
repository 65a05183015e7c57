"""Boxes: the forms that detectors give them in, and how far two of them overlap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pycam.graph.axes import dims
from pycam.graph.builder import Builder

Four: TypeAlias = "tuple[ir.Value, ir.Value, ir.Value, ir.Value]"

FLOAT = ir.DataType.FLOAT


class Places(NamedTuple):
    """What boxes are given relative to."""

    points: ir.Value | None = None
    """(A, 2): x and y."""
    sizes: ir.Value | None = None
    """(A, 2): width and height of the anchors."""
    step: ir.Value | float = 1.0
    """(2,): width and height of a cell in pixels, for boxes in cells."""
    variances: tuple[float, float] = (1.0, 1.0)


def _corners(g: Builder, box: Four, at: Places) -> Four:
    return box


def _corners_yx(g: Builder, box: Four, at: Places) -> Four:
    top, left, bottom, right = box
    return left, top, right, bottom


def _centre(g: Builder, box: Four, at: Places) -> Four:
    x, y, width, height = box
    if at.points is not None:
        x, y = g.Add(x, _column(g, at.points, 0)), g.Add(y, _column(g, at.points, 1))
    return _around(g, x, y, width, height)


def _distances(g: Builder, box: Four, at: Places) -> Four:
    assert at.points is not None, "checked where the head is read"
    left, top, right, bottom = box
    x, y = _column(g, at.points, 0), _column(g, at.points, 1)
    return g.Sub(x, left), g.Sub(y, top), g.Add(x, right), g.Add(y, bottom)


def _offsets(g: Builder, box: Four, at: Places) -> Four:
    assert at.points is not None and at.sizes is not None, "checked where the head is read"
    place, size = at.variances
    widths, heights = _column(g, at.sizes, 0), _column(g, at.sizes, 1)
    x = g.Add(_column(g, at.points, 0), g.Mul(g.Mul(box[0], place), widths))
    y = g.Add(_column(g, at.points, 1), g.Mul(g.Mul(box[1], place), heights))
    width, height = (g.Mul(g.Exp(g.Mul(d, size)), s) for d, s in ((box[2], widths), (box[3], heights)))
    return _around(g, x, y, width, height)


def _sizes(g: Builder, box: Four, at: Places) -> Four:
    assert at.points is not None, "checked where the head is read"
    width, height, dx, dy = (g.Mul(v, _entry(g, at.step, i % 2)) for i, v in enumerate(box))
    x, y = g.Add(_column(g, at.points, 0), dx), g.Add(_column(g, at.points, 1), dy)
    return _around(g, x, y, width, height)


def _around(g: Builder, x: ir.Value, y: ir.Value, width: ir.Value, height: ir.Value) -> Four:
    w, h = g.Mul(width, 0.5), g.Mul(height, 0.5)
    return g.Sub(x, w), g.Sub(y, h), g.Add(x, w), g.Add(y, h)


class Format(NamedTuple):
    """How four numbers are a box."""

    means: str
    decode: Callable[[Builder, Four, Places], Four]
    needs: str = ""
    """"points" or "anchors" that boxes are relative to."""


FORMATS: dict[str, Format] = {
    "corners": Format("left, top, right, bottom", _corners),
    "corners_yx": Format("top, left, bottom, right", _corners_yx),
    "centre": Format("x, y of the centre (from its anchor's, if there are anchors), width, height", _centre),
    "distances": Format("to the left, top, right, bottom side from a point of the grid", _distances, "points"),
    "sizes": Format("width, height, and x, y of the centre from a point of the grid, all in cells", _sizes, "points"),
    "offsets": Format("(x, y)/size and log size, relative to an anchor, divided by variances", _offsets, "anchors"),
}


def decode(g: Builder, boxes: ir.Value, format: str, at: Places, scale: ir.Value | None) -> ir.Value:
    """Boxes (N, A, 4 or more columns) as left, top, right, bottom (N, A, 4).

    Args:
        g: Builder of the graph.
        boxes: In the form `format`.
        format: A name of `FORMATS`.
        at: What they are relative to.
        scale: What makes pixels of x, y, x, y: broadcasts with (N, A, 4); None: they are pixels.
    """
    parts = [g.Slice(boxes, [i], [i + 1], [2]) for i in range(4)]
    corners = FORMATS[format].decode(g, (parts[0], parts[1], parts[2], parts[3]), at)
    joined = g.Concat(*corners, axis=2)
    return joined if scale is None else g.Mul(joined, scale)


def iou(g: Builder, a: ir.Value, b: ir.Value) -> ir.Value:
    """Intersection over union of boxes (…, 4), pair by pair: (…).  They broadcast."""
    one, other = ([g.Slice(v, [i], [i + 1], [-1]) for i in range(4)] for v in (a, b))
    width = g.Sub(g.Min(one[2], other[2]), g.Max(one[0], other[0]))
    height = g.Sub(g.Min(one[3], other[3]), g.Max(one[1], other[1]))
    both = g.Mul(g.Relu(width), g.Relu(height))
    union = g.Sub(g.Add(_area(g, one), _area(g, other)), both)
    return g.Squeeze(g.Div(both, g.Max(union, 1e-12)), [-1])  # an empty box overlaps nothing


def at_entries(g: Builder, boxes: ir.Value, entry: ir.Value) -> ir.Value:
    """Boxes (N, A, 4) at entries (N, K): (N, K, 4)."""
    return g.GatherElements(boxes, g.Expand(g.Unsqueeze(entry, [2]), [1, 1, 4]), axis=1)


def _area(g: Builder, box: list[ir.Value]) -> ir.Value:
    return g.Mul(g.Sub(box[2], box[0]), g.Sub(box[3], box[1]))


def grid(g: Builder, height: int | ir.Value, width: int | ir.Value, step: ir.Value, cell: float) -> ir.Value:
    """The points of a grid, row by row, (h·w, 2): x and y in pixels.

    Args:
        g: Builder of the graph.
        height, width: Of the grid; int64 (1,) where they are not known.
        step: Width and height of a cell, (2,).
        cell: Where a point lies in its cell: 0 its corner, 0.5 its centre.
    """
    if isinstance(height, int) and isinstance(width, int):
        rows, columns = np.indices((height, width))
        places = floats(g, np.stack([columns, rows], -1).reshape(-1, 2) + cell)
        return g.Mul(places, step)
    ys, xs = (g.Add(g.Cast(_range(g, n), to=FLOAT), cell) for n in (height, width))
    size = g.Concat(vector(g, height), vector(g, width), axis=0)
    x = g.Expand(g.Unsqueeze(xs, [0]), size)
    y = g.Expand(g.Unsqueeze(ys, [1]), size)
    return g.Mul(g.Reshape(g.Concat(g.Unsqueeze(x, [2]), g.Unsqueeze(y, [2]), axis=2), [-1, 2]), step)


def size_of(g: Builder, value: ir.Value, axis: int) -> int | ir.Value:
    """A size of a value; int64 (1,) where it is not known."""
    shape = dims(value)
    known = shape[axis] if shape else "?"
    return known if isinstance(known, int) else g.Slice(g.Shape(value), [axis], [axis + 1], [0])


def as_float(g: Builder, value: ir.Value) -> ir.Value:
    """`value` in float32."""
    if value.dtype == FLOAT:
        return value
    cast = g.Cast(value, to=FLOAT)
    cast.shape = value.shape
    return cast


def floats(g: Builder, array: NDArray[Any]) -> ir.Value:
    """A float32 constant."""
    return g.constant(array.astype(np.float32))


def _range(g: Builder, size: int | ir.Value) -> ir.Value:
    stop = g.constant(size) if isinstance(size, int) else g.Squeeze(size, [0])
    return g.Range(g.constant(0), stop, g.constant(1))


def vector(g: Builder, size: int | ir.Value) -> ir.Value:
    """A size as int64 (1,)."""
    return g.constant([size]) if isinstance(size, int) else size


def _column(g: Builder, points: ir.Value, i: int) -> ir.Value:
    """(A, 2) → (A, 1)."""
    return g.Slice(points, [i], [i + 1], [1])


def _entry(g: Builder, step: ir.Value | float, i: int) -> ir.Value | float:
    return step if isinstance(step, float) else g.Slice(step, [i], [i + 1], [0])
