"""What lies at a model's end: the activation that a score steps behind, and what is reported of what was explained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pycam.graph.locate import SOFTMAX

if TYPE_CHECKING:
    import onnx_ir as ir

    from .outputs import Logits, Outputs

_COPIES = ("Identity", "QuantizeLinear", "DequantizeLinear")


def logits_along(model: Outputs, name: str | None, axis: int, behind: Sequence[str] = SOFTMAX) -> Logits:
    """As `Outputs.logits`, but a softmax over another axis than `axis` is part of the score.

    Raises:
        ModelError: there is no such output, or it holds other numbers.
    """
    found = model.logits(name, behind)
    return model.logits(name, ()) if softmax_axis(found) not in (None, axis) else found


def softmax_axis(found: Logits) -> int | None:
    """The axis, 0 and up, of the softmax that was stepped behind; None if there was none."""
    if found.activation not in SOFTMAX:
        return None
    node = found.output.producer()
    while node is not None and node.op_type in _COPIES and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is None or node.op_type != found.activation or found.value.shape is None:
        return None
    return node.attributes.get_int("axis", -1) % len(found.value.shape)


def explained_of(model: Outputs, z: ir.Value, classes: int | None, values: ir.Value) -> ir.Value:
    """Of `values` (N, C) those of the explained entries of `z` (N, C): (N, K)."""
    import onnx_ir as ir

    from .choose import look_up

    z.shape = ir.Shape([None, classes])
    return model.g.GatherElements(values, look_up(model.g, z, model.targets), axis=1)
