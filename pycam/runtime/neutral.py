"""Inputs that mean nothing, of the right shapes: what an Explainer is warmed up with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pycam.errors import InputError, nearest

from .feeds import Input
from .given import Call
from .layouts import position_axes
from .spec import Spec


def neutral_inputs(
    inputs: Sequence[Input], spec: Spec, batch: int, size: Sequence[int] | Mapping[str, Sequence[int | None]] | None
) -> dict[str, NDArray[Any]]:
    """{input: array}: a ramp for floats and pixels, 0 for other integers, True for what is yes or no.

    Args:
        inputs: What the graph takes.
        spec: Of the graph.
        batch: Images.
        size: The image's (height, width), or what its layout has in their place, or {input: its dimensions, None for
            those that stay as they are}, where the graph leaves them free.

    Raises:
        InputError: a size is free and not given, or not free and given otherwise.
    """
    known = {i.name: i for i in inputs}
    given = size if isinstance(size, Mapping) else {}
    for name in given:
        if name not in known:
            raise InputError(f"size= names the input {name!r}; the model has {nearest(name, known)}")
    shapes: dict[str, list[Any]] = {
        name: _sized(i, given[name]) if name in given else list(i.shape) for name, i in known.items()
    }
    if size is not None and not isinstance(size, Mapping):
        shapes[spec.image] = _sized(known[spec.image], _around(known[spec.image], spec, size))
    batched = [i for i in inputs if i.shape and (spec.batched is None or i.name in spec.batched)]
    for i in batched:
        shapes[i.name][0] = batch if not isinstance(i.shape[0], int) else i.shape[0]
    _check_free(shapes, spec)
    if known[spec.image].shape and shapes[spec.image][0] != batch:
        raise InputError(f"batch={batch}: the model takes batches of {shapes[spec.image][0]}")
    return {i.name: _ramp(shapes[i.name], i) for i in inputs}


def neutral_targets(spec: Spec, images: int, targets: int, size: tuple[int, ...]) -> dict[str, NDArray[Any]]:
    """{input: array} for what says what is explained: the best one, and whatever the graph finds by itself."""
    call = Call(images, targets, *(1, *size)[-2:])
    best = np.full((images, targets), -1, np.int64)
    arrays: dict[str, NDArray[Any]] = {name: best for name in (spec.targets, spec.against) if name}
    for one in spec.given.values():
        arrays[one.input] = np.full(one.sizes(call), 1 if one.required else -1, one.dtype)
    return arrays


def _around(info: Input, spec: Spec, size: Sequence[int]) -> list[int | None]:
    """The dimensions of the image, of which (height, width) are given."""
    axes = position_axes(spec.layout)
    if len(size) != len(axes):
        raise InputError(
            f"size={size!r}: the positions of the input {info.name!r} ({spec.layout}) have {len(axes)} sizes"
        )
    dims: list[int | None] = [None] * len(info.shape)
    for axis, length in zip(axes, size, strict=True):
        dims[axis] = length
    return dims


def _sized(info: Input, dims: Sequence[int | None]) -> list[Any]:
    """The shape of an input where its free dimensions are given."""
    fits = len(dims) == len(info.shape) and all(
        new is None or (new > 0 and (new == old or not isinstance(old, int)))
        for new, old in zip(dims, info.shape, strict=True)
    )
    if not fits:
        shape = ", ".join(str(d) if d is not None else "?" for d in info.shape)
        raise InputError(f"size= gives {tuple(dims)} for the input {info.name!r}, which is ({shape})")
    return [old if new is None else new for new, old in zip(dims, info.shape, strict=True)]


def _check_free(shapes: Mapping[str, Sequence[Any]], spec: Spec) -> None:
    for name, shape in shapes.items():
        if free := [axis for axis, length in enumerate(shape) if not isinstance(length, int)]:
            how = "size=(height, width)" if name == spec.image else f"size={{{name!r}: (…)}}"
            raise InputError(f"the input {name!r} leaves its axes {free} free: say how long they are, {how}")


def _ramp(shape: Sequence[int], info: Input) -> NDArray[Any]:
    if info.dtype is None:
        raise InputError(f"the input {info.name!r} is of a type that numpy does not have: call the explainer instead")
    kind = info.dtype.kind
    if kind == "f" or info.dtype == np.uint8:
        steps = np.arange(int(np.prod(shape))) % 251
        return (steps if kind == "u" else steps / 251).astype(info.dtype).reshape(shape)
    return np.full(shape, kind == "b", info.dtype)
