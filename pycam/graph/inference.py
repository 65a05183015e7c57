"""Shapes of a whole model: onnx's inference, and what it leaves out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, MutableSequence, Sequence
from typing import TypeAlias

import onnx

from . import contrib
from .shapes import UNKNOWN, bodies, lend_constants, take_back_constants


def infer_shapes(proto: onnx.ModelProto, *, strict: bool = True) -> onnx.ModelProto:
    """`proto` with the shapes that can be inferred, also within subgraphs.

    Raises:
        onnx.shape_inference.InferenceError: shapes contradict each other (if `strict`).
    """
    infer = contrib.infer_shapes if strict else functools.partial(onnx.shape_inference.infer_shapes, data_prop=True)
    inferred = onnx.ModelProto()
    inferred.CopyFrom(proto)
    lend_constants(inferred.graph)
    inferred = infer(inferred)
    while _learn_shapes(inferred.graph, {}, inferred.opset_import):
        inferred = infer(inferred)
    take_back_constants(inferred.graph)
    return inferred


_Dims: TypeAlias = "list[int | str | None] | None"
_Infos: TypeAlias = dict[str, onnx.ValueInfoProto]


def _learn_shapes(graph: onnx.GraphProto, around: _Infos, opsets: Sequence[onnx.OperatorSetIdProto]) -> bool:
    """Note the shapes that onnx does not infer but that follow from the op; whether there were any.

    The rank and the channels of a convolution and of a recurrent layer are those of its weights, also where what comes
    before does not say how many axes it has; a reduction may keep its axes.  What a Loop carries has the shape that it
    had before the first step, as far as a step keeps it.
    """
    weights = [onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in graph.initializer]
    known = around | {v.name: v for v in [*weights, *graph.input, *graph.value_info, *graph.output] if _shaped(v)}
    made = {y for node in graph.node for y in node.output}
    learnt = False
    for node in graph.node:
        if node.op_type == "Loop":
            learnt |= _learn_loop(graph, node, known, opsets)
        shapes = [_dims(known.get(x)) for x in node.input]
        for name, dims in _SHAPES_OF[node.op_type](node, shapes) if node.op_type in _SHAPES_OF else ():
            if dims is not None and name in made and name not in known:
                elem = known[node.input[0 if node.input[0] in known else 1]].type.tensor_type.elem_type
                _note(graph.value_info, onnx.helper.make_tensor_value_info(name, elem, dims))
                learnt = True
    for body in bodies(graph):
        learnt |= _learn_shapes(body, known, opsets)
    return learnt


def _note(infos: MutableSequence[onnx.ValueInfoProto], info: onnx.ValueInfoProto) -> None:
    found = next((v for v in infos if v.name == info.name), None)
    if found is None:
        infos.append(info)
    else:
        found.CopyFrom(info)


def _learn_loop(
    graph: onnx.GraphProto, loop: onnx.NodeProto, known: _Infos, opsets: Sequence[onnx.OperatorSetIdProto]
) -> bool:
    """Note the shapes of what `loop` carries; whether that was anything new."""
    body = next(a.g for a in loop.attribute if a.name == "body")
    carried = [
        (start, inner, end)
        for start, inner, end in zip(loop.input[2:], list(body.input)[2:], loop.output, strict=False)
        if start in known and end and not (end in known and _shaped(inner))
    ]
    # What a step may change becomes unknown, until the rest is kept by every step.
    shapes: dict[str, _Dims] = {inner.name: _dims(known[start]) for start, inner, _ in carried}
    while shapes:
        after = _after_step(body, shapes, known, opsets)
        merged = {x: _common(dims, after[x]) for x, dims in shapes.items()}
        kept: dict[str, _Dims] = {x: dims for x, dims in merged.items() if dims is not None}
        if kept == shapes:
            break
        shapes = kept
    for start, inner, end in carried:
        if inner.name in shapes:
            elem = known[start].type.tensor_type.elem_type
            inner.CopyFrom(onnx.helper.make_tensor_value_info(inner.name, elem, shapes[inner.name]))
            if end not in known:
                _note(graph.value_info, onnx.helper.make_tensor_value_info(end, elem, shapes[inner.name]))
    return bool(shapes) or _name_steps(graph, loop, known, len(body.input) - 2)


def _name_steps(graph: onnx.GraphProto, loop: onnx.NodeProto, known: _Infos, carried: int) -> bool:
    """Name how many steps there are: the first axis of all stacks that `loop` makes has the same size."""
    made = {info.name: info for info in graph.value_info}
    named = False
    for y in loop.output[carried:]:
        if y in made and y in known and made[y].type.tensor_type.shape.dim:
            steps = made[y].type.tensor_type.shape.dim[0]
            ours = f"{UNKNOWN}{loop.output[carried]}"
            if (
                steps.dim_param != ours
                and not steps.HasField("dim_value")
                and (not steps.dim_param or steps.dim_param.startswith(UNKNOWN))
            ):
                steps.dim_param, named = ours, True
    return named


def _after_step(
    body: onnx.GraphProto, shapes: Mapping[str, _Dims], known: _Infos, opsets: Sequence[onnx.OperatorSetIdProto]
) -> dict[str, _Dims]:
    """The shapes of the carried values behind a step that they enter with `shapes`."""
    step = onnx.GraphProto(name="step")
    step.node.extend(body.node)
    step.initializer.extend(body.initializer)
    step.input.extend(body.input)
    own = {v.name for v in body.input} | {t.name for t in body.initializer}
    for info in step.input:
        if info.name in shapes:
            elem = info.type.tensor_type.elem_type
            info.CopyFrom(onnx.helper.make_tensor_value_info(info.name, elem, shapes[info.name]))
    step.input.extend(info for name, info in known.items() if name not in own)
    model = onnx.helper.make_model(step, opset_imports=list(opsets), ir_version=10)
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    while _learn_shapes(model.graph, {}, opsets):
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    found = {v.name: v for v in [*model.graph.input, *model.graph.value_info] if _shaped(v)}
    ends = dict(zip((v.name for v in body.input[2:]), (v.name for v in body.output[1:]), strict=False))
    return {x: _dims(found.get(ends[x])) for x in shapes}


def _common(before: _Dims, after: _Dims) -> _Dims:
    """What two shapes agree on."""
    if before is None or after is None or len(before) != len(after):
        return None
    return [b if b == a else None for b, a in zip(before, after, strict=True)]


def _shaped(info: onnx.ValueInfoProto) -> bool:
    return bool(info.type.tensor_type.HasField("shape"))


def _dims(info: onnx.ValueInfoProto | None) -> _Dims:
    if info is None:
        return None
    sizes = info.type.tensor_type.shape.dim
    return [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in sizes]


def _conv(node: onnx.NodeProto, shapes: list[_Dims]) -> list[tuple[str, _Dims]]:
    weight = shapes[1]
    if weight is None or not isinstance(weight[1], int):
        return []
    group = next((a.i for a in node.attribute if a.name == "group"), 1)
    rest: list[int | str | None] = [None] * (len(weight) - 2)
    return [(node.input[0], [None, weight[1] * group, *rest]), (node.output[0], [None, weight[0], *rest])]


def _recurrent(node: onnx.NodeProto, shapes: list[_Dims]) -> list[tuple[str, _Dims]]:
    w, r = shapes[1:3]
    if w is None or r is None:
        return []
    batch_first = any(a.name == "layout" and a.i for a in node.attribute)
    state: _Dims = [None, w[0], r[2]] if batch_first else [w[0], None, r[2]]
    return [(node.input[0], [None, None, w[2]]), *((x, state) for x in node.input[5:7])]


def _reduction(node: onnx.NodeProto, shapes: list[_Dims]) -> list[tuple[str, _Dims]]:
    """Along whichever axes: with keepdims the rank stays."""
    kept = next((a.i for a in node.attribute if a.name == "keepdims"), 1)
    return [(node.output[0], [None] * len(shapes[0]))] if kept and shapes[0] is not None else []


_SHAPES_OF: dict[str, Callable[[onnx.NodeProto, list[_Dims]], list[tuple[str, _Dims]]]] = {
    "Conv": _conv,
    **dict.fromkeys(("RNN", "GRU", "LSTM"), _recurrent),
    **dict.fromkeys(("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd"), _reduction),
}
