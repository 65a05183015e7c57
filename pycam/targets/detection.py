"""Detections: the class score of one object that a detector found, and how far its box agrees with a given one."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pycam.errors import TargetError, nearest
from pycam.runtime.feeds import DEEPEST
from pycam.runtime.given import Given

from .base import Candidates, Target

if TYPE_CHECKING:
    import onnx_ir as ir

    from .detectors import Detector
    from .outputs import Outputs

FORMS = ("apart", "joint", "list")
ACTIVATIONS = ("sigmoid", "softmax", "none")
UNITS = ("pixels", "image")
SAME = 0.01
"""Sides of boxes that are no further apart are the same, in pixels."""


@dataclass(frozen=True)
class Detection(Target):
    """The class score of one detected object, `y = z_{a,c}` at an entry `a` of the detector's head.

    `targets` (N, K) and `box=` (N, K, 4) (left, top, right, bottom in pixels of the model's input) say which:

    - targets ≥ 0: the best detection of this class; −1: the best of all; −2: the second best, another object (behind
      non-maximum suppression), and so on;
    - box=: the entry that overlaps it most, of the class if targets ≥ 0, else of any.

    Only entries with a score above `threshold` count.  The score that is differentiated is the logit, where the
    sigmoid or softmax behind it can be found.  An entry of a raw head is the same one in every pass of a method; from a
    list behind non-maximum suppression, whose order may change, the detection of the class that overlaps the first
    one (or `box=`) most is taken anew in each pass, and y is 0 where none overlaps it more than `overlap`.

    What it returns besides the maps (`Explanation.extras`): `boxes` (N, K, 4) float32, left, top, right, bottom in
    pixels, cut to the image for raw heads; `box_scores` (N, K) float32, the probability; `iou` (N, K) float32 with
    `box=`, −1 where none was given; `detections` (N, K) int64: how many distinct objects the image has, at most 16.

    Args:
        boxes: The output with boxes, or several, for levels of a pyramid, anchors in their order.  None: found.
        scores: The output with class scores, or one for each of `boxes`.
        labels: The output with classes of a list: (D,) or (N, D).
        form: "apart": boxes (N, A, 4), (N, h, w, 4) or with the 4 along axis 1, and scores alike; "joint":
            (N, A, 4 + C) or (N, 4 + C, A) as YOLO's; "list": boxes (D, 4), scores (D,), labels (D,), all with or
            without a batch axis, or boxes alone (N, D, 6) with score and class behind the corners.  None: from what is
            named, or found.
        box: What four numbers mean: "corners" (left, top, right, bottom), "corners_yx" (top, left, bottom, right),
            "centre" (x, y, width, height; x, y from the anchor's centre, if there are anchors), "distances" (to the
            left, top, right, bottom from a point of the grid), "sizes" (width, height, and x, y from a point of the
            grid, in cells; also two outputs of two columns each), "offsets" (SSD's, relative to anchors).  None: from
            the form.
        unit: Of the boxes: "pixels", "image" (shares of its width and height), or the pixels that are 1.  None: pixels,
            or for corners and centres of raw heads shares, where no number of the image is above 2.
        objectness: A column of a joint output, behind the box, says whether there is an object, and the score is its
            product with the class's (y: the sum of their logits).  None: there is one if the columns lie along the
            last axis, as in YOLOv5, and none if they lie along axis 1, as in YOLOv8.
        background: The column of `scores` that stands for no object: 0, or −1 for the last.  None: 0 behind a softmax.
        activation: What makes probabilities of the scores: "sigmoid", "softmax" or "none".  None: found.
        anchors: (A, 4) x, y of the centre, width, height, or points (A, 2), in pixels or as shares of the image.
        variances: Of "offsets": what the first two and the last two numbers are multiplied by.
        cell: Where in its cell a point of the grid lies: 0 its corner, 0.5 its centre.
        threshold: Detections have scores above it.
        overlap: A detection matches a box if their IoU is above it.
        nms: Of two detections with an IoU above it the better one counts as an object.
        iou: y is the class score plus the IoU of the entry's box with `box=`, or with what it was in the first pass:
            with a list this is pytorch-grad-cam's `FasterRCNNBoxScoreTarget`, for one box.
        through_regions: The gradient also flows through the regions that a two-stage detector pools features from, to
            what proposed them; PyTorch's holds them.

    Raises:
        TargetError: an option out of range.
    """

    kind: ClassVar[str] = "detection"

    boxes: str | Sequence[str] | None = None
    scores: str | Sequence[str] | None = None
    labels: str | None = None
    form: str | None = None
    box: str | None = None
    unit: str | float | None = None
    objectness: bool | None = None
    background: int | None = None
    activation: str | None = None
    anchors: Any = None
    variances: tuple[float, float] = (0.1, 0.2)
    cell: float = 0.0
    threshold: float = 0.3
    overlap: float = 0.5
    nms: float = 0.5
    iou: bool = False
    through_regions: bool = False

    def __post_init__(self) -> None:
        value: Any  # what a caller gave need not be of its type
        for name, known in (("form", FORMS), ("activation", ACTIVATIONS)):
            value = getattr(self, name)
            if value is not None and value not in known:
                raise TargetError(f"{name}={value!r}: choose one of {nearest(str(value), known)}")
        if isinstance(self.unit, str) and self.unit not in UNITS:
            raise TargetError(f"unit={self.unit!r}: choose 'pixels', 'image', or a number of pixels")
        if self.background not in (None, 0, -1):
            raise TargetError(f"background={self.background}: the first (0) or the last (−1) column, or None")
        for name in ("threshold", "overlap", "nms"):
            value = getattr(self, name)
            if not _is_number(value) or not 0 <= value <= 1:
                raise TargetError(f"{name}={value!r}: give a number from 0 to 1")
        for name in ("cell", "unit"):
            value = getattr(self, name)
            fine = _is_number(value) and math.isfinite(value) and (name == "cell" or value > 0)
            if not (fine or (name == "unit" and (value is None or isinstance(value, str)))):
                raise TargetError(f"{name}={value!r}: give a number{' above 0' if name == 'unit' else ''}")
        for name, kinds in (("objectness", (bool, type(None))), ("iou", (bool,)), ("through_regions", (bool,))):
            if not isinstance(getattr(self, name), kinds):
                raise TargetError(f"{name}={getattr(self, name)!r}: give True or False")
        for name in ("boxes", "scores"):
            value = getattr(self, name)
            names = (value,) if isinstance(value, str) else value
            if value is not None and not (isinstance(names, (list, tuple)) and all(type(n) is str for n in names)):
                raise TargetError(f"{name}={value!r}: give the name of an output, or a list of names")
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        variances: Any = self.variances
        if not isinstance(variances, (list, tuple)) or len(variances) != 2:
            raise TargetError(f"variances={variances!r}: give two numbers, of places and of sizes")
        object.__setattr__(self, "variances", tuple(variances))
        if self.anchors is not None:
            object.__setattr__(self, "anchors", _anchors(self.anchors))

    def candidates(self, model: Outputs) -> Candidates:
        """See `Target.candidates`."""
        from .detectors import read

        g = model.g
        given = model.take("box", Given("box", "boxes", ("N", "K", 4)))
        head = read(model, self)
        found = _choose(model, self, head, given)
        z, fixed = head.follow(found)
        return Candidates(
            z,
            head.output,
            head.ends,
            entries=model.every(),
            shown=found.label,
            classes=head.classes,
            positions=True,
            points=True,
            fixed=fixed,
            given=dict(model.given),
            extras={
                "boxes": found.box,
                "box_scores": found.score,
                "iou": found.iou,
                "detections": g.Expand(found.objects, g.Shape(model.targets)),
            },
            notes=head.notes,
        )


@dataclass(frozen=True)
class Found:
    """What was chosen, in the model's own pass.

    Attributes:
        entry: int64 (N, K): which entry of the head.
        label: int64 (N, K): its class.
        box: (N, K, 4): in pixels.
        score: (N, K): its probability.
        iou: (N, K): with the box that was given; −1 where none was.
        reference: (N, K, 4): the box that was given, or else the entry's.
        objects: int64 (N, 1): how many there are.
    """

    entry: ir.Value
    label: ir.Value
    box: ir.Value
    score: ir.Value
    iou: ir.Value
    reference: ir.Value
    objects: ir.Value


def _choose(model: Outputs, asked: Detection, head: Detector, given: ir.Value) -> Found:
    """The entries that targets and boxes ask for."""
    from .boxes import at_entries, iou

    g, targets = model.g, model.targets
    wanted = g.Max(targets, [[0]])
    any_class = g.Less(targets, [[0]])
    scores = g.Where(g.Unsqueeze(any_class, [2]), g.Unsqueeze(head.best, [1]), head.of_class(wanted))  # (N, K, A)
    top = g.ArgMax(scores, axis=2, keepdims=0)
    ranked, objects = _by_rank(model, asked, head)
    there = g.Less(g.Sub([[-1]], targets), objects)
    plain = g.Where(g.And(any_class, there), g.GatherElements(ranked, _rank(model), axis=1), top)

    overlaps = iou(g, g.Unsqueeze(given, [2]), g.Unsqueeze(head.boxes, [1]))  # (N, K, A)
    overlaps = g.Where(g.Greater(scores, asked.threshold), overlaps, 0.0)
    matched = g.Greater(g.ReduceMax(overlaps, [2], keepdims=0), 0.0)
    has_box = g.GreaterOrEqual(g.ReduceMax(given, [2], keepdims=0), 0.0)
    entry = g.Where(g.And(has_box, matched), g.ArgMax(overlaps, axis=2, keepdims=0), plain)

    # They have this shape: said once more, since inference loses that there is a row per image.
    entry = g.Reshape(entry, g.Shape(targets))
    label = g.Reshape(g.Where(any_class, g.GatherElements(head.labels, entry, axis=1), targets), g.Shape(targets))
    box = at_entries(g, head.boxes, entry)
    score = g.Squeeze(g.GatherElements(scores, g.Unsqueeze(entry, [2]), axis=2), [2])
    # At IoU 1 its gradient is 0 (half of a kink each), but beside it not: a side that was given a rounding away is
    # taken for the entry's own.
    moved = g.And(g.Unsqueeze(has_box, [2]), g.Greater(g.Abs(g.Sub(given, box)), SAME))
    reference = g.Where(moved, given, box)
    agreed = g.Where(has_box, iou(g, given, box), -1.0)
    return Found(entry, label, box, score, agreed, reference, objects)


def _rank(model: Outputs) -> ir.Value:
    """0 for −1, 1 for −2, …, int64 (N, K)."""
    g = model.g
    return g.Clip(g.Sub([[-1]], model.targets), g.constant(0), g.constant(DEEPEST - 1))


def _by_rank(model: Outputs, asked: Detection, head: Detector) -> tuple[ir.Value, ir.Value]:
    """The entries of the best objects (N, 16), padded with 0, and how many there are (N, 1)."""
    g = model.g
    limits = [g.constant([asked.nms], head.best.dtype), g.constant([asked.threshold], head.best.dtype)]
    boxes = head.boxes
    kept = g.NonMaxSuppression(boxes, g.Unsqueeze(head.best, [1]), g.constant([DEEPEST]), *limits)
    kept.type = model.targets.type
    # One more row, so that there is one: it belongs to no image.
    rows = g.Concat(kept, [[-1, 0, 0]], axis=0)
    image, entry = (g.Squeeze(g.Slice(rows, [i], [i + 1], [1]), [1]) for i in (0, 2))
    images = g.Range(g.constant(0), g.Squeeze(g.Slice(g.Shape(boxes), [0], [1], [0]), [0]), g.constant(1))
    own = g.Cast(g.Equal(g.Unsqueeze(image, [0]), g.Unsqueeze(images, [1])), to=model.targets.dtype)  # (N, rows)
    count = g.ReduceSum(own, [1], keepdims=1)
    begin = g.CumSum(count, g.constant(0), exclusive=1)  # an image's rows are consecutive, the best one first
    last = g.Sub(g.Slice(g.Shape(rows), [0], [1], [0]), [1])
    place = g.Min(g.Add(begin, g.Range(g.constant(0), g.constant(DEEPEST), g.constant(1))), last)
    return g.Gather(entry, place, axis=0), count


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _anchors(value: Any) -> tuple[tuple[float, ...], ...]:
    """As numbers that compare and go into JSON."""
    rows = value.tolist() if hasattr(value, "tolist") else value
    try:
        found = tuple(tuple(float(number) for number in row) for row in rows)
    except (TypeError, ValueError):
        found = ()
    if not found or any(len(row) not in (2, 4) or len(row) != len(found[0]) for row in found):
        raise TargetError("anchors= must be (A, 4): x, y of the centre, width, height; or points (A, 2)")
    return found
