"""Append ONNX nodes to a graph: `g.Mul(a, 2.0)` → Value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .simplify import PEEPHOLES

Array: TypeAlias = "np.ndarray[Any, Any] | float | Sequence[int] | Sequence[float]"
Operand: TypeAlias = Any  # ir.Value, float, int, sequence of int, ndarray, or None for an optional input left out

Lower: TypeAlias = Literal["fast", "portable"]
"""Where an op's gradient has two forms: what measures fastest on onnxruntime, or what every runtime gets right."""

LOWERS: tuple[Lower, ...] = get_args(Lower)

_INT64_OUT = {"Shape", "Size", "ArgMax", "ArgMin", "NonZero"}
_BOOL_OUT = {"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "And", "Or", "Xor", "IsNaN", "IsInf"}
_FLOATS = {ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}


PREFIX = "pycam"
"""Names of emitted nodes and values begin with it."""


class Builder:
    """Emits nodes at the end of `graph`, simplifying as it goes.

    A call `g.Op(*inputs, **attributes)` returns the node's first output.  Python floats become constants of the dtype
    of the call's first float operand, ints and lists of ints become int64; equal constants are shared.
    Each op first asks its peephole (`simplify.py`), which may give back a value that is cheaper to compute.

    `nested(body)` builds in a subgraph, whose constants and names are those of the whole.
    """

    def __init__(
        self, graph: ir.Graph, prefix: str = PREFIX, *, lower: Lower = "fast", root: Builder | None = None
    ) -> None:
        self.graph = graph
        self.prefix = prefix
        self.lower = lower
        self._root = root or self
        if root is None:
            self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
            self._taken: set[str | None] = {*graph.initializers, *(v.name for v in graph.inputs)}
            for node in graph.all_nodes():  # onnxruntime wants the names of nodes to differ as well
                self._taken.update((node.name, *(v.name for v in node.outputs)))
            self._count = 0

    def nested(self, body: ir.Graph) -> Builder:
        """A builder for a subgraph of this graph."""
        return Builder(body, self.prefix, lower=self.lower, root=self._root)

    @property
    def opsets(self) -> dict[str, int]:
        """Domain → version of the whole model."""
        return dict(self._root.graph.opset_imports)

    @property
    def portable(self) -> bool:
        """Whether to emit only forms that every runtime gets right."""
        return self.lower == "portable"

    def __getattr__(self, op: str) -> Callable[..., ir.Value]:
        if not op[0].isupper():
            raise AttributeError(op)
        return lambda *inputs, **attributes: self.emit(op, inputs, attributes)[0]

    def emit(
        self,
        op: str,
        inputs: Sequence[Operand],
        attributes: dict[str, Any] | None = None,
        outputs: int = 1,
    ) -> tuple[ir.Value, ...]:
        """One node with `outputs` outputs; most callers want the short form `g.Op(...)`."""
        attributes = {k: v for k, v in (attributes or {}).items() if v is not None}
        floating = next((x.dtype for x in inputs if isinstance(x, ir.Value) and x.dtype in _FLOATS), None)
        values = [self._lift(x, floating) for x in inputs]
        if outputs == 1 and op in PEEPHOLES:
            simpler = PEEPHOLES[op](self, values, attributes)
            if simpler is not None:
                return (simpler,)
        attrs = [_attribute(name, value) for name, value in attributes.items()]
        node = ir.Node("", op, values, attrs, num_outputs=outputs, name=self.fresh(op))
        for i, value in enumerate(node.outputs):
            value.name = node.name if i == 0 else f"{node.name}.{i}"
            dtype = _dtype(op, values, attributes, i)
            value.type = ir.TensorType(dtype) if dtype is not None else None
        self.graph.append(node)
        return tuple(node.outputs)

    def constant(self, x: Array, dtype: ir.DataType | None = None) -> ir.Value:
        """An initialiser; equal ones are made once."""
        array = np.asarray(x)
        if dtype is not None:
            array = array.astype(dtype.numpy())
        elif array.dtype.kind == "i" or array.size == 0:
            array = array.astype(np.int64)
        key = (array.dtype.str, array.shape, array.tobytes() if array.nbytes <= 1024 else b"")
        constants = self._root._constants
        if array.nbytes > 1024 or key not in constants:  # big ones are not worth comparing
            tensor = ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=self.fresh("const"))
            value = ir.Value(
                name=tensor.name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
            )
            self._root.graph.register_initializer(value)
            constants[key] = value
        return constants[key]

    def free(self, name: str) -> str:
        """`name` itself, or with a suffix where the model already uses it; for what users see."""
        while name in self._root._taken:
            name += "_pycam"
        self._root._taken.add(name)
        return name

    def fresh(self, hint: str) -> str:
        """A name nobody in the graph has."""
        root = self._root
        while True:
            root._count += 1
            name = f"{self.prefix}/{hint}_{root._count}"
            if name not in root._taken:
                root._taken.add(name)
                return name

    def _lift(self, x: Operand, floating: ir.DataType | None) -> ir.Value | None:
        if x is None or isinstance(x, ir.Value):
            return x
        kind = np.asarray(x).dtype.kind
        if kind == "f" and not isinstance(x, np.ndarray):
            return self.constant(x, floating or ir.DataType.FLOAT)
        if kind == "f" and floating is not None:
            return self.constant(x, floating)
        return self.constant(x)


def constant_of(value: ir.Value | None) -> NDArray[Any] | None:
    """The numpy array of a value that is known at compile time, else None."""
    if value is None or value.const_value is None:
        return None
    return value.const_value.numpy()


def _attribute(name: str, value: Any) -> ir.Attr:
    """As onnx-ir's own conversion, which takes ten times as long to find out what a plain int is."""
    kind = type(value[0] if isinstance(value, list) and value else value)
    make = (_LISTS if isinstance(value, list) else _SCALARS).get(kind)
    return make(name, value) if make is not None else ir.convenience.convert_attribute(name, value)


_SCALARS: dict[type, Callable[[str, Any], ir.Attr]] = {
    int: ir.AttrInt64,
    float: ir.AttrFloat32,
    str: ir.AttrString,
}
_LISTS: dict[type, Callable[[str, Any], ir.Attr]] = {int: ir.AttrInt64s, float: ir.AttrFloat32s, str: ir.AttrStrings}


def _dtype(op: str, values: list[ir.Value | None], attributes: dict[str, Any], output: int) -> ir.DataType | None:
    if op in _INT64_OUT or (op in ("TopK", "MaxPool") and output == 1):
        return ir.DataType.INT64
    if op in _BOOL_OUT:
        return ir.DataType.BOOL
    if op == "Cast":
        return ir.DataType(attributes["to"])
    if op == "ConstantOfShape":
        return ir.DataType(attributes["value"].dtype) if "value" in attributes else ir.DataType.FLOAT
    if op == "QuantizeLinear" and len(values) < 3:
        return ir.DataType(attributes.get("output_dtype", ir.DataType.UINT8))
    source = values[{"Where": 1, "OneHot": 2, "QuantizeLinear": 2, "DequantizeLinear": 1}.get(op, 0)]
    return source.dtype if source is not None else None
