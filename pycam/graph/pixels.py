"""The image input: which one it is, how its axes lie, and preprocessing inside the graph."""

from __future__ import annotations

import onnx_ir as ir

from pycam.errors import ModelError
from pycam.preprocess import Preprocess

from .builder import Builder
from .locate import dims

AXES = {"NCHW": (2, 3), "NHWC": (1, 2)}
"""Where height and width lie."""


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


def image_size(g: Builder, image: ir.Value, layout: str) -> ir.Value:
    """Height and width of the image input, int64 (2,)."""
    rows, columns = AXES[layout]
    size = [dims(image)[rows], dims(image)[columns]]
    known = [d for d in size if isinstance(d, int)]
    return g.constant(known) if len(known) == 2 else g.Slice(g.Shape(image), [rows], [columns + 1], [0])


def embed_preprocess(graph: ir.Graph, image: ir.Value, pre: Preprocess, name: str = "image") -> ir.Value:
    """Give the graph an input uint8 (N, H, W, 3), cropped to the model's size, in place of its normalised one.

    `(x − mean)/std` per channel, channel order and layout become nodes at the start of the graph.
    """
    batch = dims(image)[0]
    pixels = ir.Value(name=name, type=ir.TensorType(ir.DataType.UINT8), shape=ir.Shape([batch, *pre.size, 3]))
    old_shape, position = image.shape, list(graph.inputs).index(image)
    g = Builder(graph, prefix="pycam/preprocess")
    assert image.dtype is not None
    nodes_before = set(graph)
    x = g.Cast(pixels, to=image.dtype)
    if pre.channels == "BGR":
        x = g.Gather(x, g.constant([2, 1, 0]), axis=3)
    if pre.channels == "L":  # ITU-R 601, as Pillow's convert("L")
        x = g.ReduceSum(g.Mul(x, g.constant([0.299, 0.587, 0.114], image.dtype)), [3], keepdims=1)
    x = g.Div(g.Sub(x, g.constant(list(pre.mean), image.dtype)), g.constant(list(pre.std), image.dtype))
    if pre.layout == "NCHW":
        x = g.Transpose(x, perm=[0, 3, 1, 2])
    x.shape = old_shape
    image.replace_all_uses_with(x)
    new = [node for node in graph if node not in nodes_before]
    graph.inputs[position] = pixels
    graph.remove(new)
    graph.insert_before(graph[0], new)
    return pixels
