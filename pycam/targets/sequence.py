"""Scores of sequences: a step, a token, or the whole of what a text recogniser or a captioner says."""

from __future__ import annotations

import numbers
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from pycam.errors import TargetError
from pycam.runtime.given import Given

from .base import Candidates, Target

if TYPE_CHECKING:
    import onnx_ir as ir

    from pycam.graph.builder import Builder

    from .outputs import Logits, Outputs


@dataclass(frozen=True)
class Sequence(Target):
    """What a sequence says: `y = Σ_t w_t·logit[t, token_t]`, a score per target, (N, K).

    A call gives `position=`, one or (N, K); which steps count (`w`), and for which token, is found from the model's own
    pass:

    | position | target | steps | token |
    |---|---|---|---|
    | p | −r | step p, or those of character p | the r-th best of each step |
    | p | v | step p, or those of character p | v |
    | −1 (not given) | −r | all | the r-th best of each step |
    | −1 (not given) | v | where v is the best | v |

    With `blank=` (CTC) positions count the characters that are emitted: the best token of a step is not blank, and not
    that of the step before.  A character's steps are those at which it is repeated, too.

    `Explanation.targets` is the token at the first of the steps, or −1 for the whole sequence.  `Explanation.extras`
    has `tokens` (N, T), the best one at each step; `steps` (N, K), the first step that counts, −1 where none does; and
    `length` (N, K), how many positions there are.  What is not there is a TargetError of the call.

    A final Softmax or LogSoftmax over the tokens is stepped behind.

    Args:
        output: Name of the output; None: the one that the Explainer is told, or else the first.
        blank: The token that stands for nothing, often 0 or the last: CTC.
        end: The token that ends a sequence: its first step and those behind it do not count.
        axes: How the output lies, "NTV" (images, steps, tokens), "TNV" or "NVT"; None: it is found.

    Raises:
        TargetError: blank or end is no token, or axes is none of these.
    """

    kind: ClassVar[str] = "sequence"

    output: str | None = None
    blank: int | None = None
    end: int | None = None
    axes: str | None = None

    def __post_init__(self) -> None:
        for name in ("blank", "end"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, numbers.Integral)):
                raise TargetError(f"{name}={value!r}: give the token's number")
            object.__setattr__(self, name, None if value is None else int(value))
        if self.axes is not None and sorted(str(self.axes)) != ["N", "T", "V"]:
            raise TargetError(f"axes={self.axes!r}: say how N images, T steps and V tokens lie, such as 'NTV' or 'TNV'")

    def candidates(self, model: Outputs) -> Candidates:
        """See `Target.candidates`."""
        from pycam.runtime.feeds import DEEPEST

        g = model.g
        found, order = self._found(model)
        logits = model.floats(found.value)
        if order != "NTV":
            logits = g.Transpose(logits, perm=[order.index(axis) for axis in "NTV"])
        size = found.value.shape[order.index("V")] if found.value.shape is not None else None
        count = size if isinstance(size, int) else None
        blank, end = (_token(value, name, count) for value, name in ((self.blank, "blank"), (self.end, "end")))
        deepest = g.constant([min(DEEPEST, count)]) if count is not None else g.Min([DEEPEST], _size(g, logits, 2))
        _, top = g.emit("TopK", [logits, deepest], {"axis": 2}, outputs=2)  # (N, T, 16)
        best = g.Slice(top, [0], [1], [2])  # (N, T, 1)
        spoken = _spoken(g, best, blank, end)

        position = model.take("position", Given("position", "positions", ("N", "K"), "int64"))
        target, place = g.Unsqueeze(model.targets, [1]), g.Unsqueeze(position, [1])  # (N, 1, K)
        ranked, whole = g.Less(target, [0]), g.Less(place, [0])
        rank = g.Clip(g.Sub([-1], target), g.constant(0), g.Squeeze(g.Sub(deepest, [1]), [0]))
        each = g.Expand(rank, g.Concat(g.Slice(g.Shape(logits), [0], [2], [0]), _size(g, target, 2), axis=0))
        token = g.Where(ranked, g.GatherElements(top, each, axis=2), target)  # (N, T, K)
        said = g.And(whole, g.Or(ranked, g.Equal(best, target)))
        here = g.Or(said, g.And(g.Not(whole), g.Equal(spoken.place, place)))
        w = g.Cast(g.And(here, spoken.counts), to=logits.dtype)  # (N, T, K)
        z = g.ReduceSum(g.Mul(g.GatherElements(logits, token, axis=2), w), [1], keepdims=0)

        first = g.ArgMax(w, axis=1, keepdims=1)  # (N, 1, K)
        none = g.Equal(g.ReduceMax(w, [1], keepdims=1), 0.0)
        last = g.ReduceMax(g.Where(spoken.counts, spoken.place, [-1]), [1], keepdims=0)
        length = g.Add(last, [1])  # (N, 1)
        shown = g.Where(g.And(whole, ranked), [-1], g.GatherElements(token, first, axis=1))
        return Candidates(
            z,
            found.output,
            (found.value,),
            entries=model.every(),
            shown=g.Squeeze(shown, [1]),
            classes=count,
            noun="token",
            probabilities=found.activation == "Softmax",
            fixed=(token, w),
            extras={
                "tokens": g.Squeeze(best, [2]),
                "steps": g.Squeeze(g.Where(none, [-1], first), [1]),
                "length": g.Expand(length, g.Shape(position)),
            },
            per_image=("tokens",),
            notes=found.notes,
        )

    def _found(self, model: Outputs) -> tuple[Logits, str]:
        """The logits, and how they lie: "N", "T" and "V" in the order of the axes."""
        from .final import logits_along, softmax_axis

        plain = model.logits(self.output, ())
        model.refuse_rank(
            plain.output,
            [3],
            "a sequence is (N, steps, tokens)",
            "for a single step (N, tokens) use the target 'class'",
        )
        if self.axes is not None:
            return logits_along(model, self.output, self.axes.index("V")), self.axes
        found = model.logits(self.output)
        tokens = softmax_axis(found)
        tokens = 2 if tokens is None else tokens
        sizes = [d if isinstance(d, int) else d.value for d in plain.value.shape or ()]
        others = [i for i in range(3) if i != tokens]
        images = others[1] if sizes[others[0]] != model.batch and sizes[others[1]] == model.batch else others[0]
        return found, "".join("V" if i == tokens else "N" if i == images else "T" for i in range(3))


class _Spoken(NamedTuple):
    """Of each step, (N, T, 1) or (1, T, 1)."""

    counts: ir.Value
    """bool: whether it belongs to what is said."""
    place: ir.Value
    """int64: its position."""


def _spoken(g: Builder, best: ir.Value, blank: int | None, end: int | None) -> _Spoken:
    """Which position each step is, from its best token (N, T, 1)."""
    counts, index = g.Equal(best, best), _range(g, _size(g, best, 1))
    if blank is not None:
        before = g.Pad(g.Slice(best, [0], [-1], [1]), g.constant([0, 1, 0, 0, 0, 0]), g.constant(np.array(-1)))
        counts = g.Not(g.Equal(best, [blank]))
        new = g.And(counts, g.Not(g.Equal(best, before)))
        index = g.Sub(g.CumSum(g.Cast(new, to=best.dtype), g.constant(1)), [1])
    if end is not None:
        ended = g.CumSum(g.Cast(g.Equal(best, [end]), to=best.dtype), g.constant(1))
        counts = g.And(counts, g.Equal(ended, [0]))
    return _Spoken(counts, index)


def _range(g: Builder, size: ir.Value) -> ir.Value:
    """0, 1, … as (1, T, 1)."""
    return g.Reshape(g.Range(g.constant(0), g.Squeeze(size, [0]), g.constant(1)), [1, -1, 1])


def _token(value: int | None, name: str, count: int | None) -> int | None:
    """A token counted from the end as its number."""
    if value is None:
        return None
    if count is None:
        if value < 0:
            raise TargetError(f"{name}={value}: the model does not say how many tokens there are: count from 0")
        return value
    if not -count <= value < count:
        raise TargetError(f"{name}={value}: the model has {count} tokens, 0 to {count - 1}")
    return value % count


def _size(g: Builder, value: ir.Value, axis: int) -> ir.Value:
    return g.Slice(g.Shape(value), [axis], [axis + 1], [0])
