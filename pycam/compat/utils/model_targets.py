"""pytorch-grad-cam's targets: the same names, arguments and attributes.

Here a target is a description that the explain graph is compiled from (`score`) and given numbers for (`given`).
Called on a model's output for one image, it computes its score in numpy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pycam.compat import scores
from pycam.compat.arrays import to_numpy
from pycam.errors import TargetError
from pycam.targets.base import Target


class Chosen(NamedTuple):
    """What a call gives for one image."""

    category: int | None = None
    """Index of the score, from the end where negative; None: the best one."""
    given: dict[str, NDArray[Any]] = {}  # noqa: RUF012 (never written to)
    """What else the score takes, without the axis of images."""


class ModelTarget(ABC):
    """A target as pycam needs it."""

    @property
    @abstractmethod
    def score(self) -> Target:
        """What is computed from the outputs."""

    @abstractmethod
    def chosen(self) -> Chosen:
        """Which of the scores is explained."""


class ClassifierOutputTarget(ModelTarget):
    """`y_category`: the model's output as it is, a final softmax included."""

    def __init__(self, category: int) -> None:
        self.category = category

    def __call__(self, model_output: Any) -> Any:
        return model_output[self.category] if len(model_output.shape) == 1 else model_output[:, self.category]

    @property
    def score(self) -> Target:
        """See `ModelTarget`."""
        return scores.Score()

    def chosen(self) -> Chosen:
        """See `ModelTarget`."""
        return Chosen(_index(self.category, type(self).__name__))


class ClassifierOutputSoftmaxTarget(ClassifierOutputTarget):
    """`softmax(y)_category`."""

    def __call__(self, model_output: Any) -> Any:
        return super().__call__(_softmax(to_numpy(model_output)))

    @property
    def score(self) -> Target:
        """See `ModelTarget`."""
        return scores.Softmax()


class ClassifierOutputReST(ClassifierOutputTarget):
    """`y_category + log softmax(y)_category` (2501.06261)."""

    def __call__(self, model_output: Any) -> Any:
        y = to_numpy(model_output)
        return super().__call__(y + np.log(_softmax(y)))

    @property
    def score(self) -> Target:
        """See `ModelTarget`."""
        return scores.ReST()


class BinaryClassifierOutputTarget(ModelTarget):
    """`y` of a model with a single output where `category` is 1, else `−y`."""

    def __init__(self, category: int) -> None:
        self.category = category

    def __call__(self, model_output: Any) -> Any:
        return model_output * (1 if self.category == 1 else -1)

    @property
    def score(self) -> Target:
        """See `ModelTarget`."""
        return scores.Signed()

    def chosen(self) -> Chosen:
        """See `ModelTarget`."""
        return Chosen(int(self.category == 1))


class RawScoresOutputTarget(ModelTarget):
    """`y` of a model with a single output; of several columns there is nothing to differentiate, as in
    pytorch-grad-cam, and methods that read activations alone do not ask."""

    def __call__(self, model_output: Any) -> Any:
        return model_output

    @property
    def score(self) -> Target:
        """See `ModelTarget`."""
        return scores.Raw()

    def chosen(self) -> Chosen:
        """See `ModelTarget`."""
        return Chosen(0)


class SoftmaxOutputTarget(ModelTarget):
    """`softmax(y)`, all of it: for methods that read activations alone."""

    def __call__(self, model_output: Any) -> Any:
        return _softmax(to_numpy(model_output))

    @property
    def score(self) -> Target:
        """Raises TargetError: it is no single number."""
        raise TargetError(
            "SoftmaxOutputTarget stands for all classes at once, which is no number to explain: use "
            "ClassifierOutputSoftmaxTarget(category)"
        )

    def chosen(self) -> Chosen:
        """See `ModelTarget`."""
        return Chosen()


class SemanticSegmentationTarget(ModelTarget):
    """`Σ_ij y_category,ij·mask_ij`.

    Args:
        category: The class.
        mask: (h, w) at the size of the model's output.
    """

    def __init__(self, category: int, mask: ArrayLike) -> None:
        self.category = category
        self.mask = to_numpy(mask)
        if self.mask.ndim != 2 or self.mask.dtype.kind not in "biuf":
            raise TargetError(
                f"SemanticSegmentationTarget takes a mask of numbers (h, w) at the size of the model's output; "
                f"got {self.mask.dtype} {self.mask.shape}"
            )

    def __call__(self, model_output: Any) -> Any:
        return (to_numpy(model_output)[self.category] * self.mask).sum()

    @property
    def score(self) -> Target:
        """See `ModelTarget`."""
        return scores.Masked()

    def chosen(self) -> Chosen:
        """See `ModelTarget`."""
        return Chosen(_index(self.category, type(self).__name__), {"mask": self.mask.astype(np.float32)})


class FasterRCNNBoxScoreTarget(ModelTarget):
    """`Σ_b (IoU + score)` of the detections that overlap the boxes most; see `pycam.compat.scores.Boxes`.

    Args:
        labels: B classes.
        bounding_boxes: (B, 4): left, top, right, bottom in pixels.
        iou_threshold: A box whose best IoU is not above it counts nothing.
    """

    def __init__(self, labels: Sequence[int], bounding_boxes: ArrayLike, iou_threshold: float = 0.5) -> None:
        self.labels = labels
        self.bounding_boxes = bounding_boxes
        self.iou_threshold = iou_threshold

    def __call__(self, model_outputs: Any) -> Any:
        boxes, kinds, marks = (to_numpy(model_outputs[name]) for name in ("boxes", "labels", "scores"))
        total = np.zeros(1, np.float32)
        given = self.chosen().given
        for (left, top, right, bottom), label in zip(given["boxes"], given["labels"], strict=True):
            if not len(boxes):
                break
            high = np.minimum(boxes[:, 3], bottom) - np.maximum(boxes[:, 1], top)
            wide = np.minimum(boxes[:, 2], right) - np.maximum(boxes[:, 0], left)
            shared = np.maximum(high, 0) * np.maximum(wide, 0)
            areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
            overlap = shared / (areas + (right - left) * (bottom - top) - shared)
            best = overlap.argmax()
            if overlap[best] > self.iou_threshold and kinds[best] == label:
                total += overlap[best] + marks[best]
        return total

    @property
    def score(self) -> Target:
        """See `ModelTarget`."""
        return scores.Boxes(float(self.iou_threshold))

    def chosen(self) -> Chosen:
        """See `ModelTarget`."""
        boxes = to_numpy(self.bounding_boxes).astype(np.float32)
        labels = np.array([_index(label, type(self).__name__) for label in self.labels], np.int64)
        if boxes.ndim != 2 or boxes.shape[1] != 4 or len(boxes) != len(labels) or not len(boxes):
            raise TargetError(
                f"FasterRCNNBoxScoreTarget takes B labels and B boxes (left, top, right, bottom), B ≥ 1; got "
                f"{len(labels)} labels and boxes of shape {boxes.shape}"
            )
        return Chosen(0, {"boxes": boxes, "labels": labels})


class FinerWeightedTarget(ModelTarget):
    """`Σ_i p_i(y_main − alpha·y_i)/(Σ_i p_i + 1e-9)`, i the comparison categories, `p = softmax(y)` (2501.11309)."""

    def __init__(self, main_category: int, comparison_categories: Sequence[int], alpha: float) -> None:
        self.main_category = main_category
        self.comparison_categories = comparison_categories
        self.alpha = alpha

    def __call__(self, model_output: Any) -> Any:
        y = to_numpy(model_output)
        others = list(self.comparison_categories)
        p = _softmax(y)[..., others]
        lead = y[..., [self.main_category]] - self.alpha * y[..., others]
        return (p * lead).sum(-1) / (p.sum(-1) + 1e-9)

    @property
    def score(self) -> Target:
        """See `ModelTarget`."""
        return scores.Finer(alpha=float(self.alpha))

    def chosen(self) -> Chosen:
        """See `ModelTarget`."""
        name = type(self).__name__
        others = np.array([_index(one, name) for one in self.comparison_categories], np.int64)
        if not len(others):
            raise TargetError("FinerWeightedTarget holds a class against others, and no comparison category was given")
        return Chosen(_index(self.main_category, name), {"comparison": others})


def _index(category: Any, target: str) -> int:
    try:
        return int(category.__index__())
    except (AttributeError, TypeError):
        raise TargetError(f"{target}: a category is an integer, not {category!r}") from None


def _softmax(y: NDArray[Any]) -> NDArray[Any]:
    e = np.exp(y - y.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))
