"""Panels: a photo beside its heatmaps, or a table of pictures, with titles, a colour bar and a footer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pycam.colormap import DIVERGING, diverging
from pycam.colormap import colormap as colours
from pycam.errors import ImageError

from .drawing import Mark, on
from .layout import GREY, INK, PALE, Pixels, blank, middle, padded, stack
from .lettering import NORMAL, SMALL, TITLE, baseline, line, paragraph

if TYPE_CHECKING:
    from PIL import Image

_MARGIN, _GAP = 24, 16
_PER_ROW = 4
_SIDES = (320, 512)  # shortest and longest the longer side of a panel is shown at
_PIXEL_ART = 64  # up to this size people want to see the pixels
_NARROWEST = 180  # of a panel, for its title's sake
_ROW_TITLE = 120
_SHEET = 1600  # a grid's width, about
_BAR = (200, 10)
_CAPTION = 160  # of the bar, at each end


def picture(
    photo: Pixels,
    overlays: Pixels,
    titles: Sequence[str],
    subtitles: Sequence[str] | None = None,
    *,
    colormap: str = "jet",
    caption: tuple[str, str] = ("does not matter", "matters"),
    footer: str = "",
    photo_title: str = "photo",
    marks: Sequence[Sequence[Mark]] | None = None,
    photo_marks: Sequence[Mark] = (),
) -> Pixels:
    """The photo and one panel per overlay, with titles, a colour bar and a footer: uint8 `(H',W',3)`.

    `photo` uint8 `(H,W,3)`; `overlays` uint8 `(K,H,W,3)`, K ≥ 1; `titles` and `subtitles` (a probability, say) have K
    entries.  `caption` says what the two ends of the colour bar mean.  `marks` are K lists of what is drawn on the
    overlays, `photo_marks` one for the photo, all in pixels of the photo.  Small photos are enlarged, large ones
    reduced; four panels to a row at most; what is too long for its place is shortened with an ellipsis.
    Raises `ImageError` where shapes, dtypes or counts do not fit, or on an unknown colour map; `InputError` on a mark
    that does not fit the photo.
    """
    count = len(titles)
    subtitles = [""] * count if subtitles is None else subtitles
    marks = [()] * count if marks is None else marks
    if overlays.ndim != 4 or overlays.shape[1:] != photo.shape or not count:
        raise ImageError(f"expected overlays (K, *{photo.shape}) with K ≥ 1, got {overlays.shape}")
    if not len(overlays) == count == len(subtitles):
        raise ImageError(
            f"{len(overlays)} overlays, {count} titles and {len(subtitles)} subtitles: give as many of each"
        )
    if len(marks) != count:
        raise ImageError(f"{count} overlays and {len(marks)} lists of marks: give one for each overlay")
    panels = [
        _panel(_shown(image, *_SIDES, drawn), title, subtitle)
        for image, title, subtitle, drawn in zip(
            [photo, *overlays], [photo_title, *titles], ["", *subtitles], [photo_marks, *marks], strict=True
        )
    ]
    lines = math.ceil(len(panels) / _PER_ROW)
    columns = math.ceil(len(panels) / lines)  # five panels are better as 3 + 2 than as 4 + 1
    rows = [stack(panels[start : start + columns], _GAP) for start in range(0, len(panels), columns)]
    return _sheet(stack(rows, _GAP + 4, down=True), colormap, caption, footer)


def grid(
    rows: Sequence[Sequence[Pixels | None]],
    row_titles: Sequence[str],
    column_titles: Sequence[str],
    *,
    row_subtitles: Sequence[str] | None = None,
    column_subtitles: Sequence[str] | None = None,
    colormap: str | None = None,
    caption: tuple[str, str] = ("does not matter", "matters"),
    footer: str = "",
    marks: Sequence[Sequence[Sequence[Mark]]] | None = None,
) -> Pixels:
    """A table of pictures, methods × photos for example: uint8 `(H',W',3)`.

    Every row has one uint8 `(H,W,3)` for each of `column_titles`, or `None` for a cell that stays empty; sizes may
    differ.  Subtitles stand below titles, smaller.  `colormap` adds a colour bar.  `marks` has a list for each cell, of
    what is drawn on it.  Raises `ImageError` where counts, shapes or dtypes do not fit; `InputError` on a mark that
    does not fit its cell.
    """
    columns = len(column_titles)
    if not columns or not rows or len(rows) != len(row_titles) or any(len(row) != columns for row in rows):
        raise ImageError(
            f"expected {len(row_titles)} rows of {columns} pictures, by the titles, got {[len(row) for row in rows]}"
        )
    below = [""] * columns if column_subtitles is None else column_subtitles
    beside = [""] * len(rows) if row_subtitles is None else row_subtitles
    drawn = [[()] * columns] * len(rows) if marks is None else marks
    if len(below) != columns or len(beside) != len(rows) or [len(row) for row in drawn] != [columns] * len(rows):
        raise ImageError(f"expected subtitles and marks for {len(rows)} rows of {columns} pictures")
    side = min(max(_SHEET // columns, _NARROWEST), _SIDES[0])
    cells = [
        [None if cell is None else _shown(cell, side, side, m) for cell, m in zip(row, line_marks, strict=True)]
        for row, line_marks in zip(rows, drawn, strict=True)
    ]
    widths = [max([cell.width for cell in column if cell] + [_NARROWEST]) for column in zip(*cells, strict=True)]
    sides = [_row_heading(*texts) for texts in zip(row_titles, beside, strict=True)]
    heights = [
        max([cell.height for cell in row if cell] + [name.height]) for row, name in zip(cells, sides, strict=True)
    ]
    names = [_heading(*texts) for texts in zip(column_titles, below, widths, strict=True)]
    head = [padded(name, width, name.height) for name, width in zip(names, widths, strict=True)]
    lines = [stack([blank(_ROW_TITLE, 1), *head], _GAP)]
    for row, side_heading, height in zip(cells, sides, heights, strict=True):
        name = padded(middle(side_heading, height), _ROW_TITLE, height)
        shown = [
            padded(cell, width, height) if cell else blank(width, height, PALE)
            for cell, width in zip(row, widths, strict=True)
        ]
        lines.append(stack([name, *shown], _GAP))
    return _sheet(stack(lines, _GAP // 2, down=True), colormap, caption, footer)


# ---- parts -----------------------------------------------------------------------------------------------------------


def _sheet(body: Image.Image, colormap: str | None, caption: tuple[str, str], footer: str) -> Pixels:
    """The body with the colour bar, the footer and margins around."""
    parts = [body]
    if colormap is not None:
        parts.append(_colour_bar(colormap, caption))
    if footer.strip():
        parts.append(paragraph(footer, SMALL, GREY, body.width))
    content = stack(parts, _GAP, down=True)
    sheet = blank(content.width + 2 * _MARGIN, content.height + 2 * _MARGIN)
    sheet.paste(content, (_MARGIN, _MARGIN))
    return np.array(sheet)


def _panel(image: Image.Image, title: str, subtitle: str) -> Image.Image:
    """An image under its title, the subtitle right of it: in half the width, or in what a short title leaves."""
    width = max(image.width, _NARROWEST)
    gap = _GAP // 2 if subtitle else 0
    alone = line(title, TITLE, INK, width)
    right = line(subtitle, NORMAL, GREY, max(width // 2, width - alone.width - gap))
    left = line(title, TITLE, INK, width - right.width - gap)
    heading = blank(width, left.height)
    heading.paste(left, (0, 0))
    heading.paste(right, (width - right.width, baseline(TITLE) - baseline(NORMAL)))
    return stack([heading, image], 6, down=True)


def _heading(title: str, subtitle: str, width: int) -> Image.Image:
    """Of a column."""
    above = line(title, NORMAL, INK, width)
    return stack([above, line(subtitle, SMALL, GREY, width)], 0, down=True) if subtitle else above


def _row_heading(title: str, subtitle: str) -> Image.Image:
    above = paragraph(title, NORMAL, INK, _ROW_TITLE, lines=4)
    return stack([above, paragraph(subtitle, SMALL, GREY, _ROW_TITLE, lines=4)], 4, down=True) if subtitle else above


def _colour_bar(colormap: str, caption: tuple[str, str]) -> Image.Image:
    """`does not matter 0 ▒▒▓▓██ 1 matters`"""
    from PIL import Image

    two_sided = colormap in DIVERGING
    low, high = (line(text, SMALL, GREY, _CAPTION) for text in caption)
    zero, one = (line(text, SMALL, INK, _CAPTION) for text in ("−1" if two_sided else "0", "1"))
    ramp = (diverging if two_sided else colours)(colormap)[np.linspace(0, 255, _BAR[0]).round().astype(int)]
    bar = Image.fromarray(np.repeat(ramp[None], _BAR[1], axis=0))
    return stack([low, zero, middle(bar, zero.height), one, high], _GAP // 2)


def _shown(image: Pixels, least: int, most: int, marks: Sequence[Mark]) -> Image.Image:
    """The picture at the size it is shown, with its marks."""
    shown = _scaled(image, least, most)
    return on(shown, marks, image.shape[:2]) if marks else shown


def _scaled(image: Pixels, least: int, most: int) -> Image.Image:
    """The picture with its longer side between `least` and `most`; a tiny one by whole, visible pixels."""
    from PIL import Image

    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ImageError(f"expected uint8 pictures (H,W,3), got {image.dtype} {image.shape}")
    longer = max(image.shape[:2])
    factor = min(max(longer, least), most) / longer
    resample = Image.Resampling.BICUBIC
    if longer <= _PIXEL_ART:
        factor, resample = max(1, round(factor)), Image.Resampling.NEAREST
    size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
    return Image.fromarray(np.ascontiguousarray(image)).resize(size, resample)
