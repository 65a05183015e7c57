"""A small vision transformer for `bench/regions.py`: no trained one is at hand, so it is trained here, in minutes.

    python -m bench.regions_vit [--steps 1200]

It learns the first 800 fashion scenes (items moved, mirrored and put on other scenes' textures, in `torch`); the last
200 stay for measuring.  A convolutional stem makes 8 × 8 tokens; four pre-norm blocks and a class token follow.  The
export, with a free batch size, goes to ``$PYCAM_BENCH_CACHE/regions_vit.onnx`` (default: ``bench/.cache``).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.fashion import CACHE, TRAINED, VIT, fashion_arrays

WIDTH, HEADS, DEPTH, SIDE, CLASSES = 64, 4, 4, 8, 10


class Block(nn.Module):
    """`t + attention(norm t)`, then `t + mlp(norm t)`."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 3 * WIDTH), nn.GELU(), nn.Linear(3 * WIDTH, WIDTH))

    def forward(self, t: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(t)).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-2, -1) * (WIDTH // HEADS) ** -0.5).softmax(-1)
        t = t + self.proj((attention @ v).transpose(1, 2).flatten(2))
        return t + self.mlp(self.norm2(t))


class SmallViT(nn.Module):
    """(N, 1, 64, 64) → logits (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, WIDTH, 3, 2, 1)
        )
        self.token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.places = nn.Parameter(0.02 * torch.randn(1, SIDE * SIDE + 1, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        t = self.stem(4 * x - 2).flatten(2).transpose(1, 2)
        t = torch.cat([self.token.expand(t.shape[0], -1, -1), t], 1) + self.places
        return self.head(self.norm(self.blocks(t))[:, 0])


class Scenes:
    """Random scenes out of given ones."""

    def __init__(self, pictures: Tensor, masks: Tensor, labels: Tensor, seed: int = 0) -> None:
        self.pictures, self.masks, self.labels = pictures, masks, labels
        # the hole that an item leaves is filled with texture from half a picture away
        self.textures = torch.where(masks, pictures.roll((32, 32), (1, 2)), pictures)
        self.rng = torch.Generator().manual_seed(seed)

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        """Pictures (size, 1, 64, 64) and labels."""
        i, j = (torch.randint(len(self.labels), (size,), generator=self.rng) for _ in "ij")
        moves = torch.randint(-12, 13, (size, 2), generator=self.rng).tolist()
        pictures = []
        for n, (a, b) in enumerate(zip(i.tolist(), j.tolist(), strict=True)):
            item, mask, texture = self.pictures[a], self.masks[a], self.textures[b]
            rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
            down, right = moves[n]  # as far as the item stays within the picture
            down = max(-int(rows[0]), min(63 - int(rows[-1]), down))
            right = max(-int(columns[0]), min(63 - int(columns[-1]), right))
            if (a + b + down) % 2:
                texture = texture.flip(1)
            picture = torch.where(mask.roll((down, right), (0, 1)), item.roll((down, right), (0, 1)), texture)
            pictures.append(picture.flip(1) if (down + right) % 2 else picture)
        return torch.stack(pictures)[:, None], self.labels[i]


def train(steps: int, size: int = 64) -> tuple[SmallViT, float]:
    """The model, and its accuracy on the scenes kept apart."""
    torch.manual_seed(0)
    pictures, masks, labels = fashion_arrays()
    x, y = torch.from_numpy(pictures.astype(np.float32) / 255), torch.from_numpy(labels)
    scenes = Scenes(x[:TRAINED], torch.from_numpy(masks)[:TRAINED], y[:TRAINED])
    model = SmallViT()
    optimiser = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    start = time.monotonic()
    for step in range(1, steps + 1):
        seen, wanted = scenes.batch(size)
        loss = functional.cross_entropy(model(seen), wanted, label_smoothing=0.05)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        if step % 100 == 0 or step == steps:
            with torch.no_grad():
                right = (model(x[TRAINED:, None]).argmax(1) == y[TRAINED:]).float().mean().item()
            print(f"{step} steps, {time.monotonic() - start:.0f} s: loss {loss.item():.2f}, {right:.3f}", flush=True)
    return model.eval(), right


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.regions_vit", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=1200)
    options = parser.parse_args(argv)
    model, _ = train(options.steps)
    CACHE.mkdir(parents=True, exist_ok=True)
    names: dict[str, list[str]] = {"input_names": ["input"], "output_names": ["logits"]}
    axes = {"input": {0: "N"}, "logits": {0: "N"}}
    torch.onnx.export(
        model, (torch.zeros(2, 1, 64, 64),), str(VIT), dynamo=False, opset_version=17, dynamic_axes=axes, **names
    )
    print(f"wrote {VIT.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
