"""Layers with a state that runs along the positions: LinearAttention, CausalConvWithState."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from pycam.graph.builder import Builder

from .attention import Heads, cut, inverse_root, join_heads
from .call import Call
from .registry import expansion
from .windows import END, join

_LONGEST = 512
"""Positions up to which a recurrence is spelled out, about eight nodes each."""


@expansion("CausalConvWithState")
def causal_conv(g: Builder, n: Call) -> list[ir.Value | None]:
    """A depthwise convolution of `x` behind the state (zeros if there is none); the last `k − 1` positions go on."""
    kernel, channels = n.dims(1)[2], n.dims(1)[0]
    if not isinstance(kernel, int) or not isinstance(channels, int):
        raise n.refuse("the size of its kernel, or its number of channels, is unknown")
    before = kernel - 1
    x = g.Concat(n.x(3), n.x(0), axis=2) if n.has(3) else g.Pad(n.x(0), [before, 0], None, [2])
    y = g.Conv(x, n.x(1), n.x(2) if n.has(2) else None, group=channels)
    if n.attr("activation", "none") != "none":
        y = g.Mul(y, g.Sigmoid(y))
    return [y, g.Slice(x, [-before if before else END], [END], [2])]


@expansion("LinearAttention")
def linear_attention(g: Builder, n: Call) -> list[ir.Value | None]:
    """`S_t = exp(d_t)·S_{t−1} + k_t ⊗ u_t`, `o_t = scale·q_tᵀ·S_t`.

    `u_t = v_t`, or `β_t·(v_t − exp(d_t)·S_{t−1}ᵀ·k_t)` for the delta rules.  Without decay and delta, all positions are
    computed at once, as `scale·(tril(Q·Kᵀ)·V + Q·S₀)`.
    """
    rule = str(n.attr("update_rule", "gated_delta"))
    heads, shared = int(n.attr("q_num_heads")), int(n.attr("kv_num_heads"))
    q = cut(g, n.x(0), n.dims(0), heads)
    k, v = (cut(g, n.x(i), n.dims(i), shared) for i in (1, 2))
    scale = float(n.attr("scale", 0.0)) or inverse_root(g, q.size(g, 3), n.dtype(0))
    q = Heads(g.Mul(q.value, scale), q.dims)
    past = n.x(3) if n.has(3) else None
    if rule == "linear":
        y, state = _at_once(g, shared, q, k, v, past)
    else:
        y, state = _step_by_step(g, n, rule, q, k, v, past)
    return [join_heads(g, y, heads, v.dims[3]), state]


def _at_once(g: Builder, shared: int, q: Heads, k: Heads, v: Heads, past: ir.Value | None) -> tuple[ir.Value, ir.Value]:
    """The query heads that share a state have an axis of their own: (N, shared, r, T, D)."""
    length = q.dims[2] if isinstance(q.dims[2], int) else -1
    grouped = g.Reshape(q.value, join(g, [0, shared, _shares(q, shared), length, q.size(g, 3)]))
    keys, values = (g.Unsqueeze(x.value, [2]) for x in (k, v))
    scores = g.Trilu(g.MatMul(grouped, g.Transpose(keys, perm=[0, 1, 2, 4, 3])), None, upper=0)
    y = g.MatMul(scores, values)
    state = g.MatMul(g.Transpose(k.value, perm=[0, 1, 3, 2]), v.value)
    if past is not None:
        y, state = g.Add(y, g.MatMul(grouped, g.Unsqueeze(past, [2]))), g.Add(past, state)
    return g.Reshape(y, join(g, [0, q.size(g, 1), length, v.size(g, 3)])), state


def _shares(q: Heads, shared: int) -> int:
    """How many query heads share a state."""
    assert isinstance(q.dims[1], int)
    return q.dims[1] // shared


def _step_by_step(
    g: Builder, n: Call, rule: str, q: Heads, k: Heads, v: Heads, past: ir.Value | None
) -> tuple[ir.Value, ir.Value]:
    length, shared = q.dims[2], int(n.attr("kv_num_heads"))
    if not isinstance(length, int) or not 0 < length <= _LONGEST:
        raise n.refuse(f"update_rule={rule} over a number of positions that is unknown or above {_LONGEST}")
    r, size = int(n.attr("q_num_heads")) // shared, q.dims[3] if isinstance(q.dims[3], int) else -1
    queries = _positions(g, g.Reshape(g.Transpose(q.value, perm=[0, 2, 1, 3]), [0, length, shared, r, size]), length)
    keys = _positions(g, g.Unsqueeze(g.Transpose(k.value, perm=[0, 2, 1, 3]), [4]), length)  # (N, shared, D, 1)
    values = _positions(g, g.Unsqueeze(g.Transpose(v.value, perm=[0, 2, 1, 3]), [3]), length)  # (N, shared, 1, D)
    decays = betas = None
    if "gated" in rule:
        decays = _positions(g, g.Reshape(g.Exp(n.x(4)), [0, length, shared, -1, 1]), length)
    if "delta" in rule:
        betas = _positions(g, g.Unsqueeze(n.x(5), [3, 4]), length)
    state, made = past, []
    for t in range(length):
        if decays is not None and state is not None:
            state = g.Mul(state, decays[t])
        update = values[t]
        if betas is not None:
            if state is not None:
                update = g.Sub(update, g.MatMul(g.Transpose(keys[t], perm=[0, 1, 3, 2]), state))
            update = g.Mul(betas[t], update)
        written = g.Mul(keys[t], update)
        state = written if state is None else g.Add(state, written)
        made.append(g.MatMul(queries[t], state))  # (N, shared, r, D)
    assert state is not None
    rows = [g.Reshape(y, [0, 1, shared * r, v.dims[3] if isinstance(v.dims[3], int) else -1]) for y in made]
    return g.Transpose(g.Concat(*rows, axis=1) if length > 1 else rows[0], perm=[0, 2, 1, 3]), state


def _positions(g: Builder, x: ir.Value, length: int) -> list[ir.Value]:
    """The positions, which are axis 1, one by one."""
    sizes = np.ones(length, np.int64)
    parts = g.emit("Split", [x, sizes], {"axis": 1}, outputs=length) if length > 1 else (x,)
    return [g.Squeeze(part, [1]) for part in parts]
