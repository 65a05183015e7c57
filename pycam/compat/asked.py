"""A list of targets, one per image, as calls of explainers: images whose scores are computed alike go together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pycam.errors import TargetError
from pycam.targets.base import Target

from .scores import Score
from .utils.model_targets import Chosen, ModelTarget


@dataclass
class Group:
    """Images that one explainer explains.

    Attributes:
        score: What is computed from the outputs.
        images: Their places in the batch.
        chosen: What each is given.
    """

    score: Target
    images: list[int] = field(default_factory=list)
    chosen: list[Chosen] = field(default_factory=list)

    def takes(self, score: Target, chosen: Chosen) -> bool:
        """Whether an image with this target is one of them."""
        shapes = [{key: array.shape for key, array in one.given.items()} for one in (chosen, self.chosen[0])]
        return self.score == score and shapes[0] == shapes[1]

    def targets(self, classes: int | None) -> NDArray[np.int64]:
        """(N,): the class of each, −1 for the best one.

        Args:
            classes: How many there are; None if the model does not say.

        Raises:
            TargetError: a category out of range.
        """
        found = []
        for n, one in zip(self.images, self.chosen, strict=True):
            category = -1 if one.category is None else one.category
            if category < 0 and one.category is not None:  # counted from the end, as Python does
                if classes is None:
                    raise TargetError(
                        f"category {category} of image {n}: the model does not say how many classes there are: "
                        "count from 0, not from the end"
                    )
                category += classes
            if one.category is not None and not (category >= 0 and (classes is None or category < classes)):
                raise TargetError(f"category {one.category} of image {n} is out of range: there are {classes} classes")
            found.append(category)
        return np.array(found, np.int64)

    @property
    def given(self) -> dict[str, NDArray[Any]]:
        """What else the score takes, (N, …) each."""
        return {key: np.stack([one.given[key] for one in self.chosen]) for key in self.chosen[0].given}


def grouped(targets: Sequence[Any] | None, images: int) -> list[Group]:
    """The groups of a batch.

    Args:
        targets: One per image: of `model_targets`, None (the best class), or a value of `pycam.targets`; None: the best
            class of each.
        images: How many there are.

    Raises:
        TargetError: a number of targets that does not fit, or something that is no target.
    """
    if targets is None:
        targets = [None] * images
    if isinstance(targets, ModelTarget) or not isinstance(targets, Sequence):
        raise TargetError(
            f"targets is a list with a target for each image, not {type(targets).__name__}: put it in [ ]"
        )
    if len(targets) != images:
        raise TargetError(
            f"{len(targets)} target(s) for {images} image(s): give one for each, [target] * {images} where it is the "
            "same (pytorch-grad-cam leaves out in silence what has no partner)"
        )
    groups: list[Group] = []
    for n, target in enumerate(targets):
        score, chosen = _taken(target)
        group = next((one for one in groups if one.takes(score, chosen)), None)
        if group is None:
            groups.append(group := Group(score))
        group.images.append(n)
        group.chosen.append(chosen)
    return groups


def _taken(target: Any) -> tuple[Target, Chosen]:
    if target is None:
        return Score(), Chosen()
    if isinstance(target, ModelTarget):
        return target.score, target.chosen()
    if isinstance(target, Target):
        return target, Chosen()
    if isinstance(target, (int, np.integer)):
        raise TargetError(f"{target} is no target: write ClassifierOutputTarget({target})")
    if callable(target):
        name = getattr(target, "__name__", type(target).__name__)
        raise TargetError(
            f"{name} is a function of the framework's tensors, which has no part in an ONNX graph: give a value of "
            "pycam.targets in its place, such as Weighted (sums of outputs) or Custom (a graph of your own)"
        )
    raise TargetError(f"{target!r} is no target: use a class of pycam.compat.utils.model_targets")
