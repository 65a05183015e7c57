"""From the raw maps of all layers to heatmaps, whichever head makes them.

What is computed here works on CuPy's arrays as on numpy's: numpy's functions hand them over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast, get_args

import numpy as np
from numpy.typing import NDArray

from pycam.errors import InputError, PycamError
from pycam.runtime.spec import ROUNDING, Spec

from . import volume

if TYPE_CHECKING:
    from .protocol import Head

Combine: TypeAlias = Literal["mean", "max", "product"]
"""What the heatmap of several layers is of theirs."""

COMBINES: tuple[Combine, ...] = get_args(Combine)

Maps: TypeAlias = "NDArray[np.float32]"
Finish: TypeAlias = "Callable[[Sequence[Maps], Any], tuple[Maps, NDArray[np.bool_]]]"
"""`Head.finish`."""


def finished(
    head: Head | None, raws: Sequence[Maps], made: Maps | None, size: tuple[int, ...], spec: Spec
) -> tuple[Maps, NDArray[np.bool_]]:
    """Heatmaps (N, K, H, W), of signals (N, K, L), of volumes (N, K, D, H, W); and bool (N, K): which maps had no
    positive part.

    Args:
        head: What makes heatmaps of raw maps; None: the graph did.
        raws: (N, K, h, w), (N, K, l) or (N, K, d, h, w) per layer; may be none if the graph made heatmaps.
        made: Those heatmaps.
        size: Of the image: height and width; length; or depth, height and width.
        spec: Of the graph.

    Raises:
        InputError: NaN or infinity.
    """
    shown = [_from_minimum(raw) for raw in raws] if spec.levels else raws
    if head is not None:
        try:
            return by_rank(head, shown, size, spec.combine)
        except PycamError:  # not about the maps
            raise
        except ValueError as error:
            raise _not_finite(str(error)) from None
    assert made is not None
    if not np.isfinite(made.sum()):
        raise _not_finite("NaN in the heatmaps")
    return made, _all([m.max(axis=positions(m)) <= 0 for m in shown or [made]])


def positions(maps: Maps) -> tuple[int, ...]:
    """The axes of the positions of maps (N, K, …)."""
    return tuple(range(2, maps.ndim))


def by_rank(
    head: Head, raws: Sequence[Maps], size: tuple[int, ...], combine: str = "mean"
) -> tuple[Maps, NDArray[np.bool_]]:
    """Heads work on pictures: a signal is one with a single row, and volumes have a head of their own."""
    if len(size) == 1:
        maps, flat = combined(head.finish, [raw[:, :, None] for raw in raws], (1, *size), combine)
        return maps[:, :, 0], flat
    return combined(head.finish if len(size) == 2 else volume.finish, raws, size, combine)


def combined(
    finish: Finish, raws: Sequence[Maps], size: tuple[int, ...], combine: str = "mean"
) -> tuple[Maps, NDArray[np.bool_]]:
    """Heatmaps of several layers' raw maps: the head's own mean, else `s(max_l h_l)` or `s(Π_l h_l)` of each layer's
    heatmap `h_l`, with `s` the min-max of `head.graph`."""
    if combine == "mean" or len(raws) == 1:
        return finish(raws, size)
    each = [finish([raw], size) for raw in raws]
    stack = np.stack([maps for maps, _ in each])
    maps = stack.max(axis=0) if combine == "max" else _product(stack)
    lifted = maps - maps.min(axis=positions(maps), keepdims=True)
    scaled = lifted / (lifted.max(axis=positions(maps), keepdims=True) + np.float32(1e-7))
    return scaled.astype(np.float32, copy=False), _all([flat for _, flat in each])


def _product(stack: Maps) -> Maps:
    """The product over axis 0, with its largest value 1: that of many layers is small everywhere."""
    maps = stack.prod(axis=0)
    top = maps.max(axis=tuple(range(2, maps.ndim)), keepdims=True)
    quotient: Maps = maps / np.where(top > 0, top, 1)
    return quotient.astype(np.float32, copy=False)


def _all(each: Sequence[NDArray[np.bool_]]) -> NDArray[np.bool_]:
    return cast("NDArray[np.bool_]", np.stack(each).all(axis=0))


def _from_minimum(raw: NDArray[np.float32]) -> NDArray[np.float32]:
    """See `head.graph.from_minimum`."""
    axes = positions(raw)
    lifted = raw - raw.min(axis=axes, keepdims=True)
    noise = np.abs(raw).max(axis=axes, keepdims=True) * np.float32(ROUNDING)
    kept: Maps = np.where(lifted.max(axis=axes, keepdims=True) <= noise, np.float32(0), lifted)
    return kept.astype(np.float32, copy=False)


def _not_finite(why: str) -> InputError:
    return InputError(f"the explanation is not finite ({why}): this input makes the model's numbers overflow")
