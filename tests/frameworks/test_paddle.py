"""`from_paddle`: where PaddlePaddle and paddle2onnx are installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import pycam
import pycam.frameworks as frameworks
from pycam.errors import InputError

MISSING = [name for name in ("paddle", "paddle2onnx") if importlib.util.find_spec(name) is None]

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.filterwarnings("ignore"),  # exporters warn of their own affairs
]

CLASSES = 5
LABELS = ["ape", "bee", "cat", "dog", "emu"]
PREPROCESS = pycam.Preprocess(size=(24, 24), mean=(123.0, 117.0, 104.0), std=(58.0, 57.0, 57.0))


def paddle_net() -> Any:
    import paddle
    from paddle import nn

    class Block(nn.Layer):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.conv = nn.Conv2D(inputs, outputs, 3, 2, 1)
            self.norm, self.act, self.drop = nn.BatchNorm2D(outputs), nn.Hardswish(), nn.Dropout(0.5)

        def forward(self, x: Any) -> Any:
            return self.drop(self.act(self.norm(self.conv(x))))

    class Net(nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.layer1, self.layer2 = nn.Sequential(Block(3, 8), Block(8, 8)), Block(8, 12)
            self.fc = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, CLASSES))

        def forward(self, image: Any) -> Any:
            return self.fc(self.layer2(self.layer1(image)).mean([2, 3]))

    paddle.seed(1)
    return Net()


@pytest.mark.parametrize("layer", ["layer1", "layer1.0", "layer2.conv", "layer2.norm"])
def test_maps(layer: str, images: Any, assert_map: Any) -> None:
    import paddle

    net = paddle_net()
    model = frameworks.from_paddle(net, (1, 3, 24, 24))
    net.eval()
    x, targets = images(3), np.array([0, 3, 4])
    seen: list[Any] = []
    inner = dict(net.named_sublayers())[layer]
    hook = inner.register_forward_post_hook(lambda _l, _i, y: seen.append(y))
    scores = net(paddle.to_tensor(x))
    hook.remove()
    score = paddle.take_along_axis(scores, paddle.to_tensor(targets[:, None]), 1).sum()
    (g,) = paddle.grad(score, seen)
    assert_map(model, layer, x, seen[0].numpy(), g.numpy(), targets)


def test_modes_and_names(tmp_path: Path, images: Any, shapes: Any) -> None:
    net = paddle_net()
    net.layer1.eval()
    before = {name: layer.training for name, layer in net.named_sublayers(include_self=True)}
    path = frameworks.from_paddle(
        net, images(1), labels=LABELS, preprocess=PREPROCESS, path=tmp_path / "p.onnx", output_names=["logits"]
    )
    assert {name: layer.training for name, layer in net.named_sublayers(include_self=True)} == before
    proto = onnx.load(path)
    assert shapes([*proto.graph.input, *proto.graph.output]) == {"image": ["N", 3, 24, 24], "logits": ["N", 5]}
    assert pycam.Explainer(path, threads=1).labels == tuple(LABELS)
    assert {"layer1.1.conv", "layer2.act"} <= {layer.module for layer in pycam.layers(path)}


def test_what_it_does_not_take() -> None:
    with pytest.raises(InputError, match=r"paddle\.nn\.Layer, not int"):
        frameworks.from_paddle(3, (1, 3))
    with pytest.raises(InputError, match=r"does not take the example \(image \(2, 4, 24, 24\)"):
        frameworks.from_paddle(paddle_net(), (1, 4, 24, 24))
