"""pycam._native: bitwise the same with any number of threads, and from whichever thread."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pycam import _native

Array = NDArray[Any]


def results(threads: int) -> list[bytes]:
    """Of every function, in several sizes; one of them has fewer maps than threads."""
    rng = np.random.default_rng(0)
    lut = rng.integers(0, 256, (256, 3), np.uint8)
    found: list[Array] = []
    for n, c, side in ((3, 64, 7), (1, 65, 14), (2, 3, 1), (4, 33, 28)):
        activations = np.maximum(rng.standard_normal((n, c, side, side), np.float32), 0)
        slopes = rng.standard_normal((n, 2, c, side, side), np.float32)
        images = rng.integers(0, 256, (n, side + 20, side + 21, 4), np.uint8)
        size = images.shape[1:3]
        for weighting in ("given", "mean", "positive", "rectified", "plusplus"):
            raw = _native.weigh(activations.astype(np.float16), slopes, weighting, threads=threads)
            maps, flat = _native.finish([raw, activations[:, :1].repeat(2, 1)], size, threads=threads)
            fused = _native.explain(activations, slopes, size, weighting, ("raw", "heatmaps", "flat"), threads=threads)
            painted = _native.explain(
                activations, slopes, None, weighting, ("pictures", "levels"), images=images, lut=lut, threads=threads
            )
            found += [raw, maps, flat, *fused, *painted]
            found += [_native.overlay(images, maps, lut, 0.4, threads=threads), _native.levels(maps, threads=threads)]
    return [array.tobytes() for array in found]


@pytest.fixture(scope="module")
def expected() -> list[bytes]:
    return results(1)


@pytest.mark.parametrize("threads", [0, 1, 2, 5, 64])
def test_any_number_gives_bitwise_the_same(expected: list[bytes], threads: int) -> None:
    for _ in range(3):
        assert results(threads) == expected


def test_calls_from_several_threads_at_once_give_bitwise_the_same(expected: list[bytes]) -> None:
    """Each with another number of threads of its own."""
    wrong: list[int] = []
    start = threading.Barrier(8)

    def check(threads: int) -> None:
        start.wait()
        wrong.extend(i for i in range(4) if results(threads) != expected)

    callers = [threading.Thread(target=check, args=(1 + i % 4,)) for i in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert wrong == []
