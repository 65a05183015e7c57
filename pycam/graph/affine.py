"""Whether a score is an affine function of a layer: seen from its gradient, not from a list of architectures."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from pycam.grad.reverse import between

from .depend import OF_SHAPE, depending, needed, reads_value
from .quantised import is_quantised


def is_affine(layer: ir.Value, score: ir.Value, gradient: ir.Value, fixed: Collection[ir.Value] = ()) -> bool:
    """Whether the score is `<gradient, layer> +` something that does not depend on the layer.

    It is if the gradient itself does not read the layer, or anything computed from it, and if whatever leads from the
    layer to the score is differentiated exactly: no rounding, no step function on the way.  Values that count as
    `fixed` (which class is explained) may depend on the layer.
    """
    assert isinstance(layer.graph, ir.Graph)
    nodes = list(layer.graph)
    if reads_value(gradient, {layer}, fixed):
        return False
    behind = depending([n for n in nodes if n.op_type not in OF_SHAPE], [layer])
    exact = set(between(nodes, [layer], [score]).nodes)
    tail = (n for n in needed(nodes, [score], [layer]) if any(y in behind for y in n.outputs))
    return all(n in exact and not any(is_quantised(y) for y in n.outputs) for n in tail)
