"""Gradients of LinearAttention and CausalConvWithState."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import special

from pycam.errors import UnsupportedOpError
from pycam.gradient import vjp


def linear_attention(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, past: Any = None, decay: Any = None, beta: Any = None,
    q_num_heads: int = 1, kv_num_heads: int = 1, update_rule: str = "gated_delta", scale: float = 0.0, **_: Any,
) -> tuple[np.ndarray, ...]:  # fmt: skip
    """Position by position, as the specification says; the reference evaluator computes in float32."""
    n, length, _width = query.shape
    q = query.reshape(n, length, q_num_heads, -1)
    k, v = (x.reshape(n, length, kv_num_heads, -1) for x in (key, value))
    state = np.zeros((n, kv_num_heads, k.shape[3], v.shape[3])) if past is None else past
    made = []
    for t in range(length):
        if "gated" in update_rule:
            state = state * np.exp(decay[:, t].reshape(n, kv_num_heads, -1, 1))
        update = v[:, t]
        if "delta" in update_rule:
            update = beta[:, t, :, None] * (update - np.einsum("nhdm,nhd->nhm", state, k[:, t]))
        state = state + k[:, t, :, :, None] * update[:, :, None]
        wide = np.repeat(state, q_num_heads // kv_num_heads, axis=1)
        made.append(np.einsum("nhd,nhdm->nhm", q[:, t], wide) * (scale or q.shape[3] ** -0.5))
    return np.stack(made, 1).reshape(n, length, -1), state


def causal_conv(
    x: np.ndarray, w: np.ndarray, b: Any = None, past: Any = None, activation: str = "none"
) -> tuple[np.ndarray, ...]:
    before = w.shape[2] - 1
    padded = np.concatenate([np.zeros((*x.shape[:2], before)) if past is None else past, x], axis=2)
    y = np.einsum("nclk,ck->ncl", np.lib.stride_tricks.sliding_window_view(padded, before + 1, 2), w[:, 0])
    y = y if b is None else y + b[:, None]
    return (y if activation == "none" else y * special.expit(y)), padded[:, :, padded.shape[2] - before :]


OPS = {"LinearAttention": linear_attention, "CausalConvWithState": causal_conv}
NEW = {"opset": 27, "ops": OPS, "runtime": False}  # onnxruntime 1.32 knows opsets up to 26
STATIC = {**NEW, "forms": ("static", "batch")}
QKV = {"q": (2, 3, 8), "k": (2, 3, 4), "v": (2, 3, 6)}  # 4 heads of 2, sharing 2 states
STATE = {"p": (2, 2, 2, 3)}
PER_HEAD, PER_KEY, BETA, ONE_BETA = {"d": (2, 3, 2)}, {"d": (2, 3, 4)}, {"b": (2, 3, 2)}, {"b": (2, 3, 1)}

CASES: dict[str, tuple[Any, ...]] = {
    f"LinearAttention {rule}, {name}": (
        f'{outputs} = LinearAttention<update_rule="{rule}", q_num_heads=4, kv_num_heads=2{more}>({arguments})',
        {**QKV, **inputs},
        {**STATIC, "batched": True},
    )
    for rule, name, outputs, more, arguments, inputs in (
        ("linear", "plain", "y, s", "", "q, k, v", {}),
        ("linear", "past", "y, s", ", scale=0.4", "q, k, v, p", STATE),
        ("gated", "per head", "y, s", "", "q, k, v, , d", PER_HEAD),
        ("gated", "per key", "y, s", "", "q, k, v, p, d", {**STATE, **PER_KEY}),
        ("delta", "plain", "y, s", "", "q, k, v, , , b", BETA),
        ("delta", "past", "y, s", "", "q, k, v, p, , b", {**STATE, **ONE_BETA}),
        ("gated_delta", "past", "y, s", "", "q, k, v, p, d, b", {**STATE, **PER_HEAD, **BETA}),
    )
}
CASES["LinearAttention linear, state"] = (
    'z, y = LinearAttention<update_rule="linear", q_num_heads=4, kv_num_heads=2>(q, k, v, p)',
    {**QKV, **STATE},
    {**STATIC, "wrt": ["k", "v", "p"]},
)
CASES["LinearAttention gated_delta, state"] = (
    "z, y = LinearAttention<q_num_heads=4, kv_num_heads=2>(q, k, v, , d, b)",
    {**QKV, **PER_KEY, **BETA},
    {**STATIC, "wrt": ["k", "v", "d", "b"]},
)
CASES["LinearAttention linear, unknown sizes"] = (
    'y, s = LinearAttention<update_rule="linear", q_num_heads=4, kv_num_heads=2>(q, k, v, p)',
    {**QKV, **STATE},
    {**NEW, "forms": ("dynamic",)},
)
CASES["LinearAttention of one position"] = (
    "y, s = LinearAttention<q_num_heads=1, kv_num_heads=1>(q, k, v, , d, b)",
    {"q": (2, 1, 2), "k": (2, 1, 2), "v": (2, 1, 3), "d": (2, 1, 1), "b": (2, 1, 1)},
    {**STATIC, "wrt": ["q", "k", "v", "b"]},
)
_WEIGHTS = {"w": (3, 1, 4), "b": (3,)}
CASES["CausalConvWithState"] = (
    "y, s = CausalConvWithState(x, w, b)",
    {"x": (2, 3, 5)},
    {**NEW, "weights": _WEIGHTS, "batched": True},
)
CASES["CausalConvWithState, SiLU, past"] = (
    'y, s = CausalConvWithState<activation="silu">(x, w, b, p)',
    {"x": (2, 3, 5), "p": (2, 3, 3)},
    {**NEW, "weights": _WEIGHTS, "batched": True},
)
CASES["CausalConvWithState, state"] = (
    "z, y = CausalConvWithState(x, w, b, p)",
    {"x": (2, 3, 2), "p": (2, 3, 3)},
    {**NEW, "weights": _WEIGHTS},
)
CASES["CausalConvWithState, one position"] = (
    "y, s = CausalConvWithState(x, w)",
    {"x": (2, 3, 5)},
    {**NEW, "weights": {"w": (3, 1, 1)}},
)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_gradient(check: Any, case: tuple[Any, ...]) -> None:
    body, inputs, options = case
    check(body, inputs, **options)


def test_a_recurrence_of_unknown_length_is_refused(check: Any) -> None:
    body = 'y, s = LinearAttention<update_rule="delta", q_num_heads=4, kv_num_heads=2>(q, k, v, , , b)'
    model = check.model(body, {**QKV, **BETA}, opset=27)
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[1].dim_param = "T"
    with pytest.raises(UnsupportedOpError, match=r"LinearAttention \(node .*node0.*: update_rule=delta over a number"):
        vjp(model, ["q"])
