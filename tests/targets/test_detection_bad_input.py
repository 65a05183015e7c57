"""Detections that cannot be: options, outputs, boxes, and images without the object."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pycam
from pycam.errors import ModelError, TargetError
from pycam.runtime.found import check_found
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


OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"form": "heap"}, "form='heap': choose one of apart, joint, list"),
    ({"activation": "tanh"}, "activation='tanh'"),
    ({"threshold": 2}, "threshold=2: give a number from 0 to 1"),
    ({"unit": "metres"}, "unit='metres'"),
    ({"background": 3}, "background=3"),
    ({"anchors": [1, 2, 3]}, r"anchors= must be \(A, 4\)"),
]


@pytest.mark.parametrize(("options", "message"), OPTIONS)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TargetError, match=message):
        Detection(**options)


MODELS: list[tuple[str, Detection, str]] = [
    ("face", Detection(), "it cannot be told which outputs hold boxes and scores; the model's outputs are 'score_1'"),
    ("ssd", Detection(boxes="loc", scores="conf"), "look like offsets from anchors: give anchors="),
    ("ssd", Detection(boxes="loc", scores="conf", box="offsets"), "give anchors="),
    ("ssd", Detection(boxes="loc", scores="conf", anchors=np.ones((5, 4))), "anchors= has 5 rows, and the boxes 64"),
    ("ssd", Detection(boxes="loc", scores="conf", box="conrers"), "boxes are corners"),
    ("centre", Detection(scores="heat"), "boxes= is not; the model's outputs are"),
    ("centre", Detection(boxes="wh", form="apart"), "form='apart' does not go with the outputs that are named"),
    ("centre", Detection(boxes="wh", scores="heat", activation="softmax"), "the model has a sigmoid before 'heat'"),
    ("centre", Detection(boxes="wh"), "boxes and scores side by side are"),
    ("sizes", Detection(boxes="hm", scores="wh"), "do not fit each other"),
    ("face", Detection(boxes=("box_1", "box_2"), scores="score_1"), "2 outputs for boxes and 1 for scores"),
]


@pytest.mark.parametrize(("name", "target", "message"), MODELS)
def test_outputs_that_do_not_fit_are_refused(name: str, target: Detection, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        pycam.Explainer(small.build(small.HEADS[name]).proto, layer="features", target=target)


def test_an_output_that_is_not_there_is_refused() -> None:
    with pytest.raises(ModelError, match="no output 'bx'"):
        pycam.Explainer(small.build(small.HEADS["ssd"]).proto, layer="features", target=Detection(boxes="bx"))


FOUND: list[tuple[int, np.ndarray | None, str]] = [
    (-16, None, r"−?-16 is the 16th best detection, and there are \d+ above the score 0.3"),
    (-2, np.array([1, 1, 9, 9]), "box= says which detection is explained, and targets=-2"),
    (-1, np.array([0, 0, 0.4, 0.4]), r"no detection overlaps the box \(0, 0, 0, 0\) by more than IoU 0.5: .*class \d"),
]


@pytest.mark.parametrize(("target", "box", "message"), FOUND)
def test_what_is_not_found_is_said(target: int, box: np.ndarray | None, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        _check(small.build(small.HEADS["centre"], bias=-4), target, box, small.images(7, 1))


def test_no_detection_above_the_score_is_said() -> None:
    net = small.build(small.HEADS["centre"], bias=-4)
    dark = np.zeros((1, 3, small.SIZE, small.SIZE), np.float32)
    with pytest.raises(TargetError, match=r"no detection above the score 0.3: the best is 0.018 for class \d \(\w+\)"):
        _check(net, -1, None, dark)
    with pytest.raises(TargetError, match=r"no detection of class 1 \(cat\) above the score 0.3: the best is 0.018"):
        _check(net, 1, None, dark)
    _check(small.build(small.HEADS["centre"], bias=0), 1, None, dark)


def _check(net: Any, target: int, box: np.ndarray | None, x: np.ndarray) -> None:
    explainer = pycam.Explainer(net.proto, layer="features", target=Detection())
    asked = small.asked_for(target, box)
    spec, outputs = explainer.spec, explainer._run(explainer._one, {"image": x}, asked)
    extras = {key: outputs[name] for key, name in spec.extras.items()} | {"explained": outputs[spec.explained]}
    check_found(spec, asked, extras, ("dog", "cat", "bird"))


def test_boxes_outside_of_the_image_are_refused() -> None:
    explainer = pycam.Explainer(small.build(small.HEADS["centre"]).proto, layer="features", target=Detection())
    with pytest.raises(TargetError, match="lies outside of the image, 32 × 32"):
        explainer(small.images(1), box=(40, 0, 50, 10))
    with pytest.raises(TargetError, match="is empty"):
        explainer(small.images(1), box=(9, 9, 9, 10))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": "0.3"}, "threshold='0.3': give a number from 0 to 1"),
        ({"unit": -3.0}, "unit=-3.0: give a number above 0"),
        ({"unit": float("nan")}, "unit=nan"),
        ({"cell": "a"}, "cell='a': give a number"),
        ({"variances": (1.0,)}, "two numbers, of places and of sizes"),
        ({"objectness": "yes"}, "objectness='yes': give True or False"),
        ({"iou": "x"}, "iou='x': give True or False"),
        ({"boxes": 5}, "boxes=5: give the name of an output"),
    ],
)
def test_options_of_other_kinds(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TargetError, match=message):
        Detection(**options)
