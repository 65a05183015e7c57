"""What depends on what."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import onnx_ir as ir

from .shapes import reads

OF_SHAPE = ("Shape", "Size")
"""Ops that read no number of their input."""

HELD = "held"

IMAGE = "image"
"""Key of the layout that the image input remembers: see `pixels.image_input`."""


def hold(value: ir.Value) -> None:
    """Let no gradient flow through `value`, as if it were a constant; copies of it as well."""
    value.meta[HELD] = True


def is_held(value: ir.Value) -> bool:
    """Whether no gradient is to flow through `value`."""
    return HELD in value.meta


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


def batched_inputs(inputs: Iterable[ir.Value]) -> list[ir.Value]:
    """The inputs whose first axis is that of the image's batch; the others are settings, the same for all images.

    A setting has no axes, or a first one of a fixed size that the batch has not; a row of one number, too, is one
    beside a batch of one.  The image is the input that remembers its layout, else the first of rank 4.
    """
    every = list(inputs)
    images = [v for v in every if v.shape is not None and (IMAGE in v.meta or len(v.shape) == 4)]
    image = next((v for v in images if IMAGE in v.meta), images[0] if images else None)
    if image is None or image.shape is None:
        return every
    batch = image.shape[0]

    def follows(v: ir.Value) -> bool:
        if v.shape is None:
            return True
        if not len(v.shape):
            return False
        first = v.shape[0]
        return not isinstance(first, int) or (first == batch and (len(v.shape) > 1 or first != 1))

    return [v for v in every if follows(v)]


def batched_values(inputs: Iterable[ir.Value], nodes: Sequence[ir.Node]) -> frozenset[ir.Value]:
    """The values with a batch axis: those computed from the inputs, but not from shapes alone."""
    batched = set(inputs)
    for node in nodes:
        if node.op_type not in OF_SHAPE and any(x in batched for x in reads(node)):
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
        if node is None or node in seen or node.op_type in OF_SHAPE:
            continue
        seen.add(node)
        waiting += reads(node)
    return False
