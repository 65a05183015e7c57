"""Scores of maps: a class summed over a mask, a box, a pixel, or where that class wins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from pycam.errors import TargetError
from pycam.runtime.given import Given

from .base import Candidates, Target

if TYPE_CHECKING:
    import onnx_ir as ir

    from pycam.graph.builder import Builder

    from .outputs import Outputs

END = 2**63 - 1
"""The end of an axis, for Slice."""


@dataclass(frozen=True)
class Segmentation(Target):
    """A class of a segmentation, summed over a region: `z_c = Σ_ij m_ij·logit_c,ij`.

    A call gives the region at the image's size: `mask=` (H, W) or (N, H, W), weights of 0 or more, or "all"; or
    `box=` (left, top, right, bottom), or `pixel=` (x, y).  Without one a class is summed over the positions where it
    wins, has the largest logit; of a single class, where its logit is positive.  A class that wins nowhere has the
    score 0 and a flat map.  Where the output is coarser than the image, each of its positions weighs the mean of the
    mask over its area.  `Explanation.extras["area"]` (N, K) is the share of the positions that was summed over.

    A final Softmax over the classes, or a Sigmoid, is stepped behind, and so is an ArgMax.

    Args:
        output: Name of the output (N, classes, h, w), (N, h, w, classes) or (N, h, w); None: the one that the Explainer
            is told, or else the first.
        class_axis: Which axis is that of the classes, where it is not found.
    """

    kind: ClassVar[str] = "segmentation"

    output: str | None = None
    class_axis: int | None = None

    def candidates(self, model: Outputs) -> Candidates:
        """See `Target.candidates`."""
        from .final import explained_of

        g = model.g
        end, output, notes = _end(model, self.output)
        lie = _lie(model, end if notes else output, self.class_axis)
        logits, notes = _behind(model, end, output, lie, notes)
        logit = model.floats(logits)
        count: int | None = 1
        if lie.classes is None:
            logit, lie = g.Unsqueeze(logit, [1]), lie._replace(classes=1, rows=lie.rows + 1, columns=lie.columns + 1)
        else:
            size = _dim(logits, lie.classes)
            count = size if isinstance(size, int) else None
        mask = model.take("mask", Given("mask", "mask", ("N", "H", "W")))
        weights = _weights(g, logit, mask, lie, count, _sizes(model, logits, lie))
        over = sorted((lie.rows, lie.columns))
        z = g.ReduceSum(g.Mul(logit, weights), over, keepdims=0)
        area = explained_of(model, z, count, g.ReduceMean(weights, over, keepdims=0))
        return Candidates(
            z,
            output,
            (logits,),
            classes=count,
            positions=True,
            fixed=(weights,),
            extras={"area": area},
            notes=(*notes, *lie.notes),
        )


class _Lie(NamedTuple):
    """Which axis is which."""

    classes: int | None
    """None: there is none."""
    rows: int
    columns: int
    notes: tuple[str, ...] = ()


def _end(model: Outputs, name: str | None) -> tuple[ir.Value, ir.Value, tuple[str, ...]]:
    """What is found at the model's end, the output that it becomes, and a note where an ArgMax lies in between."""
    output = model.output(name)
    node = output.producer()
    while node is not None and node.op_type in ("Cast", "Squeeze", "Unsqueeze", "Reshape"):
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    if node is None or node.op_type != "ArgMax" or node.inputs[0] is None:
        return model.logits(name, ()).value, output, ()
    note = f"the score is made of {node.inputs[0].name!r}: the final ArgMax is stepped behind"
    return node.inputs[0], output, (note,)


def _behind(
    model: Outputs, end: ir.Value, output: ir.Value, lie: _Lie, notes: tuple[str, ...]
) -> tuple[ir.Value, tuple[str, ...]]:
    """`end` before its final activation, if that is one over the classes."""
    from pycam.graph.locate import SOFTMAX

    from .final import logits_along

    if not notes:
        found = logits_along(model, output.name, lie.classes if lie.classes is not None else -1, (*SOFTMAX, "Sigmoid"))
        return found.value, found.notes
    node = end.producer()
    x = node.inputs[0] if node is not None and node.op_type in SOFTMAX else None
    if node is None or x is None or node.attributes.get_int("axis", -1) % _rank(end) != lie.classes:
        return end, notes
    return x, (f"the score is the logit {x.name!r}: the final {node.op_type} and ArgMax are stepped behind",)


def _lie(model: Outputs, value: ir.Value, given: int | None) -> _Lie:
    """Where the classes and the image's positions lie in an output.

    Raises:
        TargetError: it holds no positions, or no such axis.
    """
    rank = _rank(value)
    wants = "a segmentation is (N, classes, h, w), (N, h, w, classes) or (N, h, w)"
    model.refuse_rank(value, [3, 4], wants, "use the target 'class' or 'custom'")
    if given is not None and (rank == 3 or given not in (1, 2, 3, -1, -2, -3)):
        raise TargetError(
            f"class_axis={given}: the output {value.name!r} has {rank} axes, the first that of the images; of three, "
            "(N, h, w), none is the classes'"
        )
    known = model.axes.get(value)
    roles = [{factor.role for factor in axis} for axis in known] if known is not None else []
    rows, columns = ([i for i, found in enumerate(roles) if found == {role}] for role in ("rows", "columns"))
    single = len(rows) == 1 and len(columns) == 1
    if known is not None and not single and any("tokens" in found or len(found) > 1 for found in roles):
        raise TargetError(
            f"the output {value.name!r} has its positions along one axis, as tokens: a segmentation has rows and "
            "columns; use the target 'custom'"
        )
    if rank == 3:
        return _Lie(None, *((rows[0], columns[0]) if single else (1, 2)))
    if given is not None:
        at = given % rank
    elif single:
        at = next(i for i in (1, 2, 3) if i not in (rows[0], columns[0]))
        return _Lie(at, rows[0], columns[0])
    else:
        at = _guessed(model, value)
    first, second = (i for i in (1, 2, 3) if i != at)
    if single and {rows[0], columns[0]} == {first, second}:
        first, second = rows[0], columns[0]
    notes = () if given is not None else (f"axis {at} of the output {value.name!r} was taken for the classes",)
    return _Lie(at, first, second, notes)


def _guessed(model: Outputs, value: ir.Value) -> int:
    """The axis of the classes: the one whose size is known if the others' are free, or else as the image has it."""
    fixed = [i for i in (1, 2, 3) if isinstance(_dim(value, i), int)]
    if len(fixed) == 1:
        return fixed[0]
    return 1 if model.layout == "NCHW" else 3


def _sizes(model: Outputs, logits: ir.Value, lie: _Lie) -> tuple[tuple[int | None, int | None], ...]:
    """(of the image, of the output) for rows and columns, where they are known."""
    shift = 1 if _rank(logits) == 3 else 0
    there = [_dim(logits, axis - shift) for axis in (lie.rows, lie.columns)]
    image = [d if isinstance(d, int) else None for d in model.image_sizes]
    return tuple((a, b if isinstance(b, int) else None) for a, b in zip(image, there, strict=True))


def _weights(
    g: Builder,
    logit: ir.Value,
    mask: ir.Value,
    lie: _Lie,
    count: int | None,
    sizes: tuple[tuple[int | None, int | None], ...],
) -> ir.Value:
    """What each position weighs for each class, of the logits' shape: the mask, or 1 where the class wins."""
    classes = lie.classes if lie.classes is not None else 1
    if count == 1:
        wins = g.Greater(logit, 0.0)
    else:
        wins = g.Equal(g.ArgMax(logit, axis=classes, keepdims=1), _indices(g, logit, classes, count))
    image = g.Unsqueeze(mask, [1])
    for axis, at, (before, after) in zip((2, 3), (lie.rows, lie.columns), sizes, strict=True):
        if before is None or before != after:
            image = area_means(g, image, axis, after if after is not None else _size(g, logit, at))
    turned = [0, 2, 3] if lie.rows < lie.columns else [0, 3, 2]
    turned.insert(classes, 1)
    placed = g.Transpose(image, perm=turned) if turned != [0, 1, 2, 3] else image
    if logit.dtype != mask.dtype:
        placed = g.Cast(placed, to=logit.dtype)
    given = g.GreaterOrEqual(g.Unsqueeze(g.Slice(mask, [0, 0], [1, 1], [1, 2]), [3]), 0.0)
    return g.Where(given, placed, g.Cast(wins, to=logit.dtype))


def area_means(g: Builder, image: ir.Value, axis: int, size: int | ir.Value) -> ir.Value:
    """`image` (N, 1, H, W) with `size` positions along `axis`, each the mean over the part of the axis that it covers.

    Its sums up to each place, read at the ends of the parts: these lie at equal distances, corners aligned.
    """
    pads = [0] * 8
    pads[axis] = 1
    sums = g.Pad(g.CumSum(image, g.constant(axis)), g.constant(pads))
    ends = g.Add(g.constant([size]) if isinstance(size, int) else size, [1])
    shape = g.Shape(sums)
    wanted = [g.Slice(shape, [0], [axis], [0]), ends, *([g.Slice(shape, [axis + 1], [4], [0])] if axis < 3 else [])]
    at = g.Resize(
        sums,
        None,
        None,
        g.Concat(*wanted, axis=0),
        mode="linear",
        coordinate_transformation_mode="align_corners",
    )
    parts = g.Sub(g.Slice(at, [1], [END], [axis]), g.Slice(at, [0], [-1], [axis]))
    before, after = (g.Cast(_size(g, x, axis), to=image.dtype) for x in (image, parts))
    return g.Mul(parts, g.Div(after, before))


def _indices(g: Builder, logit: ir.Value, axis: int, count: int | None) -> ir.Value:
    """0 … C − 1 along the axis of the classes."""
    shape = [1] * 4
    shape[axis] = -1
    if count is not None:
        return g.constant(np.arange(count).reshape(shape))
    return g.Reshape(g.Range(g.constant(0), g.Squeeze(_size(g, logit, axis), [0]), g.constant(1)), shape)


def _size(g: Builder, value: ir.Value, axis: int) -> ir.Value:
    return g.Slice(g.Shape(value), [axis], [axis + 1], [0])


def _dim(value: ir.Value, axis: int) -> object:
    return value.shape[axis] if value.shape is not None else None


def _rank(value: ir.Value) -> int:
    return len(value.shape) if value.shape is not None else 0
