"""The small seeded networks of the examples that `tests/reference/peers_nets.py` does not have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from tests.reference import peers_nets
from tests.reference.peers_nets import Block

CLASSES = 4


def features() -> nn.Sequential:
    """(N, 3, H, W) → (N, 10, H/2, W/2), 0 or more."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 10, 3, stride=2, padding=1), nn.ReLU()
    )  # fmt: skip


class Classifier(nn.Module):
    """Average pooling and linear layers; with several classes a softmax."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features, self.hidden, self.fc = features(), nn.Linear(10, 12), nn.Linear(12, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.fc(torch.relu(self.hidden(self.features(x).mean((2, 3)))))
        return y if y.shape[1] == 1 else torch.softmax(y, 1)


class Segmenter(nn.Module):
    """A convolution to the classes, resized to the image if `fine`."""

    def __init__(self, fine: bool) -> None:
        super().__init__()
        self.fine, self.features = fine, features()
        self.between, self.classifier = nn.Conv2d(10, 10, 3, padding=1), nn.Conv2d(10, CLASSES, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.classifier(torch.relu(self.between(self.features(x))))
        return nn.functional.interpolate(y, size=x.shape[2:], mode="bilinear") if self.fine else y


class Detector(nn.Module):
    """Boxes at the 20 positions of the best scores, in torchvision's form; exported, the parts of one image."""

    def __init__(self) -> None:
        super().__init__()
        self.exported = False
        self.features, self.head = features(), nn.Conv2d(10, 4 + CLASSES, 3, stride=2, padding=1)

    def parts(self, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Boxes (M, 4), labels (M,), scores (M,) of one image's (4 + CLASSES, h, w)."""
        rows, columns = y.shape[1:]
        down, across = torch.meshgrid(torch.arange(rows) * 4.0 + 2, torch.arange(columns) * 4.0 + 2, indexing="ij")
        sizes = 4 + 4 * torch.sigmoid(y[:4]).reshape(4, -1)
        centre = torch.stack([across.reshape(-1), down.reshape(-1)])
        boxes = torch.cat([centre - sizes[:2], centre + sizes[2:]]).T
        scores, labels = torch.sigmoid(y[4:]).reshape(CLASSES, -1).max(0)
        best = torch.topk(scores, 20).indices
        return boxes[best], labels[best] + 1, scores[best]

    def forward(self, x: torch.Tensor) -> Any:
        y = self.head(self.features(x))
        if self.exported:
            return self.parts(y[0])
        return [dict(zip(("boxes", "labels", "scores"), self.parts(one), strict=True)) for one in y]


class Swin(nn.Module):
    """Patches of 4×4 and two blocks, no class token: their mean is classified."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, stride=4)
        self.blocks = nn.Sequential(Block(width, 4), Block(width, 4))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(tokens)).mean(1))


class Net(NamedTuple):
    """A network and its seed."""

    make: Callable[[], nn.Module]
    seed: int

    def build(self) -> nn.Module:
        """Default weights from the seed; eval mode."""
        torch.manual_seed(self.seed)
        return self.make().eval()


NETS: dict[str, Net | peers_nets.Net] = {
    **peers_nets.NETS,
    "binary": Net(lambda: Classifier(1), 3),
    "probabilities": Net(lambda: Classifier(3), 5),
    "segmentation": Net(lambda: Segmenter(True), 6),
    "coarse": Net(lambda: Segmenter(False), 7),
    "detector": Net(Detector, 8),
    "swin": Net(Swin, 9),
}


def built(name: str) -> nn.Module:
    """A network."""
    net = NETS[name]
    return net.build() if isinstance(net, Net) else peers_nets.build(net)
