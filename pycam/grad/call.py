"""`Call`: a forward node as its gradient rules see it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pycam.errors import BatchAxisError, UnsupportedOpError
from pycam.graph.builder import Builder, constant_of
from pycam.graph.quantised import as_read, dequantise, dequantised_constant
from pycam.graph.simplify import Spread, expand

from . import registry

Dim = int | str | None
"""A dimension: its size, its symbolic name, or None where nothing is known."""

TARGETS = "K"
"""The name of the size that is the number of targets per image, a few."""


HALF = tuple(d for d in ir.DataType if d.is_floating_point() and d.bitwidth <= 16)
"""Types whose gradients are computed in float32: float16, bfloat16 and what is smaller."""


class Repeat:
    """How many explanations share one forward pass, and how rules see its values.

    The gradients of K scores travel together: their batch axis is `K·N`, K outermost.  A forward value that a rule
    reads is tiled along axis 0 when it is first read, and never if no rule reads it (a GAP + linear tail reads none).
    A value of 16 bits is read in float32, a quantised weight is dequantised, once, and what only goes into a quantiser
    is read as it comes out: the runtime has it in integers alone.
    """

    def __init__(self, g: Builder, count: ir.Value | None, batched: frozenset[ir.Value]) -> None:
        self.g = g
        self.count = count  # int64 (1,): K, or None when K is 1
        self.batched = batched
        self.tiled: dict[ir.Value, ir.Value] = {}
        self.widened: dict[ir.Value, ir.Value] = {}
        self.arrays: dict[ir.Value, NDArray[Any]] = {}

    def __call__(self, value: ir.Value) -> ir.Value:
        """`value` for all K targets: `(N, …)` → `(K·N, …)`; constants and shapes stay as they are."""
        value = self.wide(as_read(value))
        return value if self.count is None or value not in self.batched else self.tile(value)

    def tile(self, value: ir.Value) -> ir.Value:
        """`value` K times along axis 0."""
        if value not in self.tiled:
            rank = len(value.shape) if value.shape is not None else 0
            if rank == 0:
                raise BatchAxisError(
                    f"the value {value.name!r} has no batch axis to repeat for several targets: "
                    "explain one target at a time"
                )
            assert self.count is not None
            repeats = self.g.Concat(self.count, [1] * (rank - 1), axis=0) if rank > 1 else self.count
            self.tiled[value] = self.g.Tile(value, repeats)
        return self.tiled[value]

    def wide(self, value: ir.Value) -> ir.Value:
        """`value` in float32 if it has 16 bits; a quantised constant as the floats that it stands for."""
        weight = dequantised_constant(value)
        if weight is None and value.dtype not in HALF:
            return value
        if value not in self.widened:
            array = self.array(value)
            if array is not None:
                self.widened[value] = self.g.constant(array)
            else:
                cast = self.g.Cast(value, to=ir.DataType.FLOAT)
                cast.shape = value.shape
                if value in self.batched:
                    self.batched |= {cast}
                self.widened[value] = cast
        return self.widened[value]

    def array(self, value: ir.Value | None) -> NDArray[Any] | None:
        """`value` as an array if it is known at compile time: 16 bits as float32, quantised weights as floats."""
        weight = dequantised_constant(value)
        if value is None or (weight is None and (value.dtype not in HALF or value.const_value is None)):
            return constant_of(value)
        if value not in self.arrays:
            plain = constant_of(value) if weight is None else dequantise(weight)
            assert plain is not None
            self.arrays[value] = plain.astype(np.float32) if value.dtype in HALF else plain
        return self.arrays[value]

    def heavy(self, limit: int = 1 << 16) -> bool:
        """Whether the graph still repeats a value with more than `limit` numbers per image and target, or an unknown
        number."""
        for value, tiled in self.tiled.items():
            tile = tiled.producer()
            sizes = [d for d in list(value.shape or [])[1:] if d != TARGETS]
            known = [d for d in sizes if isinstance(d, int)]
            used = tile is not None and tile.graph is not None  # simplification may have dropped it
            if used and (len(known) < len(sizes) or math.prod(known) > limit):
                return True
        return False

    def shape_of(self, value: ir.Value) -> ir.Value:
        """The shape (int64) of the repeated `value`, without making it."""
        shape = self.g.Shape(as_read(value))
        if self.count is None or value not in self.batched:
            return shape
        rank = len(value.shape) if value.shape is not None else 0
        factors = self.g.Concat(self.count, [1] * (rank - 1), axis=0) if rank > 1 else self.count
        return self.g.Mul(shape, factors)


class Call:
    """The forward node `node`, differentiated for its input `i`.

    Values it hands out (`x`, `y`) are already repeated for the K targets.  Prefer `y` to `x` where the algebra allows:
    reading a pre-activation stops onnxruntime from fusing it with the convolution before.
    """

    def __init__(
        self,
        g: Builder,
        repeat: Repeat,
        node: ir.Node,
        i: int,
        dys: list[ir.Value | None],
        rules: str = "exact",
    ) -> None:
        self.g = g
        self.repeat = repeat
        self.node = node
        self.i = i
        self.dys = dys  # gradients of all outputs, None where the score does not depend on one
        self.rules = rules  # name of the rule set

    @property
    def rule_set(self) -> registry.RuleSet | None:
        """What replaces the gradient of a ReLU-like activation, if anything does.

        For rules of ops that do more than activate (FusedConv); where the activation is the whole op, or several, the
        walk sees to it.
        """
        return registry.RULE_SETS[self.rules]

    def has(self, i: int) -> bool:
        """Whether the optional input `i` is given."""
        return i < len(self.node.inputs) and self.node.inputs[i] is not None

    def x(self, i: int | None = None) -> ir.Value:
        """Forward input `i` (default: the one differentiated)."""
        value = self._input(i)
        return self.repeat.tile(self.repeat.wide(value)) if self._has_own_batch(value) else self.repeat(value)

    def _has_own_batch(self, value: ir.Value) -> bool:
        """Whether `value` is a constant with an entry per sample, to be repeated as what it is broadcast against."""
        rule, y = registry.find(self.node, self.i), self.node.outputs[0].shape
        if self.repeat.count is None or value in self.repeat.batched or rule is None or rule.broadcasts != "inputs":
            return False
        return bool(value.shape) and y is not None and len(value.shape or ()) == len(y) and (value.shape or [1])[0] != 1

    def y(self, i: int = 0) -> ir.Value:
        """Forward output `i`."""
        return self.repeat(self.node.outputs[i])

    def const(self, i: int) -> NDArray[Any] | None:
        """Input `i` as an array if it is known at compile time, else None (also where it is left out)."""
        return self.repeat.array(self.node.inputs[i]) if self.has(i) else None

    def dtype(self, i: int | None = None) -> ir.DataType:
        """The dtype of `x(i)`: float32 where input `i` has 16 bits."""
        dtype = self._input(i).dtype
        if dtype is None:
            raise self.refuse(f"the dtype of its input {self.i if i is None else i} is unknown")
        return ir.DataType.FLOAT if dtype in HALF else dtype

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute's value: int, float, str, or list of those."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.value

    def rank(self, i: int | None = None) -> int:
        """Rank of input `i`."""
        return len(self.dims(i))

    def dims(self, i: int | None = None) -> list[Dim]:
        """Dimensions of input `i`; the batch axis of a repeated value is unknown (None)."""
        return self._dims(self._input(i), f"input {self.i if i is None else i}")

    def out_dims(self, i: int = 0) -> list[Dim]:
        """Dimensions of output `i`."""
        return self._dims(self.node.outputs[i], f"output {i}")

    def peers(self) -> list[list[Dim]]:
        """Dimensions of the inputs besides the one differentiated; none if one of them is of unknown rank."""
        others = [x for j, x in enumerate(self.node.inputs) if x is not None and j != self.i]
        return [] if any(x.shape is None for x in others) else [self._dims(x, "inputs") for x in others]

    def static(self, i: int | None = None, start: int = 0) -> list[int] | None:
        """Sizes of the axes `start…` of input `i` if all are known, else None."""
        sizes = [d for d in self.dims(i)[start:] if isinstance(d, int)]
        return sizes if len(sizes) == self.rank(i) - start else None

    def shape(self, i: int | None = None) -> ir.Value:
        """The shape of `x(i)` as an int64 vector: a constant if static, else computed when the graph runs."""
        sizes = self.static(i)
        return self.g.constant(sizes) if sizes is not None else self.repeat.shape_of(self._input(i))

    def size(self, axis: int, i: int | None = None) -> ir.Value:
        """The size of one axis of `x(i)` as an int64 vector of length 1."""
        size = self.dims(i)[axis]
        if isinstance(size, int):
            return self.g.constant([size])
        axis %= self.rank(i)
        return self.g.Slice(self.shape(i), [axis], [axis + 1], [0])

    def reshape_like(self, value: ir.Value, i: int | None = None, *, of_output: bool = False) -> ir.Value:
        """`value` with the shape of `x(i)`; `of_output` says that it has the shape of `y` now."""
        rest = self.static(i, start=1)
        if rest is not None and self.rank(i) > 0 and 0 not in rest and self.dims(i)[0] != 0:
            first = self.dims(i)[0]
            # A copied size keeps its symbol: onnxruntime then sees which shapes are equal, and keeps its own layout.
            free = 0 if of_output and self._keeps_batch(i) else -1
            return self.g.Reshape(value, [first if isinstance(first, int) else free, *rest])
        return self.g.Reshape(
            value, self.shape(i), allowzero=1 if self.static(i) and 0 in (self.static(i) or []) else None
        )

    def _keeps_batch(self, i: int | None) -> bool:
        """Whether the first axes of `x(i)` and `y` have the same size."""
        x, y = self._input(i).shape, self.node.outputs[0].shape
        if not x or not y:
            return False
        return x[0] == y[0] and (isinstance(x[0], int) or x[0].value is not None)

    def expand_like(self, value: ir.Value, axes: Sequence[int], i: int | None = None) -> ir.Value:
        """`value`, of the shape of `x(i)` but 1 on `axes`, broadcast to `x(i)`."""
        dims = self.dims(i)
        negative = tuple(sorted(a % len(dims) - len(dims) for a in axes))
        rest = self.static(i, start=1)
        whole = rest is not None and -len(dims) not in negative  # then the batch axis is complete in `value`
        shape = self.g.constant([1, *(rest or [])]) if whole else self.shape(i)
        return expand(self.g, value, shape, Spread(negative, tuple(dims[a] for a in negative)))

    def axes(self, value: Any, rank: int | None = None) -> list[int]:
        """Axes as non-negative ints: `value` is an array, a list, an int, or None for all of them."""
        rank = self.rank() if rank is None else rank
        if value is None:
            return list(range(rank))
        return [int(a) % rank for a in np.atleast_1d(np.asarray(value))]

    def refuse(self, why: str) -> UnsupportedOpError:
        """The error for a form of the op that has no gradient: `raise n.refuse("…")`."""
        return cannot_differentiate(self.node, why)

    def _input(self, i: int | None) -> ir.Value:
        value = self.node.inputs[self.i if i is None else i]
        assert value is not None, f"input {i} of {self.node.op_type} is left out: ask has() first"
        return value

    def _dims(self, value: ir.Value, what: str) -> list[Dim]:
        if value.shape is None:
            raise self.refuse(
                f"shape inference could not find the rank of its {what} ({value.name!r}): "
                "give the model's inputs fixed shapes and export it again"
            )
        dims: list[Dim] = [d if isinstance(d, int) else d.value for d in value.shape]
        if dims and self.repeat.count is not None and value in self.repeat.batched:
            dims[0] = None
        return dims


def cannot_differentiate(node: ir.Node, why: str) -> UnsupportedOpError:
    """The error for a node on the path that has no gradient."""
    op = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    return UnsupportedOpError(f"cannot differentiate {describe(node)}: {why}", op, node.outputs[0].name or "")


def describe(node: ir.Node) -> str:
    """`Conv (node "stem", opset 21)`: a node as error messages name it."""
    op = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    graph = node.graph
    version = graph.opset_imports.get(node.domain) if isinstance(graph, ir.Graph) else None
    where = "in a subgraph" if version is None else f"opset {version}"
    return f"{op} (node {node.name or node.outputs[0].name!r}, {where})"
