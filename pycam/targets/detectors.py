"""A detector's head, read: boxes, scores and labels of its entries, and the score of one of them in every pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import onnx_ir as ir

from pycam.errors import TargetError
from pycam.graph.axes import dims
from pycam.graph.depend import depending, hold, needed

from .boxes import as_float, at_entries, iou
from .decoding import decoded_levels
from .heads import Named, listing, name_outputs
from .raw_heads import RawHead

if TYPE_CHECKING:
    from .detection import Detection, Found
    from .outputs import Outputs

_POOLS = ("RoiAlign", "MaxRoiPool")
_CHOICES = ("TopK", "NonMaxSuppression")


class Detector(Protocol):
    """What the choice of entries sees of a head with A entries.

    Attributes:
        boxes: (N, A, 4): left, top, right, bottom in pixels.
        best: (N, A): the probability of an entry's best class.
        labels: int64 (N, A): that class.
        output, ends, classes, notes: See `Candidates`.
    """

    boxes: ir.Value
    best: ir.Value
    labels: ir.Value
    output: ir.Value
    ends: tuple[ir.Value, ...]
    classes: int | None
    notes: tuple[str, ...]

    def of_class(self, classes: ir.Value) -> ir.Value:
        """The probabilities (N, K, A) of classes (N, K) ≥ 0; 0 where an entry is of another one."""

    def follow(self, found: Found) -> tuple[ir.Value, tuple[ir.Value, ...]]:
        """The scores (N, K) of what was chosen, in any pass, and the values that say what it was."""


def read(model: Outputs, asked: Detection) -> Detector:
    """The head that `asked` describes.

    Raises:
        ModelError: an output that is named is not there.
        TargetError: the outputs do not fit.
    """
    named = name_outputs(model, asked)
    return _List(model, asked, named) if named.form == "list" else RawHead(model, asked, named)


class _List:
    """What a non-maximum suppression left: in every pass another list."""

    def __init__(self, model: Outputs, asked: Detection, named: Named) -> None:
        self.g, self.asked = model.g, asked
        g = self.g
        held = 0 if asked.through_regions else _hold_regions(g.graph)
        parts = (*named.boxes, *named.scores, *((named.labels,) if named.labels is not None else ()))
        if named.labels is None:
            boxes, scores, labels = _beside(model, named.boxes[0])
        else:
            boxes, scores, labels = _lists(model, named)
        decoded = decoded_levels(model, asked, Named("list", (boxes,)), [2])
        # One more, which nothing matches, so that there is one.
        self.boxes = g.Pad(decoded.boxes, [0, 0, 0, 0, 1, 0])
        self.best = g.Pad(as_float(g, scores), [0, 0, 0, 1])
        self.labels = g.Pad(g.Cast(labels, to=ir.DataType.INT64), [0, 0, 0, 1], g.constant(-1))
        self.output = (named.scores or named.boxes)[0]
        self.ends = tuple(dict.fromkeys((parts[0], self.output) if asked.iou else (self.output,)))
        self.classes: int | None = None
        again = (
            "the score is that behind non-maximum suppression; what overlaps the first box most is taken in each pass"
        )
        still = "as in PyTorch no gradient flows through the regions that features are pooled from" if held else ""
        self.notes = tuple(note for note in (named.note, *decoded.notes, again, still) if note)

    def of_class(self, classes: ir.Value) -> ir.Value:
        """See `Detector`."""
        g = self.g
        return g.Where(self._same(classes), g.Unsqueeze(self.best, [1]), 0.0)

    def follow(self, found: Found) -> tuple[ir.Value, tuple[ir.Value, ...]]:
        """See `Detector`: matched anew, y = score (+ IoU) of the best match, 0 where there is none."""
        g = self.g
        overlaps = iou(g, g.Unsqueeze(found.reference, [2]), g.Unsqueeze(self.boxes, [1]))
        overlaps = g.Where(self._same(found.label), overlaps, 0.0)
        entry = g.ArgMax(overlaps, axis=2, keepdims=0)
        hit = g.Greater(g.ReduceMax(overlaps, [2], keepdims=0), self.asked.overlap)
        z = g.GatherElements(self.best, entry, axis=1)
        if self.asked.iou:
            z = g.Add(z, iou(g, found.reference, at_entries(g, self.boxes, entry)))
        return g.Where(hit, z, 0.0), (found.reference, found.label)

    def _same(self, classes: ir.Value) -> ir.Value:
        g = self.g
        return g.Equal(g.Unsqueeze(self.labels, [1]), g.Unsqueeze(classes, [2]))


def _lists(model: Outputs, named: Named) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Boxes as they are, scores and labels (N, D)."""
    assert named.labels is not None
    values = (named.boxes[0], named.scores[0], named.labels)
    if len(named.boxes) > 1 or len(named.scores) > 1:
        raise TargetError("a list behind non-maximum suppression has one output for boxes and one for scores")
    ranks = [len(dims(v)) for v in values]
    if ranks not in ([2, 1, 1], [3, 2, 2]) or dims(values[0])[-1] not in (4, "?"):
        shapes = ", ".join(f"{v.name!r} {list(dims(v))}" for v in values)
        raise TargetError(
            f"{shapes}: a list behind non-maximum suppression is boxes (D, 4), scores (D,) and labels (D,), or all of "
            f"them with a batch axis before; {listing(model)}"
        )
    scores, labels = (model.g.Unsqueeze(v, [0]) if ranks[0] == 2 else v for v in values[1:])
    return values[0], scores, labels


def _beside(model: Outputs, output: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Boxes, scores and labels out of (N, D, 6)."""
    shape = dims(output)
    if len(shape) not in (2, 3) or shape[-1] not in (6, "?"):
        raise TargetError(
            f"the output {output.name!r} has shape {list(shape)}; a list in one output is (N, D, 6): left, top, right, "
            f"bottom, score, class; {listing(model)}"
        )
    g = model.g
    rows = g.Unsqueeze(output, [0]) if len(shape) == 2 else output
    boxes = g.Slice(rows, [0], [4], [2])
    boxes.shape = ir.Shape([*(rows.shape or [None, None])[:2], 4])
    scores, labels = (g.Squeeze(g.Slice(rows, [i], [i + 1], [2]), [2]) for i in (4, 5))
    return boxes, scores, labels


def _hold_regions(graph: ir.Graph) -> int:
    """Hold the regions that RoiAlign pools, from where some are chosen; how many values they are.

    Regions are themselves computed from features.  Detectors are trained with them held, and a framework's own gradient
    leaves that way out, but exporters do not write it down.
    """
    nodes = list(graph)
    regions = [x for node in nodes if node.op_type in _POOLS and (x := node.inputs[1]) is not None]
    chosen = depending(nodes, [y for node in nodes if _chooses(node) for y in node.outputs])
    towards = [y for node in needed(nodes, regions) for y in node.outputs if y in chosen]
    for value in towards:
        hold(value)
    return len(towards)


def _chooses(node: ir.Node) -> bool:
    """Whether a node says which of the regions stay."""
    return node.op_type in _CHOICES or any(
        _chooses(inner) for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH for inner in a.as_graph()
    )
