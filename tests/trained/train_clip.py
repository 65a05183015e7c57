"""Train the small CLIP-like pair, `image_encoder.onnx` and `text_encoder.onnx`: python tests/trained/train_clip.py
(torch, minutes on one core).

A CNN and a text transformer whose embeddings lie close where the phrase is true of the scene (Radford et
al., arXiv 2103.00020); the other phrases of a batch are the wrong ones, less those that happen to be true as well,
and for each scene its own phrase with a wrong shape.
"""

from __future__ import annotations

import accuracy
import numpy as np
import torch
from scenes import PAD, PHRASE_LENGTH, SHAPES, SIZE, WORDS, make_scenes, phrases
from torch import Tensor, nn
from torch.nn import functional as F
from training import TEST_SEED, block, export, train

SEED, STEPS, BATCH = 1, 900, 64
EACH = 3  # phrases about each scene
EASY = 200  # steps with one object alone, before there are two or three
WIDTH, FOUND, TEXT, HEADS, EMBEDDING = 48, 96, 48, 4, 48


class Layer(nn.Module):
    """Transformer layer: x + attention(norm(x)), x + mlp(norm(x))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(n, t, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(2, 3) * (c // HEADS) ** -0.5
        attention = torch.softmax(scores if bias is None else scores + bias, dim=-1)
        x = x + self.proj((attention @ v).transpose(1, 2).reshape(n, t, c))
        return x + self.mlp(self.norm2(x))


class ImageEncoder(nn.Module):
    """image (N, 3, 64, 64) -> embedding (N, 48): a CNN; for each of its features the maximum over the 16 × 16 grid."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            block(3, 16, 2),
            block(16, 32, 2),
            block(32, 32),
            block(32, WIDTH),
            nn.Conv2d(WIDTH, FOUND, 1),
            nn.ReLU(),
        )
        self.head = nn.Linear(FOUND, EMBEDDING, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.features(image).amax((2, 3)))


class TextEncoder(nn.Module):
    """tokens (M, 7) -> embedding (M, 48): a transformer layer over the words; the mean of those that are no padding."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(len(WORDS), TEXT)
        self.positions = nn.Parameter(torch.randn(1, PHRASE_LENGTH, TEXT) * 0.1)
        self.block = Layer(TEXT)
        self.norm, self.head = (
            nn.LayerNorm(TEXT),
            nn.Linear(TEXT, EMBEDDING, bias=False),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        there = (tokens != PAD).float()
        x = self.block(self.words(tokens) + self.positions, (there[:, None, None] - 1) * 1e4)
        pooled = (self.norm(x) * there[:, :, None]).sum(1) / there.sum(1, keepdim=True)
        return self.head(pooled)


class Pair(nn.Module):
    """Both, and the temperature that they were trained with."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text, self.scale = (
            ImageEncoder(),
            TextEncoder(),
            nn.Parameter(torch.tensor(2.3)),
        )

    def forward(self, image: Tensor, tokens: Tensor) -> Tensor:
        """(N, M): exp(scale) · cosine."""
        a, b = (
            F.normalize(self.image(image), dim=1),
            F.normalize(self.text(tokens), dim=1),
        )
        return self.scale.clamp(max=4.6).exp() * a @ b.T


def batch(count: int, rng: np.random.Generator, objects: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images, `EACH` phrases about each of them (M, 7), the same with a wrong shape, and which phrases are true of an
    image (N, M)."""
    scenes = make_scenes(count, rng, objects)
    said = phrases(scenes.take(np.arange(count).repeat(EACH)), rng)
    first = WORDS.index(SHAPES[0])
    false = said.tokens.copy()  # nothing else in the scene has that colour
    false[:, 2] = first + (false[:, 2] - first + rng.integers(1, len(SHAPES), len(false))) % len(SHAPES)
    images, tokens, wrong, true = map(torch.from_numpy, (scenes.images, said.tokens, false, said.true[::EACH]))
    return images, tokens, wrong, true


def main() -> None:
    torch.manual_seed(SEED)
    model = Pair()
    each = torch.arange(BATCH * EACH)
    own = each // EACH  # the scene that a phrase was made for

    def loss(rng: np.random.Generator, step: int) -> Tensor:
        image, tokens, false, true = batch(BATCH, rng, (1,) if step <= EASY else (2, 3))
        logits, twisted = model(image, torch.cat([tokens, false])).chunk(2, dim=1)
        right = logits[own, each][:, None]
        others = logits.masked_fill(true, -1e4)
        phrases_of = torch.cat([right, others[own], twisted[own, each][:, None]], 1).logsumexp(1)
        scenes_of = torch.cat([right, others.T], 1).logsumexp(1)
        return (phrases_of + scenes_of).mean() / 2 - right.mean()

    train(model, loss, STEPS, 3e-3, SEED)
    export(
        model.image,
        {"image": torch.zeros(2, 3, SIZE, SIZE)},
        ["embedding"],
        "image_encoder",
    )
    tokens = torch.ones(2, PHRASE_LENGTH, dtype=torch.int64)
    export(model.text, {"tokens": tokens}, ["embedding"], "text_encoder")
    print("1000 new scenes:", accuracy.clip(1000, TEST_SEED))


if __name__ == "__main__":
    main()
