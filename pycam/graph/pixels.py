"""The image input: which one it is, how its axes lie, and preprocessing inside the graph.

An image is whatever is explained: a picture, a signal, a volume (see `runtime.layouts`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import onnx_ir as ir

from pycam.errors import InputError, ModelError, nearest
from pycam.preprocess import Preprocess
from pycam.runtime.layouts import LAYOUTS, position_axes

from .axes import Dims, dims
from .builder import Builder
from .depend import IMAGE
from .layout import TO_FIRST, TO_LAST
from .quantised import is_quantised

Layout: TypeAlias = "str | Mapping[str, str]"
"""A name of `LAYOUTS`, for the image input; or input → layout, which also says which input is the image."""

_CHANNELS = (1, 3, 4)
"""Numbers of channels that pictures have."""
_FIRST = {*("Conv", "MaxPool", "AveragePool", "BatchNormalization", "InstanceNormalization", "QLinearConv")}
"""Ops that take channels second."""
_ELEMENTWISE = {
    *("Cast", "Identity", "Sub", "Add", "Mul", "Div", "Neg", "Clip", "Pad", "QuantizeLinear", "DequantizeLinear"),
    *("Slice", "Gather"),
}
"""Ops that keep the axes where they are; Gather and Slice if they take a list of indices."""


class Image(NamedTuple):
    """The input of an explain graph that takes the image."""

    value: ir.Value
    layout: str
    """A name of `LAYOUTS`."""
    floats: ir.Value | None = None
    """What the model reads of it, where the input is pixels and preprocessing is part of the graph."""


def image_input(graph: ir.Graph, layout: Layout | None = None) -> tuple[ir.Value, str]:
    """(input, layout).  The image is the first input of four axes, else the first of five, else the first floating one
    of three or two.  Where its channels lie is seen from the ops that read it, else from its sizes.

    The input remembers its layout, for those that follow its axes through the graph.

    Args:
        graph: The model's.
        layout: How the axes lie, whatever the model looks like; by input's name if it is not the first.

    Raises:
        ModelError: there is no such input.
        InputError: a layout that is none, or of another number of axes than the input.
    """
    named = _named(graph, layout) if isinstance(layout, Mapping) else None
    value, given = named if named is not None else (_first_image(graph), layout)
    if value is None:
        listing = ", ".join(f"{v.name} {list(dims(v))}" for v in graph.inputs)
        raise ModelError(
            "the model has no image input: a picture (N, C, H, W) or (N, H, W, C), a volume (N, C, D, H, W) or "
            "(N, D, H, W, C), or a signal (N, C, L), (N, L, C) or (N, L) of floating-point numbers; "
            f"its inputs are {listing}"
        )
    found = given if given is not None else _layout_of(value)
    if found not in LAYOUTS:
        raise InputError(f"layout={found!r}: choose one of {', '.join(LAYOUTS)}")
    if len(found) != len(dims(value)):
        fits = [one for one in LAYOUTS if len(one) == len(dims(value))]
        raise InputError(
            f"layout={found!r}: the input {value.name!r} has {len(dims(value))} axes {list(dims(value))}"
            + (f"; {' or '.join(fits)} would fit" if fits else "")
        )
    value.meta[IMAGE] = found
    return value, found


def _named(graph: ir.Graph, layout: Mapping[str, str]) -> tuple[ir.Value, str]:
    inputs = {v.name or "": v for v in graph.inputs}
    if len(layout) != 1:
        raise InputError(f"layout={dict(layout)}: name one input, that of the image")
    ((name, given),) = layout.items()
    if name not in inputs:
        raise InputError(f"layout={dict(layout)}: the model has no input {name!r}; it has {nearest(name, inputs)}")
    return inputs[name], given


def _first_image(graph: ir.Graph) -> ir.Value | None:
    for ranks in ((4,), (5,), (2, 3)):
        for value in graph.inputs:
            if len(dims(value)) in ranks and (ranks != (2, 3) or _floating(value)):
                return value
    return None


def mark_image(graph: ir.Graph, layout: Layout | None = None) -> None:
    """`image_input`, for those who only look at layers: without one there are none."""
    if layout is not None or _first_image(graph) is not None:
        image_input(graph, layout)


def _floating(value: ir.Value) -> bool:
    return is_quantised(value) or (value.dtype is not None and value.dtype.is_floating_point())


def _layout_of(value: ir.Value) -> str:
    """By the ops that read it; else channels are last if the last axis looks like them, and the second does not."""
    shape = dims(value)
    if len(shape) == 2:
        return "NL"
    first, last = {3: ("NCL", "NLC"), 4: ("NCHW", "NHWC"), 5: ("NCDHW", "NDHWC")}[len(shape)]
    read = _read_as(value, len(shape))
    if read is not None:
        return first if read == "first" else last
    return last if _looks_last(shape) else first


def _looks_last(shape: Dims) -> bool:
    """Whether the last axis looks like channels, and the second does not."""
    second, last = shape[1], shape[-1]
    if len(shape) == 3:  # of a signal there is fewer channels than positions, and as a rule they are fixed
        known = isinstance(last, int) and isinstance(second, int)
        return int(last) < int(second) if known else isinstance(last, int)
    return last in _CHANNELS and second not in _CHANNELS


def _read_as(value: ir.Value, rank: int) -> str | None:
    """Where the first ops that care take the channels of a value: "first", "last", or None if none of them tells."""
    waiting, seen = [value], {value}
    while waiting:
        x = waiting.pop(0)
        for node in (use.node for use in x.uses()):
            if node.op_type in _FIRST and node.inputs[0] is x:
                return "first"
            if node.op_type == "Transpose":
                perm = list(node.attributes.get_ints("perm", []))
                if perm in (TO_FIRST[rank], TO_LAST[rank]):
                    return "last" if perm == TO_FIRST[rank] else "first"
            y = node.outputs[0] if node.outputs else None
            if node.op_type in _ELEMENTWISE and y is not None and y not in seen and len(dims(y)) == rank:
                seen.add(y)
                waiting.append(y)
    return None


def image_size(g: Builder, image: Image) -> ir.Value:
    """The sizes of the image input's positions, int64: height and width of a picture."""
    return sizes_at(g, image.value, position_axes(image.layout))


def sizes_at(g: Builder, value: ir.Value, axes: Sequence[int]) -> ir.Value:
    """The sizes of axes that lie beside each other, int64: a constant where they are known."""
    known = [d for axis in axes if isinstance(d := dims(value)[axis], int)]
    return g.constant(known) if len(known) == len(axes) else g.Slice(g.Shape(value), [axes[0]], [axes[-1] + 1], [0])


def embed_preprocess(graph: ir.Graph, image: ir.Value, pre: Preprocess, name: str = "image") -> Image:
    """Give the graph an input uint8 (N, H, W, 3), cropped to the model's size, in place of its normalised one.

    `(x − mean)/std` per channel, channel order and layout become nodes at the start of the graph.

    Raises:
        InputError: `pre` prepares another shape than the model takes, or the model takes no pictures.
    """
    if len(dims(image)) != 4:
        raise InputError(
            f"preprocess= prepares pictures, and the input {image.name!r} {list(dims(image))} takes none: leave it out"
        )
    batch, channels = dims(image)[0], len(pre.channels)
    shape = [batch, channels, *pre.size] if pre.layout == "NCHW" else [batch, *pre.size, channels]
    if any(isinstance(want, int) and want != made for want, made in zip(dims(image)[1:], shape[1:], strict=True)):
        raise InputError(
            f"the preprocessing makes {shape} ({pre.channels}, {pre.layout}), "
            f"but the input {image.name!r} of the model takes {list(dims(image))}"
        )
    g = Builder(graph, prefix="pycam/preprocess")
    pixels = ir.Value(
        name=name if image.name == name else g.free(name),
        type=ir.TensorType(ir.DataType.UINT8),
        shape=ir.Shape([None if batch == "?" else batch, *pre.size, 3]),
    )
    nodes_before = set(graph)
    x = g.Cast(pixels, to=ir.DataType.FLOAT)
    if pre.channels == "BGR":
        x = g.Gather(x, g.constant([2, 1, 0]), axis=3)
    if pre.channels == "L":  # ITU-R 601 in Pillow's fixed point, which float32 holds exactly
        luma = g.ReduceSum(g.Mul(x, _floats(g, [19595, 38470, 7471])), [3], keepdims=1)
        x = g.Floor(g.Mul(g.Add(luma, 32768.0), 2.0**-16))
    x = g.Div(g.Sub(x, _floats(g, pre.mean)), _floats(g, pre.std))
    if pre.layout == "NCHW":
        x = g.Transpose(x, perm=[0, 3, 1, 2])
    assert image.dtype is not None
    if image.dtype != ir.DataType.FLOAT:
        x = g.Cast(x, to=image.dtype)
    x.shape = ir.Shape([None if d == "?" else d for d in shape])
    position = list(graph.inputs).index(image)
    image.replace_all_uses_with(x)
    new = [node for node in graph if node not in nodes_before]
    graph.inputs[position] = pixels
    graph.remove(new)
    graph.insert_before(graph[0], new)
    return Image(pixels, "NHWC", x)


def _floats(g: Builder, values: Sequence[float]) -> ir.Value:
    return g.constant(np.array(values, dtype=np.float32))
