"""EfficientNet-Lite0 in int8, on photos: explained as the float model is, while the forward pass stays quantised."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import pycam
from pycam.api import feed
from pycam.image import crop, read

PHOTOS = ("coffee", "camera", "chelsea", "rocket")
FORMS = ("lite0_int8_qdq", "lite0_int8_qop")


@pytest.fixture(scope="module")
def models(shared: Path) -> Path:
    return shared / "models"


@pytest.fixture(scope="module")
def batch(shared: Path, shipped: Path) -> np.ndarray:
    """The photos, prepared as the shipped model says: it is the same network."""
    explainer = pycam.Explainer(shipped)
    pre = explainer.preprocess
    assert pre is not None
    files = [next((shared / "images").glob(f"{name}.*")) for name in PHOTOS]
    return np.concatenate([feed(explainer, crop(read(file), pre), pre) for file in files])


def similarity(a: Any, b: Any) -> list[float]:
    """Pearson's correlation, per image."""
    return [float(np.corrcoef(x.ravel(), y.ravel())[0, 1]) for x, y in zip(a, b, strict=True)]


@pytest.mark.parametrize("name", FORMS)
def test_heatmaps_are_those_of_the_float_model(
    models: Path, batch: np.ndarray, forward: Any, tmp_path: Path, name: str
) -> None:
    plain = pycam.Explainer(models / "lite0.onnx", threads=1)
    want = plain(batch)
    explainer = pycam.Explainer(models / f"{name}.onnx", threads=1)
    got = explainer(batch, want.targets)
    assert plain.spec.layer.startswith("head")
    assert explainer.spec.layer in ("head.relu6_DequantizeLinear_Output", "head")
    assert got.raw.shape == want.raw.shape
    assert min(similarity(got.heatmaps, want.heatmaps)) > 0.99  # measured: 0.995 … 0.999
    assert min(similarity(got.raw, want.raw)) > 0.99
    np.testing.assert_array_equal(got.scores, forward(models / f"{name}.onnx", {"input": batch})["logits"])
    assert explainer(batch).targets.tolist() == want.targets.tolist()


@pytest.mark.parametrize("name", FORMS)
def test_a_layer_within_is_found_by_its_name_in_the_float_model(models: Path, batch: np.ndarray, name: str) -> None:
    """Rounding changes the gradient itself there: 4 blocks down a little, 13 blocks down more."""
    for layer, least in (("blocks.14.add", 0.95), ("blocks.9.add", 0.9)):  # measured: 0.966 … 0.991, 0.906 … 0.930
        want = pycam.Explainer(models / "lite0.onnx", threads=1, layer=layer)(batch)
        got = pycam.Explainer(models / f"{name}.onnx", threads=1, layer=layer)(batch, want.targets)
        assert min(similarity(got.raw, want.raw)) > least


def test_the_unrounded_value_stands_for_the_rounded_one(models: Path) -> None:
    """`head.relu6` in the QDQ model is what goes into the quantiser, before the clipping that this does."""
    by_name = pycam.Explainer(models / "lite0_int8_qdq.onnx", layer="head.relu6")
    assert by_name.spec.layer == "head.relu6_DequantizeLinear_Output"


@pytest.mark.parametrize("name", FORMS)
def test_the_gradient_of_the_input(models: Path, batch: np.ndarray, forward: Any, tmp_path: Path, name: str) -> None:
    """Every op of the forward pass stays an integer kernel; the gradient has what rounding leaves of the float one."""
    seeds = np.eye(1000, dtype=np.float32)[pycam.Explainer(models / "lite0.onnx", threads=1)(batch).targets[:, 0]]
    feeds = {"input": batch, "logits.cotangent": seeds}
    want = forward(pycam.vjp(models / "lite0.onnx", ["input"]), feeds)["input.gradient"]
    differentiated = pycam.vjp(models / f"{name}.onnx", ["input"])
    got = forward(differentiated, feeds)
    assert min(similarity(got["input.gradient"], want)) > 0.5  # measured: 0.551 … 0.741; 0.00 without the ReLU6 masks
    np.testing.assert_array_equal(got["logits"], forward(models / f"{name}.onnx", {"input": batch})["logits"])
    assert kernels(differentiated, tmp_path) == {"QLinearConv": 49, "QLinearAdd": 9, "QGemm": 1}


def kernels(model: onnx.ModelProto, tmp_path: Path) -> Counter[str]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
    return Counter(kind for kind in kinds if kind in ("QLinearConv", "QLinearAdd", "QGemm"))


def test_weights_of_eight_bits_alone_cost_nothing(models: Path, batch: np.ndarray) -> None:
    """They are dequantised when the model is compiled."""
    explainer = pycam.Explainer(models / "lite0_w8.onnx", threads=1)
    assert explainer.spec.layer == "head.relu6"
    want = pycam.Explainer(models / "lite0.onnx", threads=1)(batch)
    assert min(similarity(explainer(batch, want.targets).raw, want.raw)) > 0.98
