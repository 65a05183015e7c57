"""The image input: which one it is, how its axes lie, and preprocessing inside the graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from pycam.errors import InputError, ModelError
from pycam.preprocess import Preprocess

from .builder import Builder
from .locate import dims

AXES = {"NCHW": (2, 3), "NHWC": (1, 2)}
"""Where height and width lie."""


class Image(NamedTuple):
    """The input of an explain graph that takes the image."""

    value: ir.Value
    layout: str
    """"NCHW" or "NHWC"."""
    floats: ir.Value | None = None
    """What the model reads of it, where the input is pixels and preprocessing is part of the graph."""


def image_input(graph: ir.Graph) -> tuple[ir.Value, str]:
    """(input, layout): the first input of rank 4; channels last where the last axis looks like them and the second not.

    Raises:
        ModelError: no input of rank 4.
    """
    for value in graph.inputs:
        shape = dims(value)
        if len(shape) == 4:
            return value, "NHWC" if shape[3] in (1, 3, 4) and shape[1] not in (1, 3, 4) else "NCHW"
    listing = ", ".join(f"{v.name} {list(dims(v))}" for v in graph.inputs)
    raise ModelError(f"the model has no image input (N, C, H, W) or (N, H, W, C); its inputs are {listing}")


def image_size(g: Builder, image: Image) -> ir.Value:
    """Height and width of the image input, int64 (2,)."""
    rows, columns = AXES[image.layout]
    size = [dims(image.value)[rows], dims(image.value)[columns]]
    known = [d for d in size if isinstance(d, int)]
    return g.constant(known) if len(known) == 2 else g.Slice(g.Shape(image.value), [rows], [columns + 1], [0])


def embed_preprocess(graph: ir.Graph, image: ir.Value, pre: Preprocess, name: str = "image") -> Image:
    """Give the graph an input uint8 (N, H, W, 3), cropped to the model's size, in place of its normalised one.

    `(x − mean)/std` per channel, channel order and layout become nodes at the start of the graph.

    Raises:
        InputError: `pre` prepares another shape than the model takes.
    """
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
