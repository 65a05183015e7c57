"""Rules of the reductions.

In the formulas `y` and `dy` have size 1 on the reduced axes, and broadcast against `x`.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import onnx_ir as ir

from pycam.graph.builder import Builder

from .call import Call
from .elementwise import where
from .registry import ALL, rule, stop

_ELEMENTWISE_TOO = ("ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp")


@rule("ReduceSum")
def reduce_sum(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = Σx` ⇒ `dx = expand(dy)`."""
    axes = _axes(n)
    return _expanded(g, n, _kept(g, n, dy, axes), axes) if axes else dy


@rule("ReduceMean")
def reduce_mean(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = Σx / n` ⇒ `dx = expand(dy / n)`: the division is by position of `y`, not of `x`."""
    axes = _axes(n)
    if not axes:
        return dy
    if isinstance(axes, ir.Value):
        sizes_at_run_time = (g.Cast(g.Size(v), to=dy.dtype) for v in (n.node.inputs[0], n.node.outputs[0]))
        return _expanded(g, n, _kept(g, n, g.Div(dy, g.Div(*sizes_at_run_time)), axes), axes)
    sizes = [n.dims()[axis] for axis in axes]
    known = math.prod(s for s in sizes if isinstance(s, int))
    count: ir.Value | float = float(known)
    for axis, size in zip(axes, sizes, strict=True):
        if not isinstance(size, int):
            count = g.Mul(g.Cast(n.size(axis), to=dy.dtype), count)
    return n.expand_like(g.Div(_kept(g, n, dy, axes), count), axes)


@rule("ReduceMin")
@rule("ReduceMax")
def reduce_extremum(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`dx = dy·[x = y] / Σ[x = y]`: ties share evenly, as `torch.amax`."""
    axes = _axes(n)
    if not axes:
        return dy
    chosen = g.Cast(g.Equal(n.x(), _kept(g, n, n.y(), axes)), to=dy.dtype)
    share = g.Div(_kept(g, n, dy, axes), _over(g, n, "ReduceSum", chosen, axes))
    return g.Mul(chosen, share)


@rule("ReduceL1")
def reduce_l1(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = Σ|x|` ⇒ `dx = dy·sign(x)`; 0 at the kink, as PyTorch."""
    return g.Mul(g.Sign(n.x()), _kept(g, n, dy, _axes(n)))


@rule("ReduceL2")
def reduce_l2(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = √Σx²` ⇒ `dx = x·dy/y`; 0 where `y = 0`, as PyTorch."""
    axes = _axes(n)
    y, kept = _kept(g, n, n.y(), axes), _kept(g, n, dy, axes)
    return g.Mul(n.x(), where(g, g.Equal(y, 0.0), 0.0, g.Div(kept, y), dy))


@rule("ReduceSumSquare")
def reduce_sum_square(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = Σx²` ⇒ `dx = 2x·dy`."""
    return g.Mul(n.x(), g.Mul(_kept(g, n, dy, _axes(n)), 2.0))


@rule("ReduceLogSum")
def reduce_log_sum(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = ln Σx` ⇒ `dx = expand(dy·e⁻ʸ)`."""
    axes = _axes(n)
    return _expanded(g, n, _kept(g, n, g.Mul(dy, g.Exp(g.Neg(n.y()))), axes), axes)


@rule("ReduceLogSumExp")
def reduce_log_sum_exp(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = ln Σeˣ` ⇒ `dx = dy·softmax(x)`; over several axes `dy·exp(x − y)`, less precise where `|y|` is large."""
    axes = _axes(n)
    if not isinstance(axes, ir.Value) and len(axes) == 1:
        return g.Mul(_kept(g, n, dy, axes), g.Softmax(n.x(), axis=axes[0]))
    return g.Mul(_kept(g, n, dy, axes), g.Exp(g.Sub(n.x(), _kept(g, n, n.y(), axes))))


@rule("ReduceProd")
def reduce_prod(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = Πx` ⇒ `dx_i = dy·Π_{j≠i} x_j`, right also where factors are 0.

    With `z_i = [x_i = 0]`, `x̃` = `x` with 1 for 0, and `P = Πx̃`: the product of the others is `P/x̃_i` if none of them
    is 0, that is if `Σz − z_i = 0`, else 0.
    """
    axes = _axes(n)
    if not axes:
        return dy
    x, zero = n.x(), g.Equal(n.x(), 0.0)
    z = g.Cast(zero, to=dy.dtype)
    factors = where(g, zero, 1.0, x, dy)
    others = g.Div(_over(g, n, "ReduceProd", factors, axes), factors)
    alone = g.Equal(g.Sub(_over(g, n, "ReduceSum", z, axes), z), 0.0)
    return g.Mul(g.Mul(others, g.Cast(alone, to=dy.dtype)), _kept(g, n, dy, axes))


@rule("CumSum")
def cum_sum(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y_i = Σ_{j≤i} x_j` ⇒ `dx_j = Σ_{i≥j} dy_i`: the sum from the other end."""
    return g.CumSum(dy, n.x(1), exclusive=n.attr("exclusive"), reverse=1 - n.attr("reverse", 0))


Axes: TypeAlias = "list[int] | ir.Value"
"""The reduced axes; empty where the op returns its input; a value where the graph computes them."""


def _axes(n: Call) -> Axes:
    given = n.const(1)
    if n.has(1) and given is None:
        if n.attr("noop_with_empty_axes", 0) and n.node.op_type in _ELEMENTWISE_TOO:
            raise n.refuse("its axes are computed, and runtimes disagree on what it does where there are none")
        return n.x(1)
    if given is not None and given.size > 0:
        return n.axes(given)
    if not n.attr("noop_with_empty_axes", 0):
        return n.axes(None)
    if n.node.op_type in _ELEMENTWISE_TOO:
        raise n.refuse("without axes and with noop_with_empty_axes=1, runtimes disagree on what it computes")
    return []


def _over(g: Builder, n: Call, op: str, value: ir.Value, axes: Axes) -> ir.Value:
    """Another reduction over the same axes, which it keeps."""
    return g.emit(op, [value, axes], {"keepdims": 1, "noop_with_empty_axes": n.attr("noop_with_empty_axes")})[0]


def _expanded(g: Builder, n: Call, value: ir.Value, axes: Axes) -> ir.Value:
    """`value`, of size 1 on `axes`, broadcast to `x`."""
    return g.Expand(value, n.shape()) if isinstance(axes, ir.Value) else n.expand_like(value, axes)


def _kept(g: Builder, n: Call, value: ir.Value, axes: Axes) -> ir.Value:
    """`value` (of the shape of the output) with the reduced axes, of size 1."""
    return value if n.attr("keepdims", 1) or not axes else g.Unsqueeze(value, axes)


for _op in ("ArgMax", "ArgMin"):
    stop(_op, ALL, why="the output is an index")
stop("CumSum", 1, why="the axis is an index")
for _op in (*_ELEMENTWISE_TOO, "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd"):
    stop(_op, 1, why="axes are indices")
