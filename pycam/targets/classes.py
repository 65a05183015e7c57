"""Scores of classes: the logit, its probability, its odds, or its lead over the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pycam.errors import TargetError

from .base import Candidates, Target

if TYPE_CHECKING:
    import onnx_ir as ir

    from .outputs import Logits, Outputs

ENDS = ("Softmax", "LogSoftmax", "Sigmoid")
"""What is stepped behind."""

LOWEST = -3.0e38
"""In place of −∞, which would make NaN of gradients: e to its power is 0."""


@dataclass(frozen=True)
class Class(Target):
    """The score of a class, the logit where the model ends in a softmax or a sigmoid: `z_t`.

    What lies behind axis 1 is summed over.

    Args:
        output: Name of the output (N, classes, …); None: the one that the Explainer is told, or else the first.
    """

    kind: ClassVar[str] = "class"

    output: str | None = None

    def candidates(self, model: Outputs) -> Candidates:
        """See `Target.candidates`."""
        found = model.logits(self.output, ENDS)
        return _classes(found, class_scores(model, found), _axes_note(found))


@dataclass(frozen=True)
class Probability(Target):
    """The probability of a class, softmax or sigmoid included: `p_t`.

    Where the model gives logits a softmax is put behind them, or for one class a sigmoid.

    Args:
        output: As in `Class`.
    """

    kind: ClassVar[str] = "probability"

    output: str | None = None

    def candidates(self, model: Outputs) -> Candidates:
        """See `Target.candidates`."""
        found = model.logits(self.output, ("Softmax", "Sigmoid"))
        z = class_scores(model, found)
        one = found.activation == "Sigmoid" or _count(z) == 1
        p = model.g.Sigmoid(z) if one else model.g.Softmax(z, axis=1)
        return _classes(found, _shaped(p, z), ())


@dataclass(frozen=True)
class LogOdds(Target):
    """The log-odds of a class: `log p_t/(1 − p_t) = z_t − log Σ_{j≠t} e^{z_j}`, or `z_t` behind a sigmoid.

    Unlike the probability it does not saturate.

    Args:
        output: As in `Class`.
    """

    kind: ClassVar[str] = "log_odds"

    output: str | None = None

    def candidates(self, model: Outputs) -> Candidates:
        """See `Target.candidates`."""
        g = model.g
        found = model.logits(self.output, ENDS)
        if found.activation == "Sigmoid":
            return _classes(found, class_scores(model, found), ())
        z = _several(class_scores(model, found), "log-odds")
        best = g.ArgMax(z, axis=1, keepdims=1)
        is_best = g.Equal(_indices(model, z), best)
        top = g.ReduceMax(z, [1], keepdims=1)
        # Without the best class: log Σ_{j≠best} e^{z_j}; with it, e^{z_t} is the smaller part of what it is taken from.
        without = g.ReduceLogSumExp(g.Where(is_best, LOWEST, z), [1], keepdims=1)
        shifted = g.Exp(g.Sub(z, top))
        rest = g.Sub(g.ReduceSum(shifted, [1], keepdims=1), g.Where(is_best, 0.0, shifted))
        others = g.Where(is_best, without, g.Add(top, g.Log(rest)))
        return _classes(found, _shaped(g.Sub(z, others), z), ())


@dataclass(frozen=True)
class OneVsRest(Target):
    """The lead of a class over the mean of the others: `z_t − Σ_{j≠t} z_j/(C − 1)`.

    Args:
        output: As in `Class`.
    """

    kind: ClassVar[str] = "one_vs_rest"

    output: str | None = None

    def candidates(self, model: Outputs) -> Candidates:
        """See `Target.candidates`."""
        g = model.g
        found = model.logits(self.output, ENDS)
        z = _several(class_scores(model, found), "one-vs-rest")
        size = g.Cast(g.Slice(g.Shape(z), [1], [2], [0]), to=z.dtype)
        mean = g.Div(g.Sub(g.ReduceSum(z, [1], keepdims=1), z), g.Sub(size, 1.0))
        return _classes(found, _shaped(g.Sub(z, mean), z), ())


@dataclass(frozen=True)
class Binary(Target):
    """The logit of a model with a single output: target 1 is `z`, target 0 is `−z`.

    A final sigmoid is stepped behind.

    Args:
        output: Name of the output (N, 1) or (N,).
    """

    kind: ClassVar[str] = "binary"

    output: str | None = None

    def candidates(self, model: Outputs) -> Candidates:
        """See `Target.candidates`."""
        g = model.g
        found = model.logits(self.output, ("Sigmoid",))
        z = class_scores(model, found)
        if _count(z) != 1:
            raise TargetError(
                f"the output {found.output.name!r} has {_count(z) or 'any number of'} columns; the target 'binary' is "
                "for a single logit (N, 1): use the target 'class'"
            )
        both = g.Concat(g.Neg(z), z, axis=1)
        return Candidates(both, found.output, (found.value,), classes=2, notes=found.notes)


def class_scores(model: Outputs, found: Logits) -> ir.Value:
    """The scores of all classes (N, C), summed over positions if there are any; 16 bits as float32.

    Raises:
        TargetError: the output has no batch axis.
    """
    g = model.g
    rank = len(found.value.shape) if found.value.shape is not None else 0
    if rank == 0:
        raise TargetError(
            f"the output {found.output.name!r} has no batch axis, or its rank is not known; classes lie along axis 1 "
            "of (N, classes): use the target 'custom'"
        )
    wide = model.floats(found.value)
    if rank == 2:
        return wide
    z = g.Unsqueeze(wide, [1]) if rank == 1 else g.ReduceSum(wide, list(range(2, rank)), keepdims=0)
    z.shape = type(wide.shape)([wide.shape[0], 1 if rank == 1 else wide.shape[1]]) if wide.shape is not None else None
    return z


def _classes(found: Logits, z: ir.Value, notes: tuple[str, ...]) -> Candidates:
    return Candidates(
        z,
        found.output,
        (found.value,),
        classes=_count(z),
        probabilities=found.probabilities,
        positions=found.value.shape is not None and len(found.value.shape) > 2,
        notes=(*found.notes, *notes),
    )


def _shaped(z: ir.Value, like: ir.Value) -> ir.Value:
    """`z` with the shape of `like`, which it has."""
    z.shape = like.shape
    return z


def _count(z: ir.Value) -> int | None:
    """How many classes there are; None if the model does not say."""
    size = z.shape[1] if z.shape is not None and len(z.shape) > 1 else None
    return size if isinstance(size, int) else None


def _several(z: ir.Value, what: str) -> ir.Value:
    if _count(z) == 1:
        raise TargetError(f"{what} hold a class against others, and the output has one: use the target 'binary'")
    return z


def _indices(model: Outputs, z: ir.Value) -> ir.Value:
    """0 … C − 1, int64."""
    g = model.g
    known = _count(z)
    stop = g.constant(known) if known is not None else g.Squeeze(g.Slice(g.Shape(z), [1], [2], [0]), [0])
    return g.Range(g.constant(0), stop, g.constant(1))


def _axes_note(found: Logits) -> tuple[str, ...]:
    """What was taken for the classes, where that is a guess."""
    shape = found.value.shape
    if shape is None or len(shape) <= 2:
        return ()
    sizes = [d if isinstance(d, int) else d.value or "?" for d in shape]
    note = (
        f"the output {found.output.name!r} has shape {sizes}: axis 1 was taken for the classes, and a class's score is "
        "the sum over the axes behind it (is it boxes, a mask or text? see `pycam targets`)"
    )
    return (note,)
