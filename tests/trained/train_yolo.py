"""Train the small detector, `yolo.onnx`: python tests/trained/train_yolo.py (torch, minutes on one core).

Its output is laid out like that of YOLOv8: (N, 4 + classes, anchors), for every anchor the box's centre, width and
height in pixels and each class's score after the sigmoid, no objectness. Strides 8 and 16; separate branches for boxes
and classes; a box's four distances are expectations over bins (Generalized Focal Loss, Li et al., arXiv 2006.04388).
"""

from __future__ import annotations

import accuracy
import torch
from scenes import SHAPES, SIZE, Scenes, make_scenes
from torch import Tensor, nn
from torch.nn import functional as F
from training import TEST_SEED, block, export, train

SEED, STEPS, BATCH = 1, 900, 64
STRIDES, BINS, WIDTH = (8, 16), 8, 48
SMALL = 18  # longer side of the largest object that belongs to the finer grid, in pixels


class Head(nn.Module):
    """Features of one stride -> bins (N, 4 · BINS, h, w) and class logits (N, classes, h, w)."""

    def __init__(self) -> None:
        super().__init__()
        self.box = nn.Sequential(block(WIDTH, 32), nn.Conv2d(32, 4 * BINS, 1))
        self.cls = nn.Sequential(block(WIDTH, 32), nn.Conv2d(32, len(SHAPES), 1))
        nn.init.constant_(self.cls[-1].bias, -4.0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.box(x), self.cls(x)


class Yolo(nn.Module):
    """images (N, 3, 64, 64) -> output0 (N, 8, 80)."""

    anchors: Tensor
    strides: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(block(3, 24, 2), block(24, WIDTH, 2), block(WIDTH, WIDTH), block(WIDTH, WIDTH, 2))
        self.deeper = nn.Sequential(block(WIDTH, WIDTH, 2), block(WIDTH, WIDTH))
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.merge = block(2 * WIDTH, WIDTH)
        self.heads = nn.ModuleList(Head() for _ in STRIDES)
        centres, strides = [], []
        for stride in STRIDES:
            axis = torch.arange(SIZE // stride) + 0.5
            y, x = torch.meshgrid(axis, axis, indexing="ij")
            centres.append(torch.stack([x.flatten(), y.flatten()]))
            strides.append(torch.full((x.numel(),), float(stride)))
        self.register_buffer("anchors", torch.cat(centres, 1)[None])  # (1, 2, anchors), in strides
        self.register_buffer("strides", torch.cat(strides))
        self.register_buffer("bins", torch.arange(BINS, dtype=torch.float32).reshape(1, 1, BINS, 1))

    def raw(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Bins (N, 4, BINS, anchors) of left, top, right, bottom, and class logits (N, classes, anchors)."""
        fine = self.backbone(images)
        coarse = self.deeper(fine)
        merged = self.merge(torch.cat([fine, self.up(coarse)], 1))
        boxes, classes = zip(*(head(x) for head, x in zip(self.heads, (merged, coarse), strict=True)), strict=True)
        bins = torch.cat([b.flatten(2) for b in boxes], 2).reshape(-1, 4, BINS, self.anchors.shape[2])
        return bins, torch.cat([c.flatten(2) for c in classes], 2)

    def corners(self, bins: Tensor) -> tuple[Tensor, Tensor]:
        """Upper left and lower right (N, 2, anchors), in strides."""
        distances = (torch.softmax(bins, 2) * self.bins).sum(2)
        return self.anchors - distances[:, :2], self.anchors + distances[:, 2:]

    def forward(self, images: Tensor) -> Tensor:
        bins, classes = self.raw(images)
        low, high = self.corners(bins)
        boxes = torch.cat([(low + high) / 2, high - low], 1) * self.strides
        return torch.cat([boxes, torch.sigmoid(classes)], 1)

    def assign(self, scenes: Scenes) -> tuple[Tensor, Tensor]:
        """For each anchor the box x0 y0 x1 y1 (N, 4, anchors) and the class (N, anchors) to find; −1: none.

        An object belongs to the anchors of its stride whose centres lie within its box.
        """
        boxes, shapes = torch.from_numpy(scenes.boxes).float(), torch.from_numpy(scenes.shapes)
        size = (boxes[..., 2:] - boxes[..., :2]).amax(-1)
        at = (self.anchors * self.strides)[0]  # (2, anchors), in pixels
        inside = ((at > boxes[..., :2, None]) & (at < boxes[..., 2:, None])).all(2)  # (N, K, anchors)
        inside &= torch.where(size < SMALL, *map(float, STRIDES))[..., None] == self.strides
        which = inside.float().argmax(1)  # boxes do not overlap
        found = inside.any(1)
        box = boxes.gather(1, which[..., None].expand(-1, -1, 4)).transpose(1, 2)
        return box, torch.where(found, shapes.gather(1, which), -1)


def loss_of(model: Yolo, scenes: Scenes) -> Tensor:
    """Cross-entropy of the classes at all anchors; 1 − GIoU and cross-entropy of the bins where there is an object."""
    bins, classes = model.raw(torch.from_numpy(scenes.images))
    box, shape = model.assign(scenes)
    there = shape >= 0
    wanted = F.one_hot(shape.clamp(min=0), len(SHAPES)).transpose(1, 2).float() * there[:, None]
    value = F.binary_cross_entropy_with_logits(classes, wanted, reduction="sum")
    low, high = (x.transpose(1, 2)[there] for x in model.corners(bins))
    box = (box / model.strides).transpose(1, 2)[there]
    overlap = giou(torch.cat([low, high], 1), box)
    at = model.anchors[0].T.expand(len(shape), -1, -1)[there]
    distances = torch.cat([at - box[:, :2], box[:, 2:] - at], 1).clamp(0, BINS - 1.01)  # (objects' anchors, 4)
    left = distances.long()
    share = distances - left
    logs = torch.log_softmax(bins.permute(0, 3, 1, 2)[there], dim=2)
    dfl = -((1 - share) * logs.gather(2, left[..., None])[..., 0] + share * logs.gather(2, left[..., None] + 1)[..., 0])
    return (value + 5 * (1 - overlap).sum() + dfl.mean(1).sum()) / there.sum()


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU (Rezatofighi et al., arXiv 1902.09630) of boxes x0 y0 x1 y1, pair by pair."""
    both = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    union = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - both
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).prod(1)
    return both / union - (hull - union) / hull


def main() -> None:
    torch.manual_seed(SEED)
    model = Yolo()
    train(model, lambda rng, step: loss_of(model, make_scenes(BATCH, rng)), STEPS, 4e-3, SEED)
    export(model, {"images": torch.zeros(2, 3, SIZE, SIZE)}, ["output0"], "yolo", SHAPES)
    print("1000 new scenes:", accuracy.yolo(1000, TEST_SEED))


if __name__ == "__main__":
    main()
