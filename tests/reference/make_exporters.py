"""Make the models of ``tests/test_exporters.py`` with the exporters themselves. From the root, in one environment each:

    python tests/reference/make_exporters.py torch-dynamo
    python tests/reference/make_exporters.py torch-legacy
    python tests/reference/make_exporters.py tf2onnx
    python tests/reference/make_exporters.py keras
    python tests/reference/make_exporters.py jax2onnx
    python tests/reference/make_exporters.py paddle2onnx

Made with Python 3.11, numpy 2.4.6, onnxruntime 1.32.0 and protobuf 7.36.2, and with

    torch        torch 2.14.1, onnxscript 0.7.2, onnx-ir 1.1.0, onnx 1.23.2
    TensorFlow   tensorflow-cpu 2.21.0, keras 3.15.1, tf2onnx 1.17.0, onnx 1.23.2
    JAX          jax 0.10.2, jax2onnx 0.17.1, flax 0.12.8, equinox 0.13.8, onnx-ir 1.1.0, onnx 1.23.2
    Paddle       paddlepaddle 3.3.1, paddle2onnx 2.1.0, onnx 1.17.0; and what paddle2onnx would else install by itself,
                 from wherever it likes: packaging 26.3, polygraphy 0.53.6, onnx_graphsurgeon 0.6.1, sympy 1.14.0

Each makes small seeded networks and stores, for each of them, ``tests/reference/exporters/<name>.onnx`` as the exporter
wrote it (less the texts that hold this machine's paths) and ``<name>.npz``:

    x          the input, two images in the layout of the model
    y          (2,classes) what the framework computes from it in float64
    targets    (2,) int64: the explained logit of each image
    dx         the gradient of these logits for x, by the framework's autograd in float64
    A, g       an inner activation and the gradient for it, in the layout that the exported graph has them in
    g_logit    the gradient of the logits for it: not g where the network ends in a softmax
    about      JSON: versions, opset, names of input, output and of the inner tensor, the layer's name in the framework

Arrays are stored as float32.
"""

from __future__ import annotations

import functools
import json
import os
import re
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

FOLDER = Path(__file__).parent / "exporters"
CLASSES = 10
LARGEST = 150_000
SEED = 7


@dataclass
class Truth:
    """What the framework itself says about a network."""

    x: np.ndarray
    y: np.ndarray
    dx: np.ndarray
    a: np.ndarray
    g: np.ndarray
    layer: str
    g_logit: np.ndarray | None = None


def images(shape: Sequence[int]) -> np.ndarray:
    """Smooth seeded blobs with noise, (N,C,H,W)."""
    rng = np.random.default_rng(SEED)
    n, c, h, w = shape
    coarse = rng.normal(size=(n, c, 5, 5))
    rows, columns = np.arange(h) * 5 // h, np.arange(w) * 5 // w
    return (coarse[:, :, rows][..., columns] + 0.3 * rng.normal(size=shape)).astype(np.float32)


def draw(rng: np.random.Generator, shape: Sequence[int], fan: int, kind: str) -> np.ndarray:
    """A parameter: "scale" (also variances) around 1, "shift" (biases, means) around 0, "kernel" by its fan-in."""
    if kind == "scale":
        return rng.uniform(0.5, 1.5, shape)
    return rng.normal(size=shape) * (0.2 if kind == "shift" else np.sqrt(1.5 / fan))


def top(y: np.ndarray) -> np.ndarray:
    """The targets: the best class of the first image, the second best of the second."""
    order = np.argsort(-y, axis=1)
    return np.array([order[0, 0], order[1, 1]], dtype=np.int64)


# --- torch


def torch_nets() -> dict[str, Any]:
    """A CNN like MobileNetV3 and a vision transformer, with drawn weights."""
    import torch
    from torch import nn

    def conv_bn(inputs: int, outputs: int, kernel: int, act: nn.Module, **options: Any) -> nn.Sequential:
        conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **options)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), act)

    class Inverted(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            wide = 2 * inputs
            self.expand = conv_bn(inputs, wide, 1, nn.Hardswish())
            self.depthwise = conv_bn(wide, wide, 5, nn.Hardswish(), stride=stride, groups=wide)
            self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(wide, wide, 1), nn.Hardsigmoid())
            self.project = conv_bn(wide, outputs, 1, nn.Identity())
            self.residual = stride == 1 and inputs == outputs

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.depthwise(self.expand(x))
            y = self.project(y * self.squeeze(y))
            return x + y if self.residual else y

    class Cnn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = conv_bn(3, 8, 3, nn.SiLU(), stride=2)
            self.pool = nn.MaxPool2d(3, 2, padding=1)
            self.blocks = nn.Sequential(Inverted(8, 12, 1), Inverted(12, 12, 1), Inverted(12, 16, 2))
            self.gap = nn.AdaptiveAvgPool2d(1)
            self.head = nn.Sequential(nn.Linear(16, 20), nn.GELU(), nn.Dropout(), nn.Linear(20, CLASSES))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.gap(self.blocks(self.pool(self.stem(x)))).flatten(1))

    class Block(nn.Module):
        def __init__(self, width: int, heads: int) -> None:
            super().__init__()
            self.heads = heads
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            n, t, c = x.shape
            qkv = self.qkv(self.norm1(x)).reshape(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
            y = nn.functional.scaled_dot_product_attention(*qkv.unbind(0))
            x = x + self.proj(y.transpose(1, 2).reshape(n, t, c))
            return x + self.mlp(self.norm2(x))

    class Vit(nn.Module):
        def __init__(self, width: int = 16, side: int = 4) -> None:
            super().__init__()
            self.patch = nn.Conv2d(3, width, 32 // side, stride=32 // side)
            self.cls = nn.Parameter(torch.zeros(1, 1, width))
            self.pos = nn.Parameter(torch.zeros(1, side * side + 1, width))
            self.blocks = nn.Sequential(Block(width, 2), Block(width, 2))
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.patch(x).flatten(2).transpose(1, 2)
            x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.pos
            return self.head(self.norm(self.blocks(x))[:, 0])

    nets = {"cnn": Cnn().eval(), "vit": Vit().eval()}
    for net in nets.values():
        rng = np.random.default_rng(SEED)
        for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
            if tensor.is_floating_point():
                flat = tensor.ndim < 2
                kind = "kernel" if not flat else "scale" if name.endswith(("weight", "var")) else "shift"
                values = draw(rng, tensor.shape, int(np.prod(tensor.shape[1:])), kind)
                tensor.data.copy_(torch.from_numpy(values))
    return nets


def torch_truth(net: Any, layer: str) -> Truth:
    import copy

    import torch

    exact = copy.deepcopy(net).double()
    seen: list[torch.Tensor] = []
    exact.get_submodule(layer).register_forward_hook(lambda _m, _i, out: seen.append(out))
    x = torch.from_numpy(images((2, 3, 32, 32))).double().requires_grad_()
    y = exact(x)
    score = y.gather(1, torch.from_numpy(top(y.detach().numpy()))[:, None]).sum()
    dx, g = torch.autograd.grad(score, [x, seen[0]])
    arrays = [t.detach().numpy() for t in (x, y, dx, seen[0], g)]
    return Truth(*arrays, layer)


TORCH_LAYERS = {"cnn": "blocks.1", "vit": "blocks.0"}


def make_torch(dynamo: bool) -> None:
    """Both exporters of torch; the newer one at its default opset and at the newest that it takes."""
    import torch

    for kind, net in torch_nets().items():
        truth = torch_truth(net, TORCH_LAYERS[kind])
        x = torch.from_numpy(truth.x.astype(np.float32))
        names: dict[str, Any] = {"input_names": ["image"], "output_names": ["logits"]}
        packages = ["torch", "onnx", "onnxscript"]
        if not dynamo:
            axes = {"image": {0: "batch"}, "logits": {0: "batch"}}
            export = functools.partial(torch.onnx.export, net, (x,), dynamo=False, dynamic_axes=axes, **names)
            save(f"torch_legacy_{kind}", export_to(export), truth, packages)
            continue
        shapes = ({0: torch.export.Dim("batch")},)
        for suffix, opset in (("", None), ("_newest", NEWEST_TORCH)):
            program = torch.onnx.export(
                net, (x,), dynamo=True, dynamic_shapes=shapes, opset_version=opset, verbose=False, **names
            )
            save(f"torch_dynamo{suffix}_{kind}", program.model_proto, truth, packages)


NEWEST_TORCH = 25
"""The newest opset that torch 2.14's exporter reaches; it says so itself when asked for more."""


# --- TensorFlow and Keras


def draw_keras(model: Any) -> None:
    rng = np.random.default_rng(SEED)
    for v in model.variables:
        if v.dtype != "float32":
            continue
        last = v.path.split("/")[-1]
        scale, shift = ("gamma", "moving_variance"), ("beta", "bias", "moving_mean")
        kind = "scale" if last in scale else "shift" if last in shift else "kernel"
        depthwise = v.ndim == 4 and v.shape[-1] == 1
        attention = v.ndim == 3
        fan = np.prod(v.shape[:2]) if depthwise else v.shape[0] if attention else np.prod(v.shape[:-1])
        v.assign(draw(rng, v.shape, int(fan), kind))


def keras_cnn(dtype: str, end: str | None) -> Any:
    """NHWC, in the style of EfficientNet and MobileNetV3: SAME padding, swish and hard swish, squeeze and excite."""
    from keras import Input, Model, layers

    def conv(x: Any, width: int, kernel: int, stride: int, act: str | None, name: str, depthwise: bool = False) -> Any:
        options: dict[str, Any] = {"strides": stride, "padding": "same", "use_bias": False, "dtype": dtype}
        if depthwise:
            x = layers.DepthwiseConv2D(kernel, name=f"{name}_dwconv", **options)(x)
        else:
            x = layers.Conv2D(width, kernel, name=f"{name}_conv", **options)(x)
        x = layers.BatchNormalization(name=f"{name}_bn", dtype=dtype)(x)
        return layers.Activation(act, name=f"{name}_activation", dtype=dtype)(x) if act else x

    def block(x: Any, width: int, kernel: int, stride: int, act: str, name: str) -> Any:
        wide = 2 * x.shape[-1]
        y = conv(x, wide, 1, 1, act, f"{name}_expand")
        y = conv(y, wide, kernel, stride, act, name, depthwise=True)
        s = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_se_squeeze", dtype=dtype)(y)
        s = layers.Conv2D(4, 1, activation="relu", name=f"{name}_se_reduce", dtype=dtype)(s)
        s = layers.Conv2D(wide, 1, activation="hard_sigmoid", name=f"{name}_se_expand", dtype=dtype)(s)
        y = layers.Multiply(name=f"{name}_se_excite", dtype=dtype)([y, s])
        y = conv(y, width, 1, 1, None, f"{name}_project")
        return layers.Add(name=f"{name}_add", dtype=dtype)([x, y]) if x.shape == y.shape else y

    image = Input((32, 32, 3), name="image", dtype=dtype)
    x = layers.Rescaling(0.5, 0.1, name="rescaling", dtype=dtype)(image)
    x = conv(x, 8, 3, 2, "silu", "stem")
    x = layers.MaxPooling2D(3, 2, padding="same", name="stem_pool", dtype=dtype)(x)
    x = block(x, 8, 5, 1, "silu", "block1")
    x = block(x, 12, 3, 2, "hard_silu", "block2")
    x = block(x, 12, 3, 1, "hard_silu", "block3")
    x = conv(x, 16, 1, 1, "relu6", "top")
    x = layers.GlobalAveragePooling2D(name="avg_pool", dtype=dtype)(x)
    x = layers.Dropout(0.2, name="top_dropout", dtype=dtype)(x)
    return Model(image, layers.Dense(CLASSES, activation=end, name="predictions", dtype=dtype)(x), name="mobile")


def keras_vit(dtype: str, end: str | None) -> Any:
    """Patches, two blocks of LayerNorm, attention and GELU, average over the tokens.

    The GELU is the approximate one: tf2onnx has no Erfc, which the exact one becomes.
    """
    from keras import Input, Model, activations, layers

    image = Input((32, 32, 3), name="image", dtype=dtype)
    x = layers.Conv2D(16, 8, strides=8, name="patches", dtype=dtype)(image)
    x = layers.Reshape((16, 16), name="tokens", dtype=dtype)(x)
    for i in (1, 2):
        y = layers.LayerNormalization(epsilon=1e-5, name=f"block{i}_norm1", dtype=dtype)(x)
        y = layers.MultiHeadAttention(2, 8, name=f"block{i}_attention", dtype=dtype)(y, y)
        x = layers.Add(name=f"block{i}_add1", dtype=dtype)([x, y])
        y = layers.LayerNormalization(epsilon=1e-5, name=f"block{i}_norm2", dtype=dtype)(x)
        y = layers.Dense(32, name=f"block{i}_dense1", dtype=dtype)(y)
        gelu = layers.Activation(lambda v: activations.gelu(v, approximate=True), name=f"block{i}_gelu", dtype=dtype)
        y = layers.Dense(16, name=f"block{i}_dense2", dtype=dtype)(gelu(y))
        x = layers.Add(name=f"block{i}_add2", dtype=dtype)([x, y])
    x = layers.LayerNormalization(epsilon=1e-5, name="norm", dtype=dtype)(x)
    x = layers.GlobalAveragePooling1D(name="avg_pool", dtype=dtype)(x)
    return Model(image, layers.Dense(CLASSES, activation=end, name="predictions", dtype=dtype)(x), name="vit")


def tf_truth(layers_of: Callable[[Any], tuple[Any, Any]], x: np.ndarray, layer: str) -> Truth:
    """`layers_of(x)` gives the inner activation and the output, both in float64."""
    import tensorflow as tf

    image = tf.constant(x, tf.float64)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(image)
        a, y = layers_of(image)
        score = tf.reduce_sum(tf.gather(y, top(y.numpy())[:, None], batch_dims=1))
    dx, g = tape.gradient(score, image), tape.gradient(score, a)
    return Truth(*(t.numpy() for t in (image, y, dx, a, g)), layer)


def keras_pair(build: Callable[..., Any], layer: str, end: str | None) -> tuple[Any, Truth]:
    """A float32 model with drawn weights, and the truth by its float64 twin."""
    import keras

    def until(model: Any, layer: str) -> Any:
        return keras.Model(model.inputs, [model.get_layer(layer).output, model.output])

    x = images((2, 3, 32, 32)).transpose(0, 2, 3, 1)
    model, exact = build("float32", end), build("float64", end)
    draw_keras(model)
    exact.set_weights(model.get_weights())
    model(x)
    truth = tf_truth(until(exact, layer), x, layer)
    if end is not None:
        logits = build("float64", None)
        logits.set_weights(model.get_weights())
        truth.g_logit = tf_truth(until(logits, layer), x, layer).g
    return model, truth


def make_keras() -> None:
    """Keras 3's own export, which ends in a softmax, as keras.applications do."""
    for name, build, layer in (("cnn", keras_cnn, "block3_add"), ("vit", keras_vit, "block1_add2")):
        model, truth = keras_pair(build, layer, "softmax")
        export = functools.partial(model.export, format="onnx", verbose=False)
        save(f"keras_{name}", export_to(export), truth, ["keras", "tensorflow-cpu", "tf2onnx", "onnx"])


def make_tf2onnx() -> None:
    """tf2onnx: a Keras model as it is, one turned to NCHW inputs, and a plain tf.function with named scopes."""
    import tensorflow as tf
    import tf2onnx

    packages = ["tensorflow-cpu", "keras", "tf2onnx", "onnx"]
    model, truth = keras_pair(keras_cnn, "block2_project_bn", None)
    signature = (tf.TensorSpec((None, 32, 32, 3), tf.float32, name="image"),)
    proto, _ = tf2onnx.convert.from_keras(model, signature, opset=13)
    save("tf2onnx_keras", proto, truth, packages)
    proto, _ = tf2onnx.convert.from_keras(model, signature, opset=18, inputs_as_nchw=["image"])
    turned = Truth(
        truth.x.transpose(0, 3, 1, 2), truth.y, truth.dx.transpose(0, 3, 1, 2), truth.a, truth.g, truth.layer
    )
    save("tf2onnx_nchw", proto, turned, packages)

    rng = np.random.default_rng(SEED)
    shapes = {
        "conv1": (3, 3, 3, 8),
        "dw": (3, 3, 8, 1),
        "pw": (1, 1, 8, 12),
        "conv2": (2, 2, 12, 12),
        "fc": (12, CLASSES),
    }
    weights = {k: draw(rng, s, int(np.prod(s[:2] if k == "dw" else s[:-1])), "kernel") for k, s in shapes.items()}
    moments = {
        k: draw(rng, (8,), 8, kind) for k, kind in (("b", "shift"), ("m", "shift"), ("s", "scale"), ("v", "scale"))
    }

    def network(x: Any) -> tuple[Any, Any]:
        def const(array: np.ndarray) -> Any:
            return tf.constant(array.astype(np.float32), x.dtype)  # the same values in float32 and in float64

        with tf.name_scope("stem"):
            y = tf.nn.conv2d(tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]), const(weights["conv1"]), 2, "VALID")
            y = tf.nn.batch_normalization(y, *(const(moments[k]) for k in ("m", "v", "b", "s")), 1e-3)
            y = tf.nn.relu6(y)
        with tf.name_scope("block"):
            z = tf.nn.depthwise_conv2d(y, const(weights["dw"]), [1, 2, 2, 1], "SAME")
            z = tf.nn.leaky_relu(tf.nn.conv2d(z, const(weights["pw"]), 1, "SAME"), 0.1)
            z = tf.cast(tf.image.resize(z, (16, 16)), x.dtype) * tf.reduce_mean(y, axis=3, keepdims=True)
            z = tf.nn.avg_pool2d(z, 3, 2, "SAME")
        with tf.name_scope("final"):
            a = tf.nn.elu(tf.nn.conv2d(z, const(weights["conv2"]), 1, "SAME"))
        return a, tf.linalg.matmul(tf.reduce_mean(a, axis=[1, 2]), const(weights["fc"]))

    x = images((2, 3, 32, 32)).transpose(0, 2, 3, 1)
    truth = tf_truth(network, x, "final/Elu")
    function = tf.function(lambda image: {"logits": network(image)[1]}, input_signature=signature)
    proto, _ = tf2onnx.convert.from_function(function, signature, opset=15)
    save("tf2onnx_function", proto, truth, packages)


# --- JAX


def make_jax2onnx() -> None:
    """A flax CNN (NHWC, its blocks as ONNX functions) and an equinox transformer (one image, mapped over the batch)."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import jax2onnx
    from flax import nnx

    @jax2onnx.onnx_function
    class Separable(nnx.Module):
        def __init__(self, inputs: int, outputs: int, stride: int, rngs: nnx.Rngs) -> None:
            self.depthwise = nnx.Conv(
                inputs,
                inputs,
                (3, 3),
                strides=stride,
                padding="SAME",
                feature_group_count=inputs,
                use_bias=False,
                rngs=rngs,
            )
            self.pointwise = nnx.Conv(inputs, outputs, (1, 1), rngs=rngs)
            self.norm = nnx.BatchNorm(outputs, use_running_average=True, rngs=rngs)
            self.residual = stride == 1 and inputs == outputs

        def __call__(self, x: Any) -> Any:
            y = nnx.silu(self.norm(self.pointwise(self.depthwise(x))))
            return x + y if self.residual else y

    class Cnn(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.stem = nnx.Conv(3, 8, (3, 3), strides=2, padding="SAME", rngs=rngs)
            self.norm = nnx.GroupNorm(8, num_groups=4, rngs=rngs)
            self.block1 = Separable(8, 8, 1, rngs)
            self.block2 = Separable(8, 12, 2, rngs)
            self.fc = nnx.Linear(12, CLASSES, rngs=rngs)

        def parts(self, x: Any) -> tuple[Any, Any]:
            x = nnx.gelu(self.norm(self.stem(x)))
            x = nnx.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding="SAME")
            a = self.block1(x)
            return a, self.fc(jnp.mean(self.block2(a), axis=(1, 2)))

        def __call__(self, x: Any) -> Any:
            return self.parts(x)[1]

    class Block(eqx.Module):
        norm1: eqx.nn.LayerNorm
        norm2: eqx.nn.LayerNorm
        attention: eqx.nn.MultiheadAttention
        up: eqx.nn.Linear
        down: eqx.nn.Linear

        def __init__(self, width: int, key: Any) -> None:
            keys = jax.random.split(key, 3)
            self.norm1, self.norm2 = eqx.nn.LayerNorm(width), eqx.nn.LayerNorm(width)
            self.attention = eqx.nn.MultiheadAttention(2, width, key=keys[0])
            self.up, self.down = eqx.nn.Linear(width, 32, key=keys[1]), eqx.nn.Linear(32, width, key=keys[2])

        def __call__(self, x: Any) -> Any:
            y = jax.vmap(self.norm1)(x)
            x = x + self.attention(y, y, y)
            y = jax.nn.gelu(jax.vmap(self.up)(jax.vmap(self.norm2)(x)), approximate=False)
            return x + jax.vmap(self.down)(y)

    class Vit(eqx.Module):
        patch: eqx.nn.Conv2d
        block1: Block
        block2: Block
        norm: eqx.nn.LayerNorm
        head: eqx.nn.Linear

        def __init__(self, key: Any) -> None:
            keys = jax.random.split(key, 4)
            self.patch = eqx.nn.Conv2d(3, 16, 8, stride=8, key=keys[0])
            self.block1, self.block2 = Block(16, keys[1]), Block(16, keys[2])
            self.norm, self.head = eqx.nn.LayerNorm(16), eqx.nn.Linear(16, CLASSES, key=keys[3])

        def parts(self, x: Any) -> tuple[Any, Any]:
            x = self.patch(x)
            a = self.block1(x.reshape(16, -1).T)
            return a, self.tail(a)

        def tail(self, a: Any) -> Any:
            return self.head(self.norm(jnp.mean(self.block2(a), axis=0)))

        def __call__(self, x: Any) -> Any:
            return self.tail(self.block1(self.patch(x).reshape(16, -1).T))

    def redraw(tree: Any) -> Any:
        """Drawn weights for every array: one-dimensional ones are scales where they were ones."""
        rng = np.random.default_rng(SEED)

        def one(leaf: Any) -> Any:
            if not hasattr(leaf, "ndim") or leaf.dtype != jnp.float32:
                return leaf
            kind = "kernel" if leaf.ndim > 1 else "scale" if bool((leaf == 1).all()) else "shift"
            fan = int(np.prod(leaf.shape)) // max(leaf.shape) if leaf.ndim > 1 else 1
            return jnp.asarray(draw(rng, leaf.shape, fan, kind), jnp.float32)

        return jax.tree.map(one, tree)

    def double(tree: Any) -> Any:
        return jax.tree.map(lambda v: v.astype("float64") if getattr(v, "dtype", None) == jnp.float32 else v, tree)

    def truth(parts: Callable[[Any], tuple[Any, Any]], tail: Callable[[Any], Any], x: np.ndarray, layer: str) -> Truth:
        image = jnp.asarray(x, "float64")
        a, y = parts(image)
        rows, classes = np.arange(len(x)), top(np.asarray(y))
        dx = jax.grad(lambda v: parts(v)[1][rows, classes].sum())(image)
        g = jax.grad(lambda v: tail(v)[rows, classes].sum())(a)
        return Truth(*(np.asarray(t) for t in (image, y, dx, a, g)), layer)

    packages = ["jax", "jax2onnx", "flax", "equinox", "onnx"]
    names: dict[str, Any] = {"input_names": ["image"], "output_names": ["logits"]}
    x = images((2, 3, 32, 32))

    graph, state = nnx.split(Cnn(nnx.Rngs(SEED)))
    state = redraw(state)
    cnn = nnx.merge(graph, state)
    proto = jax2onnx.to_onnx(cnn, [("B", 32, 32, 3)], model_name="cnn", **names)
    with jax.enable_x64(True):
        wide = nnx.merge(graph, double(state))
        for module in (
            wide.stem,
            wide.norm,
            wide.fc,
            *(m for b in (wide.block1, wide.block2) for m in vars(b).values()),
        ):
            if hasattr(module, "param_dtype"):
                module.dtype = module.param_dtype = jnp.float64
        exact = truth(
            wide.parts, lambda a: wide.fc(jnp.mean(wide.block2(a), axis=(1, 2))), x.transpose(0, 2, 3, 1), "block1"
        )
    save("jax_flax_cnn", proto, exact, packages)

    vit = redraw(Vit(jax.random.key(SEED)))
    proto = jax2onnx.to_onnx(jax.vmap(vit), [("B", 3, 32, 32)], model_name="vit", opset=21, **names)
    with jax.enable_x64(True):
        wide_vit = double(vit)
        exact = truth(jax.vmap(wide_vit.parts), jax.vmap(wide_vit.tail), x, "block1")
    save("jax_equinox_vit", proto, exact, packages)


# --- PaddlePaddle


def make_paddle2onnx() -> None:
    """A network in the style of PP-LCNet; folded by the exporter as by default, and raw, with Constant nodes."""
    import paddle
    import paddle2onnx
    from paddle import nn

    class Separable(nn.Layer):
        def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, squeeze: bool = False) -> None:
            super().__init__()
            self.depthwise = nn.Conv2D(inputs, inputs, kernel, stride, kernel // 2, groups=inputs, bias_attr=False)
            self.norm1, self.norm2 = nn.BatchNorm2D(inputs), nn.BatchNorm2D(outputs)
            self.pointwise = nn.Conv2D(inputs, outputs, 1, bias_attr=False)
            self.act = nn.Hardswish()
            self.squeeze = None
            if squeeze:
                self.squeeze = nn.Sequential(
                    nn.AdaptiveAvgPool2D(1),
                    nn.Conv2D(inputs, 4, 1),
                    nn.ReLU(),
                    nn.Conv2D(4, inputs, 1),
                    nn.Hardsigmoid(),
                )
            self.residual = stride == 1 and inputs == outputs

        def forward(self, x: Any) -> Any:
            y = self.act(self.norm1(self.depthwise(x)))
            y = y * self.squeeze(y) if self.squeeze is not None else y
            y = self.act(self.norm2(self.pointwise(y)))
            return x + y if self.residual else y

    class Net(nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(
                nn.Conv2D(3, 8, 3, 2, 1, bias_attr=False), nn.BatchNorm2D(8), nn.Hardswish(), nn.MaxPool2D(3, 2, 1)
            )
            self.body = nn.Sequential(Separable(8, 8, 3, 1), Separable(8, 12, 3, 2))
            self.last = nn.Sequential(Separable(12, 12, 5, 1, squeeze=True), nn.AvgPool2D(2, 1))
            self.head = nn.Sequential(nn.AdaptiveAvgPool2D(1), nn.Conv2D(12, 16, 1), nn.Hardswish(), nn.Dropout(0.2))
            self.fc = nn.Linear(16, CLASSES)

        def tail(self, a: Any) -> Any:
            return self.fc(paddle.flatten(self.head(self.last(a)), 1))

        def forward(self, x: Any) -> Any:
            return self.tail(self.body(self.stem(x)))

    net = Net()
    net.eval()
    rng = np.random.default_rng(SEED)
    for name, tensor in net.state_dict().items():
        scale = name.endswith("_variance") or (name.endswith("weight") and tensor.ndim == 1)
        kind = "kernel" if tensor.ndim > 1 else "scale" if scale else "shift"
        fan = tensor.shape[0] if tensor.ndim == 2 else int(np.prod(tensor.shape[1:]))
        tensor.set_value(draw(rng, tensor.shape, fan, kind).astype(np.float32))

    with tempfile.TemporaryDirectory() as folder:
        specs = [paddle.static.InputSpec([None, 3, 32, 32], "float32", "image")]
        paddle.onnx.export(net, f"{folder}/folded", specs, opset_version=11)
        paddle.jit.save(net, f"{folder}/static", specs)
        paddle2onnx.export(
            f"{folder}/static.json", f"{folder}/static.pdiparams", f"{folder}/raw.onnx", 17, optimize_tool=None
        )
        protos = {"lcnet": onnx.load(f"{folder}/folded.onnx"), "lcnet_raw": onnx.load(f"{folder}/raw.onnx")}

    net.to(dtype="float64")
    x = paddle.to_tensor(images((2, 3, 32, 32)).astype(np.float64), stop_gradient=False)
    a = net.body(net.stem(x))
    y = net.tail(a)
    score = paddle.take_along_axis(y, paddle.to_tensor(top(y.numpy())[:, None]), 1).sum()
    dx, g = paddle.grad(score, [x, a])
    truth = Truth(*(t.numpy() for t in (x, y, dx, a, g)), "body")
    for name, proto in protos.items():
        save(f"paddle_{name}", proto, truth, ["paddlepaddle", "paddle2onnx", "onnx", "onnx_graphsurgeon"])


# --- storing


def export_to(export: Callable[[str], object]) -> onnx.ModelProto:
    """The model of an exporter that writes a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model.onnx"
        export(path)
        return onnx.load(path)


def strip(model: onnx.ModelProto) -> None:
    """Drop the texts that hold stack traces and file names; the scopes that name the layers stay."""
    functions = list(model.functions)
    nodes = [*model.graph.node, *(node for function in functions for node in function.node)]
    infos = [*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer]
    for holder in [model, model.graph, *functions, *nodes, *infos]:
        holder.ClearField("doc_string")
        kept = [p for p in holder.metadata_props if p.key.endswith(("name_scopes", "class_hierarchy"))]
        del holder.metadata_props[:]
        holder.metadata_props.extend(kept)


def relative(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def run_all(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, Any]:
    """Every value of the graph, in the order of computation."""
    names = [name for node in model.graph.node for name in node.output if name]
    everything = onnx.ModelProto()
    everything.CopyFrom(model)
    del everything.graph.output[:]
    everything.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(everything.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(names, feeds), strict=True))


def find_tensor(values: dict[str, Any], truth: Truth) -> tuple[str, tuple[int, ...]]:
    """The last tensor of the graph that holds the activation, and the axes that bring the framework's layout to its."""
    axes = [tuple(range(truth.a.ndim))] + ([(0, 3, 1, 2), (0, 2, 3, 1)] if truth.a.ndim == 4 else [])
    for name, value in reversed(values.items()):
        for perm in axes:
            a = truth.a.transpose(perm)
            if isinstance(value, np.ndarray) and value.shape == a.shape and relative(value, a) < 1e-5:
                return name, perm
    raise ValueError("no tensor of the graph holds the layer's activation")


def save(name: str, model: onnx.ModelProto, truth: Truth, packages: Sequence[str]) -> None:
    """Check that the model computes what the framework does, and store both."""
    strip(model)
    onnx.checker.check_model(model, full_check=True)
    data = model.SerializeToString()
    found = re.findall(rb"[\x20-\x7e]*(?:/tmp/|/opt/|/root/|/home/|/work/|site-packages|\.py\b)[\x20-\x7e]*", data)
    if found or socket.gethostname().encode() in data or len(data) > LARGEST:
        raise ValueError(f"{name}: {len(data)} bytes, with paths {found[:3]}")
    feed, output = model.graph.input[0].name, model.graph.output[0].name
    values = run_all(model, {feed: truth.x.astype(np.float32)})
    off = relative(values[output], truth.y)
    if off > 1e-5:
        raise ValueError(f"{name}: the exported model is {off:.1e} away from the framework")
    inner, perm = find_tensor(values, truth)
    g_logit = truth.g if truth.g_logit is None else truth.g_logit
    about = {
        "versions": {package: version(package) for package in packages},
        "opset": next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")),
        "input": feed,
        "output": output,
        "inner": inner,
        "layer": truth.layer,
    }
    inside = {"A": truth.a, "g": truth.g, "g_logit": g_logit}
    arrays = {"x": truth.x, "y": truth.y, "dx": truth.dx} | {k: v.transpose(perm) for k, v in inside.items()}
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.onnx").write_bytes(data)
    np.savez_compressed(
        FOLDER / f"{name}.npz",
        about=np.array(json.dumps(about)),
        targets=top(truth.y),
        **{key: value.astype(np.float32) for key, value in arrays.items()},
    )
    ops = sorted({node.op_type for node in [*model.graph.node, *(n for f in model.functions for n in f.node)]})
    print(f"{name:24} {len(data):7,} bytes, opset {about['opset']}, off {off:.0e}, {truth.layer} = {inner}, {ops}")


EXPORTERS: dict[str, Callable[[], None]] = {
    "torch-dynamo": lambda: make_torch(dynamo=True),
    "torch-legacy": lambda: make_torch(dynamo=False),
    "tf2onnx": make_tf2onnx,
    "keras": make_keras,
    "jax2onnx": make_jax2onnx,
    "paddle2onnx": make_paddle2onnx,
}


def main() -> int:
    if len(sys.argv) != 2 or sys.argv[1] not in EXPORTERS:
        print(f"usage: {sys.argv[0]} {'|'.join(EXPORTERS)}", file=sys.stderr)
        return 2
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    EXPORTERS[sys.argv[1]]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
