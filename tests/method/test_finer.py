"""Finer-CAM and Shapley-CAM, against numpy in double and pytorch-grad-cam's own results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import pycam
from pycam.errors import MethodError

TARGETS = np.array([[3, 7], [0, 12]])
TOLERANCE = 1e-4  # quotients of small probabilities, and second derivatives


def finer_value(z: np.ndarray, t: int, alpha: float, references: int) -> float:
    """`Σ p_i(z_t − α·z_i)/(Σ p_i + 1e-9)`."""
    distance = np.abs(z - z[t])
    distance[t] = -1
    others = np.argsort(distance, kind="stable")[1 : references + 1]
    p = np.exp(z - z.max())
    p = p[others] / p.sum()
    return float((p * (z[t] - alpha * z[others])).sum() / (p.sum() + 1e-9))


def derivative(z: np.ndarray, *options: Any, step: float = 1e-5) -> np.ndarray:
    """`dy/dz`, by central differences."""
    moves = np.eye(len(z)) * step
    return np.array([(finer_value(z + e, *options) - finer_value(z - e, *options)) / (2 * step) for e in moves])


def expected_finer(net: Any, x: np.ndarray, targets: np.ndarray, alpha: float = 1.0, references: int = 3) -> np.ndarray:
    after = net.forward(x)[1]
    a, z = after[1].reshape(len(x), 6, 8, 8), after[-1]
    rows = np.stack([net.gradients(x, np.full(len(x), c))[2] for c in range(z.shape[1])], 1)  # (N, classes, 6·64)
    maps = np.empty((*targets.shape, 8, 8))
    for n, k in np.ndindex(targets.shape):
        g = derivative(z[n], targets[n, k], alpha, references) @ rows[n]
        maps[n, k] = np.einsum("c,chw->hw", g.reshape(6, 64).mean(1), a[n])
    return maps


@pytest.mark.parametrize("tail", ["gap", "flatten", "mlp", "conv"])
def test_finer(cnn: Any, net: Any, relative: Any, images: np.ndarray, tail: str) -> None:
    result = pycam.Explainer(cnn(tail), "finercam", "features")(images[:2], TARGETS)
    assert relative(result.raw, expected_finer(net(tail), images[:2], TARGETS)) <= TOLERANCE
    np.testing.assert_array_equal(result.targets, TARGETS)


@pytest.mark.parametrize(("alpha", "references"), [(0.6, 3), (0.0, 1), (1.5, 5), (1.0, 19), (1.0, 40)])
def test_finer_options(cnn: Any, net: Any, relative: Any, images: np.ndarray, alpha: float, references: int) -> None:
    """More references than there are other classes: all of them."""
    result = pycam.Explainer(cnn("mlp"), "finercam", alpha=alpha, references=references)(images[:2], TARGETS)
    wanted = expected_finer(net("mlp"), images[:2], TARGETS, alpha, references)
    assert relative(result.raw, wanted) <= TOLERANCE


def test_finer_with_an_unknown_number_of_classes(cnn: Any, net: Any, relative: Any, images: np.ndarray) -> None:
    """The last layer is an input of the model: how many classes there are is seen when it runs."""
    model, feeds = cnn("mlp"), {"x": images[:2]}
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "classes"
    for tensor in [t for t in model.graph.initializer if t.name in ("w_fc", "b_fc")]:
        feeds[tensor.name] = onnx.numpy_helper.to_array(tensor)
        shape = ["classes", *tensor.dims[1:]]
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, onnx.TensorProto.FLOAT, shape))
        model.graph.initializer.remove(tensor)
    for references in (3, 25):
        result = pycam.Explainer(model, "finercam", "features", references=references)(feeds, TARGETS[:, :1])
        wanted = expected_finer(net("mlp"), images[:2], TARGETS[:, :1], references=references)
        assert relative(result.raw, wanted) <= TOLERANCE


def test_bad_options(cnn: Any, text_model: Any, draw: Any) -> None:
    with pytest.raises(MethodError, match="references=0: compare with 1 class or more"):
        pycam.Explainer(cnn("gap"), "finercam", references=0)
    with pytest.raises(MethodError, match="alpha=nan"):
        pycam.Explainer(cnn("gap"), "finercam", alpha=float("nan"))
    with pytest.raises(MethodError, match="has an objective of its own, and objective='contrastive' was asked for"):
        pycam.Explainer(cnn("gap"), "finercam", objective="contrastive")
    one_class = text_model(
        """(float[N, 3, 8, 8] x) => (float[N, 1] y) {
            a = Relu(x) p = GlobalAveragePool(a) f = Flatten(p) y = MatMul(f, w) }""",
        w=draw(3, 1),
    )
    with pytest.raises(MethodError, match="holds a class against others, and the score has 1"):
        pycam.Explainer(one_class, "finercam", "a")


# ── Shapley-CAM ─────────────────────────────────────────────────────────────────────────────────────────────────────

SMOOTH = """(float[N, 3, 8, 8] x) => (float[N, 5] y) {
    a = Conv<pads = [1, 1, 1, 1]>(x, w1)
    b = Conv<pads = [1, 1, 1, 1]>(a, w2)
    s = Sigmoid(b) c = Mul(s, b)
    p = GlobalAveragePool(c) f = Flatten(p)
    h = MatMul(f, w3) t = Tanh(h)
    y = MatMul(t, w4) }"""


@pytest.fixture(scope="module")
def smooth(text_model: Any, draw: Any) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    shapes = {"w1": (4, 3, 3, 3), "w2": (6, 4, 3, 3), "w3": (6, 6), "w4": (6, 5)}
    arrays = {name: draw(*shape, seed=i) * 0.7 for i, (name, shape) in enumerate(shapes.items())}
    return text_model(SMOOTH, **arrays), arrays


def conv(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (2, 3))
    return np.einsum("nchwij,mcij->nmhw", windows, w)


def tail_gradient(a: np.ndarray, w: dict[str, np.ndarray], target: int) -> np.ndarray:
    """`dy/dA` of `SMOOTH`, by hand."""
    b = conv(a, w["w2"])
    s = 1 / (1 + np.exp(-b))
    t = np.tanh((s * b).mean((2, 3)) @ w["w3"])
    dc = ((w["w4"][:, target] * (1 - t**2)) @ w["w3"].T / b[0, 0].size)[:, :, None, None]
    return conv(dc * (s + b * s * (1 - s)), w["w2"].transpose(1, 0, 2, 3)[:, :, ::-1, ::-1])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_shapley(smooth: tuple[onnx.ModelProto, dict[str, np.ndarray]], relative: Any, draw: Any, count: int) -> None:
    """`H·A` by central differences of the gradient along A, in double; all targets at once."""
    model, w = smooth
    w = {k: v.astype(np.float64) for k, v in w.items()}
    x, targets = draw(2, 3, 8, 8, seed=9), np.array([[0, 4, 2], [3, 1, 1]])[:, :count]
    a, step = conv(x.astype(np.float64), w["w1"]), 1e-5
    wanted = np.empty((2, count, 8, 8))
    change = 0.0
    for n, k in np.ndindex(2, count):
        one = a[n : n + 1]
        g, up, down = (tail_gradient(one * f, w, targets[n, k]) for f in (1, 1 + step, 1 - step))
        along = (up - down) / (2 * step)
        change = max(change, np.linalg.norm(along) / np.linalg.norm(g))
        wanted[n, k] = np.einsum("c,chw->hw", (g - 0.5 * along)[0].mean((1, 2)), one[0])
    assert change > 0.1  # else this shows nothing
    assert relative(pycam.Explainer(model, "shapleycam", "a")(x, targets).raw, wanted) <= TOLERANCE


def test_shapley_of_a_contrast_and_of_one_image(
    smooth: tuple[onnx.ModelProto, dict[str, np.ndarray]], relative: Any, draw: Any
) -> None:
    """It is linear in what is explained."""
    model, _ = smooth
    x, targets, against = draw(2, 3, 8, 8, seed=9), np.array([[0, 4], [3, 1]]), np.array([[1, 2], [0, 2]])
    plain = pycam.Explainer(model, "shapleycam", "a")
    contrast = pycam.Explainer(model, "shapleycam", "a", objective="contrastive")(x, targets, against)
    assert relative(contrast.raw, plain(x, targets).raw - plain(x, against).raw) <= TOLERANCE
    opposite = pycam.Explainer(model, "shapleycam", "a", objective="counterfactual")(x, targets)
    assert relative(-opposite.raw, plain(x, targets).raw) <= 1e-6
    one = pycam.Explainer(model, "shapleycam", "a")(x[1:], targets[1:])
    assert relative(one.raw, plain(x, targets).raw[1:]) <= 1e-5


@pytest.mark.parametrize("tail", ["gap", "flatten", "mlp", "vgg", "conv", "pooled"])
def test_shapley_of_a_piecewise_affine_tail(cnn: Any, images: np.ndarray, tail: str, tmp_path: Path) -> None:
    """There it is Grad-CAM, and the graph has no node more."""
    paths = {m: pycam.export(cnn(tail), tmp_path / f"{m}.onnx", method=m) for m in ("shapleycam", "gradcam")}
    nodes = {method: [n.op_type for n in onnx.load(path).graph.node] for method, path in paths.items()}
    assert nodes["shapleycam"] == nodes["gradcam"]
    results = [pycam.Explainer(path)(images[:2], TARGETS).raw for path in paths.values()]
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("method", ["finercam", "shapleycam"])
def test_layout_precision_layers_and_export(
    cnn: Any, relative: Any, halved: Any, images: np.ndarray, tmp_path: Path, method: str
) -> None:
    x = images[:2]
    here = pycam.Explainer(cnn("mlp"), method, "features")(x, TARGETS)
    last = pycam.Explainer(cnn("mlp", layout="NHWC"), method)(np.ascontiguousarray(x.transpose(0, 2, 3, 1)), TARGETS)
    assert relative(last.raw, here.raw) <= 1e-5
    one = pycam.Explainer(cnn("mlp", batch=1, height="H", width="W"), method)(x[1:], TARGETS[1:])
    assert relative(one.raw, here.raw[1:]) <= 1e-5
    half = pycam.Explainer(halved(cnn("mlp")), method)(x.astype(np.float16), TARGETS)
    assert half.raw.dtype == np.float32
    assert relative(half.raw, here.raw) <= 5e-2
    both = pycam.Explainer(cnn("mlp"), method, ["late", "features"])(x, TARGETS)
    assert relative(both.raw[1], here.raw) <= 1e-5
    for path in (tmp_path / "explain.onnx", tmp_path / "explain"):
        pycam.export(cnn("mlp"), path, method=method, layer="features")
        np.testing.assert_allclose(pycam.Explainer(path)(x, TARGETS).raw, here.raw, atol=1e-6)
    smooth = pycam.Explainer(cnn("mlp"), method, "features", eigen_smooth=True)(x, TARGETS)
    assert smooth.raw.shape == here.raw.shape
    assert not np.allclose(smooth.raw, here.raw)


@pytest.mark.parametrize("method", ["finercam", "shapleycam"])
@pytest.mark.parametrize("layer", ["cnn_linear/last", "cnn_mlp/last", "cnn_mlp/signed", "vit/last", "vit/stream"])
def test_parity(peers: Any, relative: Any, method: str, layer: str) -> None:
    """With grad-cam 1.5.7; in the ViT, `H·A` takes the class token along as it does."""
    name, where = layer.split("/")
    peer, suffix = peers(name), "" if where == "last" else f"/{where}"
    explainer = pycam.Explainer(peer.path, method, peer.layers[where])
    result = explainer(peer.x, peer.targets)
    assert relative(result.raw, peer[f"{method}{suffix}/raw"]) <= 1e-4
    np.testing.assert_allclose(result.heatmaps, peer[f"{method}{suffix}/final"], atol=1e-3)
    if method == "finercam":
        top = explainer(peer.x)
        assert relative(top.raw[:, 0], peer[f"finercam/default{suffix}/raw"]) <= 1e-4
