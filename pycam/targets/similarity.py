"""How much an embedding is like others: a reference image's, or a text's that another encoder made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pycam.errors import TargetError, nearest
from pycam.runtime.given import Given

from .base import Candidates, Target

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir

    from pycam.graph.builder import Builder

    from .outputs import Outputs

SAME = 1e-6
"""How near to 1 the cosine of an embedding with itself may come out."""

TINY = 1e-12
"""In place of a length that is smaller: the cosine with nothing is 0."""


@dataclass(frozen=True)
class Similarity(Target):
    """The similarity of the image's embedding `e` to references: `z_r = cos(e, ref_r)`, (N, R).

    A call gives `reference=`: (D,), (R, D) or (N, R, D), in the embedding's own scale.  `targets` are references, −1
    the most similar one.  `Explanation.extras["embedding"]` is (N, D).

    The cosine with the image's own embedding is at its maximum: its gradient is zero, and the map flat.

    Args:
        output: Name of the output that holds the embedding (N, D); None: the one that the Explainer is told, or else
            the first.  Tokens (N, T, D) are averaged; what has more axes is flattened.
        measure: "cosine"; "dot": `e·ref`; "euclidean": `−‖e − ref‖`.
        token: Of tokens (N, T, D) take this one, such as 0, a class token.

    Raises:
        TargetError: an unknown measure, or a token that is no integer.
    """

    kind: ClassVar[str] = "similarity"

    output: str | None = None
    measure: str = "cosine"
    token: int | None = None

    def __post_init__(self) -> None:
        if self.measure not in MEASURES:
            raise TargetError(f"measure={self.measure!r}: choose one of {nearest(str(self.measure), MEASURES)}")
        if self.token is not None and (isinstance(self.token, bool) or not isinstance(self.token, int)):
            raise TargetError(f"token={self.token!r}: give the token's number, such as 0")

    def candidates(self, model: Outputs) -> Candidates:
        """See `Target.candidates`."""
        found = model.logits(self.output, ())
        e, length, notes = self._embedding(model, found.value)
        if length == 1:
            raise TargetError(
                f"the output {found.output.name!r} is one number per image, and no embedding: name another of "
                f"{', '.join(model.named)}"
            )
        ref = model.take("reference", Given("reference", "references", ("N", None, length), required=True))
        z = MEASURES[self.measure](model.g, e, ref)
        return Candidates(
            z,
            found.output,
            (found.value,),
            noun="reference",
            fixed=(ref,),
            extras={"embedding": e},
            per_image=("embedding",),
            notes=notes,
        )

    def _embedding(self, model: Outputs, value: ir.Value) -> tuple[ir.Value, int | None, tuple[str, ...]]:
        """(N, D), D if it is known, and what was decided."""
        g = model.g
        sizes = list(value.shape) if value.shape is not None else []
        if len(sizes) < 2:
            model.refuse_rank(value, [2, 3, 4], "an embedding is (N, D)", "name another output")
        if self.token is not None and len(sizes) != 3:
            raise TargetError(
                f"token={self.token}: the output {value.name!r} has {len(sizes)} axes, and tokens are (N, T, D)"
            )
        fixed = [d for d in sizes[1:] if isinstance(d, int)]
        known = math.prod(fixed) if len(fixed) == len(sizes) - 1 else None
        e = model.floats(value)
        if len(sizes) == 2:
            return e, known, ()
        if len(sizes) > 3:
            return g.Flatten(e, axis=1), known, ()
        last = sizes[2] if isinstance(sizes[2], int) else None
        if self.token is None:
            note = f"the embedding is the mean over axis 1 of {value.name!r} (token= takes one of its tokens)"
            return g.ReduceMean(e, [1], keepdims=0), last, (note,)
        if isinstance(sizes[1], int) and not -sizes[1] <= self.token < sizes[1]:
            raise TargetError(f"token={self.token}: the output {value.name!r} has {sizes[1]} tokens, from 0")
        return g.Gather(e, g.constant(self.token), axis=1), last, ()


def _dot(g: Builder, e: ir.Value, ref: ir.Value) -> ir.Value:
    """(N, D), (N, R, D) → (N, R)."""
    return g.Squeeze(g.MatMul(ref, g.Unsqueeze(e, [2])), [2])


def _cosine(g: Builder, e: ir.Value, ref: ir.Value) -> ir.Value:
    own, others = (g.Div(x, g.Max(g.ReduceL2(x, [axis], keepdims=1), TINY)) for x, axis in ((e, 1), (ref, 2)))
    cosine = _dot(g, own, others)
    return g.Where(g.Greater(cosine, 1 - SAME), 1.0, cosine)  # at its maximum the gradient would be rounding


def _euclidean(g: Builder, e: ir.Value, ref: ir.Value) -> ir.Value:
    return g.Neg(g.ReduceL2(g.Sub(g.Unsqueeze(e, [1]), ref), [2], keepdims=0))


MEASURES: dict[str, Callable[[Builder, ir.Value, ir.Value], ir.Value]] = {
    "cosine": _cosine,
    "dot": _dot,
    "euclidean": _euclidean,
}
