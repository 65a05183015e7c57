"""Pads of some axes spelt out as pads of all: a form that onnxruntime's optimizer understands."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .builder import Builder, constant_of
from .shapes import infer


def pad_every_axis(model: ir.Model) -> None:
    """Replace the input `axes` of every Pad by zeros for the other axes.

    onnxruntime (1.32 and before) moves a Transpose past a Pad and permutes the pads as if there were one for each axis:
    the session then fails when it runs, or pads another axis.
    """
    graph = model.graph
    partial = [n for n in graph.all_nodes() if n.op_type == "Pad" and n.domain == "" and len(n.inputs) > 3]
    if not partial:
        return
    shapes = [(y, y.shape) for node in graph for y in node.outputs]
    infer(list(graph), model.opset_imports, "pads")
    g = Builder(graph, prefix="pycam/pads")
    for node in partial:
        x, pads, _, axes = node.inputs[:4]
        if x is None or x.shape is None or pads is None or axes is None:
            continue
        rank, order = len(x.shape), constant_of(axes)
        if order is None:
            continue
        places = [int(a) % rank for a in order] + [int(a) % rank + rank for a in order]
        array = constant_of(pads)
        if array is not None:
            full = np.zeros(2 * rank, dtype=np.int64)
            full[places] = array
            node.replace_input_with(1, g.constant(full))
        else:
            table = np.full(2 * rank, len(places))  # the zero at the end
            table[places] = np.arange(len(places))
            inputs = [pads, g.constant([0])]
            joined = ir.Node("", "Concat", inputs, [ir.AttrInt64("axis", 0)], name=g.fresh("joined"))
            spread = ir.Node("", "Gather", [joined.outputs[0], g.constant(table)], name=g.fresh("pads"))
            for new in (joined, spread):
                new.outputs[0].name, new.outputs[0].type = new.name, ir.TensorType(ir.DataType.INT64)
            assert node.graph is not None
            node.graph.insert_before(node, [joined, spread])
            node.replace_input_with(1, spread.outputs[0])
        node.resize_inputs(3)
    for y, shape in shapes:  # the names that inference makes up are no news to a runtime, and confuse tract
        y.shape = shape
