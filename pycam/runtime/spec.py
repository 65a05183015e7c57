"""`Spec`: what an explain graph says about itself, in its metadata, so that it runs without the compiler."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pycam.errors import ModelError

from .layouts import LAYOUTS

if TYPE_CHECKING:  # most graphs have neither, and starting is quicker without
    from .given import Given
    from .recipe import Recipe

KEY = "pycam.spec"

CLASSES = ("class", "probability", "log_odds", "one_vs_rest")
"""Kinds of targets that are one of several classes of the whole image."""

LISTED = 6
"""Up to so many layers are named one by one."""

ROUNDING = 1e-5
"""Share of a level of the score below which differences between positions are rounding: such a map is flat."""


@dataclass(frozen=True)
class Spec:
    """Names and facts of an explain graph.

    Attributes:
        method: Name of the method.
        layers: Tensor names of the layers.
        modules: Their module paths ("" where unknown).
        image: Name of the image input.
        layout: How its axes lie: "NCHW", "NCL", …, see `layouts.LAYOUTS`.
        targets: Name of the input int64 (N, K).
        explained: Name of the output int64 (N, K): the classes explained, negative targets looked up.
        score: Name of the model output that is explained.
        outputs: Names of the model's own outputs that the graph returns (may be none).
        raw: Names of the raw maps, one per layer (may be none).
        heatmaps: Name of the heatmaps, or None where only raw maps are returned.
        classes: Number of classes, None if the model does not say.
        many: K is free; else it is 1.
        probabilities: The score's output is a probability (the model ends in a softmax).
        notes: What the compiler had to decide, in sentences.
        against: Name of the input int64 (N, K) that targets are held against, for a contrast; else None.
        extras: What is returned besides: key in `Explanation.extras` → name of the output.
        per_image: Keys of those extras that say something of an image, not of a target.
        plan: "single pass", "split" or "perturb"; the last two explain one image at a time.
        objective: What is differentiated, see `targets.objectives`.
        eigen_smooth: Weighted activations are projected onto their first singular vector.
        options: Of the method.
        targeted: The method explains given targets; else it finds by itself what it explains.
        levels: The maps are levels of the score: a heatmap begins at their minimum, not at 0.
        batched: Names of the inputs that have an entry per image; None: all of them.
        axes: Outputs of the model whose batch axis is not the first → which it is, or None for those without.
        recipe: How the stages are run, where there are several graphs.
        target: Kind of the target.
        target_options: Its options.
        noun: What one of the targets is called.
        combine: What the heatmap of several layers is of theirs: "mean", "max" or "product".
        given: What a call may give besides the targets: key → the graph's input.
    """

    method: str
    layers: tuple[str, ...]
    modules: tuple[str, ...]
    image: str
    layout: str
    targets: str
    explained: str
    score: str
    outputs: tuple[str, ...]
    raw: tuple[str, ...]
    heatmaps: str | None
    classes: int | None
    many: bool
    probabilities: bool
    notes: tuple[str, ...] = ()
    against: str | None = None
    extras: Mapping[str, str] = field(default_factory=dict)
    per_image: tuple[str, ...] = ()
    plan: str = "single pass"
    objective: str = "class"
    eigen_smooth: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    targeted: bool = True
    levels: bool = False
    batched: tuple[str, ...] | None = None
    axes: Mapping[str, int | None] = field(default_factory=dict)
    recipe: Recipe | None = None
    target: str = "class"
    target_options: Mapping[str, Any] = field(default_factory=dict)
    noun: str = "class"
    combine: str = "mean"
    given: Mapping[str, Given] = field(default_factory=dict)

    @cached_property
    def chosen(self) -> frozenset[str]:
        """Names of all inputs that say what is explained."""
        against = () if self.against is None else (self.against,)
        return frozenset((self.targets, *against, *(one.input for one in self.given.values())))

    @cached_property
    def per_target(self) -> frozenset[str]:
        """Those of them whose second axis is that of the targets."""
        others = {one.input for one in self.given.values() if not one.per_target}
        return self.chosen - others

    @cached_property
    def returned(self) -> tuple[str, ...]:
        """Names of all outputs of the graph."""
        maps = () if self.heatmaps is None else (self.heatmaps,)
        return (*self.outputs, *maps, *self.raw, *self.extras.values(), self.explained)

    @cached_property
    def layer(self) -> str:
        """The layers as people name them: module path where there is one; "" for a method that looks at none."""
        names = [module or name for module, name in zip(self.modules, self.layers, strict=True)]
        return ", ".join(names) if len(names) <= LISTED else f"{len(names)} layers, {names[0]} … {names[-1]}"

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Spec | None:
        """The spec in a model's metadata, or None if the model is no explain graph.

        Raises:
            ModelError: it was made by a pycam that this one does not understand.
        """
        if KEY not in metadata:
            return None
        try:
            found = json.loads(metadata[KEY])
            known = {f.name for f in fields(cls)}
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in found.items() if k in known}
            if values.get("recipe") is not None:
                from .recipe import Recipe

                values["recipe"] = Recipe.from_dict(values["recipe"])
            if values.get("given"):
                from .given import Given

                values["given"] = {key: Given.from_dict(one) for key, one in values["given"].items()}
            spec = cls(**values)
            _check(spec)
            return spec
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise ModelError(f"the explain graph's own description cannot be read ({error}): export it again") from None


def _check(spec: Any) -> None:
    """Raise ValueError where a field is not of its type, or fields contradict each other."""
    rows = (spec.layers, spec.modules, spec.outputs, spec.raw, spec.per_image, spec.notes, spec.batched or ())
    texts = [
        spec.target,
        spec.noun,
        spec.method,
        spec.image,
        spec.targets,
        spec.explained,
        spec.score,
        *(t for row in rows for t in row),
    ]
    sound = {
        "layout": spec.layout in LAYOUTS,
        "classes": spec.classes is None or type(spec.classes) is int,
        "layers": all(type(row) is tuple for row in rows) and len(spec.layers) == len(spec.modules),
        "raw": spec.heatmaps is not None or len(spec.raw) > 0,
        "plan": spec.plan in ("single pass", "split", "perturb"),
        "against": spec.against is None or type(spec.against) is str,
        "extras": all(type(text) is str for pair in spec.extras.items() for text in pair),
        "heatmaps": spec.heatmaps is None or type(spec.heatmaps) is str,
        "names": all(type(text) is str for text in texts),
        "many": type(spec.many) is bool and type(spec.probabilities) is bool,
    }
    wrong = [name for name, fine in sound.items() if not fine]
    if wrong:
        raise ValueError(f"wrong {', '.join(wrong)}")
