"""Rules of the ops that move values without computing: reshape, transpose, join, cut apart, repeat."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from pycam.graph.builder import Builder

from .call import Call
from .index import length, one_target, positions
from .registry import ALL, rule, stop
from .windows import END, axis_size, fit, join, plus

for _op in ("Reshape", "Expand", "Tile", "Squeeze", "Unsqueeze", "Split", "CenterCropPad", "ReverseSequence"):
    stop(_op, 1, why="shapes, axes, lengths and repeats are integers", kind="integer")
for _op in ("Shape", "Size"):
    stop(_op, 0, why="a shape does not depend on values", kind="integer")


@rule("Reshape")
@rule("Flatten")
def reshape(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`dx` is `dy` in the shape of `x`."""
    return n.reshape_like(dy, of_output=True)


@rule("Squeeze")
def squeeze(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`dx` is `dy` with the axes of size 1 put back."""
    axes = n.const(1)
    return n.reshape_like(dy, of_output=True) if axes is None else g.Unsqueeze(dy, [int(a) for a in axes])


@rule("Unsqueeze")
def unsqueeze(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`dx` is `dy` without the axes that were put in."""
    axes = n.const(1)
    return n.reshape_like(dy, of_output=True) if axes is None else g.Squeeze(dy, [int(a) for a in axes])


@rule("Transpose")
def transpose(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = transpose(x, π)` ⇒ `dx = transpose(dy, π⁻¹)`."""
    perm = n.attr("perm") or list(range(n.rank()))[::-1]
    return g.Transpose(dy, perm=[int(a) for a in np.argsort(perm)])


@rule("Expand", broadcasts="output")
def expand(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = x` broadcast: the walk sums."""
    return dy


@rule("Concat", ALL)
def concat(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`dx` is the piece of `dy` at the place of input `n.i`."""
    axis = int(n.attr("axis")) % n.rank()
    sizes = [length(n, axis, i) for i in range(n.i + 1)]
    if len(n.node.inputs) == 1:
        return dy
    start: int | ir.Value = 0
    for size in sizes[:-1]:
        start = plus(g, start, size)
    last = n.i == len(n.node.inputs) - 1
    return g.Slice(dy, join(g, [start]), join(g, [END if last else plus(g, start, sizes[-1])]), [axis])


@rule("Split")
def split(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`dx` joins the gradients of the pieces; pieces that the score does not depend on are padding of those before."""
    axis = int(n.attr("axis", 0)) % n.rank()
    pieces: list[ir.Value] = []
    gap: int | ir.Value = 0  # the size of the pieces without gradient in front of the next one
    for i, piece in enumerate(n.dys):
        if piece is None:
            gap = plus(g, gap, _piece(g, n, axis, i))
            continue
        if pieces:
            pieces[-1] = _pad(g, pieces[-1], 0, gap, axis)
            pieces.append(piece)
        else:
            pieces.append(_pad(g, piece, gap, 0, axis))
        gap = 0
    pieces[-1] = _pad(g, pieces[-1], 0, gap, axis)
    return g.Concat(*pieces, axis=axis) if len(pieces) > 1 else pieces[0]


def _piece(g: Builder, n: Call, axis: int, i: int) -> int | ir.Value:
    """The size of output `i` along the axis that is split."""
    sizes = n.const(1)
    if sizes is not None:
        return int(sizes[i])
    if n.has(1):
        return g.Slice(n.node.inputs[1], [i], [i + 1], [0])
    dim = n.out_dims(i)[axis]
    return dim if isinstance(dim, int) else g.Shape(n.node.outputs[i], start=axis, end=axis + 1)


def _pad(g: Builder, value: ir.Value, before: int | ir.Value, after: int | ir.Value, axis: int) -> ir.Value:
    if isinstance(before, int) and isinstance(after, int) and before == after == 0:
        return value
    return g.Pad(value, join(g, [before, after]), None, [axis])


@rule("Tile")
def tile(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`dy` as (r₀, d₀, r₁, d₁, …), summed over the repeats r."""
    rank, repeats = n.rank(), n.const(1)
    if repeats is None or repeats[0] != 1:
        one_target(n, "repeats the batch axis")
    axes = [a for a in range(rank) if repeats is None or repeats[a] != 1]
    if not axes:
        return dy
    sizes: list[int | ir.Value] = []
    for axis in range(rank):
        if axis in axes:
            sizes.append(int(repeats[axis]) if repeats is not None else g.Slice(n.x(1), [axis], [axis + 1], [0]))
        sizes.append(-1 if axis == 0 and 0 not in axes else _dim(n, axis))
    over = [axis + sum(a < axis for a in axes) for axis in axes]
    return g.ReduceSum(g.Reshape(dy, join(g, sizes)), over, keepdims=0)


def _dim(n: Call, axis: int) -> int | ir.Value:
    dim = n.dims()[axis]
    return dim if isinstance(dim, int) else n.size(axis)


@rule("DepthToSpace")
def depth_to_space(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """The inverse: SpaceToDepth, which orders channels (block, channel) as DCR does; CRD wants (channel, block)."""
    size = int(n.attr("blocksize"))
    dx = g.SpaceToDepth(dy, blocksize=size)
    if n.attr("mode", "DCR") == "DCR":
        return dx
    channels = n.dims()[1]
    if isinstance(channels, int):
        return g.Gather(dx, g.constant(np.arange(channels).reshape(size * size, -1).T.reshape(-1)), axis=1)
    order = g.Transpose(g.Reshape(positions(g, n.size(1)), [size * size, -1]), perm=[1, 0])
    return g.Gather(dx, g.Reshape(order, [-1]), axis=1)


@rule("SpaceToDepth")
def space_to_depth(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """The inverse: DepthToSpace in the same mode (which SpaceToDepth has from opset 28 on)."""
    return g.DepthToSpace(dy, blocksize=int(n.attr("blocksize")), mode=n.attr("mode", "DCR"))


@rule("CenterCropPad")
def center_crop_pad(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """Back to the size of `x`: both ways `⌊difference / 2⌋` positions come in front."""
    for axis in n.axes(n.attr("axes")):
        size, now = length(n, axis), n.out_dims()[axis]
        if isinstance(size, int) and isinstance(now, int):
            front = (size - now) // 2 if size >= now else -((now - size) // 2)
            dy = fit(g, dy, axis, front, size - now - front)
            continue
        more = g.Sub([size] if isinstance(size, int) else size, axis_size(g, dy, axis))
        grown = g.Max(more, g.constant([0]))
        before = g.Div(grown, [2])
        dy = g.Pad(dy, g.Concat(before, g.Sub(grown, before), axis=0), None, [axis])
        start = g.Div(g.Max(g.Neg(more), g.constant([0])), [2])
        dy = g.Slice(dy, start, g.Add(start, [size] if isinstance(size, int) else size), [axis])
    return dy


@rule("ReverseSequence")
def reverse_sequence(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """Its own inverse."""
    batch, time = int(n.attr("batch_axis", 1)), int(n.attr("time_axis", 0))
    if batch != 0 or n.node.inputs[1] not in n.repeat.batched:
        one_target(n, "has the same lengths for all batches, or works along the batch axis")
    return g.ReverseSequence(dy, n.x(1), batch_axis=batch, time_axis=time)
