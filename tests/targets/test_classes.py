"""Scores of classes: the logit, its probability, its odds, its lead over the others; and a single logit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import pycam
from pycam import targets
from pycam.errors import TargetError

TEXT = """(float[N, 3, 8, 12] x) => (float[N, CLASSES] y) {
    stem = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]>(x, w_stem)
    features = Relu(stem)
    hidden = Conv<kernel_shape = [1, 1]>(features, w_hidden)
    active = Sigmoid(hidden)
    pooled = GlobalAveragePool(active)
    flat = Flatten(pooled)
    logits = MatMul(flat, w_last)
    y = END(logits)
}"""
Value = Callable[[np.ndarray, int], float]


def sigmoid(z: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-z)))


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max())
    return np.asarray(e / e.sum())


def odds(p: np.ndarray) -> np.ndarray:
    return np.asarray(np.log(p / (1 - p)))


# kind, final op → the score of class t, of the logits
VALUES: dict[tuple[str, str], Value] = {
    ("class", "Identity"): lambda z, t: z[t],
    ("class", "Softmax"): lambda z, t: z[t],
    ("class", "Sigmoid"): lambda z, t: z[t],
    ("probability", "Identity"): lambda z, t: softmax(z)[t],
    ("probability", "Softmax"): lambda z, t: softmax(z)[t],
    ("probability", "Sigmoid"): lambda z, t: sigmoid(z)[t],
    ("log_odds", "Identity"): lambda z, t: odds(softmax(z))[t],
    ("log_odds", "LogSoftmax"): lambda z, t: odds(softmax(z))[t],
    ("log_odds", "Sigmoid"): lambda z, t: odds(sigmoid(z))[t],
    ("one_vs_rest", "Identity"): lambda z, t: z[t] - np.delete(z, t).mean(),
    ("one_vs_rest", "Softmax"): lambda z, t: z[t] - np.delete(z, t).mean(),
}


def drawn(classes: int = 5) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    shapes = {"w_stem": (5, 3, 3, 3), "w_hidden": (6, 5, 1, 1), "w_last": (6, classes)}
    return {name: 2 * rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def build(text_model: Any, end: str, classes: int = 5) -> onnx.ModelProto:
    return text_model(TEXT.replace("END", end).replace("CLASSES", str(classes)), **drawn(classes))


def logits(a: np.ndarray, classes: int = 5) -> np.ndarray:
    """Features (5, h, w) → logits."""
    w = {name: array.astype(np.float64) for name, array in drawn(classes).items()}
    active = sigmoid(np.einsum("oc,chw->ohw", w["w_hidden"][:, :, 0, 0], a))
    return np.asarray(active.mean((1, 2)) @ w["w_last"])


@pytest.fixture(scope="module")
def x(draw: Any) -> np.ndarray:
    return draw(2, 3, 8, 12, seed=3)


@pytest.fixture(scope="module")
def features(x: np.ndarray, text_model: Any, forward: Any) -> np.ndarray:
    model = build(text_model, "Identity")
    model.graph.output.append(onnx.ValueInfoProto(name="features"))
    return forward(model, {"x": x})["features"]


ROWS = [[0, 3, 1], [4, 2, 0]]


@pytest.mark.parametrize(("objective", "sign"), [("class", 1), ("counterfactual", -1)])
@pytest.mark.parametrize("method", ["gradcam", "hirescam", "ablationcam"])
@pytest.mark.parametrize(("kind", "end"), VALUES, ids="-".join)
def test_scores_of_classes(
    text_model: Any,
    reference: Any,
    close: Any,
    x: np.ndarray,
    features: np.ndarray,
    kind: str,
    end: str,
    method: str,
    objective: str,
    sign: int,
) -> None:
    target = targets.get(kind)()
    explainer = pycam.Explainer(
        build(text_model, end), method, "features", target=target, objective=objective, threads=1
    )
    assert (explainer.spec.target, explainer.spec.classes) == (kind, 5)
    result = explainer(x, ROWS)
    value = VALUES[kind, end]
    for n, k in np.ndindex(2, 3):
        wanted = reference(method, lambda a, t=ROWS[n][k]: sign * value(logits(a), t), features[n])
        close(result.raw[n, k], wanted, 1e-3)
        if kind != "class":
            assert result.extras["score"][n, k] == pytest.approx(value(logits(features[n]), ROWS[n][k]), rel=1e-3)
    best = [max(range(5), key=lambda t, a=a: value(logits(a), t)) for a in features]
    assert explainer(x).targets[:, 0].tolist() == best
    with pytest.raises(TargetError, match="class 5 is out of range: this model's classes are 0 to 4"):
        explainer(x, 5)


@pytest.mark.parametrize("kind", ["probability", "log_odds", "one_vs_rest"])
def test_a_contrast(
    text_model: Any, reference: Any, close: Any, x: np.ndarray, features: np.ndarray, kind: str
) -> None:
    made = build(text_model, "Identity")
    explainer = pycam.Explainer(made, "hirescam", "features", target=targets.get(kind)(), objective="contrastive")
    result = explainer(x, 1, against=4)
    value = VALUES[kind, "Identity"]
    for n in range(2):
        wanted = reference("hirescam", lambda a: value(logits(a), 1) - value(logits(a), 4), features[n])
        close(result.raw[n, 0], wanted, 1e-3)


@pytest.mark.parametrize("end", ["Identity", "Sigmoid"])
def test_a_single_logit(
    text_model: Any, reference: Any, close: Any, x: np.ndarray, features: np.ndarray, end: str
) -> None:
    explainer = pycam.Explainer(build(text_model, end, 1), "gradcam", "features", target=targets.Binary())
    result = explainer(x, [[0, 1]] * 2)
    for n in range(2):
        wanted = reference("gradcam", lambda a: logits(a, 1)[0], features[n])
        close(result.raw[n, 1], wanted, 1e-3)
        close(result.raw[n, 0], -wanted, 1e-3)
    assert explainer(x).targets[:, 0].tolist() == [int(logits(a, 1)[0] > 0) for a in features]
    with pytest.raises(TargetError, match="has 5 columns; the target 'binary' is for a single logit"):
        pycam.Explainer(build(text_model, end), layer="features", target=targets.Binary())
    with pytest.raises(TargetError, match="the output has one: use the target 'binary'"):
        pycam.Explainer(build(text_model, "Identity", 1), layer="features", target=targets.LogOdds())


def test_log_odds_of_a_sure_class(text_model: Any) -> None:
    """Where the probability is 1 in float32, its log-odds are finite still."""
    model = text_model(
        """(float[N, 2, 2, 2] x) => (float[N, 3] y) {
            f = Flatten(x)
            y = MatMul(f, w)
        }""",
        w=np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32) * 30,
    )
    x = np.random.default_rng(1).normal(size=(4, 2, 2, 2)).astype(np.float32)
    result = pycam.Explainer(model, "input_x_gradient", target=targets.LogOdds())(x, [[0, 1, 2]] * 4)
    z = x.reshape(4, -1).astype(np.float64) @ onnx.numpy_helper.to_array(model.graph.initializer[0]).astype(np.float64)
    want = np.stack([z[:, t] - np.logaddexp.reduce(np.delete(z, t, 1), axis=1) for t in range(3)], axis=1)
    np.testing.assert_allclose(result.extras["score"], want, rtol=1e-4)
    assert np.isfinite(result.raw).all()


def test_an_exported_graph_runs_by_itself(text_model: Any, x: np.ndarray, tmp_path: Path) -> None:
    model = build(text_model, "Softmax")
    path = pycam.export(model, tmp_path / "m.onnx", layer="features", target=targets.LogOdds())
    names = ["heatmaps", "score"]
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    maps, score = session.run(names, {"x": x, "targets": np.full((2, 1), -1)})
    want = pycam.Explainer(model, layer="features", target=targets.LogOdds())(x)
    np.testing.assert_allclose(maps, want.heatmaps, atol=1e-4)
    np.testing.assert_allclose(score, want.extras["score"], rtol=1e-4)


@pytest.mark.parametrize(
    ("target", "message"),
    [(targets.Segmentation, r"write pycam.targets.Segmentation\(\)"), ("detection", r"pycam.targets.Detection\(\)")],
)
def test_what_is_no_target(text_model: Any, target: Any, message: str, tmp_path: Path) -> None:
    model = build(text_model, "Identity")
    with pytest.raises(TargetError, match=message):
        pycam.Explainer(model, target=target)
    with pytest.raises(TargetError, match=message):
        pycam.export(model, tmp_path / "m.onnx", target=target)
