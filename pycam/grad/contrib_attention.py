"""The attention ops of com.microsoft, expanded as the standard's are.

Their masks add a finite number (`mask_filter_value`, -10000 if not given), so that a query without any key attends all
keys alike.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from pycam.graph.builder import Builder

from .attention import (
    Heads,
    Mask,
    Term,
    added,
    attend,
    bias_of,
    cut,
    follow,
    inverse_root,
    join_heads,
    rotary,
    span,
    window,
)
from .call import Call
from .registry import CONTRIB, expansion, refuse

_LOWEST = float(np.finfo(np.float32).min)
"""What onnxruntime adds where a query may not look ahead."""


@expansion("Attention", CONTRIB)
def attention(g: Builder, n: Call) -> list[ir.Value | None]:
    """Q, K and V are one product, `x·W + bias`, cut apart.  Output 1 joins the keys and values of past and present."""
    if n.attr("do_rotary", 0):
        raise n.refuse("do_rotary: export the model before it was optimised")
    if n.attr("past_present_share_buffer", 0):
        raise n.refuse("past and present share a buffer")
    heads, sizes = int(n.attr("num_heads")), n.attr("qkv_hidden_sizes")
    width = n.dims(1)[1]
    if sizes is None:
        if not isinstance(width, int):
            raise n.refuse("the width of its weights is unknown")
        sizes = [width // 3] * 3
    packed = g.MatMul(n.x(0), n.x(1))
    packed = g.Add(packed, n.x(2)) if n.has(2) else packed
    parts = g.emit("Split", [packed, [int(s) for s in sizes]], {"axis": -1}, outputs=3)
    q, k, v = (cut(g, part, [*n.dims(0)[:2], int(s)], heads) for part, s in zip(parts, sizes, strict=True))
    present = None
    if n.has(4):
        past = [Heads(g.Gather(n.x(4), np.int64(i), axis=0), n.dims(4)[1:]) for i in (0, 1)]
        k, v = follow(g, past[0], k), follow(g, past[1], v)
    if len(n.node.outputs) > 1:
        present = g.Concat(g.Unsqueeze(k.value, [0]), g.Unsqueeze(v.value, [0]), axis=0)
    y = _attend(g, n, q, k, v, mask=3, bias=5)
    return [join_heads(g, y, heads, v.dims[3]), present]


@expansion("MultiHeadAttention", CONTRIB)
def multi_head_attention(g: Builder, n: Call) -> list[ir.Value | None]:
    """Q, K and V apart, or packed as `(N, T, heads, 3, D)`, or K and V as `(N, T, heads, 2, D)`; a bias for all three.

    Keys and values of 4 axes, `(N, heads, T, D)`, are those of another sequence: they get no bias.
    """
    if n.has(8) or n.has(9):
        raise n.refuse("past and present share a buffer")
    heads = int(n.attr("num_heads"))
    q, k, v = _queries_keys_values(g, n, heads)
    if n.has(6):
        k, v = (follow(g, Heads(n.x(i), n.dims(i)), now) for i, now in ((6, k), (7, v)))
    y = _attend(g, n, q, k, v, mask=4, bias=5)
    return [join_heads(g, y, heads, v.dims[3]), k.value, v.value, None]


def _queries_keys_values(g: Builder, n: Call, heads: int) -> tuple[Heads, Heads, Heads]:
    parts: list[tuple[int, ir.Value | None]] = [(i, n.x(i) if n.has(i) else None) for i in (0, 1, 2)]
    packed = 0 if not n.has(1) else 1  # where the packed input is, if values are not given
    if not n.has(2):
        count = 3 - packed
        pieces = g.emit("Split", [n.x(packed)], {"axis": 3, "num_outputs": count}, outputs=count)
        dims = n.dims(packed)
        packs = [
            Heads(g.Transpose(g.Squeeze(piece, [3]), perm=[0, 2, 1, 3]), [dims[0], dims[2], dims[1], dims[4]])
            for piece in pieces
        ]
        biases = [_bias_of_heads(g, n, part, heads) for part in range(3)]
        if packed == 0:
            q, k, v = (_plus(g, pack, bias) for pack, bias in zip(packs, biases, strict=True))
            return q, k, v
        return _plus(g, cut(g, n.x(0), n.dims(0), heads), biases[0]), packs[0], packs[1]
    made = []
    for i, x in parts:
        assert x is not None
        if n.rank(i) == 4:
            made.append(Heads(x, n.dims(i)))
            continue
        bias = _bias(g, n, i)
        made.append(cut(g, g.Add(x, bias) if bias is not None else x, n.dims(i), heads))
    return made[0], made[1], made[2]


def _bias(g: Builder, n: Call, part: int) -> ir.Value | None:
    """The part of the bias that is for Q, K or V."""
    if not n.has(3):
        return None
    hidden = n.dims(0)[2]
    if n.rank(0) == 5:
        dims = n.dims(0)
        hidden = dims[2] * dims[4] if isinstance(dims[2], int) and isinstance(dims[4], int) else None
    if not isinstance(hidden, int):
        raise n.refuse("the width of its inputs is unknown")
    begin = part * hidden
    end = begin + hidden if part < 2 else np.iinfo(np.int64).max
    return g.Slice(n.x(3), [begin], [int(end)], [0])


def _bias_of_heads(g: Builder, n: Call, part: int, heads: int) -> ir.Value | None:
    bias = _bias(g, n, part)
    return g.Reshape(bias, [1, heads, 1, -1]) if bias is not None else None


def _plus(g: Builder, x: Heads, bias: ir.Value | None) -> Heads:
    return x if bias is None else Heads(g.Add(x.value, bias), x.dims)


def _attend(g: Builder, n: Call, q: Heads, k: Heads, v: Heads, *, mask: int, bias: int) -> ir.Value:
    """`Y` per head, with the mask and the bias that inputs `mask` and `bias` are."""
    dtype, queries, keys = n.dtype(0), q.size(g, 2), k.size(g, 2)
    terms: list[Term] = []
    if n.attr("unidirectional", 0):
        past = int(keys) - int(queries) if isinstance(keys, int) and isinstance(queries, int) else g.Sub(keys, queries)
        terms.append(bias_of(g, window(g, queries, keys, past, -1, 0), _LOWEST, dtype))
    if n.has(mask):
        terms.append(bias_of(g, _allowed(g, n, mask, keys), float(n.attr("mask_filter_value", -10000.0)), dtype))
    if n.has(bias):
        terms.append(n.x(bias))
    total = added(g, terms, dtype)
    if isinstance(total, np.ndarray):
        total = g.constant(total, dtype)
    scale = float(n.attr("scale", 0.0)) or inverse_root(g, q.size(g, 3), dtype)
    return attend(g, q, k, v, scale, Mask(total) if total is not None else None).y


def _allowed(g: Builder, n: Call, i: int, keys: int | ir.Value) -> ir.Value:
    """Which keys are attended, from input `i`: 0 or 1 per key, or per query and key; or how many keys there are."""
    rank = n.rank(i)
    if rank == 1:
        batch, count = n.dims(0)[0], n.dims(i)[0]
        if batch != count or batch is None:
            raise n.refuse("a mask of positions where sequences begin and end: only one length per image is known")
        return g.Less(span(g, keys), g.Reshape(g.Cast(n.x(i), to=ir.DataType.INT64), [-1, 1, 1, 1]))
    if rank > 3:
        raise n.refuse("a mask of 4 axes")
    return g.Cast(g.Unsqueeze(n.x(i), [1, 2] if rank == 2 else [1]), to=ir.DataType.BOOL)


@expansion("RotaryEmbedding", CONTRIB)
def rotary_embedding(g: Builder, n: Call) -> ir.Value:
    """The caches are `(positions, D/2)`; positions are given per image, or as the first one."""
    if n.attr("is_packed_batching", 0):
        raise n.refuse("sequences of different lengths packed into one")
    if float(n.attr("scale", 1.0)) != 1.0:
        raise n.refuse("scale")
    ids = n.x(1)
    if n.rank(1) == 1:
        length = n.dims(0)[-2]
        ids = g.Add(g.Unsqueeze(span(g, length if isinstance(length, int) else n.size(-2, 0)), [0]), ids)
    cos, sin = (g.Gather(n.x(i), ids, axis=0) for i in (2, 3))
    half = n.dims(2)[1]
    whole = not n.attr("rotary_embedding_dim", 0) and isinstance(half, int)
    return rotary(g, n, cos, sin, 2 * int(half) if whole else None)  # type: ignore[arg-type]  # then it is an int


for _why, _ops in {
    "it reads a cache of keys and values whose length is known only when the graph runs, as decoders of text do; "
    "give the model before it was optimised": "GroupQueryAttention DecoderMaskedMultiHeadAttention DecoderAttention "
    "DecoderMaskedSelfAttention SparseAttention PagedAttention SparsePagedAttention DynamicSparseAttention "
    "GemmaRotaryEmbedding MRotaryEmbedding",
    "sequences of different lengths packed into one: give the model before it was optimised":
        "PackedAttention PackedMultiHeadAttention PackedSparseAttentionIndexer PackedSparseAttentionIndexerMerge "
        "RemovePadding RestorePadding SparseAttentionIndexer LongformerAttention VarlenCausalConvWithState "
        "VarlenNGramHashMapping",
    "a state-space layer of text decoders: give the model before it was optimised":
        "LinearAttention LinearAttentionGate GatedDeltaNet GatedDeltaNetStateReplay CausalConvWithState "
        "ConvStateReplay Mamba2Verify",
}.items():  # fmt: skip
    for _op in _ops.split():
        refuse(_op, why=_why, domain=CONTRIB)
