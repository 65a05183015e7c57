"""pytorch-grad-cam's names over ONNX models: change its import and the model, and a script runs.

    >>> from pycam.compat import GradCAM
    >>> from pycam.compat.utils.image import show_cam_on_image
    >>> from pycam.compat.utils.model_targets import ClassifierOutputTarget
    >>> with GradCAM(model="resnet50.onnx", target_layers=["layer4"]) as cam:
    ...     maps = cam(input_tensor=x, targets=[ClassifierOutputTarget(281)])

What differs is said in `docs/pytorch-grad-cam.md`.  New code has more of `pycam.Explainer`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .ablation_layer import AblationLayer, AblationLayerFasterRCNN, AblationLayerVit
    from .base import BaseCAM
    from .factorization import DeepFeatureFactorization
    from .guided_backprop import GuidedBackpropReLUModel
    from .meta import SESS, FinerCAM, RefineCAM
    from .methods import (
        FEM,
        KPCA_CAM,
        AblationCAM,
        EigenCAM,
        EigenGradCAM,
        FullGrad,
        GradCAM,
        GradCAMElementWise,
        GradCAMPlusPlus,
        HiResCAM,
        LayerCAM,
        RandomCAM,
        ScoreCAM,
        SegEigenCAM,
        ShapleyCAM,
        XGradCAM,
    )

_HOMES = {
    "ablation_layer": ("AblationLayer", "AblationLayerFasterRCNN", "AblationLayerVit"),
    "base": ("BaseCAM",),
    "factorization": ("DeepFeatureFactorization",),
    "guided_backprop": ("GuidedBackpropReLUModel",),
    "meta": ("FinerCAM", "RefineCAM", "SESS"),
    "methods": (
        "AblationCAM",
        "EigenCAM",
        "EigenGradCAM",
        "FEM",
        "FullGrad",
        "GradCAM",
        "GradCAMElementWise",
        "GradCAMPlusPlus",
        "HiResCAM",
        "KPCA_CAM",
        "LayerCAM",
        "RandomCAM",
        "ScoreCAM",
        "SegEigenCAM",
        "ShapleyCAM",
        "XGradCAM",
    ),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "FEM",
    "KPCA_CAM",
    "SESS",
    "AblationCAM",
    "AblationLayer",
    "AblationLayerFasterRCNN",
    "AblationLayerVit",
    "BaseCAM",
    "DeepFeatureFactorization",
    "EigenCAM",
    "EigenGradCAM",
    "FinerCAM",
    "FullGrad",
    "GradCAM",
    "GradCAMElementWise",
    "GradCAMPlusPlus",
    "GuidedBackpropReLUModel",
    "HiResCAM",
    "LayerCAM",
    "RandomCAM",
    "RefineCAM",
    "ScoreCAM",
    "SegEigenCAM",
    "ShapleyCAM",
    "XGradCAM",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pycam.compat' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
