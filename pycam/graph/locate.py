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

from .axes import dims as dims
from .axes import on_grid, tokens_of
from .axis_rules import follow_axes
from .builder import PREFIX
from .cost import macs
from .layout import channels_first, channels_last, on_image, untransposed
from .quantised import as_read, before_rounding, is_quantised
from .shapes import reads
from .tokens import Grids, as_features, grids, matters

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
    """The values of `layer` as features (N, C, h, w): tensor name, node name, module path, or "auto"; several are given
    as a list.

    Where the model has them as (N, h, w, C), or as tokens (N, T, C) on the image's grid, nodes are put behind these
    that turn them and turn them back; the values in between are returned.

    Raises:
        LayerError: unknown (with the nearest names), no features on the image's grid, or not on a path to the score.
    """
    names = [layer] if isinstance(layer, str) else list(layer)
    if not names:
        raise LayerError("no layer was given: name one, or say layer='auto'")
    model = _Model(graph, score)
    values = [_automatic(model) if n == "auto" else _named(model, n) for n in names]
    return [_features(graph, value, model.tokens) for value in values]  # changes the graph, once all are found


class _Model:
    """A graph with what is known of its values."""

    def __init__(self, graph: ir.Graph, score: ir.Value) -> None:
        self.graph, self.score = graph, score
        self.on_path = path_values(graph, score)
        self.axes = follow_axes(graph)
        self.tokens = grids(self.axes)

    def explainable(self, value: ir.Value) -> bool:
        """Whether a value looks like features with more than one position, and leads to the score."""
        return value in self.on_path and value is not self.score and (spatial(value) or value in self.tokens)


def _features(graph: ir.Graph, value: ir.Value, tokens: Grids) -> ir.Value:
    if value in tokens:
        return as_features(graph, value, tokens[value])
    return as_read(channels_first(graph, value))


def list_layers(graph: ir.Graph, score: ir.Value) -> list[Layer]:
    """Every spatial value between the inputs and the score, tokens on the grid among them, in the order of
    computation."""
    model = _Model(graph, score)
    cost = {node: macs(node) for node in graph}
    total = sum(cost.values()) or 1
    done, layers = 0, []
    for node in graph:
        done += cost[node]
        y = node.outputs[0]
        if model.explainable(y) and as_read(y) is y:
            layers.append(Layer(y.name or "", module_path(node), node.op_type, dims(y), 1.0 - done / total))
    return layers


def workable_layers(graph: ir.Graph, score: ir.Value, broken: str = "") -> list[str]:
    """Names of the spatial values behind which every op has a gradient; `broken` names a value whose op has none."""
    nodes = [node for node in graph if not (node.outputs[0].name or "").startswith(f"{PREFIX}/")]
    path = _path(nodes, graph.inputs, score)
    without = {*gaps(path), *(node for node in path.nodes if node.outputs[0].name == broken)}
    fine, tokens = covered(nodes, score, without) - {score}, grids(follow_axes(graph))
    return [y.name or "" for node in nodes for y in node.outputs[:1] if y in fine and (spatial(y) or y in tokens)]


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


def _named(model: _Model, name: str) -> ir.Value:
    graph, on_path = model.graph, model.on_path
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
            return _usable(model, table[name], name)
    known = [*(by_keras or by_module), *(y for y, value in by_value.items() if model.explainable(value))]
    raise LayerError(f"the model has no layer {name!r}; nearest: {nearest(name, known)}. `pycam layers` lists them all")


def _usable(model: _Model, value: ir.Value, name: str) -> ir.Value:
    value = as_read(value)
    if value is model.score or value not in model.on_path:
        raise LayerError(
            f"the layer {name!r} ({value.name!r}) does not lead to the score {model.score.name!r}: "
            "choose one between the input and the score, see `pycam layers`"
        )
    if value.dtype in _FLOATS and value in model.tokens:
        return value
    if value.dtype not in _FLOATS or len(dims(value)) != 4:
        raise LayerError(
            f"the layer {name!r} ({value.name!r}) has shape {list(dims(value))} and dtype {value.dtype}; "
            "a class activation map needs features (N, C, h, w), or tokens (N, T, C) on the image's grid, "
            f"{_why_off_grid(model, value)}see `pycam layers`"
        )
    return untransposed(value)


def _why_off_grid(model: _Model, value: ir.Value) -> str:
    """What keeps three axes from being taken for tokens on the image's grid."""
    if len(dims(value)) != 3:
        return ""
    free = [x for x in model.graph.inputs if len(dims(x)) == 4 and any(isinstance(d, str) for d in dims(x)[1:])]
    if free:
        return (
            f"and where these lie is known for images of one size alone: give the model's input {free[0].name!r} "
            f"{list(dims(free[0]))} fixed sizes; "
        )
    return "and its positions are not known to be those of an image's patches (text is none, nor are parts of it); "


def narrows(graph: ir.Graph, on_path: set[ir.Value]) -> set[ir.Value]:
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


def _automatic(model: _Model) -> ir.Value:
    """The last spatial features before they are pooled or flattened: all that the score sees of the image, where there
    is such a value, else the last on the image's grid.

    Tokens are such features as far as the score depends on those of the grid: before the last attention, where it reads
    a class token.
    """
    graph, score = model.graph, model.score
    images = [x for x in graph.inputs if len(dims(x)) == 4] or list(graph.inputs)
    alive = matters(graph, model.axes, model.on_path, score)
    every = [y for node in graph for y in node.outputs if model.explainable(y)]
    values = [v for v in every if v in alive and _has_positions(model, v)]
    narrow, image = narrows(graph, _path(list(graph), images, score).values), on_image(graph)
    spatials = [v for v in every if v not in model.tokens]
    choices = ([v for v in values if v in narrow], [v for v in spatials if v in image], values, spatials)
    found = next((choice[-1] for choice in choices if choice), None)
    if found is None:
        raise LayerError(
            "layer='auto' found no spatial features (N, C, h, w), nor tokens (N, T, C) on the image's grid, between "
            f"the input and the score {score.name!r}: name a layer"
        )
    value = _before_flattening(model, found) if found in model.tokens else untransposed(as_read(found))
    while (node := before_rounding(value).producer()) is not None and node.op_type in _POOLS:
        before = node.inputs[0]
        if before is None or before not in model.on_path or not spatial(before) or before.is_graph_input():
            break
        value = before
    return as_read(value)


def _has_positions(model: _Model, value: ir.Value) -> bool:
    """Whether four axes are features: not the tokens of each head, nor what these were mixed to."""
    axes = model.axes.get(value)
    if axes is None or value in model.tokens:
        return True
    return any(on_grid(axis) for axis in axes) and all(tokens_of(axis) is None for axis in axes)


def _before_flattening(model: _Model, tokens: ir.Value) -> ir.Value:
    """The features that were flattened to `tokens`, if nothing else happened to them."""
    value = tokens
    while (node := value.producer()) is not None and node.op_type in ("Reshape", "Transpose", "Flatten", "Squeeze"):
        before = node.inputs[0]
        if before is None or before.is_graph_input():
            break
        value = before
        if spatial(value) and _has_positions(model, value):
            return value
    return tokens
