"""Subgraphs for the way back: copies of the forward ones, and what these write down for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from pycam.graph.builder import Builder
from pycam.graph.shapes import infer, reads, subgraphs

from .call import HALF

RANDOM = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"}
_HEAVY = {
    *("MatMul", "Gemm", "Einsum", "Conv", "ConvTranspose", "If", "Loop", "Scan", "RNN", "GRU", "LSTM", "Attention"),
    *RANDOM,  # it must not be drawn anew
}
"""What is not computed a second time on the way back, if its result can be written down."""


class Copy:
    """A copied body, open at both ends: its inputs are loose values, its outputs are yet to be named.

    Attributes:
        g: Builds in it.
        graph: The copy.
        inputs, outputs: The copies of the body's.
        captured: What it reads from around it.
        original: Value of the copy → value of the body.
    """

    def __init__(self, g: Builder, graph: ir.Graph, original: dict[ir.Value, ir.Value]) -> None:
        self.g, self.graph, self.original = g, graph, original
        self.inputs, self.outputs = list(graph.inputs), list(graph.outputs)
        graph.inputs.clear()
        graph.outputs.clear()
        inside = {*self.inputs, *(y for node in graph for y in node.outputs)}
        self.captured = {x for node in graph for x in reads(node) if x not in inside}

    def infer(self) -> None:
        """Infer types and shapes from those of the inputs."""
        infer(list(self.graph), self.g.opsets, self.g.fresh("dim"))

    def input(self, hint: str, dtype: ir.DataType | None, shape: ir.Shape | None) -> ir.Value:
        """A further value that the body may read, for the caller to add to the graph's inputs."""
        return ir.Value(
            name=self.g.fresh(hint), type=ir.TensorType(dtype or ir.DataType.FLOAT), shape=shape and shape.copy()
        )


def copy_of(g: Builder, body: ir.Graph | None) -> Copy:
    """A copy of `body` under new names (None: an empty one)."""
    if body is None:
        empty = ir.Graph([], [], nodes=[], name=g.fresh("body"))
        return Copy(g.nested(empty), empty, {})
    graph = body.clone(allow_outer_scope_values=True)
    original = dict(zip(_values(graph), _values(body), strict=True))
    _rename(g, graph)
    return Copy(g.nested(graph), graph, original)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    """The values made in a graph, without those of its subgraphs."""
    yield from graph.inputs
    for node in graph:
        yield from node.outputs


def _rename(g: Builder, graph: ir.Graph) -> None:
    graph.name = g.fresh("body")
    for x in graph.inputs:
        x.name = g.fresh("in")
    for node in graph:
        node.name = g.fresh(node.op_type)
        for i, y in enumerate(node.outputs):
            y.name = (node.name if i == 0 else f"{node.name}.{i}") if y.name else y.name
        for body in subgraphs(node):
            _rename(g, body)


def leave(copy: Copy, outputs: Sequence[ir.Value]) -> None:
    """Name the outputs of a copy, and drop what none of them needs."""
    for y in outputs:
        produced = y.producer()
        inside = produced is not None and produced.graph is copy.graph
        if not inside or y.is_graph_output():
            y = typed(copy.g.Identity(y), y.dtype, y.shape)
        copy.graph.outputs.append(y)
    prune(copy.graph)


def prune(graph: ir.Graph) -> None:
    """Remove the nodes whose outputs nobody reads."""
    for node in reversed(graph):
        if not any(y.uses() or y.is_graph_output() for y in node.outputs):
            graph.remove(node, safe=True)


def hoist(graph: ir.Graph, out: ir.Graph) -> None:
    """Move what is the same in every step out of the body `graph`, to the end of `out`."""
    inside = {*graph.inputs}
    for node in list(graph):
        fixed = not any(x in inside for x in reads(node)) and node.op_type not in RANDOM
        if fixed and not any(y.is_graph_output() for y in node.outputs):
            graph.remove(node)
            out.append(node)
        else:
            inside.update(node.outputs)


def typed(value: ir.Value, dtype: ir.DataType | None, shape: ir.Shape | None) -> ir.Value:
    """`value` with its type and shape set: nobody infers those of a node with subgraphs here."""
    value.type = ir.TensorType(dtype) if dtype is not None else None
    value.shape = shape.copy() if shape is not None else None
    return value


def gradient_type(x: ir.Value) -> ir.DataType:
    """The dtype of gradients for `x`."""
    plain = x.dtype is not None and x.dtype.is_floating_point() and x.dtype not in HALF
    return x.dtype if plain and x.dtype is not None else ir.DataType.FLOAT  # also for quantised integers


def zeros_like(g: Builder, x: ir.Value) -> ir.Value:
    """Zeros of the shape of `x`, of the dtype of gradients for it."""
    zero = g.constant(0.0, gradient_type(x))
    if x.shape is not None and x.shape.is_static():
        return g.Expand(zero, g.constant(list(x.shape.numpy())))
    return g.Expand(zero, g.Shape(x))


def store(g: Builder, node: ir.Node, body: ir.Graph, value: ir.Value) -> ir.Value:
    """`value` of the body of every step, stacked: a further output of the forward Scan or Loop `node`."""
    stored: dict[ir.Value, ir.Value] = node.meta.setdefault("pycam.stored", {})
    if value not in stored:
        stored[value] = _export(g, node, {body: value})
        if value.shape is not None:
            stored[value].shape = ir.Shape([None, *value.shape])
        for name in ("scan_output_axes", "scan_output_directions"):
            old = node.attributes.get(name)
            if old is not None:
                node.attributes.add(ir.AttrInt64s(name, [*old.as_ints(), 0]))
    return stored[value]


def save_steps(g: Builder, node: ir.Node, copy: Copy, body: ir.Graph) -> list[tuple[ir.Value, ir.Value]]:
    """Have the forward `node` write down what the reverse body would compute anew at a price, in every step.

    Returns:
        The values of `copy` that take its place, each with the stack that it is a slice of.
    """
    around = [x for x in (*node.inputs, *copy.captured) if x is not None and x.shape is not None]
    names = {d.value for x in around for d in x.shape or () if not isinstance(d, int)} - {None}
    slices = []
    for x in _costly(copy):
        # Slices can be stacked only if every step makes the same shape.
        if x.shape is not None and all(isinstance(d, int) or d.value in names for d in x.shape):
            original = copy.original[x]
            typed(original, x.dtype, x.shape)
            slices.append((copy.input("kept", x.dtype, x.shape), store(g, node, body, original)))
            x.replace_all_uses_with(slices[-1][0])
    prune(copy.graph)
    return slices


def save_branch(g: Builder, node: ir.Node, copy: Copy, body: ir.Graph, other: ir.Graph) -> None:
    """Have the forward If write down what the reverse branch would compute anew; its `other` branch gives zeros there.

    These have no positions on an axis whose size is unknown: nobody reads them.
    """
    for x in _costly(copy):
        if x.shape is None:
            continue
        original = typed(copy.original[x], x.dtype, x.shape)
        sizes = ir.tensor(np.array([d if isinstance(d, int) else 0 for d in x.shape], np.int64))
        zero = ir.tensor(np.zeros(1, x.dtype.numpy()), dtype=x.dtype)  # type: ignore[union-attr]
        shape = ir.Node("", "Constant", [], [ir.AttrTensor("value", sizes)], name=g.fresh("none"))
        zeros = ir.Node("", "ConstantOfShape", shape.outputs, [ir.AttrTensor("value", zero)], name=g.fresh("none"))
        for made in (shape, zeros):
            made.outputs[0].name = made.name
            other.append(made)
        typed(shape.outputs[0], ir.DataType.INT64, ir.Shape([len(x.shape)]))
        typed(zeros.outputs[0], x.dtype, ir.Shape(sizes.numpy().tolist()))
        kept = _export(g, node, {body: original, other: zeros.outputs[0]})
        kept.shape = ir.Shape([d if isinstance(d, int) else None for d in x.shape])
        x.replace_all_uses_with(kept)
    prune(copy.graph)


def _costly(copy: Copy) -> list[ir.Value]:
    """The values of the forward body that its way back reads, and that take more than elementwise ops to compute."""
    heavy: set[ir.Value] = set()
    for node in copy.graph:
        forward = node.outputs[0] in copy.original
        if forward and (node.op_type in _HEAVY or any(x in heavy for x in reads(node))):
            heavy.update(node.outputs)
    copied = {node for node in copy.graph if node.outputs[0] in copy.original}
    inside = {y: node for node in copy.graph for y in node.outputs}

    def read_on_the_way_back(x: ir.Value) -> bool:
        return any(inside.get(u.node.outputs[0]) not in copied for u in x.uses())

    return [
        x
        for node in copy.graph
        for x in node.outputs
        if x in heavy and x in copy.original and x.dtype is not None and not x.is_graph_output()
        if not isinstance(x.type, ir.SequenceType) and read_on_the_way_back(x)
    ]


def _export(g: Builder, node: ir.Node, made: Mapping[ir.Graph, ir.Value]) -> ir.Value:
    """A further output of `node`, to which each of its subgraphs gives a value."""
    node.resize_outputs(len(node.outputs) + 1)
    y = node.outputs[-1]
    y.name = g.fresh("kept")
    for body, value in made.items():
        name = g.fresh("kept")
        identity = ir.Node("", "Identity", [value], name=name)
        body.append(identity)
        typed(identity.outputs[0], value.dtype, value.shape).name = name
        body.outputs.append(identity.outputs[0])
        typed(y, value.dtype, None)
    return y
