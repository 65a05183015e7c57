"""The vectorised head: `csrc/head_cpu.cpp`."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pycam import _native
from pycam.head.protocol import Weighting

Results = tuple[NDArray[Any], ...]

GRAIN = 1 << 23
"""Bytes read that one more thread pays for, about 300 µs of work.

Waking a thread takes up to 50 µs; but milliseconds where others have the cores, and onnxruntime's threads spin on for a
while after a run.  What sharing smaller jobs could win is not worth that.
"""

HEATMAP, PAINTED = 8, 32
"""What a pixel of a heatmap and of a picture takes, in bytes read in the same time."""


@dataclass(frozen=True)
class NativeHead:
    """A `Head` made of three functions of `pycam._native`; for `threads` see `pycam.head.pick`."""

    name: str
    native_finish: Callable[..., Results]
    native_explain: Callable[..., Results]
    native_overlay: Callable[..., NDArray[np.uint8]]
    threads: int | None = None

    def finish(
        self, raws: Sequence[NDArray[Any]], size: tuple[int, int]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """See `Head.finish`."""
        lead = raws[0].shape[:2] if len(raws) else ()
        if not lead or any(raw.ndim != 4 or raw.shape[:2] != lead for raw in raws):
            shapes = [raw.shape for raw in raws]
            raise ValueError(f"raws: expected one array (N, K, h, w) per layer with the same N and K, found {shapes}")
        if len(size) != 2:
            raise ValueError(f"size: expected (height, width), found {size}")
        pixels = lead[0] * lead[1] * size[0] * size[1]
        threads = self._threads(sum(raw.nbytes for raw in raws) + len(raws) * pixels * HEATMAP)
        maps, flat = self.native_finish([_numbers(raw) for raw in raws], size, threads=threads)
        return maps, flat

    def explain(
        self, activations: NDArray[Any], weights: NDArray[Any], size: tuple[int, int], weighting: Weighting = "mean"
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.float32]]:
        """See `Head.explain`."""
        a, w, work = _weighed(activations, weights)
        threads = self._threads(work + _maps(w) * size[0] * size[1] * HEATMAP)
        maps, flat, raw = self.native_explain(a, w, size, weighting, ("heatmaps", "flat", "raw"), threads=threads)
        return maps, flat, raw

    def paint(
        self,
        activations: NDArray[Any],
        weights: NDArray[Any],
        images: NDArray[np.uint8],
        lut: NDArray[np.uint8],
        alpha: float = 0.5,
        weighting: Weighting = "mean",
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """`explain` at the images' size and `overlay` in one pass that keeps no heatmaps.

        Args:
            activations, weights, weighting: See `Head.explain`.
            images: uint8 (N,H,W,3), or (N,H,W,4) of which the fourth value is left as it is; of any size.
            lut: uint8 (256,3).
            alpha: Opacity of the colours, 0 to 1.

        Returns:
            uint8 (N,K,H,W,3 or 4), and bool (N,K): whether the map had no positive part.

        Raises:
            ValueError: as `Head.explain` and `Head.overlay`.
        """
        a, w, work = _weighed(activations, weights)
        under = _pixels(images)
        threads = self._threads(work + _maps(w) * math.prod(under.shape[1:3]) * (HEATMAP + PAINTED))
        pictures, flat = self.native_explain(
            a, w, None, weighting, ("pictures", "flat"),
            images=under, lut=np.ascontiguousarray(lut), alpha=alpha, threads=threads,
        )  # fmt: skip
        return pictures, flat

    def overlay(
        self, images: NDArray[np.uint8], maps: NDArray[np.float32], lut: NDArray[np.uint8], alpha: float
    ) -> NDArray[np.uint8]:
        """See `Head.overlay`; images may also be (N,H,W,4), of which the fourth value is left as it is."""
        heatmaps = np.ascontiguousarray(maps, np.float32)
        threads = self._threads(heatmaps.size * PAINTED)
        return self.native_overlay(_pixels(images), heatmaps, np.ascontiguousarray(lut), alpha, threads=threads)

    def _threads(self, work: int) -> int:
        """As many as there is work for (in bytes), and no more than there may be.  The results are the same."""
        worth = work // GRAIN
        return 1 if worth < 2 else min(worth, self.threads or cores())


def cores() -> int:
    """How many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not everywhere
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def _weighed(activations: NDArray[Any], weights: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], int]:
    """Both as native heads take them, and how many bytes are read."""
    a, w = _numbers(activations), _numbers(weights)
    w = w[:, None] if w.ndim == 4 else w
    return a, w, a.nbytes * (w.shape[1] if w.ndim > 1 else 1) + w.nbytes


def _maps(weights: NDArray[Any]) -> int:
    """N·K."""
    return math.prod(weights.shape[:2])


def _numbers(array: ArrayLike) -> NDArray[Any]:
    """What native heads read: float32, float16 or bfloat16 as they lie; other numbers as float32.

    A copy where strides or the address are no multiple of the item size, as in a field of a packed record.
    """
    found = np.asarray(array)
    if found.dtype != np.float32 and found.dtype != np.float16 and found.dtype.name != "bfloat16":
        found = np.asarray(found, np.float32)
    return found if found.flags.aligned else found.copy()


def _pixels(images: ArrayLike) -> NDArray[Any]:
    """Images whose colours lie side by side; a copy where they do not, as in planes or where RGB was BGR.

    Not converted to uint8: a float image in [0, 1] would silently turn black.
    """
    found = np.asarray(images)
    return found if found.ndim and found.strides[-1] == found.itemsize else np.ascontiguousarray(found)


HEAD = NativeHead("cpu", _native.finish, _native.explain, _native.overlay)
