"""BatchNormalization goes into the convolution before it, where that changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

import pycam
from pycam.graph.emit import finish
from pycam.graph.fold import fold_batchnorm
from pycam.graph.load import load
from pycam.graph.normalise import normalise

Net = Callable[..., onnx.ModelProto]


def folded(model: onnx.ModelProto, keep: tuple[str, ...] = ()) -> onnx.ModelProto:
    normal = normalise(load(model))
    values = {y.name: y for node in normal.graph for y in node.outputs}
    fold_batchnorm(normal.graph, keep=[values[name] for name in keep])
    return finish(normal, stand_alone=True)


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


BODY = """(float[N, 4, 6, 7] x) => (float[N, c, h, w] y) {{
    a = Conv<{attributes}>({inputs})
    b = BatchNormalization<epsilon = 0.01>(a, gamma, beta, mean, variance)
    y = Relu(b)
}}"""


@pytest.mark.parametrize(
    ("attributes", "shape", "bias"),
    [
        ("group = 1", (6, 4, 3, 3), True),
        ("group = 1", (6, 4, 3, 3), False),
        ("group = 4, strides = [2, 1]", (8, 1, 3, 3), True),
        ("group = 2, dilations = [2, 1], pads = [1, 0, 2, 1]", (6, 2, 2, 3), False),
        ("group = 1", (40, 4, 5, 5), True),  # large enough to be kept out of the protobuf
    ],
)
def test_equal_numbers(
    text_model: Any, draw: Any, forward: Any, attributes: str, shape: tuple[int, ...], bias: bool
) -> None:
    n = shape[0]
    arrays = {name: draw(n, seed=i) for i, name in enumerate(("gamma", "beta", "mean"))}
    arrays |= {"w": draw(*shape, seed=4), "variance": np.abs(draw(n, seed=5)) + 0.1}
    if bias:
        arrays["bias"] = draw(n, seed=6)
    model = text_model(BODY.format(attributes=attributes, inputs="x, w, bias" if bias else "x, w"), **arrays)
    x = draw(2, 4, 6, 7)
    result = folded(model)
    assert ops(result) == ["Conv", "Relu"]
    np.testing.assert_allclose(forward(result, {"x": x})["y"], forward(model, {"x": x})["y"], rtol=1e-4, atol=1e-5)


def test_not_when_the_convolution_is_the_layer(cnn: Net) -> None:
    assert "BatchNormalization" not in ops(folded(cnn(batchnorm=True)))
    assert "BatchNormalization" in ops(folded(cnn(batchnorm=True), keep=("before",)))


def test_not_when_the_convolution_is_read_twice(text_model: Any, draw: Any, forward: Any) -> None:
    arrays: dict[str, Any] = {name: draw(4, seed=i) for i, name in enumerate(("gamma", "beta", "mean"))}
    arrays |= {"w": draw(4, 4, 1, 1, seed=4), "variance": np.abs(draw(4, seed=5)) + 0.1}
    for body, outputs in (
        ("a = Conv(x, w) b = BatchNormalization(a, gamma, beta, mean, variance) y = Add(a, b)", ""),
        ("a = Conv(x, w) y = BatchNormalization(a, gamma, beta, mean, variance)", ", float[N, c2, h2, w2] a"),
    ):
        model = text_model(f"(float[N, 4, 6, 7] x) => (float[N, c, h, w] y{outputs}) {{ {body} }}", **arrays)
        result = folded(model)
        assert "BatchNormalization" in ops(result)
        x = draw(2, 4, 6, 7)
        np.testing.assert_allclose(forward(result, {"x": x})["y"], forward(model, {"x": x})["y"], rtol=1e-4, atol=1e-5)


def test_a_normalisation_that_is_an_output_keeps_its_name(text_model: Any, draw: Any, forward: Any) -> None:
    arrays: dict[str, Any] = {name: draw(4, seed=i) for i, name in enumerate(("gamma", "beta", "mean"))}
    arrays |= {"w": draw(4, 4, 1, 1, seed=4), "variance": np.abs(draw(4, seed=5)) + 0.1}
    body = "a = Conv(x, w) y = BatchNormalization(a, gamma, beta, mean, variance)"
    model = text_model(f"(float[N, 4, 6, 7] x) => (float[N, c, h, w] y) {{ {body} }}", **arrays)
    result = folded(model)
    assert ops(result) == ["Conv"]
    assert [v.name for v in result.graph.output] == ["y"]
    x = draw(2, 4, 6, 7)
    np.testing.assert_allclose(forward(result, {"x": x})["y"], forward(model, {"x": x})["y"], rtol=1e-4, atol=1e-5)


def test_a_normalisation_without_a_convolution_stays(text_model: Any, draw: Any) -> None:
    arrays: dict[str, Any] = {name: draw(4, seed=i) for i, name in enumerate(("gamma", "beta", "mean"))}
    body = "a = Relu(x) y = BatchNormalization(a, gamma, beta, mean, variance)"
    model = text_model(
        f"(float[N, 4, 6, 7] x) => (float[N, 4, 6, 7] y) {{ {body} }}", variance=np.ones(4, np.float32), **arrays
    )
    assert ops(folded(model)) == ["Relu", "BatchNormalization"]


@pytest.mark.parametrize("layer", ["before", "stem", "early", "features"])
def test_every_layer_around_it_can_be_explained(cnn: Net, images: np.ndarray, forward: Any, layer: str) -> None:
    """The normalisation itself may be the layer (`bn1`), and the convolution before it."""
    model = cnn(batchnorm=True)
    result = pycam.Explainer(model, layer=layer, method="hirescam")(images, 3)
    assert result.layer == layer
    np.testing.assert_allclose(result.scores, forward(model, {"x": images})["y"], rtol=1e-4, atol=1e-5)
