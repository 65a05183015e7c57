"""Make the reference arrays of ``test_segmentation.py`` with the PyPI package grad-cam. From the root:

    python -m tests.targets.make_segmentation

Made with torch 2.14.1 (CPU), grad-cam 1.5.7, onnx 1.23.2, onnxscript 0.7.2; the versions of a run are written into the
file, under ``about``.

A small seeded segmentation network (an encoder to a quarter of the size, context, logits resized to the image's size
as torchvision's DeepLabV3 does) goes through torch's dynamo exporter into ``segmentation.onnx``; ``segmentation.npz``
keeps (N = 2 images, K = 2 classes per image, float32):

    about                      JSON: versions, and the tensor name of each layer
    x, targets, logits         (N,3,24,32), (N,K) int64, (N,5,24,32)
    masks                      (N,24,32): drawn
    <kind>/<layer>/<method>/raw, final
                               (N,K,h,w), (N,K,24,32) of ``SemanticSegmentationTarget(class, mask)``; kinds of masks:
                               ``wins``, where the class has the largest logit, and ``drawn``
"""

from __future__ import annotations

import json
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from pytorch_grad_cam import GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM
from pytorch_grad_cam.utils.model_targets import SemanticSegmentationTarget
from torch import nn

from tests.reference.make_gradcam import export, find_tensor

FOLDER = Path(__file__).parent
SEED, CLASSES, SIZE = 11, 5, (24, 32)
LAYERS = {"encoder": "encoder.4", "context": "context.2"}
METHODS = {"gradcam": GradCAM, "gradcam++": GradCAMPlusPlus, "layercam": LayerCAM, "hirescam": HiResCAM}


class Net(nn.Module):
    """Logits (N, 5, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 12, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(12, 16, 3, stride=2, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
        )
        self.context = nn.Sequential(nn.Conv2d(16, 16, 3, padding=2, dilation=2), nn.BatchNorm2d(16), nn.ReLU())
        self.head = nn.Conv2d(16, CLASSES, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.head(self.context(self.encoder(x)))
        return nn.functional.interpolate(logits, size=x.shape[-2:], mode="bilinear", align_corners=False)


def build() -> Net:
    """The network, its weights and statistics drawn."""
    torch.manual_seed(SEED)
    net = Net().eval()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.3, 1.5)
                module.weight.uniform_(0.7, 1.5)
    return net


def explain(net: Net, layer: str, method: str, x: torch.Tensor, target: int, mask: np.ndarray) -> list[np.ndarray]:
    """The raw and the final map of one image (1, 3, H, W)."""
    raws: list[np.ndarray] = []

    class Kept(METHODS[method]):  # type: ignore[misc]  # a class from a table
        def get_cam_image(self, *args: object, **options: object) -> np.ndarray:
            raws.append(np.asarray(super().get_cam_image(*args, **options)))
            return raws[-1]

    with Kept(model=net, target_layers=[net.get_submodule(layer)]) as cam:
        final = cam(input_tensor=x, targets=[SemanticSegmentationTarget(target, mask)])
    return [raws[0][0], final[0]]


def main() -> int:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    net = build()
    x = torch.from_numpy(np.random.default_rng(SEED).normal(size=(2, 3, *SIZE)).astype(np.float32))
    with torch.no_grad():
        logits = net(x).numpy()
    best = logits.argmax(1)
    targets = np.stack([np.bincount(one.ravel(), minlength=CLASSES).argsort()[::-1][:2] for one in best])
    drawn = (np.random.default_rng(SEED + 1).uniform(size=best.shape) < 0.2).astype(np.float32)
    arrays = {"x": x.numpy(), "targets": targets, "logits": logits, "masks": drawn}
    for kind in ("wins", "drawn"):
        for layer, path in LAYERS.items():
            for method in METHODS:
                pairs = [
                    explain(
                        net, path, method, x[n : n + 1], int(t), (best[n] == t) * 1.0 if kind == "wins" else drawn[n]
                    )
                    for n, row in enumerate(targets)
                    for t in row
                ]
                for i, what in enumerate(("raw", "final")):
                    maps = np.stack([pair[i] for pair in pairs])
                    arrays[f"{kind}/{layer}/{method}/{what}"] = maps.reshape(*targets.shape, *maps.shape[1:])
    path = FOLDER / "segmentation.onnx"
    export(net, x, path, "dynamo")
    seen: dict[str, np.ndarray] = {}
    for layer, module in LAYERS.items():
        net.get_submodule(module).register_forward_hook(
            lambda _m, _i, out, layer=layer: seen.update({layer: out.detach().numpy()})
        )
    net(x)
    tensors = {layer: find_tensor(path, x.numpy(), seen[layer]) for layer in LAYERS}
    about = {"versions": {p: version(p) for p in ("torch", "grad-cam", "onnx", "onnxscript")}, "tensors": tensors}
    arrays = {k: v.astype(np.int64 if v.dtype.kind == "i" else np.float32) for k, v in arrays.items()}
    np.savez_compressed(FOLDER / "segmentation.npz", about=np.array(json.dumps(about)), **arrays)
    sizes = [(FOLDER / name).stat().st_size / 1000 for name in ("segmentation.onnx", "segmentation.npz")]
    print(f"{tensors}, areas {[np.mean(best == t) for t in range(CLASSES)]}, {len(arrays)} arrays, kB {sizes}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
