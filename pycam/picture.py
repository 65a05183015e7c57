"""Panels that a person likes to look at: a photo beside its heatmaps, or methods against photos.

Every part is an image, and `_stack` puts images beside or below each other; that is the whole layout engine.  Pillow is
imported when a function is called, not before.
"""

from __future__ import annotations

import math
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pycam.colormap import colormap as colours
from pycam.errors import ImageError

if TYPE_CHECKING:
    from PIL import Image, ImageFont

__all__ = ["grid", "picture"]

Pixels = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

_WHITE, _PALE, _GREY, _INK = (255, 255, 255), (242, 242, 242), (112, 112, 112), (28, 28, 28)
_TITLE, _NORMAL, _SMALL = 18, 15, 13  # font sizes
_MARGIN, _GAP = 24, 16
_PER_ROW = 4
_SIDES = (320, 512)  # shortest and longest the longer side of a panel is shown at
_PIXEL_ART = 64  # up to this size people want to see the pixels
_NARROWEST = 180  # of a panel, for its title's sake
_ROW_TITLE = 120
_SHEET = 1600  # a grid's width, about
_BAR = (200, 10)
_CAPTION = 160  # of the bar, at each end

# Pillow's built-in font (Aileron) is a Latin subset.  What it lacks is spelled in what it has.
_SPELLED = str.maketrans(
    {"→": "›", "←": "‹", "–": "-", "—": "-", "−": "-", "×": "x", "≥": ">=", "≤": "<=", "ß": "ss", "æ": "ae", "ø": "o"}
)


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
) -> Pixels:
    """The photo and one panel per overlay, with titles, a colour bar and a footer: uint8 `(H',W',3)`.

    `photo` uint8 `(H,W,3)`; `overlays` uint8 `(K,H,W,3)`, K ≥ 1; `titles` and `subtitles` (a probability, say) have K
    entries.  `caption` says what the two ends of the colour bar mean.  Small photos are enlarged, large ones reduced;
    four panels to a row at most; what is too long for its place is shortened with an ellipsis.
    Raises `ImageError` where shapes, dtypes or counts do not fit, or on an unknown colour map.
    """
    count = len(titles)
    subtitles = [""] * count if subtitles is None else subtitles
    if overlays.ndim != 4 or overlays.shape[1:] != photo.shape or not count:
        raise ImageError(f"expected overlays (K, *{photo.shape}) with K ≥ 1, got {overlays.shape}")
    if not len(overlays) == count == len(subtitles):
        raise ImageError(
            f"{len(overlays)} overlays, {count} titles and {len(subtitles)} subtitles: give as many of each"
        )
    panels = [
        _panel(_scaled(image, *_SIDES), title, subtitle)
        for image, title, subtitle in zip([photo, *overlays], [photo_title, *titles], ["", *subtitles], strict=True)
    ]
    lines = math.ceil(len(panels) / _PER_ROW)
    columns = math.ceil(len(panels) / lines)  # five panels are better as 3 + 2 than as 4 + 1
    rows = [_stack(panels[start : start + columns], _GAP) for start in range(0, len(panels), columns)]
    return _sheet(_stack(rows, _GAP + 4, down=True), colormap, caption, footer)


def grid(
    rows: Sequence[Sequence[Pixels | None]],
    row_titles: Sequence[str],
    column_titles: Sequence[str],
    *,
    colormap: str | None = None,
    caption: tuple[str, str] = ("does not matter", "matters"),
    footer: str = "",
) -> Pixels:
    """A table of pictures, methods × photos for example: uint8 `(H',W',3)`.

    Every row has one uint8 `(H,W,3)` for each of `column_titles`, or `None` for a cell that stays empty; sizes may
    differ.  `colormap` adds a colour bar.  Raises `ImageError` where counts, shapes or dtypes do not fit.
    """
    columns = len(column_titles)
    if not columns or not rows or len(rows) != len(row_titles) or any(len(row) != columns for row in rows):
        raise ImageError(
            f"expected {len(row_titles)} rows of {columns} pictures, by the titles, got {[len(row) for row in rows]}"
        )
    side = min(max(_SHEET // columns, _NARROWEST), _SIDES[0])
    cells = [[None if cell is None else _scaled(cell, side, side) for cell in row] for row in rows]
    widths = [max([cell.width for cell in column if cell] + [_NARROWEST]) for column in zip(*cells, strict=True)]
    heights = [max([cell.height for cell in row if cell] + [_NORMAL * 2]) for row in cells]
    names = [_text(title, _NORMAL, _INK, width) for title, width in zip(column_titles, widths, strict=True)]
    head = [_padded(name, width, name.height) for name, width in zip(names, widths, strict=True)]
    lines = [_stack([_blank(_ROW_TITLE, 1), *head], _GAP)]
    for row, title, height in zip(cells, row_titles, heights, strict=True):
        name = _padded(_middle(_paragraph(title, _NORMAL, _INK, _ROW_TITLE, lines=4), height), _ROW_TITLE, height)
        shown = [
            _padded(cell, width, height) if cell else _blank(width, height, _PALE)
            for cell, width in zip(row, widths, strict=True)
        ]
        lines.append(_stack([name, *shown], _GAP))
    return _sheet(_stack(lines, _GAP // 2, down=True), colormap, caption, footer)


# ---- parts -----------------------------------------------------------------------------------------------------------


def _sheet(body: Image.Image, colormap: str | None, caption: tuple[str, str], footer: str) -> Pixels:
    """The body with the colour bar, the footer and margins around."""
    parts = [body]
    if colormap is not None:
        parts.append(_colour_bar(colormap, caption))
    if footer.strip():
        parts.append(_paragraph(footer, _SMALL, _GREY, body.width))
    content = _stack(parts, _GAP, down=True)
    sheet = _blank(content.width + 2 * _MARGIN, content.height + 2 * _MARGIN)
    sheet.paste(content, (_MARGIN, _MARGIN))
    return np.array(sheet)


def _panel(image: Image.Image, title: str, subtitle: str) -> Image.Image:
    """An image under its title, the subtitle right of it: in half the width, or in what a short title leaves."""
    width = max(image.width, _NARROWEST)
    gap = _GAP // 2 if subtitle else 0
    alone = _text(title, _TITLE, _INK, width)
    right = _text(subtitle, _NORMAL, _GREY, max(width // 2, width - alone.width - gap))
    left = _text(title, _TITLE, _INK, width - right.width - gap)
    heading = _blank(width, left.height)
    heading.paste(left, (0, 0))
    heading.paste(right, (width - right.width, _baseline(_TITLE) - _baseline(_NORMAL)))
    return _stack([heading, image], 6, down=True)


def _colour_bar(colormap: str, caption: tuple[str, str]) -> Image.Image:
    """`does not matter 0 ▒▒▓▓██ 1 matters`"""
    from PIL import Image

    low, high = (_text(text, _SMALL, _GREY, _CAPTION) for text in caption)
    zero, one = (_text(text, _SMALL, _INK, _CAPTION) for text in "01")
    ramp = colours(colormap)[np.linspace(0, 255, _BAR[0]).round().astype(int)]
    bar = Image.fromarray(np.repeat(ramp[None], _BAR[1], axis=0))
    return _stack([low, zero, _middle(bar, zero.height), one, high], _GAP // 2)


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


def _paragraph(text: str, size: int, colour: Colour, width: int, lines: int = 6) -> Image.Image:
    """Text broken at spaces into at most `lines` lines, the last one shortened."""
    font = _font(size)
    rows: list[str] = [""]
    for word in text.split():
        longer = f"{rows[-1]} {word}".strip()
        if not rows[-1] or len(rows) == lines or font.getlength(_legible(longer)) <= width:
            rows[-1] = longer
        else:
            rows[-1] = rows[-1].removesuffix(" ·")  # the footer's separator
            rows.append(word)
    return _stack([_text(row, size, colour, width) for row in rows], 2, down=True)


def _text(text: str, size: int, colour: Colour, width: int) -> Image.Image:
    """One line, no wider than `width`, as high as the font whatever it says."""
    from PIL import ImageDraw

    font = _font(size)
    shown = _shortened(_legible(text), font, width)
    image = _blank(math.ceil(font.getlength(shown)), sum(font.getmetrics()))
    ImageDraw.Draw(image).text((0, 0), shown, fill=colour, font=font)
    return image


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The longest beginning that fits with an ellipsis; all of it if it fits without, nothing if nothing does."""
    text = text[: width + 1]  # no glyph is narrower than a pixel: bounds the time for texts of any length
    if font.getlength(text) <= width:
        return text
    starts = ["", *(text[:end].rstrip() + "…" for end in range(1, len(text)))]
    return starts[bisect_right(starts, float(width), lo=1, key=lambda start: font.getlength(start)) - 1]


def _legible(text: str) -> str:
    """`text` in glyphs of the built-in font: accents dropped, "?" for what remains, one space for any whitespace."""
    characters: list[str] = []
    for character in " ".join(text.split()).translate(_SPELLED):
        if _drawn(character):
            characters.append(character)
        else:
            plain = [c for c in unicodedata.normalize("NFKD", character) if not unicodedata.combining(c)]
            characters += [c if _drawn(c) else "?" for c in plain]
    return "".join(characters)


@cache
def _drawn(character: str) -> bool:
    """Whether the built-in font has a glyph of its own for it; U+FFFF never has one."""
    font = _font(_NORMAL)
    return bytes(font.getmask(character)) != bytes(font.getmask("\uffff"))


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    from PIL import ImageFont

    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise ImageError("this Pillow is built without FreeType, which titles need: install it from PyPI")
    return font


def _baseline(size: int) -> int:
    return _font(size).getmetrics()[0]


# ---- combinators -----------------------------------------------------------------------------------------------------


def _stack(images: Iterable[Image.Image], gap: int, down: bool = False) -> Image.Image:
    """Images beside each other, top-aligned, or below each other, left-aligned, on white."""
    images = list(images)
    ends = [0]
    for image in images:
        ends.append(ends[-1] + (image.height if down else image.width) + gap)
    across = max(image.width if down else image.height for image in images)
    along = ends[-1] - gap
    sheet = _blank(across, along) if down else _blank(along, across)
    for image, (start, _) in zip(images, pairwise(ends), strict=True):
        sheet.paste(image, (0, start) if down else (start, 0))
    return sheet


def _middle(image: Image.Image, height: int) -> Image.Image:
    """The image centred in a strip of `height`."""
    strip = _blank(image.width, max(height, image.height))
    strip.paste(image, (0, (strip.height - image.height) // 2))
    return strip


def _padded(image: Image.Image, width: int, height: int) -> Image.Image:
    sheet = _blank(width, height)
    sheet.paste(image, (0, 0))
    return sheet


def _blank(width: int, height: int, colour: Colour = _WHITE) -> Image.Image:
    from PIL import Image

    return Image.new("RGB", (width, height), colour)
