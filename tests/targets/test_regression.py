"""Regression: an output less a reference, and the expectation of a distribution over bins."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from PIL import Image

import pycam
from pycam.errors import ModelError, TargetError
from pycam.targets import Expectation, Regression

BINS = (1.5, -2.0, 4.0, 0.5, 3.0)

TEXT = """(float[N, 3, 8, 12] x) => (float[N, 5] y) {
    stem = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]>(x, w_stem)
    features = Relu(stem)
    hidden = Conv<kernel_shape = [1, 1]>(features, w_hidden)
    active = Sigmoid(hidden)
    pooled = GlobalAveragePool(active)
    flat = Flatten(pooled)
    logits = MatMul(flat, w_last)
    y = END(logits)
}"""


def build(text_model: Any, end: str = "Identity") -> onnx.ModelProto:
    return text_model(TEXT.replace("END", end), **drawn())


def drawn() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    shapes = {"w_stem": (5, 3, 3, 3), "w_hidden": (6, 5, 1, 1), "w_last": (6, 5)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def tail(a: np.ndarray) -> np.ndarray:
    """Features (5, h, w) → logits (5,)."""
    w = {name: array.astype(np.float64) for name, array in drawn().items()}
    active = 1 / (1 + np.exp(-np.einsum("oc,chw->ohw", w["w_hidden"][:, :, 0, 0], a)))
    return active.mean((1, 2)) @ w["w_last"]


def expectation(a: np.ndarray, bins: Any = BINS) -> float:
    p = np.exp(tail(a) - tail(a).max())
    return float(p @ np.asarray(bins, float) / p.sum())


@pytest.fixture(scope="module")
def x(draw: Any) -> np.ndarray:
    return draw(2, 3, 8, 12, seed=3)


@pytest.fixture(scope="module")
def features(x: np.ndarray, text_model: Any, forward: Any) -> np.ndarray:
    model = build(text_model)
    model.graph.output.append(onnx.ValueInfoProto(name="features"))
    return forward(model, {"x": x})["features"]


@pytest.mark.parametrize("objective", ["class", "counterfactual"])
@pytest.mark.parametrize("method", ["gradcam", "layercam", "ablationcam"])
@pytest.mark.parametrize("reference_value", [0.0, 0.25, (0.5, -1.0, 2.0, 0.25, -0.5)])
def test_regression(
    text_model: Any,
    reference: Any,
    close: Any,
    x: np.ndarray,
    features: np.ndarray,
    method: str,
    objective: str,
    reference_value: Any,
) -> None:
    """A softmax is not stepped behind: the output is what it is."""
    target = Regression(reference=reference_value)
    explainer = pycam.Explainer(build(text_model), method, "features", target=target, objective=objective)
    less, sign = np.broadcast_to(reference_value, 5), -1 if objective == "counterfactual" else 1
    targets = np.array([[0, 4], [-1, 2]])
    result = explainer(x, targets)
    best = (tail(features[1]) - less).argmax()
    np.testing.assert_array_equal(result.targets, [[0, 4], [best, 2]])
    maps = [
        [reference(method, lambda a, t=t: sign * (tail(a) - less)[t], features[n]) for t in result.targets[n]]
        for n in range(2)
    ]
    close(result.raw, np.array(maps))
    assert (explainer.spec.target, explainer.spec.noun) == ("regression", "output")


@pytest.mark.parametrize("end", ["Identity", "Softmax", "LogSoftmax"])
@pytest.mark.parametrize("bins", [None, BINS])
@pytest.mark.parametrize("method", ["gradcam", "ablationcam"])
def test_expectation(
    text_model: Any, reference: Any, close: Any, x: np.ndarray, features: np.ndarray, method: str, bins: Any, end: str
) -> None:
    explainer = pycam.Explainer(build(text_model, end), method, "features", target=Expectation(bins=bins))
    result = explainer(x)
    values = range(5) if bins is None else bins
    close(result.raw[:, 0], np.stack([reference(method, lambda a: expectation(a, values), a) for a in features]))
    np.testing.assert_allclose(result.extras["score"][:, 0], [expectation(a, values) for a in features], 1e-5)
    assert any("a softmax is put behind" in note for note in explainer.spec.notes) == (end == "Identity")
    twice = explainer(x, [[0, -1]] * 2)
    np.testing.assert_allclose(twice.raw, result.raw.repeat(2, 1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(twice.extras["score"], result.extras["score"].repeat(2, 1), rtol=1e-6)


def test_any_number_of_bins(text_model: Any, x: np.ndarray) -> None:
    """Where the model does not say how many there are."""
    text = TEXT.replace("END", "Softmax").replace("w_last)", "chosen)").replace("[N, 5] y", "[N, B] y")
    text = text.replace("float[N, 3, 8, 12] x", "float[N, 3, 8, 12] x, float[B] one")
    cut = "count = Shape(one)\n    chosen = Slice(w_last, zero, count, along)\n    logits ="
    model = text_model(text.replace("logits =", cut), zero=np.array([0]), along=np.array([1]), **drawn())
    known = pycam.Explainer(build(text_model, "Softmax"), "gradcam", "features", target=Expectation())(x)
    free = pycam.Explainer(model, "gradcam", "features", target=Expectation())({"x": x, "one": np.ones(5, np.float32)})
    np.testing.assert_allclose(free.raw, known.raw, rtol=1e-4, atol=1e-6)


def test_one_number(cnn: Any, text_model: Any, x: np.ndarray) -> None:
    """(N,) and sixteen bits."""
    text = TEXT.replace("END(logits)", "ReduceSum<keepdims = 0>(logits, axis)").replace("[N, 5] y", "[N] y")
    model = text_model(text, axis=np.array([1]), **drawn())
    full = pycam.Explainer(model, "gradcam", "features", target=Regression())(x)
    assert full.raw.shape == (2, 1, 4, 6)
    np.testing.assert_array_equal(full.targets, 0)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    half = pycam.Explainer(model, "gradcam", "features", target=Regression(reference=3.0))(x.astype(np.float16))
    np.testing.assert_allclose(half.raw, full.raw, atol=0.02 * np.abs(full.raw).max())


@pytest.mark.parametrize("target", [Regression(reference=(1, 2, 3, 4, 5)), Expectation(bins=BINS)])
def test_exported(text_model: Any, forward: Any, tmp_path: Path, x: np.ndarray, target: Any) -> None:
    pycam.export(build(text_model), tmp_path / "explain.onnx", layer="features", target=target)
    wanted = pycam.Explainer(build(text_model), "gradcam", "features", target=target, head="graph")(x, 0)
    alone = forward(tmp_path / "explain.onnx", {"x": x, "targets": np.zeros((2, 1), np.int64)})
    np.testing.assert_allclose(alone["heatmaps"], wanted.heatmaps, atol=1e-6)
    assert json.loads(json.dumps(target.options())) == target.options()
    pycam.Explainer(tmp_path / "explain.onnx", target=target)


def test_bad_input(text_model: Any, cnn: Any, x: np.ndarray) -> None:
    for wrong in ("three", (), (1, float("nan")), float("inf"), ("a",)):
        with pytest.raises(TargetError, match="reference="):
            Regression(reference=wrong)  # type: ignore[arg-type]  # that is the test
    with pytest.raises(TargetError, match="bins="):
        Expectation(bins=())
    model = build(text_model)
    with pytest.raises(TargetError, match="reference= holds 2 numbers, and the output 'y' has 5 columns"):
        pycam.Explainer(model, layer="features", target=Regression(reference=(1, 2)))
    with pytest.raises(TargetError, match="bins= holds 3 numbers, and the output 'y' has 5 columns"):
        pycam.Explainer(model, layer="features", target=Expectation(bins=(1, 2, 3)))
    with pytest.raises(ModelError, match="no output 'age'"):
        pycam.Explainer(model, layer="features", target=Expectation("age"))
    maps = cnn("gap", extra_output="features")
    for target in (Regression("features"), Expectation("features")):
        with pytest.raises(TargetError, match="the output 'features' has shape"):
            pycam.Explainer(maps, layer="late", target=target)
    with pytest.raises(TargetError, match="output 5 is out of range"):
        pycam.Explainer(model, layer="features", target=Regression())(x, 5)


def test_age(shared: Path, inside: Callable[..., Any]) -> None:
    """The age of a face is read from the face."""
    with Image.open(shared / "images" / "astronaut.png") as image:
        face = image.convert("RGB").crop((150, 20, 300, 190)).resize((224, 224))
    x = np.asarray(face, np.float32)[None]
    explainer = pycam.Explainer(shared / "models" / "human_faceres.onnx", target=Expectation("age_pred/Softmax:0"))
    result = explainer(x)
    assert 20 < result.extras["score"][0, 0] < 45  # she was 42, and looks younger
    region = np.zeros((224, 224))
    region[45:200, 40:175] = 1
    hit, energy, share = inside(result.heatmaps[0, 0], region)
    assert hit
    assert energy > share + 0.1
