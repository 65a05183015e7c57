"""Integrated Gradients, SmoothGrad, VarGrad and Smooth Grad-CAM++ against sums over gradients by matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import pycam
from pycam.errors import MethodError

TARGETS = np.array([[3, 7], [0, 12]])
TOLERANCE = 1e-5
NOISY: dict[str, Any] = {"samples": 6, "noise": 0.1, "seed": 11}


def noise(sample: int, shape: tuple[int, ...], seed: int = 11) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=[seed, sample])).standard_normal(shape, dtype=np.float32)


def noisy(x: np.ndarray) -> list[np.ndarray]:
    """The images with each of the 6 samples' noise, the same for all images but for its size."""
    span = x.max((1, 2, 3), keepdims=True) - x.min((1, 2, 3), keepdims=True)
    return [x + 0.1 * span * noise(i, x.shape[1:]) for i in range(6)]


@pytest.mark.parametrize("baseline", [0.0, -0.75])
@pytest.mark.parametrize("tail", ["gap", "mlp"])
def test_integrated_gradients(
    cnn: Any, net: Any, relative: Any, images: np.ndarray, tail: str, baseline: float
) -> None:
    x, reference = images[:2].astype(np.float64), net(tail)
    points = [baseline + (i + 0.5) / 10 * (x - baseline) for i in range(10)]
    wanted = (x - baseline)[:, None] * np.mean([reference.dx(p, TARGETS) for p in points], axis=0)
    gain = reference.forward(x)[0][-1] - reference.forward(np.full_like(x, baseline))[0][-1]
    error = wanted.sum((2, 3, 4)) - np.take_along_axis(gain, TARGETS, 1)
    explainer = pycam.Explainer(cnn(tail), "integrated_gradients", steps=10, baseline=baseline, batch=4)
    result = explainer(images[:2], TARGETS)
    assert explainer.spec.plan == "perturb"
    assert relative(result.extras["attributions"], wanted) <= TOLERANCE
    assert relative(result.raw, wanted.sum(2)) <= TOLERANCE
    np.testing.assert_allclose(result.extras["completeness"], error, atol=1e-5)
    assert np.abs(error).max() > 1e-3  # with so few steps there is one to report


def test_integrated_gradients_are_complete(cnn: Any, images: np.ndarray) -> None:
    """More steps, less error."""
    errors = [
        np.abs(pycam.Explainer(cnn("mlp"), "integrated_gradients", steps=steps)(images, 3).extras["completeness"]).max()
        for steps in (2, 200)
    ]
    assert errors[1] < 0.02 * errors[0]


@pytest.mark.parametrize("tail", ["gap", "mlp"])
def test_noise_on_gradients(cnn: Any, net: Any, relative: Any, images: np.ndarray, tail: str) -> None:
    x = images[:2]
    found = np.stack([net(tail).dx(v, TARGETS) for v in noisy(x)])
    for method, wanted in {"smoothgrad": found.mean(0), "vargrad": found.var(0)}.items():
        result = pycam.Explainer(cnn(tail), method, batch=4, **NOISY)(x, TARGETS)
        assert relative(result.extras["attributions"], wanted) <= TOLERANCE
        assert relative(result.raw, np.abs(wanted).max(2)) <= TOLERANCE


def test_without_noise(cnn: Any, net: Any, relative: Any, images: np.ndarray) -> None:
    wanted = net("mlp").dx(images[:2], TARGETS)
    smooth = pycam.Explainer(cnn("mlp"), "smoothgrad", samples=3, noise=0)(images[:2], TARGETS)
    assert relative(smooth.extras["attributions"], wanted) <= TOLERANCE
    variance = pycam.Explainer(cnn("mlp"), "vargrad", samples=3, noise=0)(images[:2], TARGETS)
    assert 0 <= variance.raw.min() <= variance.raw.max() <= 1e-6 * np.square(wanted).max()


@pytest.mark.parametrize("tail", ["mlp", "conv"])
def test_smooth_gradcam_plus_plus(cnn: Any, net: Any, relative: Any, images: np.ndarray, tail: str) -> None:
    x, reference = images[:2], net(tail)
    a = reference.forward(x)[1][1].reshape(2, 6, 8, 8)
    maps = []
    for k in range(2):
        g = np.stack([reference.gradients(v, TARGETS[:, k])[2].reshape(a.shape) for v in noisy(x)])
        first, second, third = ((g**p).mean(0) for p in (1, 2, 3))
        alpha = second / (2 * second + a.sum((2, 3), keepdims=True) * third + 1e-6)
        maps.append(((np.maximum(first, 0) * alpha).sum((2, 3), keepdims=True) * a).sum(1))
    explainer = pycam.Explainer(cnn(tail), "smoothgradcam++", layer="features", batch=4, **NOISY)
    assert explainer.spec.plan == "perturb"
    assert relative(explainer(x, TARGETS).raw, np.stack(maps, 1)) <= TOLERANCE


@pytest.mark.parametrize("tail", ["gap", "flatten"])
def test_noise_does_not_matter_to_affine_tails(cnn: Any, images: np.ndarray, tail: str) -> None:
    explainer = pycam.Explainer(cnn(tail), "smoothgradcam++", layer="features")
    plain = pycam.Explainer(cnn(tail), "gradcam++", layer="features")
    assert explainer.spec.plan == "single pass"
    np.testing.assert_allclose(explainer(images, 5).raw, plain(images, 5).raw, rtol=1e-5, atol=1e-7)


CASES: dict[str, dict[str, Any]] = {
    "integrated_gradients": {"steps": 6},
    "smoothgrad": NOISY,
    "vargrad": NOISY,
    "smoothgradcam++": NOISY | {"layer": "features"},  # behind which the tail is not affine
}


@pytest.mark.parametrize("method", CASES)
def test_forms_of_the_model(cnn: Any, relative: Any, images: np.ndarray, method: str) -> None:
    """The same for any batch, layout, free sizes, and a model that takes one image at a time."""
    x, options = images[:2], CASES[method]
    explainer = pycam.Explainer(cnn("conv"), method, **options)
    wanted = explainer(x, TARGETS)
    np.testing.assert_array_equal(explainer(x, TARGETS).raw, wanted.raw)  # bitwise
    turned = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    results = {
        "batch": pycam.Explainer(cnn("conv"), method, batch=1, **options)(x, TARGETS),
        "layout": pycam.Explainer(cnn("conv", layout="NHWC"), method, **options)(turned, TARGETS),
        "sizes": pycam.Explainer(cnn("conv", height="H", width="W"), method, **options)(x, TARGETS),
        "one": pycam.Explainer(cnn("conv", batch=1), method, **options)(x, TARGETS),
    }
    for name, result in results.items():
        assert relative(result.raw, wanted.raw) <= TOLERANCE, name
        assert result.extras.keys() == wanted.extras.keys()
        if "attributions" in wanted.extras:
            assert relative(result.extras["attributions"], wanted.extras["attributions"]) <= TOLERANCE, name


@pytest.mark.parametrize("method", CASES)
def test_exported(cnn: Any, images: np.ndarray, tmp_path: Any, method: str) -> None:
    """The stages in a folder give the same; without noise, so does one file with all variants in one batch."""
    x, options = images[:2], CASES[method]
    here = pycam.Explainer(cnn("conv"), method, **options)(x, TARGETS)
    paths = ["stages", "one.onnx"] if method == "integrated_gradients" else ["stages"]
    for path in paths:
        there = pycam.Explainer(pycam.export(cnn("conv"), tmp_path / path, method=method, **options))(x, TARGETS)
        np.testing.assert_allclose(there.raw, here.raw, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(there.heatmaps, here.heatmaps, atol=1e-5)
        assert there.extras.keys() == here.extras.keys()
        for key, array in here.extras.items():
            np.testing.assert_allclose(there.extras[key], array, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["smoothgrad", "vargrad", "smoothgradcam++"])
def test_seed_and_options(cnn: Any, images: np.ndarray, method: str) -> None:
    x, model = images[:1], cnn("conv")
    layer = CASES[method].get("layer", "auto")
    same, other, again = (
        pycam.Explainer(model, method, layer=layer, samples=3, seed=seed)(x, 3).raw for seed in (0, 1, 0)
    )
    np.testing.assert_array_equal(again, same)
    assert np.abs(same - other).max() > 1e-6
    for tail in ("gap", "mlp"):
        for options, message in {
            "samples=0: at least 1": {"samples": 0},
            "noise=-0.1: it is a share of the image's range": {"noise": -0.1},
            "noise=nan: it is a share": {"noise": float("nan")},
            "seed=-1: it must lie in 0": {"seed": -1},
            "takes an integer there": {"samples": 2.5},
        }.items():
            with pytest.raises(MethodError, match=options):
                pycam.Explainer(cnn(tail), method, **message)


def test_options_of_integrated_gradients(cnn: Any) -> None:
    with pytest.raises(MethodError, match="steps=0: at least 1"):
        pycam.Explainer(cnn(), "integrated_gradients", steps=0)
    with pytest.raises(MethodError, match="baseline=inf: give the value of a pixel"):
        pycam.Explainer(cnn(), "integrated_gradients", baseline=float("inf"))
    with pytest.raises(MethodError, match="takes batches of exactly 2"):
        pycam.Explainer(cnn(batch=2), "integrated_gradients")


def test_half_precision(cnn: Any, relative: Any, images: np.ndarray, halved: Any) -> None:
    x = images[:1]
    for method, options in CASES.items():
        wanted = pycam.Explainer(cnn("conv"), method, **options)(x, TARGETS[:1])
        result = pycam.Explainer(halved(cnn("conv")), method, **options)(x.astype(np.float16), TARGETS[:1])
        assert result.raw.dtype == np.float32
        assert relative(result.raw, wanted.raw) <= 5e-2, method
