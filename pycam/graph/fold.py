"""Fold BatchNormalization into the convolution before it.

s = γ/√(σ² + ε);   BN(W∗x + b) = (s·W)∗x + s·(b − μ) + β
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from .builder import Builder, constant_of


def fold_batchnorm(graph: ir.Graph, keep: Collection[ir.Value]) -> None:
    """Fold where the convolution feeds nothing else; `keep` (the layers) are never folded away."""
    g = Builder(graph, prefix="pycam/fold")
    for node in list(graph):
        if node.op_type != "BatchNormalization" or node.domain != "":
            continue
        conv = node.inputs[0].producer() if node.inputs[0] is not None else None
        if conv is not None and _foldable(conv, node, keep):
            _fold(g, graph, conv, node)


def _foldable(conv: ir.Node, bn: ir.Node, keep: Collection[ir.Value]) -> bool:
    y = conv.outputs[0]
    constants = [*conv.inputs[1:], *bn.inputs[1:]]
    return (
        conv.op_type == "Conv"
        and conv.domain == ""
        and len(list(y.uses())) == 1
        and not y.is_graph_output()
        and y not in keep
        and not bn.attributes.get_int("training_mode", 0)
        and all(c is None or c.const_value is not None for c in constants)
    )


def _fold(g: Builder, graph: ir.Graph, conv: ir.Node, bn: ir.Node) -> None:
    weight = constant_of(conv.inputs[1])
    gamma, beta, mean, variance = (constant_of(x) for x in bn.inputs[1:5])
    assert weight is not None and gamma is not None and beta is not None and mean is not None and variance is not None
    bias = constant_of(conv.inputs[2]) if len(conv.inputs) > 2 else None
    scale = gamma.astype(np.float64) / np.sqrt(variance.astype(np.float64) + bn.attributes.get_float("epsilon", 1e-5))
    new_bias = beta + scale * ((0.0 if bias is None else bias) - mean)
    new_weight = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    inputs = [conv.inputs[0], g.constant(new_weight.astype(weight.dtype)), g.constant(new_bias.astype(weight.dtype))]
    # The normalisation itself becomes the convolution: its output may be a layer, and stays the same value.
    bn.op_type = "Conv"
    bn.attributes.clear()
    bn.attributes.update(conv.attributes)
    bn.resize_inputs(len(inputs))
    for i, value in enumerate(inputs):
        bn.replace_input_with(i, value)
    graph.remove(conv, safe=True)
