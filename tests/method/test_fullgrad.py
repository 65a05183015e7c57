"""FullGrad against its formula on gradients by matrices (`net` in conftest.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest

import pycam
from pycam.errors import MethodError

TARGETS = np.array([[3, 7], [0, 12]])
TOLERANCE = 1e-5


def scaled(m: np.ndarray) -> np.ndarray:
    """Each channel (…, h, w) min–maxed."""
    lifted = m - m.min((-2, -1), keepdims=True)
    return np.asarray(lifted / (1e-7 + lifted.max((-2, -1), keepdims=True)))


def fullgrad(
    x: np.ndarray, dx: np.ndarray, parts: Sequence[tuple[np.ndarray, np.ndarray]], bilinear: Any
) -> np.ndarray:
    """Raw map (N, K, H, W).

    Args:
        x: (N, C, H, W).
        dx: (N, K, C, H, W).
        parts: (bias (C,), gradients (N, K, C, h, w) for what it was added to), for each.
        bilinear: Resizes.
    """
    raw = scaled(np.abs(x[:, None] * dx)).sum(2)
    for bias, g in parts:
        raw = raw + bilinear(scaled(np.abs(bias[:, None, None] * g)), x.shape[2:]).sum(2)
    return np.asarray(raw)


def of_small_cnn(reference: Any, x: np.ndarray, bilinear: Any, bias: np.ndarray | None = None) -> np.ndarray:
    """Raw map: of the image, and of the biases of both convolutions (`bias` in place of the first one's)."""
    before, _ = reference.forward(x)
    dx, first, second = [], [], []
    for k in range(2):
        g0, g1, g2 = reference.gradients(x, TARGETS[:, k])[:3]
        (_, b1, kind), (_, b2, _) = reference.layers[:2]
        dx.append(g0.reshape(x.shape))
        slope = np.sign(before[0]) if kind == "abs" else before[0] > 0
        first.append((g1 * slope).reshape(2, 8, 8, 8))
        second.append((g2 * (before[1] > 0)).reshape(2, 6, 8, 8))
    parts = [(b1[::64] if bias is None else bias, np.stack(first, 1)), (b2[::64], np.stack(second, 1))]
    return fullgrad(x, np.stack(dx, 1), parts, bilinear)


@pytest.mark.parametrize("tail", ["gap", "flatten", "mlp"])
def test_raw_and_final(cnn: Any, net: Any, relative: Any, bilinear: Any, images: np.ndarray, tail: str) -> None:
    x = images[:2]
    wanted = of_small_cnn(net(tail), x, bilinear)
    result = pycam.Explainer(cnn(tail), "fullgrad")(x, TARGETS)
    assert relative(result.raw, wanted) <= TOLERANCE
    np.testing.assert_allclose(result.heatmaps, scaled(wanted), atol=1e-5)


def test_forms_of_the_model(
    cnn: Any, net: Any, relative: Any, bilinear: Any, halved: Any, images: np.ndarray, tmp_path: Any
) -> None:
    x = images[:2]
    wanted = of_small_cnn(net("mlp"), x, bilinear)
    last = pycam.Explainer(cnn("mlp", layout="NHWC"), "fullgrad")
    assert relative(last(np.ascontiguousarray(x.transpose(0, 2, 3, 1)), TARGETS).raw, wanted) <= TOLERANCE
    free = pycam.Explainer(cnn("mlp", height="H", width="W"), "fullgrad")
    assert relative(free(x, TARGETS).raw, wanted) <= TOLERANCE
    one = pycam.Explainer(cnn("mlp", batch=1), "fullgrad")
    assert relative(one(x[:1], TARGETS[:1]).raw, wanted[:1]) <= TOLERANCE
    half = pycam.Explainer(halved(cnn("mlp")), "fullgrad")(x.astype(np.float16), TARGETS)
    assert half.raw.dtype == np.float32
    assert relative(half.raw, wanted) <= 5e-2
    there = pycam.Explainer(pycam.export(cnn("mlp"), tmp_path / "explain.onnx", method="fullgrad"))(x, TARGETS)
    assert relative(there.raw, wanted) <= TOLERANCE


def test_batchnorm_behind_a_convolution_is_one_layer_with_it(
    cnn: Any, cnn_weights: Any, net: Any, relative: Any, bilinear: Any, images: np.ndarray
) -> None:
    x, w = images[:2], cnn_weights("mlp")
    scale = w["gamma"] / np.sqrt(w["variance"] + 1e-5)
    bias = w["beta"] + scale * (w["b_conv1"] - w["mean"])
    reference = net("mlp")
    matrix = reference.layers[0][0] * scale.repeat(64)[:, None]
    reference.layers[0] = (matrix, bias.repeat(64), "relu")
    wanted = of_small_cnn(reference, x, bilinear, bias)
    assert relative(pycam.Explainer(cnn("mlp", batchnorm=True), "fullgrad")(x, TARGETS).raw, wanted) <= TOLERANCE


BEFORE = """(float[N, 3, 6, 6] x) => (float[N, 4] y) {
    normal = BatchNormalization(x, gamma, beta, mean, variance)
    active = Relu(normal)
    wide = Conv<kernel_shape = [1, 1]>(active, w_wide)
    pooled = GlobalAveragePool(wide)
    squeezed = Conv<kernel_shape = [1, 1]>(pooled, w_last, b_last)
    y = Flatten(squeezed)
}"""


@pytest.fixture
def before(text_model: Any, draw: Any) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Batch normalisation in front; a convolution without bias; one whose output has a single position."""
    arrays = {name: draw(3, seed=i) for i, name in enumerate(("gamma", "beta", "mean"))}
    arrays |= {"variance": np.abs(draw(3, seed=4)) + 0.5, "w_wide": draw(5, 3, 1, 1), "w_last": draw(4, 5, 1, 1)}
    arrays["b_last"] = draw(4)
    return text_model(BEFORE, **arrays), arrays


def test_batchnorm_of_its_own(before: Any, relative: Any, bilinear: Any, draw: Any) -> None:
    model, w = before
    x = draw(2, 3, 6, 6, seed=9)
    deviation = np.sqrt(w["variance"] + 1e-5)
    slope = (w["gamma"] / deviation)[:, None, None]
    z = (x - w["mean"][:, None, None]) * slope + w["beta"][:, None, None]
    rows = (w["w_last"][:, :, 0, 0] @ w["w_wide"][:, :, 0, 0])[[[1, 2], [3, 0]]]  # (N, K, 3)
    dz = rows[..., None, None] / 36 * (z > 0)[:, None]
    bias = w["beta"] - w["mean"] * w["gamma"] / deviation
    wanted = fullgrad(x, dz * slope, [(bias, dz)], bilinear)
    result = pycam.Explainer(model, "fullgrad")(x, [[1, 2], [3, 0]])
    assert relative(result.raw, wanted) <= TOLERANCE


def test_constant_channels_add_nothing(text_model: Any, draw: Any, relative: Any) -> None:
    """A gradient that is the same everywhere is 0 after min–max, not noise blown up by it."""
    model = text_model(
        """(float[N, 3, 6, 6] x) => (float[N, 4] y) {
            wide = Conv<kernel_shape = [3, 3]>(x, w, b)
            pooled = GlobalAveragePool(wide)
            y = Flatten(pooled)
        }""",
        w=draw(4, 3, 3, 3), b=1e3 * draw(4),
    )  # fmt: skip
    x = draw(2, 3, 6, 6, seed=9)
    dx = pycam.Explainer(model, "gradient")(x, TARGETS % 4).extras["attributions"]
    wanted = scaled(np.abs(dx * x[:, None])).sum(2)
    assert relative(pycam.Explainer(model, "fullgrad")(x, TARGETS % 4).raw, wanted) <= TOLERANCE


def test_bad_input(cnn: Any, text_model: Any, draw: Any) -> None:
    with pytest.raises(MethodError, match="looks at the whole model, not at a layer"):
        pycam.Explainer(cnn(), "fullgrad", layer="features")
    with pytest.raises(MethodError, match="'fullgrad' has no option 'samples'"):
        pycam.Explainer(cnn(), "fullgrad", samples=3)
    fused = text_model(
        """(float[N, 3, 6, 6] x) => (float[N, 4] y) {
            wide = com.microsoft.FusedConv<activation = "Relu">(x, w, b)
            pooled = GlobalAveragePool(wide)
            y = Flatten(pooled)
        }""",
        w=draw(4, 3, 3, 3), b=draw(4),
    )  # fmt: skip
    fused.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(MethodError, match="the FusedConv node 'node_wide' has its own inside"):
        pycam.Explainer(fused, "fullgrad")


def test_biases_spelt_as_additions_count(text_model: Any, draw: Any) -> None:
    rng = np.random.default_rng(0)
    w, b = rng.normal(size=(4, 3, 3, 3)).astype(np.float32), rng.normal(size=4).astype(np.float32)
    v = rng.normal(size=(4, 5)).astype(np.float32)
    tail = "r = Relu(c) p = GlobalAveragePool(r) f = Flatten(p) y = MatMul(f, v)"
    inside = text_model(
        f"(float[N, 3, 8, 8] x) => (float[N, 5] y) {{ c = Conv<pads=[1,1,1,1]>(x, w, b) {tail} }}", w=w, b=b, v=v
    )
    beside = text_model(
        f"(float[N, 3, 8, 8] x) => (float[N, 5] y) {{ d = Conv<pads=[1,1,1,1]>(x, w) c = Add(d, b) {tail} }}",
        w=w,
        b=b.reshape(4, 1, 1),
        v=v,
    )
    x = draw(2, 3, 8, 8)
    maps = [pycam.Explainer(model, "fullgrad")(x, 2).raw for model in (inside, beside)]
    np.testing.assert_allclose(maps[1], maps[0], rtol=1e-4)
