"""The boxes of a detector's head, of all levels, in pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx_ir as ir

from pycam.errors import TargetError, nearest
from pycam.graph.axes import dims
from pycam.graph.pixels import Image, image_size

from .boxes import FORMATS, Places, as_float, decode, floats, grid, size_of, vector
from .heads import Named, known_format, listing, looks_like_offsets

if TYPE_CHECKING:
    from pycam.graph.builder import Builder

    from .detection import Detection
    from .outputs import Outputs

SHARES = 2.0
"""Coordinates that are all below it are shares of the image, not pixels."""


class Decoded(NamedTuple):
    """Boxes of all entries."""

    boxes: ir.Value
    """(N, A, 4): left, top, right, bottom in pixels; within the image, but for a list, which is as it is."""
    scale: ir.Value | None
    """(N, 1, 4): what made pixels of them, if that was found in the numbers themselves."""
    notes: tuple[str, ...]


class _Level(NamedTuple):
    boxes: ir.Value
    """(N, A, columns)."""
    height: int | ir.Value | None
    """Of its grid; None: it has none."""
    width: int | ir.Value | None


def decoded_levels(model: Outputs, asked: Detection, named: Named, axes: list[int]) -> Decoded:
    """The boxes.

    Args:
        model: The outputs.
        asked: The options.
        named: Which outputs hold boxes.
        axes: Along which axis the boxes' columns lie, for each.

    Raises:
        TargetError: no such format, it does not fit, or anchors are missing or not as many.
    """
    g = model.g
    paired = len(named.boxes) == 2 and len(axes) == 1
    levels = [_level(g, v, axes[0] if paired else axis) for v, axis in zip(named.boxes, axes * 2, strict=False)]
    if paired:
        both = g.Concat(levels[0].boxes, levels[1].boxes, axis=2)
        levels = [levels[0]._replace(boxes=both)]
    format, unit, notes = _format(model, asked, named, levels, paired)
    image = _image(model)
    boxes = levels[0].boxes if len(levels) == 1 else g.Concat(*(level.boxes for level in levels), axis=1)
    scale, found = None, None
    if format not in ("sizes", "distances"):
        scale, found = _scale(model, asked, named, boxes, unit, image)
    elif format == "distances" and isinstance(unit, float) and unit != 1.0:
        boxes = g.Mul(boxes, unit)
    elif format == "distances" and unit == "image":
        boxes = g.Mul(g.Slice(boxes, [0], [4], [2]), image)
    places = _places(model, asked, levels, format, unit, image)
    if found is not None:
        notes.append("corners and sizes are pixels, or shares of the image where none of them is above 2")
    corners = decode(g, boxes, format, places, scale)
    if named.form != "list":
        corners = g.Min(g.Max(corners, 0.0), image)
    return Decoded(corners, found, tuple(notes))


def _level(g: Builder, value: ir.Value, axis: int) -> _Level:
    """Boxes as (N, A, columns), and the grid that they lie on."""
    shape = dims(value)
    wide = as_float(g, value)
    if len(shape) == 2:
        return _Level(g.Unsqueeze(wide, [0]), None, None)
    if len(shape) == 3:
        if axis != 1:
            return _Level(wide, None, None)
        turned = g.Transpose(wide, perm=[0, 2, 1])
        turned.shape = ir.Shape([None if d == "?" else d for d in (shape[0], shape[2], shape[1])])
        return _Level(turned, None, None)
    first = 2 if axis == 1 else 1
    height, width = size_of(g, value, first), size_of(g, value, first + 1)
    last = g.Transpose(wide, perm=[0, 2, 3, 1]) if axis == 1 else wide
    columns = shape[axis]
    if not isinstance(columns, int):
        raise TargetError(f"the output {value.name!r} does not say how many columns it has")
    return _Level(g.Reshape(last, [0, -1, columns]), height, width)


def _format(
    model: Outputs, asked: Detection, named: Named, levels: list[_Level], paired: bool
) -> tuple[str, str | float | None, list[str]]:
    """Format, unit (None: to be found in the numbers), and what to say about them."""
    if asked.box is not None and asked.box not in FORMATS:
        raise TargetError(f"box={asked.box!r}: boxes are {nearest(asked.box, FORMATS)}")
    unit = float(asked.unit) if isinstance(asked.unit, (int, float)) else asked.unit
    name = named.boxes[0].name or ""
    found, known = asked.box, known_format(name)
    if found is None and known is not None:
        found, unit = known[0], unit if unit is not None else known[1]
    if found is None:
        found = _usual(asked, named, levels, paired)
        if found is None:
            raise TargetError(
                f"the boxes {name!r} {list(dims(named.boxes[0]))} look like offsets from anchors: give anchors= (A, 4) "
                f"and box='offsets', or say what they are, box={nearest('', FORMATS, len(FORMATS))}; {listing(model)}"
            )
    if named.form == "list" and unit is None:
        unit = "pixels"
    notes = [] if asked.box else [f"boxes were taken for {FORMATS[found].means} (box={found!r})"]
    return found, unit, notes


def _usual(asked: Detection, named: Named, levels: list[_Level], paired: bool) -> str | None:
    """The format that goes with the rest; None: it cannot be told."""
    if named.form == "list":
        return "corners"
    if named.form == "joint":
        return "centre"
    if paired:
        return "sizes"
    if levels[0].height is not None:
        return "distances"
    if asked.anchors is not None:
        return "offsets" if len(asked.anchors[0]) == 4 else "centre"
    wide = any(dims(v)[-1] != 4 and 4 not in dims(v)[1:] for v in named.boxes)
    return None if wide or looks_like_offsets(named.boxes[0].name or "") else "corners"


def _image(model: Outputs) -> ir.Value:
    """Width, height, width, height of the image, (4,)."""
    g = model.g
    size = g.Cast(image_size(g, Image(model.image, model.layout)), to=ir.DataType.FLOAT)
    return g.Gather(size, [1, 0, 1, 0], axis=0)


def _scale(
    model: Outputs, asked: Detection, named: Named, boxes: ir.Value, unit: str | float | None, image: ir.Value
) -> tuple[ir.Value | None, ir.Value | None]:
    """What makes pixels of coordinates; once more, if it was found in them."""
    g = model.g
    if isinstance(unit, float):
        return g.constant([unit] * 4, ir.DataType.FLOAT), None
    if unit is None and asked.anchors is not None:
        shares = max(max(map(abs, row)) for row in asked.anchors) <= SHARES
        return (image if shares else None), None
    if unit is not None:
        return (image if unit == "image" else None), None
    largest = g.ReduceMax(g.Abs(g.Slice(boxes, [0], [4], [2])), [1, 2], keepdims=1)
    found = g.Where(g.LessOrEqual(largest, SHARES), image, g.constant([1.0] * 4, ir.DataType.FLOAT))
    return found, found


def _places(
    model: Outputs, asked: Detection, levels: list[_Level], format: str, unit: str | float | None, image: ir.Value
) -> Places:
    """What the boxes are relative to."""
    g = model.g
    needs = FORMATS[format].needs
    if asked.anchors is not None:
        return _anchored(model, asked, levels, format, image)
    if needs == "anchors" or (needs and any(level.height is None for level in levels)):
        wants = "anchors (A, 4)" if needs == "anchors" else "points (A, 2)"
        raise TargetError(f"box={format!r} are relative to {wants}: give anchors=")
    if not needs:
        return Places()
    points, step = [], None
    for level in levels:
        assert level.height is not None and level.width is not None
        size = g.Concat(*(vector(g, n) for n in (level.width, level.height)), axis=0)
        step = g.Div(g.Slice(image, [0], [2], [0]), g.Cast(size, to=ir.DataType.FLOAT))
        points.append(grid(g, level.height, level.width, step, asked.cell))
    assert step is not None
    every = points[0] if len(points) == 1 else g.Concat(*points, axis=0)
    return Places(every, step=unit if isinstance(unit, float) else step)


def _anchored(model: Outputs, asked: Detection, levels: list[_Level], format: str, image: ir.Value) -> Places:
    g = model.g
    anchors = np.array(asked.anchors)
    counts = [dims(level.boxes)[1] for level in levels]
    total = sum(n for n in counts if isinstance(n, int))
    if all(isinstance(n, int) for n in counts) and total != len(anchors):
        raise TargetError(f"anchors= has {len(anchors)} rows, and the boxes {total}")
    if FORMATS[format].needs == "anchors" and anchors.shape[1] != 4:
        raise TargetError(f"box={format!r} needs the anchors' sizes: anchors= (A, 4), x, y, width, height")
    points = floats(g, anchors[:, :2])
    if format == "distances" and np.abs(anchors).max() <= SHARES:
        points = g.Mul(points, g.Slice(image, [0], [2], [0]))
    sizes = floats(g, anchors[:, 2:]) if anchors.shape[1] == 4 else None
    return Places(points, sizes, variances=asked.variances)
