"""Which outputs of a detector are what, as far as the user does not say: boxes, scores, labels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import onnx_ir as ir

from pycam.errors import TargetError
from pycam.graph.axes import dims

from .outputs import FLOATS, Outputs

if TYPE_CHECKING:
    from .detection import Detection

INTEGERS = {ir.DataType.INT64, ir.DataType.INT32}
_SCORES = re.compile(r"scor|cls|class|logit|prob|conf|heat|hm|keypoints", re.I)
_BOXES = re.compile(r"box|bbox|loc|wh|reg|rect", re.I)
_LABELS = re.compile(r"label|class|categ", re.I)
_OFFSETS = re.compile(r"regress|delta|offset|\bloc\b|locations", re.I)
_FORMATS = {"pred_boxes": ("centre", "image"), "detection_boxes": ("corners_yx", "image")}
"""Names that DETR's and TensorFlow's exporters give to boxes → their format and unit."""


class Named(NamedTuple):
    """The outputs, by what they hold."""

    form: str
    """"apart": boxes and scores for every anchor or point of a grid; "joint": both side by side in one output;
    "list": what a non-maximum suppression left."""
    boxes: tuple[ir.Value, ...]
    scores: tuple[ir.Value, ...] = ()
    labels: ir.Value | None = None
    note: str = ""


def name_outputs(model: Outputs, asked: Detection) -> Named:
    """The outputs that `asked` names, or else those that can only be the ones.

    Raises:
        ModelError: there is no such output.
        TargetError: it cannot be told which they are, or what was asked for contradicts itself.
    """
    boxes, scores = _listed(model, asked.boxes), _listed(model, asked.scores)
    labels = model.output(asked.labels) if asked.labels is not None else None
    if not (boxes or scores or labels is not None):
        if model.default is not None:
            raise TargetError(
                f"output={model.default!r} does not say which outputs a detection is made of; {listing(model)}"
            )
        found = _search(model, asked)
        return found._replace(note=f"found automatically: {_sentence(found)}")
    if not boxes:
        raise TargetError(f"scores= or labels= are named, and boxes= is not; {listing(model)}")
    if labels is not None and not scores:
        raise TargetError(f"boxes= and labels= are named, and scores= is not; {listing(model)}")
    default = "list" if labels is not None else "apart" if scores else "joint"
    form = asked.form or default
    if form != default and not (form == "list" and default == "joint"):
        raise TargetError(
            f"form={form!r} does not go with the outputs that are named: 'joint' has boxes= alone, 'apart' boxes= and "
            "scores=, 'list' boxes=, scores= and labels=, or boxes= alone with all of them side by side (N, D, 6)"
        )
    if asked.form is None and form == "joint" and dims(boxes[0])[-1] == 6:
        raise TargetError(
            f"the output {boxes[0].name!r} {list(dims(boxes[0]))} has six columns, as a list behind non-maximum "
            "suppression has (form='list') and a head of one or two classes (form='joint'): say which"
        )
    return Named(form, boxes, scores, labels)


def is_detector(model: Outputs) -> bool:
    """Whether some outputs can only be boxes and what belongs to them, by their shapes."""
    every = list(model.named.values())
    floating = [v for v in every if v.dtype in FLOATS]
    return any(look(floating, every) is not None for look in (_find_list, _find_apart))


def listing(model: Outputs) -> str:
    """The model's outputs, and what would help."""
    found = ", ".join(f"{name!r} {list(dims(v))}" for name, v in model.named.items())
    return (
        f"the model's outputs are {found}: say which hold what, such as "
        "pycam.targets.Detection(boxes='…', scores='…'), with labels='…' for a list behind non-maximum suppression, or "
        "boxes='…' alone where one output holds both; formats are in its docstring"
    )


def known_format(name: str) -> tuple[str, str] | None:
    """Format and unit of boxes that exporters call by this name."""
    return next((found for key, found in _FORMATS.items() if key in name), None)


def looks_like_offsets(name: str) -> bool:
    """Whether boxes called so are usually relative to anchors."""
    return _OFFSETS.search(name) is not None


def _listed(model: Outputs, names: str | Sequence[str] | None) -> tuple[ir.Value, ...]:
    if names is None:
        return ()
    return tuple(model.output(name) for name in ([names] if isinstance(names, str) else names))


def _sentence(found: Named) -> str:
    said = {"boxes": found.boxes, "scores": found.scores, "labels": (found.labels,) if found.labels is not None else ()}
    parts = [f"{what} in {', '.join(repr(v.name) for v in values)}" for what, values in said.items() if values]
    return (
        " and ".join(parts)
        + {
            "apart": "",
            "joint": ", with the class scores beside them",
            "list": ", behind non-maximum suppression" if found.scores else ", with scores and labels beside them",
        }[found.form]
    )


def _search(model: Outputs, asked: Detection) -> Named:
    every = list(model.named.values())
    floating = [v for v in every if v.dtype in FLOATS]
    for form, look in (("list", _find_list), ("apart", _find_apart), ("joint", _find_joint)):
        found = look(floating, every) if asked.form in (None, form) else None
        if found is not None:
            return found
    raise TargetError(f"it cannot be told which outputs hold boxes and scores; {listing(model)}")


def _find_list(floating: Sequence[ir.Value], every: Sequence[ir.Value]) -> Named | None:
    """(D, 4) or (N, D, 4), with scores and labels of that shape less its last axis."""
    for boxes in floating:
        shape = dims(boxes)
        if len(shape) not in (2, 3) or shape[-1] != 4:
            continue
        beside = [v for v in every if len(dims(v)) == len(shape) - 1 and _fit(dims(v), shape[:-1])]
        labels = [v for v in beside if v.dtype in INTEGERS] or [v for v in beside if _LABELS.search(v.name or "")]
        scores = [v for v in beside if v.dtype in FLOATS and v not in labels]
        if len(labels) == len(scores) == 1:
            return Named("list", (boxes,), (scores[0],), labels[0])
    return None


def _find_apart(floating: Sequence[ir.Value], every: Sequence[ir.Value]) -> Named | None:
    """(N, A, 4) or (N, h, w, 4), or that with the 4 along axis 1, and scores of other columns."""
    pairs = [(boxes, scores) for boxes in floating for scores in floating if _go_together(boxes, scores)]
    for pattern, i in ((_BOXES, 0), (_SCORES, 1)):
        pairs = [pair for pair in pairs if pattern.search(pair[i].name or "")] or pairs if len(pairs) > 1 else pairs
    return Named("apart", (pairs[0][0],), (pairs[0][1],)) if len(pairs) == 1 else None


def _find_joint(floating: Sequence[ir.Value], every: Sequence[ir.Value]) -> Named | None:
    """One output (N, A, columns) or (N, columns, A)."""
    if len(floating) != 1:
        return None
    (output,) = floating
    shape = dims(output)
    return Named("joint", (output,)) if len(shape) == 3 and columns_axis(shape) is not None else None


def _go_together(boxes: ir.Value, scores: ir.Value) -> bool:
    """Whether they have the same shape but for the columns, and `boxes` has four."""
    a, b = dims(boxes), dims(scores)
    if boxes is scores or len(a) != len(b) or len(a) not in (3, 4):
        return False
    return any(a[axis] == 4 and _fit(a[1:axis] + a[axis + 1 :], b[1:axis] + b[axis + 1 :]) for axis in (len(a) - 1, 1))


def columns_axis(shape: Sequence[int | str]) -> int | None:
    """Where the columns of a joint output of rank 3 lie: the shorter axis; None if it cannot be told."""
    rows, columns = shape[1:]
    if isinstance(rows, int) and isinstance(columns, int):
        return None if rows == columns or min(rows, columns) < 5 else 1 if rows < columns else 2
    return 1 if isinstance(rows, int) and rows > 4 else 2 if isinstance(columns, int) and columns > 4 else None


def _same(a: int | str, b: int | str) -> bool:
    return a == b or isinstance(a, str) or isinstance(b, str)


def _fit(shape: Sequence[int | str], wanted: Sequence[int | str]) -> bool:
    return all(_same(a, b) for a, b in zip(shape, wanted, strict=True))
