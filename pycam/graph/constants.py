"""Constant folding: what can be known at compile time is computed then, by onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from pycam.errors import ModelError


def fold_constants(model: ir.Model) -> None:
    """Replace every node whose inputs are known by its value, computed once by onnxruntime."""
    graph = model.graph
    known: set[ir.Value] = {v for v in graph.initializers.values() if v.const_value is not None}
    nodes: list[ir.Node] = []
    for node in graph:
        if _foldable(node, known):
            nodes.append(node)
            known.update(node.outputs)
    if not nodes:
        return
    inside = set(nodes)
    frontier = [
        y for n in nodes for y in n.outputs if y.is_graph_output() or any(u.node not in inside for u in y.uses())
    ]
    arrays = evaluate(model, nodes, frontier) if frontier else []  # none: nobody reads what could be folded
    for value, array in zip(frontier, arrays, strict=True):
        _replace_by_constant(graph, value, array)
    for node in reversed(nodes):
        if not any(y.uses() or y.is_graph_output() for y in node.outputs):
            graph.remove(node, safe=True)


_NEVER_FOLDED = {
    *("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"),  # chance
    *("SequenceConstruct", "SequenceInsert", "SplitToSequence", "Optional"),  # no array to put in their place
}


def _foldable(node: ir.Node, known: set[ir.Value]) -> bool:
    if node.domain != "" or node.op_type in _NEVER_FOLDED:
        return False
    if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
        return False
    inputs = [x for x in node.inputs if x is not None]
    if node.op_type == "Shape" and inputs[0].shape is not None and inputs[0].shape.is_static():
        return True
    if not inputs or not all(x in known for x in inputs):
        return False
    return node.op_type != "DequantizeLinear" or not any(_quantised(u.node) for u in node.outputs[0].uses())


def _quantised(consumer: ir.Node) -> bool:
    """Whether the op also reads a quantised activation: then the runtime fuses it, and its weights stay int8."""
    producers = [x.producer() for x in consumer.inputs if x is not None]
    return any(
        p is not None
        and p.op_type == "DequantizeLinear"
        and p.inputs[0] is not None
        and p.inputs[0].const_value is None
        for p in producers
    )


def evaluate(model: ir.Model, nodes: list[ir.Node], values: list[ir.Value]) -> list[NDArray[Any]]:
    """The arrays of `values`, computed from initialisers by `nodes` (in order).

    Raises:
        ModelError: onnxruntime refuses one of them.
    """
    import onnxruntime as ort

    graph = onnx.GraphProto(name="constants")
    for node in nodes:
        if node.op_type == "Shape" and node.inputs[0] is not None and node.inputs[0].const_value is None:
            shape = node.inputs[0].shape
            assert shape is not None
            start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", None)
            sizes = np.array(list(shape.numpy())[start:end], dtype=np.int64)
            graph.initializer.append(onnx.numpy_helper.from_array(sizes, node.outputs[0].name))
        else:
            graph.node.append(ir.to_proto(node))
    inputs = {x.name: x for n in nodes for x in n.inputs if x is not None and x.const_value is not None}
    graph.initializer.extend(_tensor_proto(value) for value in inputs.values())
    for value in values:
        graph.output.append(onnx.ValueInfoProto(name=value.name))
    opsets = [onnx.helper.make_opsetid(d, v) for d, v in model.opset_imports.items()]
    proto = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    data = onnx.shape_inference.infer_shapes(proto).SerializeToString()
    try:
        session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        return [np.asarray(a) for a in session.run(None, {})]
    except Exception as error:  # onnxruntime's exceptions share no base class
        ops = ", ".join(sorted({node.op_type for node in nodes}))
        raise ModelError(
            f"onnxruntime {ort.__version__} cannot compute the model's constants ({ops}): {error}"
        ) from error


def _tensor_proto(value: ir.Value) -> onnx.TensorProto:
    assert value.const_value is not None
    if isinstance(value.const_value, ir.ExternalTensor):
        return onnx.numpy_helper.from_array(value.const_value.numpy(), value.name)
    proto = ir.to_proto(value.const_value)
    proto.name = value.name or ""
    return proto


def _replace_by_constant(graph: ir.Graph, value: ir.Value, array: NDArray[Any]) -> None:
    name = value.name
    value.name = f"{name}/folded"
    tensor = ir.tensor(array, name=name)
    constant = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(constant)
    value.replace_all_uses_with(constant, replace_graph_outputs=True)
