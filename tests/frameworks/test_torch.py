"""`from_torch`: where torch is installed."""

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

MISSING = [name for name in ("torch", "onnxscript") if importlib.util.find_spec(name) is None]

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.filterwarnings("ignore"),  # exporters warn of their own affairs
]

CLASSES = 5
LABELS = ["ape", "bee", "cat", "dog", "emu"]
PREPROCESS = pycam.Preprocess(size=(24, 24), mean=(123.0, 117.0, 104.0), std=(58.0, 57.0, 57.0))


def torch_net() -> Any:
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
            self.norm = nn.BatchNorm2d(outputs)
            self.drop = nn.Dropout(0.5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.drop(nn.functional.silu(self.norm(self.conv(x))))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer1, self.layer2 = nn.Sequential(Block(3, 8), Block(8, 8)), Block(8, 12)
            self.head = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, CLASSES))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.head(self.layer2(self.layer1(image)).mean((2, 3)))

    torch.manual_seed(1)
    net = Net()
    with torch.no_grad():
        for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
            for tensor in (norm.running_mean, norm.bias):
                tensor.normal_()
            norm.running_var.uniform_(0.5, 1.5)
    return net


@pytest.mark.parametrize("layer", ["layer1", "layer1.0", "layer2.conv", "layer2"])
def test_maps(layer: str, images: Any, assert_map: Any) -> None:
    import torch

    net = torch_net().eval()
    x = images(3)
    seen: list[Any] = []
    hook = net.get_submodule(layer).register_forward_hook(lambda _m, _i, y: seen.append(y))
    scores = net(torch.from_numpy(x))
    hook.remove()
    targets = np.array([0, 3, 4])
    (g,) = torch.autograd.grad(scores[range(3), targets].sum(), seen)
    model = frameworks.from_torch(net, (1, 3, 24, 24))
    assert_map(model, layer, x, seen[0].detach().numpy(), g.numpy(), targets)


def test_modes_stay(images: Any, shapes: Any) -> None:
    net = torch_net().train()
    net.layer1.eval()
    before = {name: module.training for name, module in net.named_modules()}
    mean = net.layer2.norm.running_mean.clone()
    proto = frameworks.from_torch(net, images(1), labels=LABELS, preprocess=PREPROCESS)
    assert {name: module.training for name, module in net.named_modules()} == before
    assert (net.layer2.norm.running_mean == mean).all()
    assert "Dropout" not in {node.op_type for node in proto.graph.node}
    assert shapes([*proto.graph.input, *proto.graph.output]) == {"image": ["N", 3, 24, 24], "output": ["N", 5]}
    assert {p.key for p in proto.metadata_props} == {"pycam.labels", "pycam.preprocess"}
    assert b"test_frameworks.py" not in proto.SerializeToString()
    modules = {layer.module for layer in pycam.layers(proto)}
    assert {"layer1.0.conv", "layer2"} <= modules | {m.rpartition(".")[0] for m in modules}


def test_several_inputs_and_outputs(tmp_path: Path, shapes: Any) -> None:
    import torch

    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.embed = torch.nn.Conv2d(3, 4, 3), torch.nn.Embedding(10, 4)

        def forward(self, image: Any, tokens: Any) -> dict[str, Any]:
            features = self.conv(image)
            return {"out": (features.mean((2, 3)) * self.embed(tokens).mean(1)), "aux": [features]}

    example = {"tokens": torch.tensor([[1, 2, 3]]), "image": torch.zeros(1, 3, 8, 8)}
    free = {"image": {2: "height", 3: "width"}}
    for given in (example, [example["image"], example["tokens"]]):
        path = frameworks.from_torch(Two(), given, dynamic_axes=free, path=tmp_path / "two.onnx", opset=18)
        proto = onnx.load(path)
        assert shapes(proto.graph.input) == {"image": ["N", 3, "height", "width"], "tokens": ["N", 3]}
        assert [y.name for y in proto.graph.output] == ["out", "aux.0"]
        assert proto.opset_import[0].version == 18
    with pytest.raises(InputError, match=r"output_names=\['a'\]: give 2"):
        frameworks.from_torch(Two(), example, output_names=["a"])


def test_what_is_no_module() -> None:
    import torch

    net = torch_net().eval()
    wrong = [
        (lambda x: x, "not function"),
        (torch.jit.trace(net, torch.zeros(1, 3, 24, 24)), "scripted"),
        (torch.nn.DataParallel(net), r"model\.module"),
        (torch.compile(net), r"before torch\.compile"),
    ]
    for model, message in wrong:
        with pytest.raises(InputError, match=message):
            frameworks.from_torch(model, (1, 3, 24, 24))


def test_what_it_does_not_take() -> None:
    with pytest.raises(InputError, match=r"does not take the example \(image \(3, 4, 24, 24\)") as caught:
        frameworks.from_torch(torch_net(), (1, 4, 24, 24))
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_what_the_exporter_refuses() -> None:
    import torch

    class Branching(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x if x.sum() > 0 else -x

    net = Branching()
    with pytest.raises(ModelError, match=r"torch\.onnx\.export refuses.*torch\.cond") as caught:
        frameworks.from_torch(net, (1, 3))
    assert caught.value.__cause__ is not None
    assert net.training


def test_a_batch_that_the_model_fixes(shapes: Any) -> None:
    import torch

    class Fixed(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x.reshape(2, 4).sum(1)

    with pytest.raises((InputError, ModelError), match="dynamic_batch=False"):
        frameworks.from_torch(Fixed(), (2, 4))
    proto = frameworks.from_torch(Fixed(), (2, 4), dynamic_batch=False)
    assert shapes(proto.graph.input) == {"x": [2, 4]}
