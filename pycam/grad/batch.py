"""Which nodes move or mix the batch axis: behind such a node, K targets cannot share one batched gradient."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from pycam.graph.builder import constant_of

Axes = list[int] | None
"""The axes that a node works along; None for all of them."""


def _attribute(name: str, default: int) -> Callable[[ir.Node], Axes]:
    return lambda node: [node.attributes.get_int(name, default)]


def _input(i: int, missing: Axes = None) -> Callable[[ir.Node], Axes]:
    """Axes given by input `i`; `missing` where it is left out."""

    def axes(node: ir.Node) -> Axes:
        if i >= len(node.inputs) or node.inputs[i] is None:
            return missing
        found = constant_of(node.inputs[i])
        return None if found is None else [int(a) for a in found.reshape(-1)]

    return axes


def _reduced(node: ir.Node) -> Axes:
    nothing = node.attributes.get_int("noop_with_empty_axes", 0) == 1
    axes = _input(1, [] if nothing else None)(node)
    return axes if axes or nothing else None


_ALONG: dict[str, Callable[[ir.Node], Axes]] = {
    **dict.fromkeys(("Softmax", "LogSoftmax"), _attribute("axis", -1)),
    **dict.fromkeys(("Split", "Gather"), _attribute("axis", 0)),
    "Concat": _attribute("axis", 0),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization", "LpNormalization"), _attribute("axis", -1)),
    "CumSum": _input(1),
    **dict.fromkeys(("Squeeze", "Unsqueeze"), _input(1)),
    "Slice": _input(3, None),
    **dict.fromkeys(
        ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare",
         "ReduceLogSum", "ReduceLogSumExp"),
        _reduced,
    ),
}  # fmt: skip


def moves_batch(node: ir.Node) -> bool:
    """Whether `node` permutes, joins, cuts, reduces or repeats along axis 0 of its first input."""
    x = node.inputs[0] if node.inputs else None
    rank = len(x.shape) if x is not None and x.shape is not None else None
    if node.op_type == "Transpose":
        perm = node.attributes.get_ints("perm", None)
        return perm[0] != 0 if perm else rank != 1
    if node.op_type == "Flatten":
        return node.attributes.get_int("axis", 1) == 0
    if node.op_type == "Tile":
        repeats = constant_of(node.inputs[1])
        return repeats is None or int(repeats[0]) != 1
    along = _ALONG.get(node.op_type)
    if along is None or rank is None:
        return False
    if node.op_type == "Unsqueeze":
        rank = len(node.outputs[0].shape or [])
    axes = along(node)
    return axes is None or any(a % rank == 0 for a in axes if rank)
