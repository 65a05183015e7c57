"""The head for volumes, in numpy: the pipeline of `head.graph` with a trilinear resize, one axis after another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

EPSILON = np.float32(1e-7)
_AXES = (2, 3, 4)

Maps = NDArray[np.float32]


def finish(raws: Sequence[Maps], size: Sequence[int]) -> tuple[Maps, NDArray[np.bool_]]:
    """Heatmaps from the raw maps of one or more layers, as `Head.finish`.

    Args:
        raws: per layer float32 (N, K, d, h, w), signed.
        size: depth, height and width of the heatmaps.

    Returns:
        float32 (N, K, D, H, W) in [0, 1], and bool (N, K): whether the map had no positive part in any layer.

    Raises:
        ValueError: NaN or +inf in a raw map.
    """
    if not all(np.isfinite(raw.max(initial=0)) for raw in raws):
        raise ValueError("NaN or infinity in a raw map")
    layers = [_resized(_unit(np.maximum(raw, 0)), size) for raw in raws]
    mean = layers[0] if len(layers) == 1 else np.asarray(np.mean(layers, axis=0), np.float32)
    flat = np.all([raw.max(axis=_AXES) <= 0 for raw in raws], axis=0)
    return _unit(mean), flat


def _unit(maps: Maps) -> Maps:
    """`(x − min)/(1e-7 + max(x − min))` per map."""
    lifted = maps - maps.min(axis=_AXES, keepdims=True)
    return np.asarray(lifted / (lifted.max(axis=_AXES, keepdims=True) + EPSILON), np.float32)


def _resized(maps: Maps, size: Sequence[int]) -> Maps:
    """Half-pixel, linear, without antialias; the last axis first, while there is little of the others."""
    for axis, length in zip(reversed(_AXES), reversed(size), strict=True):
        maps = np.moveaxis(np.moveaxis(maps, axis, -1) @ _weights(maps.shape[axis], length), -1, axis)
    return np.ascontiguousarray(maps)


def _weights(before: int, after: int) -> Maps:
    """How much of each of `before` values each of `after` values takes, (before, after)."""
    at = np.clip((np.arange(after) + 0.5) * before / after - 0.5, 0, before - 1)
    return np.asarray(np.maximum(1 - np.abs(at - np.arange(before)[:, None]), 0), np.float32)
