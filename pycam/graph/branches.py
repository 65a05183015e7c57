"""Subgraphs in normal form: what they know is lifted out of them, and an `If` whose condition is known is its branch.

No subgraph keeps constants of its own, every output of one is made by a node inside, and all names differ: so nodes can
be moved out of, and copied into, a subgraph as they are.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes

from .builder import constant_of
from .depend import IMAGE, OF_SHAPE
from .shapes import reads, subgraphs


def open_subgraphs(model: ir.Model, renamed: dict[str, str]) -> bool:
    """Lift constants and initialisers into the main graph, and give every value and node a name of its own.

    Args:
        model: Is changed.
        renamed: Takes the names that were changed: new → old.

    Returns:
        Whether subgraphs may know more now than before.
    """
    bodies = list(inner_graphs(model.graph))
    constants = len(model.graph.initializers)
    for body in bodies:
        for i, y in enumerate(body.outputs):
            made = y.producer()
            if made is None or made.graph is not body or made.op_type == "Constant" or y in list(body.outputs)[:i]:
                identity = ir.Node("", "Identity", [y])
                identity.outputs[0].name, identity.outputs[0].type, identity.outputs[0].shape = y.name, y.type, y.shape
                body.append(identity)
                body.outputs[i] = identity.outputs[0]
    _name_apart(model.graph, renamed)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.LiftSubgraphInitializersToMainGraphPass()(model)
    return bool(bodies) and len(model.graph.initializers) > constants


def inner_graphs(graph: ir.Graph) -> Iterator[ir.Graph]:
    """The subgraphs of a graph's nodes, and theirs, outer ones first."""
    for node in graph:
        for body in subgraphs(node):
            yield body
            yield from inner_graphs(body)


def branching(graph: ir.Graph) -> str:
    """What would help where features lie within branches; "" if the model has none that depend on inputs."""
    conditions = [node.inputs[0] for node in graph if node.op_type == "If" and node.domain == ""]
    behind = {x for x in conditions if x is not None}
    for node in reversed(list(graph)):
        if not behind.isdisjoint(node.outputs) and node.op_type not in OF_SHAPE:
            behind.update(reads(node))
    names = [x.name or "" for x in graph.inputs if x in behind and IMAGE not in x.meta]
    if not names:
        return ""
    return (
        f"; the model branches (If) on its input {' and '.join(map(repr, names))}, and what lies within a branch is no "
        f"layer: if that is a setting, pin it, as in pins={{{names[0]!r}: …}}"
    )


def _name_apart(graph: ir.Graph, renamed: dict[str, str]) -> None:
    """Rename what a subgraph calls as its surroundings, or another subgraph, call something else."""
    values = {*graph.initializers, *(x.name for x in graph.inputs), *(y.name for n in graph for y in n.outputs)}
    nodes = {n.name for n in graph}
    for body in inner_graphs(graph):
        inside = [*body.inputs, *body.initializers.values(), *(y for n in body for y in n.outputs if y.name != "")]
        for x in inside:
            old, x.name = x.name, _free(x.name, values)
            if old and x.name != old:
                renamed[x.name] = renamed.get(old, old)
        for node in body:
            node.name = _free(node.name, nodes) if node.name else node.name


def _free(name: str | None, taken: set[str | None]) -> str:
    base = name or "inner"
    result, k = base, 0
    while result in taken:
        k += 1
        result = f"{base}/{k}"
    taken.add(result)
    return result


def fold_ifs(model: ir.Model, renamed: dict[str, str]) -> bool:
    """Put the branch in the place of every `If` whose condition is known; whether there was one.

    A value of the branch gets its old name back (see `open_subgraphs`), where nobody else has it.
    """
    folded = False
    for node in list(model.graph.all_nodes()):
        if node.op_type != "If" or node.domain != "" or not node.inputs:  # without inputs: in a branch not taken
            continue
        condition = constant_of(node.inputs[0])
        if condition is None:
            continue
        _inline(node, node.attributes["then_branch" if condition.reshape(()) else "else_branch"].as_graph())
        folded = True
    if folded:
        taken = {x.name for graph in (model.graph, *inner_graphs(model.graph)) for x in _own(graph)}
        for node in model.graph.all_nodes():
            for y in node.outputs:
                old = renamed.get(y.name or "")
                if old is not None and old not in taken:
                    taken.add(old)
                    y.name = old
    return folded


def _own(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *graph.initializers.values(), *(y for node in graph for y in node.outputs)]


def _inline(node: ir.Node, branch: ir.Graph) -> None:
    parent = node.graph
    assert isinstance(parent, ir.Graph)
    outputs = list(branch.outputs)
    branch.outputs.clear()
    for inner in list(branch):
        branch.remove(inner)
        parent.insert_before(node, inner)
    for y, value in zip(node.outputs, outputs, strict=True):
        name, value.name = y.name, y.name  # the name that the rest of the model knows
        y.name = f"{name}/folded"
        value.shape = value.shape or y.shape
        value.type = value.type or y.type
        y.replace_all_uses_with(value, replace_graph_outputs=True)
    parent.remove(node, safe=True)
    for body in subgraphs(node):  # the other branch: nobody is to count what it reads
        for inner in reversed(list(body.all_nodes())):
            inner.resize_inputs(0)


def forget_shapes(graph: onnx.GraphProto) -> None:
    """Remove what was inferred for the values of subgraphs, so that it is inferred anew."""
    for node in graph.node:
        for attribute in node.attribute:
            for body in [attribute.g, *attribute.graphs]:
                del body.value_info[:]
                forget_shapes(body)
