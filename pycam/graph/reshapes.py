"""Shapes that a model computes with: what they are where shape inference gives up.

Exporters write `Reshape(x, Concat(Slice(Shape(x), …), 12, 64))` for attention with a free batch.  Followed through as
sizes and symbols, most such targets turn out to have one size that is not known: -1 says the same, the runtime has
nothing to compute, and the rules see the sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from .builder import Builder, constant_of
from .shapes import UNKNOWN

Sizes: TypeAlias = "list[int | str]"
_Known: TypeAlias = "Mapping[ir.Value, Sizes]"

_LONGEST = 16
"""Numbers up to which a constant may be a shape."""


def settle_reshapes(model: ir.Model, declared: Collection[str] = ()) -> list[str]:
    """Make targets of Reshape constants where all sizes but one are known, and note the shapes that follow, of Expand
    as well.

    Args:
        model: With its shapes inferred.
        declared: Names of values whose shapes are noted already.

    Returns:
        The names of the values whose shapes were noted.
    """
    graph = model.graph
    known: dict[ir.Value, Sizes] = {}
    settled: list[str] = []
    for node in graph:
        if node.domain != "" or not node.outputs:
            continue
        if node.op_type == "Reshape" and not node.attributes.get_int("allowzero", 0):
            sizes = _sizes(node.inputs[1], known) if _computed(node.inputs[1]) else None
            sizes = _solved(sizes, node.inputs[0]) if sizes is not None else None
            if sizes is not None and sum(isinstance(s, str) for s in sizes) <= 1:
                target = [s if isinstance(s, int) else -1 for s in sizes]
                node.replace_input_with(1, Builder(graph, prefix="pycam/reshape").constant(target))
                if not any(isinstance(s, str) and s.startswith(UNKNOWN) for s in sizes):
                    node.outputs[0].shape = ir.Shape(sizes)
                    settled.append(node.outputs[0].name or "")
            elif _flat(node.outputs[0]) and (same := _sizes(node.inputs[0], known)) is not None:
                known[node.outputs[0]] = same
        elif node.op_type == "Expand" and _computed(node.inputs[1]) and node.outputs[0].name not in declared:
            sizes = _expanded(_dims(node.inputs[0]), _sizes(node.inputs[1], known))
            if sizes is not None and sizes != _dims(node.outputs[0]):
                node.outputs[0].shape = ir.Shape(sizes)
                settled.append(node.outputs[0].name or "")
        elif node.op_type in _FOLLOWED and _flat(node.outputs[0]):
            sizes = _FOLLOWED[node.op_type](node, known)
            if sizes is not None:
                known[node.outputs[0]] = sizes
    return settled


def _solved(sizes: Sizes, x: ir.Value | None) -> Sizes | None:
    """The sizes that a Reshape of `x` to `sizes` makes: 0 copies one of `x`, -1 is what is left."""
    given = _dims(x)
    if 0 in sizes:
        if given is None or any(s == 0 and i >= len(given) for i, s in enumerate(sizes)):
            return None
        sizes = [given[i] if s == 0 else s for i, s in enumerate(sizes)]
    if -1 not in sizes:
        return sizes
    symbols, left = (sorted(s for s in part if isinstance(s, str)) for part in (given or (), sizes))
    count, rest = (math.prod(s for s in part if isinstance(s, int)) for part in (given or (), sizes))
    if given is None or symbols != left or not rest or sizes.count(-1) > 1:
        return None
    return [count // -rest if s == -1 else s for s in sizes]


def _expanded(given: Sizes | None, sizes: Sizes | None) -> Sizes | None:
    """The sizes of an array of `given` ones that is broadcast to `sizes`, if none of its own is free."""
    if given is None or sizes is None or any(isinstance(d, str) for d in given):
        return None
    if any(isinstance(s, str) and s.startswith(UNKNOWN) for s in sizes):
        return None
    rank = max(len(given), len(sizes))
    wide, target = ([*[1] * (rank - len(part)), *part] for part in (given, sizes))
    return [t if d == 1 else d for d, t in zip(wide, target, strict=True)]


def _dims(x: ir.Value | None) -> Sizes | None:
    """The dimensions of a value, if each has a size or a name."""
    if x is None or x.shape is None:
        return None
    dims = [d if isinstance(d, int) else d.value for d in x.shape]
    return [d for d in dims if d is not None] if None not in dims else None


def _flat(x: ir.Value) -> bool:
    """Whether a value is a number or a vector."""
    return x.shape is not None and len(x.shape) <= 1


def _computed(x: ir.Value | None) -> bool:
    return x is not None and x.const_value is None


def _sizes(x: ir.Value | None, known: _Known) -> Sizes | None:
    """The entries of an integer vector (or number)."""
    if x is None or x in known:
        return known[x] if x is not None else None
    if x.const_value is None or x.const_value.size > _LONGEST or x.dtype not in (ir.DataType.INT64, ir.DataType.INT32):
        return None
    array = constant_of(x)
    return [int(v) for v in np.atleast_1d(array)] if array is not None and array.ndim <= 1 else None


def _shape(node: ir.Node, known: _Known) -> Sizes | None:
    x = node.inputs[0]
    if x is None or x.shape is None:
        return None
    dims = [d if isinstance(d, int) else d.value for d in x.shape]
    cut = dims[node.attributes.get_int("start", 0) : node.attributes.get_int("end", len(dims))]
    return [d for d in cut if d is not None] if None not in cut else None


def _equal(node: ir.Node, known: _Known) -> Sizes | None:
    """1 where two sizes are equal; a name stands for a size, which is never -1."""
    a, b = (_sizes(x, known) for x in node.inputs)
    if a is None or b is None or len(a) != len(b):
        return None
    pairs = list(zip(a, b, strict=True))
    if any(x != y and isinstance(x, str) + isinstance(y, str) and -1 not in (x, y) for x, y in pairs):
        return None
    return [int(x == y) for x, y in pairs]


def _where(node: ir.Node, known: _Known) -> Sizes | None:
    which, a, b = (_sizes(x, known) for x in node.inputs)
    if which is None or a is None or b is None or not len(which) == len(a) == len(b):
        return None
    return [x if w else y for w, x, y in zip(which, a, b, strict=True)]


def _gather(node: ir.Node, known: _Known) -> Sizes | None:
    sizes, at = _sizes(node.inputs[0], known), _sizes(node.inputs[1], known)
    if sizes is None or at is None or any(not isinstance(i, int) or not -len(sizes) <= i < len(sizes) for i in at):
        return None
    return [sizes[i] for i in at if isinstance(i, int)]


def _slice(node: ir.Node, known: _Known) -> Sizes | None:
    sizes, *bounds = [_sizes(x, known) for x in node.inputs]
    starts, ends, axes, steps = [*bounds, [0], [1]][:4] if len(bounds) == 2 else [*bounds, [1]][:4]
    parts = [starts, ends, axes, steps]
    if sizes is None or axes not in ([0], [-1]) or any(p is None or len(p) != 1 for p in parts):
        return None
    start, end, step = (p[0] for p in (starts, ends, steps) if p is not None)
    if not (isinstance(start, int) and isinstance(end, int) and isinstance(step, int)):
        return None
    return sizes[start:end:step]


def _concat(node: ir.Node, known: _Known) -> Sizes | None:
    parts = [_sizes(x, known) for x in node.inputs]
    return [s for p in parts if p is not None for s in p] if None not in parts else None


def _same(node: ir.Node, known: _Known) -> Sizes | None:
    return _sizes(node.inputs[0], known)


_FOLLOWED: dict[str, Callable[[ir.Node, _Known], Sizes | None]] = {
    "Shape": _shape,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Equal": _equal,
    "Where": _where,
    **dict.fromkeys(("Squeeze", "Unsqueeze", "Identity"), _same),
}
