"""Class targets: an int64 input `(N, K)`; −1 is the best class, −2 the second best, and so on."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from pycam.errors import TargetError
from pycam.grad.call import HALF
from pycam.graph.builder import Builder
from pycam.graph.locate import dims
from pycam.runtime.feeds import DEEPEST


@dataclass(frozen=True)
class Chosen:
    """What the class target adds to the graph."""

    targets: ir.Value  # graph input, int64 (N, K)
    explained: ir.Value  # int64 (N, K), with the negative ones looked up
    cotangent: ir.Value  # d score / d output: shape of the output, batch axis K·N, K outermost
    count: ir.Value | None  # K as an int64 vector of length 1; None when K is fixed to 1
    classes: int | None  # how many there are, None if the model does not say


def class_targets(g: Builder, score: ir.Value, batch: int | str, many: bool) -> Chosen:
    """Score = the output's entry for a class, summed over positions if it has any.

    Args:
        g: Builder of the explain graph.
        score: The differentiated output: (N, C) or (N, C, …).
        batch: The batch dimension as the model's input has it (a shared symbol lets the runtime see equal shapes).
        many: K is free; else it is 1 and nothing is ever repeated.

    Raises:
        TargetError: the output has no class axis.
    """
    shape = dims(score)
    if len(shape) < 2:
        raise TargetError(f"the output {score.name!r} has shape {list(shape)}; class targets need (N, classes)")
    classes = shape[1] if isinstance(shape[1], int) else None
    targets = ir.Value(
        name=g.free("targets"),
        type=ir.TensorType(ir.DataType.INT64),
        shape=ir.Shape([None if batch == "?" else batch, "K" if many else 1]),
    )
    g.graph.inputs.append(targets)
    dtype = ir.DataType.FLOAT if score.dtype in HALF else score.dtype  # gradients of 16 bits are computed in float32
    wide = g.Cast(score, to=dtype) if score.dtype != dtype else score
    flat = wide if len(shape) == 2 else g.ReduceSum(wide, list(range(2, len(shape))), keepdims=0)
    explained = _rank_lookup(g, flat, targets, classes)
    depth = g.constant(classes) if classes is not None else g.Squeeze(_class_count(g, score), [0])
    order = g.Transpose(explained, perm=[1, 0]) if many else explained
    rows = g.Reshape(order, [-1])  # K·N, K outermost
    rows.meta["rows of"] = explained
    assert dtype is not None
    zero_one = g.constant([0.0, 1.0], dtype)
    cotangent = g.OneHot(rows, depth, zero_one, axis=-1)
    cotangent.meta["one_hot"] = True
    if len(shape) > 2:
        ones = g.Reshape(cotangent, g.Concat(g.Shape(cotangent), [1] * (len(shape) - 2), axis=0))
        cotangent = g.Expand(ones, g.Concat([1, 1], g.Slice(g.Shape(score), [2], [len(shape)], [0]), axis=0))
    count = g.Slice(g.Shape(targets), [1], [2], [0]) if many else None
    return Chosen(targets, explained, cotangent, count, classes)


def _rank_lookup(g: Builder, scores: ir.Value, targets: ir.Value, classes: int | None) -> ir.Value:
    """Replace −r by the index of the r-th best score; ties go to the lower index."""
    k = g.constant([min(DEEPEST, classes)]) if classes is not None else g.Min([DEEPEST], _class_count(g, scores))
    _, best = g.emit("TopK", [scores, k], {"axis": -1}, outputs=2)
    rank = g.Clip(g.Sub([-1], targets), g.constant(0), g.Squeeze(g.Sub(k, [1]), [0]))
    return g.Where(g.Less(targets, [0]), g.GatherElements(best, rank, axis=1), targets)


def _class_count(g: Builder, scores: ir.Value) -> ir.Value:
    return g.Slice(g.Shape(scores), [1], [2], [0])
