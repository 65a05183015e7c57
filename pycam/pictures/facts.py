"""What pictures and reports say about an explanation, in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pycam.runtime.spec import CLASSES

if TYPE_CHECKING:
    from pycam.explanation import Explanation

CAPTIONS = {
    "class": ("does not matter", "matters"),
    "counterfactual": ("does not matter", "speaks against it"),
    "contrastive": ("does not matter", "tells them apart"),
}
"""Objective → what the two ends of a heatmap's colour bar mean."""

SIDES = ("speaks against it", "speaks for it")
"""The same of a signed map's."""


_SCORES = {"box_scores": "{:.1%}", "score": "{:.3g}"}
"""Extras (N, K) that are the score of what was explained, and how they are written."""


def one(explanation: Explanation, n: int) -> Explanation:
    """The explanation of image n alone."""
    images = len(explanation.heatmaps)

    def row(array: NDArray[Any]) -> NDArray[Any]:
        return array[n : n + 1] if array.shape[:1] == (images,) else array

    raw, scores = explanation.raw, explanation.scores
    return replace(
        explanation,
        heatmaps=row(explanation.heatmaps),
        raw=tuple(map(row, raw)) if isinstance(raw, tuple) else row(raw),
        scores={name: row(array) for name, array in scores.items()} if isinstance(scores, dict) else row(scores),
        targets=row(explanation.targets),
        flat=row(explanation.flat),
        extras={name: row(array) for name, array in explanation.extras.items()},
    )


def class_scores(explanation: Explanation, output: str | None = None) -> NDArray[np.float64] | None:
    """(N, C): the scores of the classes, as probabilities; None where they are not such a table.

    Scores that all lie in [0, 1], and a single score, are given as they are; others go through a softmax.

    Args:
        explanation: Whose.
        output: The model output that was explained, needed if the graph returns several.
    """
    scores = explanation.scores
    if isinstance(scores, Mapping):
        scores = scores.get(output or "", np.zeros(0))
    if explanation.target not in CLASSES or scores.ndim != 2 or not scores.size or scores.dtype.kind != "f":
        return None
    rows = scores.astype(np.float64)
    if rows.shape[1] == 1 or (rows.min() >= 0 and rows.max() <= 1):
        return rows
    exp = np.exp(rows - rows.max(axis=1, keepdims=True))
    return np.asarray(exp / exp.sum(axis=1, keepdims=True))


def score_text(explanation: Explanation, n: int, k: int, output: str | None = None) -> str:
    """`95.3%`: the score of what map (n, k) explains; "" where it has none."""
    for name, form in _SCORES.items():
        if name in explanation.extras:
            return form.format(float(explanation.extras[name][n, k]))
    scores = class_scores(explanation, output)
    target = int(explanation.targets[n, k])
    return number(float(scores[n, target])) if scores is not None and 0 <= target < scores.shape[1] else ""


def number(value: float) -> str:
    """A score as people read it: a percentage if it may be one."""
    return f"{value:.1%}" if 0 <= value <= 1 else f"{value:.3g}"


def top(explanation: Explanation, n: int, count: int, output: str | None = None) -> list[tuple[str, float]]:
    """The best classes of image n and their scores; [] where there are no class scores."""
    scores = class_scores(explanation, output)
    if scores is None:
        return []
    order = np.argsort(-scores[n], kind="stable")[:count]
    labels = explanation.labels
    return [(labels[i] if i < len(labels) else f"class {i}", float(scores[n, i])) for i in order]


def title_of(method: str) -> str:
    """A method's name in its paper; its own where it is not one of pycam's."""
    from pycam.method import methods

    return next((m.title for m in methods() if m.name == method), method)
