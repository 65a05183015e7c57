"""`Recipe`: how an explain graph that was cut into stages is run; plain data, so that it can be exported.

    prepare          once per image: scores, activations, whatever else the later stages read
    host functions   numpy: what is linear algebra rather than graph; those that are `late` come behind `finish`
    step             for a batch of variants at a time: masks, noise, ablations
    finish           what the variants gave → maps
    head             what late functions gave → heatmaps

Every stage is a graph whose inputs and outputs are found by name among what the stages before it made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

STAGES = ("prepare", "step", "finish", "head")

Fold: TypeAlias = Literal["stack", "sum"]


@dataclass(frozen=True)
class Noise:
    """Random numbers that `step` reads: one sample per variant."""

    name: str
    kind: Literal["normal", "uniform"]
    shape: tuple[int, ...]  # of a sample; () where it is that of `like`
    like: str | None  # a value (1, …) whose shape, without the first axis, a sample has
    seed: int
    stream: int


@dataclass(frozen=True)
class Host:
    """A function of `pycam.runtime.algebra`, called behind `prepare`, or behind `finish`."""

    function: str
    sources: tuple[str, ...]
    results: tuple[str, ...]
    options: dict[str, Any]
    late: bool = False


@dataclass(frozen=True)
class Collected:
    """An output of `step`, and the input of `finish` that it becomes: stacked along axis 0, or summed."""

    output: str
    input: str
    fold: Fold


@dataclass(frozen=True)
class Recipe:
    """What runs besides one graph.

    Attributes:
        ids: Output of `prepare`, int64 (V,): the variants; None if there are none.
        variant: Input of `step`, int64 (M,): a batch of them.
        at_most: V as far as it is known.
        noise, host, collected: See their classes.
        gradients: A step differentiates for K targets: its batch is K times as large.
        single: The model takes one image at a time, and so do the steps.
    """

    ids: str | None = None
    variant: str | None = None
    at_most: int | None = None
    noise: tuple[Noise, ...] = ()
    host: tuple[Host, ...] = ()
    collected: tuple[Collected, ...] = ()
    gradients: bool = False
    single: bool = False

    @property
    def varies(self) -> bool:
        """Whether there are variants: then one image is explained at a time."""
        return self.variant is not None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Recipe:
        """The other way round.  Raises TypeError or ValueError where a field is missing or unknown."""
        parts: dict[str, Any] = dict(found)
        parts["noise"] = tuple(Noise(**{**n, "shape": tuple(n["shape"])}) for n in found["noise"])
        parts["host"] = tuple(
            Host(h["function"], tuple(h["sources"]), tuple(h["results"]), h["options"], h["late"])
            for h in found["host"]
        )
        parts["collected"] = tuple(Collected(**c) for c in found["collected"])
        return cls(**parts)
