"""Rules of the ops that count, and that accumulate products: Range, OneHot, Mod, CumProd, Det."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from pycam.graph.builder import Builder

from .call import Call
from .index import length, one_target, positions
from .registry import expansion, rule, stop
from .windows import END, axis_size

stop("Range", 1, why="it only says how many numbers there are", kind="zero")
stop("OneHot", 0, 1, why="classes and their number are whole numbers", kind="integer")


@rule("Range", 0)
def range_start(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y_i = start + i·delta` ⇒ `d start = Σ dy`."""
    one_target(n, "has no batch axis")
    return g.ReduceSum(dy, keepdims=0)


@rule("Range", 2)
def range_delta(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y_i = start + i·delta` ⇒ `d delta = Σ i·dy`; how many there are changes only in steps."""
    one_target(n, "has no batch axis")
    return g.ReduceSum(g.Mul(g.Cast(positions(g, axis_size(g, dy, 0)), to=dy.dtype), dy), keepdims=0)


@rule("OneHot", 2)
def one_hot_values(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = off + (on − off)·h` ⇒ `d off = Σ dy·(1 − h)`, `d on = Σ dy·h`."""
    one_target(n, "reads its two values without a batch axis")
    ends = g.constant([0.0, 1.0], ir.DataType.FLOAT)  # onnxruntime has it in no other float
    hot = g.Cast(g.OneHot(n.x(0), n.x(1), ends, axis=n.attr("axis")), to=dy.dtype)
    on = g.ReduceSum(g.Mul(dy, hot), keepdims=0)
    off = g.ReduceSum(g.Mul(dy, g.Sub(1.0, hot)), keepdims=0)
    return g.Concat(g.Unsqueeze(off, [0]), g.Unsqueeze(on, [0]), axis=0)


@rule("Mod", 0, broadcasts="inputs")
def mod_a(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = a − b·q`, `q` a whole number ⇒ `da = dy`."""
    return dy


@rule("Mod", 1, broadcasts="inputs")
def mod_b(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = a − b·q`, `q` a whole number ⇒ `db = −q·dy`."""
    return g.Neg(g.Mul(dy, g.Round(g.Div(g.Sub(n.x(0), n.y()), n.x(1)))))


@expansion("CumProd")
def cum_prod(g: Builder, n: Call) -> ir.Value:
    """`y_i = Π_{j≤i} x_j`, as products of twice as many in each step: exact, also in its gradient, where factors are 0.

    Where the size is unknown, the product over `j ≤ i` of a matrix.
    """
    axis = n.const(1)
    if axis is None:
        raise n.refuse("its axis is known only when the graph runs")
    at = int(axis.reshape(())) % n.rank(0)
    reverse, exclusive = bool(n.attr("reverse", 0)), bool(n.attr("exclusive", 0))
    size = n.dims(0)[at]
    if not isinstance(size, int):
        return _triangle(g, n, at, reverse, exclusive)

    def shifted(value: ir.Value, by: int) -> ir.Value:
        """`value` moved on by so many positions, 1 where none comes from."""
        by = min(by, size)
        one = g.constant(1.0, value.dtype)
        moved = g.Slice(value, [by] if reverse else [0], [END] if reverse else [size - by], [at])
        return g.Pad(moved, [0, by] if reverse else [by, 0], one, [at])

    y = shifted(n.x(0), 1) if exclusive else n.x(0)
    for k in range(math.ceil(math.log2(size)) if size > 1 else 0):
        y = g.Mul(y, shifted(y, 2**k))
    return y


def _triangle(g: Builder, n: Call, axis: int, reverse: bool, exclusive: bool) -> ir.Value:
    at = positions(g, length(n, axis, 0))
    i, j = g.Unsqueeze(at, [1]), at
    less, or_equal = (g.Greater, g.GreaterOrEqual) if reverse else (g.Less, g.LessOrEqual)
    taken = (less if exclusive else or_equal)(j, i)  # (i, j)
    after = n.rank(0) - 1 - axis
    taken = g.Unsqueeze(taken, list(range(2, 2 + after))) if after else taken
    factors = g.Where(taken, g.Unsqueeze(n.x(0), [axis]), g.constant(1.0, n.dtype(0)))
    return g.ReduceProd(factors, [axis + 1], keepdims=0)


@rule("Det")
def det(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`dx = dy·C`, the cofactors `C_ij = (−1)^(i+j)·det(x without row i and column j)`: exact also at `det x = 0`."""
    size, rank = n.dims()[-1], n.rank()
    size = size if isinstance(size, int) else n.dims()[-2]
    if not isinstance(size, int):
        raise n.refuse("the size of its matrices is unknown")
    dy = g.Unsqueeze(dy, [rank - 2, rank - 1])
    if size == 1:
        return dy
    others = g.constant(np.array([[k for k in range(size) if k != i] for i in range(size)]))
    minors = g.Gather(g.Gather(n.x(), others, axis=rank - 2), others, axis=rank)  # (…, i, rows, j, columns)
    lead = list(range(rank - 2))
    minors = g.Transpose(minors, perm=[*lead, rank - 2, rank, rank - 1, rank + 1])
    signs = (-1.0) ** np.add.outer(np.arange(size), np.arange(size))
    return g.Mul(dy, g.Mul(g.Det(minors), g.constant(signs, dy.dtype)))
