"""Which parts of a model the rule table covers."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx_ir as ir

from . import registry
from .reverse import Path, between


def gaps(path: Path) -> dict[ir.Node, str]:
    """The nodes of a path whose gradient is refused or unknown, with the reason."""
    found: dict[ir.Node, str] = {}
    for node in path.nodes:
        for i, x in enumerate(node.inputs):
            if x in path.values and not registry.knows(node, i):
                found[node] = registry.refused(node, i) or "no gradient rule"
    return found


def covered(nodes: Sequence[ir.Node], score: ir.Value, broken: Collection[ir.Node]) -> set[ir.Value]:
    """The values from which every path to `score` avoids the `broken` nodes; `nodes` in topological order."""
    path = between(nodes, [y for node in nodes for y in node.outputs], [score])
    lost = {x for node in broken for x in node.inputs if x is not None}
    for node in reversed(path.nodes):
        if any(y in lost for y in node.outputs):
            lost.update(x for x in node.inputs if x is not None)
    return path.values - lost


def status(op: str, domain: str = "") -> str:
    """How the table has `op`, in words: "rule", "expansion", "zero: …", "refused: …" or "unknown"."""
    key = (domain, op)
    if key in registry.REGIONS:
        return "rule (subgraphs)"
    if key in registry.EXPANSIONS:
        return "expansion"
    inputs = sorted(i for (d, o, i) in registry.RULES if (d, o) == key)
    if inputs:
        return "rule"
    refused = [why for k, why in registry.REFUSED.items() if k[:2] == key]
    if refused:
        return f"refused: {refused[0]}"
    stopped = [stop.why for k, stop in registry.STOPPED.items() if k[:2] == key]
    return f"no gradient: {stopped[0]}" if stopped else "unknown"
