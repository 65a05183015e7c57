"""Quantised values: integers that stand for floats, and what pycam takes them for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .builder import Builder, constant_of

FORMS: dict[tuple[str, str], Callable[..., ir.Value]] = {}
"""(domain, op) of the ops on quantised integers → their float forms, see `qoperator.py`."""

MOVES = {
    *("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Slice", "Gather", "Split", "Expand"),
    *("Tile", "DepthToSpace", "SpaceToDepth", "Resize"),
}
"""Ops that leave the numbers of their first input as they are: integers stay what they stand for."""

_INTEGER = {"MatMulInteger", "ConvInteger"}
"""Ops whose int32 results carry a gradient."""


def quantiser_of(value: ir.Value | None) -> ir.Node | None:
    """The QuantizeLinear or DynamicQuantizeLinear that made the integers of `value`, which ops may have moved since."""
    while value is not None and (node := value.producer()) is not None and node.domain == "":
        if node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear"):
            return node if value is node.outputs[0] else None
        if node.op_type not in MOVES:
            return None
        value = node.inputs[0]
    return None


def is_quantised(value: ir.Value) -> bool:
    """Whether `value` holds integers that stand for floats."""
    if value.dtype is not None and value.dtype.is_floating_point() and not _is_float8(value.dtype):
        return False
    node = value.producer()
    if node is None or value is not node.outputs[0]:
        return quantiser_of(value) is not None
    return quantiser_of(value) is not None or node.op_type in _INTEGER or (node.domain, node.op_type) in FORMS


def carries_nothing(value: ir.Value) -> bool:
    """Whether `value` is the scale of a DynamicQuantizeLinear: a setting, though it is computed from what it scales."""
    node = value.producer()
    return node is not None and node.op_type == "DynamicQuantizeLinear" and value is not node.outputs[0]


def as_read(value: ir.Value) -> ir.Value:
    """The floats that the network reads of `value`: dequantised, where it only goes into a quantiser; else itself.

    Whoever reads these does not make the runtime compute the value in float beside its integer kernel.
    """
    if is_quantised(value):
        return _dequantised(value) or value
    users = [use.node for use in value.uses()]
    if value.is_graph_output() or len(users) != 1 or users[0].op_type != "QuantizeLinear":
        return value
    node = value.producer()
    here = node is not None and node.graph is users[0].graph  # and not within a subgraph
    return (_dequantised(users[0].outputs[0]) if here else None) or value


def _dequantised(quantised: ir.Value) -> ir.Value | None:
    node = quantised.producer()
    scales = scales_of(node) if node is not None and node.op_type == "QuantizeLinear" else None
    for use in quantised.uses():
        if use.node.op_type != "DequantizeLinear" or node is None or use.node.graph is not node.graph:
            continue
        if scales is None or scales_of(use.node) == scales:
            return use.node.outputs[0]
    return None


def scales_of(node: ir.Node) -> list[ir.Value]:
    return [x for x in node.inputs[1:3] if x is not None]


def before_rounding(value: ir.Value) -> ir.Value:
    """`value`, or what was quantised and dequantised to it."""
    node = value.producer()
    quantised = node.inputs[0] if node is not None and node.op_type == "DequantizeLinear" else None
    quantiser = quantised.producer() if quantised is not None else None
    before = quantiser.inputs[0] if quantiser is not None and quantiser.op_type == "QuantizeLinear" else None
    return before if before is not None else value


_PROPAGATED = {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "MaxPool"}
"""Ops that onnxruntime moves in front of a DequantizeLinear, to run on integers."""


def keep_from_propagation(graph: ir.Graph) -> None:
    """Put a Clip without bounds between a DequantizeLinear of int8 and an op that onnxruntime would move before it.

    On x86 that fails at opset 21 and above: the QuantizeLinear that it inserts says int8 in an attribute, its later
    turn from int8 to uint8 does not see that (1.32), and earlier releases took int8 without a zero point for uint8.
    """
    g = Builder(graph, prefix="pycam/kept")
    for node in list(graph):
        x = node.inputs[0] if node.inputs and node.domain == "" and node.op_type in _PROPAGATED else None
        made = x.producer() if x is not None else None
        if x is None or made is None or made.op_type != "DequantizeLinear" or made.inputs[0] is None:
            continue
        readers = [use.node.op_type for use in node.outputs[0].uses()]
        fused = bool(readers) and set(readers) == {"QuantizeLinear"} and not node.outputs[0].is_graph_output()
        if made.inputs[0].const_value is not None or made.inputs[0].dtype == ir.DataType.UINT8 or fused:
            continue
        kept = g.Clip(x)
        kept.shape = x.shape
        clip = kept.producer()
        assert clip is not None
        graph.remove(clip)
        graph.insert_before(node, clip)
        node.replace_input_with(0, kept)


def dequantised_constant(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear node that makes `value` out of constants, if there is one."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "DequantizeLinear" or node.domain != "":
        return None
    return node if all(x is None or x.const_value is not None for x in node.inputs) else None


def dequantise(node: ir.Node) -> NDArray[Any]:
    """What a DequantizeLinear of constants makes: `(q − zero point)·scale`, per tensor, axis or block."""
    q, scale, *rest = (constant_of(x) for x in node.inputs)
    assert q is not None and scale is not None
    zero = rest[0] if rest and rest[0] is not None else np.zeros_like(scale)
    wide = np.float64 if scale.dtype == np.float64 else np.float32
    scale, zero = (along_axis(a.astype(wide), node, q.shape) for a in (scale, zero))
    return np.asarray((q.astype(wide) - zero) * scale)


def along_axis(scale: NDArray[Any], node: ir.Node, shape: tuple[int, ...]) -> NDArray[Any]:
    """A scale (or zero point) of a Quantize- or DequantizeLinear node, so that it broadcasts to the array it scales."""
    axis, block = node.attributes.get_int("axis", 1), node.attributes.get_int("block_size", 0)
    if block:
        return np.repeat(scale, block, axis).take(range(shape[axis]), axis)
    if scale.ndim != 1 or scale.size == 1:
        return scale.reshape(()) if scale.ndim == 1 else scale
    return scale.reshape([-1 if a == axis % len(shape) else 1 for a in range(len(shape))])


def _is_float8(dtype: ir.DataType) -> bool:
    return dtype.name.startswith("FLOAT8")
