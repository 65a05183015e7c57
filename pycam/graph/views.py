"""Signals and volumes as pictures: what has one axis of positions, or three, as features (N, C, p, q), so that methods
see rows and columns alone.

    signal (N, C, l) → (N, C, 1, l)      volume (N, C, d, h, w) → (N, C, d, h·w)

Nodes behind a value lay it out so and put it back; whoever read the value reads that.  The maps that a method makes are
turned back by `as_positions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import onnx_ir as ir

from pycam.runtime.layouts import position_axes

from .axes import Dims, dims
from .builder import Builder
from .layout import TO_FIRST, TO_LAST
from .pixels import Image, image_size, sizes_at
from .shapes import appended, infer
from .tokens import name_after


class View(NamedTuple):
    """Where a picture was taken from."""

    source: ir.Value
    """As the model has it."""
    axes: tuple[int, ...]
    """Where its positions lie."""

    @property
    def positions(self) -> Dims:
        """Their sizes, as far as they are known."""
        return tuple(dims(self.source)[axis] for axis in self.axes)


def view_of(value: ir.Value) -> View | None:
    """Where `as_picture` took a value from; None for what the model has as such."""
    found = value.meta.get("view")
    return found if isinstance(found, View) else None


def model_value(value: ir.Value) -> ir.Value:
    """The value of the model that a picture was taken from; `value` itself if it is the model's own."""
    view = view_of(value)
    return value if view is None else view.source


def features_as_picture(graph: ir.Graph, value: ir.Value, axes: tuple[int, ...]) -> ir.Value:
    """Features of a signal or a volume, whose positions lie along `axes`, as (N, C, p, q)."""
    if len(dims(value)) == 4 and dims(value)[2] == 1:  # convolutions of pictures with one row
        return value
    return as_picture(graph, value, axes)


def as_picture(graph: ir.Graph, value: ir.Value, axes: tuple[int, ...], name: str = "features") -> ir.Value:
    """`value`, whose positions lie along `axes`, as (N, C, p, q)."""
    g, uses, count, rank = Builder(graph), list(value.uses()), len(graph), len(dims(value))
    last = axes[-1] < rank - 1  # behind the positions lie the channels
    first = _transposed(graph, g, value, TO_FIRST[rank]) if last else value
    channels = [] if rank == 1 + len(axes) else [0]
    rows = [0] if len(axes) == 3 else [1]
    picture = _node(graph, g, "Reshape", first, g.constant([0, *(channels or [1]), *rows, -1]))
    behind = list(axes[1:]) if len(axes) == 3 else []
    sizes = [*([0, 0, 0] if behind else [0, *channels])]
    if behind:
        back = _node(graph, g, "Reshape", picture, _joined(g, sizes, _fixed_sizes(g, value, behind)))
    elif len(axes) == 2:  # (N, C, l, 1)
        back = _node(graph, g, "Reshape", picture, g.constant([0, 0, -1, 1]))
    else:
        back = _node(graph, g, "Reshape", picture, g.constant([*sizes, -1]))
    back = _transposed(graph, g, back, TO_LAST[rank]) if last else back
    # The sizes are written with 0 and −1, so that variants and targets may be as many as they like.
    infer(appended(graph, count), g.opsets, g.fresh("dim"))
    _keep_batch(value, picture, back)
    name_after(g, value, picture, name)
    picture.meta["view"] = View(value, axes)
    for user, i in uses:
        user.replace_input_with(i, back)
    graph.sort()  # the new ones were put at the end
    return picture


def _node(graph: ir.Graph, g: Builder, op: str, *inputs: ir.Value, **attributes: list[int]) -> ir.Value:
    """A node that no peephole looks at: the Reshape there and the one back would become one, past the picture."""
    attrs = [ir.AttrInt64s(key, value) for key, value in attributes.items()]
    node = ir.Node("", op, list(inputs), attrs, name=g.fresh(op))
    (y,) = node.outputs
    y.name, y.type = node.name, inputs[0].type
    graph.append(node)
    return y


def _transposed(graph: ir.Graph, g: Builder, value: ir.Value, perm: list[int]) -> ir.Value:
    return _node(graph, g, "Transpose", value, perm=perm)


def _joined(g: Builder, first: Sequence[int], sizes: ir.Value) -> ir.Value:
    """Sizes that are known, and some that may not be, int64."""
    if sizes.const_value is not None:
        return g.constant([*first, *(int(d) for d in sizes.const_value.numpy())])
    return g.Concat(list(first), sizes, axis=0)


def _fixed_sizes(g: Builder, value: ir.Value, axes: Sequence[int]) -> ir.Value:
    """`sizes_at`, seen to be the same for all variants: see `clone.py`."""
    if all(isinstance(dims(value)[axis], int) for axis in axes):
        return sizes_at(g, value, axes)
    return g.Shape(value, start=axes[0], end=axes[-1] + 1)


def _keep_batch(value: ir.Value, picture: ir.Value, back: ir.Value) -> None:
    """A Reshape that copies the batch keeps its name."""
    assert value.shape is not None
    back.type, back.shape = value.type, value.shape
    if picture.shape is not None:
        picture.shape = ir.Shape([value.shape[0], *list(picture.shape)[1:]])


def as_positions(g: Builder, maps: ir.Value, view: View | None, axes: int, lead: int = 2) -> ir.Value:
    """Maps (N, K, p, q) of what has `axes` axes of positions as (N, K, l) or (N, K, d, h, w); `lead` axes before these
    stay as they are."""
    if axes == 2:
        return maps
    first = list(maps.shape)[:lead] if maps.shape is not None else [None] * lead
    if axes == 1:
        positions: Dims = dims(maps)[lead + 1 :] or ("?",)
        made = g.Reshape(maps, [*([0] * lead), -1])
    else:
        assert view is not None
        positions = view.positions
        made = g.Reshape(maps, _joined(g, [0] * lead, sizes_at(g, view.source, view.axes)))
    made.shape = ir.Shape([*first, *(None if d == "?" else d for d in positions)])
    return made


class Frame(NamedTuple):
    """The image as methods see it: see `Scene`."""

    x: ir.Value
    layout: str
    image_layout: str
    extent: ir.Value | None


def framed(g: Builder, image: Image, x: ir.Value, layout: str) -> Frame:
    """The frame of an image: `x` is the model's input, of the given layout, or the picture that was made of it."""
    axes = position_axes(layout)
    if len(axes) == 2:
        return Frame(x, layout, layout, image_size(g, image))
    size = image_size(g, image)
    return Frame(x, "NCHW", layout, _joined(g, [1], size) if len(axes) == 1 else None)
