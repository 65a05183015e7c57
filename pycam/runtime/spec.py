"""`Spec`: what an explain graph says about itself, in its metadata, so that it runs without the compiler."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

from pycam.errors import ModelError

KEY = "pycam.spec"


@dataclass(frozen=True)
class Spec:
    """Names and facts of an explain graph.

    Attributes:
        method: Name of the method.
        layers: Tensor names of the layers.
        modules: Their module paths ("" where unknown).
        image: Name of the image input.
        layout: "NCHW" or "NHWC".
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

    @cached_property
    def returned(self) -> tuple[str, ...]:
        """Names of all outputs of the graph."""
        maps = () if self.heatmaps is None else (self.heatmaps,)
        return (*self.outputs, *maps, *self.raw, self.explained)

    @cached_property
    def layer(self) -> str:
        """The layers as people name them: module path where there is one."""
        return ", ".join(module or name for module, name in zip(self.modules, self.layers, strict=True))

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
            spec = cls(**values)
            _check(spec)
            return spec
        except (ValueError, TypeError, AttributeError) as error:
            raise ModelError(f"the explain graph's own description cannot be read ({error}): export it again") from None


def _check(spec: Any) -> None:
    """Raise ValueError where a field is not of its type, or fields contradict each other."""
    rows = (spec.layers, spec.modules, spec.outputs, spec.raw, spec.notes)
    texts = [spec.method, spec.image, spec.targets, spec.explained, spec.score, *(t for row in rows for t in row)]
    sound = {
        "layout": spec.layout in ("NCHW", "NHWC"),
        "classes": spec.classes is None or type(spec.classes) is int,
        "layers": all(type(row) is tuple for row in rows) and len(spec.layers) == len(spec.modules) > 0,
        "raw": len(spec.raw) in ((0, len(spec.layers)) if spec.heatmaps is not None else (len(spec.layers),)),
        "heatmaps": spec.heatmaps is None or type(spec.heatmaps) is str,
        "names": all(type(text) is str for text in texts),
        "many": type(spec.many) is bool and type(spec.probabilities) is bool,
    }
    wrong = [name for name, fine in sound.items() if not fine]
    if wrong:
        raise ValueError(f"wrong {', '.join(wrong)}")
