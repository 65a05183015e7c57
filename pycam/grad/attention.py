"""Attention, as the products and the softmax that it is made of.

`S = α·Q·Kᵀ + bias`, `P = softmax(S)`, `Y = P·V`, per head.  The walk reads `P`, which the fused op does not give, so
`S` and `P` are computed once more; the other four products of the backward pass are those that any attention needs.

Heads that share their keys and values (`r` query heads each) are not repeated: their queries become `r` times as many
of one head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pycam.graph.builder import Builder

from .call import Call, Dim
from .registry import expansion
from .windows import END, axis_size, join


class Heads(NamedTuple):
    """Queries, keys or values per head, `(N, heads, positions, size)`, and their dims."""

    value: ir.Value
    dims: list[Dim]

    def size(self, g: Builder, axis: int) -> int | ir.Value:
        """The size of an axis: an int, or an int64 vector of length 1."""
        size = self.dims[axis]
        return size if isinstance(size, int) else axis_size(g, self.value, axis)


class Attended(NamedTuple):
    """`Y` per head, and what `qk_matmul_output` may ask for: raw, capped and biased scores, probabilities."""

    y: ir.Value
    stages: tuple[ir.Value, ir.Value, ir.Value, ir.Value]


class Mask(NamedTuple):
    """What is added to the scores.

    Where a query may attend no key, `bias` is 0, `alive` is 0, and `given` is what the bias would be; elsewhere `alive`
    is 1.  Both are None if there is no such query.
    """

    bias: ir.Value
    alive: ir.Value | None = None
    given: ir.Value | None = None


def split_heads(g: Builder, n: Call, i: int, heads: int) -> Heads:
    """Input `i` per head: `(N, heads, T, D)` as it is, `(N, T, heads·D)` cut apart."""
    dims = n.dims(i)
    if len(dims) == 3 and not heads:
        raise n.refuse("its number of heads is not given")
    return Heads(n.x(i), dims) if len(dims) == 4 else cut(g, n.x(i), dims, heads)


def cut(g: Builder, x: ir.Value, dims: Sequence[Dim], heads: int) -> Heads:
    """`(N, T, heads·D)` → `(N, heads, T, D)`."""
    size = dims[2] // heads if isinstance(dims[2], int) else None
    y = g.Transpose(g.Reshape(x, [0, 0, heads, -1 if size is None else size]), perm=[0, 2, 1, 3])
    return Heads(y, [dims[0], heads, dims[1], size])


def join_heads(g: Builder, y: ir.Value, heads: Dim, size: Dim) -> ir.Value:
    """`(N, heads, T, D)` → `(N, T, heads·D)`."""
    width = heads * size if isinstance(heads, int) and isinstance(size, int) else -1
    return g.Reshape(g.Transpose(y, perm=[0, 2, 1, 3]), [0, 0, width])


def inverse_root(g: Builder, size: int | ir.Value, dtype: ir.DataType) -> float | ir.Value:
    """`1/√size`: what scores are scaled by."""
    return size**-0.5 if isinstance(size, int) else g.Reciprocal(g.Sqrt(g.Cast(size, to=dtype)))


def follow(g: Builder, past: Heads | None, now: Heads) -> Heads:
    """Keys or values of the past, and those of now."""
    if past is None:
        return now
    before, size = past.dims[2], now.dims[2]
    total = before + size if isinstance(before, int) and isinstance(size, int) else None
    return Heads(g.Concat(past.value, now.value, axis=2), [*now.dims[:2], total, now.dims[3]])


def attend(
    g: Builder, q: Heads, k: Heads, v: Heads, scale: float | ir.Value, mask: Mask | None = None, softcap: float = 0.0
) -> Attended:
    """`softmax(softcap(scale·Q·Kᵀ) + bias)·V`.

    Numbers of heads that are unknown are taken to be equal: onnxruntime would refuse to run anything else.
    """
    heads = (q.dims[1], k.dims[1])
    grouped = isinstance(heads[0], int) and isinstance(heads[1], int) and heads[0] != heads[1]
    rows = g.Reshape(q.value, join(g, [0, k.size(g, 1), -1, q.size(g, 3)])) if grouped else q.value
    scores = g.MatMul(g.Mul(rows, scale), g.Transpose(k.value, perm=[0, 1, 3, 2]))
    if grouped:
        scores = g.Reshape(scores, join(g, [0, q.size(g, 1), *_lengths(g, q, k)]))
    capped = g.Mul(g.Tanh(g.Mul(scores, 1.0 / softcap)), softcap) if softcap > 0 else scores
    biased = g.Add(capped, mask.bias) if mask is not None else capped
    p = g.Softmax(biased, axis=-1)
    if mask is not None and mask.alive is not None:
        p = g.Mul(p, mask.alive)
        biased = g.Add(capped, mask.given)
    weights = g.Reshape(p, join(g, [0, k.size(g, 1), -1, k.size(g, 2)])) if grouped else p
    y = g.MatMul(weights, v.value)
    if grouped:
        y = g.Reshape(y, join(g, [0, q.size(g, 1), -1, v.size(g, 3)]))
    return Attended(y, (scores, capped, biased, p))


def _lengths(g: Builder, q: Heads, k: Heads) -> list[int | ir.Value]:
    """How many queries and keys; -1 for the one that only the graph knows."""
    queries, keys = q.dims[2], k.dims[2]
    if not isinstance(queries, int):
        return [-1, k.size(g, 2)]
    return [queries, keys if isinstance(keys, int) else -1]


# ── masks ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def span(g: Builder, size: int | ir.Value) -> ir.Value:
    """0, 1, … size-1."""
    return g.constant(np.arange(size)) if isinstance(size, int) else g.Range(0, g.Squeeze(size, [0]), 1)


Term: TypeAlias = "ir.Value | NDArray[Any]"
"""Part of a bias: an array where it is known at compile time."""


def window(
    g: Builder, queries: int | ir.Value, keys: int | ir.Value, offset: int | ir.Value, left: int, right: int
) -> Term:
    """Whether query `i` may attend key `j`: `i + offset - left ≤ j ≤ i + offset + right`, -1 for no bound.

    An offset of shape `(N, 1, 1, 1)` gives a mask of `(N, 1, queries, keys)`.
    """
    if isinstance(queries, int) and isinstance(keys, int) and isinstance(offset, int):
        at = np.arange(keys) - (np.arange(queries)[:, None] + offset)
        allowed: NDArray[Any] = np.ones(at.shape, bool)
        allowed &= at >= -left if left >= 0 else True
        allowed &= at <= right if right >= 0 else True
        return allowed
    at_run_time = g.Sub(span(g, keys), g.Add(g.Unsqueeze(span(g, queries), [1]), offset))
    tests = [g.GreaterOrEqual(at_run_time, -left)] if left >= 0 else []
    tests += [g.LessOrEqual(at_run_time, right)] if right >= 0 else []
    return tests[0] if len(tests) == 1 else g.And(*tests)


def bias_of(g: Builder, allowed: Term, value: float, dtype: ir.DataType) -> Term:
    """0 where `allowed`, else `value`."""
    if isinstance(allowed, np.ndarray):
        return np.where(allowed, 0.0, value)
    return g.Where(allowed, g.constant(0.0, dtype), g.constant(value, dtype))


def added(g: Builder, terms: Sequence[Term], dtype: ir.DataType) -> Term | None:
    """The sum of `terms`, None if there are none."""
    total: Term | None = None
    for term in sorted(terms, key=lambda t: not isinstance(t, np.ndarray)):  # what is known first
        if total is None or (isinstance(total, np.ndarray) and isinstance(term, np.ndarray)):
            total = term if total is None else np.asarray(total + term)
        else:
            total = g.Add(term, g.constant(total, dtype) if isinstance(total, np.ndarray) else total)
    return total


@expansion("Attention")
def attention(g: Builder, n: Call) -> list[ir.Value | None]:
    """Outputs: Y, present key and value (past and present joined), and a stage of the scores.

    `softmax_precision` changes rounding only, and is left out.
    """
    flat = n.rank(0) == 3
    q = split_heads(g, n, 0, n.attr("q_num_heads", 0))
    k, v = (split_heads(g, n, i, n.attr("kv_num_heads", 0)) for i in (1, 2))
    past = [Heads(n.x(i), n.dims(i)) if n.has(i) else None for i in (4, 5)]
    k, v = follow(g, past[0], k), follow(g, past[1], v)
    scale = n.attr("scale") or inverse_root(g, q.size(g, 3), n.dtype(0))
    offset = past[0].size(g, 2) if past[0] is not None else 0
    done = attend(g, q, k, v, scale, _mask(g, n, q, k, offset), float(n.attr("softcap", 0.0)))
    y = join_heads(g, done.y, q.dims[1], v.dims[3]) if flat else done.y
    return [y, k.value, v.value, done.stages[int(n.attr("qk_matmul_output_mode", 0))]]


def _mask(g: Builder, n: Call, q: Heads, k: Heads, offset: int | ir.Value) -> Mask | None:
    """The sum of `attn_mask`, the causal mask, the window, and the padding of the keys.

    Keys are attended or not by a bias of 0 or -∞.  A query with no key at all would be a softmax of -∞ alone: it gets a
    bias of 0, and its probabilities are set to 0.
    """
    dtype, queries, keys = n.dtype(0), q.size(g, 2), k.size(g, 2)
    left, right = int(n.attr("left_window_size", -1)), int(n.attr("right_window_size", -1))
    if n.attr("is_causal", 0):
        right = 0
    terms: list[Term] = []
    if n.has(6):
        lengths = g.Reshape(n.x(6), [-1, 1, 1, 1])
        terms.append(bias_of(g, g.Less(span(g, keys), lengths), -np.inf, dtype))
        offset = g.Sub(lengths, queries)
    if left >= 0 or right >= 0:
        terms.append(bias_of(g, window(g, queries, keys, offset, left, right), -np.inf, dtype))
    if n.has(3):
        terms.append(_given(g, n, k))
    bias = added(g, terms, dtype)
    if bias is None:
        return None
    if isinstance(bias, np.ndarray):
        alive = bias.max(axis=-1, keepdims=True, initial=-np.inf) > -np.inf
        known = g.constant(np.where(alive, bias, 0.0), dtype)
        return Mask(known) if alive.all() else Mask(known, g.constant(alive, dtype), g.constant(bias, dtype))
    if left < 0 and not n.has(3) and not n.has(6):
        return Mask(bias)  # causal: a query attends itself
    some = g.Greater(g.ReduceMax(bias, [-1], keepdims=1), -np.inf)
    return Mask(g.Where(some, bias, 0.0), _per_image(g, n, g.Cast(some, to=dtype)), bias)


def _per_image(g: Builder, n: Call, value: ir.Value) -> ir.Value:
    """`value`, which broadcasts against `(N, …)`, with that batch axis, if it depends on what images bring."""
    if not n.has(6) and n.const(3) is not None:
        return value
    batch = n.dims(0)[0]
    size = [batch] if isinstance(batch, int) else g.Shape(n.node.inputs[0], start=0, end=1)
    return g.Expand(value, join(g, [*size, 1, 1, 1] if isinstance(size, list) else [size, 1, 1, 1]))


def _given(g: Builder, n: Call, k: Heads) -> Term:
    """`attn_mask` as a bias; keys that it does not reach are masked."""
    known, last = n.const(3), n.dims(3)[-1]
    mask: Term = n.x(3) if known is None else known
    if n.node.inputs[3].dtype == ir.DataType.BOOL:  # type: ignore[union-attr]  # it is given
        mask = bias_of(g, mask, -np.inf, n.dtype(0))
    keys = k.size(g, 2)
    if last == k.dims[2] and last is not None:
        return mask
    missing = keys - last if isinstance(keys, int) and isinstance(last, int) else g.Sub(
        join(g, [keys]), n.size(-1, 3)
    )  # fmt: skip
    if isinstance(missing, int) and isinstance(mask, np.ndarray):
        return np.pad(mask, [(0, 0)] * (mask.ndim - 1) + [(0, missing)], constant_values=-np.inf)
    return g.Pad(mask, join(g, [0, missing]), g.constant(-np.inf, n.dtype(0)), [-1])


# ── rotary embedding ────────────────────────────────────────────────────────────────────────────────────────────────


def rotate(g: Builder, x: Heads, cos: ir.Value, sin: ir.Value, interleaved: bool, rotated: int | None) -> ir.Value:
    """Pairs of the first `rotated` numbers of each head, turned by their angles: `(a, b) → (a·c − b·s, a·s + b·c)`.

    A pair is `(x_j, x_{j + rotated/2})`, or two neighbours if `interleaved`.  `cos` and `sin` broadcast against `x`
    with half of the numbers turned, `rotated` (None: all numbers).
    """
    turned = x.value if rotated is None else g.Slice(x.value, [0], [rotated], [-1])
    if interleaved:
        a, b = (g.Slice(turned, [k], [END], [-1], [2]) for k in (0, 1))
    else:
        a, b = g.emit("Split", [turned], {"axis": -1, "num_outputs": 2}, outputs=2)
    real = g.Sub(g.Mul(a, cos), g.Mul(b, sin))
    imaginary = g.Add(g.Mul(a, sin), g.Mul(b, cos))
    if interleaved:
        last = rotated if rotated is not None else x.size(g, 3)
        pairs = g.Concat(g.Unsqueeze(real, [-1]), g.Unsqueeze(imaginary, [-1]), axis=-1)
        y = g.Reshape(pairs, join(g, [0, 0, x.dims[2] if isinstance(x.dims[2], int) else -1, last]))
    else:
        y = g.Concat(real, imaginary, axis=-1)
    return y if rotated is None else g.Concat(y, g.Slice(x.value, [rotated], [END], [-1]), axis=-1)


def rotary(g: Builder, n: Call, cos: ir.Value, sin: ir.Value, size: int | None = None) -> ir.Value:
    """Input 0 turned by the angles of each position, `(N, T, …)`; `size`: of a head, where `num_heads` is not given.

    `(N, T, heads·D)` is cut apart but not transposed: onnxruntime 1.32 moves a Transpose into the Gather of the caches
    and gets it wrong.
    """
    x, flat = Heads(n.x(0), n.dims(0)), n.rank(0) == 3
    if flat:
        heads, width = int(n.attr("num_heads", 0)) or None, x.dims[2]
        if heads is None and size is None:
            raise n.refuse("its number of heads is not given")
        if heads is not None:
            size = width // heads if isinstance(width, int) else None
        x = Heads(g.Reshape(x.value, [0, 0, heads or -1, size or -1]), [*x.dims[:2], heads, size])
    cos, sin = (g.Unsqueeze(angle, [2 if flat else 1]) for angle in (cos, sin))
    rotated = int(n.attr("rotary_embedding_dim", 0)) or None
    y = rotate(g, x, cos, sin, bool(n.attr("interleaved", 0)), None if rotated == x.dims[3] else rotated)
    return n.reshape_like(y, 0) if flat else y


@expansion("RotaryEmbedding")
def rotary_embedding(g: Builder, n: Call) -> ir.Value:
    """Angles come from the caches, by `position_ids` if these are given."""
    cos, sin = (g.Gather(n.x(i), n.x(3), axis=0) if n.has(3) else n.x(i) for i in (1, 2))
    return rotary(g, n, cos, sin)
