"""The end of every export: clean, name, describe, check, write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from pycam.errors import InputError, ModelError, OutputError
from pycam.graph.axes import dims
from pycam.image import replacing
from pycam.runtime.metadata import LABELS, PREPROCESS
from pycam.runtime.session import make_session

from .common import BATCH, Argument, Wanted
from .naming import Recorded, name_nodes, relative

LARGEST = 2**31 - 2**24
"""Bytes of weights that go into one protobuf message (2 GiB, less the graph itself)."""
TOLERANCE = 1e-2
"""Relative difference of outputs that a wrong export exceeds, and rounding does not."""
_TRACES = ("pkg.torch.onnx.stack_trace", "pkg.torch.onnx.fx_node")  # source lines and paths of the machine


@dataclass(frozen=True)
class Probe:
    """What a framework computes from an example.

    Attributes:
        feeds: ONNX input → array.
        outputs: The model's outputs, in order.
        modules: Path and output of its modules, where their names are still to be found.
    """

    feeds: Mapping[str, NDArray[Any]]
    outputs: Sequence[NDArray[Any]]
    modules: Recorded = field(default=())


def finish(
    model: ir.Model,
    arguments: Sequence[Argument],
    outputs: Sequence[str],
    wanted: Wanted,
    probe: Probe,
    check: bool,
    exporter: str,
) -> onnx.ModelProto | Path:
    """The finished model: its ModelProto, or the path it was written to.

    Raises:
        InputError: names, labels or preprocessing that do not fit the graph.
        ModelError: the graph computes something else than the model did.
        OutputError: it cannot be written; or it is larger than 2 GB, and there is no path to write it to.
    """
    _rename(model.graph, [argument.name for argument in arguments], outputs, exporter)
    _free(model.graph, arguments, exporter)
    _check_labels(model.graph, wanted)
    _check_preprocess(model.graph, wanted)
    _clean(model)
    if wanted.labels:
        model.metadata_props[LABELS] = "\n".join(wanted.labels)
    if wanted.preprocess is not None:
        model.metadata_props[PREPROCESS] = wanted.preprocess.to_json()
    proto, weights = _proto(model, wanted.path)
    try:
        if check or probe.modules:
            _check(proto, weights, probe, check, exporter)
        if wanted.path is None:
            return proto
        with replacing(wanted.path) as file:
            file.write(proto.SerializeToString())
    except BaseException:
        if weights is not None:
            weights.unlink(missing_ok=True)
        raise
    return wanted.path


def default_outputs(count: int) -> list[str]:
    """The names of outputs that have none."""
    return ["output"] if count == 1 else [f"output_{i}" for i in range(count)]


def _rename(graph: ir.Graph, inputs: Sequence[str], outputs: Sequence[str], exporter: str) -> None:
    """Call inputs and outputs `inputs` and `outputs`."""
    if len(graph.inputs) != len(inputs):
        raise InputError(
            f"{exporter} made a graph with {len(graph.inputs)} inputs ({_names(graph.inputs)}) from {len(inputs)}: "
            "does the model use all of them?"
        )
    if len(graph.outputs) != len(outputs) or len({*inputs, *outputs}) != len(inputs) + len(outputs):
        raise InputError(
            f"output_names={list(outputs)}: give {len(graph.outputs)} names, different from each other and from the "
            f"inputs' ({', '.join(inputs)})"
        )
    new = dict(zip((*graph.inputs, *graph.outputs), (*inputs, *outputs), strict=True))
    taken = {value.name: value for node in graph for value in node.outputs}
    for value, name in new.items():
        clash = taken.get(name)
        if clash is not None and clash not in new:
            clash.name = f"{name}_inner"
        value.name = name


def _free(graph: ir.Graph, arguments: Sequence[Argument], exporter: str) -> None:
    """Call free axes by the names that were given, and see that they are free."""
    names: dict[str | None, str] = {}
    for value, argument in zip(graph.inputs, arguments, strict=True):
        shape = dims(value)
        if len(shape) != len(argument.symbolic):
            continue
        for axis, (old, new) in enumerate(zip(shape, argument.symbolic, strict=True)):
            if isinstance(old, int) and isinstance(new, str):
                raise ModelError(
                    f"{exporter} fixed axis {axis} of the input {value.name!r} to {old}, which was to be free: "
                    "the model may need that size; say dynamic_batch=False, or leave the axis out of dynamic_axes"
                )
            if isinstance(old, str) and isinstance(new, str):
                names[old] = new
        value.shape = ir.Shape(argument.symbolic)
    batch = any(argument.free.get(0) == BATCH for argument in arguments)
    for value in (*graph.outputs, *(y for node in graph for y in node.outputs)):
        if value.shape is not None:
            value.shape = ir.Shape([names.get(d, d) if isinstance(d, str) else d for d in dims(value)])
    for value in graph.outputs:
        if batch and value.shape is not None and len(value.shape) and isinstance(dims(value)[0], str):
            value.shape = ir.Shape([BATCH, *dims(value)[1:]])


def _names(values: Sequence[ir.Value]) -> str:
    return ", ".join(value.name or "" for value in values)


def _clean(model: ir.Model) -> None:
    """Drop what holds paths of the machine that the model was made on."""
    nodes = [node for graph in (model.graph, *model.functions.values()) for node in graph]
    owners: list[ir.Model | ir.Graph | ir.Node] = [model, model.graph, *nodes]
    for owner in owners:
        owner.doc_string = None
        for key in _TRACES:
            owner.metadata_props.pop(key, None)


def _check_labels(graph: ir.Graph, wanted: Wanted) -> None:
    shape = dims(graph.outputs[0])
    classes = shape[1] if len(shape) == 2 else None
    if wanted.labels and isinstance(classes, int) and classes not in (1, len(wanted.labels)):
        raise InputError(f"labels: {len(wanted.labels)} names for the {classes} classes of {graph.outputs[0].name!r}")


def _check_preprocess(graph: ir.Graph, wanted: Wanted) -> None:
    pre = wanted.preprocess
    image = next((value for value in graph.inputs if len(dims(value)) == 4), None)
    if pre is None or image is None:
        return
    channels = len(pre.channels)
    made = (channels, *pre.size) if pre.layout == "NCHW" else (*pre.size, channels)
    shape = dims(image)[1:]
    if any(isinstance(size, int) and size != other for size, other in zip(shape, made, strict=True)):
        raise InputError(
            f"preprocess: it makes images of (N, {', '.join(map(str, made))}), "
            f"where the input {image.name!r} takes {list(dims(image))}: check size, layout and channels"
        )


def _proto(model: ir.Model, path: Path | None) -> tuple[onnx.ModelProto, Path | None]:
    """The model and, where its weights do not fit in, the file beside `path` that holds them."""
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    if size <= LARGEST:
        return ir.to_proto(model), None
    if path is None:
        raise OutputError(
            f"the weights take {size / 2**30:.1f} GiB, more than a ModelProto can be stored with: give a path"
        )
    target = path.resolve()
    weights = target.with_name(f"{target.name}.data")
    ir.save(model, target, external_data=weights.name)
    return onnx.load(target, load_external_data=False), weights


def _check(proto: onnx.ModelProto, weights: Path | None, probe: Probe, check: bool, exporter: str) -> None:
    """Run the graph on the example: outputs must be the framework's; values name the modules."""
    outputs = [output.name for output in proto.graph.output]
    open_ = onnx.ModelProto()
    open_.CopyFrom(proto)
    inner = [node.output[0] for node in proto.graph.node if probe.modules and node.op_type != "Constant"]
    inner = [name for name in dict.fromkeys(inner) if name and name not in outputs]
    open_.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
    folder = None if weights is None else weights.parent
    session = make_session(open_.SerializeToString(), ["CPUExecutionProvider"], folder=folder)
    try:
        arrays = session.run([*outputs, *inner], dict(probe.feeds))
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise ModelError(f"onnxruntime cannot run what {exporter} made of the model: {error}") from error
    values = dict(zip([*outputs, *inner], arrays, strict=True))
    for name, want in zip(outputs, probe.outputs, strict=True):
        if check:
            _compare(name, np.asarray(values[name]), want, exporter)
    tensors = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
    _drop_wrong_shapes(proto.graph, tensors)
    name_nodes(proto.graph, tensors, probe.modules)


def _drop_wrong_shapes(graph: onnx.GraphProto, values: Mapping[str, NDArray[Any]]) -> None:
    """Drop the shapes of inner values that are none: jax2onnx turns a layout and leaves the shapes as they were."""
    fine = [info for info in graph.value_info if info.name not in values or _fits(info, values[info.name].shape)]
    kept = [onnx.ValueInfoProto.FromString(info.SerializeToString()) for info in fine]
    del graph.value_info[:]
    graph.value_info.extend(kept)


def _fits(info: onnx.ValueInfoProto, shape: tuple[int, ...]) -> bool:
    kind = info.type.tensor_type
    if not kind.HasField("shape"):
        return True
    sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim]
    return len(sizes) == len(shape) and all(a in (None, b) for a, b in zip(sizes, shape, strict=True))


def _compare(name: str, got: NDArray[Any], want: NDArray[Any], exporter: str) -> None:
    help_ = "report it to the exporter, or say check=False if that must be (random numbers in the model, for instance)"
    if got.shape != want.shape:
        raise ModelError(
            f"the output {name!r} has shape {got.shape} in what {exporter} made, and {want.shape} in the model: {help_}"
        )
    error = relative(got, want) if want.dtype.kind in "fiu" else float(not np.array_equal(got, want))
    if not error <= TOLERANCE:
        raise ModelError(
            f"the output {name!r} of what {exporter} made differs from the model's by {error:.1e} (relative; "
            f"{TOLERANCE:g} is allowed): {help_}"
        )
