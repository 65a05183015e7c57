"""Detections of small seeded heads of every form, against a reference in numpy: which entry, its score, its
gradient."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper

import pycam
from pycam.targets import Detection


def _load() -> Any:
    """`small_detectors.py`, which lies beside this file."""
    name = "small_detectors"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


small = _load()

TOLERANCE = 2e-5


@pytest.fixture(params=small.HEADS)
def net(request: pytest.FixtureRequest) -> Any:
    return small.build(small.HEADS[request.param])


# ── which entry, and its gradient ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("boxed", [False, True])
def test_every_form_finds_the_entry_and_its_gradient(net: Any, boxed: bool) -> None:
    x = small.images(1)
    targets = np.array([[-1, net.head.classes - 1], [-1, -1 if boxed else -2]])
    a = [net.features(one.astype(np.float64)) for one in x]
    read = [net.read(one) for one in a]
    given = None
    if boxed:  # near some entry with a score
        inside = [
            np.flatnonzero((np.clip(b, 0, small.SIZE)[:, 2:] - np.clip(b, 0, small.SIZE)[:, :2] > 2).all(1))
            for b, _, _ in read
        ]
        near = [[at[np.argsort(-p.max(1)[at])[i]] for i in (3, 0)] for at, (_, p, _) in zip(inside, read, strict=True)]
        given = np.array([read[n][0][near[n]] for n in range(2)]) + np.array([0.3, -0.2, 0.1, 0.4])
        given = np.clip(given, 0, small.SIZE)
    explainer = pycam.Explainer(net.proto, "layercam", layer="features", target=replace(net.head.target, overlap=0.0))
    found = explainer(x, targets, box=given)
    assert found.noun == "class"
    assert explainer._programs.several() is explainer._programs.one  # one pass for all targets
    for n, k in np.ndindex(2, 2):
        boxes, p, _ = read[n]
        entry, label = small.pick(boxes, p, int(targets[n, k]), None if given is None else given[n, k])
        assert found.targets[n, k] == label
        np.testing.assert_allclose(found.extras["boxes"][n, k], boxes[entry], atol=1e-3)
        assert found.extras["box_scores"][n, k] == pytest.approx(p[entry, label], abs=1e-5)
        assert found.extras["detections"][n, k] == min(len(small.objects(boxes, p.max(1))), 16)
        wanted = -1 if given is None else small.overlap(boxes[entry], given[n, k])
        assert found.extras["iou"][n, k] == pytest.approx(wanted, abs=1e-4)
        g = small.gradient(lambda v, e=entry, c=label: net.read(v)[2][e, c], a[n])
        raw = (np.maximum(g, 0) * a[n]).sum(0)
        assert np.abs(found.raw[n, k] - raw).max() <= TOLERANCE * np.abs(raw).max()


@pytest.mark.parametrize("name", ["yolo8", "yolo5", "ssd", "centre", "sizes"])
def test_the_overlap_counts_with_its_gradient(name: str) -> None:
    net, x = small.build(small.HEADS[name]), small.images(2, 1)
    a = net.features(x[0].astype(np.float64))
    boxes, p, _ = net.read(a)
    entry, label = small.pick(boxes, p, -1, None)
    given = np.clip(boxes[entry] + [0.7, -0.4, 0.5, 0.9], 0, small.SIZE)
    entry, label = small.pick(boxes, p, -1, given)
    found = pycam.Explainer(
        net.proto, "hirescam", layer="features", target=replace(net.head.target, iou=True, overlap=0.0)
    )(x, box=given)

    def y(v: np.ndarray) -> float:
        inner, _, z = net.read(v)
        return float(z[entry, label] + small.overlap(inner[entry], given))

    raw = (small.gradient(y, a) * a).sum(0)
    assert np.abs(found.raw[0, 0] - raw).max() <= TOLERANCE * np.abs(raw).max()


def test_scores_that_are_not_stepped_behind_are_taken_as_they_are() -> None:
    net, x = small.build(small.HEADS["yolo5"]), small.images(1, 1)
    explainer = pycam.Explainer(net.proto, "hirescam", layer="features", target=Detection(activation="none"))
    found = explainer(x)
    a = net.features(x[0].astype(np.float64))
    boxes, p, _ = net.read(a)
    entry, label = small.pick(boxes, p, -1, None)
    raw = (small.gradient(lambda v: net.read(v)[1][entry, label], a) * a).sum(0)
    assert np.abs(found.raw[0, 0] - raw).max() <= TOLERANCE * np.abs(raw).max()
    assert any("taken for probabilities" in note for note in explainer.spec.notes)


def test_notes_say_what_was_found() -> None:
    notes = pycam.Explainer(small.build(small.HEADS["centre"]).proto, layer="features", target=Detection()).spec.notes
    assert notes[0] == "found automatically: boxes in 'wh' and scores in 'heat'"
    assert "the score is the logit: the sigmoid behind the scores of 'heat' is stepped behind" in notes


def test_a_box_that_is_the_detections_own_pulls_at_nothing() -> None:
    """IoU has its maximum there: what is added to the gradient is 0, also where the numbers are a rounding away."""
    net, x = small.build(small.HEADS["centre"]), small.images(1, 1)
    plain = pycam.Explainer(net.proto, "hirescam", layer="features", target=Detection())(x)
    pulled = pycam.Explainer(net.proto, "hirescam", layer="features", target=Detection(iou=True))
    own = np.clip(plain.extras["boxes"] + 1e-4, 0, small.SIZE)
    if np.abs(own - plain.extras["boxes"]).max() < 0.01:
        np.testing.assert_allclose(pulled(x, box=own).raw, plain.raw, atol=1e-5)
    np.testing.assert_allclose(pulled(x).raw, plain.raw, atol=1e-5)


# ── lists ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("rows", [False, True])
def test_a_list_is_matched_by_box_and_class(rows: bool) -> None:
    more = """
        column = Unsqueeze(scores, one)
        wide = Cast<to = 1>(labels)
        column2 = Unsqueeze(wide, one)
        joined = Concat<axis = 1>(boxes, column, column2)
        zero = Constant<value_ints = [0]>()
        detections = Unsqueeze(joined, zero)"""
    net = small.make_list("float[1, D, 6] detections", more) if rows else small.make_list()
    target = Detection(boxes="detections", form="list") if rows else Detection()
    x = small.images(3, 1)
    a = net.features(x[0].astype(np.float64))
    boxes, p, _ = net.read(a)
    explainer = pycam.Explainer(net.proto, "hirescam", layer="features", target=target)
    found = explainer(x, [[-1, -2, 1]])
    for k, t in enumerate((-1, -2, 1)):
        entry, label = small.pick(boxes, p, t, None)
        assert found.targets[0, k] == label
        np.testing.assert_allclose(found.extras["boxes"][0, k], boxes[entry], atol=1e-3)
        raw = (small.gradient(lambda v, e=entry, c=label: net.read(v)[1][e, c], a) * a).sum(0)
        assert np.abs(found.raw[0, k] - raw).max() <= 1e-4 * np.abs(raw).max()


def test_an_empty_list_is_no_detection() -> None:
    net = small.make_list()
    net.proto.graph.initializer[[i.name for i in net.proto.graph.initializer].index("least1")].CopyFrom(
        numpy_helper.from_array(np.array([0.9], np.float32), "least1")
    )
    explainer = pycam.Explainer(net.proto, layer="features", target=Detection())
    spec, image = explainer.spec, np.zeros((1, 3, small.SIZE, small.SIZE), np.float32)
    found = explainer._run(explainer._one, {"image": image}, small.asked_for())
    assert found[spec.extras["box_scores"]].tolist() == found[spec.extras["detections"]].tolist() == [[0]]
    assert not found[spec.raw[0]].any()


# ── other methods, export, other sizes ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["yolo8", "yolo5", "centre"])
@pytest.mark.parametrize("iou", [False, True])
def test_variants_keep_the_entry(name: str, iou: bool) -> None:
    """Ablation-CAM: `(y − y_c)/y` of the entry that the image itself has."""
    net, x = small.build(small.HEADS[name]), small.images(4, 1)
    a = net.features(x[0].astype(np.float64))
    boxes, p, _ = net.read(a)
    entry, label = small.pick(boxes, p, -2, None)
    reference = boxes[entry]

    def y(v: np.ndarray) -> float:
        inner, _, z = net.read(v)
        return float(z[entry, label] + (small.overlap(inner[entry], reference) if iou else 0))

    drops = []
    for c in range(6):
        ablated = a.copy()
        ablated[c] = 0 if a.min() == 0 else a.min() - 1e7
        drops.append((y(a) - y(ablated)) / y(a))
    raw = np.einsum("c,chw->hw", drops, a)
    found = pycam.Explainer(net.proto, "ablationcam", layer="features", target=Detection(iou=iou))(x, [[-2]])
    assert found.targets.tolist() == [[label]]
    assert np.abs(found.raw[0, 0] - raw).max() <= 1e-4 * np.abs(raw).max()


@pytest.mark.parametrize("name", ["yolo8", "centre", "list"])
def test_score_cam_runs_on_every_kind(name: str) -> None:
    net = small.make_list() if name == "list" else small.build(small.HEADS[name])
    found = pycam.Explainer(net.proto, "scorecam", layer="features", target=Detection())(small.images(4, 1), [[-1, -2]])
    assert np.isfinite(found.raw).all()
    assert found.raw.any()


@pytest.mark.parametrize("name", ["yolo8", "centre", "list"])
def test_the_exported_file_runs_by_itself(name: str, tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    net = small.make_list() if name == "list" else small.build(small.HEADS[name])
    path, x = tmp_path / "explain.onnx", small.images(5, 1)
    target, classes = Detection(overlap=0.0), 1 if name == "list" else None
    pycam.export(net.proto, path, layer="features", target=target, classes=classes)
    explainer = pycam.Explainer(net.proto, layer="features", target=target)
    wanted = explainer(x, [[-1]])
    session = ort.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(None, {"image": x, **small.asked_for()}), strict=True))
    np.testing.assert_allclose(found["heatmaps"], wanted.heatmaps, atol=1e-5)
    boxes = found["boxes_pycam" if name == "list" else "boxes"]
    np.testing.assert_allclose(boxes, wanted.extras["boxes"], atol=1e-4)
    again, first = (run(x, box=(4, 4, 20, 20)) for run in (pycam.Explainer(path), explainer))
    np.testing.assert_allclose(again.raw, first.raw, atol=1e-5)
    np.testing.assert_allclose(again.extras["iou"], first.extras["iou"], atol=1e-5)


def test_free_sizes_have_their_own_grid() -> None:
    net = small.build(small.HEADS["centre"])
    for value in (*net.proto.graph.input, *net.proto.graph.output):
        free = (2, 3) if value.name == "image" else (1, 2)
        for i, axis in enumerate(free):
            value.type.tensor_type.shape.dim[axis].dim_param = f"{'HhWw'[2 * i + (value.name != 'image')]}"
    explainer = pycam.Explainer(net.proto, layer="features", target=Detection())
    fixed = pycam.Explainer(small.build(small.HEADS["centre"]).proto, layer="features", target=Detection())
    x = small.images(6, 1)
    np.testing.assert_allclose(explainer(x).extras["boxes"], fixed(x).extras["boxes"], atol=1e-4)
    wide = explainer(np.concatenate([np.zeros_like(x), x], axis=3))  # the same objects, 32 pixels to the right
    moved = np.clip(wide.extras["boxes"] - np.array([32, 0, 32, 0]), 0, small.SIZE)
    np.testing.assert_allclose(moved, fixed(x).extras["boxes"], atol=1e-4)
