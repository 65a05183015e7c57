"""RefineCAM, SESS and DFF, against numpy and pytorch-grad-cam's own results."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import pycam
from pycam.errors import MethodError, OutputError, TargetError
from pycam.runtime import algebra

TARGETS = np.array([[3, 7], [0, 12]])


def unit(m: np.ndarray) -> np.ndarray:
    """`s` of the reference pipeline, per map (…, h, w)."""
    lifted = m - m.min((-2, -1), keepdims=True)
    return np.asarray(lifted / (1e-7 + lifted.max((-2, -1), keepdims=True)))


def final(raw: np.ndarray, size: tuple[int, int], bilinear: Any) -> np.ndarray:
    return unit(bilinear(unit(np.maximum(raw, 0)), size))


# ── RefineCAM ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("layers", [["early", "features"], ["early", "late", "features"]])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_refinecam(cnn: Any, images: np.ndarray, layers: list[str], layout: str) -> None:
    x = images[:2] if layout == "NCHW" else np.ascontiguousarray(images[:2].transpose(0, 2, 3, 1))
    model = cnn("conv", layout=layout)
    result = pycam.Explainer(model, "refinecam", layers)(x, TARGETS)
    parts = [pycam.Explainer(model, "gradcam++", layer)(x, TARGETS).heatmaps for layer in layers]
    np.testing.assert_allclose(result.raw, np.prod(parts, axis=0), atol=1e-5)
    np.testing.assert_allclose(result.heatmaps, unit(np.prod(parts, axis=0)), atol=1e-5)
    assert result.raw.shape == (2, 2, 16, 16)
    assert result.layer == ", ".join(layers)


def test_refinecam_of_one_layer_is_gradcam_plus_plus(cnn: Any, images: np.ndarray) -> None:
    result = pycam.Explainer(cnn("mlp"), "refinecam")(images[:2], TARGETS)
    other = pycam.Explainer(cnn("mlp"), "gradcam++")(images[:2], TARGETS)
    np.testing.assert_allclose(result.heatmaps, other.heatmaps, atol=1e-5)


def test_refinecam_smoothed_and_exported(cnn: Any, images: np.ndarray, tmp_path: Path) -> None:
    model = cnn("conv", height="H", width="W")
    options: dict[str, Any] = {"method": "refinecam", "layer": ["early", "features"]}
    here = pycam.Explainer(model, **options)(images[:2], TARGETS)
    for path in (tmp_path / "explain.onnx", tmp_path / "explain"):
        pycam.export(model, path, **options)
        there = pycam.Explainer(path)(images[:2], TARGETS)
        np.testing.assert_allclose(there.heatmaps, here.heatmaps, atol=1e-5)
    smooth = pycam.Explainer(model, **options, eigen_smooth=True)(images[:2], TARGETS)
    parts = [
        pycam.Explainer(model, "gradcam++", layer, eigen_smooth=True)(images[:2], TARGETS).heatmaps
        for layer in options["layer"]
    ]
    np.testing.assert_allclose(smooth.heatmaps, unit(np.prod(parts, axis=0)), atol=1e-5)


REFINED = {"cnn_linear": ("middle", "last"), "cnn_mlp": ("features.5", "features.8"), "vit": ("blocks.1.norm1", "last")}


@pytest.mark.parametrize("name", REFINED)
def test_refinecam_parity(peers: Any, name: str) -> None:
    peer = peers(name)
    layers = [peer.layers.get(layer, layer) for layer in REFINED[name]]
    result = pycam.Explainer(peer.path, "refinecam", layers)(peer.x, peer.targets)
    np.testing.assert_allclose(result.heatmaps, peer["refinecam/final"], atol=1e-3)


# ── SESS ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def starts(length: int, window: int) -> list[int]:
    return [min(i * window, length - window) for i in range(math.ceil(length / window))]


def blur(m: np.ndarray) -> np.ndarray:
    line = np.exp(-(np.arange(-5, 6) ** 2) / 50)
    line /= line.sum()
    padded = np.pad(m, ((0, 0), (0, 0), (5, 5), (5, 5)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (11, 11), (2, 3))
    return np.asarray(np.einsum("nkhwij,i,j->nkhw", windows, line, line))


def expected_sess(
    model: Any, x: np.ndarray, targets: np.ndarray, scales: int, window: tuple[int, int], bilinear: Any
) -> np.ndarray:
    """By the Grad-CAM and the scores of an Explainer on each crop, pasted by numpy."""
    explainer = pycam.Explainer(model, "gradcam", "features")
    shorter, size = min(x.shape[2:]), x.shape[2:]
    total, count, best = np.zeros((*targets.shape, *size)), np.zeros((*targets.shape, *size)), np.zeros(targets.shape)
    for i in range(scales):
        side = shorter + i * round(shorter * 2 / 7)
        scaled = (size[0] * side // shorter, size[1] * side // shorter)
        large = bilinear(x, scaled)
        for top in starts(scaled[0], window[0]):
            for left in starts(scaled[1], window[1]):
                place = np.s_[..., top : top + window[0], left : left + window[1]]
                found = explainer(np.ascontiguousarray(large[place], np.float32), targets)
                z = np.asarray(found.scores, np.float64)
                p = np.exp(z - z.max(1, keepdims=True))
                share = np.take_along_axis(p / p.sum(1, keepdims=True), targets, 1)
                canvas = np.zeros((*targets.shape, *scaled))
                canvas[place] = final(found.raw, window, bilinear)
                put = bilinear(canvas, size) * share[..., None, None]
                total, count, best = total + put, count + (put > 0), np.maximum(best, share)
    return blur(total / np.maximum(count, 1) / best[..., None, None])


@pytest.mark.parametrize("tail", ["gap", "conv"])
def test_sess(cnn: Any, relative: Any, bilinear: Any, images: np.ndarray, tail: str) -> None:
    model = cnn(tail)
    wanted = expected_sess(model, images[:2], TARGETS, 4, (16, 16), bilinear)
    result = pycam.Explainer(model, "sess", "features", scales=4)(images[:2], TARGETS)
    assert relative(result.raw, wanted) <= 1e-5
    np.testing.assert_allclose(result.heatmaps, unit(wanted), atol=1e-4)
    for batch in (1, 7, 64):
        other = pycam.Explainer(model, "sess", "features", scales=4, batch=batch)(images[:2], TARGETS)
        assert relative(other.raw, result.raw) <= 1e-6


@pytest.mark.parametrize("size", [(16, 16), (24, 16), (17, 30)])
def test_sess_of_any_size(cnn: Any, relative: Any, bilinear: Any, draw: Any, size: tuple[int, int]) -> None:
    """Where the model takes any size, windows are squares of the shorter side, counted when the graph runs."""
    model, x = cnn("conv", height="H", width="W"), draw(2, 3, *size, seed=4)
    wanted = expected_sess(model, x, TARGETS, 3, (min(size), min(size)), bilinear)
    result = pycam.Explainer(model, "sess", "features", scales=3)(x, TARGETS)
    assert relative(result.raw, wanted) <= 1e-5


def test_sess_of_fixed_sides_and_batch(
    cnn: Any, relative: Any, bilinear: Any, halved: Any, draw: Any, tmp_path: Path
) -> None:
    """Where the model fixes its input's sides, the window has them; where it fixes the batch to 1, one at a time."""
    x = draw(2, 3, 16, 20, seed=4)
    wanted = expected_sess(cnn("conv", height=16, width=20), x, TARGETS, 2, (16, 20), bilinear)
    model = cnn("conv", height=16, width=20, batch=1)
    here = pycam.Explainer(model, "sess", "features", scales=2)(x, TARGETS)
    assert relative(here.raw, wanted) <= 1e-5
    last = cnn("conv", height=16, width=20, layout="NHWC")
    turned = pycam.Explainer(last, "sess", "features", scales=2)(np.ascontiguousarray(x.transpose(0, 2, 3, 1)), TARGETS)
    assert relative(turned.raw, wanted) <= 1e-5
    half = pycam.Explainer(halved(cnn("conv", height=16, width=20)), "sess", "features", scales=2)(
        x.astype(np.float16), TARGETS
    )
    assert relative(half.raw, wanted) <= 3e-2
    path = pycam.export(model, tmp_path / "explain", method="sess", layer="features", scales=2)
    np.testing.assert_allclose(pycam.Explainer(path)(x, TARGETS).raw, here.raw, atol=1e-6)
    free = cnn("conv", height=16, width=20)
    path = pycam.export(free, tmp_path / "explain.onnx", method="sess", layer="features", scales=2)
    assert relative(pycam.Explainer(path)(x, TARGETS).raw, here.raw) <= 1e-5
    with pytest.raises(OutputError, match="raise batch="):
        pycam.export(free, tmp_path / "explain.onnx", method="sess", layer="features", scales=2, batch=4)


def test_sess_refuses(cnn: Any) -> None:
    with pytest.raises(MethodError, match="scales=0: give 1 or more"):
        pycam.Explainer(cnn("gap"), "sess", scales=0)
    with pytest.raises(MethodError, match="fixes one side alone"):
        pycam.Explainer(cnn("gap", height="H"), "sess")
    with pytest.raises(MethodError, match="one layer, and 2 were given"):
        pycam.Explainer(cnn("gap"), "sess", ["late", "features"])


@pytest.mark.parametrize("case", ["cnn_linear/sess", "cnn_linear/sess/wide", "vit/sess"])
def test_sess_parity(peers: Any, case: str) -> None:
    name, _, key = case.partition("/")
    peer = peers(name)
    model, x = onnx.load(peer.path), peer.x
    if key == "sess/wide":
        x = peer[f"{key}/x"]
        for dim, symbol in zip(model.graph.input[0].type.tensor_type.shape.dim[2:], "HW", strict=True):
            dim.dim_param = symbol
    result = pycam.Explainer(model, "sess", peer.layers["last"], scales=3)(x, peer.targets)
    np.testing.assert_allclose(result.heatmaps, peer[f"{key}/final"], atol=1e-3)


# ── DFF ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def features(net: Any) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: net("gap").forward(x)[1][1].reshape(len(x), 6, 8, 8)


@pytest.mark.parametrize("tail", ["gap", "flatten", "mlp", "conv"])
def test_dff(cnn: Any, net: Any, relative: Any, features: Any, images: np.ndarray, tail: str) -> None:
    """Maps and concepts put `A` together again as well as scikit-learn's own factorisation; scores are the tail's."""
    decomposition = pytest.importorskip("sklearn.decomposition")
    options = {"components": 3, "seed": 4, "iterations": 2000}
    result = pycam.Explainer(cnn(tail), "dff", "features", **options)(images[:2])
    a = features(images[:2])
    flat = a.swapaxes(0, 1).reshape(6, -1).astype(np.float32)
    least = flat.min(axis=1, keepdims=True)
    model = decomposition.NMF(3, init="random", random_state=4, max_iter=2000)
    concepts, maps = model.fit_transform(flat - least), model.components_
    order = np.argsort(-concepts.sum(0) * maps.sum(1))
    assert relative(result.raw, maps[order].reshape(3, 2, 8, 8).swapaxes(0, 1)) <= 1e-4
    layers = net(tail).layers[2:]
    z = np.repeat((concepts + least).T[order], 64, axis=1).astype(np.float64)
    for matrix, bias, activation in layers:
        z = z @ matrix.T + bias
        z = np.maximum(z, 0) if activation == "relu" else z
    assert result.extras["concepts"].shape == (2, 3, 20)
    for n in range(2):
        assert relative(result.extras["concepts"][n], z) <= 1e-4
        np.testing.assert_array_equal(result.targets[n], z.argmax(1))
    assert result.heatmaps.shape == (2, 3, 16, 16)


def test_dff_again_and_exported(cnn: Any, images: np.ndarray, halved: Any, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    options: dict[str, Any] = {"method": "dff", "layer": "features", "components": 2, "iterations": 2000}
    here = pycam.Explainer(cnn("mlp"), **options)(images)
    again = pycam.Explainer(cnn("mlp"), **options)(images)
    np.testing.assert_array_equal(again.raw, here.raw)
    other = pycam.Explainer(cnn("mlp"), **options, seed=1)(images)
    assert not np.array_equal(other.raw, here.raw)
    path = pycam.export(cnn("mlp"), tmp_path / "explain", **options)
    for found in (pycam.Explainer(path)(images), pycam.Explainer(path, head="graph")(images)):
        np.testing.assert_allclose(found.raw, here.raw, atol=1e-5)
        np.testing.assert_allclose(found.heatmaps, here.heatmaps, atol=1e-5)
        np.testing.assert_allclose(found.extras["concepts"], here.extras["concepts"], atol=1e-4)
        np.testing.assert_array_equal(found.targets, here.targets)
    one = pycam.export(cnn("mlp"), tmp_path / "one", classes=1, **options)
    np.testing.assert_allclose(pycam.Explainer(one)(images).raw, here.raw, atol=1e-5)
    half = pycam.Explainer(halved(cnn("mlp")), **options)(images.astype(np.float16))
    assert half.raw.dtype == np.float32
    last = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    turned = pycam.Explainer(cnn("mlp", layout="NHWC", height="H", width="W"), **options)(last)
    np.testing.assert_allclose(turned.raw, here.raw, atol=1e-3 * here.raw.max())
    single = pycam.Explainer(cnn("mlp", batch=1), **options)(images[:1])
    assert single.raw.shape == (1, 2, 8, 8)


def test_dff_refuses(
    cnn: Any, images: np.ndarray, text_model: Any, draw: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    pytest.importorskip("sklearn")
    for option in ("components", "iterations"):
        with pytest.raises(MethodError, match=f"{option}=0: give 1 or more"):
            pycam.Explainer(cnn("gap"), "dff", **{option: 0})
    with pytest.raises(MethodError, match=r"seed=-1: give 0 … 2"):
        pycam.Explainer(cnn("gap"), "dff", seed=-1)
    with pytest.raises(MethodError, match="objective='counterfactual' does not apply"):
        pycam.Explainer(cnn("gap"), "dff", objective="counterfactual")
    skip = text_model(
        """(float[N, 3, 8, 8] x) => (float[N, 3] y) {
            a = Relu(x) b = Sigmoid(a) c = Add(a, b) p = GlobalAveragePool(c) y = Flatten(p) }"""
    )
    with pytest.raises(MethodError, match="behind the layer 'b' the score also reads 'a'"):
        pycam.Explainer(skip, "dff", "b")
    explainer = pycam.Explainer(cnn("gap"), "dff", components=2)
    with pytest.raises(TargetError, match="finds by itself what it explains"):
        explainer(images[:1], 3)
    with pytest.raises(MethodError, match="aug_smooth averages maps of the same targets"):
        pycam.Explainer(cnn("gap"), "dff", components=2, aug_smooth=True)(images[:1])
    path = pycam.export(cnn("gap"), tmp_path / "explain", method="dff")
    monkeypatch.setattr(algebra.importlib.util, "find_spec", lambda name: None)
    for model, method in ((cnn("gap"), "dff"), (path, "gradcam")):
        with pytest.raises(MethodError, match=r"pip install 'pycam-onnx\[concepts\]'"):
            pycam.Explainer(model, method)


@pytest.mark.parametrize("name", ["cnn_linear", "cnn_mlp"])
def test_dff_parity(peers: Any, relative: Any, name: str) -> None:
    """With grad-cam 1.5.7, up to the order, and its maps are not stretched again after the resize."""
    pytest.importorskip("sklearn")
    peer = peers(name)
    result = pycam.Explainer(peer.path, "dff", peer.layers["last"], components=4)(peer.x)
    raw, scores = peer["dff/raw"], result.extras["concepts"][0]
    order = [int(np.argmin([np.abs(ours - raw[:, j]).max() for j in range(4)])) for ours in result.raw.swapaxes(0, 1)]
    assert sorted(order) == [0, 1, 2, 3]
    assert relative(result.raw, raw[:, order]) <= 1e-4
    np.testing.assert_allclose(result.heatmaps, unit(peer["dff/final"][:, order]), atol=1e-3)
    if name == "cnn_linear":  # behind the other's layer there is no one linear layer that the peer could be given
        assert relative(scores, peer["dff/scores"][order]) <= 1e-4
