"""Several layers: the mean, the maximum or the product of their heatmaps, and each layer's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pycam
from pycam.errors import InputError, MethodError

LAYERS = ["a1", "a2"]


@pytest.fixture(scope="module")
def model(text_model: Any) -> Any:
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.normal(size=(4, 3, 3, 3)).astype(np.float32),
        "w2": rng.normal(size=(6, 4, 3, 3)).astype(np.float32),
        "w3": rng.normal(size=(6, 5)).astype(np.float32),
    }
    return text_model(
        """(float[N, 3, 16, 16] x) => (float[N, 5] y) {
            c1 = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, w1)
            a1 = Relu(c1)
            c2 = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(a1, w2)
            a2 = Relu(c2)
            p = GlobalAveragePool(a2)
            f = Flatten(p)
            y = MatMul(f, w3)
        }""",
        **weights,
    )


X = np.random.default_rng(1).normal(size=(2, 3, 16, 16)).astype(np.float32)


def _unit(maps: np.ndarray) -> np.ndarray:
    low = maps - maps.min(axis=(2, 3), keepdims=True)
    return low / (low.max(axis=(2, 3), keepdims=True) + 1e-7)


@pytest.mark.parametrize("head", ["cpu", "graph", "reference"])
@pytest.mark.parametrize(
    ("combine", "of"), [("mean", np.mean), ("max", np.max), ("product", np.prod)], ids=["mean", "max", "product"]
)
def test_what_is_made_of_several_layers(model: Any, head: str, combine: Any, of: Any) -> None:
    each = [pycam.Explainer(model, layer=layer, head=head)(X, [[0, 3], [1, 2]]) for layer in LAYERS]
    result = pycam.Explainer(model, layer=LAYERS, combine=combine, head=head)(X, [[0, 3], [1, 2]])
    if combine == "mean":  # whose layers are not stretched once more before
        assert result.heatmaps.min() == 0
        assert result.heatmaps.max() == pytest.approx(1, abs=1e-5)
    else:
        np.testing.assert_allclose(result.heatmaps, _unit(of([one.heatmaps for one in each], axis=0)), atol=1e-5)
    assert (result.flat == np.logical_and(*(one.flat for one in each))).all()
    for own, one in zip(result.per_layer(), each, strict=True):
        np.testing.assert_allclose(own, one.heatmaps, atol=1e-5)


def test_all_layers(model: Any) -> None:
    result = pycam.Explainer(model, layer="all")(X)
    names = [layer.name for layer in pycam.layers(model)]
    assert names == ["c1", "a1", "c2", "a2"]
    assert result.layer == ", ".join(names)
    assert len(result.per_layer()) == 4
    want = pycam.Explainer(model, layer=names)(X)
    np.testing.assert_array_equal(result.heatmaps, want.heatmaps)


def test_a_way_that_there_is_not(model: Any) -> None:
    with pytest.raises(InputError, match="combine='median': choose one of mean, max, product"):
        pycam.Explainer(model, layer=LAYERS, combine="median")  # type: ignore[arg-type]


def test_an_export_has_it_built_in(model: Any, tmp_path: Path) -> None:
    path = pycam.export(model, tmp_path / "explain.onnx", layer=LAYERS, combine="max")
    want = pycam.Explainer(model, layer=LAYERS, combine="max")(X)
    np.testing.assert_allclose(pycam.Explainer(path)(X).heatmaps, want.heatmaps, atol=1e-5)
    with pytest.raises(MethodError, match="has its combine built in"):
        pycam.Explainer(path, combine="product")
