"""Bring a model to the one form that the rules are written for.

One opset, no functions, no Constant nodes, constants folded (int8 weights become float here), no Dropout or Identity.
Names of values are kept: they are how layers are found.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import onnx.version_converter
import onnx_ir as ir
import onnx_ir.passes.common as passes

from pycam.errors import ModelError

from .builder import constant_of
from .constants import fold_constants
from .load import Loaded
from .skeleton import LARGE

OPSET = 21
"""Older models are brought up to this opset; newer ones are left (no op changed its form since)."""
OLDEST, NEWEST = 9, onnx.defs.onnx_opset_version()


def normalise(loaded: Loaded) -> ir.Model:
    """A loaded model (left as it is) as an `ir.Model` in normal form, with shapes inferred.

    Raises:
        ModelError: invalid ONNX, or an opset outside of OLDEST…NEWEST.
    """
    proto = loaded.proto
    try:
        skeleton, weights = _split(proto)
    except UnicodeDecodeError as error:
        raise ModelError(f"the model is not valid ONNX: a name in it is no text ({error})") from None
    skeleton = _one_opset(_flatten(skeleton))
    model = ir.from_proto(_infer_shapes(skeleton))
    _attach(model, weights, loaded.folder, loaded.file)
    _restore_names(model, proto)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    fold_constants(model)
    _drop(model, _pass_through)
    passes.RemoveUnusedNodesPass()(model)
    return model


def _split(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, onnx.TensorProto]]:
    """The model without its weights (they become inputs), so that the passes over protobufs cost nothing."""
    skeleton = onnx.ModelProto()
    weights = {t.name: t for t in proto.graph.initializer if _is_weight(t)}
    for field, value in proto.ListFields():
        if field.name != "graph":
            _copy(field, value, skeleton)
    graph = skeleton.graph
    for field, value in proto.graph.ListFields():
        if field.name not in ("initializer", "input"):
            _copy(field, value, graph)
    graph.initializer.extend(t for t in proto.graph.initializer if t.name not in weights)
    known = {t.name for t in proto.graph.initializer}
    graph.input.extend(v for v in proto.graph.input if v.name not in known)
    graph.input.extend(onnx.helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in weights.values())
    if skeleton.ir_version < 4:  # then every initialiser had to be an input too
        skeleton.ir_version = 4
    return skeleton, weights


def _copy(field: object, value: object, target: object) -> None:
    name = field.name  # type: ignore[attr-defined]
    if hasattr(value, "extend"):
        getattr(target, name).extend(value)
    elif hasattr(value, "CopyFrom"):
        getattr(target, name).CopyFrom(value)
    else:
        setattr(target, name, value)


def _is_weight(tensor: onnx.TensorProto) -> bool:
    """Whether a tensor is kept out of the skeleton: it lies in a file, or is large."""
    external = tensor.data_location == onnx.TensorProto.EXTERNAL
    return external or (tensor.ByteSize() > LARGE and tensor.data_type != onnx.TensorProto.STRING)


def _flatten(skeleton: onnx.ModelProto) -> onnx.ModelProto:
    """Nodes sorted, checked, functions inlined."""
    try:
        model = ir.from_proto(skeleton)
        model.graph.sort()
        skeleton = ir.to_proto(model)
    except Exception as error:  # onnx-ir wraps whatever it met in errors of its own, the cause innermost
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise ModelError(f"the model is not valid ONNX: {str(cause).strip()}") from error
    if skeleton.functions:
        skeleton = onnx.inliner.inline_local_functions(skeleton)
    try:
        onnx.checker.check_model(skeleton)
    except onnx.checker.ValidationError as error:
        raise ModelError(f"the model is not valid ONNX: {str(error).strip()}") from None
    return skeleton


def _one_opset(skeleton: onnx.ModelProto) -> onnx.ModelProto:
    version = next((o.version for o in skeleton.opset_import if o.domain in ("", "ai.onnx")), None)
    if version is None or version >= OPSET:
        if version is not None and version > NEWEST:
            raise ModelError(
                f"the model uses opset {version}; this onnx package knows opsets up to {NEWEST}: "
                "update onnx, or export to an older opset"
            )
        return skeleton
    if version < OLDEST:
        raise ModelError(f"the model uses opset {version}; pycam reads opsets from {OLDEST}: export it to a newer one")
    try:
        return onnx.version_converter.convert_version(skeleton, OPSET)
    except Exception as error:  # the converter raises RuntimeError and pybind's own types
        raise ModelError(
            f"cannot convert the model from opset {version} to {OPSET}: {str(error).strip()}; "
            f"export it to opset {OPSET}"
        ) from error


def _infer_shapes(skeleton: onnx.ModelProto) -> onnx.ModelProto:
    try:
        inferred = onnx.shape_inference.infer_shapes(skeleton, strict_mode=True, data_prop=True)
        while _shape_alike(inferred):
            inferred = onnx.shape_inference.infer_shapes(inferred, strict_mode=True, data_prop=True)
        return inferred
    except onnx.shape_inference.InferenceError as error:
        raise ModelError(f"the model's shapes contradict each other: {str(error).strip()}") from None


def _shape_alike(proto: onnx.ModelProto) -> bool:
    """Give the first GroupNormalization without a shape that of its input (onnx infers none); whether there was one."""
    known = {v.name: v for v in [*proto.graph.input, *proto.graph.value_info, *proto.graph.output]}
    for node in proto.graph.node:
        if node.op_type == "GroupNormalization" and node.output[0] not in known and node.input[0] in known:
            info = onnx.ValueInfoProto()
            info.CopyFrom(known[node.input[0]])
            info.name = node.output[0]
            proto.graph.value_info.append(info)
            return True
    return False


def _attach(model: ir.Model, weights: dict[str, onnx.TensorProto], folder: Path, own: str) -> None:
    """Give the weights back: tensors in files are mapped when they are read, the others share the protobuf's memory."""
    for value in [v for v in model.graph.inputs if v.name in weights]:
        model.graph.inputs.remove(value)
        tensor = ir.serde.deserialize_tensor(weights[value.name or ""], base_path=folder)
        if isinstance(tensor, ir.ExternalTensor) and tensor.location == own:
            # onnx-ir refuses external files with several hard links; the user's own model file is not one to distrust,
            # and an absolute location says so.
            tensor = ir.ExternalTensor(
                folder / own,
                tensor.offset,
                tensor.length,
                tensor.dtype,
                shape=ir.Shape(tensor.shape),
                name=value.name or "",
            )
        value.const_value = tensor
        model.graph.register_initializer(value)


def _restore_names(model: ir.Model, proto: onnx.ModelProto) -> None:
    """Take from the original nodes what the version converter loses (module paths); undo what it gives out twice."""
    original = {y: node for node in proto.graph.node for y in node.output}
    taken: set[str] = set()
    for node in model.graph:
        source = original.get(node.outputs[0].name or "")
        if source is not None:
            node.name = node.name or source.name
            node.metadata_props.update({p.key: p.value for p in source.metadata_props})
        if node.name in taken:
            node.name = f"{node.name}/{len(taken)}"
        if node.name:
            taken.add(node.name)


def _drop(model: ir.Model, what: Callable[[ir.Node], bool]) -> None:
    """Remove nodes whose output equals their first input; one that makes a graph output stays: no name is lost."""
    for node in list(model.graph):
        x, y = (node.inputs or [None])[0], node.outputs[0]
        if x is not None and not y.is_graph_output() and what(node):
            y.replace_all_uses_with(x)
            model.graph.remove(node, safe=True)
            # People know the layer by the copy's names as well.
            x.meta["dropped"] = [*x.meta.get("dropped", ()), *y.meta.get("dropped", ()), node]


def _pass_through(node: ir.Node) -> bool:
    """Identity, Dropout at inference, and an average over one pixel (what exporters make of adaptive pooling)."""
    if node.domain != "":
        return False
    if node.op_type in ("Identity", "Dropout"):
        training = constant_of(node.inputs[2]) if len(node.inputs) > 2 else np.False_
        return (training is not None and not training.any()) and not any(
            y.uses() or y.is_graph_output() for y in node.outputs[1:]
        )
    if node.op_type != "AveragePool":
        return False
    ones = [*node.attributes.get_ints("kernel_shape", []), *node.attributes.get_ints("strides", [1])]
    return all(v == 1 for v in ones) and not any(node.attributes.get_ints("pads", [0]))
