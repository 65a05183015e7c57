"""What test modules share: a small seeded CNN in many forms, the model and the photos that ship, the shared folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

ASSETS = Path(__file__).parents[1] / "pycam" / "assets"

CLASSES, CHANNELS, SIZE = 20, 6, 16

# From the features (N, 6, 8, 8) to the logits (N, 20), by the name of the tail.
TAILS = {
    "gap": """
        pooled = GlobalAveragePool(features)
        flat = Flatten(pooled)
        logits = Gemm<transB = 1>(flat, w_fc, b_fc)""",
    "mean": """
        axes = Constant<value_ints = [2, 3]>()
        pooled = ReduceMean<keepdims = 0>(features, axes)
        logits = Gemm<transB = 1>(pooled, w_fc, b_fc)""",
    "flatten": """
        flat = Flatten(features)
        logits = Gemm<transB = 1>(flat, w_flat, b_fc)""",
    "mlp": """
        pooled = GlobalAveragePool(features)
        flat = Flatten(pooled)
        hidden = Gemm(flat, w_hidden)
        active = Relu(hidden)
        logits = Gemm<transB = 1>(active, w_fc, b_fc)""",
    "vgg": """
        flat = Flatten(features)
        hidden = Gemm<transB = 1>(flat, w_wide)
        active = Relu(hidden)
        logits = Gemm<transB = 1>(active, w_last, b_fc)""",
    "pooled": """
        pooled = MaxPool<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]>(features)
        flat = Flatten(pooled)
        hidden = Gemm<transB = 1>(flat, w_pooled)
        active = Relu(hidden)
        logits = Gemm<transB = 1>(active, w_last, b_fc)""",
    "conv": """
        more = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(features, w_conv3)
        active = Relu(more)
        pooled = GlobalAveragePool(active)
        flat = Flatten(pooled)
        logits = Gemm<transB = 1>(flat, w_fc, b_fc)""",
    "turned": """
        pooled = GlobalAveragePool(features)
        flat = Flatten(pooled)
        turned = Transpose<perm = [1, 0]>(flat)
        product = MatMul(w_fc, turned)
        logits = Transpose<perm = [1, 0]>(product)""",
}


def weights(tail: str = "gap", seed: int = 0) -> dict[str, np.ndarray]:
    """Every weight of the small CNN, drawn; the names are those of the text."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int, scale: float = 1.0) -> np.ndarray:
        fan = int(np.prod(shape[1:])) or 1
        return (rng.normal(size=shape) * scale / np.sqrt(fan)).astype(np.float32)

    return {
        "w_conv1": draw(8, 3, 3, 3, scale=2.0),
        "b_conv1": draw(8),
        "gamma": rng.uniform(0.5, 1.5, 8).astype(np.float32),
        "beta": draw(8),
        "mean": draw(8),
        "variance": rng.uniform(0.5, 2.0, 8).astype(np.float32),
        "w_conv2": draw(CHANNELS, 8, 3, 3, scale=2.0),
        "b_conv2": draw(CHANNELS),
        "w_conv3": draw(CHANNELS, CHANNELS, 3, 3, scale=2.0),
        "w_hidden": draw(CHANNELS, CHANNELS, scale=3.0),
        "w_fc": draw(CLASSES, CHANNELS),
        "w_flat": draw(CLASSES, CHANNELS * 64),
        "b_fc": draw(CLASSES),
        "w_wide": draw(16, CHANNELS * 64, scale=2.0),
        "w_pooled": draw(16, CHANNELS * 16, scale=2.0),
        "w_last": draw(CLASSES, 16),
    }


def small_cnn(
    tail: str = "gap",
    *,
    batch: int | str = "N",
    height: int | str = SIZE,
    width: int | str = SIZE,
    layout: str = "NCHW",
    channels: int = 3,
    end: str = "",
    batchnorm: bool = False,
    opset: int = 18,
    extra_output: str = "",
    extra_input: bool = False,
    seed: int = 0,
    change: Mapping[str, Any] | None = None,
) -> onnx.ModelProto:
    """Conv, (BatchNormalization,) Relu, Conv, Relu = `features`, then one of `TAILS`; the output is `y`.

    Args:
        tail: A key of `TAILS`.
        batch, height, width: Of the input `x`: a size or a symbol.
        layout: "NHWC" puts a Transpose behind the input.
        channels: Of the input.
        end: "Softmax", "LogSoftmax", "Sigmoid", "Dropout" or "" (the logits).
        batchnorm: Put a BatchNormalization behind the first convolution.
        opset: Of the model.
        extra_output: Name of a value inside that is a second output.
        extra_input: A second input, `shift` (1, 6, 1, 1), which is added to the features.
        seed: Of the weights.
        change: Weights to use in place of the drawn ones.
    """
    axes = {"NCHW": [channels, height, width], "NHWC": [height, width, channels]}[layout]
    shape = ", ".join(map(str, [batch, *axes]))
    first = "before = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]>(image, w_conv1, b_conv1)"
    image = "image = Transpose<perm = [0, 3, 1, 2]>(x)" if layout == "NHWC" else "image = Identity(x)"
    norm = "stem = BatchNormalization(before, gamma, beta, mean, variance)" if batchnorm else "stem = Abs(before)"
    last = "rectified = Relu(late) features = Add(rectified, shift)" if extra_input else "features = Relu(late)"
    body = f"""
        {image}
        {first}
        {norm}
        early = Relu(stem)
        late = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(early, w_conv2, b_conv2)
        {last}
        {TAILS[tail]}
        y = {end or "Identity"}(logits)"""
    second = f", float[{batch}, a, b, c] {extra_output}" if extra_output else ""
    more = ", float[1, 6, 1, 1] shift" if extra_input else ""
    text = f"""<ir_version: 8, opset_import: ["" : {opset}]>
        small (float[{shape}] x{more}) => (float[{batch}, {CLASSES}] y{second}) {{ {body} }}"""
    model = onnx.parser.parse_model(text)
    drawn = weights(tail, seed)
    if channels != 3:
        drawn["w_conv1"] = drawn["w_conv1"][:, :1].repeat(channels, axis=1)
    drawn |= {k: np.asarray(v, dtype=np.float32) for k, v in (change or {}).items()}
    used = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in drawn.items() if k in used)
    for node in model.graph.node:
        node.name = f"node_{node.output[0]}"
    return model


def run_model(
    model: onnx.ModelProto | bytes | str | os.PathLike[str], feeds: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """All outputs by name, computed by onnxruntime alone on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
    session = ort.InferenceSession(
        source if isinstance(source, bytes) else os.fspath(source), options, providers=["CPUExecutionProvider"]
    )
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, map(np.asarray, session.run(names, dict(feeds))), strict=True))


@pytest.fixture(scope="session")
def cnn() -> Callable[..., onnx.ModelProto]:
    """See `small_cnn`."""
    return small_cnn


@pytest.fixture(scope="session")
def cnn_weights() -> Callable[..., dict[str, np.ndarray]]:
    """See `weights`."""
    return weights


@pytest.fixture(scope="session")
def forward() -> Callable[..., dict[str, np.ndarray]]:
    """See `run_model`."""
    return run_model


@pytest.fixture(scope="session")
def text_model() -> Callable[..., onnx.ModelProto]:
    """`text_model("(float[N, 3] x) => (float[N, 3] y) { y = Relu(x) }", opset=18, **initialisers)`."""

    def make(text: str, opset: int = 18, ir_version: int = 8, **arrays: Any) -> onnx.ModelProto:
        model = onnx.parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : {opset}]> g {text}')
        model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in arrays.items())
        for node in model.graph.node:
            node.name = f"node_{node.output[0]}"
        return model

    return make


@pytest.fixture(scope="session")
def draw() -> Callable[..., np.ndarray]:
    """`draw(shape, seed=0)`: float32 from a normal distribution."""

    def normal(*shape: int, seed: int = 0) -> np.ndarray:
        return np.random.default_rng(seed).normal(size=shape).astype(np.float32)

    return normal


@pytest.fixture(scope="session")
def images(draw: Callable[..., np.ndarray]) -> np.ndarray:
    """Three inputs of the small CNN, (3, 3, 16, 16)."""
    return draw(3, 3, SIZE, SIZE, seed=1)


@pytest.fixture(scope="session")
def shipped() -> Path:
    """The model that ships with pycam."""
    return ASSETS / "lite0_w8.onnx"


@pytest.fixture(scope="session")
def photos() -> dict[str, Path]:
    """The photos that ship with pycam."""
    return {name: ASSETS / f"{name}.jpg" for name in ("coffee", "camera")}


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real models and photos: beside the repository, or PYCAM_SHARED; the test is skipped without."""
    folder = Path(os.environ.get("PYCAM_SHARED") or Path(__file__).parents[2] / "shared")
    if not (folder / "models").is_dir():
        pytest.skip(f"needs the shared models, and {folder} is not there (set PYCAM_SHARED)")
    return folder


@pytest.fixture
def with_metadata() -> Callable[..., onnx.ModelProto]:
    """A copy of a model with metadata: `with_metadata(model, {"key": "value"})`."""

    def copy(model: onnx.ModelProto, metadata: Mapping[str, str]) -> onnx.ModelProto:
        result = onnx.ModelProto()
        result.CopyFrom(model)
        helper.set_model_props(result, {p.key: p.value for p in model.metadata_props} | dict(metadata))
        return result

    return copy
