"""Which candidates are explained: an int64 input `(N, K)`; −1 is the best one, −2 the second best, and so on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from pycam.errors import MethodError
from pycam.graph.builder import Builder
from pycam.graph.locate import dims
from pycam.runtime.feeds import DEEPEST

if TYPE_CHECKING:
    from .base import Candidates


@dataclass(frozen=True)
class Chosen:
    """Which candidates are explained, for a batch of rows."""

    explained: ir.Value  # int64 (N, K), no negative ones
    against: ir.Value | None  # int64 (N, K): what each is held against; None unless the objective is a contrast
    count: ir.Value | None  # K as an int64 vector of length 1; None when K is fixed to 1


def choose(
    g: Builder, located: Candidates, targets: ir.Value, against: ir.Value | None, count: ir.Value | None
) -> Chosen:
    """Which of the candidates are explained, and what they are held against.

    Args:
        g: Builder of the explain graph.
        located: What the target made of the outputs.
        targets: int64 (N, K).
        against: int64 (N, K) for a contrast, else None.
        count: K, int64 (1,); None: 1, and nothing is ever repeated.

    Raises:
        MethodError: a contrast, and the target has no classes to hold against each other.
    """
    if located.entries is not None:
        if against is not None:
            raise MethodError(
                f"objective='contrastive' holds classes against each other, and here each {located.noun} has a score "
                "of its own: use objective='class'"
            )
        return Chosen(located.entries, None, count)
    explained = look_up(g, located.z, targets)
    rival = look_up_rival(g, located.z, explained, against) if against is not None else None
    return Chosen(explained, rival, count)


def target_count(g: Builder, targets: ir.Value) -> ir.Value:
    """K, int64 (1,), of `targets` (N, K)."""
    count = g.Slice(g.Shape(targets), [1], [2], [0])
    count.shape = ir.Shape([1])  # so that the shapes of what is repeated by it can be inferred
    return count


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


def _size(g: Builder, scores: ir.Value) -> ir.Value:
    return g.Slice(g.Shape(scores), [1], [2], [0])
