"""The three small seeded networks of ``make_peers.py``, the shared noise, and what a recorded case consists of."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

CLASSES = 10
NOISE_SEED = 11
GRID = 8
"""Patches of the ViT per side."""


class CnnLinear(nn.Module):
    """Convolution, batch-norm and ReLU three times, global average pool, linear: behind the last ReLU (16×8×8) the tail
    is affine."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
            nn.Conv2d(12, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        )  # fmt: skip
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.flatten(self.pool(self.features(x)), 1))


class CnnMlp(nn.Module):
    """Convolutions with bias, one batch-norm, max pools and two linear layers: the tail is not linear. ``features.7``
    is a convolution whose output is signed, ``features.8`` its ReLU (16×8×10)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(12, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Linear(16 * 4 * 5, 32), nn.ReLU(), nn.Linear(32, CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))


class Attention(nn.Module):
    """Multi-head self-attention in its parts; ``softmax`` is a module, so that its output can be read."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj, self.softmax = nn.Linear(width, 3 * width), nn.Linear(width, width), nn.Softmax(-1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        attention = self.softmax(q @ k.transpose(-2, -1) * (width // self.heads) ** -0.5)
        return self.proj((attention @ v).transpose(1, 2).reshape(batch, tokens, width))


class Block(nn.Module):
    """Pre-norm transformer block with an exact GELU."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, eps=1e-6), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Vit(nn.Module):
    """Patches of 4×4, a class token in front, three blocks of width 24 with 4 heads, norm, linear on the class
    token."""

    def __init__(self, width: int = 24, heads: int = 4, depth: int = 3) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, stride=4)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, GRID * GRID + 1, width))
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], 1) + self.pos_embed
        return self.head(self.norm(self.blocks(tokens))[:, 0])


@dataclass(frozen=True)
class Net:
    """`layers`: name → module path; the first is the one that every method is recorded for."""

    make: Callable[[], nn.Module]
    size: tuple[int, int]
    layers: dict[str, str]
    refine: tuple[str, ...]
    seed: int
    concepts_classifier: str = ""
    reshape: Callable[[torch.Tensor], torch.Tensor] | None = None


def to_grid(tokens: torch.Tensor) -> torch.Tensor:
    """Tokens (N,1+hw,C), class token first, to (N,C,h,w); other ranks (a convolution's output) pass."""
    if tokens.dim() == 4:
        return tokens
    return tokens[:, 1:].reshape(tokens.shape[0], GRID, GRID, -1).permute(0, 3, 1, 2)


NETS = {
    "cnn_linear": Net(
        CnnLinear, (32, 32), {"last": "features.8", "middle": "features.5"}, ("features.5", "features.8"), 26, "fc"
    ),
    "cnn_mlp": Net(
        CnnMlp,
        (32, 40),
        {"last": "features.8", "signed": "features.7", "middle": "features.5"},
        ("features.5", "features.8"),
        28,
    ),
    "vit": Net(
        Vit,
        (32, 32),
        {"last": "blocks.2.norm1", "stream": "blocks.1"},
        ("blocks.1.norm1", "blocks.2.norm1"),
        25,
        "head",
        to_grid,
    ),
}


@dataclass(frozen=True)
class Subject:
    """One network with its images (N,3,H,W) and targets (N,K)."""

    name: str
    net: Net
    model: nn.Module
    x: torch.Tensor
    targets: np.ndarray

    def columns(self, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Results for each column of targets (N,), stacked on axis 1."""
        return np.stack([function(self.targets[:, k]) for k in range(self.targets.shape[1])], 1)


@dataclass(frozen=True)
class Case:
    """One recorded call: `arrays` go to ``<model>/<key>/<name>``, the rest to the JSON description."""

    key: str
    library: str
    arrays: dict[str, np.ndarray]
    layer: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    notes: str = ""


def images(count: int, size: tuple[int, int], seed: int) -> torch.Tensor:
    """Coarse seeded blobs with finer noise, (count,3,H,W)."""
    generator = torch.Generator().manual_seed(seed)
    coarse, fine = torch.randn(count, 3, 5, 6, generator=generator), torch.randn(count, 3, *size, generator=generator)
    return nn.functional.interpolate(coarse, size, mode="bicubic") + 0.3 * fine


def build(net: Net) -> nn.Module:
    """Kaiming weights, random biases and affine parts, batch-norm statistics of 64 seeded images; eval mode."""
    torch.manual_seed(net.seed)
    model = net.make().eval()
    for name, parameter in model.named_parameters(recurse=False):
        nn.init.normal_(parameter, 0.0, 1.0 if name == "cls_token" else 0.5)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.normal_(module.bias, 0.0, 0.2)
        if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.2)
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            module.train()
    with torch.no_grad():
        model(images(64, net.size, net.seed + 1))
    return model.eval()


def generator(sample: int, seed: int = NOISE_SEED) -> np.random.Generator:
    """The random stream of one sample (noise) or mask."""
    return np.random.Generator(np.random.Philox(key=[seed, sample]))


def normal(sample: int, shape: tuple[int, ...], seed: int = NOISE_SEED) -> np.ndarray:
    """Standard normal float32 noise of one sample."""
    return generator(sample, seed).standard_normal(shape, dtype=np.float32)


@contextlib.contextmanager
def forward_outputs(model: nn.Module, paths: list[str]) -> Iterator[list[torch.Tensor]]:
    """The outputs of the modules at `paths`, in the order they are made, as long as the context is open."""
    seen: list[torch.Tensor] = []
    handles = [model.get_submodule(path).register_forward_hook(lambda _m, _i, out: seen.append(out)) for path in paths]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def pick(output: torch.Tensor, classes: np.ndarray) -> torch.Tensor:
    """Scores (N,) of one class per image."""
    return output.gather(1, torch.from_numpy(classes)[:, None])[:, 0]
