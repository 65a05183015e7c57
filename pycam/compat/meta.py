"""Methods that are made of others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import inputs_of
from .base import BaseCAM, Maps, only_default
from .methods import GradCAM, GradCAMPlusPlus
from .scores import Finer
from .utils.image import scale_cam_image
from .utils.model_targets import FinerWeightedTarget


class FinerCAM:
    """A method on the lead of a class over those nearest to it in score (2501.11309).

    Args:
        base_method: Which one.
        **settings: Of `BaseCAM`.
    """

    def __init__(
        self,
        model: Any,
        target_layers: Sequence[str],
        reshape_transform: Callable[..., Any] | None = None,
        base_method: type[BaseCAM] = GradCAM,
        **settings: Any,
    ) -> None:
        self.base_cam = base_method(model, target_layers, reshape_transform, **settings)

    def __call__(self, *args: Any, **options: Any) -> Maps:
        """See `forward`."""
        return self.forward(*args, **options)

    def forward(
        self,
        input_tensor: Any,
        targets: Sequence[Any] | None = None,
        eigen_smooth: bool = False,
        alpha: float = 1,
        comparison_categories: Sequence[int] | None = None,
        target_idx: int | None = None,
    ) -> Maps:
        """Explain a batch.

        Args:
            input_tensor, eigen_smooth: See `BaseCAM.__call__`.
            targets: Explained as they are, without a comparison; None: what follows.
            alpha: How much the others count.
            comparison_categories: Ranks of the classes compared with, 1 the nearest in score; None: 1, 2, 3.
            target_idx: The class, for all images; None: the top one of each.

        Returns:
            float32 (N, H, W) in [0, 1].
        """
        if targets is None:
            feeds = inputs_of(input_tensor)
            outputs = self._outputs(feeds, float(alpha))
            targets = nearest_in_score(outputs, alpha, comparison_categories, target_idx)
        return self.base_cam.forward(input_tensor, targets, eigen_smooth)

    @property
    def outputs(self) -> Any:
        """See `BaseCAM`."""
        return self.base_cam.outputs

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.base_cam.__exit__()

    def _outputs(self, feeds: Any, alpha: float) -> NDArray[Any]:
        """The model's, by the explainer that explains them afterwards."""
        (explainer, *_) = self.base_cam._explainer(Finer(alpha=alpha), False)
        count = len(next(iter(feeds.values())) if isinstance(feeds, Mapping) else feeds)
        scores = explainer(feeds, comparison=np.zeros((count, 1), np.int64)).scores
        return np.asarray(scores[explainer.spec.score] if isinstance(scores, Mapping) else scores)


def nearest_in_score(
    outputs: NDArray[Any], alpha: float, ranks: Sequence[int] | None, target: int | None
) -> list[FinerWeightedTarget]:
    """For each row of `outputs` (N, classes), a target held against those of these ranks in distance to it."""
    classes = outputs.shape[-1]
    wanted = [rank for rank in (ranks if ranks is not None else (1, 2, 3)) if rank < classes]
    own = outputs.max(axis=-1) if target is None else outputs[:, target]
    order = np.argsort(np.abs(outputs - own[:, None]), axis=-1)
    return [FinerWeightedTarget(int(row[0]), [int(row[rank]) for rank in wanted], alpha) for row in order]


class RefineCAM(BaseCAM):
    """The product of the layers' maps (2605.14641).

    Args:
        base_method: Whose maps; `GradCAMPlusPlus` takes a single pass for all layers.
        **settings: Of `base_method`.
    """

    def __init__(
        self,
        model: Any,
        target_layers: Sequence[str],
        reshape_transform: Callable[..., Any] | None = None,
        base_method: type[BaseCAM] = GradCAMPlusPlus,
        **settings: Any,
    ) -> None:
        own = settings if base_method is GradCAMPlusPlus else {}
        super().__init__(model, target_layers, reshape_transform, **own)
        self.base_cam_per_layer = (
            []
            if base_method is GradCAMPlusPlus
            else [base_method(model, [layer], reshape_transform, **settings) for layer in self.target_layers]
        )

    def forward(self, input_tensor: Any, targets: Sequence[Any] | None = None, eigen_smooth: bool = False) -> Maps:
        """See `BaseCAM.forward`."""
        if not self.base_cam_per_layer:
            return super().forward(input_tensor, targets, eigen_smooth)
        maps = [cam.forward(input_tensor, targets, eigen_smooth) for cam in self.base_cam_per_layer]
        self.outputs = self.base_cam_per_layer[-1].outputs
        return scale_cam_image(np.prod(maps, axis=0))


class SESS(BaseCAM):
    """Grad-CAM of windows at several scales (2207.01769): `num_scales` is its option, others have their defaults."""

    def __init__(
        self,
        model: Any,
        target_layers: Sequence[str],
        reshape_transform: Callable[..., Any] | None = None,
        base_method: type[BaseCAM] = GradCAM,
        scales: Sequence[int] | None = None,
        num_scales: int = 12,
        scale_step_ratio: float = 2 / 7,
        window_size: int | None = None,
        step_size: int | None = None,
        pre_filter_ratio: float = 0.0,
        theta: float = 0.0,
        pool: str = "mean",
        smooth: bool = True,
        use_softmax_scores: bool = True,
        batch_size: int = 32,
        **settings: Any,
    ) -> None:
        only_default(
            "SESS",
            {
                "base_method": (base_method, GradCAM),
                "scales": (scales, None),
                "scale_step_ratio": (scale_step_ratio, 2 / 7),
                "window_size": (window_size, None),
                "step_size": (step_size, None),
                "pre_filter_ratio": (pre_filter_ratio, 0.0),
                "theta": (theta, 0.0),
                "pool": (pool, "mean"),
                "smooth": (smooth, True),
                "use_softmax_scores": (use_softmax_scores, True),
            },
        )
        super().__init__(model, target_layers, reshape_transform, **settings)
        self.options = {"scales": num_scales}
        self.batch_size = batch_size
