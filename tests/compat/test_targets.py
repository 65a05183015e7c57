"""Targets: what they compute on an output, kinds of them in one batch, and what does not fit (that the graph computes
the same is in `test_examples.py`)."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import pycam
from pycam.errors import TargetError


@pytest.fixture(scope="module")
def x(scripts: ModuleType) -> np.ndarray:
    return scripts.images("cnn_mlp", 2)


@pytest.fixture(scope="module")
def cam(lib: SimpleNamespace, onnx_model: Any) -> Any:
    return lib.GradCAM(model=onnx_model("cnn_mlp"), target_layers=["features.8"])


@pytest.mark.parametrize(
    ("make", "formula"),
    [
        (lambda lib: lib.ClassifierOutputTarget(3), lambda y, p: y[3]),
        (lambda lib: lib.ClassifierOutputTarget(np.int64(-1)), lambda y, p: y[-1]),
        (lambda lib: lib.ClassifierOutputSoftmaxTarget(2), lambda y, p: p[2]),
        (lambda lib: lib.ClassifierOutputReST(2), lambda y, p: y[2] + np.log(p[2])),
        (lambda lib: lib.BinaryClassifierOutputTarget(0), lambda y, p: -y),
        (lambda lib: lib.BinaryClassifierOutputTarget(1), lambda y, p: y),
        (lambda lib: lib.RawScoresOutputTarget(), lambda y, p: y),
        (lambda lib: lib.SoftmaxOutputTarget(), lambda y, p: p),
        (
            lambda lib: lib.FinerWeightedTarget(1, [0, 4], 0.5),
            lambda y, p: sum(p[i] * (y[1] - 0.5 * y[i]) for i in (0, 4)) / (p[0] + p[4] + 1e-9),
        ),
    ],
)
def test_called_on_an_output(lib: SimpleNamespace, make: Any, formula: Any) -> None:
    y = np.random.default_rng(0).normal(size=6)
    p = np.exp(y) / np.exp(y).sum()
    np.testing.assert_allclose(make(lib)(y), formula(y, p), rtol=1e-10)
    rows = make(lib)(np.stack([y, 2 * y]))
    np.testing.assert_allclose(rows[0], formula(y, p), rtol=1e-10)


def test_maps_and_boxes_called(lib: SimpleNamespace) -> None:
    y, mask = np.arange(24.0).reshape(2, 3, 4), np.eye(3, 4)
    assert lib.SemanticSegmentationTarget(1, mask)(y) == y[1, 0, 0] + y[1, 1, 1] + y[1, 2, 2]
    found = {
        "boxes": np.float32([[0, 0, 4, 4], [2, 2, 6, 6]]),
        "labels": np.array([1, 2]),
        "scores": np.float32([0.9, 0.8]),
    }
    target = lib.FasterRCNNBoxScoreTarget([1, 2, 1], np.float32([[0, 0, 4, 2], [2, 2, 6, 6], [2, 2, 6, 6]]), 0.4)
    np.testing.assert_allclose(target(found), [0.5 + 0.9 + 1 + 0.8], rtol=1e-6)  # the last box has another label
    empty = {"boxes": np.zeros((0, 4)), "labels": np.zeros(0, int), "scores": np.zeros(0)}
    assert target(empty) == 0


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda lib: [lib.ClassifierOutputTarget(1)], r"1 target\(s\) for 2"),
        (lambda lib: [lib.ClassifierOutputTarget(1)] * 3, r"3 target\(s\) for 2"),
        (lambda lib: lib.ClassifierOutputTarget(1), "list"),
        (lambda lib: 5, "list"),
        (lambda lib: [1, 2], r"ClassifierOutputTarget\(1\)"),
        (lambda lib: ["cat", "dog"], "no target"),
        (lambda lib: [lambda y: y.sum()] * 2, r"<lambda>.*Weighted"),
        (lambda lib: [lib.ClassifierOutputTarget(10)] * 2, "out of range"),
        (lambda lib: [lib.ClassifierOutputTarget(-11)] * 2, "out of range"),
        (lambda lib: [lib.ClassifierOutputTarget(1.5)] * 2, "integer"),
        (lambda lib: [lib.RawScoresOutputTarget()] * 2, "10 columns"),
        (lambda lib: [lib.BinaryClassifierOutputTarget(1)] * 2, "10 columns"),
        (lambda lib: [lib.SoftmaxOutputTarget()] * 2, "SoftmaxTarget"),
        (lambda lib: [lib.SemanticSegmentationTarget(1, np.ones((4, 4)))] * 2, "SemanticSegmentationTarget"),
        (lambda lib: [lib.FinerWeightedTarget(1, [], 1.0)] * 2, "comparison"),
        (lambda lib: [lib.FasterRCNNBoxScoreTarget([1], np.ones((2, 4)))] * 2, "B labels"),
        (lambda lib: [lib.FasterRCNNBoxScoreTarget([1], np.ones((1, 4)))] * 2, "boxes"),
    ],
)
def test_refused(cam: Any, lib: SimpleNamespace, x: np.ndarray, make: Any, match: str) -> None:
    with pytest.raises(TargetError, match=match):
        cam(input_tensor=x, targets=make(lib))


def test_bad_mask(lib: SimpleNamespace) -> None:
    for mask in (np.ones(4), np.array([["a"]])):
        with pytest.raises(TargetError, match="mask"):
            lib.SemanticSegmentationTarget(1, mask)


def test_class_target_on_maps(lib: SimpleNamespace, onnx_model: Any, scripts: ModuleType) -> None:
    with pytest.raises(TargetError, match="SemanticSegmentationTarget"):
        lib.GradCAM(onnx_model("coarse"), ["features.3"])(scripts.images("coarse", 1), [lib.ClassifierOutputTarget(1)])


def test_mask_of_another_size(lib: SimpleNamespace, onnx_model: Any, scripts: ModuleType) -> None:
    targets = [lib.SemanticSegmentationTarget(1, np.ones((24, 30)))]
    with pytest.raises(pycam.PycamError, match=r"mask= has shape \(1, 24, 30\); it must have shape \(1, 12, 15\)"):
        lib.GradCAM(onnx_model("coarse"), ["features.3"])(scripts.images("coarse", 1), targets)


def test_what_does_not_read_targets_takes_any(lib: SimpleNamespace, onnx_model: Any, x: np.ndarray) -> None:
    eigen = lib.EigenCAM(onnx_model("cnn_mlp"), ["features.8"])
    np.testing.assert_array_equal(eigen(x, [len]), eigen(x))


def test_kinds_in_one_batch(cam: Any, lib: SimpleNamespace, x: np.ndarray) -> None:
    three = np.concatenate([x, x[:1]])
    targets = [lib.ClassifierOutputSoftmaxTarget(4), lib.ClassifierOutputTarget(2), None]
    found = cam(three, targets)
    outputs = cam.outputs
    alone = [cam(three[n : n + 1], targets[n : n + 1])[0] for n in range(3)]
    np.testing.assert_allclose(found, alone, atol=1e-6)
    cam(three)
    np.testing.assert_allclose(outputs, cam.outputs, atol=1e-6)


def test_pycams_own_targets(cam: Any, lib: SimpleNamespace, x: np.ndarray, onnx_model: Any) -> None:
    found = cam(x, [pycam.targets.LogOdds(), lib.ClassifierOutputTarget(3)])
    wanted = pycam.Explainer(onnx_model("cnn_mlp"), layer="features.8", target=pycam.targets.LogOdds())(x[:1])
    np.testing.assert_allclose(found[0], wanted.heatmaps[0, 0], atol=1e-6)
