"""What a call gives besides the targets: a mask, boxes, a position in a sequence, a reference.  Checked, and made the
arrays that the explain graph takes.

What is not given is filled with −1, which means: let the graph find it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pycam.errors import TargetError, nearest

Array: TypeAlias = "NDArray[Any]"


class Call(NamedTuple):
    """What the arrays must fit."""

    images: int
    targets: int
    height: int
    width: int
    """Of the image, in pixels."""


@dataclass(frozen=True)
class Given:
    """An input of an explain graph that says more about what is explained.

    Attributes:
        input: Its name in the graph.
        kind: A name of `KINDS`.
        shape: Its sizes; "N" images, "K" targets per image, None for a free one.
        dtype: "float32" or "int64".
        required: A call must give it; else −1 everywhere stands for what was not given.
    """

    input: str
    kind: str
    shape: tuple[int | str | None, ...]
    dtype: str = "float32"
    required: bool = False

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Given:
        """What `dataclasses.asdict` made, through JSON."""
        return cls(**{**values, "shape": tuple(values["shape"])})

    def sizes(self, call: Call) -> tuple[int, ...]:
        """The shape for a call; 1 for free sizes."""
        known = {"N": call.images, "K": call.targets, "H": call.height, "W": call.width}
        return tuple(size if isinstance(size, int) else known.get(size or "", 1) for size in self.shape)

    @property
    def per_target(self) -> bool:
        """Whether its second axis is that of the targets."""
        return len(self.shape) > 1 and self.shape[1] == "K"


class Kind(NamedTuple):
    """A meaning of an input.

    Attributes:
        words: Keyword of a call → (what was given, the input, the call) → the array.
        mirrored: The array for mirrored images.
    """

    words: Mapping[str, Callable[[Any, Given, Call], Array]]
    mirrored: Callable[[Array, Call], Array]


def check_given(
    given: Mapping[str, Any], inputs: Mapping[str, Given], call: Call, target: str
) -> dict[str, NDArray[Any]]:
    """{graph input: array} for all that the target takes.

    Args:
        given: Keyword → what the call gave.
        inputs: What the graph takes: key → input.
        call: How many images and targets there are, and the image's size.
        target: Kind of the target, for errors.

    Raises:
        TargetError: an unknown keyword, two for the same input, one missing, or a value that does not fit.
    """
    words = {
        word: (info, convert)
        for key, info in inputs.items()
        for word, convert in (KINDS[info.kind].words or {key: _any}).items()
    }
    asked = {word: value for word, value in given.items() if value is not None}
    found: dict[str, Array] = {}
    for word, value in asked.items():
        if word not in words:
            takes = f"it takes {nearest(word, words)}" if words else "it takes nothing besides targets"
            raise TargetError(f"{word}=: the target {target!r} does not know that; {takes}")
        info, convert = words[word]
        if info.input in found:
            rivals = " and ".join(f"{w}=" for w in asked if words.get(w, (None,))[0] is info)
            raise TargetError(f"{rivals} say the same thing in two ways: give one of them")
        found[info.input] = np.ascontiguousarray(convert(value, info, call), dtype=info.dtype)
    for key, info in inputs.items():
        if info.input in found:
            continue
        if info.required:
            takes = " or ".join(f"{word}=" for word in KINDS[info.kind].words or [key])
            raise TargetError(f"the target {target!r} needs {takes}")
        found[info.input] = np.full(info.sizes(call), -1, dtype=info.dtype)
    return found


def _numbers(value: ArrayLike, word: str) -> Array:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise TargetError(f"{word}= is not an array: {error}") from None
    if array.dtype.kind not in "biuf" or array.size == 0:
        raise TargetError(f"{word}= must be numbers; got {array.dtype} of shape {array.shape}")
    if not np.isfinite(array).all():
        raise TargetError(f"{word}= holds NaN or infinity")
    return array


def _mask(value: Any, info: Given, call: Call) -> Array:
    """Weights (H, W) or (N, H, W) at the image's size, 0 or more, as bool, float, or the levels 0 to 255 of a picture;
    "all" for everything."""
    size = (call.height, call.width)
    if isinstance(value, str):
        if value != "all":
            raise TargetError(f"mask={value!r}: give an array, or 'all'")
        return np.ones((call.images, *size))
    array = _numbers(value, "mask")
    if array.shape not in (size, (call.images, *size)):
        raise TargetError(
            f"mask= has shape {array.shape}; it must have the image's size, {size} or {(call.images, *size)}"
        )
    if array.min() < 0:
        raise TargetError(f"mask= holds {array.min()}: its weights must be 0 or more")
    weights = array / np.float32(255) if array.dtype == np.uint8 and array.max() > 1 else array
    masks = np.broadcast_to(weights, (call.images, *size))
    empty = [n for n, one in enumerate(masks) if not one.any()]
    if empty:
        raise TargetError(f"mask= is zero everywhere for image {empty[0]}: nothing would be explained")
    return masks


def _mask_of_box(value: Any, info: Given, call: Call) -> Array:
    """A box (4,) or (N, 4) as a mask."""
    boxes = _checked_boxes(value, (call.images,), call)
    x, y = np.arange(call.width) + 0.5, np.arange(call.height) + 0.5
    left, top, right, bottom = (boxes[:, i, None] for i in range(4))
    masks = ((y >= top) & (y < bottom))[:, :, None] & ((x >= left) & (x < right))[:, None, :]
    empty = np.flatnonzero(~masks.any(axis=(1, 2)))
    if len(empty):
        raise TargetError(f"box {boxes[empty[0]].tolist()} holds the centre of no pixel: make it larger")
    return masks


def _mask_of_pixel(value: Any, info: Given, call: Call) -> Array:
    """A pixel (x, y), (2,) or (N, 2), as a mask."""
    array = _numbers(value, "pixel")
    if array.shape not in ((2,), (call.images, 2)) or array.dtype.kind == "f":
        raise TargetError(f"pixel= must be two integers (x, y), one pair or one for each image; got {value!r}")
    masks = np.zeros((call.images, call.height, call.width))
    for n, (x, y) in enumerate(np.broadcast_to(array, (call.images, 2)).tolist()):
        if not (0 <= x < call.width and 0 <= y < call.height):
            raise TargetError(f"pixel ({x}, {y}) lies outside of the image, {call.width} × {call.height} (x, y)")
        masks[n, y, x] = 1
    return masks


def _boxes(value: Any, info: Given, call: Call) -> Array:
    """Boxes (4,), (N, 4) or (N, K, 4)."""
    return _checked_boxes(value, (call.images, call.targets), call)


def _checked_boxes(value: Any, leading: tuple[int, ...], call: Call) -> Array:
    array = _numbers(value, "box").astype(np.float64)
    fits = [(*leading[:i], 4) for i in range(len(leading) + 1)]
    if array.shape not in fits:
        hint = ""
        if array.ndim == 2 and array.shape[1] == 4 and leading[0] == 1 and len(leading) == 2:
            hint = f"; for {len(array)} boxes of one image give as many targets: targets=[[-1] * {len(array)}]"
        shapes = " or ".join(map(str, fits))
        raise TargetError(f"box= has shape {array.shape}; give (left, top, right, bottom) in pixels, {shapes}{hint}")
    for left, top, right, bottom in array.reshape(-1, 4).tolist():
        box = f"box ({left:g}, {top:g}, {right:g}, {bottom:g})"
        if right <= left or bottom <= top:
            raise TargetError(f"{box} is empty: it is (left, top, right, bottom) in pixels, with left < right")
        if right <= 0 or bottom <= 0 or left >= call.width or top >= call.height:
            raise TargetError(f"{box} lies outside of the image, {call.width} × {call.height}")
    array = np.clip(array, 0, [call.width, call.height] * 2)
    wide = array.reshape(*array.shape[:-1], *[1] * (len(leading) + 1 - array.ndim), 4)
    return np.broadcast_to(wide, (*leading, 4))


def _positions(value: Any, info: Given, call: Call) -> Array:
    """Positions in a sequence: an int for all, (N,) or (N, K)."""
    array = _numbers(value, "position")
    wide = array[:, None] if array.ndim == 1 else array
    shape = (call.images, call.targets)
    if array.dtype.kind not in "iu" or wide.ndim > 2 or (wide.ndim and wide.shape not in (shape, (call.images, 1))):
        raise TargetError(f"position= must be integers: one, ({call.images},) or {shape}; got {value!r}")
    if wide.min() < -1:
        raise TargetError(f"position={wide.min()}: positions count from 0, and −1 is the whole sequence")
    return np.broadcast_to(wide, shape)


def _references(value: Any, info: Given, call: Call) -> Array:
    """Embeddings to compare with: (D,), (R, D), or (N, R, D)."""
    array = _numbers(value, "reference")
    length = info.shape[-1]
    if array.ndim not in (1, 2, 3) or (isinstance(length, int) and array.shape[-1] != length):
        raise TargetError(
            f"reference= has shape {array.shape}; give an embedding ({length or 'D'},), or several (R, {length or 'D'})"
        )
    wide = array.reshape(-1, array.shape[-1]) if array.ndim < 3 else array
    if wide.ndim == 3 and len(wide) != call.images:
        raise TargetError(f"reference= is for {len(wide)} images, and there are {call.images}")
    return np.broadcast_to(wide, (call.images, *wide.shape[-2:]))


def reference_count(value: Any) -> int:
    """How many references there are in what a call gave: (D,), (R, D) or (N, R, D)."""
    shape = np.shape(value)
    return int(shape[-2]) if len(shape) > 1 else 1


def _any(value: Any, info: Given, call: Call) -> Array:
    """An array as the user's own graph takes it."""
    array = _numbers(value, info.input)
    sizes = [{"N": call.images, "K": call.targets}.get(str(d), d) for d in info.shape]
    if array.ndim != len(sizes) or any(isinstance(d, int) and d != a for d, a in zip(sizes, array.shape, strict=True)):
        raise TargetError(f"{info.input}= has shape {array.shape}; it must have shape {tuple(sizes)}")
    return array


def _same(array: Array, call: Call) -> Array:
    return array


def _boxes_mirrored(array: Array, call: Call) -> Array:
    turned = np.stack([call.width - array[..., 2], array[..., 1], call.width - array[..., 0], array[..., 3]], -1)
    return np.where(array < 0, array, turned).astype(array.dtype)


KINDS: dict[str, Kind] = {
    "mask": Kind(
        {"mask": _mask, "box": _mask_of_box, "pixel": _mask_of_pixel},
        lambda array, call: np.ascontiguousarray(array[..., ::-1]),
    ),
    "boxes": Kind({"box": _boxes}, _boxes_mirrored),
    "positions": Kind({"position": _positions}, _same),
    "references": Kind({"reference": _references}, _same),
    "array": Kind({}, _same),
}
"""Meaning → the keywords of a call that say it, for "array" the key of the input itself."""


def seen_mirrored(arrays: Mapping[str, Array], inputs: Mapping[str, Given], call: Call) -> dict[str, Array]:
    """`arrays` by graph input, as they are for images that were mirrored left to right."""
    turned = {i.input: KINDS[i.kind].mirrored(arrays[i.input], call) for i in inputs.values()}
    return {**arrays, **turned}
