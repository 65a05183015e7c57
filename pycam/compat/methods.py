"""pytorch-grad-cam's methods: a class's name is one that the method goes by (`method.registry`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .base import BaseCAM, only_default


class GradCAM(BaseCAM):
    """`w = mean g` (1610.02391)."""


class GradCAMPlusPlus(BaseCAM):
    """1710.11063."""


class HiResCAM(BaseCAM):
    """`Σ_c g·A` (2011.08891)."""


class GradCAMElementWise(BaseCAM):
    """`Σ_c relu(g·A)`."""


class XGradCAM(BaseCAM):
    """2008.02312."""


class LayerCAM(BaseCAM):
    """`Σ_c relu(g)·A` (10.1109/TIP.2021.3089943)."""


class ShapleyCAM(BaseCAM):
    """2501.06261."""


class ScoreCAM(BaseCAM):
    """1910.01279."""


class RandomCAM(BaseCAM):
    """Weights drawn from [−1, 1]: the same at every call, where pytorch-grad-cam draws new ones."""

    reads_scores = False


class EigenCAM(BaseCAM):
    """2008.00299; its peak is positive, where pytorch-grad-cam leaves the sign to the SVD."""

    reads_scores = smooths = False


class EigenGradCAM(BaseCAM):
    """EigenCAM of `g·A`."""

    smooths = False


class SegEigenCAM(BaseCAM):
    """EigenCAM of `|g|·A` (10.3390/app15137562)."""

    smooths = False


class KPCA_CAM(BaseCAM):
    """2410.00267."""

    reads_scores = smooths = False

    def __init__(
        self,
        model: Any,
        target_layers: Sequence[str],
        reshape_transform: Callable[..., Any] | None = None,
        kernel: str = "sigmoid",
        gamma: float | None = None,
        **settings: Any,
    ) -> None:
        only_default("KPCA_CAM", {"kernel": (kernel, "sigmoid"), "gamma": (gamma, None)})
        super().__init__(model, target_layers, reshape_transform, **settings)


class FEM(BaseCAM):
    """10.1109/IPTA50016.2020.9286629."""

    reads_scores = smooths = False

    def __init__(
        self,
        model: Any,
        target_layers: Sequence[str],
        reshape_transform: Callable[..., Any] | None = None,
        k: float = 2,
        **settings: Any,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform, **settings)
        self.options = {"k": float(k)}


class AblationCAM(BaseCAM):
    """10.1109/WACV45572.2020.00360.  `ablation_layer` is not used."""

    def __init__(
        self,
        model: Any,
        target_layers: Sequence[str],
        reshape_transform: Callable[..., Any] | None = None,
        ablation_layer: object = None,
        batch_size: int = 32,
        ratio_channels_to_ablate: float = 1.0,
        **settings: Any,
    ) -> None:
        only_default("AblationCAM", {"ratio_channels_to_ablate": (ratio_channels_to_ablate, 1.0)})
        super().__init__(model, target_layers, reshape_transform, **settings)
        self.batch_size = batch_size


class FullGrad(BaseCAM):
    """1905.00780: of the whole model, whatever `target_layers` says."""

    def __init__(
        self,
        model: Any,
        target_layers: Sequence[str] = (),
        reshape_transform: Callable[..., Any] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(model, list(target_layers) or ["auto"], reshape_transform, **settings)
