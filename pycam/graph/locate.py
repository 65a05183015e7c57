"""Find the score and the layers: by the names that people know, or by themselves."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import onnx_ir as ir

from pycam.errors import LayerError, ModelError, nearest
from pycam.grad.reverse import between

from .cost import macs

_FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}
_POOLS = {"MaxPool", "AveragePool", "LpPool"}


@dataclass(frozen=True)
class Layer:
    """A value that can be explained.

    Attributes:
        name: The tensor's name in the model.
        module: Its module path in the source framework ("" where the model does not say).
        op: The op that makes it.
        shape: Its dimensions; a symbolic one by its name.
        share: Share of the model's multiply-adds that lie behind it, in the tail (0 … 1).
    """

    name: str
    module: str
    op: str
    shape: tuple[int | str, ...]
    share: float


class Score(NamedTuple):
    """What is differentiated."""

    value: ir.Value
    """The logit."""
    output: ir.Value
    """The model output that it becomes."""
    probabilities: bool
    """A softmax lies between the two."""
    notes: list[str]


def locate_score(graph: ir.Graph, output: str | None = None) -> Score:
    """The score behind `output` (None: the first one): the logit, so a final Softmax or LogSoftmax is stepped behind.

    Raises:
        ModelError: no such output, or one without floating-point values.
    """
    outputs = {v.name or "": v for v in graph.outputs}
    if output is not None and output not in outputs:
        raise ModelError(f"the model has no output {output!r}; it has {nearest(output, outputs)}")
    y = outputs[output] if output is not None else graph.outputs[0]
    if y.dtype not in _FLOATS:
        raise ModelError(
            f"the output {y.name!r} holds {y.dtype} and cannot be differentiated; "
            f"name another one of {nearest(y.name or '', outputs)}"
        )
    named = _before(y, "Identity") or y
    for op in ("Softmax", "LogSoftmax"):
        logit = _before(named, op)
        if logit is not None:
            logit = _before(logit, "Identity") or logit
            note = f"the score is the logit {logit.name!r}: the final {op} is stepped behind"
            return Score(logit, y, op == "Softmax", [note])
    return Score(named, y, False, [])


def _before(value: ir.Value, op: str) -> ir.Value | None:
    """The input of the node that makes `value`, if that is an `op`."""
    node = value.producer()
    return node.inputs[0] if node is not None and node.op_type == op and node.domain == "" else None


def locate_layers(graph: ir.Graph, layer: str | Sequence[str], score: ir.Value) -> list[ir.Value]:
    """The values of `layer`: tensor name, node name, module path, or "auto"; several are given as a list.

    Raises:
        LayerError: unknown (with the nearest names), without (N, C, h, w) features, or not on a path to the score.
    """
    names = [layer] if isinstance(layer, str) else list(layer)
    if not names:
        raise LayerError("no layer was given: name one, or say layer='auto'")
    on_path = path_values(graph, score)
    return [_automatic(graph, score, on_path) if n == "auto" else _named(graph, n, score, on_path) for n in names]


def list_layers(graph: ir.Graph, score: ir.Value) -> list[Layer]:
    """Every spatial value between the inputs and the score, in the order of computation."""
    on_path = path_values(graph, score)
    cost = {node: macs(node) for node in graph}
    total = sum(cost.values()) or 1
    done, layers = 0, []
    for node in graph:
        done += cost[node]
        y = node.outputs[0]
        if y in on_path and y is not score and spatial(y):
            layers.append(Layer(y.name or "", module_path(node), node.op_type, dims(y), 1.0 - done / total))
    return layers


def path_values(graph: ir.Graph, score: ir.Value) -> set[ir.Value]:
    """The values between the graph's inputs and the score."""
    return between(list(graph), list(graph.inputs), [score]).values


def spatial(value: ir.Value) -> bool:
    """Whether a value looks like (N, C, h, w) features with more than one position."""
    shape = dims(value)
    return value.dtype in _FLOATS and len(shape) == 4 and all(d != 1 for d in shape[2:])


def dims(value: ir.Value) -> tuple[int | str, ...]:
    """Dimensions of a value; "?" where nothing is known."""
    if value.shape is None:
        return ()
    return tuple(d if isinstance(d, int) else d.value or "?" for d in value.shape)


def module_path(node: ir.Node) -> str:
    """The path of the innermost module that made a node, as in the source framework.

    Sources: `pkg.torch.onnx.name_scopes` (torch's dynamo exporter); node names such as `/layer4/layer4.2/conv3/Conv`
    (torch's other exporter); `model/block5_conv3/Conv2D` (tf2onnx).
    """
    scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes")
    if scopes is not None:
        names = [str(s) for s in ast.literal_eval(scopes)]
        return names[-2] if len(names) >= 2 else ""
    name = (node.name or "").split(";")[0]
    parts = name.strip("/").split("/")[:-1]
    if not name.startswith("/"):
        return "/".join(parts)
    path: list[str] = []
    for part in parts:
        if path and part.startswith(path[-1] + "."):
            path[-1] = part  # "layer4", "layer4.2": a Sequential repeats its own name
        else:
            path.append(part)
    return ".".join(path)


def _scopes(node: ir.Node) -> set[str]:
    """Every module that a node lies in: `layer4.2.conv3`, `layer4.2`, `layer4`; for tf2onnx also each part alone."""
    path = module_path(node)
    separator = "/" if "/" in path else "."
    parts = path.split(separator)
    inside = {separator.join(parts[: i + 1]) for i in range(len(parts))}
    return inside | set(parts) if separator == "/" else inside


def _named(graph: ir.Graph, name: str, score: ir.Value, on_path: set[ir.Value]) -> ir.Value:
    by_value = {y.name or "": y for node in graph for y in node.outputs}
    by_node = {node.name or "": node.outputs[0] for node in graph}
    made = sorted(graph, key=lambda node: node.outputs[0] in on_path)  # the last one on the path wins
    by_module = {scope: node.outputs[0] for node in made for scope in _scopes(node) if scope}
    by_copy = {
        alias: value
        for value in by_value.values()
        for copy in value.meta.get("dropped", ())
        for alias in (copy.outputs[0].name, copy.name, module_path(copy))
    }
    for table in (by_value, by_node, by_module, by_copy):
        if name and name in table:
            return _usable(table[name], name, score, on_path)
    known = [*by_module, *(y for y, value in by_value.items() if value in on_path and spatial(value))]
    raise LayerError(f"the model has no layer {name!r}; nearest: {nearest(name, known)}. `pycam layers` lists them all")


def _channels_first(value: ir.Value) -> ir.Value:
    """`value` (N, h, w, C) before the Transpose that made it: converters from TensorFlow end a block like that."""
    node = value.producer()
    moved = (
        node is not None and node.op_type == "Transpose" and list(node.attributes.get_ints("perm", [])) == [0, 2, 3, 1]
    )
    before = node.inputs[0] if node is not None and moved else None
    return before if before is not None and not before.is_graph_input() else value


def _usable(value: ir.Value, name: str, score: ir.Value, on_path: set[ir.Value]) -> ir.Value:
    value = _channels_first(value)
    if value is score or value not in on_path:
        raise LayerError(
            f"the layer {name!r} ({value.name!r}) does not lead to the score {score.name!r}: "
            "choose one between the input and the score, see `pycam layers`"
        )
    if value.dtype not in _FLOATS or len(dims(value)) != 4:
        raise LayerError(
            f"the layer {name!r} ({value.name!r}) has shape {list(dims(value))} and dtype {value.dtype}; "
            "a class activation map needs features (N, C, h, w), see `pycam layers`"
        )
    return value


def _automatic(graph: ir.Graph, score: ir.Value, on_path: set[ir.Value]) -> ir.Value:
    """The last spatial features before they are pooled or flattened."""
    values = [y for node in graph for y in node.outputs if y in on_path and y is not score and spatial(y)]
    if not values:
        raise LayerError(
            "layer='auto' found no spatial features (N, C, h, w) between the input and the score "
            f"{score.name!r}: name a layer"
        )
    value = _channels_first(values[-1])
    while (node := value.producer()) is not None and node.op_type in _POOLS:
        before = node.inputs[0]
        if before is None or before not in on_path or not spatial(before) or before.is_graph_input():
            break
        value = before
    return value
