"""pycam.head: the choice of a head, and that all of them agree."""

from __future__ import annotations

import numpy as np
import pytest

import pycam.head
from pycam.errors import HeadError
from pycam.head import Head, available, pick


@pytest.fixture(autouse=True)
def no_override(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYCAM_HEAD", raising=False)


def test_the_best_comes_first() -> None:
    assert pick().name == next(name for name, reason in available().items() if not reason) == "cpu"


@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_by_name(name: str) -> None:
    assert pick(name).name == name


def test_the_environment_overrides_the_default_but_not_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYCAM_HEAD", "reference")
    assert pick().name == "reference"
    assert pick("cpu").name == "cpu"
    monkeypatch.setenv("PYCAM_HEAD", "")
    assert pick().name == "cpu"


def test_an_unknown_name_lists_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HeadError, match=r"head 'gpu' is unknown.*cpu \(available\).*reference \(available\)"):
        pick("gpu")
    monkeypatch.setenv("PYCAM_HEAD", "gpu")
    with pytest.raises(HeadError, match=r"'gpu'.*PYCAM_HEAD"):
        pick()


def test_a_head_that_cannot_be_imported_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = {"broken": "pycam.head.there_is_no_such_module", "reference": "pycam.head.reference"}
    monkeypatch.setattr(pycam.head, "_MODULES", modules)
    assert pick().name == "reference"
    with pytest.raises(HeadError, match=r"broken \(No module named"):
        pick("broken")
    monkeypatch.setattr(pycam.head, "_MODULES", {"broken": modules["broken"]})
    with pytest.raises(HeadError, match="no head is available"):
        pick()


@pytest.fixture(params=["cpu", "reference"])
def head(request: pytest.FixtureRequest) -> Head:
    return pick(request.param)


def test_finish_keeps_images_and_classes_apart(head: Head) -> None:
    rng = np.random.default_rng(0)
    raws = [rng.standard_normal((2, 3, 7, 7)), rng.standard_normal((2, 3, 14, 7))[..., ::-1]]  # float64, strided
    raws[0][1, 2] = raws[1][1, 2] = -1
    maps, flat = head.finish(raws, (28, 30))
    assert maps.shape == (2, 3, 28, 30)
    assert maps.dtype == np.float32
    assert flat.tolist() == [[False] * 3, [False, False, True]]
    alone, _ = head.finish([raw[1:, :1] for raw in raws], (28, 30))
    np.testing.assert_array_equal(alone[0, 0], maps[1, 0])


def test_finish_refuses_layers_that_do_not_match(head: Head) -> None:
    raw = np.ones((2, 3, 7, 7), np.float32)
    for raws in ([], [raw, raw[:1]], [raw[0]]):
        with pytest.raises(ValueError, match=r"expected one array \(N, K, h, w\) per layer"):
            head.finish(raws, (8, 8))
    with pytest.raises(ValueError, match="NaN"):
        head.finish([raw * np.nan], (8, 8))


def test_overlay(head: Head) -> None:
    images = np.full((1, 2, 2, 3), 100, np.uint8)
    lut = np.zeros((256, 3), np.uint8)
    lut[255] = 200
    maps = np.array([[[[0, 1], [1, 0]]]], np.float64)
    assert head.overlay(images, maps, lut, 0.25)[0, 0, ..., 1].tolist() == [[75, 125], [125, 75]]
    with pytest.raises(ValueError, match="images"):
        head.overlay(images / 255, maps, lut, 0.25)
