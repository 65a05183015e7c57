"""Pools with `ceil_mode`, whose shapes onnx infers wrongly up to opset 21.

A last window that would begin in the end pad is left out, by PyTorch and by the runtimes; onnx's inference counts it.
Where the sizes are known the same windows are had without `ceil_mode`.
"""

from __future__ import annotations

import onnx_ir as ir


def settle_pools(model: ir.Model) -> bool:
    """Spell out the windows of pools with `ceil_mode` where sizes are known; whether there were any."""
    found = False
    for node in model.graph.all_nodes():
        pool = node.op_type in ("MaxPool", "AveragePool", "LpPool") and node.domain == ""
        if pool and node.attributes.get_int("ceil_mode"):
            found |= _settle(node)
    return found


def _settle(node: ir.Node) -> bool:
    x = node.inputs[0]
    kernel = node.attributes.get_ints("kernel_shape", [])
    rank = len(kernel)
    sizes = [d for d in (x.shape or ())[2:] if isinstance(d, int)] if x is not None else []
    if len(sizes) != rank or node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        return False
    strides = node.attributes.get_ints("strides", [1] * rank)
    dilations = node.attributes.get_ints("dilations", [1] * rank)
    pads = list(node.attributes.get_ints("pads", [0] * 2 * rank))
    for j, size in enumerate(sizes):
        begin, end, stride = pads[j], pads[rank + j], strides[j]
        reach = dilations[j] * (kernel[j] - 1) + 1
        room = begin + size + end - reach
        windows = -(-room // stride) + 1
        if (windows - 1) * stride >= begin + size:
            windows -= 1
        if windows != room // stride + 1:
            pads[rank + j] = (windows - 1) * stride + reach - begin - size
    longer = pads != list(node.attributes.get_ints("pads", [0] * 2 * rank))
    if longer and node.attributes.get_int("count_include_pad"):
        return False  # it would count the further pads as well
    node.attributes["pads"] = ir.AttrInt64s("pads", pads)
    del node.attributes["ceil_mode"]
    return True
