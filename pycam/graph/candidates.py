"""Which values of a graph can be layers, and what lies between them and the score."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

import onnx_ir as ir

from pycam.errors import LayerError
from pycam.grad.reverse import Path, between, carries_gradient

from .axes import Tokens, dims, on_grid, tokens_of
from .axis_rules import follow_axes
from .builder import PREFIX
from .depend import IMAGE
from .layout import channels_last, on_image
from .ranks import features_of, image_axes, several
from .shapes import reads
from .tokens import grids, misfit

FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}


class LayerSearch:
    """A graph with what is known of its values.

    Attributes:
        on_path: The values between the model's inputs and the score, those of `ends` where there are any.
        axes, tokens: See `axes.py` and `tokens.py`.
        images: The model's image inputs.
        dimensions: How many axes of positions they have: 2 of pictures, 1 of signals, 3 of volumes.
        features: The features of signals and volumes, see `ranks.py`.
        given: How tokens lie, where the user said so.
    """

    def __init__(
        self, graph: ir.Graph, score: ir.Value, ends: Sequence[ir.Value] = (), tokens: Tokens | None = None
    ) -> None:
        self.graph, self.score, self.ends, self.given = graph, score, tuple(ends), tokens
        inputs = own_inputs(graph)
        named = [x for x in inputs if IMAGE in x.meta]
        self.images = [x for x in named or inputs if len(dims(x)) == 4] or named or inputs
        self.dimensions = image_axes(graph)
        self.features = features_of(graph) if self.dimensions != 2 else {}
        self.on_path = path_values(graph, score)
        if ends:
            self.on_path &= lies_between(graph, inputs, ends).values
        self.axes = follow_axes(graph, tokens)
        self.tokens = grids(self.axes)

    def explainable(self, value: ir.Value) -> bool:
        """Whether a value looks like features with more than one position, and leads to the score."""
        return (
            value in self.on_path
            and value is not self.score
            and value not in self.ends
            and not appended(value)
            and self._has_several(value)
        )

    def _has_several(self, value: ir.Value) -> bool:
        """Whether a value looks like features with more than one position."""
        if self.dimensions != 2:
            return value in self.features and several(value, self.features[value])
        return spatial(value) or value in self.tokens

    def place(self, value: ir.Value, name: str) -> None:
        """Take (N, T, C) for tokens as `given`.

        Raises:
            LayerError: they are not as many.
        """
        assert self.given is not None
        shape = dims(value)
        if isinstance(shape[1], int) and shape[1] != self.given.total:
            shown = f"the layer {name!r} ({value.name!r}) has shape {list(shape)}"
            raise LayerError(f"{shown}: {misfit(self.given, shape[1], self._image_size())}")
        if isinstance(shape[2], int):
            self.tokens[value] = self.given

    def no_such_tokens(self, layers: Sequence[str]) -> str:
        """What to say where tokens were given, and none of the `layers` holds any."""
        assert self.given is not None
        counts = Counter(dims(y)[1] for y in self.on_path if len(dims(y)) == 3 and y.dtype in FLOATS)
        told = f"tokens={tuple(self.given)}: the layer {', '.join(map(repr, layers))} holds no tokens (N, T, C)"
        if not counts:
            return f"{told}, nor does the model: leave tokens= out"
        most = max(counts, key=counts.__getitem__)
        return f"{told}; most in the model have {misfit(self.given, most, self._image_size())}"

    def _image_size(self) -> tuple[int | str, ...]:
        return size_of_grid(self.images[0]) if self.images and len(dims(self.images[0])) == 4 else ()

    def has_positions(self, value: ir.Value) -> bool:
        """Whether four axes are features: not the tokens of each head, nor what these were mixed to."""
        axes = self.axes.get(value)
        if axes is None or value in self.tokens:
            return True
        return any(on_grid(axis) for axis in axes) and all(tokens_of(axis) is None for axis in axes)

    def on_the_image(self) -> set[ir.Value]:
        """The explainable values that are known to lie on the grid of the image's positions."""
        grid = on_image(self.graph)
        return {
            y
            for node in self.graph
            for y in node.outputs
            if self.explainable(y) and self.has_positions(y) and (y in grid or y in self.axes)
        }


def appended(value: ir.Value) -> bool:
    """Whether pycam made a value, not the model: no layer that people know."""
    return (value.name or "").startswith(f"{PREFIX}/") or "layer_of" in value.meta


def own_inputs(graph: ir.Graph) -> list[ir.Value]:
    """The inputs that the model reads; others (masks, boxes, classes) are what targets ask for behind it."""
    behind: set[ir.Value] = set()
    for node in reversed(list(graph)):
        if not all(appended(y) for y in node.outputs) or any(y in behind for y in node.outputs):
            behind.update(reads(node))
    return [x for x in graph.inputs if x in behind]


def path_values(graph: ir.Graph, score: ir.Value) -> set[ir.Value]:
    """The values between the model's inputs and the score from which a differentiable path leads to the score."""
    return lies_between(graph, own_inputs(graph), [score]).values


def lies_between(nodes: Iterable[ir.Node], inputs: Collection[ir.Value], ends: Sequence[ir.Value]) -> Path:
    """What lies between `inputs` and the `ends`; a Floor in front of a layer is no matter."""
    every, reached = list(nodes), set(inputs)
    for node in every:
        if any(x in reached for x in reads(node)):
            reached.update(y for y in node.outputs if carries_gradient(y))
    return between(every, list(reached), ends)


def spatial(value: ir.Value) -> bool:
    """Whether a value looks like (N, C, h, w) features with more than one position."""
    return value.dtype in FLOATS and len(dims(value)) == 4 and all(d != 1 for d in size_of_grid(value))


def size_of_grid(value: ir.Value) -> tuple[int | str, ...]:
    """Height and width of features: (N, C, h, w), or (N, h, w, C)."""
    shape = dims(value)
    return shape[1:3] if channels_last(value) else shape[2:]


def narrows(graph: ir.Graph, on_path: set[ir.Value]) -> set[ir.Value]:
    """The values through which every path from the inputs to the score leads: behind one of them only it is live."""
    waiting = Counter(x for node in graph if not on_path.isdisjoint(node.outputs) for x in {*reads(node)} & on_path)
    live = on_path.intersection(graph.inputs)
    narrow: set[ir.Value] = set()
    for node in graph:
        made = on_path.intersection(node.outputs)
        if not made:
            continue
        for x in {*reads(node)} & on_path:
            waiting[x] -= 1
            if not waiting[x]:
                live.discard(x)
        live |= made
        if len(live) == 1:
            narrow |= live
    return narrow
