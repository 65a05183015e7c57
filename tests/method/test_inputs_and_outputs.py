"""Methods with variants on models that have more than an image and scores: settings, other outputs, fixed sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import pycam
from pycam.errors import InputError, MethodError

BODY = """
    shifted = Sub(x, mean)
    late = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(shifted, w)
    features = Relu(late)
    pooled = GlobalMaxPool(features)
    flat = Flatten(pooled)
    raw = MatMul(flat, v)
    y = Div(raw, temperature)
"""


def settings_model(text_model: Any) -> Any:
    rng = np.random.default_rng(0)
    return text_model(
        f"""(float[N, 3, 8, 8] x, float[3, 1, 1] mean, float[1] temperature)
            => (float[N, 5] y, float peak, float[5, N] turned, float[5] anchors) {{ {BODY}
            peak = ReduceMax<keepdims = 0>(v)
            turned = Transpose<perm = [1, 0]>(y)
            anchors = Identity(a)
        }}""",
        w=rng.normal(size=(4, 3, 3, 3)).astype(np.float32),
        v=rng.normal(size=(4, 5)).astype(np.float32),
        a=np.arange(5, dtype=np.float32),
    )


OPTIONS: dict[str, dict[str, Any]] = {
    "gradcam": {},
    "scorecam": {},
    "ablationcam": {},
    "reciprocam": {},
    "rise": {"samples": 5, "cells": 2},
    "smoothgrad": {"samples": 3},
    "integrated_gradients": {"steps": 3},
}


@pytest.mark.parametrize("method", OPTIONS)
def test_settings_are_the_same_for_all_images(text_model: Any, draw: Any, method: str) -> None:
    """Also where a setting is as long as the batch: three images, a mean of three channels."""
    explainer = pycam.Explainer(settings_model(text_model), method, **OPTIONS[method])
    x = draw(3, 3, 8, 8)
    given = {"mean": draw(3, 1, 1), "temperature": np.array([0.5], np.float32)}
    together = explainer({"x": x, **given}, [[1, 2]] * 3)
    for n in range(3):
        alone = explainer({"x": x[n : n + 1], **given}, [[1, 2]])
        np.testing.assert_allclose(together.raw[n : n + 1], alone.raw, rtol=1e-4, atol=1e-5)


def test_outputs_are_joined_along_their_batch_axis(text_model: Any, draw: Any) -> None:
    model, x = settings_model(text_model), draw(2, 3, 8, 8)
    feeds = {"x": x, "mean": draw(3, 1, 1), "temperature": np.array([0.5], np.float32)}
    expected = pycam.Explainer(model, "gradcam")(feeds, 1).scores
    found = pycam.Explainer(model, "scorecam")(feeds, 1).scores
    assert isinstance(expected, dict)
    assert isinstance(found, dict)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, err_msg=name)


def test_a_value_whose_batch_axis_is_not_the_first_is_refused(text_model: Any) -> None:
    model = text_model(
        """(float[N, 3, 4, 4] x) => (float[N, 3] y) {
            a = Relu(x)
            p = GlobalMaxPool(a)
            f = Flatten(p)
            q = ReduceMean<keepdims = 0>(x, axes)
            side = Transpose<perm = [1, 0]>(q)
            turned = Transpose<perm = [1, 0]>(f)
            product = Mul(turned, side)
            y = Transpose<perm = [1, 0]>(product)
        }""",
        axes=np.array([2, 3]),
    )
    with pytest.raises(MethodError, match=r"also reads 'side'.*whose batch axis is not the first"):
        pycam.Explainer(model, "ablationcam", layer="a")


def test_a_score_of_zero_gives_a_flat_map(cnn: Any, draw: Any) -> None:
    """Ablation-CAM's weights are shares of the score; other targets do not suffer."""
    change = {
        "w_fc": np.vstack([np.zeros((1, 6)), np.random.default_rng(0).normal(size=(19, 6))]),
        "b_fc": np.zeros(20),
    }
    for tail in ("gap", "mlp"):
        result = pycam.Explainer(cnn(tail, change=change), "ablationcam", layer="features")(
            draw(1, 3, 16, 16), [[0, 1]]
        )
        assert result.flat.tolist() == [[True, False]]


def test_a_contrast_needs_two_classes(text_model: Any) -> None:
    model = text_model("(float[N, 2, 4, 4] x) => (float[N, 1] y) { a = Relu(x) p = ReduceMax<keepdims=0>(a, axes) "
                       "y = MatMul(p, w) }", axes=np.array([2, 3]), w=np.ones((2, 1), np.float32))  # fmt: skip
    with pytest.raises(MethodError, match="a contrast needs a second class"):
        pycam.Explainer(model, "gradcam", layer="a", objective="contrastive")


@pytest.mark.parametrize("method", ["eigencam", "eigengradcam"])
def test_numbers_that_overflow_are_said(cnn: Any, method: str) -> None:
    model = cnn(change={"w_conv2": np.full((6, 8, 3, 3), 3e38)})
    with pytest.raises(InputError, match="the explanation is not finite"):
        pycam.Explainer(model, method, layer="features")(np.full((1, 3, 16, 16), 1e30, np.float32), 1)


def test_a_level_that_is_the_same_everywhere_is_flat(cnn: Any, draw: Any) -> None:
    """RISE that masks nothing: what differs is rounding."""
    for head in ("cpu", "graph"):
        explainer = pycam.Explainer(cnn(), "rise", samples=3, probability=1.0, cells=2, head=head)
        result = explainer(draw(1, 3, 16, 16), 3)
        assert result.flat.all()
        assert not result.heatmaps.any()


def test_options_of_numpy_are_numbers(cnn: Any) -> None:
    explainer = pycam.Explainer(cnn(), "rise", samples=np.int64(4), cells=2, probability=np.float32(0.5))
    assert explainer.spec.options["samples"] == 4
    for wrong, message in (({"samples": 2.5}, "takes an integer"), ({"samples": True}, "takes an integer"),
                           ({"probability": np.ones(3)}, r"an array of shape \(3,\): .* takes a number")):  # fmt: skip
        with pytest.raises(MethodError, match=message):
            pycam.Explainer(cnn(), "rise", **wrong)


@pytest.mark.parametrize("batch", [0, -1, 1.5, None, "8", True])
def test_a_batch_is_a_number_of_rows(cnn: Any, batch: Any) -> None:
    with pytest.raises(InputError, match="give the number of rows"):
        pycam.Explainer(cnn(), "scorecam", batch=batch)
