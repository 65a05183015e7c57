"""Find the score and the layers: by the names that people know, or by themselves."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import onnx_ir as ir

from pycam.errors import LayerError, ModelError, UnsupportedOpError, nearest
from pycam.grad.coverage import covered, gaps
from pycam.grad.reverse import Path, between, carries_gradient

from .builder import PREFIX, Builder
from .cost import macs
from .quantised import as_read, before_rounding, is_quantised
from .shapes import reads

_FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}
_LAYOUT_SENSITIVE = {
    *("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "Resize"),
    *("BatchNormalization", "InstanceNormalization", "GroupNormalization", "LRN", "DepthToSpace", "SpaceToDepth"),
}
"""Ops that take (N, C, h, w) only."""
_MOVES = {"Concat", "Slice", "Split", "Pad", "Gather"}
"""Ops that keep the axes and change their sizes."""
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
    if y.dtype not in _FLOATS and not is_quantised(y):
        raise ModelError(
            f"the output {y.name!r} holds {y.dtype} and cannot be differentiated; "
            f"name another one of {nearest(y.name or '', outputs)}"
        )
    named = _before(y, "Identity") or _before(y, "QuantizeLinear") or y
    for op in ("Softmax", "LogSoftmax"):
        logit = _before(named, op)
        if logit is not None:
            logit = _before(logit, "Identity") or logit
            note = f"the score is the logit {logit.name!r}: the final {op} is stepped behind"
            return Score(logit, y, op == "Softmax", [note])
    return Score(named, y, False, [])


def _before(value: ir.Value, op: str) -> ir.Value | None:
    """The input of the node that makes `value` (or what is rounded to it), if that is an `op`."""
    node = before_rounding(value).producer()
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
        if y in on_path and y is not score and spatial(y) and as_read(y) is y:
            layers.append(Layer(y.name or "", module_path(node), node.op_type, dims(y), 1.0 - done / total))
    return layers


def workable_layers(graph: ir.Graph, score: ir.Value, broken: str = "") -> list[str]:
    """Names of the spatial values behind which every op has a gradient; `broken` names a value whose op has none."""
    nodes = [node for node in graph if not (node.outputs[0].name or "").startswith(f"{PREFIX}/")]
    path = _path(nodes, graph.inputs, score)
    without = {*gaps(path), *(node for node in path.nodes if node.outputs[0].name == broken)}
    fine = covered(nodes, score, without)
    return [y.name or "" for node in nodes for y in node.outputs[:1] if y in fine and y is not score and spatial(y)]


def with_workable_layers(error: UnsupportedOpError, graph: ir.Graph, score: ir.Value) -> UnsupportedOpError:
    """The error with the layers that would still work."""
    names = workable_layers(graph, score, error.value)
    shown = ", ".join(names[-5:]) + (f" and {len(names) - 5} before them" if len(names) > 5 else "")
    help_ = f"layers that would still work: {shown}" if names else "no layer lies behind it"
    return UnsupportedOpError(f"{error}; {help_}", error.op, error.value)


def path_values(graph: ir.Graph, score: ir.Value) -> set[ir.Value]:
    """The values between the graph's inputs and the score from which a differentiable path leads to the score."""
    return _path(list(graph), graph.inputs, score).values


def _path(nodes: Sequence[ir.Node], inputs: Sequence[ir.Value], score: ir.Value) -> Path:
    """What lies between `inputs` and the score; a Floor in front of a layer is no matter."""
    reached = set(inputs)
    for node in nodes:
        if any(x in reached for x in reads(node)):
            reached.update(y for y in node.outputs if carries_gradient(y))
    return between(nodes, list(reached), [score])


def spatial(value: ir.Value) -> bool:
    """Whether a value looks like (N, C, h, w) features with more than one position."""
    shape = dims(value)
    size = shape[1:3] if channels_last(value) else shape[2:]
    return value.dtype in _FLOATS and len(shape) == 4 and all(d != 1 for d in size)


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


_NUMBER = re.compile(r"_\d+(?=/|$)")


def _renumbered(graph: ir.Graph) -> bool:
    """Whether Keras 3 exported the model, which numbers every layer once more: `conv2d` becomes `conv2d_1`, and
    `conv2d_1` then `conv2d_1_2`."""
    names = [(node.name or "").split(";")[0] for node in graph]
    paths = [name.split("/")[:-1] for name in names if "/" in name and not name.startswith("/")]
    return bool(paths) and all(re.search(r"_\d+$", part) for path in paths for part in path[:2])


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
    by_keras = {_NUMBER.sub("", scope): y for scope, y in by_module.items()} if _renumbered(graph) else {}
    for table in (by_value, by_node, by_keras, by_module, by_copy):
        if name and name in table:
            return _usable(graph, table[name], name, score, on_path)
    known = [*(by_keras or by_module), *(y for y, value in by_value.items() if value in on_path and spatial(value))]
    raise LayerError(f"the model has no layer {name!r}; nearest: {nearest(name, known)}. `pycam layers` lists them all")


_TO_LAST, _TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]


def channels_last(value: ir.Value) -> bool:
    """Whether features are (N, h, w, C): a linear layer works along their last axis, or a Transpose made them so, and
    nothing but elementwise ops came after it."""
    if any(_along_last(use.node) for use in value.uses()):
        return True
    while (node := before_rounding(value).producer()) is not None and node.op_type not in _LAYOUT_SENSITIVE:
        if _along_last(node):
            return True
        if node.op_type == "Transpose":
            return list(node.attributes.get_ints("perm", [])) == _TO_LAST
        alike = [x for x in node.inputs if x is not None and x.const_value is None and _same_features(x, value)]
        if not alike:
            return False
        value = alike[0]
    return False


def _along_last(node: ir.Node) -> bool:
    """Whether a node takes the last of four axes for the channels: to normalise along, or to multiply by a matrix."""
    x = node.inputs[0] if node.inputs else None
    if x is None or len(dims(x)) != 4:
        return False
    if node.op_type == "LayerNormalization":
        return node.attributes.get_int("axis", -1) in (-1, 3)
    weight = node.inputs[1] if node.op_type == "MatMul" else None
    return weight is not None and weight.const_value is not None and len(dims(weight)) == 2


def _same_features(x: ir.Value, y: ir.Value) -> bool:
    """Whether two values have the same axes but for the batch, whose name inference often loses."""
    return len(dims(x)) == len(dims(y)) and dims(x)[1:] == dims(y)[1:]


def _channels_first(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """`value`, if it is (N, h, w, C), as (N, C, h, w): before the Transpose that made it (converters from TensorFlow
    end a block like that), else between two Transposes, there and back, that are put behind it."""
    node = before_rounding(value).producer()
    if node is None or not channels_last(value):
        return value
    before = node.inputs[0] if node.op_type == "Transpose" else None
    if before is not None and not before.is_graph_input():
        return before
    g, uses = Builder(graph), list(value.uses())
    first = g.Transpose(value, perm=_TO_FIRST)
    back = g.Transpose(first, perm=_TO_LAST)
    assert value.shape is not None
    n, h, w, c = value.shape
    first.type, first.shape, first.name = value.type, ir.Shape([n, c, h, w]), g.free(f"{value.name}/channels_first")
    back.type, back.shape = value.type, ir.Shape([n, h, w, c])
    for user, i in uses:
        user.replace_input_with(i, back)
    graph.sort()  # the two were put at the end
    return first


def _usable(graph: ir.Graph, value: ir.Value, name: str, score: ir.Value, on_path: set[ir.Value]) -> ir.Value:
    value = as_read(value)
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
    return as_read(_channels_first(graph, value))


def _on_grid(graph: ir.Graph) -> set[ir.Value]:
    """The values that lie on the grid of the image's positions. Queries, keys and the weights of attention have four
    axes as well, but none for height and width."""
    grid = {x for x in graph.inputs if len(dims(x)) == 4}
    for node in graph:
        inputs = [x for x in node.inputs if x in grid]
        if node.op_type == "Transpose":
            stays = list(node.attributes.get_ints("perm", [])) in (_TO_FIRST, _TO_LAST)
        else:
            stays = node.op_type in _MOVES or any(_same_features(x, node.outputs[0]) for x in inputs)
        if node.op_type in _LAYOUT_SENSITIVE or (inputs and stays):
            grid.update(node.outputs)
    return grid


def _narrows(graph: ir.Graph, on_path: set[ir.Value]) -> set[ir.Value]:
    """The values through which every path from the inputs to the score leads: behind one of them only it is live."""
    waiting = Counter(x for node in graph if not on_path.isdisjoint(node.outputs) for x in {*reads(node)} & on_path)
    live = on_path.intersection(graph.inputs)
    narrow: set[ir.Value] = set()
    for node in graph:
        made = on_path.intersection(node.outputs)
        if not made:
            continue
        for x in {*reads(node)} & on_path:
            waiting[x] -= 1
            if not waiting[x]:
                live.discard(x)
        live |= made
        if len(live) == 1:
            narrow |= live
    return narrow


def _automatic(graph: ir.Graph, score: ir.Value, on_path: set[ir.Value]) -> ir.Value:
    """The last spatial features before they are pooled or flattened: all that the score sees of the image, where there
    is such a value, else the last on the image's grid."""
    values = [y for node in graph for y in node.outputs if y in on_path and y is not score and spatial(y)]
    narrow, grid = _narrows(graph, on_path), _on_grid(graph)
    values = [v for v in values if v in narrow] or [v for v in values if v in grid] or values
    if not values:
        raise LayerError(
            "layer='auto' found no spatial features (N, C, h, w) between the input and the score "
            f"{score.name!r}: name a layer"
        )
    value = as_read(_channels_first(graph, as_read(values[-1])))
    while (node := before_rounding(value).producer()) is not None and node.op_type in _POOLS:
        before = node.inputs[0]
        if before is None or before not in on_path or not spatial(before) or before.is_graph_input():
            break
        value = before
    return value
