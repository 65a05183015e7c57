"""Inputs that are pinned: a model's setting becomes a constant, and what depends on it alone is settled at compile
time.  An `If` on a sampling rate is then one of its branches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray

from pycam.errors import InputError, nearest

from .load import Loaded, Source, load
from .sizes import Sizes, fix_sizes

Pins: TypeAlias = "Mapping[str, ArrayLike]"
"""Input → its value."""


def prepared(source: Source, size: Sizes | None = None, pins: Pins | None = None) -> Loaded:
    """A model as it was read, with the sizes and the values of inputs that are given."""
    loaded = load(source)
    if size is not None:
        loaded = fix_sizes(loaded, size)
    return pin_inputs(loaded, pins) if pins else loaded


def pin_inputs(loaded: Loaded, pins: Pins) -> Loaded:
    """A loaded model without the inputs `pins`, which are constants in it; `loaded` stays as it is.

    Args:
        loaded: The model, before it is normalised.
        pins: Input → its value, of the input's shape and type; a number of the same value in another type will do.

    Raises:
        InputError: no such input, a value of another shape, or one that the input's type cannot hold; or no input
            would be left.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(loaded.proto)
    weights = {t.name for t in proto.graph.initializer}
    inputs = {v.name: v for v in proto.graph.input if v.name not in weights}
    for name, value in pins.items():
        if name not in inputs:
            raise InputError(f"the model has no input {name!r} to pin; it has {nearest(name, inputs)}")
        proto.graph.initializer.append(onnx.numpy_helper.from_array(_fitting(inputs[name], value), name))
    if len(pins) == len(inputs):
        raise InputError(f"pins={list(pins)}: that is every input of the model, and nothing would be left to explain")
    kept = [v for v in proto.graph.input if v.name not in pins]
    del proto.graph.input[:]
    proto.graph.input.extend(kept)
    return loaded._replace(proto=proto)


def _fitting(info: onnx.ValueInfoProto, value: ArrayLike) -> NDArray[Any]:
    """The value as an array of the input's type and shape."""
    kind = info.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    try:
        given = np.asarray(value)
        array = given.astype(dtype)
    except (ValueError, TypeError) as error:
        raise InputError(f"the value of the input {info.name!r} is no array of {dtype}: {error}") from None
    exact = dtype.kind == "f" or bool(np.array_equal(array, given))
    if given.dtype.kind not in "biuf" or not exact or not np.isfinite(array.astype(np.float64)).all():
        raise InputError(f"the input {info.name!r} holds {dtype}, and {value!r} is none")
    if kind.HasField("shape"):
        want = [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim]
        if array.size == 1 and all(d in (1, None) for d in want):
            array = array.reshape([1] * len(want))
        if array.ndim != len(want) or any(d not in (None, have) for d, have in zip(want, array.shape, strict=True)):
            shown = [d.dim_value or d.dim_param or "?" for d in kind.shape.dim]
            raise InputError(f"the input {info.name!r} has shape {shown}, and its value has {list(array.shape)}")
    return array
