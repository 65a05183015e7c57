"""Check what a user feeds in, before anything is computed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pycam import _native
from pycam.errors import InputError, TargetError, nearest, ordinal

from .device import adopted, is_on_device, on_host

Targets: TypeAlias = "int | str | ArrayLike | None"

DEEPEST = 16
"""How far down the ranking a negative target reaches: −1 is the best class, −16 the sixteenth best."""

_DTYPES: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}


class Input(NamedTuple):
    """An input of a graph."""

    name: str
    dtype: np.dtype[Any] | None
    """None for a type that numpy does not have."""
    shape: tuple[int | str | None, ...]
    """A free size is a name or None."""


def describe_inputs(session: Any) -> tuple[Input, ...]:
    """The inputs of an onnxruntime session."""
    types = {name: np.dtype(dtype) for name, dtype in _DTYPES.items()}
    return tuple(Input(i.name, types.get(i.type), tuple(i.shape)) for i in session.get_inputs())


def check_inputs(
    x: ArrayLike | Mapping[str, ArrayLike], inputs: Sequence[Input], image: str
) -> dict[str, NDArray[Any]]:
    """{name: array} for every input of the graph but the targets.

    Args:
        x: An array, for a model with one input, or {name: array}; arrays of a CUDA device become CuPy's.
        inputs: What the graph takes.
        image: Name of the image input.

    Raises:
        InputError: unknown or missing name, wrong dtype, rank or size, NaN or infinity.
    """
    if len(inputs) == 1 and isinstance(x, np.ndarray):  # the usual case, with as little Python as can be
        return {image: _check_array(x, inputs[0])}
    names = [i.name for i in inputs]
    if not isinstance(x, Mapping):
        if len(names) > 1:
            raise InputError(f"the model has {len(names)} inputs ({', '.join(names)}): give {{name: array}}")
        x = {image: x}
    unknown = [name for name in x if name not in names]
    if unknown:
        raise InputError(f"the model has no input {unknown[0]!r}; it has {nearest(unknown[0], names)}")
    missing = [name for name in names if name not in x]
    if missing:
        raise InputError(f"the input {missing[0]!r} is missing; the model needs {', '.join(names)}")
    return {i.name: _check_array(_array(x[i.name], i.name), i) for i in inputs}


def check_targets(
    targets: Targets,
    images: int,
    classes: int | None,
    labels: Sequence[str] = (),
    noun: str = "class",
) -> NDArray[np.int64]:
    """Targets as int64 (N, K).  −1 is the best class, −2 the second best, …

    Args:
        targets: None (the best class), an int or a label for all images, "top3", (N,) or (N, K).
        images: N.
        classes: How many classes there are; None if unknown.
        labels: Class names, to look up a label in.
        noun: What one of them is called.

    Raises:
        TargetError: a number of targets that does not fit, a class out of range, or an unknown label.
    """
    if targets is None:  # the usual case, without the checks that it cannot fail
        return _best(images)
    if isinstance(targets, str):
        array = np.tile(np.array(_from_text(targets, classes, labels)), (images, 1))
    else:
        try:
            array = np.asarray(targets)
        except ValueError:
            raise TargetError(f"targets must be the same number for each image; got {targets!r}") from None
        if array.ndim == 0:
            array = np.full((images, 1), array)
        if array.ndim == 1:
            array = array[:, None]
    if array.dtype.kind not in "iu" or array.size == 0:
        raise TargetError(f"targets must be integers, one or more per image; got {array.dtype} of shape {array.shape}")
    if array.ndim != 2 or len(array) != images:
        shape = np.shape(targets)
        hint = f"; for several classes of one image write [[{', '.join(map(str, array[:, 0]))}]]" if images == 1 else ""
        raise TargetError(f"{images} image(s) need targets of shape ({images},) or ({images}, K); got {shape}{hint}")
    deepest = min(DEEPEST, classes or DEEPEST)
    values = array.ravel().tolist()  # few: Python's min and max are quicker than numpy's
    low, high = min(values), max(values)
    if low < -deepest or (classes is not None and high >= classes):
        wrong = low if low < -deepest else high
        known = f"0 to {classes - 1}" if classes is not None else "0 and up"
        raise TargetError(
            f"{noun} {wrong} is out of range: this model's {noun}{'es' if noun.endswith('s') else 's'} are {known}, "
            f"and −1 (the best one) to −{deepest} (the {ordinal(deepest)} best)"
        )
    return np.ascontiguousarray(array, dtype=np.int64)


def check_against(
    against: Targets, shape: tuple[int, ...], classes: int | None, labels: Sequence[str] = ()
) -> NDArray[np.int64]:
    """What targets are held against, as int64 (N, K); −1: the best class beside the target.

    Args:
        against: None (the best one beside each target), an int or a label for all, (N,) or (N, K).
        shape: (N, K) of the targets.
        classes, labels: See `check_targets`.

    Raises:
        TargetError: a shape that does not fit, or a class out of range.
    """
    if against is None:
        return np.full(shape, -1, np.int64)
    array = check_targets(against, shape[0], classes, labels)
    if array.shape[1] not in (1, shape[1]):
        raise TargetError(f"{shape[1]} targets per image are held against {array.shape[1]}: give one, or as many")
    if array.min() < -1:
        raise TargetError(f"against={array.min()}: give a class, or −1 for the best one beside the target")
    return np.ascontiguousarray(np.broadcast_to(array, shape))


@lru_cache(maxsize=64)
def _best(images: int) -> NDArray[np.int64]:
    best = np.full((images, 1), -1, dtype=np.int64)
    best.flags.writeable = False
    return best


def _from_text(text: str, classes: int | None, labels: Sequence[str]) -> list[int]:
    """Classes of one image: "top3" → −1, −2, −3; "281" → 281; a label → its class."""
    if best := re.fullmatch("top([1-9][0-9]*)", text):
        return list(range(-1, -1 - min(int(best[1]), classes or DEEPEST), -1))
    if re.fullmatch("-?[0-9]+", text):
        return [int(text)]
    found = [i for i, label in enumerate(labels) if label.lower() == text.lower()]
    if found:
        return found[:1]
    if not labels:
        raise TargetError(
            f"the target {text!r} is a label, but the model carries none (metadata 'pycam.labels'): "
            "give a class number or 'top3'"
        )
    raise TargetError(f"no class is called {text!r}; nearest: {nearest(text, labels)}")


def _array(x: Any, name: str) -> NDArray[Any]:
    if is_on_device(x):
        found: NDArray[Any] = adopted(x, f"the input {name!r}")
        return found
    try:
        return np.asarray(x)
    except ValueError as error:  # rows of different lengths
        raise InputError(f"the input {name!r} is not an array: {error}") from None


def _check_array(array: NDArray[Any], info: Input) -> NDArray[Any]:
    if array.dtype != info.dtype and info.dtype is not None:
        name = info.dtype.name
        raise InputError(f"the input {info.name!r} is {array.dtype}; the model takes {name}: x.astype(np.{name})")
    if array.shape != info.shape and not _fits(array.shape, info.shape):
        raise InputError(
            f"the input {info.name!r} has shape {array.shape}; the model takes "
            f"({', '.join(str(d) if d is not None else '?' for d in info.shape)})"
        )
    if array.size == 0:
        raise InputError(f"the input {info.name!r} is empty: shape {array.shape}")
    if not _finite(array):
        array = on_host(array)
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise InputError(
            f"the input {info.name!r} holds {array[place]} at {place}: its explanation would be meaningless"
        )
    return array


def _fits(have: tuple[int, ...], want: tuple[int | str | None, ...]) -> bool:
    return len(have) == len(want) and all(h == w for h, w in zip(have, want, strict=True) if isinstance(w, int))


def _finite(array: NDArray[Any]) -> bool:
    plain = array.dtype == np.float32 and array.flags.c_contiguous and not is_on_device(array)
    if plain and array.flags.aligned:
        return _native.finite(array)
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())
