"""Rules of the ops that pick values by position, and the two ways back: padding, and sums of picked positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pycam.errors import BatchAxisError
from pycam.graph.builder import Builder

from .call import Call, describe
from .registry import rule, stop
from .windows import END, axis_size, join, plus

stop("Slice", 1, 2, 3, 4, why="positions are integers", kind="integer")
stop("Pad", 1, 3, why="pads and axes are integers", kind="integer")
for _op in ("Gather", "Trilu"):
    stop(_op, 1, why="indices are integers", kind="integer")

_FEW = 4
"""A position picked up to so many times is summed by as many Gathers; beyond, by a matrix of zeros and ones."""


def length(n: Call, axis: int, i: int | None = None) -> int | ir.Value:
    """The size of an axis that the op works along: an int, or an int64 vector of length 1."""
    size = n.dims(i)[axis]
    if axis % n.rank(i) == 0:
        one_target(n, "works along the batch axis")
    return size if isinstance(size, int) else n.size(axis, i)


def one_target(n: Call, why: str) -> None:
    """Refuse a node whose gradients for several targets cannot travel in one batch, if there are several."""
    if n.repeat.count is not None:
        raise BatchAxisError(f"{describe(n.node)} {why}, so several targets cannot share one pass: "
                             "compile for one target per image (classes=1)")  # fmt: skip


def positions(g: Builder, size: int | ir.Value) -> ir.Value:
    """0, 1, … size-1."""
    return g.constant(np.arange(size)) if isinstance(size, int) else g.Range(0, g.Squeeze(size, [0]), 1)


def place(
    g: Builder, dy: ir.Value, axis: int, begin: int | ir.Value, size: int | ir.Value, count: int | None
) -> ir.Value:
    """`dy`, `count` long on `axis` (None: ask the graph), at position `begin` of `size` zeros."""
    if isinstance(begin, int) and isinstance(size, int) and count is not None:
        pads: Sequence[int | ir.Value] = [begin, size - begin - count]
        if pads == [0, 0]:
            return dy
    else:
        end = plus(g, begin, count if count is not None else axis_size(g, dy, axis))
        pads = [begin, g.Sub(vector(size), vector(end))]
    return g.Pad(dy, join(g, pads), None, [axis])


def scatter_axis(
    g: Builder, dy: ir.Value, indices: NDArray[Any] | ir.Value, size: int | ir.Value, axis: int, rank: int
) -> ir.Value:
    """The adjoint of `Gather(x, indices, axis)`: `dx[i] = Σ dy[j]` over all `indices[j] = i`.

    Args:
        g: The builder.
        dy: Of rank `rank`, with the picked positions along `axis`.
        indices: Not negative; an array, or an int64 vector that the graph computes.
        size: Of `axis` in `x`.
        axis: Not negative.
        rank: Of `dy`.
    """
    if isinstance(indices, np.ndarray):
        indices = indices.reshape(-1)
        if indices.size and (np.diff(indices) == 1).all():
            return place(g, dy, axis, int(indices[0]), size, indices.size)
        tables = _inverse(indices, size) if isinstance(size, int) else None
        if tables is not None:
            zero = g.Pad(dy, [0, 1], None, [axis])  # one more position: what nobody picked
            result = g.Gather(zero, g.constant(tables[0]), axis=axis)
            for table in tables[1:]:
                result = g.Add(result, g.Gather(zero, g.constant(table), axis=axis))
            return result
        indices = g.constant(indices)
    elif not g.portable:  # rows are added up ten times faster than multiplied by a matrix
        order = [axis, *(a for a in range(rank) if a != axis)]
        rows = g.Transpose(dy, perm=order) if axis else dy
        shape = g.Concat(vector(size), g.Shape(rows, start=1), axis=0)
        rows = g.ScatterND(zeros(g, dy.dtype, shape), g.Unsqueeze(indices, [1]), rows, reduction="add")
        return g.Transpose(rows, perm=[int(a) for a in np.argsort(order)]) if axis else rows
    picked = g.Equal(g.Unsqueeze(positions(g, size), [1]), indices)
    return along(g, dy, g.Cast(picked, to=dy.dtype), axis, rank)


def _inverse(indices: NDArray[Any], size: int) -> list[NDArray[Any]] | None:
    """For each position of `x`, which `dy` picked it first, second, … (`len(indices)`: none); None if too many did."""
    times = np.bincount(indices, minlength=size)
    if times.max(initial=0) > _FEW:
        return None
    tables = np.full((max(int(times.max(initial=0)), 1), size), indices.size)
    seen = np.zeros(size, np.int64)
    for j, i in enumerate(indices):
        tables[seen[i], i] = j
        seen[i] += 1
    return list(tables)


def zeros(g: Builder, dtype: ir.DataType | None, shape: ir.Value) -> ir.Value:
    """Zeros of a shape that the graph computes."""
    return g.Expand(g.constant(0.0, dtype), shape)


def along(g: Builder, x: ir.Value, matrix: ir.Value, axis: int, rank: int) -> ir.Value:
    """`y[…, i, …] = Σ_j matrix[i, j]·x[…, j, …]` along `axis`."""
    if axis == rank - 1:
        return g.MatMul(x, g.Transpose(matrix, perm=[1, 0]))
    if axis == rank - 2:
        return g.MatMul(matrix, x)
    swap = list(range(rank))
    swap[axis], swap[-2] = swap[-2], swap[axis]
    return g.Transpose(g.MatMul(matrix, g.Transpose(x, perm=swap)), perm=swap)


@rule("Slice")
def slice_(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = x[start:end:step]` ⇒ `dx` is `dy` at these positions, 0 elsewhere: padding at step 1."""
    rank = n.rank()
    given = n.const(1)
    count = given.size if given is not None else next(iter(n.static(1) or []), None)
    steps = n.const(4) if n.has(4) else np.ones(count or 0, np.int64)
    axes = n.const(3) if n.has(3) else np.arange(count or 0)
    if count is None or axes is None or steps is None:
        return _where_positions_went(g, n, dy)
    befores: dict[int, int | ir.Value] = {}
    afters: dict[int, int | ir.Value] = {}
    for j, (axis, step) in enumerate(zip(n.axes(axes), map(int, steps), strict=True)):
        start, end = _entry(g, n, 1, j), _entry(g, n, 2, j)
        if (start, step) == (0, 1) and isinstance(end, int) and end >= 2**31 - 1:
            continue  # the whole axis
        size = length(n, axis)
        if isinstance(start, int) and isinstance(end, int) and isinstance(size, int):
            at = np.arange(size)[start:end:step]
            if step != 1 and at.size > 1:
                dy = scatter_axis(g, dy, at, size, axis, rank)
            else:
                begin = int(at[0]) if at.size else 0
                befores[axis], afters[axis] = begin, size - begin - at.size
        elif step == 1:
            befores[axis] = _begin(g, start, size)
            end = plus(g, befores[axis], axis_size(g, dy, axis))
            afters[axis] = g.Sub(vector(size), vector(end))
        else:
            at_run_time = g.Slice(positions(g, size), join(g, [start]), join(g, [end]), [0], [step])
            dy = scatter_axis(g, dy, at_run_time, size, axis, rank)
    pads = [*befores.values(), *afters.values()]
    if all(isinstance(p, int) and p == 0 for p in pads):
        return dy
    return g.Pad(dy, join(g, pads), None, list(befores))


def _where_positions_went(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """What is cut, or in which steps, is known only when the graph runs: it cuts the numbers 0, 1, … alike."""
    one_target(n, "may cut the batch axis")
    count = g.ReduceProd(n.shape(), [0], keepdims=1)
    numbers = g.Reshape(positions(g, count), n.shape())
    at = g.emit("Slice", [numbers, *n.node.inputs[1:]])[0]
    flat = g.ScatterElements(zeros(g, dy.dtype, count), g.Reshape(at, [-1]), g.Reshape(dy, [-1]), axis=0)
    return n.reshape_like(flat)


def _entry(g: Builder, n: Call, i: int, j: int) -> int | ir.Value:
    """Entry `j` of the integer vector that input `i` is."""
    known = n.const(i)
    if known is not None:
        return int(known[j])
    value = g.Slice(n.node.inputs[i], [j], [j + 1], [0])
    return g.Cast(value, to=ir.DataType.INT64)


def _begin(g: Builder, start: int | ir.Value, size: int | ir.Value) -> int | ir.Value:
    """Where a cut at step 1 begins: a negative start counts from the end."""
    if isinstance(start, int) and start >= 0:
        return start
    from_end = plus(g, size, start)
    if isinstance(from_end, int):
        return max(from_end, 0)
    if isinstance(start, int):
        return g.Max(from_end, [0])
    return g.Max(g.Where(g.Less(start, [0]), from_end, start), [0])


@rule("Gather")
def gather(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = x[…, indices, …]` ⇒ `dx[i] = Σ dy[j]` over all `indices[j] = i`: duplicates add up."""
    rank = n.rank()
    axis = int(n.attr("axis", 0)) % rank
    size, known = length(n, axis), n.const(1)
    inner = known.ndim if known is not None else n.rank(1)
    if inner == 0:
        dy = g.Unsqueeze(dy, [axis])
    elif inner > 1:  # the axes of the indices become one
        rest = n.dims()[axis + 1 :]
        after = [d if isinstance(d, int) else axis_size(g, dy, axis + inner + k) for k, d in enumerate(rest)]
        dy = g.Reshape(dy, join(g, [0] * axis + [-1, *after]))
    if known is None:
        return scatter_axis(g, dy, from_start(g, g.Reshape(n.x(1), [-1]), size), size, axis, rank)
    if isinstance(size, int):
        return scatter_axis(g, dy, known.reshape(-1) % size, size, axis, rank)
    if (known >= 0).all():
        return scatter_axis(g, dy, known, size, axis, rank)
    if known.size == 1:
        return place(g, dy, axis, g.Add(size, [int(known.reshape(-1)[0])]), size, 1)
    return scatter_axis(g, dy, from_start(g, g.constant(known.reshape(-1)), size), size, axis, rank)


def from_start(g: Builder, indices: ir.Value, size: int | ir.Value) -> ir.Value:
    """`indices` as int64, negative ones counted from the end."""
    indices = g.Cast(indices, to=ir.DataType.INT64)
    return g.Where(g.Less(indices, 0), g.Add(indices, [size] if isinstance(size, int) else size), indices)


def vector(size: int | ir.Value) -> ir.Value | list[int]:
    return [size] if isinstance(size, int) else size


@rule("Pad")
def pad(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """Constant: `dx` is `dy` without the pads.  Else `y = x[map]` on every axis: `dx` adds up what a position gave."""
    rank, mode, pads = n.rank(), str(n.attr("mode", "constant")), n.const(1)
    axes = n.axes(n.const(3), rank) if not n.has(3) or n.const(3) is not None else None
    if (axes is None or pads is None) and mode == "constant":
        return _unpad_at_run_time(g, n, dy, rank)
    if axes is None:
        raise n.refuse(f"mode={mode} on axes that are known only when the graph runs")
    if pads is None:
        for j, axis in enumerate(axes):
            ends = g.Gather(n.node.inputs[1], [j, j + len(axes)], axis=0)
            size = length(n, axis)
            dy = scatter_axis(g, dy, g.Pad(positions(g, size), ends, mode=mode), size, axis, rank)
        return dy
    before, after = [int(p) for p in pads[: len(axes)]], [int(p) for p in pads[len(axes) :]]
    if mode == "constant":
        return _unpad(g, dy, axes, before, after)
    for axis, b, e in zip(axes, before, after, strict=True):
        if b or e:
            size = length(n, axis)
            at: NDArray[Any] | ir.Value
            if isinstance(size, int) and min(b, e) >= 0:
                at = np.pad(np.arange(size), (b, e), mode=mode)  # type: ignore[call-overload]  # mode is one of numpy's
            else:
                at = g.Pad(positions(g, size), [b, e], mode=mode)
            dy = scatter_axis(g, dy, at, size, axis, rank)
    return dy


@rule("Pad", 2)
def pad_value(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y` is `v` around `x` ⇒ `dv = Σ dy` there: of all positions, less those that `x` went to."""
    one_target(n, "pads with one value for all batches")
    if str(n.attr("mode", "constant")) != "constant":
        return zeros(g, dy.dtype, n.shape())
    inner = pad(g, Call(g, n.repeat, n.node, 0, n.dys, n.rules), dy)
    return g.Reshape(g.Sub(g.ReduceSum(dy, keepdims=0), g.ReduceSum(inner, keepdims=0)), n.shape())


def _unpad(g: Builder, dy: ir.Value, axes: list[int], before: list[int], after: list[int]) -> ir.Value:
    """Cut what was padded, pad what was cut (negative pads)."""
    cut = [(a, max(b, 0), -e if e > 0 else END) for a, b, e in zip(axes, before, after, strict=True) if b > 0 or e > 0]
    if cut:
        dy = g.Slice(dy, [b for _, b, _ in cut], [e for _, _, e in cut], [a for a, _, _ in cut])
    put = [(a, max(-b, 0), max(-e, 0)) for a, b, e in zip(axes, before, after, strict=True) if b < 0 or e < 0]
    if put:
        dy = g.Pad(dy, [b for _, b, _ in put] + [e for _, _, e in put], None, [a for a, _, _ in put])
    return dy


def _unpad_at_run_time(g: Builder, n: Call, dy: ir.Value, rank: int) -> ir.Value:
    """Put back what was cut (negative pads), then cut what was padded."""
    pads = n.node.inputs[1]
    axes = n.node.inputs[3] if n.has(3) else g.constant(list(range(rank)))
    dy = g.Pad(dy, g.Max(g.Neg(pads), [0]), None, axes)
    before = g.emit("Split", [g.Max(pads, [0])], {"axis": 0, "num_outputs": 2}, outputs=2)[0]
    sizes = n.shape() if not n.has(3) else g.Gather(n.shape(), axes, axis=0)
    return g.Slice(dy, before, g.Add(before, sizes), axes)


@rule("Trilu")
def trilu(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y` is `x` or 0 ⇒ the same of `dy`."""
    return g.Trilu(dy, n.x(1) if n.has(1) else None, upper=n.attr("upper"))
