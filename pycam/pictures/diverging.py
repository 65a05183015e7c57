"""Signed maps: what speaks for a target in red, what speaks against it in blue."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pycam.colormap import diverging
from pycam.errors import InputError

CLIP = 0.01
"""Share of the pixels that get the last colour at either end."""

ALPHA = 0.7
"""How far a signed map hides the picture under it, unless told otherwise: the darker that is, the less hue is seen."""

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601


def signed_levels(
    raw: NDArray[np.float32] | Sequence[NDArray[np.float32]], size: tuple[int, int], clip: float = CLIP
) -> NDArray[np.float32]:
    """Raw maps at the picture's size, on a scale that is the same on both sides of zero.

    `v / s`, cut at ±1, where `s` is the (1 − clip)-quantile of `|v|` over the map's pixels.  Resized as heatmaps are:
    bilinear, half-pixel centres.  Of several layers the mean of theirs, each on its own scale.

    Args:
        raw: float32 (N, K, h, w), or several of them.
        size: Height and width.
        clip: Share of the pixels, the largest in size, that are cut; 0: none.

    Returns:
        float32 (N, K, H, W) in [-1, 1]; a map of zeros stays one.

    Raises:
        InputError: no map, one of another shape, clip out of range.
    """
    if not 0 <= clip < 1:
        raise InputError(f"clip={clip}: give a share of the pixels, 0 ≤ clip < 1")
    layers = [raw] if isinstance(raw, np.ndarray) else list(raw)
    if not layers:
        raise InputError(
            "there are no raw maps, which signed maps are made of: export the graph with outputs='raw' too"
        )
    wrong = [layer.shape for layer in layers if layer.ndim != 4 or layer.shape[:2] != layers[0].shape[:2]]
    if wrong:
        raise InputError(f"raw maps are (N, K, h, w), the same N and K for all layers; got {wrong[0]}")
    levels = [_scaled(_resized(layer, size), clip) for layer in layers]
    return np.asarray(np.mean(levels, axis=0), np.float32)


def signed(
    levels: NDArray[np.float32],
    images: NDArray[np.uint8] | None = None,
    alpha: float = ALPHA,
    colormap: str = "RdBu",
) -> NDArray[np.uint8]:
    """Signed maps in colour, over grey pictures or on white: `colour(v) · (1 − (1 − alpha)(1 − grey))`.

    The picture darkens the colours, it never changes their hue: where a map is zero, the pale picture shows.

    Args:
        levels: float32 (N, K, H, W) in [-1, 1], as `signed_levels` makes them.
        images: uint8 (N, H, W, 3); None: on white.
        alpha: 1 hides the pictures, 0 leaves them at full strength.
        colormap: See `colormap.diverging`.

    Returns:
        uint8 (N, K, H, W, 3).

    Raises:
        InputError: pictures of another shape or dtype, alpha out of range.
        ImageError: an unknown colour map.
    """
    table = diverging(colormap)
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha={alpha}: give an opacity between 0 and 1")
    colours = table[np.round((levels + 1) * 127.5).astype(np.intp)]
    if images is None:
        return colours
    n, _, height, width = levels.shape
    images = np.asarray(images)
    if images.shape != (n, height, width, 3) or images.dtype != np.uint8:
        raise InputError(f"the maps need uint8 images {(n, height, width, 3)}; got {images.dtype} {images.shape}")
    light = 1 - (1 - alpha) * (1 - (images @ _LUMA) / 255)
    return np.round(colours * light[:, None, :, :, None]).astype(np.uint8)


def _scaled(maps: NDArray[np.float64], clip: float) -> NDArray[np.float64]:
    size = np.abs(maps)
    top = np.quantile(size, 1 - clip, axis=(2, 3), keepdims=True)
    top = np.where(top > 0, top, size.max(axis=(2, 3), keepdims=True))  # a few pixels on a map of zeros
    return np.clip(maps / np.where(top > 0, top, 1), -1, 1)


def _resized(maps: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float64]:
    down, along = _weights(maps.shape[2], size[0]), _weights(maps.shape[3], size[1])
    resized: NDArray[np.float64] = down @ maps.astype(np.float64) @ along.T
    return resized


def _weights(before: int, after: int) -> NDArray[np.float64]:
    """(after, before): how much each old pixel counts in each new one; bilinear, half-pixel centres, edges repeated."""
    place = np.clip((np.arange(after) + 0.5) * before / after - 0.5, 0, before - 1)
    low = np.floor(place).astype(np.intp)
    high = np.minimum(low + 1, before - 1)
    weights = np.zeros((after, before))
    np.add.at(weights, (np.arange(after), low), 1 - (place - low))
    np.add.at(weights, (np.arange(after), high), place - low)
    return weights
