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

from . import contrib
from .branches import fold_ifs, forget_shapes, open_subgraphs
from .builder import constant_of
from .constants import fold_constants
from .inference import infer_shapes
from .load import Loaded
from .pools import settle_pools
from .qoperator import spell_out
from .reshapes import settle_reshapes
from .sequences import resolve_sequences
from .shapes import UNKNOWN, all_graphs
from .skeleton import LARGE
from .spelling import spell_out_group_norms, spell_out_onesided, spell_out_resizes

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
        contrib.refuse_layouts(proto)
        skeleton, weights = _split(proto)
    except UnicodeDecodeError as error:
        raise ModelError(f"the model is not valid ONNX: a name in it is no text ({error})") from None
    contrib.hide(skeleton)
    spell_out_onesided(skeleton)
    spell_out_group_norms(skeleton)
    model = _with_shapes(spell_out(_one_opset(_flatten(skeleton))))
    contrib.show(model)
    _attach(model, weights, loaded.folder, loaded.file)
    _restore_names(model, proto)
    fold_constants(model)  # now what is computed from weights as well
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
    for opset in [*skeleton.opset_import, *(o for function in skeleton.functions for o in function.opset_import)]:
        opset.domain = "" if opset.domain == "ai.onnx" else opset.domain  # onnx-ir spells it so for nodes only
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
        skeleton = _inline(skeleton)
    try:
        onnx.checker.check_model(skeleton)
    except onnx.checker.ValidationError as error:
        raise ModelError(f"the model is not valid ONNX: {str(error).strip()}") from None
    return skeleton


def _inline(skeleton: onnx.ModelProto) -> onnx.ModelProto:
    """Functions inlined. Exporters give the domains of functions (jax2onnx) or the opset within them (onnxscript) other
    versions than the model does, and onnx would silently leave such calls."""
    versions = {o.domain: o.version for o in skeleton.opset_import}
    local = {function.domain for function in skeleton.functions}
    imported = [opset for function in skeleton.functions for opset in function.opset_import]
    for opset in imported:
        if opset.domain in local:  # no operator set: the version tells nothing
            opset.version = versions.get(opset.domain, opset.version)
    if all(opset.version == versions.get(opset.domain, opset.version) for opset in imported):
        return onnx.inliner.inline_local_functions(skeleton)
    declared = list(skeleton.graph.value_info)
    typed = onnx.shape_inference.infer_shapes(skeleton)  # the version converter asks for the type of every value
    try:
        inlined = onnx.inliner.inline_local_functions(typed, convert_version=True)
    except RuntimeError as error:
        raise ModelError(
            f"cannot convert the model's functions to its own opset: {str(error).strip()}; export it with one opset"
        ) from error
    del inlined.graph.value_info[:]
    inlined.graph.value_info.extend(declared)
    return inlined


def _one_opset(skeleton: onnx.ModelProto) -> onnx.ModelProto:
    version = next((o.version for o in skeleton.opset_import if o.domain in ("", "ai.onnx")), None)
    if version is None:  # only ops of other domains; what pycam adds is standard
        skeleton.opset_import.append(onnx.helper.make_opsetid("", OPSET))
        return skeleton
    if version >= OPSET:
        if version > NEWEST:
            raise ModelError(
                f"the model uses opset {version}; this onnx package knows opsets up to {NEWEST}: "
                "update onnx, or export to an older opset"
            )
        return skeleton
    if version < OLDEST:
        raise ModelError(f"the model uses opset {version}; pycam reads opsets from {OLDEST}: export it to a newer one")
    try:
        converted = onnx.version_converter.convert_version(skeleton, OPSET)
    except Exception as error:  # the converter raises RuntimeError and pybind's own types
        raise ModelError(
            f"cannot convert the model from opset {version} to {OPSET}: {str(error).strip()}; "
            f"export it to opset {OPSET}"
        ) from error
    if version < 11:
        spell_out_resizes(converted)
    return converted


def _with_shapes(skeleton: onnx.ModelProto) -> ir.Model:
    """Constant nodes made initialisers, shapes inferred, and constants folded that shapes depend on (or that depend on
    shapes), until no more becomes known."""
    # A shape with nameless sizes, of an exporter or of the version converter, would keep inference from naming them.
    infos = [v for v in skeleton.graph.value_info if all(_named(d) for d in v.type.tensor_type.shape.dim)]
    del skeleton.graph.value_info[:]
    skeleton.graph.value_info.extend(infos)
    declared = {v.name for v in infos}
    outputs = {v.name: v for v in skeleton.graph.output}
    renamed: dict[str, str] = {}
    while True:
        inferred, contradiction = _infer_shapes(skeleton)
        model = ir.from_proto(inferred)
        changes = [open_subgraphs(model, renamed), fold_constants(model), fold_ifs(model, renamed)]
        settled = settle_reshapes(model, declared)
        declared.update(settled)
        if not any((*changes, resolve_sequences(model), settled, settle_pools(model))):
            if contradiction is not None:
                raise contradiction
            return model
        skeleton = ir.to_proto(model)
        forget_shapes(skeleton.graph)
        # Dimensions that were unknown got names; they would be taken for the model's own.
        infos = [v for v in skeleton.graph.value_info if v.name in declared]
        del skeleton.graph.value_info[:]
        skeleton.graph.value_info.extend(infos)
        for v in skeleton.graph.output:
            v.CopyFrom(outputs.get(v.name, v))


def _named(dim: onnx.TensorShapeProto.Dimension) -> bool:
    return bool(dim.HasField("dim_value") or (dim.dim_param and not dim.dim_param.startswith(UNKNOWN)))


def _infer_shapes(skeleton: onnx.ModelProto) -> tuple[onnx.ModelProto, ModelError | None]:
    """The model with its shapes; and how they contradict each other, which they may in a branch that is never taken."""
    try:
        return infer_shapes(skeleton), None
    except onnx.shape_inference.InferenceError as error:
        contradiction = ModelError(f"the model's shapes contradict each other: {str(error).strip()}")
        if not any(node.op_type == "If" for graph in all_graphs(skeleton.graph) for node in graph.node):
            raise contradiction from None
        return infer_shapes(skeleton, strict=False), contradiction


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
    """Take from the original nodes what the version converter and the inliner lose (module paths, names); undo what
    they give out twice."""
    original = {y: node for node in proto.graph.node for y in node.output}
    taken: set[str] = set()
    for node in model.graph.all_nodes():
        source = original.get(node.outputs[0].name or "") if node.outputs else None
        if source is not None:
            node.name = source.name or node.name  # also where a function was called: that is the name people know
            node.metadata_props.update({p.key: p.value for p in source.metadata_props})
        name, number = node.name, len(taken)
        while node.name and node.name in taken:  # no "/": that would make a module of the name
            node.name, number = f"{name}_{number}", number + 1
        taken.add(node.name or "")


def _drop(model: ir.Model, what: Callable[[ir.Node], bool]) -> None:
    """Remove nodes whose output equals their first input; one that makes a graph output stays: no name is lost."""
    for node in list(model.graph.all_nodes()):
        x, y = (node.inputs or [None])[0], node.outputs[0]
        if x is not None and not y.is_graph_output() and what(node):
            y.replace_all_uses_with(x)
            assert isinstance(node.graph, ir.Graph)
            node.graph.remove(node, safe=True)
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
