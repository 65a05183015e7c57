"""Detections of trained models: is the right object found, and does its map lie on it?"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pycam
from pycam.targets import Detection

TRAINED = Path(__file__).parents[1] / "trained"
SHARED = Path(__file__).parents[3] / "shared"
PICTURES = {"astronaut.png": (0, (20, 10, 370, 512)), "chelsea.png": (16, None), "coffee.png": (41, None)}
"""Picture → COCO's class (person; chelsea's cat is taken for a dog; cup), and its box where boxes.json has none."""
MARGIN = np.array([-2, -2, 2, 2])
LAYER = "tower_0/CenternetHead/Relu:0"


def inside(heatmap: np.ndarray, box: np.ndarray) -> tuple[bool, float, float]:
    """Whether the maximum lies in a box, the box' share of the map, its share of the image."""
    y, x = (np.indices(heatmap.shape) + 0.5).reshape(2, *heatmap.shape)
    within = (x > box[0]) & (x < box[2]) & (y > box[1]) & (y < box[3])
    return bool(within.flat[heatmap.argmax()]), float(heatmap[within].sum() / heatmap.sum()), float(within.mean())


@pytest.fixture(scope="module")
def centernet() -> Any:
    path = SHARED / "models" / "human_centernet.onnx"
    if not path.exists():
        pytest.skip("the shared models are not here")
    return path


def picture(name: str) -> tuple[np.ndarray, tuple[int, int]]:
    image = pytest.importorskip("PIL.Image").open(SHARED / "images" / name).convert("RGB")
    return np.asarray(image.resize((512, 512)), np.float32)[None], image.size


@pytest.mark.parametrize("method", ["hirescam", "layercam"])
def test_centernet_finds_the_object_and_looks_at_it(centernet: Path, method: str) -> None:
    drawn = json.loads((SHARED / "images" / "boxes.json").read_text())
    explainer = pycam.Explainer(centernet, method, layer=LAYER, target=Detection())
    for name, (label, known) in PICTURES.items():
        x, (width, height) = picture(name)
        found = explainer(x)
        assert found.targets.tolist() == [[label]]
        truth = np.array(known or drawn[name]["boxes"][0]["xyxy"]) * (
            [512 / width, 512 / height] * 2 if not known else 1
        )
        hit, energy, area = inside(found.heatmaps[0, 0], truth)
        assert hit, name
        assert energy > max(0.9, area), name
        box = np.clip(found.extras["boxes"][0, 0], 0, 512)
        both = np.clip(np.minimum(box[2:], truth[2:]) - np.maximum(box[:2], truth[:2]), 0, None).prod()
        assert both / ((box[2:] - box[:2]).prod() + (truth[2:] - truth[:2]).prod() - both) > 0.5, name


def test_centernets_boxes_are_those_that_it_lists(centernet: Path) -> None:
    """Its output `detections` has left, top, right, bottom, score, class of the 100 best entries."""
    explainer = pycam.Explainer(centernet, layer=LAYER, target=Detection(threshold=0.1))
    listed = pycam.Explainer(
        centernet, layer=LAYER, target=Detection(boxes="tower_0/detections", form="list", threshold=0.1)
    )
    for name in ("astronaut.png", "camera.png"):
        x, _ = picture(name)
        found = explainer(x, [[-1, -2]])
        rows = found.scores["tower_0/detections"][0]
        rows[:, :4] = np.clip(rows[:, :4], 0, 512)
        np.testing.assert_allclose(found.extras["boxes"][0, 0], rows[0, :4], atol=1e-2)
        assert found.extras["box_scores"][0, 0] == pytest.approx(rows[0, 4], abs=1e-5)
        assert found.targets[0, 0] == rows[0, 5]
        assert any(np.abs(found.extras["boxes"][0, 1] - row[:4]).max() < 1e-2 for row in rows)
        second = listed(x, [[-1, -2]])
        np.testing.assert_allclose(np.clip(second.extras["boxes"], 0, 512), found.extras["boxes"], atol=1e-2)
        assert second.raw.any()


def test_blazeface_takes_anchors() -> None:
    path = SHARED / "models" / "human_blazeface.onnx"
    if not path.exists():
        pytest.skip("the shared models are not here")
    anchors = np.concatenate([_anchors(16, 2), _anchors(8, 6)])
    target = Detection(
        boxes=("Identity_2:0", "Identity_3:0"), scores=("Identity:0", "Identity_1:0"), anchors=anchors, unit="pixels"
    )
    image = pytest.importorskip("PIL.Image").open(SHARED / "images" / "astronaut.png").convert("RGB")
    x = np.asarray(image.resize((256, 256)), np.float32)[None] / 127.5 - 1
    found = pycam.Explainer(path, "hirescam", layer="StatefulPartitionedCall/functional_1/add_15/add:0", target=target)(
        x
    )
    face = np.array([85, 30, 141, 105])  # drawn by eye
    box = found.extras["boxes"][0, 0]
    both = np.clip(np.minimum(box[2:], face[2:]) - np.maximum(box[:2], face[:2]), 0, None).prod()
    assert both / ((box[2:] - box[:2]).prod() + (face[2:] - face[:2]).prod() - both) > 0.4
    hit, energy, area = inside(found.heatmaps[0, 0], np.array([70, 10, 155, 120]))
    assert hit
    assert energy > 2 * area


def _anchors(grid: int, each: int) -> np.ndarray:
    y, x = np.indices((grid, grid)).reshape(2, -1)
    return np.repeat((np.stack([x, y], 1) + 0.5) * 256 / grid, each, axis=0)


@pytest.fixture(scope="module")
def scenes() -> Any:
    if not (TRAINED / "yolo.onnx").exists():
        pytest.skip("the trained detector is not here")
    sys.path.insert(0, str(TRAINED))
    try:
        return pytest.importorskip("scenes").make_scenes(24, 7)
    finally:
        sys.path.remove(str(TRAINED))


def test_the_trained_detector_looks_at_the_object_that_a_box_names(scenes: Any) -> None:
    explainer = pycam.Explainer(TRAINED / "yolo.onnx", "hirescam", layer="backbone.3.2", target=Detection())
    hits, energies, areas, right = [], [], [], []
    for n, (boxes, shapes) in enumerate(zip(scenes.boxes, scenes.shapes, strict=True)):
        there = np.flatnonzero(shapes >= 0)
        given = boxes[there].astype(np.float32)
        found = explainer(scenes.images[n : n + 1], [[-1] * len(there)], box=given[None])
        for k, box in enumerate(given):
            if found.extras["iou"][0, k] <= 0.5:
                continue  # one that it did not find
            hit, energy, area = inside(found.heatmaps[0, k], box + MARGIN)
            hits.append(hit)
            energies.append(energy)
            areas.append(area)
            right.append(found.targets[0, k] == shapes[there[k]])
    assert len(hits) > 30
    assert np.mean(right) > 0.9
    assert np.mean(hits) > 0.85
    assert np.mean(energies) > 3 * np.mean(areas)


def test_ranks_are_different_objects(scenes: Any) -> None:
    explainer = pycam.Explainer(TRAINED / "yolo.onnx", "hirescam", layer="backbone.3.2", target=Detection())
    hits = []
    for n, shapes in enumerate(scenes.shapes):
        if (shapes >= 0).sum() < 2:
            continue
        found = explainer(scenes.images[n : n + 1], [[-1, -2]])
        if found.extras["detections"][0, 0] < 2:
            continue
        first, second = found.extras["boxes"][0]
        both = np.clip(np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2]), 0, None).prod()
        assert both < 0.5 * min((first[2:] - first[:2]).prod(), (second[2:] - second[:2]).prod())
        hits += [inside(found.heatmaps[0, k], box + MARGIN)[0] for k, box in enumerate((first, second))]
    assert len(hits) > 10
    assert np.mean(hits) > 0.85
