"""Methods and model-level gradients against arrays made by pytorch-grad-cam and torch's autograd.

The arrays come from ``tests/reference/make_gradcam.py``. Five small networks, each exported by both torch exporters;
two images, two classes each; a layer in the middle and the last one.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

import pycam

REFERENCE = Path(__file__).parent / "reference"
ARRAYS: dict[str, np.ndarray] = dict(np.load(REFERENCE / "gradcam.npz"))
NETS: dict[str, Any] = json.loads(str(ARRAYS["about"]))["nets"]

EXPORTERS = ("dynamo", "legacy")
LAYERS = ("middle", "last")
METHODS = ("gradcam", "gradcam++", "xgradcam", "layercam", "hirescam", "gradcam_elementwise")

RAW_TOLERANCE = 1e-4  # relative, in the 2-norm
FINAL_TOLERANCE = 1e-3  # absolute, on [0, 1]

CASES = [
    (net, exporter, layer, method) for net in NETS for exporter in EXPORTERS for layer in LAYERS for method in METHODS
]
CASES += [(net, exporter, "last", "cam") for net in NETS if NETS[net]["cam"] for exporter in EXPORTERS]


def model_path(net: str, exporter: str) -> Path:
    return REFERENCE / f"{net}.{exporter}.onnx"


def relative(actual: np.ndarray, expected: np.ndarray) -> float:
    assert actual.shape == expected.shape
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(("net", "exporter", "layer", "method"), CASES)
def test_maps(net: str, exporter: str, layer: str, method: str) -> None:
    explainer = pycam.Explainer(model_path(net, exporter), method=method, layer=NETS[net]["layers"][layer])
    result = explainer(ARRAYS["x"], targets=ARRAYS[f"{net}/targets"])
    raw, final = ARRAYS[f"{net}/{layer}/{method}/raw"], ARRAYS[f"{net}/{layer}/{method}/final"]
    assert relative(result.raw, raw) <= RAW_TOLERANCE
    assert result.heatmaps.shape == final.shape
    np.testing.assert_allclose(result.heatmaps, final, rtol=0, atol=FINAL_TOLERANCE)
    np.testing.assert_array_equal(result.targets, ARRAYS[f"{net}/targets"])
    np.testing.assert_array_equal(result.flat, (raw <= 0).all((2, 3)))
    assert relative(np.asarray(result.scores), ARRAYS[f"{net}/logits"]) <= RAW_TOLERANCE


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("net", NETS)
def test_two_layers_are_averaged(net: str, exporter: str) -> None:
    explainer = pycam.Explainer(model_path(net, exporter), method="gradcam", layer=list(NETS[net]["layers"].values()))
    result = explainer(ARRAYS["x"], targets=ARRAYS[f"{net}/targets"])
    np.testing.assert_allclose(result.heatmaps, ARRAYS[f"{net}/both/gradcam/final"], rtol=0, atol=FINAL_TOLERANCE)


@functools.cache
def gradient_session(net: str, exporter: str, tensor: str) -> ort.InferenceSession:
    model = pycam.vjp(model_path(net, exporter), wrt=[tensor], output="logits")
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def class_gradients(net: str, exporter: str, tensor: str) -> np.ndarray:
    """The gradient (N,K,...) of each target class with respect to `tensor`: one run per class, with a one-hot
    cotangent."""
    session, targets, logits = (
        gradient_session(net, exporter, tensor),
        ARRAYS[f"{net}/targets"],
        ARRAYS[f"{net}/logits"],
    )
    one_hot = np.eye(logits.shape[1], dtype=np.float32)
    feeds = [{"input": ARRAYS["x"], "logits.cotangent": one_hot[targets[:, k]]} for k in range(targets.shape[1])]
    return np.stack([session.run([f"{tensor}.gradient"], feed)[0] for feed in feeds], axis=1)


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("net", NETS)
def test_gradient_at_layer(net: str, layer: str, exporter: str) -> None:
    tensor = NETS[net]["tensors"][exporter][layer]
    assert relative(class_gradients(net, exporter, tensor), ARRAYS[f"{net}/{layer}/g"]) <= RAW_TOLERANCE


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("net", NETS)
def test_gradient_at_input(net: str, exporter: str) -> None:
    assert relative(class_gradients(net, exporter, "input"), ARRAYS[f"{net}/dx"]) <= RAW_TOLERANCE
