"""Constant folding: what can be known at compile time is computed then, by onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from pycam.errors import ModelError

from .builder import constant_of


def fold_constants(model: ir.Model) -> bool:
    """Replace every node whose inputs are known by its value, computed once by onnxruntime; whether there was one.

    In subgraphs as well: what they hold of constants becomes an initialiser of the main graph.
    """
    graph = model.graph
    known: set[ir.Value] = {v for v in graph.initializers.values() if v.const_value is not None}
    nodes: list[ir.Node] = []
    seen: dict[object, ir.Node] = {}
    for node in list(graph.all_nodes()):
        makes_output = node.graph is not graph and any(y.is_graph_output() for y in node.outputs)
        if _foldable(node, known) and not makes_output:
            twin = seen.setdefault(_key(node), node)
            if twin is not node and not any(y.is_graph_output() for y in node.outputs):
                for mine, its in zip(node.outputs, twin.outputs, strict=True):  # so that one constant will do
                    mine.replace_all_uses_with(its)
            nodes.append(node)
            known.update(node.outputs)
    if not nodes:
        return False
    inside = set(nodes)
    frontier = [
        y for n in nodes for y in n.outputs if y.is_graph_output() or any(u.node not in inside for u in y.uses())
    ]
    arrays = evaluate(model, nodes, frontier) if frontier else []  # none: nobody reads what could be folded
    for value, array in zip(frontier, arrays, strict=True):
        _replace_by_constant(graph, value, array)
    removed = False
    for node in reversed(nodes):
        if not any(y.uses() or y.is_graph_output() for y in node.outputs):
            assert isinstance(node.graph, ir.Graph)
            node.graph.remove(node, safe=True)
            removed = True
    return removed


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
    if _of_shape(node) is not None:
        return True
    if not inputs or not all(x in known for x in inputs):
        return False
    return node.op_type != "DequantizeLinear" or not any(_quantised(u.node) for u in node.outputs[0].uses())


def _key(node: ir.Node) -> object:
    """Equal for nodes that compute the same."""
    if any(a.type == ir.AttributeType.TENSOR for a in node.attributes.values()):
        return node
    attributes = sorted((name, str(a.value)) for name, a in node.attributes.items())
    return node.op_type, tuple(node.inputs), len(node.outputs), tuple(attributes)


def _of_shape(node: ir.Node) -> NDArray[Any] | None:
    """What a node tells of a shape, as far as the sizes in question are known: Shape, its Size (a rank), its Gather."""
    x = node.inputs[0] if node.inputs else None
    if x is None or x.const_value is not None:
        return None
    if node.op_type == "Shape":
        sizes = _sizes(node)
        return np.array(sizes, np.int64) if sizes is not None and None not in sizes else None
    made = x.producer()
    sizes = _sizes(made) if made is not None and made.op_type == "Shape" and made.domain == "" else None
    if sizes is None:
        return None
    if node.op_type == "Size":
        return np.array(len(sizes), np.int64)
    at = constant_of(node.inputs[1]) if node.op_type == "Gather" else None
    picked = [sizes[int(i)] for i in at.reshape(-1) if -len(sizes) <= i < len(sizes)] if at is not None else [None]
    if at is None or None in picked or len(picked) != at.size:
        return None
    return np.array(picked, np.int64).reshape(at.shape)


def _sizes(shape: ir.Node) -> list[int | None] | None:
    """The sizes that a Shape gives, None for those that are unknown."""
    x = shape.inputs[0]
    if x is None or x.shape is None:
        return None
    start, end = shape.attributes.get_int("start", 0), shape.attributes.get_int("end", None)
    return [d if isinstance(d, int) else None for d in x.shape][start:end]


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
        sizes = _of_shape(node)
        if sizes is not None:
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
    proto = onnx.shape_inference.infer_shapes(proto)
    try:
        if any(_foreign(x.dtype) for x in values):
            return _by_reference(proto)
        session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return [np.asarray(a) for a in session.run(None, {})]
    except Exception as error:  # onnxruntime's exceptions share no base class
        if any(_foreign(y.dtype) for node in nodes for y in (*node.inputs, *node.outputs) if y is not None):
            return _by_reference(proto)
        ops = ", ".join(sorted({node.op_type for node in nodes}))
        raise ModelError(
            f"onnxruntime {ort.__version__} cannot compute the model's constants ({ops}): {error}"
        ) from error


def _foreign(dtype: ir.DataType | None) -> bool:
    """Whether numpy has no such type: onnxruntime returns none of them, or other integers (float8), and lacks ops."""
    name = dtype.name if dtype is not None else ""
    return name.startswith(("BFLOAT", "FLOAT8", "FLOAT6", "FLOAT4")) or name.endswith(("INT4", "INT2"))


def _by_reference(proto: onnx.ModelProto) -> list[NDArray[Any]]:
    from onnx.reference import ReferenceEvaluator

    return [np.asarray(a) for a in ReferenceEvaluator(proto).run(None, {})]


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
