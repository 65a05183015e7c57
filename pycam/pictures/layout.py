"""The layout engine: every part is an image, and `stack` puts images beside or below each other."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL import Image

Pixels = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

WHITE, PALE, GREY, INK = (255, 255, 255), (242, 242, 242), (112, 112, 112), (28, 28, 28)


def stack(images: Iterable[Image.Image], gap: int, down: bool = False) -> Image.Image:
    """Images beside each other, top-aligned, or below each other, left-aligned, on white."""
    images = list(images)
    ends = [0]
    for image in images:
        ends.append(ends[-1] + (image.height if down else image.width) + gap)
    across = max(image.width if down else image.height for image in images)
    along = ends[-1] - gap
    sheet = blank(across, along) if down else blank(along, across)
    for image, (start, _) in zip(images, pairwise(ends), strict=True):
        sheet.paste(image, (0, start) if down else (start, 0))
    return sheet


def middle(image: Image.Image, height: int) -> Image.Image:
    """The image centred in a strip of `height`."""
    strip = blank(image.width, max(height, image.height))
    strip.paste(image, (0, (strip.height - image.height) // 2))
    return strip


def padded(image: Image.Image, width: int, height: int) -> Image.Image:
    """The image at the top left of a white one of that size."""
    sheet = blank(width, height)
    sheet.paste(image, (0, 0))
    return sheet


def blank(width: int, height: int, colour: Colour = WHITE) -> Image.Image:
    """An image of one colour."""
    from PIL import Image

    return Image.new("RGB", (width, height), colour)
