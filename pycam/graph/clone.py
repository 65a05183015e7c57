"""Run a part of the graph once more, on other values: its nodes are copied behind those that are there."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import onnx_ir as ir

from pycam.errors import MethodError

from .builder import Builder
from .depend import OF_SHAPE, batched_inputs, batched_values, depending, hold, is_held, needed
from .shapes import reads


def clone(
    g: Builder, given: Mapping[ir.Value, ir.Value], wanted: Sequence[ir.Value], rows: ir.Value
) -> dict[ir.Value, ir.Value]:
    """Copy what lies between some values and others, with the first ones replaced.

    Args:
        g: Builder of the graph.
        given: Value → what takes its place; the batch axis of the replacements has `rows` entries.
        wanted: What to compute from them.
        rows: int64 (1,).

    Returns:
        Value → its copy, for all that was copied or given; a wanted value that does not depend on the replaced ones is
        repeated `rows` times.

    Values of the rest of the graph that the copy reads have one row and are repeated; sizes that were computed from
    them are computed anew.
    """
    every = list(g.graph)
    wanted_nodes = needed(every, wanted, given)
    nodes = [n for n in every if n in wanted_nodes]
    moved = depending(nodes, given)
    batched = batched_values(batched_inputs(g.graph.inputs), every)
    sized = _sized(nodes, batched)
    copied = [n for n in nodes if any(y in moved or y in sized for y in n.outputs)]
    made = {y for n in copied for y in n.outputs}
    outside = list(dict.fromkeys(x for n in copied for x in reads(n) if x not in made and x not in given))
    names = {d: g.fresh("rows") for d in _symbols([*made, *given, *outside])}
    batch = {d for x in given if isinstance(d := _first(x), str)}
    names |= dict.fromkeys(batch, "variants")
    result = dict(given)
    for old, new in given.items():
        if new.shape is None and old.shape is not None:
            new.shape = _renamed(old.shape, names)
    for x in outside:
        if x in batched:
            result[x] = _repeated(g, x, rows, names, batch)
    for node in copied:
        for old, y in zip(node.outputs, _copy(g, node, result).outputs, strict=True):
            y.type = old.type
            if is_held(old):
                hold(y)
            y.shape = _renamed(old.shape, names) if old.shape is not None else None
            result[old] = y
    for y in wanted:
        if y not in result:
            result[y] = _repeated(g, y, rows, names, batch)
    return result


def _sized(nodes: Sequence[ir.Node], batched: frozenset[ir.Value]) -> set[ir.Value]:
    """The values that are computed from sizes of batched values, and constants, alone; sizes behind the batch's axis
    are the same for all rows."""
    sized: set[ir.Value] = set()
    for node in nodes:
        if node.op_type in OF_SHAPE and node.inputs[0] in batched and node.attributes.get_int("start", 0) == 0:
            sized.update(node.outputs)
            continue
        varying = [x for x in reads(node) if x.const_value is None]
        if varying and all(x in sized for x in varying):
            sized.update(node.outputs)
    return sized


def _copy(g: Builder, node: ir.Node, values: Mapping[ir.Value, ir.Value]) -> ir.Node:
    view = ir.GraphView(list(reads(node)), list(node.outputs), nodes=[node])  # subgraphs are copied with it
    copy = view.clone()
    (new,) = copy
    for old, inner in zip(reads(node), list(copy.inputs), strict=True):
        inner.replace_all_uses_with(values.get(old, old))
    copy.outputs.clear()
    copy.remove(new)
    new.name = g.fresh(node.op_type)
    for i, y in enumerate(new.outputs):
        if node.outputs[i].name:
            y.name = new.name if i == 0 else f"{new.name}.{i}"
    g.graph.append(new)
    return new


def _repeated(
    g: Builder, x: ir.Value, rows: ir.Value, names: Mapping[str, str], batch: Collection[int | str | None]
) -> ir.Value:
    rank = len(x.shape) if x.shape is not None else 0
    if rank == 0:
        return x
    if _first(x) not in batch and any(d in batch for d in _dims(x)[1:]):
        raise MethodError(
            f"what lies behind the layer also reads {x.name!r}, {_dims(x)}, whose batch axis is not the first, so it "
            "cannot be repeated for the variants: choose a layer that everything leads through, see `pycam layers`"
        )
    wide = g.Expand(x, g.Concat(rows, [1] * (rank - 1), axis=0) if rank > 1 else rows)
    assert x.shape is not None
    rest = [d if isinstance(d, int) else names.get(d.value or "", None) for d in list(x.shape)[1:]]
    wide.shape, wide.type = ir.Shape(["variants", *rest]), x.type
    return wide


def _symbols(values: Sequence[ir.Value]) -> set[str]:
    return {d.value for v in values for d in v.shape or () if not isinstance(d, int) and d.value is not None}


def _first(value: ir.Value) -> int | str | None:
    return _dims(value)[0] if value.shape else None


def _dims(value: ir.Value) -> list[int | str | None]:
    return [d if isinstance(d, int) else d.value for d in value.shape or ()]


def _renamed(shape: ir.Shape, names: Mapping[str, str]) -> ir.Shape:
    """Sizes of a copy differ from those of the original: equal names would tell the runtime otherwise."""
    return ir.Shape([d if isinstance(d, int) else names.get(d.value or "") for d in shape])
