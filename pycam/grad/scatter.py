"""Rules of the ops that write values at positions: ScatterElements, ScatterND, TensorScatter, MaxUnpool."""

from __future__ import annotations

import onnx_ir as ir

from pycam.graph.builder import Builder

from .call import Call
from .elementwise import where
from .index import length, one_target, positions, zeros
from .pick import flat_positions, one_hot, one_hot_sum, per_image, put_rows, uncovered
from .registry import expansion, rule, stop
from .windows import END, axis_size

for _op in ("ScatterElements", "ScatterND"):
    stop(_op, 1, why="indices are integers", kind="integer")
stop("MaxUnpool", 1, 2, why="positions and shapes are integers", kind="integer")


@rule("ScatterElements", 0)
@rule("ScatterND", 0)
def scatter_data(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = x ∘ u` at the positions written, `x` elsewhere.

    - none: `dx = dy`, but 0 at the positions written;
    - add: `dx = dy`;
    - mul: `dx = dy·Πu`, exact also where factors are 0;
    - min, max: `dx = dy·[x = y] / count`: ties share evenly, as `torch.scatter_reduce`.
    """
    reduction = _reduction(n)
    if reduction == "add":
        return dy
    if reduction == "mul":
        return g.Mul(dy, _spread(g, n, n.x(2), dy, "mul"))
    if reduction in ("min", "max"):
        share, _ = _shares(g, n, dy)
        return g.Mul(g.Cast(g.Equal(n.x(0), n.y()), to=dy.dtype), share)
    written = zeros(g, dy.dtype, n.shape(2))
    return g.emit(n.node.op_type, [dy, n.x(1), written], {"axis": n.attr("axis")})[0]


@rule("ScatterElements", 2)
@rule("ScatterND", 2)
def scatter_updates(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`du` is what the position that an update goes to passes on.

    - none, add: `dy` there (where two updates meet without a reduction, ONNX does not say which one stays);
    - mul: `dy` times all other factors, right also where factors are 0 (as ReduceProd);
    - min, max: `dy·[u = y] / count`: ties share evenly, as `torch.scatter_reduce`.
    """
    reduction = _reduction(n)
    if reduction == "mul":
        return g.Mul(_pick(g, n, dy), _others(g, n, dy))
    if reduction in ("min", "max"):
        share, hit = _shares(g, n, dy)
        return g.Mul(hit, _pick(g, n, share))
    return _pick(g, n, dy)


def _shares(g: Builder, n: Call, dy: ir.Value) -> tuple[ir.Value, ir.Value]:
    """`dy / count`, `count` how many of `x` and the updates are as large as `y`; and which updates are (1 or 0)."""
    hit = g.Cast(g.Equal(n.x(2), _pick(g, n, n.y())), to=dy.dtype)
    kept = g.Cast(g.Equal(n.x(0), n.y()), to=dy.dtype)
    return g.Div(dy, g.Add(kept, _spread(g, n, hit, dy, "add"))), hit


def _others(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """For each update the product of the other factors of its position.

    With `z = [u = 0]`, `ũ` = `u` with 1 for 0, and `P` = `x·Πũ` there: `P/ũ` if no other update is 0, that is if
    `Σz − z = 0`, else 0.
    """
    zero = g.Equal(n.x(2), 0.0)
    z = g.Cast(zero, to=dy.dtype)
    factors = where(g, zero, 1.0, n.x(2), dy)
    product = g.Mul(n.x(0), _spread(g, n, factors, dy, "mul"))
    alone = g.Equal(g.Sub(_pick(g, n, _spread(g, n, z, dy, "add")), z), 0.0)
    return g.Mul(g.Div(_pick(g, n, product), factors), g.Cast(alone, to=dy.dtype))


def _pick(g: Builder, n: Call, value: ir.Value) -> ir.Value:
    """`value` (of the shape of `y`) at the positions written, of the shape of the updates."""
    if n.node.op_type == "ScatterND":
        return g.GatherND(value, n.x(1))
    return g.GatherElements(value, n.x(1), axis=n.attr("axis"))


def _spread(g: Builder, n: Call, values: ir.Value, dy: ir.Value, reduction: str) -> ir.Value:
    """`values` (of the shape of the updates) summed or multiplied up at the positions they go to; 0 or 1 elsewhere."""
    neutral = 0.0 if reduction == "add" else 1.0
    if not g.portable:
        base = g.Expand(g.constant(neutral, dy.dtype), n.shape(0))
        attributes = {"axis": n.attr("axis"), "reduction": reduction}
        return g.emit(n.node.op_type, [base, n.x(1), values], attributes)[0]
    if n.node.op_type == "ScatterND":
        return _spread_rows(g, n, values, neutral)
    axis = int(n.attr("axis", 0)) % n.rank(0)
    size = length(n, axis, 0)
    indices = g.Cast(n.x(1), to=ir.DataType.INT64)
    indices = g.Where(g.Less(indices, 0), g.Add(indices, [size] if isinstance(size, int) else size), indices)
    if reduction == "add":
        summed = one_hot_sum(g, values, indices, axis, size, n.rank(0))
    else:
        picked = one_hot(g, indices, axis, size, n.rank(0))
        factors = g.Where(picked, g.Unsqueeze(values, [axis]), g.constant(1.0, dy.dtype))
        summed = g.ReduceProd(factors, [axis + 1], keepdims=0)
    return uncovered(g, n, summed, axis, neutral)


def _spread_rows(g: Builder, n: Call, values: ir.Value, neutral: float) -> ir.Value:
    """The same for ScatterND: rows of what its indices leave free."""
    depth, at = flat_positions(g, n)
    sizes = n.shape(0)
    size = g.ReduceProd(g.Slice(sizes, [0], [depth], [0]), [0], keepdims=1)
    width = g.ReduceProd(g.Slice(sizes, [depth], [END], [0]), [0], keepdims=1)
    rows, at = g.Reshape(values, g.Concat([1, -1], width, axis=0)), g.Reshape(at, [1, -1])
    if neutral == 0.0:
        return g.Reshape(put_rows(g, rows, at, size), sizes)
    picked = g.Equal(g.Reshape(positions(g, size), [-1, 1, 1]), g.Reshape(at, [1, -1, 1]))  # (size, J, 1)
    factors = g.Where(picked, rows, g.constant(neutral, values.dtype))
    return g.Reshape(g.ReduceProd(factors, [1], keepdims=0), sizes)


def _reduction(n: Call) -> str:
    reduction = str(n.attr("reduction", "none"))
    if reduction not in ("none", "add", "mul", "min", "max"):
        raise n.refuse(f"reduction={reduction}")
    if n.node.op_type == "ScatterND":
        one_target(n, "names positions in the batch")
    else:
        per_image(n)
    return reduction


@expansion("TensorScatter")
def tensor_scatter(g: Builder, n: Call) -> ir.Value:
    """`y[b, …, w_b + t, …] = u[b, …, t, …]` and else `x`: `t = s − w_b` at position `s`, where `u` has it."""
    axis = int(n.attr("axis", -2)) % n.rank(0)
    count = n.size(axis, 1)
    if not n.has(2):
        return g.Concat(n.x(1), g.Slice(n.x(0), count, [END], [axis]), axis=axis)
    t = g.Sub(positions(g, length(n, axis, 0)), g.Reshape(n.x(2), [-1, 1]))  # (B, S)
    if n.attr("mode", "linear") == "circular":
        t = g.Mod(t, n.size(axis, 0))  # of the sign of the size
    t = g.Reshape(t, [0] + [1] * (axis - 1) + [-1] + [1] * (n.rank(0) - 1 - axis))
    written = g.And(g.GreaterOrEqual(t, 0), g.Less(t, count))
    inside = g.Min(g.Max(t, g.constant(0)), g.Sub(count, [1]))
    picked = g.GatherElements(n.x(1), g.Expand(inside, n.shape(0)), axis=axis)
    return g.Where(written, picked, n.x(0))


@rule("MaxUnpool")
def max_unpool(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y.flat[I] = x` ⇒ `dx = dy.flat[I]`, image by image: `I` counts through the whole batch.

    It counts through `y` also where `output_shape` makes that larger, as in onnxruntime.
    """
    flat = g.Reshape(dy, [0, -1])
    inside = g.Mod(g.Reshape(n.x(1), [0, -1]), axis_size(g, flat, 1))
    return n.reshape_like(g.GatherElements(flat, inside, axis=1))
