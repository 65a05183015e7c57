"""Text as images: one line or a paragraph, shortened where it is too long, in glyphs that Pillow's own font has."""

from __future__ import annotations

import math
import unicodedata
from bisect import bisect_right
from functools import cache
from typing import TYPE_CHECKING

from pycam.errors import ImageError

from .layout import WHITE, Colour, blank, stack

if TYPE_CHECKING:
    from PIL import Image, ImageFont

TITLE, NORMAL, SMALL = 18, 15, 13
"""Font sizes."""

# Pillow's built-in font (Aileron) is a Latin subset.  What it lacks is spelled in what it has.
_SPELLED = str.maketrans(
    {"→": "›", "←": "‹", "–": "-", "—": "-", "−": "-", "×": "x", "≥": ">=", "≤": "<=", "ß": "ss", "æ": "ae", "ø": "o"}
)


def paragraph(text: str, size: int, colour: Colour, width: int, lines: int = 6) -> Image.Image:
    """Text broken at spaces into at most `lines` lines, the last one shortened."""
    face = font(size)
    rows: list[str] = [""]
    for word in text.split():
        longer = f"{rows[-1]} {word}".strip()
        if not rows[-1] or len(rows) == lines or face.getlength(legible(longer)) <= width:
            rows[-1] = longer
        else:
            rows[-1] = rows[-1].removesuffix(" ·")  # the footer's separator
            rows.append(word)
    return stack([line(row, size, colour, width) for row in rows], 2, down=True)


def line(text: str, size: int, colour: Colour, width: int, ground: Colour = WHITE) -> Image.Image:
    """One line, no wider than `width`, as high as the font whatever it says."""
    from PIL import ImageDraw

    face = font(size)
    shown = _shortened(legible(text), face, width)
    image = blank(math.ceil(face.getlength(shown)), sum(face.getmetrics()), ground)
    ImageDraw.Draw(image).text((0, 0), shown, fill=colour, font=face)
    return image


def legible(text: str) -> str:
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
def font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's built-in font."""
    from PIL import ImageFont

    face = ImageFont.load_default(size)
    if not isinstance(face, ImageFont.FreeTypeFont):
        raise ImageError("this Pillow is built without FreeType, which titles need: install it from PyPI")
    return face


def baseline(size: int) -> int:
    """From the top of a line to its letters' feet."""
    return font(size).getmetrics()[0]


def _shortened(text: str, face: ImageFont.FreeTypeFont, width: int) -> str:
    """The longest beginning that fits with an ellipsis; all of it if it fits without, nothing if nothing does."""
    text = text[: width + 1]  # no glyph is narrower than a pixel: bounds the time for texts of any length
    if face.getlength(text) <= width:
        return text
    starts = ["", *(text[:end].rstrip() + "…" for end in range(1, len(text)))]
    return starts[bisect_right(starts, float(width), lo=1, key=lambda start: face.getlength(start)) - 1]


@cache
def _drawn(character: str) -> bool:
    """Whether the built-in font has a glyph of its own for it; U+FFFF never has one."""
    face = font(NORMAL)
    return bytes(face.getmask(character)) != bytes(face.getmask("\uffff"))
