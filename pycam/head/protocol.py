"""What every head offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Head(Protocol):
    """Raw maps to heatmaps, heatmaps to pictures.

    Implementations are stateless, may be called from many threads at once, and agree with the reference head within
    1e-5 (heatmaps) and exactly (flat, pictures).  Formulas: `csrc/head.hpp`.
    """

    @property
    def name(self) -> str:
        """The name that `pycam.head.pick` knows it by."""

    def finish(
        self, raws: Sequence[NDArray[np.float32]], size: tuple[int, int]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Heatmaps from the raw maps of one or more layers.

        Args:
            raws: per layer (N,K,h,w), signed; any strides, converted to float32.
            size: height and width of the heatmaps.

        Returns:
            float32 (N,K,height,width) in [0,1], and bool (N,K): whether the map had no positive part in any layer.

        Raises:
            ValueError: no layers, other shapes than these, NaN or +inf in a raw map.
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
