"""Heads in C++.  Source: `csrc/`; the contract, with formulas and tolerances, is `csrc/head.hpp`.

Common to all functions: arrays go in C-contiguous and with the stated dtype, without conversion or copy; results are
new arrays; N, K and M may be 0, every other axis is at least 1; anything else is a `ValueError` that says what was
expected and what was found.  The GIL is released while computing, no state is shared between calls, and the same
arguments give bitwise the same result from every thread.  The `*_ref` functions compute the same in double and
without tricks: they are what the others are tested against, not meant for speed.
"""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

class Features(TypedDict):
    clones: bool
    """Whether there is one version of the code per x86-64 level, chosen when the module is loaded."""
    compiler: str
    version: str

def weigh(activations: NDArray[np.float32], weights: NDArray[np.float32], rectify: bool = False) -> NDArray[np.float32]:
    """Raw maps: `sum_c w_c A_c`, or `sum_c relu(w_c A_c)` where `rectify`.

    `activations` is float32 (N,C,h,w); `weights` float32 (N,K,C), or (N,K,C,h,w) for a weight per position.
    Returns float32 (N,K,h,w), signed.  NaN and infinity pass through.
    """

def finish(
    raws: Sequence[NDArray[np.float32]], height: int, width: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Heatmaps: `s(mean_l relu(resize(s(relu(raw_l)))))`, where `s(x) = (x - min x) / (1e-7 + max(x - min x))`.

    `raws` is a list or tuple with one float32 (M,h_l,w_l) per layer; the resize is bilinear (half-pixel centres, edge
    clamp, no antialias), up or down.  Returns the maps, float32 (M,height,width) in [0,1], and `flat`, bool (M,):
    whether no raw value of that map was above zero in any layer, in which case the map is all zeros.
    `ValueError` for NaN or +inf in `raws`, with its index; -inf counts as negative.
    """

def fused(
    activations: NDArray[np.float32], gradients: NDArray[np.float32], height: int, width: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Grad-CAM in one call: `finish` of `weigh` with the mean gradient of each channel as its weight.

    `activations` and `gradients` are float32 (N,C,h,w).  Returns float32 (N,height,width) in [0,1] and bool (N,).
    `ValueError` where the weighted sum is NaN or +inf, with its index (n, y, x).
    """

def overlay(
    images: NDArray[np.uint8], maps: NDArray[np.float32], lut: NDArray[np.uint8], alpha: float
) -> NDArray[np.uint8]:
    """Heatmaps in colour over images: `round((1 - alpha) * image + alpha * lut[round(255 * map)])`, halves upwards.

    `images` is uint8 (N,H,W,3), `maps` float32 (N,K,H,W), clamped to [0,1], `lut` uint8 (256,3), `alpha` in [0,1].
    Returns uint8 (N,K,H,W,3).  The blend is computed with `alpha` as a multiple of 1/65536, in integers: all heads
    give the same bytes.  `ValueError` for NaN in `maps`.
    """

def weigh_ref(
    activations: NDArray[np.float32], weights: NDArray[np.float32], rectify: bool = False
) -> NDArray[np.float32]: ...
def finish_ref(
    raws: Sequence[NDArray[np.float32]], height: int, width: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]: ...
def fused_ref(
    activations: NDArray[np.float32], gradients: NDArray[np.float32], height: int, width: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]: ...
def overlay_ref(
    images: NDArray[np.uint8], maps: NDArray[np.float32], lut: NDArray[np.uint8], alpha: float
) -> NDArray[np.uint8]: ...
def finite(values: NDArray[np.float32]) -> bool:
    """Whether no value is NaN or infinite.

    `ValueError` unless `values` is a C-contiguous float32 array, of any shape.
    """

def features() -> Features:
    """How this module was built."""
