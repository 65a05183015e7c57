"""What every head offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Weighting: TypeAlias = Literal["given", "mean", "positive", "rectified", "plusplus"]
"""What is summed over channels, of activations `A` and weights or gradients `g`: `g A` (CAM, HiResCAM), `mean(g) A`
(Grad-CAM), `relu(g) A` (LayerCAM), `relu(g A)` (element-wise), or `w A` with the `w` of Grad-CAM++."""


class Head(Protocol):
    """Raw maps to heatmaps, heatmaps to pictures.

    Implementations are stateless, may be called from many threads at once, and agree with the reference head within
    1e-5 (heatmaps) and exactly (flat, pictures).  Formulas and tolerances: `csrc/include/pycam.h`.
    """

    @property
    def name(self) -> str:
        """The name that `pycam.head.pick` knows it by."""

    def finish(
        self, raws: Sequence[NDArray[Any]], size: tuple[int, int]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Heatmaps from the raw maps of one or more layers.

        Args:
            raws: per layer (N,K,h,w), signed; float32, float16 or bfloat16 with any strides; others are converted.
            size: height and width of the heatmaps.

        Returns:
            float32 (N,K,height,width) in [0,1], and bool (N,K): whether the map had no positive part in any layer.

        Raises:
            ValueError: no layers, other shapes than these, NaN or +inf in a raw map.
        """

    def explain(
        self, activations: NDArray[Any], weights: NDArray[Any], size: tuple[int, int], weighting: Weighting = "mean"
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.float32]]:
        """Heatmaps from activations and gradients or weights, in one pass.

        Args:
            activations: (N,C,h,w); float32, float16 or bfloat16 with any strides, so also a transposed view of NHWC or
                of tokens; others are converted.
            weights: (N,C,h,w), (N,K,C,h,w) or, the same at all positions, (N,K,C); types and strides likewise.
            size: height and width of the heatmaps.
            weighting: what is summed over channels.

        Returns:
            As `finish`; and the raw maps, float32 (N,K,h,w).

        Raises:
            ValueError: other shapes than these, NaN or +inf in a weighted sum.
        """

    def overlay(
        self, images: NDArray[np.uint8], maps: NDArray[np.float32], lut: NDArray[np.uint8], alpha: float
    ) -> NDArray[np.uint8]:
        """Heatmaps (N,K,H,W) in the colours `lut` (256,3) over `images` (N,H,W,3), with opacity `alpha` in [0,1].

        Returns:
            uint8 (N,K,H,W,3).

        Raises:
            ValueError: other shapes or dtypes than these, `alpha` out of range, NaN in a map.
        """
