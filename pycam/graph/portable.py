"""What some runtimes get wrong in a whole graph, not in one node, spelt otherwise: for `lower="portable"` alone."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import onnx_ir as ir

from .builder import PREFIX, Builder

_FACTORS = {"MatMul": (0, 1), "Gemm": (0, 1), "Conv": (1,), "ConvTranspose": (1,)}
"""Which inputs of a product may be weights."""


def spell_portably(graph: ir.Graph) -> None:
    """Rewrite `graph`, forward nodes included: its values stay the same, and their names too."""
    g = Builder(graph, prefix=f"{PREFIX}/portable")
    for node in list(graph.all_nodes()):
        if node.op_type == "HardSigmoid" and node.domain == "":
            _spell_hard_sigmoid(g, node)
    _separate_weights(g, graph)


def _spell_hard_sigmoid(g: Builder, node: ir.Node) -> None:
    """`clip(α·x + β, 0, 1)`: OpenCV (5.0) takes the product of a HardSigmoid with anything for a HardSwish."""
    x, owner = node.inputs[0], node.graph
    if x is None or x.dtype is None or owner is None:
        return
    alpha, beta = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
    before = []
    for op, number in (("Mul", alpha), ("Add", beta)):
        name = g.fresh(op)
        step = ir.Node("", op, [x, g.constant(number, x.dtype)], name=name)
        x = step.outputs[0]
        x.name, x.type, x.shape = name, node.outputs[0].type, node.outputs[0].shape
        before.append(step)
    owner.insert_before(node, before)
    node.op_type = "Clip"
    node.attributes.clear()
    node.resize_inputs(3)
    for i, value in enumerate((x, g.constant(0.0, x.dtype), g.constant(1.0, x.dtype))):
        node.replace_input_with(i, value)


def _separate_weights(g: Builder, graph: ir.Graph) -> None:
    """Weights that are read both ways round, by forward and gradient, become two where both ways have one shape.

    OpenVINO (2026.4) packs weights once for each constant and shape, and takes those of `x·Wᵀ` for those of `dy·W`.
    """
    known: dict[ir.Value, dict[Hashable, ir.Value]] = {}
    for node in graph.all_nodes():
        for i in _FACTORS.get(node.op_type, ()) if node.domain == "" else ():
            weight = node.inputs[i]
            if weight is None or weight.const_value is None or not _square(weight.const_value.shape.numpy()):
                continue
            ways = known.setdefault(weight, {})
            way = _way(node, i)
            if way not in ways:
                ways[way] = g.constant(weight.const_value.numpy().copy()) if ways else weight
            node.replace_input_with(i, ways[way])


def _way(node: ir.Node, i: int) -> Hashable:
    """How a product reads its factor `i`."""
    if node.op_type in ("MatMul", "Gemm"):
        return i, node.attributes.get_int("transB" if i else "transA", 0)
    return node.op_type


def _square(sizes: Sequence[int]) -> bool:
    return len(sizes) > 1 and (sizes[0] == sizes[1] or sizes[-1] == sizes[-2])
