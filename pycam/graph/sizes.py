"""The sizes of images, where a model leaves them free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import onnx

from pycam.errors import InputError, nearest

from .load import Loaded

Sizes: TypeAlias = "Sequence[int] | Mapping[str, Sequence[int | None]]"
"""(height, width) of the image; or input → its dimensions, None for those that stay as they are."""


def fix_sizes(loaded: Loaded, sizes: Sizes) -> Loaded:
    """A loaded model whose inputs have the given sizes, where it leaves them free; `loaded` stays as it is.

    A network whose image may have any size is then one for images of this size: where its tokens lie is known.

    Args:
        loaded: The model, before it is normalised.
        sizes: (height, width) for all image inputs of rank 4, or input → dimensions, None for those that stay.

    Raises:
        InputError: no such input, another number of axes, a size that is not positive, or one that the model fixes
            to another number.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(loaded.proto)
    weights = {t.name for t in proto.graph.initializer}
    inputs = {v.name: v for v in proto.graph.input if v.name not in weights}
    wanted = sizes if isinstance(sizes, Mapping) else _of_images(inputs, sizes)
    named: dict[str, int] = {}
    for name, shape in wanted.items():
        if name not in inputs:
            raise InputError(f"the model has no input {name!r} to give sizes to; it has {nearest(name, inputs)}")
        named |= _fix(inputs[name], shape)
    for value in (*inputs.values(), *proto.graph.value_info, *proto.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in named:
                dim.dim_value = named[dim.dim_param]
    return loaded._replace(proto=proto)


def _of_images(inputs: Mapping[str, onnx.ValueInfoProto], size: Sequence[int]) -> dict[str, list[int | None]]:
    """Height and width for every input of rank 4."""
    if len(size) != 2:
        raise InputError(f"size={list(size)}: give (height, width), or each input's dimensions by its name")
    found: dict[str, list[int | None]] = {}
    for name, value in inputs.items():
        shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
        if len(shape) == 4:
            last = (shape[3] in (1, 3, 4) and shape[1] not in (1, 3, 4)) or (shape[3] > 0 and not shape[1])
            found[name] = [None, *size, None] if last else [None, None, *size]
    if not found:
        raise InputError(f"size={list(size)}: the model has no image input of four axes; name the input")
    return found


def _fix(value: onnx.ValueInfoProto, shape: Sequence[int | None]) -> dict[str, int]:
    """Give an input its sizes; returns the sizes that have names."""
    named: dict[str, int] = {}
    axes = value.type.tensor_type.shape.dim
    text = [d.dim_value or d.dim_param or "?" for d in axes]
    if len(shape) != len(axes):
        raise InputError(f"sizes {list(shape)} for the input {value.name!r}, which has {len(axes)} axes {text}")
    for dim, size in zip(axes, shape, strict=True):
        if size is None:
            continue
        if size < 1 or (dim.dim_value and dim.dim_value != size):
            raise InputError(
                f"sizes {list(shape)} do not fit the input {value.name!r}, which is {text}: "
                "only sizes that the model leaves free can be given"
            )
        if dim.dim_param:
            named[dim.dim_param] = size
        dim.dim_value = size
    return named
