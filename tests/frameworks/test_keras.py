"""`from_keras`: where Keras, TensorFlow and tf2onnx are installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import pycam
import pycam.frameworks as frameworks
from pycam.errors import InputError, ModelError

MISSING = [name for name in ("keras", "tensorflow", "tf2onnx") if importlib.util.find_spec(name) is None]

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.filterwarnings("ignore"),  # exporters warn of their own affairs
]

CLASSES = 5
LABELS = ["ape", "bee", "cat", "dog", "emu"]
PREPROCESS = pycam.Preprocess(size=(24, 24), mean=(123.0, 117.0, 104.0), std=(58.0, 57.0, 57.0))


def keras_net(end: str | None = None) -> Any:
    import keras
    from keras import layers

    keras.utils.set_random_seed(2)
    image = keras.Input((24, 24, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="conv2d")(image)
    x = layers.Conv2D(8, 3, strides=2, padding="same", name="conv2d_1")(x)
    inner = [keras.Input((12, 12, 8)), layers.Conv2D(12, 3, name="conv"), layers.Activation("silu", name="act")]
    x = keras.Sequential(inner, name="features")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(layers.MaxPooling2D(name="down")(x))
    x = layers.Dense(16, activation="relu", name="hidden")(x)
    return keras.Model(image, layers.Dense(CLASSES, activation=end, name="predictions")(x), name="net")


@pytest.mark.parametrize("layer", ["conv2d", "conv2d_1", "features", "net/down"])
def test_maps(layer: str, images: Any, shapes: Any, assert_map: Any) -> None:
    import keras
    import tensorflow as tf

    net = keras_net()
    inner = net.get_layer("down").input if layer == "features" else net.get_layer(layer.split("/")[-1]).output
    both = keras.Model(net.inputs, [inner, net.output])
    x = images(3, (24, 24, 3))
    targets = np.array([0, 3, 4])
    with tf.GradientTape() as tape:
        a, scores = both(x)
        score = tf.reduce_sum(tf.gather(scores, targets[:, None], batch_dims=1))
    g = tape.gradient(score, a)
    model = frameworks.from_keras(net)
    assert shapes(model.graph.input) == {"image": ["N", 24, 24, 3]}
    assert_map(model, layer, x, *(t.numpy().transpose(0, 3, 1, 2) for t in (a, g)), targets)


def test_names_labels_and_layout(tmp_path: Path, shapes: Any) -> None:
    pre = pycam.Preprocess(size=(24, 24), mean=(0.0,) * 3, std=(255.0,) * 3, layout="NHWC")
    path = frameworks.from_keras(
        keras_net("softmax"), labels=LABELS, preprocess=pre, path=tmp_path / "k.onnx", opset=17
    )
    explainer = pycam.Explainer(path, layer="features", threads=1)
    assert (explainer.labels, explainer.preprocess) == (tuple(LABELS), pre)
    assert shapes(onnx.load(path).graph.output) == {"predictions": ["N", CLASSES]}
    assert {"net/conv2d", "net/conv2d_1", "net/features/act"} <= {layer.module for layer in pycam.layers(path)}
    with pytest.raises(InputError, match="check size, layout"):
        frameworks.from_keras(keras_net(), preprocess=PREPROCESS)


def test_several_inputs_and_outputs(shapes: Any) -> None:
    import keras
    from keras import layers

    image, extra = keras.Input((None, None, 3), name="image"), keras.Input((4,), name="extra")
    features = layers.Conv2D(4, 3, name="conv")(image)
    sum_ = layers.Add(name="sum")([layers.GlobalAveragePooling2D()(features), extra])
    proto = frameworks.from_keras(keras.Model([image, extra], [sum_, features]))
    assert shapes(proto.graph.input) == {"image": ["N", "image_1", "image_2", 3], "extra": ["N", 4]}
    assert [y.name for y in proto.graph.output] == ["sum", "conv"]
    fixed = frameworks.from_keras(
        keras.Model([image, extra], sum_), [(1, 8, 8, 3), (1, 4)], input_names=["a", "b"], dynamic_batch=False
    )
    assert shapes(fixed.graph.input) == {"a": [1, 8, 8, 3], "b": [1, 4]}


def test_what_it_does_not_take() -> None:
    import keras
    from keras import layers

    with pytest.raises(InputError, match=r"keras\.Model, not function"):
        frameworks.from_keras(lambda x: x)
    with pytest.raises(InputError, match="says no shape"):
        frameworks.from_keras(keras.Sequential([layers.Dense(2)]))
    with pytest.raises(InputError, match=r"does not take the example"):
        frameworks.from_keras(keras_net(), (1, 23, 24, 3))
    gelu = keras.Sequential([keras.Input((8,)), layers.Dense(2, activation="gelu")])
    with pytest.raises(ModelError, match=r"Erfc.*approximate=True"):
        frameworks.from_keras(gelu)
