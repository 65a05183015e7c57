"""Where the channels lie in features on the image's grid: second, or last."""

from __future__ import annotations

import onnx_ir as ir

from .axes import dims
from .builder import Builder
from .quantised import before_rounding
from .tokens import name_after

_LAYOUT_SENSITIVE = {
    *("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "Resize"),
    *("BatchNormalization", "InstanceNormalization", "GroupNormalization", "LRN", "DepthToSpace", "SpaceToDepth"),
}
"""Ops that take (N, C, h, w) only."""
_MOVES = {"Concat", "Slice", "Split", "Pad", "Gather"}
"""Ops that keep the axes and change their sizes."""

RANKS = (3, 4, 5)
"""Axes of features: of signals, pictures, volumes."""
TO_LAST = {rank: [0, *range(2, rank), 1] for rank in RANKS}
"""Rank → the permutation that takes channels from the second axis to the last."""
TO_FIRST = {rank: [0, rank - 1, *range(1, rank - 1)] for rank in RANKS}
"""Rank → the permutation that takes channels from the last axis to the second."""


def channels_last(value: ir.Value) -> bool:
    """Whether features are (N, h, w, C), (N, l, C), (N, d, h, w, C): a linear layer works along their last axis, or a
    Transpose made them so, and nothing but elementwise ops came after it."""
    rank = len(dims(value))
    if any(_along_last(use.node, rank) for use in value.uses()):
        return True
    while (node := before_rounding(value).producer()) is not None and node.op_type not in _LAYOUT_SENSITIVE:
        if _along_last(node, rank):
            return True
        if node.op_type == "Transpose":
            return list(node.attributes.get_ints("perm", [])) == TO_LAST.get(rank)
        if node.op_type == "Reshape" and rank == 4:
            x = node.inputs[0]
            return x is not None and len(dims(x)) == 3 and isinstance(dims(x)[2], int) and dims(x)[2] == dims(value)[3]
        alike = [x for x in node.inputs if x is not None and x.const_value is None and same_features(x, value)]
        if not alike:
            return False
        value = alike[0]
    return False


def _along_last(node: ir.Node, rank: int) -> bool:
    """Whether a node takes the last of so many axes for the channels: to normalise along, or to multiply by a matrix;
    or takes time out in front of the batch, for a recurrent layer."""
    x = node.inputs[0] if node.inputs else None
    if x is None or len(dims(x)) != rank:
        return False
    if node.op_type == "LayerNormalization":
        return node.attributes.get_int("axis", -1) in (-1, rank - 1)
    if node.op_type == "Transpose" and rank == 3:
        return list(node.attributes.get_ints("perm", [])) == [1, 0, 2]
    weight = node.inputs[1] if node.op_type == "MatMul" else None
    return weight is not None and weight.const_value is not None and len(dims(weight)) == 2


def same_features(x: ir.Value, y: ir.Value) -> bool:
    """Whether two values have the same axes but for the batch, whose name inference often loses."""
    return len(dims(x)) == len(dims(y)) and dims(x)[1:] == dims(y)[1:]


def untransposed(value: ir.Value) -> ir.Value:
    """`value`, if a Transpose made it (N, h, w, C), as it was before (converters from TensorFlow end a block so)."""
    node = before_rounding(value).producer()
    if node is None or node.op_type != "Transpose" or not channels_last(value):
        return value
    before = node.inputs[0]
    return before if before is not None and not before.is_graph_input() else value


def channels_first(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """`value`, if it is (N, h, w, C), as (N, C, h, w): between two Transposes, there and back, put behind it."""
    if value.producer() is None or not channels_last(value):
        return value
    g, uses = Builder(graph), list(value.uses())
    first = g.Transpose(value, perm=TO_FIRST[4])
    back = g.Transpose(first, perm=TO_LAST[4])
    assert value.shape is not None
    n, h, w, c = value.shape
    first.type, first.shape = value.type, ir.Shape([n, c, h, w])
    back.type, back.shape = value.type, ir.Shape([n, h, w, c])
    name_after(g, value, first, "channels_first")
    for user, i in uses:
        user.replace_input_with(i, back)
    graph.sort()  # the two were put at the end
    return first


def on_image(graph: ir.Graph) -> set[ir.Value]:
    """The values that lie on the grid of the image's positions. Queries, keys and the weights of attention have four
    axes as well, but none for height and width."""
    grid = {x for x in graph.inputs if len(dims(x)) == 4}
    for node in graph:
        inputs = [x for x in node.inputs if x in grid]
        if node.op_type == "Transpose":
            stays = list(node.attributes.get_ints("perm", [])) in (TO_FIRST[4], TO_LAST[4])
        else:
            stays = node.op_type in _MOVES or any(same_features(x, node.outputs[0]) for x in inputs)
        if node.op_type in _LAYOUT_SENSITIVE or (inputs and stays):
            grid.update(node.outputs)
    return grid
