"""Raw heads: a score for every class at every anchor, or point of a grid."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx_ir as ir

from pycam.errors import TargetError
from pycam.graph.axes import dims
from pycam.runtime.feeds import DEEPEST

from .boxes import as_float, at_entries, iou, size_of, vector
from .decoding import decoded_levels
from .heads import Named, columns_axis, listing
from .moves import step_behind

if TYPE_CHECKING:
    from pycam.graph.builder import Builder

    from .detection import Detection, Found
    from .outputs import Outputs

FAR = 2**31 - 1
LINEAR = ("Conv", "Gemm", "MatMul", "Add", "Concat", "Reshape", "Transpose", "Identity", "Slice", "Split")
"""Ops behind which scores are logits, if no activation comes after them."""


class _Columns(NamedTuple):
    """Scores of every entry, of all levels."""

    logits: ir.Value
    """(N, A, columns), or (N, columns, A)."""
    probabilities: ir.Value
    """The same, of classes alone; logits, if `sigmoid`."""
    axis: int
    first: int
    """Of the columns of `logits` the first that is a class's."""
    objectness: ir.Value | None
    """(N, A)."""
    activation: str
    sources: tuple[ir.Value, ...]
    stepped: bool
    """The activation lies within the model."""


class RawHead:
    """A score for every anchor, or point of a grid, and class."""

    def __init__(self, model: Outputs, asked: Detection, named: Named) -> None:
        self.g, self.asked = model.g, asked
        g = self.g
        joint = named.form == "joint"
        axes = _joint_axes(model, named) if joint else _apart_axes(model, named)
        first = _first_class(asked, axes[0]) if joint else 0
        outputs = named.boxes if joint else named.scores
        self.columns = c = _read_scores(model, asked, outputs, axes, first)
        softmax = c.activation == "softmax"
        background = asked.background if asked.background is not None or not softmax else 0
        found = decoded_levels(model, asked, named, [axis for axis, _ in axes])
        self.boxes, self.scale = found.boxes, found.scale

        skipped = 1 if background == 0 else 0
        cut = g.Slice(c.probabilities, [skipped], [FAR if background != -1 else -1], [c.axis])
        classes = cut if background is not None else c.probabilities
        best = self._probability(as_float(g, g.ReduceMax(classes, [c.axis], keepdims=0)))
        self.best = best if c.objectness is None else g.Mul(best, c.objectness)
        label = g.ArgMax(classes, axis=c.axis, keepdims=0)
        self.labels = g.Add(label, [[skipped]]) if skipped else label
        shape, axis = dims(outputs[0]), axes[0][1]
        size = shape[axis] if axis < len(shape) else 1
        self.count = size - first if isinstance(size, int) else None
        # As a number of targets to choose from it would also bound the ranks, and of objects there may be more.
        self.classes = self.count if self.count is not None and self.count >= DEEPEST else None
        self.output = outputs[0]
        self.ends = (*c.sources, *(named.boxes if asked.iou else ()))
        self.notes = tuple(
            note for note in (named.note, *found.notes, self._about_score(background, joint, first)) if note
        )

    def of_class(self, classes: ir.Value) -> ir.Value:
        """See `Detector`."""
        g, c = self.g, self.columns
        rows = vector(g, size_of(g, c.probabilities, 3 - c.axis))
        turned = c.axis == 2
        known = g.Clip(classes, None, g.constant(self.count - 1)) if self.count is not None else classes
        index = g.Unsqueeze(known, [1 if turned else 2])
        wide = g.Expand(index, g.Concat([1], *((rows, [1]) if turned else ([1], rows)), axis=0))
        found = g.GatherElements(c.probabilities, wide, axis=c.axis)
        p = self._probability(as_float(g, g.Transpose(found, perm=[0, 2, 1]) if turned else found))
        p = p if c.objectness is None else g.Mul(p, g.Unsqueeze(c.objectness, [1]))
        return g.Where(g.Unsqueeze(g.Equal(known, classes), [2]), p, 0.0)  # there is no such class

    def follow(self, found: Found) -> tuple[ir.Value, tuple[ir.Value, ...]]:
        """See `Detector`: the entry stays."""
        g, c = self.g, self.columns
        flat = g.Reshape(c.logits, [0, -1])
        label = g.Clip(found.label, None, g.constant(self.count - 1)) if self.count is not None else found.label
        places = [self._place(found.entry, g.Add(label, [[c.first]]) if c.first else label)]
        if c.objectness is not None:
            places.append(self._place(found.entry, g.constant(np.array([[c.first - 1]]))))
        parts = [as_float(g, g.GatherElements(flat, place, axis=1)) for place in places]
        z = parts[0]
        if len(parts) == 2:
            z = g.Mul(*parts) if c.activation == "none" else g.Add(*parts)
        if not self.asked.iou:
            return z, tuple(places)
        here = iou(g, found.reference, at_entries(g, self.boxes, found.entry))
        scale = (self.scale,) if self.scale is not None else ()
        return g.Add(z, here), (*places, found.entry, found.reference, *scale)

    def _place(self, entry: ir.Value, column: ir.Value) -> ir.Value:
        """Where an entry's column lies in the flat logits, (N, K)."""
        g, c = self.g, self.columns
        inner = vector(g, size_of(g, c.logits, 2))
        outer, last = (entry, column) if c.axis == 2 else (column, entry)
        return g.Add(g.Mul(outer, inner), last)

    def _probability(self, value: ir.Value) -> ir.Value:
        """Of what was chosen: a sigmoid keeps the order."""
        outside = self.columns.activation == "sigmoid" and not self.columns.stepped
        return self.g.Sigmoid(value) if outside else value

    def _about_score(self, background: int | None, joint: bool, first: int) -> str:
        c = self.columns
        where = f"of {self.output.name!r}"
        if c.activation == "none":
            what = f"the scores {where} were taken for probabilities, behind which no activation was found"
        elif c.stepped:
            what = f"the score is the logit: the {c.activation} behind the scores {where} is stepped behind"
        else:
            what = f"the scores {where} were taken for logits before a {c.activation}"
        if joint:
            what += f", {'with' if first == 5 else 'without'} a column for objectness"
        if background is not None:
            what += f"; class {'0' if background == 0 else 'the last'} was taken for the background"
        return what


def _joint_axes(model: Outputs, named: Named) -> list[tuple[int, int]]:
    axes = []
    for output in named.boxes:
        shape = dims(output)
        axis = columns_axis(shape) if len(shape) == 3 else None
        if axis is None:
            raise TargetError(
                f"the output {output.name!r} has shape {list(shape)}; boxes and scores side by side are (N, A, 4 + C) "
                f"or (N, 4 + C, A), with at least 5 columns, fewer than entries; {listing(model)}"
            )
        axes.append((axis, axis))
    return axes


def _first_class(asked: Detection, axes: tuple[int, int]) -> int:
    objectness = asked.objectness if asked.objectness is not None else axes[0] == 2
    return 5 if objectness else 4


def _apart_axes(model: Outputs, named: Named) -> list[tuple[int, int]]:
    """(axis of the boxes' columns, of the scores') for each level; two outputs of two columns make one level."""
    boxes, scores = named.boxes, named.scores
    paired = len(boxes) == 2 and len(scores) == 1 and all(2 in dims(v) for v in boxes)
    if len(boxes) != len(scores) and not paired:
        raise TargetError(f"{len(boxes)} outputs for boxes and {len(scores)} for scores: name one of each per level")
    pairs = [(boxes[0], scores[0])] if paired else list(zip(boxes, scores, strict=True))
    return [_level_axes(model, b, s, 2 if paired else 4) for b, s in pairs]


def _level_axes(model: Outputs, boxes: ir.Value, scores: ir.Value, wide: int) -> tuple[int, int]:
    a, b = dims(boxes), dims(scores)
    fits = []
    for axis in (len(a) - 1, 1):
        rest = a[:axis] + a[axis + 1 :]
        if len(a) not in (3, 4) or (isinstance(a[axis], int) and int(a[axis]) < wide):
            continue
        if len(b) == len(a) - 1 and _agree(rest, b):
            fits.append((axis, len(a) - 1))
        if len(b) == len(a):
            fits += [(axis, other) for other in (axis, len(a) - axis) if _agree(rest, b[:other] + b[other + 1 :])]
    exact = [pair for pair in fits if a[pair[0]] == wide] or fits
    if not exact:
        raise TargetError(
            f"boxes {boxes.name!r} {list(a)} and scores {scores.name!r} {list(b)} do not fit each other: boxes are "
            f"(N, A, 4), (N, h, w, 4), or with the 4 along axis 1, and scores have classes there; {listing(model)}"
        )
    return exact[0]


def _agree(a: tuple[int | str, ...], b: tuple[int | str, ...]) -> bool:
    return all(x == y or isinstance(x, str) or isinstance(y, str) for x, y in zip(a, b, strict=True))


def _read_scores(
    model: Outputs, asked: Detection, outputs: tuple[ir.Value, ...], axes: list[tuple[int, int]], first: int
) -> _Columns:
    g = model.g
    values = [g.Unsqueeze(v, [axis]) if len(dims(v)) == axis else v for v, (_, axis) in zip(outputs, axes, strict=True)]
    places = [axis for _, axis in axes]
    start = first - 1 if first == 5 else first
    steps = [
        step_behind(g, v, min(axis, len(dims(v)) - 1), start if len(dims(v)) > axis else 0)
        for v, axis in zip(outputs, places, strict=True)
    ]
    behind = [step for step in steps if step is not None]
    stepped = (
        asked.activation != "none" and len(behind) == len(values) and len({step.activation for step in behind}) == 1
    )
    shaped, axis = _joined(g, values, places)
    logits = shaped
    if stepped:
        inner = [
            g.Unsqueeze(step.value, [axis]) if len(dims(v)) == axis else step.value
            for step, v, axis in zip(behind, outputs, places, strict=True)
        ]
        logits, _ = _joined(g, inner, places)
    activation = behind[0].activation.lower() if stepped else asked.activation or _guess(outputs, asked)
    if stepped and asked.activation not in (None, activation):
        raise TargetError(
            f"activation={asked.activation!r}, and the model has a {activation} before {outputs[0].name!r}"
        )
    classes = g.Slice(shaped, [first], [FAR], [axis]) if first else shaped
    if activation == "softmax" and not stepped:
        classes = g.Softmax(classes, axis=axis)
    objectness = None
    if first == 5:
        column = as_float(g, g.Squeeze(g.Slice(shaped, [4], [5], [axis]), [axis]))
        objectness = g.Sigmoid(column) if activation == "sigmoid" and not stepped else column
    sources = tuple(x for step in behind for x in step.sources) if stepped else outputs
    return _Columns(logits, classes, axis, first, objectness, activation, sources, stepped)


def _guess(outputs: tuple[ir.Value, ...], asked: Detection) -> str:
    """What makes probabilities of scores behind which nothing was found."""
    made = {node.op_type for v in outputs if (node := v.producer()) is not None}
    if not made <= set(LINEAR):
        return "none"
    return "sigmoid" if asked.background is None else "softmax"


def _joined(g: Builder, values: list[ir.Value], axes: list[int]) -> tuple[ir.Value, int]:
    """Columns of all levels, (N, A, columns) or (N, columns, A), and which axis they lie along."""
    flat = [_flat(g, v, axis) for v, axis in zip(values, axes, strict=True)]
    if len(flat) == 1:
        return flat[0]
    return g.Concat(*(g.Transpose(v, perm=[0, 2, 1]) if axis == 1 else v for v, axis in flat), axis=1), 2


def _flat(g: Builder, value: ir.Value, axis: int) -> tuple[ir.Value, int]:
    """Columns of rank 4 in rank 3."""
    shape = dims(value)
    if len(shape) < 4:
        return value, axis
    columns = shape[axis]
    shaped = g.Reshape(value, [0, 0, -1] if axis == 1 else [0, -1, _known(value, columns)])
    rows = shape[1] * shape[2] if axis == 3 and isinstance(shape[1], int) and isinstance(shape[2], int) else None
    if axis == 1 and isinstance(shape[2], int) and isinstance(shape[3], int):
        rows = shape[2] * shape[3]
    known = columns if isinstance(columns, int) else None
    shaped.shape = ir.Shape([shape[0] if shape[0] != "?" else None, *((known, rows) if axis == 1 else (rows, known))])
    return shaped, 1 if axis == 1 else 2


def _known(value: ir.Value, columns: int | str) -> int:
    if not isinstance(columns, int):
        raise TargetError(f"the output {value.name!r} does not say how many columns its last axis has")
    return columns
