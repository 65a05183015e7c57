"""Signals and clips of which it is known where the thing lies that a classifier looks for."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

LENGTH, BURST = 256, 48
BANDS = (0.04, 0.09, 0.16, 0.27)
"""Periods per sample, one for each class of signals."""

FRAMES, SIDE, SQUARE = 8, 20, 5
STEPS = ((0, 1), (0, -1), (1, 0), (-1, 0))
"""Rows and columns that a square moves by from frame to frame, one for each class of clips: right, left, down, up."""

Array = NDArray[Any]


def signals(count: int, seed: int) -> tuple[Array, Array, Array]:
    """Noise with a burst of one of four frequencies, and a louder stretch of noise elsewhere.

    Returns:
        float32 (N, 1, 256), int64 classes (N,), bool (N, 256): where the burst lies.
    """
    rng = np.random.default_rng(seed)
    x = rng.normal(scale=0.25, size=(count, 1, LENGTH)).astype(np.float32)
    classes = rng.integers(0, len(BANDS), count)
    inside = np.zeros((count, LENGTH), bool)
    window = np.hanning(BURST) ** 0.5
    for i, k in enumerate(classes):
        start = int(rng.integers(0, LENGTH - BURST + 1))
        far = [s for s in range(LENGTH - BURST + 1) if abs(s - start) >= BURST]
        other = int(rng.choice(far))
        wave = np.sin(2 * np.pi * BANDS[k] * np.arange(BURST) + rng.uniform(0, 2 * np.pi))
        x[i, 0, start : start + BURST] += (rng.uniform(0.8, 1.2) * window * wave).astype(np.float32)
        x[i, 0, other : other + BURST] += (rng.normal(scale=0.7, size=BURST) * window).astype(np.float32)
        inside[i, start : start + BURST] = True
    return x, classes, inside


def clips(count: int, seed: int) -> tuple[Array, Array, Array]:
    """A square that moves right, left, down or up over noise, and two that stay where they are.

    Returns:
        float32 (N, 1, 8, 20, 20), int64 classes (N,), bool (N, 8, 20, 20): where the moving square lies.
    """
    rng = np.random.default_rng(seed)
    x = rng.normal(scale=0.15, size=(count, 1, FRAMES, SIDE, SIDE)).astype(np.float32)
    classes = rng.integers(0, len(STEPS), count)
    inside = np.zeros((count, FRAMES, SIDE, SIDE), bool)
    for i, k in enumerate(classes):
        step = np.array(STEPS[k])
        way = step * (FRAMES - 1)
        low, high = np.maximum(0, -way), SIDE - SQUARE - np.maximum(0, way)
        start = rng.integers(low, high + 1)
        for t in range(FRAMES):
            top, left = start + t * step
            inside[i, t, top : top + SQUARE, left : left + SQUARE] = True
        swept = inside[i].any(axis=0)
        shown = inside[i].copy()
        for _ in range(2):
            for _ in range(200):  # a place that is free all the time
                top, left = rng.integers(0, SIDE - SQUARE + 1, 2)
                if not swept[max(0, top - 1) : top + SQUARE + 1, max(0, left - 1) : left + SQUARE + 1].any():
                    shown[:, top : top + SQUARE, left : left + SQUARE] = True
                    swept[top : top + SQUARE, left : left + SQUARE] = True
                    break
        x[i, 0] += shown * np.float32(rng.uniform(0.8, 1.2))
    return x, classes, inside
