"""Store what pytorch-grad-cam gives for the examples of `scripts.py`, and the models that are not stored yet.

    python -m tests.compat.make_compat

Made with torch 2.14.1 (CPU), grad-cam 1.5.7, opencv-python-headless 5.0.0.93; the versions of a run are written into
the file.  Of maps, which lie in [0, 1], every second row and column is stored, as uint16 over 65535.  Examples with a
singular vector ran with the package's own `get_2d_projection_with_sign_correction` in place of `get_2d_projection`,
which leaves the sign open.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch

from pycam.frameworks import from_torch
from tests.compat.compat_nets import NETS, Detector, Net, built
from tests.compat.scripts import EXAMPLES, PLAIN, SIGNED, STEP, images

FOLDER = Path(__file__).parent
PROJECTING = ("base_cam", "eigen_cam", "eigen_grad_cam", "layer_cam", "hirescam", "grad_cam_elementwise")


def library(name: str) -> SimpleNamespace:
    """What a script imports of pytorch_grad_cam, or of pycam.compat."""
    names: dict[str, Any] = {}
    for module in ("", ".ablation_layer", ".utils.image", ".utils.model_targets", ".utils.reshape_transforms"):
        found = import_module(name + module)
        names |= {key: getattr(found, key) for key in dir(found) if not key.startswith("_")}
    return SimpleNamespace(**names)


def labels_of(model: Detector, x: torch.Tensor, boxes: np.ndarray) -> list[int]:
    """The labels of the detections that overlap the boxes most; of the last box a wrong one."""
    import torchvision

    found = model(x)[0]
    best = torchvision.ops.box_iou(torch.from_numpy(boxes), found["boxes"]).argmax(1)
    labels = found["labels"][best].tolist()
    return [*labels[:-1], labels[-1] % 4 + 1]


def run(name: str) -> dict[str, np.ndarray]:
    """The arrays of an example, by pytorch-grad-cam."""
    script = EXAMPLES[name]
    model, x = built(script.net), torch.from_numpy(images(script.net, script.images))
    lib = library("pytorch_grad_cam")
    lib.labels_of = labels_of
    patches = []
    if script.notes == SIGNED:
        fixed = import_module("pytorch_grad_cam.utils.svd_on_activations").get_2d_projection_with_sign_correction
        patches = [mock.patch(f"pytorch_grad_cam.{module}.get_2d_projection", fixed) for module in PROJECTING]
    for patch in patches:
        patch.start()
    try:
        found = script.run(lib, model, model.get_submodule, x)
    finally:
        for patch in patches:
            patch.stop()
    return {key: value.detach().numpy() if isinstance(value, torch.Tensor) else value for key, value in found.items()}


def stored(key: str, value: np.ndarray) -> np.ndarray:
    """What is kept of an array."""
    if key in PLAIN or value.dtype == np.uint8:
        return value
    if not (value.ndim > 1 and value.min() >= 0 and value.max() <= 1):
        raise ValueError(f"{key} is no map")
    return np.round(value[..., ::STEP, ::STEP] * 65535).astype(np.uint16)


def export(name: str) -> None:
    """Write a model that is not stored elsewhere."""
    model, x = built(name), torch.from_numpy(images(name, 2))
    if isinstance(model, Detector):
        model.exported = True
        from_torch(
            model, x[:1], path=FOLDER / f"{name}.onnx", dynamic_batch=False, output_names=["boxes", "labels", "scores"]
        )
    else:
        from_torch(model, x, path=FOLDER / f"{name}.onnx")


def main() -> int:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    for name, net in NETS.items():
        if isinstance(net, Net):
            export(name)
    arrays: dict[str, np.ndarray] = {}
    for name in EXAMPLES:
        for key, value in run(name).items():
            arrays[f"{name}/{key}"] = stored(key, np.asarray(value))
            value = arrays[f"{name}/{key}"]
            print(f"{name}/{key}", value.dtype, value.shape, value.max())
    about = {package: version(package) for package in ("torch", "grad-cam", "opencv-python-headless", "numpy")}
    np.savez_compressed(FOLDER / "compat.npz", about=np.array(json.dumps(about)), **arrays)
    print(f"{len(arrays)} arrays, {(FOLDER / 'compat.npz').stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
