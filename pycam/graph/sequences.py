"""Sequences and optionals normalised away: exporters write them where a model takes a list apart, or joins one.

    SplitToSequence → SequenceAt           Split, Gather or Slice
    SequenceConstruct, SequenceInsert … → ConcatFromSequence, SequenceAt       Concat, the element itself
    a Loop that appends to a list → ConcatFromSequence                         a scan output of the Loop
    Optional → OptionalGetElement, OptionalHasElement                          the element itself, a constant

What cannot be followed at compile time stays as it is, and is refused where a gradient would have to go through it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .branches import inner_graphs
from .builder import Builder, constant_of
from .shapes import subgraphs


@dataclass(frozen=True)
class Items:
    """A sequence whose elements are known one by one; as an optional: one of them, or none."""

    values: list[ir.Value]

    def at(self, g: Builder, index: ir.Value) -> ir.Value | None:
        known = constant_of(index)
        if known is not None:
            i = int(known.reshape(()))
            return self.values[i] if -len(self.values) <= i < len(self.values) else None
        shapes = [x.shape for x in self.values]
        alike = all(s is not None and s.is_static() and s == shapes[0] for s in shapes)
        return g.Gather(self.joined(g, 0, new=True), index, axis=0) if alike and shapes else None

    def joined(self, g: Builder, axis: int, *, new: bool) -> ir.Value | None:
        parts = [g.Unsqueeze(x, [axis]) for x in self.values] if new else self.values
        return g.Concat(*parts, axis=axis) if parts else None

    def length(self, g: Builder) -> ir.Value | None:
        return g.constant(np.int64(len(self.values)))


@dataclass(frozen=True)
class Slices:
    """A sequence of all slices of `x` along `axis`, each of size 1 there (`keep`), or without that axis."""

    x: ir.Value
    axis: int
    keep: bool

    def at(self, g: Builder, index: ir.Value) -> ir.Value | None:
        return g.Gather(self.x, g.Reshape(index, [1] if self.keep else g.constant([])), axis=self.axis)

    def joined(self, g: Builder, axis: int, *, new: bool) -> ir.Value | None:
        rank = len(self.x.shape) if self.x.shape is not None else None
        if self.keep:
            return self.x if not new and (axis == self.axis or (rank and axis % rank == self.axis % rank)) else None
        if new:
            if axis == self.axis:
                return self.x
            return _moved(g, self.x, self.axis % rank, axis % rank) if rank else None
        if not rank:
            return None
        axis %= rank - 1  # (T, …, d, …) → (…, T, d, …) → (…, T·d, …)
        moved = _moved(g, self.x, self.axis % rank, axis)
        front, behind = g.Shape(moved, start=0, end=axis), g.Shape(moved, start=axis + 2)
        return g.Reshape(moved, g.Concat(front, [-1], behind, axis=0))

    def length(self, g: Builder) -> ir.Value | None:
        rank = len(self.x.shape) if self.x.shape is not None else None
        if self.axis < 0 and rank is None:
            return None
        axis = self.axis % rank if rank else self.axis
        return g.Squeeze(g.Shape(self.x, start=axis, end=axis + 1), [0])


Known = Items | Slices


def _moved(g: Builder, x: ir.Value, source: int, target: int) -> ir.Value:
    rank = len(x.shape or ())
    perm = [a for a in range(rank) if a != source]
    perm.insert(target, source)
    return g.Transpose(x, perm=perm)


def resolve_sequences(model: ir.Model) -> bool:
    """Rewrite what can be followed; whether there was anything."""
    if not any(node.op_type in _OPS and node.domain == "" for node in model.graph.all_nodes()):
        return False
    resolver = _Resolver(Builder(model.graph, prefix="sequence"))
    resolver.walk(model.graph)
    for graph in (model.graph, *inner_graphs(model.graph)):
        for node in reversed(graph):
            if node.op_type in _OPS and not any(y.uses() or y.is_graph_output() for y in node.outputs):
                graph.remove(node, safe=True)
    return resolver.changed


class _Resolver:
    """Follows the sequences through a graph and its subgraphs, in the order of computation."""

    def __init__(self, g: Builder) -> None:
        self.g = g
        self.known: dict[ir.Value, Known] = {}
        self.changed = False

    def walk(self, graph: ir.Graph) -> None:
        for node in list(graph):
            if node.domain != "":
                continue
            if node.op_type in _OPS:
                self._resolve(node)
            elif node.op_type == "Identity" and node.inputs[0] in self.known:
                self.known[node.outputs[0]] = self.known[node.inputs[0]]
            if node.op_type == "Loop":
                node = self._stacked(node)
            for body in subgraphs(node):
                self.walk(body)

    def _resolve(self, node: ir.Node) -> None:
        graph = node.graph
        assert isinstance(graph, ir.Graph)
        g = self.g.nested(graph)
        last = next(iter(reversed(graph)))
        found = _OPS[node.op_type](g, node, self.known)
        made = []
        for new in reversed(graph):
            if new is last:
                break
            made.append(new)
        if isinstance(found, (Items, Slices)):
            self.known[node.outputs[0]] = found
        for new in reversed(made):
            graph.remove(new)
            graph.insert_before(node, new)
        if isinstance(found, ir.Value):
            self._replace(node, found, fresh=bool(made) and found.producer() in made)

    def _replace(self, node: ir.Node, value: ir.Value, *, fresh: bool) -> None:
        y, graph = node.outputs[0], node.graph
        assert isinstance(graph, ir.Graph)
        self.changed = True
        if y.is_graph_output() and not fresh:
            node.op_type = "Identity"  # nobody else is to lose the name
            node.attributes.clear()
            node.resize_inputs(1)
            node.replace_input_with(0, value)
            return
        if fresh:
            y.name, value.name = f"{y.name}/sequence", y.name
        else:
            value.meta["dropped"] = [*value.meta.get("dropped", ()), *y.meta.get("dropped", ()), node]
        y.replace_all_uses_with(value, replace_graph_outputs=True)
        graph.remove(node, safe=True)

    def _stacked(self, loop: ir.Node) -> ir.Node:
        """`loop` with a scan output for every list that begins empty, and to which each step appends one element."""
        body = loop.attributes["body"].as_graph()
        for k in reversed(range(2, len(loop.inputs))):
            start = loop.inputs[k]
            if start is None or self.known.get(start) != Items([]):
                continue
            insert = _appended(body.inputs[k], body.outputs[k - 1])
            if insert is not None and _alike(insert.inputs[1], loop.outputs[k - 2]):
                loop = self._stack(loop, k, insert)
        return loop

    def _stack(self, loop: ir.Node, k: int, insert: ir.Node) -> ir.Node:
        """The same Loop without its carried input `k`: the element of `insert` is a scan output, and the list is that
        one split."""
        graph, body, element = loop.graph, loop.attributes["body"].as_graph(), insert.inputs[1]
        assert isinstance(graph, ir.Graph) and element is not None
        identity = ir.Node("", "Identity", [element], name=self.g.fresh("stack"))
        identity.outputs[0].name, identity.outputs[0].type = identity.name, element.type
        identity.outputs[0].shape = element.shape
        body.append(identity)
        body.outputs.pop(k - 1)
        body.outputs.append(identity.outputs[0])
        for node in reversed(body):
            if node.op_type in ("SequenceInsert", "Identity") and not any(
                y.uses() or y.is_graph_output() for y in node.outputs
            ):
                body.remove(node, safe=True)
        body.inputs.pop(k)
        attribute = loop.attributes.pop("body")
        inputs = [x for i, x in enumerate(loop.inputs) if i != k]
        new = ir.Node("", "Loop", inputs, [attribute], num_outputs=len(loop.outputs), name=loop.name)
        stack = new.outputs[-1]
        split = ir.Node("", "SplitToSequence", [stack], [ir.AttrInt64("axis", 0), ir.AttrInt64("keepdims", 0)])
        split.name, stack.name, stack.type = self.g.fresh("split"), self.g.fresh("stack"), element.type
        if element.shape is not None:
            stack.shape = ir.Shape([None, *element.shape])
        graph.insert_before(loop, [new, split])
        old = list(loop.outputs)
        for a, b in zip([old.pop(k - 2), *old], [split.outputs[0], *new.outputs[:-1]], strict=True):
            b.name, b.type, b.shape, a.name = a.name, a.type, a.shape, f"{a.name}/list"
            a.replace_all_uses_with(b, replace_graph_outputs=True)
        graph.remove(loop, safe=True)
        self.known[split.outputs[0]] = Slices(stack, 0, keep=False)
        self.changed = True
        return new


def _appended(before: ir.Value, after: ir.Value) -> ir.Node | None:
    """The node that makes `after` by appending to `before`, if that is all that happens to it."""
    node = after.producer()
    while node is not None and node.op_type == "Identity" and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is None or node.op_type != "SequenceInsert" or node.inputs[0] is not before:
        return None
    at_the_end = len(node.inputs) < 3 or node.inputs[2] is None
    return node if at_the_end and [u.node for u in before.uses()] == [node] else None


def _alike(element: ir.Value | None, whole: ir.Value) -> bool:
    """Whether all elements have the same shape: it is known, or they are stacked."""
    if all(u.node.op_type == "ConcatFromSequence" and u.node.attributes.get_int("new_axis", 0) for u in whole.uses()):
        return True
    shape = element.shape if element is not None else None
    return shape is not None and all(isinstance(d, int) or _named(d) for d in shape)


def _named(dim: ir.SymbolicDim) -> bool:
    return dim.value is not None and not dim.value.startswith("unk__")


# ── the ops: what is known of a node's result, a value that takes its place, or None ──────────────────────────────────

Found = Items | Slices | ir.Value | None
_Known = dict[ir.Value, Known]


def _of(node: ir.Node, known: _Known, i: int = 0) -> Known | None:
    x = node.inputs[i] if i < len(node.inputs) else None
    return known.get(x) if x is not None else None


def _given(node: ir.Node, i: int) -> ir.Value | None:
    return node.inputs[i] if i < len(node.inputs) else None


def _construct(g: Builder, node: ir.Node, known: _Known) -> Found:
    return Items([x for x in node.inputs if x is not None])


def _position(node: ir.Node, i: int, missing: int) -> int | None:
    """The position that input `i` names; `missing` where it is left out, None where it is unknown."""
    if _given(node, i) is None:
        return missing
    at = constant_of(node.inputs[i])
    return int(at.reshape(())) if at is not None else None


def _insert(g: Builder, node: ir.Node, known: _Known) -> Found:
    items, x = _of(node, known), node.inputs[1]
    if not isinstance(items, Items) or x is None:
        return None
    at, values = _position(node, 2, len(items.values)), list(items.values)
    if at is None:
        return None
    values.insert(at, x)
    return Items(values)


def _erase(g: Builder, node: ir.Node, known: _Known) -> Found:
    items, at = _of(node, known), _position(node, 1, -1)
    if not isinstance(items, Items) or at is None:
        return None
    values = list(items.values)
    del values[at]
    return Items(values)


def _split(g: Builder, node: ir.Node, known: _Known) -> Found:
    x, axis = node.inputs[0], node.attributes.get_int("axis", 0)
    assert x is not None
    if _given(node, 1) is None:
        return Slices(x, axis, keep=bool(node.attributes.get_int("keepdims", 1)))
    sizes = constant_of(node.inputs[1])
    if sizes is None:
        return None
    if sizes.ndim == 0:
        whole = x.shape[axis] if x.shape is not None else None
        if not isinstance(whole, int):
            return None
        size = int(sizes)
        sizes = np.array([min(size, whole - start) for start in range(0, whole, size)])
    if sizes.size == 1:
        return Items([x])
    return Items(list(g.emit("Split", [x, g.constant(sizes)], {"axis": axis}, outputs=sizes.size)))


def _at(g: Builder, node: ir.Node, known: _Known) -> Found:
    sequence, index = _of(node, known), node.inputs[1]
    return sequence.at(g, index) if sequence is not None and index is not None else None


def _length(g: Builder, node: ir.Node, known: _Known) -> Found:
    sequence = _of(node, known)
    return sequence.length(g) if sequence is not None else None


def _concat(g: Builder, node: ir.Node, known: _Known) -> Found:
    sequence = _of(node, known)
    axis, new = node.attributes.get_int("axis", 0), bool(node.attributes.get_int("new_axis", 0))
    return sequence.joined(g, axis, new=new) if sequence is not None else None


def _optional(g: Builder, node: ir.Node, known: _Known) -> Found:
    return Items([x for x in node.inputs if x is not None])


def _is_optional(x: ir.Value) -> bool:
    return isinstance(x.type, ir.OptionalType)


def _element(g: Builder, node: ir.Node, known: _Known) -> Found:
    x, optional = node.inputs[0], _of(node, known)
    if x is not None and isinstance(x.type, ir.TensorType):  # not an optional at all
        return x
    if not isinstance(optional, Items) or len(optional.values) != 1 or (x is not None and not _is_optional(x)):
        return None
    inner = optional.values[0]
    return known.get(inner, inner)


def _has_element(g: Builder, node: ir.Node, known: _Known) -> Found:
    x, optional = _given(node, 0), _of(node, known)
    if x is None or isinstance(x.type, ir.TensorType):
        return g.constant(np.array(x is not None))
    return g.constant(np.array(bool(optional.values))) if isinstance(optional, Items) and _is_optional(x) else None


_OPS: dict[str, Callable[[Builder, ir.Node, _Known], Found]] = {
    "SequenceEmpty": _construct,
    "SequenceConstruct": _construct,
    "SequenceInsert": _insert,
    "SequenceErase": _erase,
    "SplitToSequence": _split,
    "SequenceAt": _at,
    "SequenceLength": _length,
    "ConcatFromSequence": _concat,
    "Optional": _optional,
    "OptionalGetElement": _element,
    "OptionalHasElement": _has_element,
}
