"""`Target`: what is explained.  It makes scores out of a model's outputs.

A target is a small frozen value.  Its one method puts nodes behind the model's outputs that compute `z` (N, C): the
scores of all that may be explained, its *candidates*.  Which of them a call explains is chosen from the graph's input
`targets` (N, K); everything else (objectives, gradients, methods, variants) only ever sees `z`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

from pycam.errors import TargetError

if TYPE_CHECKING:
    import onnx_ir as ir

    from pycam.runtime.given import Given

    from .outputs import Outputs


@dataclass(frozen=True)
class Candidates:
    """What a target made of a model's outputs.

    Attributes:
        z: (N, C): a score for everything that may be explained.
        output: The model output that it is mainly made of.
        ends: Values of the model that the target reads for `z`: a layer lies before them.
        entries: int64 (N, K): the entries of `z` that are explained; None: `targets` are entries, −r the r-th best.
        shown: int64 (N, K): what `Explanation.targets` says was explained; None: the entries.
        classes: How many targets there are to choose from; None if the model does not say.
        noun: What one of them is called.
        probabilities: `output` holds probabilities over its classes.
        positions: `ends` keep positions of the image, as masks and boxes do: what "auto" picks is then the layer of
            `graph.automatic.automatic_spatial`.
        points: The score is that of a single position: of its features a fine grid would show but that one.
        fixed: Values that say what was chosen: variants of an image keep those of the image itself.
        given: What a call may give besides the targets: keyword → the graph input and its meaning.
        extras: What is returned besides the maps, the first axis N: key in `Explanation.extras` → value.
        per_image: Keys of those extras that say something of an image, not of a target: their axis 1 is not K.
        notes: What was decided, in sentences.
    """

    z: ir.Value
    output: ir.Value
    ends: tuple[ir.Value, ...]
    entries: ir.Value | None = None
    shown: ir.Value | None = None
    classes: int | None = None
    noun: str = "class"
    probabilities: bool = False
    positions: bool = False
    points: bool = False
    fixed: tuple[ir.Value, ...] = ()
    given: Mapping[str, Given] = field(default_factory=dict)
    extras: Mapping[str, ir.Value] = field(default_factory=dict)
    per_image: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Target(ABC):
    """What is explained; subclasses are frozen dataclasses whose fields are its options.

    Attributes:
        kind: What it is called, on the command line and in `Spec.target`.
    """

    kind: ClassVar[str]

    @abstractmethod
    def candidates(self, model: Outputs) -> Candidates:
        """Put nodes behind the model's outputs that compute the scores.

        Raises:
            TargetError: the target does not fit the outputs.
        """

    def options(self) -> dict[str, Any]:
        """Its options as JSON values."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}


def check_target(target: object) -> Target | None:
    """`target` if it is a Target; None for classes, labels and whatever else says which one.

    Raises:
        TargetError: it names a kind of target, but is none.
    """
    if isinstance(target, type) and issubclass(target, Target):
        raise TargetError(f"target={target.__name__}: a target is a value, write pycam.targets.{target.__name__}()")
    if isinstance(target, str):
        from . import kinds

        if target in kinds():
            raise TargetError(f"target={target!r}: write pycam.targets.{kinds()[target].__name__}()")
    return target if isinstance(target, Target) else None


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)
