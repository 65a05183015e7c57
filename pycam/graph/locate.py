"""Find the score and the layers: by the names that people know, or by themselves."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import onnx_ir as ir

from pycam.errors import LayerError, ModelError, UnsupportedOpError, nearest
from pycam.grad.coverage import covered, gaps
from pycam.runtime.layouts import KINDS

from .automatic import automatic, automatic_spatial
from .axes import dims as dims
from .candidates import FLOATS, LayerSearch, appended, lies_between
from .candidates import narrows as narrows
from .candidates import path_values as path_values
from .cost import macs
from .layout import channels_first, untransposed
from .quantised import as_read, before_rounding, is_quantised
from .ranks import FORMS
from .tokens import Grids, as_features, given_tokens
from .views import features_as_picture

SOFTMAX = ("Softmax", "LogSoftmax")
"""Activations over classes, behind which lies the logit."""


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
    if y.dtype not in FLOATS and not is_quantised(y):
        raise ModelError(
            f"the output {y.name!r} holds {y.dtype} and cannot be differentiated; "
            f"name another one of {nearest(y.name or '', outputs)}"
        )
    value, op = before_activation(y, SOFTMAX)
    notes = [f"the score is the logit {value.name!r}: the final {op} is stepped behind"] if op else []
    return Score(value, y, op == "Softmax", notes)


def before_activation(y: ir.Value, behind: Sequence[str]) -> tuple[ir.Value, str]:
    """(the values that an output is made of, the op that was stepped behind): before its final activation if that is
    one of `behind`, else as it is named in the model, and ""."""
    value = _before(y, "Identity") or _before(y, "QuantizeLinear") or y
    for op in behind:
        logit = _before(value, op)
        if logit is not None:
            return _before(logit, "Identity") or logit, op
    return value, ""


def _before(value: ir.Value, op: str) -> ir.Value | None:
    """The input of the node that makes `value` (or what is rounded to it), if that is an `op`.

    A Softmax of opset 12 and older comes out of onnx's version converter between a Flatten and a Reshape.
    """
    node = before_rounding(value).producer()
    x = _input_of(node, op)
    if x is not None or op not in SOFTMAX:
        return x
    flat = _input_of(_producer(_input_of(node, "Reshape")), op)
    flatten = _producer(flat)
    x = _input_of(flatten, "Flatten")
    if flatten is None or x is None or value.shape is None or x.shape is None or len(x.shape) != len(value.shape):
        return None
    return x if flatten.attributes.get_int("axis", 1) == len(x.shape) - 1 else None


def _producer(value: ir.Value | None) -> ir.Node | None:
    return value.producer() if value is not None else None


def _input_of(node: ir.Node | None, op: str) -> ir.Value | None:
    """The first input of a node, if it is an `op` of ONNX."""
    return node.inputs[0] if node is not None and node.op_type == op and node.domain == "" else None


def locate_layers(
    graph: ir.Graph,
    layer: str | Sequence[str],
    score: ir.Value,
    ends: Sequence[ir.Value] = (),
    tokens: Sequence[int] | None = None,
    *,
    points: bool = False,
) -> list[ir.Value]:
    """The values of `layer` as features (N, C, h, w): tensor name, node name, module path, "auto", or "all" of them;
    several are given as a list.

    Where the model has them as (N, h, w, C), or as tokens (N, T, C) on the image's grid, nodes are put behind these
    that turn them and turn them back; the values in between are returned.

    Args:
        graph: Normalised.
        layer: The name, or names.
        score: What is explained.
        ends: The model's values that a score which keeps positions (of masks, boxes) is made of: layers lie before
            them, and "auto" is the one of `automatic_spatial`.
        tokens: (height, width), (height, width, before) or (height, width, before, after) of tokens that cannot be
            found from the graph: the grid, and how many special tokens lie before and after it.
        points: The score is that of a single position, as a box's: see `automatic_spatial`.

    Raises:
        LayerError: unknown (with the nearest names), no features on the image's grid, not on a path to the score, or
            tokens that are not as many as `tokens` says.
    """
    names = [layer] if isinstance(layer, str) else list(layer)
    if not names:
        raise LayerError("no layer was given: name one, or say layer='auto'")
    given = given_tokens(tokens) if tokens is not None else None
    model = LayerSearch(graph, score, ends, given)
    pick = partial(automatic_spatial, points=points) if ends else automatic
    if names == ["all"]:
        every = [node.outputs[0] for node in graph if _listed(model, node)]
        values = list(dict.fromkeys(_usable(model, y, y.name or "") for y in every)) or [pick(model)]
    else:
        values = [pick(model) if n == "auto" else _named(model, n) for n in names]
    if given is not None and model.tokens.keys().isdisjoint(values):
        raise LayerError(model.no_such_tokens([v.name or "" for v in values]))
    if model.dimensions != 2:
        return [features_as_picture(graph, value, model.features[value]) for value in values]
    return [_features(graph, value, model.tokens) for value in values]  # changes the graph, once all are found


def _features(graph: ir.Graph, value: ir.Value, tokens: Grids) -> ir.Value:
    if value in tokens:
        return as_features(graph, value, tokens[value])
    return as_read(channels_first(graph, value))


def list_layers(graph: ir.Graph, score: ir.Value) -> list[Layer]:
    """Every spatial value between the inputs and the score, tokens on the grid among them, in the order of
    computation."""
    model = LayerSearch(graph, score)
    cost = {node: macs(node) for node in graph}
    total = sum(cost.values()) or 1
    done, layers = 0, []
    for node in graph:
        done += cost[node]
        y = node.outputs[0]
        if _listed(model, node):
            layers.append(Layer(y.name or "", module_path(node), node.op_type, dims(y), 1.0 - done / total))
    return layers


def _listed(model: LayerSearch, node: ir.Node) -> bool:
    """Whether the first output of a node is a layer for `list_layers`."""
    y = node.outputs[0]
    return model.explainable(y) and as_read(y) is y


def workable_layers(graph: ir.Graph, score: ir.Value, broken: str = "") -> list[str]:
    """Names of the spatial values behind which every op has a gradient; `broken` names a value whose op has none."""
    nodes, model = list(graph), LayerSearch(graph, score)
    path = lies_between(nodes, graph.inputs, [score])
    without = {*gaps(path), *(node for node in path.nodes if node.outputs[0].name == broken)}
    fine = covered(nodes, score, without)
    return [y.name or "" for node in nodes for y in node.outputs[:1] if y in fine and model.explainable(y)]


def with_workable_layers(error: UnsupportedOpError, graph: ir.Graph, score: ir.Value) -> UnsupportedOpError:
    """The error with the layers that would still work."""
    names = workable_layers(graph, score, error.value)
    shown = ", ".join(names[-5:]) + (f" and {len(names) - 5} before them" if len(names) > 5 else "")
    help_ = f"layers that would still work: {shown}" if names else "no layer lies behind it"
    return UnsupportedOpError(f"{error}; {help_}", error.op, error.value)


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
    names = [(node.name or "").split(";")[0] for node in graph if not appended(node.outputs[0])]
    paths = [name.split("/")[:-1] for name in names if "/" in name and not name.startswith("/")]
    return bool(paths) and all(re.search(r"_\d+$", part) for path in paths for part in path[:2])


def _named(model: LayerSearch, name: str) -> ir.Value:
    graph, on_path = model.graph, model.on_path
    nodes = [node for node in graph if not appended(node.outputs[0])]
    by_value = {y.name or "": y for node in nodes for y in node.outputs}
    by_node = {node.name or "": node.outputs[0] for node in nodes}
    made = sorted(nodes, key=lambda node: node.outputs[0] in on_path)  # the last one on the path wins
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


def _usable(model: LayerSearch, value: ir.Value, name: str) -> ir.Value:
    value = as_read(value)
    if value is model.score or value not in model.on_path:
        raise LayerError(
            f"the layer {name!r} ({value.name!r}) does not lead to the score {model.score.name!r}: "
            "choose one between the input and the score, see `pycam layers`"
        )
    if model.dimensions != 2:
        return _usable_of_rank(model, value, name)
    if model.given is not None and value.dtype in FLOATS and len(dims(value)) == 3:
        model.place(value, name)
    if value.dtype in FLOATS and value in model.tokens:
        return value
    if value.dtype not in FLOATS or len(dims(value)) != 4:
        raise LayerError(
            f"the layer {name!r} ({value.name!r}) has shape {list(dims(value))} and dtype {value.dtype}; "
            "a class activation map needs features (N, C, h, w), or tokens (N, T, C) on the image's grid, "
            f"{_why_off_grid(model, value)}see `pycam layers`"
        )
    return untransposed(value)


def _usable_of_rank(model: LayerSearch, value: ir.Value, name: str) -> ir.Value:
    """A layer of a signal or a volume."""
    if value not in model.features:
        raise LayerError(
            f"the layer {name!r} ({value.name!r}) has shape {list(dims(value))} and dtype {value.dtype}; a class "
            f"activation map of {KINDS[model.dimensions]} needs features {FORMS[model.dimensions]}, see `pycam layers`"
        )
    return value


def _why_off_grid(model: LayerSearch, value: ir.Value) -> str:
    """What keeps three axes from being taken for tokens on the image's grid."""
    if len(dims(value)) != 3:
        return ""
    free = [x for x in model.graph.inputs if len(dims(x)) == 4 and any(isinstance(d, str) for d in dims(x)[1:])]
    if free:
        return (
            f"and where these lie is known for images of one size alone: give the model's input {free[0].name!r} "
            f"{list(dims(free[0]))} fixed sizes; "
        )
    return (
        "and its positions are not known to be those of an image's patches (text is none, nor are parts of it): if "
        "they are, say how they lie, tokens=(height, width, special tokens before, after); "
    )
