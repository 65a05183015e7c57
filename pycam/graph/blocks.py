"""The residual stream of a transformer: what each of its blocks gives to the next."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from pycam.errors import MethodError

from .attention import Attention
from .axes import dims
from .depend import depending
from .locate import narrows, path_values


def block_outputs(graph: ir.Graph, maps: Sequence[Attention], score: ir.Value) -> list[ir.Value]:
    """For each attention the last residual sum (N, T, C) that all leads through before the next attention: what its
    block gives; for the last one, what the head reads.

    Raises:
        MethodError: there is none behind some attention.
    """
    nodes = list(graph)
    position = {y: i for i, node in enumerate(nodes) for y in node.outputs}
    tokens = maps[0].queries.total if maps[0].queries is not None else None
    stream = [
        y
        for y in sorted(narrows(graph, path_values(graph, score)), key=lambda y: position.get(y, -1))
        if _is_sum(y) and len(dims(y)) == 3 and dims(y)[1] == tokens
    ]
    found = []
    for i, attention in enumerate(maps):
        behind = depending(nodes, [attention.value])
        later = depending(nodes, [maps[i + 1].value]) if i + 1 < len(maps) else set()
        between = [y for y in stream if y in behind and y not in later]
        if not between:
            raise MethodError(
                f"behind the attention {attention.name!r} no residual sum of tokens was found that all leads through: "
                "choose a method that does not look at blocks, for instance 'chefer'"
            )
        found.append(between[-1])
    return found


def _is_sum(value: ir.Value) -> bool:
    """Whether two computed values were added."""
    node = value.producer()
    return (
        node is not None and node.op_type == "Add" and all(x is not None and x.const_value is None for x in node.inputs)
    )
