"""Networks that the benches of all methods explain: four CNNs of ``bench/models.py``, a ViT and a Swin, at two sizes.

All have seeded random weights. "full" is 224×224; "small" is 64×64, for methods that run the model once per channel or
differentiate for the image, where a ReLU that flips between two libraries is rarer (see ``bench/steady.py``).
Activations are not done in place, so that hooks of the peers see what a layer gives.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from bench import models, steady
from bench.peers import torchvision

Reshape = Callable[[torch.Tensor], torch.Tensor]
SIZES = {"full": 224, "small": 64}
CANDIDATES = 40


def class_token_first(tokens: torch.Tensor) -> torch.Tensor:
    """Tokens (N,1+h·w,C) to (N,C,h,w); other ranks pass."""
    if tokens.dim() != 3:
        return tokens
    side = round((tokens.shape[1] - 1) ** 0.5)
    return tokens[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)


def channels_last(features: torch.Tensor) -> torch.Tensor:
    """(N,h,w,C) to (N,C,h,w)."""
    return features.permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Net:
    """Layers as module paths.

    Attributes:
        last: What methods explain.
        refine: What RefineCAM multiplies.
        mid: A layer behind which the score is not affine.
        classifier: What takes a concept (C,) to the scores, where the tail is that behind a global average.
        relu: Every activation is a `nn.ReLU`, so that the peers' guided methods see all of them.
        kinks: Its gradient jumps where an activation passes a kink (ReLU, ReLU6).
        reshape: From the layers' outputs to features; None: they are.
    """

    last: str
    refine: tuple[str, ...]
    mid: str
    classifier: str = ""
    relu: bool = False
    kinks: bool = False
    reshape: Reshape | None = None


_VIT = "encoder.layers.encoder_layer_{}.ln_1"

NETS = {
    "resnet50": Net("layer4", ("layer2", "layer3", "layer4"), "layer3", "fc", relu=True, kinks=True),
    "mobilenet_v2": Net(
        "features.18", ("features.6", "features.13", "features.18"), "features.13", "classifier", kinks=True
    ),
    "vgg16": Net("features.29", ("features.15", "features.22", "features.29"), "features.22", relu=True, kinks=True),
    "efficientnet_b0": Net("features.8", ("features.3", "features.5", "features.8"), "features.5", "classifier"),
    "vit_b_16": Net(_VIT.format(11), (_VIT.format(9), _VIT.format(11)), _VIT.format(8), reshape=class_token_first),
    "swin_t": Net(
        "features.7.1.norm1", ("features.5.5.norm1", "features.7.1.norm1"), "features.5.5.norm1", reshape=channels_last
    ),
}


@dataclass(frozen=True)
class Subject:
    """A network with the images that are explained (N,3,H,W)."""

    name: str
    net: Net
    model: nn.Module
    path: Path
    x: torch.Tensor

    @property
    def size(self) -> tuple[int, int]:
        """H, W."""
        return self.x.shape[2], self.x.shape[3]

    def module(self, layer: str) -> nn.Module:
        return self.model.get_submodule(layer)

    def features(self, value: torch.Tensor) -> torch.Tensor:
        """(N,C,h,w) of what a layer gives."""
        return value if self.net.reshape is None else self.net.reshape(value)

    def with_images(self, x: torch.Tensor) -> Subject:
        return dataclasses.replace(self, x=x)

    def in_float64(self) -> Subject:
        return dataclasses.replace(self, model=copy.deepcopy(self.model).double(), x=self.x.double())


def build(name: str, size: int) -> nn.Module:
    """The seeded network in eval mode, nothing in place."""
    if name in models.MODELS:
        model = models.build(name)
    else:
        torch.manual_seed(models.SEED)
        options = {"image_size": size} if name.startswith("vit") else {}
        model = getattr(torchvision.models, name)(weights=None, **options).eval()
        head = model.heads.head if name.startswith("vit") else model.head
        nn.init.normal_(head.weight, std=0.02)  # torchvision's ViT starts at zero, where all gradients are
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    return model


def images(size: int, count: int, seed: int = models.SEED) -> torch.Tensor:
    """Seeded images (count,3,size,size), those of ``bench/models.py`` made smaller."""
    x = models.images("resnet50", count, seed)
    return x if x.shape[-1] == size else nn.functional.interpolate(x, (size, size), mode="area")


def export(name: str, size: int, model: nn.Module) -> Path:
    """The export by torch's dynamo exporter, dynamic batch, from the cache."""
    stem = name if size == SIZES["full"] else f"{name}_{size}"
    path = models.cache() / "dynamo" / f"{stem}.onnx"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        draft = path.with_suffix(".tmp")
        models.to_onnx(model, images(size, 2), draft, "dynamo")
        draft.rename(path)
    return path


def _gradient(model: nn.Module, x: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_(True)
    return torch.autograd.grad(model(x).gather(1, classes[:, None]).sum(), x)[0]


def _unsteadiness(model: nn.Module, exact: nn.Module, x: torch.Tensor) -> float:
    """As ``bench/steady.py`` has it, of the gradient for the image."""
    with torch.no_grad():
        top = model(x).argmax(1)
    still, worst = _gradient(model, x, top), 0.0
    for draw in range(steady.DRAWS):
        moved = _gradient(model, torch.cat([x, steady.nudge(x, draw)]), top.repeat(2))
        worst = max(worst, ((moved - still).flatten(1).norm(dim=1).max() / still.norm()).item())
        if worst > steady.STILL:
            return worst
    precise = _gradient(exact, x.double(), top)
    return max(worst, ((still - precise).norm() / precise.norm()).item())


def steady_images(name: str, size: int, model: nn.Module, count: int) -> torch.Tensor:
    """The first images of a seeded sequence whose gradient holds still under rounding errors, else the stillest; the
    choice is cached."""
    record = models.cache() / "steady_methods.json"
    chosen: dict[str, list[int]] = json.loads(record.read_text()) if record.exists() else {}
    key = f"{name}/{size}/{count}"
    if key not in chosen:
        exact, scores = copy.deepcopy(model).double(), dict[int, float]()
        for seed in range(models.SEED, models.SEED + CANDIDATES):
            scores[seed] = _unsteadiness(model, exact, images(size, 1, seed))
            if sum(score <= steady.STILL for score in scores.values()) == count:
                break
        chosen[key] = sorted(scores, key=scores.__getitem__)[:count]
        record.write_text(json.dumps(chosen, indent=1))
    return torch.cat([images(size, 1, seed) for seed in chosen[key]])


@functools.lru_cache(maxsize=2)
def subject(name: str, size: str = "full", count: int = 2, still: bool = True) -> Subject:
    """A network with `count` images: steady ones, or the first of the sequence."""
    pixels = SIZES[size]
    model = build(name, pixels)
    if not still:
        x = images(pixels, count)
    elif pixels == SIZES["full"]:  # by a layer's gradient; networks without kinks need no choice
        x = steady.images(name, model, count) if name in models.MODELS else images(pixels, count)
    else:
        x = steady_images(name, pixels, model, count)
    return Subject(name, NETS[name], model, export(name, pixels, model), x)


def classes_of(found: Subject, ranks: Sequence[int]) -> torch.Tensor:
    """Classes (N,K) by the rank of their score."""
    with torch.no_grad():
        return found.model(found.x).argsort(1, descending=True)[:, list(ranks)]
