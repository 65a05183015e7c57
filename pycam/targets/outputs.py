"""`Outputs`: what a target sees of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import onnx_ir as ir

from pycam.errors import ModelError, TargetError, nearest
from pycam.grad.call import HALF
from pycam.graph.axes import Axes, dims
from pycam.graph.axis_rules import follow_axes
from pycam.graph.builder import Builder
from pycam.graph.locate import SOFTMAX, before_activation
from pycam.graph.quantised import is_quantised
from pycam.runtime.given import Given
from pycam.runtime.layouts import is_picture, kind_of, position_axes

FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}


class Logits(NamedTuple):
    """What an output is made of."""

    value: ir.Value
    """The values before the final activation, if one was stepped behind."""
    output: ir.Value
    """The model's output."""
    activation: str
    """The op that was stepped behind; "" if none was."""

    @property
    def probabilities(self) -> bool:
        """Whether the output holds probabilities."""
        return self.activation in ("Softmax", "Sigmoid")

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know."""
        if not self.activation:
            return ()
        return (f"the score is the logit {self.value.name!r}: the final {self.activation} is stepped behind",)


@dataclass
class Outputs:
    """A model's outputs, and means to put nodes behind them.

    Attributes:
        g: Builder of the graph, whose `graph` it is.
        image: The image input.
        layout: Of the image, see `runtime.layouts`.
        targets: int64 (N, K), the graph's input.
        count: K, int64 (1,); None where it is fixed to 1.
        default: The output that the user named; None: the first.
        given: The inputs that were added by `take`.
    """

    g: Builder
    image: ir.Value
    layout: str
    targets: ir.Value
    count: ir.Value | None
    default: str | None = None
    given: dict[str, Given] = field(default_factory=dict)
    _own: tuple[ir.Value, ...] = ()

    def __post_init__(self) -> None:
        self._own = tuple(self.g.graph.outputs)

    @property
    def named(self) -> Mapping[str, ir.Value]:
        """The model's outputs by name."""
        return {v.name or "": v for v in self._own}

    @cached_property
    def axes(self) -> Mapping[ir.Value, Axes]:
        """Where the image's positions and the batch lie in each value, as far as it can be followed."""
        return follow_axes(self.g.graph)

    @property
    def batch(self) -> int | str:
        """The batch dimension of the image input; "?" if unknown."""
        return dims(self.image)[0]

    def output(self, name: str | None = None) -> ir.Value:
        """The output called `name`; None: the one that the user named, or else the first.

        Raises:
            ModelError: there is none.
        """
        name = self.default if name is None else name
        if name is None:
            return self._own[0]
        if name not in self.named:
            raise ModelError(f"the model has no output {name!r}; it has {nearest(name, self.named)}")
        return self.named[name]

    def logits(self, name: str | None = None, behind: Sequence[str] = SOFTMAX) -> Logits:
        """An output of floating-point numbers, before its final activation if that is one of `behind`.

        Raises:
            ModelError: there is no such output, or it holds other numbers.
        """
        y = self.output(name)
        if y.dtype not in FLOATS and not is_quantised(y):
            raise ModelError(
                f"the output {y.name!r} holds {y.dtype} and cannot be differentiated; "
                f"name another one of {nearest(y.name or '', self.named)}"
            )
        value, op = before_activation(y, behind)
        return Logits(value, y, op)

    def floats(self, value: ir.Value) -> ir.Value:
        """`value` in a precision to compute scores in: 16 bits as float32."""
        if value.dtype not in HALF:
            return value
        wide = self.g.Cast(value, to=ir.DataType.FLOAT)
        wide.shape = value.shape
        return wide

    def take(self, key: str, given: Given) -> ir.Value:
        """A further input of the explain graph, which calls fill as `given` says; its name is `given.input`, or one
        like it that is free.

        Raises:
            TargetError: a place in a picture, where the image is none.
        """
        if given.kind in ("mask", "boxes") and not is_picture(self.layout):
            raise TargetError(
                f"a target with a {'mask' if given.kind == 'mask' else 'box'} is for pictures, and the input "
                f"{self.image.name!r} is {kind_of(self.layout)}: explain a class, or an entry with `Custom`"
            )
        name = self.g.free(given.input)
        self.given[key] = Given(name, given.kind, given.shape, given.dtype, given.required)
        sizes = {"N": self.batch if self.batch != "?" else None, "K": "K" if self.count is not None else 1}
        sizes |= dict(zip(("H", "W"), self.image_sizes, strict=True))
        value = ir.Value(
            name=name,
            type=ir.TensorType(ir.DataType.INT64 if given.dtype == "int64" else ir.DataType.FLOAT),
            shape=ir.Shape([sizes.get(d, None) if isinstance(d, str) else d for d in given.shape]),
        )
        self.g.graph.inputs.append(value)
        return value

    @property
    def image_sizes(self) -> tuple[int | str | None, int | str | None]:
        """Height and width of the image, as far as they are known, and it has any."""
        shape = dims(self.image)
        if not is_picture(self.layout):
            return (None, None)
        height, width = (shape[axis] for axis in position_axes(self.layout))
        return (height if height != "?" else None, width if width != "?" else None)

    def every(self) -> ir.Value:
        """0 … K − 1 for each image, int64 (N, K): the entries of scores that lie one per target."""
        g = self.g
        if self.count is None:
            return g.Mul(self.targets, [[0]])
        row = g.Range(g.constant(0), g.Squeeze(self.count, [0]), g.constant(1))
        return g.Expand(row, g.Shape(self.targets))

    def refuse_rank(self, value: ir.Value, ranks: Sequence[int], wants: str, instead: str) -> None:
        """Raise TargetError unless the rank of `value` is one of `ranks`.

        Args:
            value: An output.
            ranks: What will do.
            wants: The shape that is needed, in words.
            instead: What would help.
        """
        shape = dims(value)
        if len(shape) not in ranks:
            raise TargetError(f"the output {value.name!r} has shape {list(shape)}; {wants}: {instead}")
