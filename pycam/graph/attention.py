"""Attention maps: the probabilities of every attention of a model, as values of its graph.

Attention is a product `P·V` of two computed operands, where a Softmax along the last axis makes `P`.  Fused ops are
replaced by what they consist of first, so that `P` becomes a value: only methods that need attention ask for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from pycam.errors import MethodError, UnsupportedOpError
from pycam.grad import registry
from pycam.grad.call import Call, Repeat

from .axes import BATCH_AXIS, Axes, Tokens, dims, on_grid, tokens_of
from .axis_rules import follow_axes, terms
from .builder import Builder
from .locate import module_path, path_values
from .shapes import appended, infer
from .tokens import grids

FUSED = {("", "Attention"), (registry.CONTRIB, "Attention"), (registry.CONTRIB, "MultiHeadAttention")}
"""(domain, op) of ops that do not give their probabilities."""

_PASSES = {
    *("Identity", "Dropout", "Cast", "Where", "Mul", "Div", "Add", "Sub", "Reshape", "Transpose", "Squeeze"),
    *("Unsqueeze", "QuantizeLinear", "DequantizeLinear", "MatMul"),
}
"""What may happen to probabilities before they meet the values: casts, masks, and mixing of heads."""

_MOVES = {"Reshape", "Squeeze", "Unsqueeze"}


@dataclass(frozen=True)
class Attention:
    """One attention of a model.

    Attributes:
        value: The probabilities, (N, heads, T_q, T_k) or (N·heads, T_q, T_k), as they are multiplied with the values;
            of windows also with an axis more.
        heads: How many heads; None where it is not known.
        queries: Where the T_q tokens lie on the image's grid; None where they do not, or not all of them.
        keys: The same for the T_k tokens.
        windowed: Parts of the grid attend themselves alone; they lie beside the batch in axis 0, or in an axis of
            their own.
        node: The name of the node that multiplies them with the values, or of the fused op.
        module: Its module path in the source framework ("" where the model does not say).
    """

    value: ir.Value
    heads: int | None
    queries: Tokens | None
    keys: Tokens | None
    windowed: bool
    node: str
    module: str

    @property
    def name(self) -> str:
        """What people know it by: its module, else its node."""
        return self.module or self.node

    def per_head(self, g: Builder, x: ir.Value) -> ir.Value:
        """`x`, of the axes that `value` has (it, or its gradient), as (N, heads, T_q, T_k).

        Raises:
            MethodError: the heads lie beside the batch, and it is not known how many there are.
        """
        shape = dims(self.value)
        if len(shape) == 4:
            return x
        if len(shape) != 3 or self.heads is None or not all(isinstance(d, int) for d in shape[1:]):
            raise MethodError(
                f"the attention {self.name!r} has probabilities {list(shape)}, and how many heads these hold could not "
                "be followed: export the model with fixed sizes (but for the batch), or by torch's dynamo exporter"
            )
        return g.Reshape(x, [-1, self.heads, *(int(d) for d in shape[1:])])


def attention_maps(graph: ir.Graph, score: ir.Value) -> list[Attention]:
    """Every attention that `score` depends on, in the order of computation; fused ops are replaced in the graph.

    Raises:
        MethodError: there is none.
    """
    modules = expand_fused(graph, path_values(graph, score))
    on_path, axes = path_values(graph, score), follow_axes(graph)
    only = _only_tokens(graph, axes)
    found: dict[ir.Value, Attention] = {}
    for node in graph:
        value = _probabilities(node) if node.outputs[0] in on_path else None
        if value is not None and value in on_path and value not in found:
            name, module = modules.get(node, (node.name or "", module_path(node)))
            found[value] = _described(value, name, module, axes, only)
    if not found:
        raise MethodError(
            "the model has no attention that the score depends on: neither a product of a Softmax along the last axis "
            "with computed values, nor one of the fused ops Attention and MultiHeadAttention was found; "
            "methods that need none are, for instance, 'gradcam' and 'eigencam'"
        )
    return list(found.values())


def global_attention(maps: Sequence[Attention]) -> Tokens:
    """The tokens that all `maps` attend from and to: where each is T × T over the same grid.

    Raises:
        MethodError: one is over windows, over anything but the image's grid, or over another grid than the others.
    """
    for attention in maps:
        shape, name = list(dims(attention.value)), attention.name
        if attention.windowed:
            raise MethodError(
                f"the attention {name!r} is over windows, {shape}, and the method multiplies attention over all tokens "
                "from layer to layer: choose one that needs none, for instance 'gradcam' or 'eigencam'"
            )
        if attention.queries is None or attention.queries != attention.keys:
            what = (
                "is over channels, or over positions that could not be followed to the image"
                if attention.queries is None and attention.keys is None
                else "leads from some tokens to others"
            )
            raise MethodError(
                f"the attention {name!r}, {shape}, {what}, and the method needs every token on the image's grid to "
                "attend every other: choose one that does not, for instance 'gradcam' or 'eigencam'"
            )
        if attention.queries != maps[0].queries:
            raise MethodError(
                f"the attention {name!r} is over {_grid(attention.queries)}, and {maps[0].name!r} over "
                f"{_grid(maps[0].queries)}: the method multiplies attention from layer to layer, which needs the same "
                "tokens; choose another method, for instance 'gradcam' or 'eigencam'"
            )
    tokens = maps[0].queries if maps else None
    if tokens is None:
        raise MethodError("no attention was given")
    return tokens


def _grid(tokens: Tokens | None) -> str:
    return f"{tokens.height} × {tokens.width} tokens and {tokens.before + tokens.after} special ones" if tokens else ""


# ── fused ops ───────────────────────────────────────────────────────────────────────────────────────────────────────


def expand_fused(graph: ir.Graph, on_path: set[ir.Value]) -> dict[ir.Node, tuple[str, str]]:
    """Replace fused attention on a path by simpler nodes.

    Returns:
        For each node made: the name and the module path of the one that it is part of.
    """
    origins: dict[ir.Node, tuple[str, str]] = {}
    g = Builder(graph)
    for node in list(graph):
        if (node.domain, node.op_type) in FUSED and not on_path.isdisjoint(node.outputs):
            origin = (node.name or "", module_path(node))
            origins.update(dict.fromkeys(replace_by_expansion(g, node), origin))
    if origins:
        graph.sort()  # the new ones were put at the end
    return origins


def replace_by_expansion(g: Builder, node: ir.Node) -> list[ir.Node]:
    """Put the simpler nodes that make up `node` in its place, its outputs' names on theirs.

    They are put at the end of the graph: sort it when done.

    Raises:
        UnsupportedOpError: somebody reads an output that the expansion does not compute, or it is refused.
    """
    graph, count = g.graph, len(g.graph)
    call = Call(g, Repeat(g, None, frozenset()), node, 0, [None] * len(node.outputs))
    made = registry.EXPANSIONS[node.domain, node.op_type](g, call)
    values = [made] if isinstance(made, ir.Value) else list(made)
    values += [None] * (len(node.outputs) - len(values))
    pairs = [(y, v) for y, v in zip(node.outputs, values, strict=False) if y.uses() or y.is_graph_output()]
    for i, (y, value) in enumerate(pairs):
        if value is None:
            raise UnsupportedOpError(
                f"cannot expand {node.op_type} (node {node.name!r}): its output {y.name!r} is used, and is not part of "
                "what it consists of",
                f"{node.domain}::{node.op_type}".removeprefix("::"),
                node.outputs[0].name or "",
            )
        pairs[i] = (y, g.Identity(value) if value in node.inputs or value in [v for _, v in pairs[:i]] else value)
    nodes = appended(graph, count)
    infer(nodes, g.opsets, g.fresh("dim"))
    for y, value in pairs:
        assert value is not None
        name, value.type, value.shape = y.name, y.type or value.type, y.shape or value.shape
        y.name = g.fresh("replaced")
        y.replace_all_uses_with(value, replace_graph_outputs=True)
        value.name = name
    for new in nodes:
        new.metadata_props.update(node.metadata_props)
    graph.remove(node, safe=True)
    return nodes


# ── recognition ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _probabilities(node: ir.Node) -> ir.Value | None:
    """The operand of a product that is a Softmax's, if the other one is computed as well."""
    operands = list(node.inputs[:2])
    if len(operands) < 2 or any(x is None or x.const_value is not None or len(dims(x)) < 3 for x in operands):
        return None
    if node.op_type == "MatMul":
        for x, turned in zip(operands, (False, True), strict=True):
            found = _untransposed(x) if turned else x
            if found is not None and _from_softmax(found):
                return _with_heads(found)
    written = terms(node) if node.op_type == "Einsum" and len(node.inputs) == 2 else None
    for i, x in enumerate(operands if written is not None else ()):
        assert written is not None
        key = written[0][i][-1:]
        if x is not None and key not in written[1] and key in written[0][1 - i] and _from_softmax(x):
            return x
    return None


def _untransposed(x: ir.Value | None) -> ir.Value | None:
    """What was transposed to `x`, (…, T_k, T_q): some models multiply the values from the left."""
    node = x.producer() if x is not None else None
    if node is None or node.op_type != "Transpose":
        return None
    perm = list(node.attributes.get_ints("perm", []))
    last = len(perm)
    return node.inputs[0] if perm == [*range(last - 2), last - 1, last - 2] else None


def _from_softmax(x: ir.Value) -> bool:
    """Whether `x` is a Softmax along the last axis, or one that was cast, masked, or mixed over the heads."""
    waiting, seen = [x], {x}
    while waiting:
        node = waiting.pop().producer()
        if node is None or node.domain != "":
            continue
        y = node.outputs[0]
        if node.op_type == "Softmax":
            axis, rank = node.attributes.get_int("axis", -1), len(dims(y))
            if axis in (-1, rank - 1) and rank >= 3 and _agree(dims(y)[-1], dims(x)[-1]):
                return True
        if node.op_type in _PASSES and not (node.op_type == "MatMul" and _computed(node.inputs[1])):
            read = node.inputs[1:] if node.op_type == "Where" else node.inputs[:2]
            new = [v for v in read if v is not None and _computed(v) and v not in seen]
            waiting += new
            seen.update(new)
    return False


def _agree(a: int | str, b: int | str) -> bool:
    return a == b or isinstance(a, str) or isinstance(b, str)


def _computed(x: ir.Value | None) -> bool:
    return x is not None and x.const_value is None


def _with_heads(x: ir.Value) -> ir.Value:
    """`x` before its heads were put beside the batch, or shared their keys."""
    before: ir.Value | None = x
    while before is not None and (node := before.producer()) is not None and node.op_type in _MOVES:
        before = node.inputs[0]
        if before is not None and len(dims(before)) == 4 and dims(before)[-1] == dims(x)[-1]:
            return before
    return x


def _described(
    value: ir.Value, node: str, module: str, axes: Mapping[ir.Value, Axes], only: Tokens | None
) -> Attention:
    lies, shape = axes.get(value), dims(value)
    first = lies[0] if lies is not None else ()
    heads = shape[1] if len(shape) == 4 else None
    if len(shape) == 3 and [factor.role for factor in first] in (["batch"], ["batch", "other"]):
        heads = first[1].size if len(first) == 2 else 1
    ends: list[Tokens | None] = [tokens_of(axis) for axis in lies[-2:]] if lies is not None else [None, None]
    if lies is None and only is not None and shape[-2:] == (only.total, only.total):
        ends = [only, only]
    return Attention(
        value=value,
        heads=heads if isinstance(heads, int) else None,
        queries=ends[0],
        keys=ends[1],
        windowed=on_grid(first) or len(shape) > 4 or (len(shape) == 4 and first not in ((), BATCH_AXIS)),
        node=node,
        module=module,
    )


def _only_tokens(graph: ir.Graph, axes: Mapping[ir.Value, Axes]) -> Tokens | None:
    """The tokens of a model that has the image on one grid alone, of which an attention is then, too, whose heads and
    batch could not be followed."""
    tokens = set(grids(axes).values())
    images = {_rows_and_columns(axes[x]) for x in graph.inputs if x in axes}
    sizes = {_rows_and_columns(axes[y]) for node in graph for y in node.outputs if y in axes} - images - {None}
    return tokens.pop() if len(tokens) == 1 and sizes <= {t[:2] for t in tokens} else None


def _rows_and_columns(axes: Axes) -> tuple[int, int] | None:
    """The grid of (N, C, h, w) or (N, h, w, C)."""
    sizes = {axis[0].role: axis[0].size for axis in axes if len(axis) == 1}
    return (sizes["rows"], sizes["columns"]) if len(axes) == 4 and {"rows", "columns"} <= {*sizes} else None
