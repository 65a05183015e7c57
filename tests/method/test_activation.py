"""Methods that read activations, or singular vectors, against numpy in double and pytorch-grad-cam's own results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pycam
from pycam.errors import MethodError, OutputError

TARGETS = np.array([[3, 7], [0, 12]])
METHODS = ("eigencam", "eigengradcam", "segeigencam", "kpcacam", "fem", "mean_activation", "random")
UNTARGETED = ("eigencam", "kpcacam", "fem", "mean_activation", "random")  # the same for all targets
TAILS = ("gap", "flatten", "mlp", "conv")
TOLERANCE = 1e-5


def component(a: np.ndarray) -> np.ndarray:
    """(C, h, w) → X·v₁ (h, w), its peak positive."""
    rows = a.reshape(len(a), -1).T
    rows = rows - rows.mean(axis=0)
    found = rows @ np.linalg.svd(rows, full_matrices=False)[2][0]
    return np.asarray(found * np.sign(found[np.abs(found).argmax()])).reshape(a.shape[1:])


def kernel_component(a: np.ndarray) -> np.ndarray:
    rows = a.reshape(len(a), -1).T
    rows = rows - rows.mean(axis=0)
    kernel = np.tanh(rows @ rows.T / len(a) + 1)
    kernel = kernel - kernel.mean(axis=0) - kernel.mean(axis=1)[:, None] + kernel.mean()
    values, vectors = np.linalg.eigh(kernel)
    found = vectors[:, -1] * np.sqrt(values[-1])
    return np.asarray(found * np.sign(found[np.abs(found).argmax()])).reshape(a.shape[1:])


def frequency(a: np.ndarray, k: float = 2.0) -> np.ndarray:
    threshold = a.mean((1, 2), keepdims=True) + k * a.std((1, 2), keepdims=True)
    return np.einsum("c,chw->hw", (a > threshold).mean((1, 2)), a)


def drawn(a: np.ndarray, seed: int = 0) -> np.ndarray:
    w = np.random.Generator(np.random.Philox(key=[seed, 0])).random(len(a), dtype=np.float32) * 2 - 1
    return np.einsum("c,chw->hw", w.astype(np.float64), a)


MAPS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "eigencam": lambda a, g: component(a),
    "eigengradcam": lambda a, g: component(a * g),
    "segeigencam": lambda a, g: component(a * abs(g)),
    "kpcacam": lambda a, g: kernel_component(a),
    "fem": lambda a, g: frequency(a),
    "mean_activation": lambda a, g: a.mean(0),
    "random": lambda a, g: drawn(a),
}


def layer_of(net: Any, x: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A (N, C, h, w) and g (N, K, C, h, w) of the small CNN's features."""
    a = net.forward(x)[1][1].reshape(len(x), 6, 8, 8)
    g = [net.gradients(x, column)[2].reshape(len(x), 6, 8, 8) for column in targets.T]
    return a, np.stack(g, 1)


def expected(net: Any, method: str, x: np.ndarray, targets: np.ndarray) -> np.ndarray:
    a, g = layer_of(net, x, targets)
    return np.array([[MAPS[method](one, row) for row in rows] for one, rows in zip(a, g, strict=True)])


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("method", METHODS)
def test_raw_maps(cnn: Any, net: Any, relative: Any, images: np.ndarray, method: str, tail: str) -> None:
    result = pycam.Explainer(cnn(tail), method, "features")(images[:2], TARGETS)
    assert relative(result.raw, expected(net(tail), method, images[:2], TARGETS)) <= TOLERANCE
    np.testing.assert_array_equal(result.targets, TARGETS)
    assert result.heatmaps.shape == (2, 2, 16, 16)
    if method in UNTARGETED:
        np.testing.assert_array_equal(result.raw[:, 0], result.raw[:, 1])


@pytest.mark.parametrize("method", METHODS)
def test_layout_sizes_and_precision(
    cnn: Any, net: Any, relative: Any, halved: Any, images: np.ndarray, method: str
) -> None:
    x = images[:2]
    wanted = expected(net("mlp"), method, x, TARGETS)
    last = pycam.Explainer(cnn("mlp", layout="NHWC"), method)(np.ascontiguousarray(x.transpose(0, 2, 3, 1)), TARGETS)
    assert relative(last.raw, wanted) <= TOLERANCE
    one = pycam.Explainer(cnn("mlp", batch=1, height="H", width="W"), method)(x[1:], TARGETS[1:])
    assert relative(one.raw, wanted[1:]) <= TOLERANCE
    half = pycam.Explainer(halved(cnn("mlp")), method)(x.astype(np.float16), TARGETS)
    assert half.raw.dtype == np.float32
    assert relative(half.raw, wanted) <= (0.2 if method == "fem" else 3e-2)  # counts what is above a threshold


@pytest.mark.parametrize("method", METHODS)
def test_exported(cnn: Any, images: np.ndarray, tmp_path: Path, method: str) -> None:
    """What numpy computes needs a folder of stages; what is graph alone fits in one file as well."""
    here = pycam.Explainer(cnn("mlp"), method, "features")(images[:2], TARGETS)
    paths = [pycam.export(cnn("mlp"), tmp_path / "explain", method=method, layer="features")]
    if method in ("fem", "mean_activation", "random"):
        paths.append(pycam.export(cnn("mlp"), tmp_path / "explain.onnx", method=method, layer="features"))
    else:
        with pytest.raises(OutputError, match="this method runs in"):
            pycam.export(cnn("mlp"), tmp_path / "explain.onnx", method=method, layer="features")
    for path in paths:
        there = pycam.Explainer(path)(images[:2], TARGETS)
        np.testing.assert_allclose(there.raw, here.raw, atol=1e-6)
        np.testing.assert_allclose(there.heatmaps, here.heatmaps, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_several_layers(cnn: Any, images: np.ndarray, method: str) -> None:
    both = pycam.Explainer(cnn("conv"), method, ["late", "features"])(images[:2], TARGETS)
    assert isinstance(both.raw, tuple)
    for raw, layer in zip(both.raw, ("late", "features"), strict=True):
        alone = pycam.Explainer(cnn("conv"), method, layer)(images[:2], TARGETS)
        if method == "random" and layer == "features":
            assert not np.allclose(raw, alone.raw)  # each layer has weights of its own
        else:
            np.testing.assert_allclose(raw, alone.raw, atol=1e-6)


def test_options(cnn: Any, net: Any, relative: Any, images: np.ndarray) -> None:
    a, _ = layer_of(net("gap"), images, TARGETS[:1].repeat(3, 0))
    rare = pycam.Explainer(cnn("gap"), "fem", "features", k=1)(images)
    assert relative(rare.raw[:, 0], np.array([frequency(one, 1) for one in a])) <= TOLERANCE
    other = pycam.Explainer(cnn("gap"), "random", "features", seed=9)(images)
    assert relative(other.raw[:, 0], np.array([drawn(one, 9) for one in a])) <= TOLERANCE
    again = pycam.Explainer(cnn("gap"), "random", "features", seed=9)(images)
    np.testing.assert_array_equal(again.raw, other.raw)


def test_bad_options(cnn: Any) -> None:
    with pytest.raises(MethodError, match=r"k='2'.*takes a number"):
        pycam.Explainer(cnn("gap"), "fem", k="2")
    with pytest.raises(MethodError, match="seed=-1: it must lie in 0"):
        pycam.Explainer(cnn("gap"), "random", seed=-1)
    with pytest.raises(MethodError, match="no option 'k'"):
        pycam.Explainer(cnn("gap"), "eigencam", k=1.0)
    with pytest.raises(MethodError, match="eigen_smooth works on methods that weigh"):
        pycam.Explainer(cnn("gap"), "kpcacam", eigen_smooth=True)


@pytest.mark.parametrize("method", UNTARGETED)
@pytest.mark.parametrize("objective", ["counterfactual", "contrastive"])
def test_an_objective_that_would_change_nothing(cnn: Any, method: str, objective: str) -> None:
    with pytest.raises(MethodError, match=f"does not look at the score, so objective='{objective}' would"):
        pycam.Explainer(cnn("gap"), method, objective=objective)


def test_random_needs_a_known_number_of_channels(text_model: Any, draw: Any) -> None:
    model = text_model(
        """(float[N, 3, 8, 8] x, float[c, 3, 1, 1] w) => (float[N, c] y) {
            a = Conv(x, w) p = GlobalAveragePool(a) y = Flatten(p) }"""
    )
    with pytest.raises(MethodError, match=r"how many the layer 'a' .* has is not known then"):
        pycam.Explainer(model, "random", "a")


PEERS = {
    "eigencam": "eigencam", "eigengradcam": "eigengradcam", "segeigencam": "segeigencam", "kpcacam": "kpca_cam",
    "fem": "fem",
}  # fmt: skip


@pytest.mark.parametrize("method", PEERS)
@pytest.mark.parametrize("layer", ["cnn_linear/last", "cnn_mlp/last", "cnn_mlp/signed", "vit/last", "vit/stream"])
def test_parity(peers: Any, relative: Any, method: str, layer: str) -> None:
    """With grad-cam 1.5.7: up to sign, where a singular vector leaves it open."""
    name, where = layer.split("/")
    peer, key = peers(name), PEERS[method] + ("" if where == "last" else f"/{where}")
    result = pycam.Explainer(peer.path, method, peer.layers[where])(peer.x, peer.targets)
    shape = result.raw.shape
    open_sign = method in ("eigencam", "eigengradcam", "kpcacam")
    maps = [peer[f"{key}/{kind}"] for kind in ("raw", "final", "final_negated" if open_sign else "final")]
    raw, final, negated = (m[:, None] for m in maps) if method in UNTARGETED else maps
    sign = np.sign((result.raw * raw).sum((2, 3), keepdims=True)) if open_sign else np.ones((*shape[:2], 1, 1))
    assert relative(result.raw * sign, np.broadcast_to(raw, shape)) <= 1e-4
    np.testing.assert_allclose(result.heatmaps, np.where(sign < 0, negated, final), atol=1e-3)
