"""RISE and occlusion against their formulas, by matrices, and against the arrays of other libraries."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pycam
from pycam.errors import MethodError

TARGETS = np.array([[3, 7], [0, 12]])
TOLERANCE = 1e-5
RISE: dict[str, Any] = {"samples": 10, "cells": 3, "probability": 0.4, "seed": 7}
METHODS: dict[str, dict[str, Any]] = {"rise": RISE, "occlusion": {"window": [5, 4], "stride": [3, 2]}}


def cubic(cells: int, size: int) -> np.ndarray:
    """The matrix (size, cells) of a bicubic resize (coefficient −0.75), half-pixel centres, edges clamped."""
    matrix = np.zeros((size, cells))
    for row in range(size):
        at = (row + 0.5) * cells / size - 0.5
        for tap in range(math.floor(at) - 1, math.floor(at) + 3):
            t = abs(at - tap)
            near, far = 1.25 * t**3 - 2.25 * t**2 + 1, -0.75 * (t**3 - 5 * t**2 + 8 * t - 4)
            matrix[row, min(max(tap, 0), cells - 1)] += near if t <= 1 else far
    return matrix


def uniform(sample: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=[RISE["seed"], sample])).random(shape, dtype=np.float32)


def rise_masks(height: int, width: int) -> np.ndarray:
    masks = []
    for sample in range(RISE["samples"]):
        grid = uniform(sample, (3, 3)) < RISE["probability"]
        cell = (math.ceil(height / 3), math.ceil(width / 3))
        down, right = (int(u * np.float32(side)) for u, side in zip(uniform(sample + 2**32, (2,)), cell, strict=True))
        large = cubic(3, 4 * cell[0]) @ grid @ cubic(3, 4 * cell[1]).T
        masks.append(np.clip(large[down : down + height, right : right + width], 0, 1))
    return np.stack(masks)


def rise(net: Any, x: np.ndarray) -> np.ndarray:
    masks = rise_masks(16, 16)
    maps = []
    for image, row in zip(x, TARGETS, strict=True):
        y = net.forward(image * masks[:, None])[0][-1][:, row]
        maps.append(np.einsum("mk,mhw->khw", y, masks) / (RISE["samples"] * RISE["probability"]))
    return np.stack(maps)


def occlusion(
    net: Any, x: np.ndarray, window: tuple[int, int], stride: tuple[int, int], baseline: float = 0.0
) -> np.ndarray:
    total, often = np.zeros((2, 2, 16, 16)), np.zeros((16, 16))
    y = np.take_along_axis(net.forward(x)[0][-1], TARGETS, 1)
    starts = [range(0, 16 - w + s, s) for w, s in zip(window, stride, strict=True)]
    for top in starts[0]:
        for left in starts[1]:
            covered = np.zeros((16, 16), bool)
            covered[top : top + window[0], left : left + window[1]] = True
            less = np.take_along_axis(net.forward(np.where(covered, baseline, x))[0][-1], TARGETS, 1)
            total += (y - less)[:, :, None, None] * covered
            often += covered
    return total / often


@pytest.mark.parametrize("tail", ["gap", "conv"])
def test_rise(cnn: Any, net: Any, relative: Any, images: np.ndarray, tail: str) -> None:
    explainer = pycam.Explainer(cnn(tail), "rise", batch=4, **RISE)
    result = explainer(images[:2], TARGETS)
    assert explainer.spec.plan == "perturb"
    assert result.raw.shape == (2, 2, 16, 16)
    assert relative(result.raw, rise(net(tail), images[:2])) <= TOLERANCE
    np.testing.assert_array_equal(result.raw, explainer(images[:2], TARGETS).raw)
    other = pycam.Explainer(cnn(tail), "rise", **RISE | {"seed": 8})(images[:2], TARGETS)
    assert relative(other.raw, result.raw) > 1e-2


@pytest.mark.parametrize(
    ("options", "window", "stride", "baseline"),
    [
        ({}, (2, 2), (1, 1), 0.0),
        ({"window": 5}, (5, 5), (3, 3), 0.0),
        ({"window": [5, 4], "stride": [3, 2], "baseline": -0.5}, (5, 4), (3, 2), -0.5),
        ({"window": 16, "stride": 16}, (16, 16), (16, 16), 0.0),
        ({"window": (7, 3), "stride": 3, "baseline": 1}, (7, 3), (3, 3), 1.0),
    ],
)
def test_occlusion(
    cnn: Any,
    net: Any,
    relative: Any,
    images: np.ndarray,
    options: dict[str, Any],
    window: tuple[int, int],
    stride: tuple[int, int],
    baseline: float,
) -> None:
    explainer = pycam.Explainer(cnn("conv"), "occlusion", batch=7, **options)
    result = explainer(images[:2], TARGETS)
    assert relative(result.raw, occlusion(net("conv"), images[:2], window, stride, baseline)) <= TOLERANCE


@pytest.mark.parametrize("method", METHODS)
def test_forms_of_a_model(
    cnn: Any, relative: Any, images: np.ndarray, tmp_path: Path, halved: Any, method: str
) -> None:
    """Channels last, free sizes, one image at a time, float16, any batch of variants, exported: the same maps."""
    options = METHODS[method]

    def raw(model: Any, x: np.ndarray = images[:2], **more: Any) -> np.ndarray:
        return np.asarray(pycam.Explainer(model, method, **more, **options)(x, TARGETS).raw)

    wanted = raw(cnn("conv"))
    assert relative(raw(cnn("conv"), batch=1), wanted) <= TOLERANCE
    assert relative(raw(cnn("conv", batch=1)), wanted) <= TOLERANCE
    assert relative(raw(cnn("conv", height="H", width="W")), wanted) <= TOLERANCE
    assert relative(raw(cnn("conv", layout="NHWC"), images[:2].transpose(0, 2, 3, 1)), wanted) <= TOLERANCE
    assert relative(raw(halved(cnn("conv")), images[:2].astype(np.float16)), wanted) <= 2e-2
    for place in [tmp_path / "stages"] + [tmp_path / "one.onnx"] * (method == "occlusion"):
        pycam.export(cnn("conv"), place, method=method, batch=64, **options)
        assert relative(pycam.Explainer(place)(images[:2], TARGETS).raw, wanted) <= TOLERANCE


@pytest.mark.parametrize("method", METHODS)
def test_an_image_that_is_not_square(cnn: Any, relative: Any, images: np.ndarray, method: str) -> None:
    """Of free sizes and of fixed ones; the masks fit it."""
    x = images[:2, :, :11, :14]
    found = [
        pycam.Explainer(cnn("conv", **sizes), method, **METHODS[method])(x, TARGETS).raw
        for sizes in ({"height": "H", "width": "W"}, {"height": 11, "width": 14})
    ]
    assert found[0].shape == (2, 2, 11, 14)
    assert relative(found[0], found[1]) <= TOLERANCE


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("rise", {"samples": 0}, "samples=0"),
        ("rise", {"cells": 0}, "cells=0"),
        ("rise", {"cells": 17}, "cells=17: the image is 16×16"),
        ("rise", {"probability": 0.0}, "probability=0.0"),
        ("rise", {"probability": 1.5}, "probability=1.5"),
        ("rise", {"seed": 2**64}, "seed="),
        ("occlusion", {"window": 0}, "window=0"),
        ("occlusion", {"window": True}, "window=True"),
        ("occlusion", {"window": [3, 4, 5]}, "window="),
        ("occlusion", {"window": "9x7"}, "window='9x7'"),
        ("occlusion", {"window": 17}, "the image is 16×16"),
        ("occlusion", {"window": 4, "stride": 5}, "leave pixels out"),
        ("occlusion", {"stride": 3}, "leave pixels out"),
        ("occlusion", {"stride": [1.5, 2]}, "stride="),
        ("occlusion", {"baseline": float("nan")}, "baseline=nan"),
    ],
)
def test_bad_options(cnn: Any, method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        pycam.Explainer(cnn(), method, **options)


@pytest.mark.parametrize("method", METHODS)
def test_they_look_at_no_layer(cnn: Any, method: str) -> None:
    with pytest.raises(MethodError, match="whole model"):
        pycam.Explainer(cnn(), method, layer="features")


@pytest.mark.parametrize("model", ["cnn_linear", "cnn_mlp", "vit"])
def test_peers(peers: Any, relative: Any, model: str) -> None:
    """openvino_xai does not divide the sum of RISE."""
    peer = peers(model)
    result = pycam.Explainer(peer.path, "rise", samples=32, cells=4, seed=11)(peer.x, peer.targets)
    assert relative(result.raw * 32 * 0.5, peer["rise/raw"]) <= 1e-4
    np.testing.assert_allclose(result.heatmaps, peer["rise/scaled"], rtol=0, atol=1e-3)
    result = pycam.Explainer(peer.path, "occlusion", window=[9, 7], stride=[4, 3])(peer.x, peer.targets)
    for channel in range(3):  # captum gives every channel that a window covers the same
        assert relative(result.raw, peer["occlusion/attributions"][:, :, channel]) <= 1e-4
