"""The heads against each other and against numpy: raw time, and the bytes that any head must move.

    python bench/head.py [repetitions]

One thread.  The candidates take turns (A B C, A B C, …), so that a slow spell of the machine hits all of them; the
figures are medians in µs.  Every result is checked before it is timed.  "floor" is the data read and written once.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"  # read when numpy is imported

import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from pycam import _native  # noqa: E402

Array = NDArray[Any]


@dataclass(frozen=True)
class Case:
    title: str
    candidates: dict[str, Callable[[], Array]]
    floor: int  # bytes
    tolerance: float = 1e-5


def interpolation(n: int, o: int) -> Array:
    at = np.clip((np.arange(o) + 0.5) * n / o - 0.5, 0, n - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(n))).astype(np.float32)


def stretch(x: Array) -> Array:
    x = x - x.min(axis=(-2, -1), keepdims=True)
    return x / (np.float32(1e-7) + x.max(axis=(-2, -1), keepdims=True))


def finish_numpy(raw: Array, side: int) -> Array:
    """The resize as two matrix products: the fastest we know in numpy alone."""
    rows, columns = interpolation(raw.shape[1], side), interpolation(raw.shape[2], side).T
    return stretch(rows @ stretch(np.maximum(raw, 0)) @ columns)


def fused_numpy(activations: Array, gradients: Array, side: int) -> Array:
    weights = gradients.mean(axis=(2, 3))
    n, c, h, w = activations.shape
    return finish_numpy((weights[:, None] @ activations.reshape(n, c, h * w)).reshape(n, h, w), side)


def overlay_numpy(images: Array, maps: Array, lut: Array, alpha: float) -> Array:
    colours = lut[(np.clip(maps, 0, 1) * 255 + 0.5).astype(np.uint8)]
    return ((1 - alpha) * images[:, None] + alpha * colours + 0.5).astype(np.uint8)


def fused_case(rng: np.random.Generator, n: int, c: int, h: int, side: int) -> Case:
    activations = np.maximum(rng.standard_normal((n, c, h, h), np.float32), 0)
    gradients = rng.standard_normal((n, c, h, h), np.float32) + np.float32(0.02)
    return Case(
        f"Grad-CAM ({n},{c},{h},{h}) -> {side}",
        {
            "native": lambda: _native.fused(activations, gradients, side, side)[0],
            "reference": lambda: _native.fused_ref(activations, gradients, side, side)[0],
            "numpy": lambda: fused_numpy(activations, gradients, side),
        },
        2 * activations.nbytes + n * side * side * 4,
        tolerance=1e-4,  # float32 raw maps that cancel: their error, not the head's
    )


def weigh_case(rng: np.random.Generator, n: int, k: int, c: int, h: int) -> Case:
    activations = np.maximum(rng.standard_normal((n, c, h, h), np.float32), 0)
    weights = rng.standard_normal((n, k, c), np.float32)
    return Case(
        f"weigh ({n},{c},{h},{h}), {k} classes",
        {
            "native": lambda: _native.weigh(activations, weights),
            "reference": lambda: _native.weigh_ref(activations, weights),
            "numpy": lambda: (weights @ activations.reshape(n, c, h * h)).reshape(n, k, h, h),
        },
        activations.nbytes + weights.nbytes + n * k * h * h * 4,
        tolerance=1e-2,
    )


def finish_case(rng: np.random.Generator, maps: int, h: int, side: int) -> Case:
    raw = rng.standard_normal((maps, h, h), np.float32)
    return Case(
        f"finish ({maps},{h},{h}) -> {side}",
        {
            "native": lambda: _native.finish([raw], side, side)[0],
            "reference": lambda: _native.finish_ref([raw], side, side)[0],
            "numpy": lambda: finish_numpy(raw, side),
        },
        raw.nbytes + maps * side * side * 4,
    )


def overlay_case(rng: np.random.Generator, n: int, k: int, side: int) -> Case:
    images = rng.integers(0, 256, (n, side, side, 3), np.uint8)
    maps = rng.random((n, k, side, side), np.float32)
    lut = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)  # neighbours differ by one level
    return Case(
        f"overlay ({n},{k},{side},{side})",
        {
            "native": lambda: _native.overlay(images, maps, lut, 0.5),
            "reference": lambda: _native.overlay_ref(images, maps, lut, 0.5),
            "numpy": lambda: overlay_numpy(images, maps, lut, 0.5),
        },
        images.nbytes + maps.nbytes + 3 * maps.size,
        tolerance=1,  # numpy rounds the index in float32, native is exact
    )


def measure(case: Case, repetitions: int) -> dict[str, float]:
    expected = case.candidates["reference"]().astype(np.float64)
    for name, candidate in case.candidates.items():
        error = np.abs(candidate().astype(np.float64) - expected).max()
        if error > case.tolerance:
            raise SystemExit(f"{case.title}: {name} is off by {error:.2g}")
    times: dict[str, list[float]] = {name: [] for name in case.candidates}
    for _ in range(repetitions):
        for name, candidate in case.candidates.items():
            start = time.perf_counter()
            candidate()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) * 1e6 for name, values in times.items()}


def main() -> None:
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 101
    rng = np.random.default_rng(0)
    cases = [
        fused_case(rng, 1, 2048, 7, 224),
        fused_case(rng, 1, 512, 14, 224),
        fused_case(rng, 4, 2048, 7, 224),
        weigh_case(rng, 1, 1, 2048, 7),
        weigh_case(rng, 16, 10, 512, 7),
        finish_case(rng, 1, 7, 224),
        finish_case(rng, 160, 7, 224),
        finish_case(rng, 1, 56, 224),
        overlay_case(rng, 1, 1, 224),
    ]
    print(f"pycam {_native.features()}, numpy {np.__version__}, medians of {repetitions} in µs")
    print(f"{'':32}{'native':>10}{'reference':>11}{'numpy':>10}{'numpy/native':>14}{'floor kB':>10}{'GB/s':>7}")
    for case in cases:
        t = measure(case, repetitions)
        print(
            f"{case.title:32}{t['native']:10.1f}{t['reference']:11.1f}{t['numpy']:10.1f}"
            f"{t['numpy'] / t['native']:14.1f}{case.floor / 1e3:10.0f}{case.floor / t['native'] / 1e3:7.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
