"""Recipro-CAM: a position weighs as much as the score of the tail on the features at that position alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from pycam.errors import MethodError
from pycam.grad.registry import recognise
from pycam.graph.locate import dims
from pycam.graph.tokens import Placed, placed
from pycam.runtime.layouts import kind_of

from .combine import shaped, weighted
from .registry import method
from .scene import Scene

GAUSSIAN = np.outer([1, 2, 1], [1, 2, 1]).astype(np.float32) / 16
LINE = np.outer([0, 1, 0], [1, 2, 1]).astype(np.float32) / 4
"""Of a signal, which has one row."""
_NORMS = {"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"}


@method(
    "reciprocam",
    "Recipro-CAM",
    "2209.14074",
    plan="split",
    cost="1 forward + 1 tail per position; 1 forward where the tail is affine",
    levels=True,
)
def reciprocam(s: Scene, *, gaussian: bool = True, class_token: bool = True) -> ir.Value:
    """`y(A ⊙ m_p)` for every position p, `m_p` a 3×3 binomial Gaussian around p, cut at the borders.

    As openvino_xai's, whose form for features keeps one position alone (`gaussian=False`) and whose form for tokens
    (ViTReciproCAM) keeps the special tokens whole (`class_token`; else they are 0) and masks what the norm behind the
    tokens makes of them, in place of the norm of what is masked.

    Options:
        gaussian: Whether a position's neighbours stay as well, weaker: a smoother map at the same cost.
        class_token: Whether class and register tokens stay; without effect where there are none.
    """
    g, layer = s.g, s.layer
    if gaussian and s.axes == 3:
        raise MethodError(
            f"{s.title} blurs over rows and columns, and what is explained here is {kind_of(s.image_layout)}: "
            "give gaussian=False"
        )
    a, found = s.read(layer), placed(layer)
    positions = dims(a)[2:]
    whole = class_token or found is None or not found.special
    da = s.affine(layer) if whole else None
    if da is not None:  # then y(A ⊙ m) = y + <g, A ⊙ m − A>
        evidence = weighted(s, a, s.split(da, a))  # (N, K, h, w): Σ_c g·A
        rest = g.Sub(g.Unsqueeze(s.first.y, [2, 3]), g.ReduceSum(evidence, [2, 3], keepdims=1))
        return shaped(s, g.Add(_blurred(s, evidence) if gaussian else evidence, rest), positions)
    every = _positions(s, a)
    variant = s.vary(every, _count(a))
    alone = g.Cast(g.Equal(g.Unsqueeze(variant, [1]), every), to=ir.DataType.FLOAT)  # (M, h·w)
    mask = g.Reshape(alone, g.Concat([-1, 1], _size(s, a), axis=0))
    mask = _blurred(s, mask) if gaussian else mask
    given = {layer: _masked(s, layer, mask)} if found is None else _masked_tokens(s, found, mask, class_token)
    y = s.stack(s.run(given).y)  # (h·w, K)
    maps = g.Reshape(g.Transpose(y, perm=[1, 0]), g.Concat([1, -1], _size(s, a), axis=0))
    return shaped(s, maps, positions)


def _masked(s: Scene, value: ir.Value, mask: ir.Value) -> ir.Value:
    """`value ⊙ mask`, of the value's type."""
    return s.g.Mul(value, s.g.Cast(mask, to=value.dtype) if value.dtype != ir.DataType.FLOAT else mask)


def _masked_tokens(s: Scene, found: Placed, mask: ir.Value, keep: bool) -> dict[ir.Value, ir.Value]:
    """The tokens (N, T, C), and the norms of them, with what takes their place; `keep` the special ones."""
    g, tokens = s.g, found.tokens
    row = g.Reshape(mask, [-1, tokens.positions, 1])
    if found.special:
        row = g.Pad(row, g.constant([0, tokens.before, 0, 0, tokens.after, 0]), g.constant(float(keep), row.dtype))
    return {value: _masked(s, value, row) for value in (found.made, *_norms(found.read))}


def _norms(tokens: ir.Value) -> Iterator[ir.Value]:
    """What norms make of `tokens`, each over its channels: one node, or the nodes that older opsets write it in."""
    for use in tokens.uses():
        node = use.node
        if node.op_type in _NORMS and node.inputs[0] is tokens:
            yield node.outputs[0]
        elif node.op_type == "Sub":
            for later in node.outputs[0].uses():
                pattern = recognise(later.node) if later.node.op_type == "Div" else None
                if pattern is not None and pattern.x is tokens:
                    yield _scaled(later.node.outputs[0])


def _scaled(value: ir.Value) -> ir.Value:
    """`value` behind the constants that a norm ends in, times one and plus one."""
    for op in ("Mul", "Add"):
        uses = list(value.uses())
        node = uses[0].node if len(uses) == 1 else None
        if (
            node is not None
            and node.op_type == op
            and any(x is not None and x.const_value is not None for x in node.inputs)
        ):
            value = node.outputs[0]
    return value


def _blurred(s: Scene, maps: ir.Value) -> ir.Value:
    """Maps (…, …, h, w), each convolved with the Gaussian."""
    g = s.g
    size = g.Shape(maps)
    flat = g.Reshape(maps, g.Concat([-1, 1], g.Slice(size, [2], [4], [0]), axis=0))
    blurred = g.Conv(
        flat, g.constant((GAUSSIAN if s.axes == 2 else LINE)[None, None]), kernel_shape=[3, 3], pads=[1, 1, 1, 1]
    )
    return g.Reshape(blurred, size)


def _count(a: ir.Value) -> int | None:
    """h·w, if it is known."""
    h, w = dims(a)[2:]
    return h * w if isinstance(h, int) and isinstance(w, int) else None


def _size(s: Scene, a: ir.Value) -> ir.Value:
    """h and w, int64 (2,)."""
    known = [d for d in dims(a)[2:] if isinstance(d, int)]
    return s.g.constant(known) if len(known) == 2 else s.g.Slice(s.g.Shape(a), [2], [4], [0])


def _positions(s: Scene, a: ir.Value) -> ir.Value:
    """0 … h·w − 1, int64."""
    g, count = s.g, _count(a)
    if count is not None:
        return g.constant(np.arange(count))
    return g.Range(g.constant(0), g.ReduceProd(_size(s, a), [0], keepdims=0), g.constant(1))
