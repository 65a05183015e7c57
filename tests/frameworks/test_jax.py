"""`from_jax`: where JAX, jax2onnx, flax and equinox are installed."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest

import pycam
import pycam.frameworks as frameworks
from pycam.errors import InputError, ModelError

MISSING = [name for name in ("jax", "jax2onnx", "flax", "equinox") if importlib.util.find_spec(name) is None]

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.filterwarnings("ignore"),  # exporters warn of their own affairs
]

CLASSES = 5
LABELS = ["ape", "bee", "cat", "dog", "emu"]


def nnx_net() -> Any:
    import jax.numpy as jnp
    from flax import nnx

    class Block(nnx.Module):
        def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs) -> None:
            self.conv = nnx.Conv(inputs, outputs, (3, 3), strides=2, rngs=rngs)
            self.norm = nnx.BatchNorm(outputs, rngs=rngs)
            self.drop = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return nnx.silu(self.drop(self.norm(self.conv(x))))

    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.blocks = nnx.List([Block(3, 8, rngs), Block(8, 12, rngs)])
            self.hidden, self.fc = nnx.Linear(12, 16, rngs=rngs), nnx.Linear(16, CLASSES, rngs=rngs)

        def features(self, image: Any) -> Any:
            return self.blocks[0](image)

        def tail(self, a: Any) -> Any:
            return self.fc(nnx.relu(self.hidden(jnp.mean(self.blocks[1](a), (1, 2)))))

        def __call__(self, image: Any) -> Any:
            return self.tail(self.features(image))

    return Net(nnx.Rngs(4))


def jax_gradients(jax: Any, features: Any, tail: Any, x: np.ndarray, targets: np.ndarray) -> Any:
    a = features(jax.numpy.asarray(x))
    g = jax.grad(lambda v: tail(v)[np.arange(len(x)), targets].sum())(a)
    return np.asarray(a), np.asarray(g)


def test_flax_nnx(images: Any, shapes: Any, assert_map: Any) -> None:
    import jax
    from flax import nnx

    net = nnx_net()
    calls = {kind: vars(kind)["__call__"] for kind in (nnx.Conv, nnx.BatchNorm, type(net), type(net.blocks[0]))}
    model = frameworks.from_jax(net, (1, 24, 24, 3), labels=LABELS, output_names=["logits"])
    assert not net.blocks[0].drop.deterministic  # its mode stayed
    assert not net.blocks[0].norm.use_running_average
    assert calls == {kind: vars(kind)["__call__"] for kind in calls}
    assert shapes([*model.graph.input, *model.graph.output]) == {"image": ["N", 24, 24, 3], "logits": ["N", 5]}
    modules = {layer.module for layer in pycam.layers(model)}
    assert {"blocks.0", "blocks.1", "blocks.0.conv", "blocks.1.norm"} <= modules
    net.eval()
    x, targets = images(3, (24, 24, 3)), np.array([0, 3, 4])
    a, g = jax_gradients(jax, net.features, net.tail, x, targets)
    assert_map(model, "blocks.0", x, a.transpose(0, 3, 1, 2), g.transpose(0, 3, 1, 2), targets)


def test_flax_linen(images: Any, shapes: Any, assert_map: Any) -> None:
    import jax
    from flax import linen

    class Block(linen.Module):
        width: int

        @linen.compact
        def __call__(self, x: Any, train: bool) -> Any:
            x = linen.Conv(self.width, (3, 3), name="conv")(x)
            return linen.relu(linen.BatchNorm(use_running_average=not train, name="norm")(x))

    class Net(linen.Module):
        def setup(self) -> None:
            self.block1, self.block2, self.fc = Block(8), Block(12), linen.Dense(CLASSES)

        def features(self, x: Any, train: bool) -> Any:
            return linen.max_pool(self.block1(x, train), window_shape=(2, 2), strides=(2, 2))

        def tail(self, a: Any, train: bool) -> Any:
            return self.fc(linen.tanh(self.block2(a, train).mean((1, 2))))

        def __call__(self, picture: Any, train: bool) -> Any:
            return self.tail(self.features(picture, train), train)

    net = Net()
    variables = net.init(jax.random.key(0), jax.numpy.zeros((1, 24, 24, 3)), False)
    model = frameworks.from_jax(net, (1, 24, 24, 3), variables=variables, arguments={"train": False})
    assert shapes(model.graph.input) == {"picture": ["N", 24, 24, 3]}
    x, targets = images(3, (24, 24, 3)), np.array([0, 3, 4])

    def features(v: Any) -> Any:
        return net.apply(variables, v, False, method=lambda self, x, train: self.block1(x, train))

    def tail(a: Any) -> Any:
        pooled = linen.max_pool(a, (2, 2), (2, 2))
        return net.apply(variables, pooled, False, method=Net.tail)

    a, g = jax_gradients(jax, features, tail, x, targets)
    assert_map(model, "block1", x, a.transpose(0, 3, 1, 2), g.transpose(0, 3, 1, 2), targets)
    with pytest.raises(InputError, match="variables="):
        frameworks.from_jax(net, (1, 24, 24, 3))


def test_equinox(images: Any, assert_map: Any) -> None:
    import equinox as eqx
    import jax

    class Net(eqx.Module):
        convs: list[Any]
        drop: Any
        fc: Any

        def __init__(self, key: Any) -> None:
            keys = jax.random.split(key, 3)
            self.convs = [eqx.nn.Conv2d(3, 8, 3, key=keys[0]), eqx.nn.Conv2d(8, 12, 3, key=keys[1])]
            self.drop, self.fc = eqx.nn.Dropout(0.5), eqx.nn.Linear(12, CLASSES, key=keys[2])

        def tail(self, a: Any) -> Any:
            return self.fc(self.drop(jax.nn.relu(self.convs[1](jax.nn.relu(a))).mean((1, 2))))

        def __call__(self, x: Any) -> Any:
            return self.tail(self.convs[0](x))

    net = Net(jax.random.key(5))
    model = frameworks.from_jax(net, (1, 3, 24, 24), vmap=True)
    assert not net.drop.inference
    x, targets = images(3), np.array([0, 3, 4])
    still = eqx.nn.inference_mode(net)
    a, g = jax_gradients(jax, jax.vmap(still.convs[0]), jax.vmap(still.tail), x, targets)
    assert_map(model, "convs.0", x, a, g, targets)


def test_a_function(images: Any, shapes: Any) -> None:
    import jax.numpy as jnp

    def function(left: Any, right: Any) -> Any:
        return jnp.tanh(left).mean((1, 2)), right * 2

    proto = frameworks.from_jax(function, [(1, 8, 8, 3), images(1, (4,))], opset=21)
    assert shapes(proto.graph.input) == {"left": ["N", 8, 8, 3], "right": ["N", 4]}
    assert [y.name for y in proto.graph.output] == ["output_0", "output_1"]


def test_what_it_does_not_take() -> None:
    with pytest.raises(InputError, match="not int"):
        frameworks.from_jax(3, (1, 3))
    with pytest.raises(InputError, match=r"for flax\.linen modules"):
        frameworks.from_jax(lambda x: x, (1, 3), variables={})
    with pytest.raises(InputError, match=r"as a list"):
        frameworks.from_jax(lambda x: x, {"x": (1, 3)})
    with pytest.raises(InputError, match=r"does not take the example \(image \(2, 24, 24, 4\)"):
        frameworks.from_jax(nnx_net(), (1, 24, 24, 4))


def test_what_the_exporter_refuses() -> None:
    with pytest.raises(ModelError, match="jax2onnx refuses") as caught:
        frameworks.from_jax(lambda x: x * float(np.asarray(x).sum()), (1, 3))
    assert caught.value.__cause__ is not None
