"""Multiply-adds of a node, as far as shapes are known."""

from __future__ import annotations

import math

import onnx_ir as ir


def macs(node: ir.Node) -> int:
    """Multiply-adds of Conv, ConvTranspose, Gemm and MatMul (0 for others); a symbolic dimension counts as 1."""
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul") or len(node.inputs) < 2:
        return 0
    a, w, y = _sizes(node.inputs[0]), _sizes(node.inputs[1]), _sizes(node.outputs[0])
    if node.op_type == "Conv":
        return math.prod(y) * math.prod(w[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(a) * math.prod(w[1:])
    transposed = node.op_type == "Gemm" and node.attributes.get_int("transA", 0) == 1
    inner = a[0 if transposed else -1] if a else 1
    return math.prod(y) * inner


def _sizes(value: ir.Value | None) -> list[int]:
    if value is None or value.shape is None:
        return []
    return [d if isinstance(d, int) else 1 for d in value.shape]
