"""Rules of the ops that pick values, each by positions of its own: GatherElements, GatherND, TopK, Compress.

The ways back: `put_elements` for positions along an axis, `put_rows` for rows.  Each adds up what meets; by the
runtime's own scattering, or by masks where that has to be portable.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from pycam.graph.builder import Builder
from pycam.graph.shapes import UNKNOWN

from .call import Call
from .index import from_start, length, one_target, positions, vector, zeros
from .registry import rule, stop
from .windows import END, axis_size, join

for _op in ("GatherElements", "GatherND", "TopK", "Compress"):
    stop(_op, 1, why="indices, counts and conditions are no floats", kind="integer")


def put_elements(
    g: Builder, n: Call, dy: ir.Value, indices: ir.Value, axis: int, *, distinct: bool = False
) -> ir.Value:
    """The adjoint of GatherElements from `n.x()`: `dx[…, i, …] = Σ_j [index = i]·dy` along `axis`.

    Args:
        g: The builder.
        n: The op whose input is gathered from.
        dy: Of the shape of `indices`, which may be shorter than `x` on the other axes.
        indices: From 0 (or, where not portable, negative from the end).
        axis: Not negative.
        distinct: Whether no position is named twice.
    """
    size = length(n, axis)
    if not g.portable:
        reduction = None if distinct else "add"
        return g.ScatterElements(zeros(g, dy.dtype, n.shape()), indices, dy, axis=axis, reduction=reduction)
    return uncovered(g, n, one_hot_sum(g, dy, indices, axis, size, n.rank()), axis)


def one_hot_sum(g: Builder, dy: ir.Value, indices: ir.Value, axis: int, size: int | ir.Value, rank: int) -> ir.Value:
    """`Σ_j [index = i]·dy` along `axis`, for `i` from 0 to `size`, by a mask."""
    picked = one_hot(g, indices, axis, size, rank)
    return g.ReduceSum(g.Mul(g.Cast(picked, to=dy.dtype), g.Unsqueeze(dy, [axis])), [axis + 1], keepdims=0)


def one_hot(g: Builder, indices: ir.Value, axis: int, size: int | ir.Value, rank: int) -> ir.Value:
    """`[index = i]` (…, i, j, …): a new axis for `i` before `axis`."""
    shape = join(g, [-1] + [1] * (rank - axis))
    return g.Equal(g.Unsqueeze(indices, [axis]), g.Reshape(positions(g, size), shape))


def uncovered(g: Builder, n: Call, dx: ir.Value, axis: int, fill: float = 0.0) -> ir.Value:
    """`dx` with `fill` at the end of the axes other than `axis` where the indices (input 1) do not cover input 0."""
    if n.node.op_type == "TopK":
        return dx
    pairs = enumerate(zip(n.dims(0), n.dims(1), strict=True))
    short = [a for a, (whole, own) in pairs if a not in (0, axis) and (whole != own or own is None)]
    if axis != 0 and n.repeat.count is None and n.dims(0)[0] != n.dims(1)[0]:
        short.insert(0, 0)
    if not short:
        return dx
    missing = [g.Sub(n.size(a, 0), axis_size(g, dx, a)) for a in short]
    value = g.constant(fill, dx.dtype) if fill else None
    return g.Pad(dx, join(g, [*([0] * len(short)), *missing]), value, short)


def put_rows(g: Builder, rows: ir.Value, at: ir.Value, size: int | ir.Value) -> ir.Value:
    """The adjoint of picking rows: `(B, J, R)` and their positions `(B, J)` ⇒ `(B, size, R)`, duplicates add up."""
    if g.portable:
        picked = g.Equal(g.Unsqueeze(positions(g, size), [1]), g.Unsqueeze(at, [1]))  # (B, size, J)
        return g.MatMul(g.Cast(picked, to=rows.dtype), rows)
    batch, width = axis_size(g, rows, 0), axis_size(g, rows, 2)
    firsts = g.Unsqueeze(g.Mul(g.Range(0, g.Squeeze(batch, [0]), 1), vector(size)), [1])
    whole = g.Concat(g.Mul(batch, vector(size)), width, axis=0)
    flat = g.Reshape(rows, g.Concat([-1], width, axis=0))
    summed = g.ScatterND(zeros(g, rows.dtype, whole), g.Reshape(g.Add(at, firsts), [-1, 1]), flat, reduction="add")
    return g.Reshape(summed, g.Concat(batch, vector(size), width, axis=0))


@rule("GatherElements")
def gather_elements(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y[…, j, …] = x[…, index[…, j, …], …]` ⇒ `dx[…, i, …] = Σ_j [index = i]·dy`, duplicates add up."""
    axis = int(n.attr("axis", 0)) % n.rank()
    per_image(n)
    return put_elements(g, n, dy, from_start(g, n.x(1), length(n, axis)) if g.portable else n.x(1), axis)


@rule("TopK")
def top_k(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y[…, j, …] = x[…, i_j, …]`, `i` the op's other output ⇒ `dx` is `dy` at the positions chosen."""
    return put_elements(g, n, dy, n.y(1), int(n.attr("axis", -1)) % n.rank(), distinct=True)


@rule("GatherND")
def gather_nd(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """A Gather of flattened positions `Σ_k i_k·stride_k`, apart for each entry of the first `batch_dims` axes."""
    batch, static = int(n.attr("batch_dims", 0)), n.static()
    if not batch or n.node.inputs[1] not in n.repeat.batched:
        one_target(n, "names positions in the batch, or has the same indices for all batches")
    depth, at = flat_positions(g, n, batch)
    inner = batch + depth
    size = math.prod(static[batch:inner]) if static is not None else _product(g, n, batch, inner)
    width = math.prod(static[inner:]) if static is not None else _product(g, n, inner, END)
    many: int | ir.Value = (1, 0)[batch] if batch < 2 else _product(g, n, 0, batch)
    at = g.Reshape(at, join(g, [many, -1]))
    if isinstance(many, int) and width == 0:
        return zeros(g, dy.dtype, n.shape())
    return n.reshape_like(put_rows(g, g.Reshape(dy, join(g, [many, -1, width])), at, size))


def flat_positions(g: Builder, n: Call, batch: int = 0) -> tuple[int, ir.Value]:
    """How many axes the indices (input 1) of GatherND and ScatterND name; and the positions in these axes, as one."""
    depth = n.dims(1)[-1]
    if not isinstance(depth, int):
        raise n.refuse("how many axes its indices name is known only when the graph runs")
    sizes = g.Slice(n.shape(0), [batch], [batch + depth], [0])
    strides = [g.ReduceProd(g.Slice(sizes, [k + 1], [END], [0]), [0], keepdims=1) for k in range(depth - 1)]
    indices = g.Cast(n.x(1), to=ir.DataType.INT64)
    indices = g.Where(g.Less(indices, 0), g.Add(indices, sizes), indices)
    return depth, g.ReduceSum(g.Mul(indices, join(g, [*strides, 1])), [-1], keepdims=0)


def _product(g: Builder, n: Call, start: int, end: int) -> ir.Value:
    """The number of entries of some axes of input 0, as a vector of length 1."""
    return g.ReduceProd(g.Slice(n.shape(0), [start], [end], [0]), [0], keepdims=1)


@rule("Compress")
def compress(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y` is `x` where the condition holds ⇒ position `i` has the entry of `dy` that counts the conditions before it.

    Where it does not hold, or says nothing (it may be short), `dx = 0`.  Without an axis `x` is taken flat.
    """
    axis = n.attr("axis")
    flat = axis is None and n.rank() > 1
    if axis is None:
        one_target(n, "works along the batch axis")
    axis = 0 if axis is None else int(axis) % n.rank()
    count = g.ReduceProd(n.shape(), [0], keepdims=1) if flat else vector(length(n, axis))
    taken = g.Cast(n.x(1), to=ir.DataType.INT64)
    taken = g.Pad(taken, g.Concat([0], g.Sub(count, g.Shape(taken)), axis=0))
    before = g.Sub(g.CumSum(taken, np.array(0)), [1])
    end = axis_size(g, dy, axis)  # where the padding is
    dx = g.Gather(g.Pad(dy, [0, 1], None, [axis]), g.Where(g.Equal(taken, 1), before, end), axis=axis)
    return n.reshape_like(dx) if flat else dx


def _name(size: str | None) -> str | None:
    """A size that the model names; what inference made up means nothing."""
    return size if size is not None and UNKNOWN not in size else None


def per_image(n: Call) -> None:
    """Indices of the shape of `y` must be repeated with it, which constants are not, and belong to the same images."""
    rows = [next(iter(value.shape)) for value in n.node.inputs[:2] if value is not None and value.shape]
    known = [d if isinstance(d, int) else _name(d.value) for d in rows]
    same = len(known) == 2 and (None in known or known[0] == known[1])
    if not same or n.node.inputs[1] not in n.repeat.batched or int(n.attr("axis", 0)) % n.rank(0) == 0:
        one_target(n, "has the same indices for all batches, or works along the batch axis")
