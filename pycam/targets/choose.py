"""Class targets: an int64 input `(N, K)`; −1 is the best class, −2 the second best, and so on."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from pycam.errors import MethodError, TargetError
from pycam.grad.call import HALF
from pycam.graph.builder import Builder
from pycam.graph.locate import dims
from pycam.runtime.feeds import DEEPEST


@dataclass(frozen=True)
class Chosen:
    """Which classes are explained, for a batch of rows."""

    explained: ir.Value  # int64 (N, K), no negative ones
    against: ir.Value | None  # int64 (N, K): what each is held against; None unless the objective is a contrast
    count: ir.Value | None  # K as an int64 vector of length 1; None when K is fixed to 1


def class_targets(
    g: Builder, score: ir.Value, batch: int | str, many: bool, contrast: bool = False
) -> tuple[ir.Value, ir.Value | None, Chosen]:
    """The inputs `targets` and, for a contrast, `against`, and what they choose.

    Args:
        g: Builder of the explain graph.
        score: The differentiated output, (N, C, …).
        batch: The batch dimension as the model's input has it.
        many: K is free; else it is 1 and nothing is ever repeated.
        contrast: Each target is held against another class.

    Raises:
        TargetError: the output has no class axis.
    """
    scores = class_scores(g, score)
    targets = class_input(g, "targets", batch, many)
    against = class_input(g, "against", batch, many) if contrast else None
    explained = look_up(g, scores, targets)
    rival = look_up_rival(g, scores, explained, against) if against is not None else None
    count = g.Slice(g.Shape(targets), [1], [2], [0]) if many else None
    if count is not None:
        count.shape = ir.Shape([1])  # so that the shapes of what is repeated by it can be inferred
    return targets, against, Chosen(explained, rival, count)


def class_input(g: Builder, name: str, batch: int | str, many: bool) -> ir.Value:
    """A graph input int64 (N, K), or (N, 1) without `many`.

    `batch` is that dimension as the model's input has it: a shared symbol lets the runtime see equal shapes.
    """
    value = ir.Value(
        name=g.free(name),
        type=ir.TensorType(ir.DataType.INT64),
        shape=ir.Shape([None if batch == "?" else batch, "K" if many else 1]),
    )
    g.graph.inputs.append(value)
    return value


def class_scores(g: Builder, score: ir.Value) -> ir.Value:
    """The scores of all classes (N, C), summed over positions if there are any; 16 bits as float32.

    Raises:
        TargetError: the output has no class axis.
    """
    shape = dims(score)
    if len(shape) < 2:
        raise TargetError(f"the output {score.name!r} has shape {list(shape)}; class targets need (N, classes)")
    wide = g.Cast(score, to=ir.DataType.FLOAT) if score.dtype in HALF else score
    flat = wide if len(shape) == 2 else g.ReduceSum(wide, list(range(2, len(shape))), keepdims=0)
    if flat is not score and flat.shape is None:
        flat.shape = ir.Shape(list(score.shape or [])[:2])
    return flat


def look_up(g: Builder, scores: ir.Value, targets: ir.Value) -> ir.Value:
    """`targets` (N, K) with −r replaced by the index of the r-th best of `scores` (N, C); ties: the lower index."""
    classes = class_count(scores)
    k = g.constant([min(DEEPEST, classes)]) if classes is not None else g.Min([DEEPEST], _size(g, scores))
    _, best = g.emit("TopK", [scores, k], {"axis": -1}, outputs=2)
    rank = g.Clip(g.Sub([-1], targets), g.constant(0), g.Squeeze(g.Sub(k, [1]), [0]))
    return g.Where(g.Less(targets, [0]), g.GatherElements(best, rank, axis=1), targets)


def look_up_rival(g: Builder, scores: ir.Value, explained: ir.Value, against: ir.Value) -> ir.Value:
    """`against` (N, K) with the negative ones replaced by the best class beside `explained` (N, K)."""
    if class_count(scores) == 1:
        raise MethodError("a contrast needs a second class, and the model has one: use objective='class'")
    _, best = g.emit("TopK", [scores, g.constant([2])], {"axis": -1}, outputs=2)
    first, second = g.Slice(best, [0], [1], [1]), g.Slice(best, [1], [2], [1])
    return g.Where(g.Less(against, [0]), g.Where(g.Equal(explained, first), second, first), against)


def class_count(scores: ir.Value) -> int | None:
    """How many classes there are; None if the model does not say."""
    size = dims(scores)[1]
    return size if isinstance(size, int) else None


def as_rows(g: Builder, explained: ir.Value, many: bool) -> ir.Value:
    """(N, K) → (K·N,), K outermost, as gradients of K targets travel."""
    rows = g.Reshape(g.Transpose(explained, perm=[1, 0]) if many else explained, [-1])
    rows.meta["rows of"] = explained
    return rows


def one_hot(g: Builder, rows: ir.Value, scores: ir.Value) -> ir.Value:
    """(R,) → (R, C): the cotangent of one class score each."""
    classes = class_count(scores)
    depth = g.constant(classes) if classes is not None else g.Squeeze(_size(g, scores), [0])
    dtype = scores.dtype or ir.DataType.FLOAT
    hot = g.OneHot(rows, depth, g.constant([0.0, 1.0], dtype), axis=-1)
    hot.meta["one_hot"] = True
    return hot


def over_positions(g: Builder, cotangent: ir.Value, score: ir.Value) -> ir.Value:
    """The cotangent (R, C) of summed scores as one of `score` (N, C, …)."""
    rank = len(dims(score))
    if rank == 2:
        return cotangent
    ones = g.Reshape(cotangent, g.Concat(g.Shape(cotangent), [1] * (rank - 2), axis=0))
    return g.Expand(ones, g.Concat([1, 1], g.Slice(g.Shape(score), [2], [rank], [0]), axis=0))


def _size(g: Builder, scores: ir.Value) -> ir.Value:
    return g.Slice(g.Shape(scores), [1], [2], [0])
