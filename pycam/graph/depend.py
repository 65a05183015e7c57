"""What depends on what."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import onnx_ir as ir

from .shapes import reads

_OF_SHAPE = ("Shape", "Size")


def depending(nodes: Sequence[ir.Node], on: Iterable[ir.Value]) -> set[ir.Value]:
    """`on`, and every value that is computed from one of them; `nodes` in topological order."""
    found = set(on)
    for node in nodes:
        if any(x in found for x in reads(node)):
            found.update(node.outputs)
    return found


def needed(nodes: Sequence[ir.Node], wanted: Iterable[ir.Value], given: Collection[ir.Value] = ()) -> set[ir.Node]:
    """The nodes that compute `wanted`, up to the values `given`; `nodes` in topological order."""
    values = set(wanted)
    found: set[ir.Node] = set()
    for node in reversed(nodes):
        if any(y in values and y not in given for y in node.outputs):
            found.add(node)
            values.update(reads(node))
    return found


def batched_values(inputs: Iterable[ir.Value], nodes: Sequence[ir.Node]) -> frozenset[ir.Value]:
    """The values with a batch axis: those computed from the inputs, but not from shapes alone."""
    batched = set(inputs)
    for node in nodes:
        if node.op_type not in _OF_SHAPE and any(x in batched for x in reads(node)):
            batched.update(node.outputs)
    return frozenset(batched)


def reads_value(value: ir.Value, sources: Collection[ir.Value], besides: Collection[ir.Value] = ()) -> bool:
    """Whether `value` is computed from one of `sources` on a way that does not lead through `besides`, or a shape."""
    seen: set[ir.Node] = set()
    waiting = [value]
    while waiting:
        x = waiting.pop()
        if x in besides:
            continue
        if x in sources:
            return True
        node = x.producer()
        if node is None or node in seen or node.op_type in _OF_SHAPE:
            continue
        seen.add(node)
        waiting += reads(node)
    return False
