"""Colour maps: 256 RGB colours from "does not matter" to "matters", or from "against" to "for"."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pycam.errors import ImageError, nearest

__all__ = ["COLORMAPS", "DIVERGING", "colormap", "diverging"]

COLORMAPS = ("jet", "turbo", "viridis", "inferno", "magma", "gray")
"""The names that `colormap` knows; the first is the default everywhere."""

DIVERGING = ("RdBu",)
"""The names that `diverging` knows."""

_TABLES = Path(__file__).with_name("assets") / "colormaps.npz"


@cache
def colormap(name: str = "jet") -> npt.NDArray[np.uint8]:
    """The colour map as uint8 `(256,3)`, RGB, read-only: row `i` is the colour of the value `i / 255`.

    "jet" is OpenCV's `COLORMAP_JET` within ±1, which published heatmaps are drawn in; "turbo" is its even-tempered
    successor; "viridis", "inferno" and "magma" are perceptually uniform and safe for colour-blind readers.
    Raises `ImageError` (a `ValueError`) on an unknown name.
    """
    if name not in COLORMAPS:
        raise ImageError(f"unknown colour map {name!r}; nearest: {nearest(name, COLORMAPS, 6)}")
    table = _COMPUTED[name] if name in _COMPUTED else _load(name)
    table.setflags(write=False)
    return table


def diverging(name: str = "RdBu") -> npt.NDArray[np.uint8]:
    """The colour map for signed values as uint8 `(256,3)`, RGB, read-only: row 0 is −1, the middle 0, row 255 is 1.

    "RdBu" goes from blue over near-white to red: the nine colours of ColorBrewer's scheme of that name (Cynthia Brewer,
    https://colorbrewer2.org), interpolated.  Equal values on either side are about equally dark, and colour-blind
    readers can tell the sides apart.  (matplotlib's RdBu_r interpolates the scheme of eleven, whose ends are nearly
    black: on a photo they look alike.)  Raises `ImageError` on an unknown name.
    """
    if name not in DIVERGING:
        raise ImageError(f"unknown colour map {name!r} for signed maps; there is {', '.join(DIVERGING)}")
    return _REDBLUE


def _load(name: str) -> npt.NDArray[np.uint8]:
    with np.load(_TABLES) as tables:
        table: npt.NDArray[np.uint8] = tables[name]
    return table


def _jet() -> npt.NDArray[np.uint8]:
    """Three ramps of slope ±4 around the centres 191.25 (red), 127.5 (green) and 63.75 (blue): integers throughout."""
    index = np.arange(256)[:, None]
    rising = 4 * index + np.array([-382, -128, 128])
    falling = np.array([1148, 892, 638]) - 4 * index
    table: npt.NDArray[np.int64] = np.clip(np.minimum(rising, falling), 0, 255)
    return table.astype(np.uint8)


_COMPUTED = {"jet": _jet(), "gray": np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)}


def _interpolated(*colours: str) -> npt.NDArray[np.uint8]:
    """256 colours along evenly spaced ones, given as hexadecimal RGB."""
    anchors = np.array([list(bytes.fromhex(colour)) for colour in colours])
    places, where = np.linspace(0, 1, 256), np.linspace(0, 1, len(anchors))
    channels = [np.interp(places, where, channel) for channel in anchors.T]
    table: npt.NDArray[np.uint8] = np.stack(channels, axis=1).round().astype(np.uint8)
    table.setflags(write=False)
    return table


_REDBLUE = _interpolated(*("2166ac", "4393c3", "92c5de", "d1e5f0"), "f7f7f7", *("fddbc7", "f4a582", "d6604d", "b2182b"))
