"""References that owe nothing to pycam, for scores of any kind: gradients by central differences, maps from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

Score = Callable[[np.ndarray], float]


def gradient(score: Score, a: np.ndarray, step: float = 1e-4) -> np.ndarray:
    """`dy/da` by central differences, in double."""
    a = a.astype(np.float64)
    found = np.empty_like(a)
    for at in np.ndindex(a.shape):
        up, down = a.copy(), a.copy()
        up[at] += step
        down[at] -= step
        found[at] = (score(up) - score(down)) / (2 * step)
    return found


def raw_map(method: str, score: Score, a: np.ndarray) -> np.ndarray:
    """The raw map of a layer (C, h, w) whose tail is `score`."""
    if method == "ablationcam":
        y, fill = score(a.astype(np.float64)), 0.0 if a.min() == 0 else a.min() - 1e7
        w = []
        for c in range(len(a)):
            ablated = a.astype(np.float64)
            ablated[c] = fill
            w.append((y - score(ablated)) / y)
        return np.einsum("c,chw->hw", w, a)
    g = gradient(score, a)
    w = {"gradcam": g.mean((1, 2), keepdims=True), "layercam": np.maximum(g, 0), "hirescam": g}[method]
    return (w * a).sum(0)


@pytest.fixture(scope="session")
def reference() -> Callable[[str, Score, np.ndarray], np.ndarray]:
    """See `raw_map`."""
    return raw_map


@pytest.fixture(scope="session")
def close() -> Callable[[Any, np.ndarray, float], None]:
    """Assert that arrays differ by no more than a share of the largest value."""

    def check(actual: Any, wanted: np.ndarray, share: float = 2e-4) -> None:
        assert np.shape(actual) == wanted.shape
        assert np.abs(actual - wanted).max() <= share * np.abs(wanted).max()

    return check


@pytest.fixture(scope="session")
def inside() -> Callable[[np.ndarray, np.ndarray], tuple[bool, float, float]]:
    """(whether the maximum lies in the region, the share of the map's energy in it, the region's share of the area)."""

    def measure(heatmap: np.ndarray, region: np.ndarray) -> tuple[bool, float, float]:
        hit = bool(region.reshape(-1)[heatmap.argmax()])
        return hit, float((heatmap * region).sum() / heatmap.sum()), float(region.mean())

    return measure
