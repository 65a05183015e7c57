"""Gradients of the real models in the shared folder, for the whole way from the output to the input.

The directional derivative is measured on the model itself, in float32: along the gradient and a random direction, half
and half. An error of the gradient shows there in full where it is a factor, and squared where it points elsewhere.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

import pycam

TOLERANCE = 0.01


@dataclass(frozen=True)
class Case:
    """The image input and its shape; what is differentiated, if not the first output (those saturate); the largest
    value of the input; the step, relative to it: as small as float32 allows."""

    input: str
    shape: tuple[int, int, int, int]
    output: str | None = None
    scale: float = 1.0
    step: float = 3e-4


def along(gradient: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A direction of length 1: half the gradient's, half a random one."""
    elsewhere = rng.normal(size=gradient.shape)
    direction = gradient / np.linalg.norm(gradient) + elsewhere / np.linalg.norm(elsewhere)
    return direction / np.linalg.norm(direction)


CASES = {
    "fashion_scene_cnn": Case("input", (2, 1, 64, 64)),
    "fer_emotion_deq": Case("x", (1, 64, 64, 1)),
    "human_blazeface": Case("input:0", (1, 256, 256, 3)),
    "human_centernet": Case("tower_0/images:0", (1, 512, 512, 3), step=1e-2),
    "human_faceres": Case("input_1:0", (1, 224, 224, 3), output="age_pred/Softmax:0", scale=255.0),
    "lite0": Case("input", (1, 3, 224, 224)),
    "lite0_w8": Case("input", (1, 3, 224, 224)),
    "mnist_cnn_tf": Case("conv2d_input", (2, 28, 28, 1)),
    "pong_policy": Case("frames", (2, 2, 80, 80)),
    "ppocr_det": Case("x", (1, 3, 64, 96), output="p2o.Add.281"),
    "ppocr_rec": Case("x", (1, 3, 48, 64)),
    "selfie_seg": Case("input_1", (1, 256, 256, 3), output="segment"),
}


def photo(shared: Path, shape: tuple[int, int, int, int]) -> np.ndarray:
    """A photo in [0, 1], cut into as many images as the batch has, in the layout that the shape has."""
    first = shape[1] <= 3
    height, width, channels = (*shape[2:], shape[1]) if first else shape[1:]
    with Image.open(shared / "images" / "astronaut.png") as image:
        pixels = np.asarray(image.convert("RGB").resize((width, height * shape[0])), dtype=np.float32) / 255
    x = pixels.reshape(shape[0], height, width, 3)[..., :channels]
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2) if first else x)


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_of_the_input(shared: Path, name: str, forward: Callable[..., dict[str, np.ndarray]]) -> None:
    case = CASES[name]
    model = onnx.load(shared / "models" / f"{name}.onnx")
    output = case.output or model.graph.output[0].name
    differentiated = pycam.vjp(shared / "models" / f"{name}.onnx", wrt=[case.input], output=case.output)
    if all(v.name != output for v in model.graph.output):
        model.graph.output.append(onnx.ValueInfoProto(name=output))
    x = photo(shared, case.shape) * np.float32(case.scale)
    y = forward(model, {case.input: x})

    rng = np.random.default_rng(zlib.crc32(name.encode()))
    cotangent = rng.normal(size=y[output].shape).astype(np.float32)
    got = forward(differentiated, {case.input: x, f"{output}.cotangent": cotangent})
    for key in {v.name for v in differentiated.graph.output} & set(y):
        np.testing.assert_allclose(got[key], y[key], rtol=1e-4, atol=1e-4 * np.abs(y[key]).max(), err_msg=key)
    gradient = got[f"{case.input}.gradient"]
    assert gradient.shape == x.shape

    direction = along(gradient, rng)
    step = case.step * case.scale

    def score(at: float) -> float:
        moved = (x + at * direction).astype(np.float32)
        return float((forward(model, {case.input: moved})[output].astype(np.float64) * cotangent).sum())

    measured = (score(step) - score(-step)) / (2 * step)
    assert measured == pytest.approx(float((gradient * direction).sum()), rel=TOLERANCE)


def test_the_gradient_through_an_if(shared: Path, forward: Callable[..., dict[str, np.ndarray]]) -> None:
    """The voice detector holds two networks for two sampling rates, in the branches of an If."""
    path = shared / "models" / "silero_vad.onnx"
    differentiated = pycam.vjp(path, wrt=["input"], output="output")
    rng = np.random.default_rng(0)
    for rate, samples in ((16000, 576), (8000, 288)):
        sound = (0.1 * rng.normal(size=(1, samples))).astype(np.float32)
        rest = {"state": rng.normal(size=(2, 1, 128)).astype(np.float32), "sr": np.array(rate)}
        cotangent = np.ones((1, 1), dtype=np.float32)
        gradient = forward(differentiated, {"input": sound, "output.cotangent": cotangent, **rest})["input.gradient"]
        direction = along(gradient, rng)
        up, down = (
            float(forward(path, {"input": (sound + at * direction).astype(np.float32), **rest})["output"][0, 0])
            for at in (1e-3, -1e-3)
        )
        assert (up - down) / 2e-3 == pytest.approx(float((gradient * direction).sum()), rel=TOLERANCE)
