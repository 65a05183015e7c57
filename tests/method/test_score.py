"""The Score-CAM family against its formulas, by matrices, and against the arrays of other libraries."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pycam
from pycam.compile import compile_model
from pycam.errors import MethodError

TARGETS = np.array([[3, 7], [0, 12]])
TOLERANCE = 1e-5
METHODS: dict[str, dict[str, Any]] = {
    "scorecam": {},
    "faster_scorecam": {"channels": 3},
    "sscam": {"samples": 3, "std": 0.5, "seed": 5},
    "iscam": {"samples": 4},
}
Scores = Callable[[np.ndarray], np.ndarray]


def corners(m: np.ndarray, size: int) -> np.ndarray:
    """(C, h, w) → (C, size, size), bilinear, with aligned corners."""
    at = np.arange(size) * (m.shape[-1] - 1) / (size - 1)
    matrix = np.maximum(1 - np.abs(at[:, None] - np.arange(m.shape[-1])), 0)
    return np.asarray(matrix @ m @ matrix.T)


def unit(m: np.ndarray) -> np.ndarray:
    """Each of (…, h, w) min-maxed."""
    lifted = m - m.min((-2, -1), keepdims=True)
    return np.asarray(lifted / (lifted.max((-2, -1), keepdims=True) + 1e-8))


def softmax(y: np.ndarray) -> np.ndarray:
    e = np.exp(y - y.max(0))
    return np.asarray(e / e.sum(0))


def noise(sample: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=[5, sample])).standard_normal((16, 16), dtype=np.float32)


def expected(method: str, x: np.ndarray, a: np.ndarray, score: Scores, bilinear: Any) -> np.ndarray:
    """Raw maps (K, h, w) of one image (3, 16, 16) with features (C, h, w); `score`: (M, 3, 16, 16) → (M, K)."""

    def masked(masks: np.ndarray) -> np.ndarray:
        return score(x * masks[:, None])

    if method == "scorecam":
        y = masked(unit(corners(a, 16)))
    elif method == "faster_scorecam":
        best = np.argsort(-a.var((1, 2)))[:3]
        a = a[best]
        y = masked(unit(corners(a, 16)))
    else:
        masks = bilinear(unit(a), (16, 16))
        noisy = [masks + 0.5 * noise(i) for i in range(3)]
        y = np.mean([masked(m) for m in (noisy if method == "sscam" else [i / 4 * masks for i in (1, 2, 3, 4)])], 0)
    return np.einsum("ck,chw->khw", softmax(y), a)


def reference(method: str, net: Any, x: np.ndarray, bilinear: Any) -> np.ndarray:
    features = net.forward(x)[1][1].reshape(len(x), 6, 8, 8)
    maps = [
        expected(method, image, a, lambda v, row=row: net.forward(v)[0][-1][:, row], bilinear)
        for image, a, row in zip(x, features, TARGETS, strict=True)
    ]
    return np.stack(maps)


@pytest.mark.parametrize("tail", ["gap", "conv"])
@pytest.mark.parametrize("method", METHODS)
def test_formula(cnn: Any, net: Any, relative: Any, bilinear: Any, images: np.ndarray, method: str, tail: str) -> None:
    wanted = reference(method, net(tail), images[:2], bilinear)
    explainer = pycam.Explainer(cnn(tail), method, layer="features", batch=4, **METHODS[method])
    result = explainer(images[:2], TARGETS)
    assert explainer.spec.plan == "perturb"
    assert relative(result.raw, wanted) <= TOLERANCE
    again = explainer(images[:2], TARGETS)
    np.testing.assert_array_equal(result.raw, again.raw)


@pytest.mark.parametrize("method", METHODS)
def test_forms_of_a_model(
    cnn: Any, relative: Any, images: np.ndarray, tmp_path: Path, halved: Any, method: str
) -> None:
    """Channels last, free sizes, one image at a time, float16, any batch of variants, exported: the same maps."""
    options = METHODS[method]

    def raw(model: Any, x: np.ndarray = images[:2], **more: Any) -> np.ndarray:
        return np.asarray(pycam.Explainer(model, method, layer="features", **more, **options)(x, TARGETS).raw)

    wanted = raw(cnn("conv"))
    assert relative(raw(cnn("conv"), batch=1), wanted) <= TOLERANCE
    assert relative(raw(cnn("conv", batch=1)), wanted) <= TOLERANCE
    assert relative(raw(cnn("conv", height="H", width="W")), wanted) <= TOLERANCE
    assert relative(raw(cnn("conv", layout="NHWC"), images[:2].transpose(0, 2, 3, 1)), wanted) <= TOLERANCE
    assert relative(raw(halved(cnn("conv")), images[:2].astype(np.float16)), wanted) <= 2e-2
    places = [tmp_path / "stages"] + [tmp_path / "one.onnx"] * (method != "sscam")  # which has noise, drawn by numpy
    for place in places:
        pycam.export(cnn("conv"), place, method=method, layer="features", batch=32, **options)
        assert relative(pycam.Explainer(place)(images[:2], TARGETS).raw, wanted) <= TOLERANCE


@pytest.mark.parametrize("method", ["scorecam", "sscam", "iscam"])
def test_one_constant_channel_stands_for_all(
    cnn: Any, cnn_weights: Any, net: Any, forward: Any, relative: Any, bilinear: Any, images: np.ndarray, method: str
) -> None:
    """Channels 1 and 4 are 0 everywhere, and 5 is a constant that a resized map does not reproduce exactly."""
    w = cnn_weights("conv")
    weight, bias = w["w_conv2"].copy(), w["b_conv2"].copy()
    weight[[1, 4, 5]] = 0
    bias[[1, 4, 5]] = [-1, -1, 0.123456]
    change = {"w_conv2": weight, "b_conv2": bias}
    matrices = net("conv")
    matrices.layers[1] = net_layer(matrices.layers[1], [1, 4, 5], [0, 0, 0.123456])
    wanted = reference(method, matrices, images[:2], bilinear)
    model = cnn("conv", change=change)
    result = pycam.Explainer(model, method, layer="features", **METHODS[method])(images[:2], TARGETS)
    assert relative(result.raw, wanted) <= TOLERANCE

    graph = compile_model(model, method=method, layer="features", options=METHODS[method])
    assert graph.spec.recipe is not None
    ids = forward(graph.models["prepare"], {"x": images[:1], "targets": TARGETS[:1]})[graph.spec.recipe.ids or ""]
    samples, a = METHODS[method].get("samples", 1), matrices.forward(images[:1])[1][1].reshape(6, 64)
    dead = [c for c in range(6) if np.ptp(a[c]) == 0]
    run = [c for c in range(6) if c not in dead[1:]]
    assert len(dead) >= 3
    np.testing.assert_array_equal(ids, [c * samples + i for c in run for i in range(samples)])


def net_layer(layer: Any, channels: list[int], values: list[float]) -> Any:
    """A convolution whose `channels` are constant, as a matrix."""
    matrix, bias, activation = (part.copy() if isinstance(part, np.ndarray) else part for part in layer)
    for channel, value in zip(channels, values, strict=True):
        matrix[channel * 64 : channel * 64 + 64] = 0
        bias[channel * 64 : channel * 64 + 64] = value
    return matrix, bias, activation


def test_all_channels_are_scorecam(cnn: Any, images: np.ndarray, relative: Any) -> None:
    every = pycam.Explainer(cnn("conv"), "faster_scorecam", layer="features", channels=99)(images, 3)
    assert relative(every.raw, pycam.Explainer(cnn("conv"), "scorecam", layer="features")(images, 3).raw) <= TOLERANCE


def test_seed(cnn: Any, images: np.ndarray) -> None:
    def raw(**options: Any) -> np.ndarray:
        explainer = pycam.Explainer(cnn("conv"), "sscam", layer="features", samples=3, **options)
        return np.asarray(explainer(images, 3).raw)

    np.testing.assert_array_equal(raw(seed=1), raw(seed=1))
    assert np.abs(raw(seed=1) - raw(seed=2)).max() > 1e-3
    np.testing.assert_allclose(raw(std=0.0, seed=1), raw(std=0.0, seed=2), rtol=1e-6)


def test_objective(cnn: Any, net: Any, relative: Any, bilinear: Any, images: np.ndarray) -> None:
    x, matrices = images[:1], net("conv")
    a = matrices.forward(x)[1][1].reshape(6, 8, 8)
    wanted = expected("scorecam", x[0], a, lambda v: matrices.forward(v)[0][-1] @ np.eye(20)[:, [3]] * -1, bilinear)
    explainer = pycam.Explainer(cnn("conv"), "scorecam", layer="features", objective="counterfactual")
    assert relative(explainer(x, 3).raw[0], wanted) <= TOLERANCE


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("faster_scorecam", {"channels": 0}, "channels=0"),
        ("sscam", {"samples": 0}, "samples=0"),
        ("sscam", {"std": -1.0}, "std=-1"),
        ("sscam", {"std": float("inf")}, "std=inf"),
        ("sscam", {"seed": -1}, "seed=-1"),
        ("iscam", {"samples": -3}, "samples=-3"),
        ("iscam", {"samples": 2.5}, "samples"),
        ("scorecam", {"channels": 3}, "no option"),
    ],
)
def test_bad_options(cnn: Any, method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        pycam.Explainer(cnn(), method, layer="features", **options)


@pytest.mark.parametrize("method", [*METHODS, "rise", "occlusion"])
def test_an_image_of_integers(text_model: Any, draw: Any, method: str) -> None:
    model = text_model(
        """(uint8[N, 3, 8, 8] x) => (float[N, 5] y) {
            floats = Cast<to = 1>(x)
            features = Conv<kernel_shape = [3, 3]>(floats, w)
            pooled = GlobalAveragePool(features)
            y = Flatten(pooled)
        }""",
        w=draw(5, 3, 3, 3),
    )
    with pytest.raises(MethodError, match="takes UINT8"):
        pycam.Explainer(model, method)


@pytest.mark.parametrize(
    ("model", "case", "method", "layer", "options"),
    [
        ("cnn_linear", "scorecam", "scorecam", "last", {}),
        ("cnn_mlp", "scorecam", "scorecam", "last", {}),
        ("cnn_mlp", "scorecam/signed", "scorecam", "signed", {}),
        ("vit", "scorecam", "scorecam", "last", {}),
        ("vit", "scorecam/stream", "scorecam", "stream", {}),
        *(
            (model, case, method, "last", options)
            for model in ("cnn_linear", "cnn_mlp")
            for case, method, options in (
                ("sscam", "sscam", {"samples": 8, "std": 0.5, "seed": 11}),
                ("iscam/path", "iscam", {"samples": 6}),
            )
        ),
    ],
)
def test_peers(
    peers: Any, relative: Any, model: str, case: str, method: str, layer: str, options: dict[str, Any]
) -> None:
    peer = peers(model)
    result = pycam.Explainer(peer.path, method, peer.layers[layer], **options)(peer.x, peer.targets)
    assert relative(result.raw, peer[f"{case}/raw"]) <= 1e-4
    assert np.abs(result.heatmaps - peer[f"{case}/final"]).max() <= 1e-3


@pytest.mark.parametrize("method", [*METHODS, "ablationcam"])
def test_eigen_smooth(cnn: Any, relative: Any, images: np.ndarray, tmp_path: Path, method: str) -> None:
    """Weighted activations projected onto their first singular vector, behind the variants."""
    options = METHODS.get(method, {})

    def explain(**more: Any) -> np.ndarray:
        return np.asarray(pycam.Explainer(cnn("conv"), method, layer="features", **more, **options)(images, 3).raw)

    found = explain(eigen_smooth=True)
    assert found.shape == (3, 1, 8, 8)
    assert np.abs(found.mean((2, 3))).max() <= 1e-5 * np.abs(found).max()  # of centred features
    assert relative(explain(eigen_smooth=True, batch=3), found) <= 1e-4
    assert relative(found, explain()) > 1e-2
    place = pycam.export(
        cnn("conv"), tmp_path / "stages", method=method, layer="features", eigen_smooth=True, **options
    )
    np.testing.assert_array_equal(pycam.Explainer(place)(images, 3).raw, found)
