"""Train the small captioner, `captioner.onnx`: python tests/trained/train_captioner.py (torch, minutes on one core).

A CNN and an LSTM with visual attention. The LSTM reads the words so far, from a state that it gets of the whole image
(Show and Tell, Vinyals et al., arXiv 1411.4555); its output asks for two places on the grid, and what is there and
where they are names the next word (attention from the current state, as Lu et al., arXiv 1612.01887, have it).
"""

from __future__ import annotations

import accuracy
import numpy as np
import torch
from scenes import CAPTION_LENGTH, PAD, SIZE, START, WORDS, captions, clear, make_scenes
from torch import Tensor, nn
from torch.nn import functional as F
from training import TEST_SEED, block, export, train

SEED, STEPS, BATCH = 1, 900, 64
WIDTH, HIDDEN, GRID = 32, 96, 16
LOOKS = 2  # places that are looked at for a word: a relation has two sides


class Captioner(nn.Module):
    """image (N, 3, 64, 64), tokens (N, T): the words so far -> logits (N, T, V) of the word behind each of them."""

    where: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(block(3, 16, 2), block(16, WIDTH, 2), block(WIDTH, WIDTH), block(WIDTH, WIDTH))
        self.layout = nn.Sequential(nn.Conv2d(WIDTH, 12, 1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten())
        self.state = nn.Linear(12 * GRID * GRID // 4, HIDDEN)
        self.words = nn.Embedding(len(WORDS), 32)
        self.decoder = nn.LSTM(32, HIDDEN, batch_first=True)
        self.query = nn.Linear(HIDDEN, LOOKS * WIDTH)
        self.places = nn.Parameter(torch.randn(1, WIDTH, GRID * GRID) * 0.3)
        axis = torch.linspace(-1, 1, GRID)
        self.register_buffer("where", torch.stack(torch.meshgrid(axis, axis, indexing="xy"), 2).reshape(1, -1, 2))
        looked = LOOKS * (WIDTH + 2)
        self.next = nn.Sequential(nn.Linear(HIDDEN + looked, 96), nn.ReLU(), nn.Linear(96, len(WORDS)))

    def forward(self, image: Tensor, tokens: Tensor) -> Tensor:
        features = self.features(image)
        state = torch.tanh(self.state(self.layout(features)))[None]
        hidden, _ = self.decoder(self.words(tokens), (state, torch.zeros_like(state)))
        places = features.flatten(2)  # (N, C, places)
        values = torch.cat([places.transpose(1, 2), self.where.expand(image.shape[0], -1, -1)], dim=2)
        contexts = [
            torch.softmax(query @ (places + self.places) / WIDTH**0.5, dim=-1) @ values  # (N, T, C + 2)
            for query in self.query(hidden).chunk(LOOKS, dim=2)
        ]
        return self.next(torch.cat([hidden, *contexts], dim=-1))


def batch(count: int, seed: int | np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Images, the words so far (they begin with `<start>`) and the words behind each of them, about `count`."""
    scenes = make_scenes(count * 5 // 4, seed, (2,))
    scenes = scenes.take(clear(scenes))
    words = torch.from_numpy(captions(scenes).tokens)
    return torch.from_numpy(scenes.images), F.pad(words[:, :-1], (1, 0), value=START), words


def main() -> None:
    torch.manual_seed(SEED)
    model = Captioner()

    def loss(rng: np.random.Generator, step: int) -> Tensor:
        image, tokens, words = batch(BATCH, rng)
        return F.cross_entropy(model(image, tokens).flatten(0, 1), words.flatten(), ignore_index=PAD)

    train(model, loss, STEPS, 4e-3, SEED)
    inputs = {"image": torch.zeros(2, 3, SIZE, SIZE), "tokens": torch.zeros(2, CAPTION_LENGTH, dtype=torch.int64)}
    export(model, inputs, ["logits"], "captioner", WORDS, {"tokens": {1: "T"}, "logits": {1: "T"}})
    print("1000 new scenes:", accuracy.captioner(1000, TEST_SEED))


if __name__ == "__main__":
    main()
