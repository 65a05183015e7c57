"""Shapes of emitted nodes, by onnx's own inference: for nodes that are themselves differentiated."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import onnx
import onnx_ir as ir

UNKNOWN = "unk__"
"""How onnx's inference begins the names that it makes up for sizes; they mean nothing beyond one run of it."""
_SMALL = 256
"""Numbers up to which a constant may be a shape, an axis list or the like, which inference must see."""


def reads(node: ir.Node) -> Iterator[ir.Value]:
    """The values that a node reads: its inputs, and what its subgraphs take from around them; each once."""
    yield from dict.fromkeys(_reads(node))


def _reads(node: ir.Node) -> Iterator[ir.Value]:
    yield from (x for x in node.inputs if x is not None)
    for body in subgraphs(node):
        inside = {*body.inputs, *(y for n in body for y in n.outputs), *body.initializers.values()}
        yield from (x for n in body for x in _reads(n) if x not in inside)
        yield from (y for y in body.outputs if y not in inside)


def subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs that are attributes of `node`."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def infer(nodes: Sequence[ir.Node], opsets: Mapping[str, int], fresh: str) -> None:
    """Give the outputs of `nodes` (in order of computation) their types and shapes, as far as these can be known.

    Args:
        nodes: What they read besides each other has its type and shape.
        opsets: Domain → version.
        fresh: Begins the names of unknown sizes, which must not be taken for those of other calls.
    """
    made = {y.name: y for node in nodes for y in node.outputs}
    graph = onnx.GraphProto(name="shapes")
    outer = dict.fromkeys(x for node in nodes for x in reads(node) if x.name not in made)
    for x in outer:
        if x.const_value is not None and x.const_value.size <= _SMALL:
            tensor = ir.to_proto(x.const_value)
            tensor.name = x.name or ""
            graph.initializer.append(tensor)
        elif x.type is not None:
            graph.input.append(ir.to_proto(x))
    graph.node.extend(ir.to_proto(node) for node in nodes)
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    proto = onnx.helper.make_model(graph, opset_imports=imports, ir_version=10)
    lend_constants(proto.graph)
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    for info in inferred.graph.value_info:
        value, kind = made.get(info.name), info.type.tensor_type
        if value is None or not kind.elem_type:
            continue
        value.type = ir.TensorType(ir.DataType(kind.elem_type))
        if kind.HasField("shape"):
            value.shape = ir.Shape([_dim(d, fresh) for d in kind.shape.dim])


def appended(graph: ir.Graph, before: int) -> list[ir.Node]:
    """The nodes of a graph that came after it had `before` of them."""
    return list(itertools.islice(reversed(graph), len(graph) - before))[::-1]


def lend_constants(graph: onnx.GraphProto) -> None:
    """Give subgraphs copies of the small constants of `graph` that they read: inference does not look around them."""
    _lend(graph, {t.name: t for t in graph.initializer if _count(t) <= _SMALL}, inner=False)


def _lend(graph: onnx.GraphProto, known: Mapping[str, onnx.TensorProto], *, inner: bool) -> None:
    if inner:
        read = dict.fromkeys(x for node in graph.node for x in node.input)
        graph.initializer.extend(known[x] for x in read if x in known)
    for body in bodies(graph):
        _lend(body, known, inner=True)


def take_back_constants(graph: onnx.GraphProto) -> None:
    """Undo `lend_constants`."""
    lent = {t.name for t in graph.initializer}
    for body in bodies(graph):
        _drop_initializers(body, lent)


def _drop_initializers(graph: onnx.GraphProto, names: set[str]) -> None:
    own = [t for t in graph.initializer if t.name not in names]
    del graph.initializer[:]
    graph.initializer.extend(own)
    for body in bodies(graph):
        _drop_initializers(body, names)


def all_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph, the subgraphs of its nodes, theirs, …"""
    yield graph
    for body in bodies(graph):
        yield from all_graphs(body)


def bodies(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield attribute.g
            yield from attribute.graphs


def _count(tensor: onnx.TensorProto) -> int:
    return math.prod(tensor.dims)


def _dim(dim: onnx.TensorShapeProto.Dimension, fresh: str) -> int | str | None:
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    name = str(dim.dim_param)
    return (f"{fresh}{name}" if name.startswith(UNKNOWN) else name) or None
