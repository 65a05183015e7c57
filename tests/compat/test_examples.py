"""pytorch-grad-cam's README examples on pycam.compat give pytorch-grad-cam's numbers, which are stored."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest


def labels_of(model: str, x: np.ndarray, boxes: np.ndarray) -> list[int]:
    """As in `make_compat.py`, by onnxruntime and numpy."""
    found, labels, _ = ort.InferenceSession(model).run(None, {"x": x})
    low, high = np.maximum(boxes[:, None, :2], found[None, :, :2]), np.minimum(boxes[:, None, 2:], found[None, :, 2:])
    shared = np.maximum(high - low, 0).prod(-1)
    areas = [(b[:, 2:] - b[:, :2]).prod(-1) for b in (boxes, found)]
    best = (shared / (areas[0][:, None] + areas[1][None] - shared)).argmax(1)
    chosen = labels[best].tolist()
    return [*chosen[:-1], chosen[-1] % 4 + 1]


def test_example(
    example: str, scripts: ModuleType, lib: SimpleNamespace, stored: dict[str, np.ndarray], onnx_model: Any
) -> None:
    script = scripts.EXAMPLES[example]
    lib.labels_of = labels_of
    found = script.run(lib, onnx_model(script.net), str, scripts.images(script.net, script.images))
    wanted = {key.partition("/")[2]: array for key, array in stored.items() if key.startswith(f"{example}/")}
    assert found.keys() == wanted.keys()
    worst = {key: error_of(np.asarray(found[key]), wanted[key], scripts.STEP) for key in wanted}
    assert max(worst.values()) <= 1e-3, worst


def error_of(found: np.ndarray, wanted: np.ndarray, step: int) -> float:
    """Maps in the stored steps; pictures within one level count nothing; other arrays relative to their maximum."""
    if wanted.dtype == np.uint16:
        assert found.dtype == np.float32
        return float(np.abs(found[..., ::step, ::step] - wanted / 65535.0).max())
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    distance = np.abs(found.astype(np.float64) - wanted)
    if wanted.dtype == np.uint8:
        return 0.0 if distance.max() <= 1 else float(distance.max())
    return float(distance.max() / np.abs(wanted).max())


def test_stored_arrays_are_not_trivial(stored: dict[str, np.ndarray]) -> None:
    flat = [
        key
        for key, array in stored.items()
        if array.dtype == np.uint16 and any(one.std() < 1000 for one in array.reshape(-1, *array.shape[-2:]))
    ]
    assert not flat
    assert len(stored) > 80


@pytest.mark.parametrize("name", ["GradCAM", "ScoreCAM"])
def test_numbers_hang_on_the_target(name: str, lib: SimpleNamespace, scripts: ModuleType, onnx_model: Any) -> None:
    """So that agreement above means something."""
    cam = getattr(lib, name)(onnx_model("cnn_mlp"), ["features.8"])
    x = scripts.images("cnn_mlp", 1)
    maps = [cam(x, [lib.ClassifierOutputTarget(c)]) for c in (0, 4)]
    assert np.abs(maps[0] - maps[1]).max() > 0.05
