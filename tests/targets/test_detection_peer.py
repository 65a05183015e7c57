"""Detections against pytorch-grad-cam's FasterRCNNBoxScoreTarget, on a small Faster R-CNN; `make_detection.py` made the
arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pycam
from pycam.targets import Detection

FOLDER = Path(__file__).parent
LAYER = "m.backbone.5"


@pytest.fixture(scope="module")
def peer() -> Any:
    stored = np.load(FOLDER / "faster_rcnn.npz")
    return {name: stored[name] for name in stored.files} | {"x": stored["pixels"].astype(np.float32) / 255}


@pytest.fixture(scope="module")
def explainer() -> pycam.Explainer:
    return pycam.Explainer(FOLDER / "faster_rcnn.onnx", layer=LAYER, target=Detection(iou=True))


def test_each_box_agrees_with_the_peer(peer: Any, explainer: pycam.Explainer) -> None:
    for n, (box, label) in enumerate(zip(peer["boxes"], peer["labels"], strict=True)):
        found = explainer(peer["x"], targets=int(label), box=box)
        raw, wanted = found.raw[0, 0], peer["raw"][n]
        assert np.linalg.norm(raw - wanted) <= 1e-4 * np.linalg.norm(wanted)
        assert np.abs(found.heatmaps[0, 0] - peer["final"][n]).max() <= 1e-3
        y = found.extras["iou"][0, 0] + found.extras["box_scores"][0, 0]
        assert y == pytest.approx(peer["y"][n], abs=1e-4)


def test_several_boxes_add_up_to_the_peers_target(peer: Any, explainer: pycam.Explainer) -> None:
    found = explainer(peer["x"], targets=peer["labels"][None], box=peer["boxes"][None])
    assert found.raw.shape[:2] == (1, 3)
    total, wanted = found.raw[0].sum(axis=0), peer["raw"][-1]
    assert np.linalg.norm(total - wanted) <= 1e-4 * np.linalg.norm(wanted)


def test_ranks_follow_the_models_own_list(peer: Any, explainer: pycam.Explainer) -> None:
    found = explainer(peer["x"], targets=[[-1, int(peer["found_labels"][3])]])
    first = [0, int(np.flatnonzero(peer["found_labels"] == peer["found_labels"][3])[0])]
    assert found.targets.tolist() == [peer["found_labels"][first].tolist()]
    np.testing.assert_allclose(found.extras["boxes"][0], peer["found_boxes"][first], atol=1e-2)
    np.testing.assert_allclose(found.extras["box_scores"][0], peer["found_scores"][first], atol=1e-4)


def test_variants_are_matched_anew(peer: Any) -> None:
    """Score-CAM runs the whole detector on masked images: the weights come from the matched detections' scores."""
    ort = pytest.importorskip("onnxruntime")
    target = Detection(iou=True, overlap=0.0)
    explainer = pycam.Explainer(FOLDER / "faster_rcnn.onnx", "scorecam", layer=LAYER, target=target)
    box, label = peer["found_boxes"][6], int(peer["found_labels"][6])
    found = explainer(peer["x"], targets=label, box=box)
    session = ort.InferenceSession(FOLDER / "faster_rcnn.onnx")
    scores = []
    for a in peer["A"]:
        image = peer["x"] * _mask(a, peer["x"].shape[2:])
        scores.append(_peer_score(*session.run(["boxes", "scores", "labels"], {"image": image}), box, label))
    weights = np.exp(np.array(scores) - max(scores))
    wanted = np.einsum("c,chw->hw", weights / weights.sum(), peer["A"])
    assert 4 < np.count_nonzero(scores) < len(scores)  # some match
    assert np.abs(found.raw[0, 0] - wanted).max() <= 1e-3 * np.abs(wanted).max()


def _mask(a: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """`a` at the image's size, corners aligned, from 0 to 1."""
    for axis, n in enumerate(size):
        at = np.arange(n) * (a.shape[axis] - 1) / (n - 1)
        low = np.minimum(at.astype(int), a.shape[axis] - 2)
        share = (at - low).reshape(-1, *[1] * (1 - axis))
        a = np.take(a, low, axis) * (1 - share) + np.take(a, low + 1, axis) * share
    return ((a - a.min()) / (a.max() - a.min() + 1e-8)).astype(np.float32)


def _peer_score(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, box: np.ndarray, label: int) -> float:
    """The best overlap among the boxes of the label."""
    low, high = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
    both = np.clip(high - low, 0, None).prod(1)
    union = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod() - both
    iou = np.where(labels == label, both / union, 0)
    best = int(iou.argmax())
    return float(iou[best] + scores[best]) if iou[best] > 0.0 else 0.0
