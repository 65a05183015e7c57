"""What the tests of the exports share: an example, and the comparison with a framework's own gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import pycam

TOLERANCE = 1e-3


def stretched(a: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Bilinear with half-pixel centres, then to [0, 1]."""
    for axis, length in enumerate(size):
        at = np.clip((np.arange(length) + 0.5) * a.shape[axis] / length - 0.5, 0, a.shape[axis] - 1)
        low = np.floor(at).astype(int)
        high, part = np.minimum(low + 1, a.shape[axis] - 1), at - low
        part = part.reshape([-1 if i == axis else 1 for i in range(2)])
        a = np.take(a, low, axis) * (1 - part) + np.take(a, high, axis) * part
    span = a.max() - a.min()
    return (a - a.min()) / (span if span > 0 else 1)  # a map without a positive part is all zeros


@pytest.fixture
def images() -> Callable[..., np.ndarray]:
    """So many of a shape, the same every time."""

    def draw(count: int, shape: Sequence[int] = (3, 24, 24)) -> np.ndarray:
        return np.random.default_rng(3).normal(size=(count, *shape)).astype(np.float32)

    return draw


@pytest.fixture
def shapes() -> Callable[[Any], dict[str, list[int | str]]]:
    """Name → shape, of inputs or outputs."""

    def of(values: Any) -> dict[str, list[int | str]]:
        return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}

    return of


@pytest.fixture
def assert_map() -> Callable[..., None]:
    """Raw map and heatmap of Grad-CAM at `layer` are those of the activations and gradients (N, C, h, w)."""

    def check(model: Any, layer: str, x: np.ndarray, a: np.ndarray, g: np.ndarray, targets: np.ndarray) -> None:
        result = pycam.Explainer(model, layer=layer, threads=1, head="reference")(x, targets=targets)
        want = np.einsum("nc,nchw->nhw", g.mean((2, 3)), a)
        assert np.abs(result.raw[:, 0] - want).max() <= TOLERANCE * np.abs(want).max()
        for heatmap, one in zip(result.heatmaps[:, 0], np.maximum(want, 0), strict=True):
            assert np.abs(heatmap - stretched(one, result.heatmaps.shape[2:])).max() <= TOLERANCE

    return check
