"""Data inside a page: pictures, maps and tables of colours as text."""

from __future__ import annotations

import base64
import hashlib
import io
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pycam.colormap import diverging

from .layout import Pixels


def signed_table() -> NDArray[np.uint8]:
    """The colours of a signed map's bytes: 128 is zero, 1 is −1, 255 is 1."""
    levels = np.clip((np.arange(256) - 128) / 127, -1, 1)
    table: NDArray[np.uint8] = diverging()[np.round((levels + 1) * 127.5).astype(int)]
    return table


def encoded(data: NDArray[np.uint8]) -> str:
    """The bytes of an array in base64."""
    return base64.b64encode(data.tobytes()).decode()


def compressed(data: NDArray[np.uint8]) -> str:
    """The same, compressed as zlib does."""
    return base64.b64encode(zlib.compress(data.tobytes(), 9)).decode()


def png(photo: Pixels) -> str:
    """A PNG file in base64."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(photo)).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def asset(name: str) -> str:
    """A text file of this folder."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def fingerprint(script: str) -> str:
    """As a content security policy names a script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
