"""Pixel attribution by one gradient, against gradients by matrices (`net` in conftest.py)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import pycam
from pycam.errors import MethodError, TargetError

TARGETS = np.array([[3, 7], [0, 12]])
TOLERANCE = 1e-5
METHODS = ("gradient", "input_x_gradient", "guided_backprop", "deconvnet")


def expected(net: Any, method: str, x: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Attributions and raw map."""
    rules = {"guided_backprop": "guided", "deconvnet": "deconvnet"}.get(method, "exact")
    found = net.dx(x, targets, rules)
    if method == "input_x_gradient":
        found = found * x[:, None]
        return found, found.sum(2)
    return found, np.abs(found).max(2)


@pytest.mark.parametrize("tail", ["gap", "flatten", "mlp", "conv"])
@pytest.mark.parametrize("method", METHODS)
def test_gradients(cnn: Any, net: Any, relative: Any, images: np.ndarray, method: str, tail: str) -> None:
    x = images[:2]
    result = pycam.Explainer(cnn(tail), method)(x, TARGETS)
    found, raw = expected(net(tail), method, x, TARGETS)
    assert relative(result.extras["attributions"], found) <= TOLERANCE
    assert relative(result.raw, raw) <= TOLERANCE
    assert result.heatmaps.shape == (2, 2, 16, 16)
    positive = np.maximum(raw, 0)
    low, high = positive.min((2, 3), keepdims=True), positive.max((2, 3), keepdims=True)
    np.testing.assert_allclose(result.heatmaps, (positive - low) / (high - low), atol=1e-5)
    np.testing.assert_array_equal(result.targets, TARGETS)


@pytest.mark.parametrize("method", METHODS)
def test_layout_sizes_and_precision(
    cnn: Any, net: Any, relative: Any, halved: Any, images: np.ndarray, method: str
) -> None:
    x = images[:2]
    found, raw = expected(net("mlp"), method, x, TARGETS)
    last = pycam.Explainer(cnn("mlp", layout="NHWC"), method)(np.ascontiguousarray(x.transpose(0, 2, 3, 1)), TARGETS)
    assert relative(last.extras["attributions"], found) <= TOLERANCE
    assert relative(last.raw, raw) <= TOLERANCE
    one = pycam.Explainer(cnn("mlp", batch=1, height="H", width="W"), method)(x[1:], TARGETS[1:])
    assert relative(one.extras["attributions"], found[1:]) <= TOLERANCE
    assert relative(one.raw, raw[1:]) <= TOLERANCE
    half = pycam.Explainer(halved(cnn("mlp")), method)(x.astype(np.float16), TARGETS)
    assert half.raw.dtype == half.extras["attributions"].dtype == np.float32
    assert relative(half.raw, raw) <= 3e-2


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
@pytest.mark.parametrize("tail", ["gap", "conv"])
def test_guided_gradcam(
    cnn: Any, net: Any, relative: Any, bilinear: Any, images: np.ndarray, tail: str, interpolation: str
) -> None:
    x, reference = images[:2], net(tail)
    a = reference.forward(x)[1][1].reshape(2, 6, 8, 8)
    maps = []
    for k in range(2):
        g = reference.gradients(x, TARGETS[:, k])[2].reshape(2, 6, 8, 8)
        maps.append(np.maximum((g.mean((2, 3), keepdims=True) * a).sum(1), 0))
    cam = np.stack(maps, 1)
    large = bilinear(cam, (16, 16)) if interpolation == "bilinear" else cam.repeat(2, 2).repeat(2, 3)
    wanted = reference.dx(x, TARGETS, "guided") * large[:, :, None]
    result = pycam.Explainer(cnn(tail), "guided_gradcam", layer="features", interpolation=interpolation)(x, TARGETS)
    assert relative(result.extras["attributions"], wanted) <= TOLERANCE
    assert relative(result.raw, np.abs(wanted).max(2)) <= TOLERANCE
    last = pycam.Explainer(
        cnn(tail, layout="NHWC", batch=1), "guided_gradcam", layer="features", interpolation=interpolation
    )(np.ascontiguousarray(x[:1].transpose(0, 2, 3, 1)), TARGETS[:1])
    assert relative(last.extras["attributions"], wanted[:1]) <= TOLERANCE


@pytest.mark.parametrize("method", [*METHODS, "guided_gradcam"])
def test_exported(cnn: Any, images: np.ndarray, tmp_path: Any, method: str) -> None:
    x, model = images[:2], cnn("mlp")
    here = pycam.Explainer(model, method)(x, TARGETS)
    there = pycam.Explainer(pycam.export(model, tmp_path / "explain.onnx", method=method))(x, TARGETS)
    np.testing.assert_array_equal(there.raw, here.raw)
    np.testing.assert_array_equal(there.extras["attributions"], here.extras["attributions"])
    np.testing.assert_allclose(there.heatmaps, here.heatmaps, atol=1e-6)


def test_preprocessing_in_the_graph(cnn: Any, net: Any, relative: Any, tmp_path: Any) -> None:
    """Attributions are for the normalised image, channels first."""
    prepare = pycam.Preprocess(size=(16, 16), mean=(120.0, 110.0, 100.0), std=(60.0, 50.0, 40.0))
    path = pycam.export(cnn("mlp"), tmp_path / "explain.onnx", method="input_x_gradient", preprocess=prepare)
    pixels = np.random.default_rng(3).integers(0, 256, (2, 16, 16, 3), np.uint8)
    x = ((pixels - np.array([120.0, 110.0, 100.0])) / [60.0, 50.0, 40.0]).transpose(0, 3, 1, 2)
    result = pycam.Explainer(path)(pixels, TARGETS)
    assert relative(result.extras["attributions"], expected(net("mlp"), "input_x_gradient", x, TARGETS)[0]) <= TOLERANCE


def test_bad_input(cnn: Any, text_model: Any, images: np.ndarray) -> None:
    with pytest.raises(MethodError, match=r"interpolation='cubic': choose one of bilinear, nearest"):
        pycam.Explainer(cnn(), "guided_gradcam", interpolation="cubic")
    with pytest.raises(MethodError, match="works on one layer, and 2 were given"):
        pycam.Explainer(cnn(), "guided_gradcam", layer=["early", "features"])
    for method in METHODS:
        with pytest.raises(MethodError, match="looks at the whole model, not at a layer"):
            pycam.Explainer(cnn(), method, layer="features")
        with pytest.raises(MethodError, match="eigen_smooth works on methods that weigh activations"):
            pycam.Explainer(cnn(), method, eigen_smooth=True)
    pixels = text_model(
        "(uint8[N, 3, 4, 4] x) => (float[N, 3] y) { f = Cast<to = 1>(x) p = GlobalAveragePool(f) y = Flatten(p) }"
    )
    with pytest.raises(MethodError, match=r"needs the gradient for the image, and the input 'x' takes UINT8"):
        pycam.Explainer(pixels, "gradient")
    with pytest.raises(TargetError):
        pycam.Explainer(cnn(), "gradient")(images, [1, 2])
