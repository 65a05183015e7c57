"""Peepholes: cheaper equivalents, asked for by the builder before it emits an op.

They are what makes a GAP + linear tail collapse without a special case (CAM falls out of Grad-CAM):

- `OneHot(i) · W = Gather(W, i)`: the gradient of one class score is a row of the weights;
- `mean(expand(x)) = x`, `f(expand(x)) = expand(f(x))`: a gradient that is constant over positions stays small;
- `mean_hw(reshape(x · W)) = x · mean_hw(W)`: the pooled gradient behind flatten + linear needs 1/HW of the weights;
- `sum(gradient of max-pool) = sum(dy)`: a max-pool only moves a gradient, so a sum need not know where to.

A peephole is a pure function of (builder, inputs, attributes); it returns None where it does not apply.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from .builder import Builder

Inputs: TypeAlias = "Sequence[ir.Value | None]"
Peephole: TypeAlias = "Callable[[Builder, Inputs, dict[str, Any]], ir.Value | None]"


def _producer(x: ir.Value | None, op: str) -> ir.Node | None:
    node = x.producer() if x is not None else None
    return node if node is not None and node.op_type == op and node.domain == "" else None


def _ints(x: ir.Value | None) -> list[int] | None:
    if x is None or x.const_value is None:
        return None
    return [int(v) for v in np.atleast_1d(x.const_value.numpy())]


class Spread(NamedTuple):
    """What `expand` leaves on its result: the axes (negative) that it stretched from 1, and their sizes there."""

    axes: tuple[int, ...]
    sizes: tuple[int | str | None, ...]


def expand(g: Builder, small: ir.Value, shape: ir.Value, spread: Spread) -> ir.Value:
    """`Expand(small, shape)` that peepholes can see through."""
    result = g.emit("Expand", [small, shape])[0]
    result.meta["spread"] = spread
    return result


def spread_of(x: ir.Value | None) -> tuple[ir.Value, ir.Value, Spread] | None:
    """(small, shape, spread) if `x` is the result of `expand`."""
    node = _producer(x, "Expand")
    if node is None or "spread" not in node.outputs[0].meta:
        return None
    small, shape = node.inputs
    assert small is not None and shape is not None
    return small, shape, node.outputs[0].meta["spread"]


class Moved(NamedTuple):
    """What a rule leaves on a gradient that it only moved to other positions: each of `source` went to exactly one."""

    source: ir.Value
    source_sizes: tuple[int, ...]
    sizes: tuple[int, ...]


def moved_from(x: ir.Value | None) -> Moved | None:
    """Where the numbers of `x` come from, if they were only moved."""
    found = x.meta.get("moved") if x is not None else None
    return found if isinstance(found, Moved) else None


def _covers(other: ir.Value, spread: Spread) -> bool:
    """Whether `other` has the stretched sizes itself, so that broadcasting against it stretches as well."""
    if other.shape is None or len(other.shape) < max(-a for a in spread.axes):
        return False
    dims = [d if isinstance(d, int) else d.value for d in other.shape]
    return all(size is not None and dims[axis] == size for axis, size in zip(*spread, strict=True))


def unary(op: str) -> Peephole:
    """`f(expand(x)) = expand(f(x))`."""

    def peephole(g: Builder, inputs: Inputs, attributes: dict[str, Any]) -> ir.Value | None:
        found = spread_of(inputs[0])
        if found is None:
            return None
        small, shape, spread = found
        return expand(g, g.emit(op, [small, *inputs[1:]], attributes)[0], shape, spread)

    return peephole


def binary(op: str) -> Peephole:
    """`f(expand(x), a) = f(x, a)` where `a` is as large; `= expand(f(x, a))` where it is a scalar."""

    def peephole(g: Builder, inputs: Inputs, attributes: dict[str, Any]) -> ir.Value | None:
        founds = [spread_of(x) for x in inputs]
        first = next((f for f in founds if f is not None), None)
        if first is None or any(f is not None and f[2] != first[2] for f in founds):
            return None
        small = [f[0] if f is not None else x for f, x in zip(founds, inputs, strict=True)]
        others = [x for f, x in zip(founds, inputs, strict=True) if f is None and x is not None]
        if any(_covers(x, first[2]) for x in others):
            return g.emit(op, small, attributes)[0]
        if all(x.const_value is not None and x.const_value.size == 1 for x in others):
            return expand(g, g.emit(op, small, attributes)[0], first[1], first[2])
        return None

    return peephole


def reduce_mean(g: Builder, inputs: Inputs, attributes: dict[str, Any]) -> ir.Value | None:
    """`mean(expand(x)) = x` over the stretched axes; `mean_hw(reshape(a · W)) = a · mean_hw(W)`."""
    axes = _negative_axes(inputs)
    if axes is None or attributes.get("keepdims", 1) != 1:
        return None
    found = spread_of(inputs[0])
    if found is not None:
        return found[0] if found[2].axes == axes else None
    moved = moved_from(inputs[0])
    if moved is not None and axes == tuple(range(-len(moved.sizes), 0)):
        share = math.prod(moved.source_sizes) / math.prod(moved.sizes)
        return g.Mul(g.ReduceMean(moved.source, inputs[1], keepdims=1), share)
    return _mean_of_linear(g, inputs[0], axes)


def reduce_sum(g: Builder, inputs: Inputs, attributes: dict[str, Any]) -> ir.Value | None:
    """`sum(expand(x)) = n · x` over the stretched axes; `sum(moved(x)) = sum(x)`."""
    axes = _negative_axes(inputs)
    if axes is None or attributes.get("keepdims", 1) != 1:
        return None
    moved = moved_from(inputs[0])
    if moved is not None and axes == tuple(range(-len(moved.sizes), 0)):
        return g.ReduceSum(moved.source, inputs[1], keepdims=1)
    found = spread_of(inputs[0])
    if found is None or found[2].axes != axes:
        return None
    sizes = [s for s in found[2].sizes if isinstance(s, int)]
    return g.Mul(found[0], float(math.prod(sizes))) if len(sizes) == len(axes) else None


def _is_one_hot(x: ir.Value | None) -> bool:
    return x is not None and "one_hot" in x.meta


def matmul(g: Builder, inputs: Inputs, attributes: dict[str, Any]) -> ir.Value | None:
    """`OneHot(i) · W = Gather(W, i)`, `OneHot(i) · Wᵀ = Gather(W, i, axis=1)ᵀ`; so for −OneHot, and for differences."""
    one_hot, weights = _producer(inputs[0], "OneHot"), inputs[1]
    whole = inputs[0].producer() if inputs[0] is not None else None
    if whole is not None and whole.op_type in ("Neg", "Sub") and all(_is_one_hot(x) for x in whole.inputs):
        return g.emit(whole.op_type, [g.MatMul(x, weights) for x in whole.inputs])[0]
    if one_hot is None or "one_hot" not in one_hot.outputs[0].meta or weights is None:
        return None
    transpose = _producer(weights, "Transpose")
    if transpose is not None and list(transpose.attributes.get_ints("perm", [])) == [1, 0]:
        weights = transpose.inputs[0]
        return g.Transpose(g.Gather(weights, one_hot.inputs[0], axis=1), perm=[1, 0])
    rank = len(weights.shape) if weights.shape is not None else None
    return g.Gather(weights, one_hot.inputs[0], axis=0) if rank == 2 else None


def reshape(g: Builder, inputs: Inputs, attributes: dict[str, Any]) -> ir.Value | None:
    """`reshape(reshape(x)) = reshape(x)`, unless the outer shape copies a size (0) that only the inner one has;
    `reshape(expand(x)) = expand(reshape(x))` where the stretched axes are put together, or cut apart."""
    inner, shape = _producer(inputs[0], "Reshape"), inputs[1]
    if inner is None or shape is None:
        return _reshape_spread(g, inputs)
    sizes = _ints(shape)
    if sizes is None and "tail" not in shape.meta:
        return None
    if sizes is not None and 0 in sizes:
        between = _ints(inner.inputs[1])
        literal = attributes.get("allowzero", 0) or inner.attributes.get_int("allowzero", 0)
        if between is None or literal:
            return None
        if any(s == 0 and between[i] == -1 for i, s in enumerate(sizes)) and -1 in sizes:
            # then what is free in the outer one must be known: it is what its copies leave of the inner one
            rest = [b for i, b in enumerate(between) if i >= len(sizes) or sizes[i] != 0]
            if min(rest, default=1) < 1:
                return None
            free = math.prod(rest) // math.prod(s for s in sizes if s > 0)
            sizes = [free if s == -1 else s for s in sizes]
        # where the inner one copies as well, 0 has the same meaning for `x`
        shape = g.constant([s or between[i] for i, s in enumerate(sizes)])
    return g.emit("Reshape", [inner.inputs[0], shape], attributes)[0]


def _reshape_spread(g: Builder, inputs: Inputs) -> ir.Value | None:
    """A gradient that is constant over (d, h, w) is so over (d, h·w)."""
    found, sizes = spread_of(inputs[0]), _ints(inputs[1])
    if found is None or sizes is None:
        return None
    small, shape, spread = found
    known, whole = [s for s in spread.sizes if isinstance(s, int)], _ints(shape)
    if whole is None or len(known) < len(spread.axes) or spread.axes != tuple(range(-len(known), 0)):
        return None
    lead = len(whole) - len(known)
    stretched = sizes[lead:]
    if not stretched or min(stretched) < 1 or math.prod(stretched) != math.prod(known):
        return None
    axes = tuple(range(-len(stretched), 0))
    tall = g.Reshape(small, [*sizes[:lead], *(1 for _ in stretched)])
    return expand(g, tall, g.constant([*(1 for _ in range(lead)), *stretched]), Spread(axes, tuple(stretched)))


def conv(g: Builder, inputs: Inputs, attributes: dict[str, Any]) -> ir.Value | None:
    """`conv(expand(x)) = expand(conv(x))` over the positions, for kernels of one position."""
    found, weight = spread_of(inputs[0]), inputs[1]
    shape = _ints(found[1]) if found is not None else None
    if found is None or shape is None or weight is None or weight.shape is None:
        return None
    positions = len(weight.shape) - 2
    plain = (
        all(k == 1 for k in list(weight.shape)[2:])
        and all(s == 1 for s in attributes.get("strides", []))
        and not any(attributes.get("pads", []))
        and "auto_pad" not in attributes
    )
    if not plain or len(shape) != positions + 2 or min(found[2].axes) < -positions:
        return None
    stretched = [s if i - len(shape) in found[2].axes else 1 for i, s in enumerate(shape)]
    small = g.emit("Conv", [found[0], *inputs[1:]], attributes)[0]
    return expand(g, small, g.constant(stretched), found[2])


def _negative_axes(inputs: Inputs) -> tuple[int, ...] | None:
    axes = _ints(inputs[1]) if len(inputs) > 1 else None
    return tuple(sorted(axes)) if axes is not None and all(a < 0 for a in axes) else None


def _mean_of_linear(g: Builder, x: ir.Value | None, axes: tuple[int, ...]) -> ir.Value | None:
    node = _producer(x, "Reshape")
    product = _producer(node.inputs[0], "MatMul") if node is not None else None
    if node is None or product is None or axes != tuple(range(-len(axes), 0)):
        return None
    a, weights = product.inputs
    shape = node.inputs[1]
    assert a is not None and weights is not None and shape is not None
    sizes = _ints(shape)
    tail = sizes if sizes is not None else shape.meta.get("tail")
    keep = len(axes) + 1  # the channel axis and those averaged
    transposed = _producer(weights, "Transpose")
    stored = transposed.inputs[0] if transposed is not None else weights
    if stored is None or stored.const_value is None or tail is None or len(tail) < keep:
        return None
    tail = list(tail[-keep:])
    matrix = stored.const_value.numpy()
    matrix = matrix.T if transposed is not None else matrix
    if matrix.ndim != 2 or min(tail) < 1 or matrix.shape[1] != math.prod(tail):
        return None
    mean = matrix.reshape(matrix.shape[0], tail[0], -1).mean(axis=2, dtype=np.float64).astype(matrix.dtype)
    ones = [tail[0]] + [1] * len(axes)
    lead = sizes[:-keep] if sizes is not None else g.Slice(shape, [0], [-keep], [0])
    target = [*lead, *ones] if isinstance(lead, list) else g.Concat(lead, ones, axis=0)
    return g.Reshape(g.MatMul(a, g.constant(mean)), target)


PEEPHOLES: dict[str, Peephole] = {
    **{op: unary(op) for op in ("Relu", "Neg", "Abs", "Sqrt", "Sign", "Cast", "Reciprocal")},
    **{op: binary(op) for op in ("Add", "Sub", "Mul", "Div", "Pow")},
    "ReduceMean": reduce_mean,
    "ReduceSum": reduce_sum,
    "MatMul": matmul,
    "Reshape": reshape,
    "Conv": conv,
}
