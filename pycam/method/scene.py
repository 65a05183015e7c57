"""`Scene`: what a method sees.  It says in straight lines how its map comes about; where the graph is cut into stages
follows from that.

A method asks for the layers, the scores and gradients of the model's own forward pass (`scene.first`), or for further
passes on varied values (`scene.run({x: masked})`), as ONNX nodes of one graph.  `vary` stands for an index that runs
over all variants, a batch at a time; `stack` and `total` bring together what they gave.  `host` calls a function of
numpy between two stages.  Nothing here knows about sessions, resizing or pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from pycam.errors import LayerError, MethodError, UnsupportedOpError
from pycam.grad import differentiate
from pycam.grad.call import HALF, Repeat
from pycam.graph.affine import is_affine
from pycam.graph.builder import Builder
from pycam.graph.clone import clone
from pycam.graph.cut import Seams
from pycam.graph.locate import dims, with_workable_layers
from pycam.graph.views import View, view_of
from pycam.runtime.layouts import kind_of, position_axes
from pycam.runtime.recipe import Fold, Noise
from pycam.targets.choose import Chosen
from pycam.targets.objectives import Objective

from .combine import split

Rules = Literal["exact", "guided", "deconvnet"]


class Pass:
    """A forward pass: the model's own, or one on varied values.

    Attributes:
        scene: Whose it is.
        values: Value of the model → its counterpart here.
        chosen: The targets, for the rows of this pass.
    """

    def __init__(self, scene: Scene, values: Mapping[ir.Value, ir.Value], chosen: Chosen) -> None:
        self.scene = scene
        self.values = values
        self.chosen = chosen

    def at(self, value: ir.Value) -> ir.Value:
        """The counterpart of a value of the model."""
        return self.values.get(value, value)

    @cached_property
    def classes(self) -> ir.Value:
        """The scores of all candidates, (rows, C)."""
        return self.at(self.scene.score)

    @cached_property
    def y(self) -> ir.Value:
        """What is explained, (rows, K)."""
        return self.scene.objective.value(self.scene.g, self.classes, self.chosen)

    def gradients(
        self, wrt: Sequence[ir.Value], rules: Rules = "exact", objective: Objective | None = None
    ) -> list[ir.Value]:
        """`dy/dv` for values `v` of the model, (K·rows, …) each, K outermost.

        Raises:
            UnsupportedOpError: an op on the path has no rule.
            MethodError: no differentiable path leads from one to the score.
        """
        scene = self.scene
        score = self.at(scene.score)
        seed = (objective or scene.objective).cotangent(scene.g, self.classes, self.chosen)
        try:
            grads, repeat = differentiate(
                scene.g, {score: seed}, [self.at(v) for v in wrt], self.chosen.count, rules=rules
            )
        except UnsupportedOpError as error:
            if type(error) is not UnsupportedOpError:
                raise
            raise with_workable_layers(error, scene.g.graph, scene.score) from None
        scene.repeats.append(repeat)
        scene.seams.gradients |= self is not scene.first
        return [_reached(grad, v, scene.score) for grad, v in zip(grads, wrt, strict=True)]

    def gradient(self, wrt: ir.Value, rules: Rules = "exact") -> ir.Value:
        """`gradients` for one value."""
        return self.gradients([wrt], rules)[0]


def _reached(grad: ir.Value | None, value: ir.Value, score: ir.Value) -> ir.Value:
    """`grad`, or the error that there is none."""
    if grad is None:
        raise LayerError(
            f"no differentiable path leads from {value.name!r} to the score {score.name!r}: "
            "choose a later layer, see `pycam layers`"
        )
    return grad


@dataclass
class Scene:
    """The model with its layers, its score and what is explained.

    Attributes:
        g: Builder of the graph.
        x: The model's image input in floating point, (N, C, H, W) or (N, H, W, C); a signal as (N, C, 1, L), a volume
            as (N, C, D, H·W).
        layout: Which of the two: "NCHW" or "NHWC".
        image_layout: How the axes of the model's own input lie: "NCL", …, see `runtime.layouts`.
        extent: Height and width of the image, int64 (2,); 1 and length of a signal; None for a volume.
        layers: The layers, (N, C, h, w) each; none for methods that look at the whole model.
        score: What is differentiated: the scores of all candidates, (N, C).
        chosen: The targets.
        objective: What `y` is.
        title: The method's, for errors.
        eigen: Weighted activations are projected onto their first singular vector, in place of being summed.
        fixed: Values (N, …) that say what was chosen: variants keep those of the image itself.
        repeats: What the gradients had to repeat for K targets.
        reports: What is returned besides the maps.
        explained: int64 (N, K): the class that each map stands for, where it is not the targets.
        seams: Where the graph is cut into stages.
    """

    g: Builder
    x: ir.Value
    layout: str
    image_layout: str
    extent: ir.Value | None
    layers: list[ir.Value]
    score: ir.Value
    chosen: Chosen
    objective: Objective
    title: str
    eigen: bool = False
    fixed: tuple[ir.Value, ...] = ()
    repeats: list[Repeat] = field(default_factory=list)
    reports: dict[str, ir.Value] = field(default_factory=dict)
    explained: ir.Value | None = None
    seams: Seams = field(default_factory=Seams)

    @property
    def size(self) -> ir.Value:
        """Height and width of the image, int64 (2,).

        Raises:
            MethodError: it is a volume.
        """
        if self.extent is None:
            raise self.needs("rows and columns")
        return self.extent

    @property
    def axes(self) -> int:
        """How many axes of positions the image has: 2 of a picture, 1 of a signal, 3 of a volume."""
        return len(position_axes(self.image_layout))

    @property
    def grids(self) -> list[View | None]:
        """Where the positions of the raw maps lie in the model: those of each layer, or of the image."""
        return [view_of(value) for value in self.layers or [self.x]]

    def needs(self, what: str) -> MethodError:
        """The error that the method needs another kind of image."""
        return MethodError(
            f"{self.title} needs {what}, and what is explained here is {kind_of(self.image_layout)}: use a method that "
            "weighs activations, such as 'gradcam' or 'layercam'"
        )

    @property
    def varies(self) -> bool:
        """Whether the method has variants: then the graph explains one image at a time."""
        return self.seams.variant is not None

    @cached_property
    def first(self) -> Pass:
        """The model's own forward pass."""
        return Pass(self, {}, self.chosen)

    @property
    def layer(self) -> ir.Value:
        """The layer, for methods that work on one.

        Raises:
            MethodError: several were given.
        """
        if len(self.layers) != 1:
            raise MethodError(f"{self.title} works on one layer, and {len(self.layers)} were given: name one of them")
        return self.layers[0]

    def read(self, value: ir.Value) -> ir.Value:
        """A value of the model in a precision to compute maps in: 16 bits as float32."""
        if value.dtype not in HALF:
            return value
        wide = self.g.Cast(value, to=ir.DataType.FLOAT)
        wide.shape = value.shape
        return wide

    @property
    def pixels(self) -> ir.Value:
        """`x` as (N, C, H, W)."""
        return self.channels_first(self.x)

    def channels_first(self, image: ir.Value) -> ir.Value:
        """Something of the image's shape (rows, …) as (rows, C, H, W)."""
        return image if self.layout == "NCHW" else self._permuted(image, [0, 3, 1, 2])

    def as_image(self, image: ir.Value) -> ir.Value:
        """The other way round: (rows, C, H, W) as the model takes it."""
        return image if self.layout == "NCHW" else self._permuted(image, [0, 2, 3, 1])

    def _permuted(self, image: ir.Value, perm: list[int]) -> ir.Value:
        moved = self.g.Transpose(image, perm=perm)
        if image.shape is not None:
            moved.shape = ir.Shape([image.shape[axis] for axis in perm])
        return moved

    # ── further passes ──────────────────────────────────────────────────────────────────────────────────────────────

    def run(self, given: Mapping[ir.Value, ir.Value], keep: Sequence[ir.Value] = ()) -> Pass:
        """A forward pass with some values of the model replaced.

        Args:
            given: Value of the model → what takes its place, with any number M of rows in place of the one image's.
            keep: Values besides the score that are wanted of the pass.
        """
        rows = self.g.Slice(self.g.Shape(next(iter(given.values()))), [0], [1], [0])

        def spread(value: ir.Value, rank: int = 2) -> ir.Value:
            sizes = self.g.Concat(rows, [1] * (rank - 1), axis=0) if rank > 1 else rows
            return self.g.Expand(value, sizes)

        kept = {value: spread(value, len(dims(value))) for value in self.fixed}
        values = clone(self.g, {**given, **kept}, [self.score, *keep], rows)
        explained, rival = self.chosen.explained, self.chosen.against
        against = spread(rival) if rival is not None else None
        return Pass(self, values, Chosen(spread(explained), against, self.chosen.count))

    def split(self, grad: ir.Value, like: ir.Value) -> ir.Value:
        """A gradient (K·N, C, h, w) for a layer as (K, N, C, h, w)."""
        return split(self.g, grad, like, self.chosen.count)

    def affine(self, layer: ir.Value) -> ir.Value | None:
        """`dy/dA` (K·N, C, h, w) if `y` is an affine function of `A`: then `y(A') = y(A) + <dy/dA, A' − A>` for any
        `A'`.  None if it is not, or if some op has no gradient."""
        before = len(self.repeats)
        try:
            grad = self.first.gradient(layer)
        except UnsupportedOpError:
            return None
        fixed = [v for v in (self.chosen.explained, self.chosen.against) if v is not None]
        if is_affine(layer, self.score, grad, fixed):
            return grad
        del self.repeats[before:]  # nobody reads that gradient
        return None

    # ── variants ────────────────────────────────────────────────────────────────────────────────────────────────────

    def vary(self, ids: ir.Value | int, at_most: int | None = None) -> ir.Value:
        """The index of a variant, int64 (M,): runs over `ids` (V,), or over 0 … `ids` − 1, a batch of M at a time.

        `at_most` bounds V, where it is known.
        """
        if self.seams.variant is not None:
            raise ValueError("a method varies one thing")
        g = self.g
        if isinstance(ids, int):
            at_most, ids = ids, g.constant(np.arange(ids))
        self.seams.ids, self.seams.at_most = ids, at_most
        self.seams.variant = self._placeholder("variant", ir.DataType.INT64, ["variants"])
        return self.seams.variant

    def vary_along(self, value: ir.Value, axis: int) -> ir.Value:
        """`vary` over the indices of an axis of `value`."""
        size = dims(value)[axis]
        return self.vary(size if isinstance(size, int) else self.range_along(value, axis))

    def range_along(self, value: ir.Value, axis: int) -> ir.Value:
        """0, 1, … along an axis of `value`, int64."""
        g = self.g
        size = dims(value)[axis]
        stop = (
            g.constant(size)
            if isinstance(size, int)
            else g.Squeeze(g.Slice(g.Shape(value), [axis], [axis + 1], [0]), [0])
        )
        return g.Range(g.constant(0), stop, g.constant(1))

    def noise(
        self, kind: Literal["normal", "uniform"], shape: ir.Value | Sequence[int], seed: int, stream: int = 0
    ) -> ir.Value:
        """Random numbers (M, …), one sample per variant, which depends on the seed and the variant's index alone.

        Args:
            kind: "normal": mean 0, variance 1; "uniform": in [0, 1).
            shape: The shape of a sample, which is then float32, or a value (1, …) whose shape and dtype it has.
            seed, stream: See `runtime.noise.draw`.
        """
        like = shape if isinstance(shape, ir.Value) else None
        fixed = () if isinstance(shape, ir.Value) else tuple(shape)
        sizes = fixed if like is None else [None if d == "?" else d for d in dims(like)[1:]]
        value = self._placeholder("noise", ir.DataType.FLOAT, ["variants", *sizes])
        self.seams.noise.append((value, Noise("", kind, fixed, None, seed, stream), like))
        return value if like is None or like.dtype == value.dtype else self.g.Cast(value, to=like.dtype)

    def stack(self, y: ir.Value) -> ir.Value:
        """What each variant gave, (M, …), for all of them: (V, …)."""
        return self._collect(y, "stack", ["all", *list(y.shape)[1:]] if y.shape is not None else None)

    def total(self, y: ir.Value) -> ir.Value:
        """The sum over all variants of `y`, which is itself the sum over the batch of them that a step works on."""
        return self._collect(y, "sum", y.shape)

    def host(
        self, function: str, *sources: ir.Value, results: Sequence[Sequence[int | str | None]], **options: Any
    ) -> list[ir.Value]:
        """Call a function of `pycam.runtime.algebra` behind the first stage.

        Args:
            function: Its name; it takes arrays and `options`, and gives a tuple of float32 arrays.
            sources: What it is given.
            results: Shapes of what it gives.
            options: JSON values.
        """
        values = [self._placeholder(function, ir.DataType.FLOAT, shape) for shape in results]
        self.seams.host.append((function, sources, values, options))
        return values

    def report(self, name: str, value: ir.Value) -> None:
        """Return something besides the maps, its first axis N: it becomes `Explanation.extras[name]`."""
        self.reports[name] = value

    def _collect(self, y: ir.Value, fold: Fold, shape: Any) -> ir.Value:
        value = self._placeholder("evidence", y.dtype or ir.DataType.FLOAT, shape)
        self.seams.collected.append((y, value, fold))
        return value

    def _placeholder(self, name: str, dtype: ir.DataType, shape: Any) -> ir.Value:
        shape = ir.Shape(list(shape)) if shape is not None else None
        value = ir.Value(name=self.g.fresh(name), type=ir.TensorType(dtype), shape=shape)
        self.g.graph.inputs.append(value)
        return value
