"""Make the reference arrays of ``tests/test_methods_reference.py`` with the PyPI package grad-cam. From the root:

    python -m tests.reference.make_gradcam

Made with torch 2.13.0 (CPU), torchvision 0.29.2, grad-cam 1.5.7, onnx 1.23.2, onnxscript 0.7.2, onnxruntime 1.31.1,
numpy 2.4.6, opencv-python-headless 5.0.0.93; the versions of a run are written into the file, under ``about``.

Five small seeded networks go through both ONNX exporters of torch into ``tests/reference/<net>.<exporter>.onnx``. For
one batch of two images and two classes per image, ``gradcam.npz`` keeps (float32; ``<layer>`` is ``middle`` or
``last``, N images, K classes):

    x                         (N,3,33,40)    the images, the same for all networks
    about                     JSON: versions; per network the layers' module paths, their tensor names in each
                              export, and whether CAM applies
    <net>/targets             (N,K) int64
    <net>/logits              (N,classes)
    <net>/dx                  (N,K,3,33,40)  gradient of the class score with respect to the image
    <net>/<layer>/A           (N,C,h,w)      activations
    <net>/<layer>/g           (N,K,C,h,w)    gradient of the class score with respect to them
    <net>/<layer>/<method>/raw    (N,K,h,w)      before ReLU, resize and normalisation
    <net>/<layer>/<method>/final  (N,K,33,40)    after the package's whole pipeline
    <net>/both/gradcam/final      (N,K,33,40)    both layers averaged by the package
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import nn

from bench.peers import GRADCAM_CLASSES, PACKAGES, cam_from, gradcam_call

FOLDER = Path(__file__).parent
SEED = 7
CLASSES = 10
SIZE = (33, 40)
EXPORTERS = ("dynamo", "legacy")
WELL_CONDITIONED = 2e-5
"""A raw map that float32 itself moves by more than this (relative, against float64) would be no reference for a
tolerance of 1e-4."""


def conv_bn(inputs: int, outputs: int, kernel: int, act: nn.Module | None = None, **options: Any) -> nn.Sequential:
    layers = [nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **options), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([act] if act else []))


class VggLike(nn.Module):
    """Convolutions with bias, max pools (one overlapping, with ceil), two linear layers. Last layer: a ReLU right
    before a max pool, so that pooling windows full of zeros (ties) count."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.Conv2d(12, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Linear(16 * 4 * 5, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_bn(inputs, outputs, 3, nn.ReLU(), stride=stride), conv_bn(outputs, outputs, 3))
        self.shortcut = conv_bn(inputs, outputs, 1, stride=stride) if stride > 1 or inputs != outputs else nn.Identity()
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.body(x) + self.shortcut(x))


class ResNetLike(nn.Module):
    """Batch-norm, strides, padded max pool, residual sums, global average pool and linear: CAM applies."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, 8, 5, nn.ReLU(), stride=2), nn.MaxPool2d(3, 2, padding=1))
        self.layer1 = nn.Sequential(Bottleneck(8, 12, 1), Bottleneck(12, 12, 1))
        self.layer2 = nn.Sequential(Bottleneck(12, 24, 2), Bottleneck(24, 24, 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(24, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.flatten(self.pool(self.layer2(self.layer1(self.stem(x)))), 1))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels, 1)
        self.relu, self.gate = nn.ReLU(), nn.Hardsigmoid()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gate(self.fc2(self.relu(self.fc1(self.pool(x)))))


class Inverted(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, act: Callable[[], nn.Module], kernel: int = 3) -> None:
        super().__init__()
        wide = 3 * inputs
        self.body = nn.Sequential(
            conv_bn(inputs, wide, 1, act()),
            conv_bn(wide, wide, kernel, act(), stride=stride, groups=wide),
            SqueezeExcite(wide),
            conv_bn(wide, outputs, 1),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.residual else self.body(x)


class MobileNetLike(nn.Module):
    """Depthwise convolutions with strides, ReLU6, hard swish, squeeze and excite; a tail with an activation in it."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            conv_bn(3, 8, 3, nn.Hardswish(), stride=2),
            Inverted(8, 12, 2, nn.ReLU6),
            Inverted(12, 12, 1, nn.ReLU6),
            Inverted(12, 16, 2, nn.Hardswish, kernel=5),
            conv_bn(16, 32, 1, nn.ReLU6()),
        )
        self.classifier = nn.Sequential(nn.Linear(32, 24), nn.Hardswish(), nn.Dropout(), nn.Linear(24, CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class InceptionBlock(nn.Module):
    """Four concatenated branches: 1×1, 1×3 and 3×1, dilated 3×3 in groups, average pool; then a sigmoid gate."""

    def __init__(self, inputs: int, each: int) -> None:
        super().__init__()
        self.point = nn.Conv2d(inputs, each, 1)
        self.split = nn.Sequential(
            nn.Conv2d(inputs, each, (1, 3), padding=(0, 1)), nn.SiLU(), nn.Conv2d(each, each, (3, 1), padding=(1, 0))
        )
        self.wide = nn.Conv2d(inputs, each, 3, padding=2, dilation=2, groups=2)
        self.pool = nn.Sequential(nn.AvgPool2d(3, 1, padding=1), nn.Conv2d(inputs, each, 1))
        self.norm = nn.GroupNorm(4, 4 * each)
        self.gate = nn.Conv2d(4 * each, 4 * each, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(torch.cat([self.point(x), self.split(x), self.wide(x), self.pool(x)], 1))
        return nn.functional.silu(y) * torch.sigmoid(self.gate(y))


class InceptionLike(nn.Module):
    """Concatenation, average pools, SiLU, sigmoid gates, GroupNorm; max and average pooled halves are added before the
    linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 4, stride=2, padding=(1, 2)), nn.ReLU())
        self.block1 = InceptionBlock(8, 4)
        self.reduce = nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)
        self.block2 = InceptionBlock(16, 6)
        self.fc = nn.Linear(24, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.block2(self.reduce(self.block1(self.stem(x))))
        return self.fc(y.mean((2, 3)) + 0.25 * y.amax((2, 3)))


class ConvNextBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 3 * channels), nn.GELU(), nn.Linear(3 * channels, channels))
        self.scale = nn.Parameter(torch.full((channels,), 0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.mlp(self.norm(self.depthwise(x).permute(0, 2, 3, 1))) * self.scale
        return x + y.permute(0, 3, 1, 2)


class ConvNextLike(nn.Module):
    """LayerNorm over channels with transposes, exact GELU, 7×7 depthwise, dense connections, a LayerNorm in the
    tail."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2)
        self.block1 = ConvNextBlock(8)
        self.down = nn.Conv2d(16, 16, 2, stride=2)
        self.block2 = ConvNextBlock(16)
        self.act = nn.Softplus()
        self.norm = nn.LayerNorm(16)
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = torch.cat([nn.functional.leaky_relu(x, 0.1), self.block1(x)], 1)
        x = self.act(self.block2(self.down(x)))
        return self.fc(self.norm(x.mean((2, 3))))


@dataclass(frozen=True)
class Net:
    make: Callable[[], nn.Module]
    middle: str
    last: str
    linear_tail: str = ""
    seed: int = SEED

    @property
    def layers(self) -> dict[str, str]:
        return {"middle": self.middle, "last": self.last}


NETS = {
    "vgg": Net(VggLike, "features.4", "features.7"),
    "resnet": Net(ResNetLike, "layer1", "layer2", linear_tail="fc"),
    "mobilenet": Net(MobileNetLike, "features.1.body.1", "features.4"),
    "inception": Net(InceptionLike, "stem", "block2", seed=8),
    "convnext": Net(ConvNextLike, "block1", "act", seed=15),
}


def images(count: int, seed: int) -> torch.Tensor:
    """Coarse seeded blobs with finer noise, (count,3,33,40)."""
    generator = torch.Generator().manual_seed(seed)
    coarse, fine = torch.randn(count, 3, 5, 6, generator=generator), torch.randn(count, 3, *SIZE, generator=generator)
    return nn.functional.interpolate(coarse, SIZE, mode="bicubic") + 0.3 * fine


def build(net: Net) -> nn.Module:
    """Kaiming weights, random biases and batch-norm affine parts; batch-norm statistics of 64 seeded images; eval
    mode."""
    torch.manual_seed(net.seed)
    model = net.make().eval()
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.normal_(module.bias, 0.0, 0.2)
        if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.2)
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            module.train()
    with torch.no_grad():
        model(images(64, net.seed + 1))
    return model.eval()


def capture(
    model: nn.Module, x: torch.Tensor, classes: np.ndarray, layers: list[str]
) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Activations and gradients (N,...) of each layer, and of the image, by torch's autograd."""
    seen: list[torch.Tensor] = []
    handles = [
        model.get_submodule(layer).register_forward_hook(lambda _m, _i, out: seen.append(out)) for layer in layers
    ]
    x = x.clone().requires_grad_()
    score = model(x).gather(1, torch.from_numpy(classes)[:, None]).sum()
    for handle in handles:
        handle.remove()
    *gradients, dx = torch.autograd.grad(score, [*seen, x])
    return [a.detach().numpy() for a in seen], [g.numpy() for g in gradients], dx.numpy()


def reference(net: Net, model: nn.Module, x: torch.Tensor) -> dict[str, np.ndarray]:
    """All arrays of one network, keyed without the network's name."""
    with torch.no_grad():
        logits = model(x).numpy()
    targets = np.argsort(-logits, axis=1)[:, [0, 2]].astype(np.int64)
    paths = list(net.layers.values())
    columns = [capture(model, x, targets[:, k], paths) for k in range(targets.shape[1])]
    out: dict[str, np.ndarray] = {"logits": logits, "targets": targets, "dx": np.stack([dx for _, _, dx in columns], 1)}
    for i, (name, path) in enumerate(net.layers.items()):
        out[f"{name}/A"] = columns[0][0][i]
        out[f"{name}/g"] = np.stack([gradients[i] for _, gradients, _ in columns], 1)
        for method in GRADCAM_CLASSES:
            calls = [gradcam_call(method, model, [path], x, targets[:, k]) for k in range(targets.shape[1])]
            out[f"{name}/{method}/raw"] = np.stack([raws[0] for raws, _ in calls], 1)
            out[f"{name}/{method}/final"] = np.stack([final for _, final in calls], 1)
    both = [gradcam_call("gradcam", model, paths, x, targets[:, k])[1] for k in range(targets.shape[1])]
    out["both/gradcam/final"] = np.stack(both, 1)
    if net.linear_tail:
        weight = model.get_submodule(net.linear_tail).weight.detach().numpy()
        maps = [cam_from(out["last/A"], weight[targets[:, k]], SIZE) for k in range(targets.shape[1])]
        out["last/cam/raw"], out["last/cam/final"] = (np.stack(part, 1) for part in zip(*maps, strict=True))
    return out


def relative(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def conditioning(net: Net, model: nn.Module, x: torch.Tensor, arrays: dict[str, np.ndarray]) -> dict[str, float]:
    """Relative distance of every raw map from the one made in float64."""
    model = model.double()
    targets, noise = arrays["targets"], {}
    for name, path in net.layers.items():
        for method in GRADCAM_CLASSES:
            exact = np.stack(
                [gradcam_call(method, model, [path], x.double(), targets[:, k])[0][0] for k in range(targets.shape[1])],
                1,
            )
            noise[f"{name}/{method}"] = relative(arrays[f"{name}/{method}/raw"], exact)
    return noise


def export(model: nn.Module, x: torch.Tensor, path: Path, exporter: str) -> None:
    names: dict[str, Any] = {"input_names": ["input"], "output_names": ["logits"]}
    if exporter == "dynamo":
        shapes = ({0: torch.export.Dim("batch")},)
        torch.onnx.export(
            model, (x,), str(path), dynamo=True, external_data=False, dynamic_shapes=shapes, verbose=False, **names
        )
        strip_traces(path)
    else:
        torch.onnx.export(
            model, (x,), str(path), dynamo=False, dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}}, **names
        )


def strip_traces(path: Path) -> None:
    """Drop the metadata that holds this machine's file names; the scopes that name the layers stay."""
    model = onnx.load(path)
    for holder in [model, model.graph, *model.graph.node, *model.graph.value_info, *model.functions]:
        kept = [p for p in holder.metadata_props if p.key.endswith(("name_scopes", "class_hierarchy"))]
        del holder.metadata_props[:]
        holder.metadata_props.extend(kept)
    onnx.save(model, path)


def find_tensor(path: Path, x: np.ndarray, expected: np.ndarray) -> str:
    """The last tensor of the exported graph that holds `expected` when run on `x`: independent of any naming
    convention."""
    model = onnx.load(path)
    model.graph.output.extend(
        onnx.ValueInfoProto(name=name) for node in model.graph.node for name in node.output if name and name != "logits"
    )
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    for name, value in reversed(list(zip(names, session.run(names, {"input": x}), strict=True))):
        if value.shape == expected.shape and relative(value, expected) < 1e-5:
            return name
    raise ValueError(f"{path.name}: no tensor holds the layer's activations")


def main() -> int:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    x = images(2, SEED)
    arrays: dict[str, np.ndarray] = {"x": x.numpy()}
    about: dict[str, Any] = {"versions": {package: version(package) for package in PACKAGES}, "nets": {}}
    for name, net in NETS.items():
        model = build(net)
        values = reference(net, model, x)
        tensors: dict[str, dict[str, str]] = {}
        for exporter in EXPORTERS:
            path = FOLDER / f"{name}.{exporter}.onnx"
            export(model, x, path, exporter)
            tensors[exporter] = {layer: find_tensor(path, x.numpy(), values[f"{layer}/A"]) for layer in net.layers}
        about["nets"][name] = {"seed": net.seed, "layers": net.layers, "tensors": tensors, "cam": bool(net.linear_tail)}
        arrays |= {f"{name}/{key}": value for key, value in values.items()}
        noise = conditioning(net, model, x, values)
        flat = sum(int((value.max((2, 3)) <= 0).sum()) for key, value in values.items() if key.endswith("/raw"))
        worst = max(noise, key=noise.__getitem__)
        sizes = [(FOLDER / f"{name}.{exporter}.onnx").stat().st_size // 1000 for exporter in EXPORTERS]
        print(f"{name:10} worst float32 noise {noise[worst]:.1e} ({worst}), flat maps {flat}, kB {sizes}, {tensors}")
        if noise[worst] > WELL_CONDITIONED:
            raise ValueError(f"{name}: {worst} is ill-conditioned ({noise[worst]:.1e}); choose another seed or layer")
    arrays = {key: value if value.dtype == np.int64 else value.astype(np.float32) for key, value in arrays.items()}
    np.savez_compressed(FOLDER / "gradcam.npz", about=np.array(json.dumps(about)), **arrays)
    print(f"{len(arrays)} arrays, {(FOLDER / 'gradcam.npz').stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
