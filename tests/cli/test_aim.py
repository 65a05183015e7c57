"""What is explained, from the command line: kinds of targets, regions in pixels of the photo, further inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pycam import targets
from pycam.cli.aim import parse_target
from pycam.errors import TargetError

TRAINED = Path(__file__).parents[1] / "trained"
PIL = pytest.importorskip("PIL.Image")


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """Two coloured squares, four times as large as the models see them."""
    pixels = np.full((256, 256, 3), 128, np.uint8)
    pixels[40:120, 30:110] = (215, 30, 30)
    pixels[150:220, 160:230] = (30, 50, 230)
    path = tmp_path / "scene.png"
    PIL.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("segmentation", targets.Segmentation()),
        ("segmentation:class_axis=3,output=mask", targets.Segmentation("mask", 3)),
        ("expectation:bins=[0,10,20]", targets.Expectation(bins=(0, 10, 20))),
        ("weighted:terms=[[null,3,1.0],[null,[1,2],-0.5]]", targets.Weighted(((None, 3, 1.0), (None, (1, 2), -0.5)))),
        ("detection:threshold=0.4,scores=None", targets.Detection(threshold=0.4)),
    ],
)
def test_kinds_and_their_options(text: str, want: targets.Target) -> None:
    assert parse_target(text) == want


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("segmentations", "no kind of target is called 'segmentations'"),
        ("segmentation:axis=1", "'axis=1' is no option of the target 'segmentation'; its options: class_axis, output"),
        ("segmentation:3", "'3' is no option"),
        ("weighted", "one is missing"),
    ],
)
def test_kinds_that_there_are_not(text: str, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        parse_target(text)


def test_a_box_is_in_pixels_of_the_photo(run: Any, scene: Path) -> None:
    common = ("--model", TRAINED / "yolo.onnx", "--as", "detection", "--method", "layercam", "--json")
    found = [
        json.loads(run("explain", scene, *common, "--box", box)[1]) for box in ("30,40,110,120", "160,150,230,220")
    ]
    assert [one["labels"] for one in found] == [[["square"]], [["square"]]]
    for one, box in zip(found, ((30, 40, 110, 120), (160, 150, 230, 220)), strict=True):
        np.testing.assert_allclose(np.array(one["extras"]["boxes"][0][0]) * 4, box, atol=12)
    code, _, err = run("explain", scene, *common, "--box", "300,300,310,310")
    assert code == 1
    assert "lies outside of what the model sees" in err
    code, _, err = run("explain", scene, *common, "--pixel", "3,3")
    assert code == 1
    assert "the target 'detection' does not know that" in err


def test_a_further_input(run: Any, scene: Path) -> None:
    question = "question=[[12,13,14,15,9]]"
    code, out, err = run("explain", scene, "--model", TRAINED / "vqa.onnx", "--input", question, "--target", "top1")
    assert code == 0, err
    assert "wrote" in out
    code, _, err = run("explain", scene, "--model", TRAINED / "vqa.onnx")
    assert code == 1
    assert "question" in err
    for given, message in {
        "question=what": "write numbers of dtype int64",
        "question=[[0.5,1,2,3,4]]": "write numbers of dtype int64",
        "questions=[[1,2,3,4,5]]": "the model's further inputs are question",
        "image=[1]": "the model's further inputs are question",
    }.items():
        code, _, err = run("explain", scene, "--model", TRAINED / "vqa.onnx", "--input", given)
        assert code == 1
        assert message in err


def test_the_kinds_are_listed(run: Any) -> None:
    code, out, _ = run("targets")
    assert code == 0
    assert all(kind in out for kind in targets.kinds())
    assert run("targets", "detection")[1].startswith("detection   pycam.targets.Detection")
    assert {one["kind"] for one in json.loads(run("targets", "--json")[1])} == set(targets.kinds())
    assert run("targets", "detector")[0] == 1


def test_a_comparison_of_what_is_asked_for(run: Any, scene: Path, tmp_path: Path) -> None:
    out = tmp_path / "grid.png"
    common = ("--method", "layercam", "--method", "gradcam", "-o", out)
    box = ("--as", "detection", "--box", "160,150,230,220", "--target", "-1")
    code, said, err = run("compare", scene, "--model", TRAINED / "yolo.onnx", *common, *box)
    assert code == 0, err
    assert "scene.png: square" in said
    question = ("--input", "question=[[12,13,14,15,9]]", "--target", "top1")
    code, said, err = run("compare", scene, "--model", TRAINED / "vqa.onnx", *common, *question)
    assert code == 0, err
    with PIL.open(out) as grid:
        assert grid.size[0] > 300
