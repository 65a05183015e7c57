"""The packages pycam is compared with: torchvision, pytorch-grad-cam, torchcam and captum, imported in one place.

Install: ``pip install torch==2.13.0`` (a CPU build will do), then
``pip install --no-deps torchvision==0.29.2 grad-cam==1.5.7 torchcam==0.5.0 captum==0.9.0`` and their pure dependencies.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch

os.environ.setdefault("TQDM_DISABLE", "1")  # progress bars of the peers; read when tqdm is imported

# PyPI's torchvision is built for CUDA: beside a CPU build of torch its compiled operators do not load, and then the
# import itself stops at "operator torchvision::nms does not exist", because two shape functions are registered for
# operators that nobody declared. Declaring their schemas is enough: classification models use none of these operators.
# FRAGMENT, so that a torchvision that does load may add to it.
_SCHEMAS = torch.library.Library("torchvision", "FRAGMENT")


def _import_torchvision() -> ModuleType:
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "does not exist" not in str(error):
            raise
    for op in ("nms", "qnms"):
        _SCHEMAS.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module("torchvision")


torchvision = _import_torchvision()

_gradcam = importlib.import_module("pytorch_grad_cam")
_gradcam_image = importlib.import_module("pytorch_grad_cam.utils.image")
_gradcam_targets = importlib.import_module("pytorch_grad_cam.utils.model_targets")

#: pycam's method name -> the class of pytorch-grad-cam.
GRADCAM_CLASSES: dict[str, Any] = {
    "gradcam": _gradcam.GradCAM,
    "gradcam++": _gradcam.GradCAMPlusPlus,
    "xgradcam": _gradcam.XGradCAM,
    "layercam": _gradcam.LayerCAM,
    "hirescam": _gradcam.HiResCAM,
    "gradcam_elementwise": _gradcam.GradCAMElementWise,
}

PACKAGES = (
    "torch",
    "torchvision",
    "grad-cam",
    "torchcam",
    "captum",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "numpy",
    "opencv-python-headless",
)


def class_targets(classes: Sequence[int] | np.ndarray) -> list[Any]:
    """pytorch-grad-cam's targets, one class per image."""
    return [_gradcam_targets.ClassifierOutputTarget(int(category)) for category in classes]


def gradcam_call(
    method: str, model: torch.nn.Module, layers: Sequence[str], x: torch.Tensor, classes: Sequence[int] | np.ndarray
) -> tuple[list[np.ndarray], np.ndarray]:
    """pytorch-grad-cam as its users call it: the raw map (N,h,w) of each layer, noted on the way, and the final map
    (N,H,W)."""
    with GRADCAM_CLASSES[method](model=model, target_layers=[model.get_submodule(layer) for layer in layers]) as cam:
        raws: list[np.ndarray] = []
        get_cam_image = cam.get_cam_image

        def note_raw(*args: Any) -> np.ndarray:
            raws.append(get_cam_image(*args))
            return raws[-1]

        cam.get_cam_image = note_raw
        final = cam(input_tensor=x, targets=class_targets(classes))
    return raws, final


def gradcam_from(
    method: str, model: torch.nn.Module, activations: np.ndarray, gradients: np.ndarray, x: torch.Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """The same from activations and gradients captured before: saves a forward and a backward per method. Raw (N,h,w),
    final (N,H,W)."""
    cam = GRADCAM_CLASSES[method](model=model, target_layers=[])  # no hooks
    raw = cam.get_cam_image(x, None, None, activations, gradients, False)
    cam.target_layers = [None]
    cam.activations_and_grads = SimpleNamespace(
        activations=[torch.from_numpy(activations)], gradients=[torch.from_numpy(gradients)], release=lambda: None
    )
    return raw, cam.aggregate_multi_layers(cam.compute_cam_per_layer(x, [], False))


def cam_from(activations: np.ndarray, weights: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """CAM by its formula, ``Σ_c w_c·A_c`` with the weights (N,C) of each image's class; final map by pytorch-grad-cam's
    pipeline. `size` is (H,W)."""
    raw = np.einsum("nc,nchw->nhw", weights, activations)
    scaled = _gradcam_image.scale_cam_image(np.maximum(raw, 0), size[::-1])
    return raw, _gradcam_image.scale_cam_image(np.maximum(scaled, 0))


_torchcam = importlib.import_module("torchcam.methods")
_captum = importlib.import_module("captum.attr")


def minmax(maps: torch.Tensor) -> torch.Tensor:
    """pytorch-grad-cam's normalisation, ``(x − min) / (1e-7 + max(x − min))`` per map (N,H,W)."""
    shifted = maps - maps.amin((1, 2), keepdim=True)
    return shifted / (1e-7 + shifted.amax((1, 2), keepdim=True))


def upsampled(maps: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    """Raw maps (N,h,w) to heatmaps (N,H,W), with the same steps for every peer that does not bring them: ReLU,
    normalise, resize, normalise."""
    resized = torch.nn.functional.interpolate(minmax(maps.relu())[:, None], size, mode="bilinear", align_corners=False)
    return minmax(resized[:, 0]).numpy()


def pytorch_grad_cam(
    model: torch.nn.Module, layer: str, x: torch.Tensor, classes: np.ndarray
) -> Callable[[], np.ndarray]:
    """A call that makes Grad-CAM heatmaps (N,H,W) of one class per image, hooks set beforehand; pytorch-grad-cam."""
    cam = _gradcam.GradCAM(model=model, target_layers=[model.get_submodule(layer)])
    targets = class_targets(classes)
    return lambda: cam(input_tensor=x, targets=targets)


def torchcam(model: torch.nn.Module, layer: str, x: torch.Tensor, classes: np.ndarray) -> Callable[[], np.ndarray]:
    """The same with torchcam."""
    extractor, indices = _torchcam.GradCAM(model, layer), [int(c) for c in classes]
    size = (x.shape[2], x.shape[3])
    return lambda: upsampled(extractor(indices, model(x), normalized=False)[0], size)


def captum(model: torch.nn.Module, layer: str, x: torch.Tensor, classes: np.ndarray) -> Callable[[], np.ndarray]:
    """The same with captum."""
    explainer, target = _captum.LayerGradCam(model, model.get_submodule(layer)), torch.from_numpy(classes)
    size = (x.shape[2], x.shape[3])
    return lambda: upsampled(explainer.attribute(x, target=target)[:, 0].detach(), size)


#: Name -> factory of a call that explains one class per image.
PEERS: dict[str, Callable[[torch.nn.Module, str, torch.Tensor, np.ndarray], Callable[[], np.ndarray]]] = {
    "pytorch-grad-cam": pytorch_grad_cam,
    "torchcam": torchcam,
    "captum": captum,
}
