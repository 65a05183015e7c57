"""What each op does to the axes of what it reads: see `axes.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from .axes import (
    BATCH_AXIS,
    Axes,
    Axis,
    Dims,
    Known,
    Role,
    Tokens,
    axis_of,
    best,
    complete,
    cut,
    dims,
    fits,
    has_batch,
    lay_out,
    on_grid,
    possible_sizes,
    regrouped,
    size_of,
    takes_grid,
    tokens_of,
)
from .builder import constant_of
from .depend import IMAGE


def follow_axes(graph: ir.Graph, tokens: Tokens | None = None) -> dict[ir.Value, Axes]:
    """The axes of every value that can be followed from the graph's image inputs; `tokens` says how those lie that are
    as many, whatever the graph says."""
    known = {x: axes for x in graph.inputs if (axes := _image(x)) is not None}
    for node in graph:
        rule = _RULES.get(node.op_type, _alike) if node.domain in ("", "com.microsoft") else _alike
        made = zip(node.outputs, rule(node, known), strict=False)
        known.update((y, axes) for y, axes in made if axes is not None and fits(axes, dims(y)))
        if tokens is not None:
            known.update((y, axes) for y in node.outputs if (axes := _given(y, known.get(y), tokens)) is not None)
    return known


def _given(y: ir.Value, found: Axes | None, tokens: Tokens) -> Axes | None:
    """The axes of (N, T, C) where `tokens` says how the T tokens lie, and nothing is known that they could not be."""
    shape = dims(y)
    if len(shape) != 3 or shape[1] != tokens.total or y.dtype is None or not y.dtype.is_floating_point():
        return None
    channels = axis_of("other", shape[2])
    fine = found is None or (found[0] == BATCH_AXIS and on_grid(found[1]) and not on_grid(found[2]))
    return (BATCH_AXIS, lay_out(tokens), channels) if channels is not None and fine else None


def _image(x: ir.Value) -> Axes | None:
    shape = dims(x)
    if len(shape) != 4:
        return None
    told = x.meta.get(IMAGE)
    last = told == "NHWC" if told is not None else shape[3] in (1, 3, 4) and shape[1] not in (1, 3, 4)
    roles: tuple[Role, ...] = ("rows", "columns", "other") if last else ("other", "rows", "columns")
    axes = [axis_of(role, d) for role, d in zip(roles, shape[1:], strict=True)]
    return (BATCH_AXIS, *(a for a in axes if a is not None)) if None not in axes else None


def _reshape(node: ir.Node, known: Known) -> list[Axes | None]:
    axes = _first(node, known)
    if axes is None:
        return [None]
    x = node.inputs[0]
    names = [d for axis, d in zip(axes, dims(x) if x is not None else (), strict=True) if axis == BATCH_AXIS]
    found = (regrouped(axes, sizes) for sizes in possible_sizes(axes, dims(node.outputs[0]), names))
    return [next((made for made in found if made is not None), None)]


def _transpose(node: ir.Node, known: Known) -> list[Axes | None]:
    axes = _first(node, known)
    if axes is None:
        return [None]
    perm = list(node.attributes.get_ints("perm", range(len(axes))[::-1]))
    return [tuple(axes[i] for i in perm)]


def _slice(node: ir.Node, known: Known) -> list[Axes | None]:
    axes, bounds = _first(node, known), [_ints(x) for x in node.inputs[1:]]
    if axes is None or any(b is None for b in bounds):
        return [None]
    starts, ends, *rest = [b for b in bounds if b is not None]
    where = rest[0] if rest else list(range(len(starts)))
    steps = rest[1] if len(rest) > 1 else [1] * len(starts)
    made: list[Axis | None] = list(axes)
    for start, end, at, step in zip(starts, ends, where, steps, strict=True):
        at %= len(axes)
        if size_of(axes[at]) != 1:
            made[at] = cut(axes[at], start, end, step)
    return [complete(made)]


def _gather(node: ir.Node, known: Known) -> list[Axes | None]:
    axes, indices = _first(node, known), node.inputs[1]
    chosen = _ints(indices)
    if axes is None or indices is None or chosen is None:
        return [None]
    at = node.attributes.get_int("axis", 0) % len(axes)
    if has_batch(axes[at]):
        return [None]
    if not dims(indices):
        return [axes[:at] + axes[at + 1 :]]
    size = size_of(axes[at])
    chosen = [i % size for i in chosen]
    if len(dims(indices)) != 1 or not chosen:
        return [None]
    run = chosen == list(range(chosen[0], chosen[0] + len(chosen)))
    if run:
        return [complete([*axes[:at], cut(axes[at], chosen[0], chosen[-1] + 1), *axes[at + 1 :]])]
    tokens = tokens_of(axes[at])
    special = not on_grid(axes[at]) or (tokens is not None and not takes_grid(tokens, chosen))
    return [complete([*axes[:at], axis_of("other", len(chosen)) if special else None, *axes[at + 1 :]])]


def taken(node: ir.Node, axis: int, size: int) -> Sequence[int] | None:
    """Which indices of an axis of input 0 a Slice or Gather takes; None if that is not known (or all of them)."""
    bounds = [_ints(x) for x in node.inputs[1:]]
    rank = len(dims(node.inputs[0])) if node.inputs[0] is not None else 0
    if not bounds or any(b is None for b in bounds) or not rank:
        return None
    if node.op_type == "Gather":
        return [i % size for i in bounds[0] or ()] if node.attributes.get_int("axis", 0) % rank == axis else None
    if node.op_type != "Slice":
        return None
    starts, ends, *rest = [b for b in bounds if b is not None]
    where = [a % rank for a in rest[0]] if rest else list(range(len(starts)))
    if axis not in where:
        return None
    i = where.index(axis)
    return range(size)[starts[i] : ends[i] : rest[1][i] if len(rest) > 1 else 1]


def _split(node: ir.Node, known: Known) -> list[Axes | None]:
    axes = _first(node, known)
    if axes is None:
        return [None]
    at = node.attributes.get_int("axis", 0) % len(axes)
    made: list[Axes | None] = []
    start = 0
    for y in node.outputs:
        size = dims(y)[at] if len(dims(y)) == len(axes) else "?"
        if not isinstance(size, int):
            return [None]
        made.append(complete([*axes[:at], cut(axes[at], start, start + size), *axes[at + 1 :]]))
        start += size
    return made


def _concat(node: ir.Node, known: Known) -> list[Axes | None]:
    parts = [known.get(x) if x is not None else None for x in node.inputs]
    rank = len(dims(node.outputs[0]))
    at = node.attributes.get_int("axis", 0) % rank if rank else 0
    tracked = [p for p in parts if p is not None and len(p) == rank]
    if not tracked:
        return [None]
    joined = _joined([p[at] if p is not None and len(p) == rank else None for p in parts], node, at)
    around = [best([p[i] for p in tracked]) for i in range(rank)]
    return [complete([*around[:at], joined, *around[at + 1 :]])]


def _joined(parts: Sequence[Axis | None], node: ir.Node, at: int) -> Axis | None:
    """The axis along which arrays are put together: the grid's tokens stay what they are among special ones."""
    sizes = [dims(x)[at] if x is not None and len(dims(x)) > at else "?" for x in node.inputs]
    grids = [i for i, part in enumerate(parts) if part is not None and on_grid(part)]
    total = dims(node.outputs[0])[at]
    if not grids:
        return axis_of("other", total) if not any(p is not None and has_batch(p) for p in parts) else None
    roles = {factor.role for i in grids for factor in parts[i] or ()}
    if len(roles) == 1 and not roles & {"tokens", "batch"}:  # rolled, or padded
        return axis_of(roles.pop(), total)
    tokens = tokens_of(parts[grids[0]] or ()) if len(grids) == 1 else None
    before, after = sizes[: grids[0]], sizes[grids[0] + 1 :]
    if tokens is None or not all(isinstance(s, int) for s in (*before, *after)):
        return None
    more = [sum(s for s in part if isinstance(s, int)) for part in (before, after)]
    return lay_out(tokens._replace(before=tokens.before + more[0], after=tokens.after + more[1]))


def _alike(node: ir.Node, known: Known) -> list[Axes | None]:
    """Elementwise, broadcast against each other: each axis from an input that knows it."""
    shape = dims(node.outputs[0]) if node.outputs else ()
    columns: list[list[Axis]] = [[] for _ in shape]
    for x in node.inputs:
        axes = known.get(x) if x is not None else None
        if axes is None:
            continue
        if len(axes) > len(shape):
            return [None]
        for column, axis in zip(columns[len(shape) - len(axes) :], axes, strict=True):
            column.extend([axis] if axis else [])
    if not any(columns):
        return [None]
    return [_chosen(columns, shape)]


def _chosen(columns: Sequence[Sequence[Axis]], shape: Dims) -> Axes | None:
    """For each axis of the result the best that an operand knows of it."""
    return complete([best(column) if column else axis_of("other", d) for column, d in zip(columns, shape, strict=True)])


def _windows(node: ir.Node, known: Known) -> list[Axes | None]:
    """Convolutions, pools, resizes: (N, C, h, w), whose rows and columns stay such."""
    axes, shape = _first(node, known), dims(node.outputs[0])
    if axes is None or len(shape) != len(axes):
        return [None]
    made: list[Axis | None] = [axes[0], axis_of("other", shape[1])]
    for axis, d in zip(axes[2:], shape[2:], strict=True):
        role = axis[0].role if len(axis) == 1 else None
        if size_of(axis) == d:
            made.append(axis)
        else:
            made.append(axis_of(role, d) if role in ("rows", "columns", "other") else None)
    return [complete(made)]


def _pad(node: ir.Node, known: Known) -> list[Axes | None]:
    axes, shape = _first(node, known), dims(node.outputs[0])
    if axes is None or len(shape) != len(axes):
        return [None]
    made: list[Axis | None] = []
    for axis, d in zip(axes, shape, strict=True):
        alone = axis[0].role if len(axis) == 1 else None
        stays = has_batch(axis) or size_of(axis) == d
        made.append(axis if stays else axis_of(alone, d) if alone in ("rows", "columns", "other") else None)
    return [complete(made)]


def _reduce(node: ir.Node, known: Known) -> list[Axes | None]:
    axes = _first(node, known)
    given = node.attributes.get_ints("axes", None)
    at = list(given) if given is not None else _ints(node.inputs[1]) if len(node.inputs) > 1 else None
    if node.op_type in ("ArgMax", "ArgMin"):
        at = [node.attributes.get_int("axis", 0)]
    if axes is None or at is None:
        return [None]
    gone = {a % len(axes) for a in at}
    if node.attributes.get_int("keepdims", 1):
        return [tuple(() if i in gone else axis for i, axis in enumerate(axes))]
    return [tuple(axis for i, axis in enumerate(axes) if i not in gone)]


def _matmul(node: ir.Node, known: Known) -> list[Axes | None]:
    a, b = (known.get(x) if x is not None else None for x in node.inputs[:2])
    shape = dims(node.outputs[0])
    if (a is None and b is None) or len(shape) < 2 or any(axes is not None and len(axes) < 2 for axes in (a, b)):
        return [None]
    columns: list[list[Axis]] = [[] for _ in shape]
    for axes in (a, b):
        lead = axes[:-2] if axes is not None else ()
        for column, axis in zip(columns[len(shape) - 2 - len(lead) :], lead, strict=False):
            column.extend([axis] if axis else [])
    columns[-2] = [a[-2]] if a is not None else []
    columns[-1] = [b[-1]] if b is not None else []
    return [_chosen(columns, shape)]


def _gemm(node: ir.Node, known: Known) -> list[Axes | None]:
    a, shape = _first(node, known), dims(node.outputs[0])
    if a is None or len(a) != 2 or len(shape) != 2:
        return [None]
    return [complete([a[1 if node.attributes.get_int("transA", 0) else 0], axis_of("other", shape[1])])]


def _einsum(node: ir.Node, known: Known) -> list[Axes | None]:
    written, shape = terms(node), dims(node.outputs[0])
    if written is None or len(written[1]) != len(shape):
        return [None]
    found: dict[str, list[Axis]] = {}
    for x, term in zip(node.inputs, written[0], strict=True):
        axes = known.get(x) if x is not None else None
        if axes is not None and len(axes) == len(term):
            for index, axis in zip(term, axes, strict=True):
                found.setdefault(index, []).append(axis)
    if not found:
        return [None]
    return [_chosen([found.get(i, []) for i in written[1]], shape)]


def terms(node: ir.Node) -> tuple[list[str], str] | None:
    """The indices of each operand and of the result of an Einsum that is written with plain letters."""
    left, arrow, right = node.attributes.get_string("equation", "").replace(" ", "").partition("->")
    return (left.split(","), right) if arrow and "." not in left else None


def _attention(node: ir.Node, known: Known) -> list[Axes | None]:
    """Fused: as the queries, but for the channels."""
    q, shape = _first(node, known), dims(node.outputs[0])
    if q is None or len(q) != len(shape):
        return [None]
    return [complete([*q[:-1], axis_of("other", shape[-1])])]


def _unfollowed(node: ir.Node, known: Known) -> list[Axes | None]:
    return [None]


def _first(node: ir.Node, known: Known) -> Axes | None:
    x = node.inputs[0] if node.inputs else None
    return known.get(x) if x is not None else None


def _ints(x: ir.Value | None) -> list[int] | None:
    if x is None or x.dtype not in (ir.DataType.INT64, ir.DataType.INT32):
        return None
    array = constant_of(x)
    return [int(v) for v in array.reshape(-1)] if array is not None else None


_RULES: dict[str, Callable[[ir.Node, Known], list[Axes | None]]] = {
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    "Transpose": _transpose,
    "Slice": _slice,
    "Gather": _gather,
    "Split": _split,
    "Concat": _concat,
    "Pad": _pad,
    **dict.fromkeys(("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool", "Resize"), _windows),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "DepthToSpace", "SpaceToDepth", "QLinearConv"), _windows),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL2"), _reduce),
    **dict.fromkeys(("ArgMax", "ArgMin", "ReduceL1", "ReduceLogSumExp", "ReduceSumSquare"), _reduce),
    **dict.fromkeys(("MatMul", "MatMulInteger"), _matmul),
    "Gemm": _gemm,
    "Einsum": _einsum,
    **dict.fromkeys(("Attention", "MultiHeadAttention"), _attention),
    **dict.fromkeys(("FusedMatMul", "QLinearMatMul", "TopK", "GatherElements", "GatherND", "If", "Loop"), _unfollowed),
}
