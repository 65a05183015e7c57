"""Signed maps: the scale, the resize, the colours."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import pycam
from pycam.colormap import DIVERGING, diverging
from pycam.errors import ImageError, InputError
from pycam.pictures import signed, signed_levels


@pytest.fixture
def raw() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, 3, 7, 5)).astype(np.float32)


def test_the_diverging_table_is_colorbrewers() -> None:
    """https://colorbrewer2.org, RdBu, nine classes, from blue to red."""
    table = diverging()
    brewer = ["2166ac", "4393c3", "92c5de", "d1e5f0", "f7f7f7", "fddbc7", "f4a582", "d6604d", "b2182b"]
    for place, colour in zip(np.linspace(0, 255, 9), brewer, strict=True):
        low, high = table[int(np.floor(place))].astype(int), table[int(np.ceil(place))].astype(int)
        wanted = np.array(list(bytes.fromhex(colour)))
        near = low + (high - low) * (place % 1)
        assert np.abs(near - wanted).max() <= 1.5
    luma = table @ np.array([0.299, 0.587, 0.114])
    assert (np.diff(luma[:127]) > -0.5).all()  # lighter up to the middle, then darker
    assert (np.diff(luma[128:]) < 0.5).all()
    assert DIVERGING == ("RdBu",)
    with pytest.raises(ValueError, match="read-only"):
        table[0] = 0
    with pytest.raises(ImageError, match=r"unknown colour map 'jet' for signed maps; there is RdBu"):
        diverging("jet")


@pytest.mark.parametrize("size", [(14, 15), (33, 47), (3, 2), (7, 5)])
def test_the_resize_is_the_one_of_onnx(raw: np.ndarray, size: tuple[int, int]) -> None:
    """Resize, mode linear, half_pixel: the definition of heatmaps' resize, by the reference implementation."""
    helper = pytest.importorskip("onnx.helper")
    from onnx import TensorProto
    from onnx.reference import ReferenceEvaluator

    node = helper.make_node("Resize", ["x", "", "", "s"], ["y"], mode="linear")
    x, s, y = (
        helper.make_tensor_value_info(n, t, None)
        for n, t in (("x", TensorProto.FLOAT), ("s", TensorProto.INT64), ("y", TensorProto.FLOAT))
    )
    model = helper.make_model(helper.make_graph([node], "g", [x, s], [y]), opset_imports=[helper.make_opsetid("", 18)])
    (expected,) = ReferenceEvaluator(model).run(None, {"x": raw, "s": np.array([2, 3, *size])})
    expected = expected / np.abs(expected).max(axis=(2, 3), keepdims=True)
    np.testing.assert_allclose(signed_levels(raw, size, clip=0), expected, atol=1e-5)


def test_the_scale_is_the_same_on_both_sides_and_clipped() -> None:
    values = np.linspace(-1, 3, 10_000, dtype=np.float32).reshape(1, 1, 100, 100)
    levels = signed_levels(values, (100, 100), clip=0.05)
    top = np.quantile(np.abs(values), 0.95)
    np.testing.assert_allclose(levels, np.clip(values / top, -1, 1), atol=1e-6)
    assert (levels == 1).mean() == pytest.approx(0.05, abs=1e-3)
    np.testing.assert_allclose(signed_levels(-5 * values, (100, 100), clip=0.05), -levels, atol=1e-6)


def test_zeros_stay_and_a_single_pixel_shows() -> None:
    values = np.zeros((1, 2, 20, 20), np.float32)
    values[0, 1, 3, 4] = -2
    levels = signed_levels(values, (20, 20))
    assert not levels[0, 0].any()
    assert levels[0, 1, 3, 4] == -1
    assert np.count_nonzero(levels) == 1


def test_several_layers_are_averaged_each_on_its_scale(raw: np.ndarray) -> None:
    both = signed_levels((raw, 1000 * raw), (14, 10), clip=0)
    np.testing.assert_allclose(both, signed_levels(raw, (14, 10), clip=0), atol=1e-5)


def test_colours_over_white_and_over_a_photo() -> None:
    levels = np.array([[-1, 0], [0, 1]], np.float32)[None, None]
    alone = signed(levels)
    np.testing.assert_array_equal(alone[0, 0, 0, 0], diverging()[0])
    np.testing.assert_array_equal(alone[0, 0, 1, 1], diverging()[255])
    assert (alone[0, 0, 0, 1] > 245).all()
    photo = np.array([[0, 255], [128, 255]], np.uint8)[None, ..., None].repeat(3, axis=3)
    over = signed(levels, photo, alpha=0.5)
    np.testing.assert_allclose(over[0, 0, 0, 0], diverging()[0] * 0.5, atol=0.51)  # black: half the light
    np.testing.assert_array_equal(over[0, 0, 1, 1], diverging()[255])  # white: the colour itself
    np.testing.assert_array_equal(signed(levels, photo, alpha=1), alone)
    green = np.full((1, 2, 2, 3), (0, 255, 0), np.uint8)
    assert np.ptp(signed(levels * 0, green, alpha=0)[0, 0, 0, 0].astype(int)) <= 2  # the photo is grey


@pytest.mark.parametrize("clip", [-0.1, 1.0, 2])
def test_clip_out_of_range(raw: np.ndarray, clip: float) -> None:
    with pytest.raises(InputError, match="0 ≤ clip < 1"):
        signed_levels(raw, (9, 9), clip)


def test_maps_that_do_not_fit(raw: np.ndarray) -> None:
    with pytest.raises(InputError, match="no raw maps"):
        signed_levels((), (9, 9))
    with pytest.raises(InputError, match=re.escape("(N, K, h, w)")):
        signed_levels((raw, raw[:1]), (9, 9))
    levels = signed_levels(raw, (9, 9))
    for images in (np.zeros((2, 9, 8, 3), np.uint8), np.zeros((2, 9, 9, 3)), np.zeros((1, 9, 9, 3), np.uint8)):
        with pytest.raises(InputError, match=re.escape("(2, 9, 9, 3)")):
            signed(levels, images)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="opacity"):
        signed(levels, alpha=1.5)


def test_the_explanation_has_it(cnn: Any, images: np.ndarray) -> None:
    result = pycam.Explainer(cnn())(images, "top2")
    photos = np.full((len(images), *result.heatmaps.shape[2:], 3), 200, np.uint8)
    made = result.signed(photos, clip=0)
    assert made.shape == (*result.heatmaps.shape, 3)
    assert made.dtype == np.uint8
    positive = signed_levels(result.raw, result.heatmaps.shape[2:], clip=0) > 0  # red where a heatmap may be
    assert (made[..., 0].astype(int) >= made[..., 2])[positive].all()
    with pytest.raises(InputError, match="uint8 images of shape"):
        result.signed(photos[:, :-1])
    with pytest.raises(ImageError, match="for signed maps"):
        result.signed(colormap="jet")
