"""Guided Backpropagation, as pytorch-grad-cam calls it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pycam.explainer import Explainer

from .arrays import inputs_of
from .base import checked_model
from .scores import Score

__all__ = ["GuidedBackpropReLUModel"]


class GuidedBackpropReLUModel:
    """The gradient for the image, `g·[x > 0]·[g > 0]` at every ReLU-like activation (docs/guided.md), where
    pytorch-grad-cam has `nn.ReLU` modules alone.

    Args:
        model: ONNX: a path, bytes or a ModelProto.
        device: Not used: `providers` says where it runs.
        output, providers, threads: See `pycam.Explainer`.
    """

    def __init__(
        self,
        model: Any,
        device: object = None,
        *,
        output: str | None = None,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
    ) -> None:
        self._explainer = Explainer(
            checked_model(model), "guided_backprop", target=Score(output), providers=providers, threads=threads
        )

    def __call__(self, input_img: Any, target_category: int | None = None) -> NDArray[np.float32]:
        """The gradient of the first image.

        Args:
            input_img: (N, C, H, W), or as the model takes it.
            target_category: The class; None: the top one.

        Returns:
            float32 (H, W, C), signed.
        """
        found = self._explainer(inputs_of(input_img), -1 if target_category is None else int(target_category))
        return np.ascontiguousarray(found.extras["attributions"][0, 0].transpose(1, 2, 0))
