"""Train the small VQA model, `vqa.onnx`: python tests/trained/train_vqa.py (torch, minutes on one core).

A CNN whose last convolution is modulated by the question (FiLM, Perez et al., arXiv 1709.07871); attention over the
grid picks the place that the answer is read from.
"""

from __future__ import annotations

import accuracy
import numpy as np
import torch
from scenes import ANSWERS, QUESTION_LENGTH, SIZE, WORDS, make_scenes, questions
from torch import Tensor, nn
from torch.nn import functional as F
from training import TEST_SEED, block, export, train

SEED, STEPS, BATCH = 1, 800, 64
QUESTIONS = 4  # of each image, in training
WIDTH, STATE, GRID = 32, 48, 16


class Film(nn.Module):
    """relu(scale(q) · conv(x) + shift(q)), channel by channel."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(WIDTH, outputs, 1)
        self.modulate = nn.Linear(STATE, 2 * outputs)

    def forward(self, x: Tensor, question: Tensor) -> Tensor:
        scale, shift = self.modulate(question)[:, :, None, None].chunk(2, dim=1)
        return F.relu((1 + scale) * self.conv(x) + shift)


class Select(nn.Module):
    """attention · x, a module so that the export gives the product a name."""

    def forward(self, attention: Tensor, x: Tensor) -> Tensor:
        return attention * x


class Vqa(nn.Module):
    """image (N, 3, 64, 64), question (N, 5) -> answer (N, 12); the grid is 16 × 16."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(block(3, 16, 2), block(16, WIDTH, 2), block(WIDTH, WIDTH), block(WIDTH, WIDTH))
        self.words = nn.Embedding(len(WORDS), 24)
        self.reader = nn.GRU(24, STATE, batch_first=True)
        self.fuse = Film(64)
        self.attend, self.select = nn.Conv2d(64, 1, 1), Select()
        self.answer = nn.Sequential(nn.Linear(64 + STATE, 64), nn.ReLU(), nn.Linear(64, len(ANSWERS)))

    def forward(self, image: Tensor, question: Tensor) -> Tensor:
        return self.read(self.features(image), question)

    def read(self, x: Tensor, question: Tensor) -> Tensor:
        """The answers from features."""
        _, state = self.reader(self.words(question))
        fused = self.fuse(x, state[0])
        attention = torch.softmax(self.attend(fused).flatten(1), dim=1).reshape(-1, 1, GRID, GRID)
        return self.answer(torch.cat([self.select(attention, fused).sum((2, 3)), state[0]], dim=1))


def batch(count: int, seed: int | np.random.Generator, each: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """`count` images; `each` questions about every one of them, one image after the other, and their answers."""
    rng = np.random.default_rng(seed)
    scenes = make_scenes(count, rng)
    asked = questions(scenes.take(np.arange(count).repeat(each)), rng)
    return torch.from_numpy(scenes.images), torch.from_numpy(asked.tokens), torch.from_numpy(asked.answers)


def main() -> None:
    torch.manual_seed(SEED)
    model = Vqa()

    def loss(rng: np.random.Generator, step: int) -> Tensor:
        image, question, answer = batch(BATCH, rng, QUESTIONS)
        return F.cross_entropy(model.read(model.features(image).repeat_interleave(QUESTIONS, 0), question), answer)

    train(model, loss, STEPS, 4e-3, SEED)
    inputs = {"image": torch.zeros(2, 3, SIZE, SIZE), "question": torch.zeros(2, QUESTION_LENGTH, dtype=torch.int64)}
    export(model, inputs, ["answer"], "vqa", ANSWERS)
    print("1000 new scenes:", accuracy.vqa(1000, TEST_SEED))


if __name__ == "__main__":
    main()
