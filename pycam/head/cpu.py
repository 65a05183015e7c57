"""The vectorised head: `csrc/head_cpu.cpp`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pycam import _native

Finish = Callable[[Sequence[NDArray[np.float32]], int, int], tuple[NDArray[np.float32], NDArray[np.bool_]]]
Overlay = Callable[[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8], float], NDArray[np.uint8]]


@dataclass(frozen=True)
class NativeHead:
    """A `Head` made of two functions of `pycam._native`, which know maps as one axis where a head has (N,K)."""

    name: str
    native_finish: Finish
    native_overlay: Overlay

    def finish(
        self, raws: Sequence[NDArray[np.float32]], size: tuple[int, int]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """See `Head.finish`."""
        lead = raws[0].shape[:2] if len(raws) else ()
        if not lead or any(raw.ndim != 4 or raw.shape[:2] != lead for raw in raws):
            shapes = [raw.shape for raw in raws]
            raise ValueError(f"raws: expected one array (N, K, h, w) per layer with the same N and K, found {shapes}")
        count = lead[0] * lead[1]
        flattened = [np.ascontiguousarray(raw, np.float32).reshape(count, *raw.shape[2:]) for raw in raws]
        maps, flat = self.native_finish(flattened, *size)
        return maps.reshape(*lead, *size), flat.reshape(lead)

    def overlay(
        self, images: NDArray[np.uint8], maps: NDArray[np.float32], lut: NDArray[np.uint8], alpha: float
    ) -> NDArray[np.uint8]:
        """See `Head.overlay`."""
        # Not converted to uint8: a float image in [0,1] would silently turn black.
        return self.native_overlay(
            np.ascontiguousarray(images), np.ascontiguousarray(maps, np.float32), np.ascontiguousarray(lut), alpha
        )


HEAD = NativeHead("cpu", _native.finish, _native.overlay)
