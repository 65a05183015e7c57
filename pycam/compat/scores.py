"""What pytorch-grad-cam's targets compute, as pycam's targets: of the model's output as it is, nothing stepped behind.

`pycam.targets` has the same things for new code; these differ where its numbers do: a final softmax stays, a mask has
the output's size, and sums are not means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from pycam.errors import TargetError, nearest
from pycam.runtime.given import Given
from pycam.targets.base import Candidates, Target

if TYPE_CHECKING:
    import onnx_ir as ir

    from pycam.targets.outputs import Outputs


@dataclass(frozen=True)
class Score(Target):
    """An output's columns as they are: `z = y`.

    Args:
        output: Name of the output (N, classes), or (N,); None: the one that the Explainer is told, or the first.
    """

    kind: ClassVar[str] = "compat.output"

    output: str | None = None

    def candidates(self, model: Outputs) -> Candidates:
        """See `Target.candidates`."""
        y, z = _columns(model, self.output)
        return self._made(y, self.of(model, z))

    def of(self, model: Outputs, z: ir.Value) -> ir.Value:
        """The scores (N, C) of the output's columns (N, C)."""
        return z

    def _made(self, y: ir.Value, z: ir.Value) -> Candidates:
        size = z.shape[1] if z.shape is not None and len(z.shape) == 2 else None
        return Candidates(z, y, (y,), classes=size if isinstance(size, int) else None)


@dataclass(frozen=True)
class Softmax(Score):
    """`z = softmax(y)`."""

    kind: ClassVar[str] = "compat.softmax"

    def of(self, model: Outputs, z: ir.Value) -> ir.Value:
        """See `Score.of`."""
        return _shaped(model.g.Softmax(z, axis=1), z)


@dataclass(frozen=True)
class ReST(Score):
    """`z = y + log softmax(y)` (2501.06261)."""

    kind: ClassVar[str] = "compat.rest"

    def of(self, model: Outputs, z: ir.Value) -> ir.Value:
        """See `Score.of`."""
        return _shaped(model.g.Add(z, model.g.LogSoftmax(z, axis=1)), z)


@dataclass(frozen=True)
class Signed(Score):
    """`z = [−y, y]` of the one column that there is."""

    kind: ClassVar[str] = "compat.binary"

    def candidates(self, model: Outputs) -> Candidates:
        """See `Target.candidates`."""
        y, z = _columns(model, self.output)
        _only(y, z)
        return Candidates(model.g.Concat(model.g.Neg(z), z, axis=1), y, (y,), classes=2)


@dataclass(frozen=True)
class Raw(Score):
    """`z = y` of the one column that there is."""

    kind: ClassVar[str] = "compat.raw"

    def candidates(self, model: Outputs) -> Candidates:
        """See `Target.candidates`."""
        y, z = _columns(model, self.output)
        _only(y, z)
        return self._made(y, z)


@dataclass(frozen=True)
class Finer(Score):
    """`z_t = Σ_i p_i(y_t − α·y_i)/(Σ_i p_i + 1e-9)`, `p = softmax(y)`, i the classes compared with (2501.11309).

    A call gives them: `comparison=` int64 (N, R).
    """

    kind: ClassVar[str] = "compat.finer"

    alpha: float = 1.0

    def candidates(self, model: Outputs) -> Candidates:
        """See `Target.candidates`."""
        g = model.g
        y, z = _columns(model, self.output)
        others = model.take("comparison", Given("comparison", "array", ("N", None), "int64", required=True))
        p = g.GatherElements(g.Softmax(z, axis=1), others, axis=1)
        total = g.ReduceSum(p, [1], keepdims=1)
        held = g.ReduceSum(g.Mul(p, g.GatherElements(z, others, axis=1)), [1], keepdims=1)
        lead = g.Sub(g.Mul(z, total), g.Mul(held, float(self.alpha)))
        made = self._made(y, _shaped(g.Div(lead, g.Add(total, 1e-9)), z))
        return Candidates(made.z, y, (y,), classes=made.classes, fixed=(others,))


@dataclass(frozen=True)
class Masked(Target):
    """`z_c = Σ_ij y_cij·mask_ij` of an output (N, C, h, w).

    A call gives the mask at the output's size: `mask=` float32 (N, h, w).
    """

    kind: ClassVar[str] = "compat.masked"

    output: str | None = None

    def candidates(self, model: Outputs) -> Candidates:
        """See `Target.candidates`."""
        g = model.g
        y = model.logits(self.output, ()).output
        model.refuse_rank(
            y, [4], "SemanticSegmentationTarget takes (N, classes, h, w)", "use ClassifierOutputTarget, or output="
        )
        sizes = [d if isinstance(d, int) else None for d in (y.shape or (None,) * 4)][2:4]
        mask = model.take("mask", Given("mask", "array", ("N", *sizes), required=True))
        z = g.ReduceSum(g.Mul(model.floats(y), g.Unsqueeze(mask, [1])), [2, 3], keepdims=0)
        size = y.shape[1] if y.shape is not None else None
        classes = size if isinstance(size, int) else None
        return Candidates(z, y, (y,), classes=classes, positions=True, fixed=(mask,))


@dataclass(frozen=True)
class Boxes(Target):
    """`z = Σ_b (IoU_b + score_b)` over boxes b, each with the detection that overlaps it most; nothing for a box whose
    IoU is not above `threshold`, or whose detection is of another class.

    The detector's outputs are those of torchvision: boxes (M, 4), labels (M,) and scores (M,) of one image, by these
    names or else by what they hold.  A call gives `boxes=` float32 (1, B, 4) and `labels=` int64 (1, B).
    """

    kind: ClassVar[str] = "compat.boxes"

    threshold: float = 0.5

    def candidates(self, model: Outputs) -> Candidates:
        """See `Target.candidates`."""
        g = model.g
        boxes, labels, scores = _detections(model)
        wanted = model.take("boxes", Given("boxes", "array", (1, None, 4), required=True))
        classes = model.take("labels", Given("labels", "array", (1, None), "int64", required=True))
        # One more that matches nothing, so that there is always a best one.
        found = g.Unsqueeze(
            g.Concat(g.Cast(boxes, to=wanted.dtype), g.constant(np.zeros((1, 4), np.float32)), axis=0), [0]
        )  # (1, M, 4)
        kinds = g.Concat(g.Cast(labels, to=classes.dtype), g.constant([-1]), axis=0)
        marks = g.Concat(g.Cast(scores, to=wanted.dtype), g.constant(np.zeros(1, np.float32)), axis=0)
        asked = g.Unsqueeze(g.Squeeze(wanted, [0]), [1])  # (B, 1, 4)

        def corner(value: ir.Value, i: int) -> ir.Value:
            return g.Squeeze(g.Slice(value, [i], [i + 1], [2]), [2])

        def area(value: ir.Value) -> ir.Value:
            sides = [g.Sub(corner(value, i + 2), corner(value, i)) for i in (0, 1)]
            return g.Mul(*sides)

        sides = [
            g.Relu(
                g.Sub(
                    g.Min(corner(asked, i + 2), corner(found, i + 2)),
                    g.Max(corner(asked, i), corner(found, i)),
                )
            )
            for i in (0, 1)
        ]
        shared = g.Mul(*sides)  # (B, M)
        overlap = g.Div(shared, g.Sub(g.Add(area(asked), area(found)), shared))
        best = g.ArgMax(overlap, axis=1, keepdims=1)  # (B, 1)
        most = g.GatherElements(overlap, best, axis=1)
        at = g.Squeeze(best, [1])
        fits = g.And(
            g.Greater(g.Squeeze(most, [1]), float(self.threshold)),
            g.Equal(g.Gather(kinds, at, axis=0), g.Squeeze(classes, [0])),
        )
        each = g.Where(fits, g.Add(g.Squeeze(most, [1]), g.Gather(marks, at, axis=0)), 0.0)
        z = g.Reshape(g.ReduceSum(each, [0], keepdims=1), [1, 1])
        return Candidates(z, scores, (boxes, scores), classes=1, noun="detections", positions=True)


def _columns(model: Outputs, name: str | None) -> tuple[ir.Value, ir.Value]:
    """(the output, its columns (N, C) in a precision to compute scores in)."""
    found = model.logits(name, ())
    model.refuse_rank(
        found.output,
        [1, 2],
        "pytorch-grad-cam's targets take one number per class, (N, classes)",
        "use SemanticSegmentationTarget, a value of pycam.targets, or output= for another output",
    )
    wide = model.floats(found.value)
    return found.output, wide if len(wide.shape or ()) == 2 else model.g.Unsqueeze(wide, [1])


def _only(y: ir.Value, z: ir.Value) -> None:
    size = z.shape[1] if z.shape is not None and len(z.shape) == 2 else 1
    if size != 1:
        raise TargetError(
            f"the output {y.name!r} has {size} columns, which is no single number: use ClassifierOutputTarget(category)"
        )


def _shaped(value: ir.Value, like: ir.Value) -> ir.Value:
    value.shape = like.shape
    return value


def _detections(model: Outputs) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Boxes, labels and scores."""
    integers = {"INT64", "INT32"}

    def matches(value: ir.Value, name: str) -> bool:
        rank = len(value.shape) if value.shape is not None else -1
        whole = value.dtype is not None and value.dtype.name in integers
        return (rank == 2 and not whole) if name == "boxes" else (rank == 1 and whole == (name == "labels"))

    found = []
    for name in ("boxes", "labels", "scores"):
        fitting = [v for v in model.named.values() if matches(v, name)]
        named = [v for v in fitting if v.name == name] or fitting
        if len(named) != 1:
            raise TargetError(
                "FasterRCNNBoxScoreTarget takes a detector with the outputs boxes (M, 4), labels (M,) and scores (M,); "
                f"which one is {name!r} of {nearest(name, model.named, 8)} does not show: use pycam.targets"
            )
        found.append(named[0])
    return found[0], found[1], found[2]
