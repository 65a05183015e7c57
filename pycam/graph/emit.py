"""The last step: a finished graph → ModelProto."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes

import pycam
from pycam.errors import ModelError

from .builder import PREFIX, Builder
from .constants import fold_constants
from .pads import pad_every_axis
from .portable import spell_portably
from .quantised import keep_from_propagation


def add_output(
    graph: ir.Graph, value: ir.Value, name: str, shape: Sequence[int | str | None] | None, dtype: ir.DataType
) -> None:
    """Make `value` an output called `name`; "?" and None in `shape` are unknown sizes, None for it: all of them."""
    made_here = value.producer() is not None and (value.name or "").startswith(f"{PREFIX}/")
    ours = made_here and not value.is_graph_output()  # then it may be renamed; anybody else's name stays
    output = value if ours else Builder(graph).Identity(value)
    output.name, output.type = name, ir.TensorType(dtype)
    output.shape = ir.Shape([None if d == "?" else d for d in shape]) if shape is not None else None
    graph.outputs.append(output)


def _name_presents(graph: ir.Graph) -> None:
    """onnxruntime refuses an Attention with a past whose present (outputs 1 and 2) has no name, unused as it may be."""
    for node in graph:
        if node.op_type == "Attention" and node.domain == "" and len(node.inputs) > 4 and node.inputs[4] is not None:
            node.resize_outputs(max(len(node.outputs), 3))
            for i, present in enumerate(node.outputs[1:3], 1):
                present.name = present.name or f"{node.outputs[0].name}/present_{i}"


_PROTOBUF_LIMIT = 2**31 - 2**20  # bytes of weights; the rest is room for the graph


def finish(
    model: ir.Model, metadata: Mapping[str, str] | None = None, *, stand_alone: bool, portable: bool = False
) -> onnx.ModelProto:
    """Fold what became constant, drop what nobody reads, and make a protobuf.

    With `stand_alone` the weights are read in; without, those that lie in files stay there, and the result refers to
    them by file name: it runs only with the folder of the original model at hand, but costs no memory.
    With `portable`, forms that some runtime gets wrong are spelt otherwise, in the forward part as well.
    """
    fold_constants(model)
    passes.RemoveUnusedNodesPass()(model)
    keep_from_propagation(model.graph)
    pad_every_axis(model)
    if portable:
        spell_portably(model.graph)
    _name_presents(model.graph)
    passes.RemoveUnusedOpsetsPass()(model)
    model.ir_version = max(model.ir_version, 10)
    model.producer_name, model.producer_version = "pycam", pycam.__version__
    model.metadata_props.update(metadata or {})
    if stand_alone:
        size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
        if size > _PROTOBUF_LIMIT:
            raise ModelError(
                f"the weights take {size / 1e9:.1f} GB, and a protobuf file holds 2 GB: run the model with "
                "an Explainer made from its path, which leaves the weights where they are"
            )
        for value in model.graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)
    proto = ir.to_proto(model)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location" and os.path.isabs(entry.value):  # the model's own file, see normalise
                entry.value = os.path.basename(entry.value)
    _drop_unshaped(proto.graph)
    return proto


def _drop_unshaped(graph: onnx.GraphProto) -> None:
    """A type without a shape says nothing the runtime does not know."""
    shaped = [v for v in graph.value_info if v.type.tensor_type.HasField("shape")]
    del graph.value_info[:]
    graph.value_info.extend(shaped)
    for node in graph.node:
        for attribute in node.attribute:
            for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                _drop_unshaped(body)
