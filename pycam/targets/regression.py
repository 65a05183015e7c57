"""Numbers that a model estimates: an output itself, or the expectation of a distribution over bins."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from pycam.errors import TargetError

from .base import Candidates, Target

if TYPE_CHECKING:
    import onnx_ir as ir

    from .outputs import Outputs


@dataclass(frozen=True)
class Regression(Target):
    """An output as it is, less what it is compared with: `z_d = y_d − reference_d`; `targets` are its columns.

    The reference does not change gradients; methods that compare scores (Ablation-CAM) see it.

    Args:
        output: Name of the output (N, D) or (N,); None: the one that the Explainer is told, or else the first.
        reference: A number, or one per column.

    Raises:
        TargetError: the reference is no finite number, or holds no number.
    """

    kind: ClassVar[str] = "regression"

    output: str | None = None
    reference: float | Sequence[float] = 0.0

    def __post_init__(self) -> None:
        one = isinstance(self.reference, numbers.Real)
        found = _finite([self.reference] if one else self.reference, "reference")
        object.__setattr__(self, "reference", found[0] if one else found)

    def candidates(self, model: Outputs) -> Candidates:
        """See `Target.candidates`."""
        g = model.g
        found = model.logits(self.output, ())
        z, columns = _columns(model, found.value, "the target 'regression' is for numbers (N, D)")
        if isinstance(self.reference, tuple):
            _check_count(len(self.reference), columns, "reference", found.output)
            z = g.Sub(z, np.array([self.reference], np.float32))
        elif self.reference != 0:
            z = g.Sub(z, float(self.reference))  # type: ignore[arg-type]  # see __post_init__
        return Candidates(z, found.output, (found.value,), classes=columns, noun="output")


@dataclass(frozen=True)
class Expectation(Target):
    """The mean of a distribution over bins: `z = Σ_b p_b·v_b`, (N, 1); the softmax is part of the gradient.

    Where the output holds logits a softmax is put behind them.

    Args:
        output: Name of the output (N, B); None: the one that the Explainer is told, or else the first.
        bins: The value of each bin; None: 0 … B − 1.

    Raises:
        TargetError: a bin is no finite number, or there are none.
    """

    kind: ClassVar[str] = "expectation"

    output: str | None = None
    bins: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.bins is not None:
            object.__setattr__(self, "bins", _finite(self.bins, "bins"))

    def candidates(self, model: Outputs) -> Candidates:
        """See `Target.candidates`."""
        g = model.g
        found = model.logits(self.output)
        shape = found.value.shape
        if shape is None or len(shape) != 2:
            model.refuse_rank(found.output, [2], "an expectation is over bins (N, B)", "name another output")
        own, bins = model.floats(found.output), shape[1] if shape is not None else None
        count = bins if isinstance(bins, int) else None
        notes: tuple[str, ...] = ()
        if found.activation == "Softmax":
            p, end = own, found.output
        elif found.activation == "LogSoftmax":
            p, end = g.Exp(own), found.output
        else:
            p, end = g.Softmax(model.floats(found.value), axis=1), found.value
            notes = (f"the output {found.output.name!r} was taken for logits of bins: a softmax is put behind it",)
        if self.bins is not None:
            _check_count(len(self.bins), count, "bins", found.output)
            values = g.constant(np.array(self.bins)[:, None], p.dtype)
        elif count is not None:
            values = g.constant(np.arange(count)[:, None], p.dtype)
        else:
            stop = g.Squeeze(g.Slice(g.Shape(p), [1], [2], [0]), [0])
            values = g.Unsqueeze(g.Cast(g.Range(g.constant(0), stop, g.constant(1)), to=p.dtype), [1])
        z = g.MatMul(p, values)
        return Candidates(
            z,
            found.output,
            (end,),
            classes=1,
            noun="expectation",
            notes=notes,
        )


def _columns(model: Outputs, value: ir.Value, wants: str) -> tuple[ir.Value, int | None]:
    """(N, D) and D, if it is known."""
    model.refuse_rank(value, [1, 2], wants, "for maps of numbers use the target 'segmentation', or else 'custom'")
    wide = model.floats(value)
    if value.shape is None or len(value.shape) == 1:
        return model.g.Unsqueeze(wide, [1]), 1
    columns = value.shape[1]
    return wide, columns if isinstance(columns, int) else None


def _finite(values: object, what: str) -> tuple[float, ...]:
    try:
        found = tuple(float(v) for v in values)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        found = ()
    if not found or isinstance(values, str) or not all(math.isfinite(v) for v in found):
        raise TargetError(f"{what}={values!r}: give one finite number or more")
    return found


def _check_count(given: int, there: int | None, what: str, output: ir.Value) -> None:
    if there is not None and given != there:
        raise TargetError(f"{what}= holds {given} numbers, and the output {output.name!r} has {there} columns")
