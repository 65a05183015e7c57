"""Make the reference of ``tests/targets/test_detection_peer.py`` with the PyPI package grad-cam.  From the root:

    python -m tests.targets.make_detection

Made with torch 2.14.1 (CPU), torchvision 0.29.1, grad-cam 1.5.7, onnx 1.23.2; the versions of a run are written into
the file.  A small seeded Faster R-CNN of torchvision, with random weights, goes through torch's exporter into
``faster_rcnn.onnx``: image (1, 3, 96, 128) -> boxes (D, 4), scores (D,), labels (D,).  ``faster_rcnn.npz`` keeps, for
each of B boxes, one by one, and for all of them as one target of the package (the last entry):

    about             JSON: versions
    pixels            (1,3,96,128)      uint8; the image is pixels/255
    boxes, labels     (B,4), (B,)       what is explained; the first box is a detection itself, the others are moved
    found_boxes, found_scores, found_labels   the model's detections
    y                 (B + 1,)          FasterRCNNBoxScoreTarget's score
    A                 (16,h,w)          activations of the layer ``m.backbone.5``
    raw               (B + 1,h,w)       before ReLU, resize and normalisation
    final             (B + 1,96,128)    after the package's whole pipeline
"""

from __future__ import annotations

import json
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import FasterRCNNBoxScoreTarget
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

FOLDER = Path(__file__).parent
SEED, SIZE, CLASSES, WIDTH = 30, (96, 128), 4, 16
PACKAGES = ("torch", "torchvision", "grad-cam", "onnx", "numpy")


def make_model() -> FasterRCNN:
    """Random weights, larger than usual ones where scores and boxes would all be the same."""
    torch.manual_seed(SEED)
    backbone = nn.Sequential(
        nn.Conv2d(3, WIDTH, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(WIDTH, WIDTH, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(WIDTH, WIDTH, 3, 2, 1),
        nn.ReLU(),
    )
    backbone.out_channels = WIDTH
    model = FasterRCNN(
        backbone,
        None,
        min_size=SIZE[0],
        max_size=SIZE[1],
        rpn_anchor_generator=AnchorGenerator(((16, 32, 48),), ((0.5, 1.0, 2.0),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 3, 2),
        box_head=nn.Sequential(nn.Flatten(1), nn.Linear(WIDTH * 9, 32), nn.ReLU()),
        box_predictor=Predictor(),
        rpn_pre_nms_top_n_test=60,
        rpn_post_nms_top_n_test=24,
        box_detections_per_img=10,
    )
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)
    return model.eval()


class Predictor(nn.Module):
    """Features -> class logits and offsets of boxes."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_score = nn.Linear(32, CLASSES)
        self.bbox_pred = nn.Linear(32, 4 * CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls_score(x), self.bbox_pred(x) * 0.3


class OneImage(nn.Module):
    """image (1, 3, H, W) -> boxes, scores, labels."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.m = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = self.m([image[0]])[0]
        return found["boxes"], found["scores"], found["labels"]


def main() -> None:
    warnings.filterwarnings("ignore")
    model = make_model()
    rng = np.random.default_rng(SEED)
    coarse = torch.from_numpy(rng.random((1, 3, 8, 10), dtype=np.float32))
    pixels = (nn.functional.interpolate(coarse, SIZE, mode="bilinear") * 255).to(torch.uint8)
    x = pixels.float() / 255
    with torch.no_grad():
        found = {name: value.numpy() for name, value in model(x)[0].items()}
    shifts = np.array([[0, 0, 0, 0], [2, -1, 3, 1], [-2, 2, 1, 3]], np.float32)
    chosen = [0, 2, 3]
    boxes = np.clip(found["boxes"][chosen] + shifts, 0, [SIZE[1], SIZE[0]] * 2).astype(np.float32)
    labels = found["labels"][chosen]
    y, raw, final = [], [], []
    groups = [[i] for i in range(len(boxes))] + [list(range(len(boxes)))]
    with GradCAM(model, [model.backbone[5]]) as cam:
        for group in groups:
            target = FasterRCNNBoxScoreTarget(labels[group].tolist(), boxes[group])
            final.append(cam(x, [target])[0])
            (a,), (g,) = cam.activations_and_grads.activations, cam.activations_and_grads.gradients
            raw.append(np.einsum("c,chw->hw", g.numpy().mean((2, 3))[0], a.numpy()[0]))
            y.append(target(model(x)[0]).item())
    torch.onnx.export(
        OneImage(model),
        (x,),
        str(FOLDER / "faster_rcnn.onnx"),
        opset_version=17,
        dynamo=False,
        input_names=["image"],
        output_names=["boxes", "scores", "labels"],
    )
    about = {name: version(name) for name in PACKAGES}
    np.savez_compressed(
        FOLDER / "faster_rcnn.npz",
        about=json.dumps(about),
        pixels=pixels.numpy(),
        boxes=boxes,
        labels=labels,
        **{f"found_{name}": value for name, value in found.items()},
        y=np.array(y),
        A=a.numpy()[0],
        raw=np.array(raw),
        final=np.array(final),
    )
    print("detections", found["scores"].round(3), found["labels"], found["boxes"].round(1), "y", y, sep="\n")
    print("size of the raw maps", [float(np.abs(r).max()) for r in raw])


if __name__ == "__main__":
    main()
