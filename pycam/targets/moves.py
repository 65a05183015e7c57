"""Step behind a sigmoid or softmax whose values are moved about after it: reshaped, transposed, cut, put together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import onnx_ir as ir

from pycam.graph.axes import dims
from pycam.graph.builder import Builder

ACTIVATIONS = ("Sigmoid", "Softmax")
MOVES = ("Identity", "Reshape", "Transpose", "Slice", "Split", "Squeeze", "Unsqueeze", "Flatten", "Concat")
"""Ops that give numbers of their inputs unchanged."""


class Behind(NamedTuple):
    """Values before their activation."""

    value: ir.Value
    """As they are laid out behind it."""
    sources: tuple[ir.Value, ...]
    """The activation's inputs."""
    activation: str
    """The op."""


def step_behind(g: Builder, value: ir.Value, axis: int, first: int = 0) -> Behind | None:
    """`value` with logits in place of probabilities from index `first` on along `axis`; what lies before `first` may be
    anything.  None unless all of them come from one kind of activation, moved about.

    The moves are made once more, on the logits.
    """
    found = _sources(value, axis, first)
    if not found:
        return None
    ops = {node.op_type for y in found if (node := y.producer()) is not None}
    if len(ops) != 1:
        return None
    return Behind(_moved(g, value, found, {}), tuple(found.values()), ops.pop())


def _sources(value: ir.Value, axis: int | None, first: int) -> dict[ir.Value, ir.Value] | None:
    """Activation's output → its input for what `value` holds from `first` on along `axis` (None: all of it)."""
    node = value.producer()
    if node is None or node.domain != "":
        return None
    source = node.inputs[0]
    if source is None:
        return None
    if node.op_type in ACTIVATIONS:
        return {value: source}
    if node.op_type not in MOVES:
        return None
    if node.op_type != "Concat":
        axis = _axis_before(node, source, axis)
        return _sources(source, axis, first if axis is not None else 0)
    along = node.attributes["axis"].as_int() % len(dims(value))
    found: dict[ir.Value, ir.Value] = {}
    for part in node.inputs:
        size = dims(part)[along] if part is not None and dims(part) else "?"
        if part is None or (axis == along and first > 0 and not isinstance(size, int)):
            return None
        if axis == along and isinstance(size, int) and first >= size:
            first -= size  # wholly before
            continue
        inner = _sources(part, axis, first)
        if inner is None:
            return None
        found |= inner
        if axis == along:
            first = 0
    return found


def _axis_before(node: ir.Node, source: ir.Value, axis: int | None) -> int | None:
    """Where an axis of a move's output lies in its input; None if that cannot be told."""
    before, after = dims(source), dims(node.outputs[0])
    if axis is None or not before or not after:
        return None
    if node.op_type == "Identity":
        return axis
    if node.op_type == "Transpose":
        perm = node.attributes["perm"].as_ints() if "perm" in node.attributes else range(len(before))[::-1]
        return int(perm[axis])
    if node.op_type == "Reshape" and axis == len(after) - 1 and before[-1] == after[-1]:
        return len(before) - 1
    if node.op_type == "Reshape" and axis == 1 and before[:2] == after[:2]:
        return 1
    return None


def _moved(
    g: Builder, value: ir.Value, sources: Mapping[ir.Value, ir.Value], made: dict[ir.Value, ir.Value]
) -> ir.Value:
    """`value`, computed from what stands in place of the sources."""
    if value in sources:
        return sources[value]
    node = value.producer()
    if value in made or node is None or node.domain != "" or node.op_type not in MOVES:
        return made.get(value, value)
    moving = node.inputs if node.op_type == "Concat" else node.inputs[:1]
    new = [_moved(g, x, sources, made) if x is not None else None for x in moving]
    if all(x is y for x, y in zip(moving, new, strict=True)):
        return value
    attributes = {name: _value(a) for name, a in node.attributes.items()}
    outputs = g.emit(node.op_type, [*new, *node.inputs[len(new) :]], attributes, outputs=len(node.outputs))
    for old, y in zip(node.outputs, outputs, strict=True):
        if y.shape is None:
            y.shape = old.shape
        made[old] = y
    return made[value]


def _value(attribute: ir.Attr) -> object:
    value = attribute.value
    return list(value) if isinstance(value, (list, tuple)) else value
