"""Rules of the ops that move values without computing: reshape, transpose, join, cut apart, repeat."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from pycam.graph.builder import Builder

from .call import Call
from .index import length, one_target
from .registry import ALL, rule, stop
from .windows import END, join, plus

for _op in ("Reshape", "Expand", "Tile", "Squeeze", "Unsqueeze", "Split"):
    stop(_op, 1, why="shapes, axes and repeats are integers")
for _op in ("Shape", "Size"):
    stop(_op, 0, why="a shape does not depend on values")


@rule("Reshape")
@rule("Flatten")
def reshape(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`dx` is `dy` in the shape of `x`."""
    return n.reshape_like(dy)


@rule("Squeeze")
def squeeze(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`dx` is `dy` with the axes of size 1 put back."""
    axes = n.const(1)
    return n.reshape_like(dy) if axes is None else g.Unsqueeze(dy, n.axes(axes))


@rule("Unsqueeze")
def unsqueeze(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`dx` is `dy` without the axes that were put in."""
    axes = n.const(1)
    return n.reshape_like(dy) if axes is None else g.Squeeze(dy, n.axes(axes, n.rank() + axes.size))


@rule("Transpose")
def transpose(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = transpose(x, π)` ⇒ `dx = transpose(dy, π⁻¹)`."""
    perm = n.attr("perm") or list(range(n.rank()))[::-1]
    return g.Transpose(dy, perm=[int(a) for a in np.argsort(perm)])


@rule("Expand", broadcasts=True)
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
    if not isinstance(channels, int):
        raise n.refuse("mode=CRD with an unknown number of channels")
    order = np.arange(channels).reshape(size * size, -1).T.reshape(-1)
    return g.Gather(dx, g.constant(order), axis=1)


@rule("SpaceToDepth")
def space_to_depth(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """The inverse: DepthToSpace in the mode DCR."""
    return g.DepthToSpace(dy, blocksize=int(n.attr("blocksize")), mode="DCR")
