"""Models that onnxruntime's optimiser saved: ops that onnx does not know.

onnx infers no shape for an op of com.microsoft, nor for anything behind it.  So the shapes are inferred for a copy of
the model in which each such op is replaced by standard ones with the same shapes (`STAND_INS`): one inference in all.
The model itself keeps its nodes, which onnxruntime runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from pycam.errors import ModelError

CONTRIB = "com.microsoft"
_LAYOUTS = ("com.microsoft.nchwc", "com.ms.internal.nhwc")
_HIDDEN = ("SimplifiedLayerNormalization", "LayerNormalization")
"""Ops that onnxruntime has in the standard domain: the first is in no standard, the second only from opset 17 on."""
_PREFIX = "pycam/stand-in"
"""Names of stand-ins and of what they compute in between begin with it."""


def refuse_layouts(proto: onnx.ModelProto) -> None:
    """Refuse a model whose tensors lie in memory as one CPU wants them.

    Raises:
        ModelError: a node belongs to a domain of onnxruntime's layout optimiser.
    """
    for node in proto.graph.node:
        if node.domain in _LAYOUTS or (node.domain == CONTRIB and node.op_type in ("NhwcConv", "NhwcFusedConv")):
            raise ModelError(
                f"the model was saved by onnxruntime with layout optimisations for one CPU (it holds {node.domain}::"
                f"{node.op_type}): save it at level extended or lower, or give the original"
            )


def hide(proto: onnx.ModelProto) -> None:
    """Move what onnxruntime added to the standard domain into its own, where onnx does not check it."""
    version = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), None)
    for node in proto.graph.node:
        if node.domain in ("", "ai.onnx") and node.op_type in _HIDDEN[: 1 if (version or 17) >= 17 else 2]:
            node.domain = CONTRIB
            if not any(o.domain == CONTRIB for o in proto.opset_import):
                proto.opset_import.append(helper.make_opsetid(CONTRIB, 1))


def show(model: ir.Model) -> None:
    """Undo `hide`."""
    for node in model.graph:
        if node.domain == CONTRIB and node.op_type in _HIDDEN:
            node.domain = ""


def infer_shapes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """`proto` with the shapes that onnx infers, also behind the ops that it does not know.

    Raises:
        onnx.shape_inference.InferenceError: shapes contradict each other.
    """
    stand_ins = _StandIns(proto)
    if not stand_ins.replaced:
        return onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
    # A stand-in takes the usual form of its op: where it is another, the shape stays unknown.
    strict = all(node.domain != CONTRIB for node in stand_ins.replaced)
    return stand_ins.undo(onnx.shape_inference.infer_shapes(stand_ins.model, strict_mode=strict, data_prop=True))


class _StandIns:
    """A copy of a model with stand-ins for the ops that onnx cannot infer."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.replaced: list[onnx.NodeProto] = []
        self.model = proto
        if not any(_unknown(node) for node in _all_nodes(proto.graph)):
            return
        self.model = onnx.ModelProto()
        self.model.CopyFrom(proto)
        self._replace(self.model.graph, Known({}, {}))

    def _replace(self, graph: onnx.GraphProto, outer: Known) -> None:
        known = Known(dict(outer.ranks), dict(outer.integers))
        known.read(graph)
        nodes = list(graph.node)
        del graph.node[:]
        for node in nodes:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    self._replace(attribute.g, known)
            made = _stand_in(node, known) if _unknown(node) else None
            if made is None:
                graph.node.append(node)
                continue
            inside: dict[str, str] = {}
            for stand_in in made:
                stand_in.name = f"{_PREFIX}/{len(self.replaced)}"
                for names in (stand_in.input, stand_in.output):
                    for i, name in enumerate(names):
                        if name.startswith("#"):  # a value in between
                            names[i] = inside.setdefault(name, f"{_PREFIX}/{len(self.replaced)}/{name[1:]}")
            self.replaced.append(node)
            graph.node.extend(made)

    def undo(self, inferred: onnx.ModelProto) -> onnx.ModelProto:
        """The nodes that were replaced back in their places."""
        self._undo(inferred.graph)
        return inferred

    def _undo(self, graph: onnx.GraphProto) -> None:
        nodes, seen = list(graph.node), set()
        del graph.node[:]
        for node in nodes:
            if not node.name.startswith(_PREFIX):
                for attribute in node.attribute:
                    if attribute.type == onnx.AttributeProto.GRAPH:
                        self._undo(attribute.g)
                graph.node.append(node)
            elif node.name not in seen:
                seen.add(node.name)
                graph.node.append(self.replaced[int(node.name.rsplit("/", 1)[1])])
        infos = [v for v in graph.value_info if not v.name.startswith(_PREFIX)]
        del graph.value_info[:]
        graph.value_info.extend(infos)


_STANDARD = ("GroupNormalization", "MeanVarianceNormalization", "Attention")
"""Ops of the standard for which onnx infers nothing, fails without `axes`, or makes unknown sizes 0."""


def _all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _all_nodes(attribute.g)


def _unknown(node: onnx.NodeProto) -> bool:
    return node.domain == CONTRIB or (node.domain in ("", "ai.onnx") and node.op_type in _STANDARD)


class Known(NamedTuple):
    """What is known of values before any inference: sizes where they are declared, else None per axis; integers."""

    ranks: dict[str, list[int | None]]
    integers: dict[str, int]

    def read(self, graph: onnx.GraphProto) -> None:
        for value in [*graph.input, *graph.value_info]:
            kind = value.type.tensor_type
            if kind.HasField("shape"):
                self.ranks[value.name] = [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim]
        for tensor in graph.initializer:
            self.ranks[tensor.name] = list(tensor.dims)
            if tensor.data_type in (onnx.TensorProto.INT32, onnx.TensorProto.INT64) and np.prod(tensor.dims) == 1:
                self.integers[tensor.name] = int(numpy_helper.to_array(tensor).reshape(()))
        for node in graph.node:
            if node.op_type == "Transpose" and node.output[0] not in self.ranks:
                axes = next((len(a.ints) for a in node.attribute if a.name == "perm"), 0)
                self.ranks[node.output[0]] = [None] * axes

    def rank(self, name: str, default: int) -> int:
        return len(self.ranks.get(name) or [None] * default)


# ── the table ───────────────────────────────────────────────────────────────────────────────────────────────────────
# `#name` is a value in between.

Form = Callable[["Forms", Known], "list[onnx.NodeProto] | None"]


class Forms:
    """A node whose stand-in is wanted: its inputs, outputs and attributes by position and name."""

    def __init__(self, node: onnx.NodeProto) -> None:
        self.node = node
        self.attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}

    def x(self, i: int) -> str:
        """Input `i`, or "" where it is left out."""
        return self.node.input[i] if i < len(self.node.input) else ""

    def y(self, i: int = 0) -> str:
        """Output `i`, or "" where it is left out."""
        return self.node.output[i] if i < len(self.node.output) else ""

    def attr(self, name: str, default: Any) -> Any:
        return self.attributes.get(name, default)

    def alike(self, i: int, *outputs: int) -> list[onnx.NodeProto]:
        """Outputs with the shape of input `i`."""
        return [_node("Identity", [self.x(i)], self.y(j)) for j in outputs if self.y(j)]


def _node(op: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [output], **attributes)


def _constant(values: list[int], output: str) -> onnx.NodeProto:
    return _node("Constant", [], output, value=numpy_helper.from_array(np.array(values, np.int64)))


def _linear(x: str, shape: list[int], y: str) -> list[onnx.NodeProto]:
    """A product with a matrix of `shape`."""
    return [_constant(shape, "#shape"), _node("ConstantOfShape", ["#shape"], "#w"), _node("MatMul", [x, "#w"], y)]


def _first(f: Forms, known: Known) -> list[onnx.NodeProto]:
    return f.alike(0, 0)


def _sum(f: Forms, known: Known) -> list[onnx.NodeProto]:
    return [_node("Add", [f.x(0), f.x(1)], f.y())]


def _skip_norm(f: Forms, known: Known) -> list[onnx.NodeProto]:
    statistics = [_node("ReduceMean", [f.x(0), "#axes"], f.y(j), keepdims=1) for j in (1, 2) if f.y(j)]
    axes = [_constant([-1], "#axes")] if statistics else []
    return [*f.alike(0, 0, 3), *axes, *statistics]


def _norm(f: Forms, known: Known) -> list[onnx.NodeProto]:
    """The other outputs have the shape of a mean over the axes from `axis` on; one such axis is all there is."""
    made = f.alike(0, 0)
    if any(f.node.output[1:]) and f.attr("axis", -1) == -1:
        made += [_constant([-1], "#axes")]
        made += [_node("ReduceMean", [f.x(0), "#axes"], y, keepdims=1) for y in f.node.output[1:] if y]
    return made


def _renamed(op: str, *drop: str, inputs: int | None = None, **changed: Mapping[Any, Any]) -> Form:
    """The standard op `op`, without the attributes `drop`, with other values for those `changed`."""

    def form(f: Forms, known: Known) -> list[onnx.NodeProto]:
        kept = {k: changed[k].get(v, v) if k in changed else v for k, v in f.attributes.items() if k not in drop}
        return [_node(op, list(f.node.input[:inputs]), f.y(), **kept)]

    return form


def _product(f: Forms, known: Known) -> list[onnx.NodeProto]:
    """A MatMul with transposed operands is an Einsum."""
    a = {(0, 0): "...ij", (1, 0): "...ji", (0, 1): "i...j", (1, 1): "j...i"}
    b = {(0, 0): "...jk", (1, 0): "...kj", (0, 1): "j...k", (1, 1): "k...j"}
    left, right = ((f.attr(f"trans{s}", 0), f.attr(f"transBatch{s}", 0)) for s in "AB")
    if not any((*left, *right)):
        return [_node("MatMul", [f.x(0), f.x(1)], f.y())]
    return [_node("Einsum", [f.x(0), f.x(1)], f.y(), equation=f"{a[left]},{b[right]}->...ik")]


def _attention(f: Forms, known: Known) -> list[onnx.NodeProto] | None:
    """One product makes Q, K and V: the output has the width of V."""
    weights, sizes = known.ranks.get(f.x(1)), f.attr("qkv_hidden_sizes", None)
    if weights is None or weights[0] is None or (weights[1] is None and not sizes):
        return None
    return _linear(f.x(0), [weights[0], int(sizes[2]) if sizes else (weights[1] or 0) // 3], f.y())


def _multi_head_attention(f: Forms, known: Known) -> list[onnx.NodeProto]:
    return [*_multi_head_output(f, known), *_present(f, known)]


def _present(f: Forms, known: Known) -> list[onnx.NodeProto]:
    """Keys and values per head, behind those of the past; known for the usual form of them."""
    made: list[onnx.NodeProto] = []
    for i, past in ((1, 6), (2, 7)):
        if f.y(i) and f.x(2) and known.rank(f.x(i), 3) == 3:
            made += [_constant([0, 0, f.attr("num_heads", 1), -1], f"#shape{i}")]
            made += [_node("Reshape", [f.x(i), f"#shape{i}"], f"#cut{i}")]
            made += [_node("Transpose", [f"#cut{i}"], f"#heads{i}", perm=[0, 2, 1, 3])]
            made += [_node("Concat", [*([f.x(past)] if f.x(past) else []), f"#heads{i}"], f.y(i), axis=2)]
    return made


def _multi_head_output(f: Forms, known: Known) -> list[onnx.NodeProto]:
    if f.x(2) and known.rank(f.x(2), 3) == 3:
        return [_node("Einsum", [f.x(0), f.x(2)], f.y(), equation="bqh,bkv->bqv")]
    if f.x(1):
        return f.alike(0, 0)
    packed = _node("Einsum", [f.x(0)], "#q", equation="bshtd->bshd")
    return [packed, _constant([0, 0, -1], "#shape"), _node("Reshape", ["#q", "#shape"], f.y())]


def _standard_attention(f: Forms, known: Known) -> list[onnx.NodeProto]:
    """Attention of the standard: 3-D inputs name their heads, 4-D ones do not."""
    made: list[onnx.NodeProto] = []
    heads = [f.attr(name, 0) for name in ("q_num_heads", "kv_num_heads", "kv_num_heads")]
    parts = []
    for i, number in enumerate(heads):
        if number:
            made += [_constant([0, 0, number, -1], f"#shape{i}"), _node("Reshape", [f.x(i), f"#shape{i}"], f"#cut{i}")]
            made.append(_node("Transpose", [f"#cut{i}"], f"#heads{i}", perm=[0, 2, 1, 3]))
        parts.append(f"#heads{i}" if number else f.x(i))
    q, k, v = parts
    for past, value, present in ((f.x(4), k, f.y(1) or "#k"), (f.x(5), v, f.y(2) or "#v")):
        made.append(_node("Concat", [past, value] if past else [value], present, axis=2))
    k, v = f.y(1) or "#k", f.y(2) or "#v"
    made.append(_node("Einsum", [q, v], "#y" if heads[0] else f.y(), equation="bhqd,bgkv->bhqv"))
    if f.y(3):
        made.append(_node("Einsum", [q, k], f.y(3), equation="bhqd,bgkd->bhqk"))
    if heads[0]:
        made += [_node("Transpose", ["#y"], "#joined", perm=[0, 2, 1, 3]), _constant([0, 0, -1], "#flat")]
        made.append(_node("Reshape", ["#joined", "#flat"], f.y()))
    return made


def _embedding(f: Forms, known: Known) -> list[onnx.NodeProto]:
    made = [_node("Gather", [f.x(2), f.x(0)], f.y(j)) for j in (0, 2) if f.y(j)]
    if f.y(1):
        made += [_constant([1], "#axes"), _node("ReduceSum", [f.x(0), "#axes"], f.y(1), keepdims=0)]
    return made


def _nhwc_pool(f: Forms, known: Known) -> list[onnx.NodeProto]:
    pool = _node("MaxPool", ["#x"], "#y", **f.attributes)
    return [
        _node("Transpose", [f.x(0)], "#x", perm=[0, 3, 1, 2]),
        pool,
        _node("Transpose", ["#y"], f.y(), perm=[0, 2, 3, 1]),
    ]


def _quantised_product(f: Forms, known: Known) -> list[onnx.NodeProto]:
    return _linear(f.x(0), [int(f.attr("K", 0)), int(f.attr("N", 0))], f.y())


def _halves(f: Forms, known: Known) -> list[onnx.NodeProto]:
    return [helper.make_node("Split", [f.x(0)], [f.y(), "#right"], axis=-1, num_outputs=2)]


def _swiglu(f: Forms, known: Known) -> list[onnx.NodeProto]:
    return f.alike(0, 0) if f.x(1) else _halves(f, known)


def _expand_dims(f: Forms, known: Known) -> list[onnx.NodeProto] | None:
    if f.x(1) not in known.integers:
        return None
    return [_constant([known.integers[f.x(1)]], "#axes"), _node("Unsqueeze", [f.x(0), "#axes"], f.y())]


STAND_INS: dict[str, Form] = {
    **dict.fromkeys(
        ("Gelu", "FastGelu", "QuickGelu", "BiasDropout", "BiasSoftmax", "Inverse", "Trilu", "GroupNorm", "ScaledSiLU",
         "RotaryEmbedding", "GroupNormalization", "MeanVarianceNormalization", "GatedAdd",
         "GatedRMSNorm", "BranchwiseRMSNorm"),
        _first,
    ),
    **dict.fromkeys(("LayerNormalization", "SimplifiedLayerNormalization"), _norm),
    **dict.fromkeys(("BiasGelu", "BiasAdd"), _sum),
    **dict.fromkeys(("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"), _skip_norm),
    "SkipGroupNorm": lambda f, known: f.alike(0, 0, 1),
    "BiasSplitGelu": _halves,
    "SwiGLU": _swiglu,
    "FusedConv": _renamed("Conv", "activation", "activation_params", inputs=3),
    "FusedGemm": _renamed("Gemm", "activation", "activation_alpha", "activation_beta", "activation_gamma"),
    **dict.fromkeys(("FusedMatMul", "TransposeMatMul", "FusedMatMulActivation"), _product),
    **dict.fromkeys(("MatMulNBits", "MatMulBnb4"), _quantised_product),
    "CDist": lambda f, known: [_node("Einsum", [f.x(0), f.x(1)], f.y(), equation="mn,kn->mk")],
    "GridSample": _renamed("GridSample", mode={b"bilinear": "linear", b"bicubic": "cubic"}),
    "ExpandDims": _expand_dims,
    "GatherND": _renamed("GatherND"),
    "Pad": _renamed("Pad"),
    "NhwcMaxPool": _nhwc_pool,
    "Attention": _attention,
    "MultiHeadAttention": _multi_head_attention,
    "EmbedLayerNormalization": _embedding,
}  # fmt: skip


def _stand_in(node: onnx.NodeProto, known: Known) -> list[onnx.NodeProto] | None:
    form = (
        _standard_attention if node.op_type == "Attention" and node.domain != CONTRIB else STAND_INS.get(node.op_type)
    )
    return form(Forms(node), known) if form is not None else None
