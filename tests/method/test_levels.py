"""Maps that are levels of the score (RISE, Recipro-CAM): their zero means nothing, a heatmap begins at the minimum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pycam

METHODS: dict[str, dict[str, Any]] = {"rise": {"samples": 20, "cells": 3}, "reciprocam": {"layer": "features"}}


def test_a_constant_added_to_the_score_changes_no_heatmap(cnn: Any, draw: Any) -> None:
    """A class far below 0 has the same heatmap as one far above."""
    x, maps = draw(2, 3, 16, 16), []
    for shift in (-100.0, 0.0, 100.0):
        model = cnn("gap", change={"b_fc": np.full(20, shift)})
        result = pycam.Explainer(model, "reciprocam", layer="features")(x, [[3, 7], [0, 12]])
        assert not result.flat.any()
        assert (result.raw.max() < 0) == (shift < 0)
        maps.append(result.heatmaps)
    for found in maps[::2]:
        np.testing.assert_allclose(found, maps[1], rtol=0, atol=2e-3)


def test_a_map_below_zero_is_shown_from_its_minimum(cnn: Any, draw: Any) -> None:
    model = cnn("gap", change={"b_fc": np.full(20, -100.0)})
    result = pycam.Explainer(model, "rise", **METHODS["rise"])(draw(2, 3, 16, 16), [[3, 7], [0, 12]])
    assert result.raw.max() < 0
    lifted = result.raw - result.raw.min(axis=(2, 3), keepdims=True)
    expected = lifted / lifted.max(axis=(2, 3), keepdims=True)
    np.testing.assert_allclose(result.heatmaps, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_all_heads_agree(cnn: Any, draw: Any, tmp_path: Path, method: str) -> None:
    x, model = draw(1, 3, 16, 16), cnn("vgg")
    expected = pycam.Explainer(model, method, head="reference", **METHODS[method])(x, 3)
    for head in ("cpu", "graph"):
        found = pycam.Explainer(model, method, head=head, **METHODS[method])(x, 3)
        np.testing.assert_allclose(found.heatmaps, expected.heatmaps, rtol=0, atol=1e-5)
        np.testing.assert_array_equal(found.flat, expected.flat)
    path = pycam.export(model, tmp_path / "explain", method=method, **METHODS[method])
    np.testing.assert_allclose(pycam.Explainer(path)(x, 3).heatmaps, expected.heatmaps, rtol=0, atol=1e-5)
