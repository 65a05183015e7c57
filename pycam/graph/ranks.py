"""Features of signals and volumes: (N, C, l) or (N, l, C), (N, C, d, h, w) or (N, d, h, w, C).

The axes of the batch and of the positions are followed from the image through the model, one by one, as far as ops keep
them or move them.  Where they are lost (a Reshape), what has as many axes as features have is taken for some.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import TypeAlias

import onnx_ir as ir

from pycam.runtime.layouts import position_axes

from .axes import dims
from .axis_rules import taken
from .builder import constant_of
from .depend import IMAGE, OF_SHAPE
from .layout import channels_last
from .shapes import reads

FORMS = {1: "(N, C, l) or (N, l, C)", 2: "(N, C, h, w)", 3: "(N, C, d, h, w) or (N, d, h, w, C)"}
"""What features look like, by the number of their axes of positions."""

Positions: TypeAlias = "tuple[int, ...]"
Where: TypeAlias = "dict[ir.Value, tuple[int | None, Positions | None]]"
"""Value → the batch's axis, and the positions' axes, as far as they are known."""

_RECURRENT = {"LSTM", "GRU", "RNN"}
_REGROUPS = {"Reshape", "Flatten"}
_WINDOWS = {"Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool"}
_FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}
_MANY = 1 << 20
"""Stands for a number of positions that is not known."""


def image_axes(graph: ir.Graph) -> int:
    """How many axes of positions the graph's image has, see `pixels.image_input`: 2 where nobody said so."""
    return next((len(position_axes(x.meta[IMAGE])) for x in graph.inputs if IMAGE in x.meta), 2)


def features_of(graph: ir.Graph) -> Mapping[ir.Value, Positions]:
    """The values that are features of the graph's signal or volume → where their positions lie.

    Of a signal those of four axes count as well, of which one is 1: convolutions of pictures with one row.
    """
    count, where = image_axes(graph), follow(graph)
    found: dict[ir.Value, Positions] = {}
    for y in (y for node in graph for y in node.outputs):
        rank, (batch, positions) = len(dims(y)), where.get(y, (None, None))
        if batch != 0 or y.dtype not in _FLOATS:
            continue
        if rank == count + 2:
            first, last = tuple(range(2, rank)), tuple(range(1, rank - 1))
            if positions in (None, first, last):
                found[y] = positions if positions is not None else last if channels_last(y) else first
        elif count == 1 and rank == 4 and 1 in dims(y)[2:]:
            found[y] = (2, 3)
    return found


def several(value: ir.Value, axes: Positions) -> bool:
    """Whether there is more than one position, as far as that is known."""
    return any(dims(value)[axis] != 1 for axis in axes)


def follow(graph: ir.Graph) -> Where:
    """Where the batch and the positions lie in every value that is computed from the image."""
    known: Where = {x: (0, position_axes(x.meta[IMAGE])) for x in graph.inputs if IMAGE in x.meta}
    for node in graph:
        x = next((x for x in node.inputs if x is not None and x in known), None)
        if x is None or node.op_type in OF_SHAPE:
            continue
        batch, positions = known[x]
        for y in node.outputs:
            moved = None if positions is None else [_moved(node, x, y, axis) for axis in positions]
            found = tuple(axis for axis in moved or () if axis is not None)
            whole = moved is not None and len(found) == len(moved)
            known[y] = (None if batch is None else _moved(node, x, y, batch), found if whole else None)
    return known


def _moved(node: ir.Node, x: ir.Value, y: ir.Value, axis: int) -> int | None:
    """Where a node puts an axis of its input; None if it is not known."""
    rank, made = len(dims(x)), len(dims(y))
    if node.op_type == "Transpose":
        return list(node.attributes.get_ints("perm", range(rank)[::-1])).index(axis)
    if node.op_type in _RECURRENT:  # (time, N, C) → (time, directions, N, C); with layout 1 the batch comes first
        first = node.attributes.get_int("layout", 0) == 1
        return ({0: 0, 1: 1} if first else {0: 0, 1: 2}).get(axis) if y is node.outputs[0] else None
    if node.op_type in ("Squeeze", "Unsqueeze"):
        return _squeezed(node, axis, rank, made)
    if node.op_type in _REGROUPS:
        return 0 if axis == 0 and made and _keeps_batch(node, x, y) else None
    if made == rank:
        return axis
    return 0 if axis == 0 and made else None


def _keeps_batch(node: ir.Node, x: ir.Value, y: ir.Value) -> bool:
    """Whether a Reshape leaves the first axis alone: heads of attention may be put together with it."""
    if dims(x)[0] == dims(y)[0] != "?":
        return True
    sizes = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
    if node.op_type == "Flatten" or (sizes is not None and sizes.size and int(sizes.flat[0]) == 0):
        return True
    rest = [[d for d in dims(v)[1:] if isinstance(d, int)] for v in (x, y)]
    known = len(rest[0]) == len(dims(x)) - 1 and len(rest[1]) == len(dims(y)) - 1
    return known and math.prod(rest[0]) == math.prod(rest[1])


def _squeezed(node: ir.Node, axis: int, rank: int, made: int) -> int | None:
    given = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
    if given is None:
        return None
    full = rank if node.op_type == "Squeeze" else made
    axes = sorted(int(a) % full for a in given.reshape(-1))
    if node.op_type == "Squeeze":
        return None if axis in axes else axis - sum(a < axis for a in axes)
    for a in axes:
        axis += a <= axis
    return axis


def read_whole(graph: ir.Graph, on_path: Collection[ir.Value]) -> set[ir.Value]:
    """The values on a path to the score of which it reads more than one position: behind a recurrent layer often the
    last step alone is read, behind attention a class token."""
    where = follow(graph)
    found = {y for y in on_path if where.get(y, (None, None))[1] is None}
    for node in reversed(list(graph)):
        ys = [y for y in node.outputs if y in on_path]
        if not ys or not (_mixes(node) or any(y in found for y in ys)):
            continue
        found.update(x for x in reads(node) if x in on_path and not _takes_one(node, x, where))
    return found


def _mixes(node: ir.Node) -> bool:
    """Whether each position of the result depends on several of the input."""
    kernel = node.attributes.get_ints("kernel_shape", [])
    return node.op_type in _RECURRENT or (node.op_type in _WINDOWS and any(k > 1 for k in kernel))


def _takes_one(node: ir.Node, x: ir.Value, where: Where) -> bool:
    """Whether a node takes one position of `x`."""
    positions = where.get(x, (None, None))[1]
    if positions is None or x is not node.inputs[0] or node.op_type not in ("Gather", "Slice"):
        return False
    sizes = [d if isinstance(d := dims(x)[axis], int) else _MANY for axis in positions]
    chosen = [taken(node, axis, size) for axis, size in zip(positions, sizes, strict=True)]
    return any(c is not None and len(c) == 1 < size for c, size in zip(chosen, sizes, strict=True))
