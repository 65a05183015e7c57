"""Marks on pictures: boxes with labels, contour lines of a map, masks.

Marks are values in pixels of the picture that they belong to; `on` draws them on it at whatever size it is shown, so
that lines and letters stay sharp on a small picture that a panel enlarges.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pycam.errors import ImageError, InputError

from . import lettering
from .isolines import contours, outline
from .layout import INK, WHITE, Colour, Pixels

if TYPE_CHECKING:
    from PIL import Image

Lines: TypeAlias = "list[NDArray[np.float64]]"
Rectangle = tuple[int, int, int, int]

PALETTE: tuple[Colour, ...] = (
    (240, 228, 66),
    (86, 180, 233),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (213, 94, 0),
    (0, 114, 178),
)
"""Colours that colour-blind readers can tell apart (Okabe & Ito 2008, "Color Universal Design"), brightest first."""

_SMOOTH = 4  # lines are drawn so many times larger, then reduced
_CASING = 0.55  # opacity of the dark rim that sets a line off from any ground


@dataclass(frozen=True)
class Box:
    """A rectangle: `xyxy` is left, top, right, bottom in pixels, right and bottom exclusive, as detectors give it.

    What reaches over the picture's edge is cut off there.
    """

    xyxy: Sequence[float] | NDArray[Any]
    label: str = ""
    colour: Colour = WHITE


@dataclass(frozen=True, eq=False)
class Contours:
    """Lines where a map (H, W) in [0, 1] crosses the `levels`, each between 0 and 1."""

    values: NDArray[Any]
    levels: Sequence[float] = (0.5,)
    colour: Colour = WHITE


@dataclass(frozen=True, eq=False)
class Mask:
    """A bool mask (H, W): its outline, and with `tint` > 0 its area in `colour` at that opacity."""

    mask: NDArray[np.bool_]
    colour: Colour = PALETTE[0]
    tint: float = 0.0


Mark: TypeAlias = "Box | Contours | Mask"


def draw(picture: Pixels, marks: Iterable[Mark]) -> Pixels:
    """The picture with the marks on it, the last on top, boxes' labels above all.

    Args:
        picture: uint8 (H, W, 3).
        marks: `Box`, `Contours`, `Mask`.

    Raises:
        ImageError: not such a picture.
        InputError: a mark that does not fit it: a map or mask of another size, a box outside, a level out of range.
    """
    from PIL import Image

    picture = np.asarray(picture)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise ImageError(f"expected a uint8 picture (H,W,3), got {picture.dtype} {picture.shape}")
    return np.array(on(Image.fromarray(np.ascontiguousarray(picture)), marks, picture.shape[:2]))


def on(shown: Image.Image, marks: Iterable[Mark], size: tuple[int, int]) -> Image.Image:
    """`draw` on a picture of height and width `size` that is shown larger or smaller."""
    marks = list(marks)
    height, width = size
    scale = np.array([shown.width / width, shown.height / height])
    stroke = max(1.5, max(shown.size) / 200)
    for mark in marks:
        lines = [line * scale for line in _lines(mark, size)]
        if isinstance(mark, Mask) and mark.tint:
            shown = _tinted(shown, mark)
        shown = _painted(shown, lines, INK, 2 * stroke + 1, _CASING)
        shown = _painted(shown, lines, mark.colour, stroke)
    return _labelled(shown, [mark for mark in marks if isinstance(mark, Box) and mark.label], scale, stroke)


def marks_of(
    heatmaps: NDArray[np.float32], contours: ArrayLike = (), boxes: ArrayLike | None = None, masks: Any = None
) -> list[list[Mark]]:
    """Marks for each of N·K heatmaps (N, K, H, W): contour lines at levels, boxes, masks.

    Args:
        heatmaps: In [0, 1].
        contours: Levels, () for none.
        boxes: (N, K, 4) or (N, K, B, 4); a box of zeros is none.
        masks: bool (N, H, W) or (N, K, H, W).

    Raises:
        InputError: a level out of range, boxes or masks of another shape.
    """
    n, k, height, width = heatmaps.shape
    levels = check_levels(contours)
    marks: list[list[Mark]] = [[Contours(m, levels)] if levels else [] for m in heatmaps.reshape(n * k, height, width)]
    if masks is not None:
        found = np.asarray(masks)
        if found.shape not in ((n, height, width), (n, k, height, width)):
            raise InputError(
                f"masks must be {(n, height, width)} or {(n, k, height, width)}, as the heatmaps; got {found.shape}"
            )
        found = np.broadcast_to(found[:, None] if found.ndim == 3 else found, heatmaps.shape)
        for drawn, mask in zip(marks, found.reshape(n * k, height, width), strict=True):
            drawn.append(Mask(mask))
    if boxes is not None:
        given = np.asarray(boxes)
        if given.ndim not in (3, 4) or given.shape[:2] != (n, k) or given.shape[-1] != 4:
            raise InputError(f"boxes must be {(n, k, 4)} or {(n, k, 'B', 4)}, as boxes() gives them; got {given.shape}")
        for drawn, rows in zip(marks, given.reshape(n * k, -1, 4), strict=True):
            drawn += [Box(row) for row in rows if row.any()]
    return marks


def check_levels(levels: ArrayLike) -> tuple[float, ...]:
    """Contour levels as a tuple.

    Raises:
        InputError: one is not between 0 and 1.
    """
    try:
        found = tuple(float(level) for level in np.asarray(levels, np.float64).reshape(-1))
    except (TypeError, ValueError):
        raise InputError(f"contours={levels!r}: give levels between 0 and 1, such as (0.25, 0.5, 0.75)") from None
    wrong = [level for level in found if not 0 < level < 1]
    if wrong:
        raise InputError(f"contour level {wrong[0]:g}: a heatmap goes from 0 to 1, give levels in between")
    return found


def _lines(mark: Mark, size: tuple[int, int]) -> Lines:
    """A mark's lines, in pixels of the picture it belongs to."""
    if isinstance(mark, Box):
        left, top, right, bottom = _inside(mark.xyxy, size)
        return [np.array([(left, top), (right, top), (right, bottom), (left, bottom), (left, top)], np.float64)]
    if isinstance(mark, Mask):
        mask = _fitting(mark.mask, size, "a mask")
        if mask.dtype != np.bool_:
            raise InputError(f"a mask is bool, not {mask.dtype}: threshold it, as in mask > 0.5")
        if not 0 <= mark.tint <= 1:
            raise InputError(f"tint={mark.tint}: give an opacity between 0 and 1")
        return outline(mask)
    if isinstance(mark, Contours):
        values = _fitting(mark.values, size, "the map of contour lines")
        return [line for level in check_levels(mark.levels) for line in contours(values, level)]
    raise InputError(f"a mark is a Box, Contours or Mask, not {type(mark).__name__}")


def _inside(xyxy: Any, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """A box, cut at the picture's edges."""
    height, width = size
    try:
        left, top, right, bottom = (float(v) for v in xyxy)
    except (TypeError, ValueError):
        raise InputError(f"a box is four numbers (left, top, right, bottom), got {xyxy!r}") from None
    written = f"({left:g}, {top:g}, {right:g}, {bottom:g})"
    if not all(map(math.isfinite, (left, top, right, bottom))):
        raise InputError(f"the box {written} is not finite")
    if left >= right or top >= bottom:
        raise InputError(f"the box {written} is empty: it must be (left, top, right, bottom), not x, y, width, height")
    if left >= width or top >= height or right <= 0 or bottom <= 0:
        raise InputError(
            f"the box {written} lies outside of the picture, {width} wide and {height} high: "
            "give it in pixels of this picture"
        )
    return max(left, 0), max(top, 0), min(right, width), min(bottom, height)


def _fitting(values: Any, size: tuple[int, int], what: str) -> NDArray[Any]:
    array = np.asarray(values)
    if array.shape != tuple(size):
        raise InputError(f"{what} must have the picture's height and width {tuple(size)}, got {array.shape}")
    return array


def _tinted(shown: Image.Image, mark: Mask) -> Image.Image:
    from PIL import Image

    cover = np.asarray(mark.mask, np.uint8) * round(255 * mark.tint)
    resample = Image.Resampling.BOX if max(cover.shape) < max(shown.size) else Image.Resampling.BILINEAR
    return Image.composite(
        Image.new("RGB", shown.size, mark.colour), shown, Image.fromarray(cover).resize(shown.size, resample)
    )


def _painted(shown: Image.Image, lines: Lines, colour: Colour, width: float, opacity: float = 1.0) -> Image.Image:
    """Lines with smooth edges."""
    from PIL import Image, ImageDraw

    large = Image.new("L", (shown.width * _SMOOTH, shown.height * _SMOOTH))
    pen = ImageDraw.Draw(large)
    thick = round(width * _SMOOTH)
    for line in lines:
        points = [(float(x), float(y)) for x, y in line * _SMOOTH - 0.5]
        closed = len(points) > 2 and points[0] == points[-1]
        pen.line([*points, points[1]] if closed else points, fill=round(255 * opacity), width=thick, joint="curve")
    return Image.composite(Image.new("RGB", shown.size, colour), shown, large.reduce(_SMOOTH))


def _labelled(shown: Image.Image, boxes: Sequence[Box], scale: NDArray[np.float64], stroke: float) -> Image.Image:
    """Each box's label in a tag of its colour: above the box where that is free, else at another of its corners."""
    size = round(min(max(max(shown.size) / 26, 11), 16))
    pad = max(2, size // 5)
    shown = shown.copy()
    taken: list[Rectangle] = []
    for box in boxes:
        left, top, right, bottom = _inside(box.xyxy, (round(shown.height / scale[1]), round(shown.width / scale[0])))
        ink = INK if np.dot(box.colour, (0.299, 0.587, 0.114)) > 140 else WHITE
        text = lettering.line(box.label, size, ink, shown.width - 2 * pad, box.colour)
        width, height = text.width + 2 * pad, text.height + 2
        rim = stroke / 2
        edges = (left * scale[0] - rim, top * scale[1] - rim, right * scale[0] + rim, bottom * scale[1] + rim)
        place = _free(_corners(edges, width, height, shown.size), taken)
        taken.append(place)
        shown.paste(box.colour, place)
        shown.paste(text, (place[0] + pad, place[1] + 1))
    return shown


def _corners(
    edges: tuple[float, float, float, float], width: int, height: int, size: tuple[int, int]
) -> list[Rectangle]:
    """Where a tag may stand, best first: all inside the picture."""
    left, top, right, bottom = edges
    wanted = [(left, top - height), (left, bottom), (left, top), (right - width, top), (left, bottom - height)]
    inside = [(x, y) for x, y in wanted if -height / 4 <= y <= size[1] - height * 3 / 4] or wanted[2:3]
    corners = [(round(min(max(x, 0), size[0] - width)), round(min(max(y, 0), size[1] - height))) for x, y in inside]
    return [(x, y, x + width, y + height) for x, y in corners]


def _free(places: Sequence[Rectangle], taken: Sequence[Rectangle]) -> Rectangle:
    """The first place that covers no other tag; else the first."""

    def covered(a: Rectangle) -> bool:
        return any(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for b in taken)

    return next((place for place in places if not covered(place)), places[0])
