"""Heads in C++.  Source: `csrc/`; the contract, with formulas and tolerances, is `csrc/include/pycam.h`.

Common to all functions: N images, K maps per image, C channels; N and K may be 0, every other axis is at least 1.
Numbers that are said to be read "as they lie" are float32, float16 or bfloat16 (a dtype of this name, such as that of
ml_dtypes) with any strides, also 0 or negative, so that a transposed view of NHWC or tokens costs no copy; strides and
address must be multiples of the item size.  Other arrays are C-contiguous.  Nothing is converted or copied: anything
else is a `ValueError` that says what was expected and what was found.  Results are new arrays.

`threads` is how many may compute at once, the calling one included, 0 for one per core that this process may use; the
results are bitwise the same with any number, and from whichever thread.  The GIL is released while computing, no state
is shared between calls.  The `*_ref` functions compute the same in double and without tricks: they are what the others
are tested against, not meant for speed.
"""

from collections.abc import Sequence
from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

_Weighting = Literal["given", "mean", "positive", "rectified", "plusplus"]
_Finished = Literal["heatmaps", "levels", "pictures", "flat"]
_Explained = Literal["heatmaps", "levels", "pictures", "flat", "raw"]

class Features(TypedDict):
    clones: bool
    """Whether there is one version of the code per x86-64 level, chosen when the module is loaded."""
    compiler: str
    version: str

def weigh(
    activations: NDArray[Any], weights: NDArray[Any], weighting: _Weighting = "given", *, threads: int = 1
) -> NDArray[np.float32]:
    """Raw maps, sums over channels of activations `A` and weights or gradients `g`.

    `activations` are (N,C,h,w), `weights` (N,K,C) or (N,K,C,h,w), both read as they lie.  `weighting` says what is
    summed: "given" `g A`; "mean" `mean(g) A`; "positive" `relu(g) A`; "rectified" `relu(g A)`; "plusplus" `w A` with
    `w = sum of relu(g) g² / (2 g² + (sum A) g³ + 1e-6)` over positions.
    Returns float32 (N,K,h,w), signed.  NaN and infinity pass through.
    """

def finish(
    raws: Sequence[NDArray[Any]],
    size: Sequence[int] | None = None,
    outputs: Sequence[_Finished] = ("heatmaps", "flat"),
    *,
    images: NDArray[np.uint8] | None = None,
    lut: NDArray[np.uint8] | None = None,
    alpha: float = 0.5,
    threads: int = 1,
) -> tuple[NDArray[Any], ...]:
    """Heatmaps: `s(mean_l relu(resize(s(relu(raw_l)))))`, where `s(x) = (x - min x) / (1e-7 + max(x - min x))`.

    `raws` is a list or tuple with one (N,K,h_l,w_l) per layer, read as they lie; the resize to `size`, (height, width),
    is bilinear (half-pixel centres, edge clamp, no antialias), up or down.  Returns a tuple of what `outputs` names:
    "heatmaps"  float32 (N,K,height,width) in [0,1].
    "levels"    uint8 (N,K,height,width): `floor(255 m + 0.5)` of each value m of a heatmap.
    "pictures"  uint8 (N,K,height,width,3 or 4): the colours `lut[level]` over the images, see `overlay`.
    "flat"      bool (N,K): whether no raw value of that map was above zero in any layer; then it is all zeros.
    Pictures need `images`, uint8 (N,height,width,3 or 4) of any strides but the last, which is 1, and `lut`, uint8
    (256,3); without a `size` theirs is taken.
    `ValueError` for NaN or +inf in `raws`, with its index; -inf counts as negative.
    """

def explain(
    activations: NDArray[Any],
    weights: NDArray[Any],
    size: Sequence[int] | None = None,
    weighting: _Weighting = "mean",
    outputs: Sequence[_Explained] = ("heatmaps", "flat"),
    *,
    images: NDArray[np.uint8] | None = None,
    lut: NDArray[np.uint8] | None = None,
    alpha: float = 0.5,
    threads: int = 1,
) -> tuple[NDArray[Any], ...]:
    """`finish` of `weigh`, map by map, without leaving the cache in between.

    Arguments and results are those of both, and in `outputs` "raw", float32 (N,K,h,w): what `weigh` returns.
    `ValueError` where a weighted sum is NaN or +inf, with its index [n, k, y, x].
    """

def overlay(
    images: NDArray[np.uint8],
    maps: NDArray[np.float32],
    lut: NDArray[np.uint8],
    alpha: float = 0.5,
    *,
    threads: int = 1,
) -> NDArray[np.uint8]:
    """Heatmaps in colour over images: `round((1 - alpha) * image + alpha * lut[round(255 * map)])`, halves upwards.

    `images` is uint8 (N,H,W,3 or 4) of any strides but the last, which is 1; `maps` float32 (N,K,H,W), clamped to
    [0,1]; `lut` uint8 (256,3); `alpha` in [0,1].
    Returns uint8 (N,K,H,W,3 or 4); a fourth value of a pixel is that of the image.  The blend is computed with `alpha`
    as a multiple of 1/65536, in integers: all heads give the same bytes.  `ValueError` for NaN in `maps`, with its
    index.
    """

def levels(maps: NDArray[np.float32], *, threads: int = 1) -> NDArray[np.uint8]:
    """`floor(255 m + 0.5)` of float32 heatmaps (N,K,H,W), clamped to [0,1].  `ValueError` for NaN, with its index."""

def weigh_ref(
    activations: NDArray[Any], weights: NDArray[Any], weighting: _Weighting = "given", *, threads: int = 1
) -> NDArray[np.float32]: ...
def finish_ref(
    raws: Sequence[NDArray[Any]],
    size: Sequence[int] | None = None,
    outputs: Sequence[_Finished] = ("heatmaps", "flat"),
    *,
    images: NDArray[np.uint8] | None = None,
    lut: NDArray[np.uint8] | None = None,
    alpha: float = 0.5,
    threads: int = 1,
) -> tuple[NDArray[Any], ...]: ...
def explain_ref(
    activations: NDArray[Any],
    weights: NDArray[Any],
    size: Sequence[int] | None = None,
    weighting: _Weighting = "mean",
    outputs: Sequence[_Explained] = ("heatmaps", "flat"),
    *,
    images: NDArray[np.uint8] | None = None,
    lut: NDArray[np.uint8] | None = None,
    alpha: float = 0.5,
    threads: int = 1,
) -> tuple[NDArray[Any], ...]: ...
def overlay_ref(
    images: NDArray[np.uint8],
    maps: NDArray[np.float32],
    lut: NDArray[np.uint8],
    alpha: float = 0.5,
    *,
    threads: int = 1,
) -> NDArray[np.uint8]: ...
def levels_ref(maps: NDArray[np.float32], *, threads: int = 1) -> NDArray[np.uint8]: ...
def finite(values: NDArray[np.float32]) -> bool:
    """Whether no value is NaN or infinite.

    `ValueError` unless `values` is a C-contiguous float32 array, of any shape.
    """

def features() -> Features:
    """How this module was built."""
