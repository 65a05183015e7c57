"""pycam.head: the choice of a head, and that all of them agree."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import pycam
import pycam.head
from pycam.errors import HeadError, InputError
from pycam.head import Head, available, pick
from pycam.head.cpu import GRAIN, NativeHead, cores


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


@pytest.fixture(params=["cpu", "reference"])
def native(request: pytest.FixtureRequest) -> NativeHead:
    head = pick(request.param)
    assert isinstance(head, NativeHead)
    return head


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


# ---- how arrays are taken --------------------------------------------------------------------------------------------


def activations_and_gradients(n: int = 2, k: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return np.maximum(rng.standard_normal((n, 6, 7, 5)), 0), rng.standard_normal((n, k, 6, 7, 5))


def test_finish_reads_any_numbers(head: Head) -> None:
    raw = np.random.default_rng(0).integers(-9, 9, (2, 3, 7, 5))
    expected, _ = head.finish([raw.astype(np.float32)], (14, 10))
    records = np.zeros(raw.shape, [("flag", "u1"), ("value", "f4")])  # strides of 5 bytes
    records["value"] = raw
    others = [
        raw,
        raw.astype(np.float64),
        raw.astype(np.float16),
        raw.astype(ml_dtypes.bfloat16),
        raw.astype(">f4"),
        records["value"],
    ]
    for other in others:
        np.testing.assert_array_equal(head.finish([other], (14, 10))[0], expected)


def test_explain(head: Head) -> None:
    a, g = activations_and_gradients()
    maps, flat, raw = head.explain(a, g, (28, 20))
    np.testing.assert_allclose(raw, np.einsum("nkc,nchw->nkhw", g.mean((3, 4)), a), atol=1e-5)
    again, flat_again = head.finish([raw], (28, 20))
    np.testing.assert_array_equal(maps, again)
    np.testing.assert_array_equal(flat, flat_again)
    one, _, raw_of_one = head.explain(a, g[:, 1], (28, 20))  # gradients of one map, like the activations
    np.testing.assert_array_equal(one[:, 0], maps[:, 1])
    np.testing.assert_array_equal(raw_of_one[:, 0], raw[:, 1])
    weights = g.mean((3, 4))
    given, _, _ = head.explain(a, weights, (28, 20), "given")
    np.testing.assert_allclose(given, maps, atol=1e-5)


def test_explain_refuses_what_does_not_fit(head: Head) -> None:
    a, g = activations_and_gradients()
    for activations, weights in ((a[0], g), (a, g[:1]), (a, g[:, :, :5]), (a, g[..., 0, 0, 0]), (a, np.float32(1))):
        with pytest.raises(ValueError, match=r"activations|weights"):
            head.explain(activations, weights, (8, 8))
    with pytest.raises(ValueError, match="weighting"):
        head.explain(a, g, (8, 8), "average")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="NaN at"):
        head.explain(a * np.nan, g, (8, 8))


def test_paint_is_explain_and_overlay(native: NativeHead) -> None:
    a, g = activations_and_gradients()
    rng = np.random.default_rng(1)
    images, lut = rng.integers(0, 256, (2, 60, 40, 4), np.uint8), rng.integers(0, 256, (256, 3), np.uint8)
    maps, flat, _ = native.explain(a, g, (60, 40), "positive")
    for colours in (
        images,
        images[..., :3],
        images[..., 2::-1],
        np.moveaxis(images.transpose(0, 3, 1, 2).copy(), 1, 3),
    ):
        pictures, found = native.paint(a, g, colours, lut, 0.3, "positive")
        np.testing.assert_array_equal(pictures, native.overlay(colours, maps, lut, 0.3))
        np.testing.assert_array_equal(found, flat)
    for wrong in (images / 255, images[0], images[:1], images[..., :2], 7):
        with pytest.raises(ValueError, match="images"):
            native.paint(a, g, wrong, lut)  # type: ignore[arg-type]


# ---- threads ---------------------------------------------------------------------------------------------------------


def used(head: NativeHead, images: int, side: int) -> int:
    """How many threads `finish` takes for this much."""
    asked = []

    def spy(*arguments: Any, threads: int, **named: Any) -> Any:
        asked.append(threads)
        return head.native_finish(*arguments, **named)

    replace(head, native_finish=spy).finish([np.zeros((images, 1, 7, 7), np.float32)], (side, side))
    return asked[0]


def test_threads_are_as_many_as_there_is_work_for(native: NativeHead) -> None:
    assert used(native, 1, 224) == 1
    assert used(replace(native, threads=3), 1, 224) == 1
    assert used(replace(native, threads=3), 64, 224) == 3
    assert used(replace(native, threads=1), 64, 224) == 1
    assert used(native, 64, 224) == min(cores(), 64 * 224 * 224 * 8 // GRAIN)
    assert used(replace(native, threads=10**6), 16, 224) < 10


def test_pick_sets_the_threads() -> None:
    for name in (None, "cpu", "reference"):
        head = pick(name, threads=2)
        assert isinstance(head, NativeHead)
        assert head.threads == 2
        assert pick(name) == replace(head, threads=None)
    for threads in (0, -1):
        with pytest.raises(InputError, match=rf"threads={threads}: give a positive number, or None"):
            pick(threads=threads)


def test_a_head_that_computes_elsewhere_has_no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = SimpleNamespace(name="elsewhere")
    monkeypatch.setitem(sys.modules, "elsewhere", SimpleNamespace(HEAD=elsewhere))  # type: ignore[arg-type]
    monkeypatch.setattr(pycam.head, "_MODULES", {"elsewhere": "elsewhere"})
    assert pick("elsewhere", threads=3) is elsewhere


def test_the_explainer_passes_its_threads_on(cnn: Callable[..., Any], images: np.ndarray) -> None:
    explainer = pycam.Explainer(cnn(), threads=1)
    assert isinstance(explainer._head, NativeHead)
    assert explainer._head.threads == explainer(images).threads == 1
    assert pycam.Explainer(cnn())(images).threads is None
