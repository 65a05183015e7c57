"""Gradients of Attention and RotaryEmbedding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pycam.gradient import vjp

BATCHED = {"batched": True}
Q4, K4, V4 = (2, 2, 3, 4), (2, 2, 5, 4), (2, 2, 5, 3)
QKV4 = {"q": Q4, "k": K4, "v": V4}
QKV3 = {"q": (2, 3, 8), "k": (2, 5, 8), "v": (2, 5, 6)}
HEADS = "q_num_heads=2, kv_num_heads=2"
SOME = np.array([[1, 1, 0, 0, 1], [0, 1, 0, 1, 1], [0, 0, 0, 0, 0]], bool)  # the last query attends no key
PER_IMAGE = np.stack([SOME, ~SOME])[:, None]
BIAS = np.where(SOME, 0.5, -np.inf)
HUGE = np.where(SOME, 0.5, -100.0)
PAST = {"pk": (2, 2, 4, 4), "pv": (2, 2, 4, 3)}
LENGTHS = np.array([2, 5])

CASES: dict[str, tuple[Any, ...]] = {
    "4-D": ("y = Attention(q, k, v)", QKV4, {"opset": 23, **BATCHED}),
    "3-D": (f"y = Attention<{HEADS}>(q, k, v)", QKV3, {"opset": 23, **BATCHED}),
    "self": ("y = Attention(q, q, q)", {"q": Q4}, {"opset": 23, **BATCHED}),
    "scale": ("y = Attention<scale=0.3>(q, k, v)", QKV4, {"opset": 23}),
    "softcap": ("y = Attention<softcap=2.0>(q, k, v)", QKV4, {"opset": 23, **BATCHED}),
    "causal": ("y = Attention<is_causal=1>(q, k, v)", QKV4, {"opset": 23, **BATCHED}),
    "causal, square": ("y = Attention<is_causal=1>(q, q, q)", {"q": Q4}, {"opset": 23, **BATCHED}),
    "grouped": (
        "y = Attention(q, k, v)",
        {"q": (2, 6, 3, 4), "k": (2, 2, 5, 4), "v": (2, 2, 5, 3)},
        {"opset": 23, "forms": ("static", "batch"), **BATCHED},  # unknown numbers of heads are taken to be equal
    ),
    "one head of keys": (
        "y = Attention<q_num_heads=2, kv_num_heads=1, is_causal=1>(q, k, v)",
        {"q": (2, 3, 8), "k": (2, 5, 4), "v": (2, 5, 3)},
        {"opset": 23, **BATCHED},
    ),
    "stored mask": ("y = Attention(q, k, v, m)", QKV4, {"opset": 23, "weights": {"m": SOME}, **BATCHED}),
    "stored bias": ("y = Attention(q, k, v, m)", QKV4, {"opset": 23, "weights": {"m": HUGE}, **BATCHED}),
    "mask": ("y = Attention(q, k, v, m)", {**QKV4, "m": SOME}, {"opset": 23}),
    "mask per image": ("y = Attention(q, k, v, m)", {**QKV4, "m": PER_IMAGE}, {"opset": 23, **BATCHED}),
    "bias with -inf": ("y = Attention(q, k, v, m)", {**QKV4, "m": BIAS}, {"opset": 23, "wrt": ["q", "k", "v"]}),
    "bias that is differentiated": ("y = Attention(q, k, v, m)", {**QKV4, "m": (3, 5)}, {"opset": 23}),
    "bias per head": ("y = Attention(q, k, v, m)", {**QKV4, "m": (2, 2, 3, 5)}, {"opset": 23, **BATCHED}),
    "mask and causal": ("y = Attention<is_causal=1>(q, k, v, m)", {**QKV4, "m": SOME}, {"opset": 23}),
    "short mask": ("y = Attention(q, k, v, m)", {**QKV4, "m": SOME[:, :3]}, {"opset": 24, "runtime": False}),
    "short stored bias": (
        "y = Attention(q, k, v, m)", QKV4, {"opset": 24, "weights": {"m": BIAS[:, :2]}, "runtime": False}
    ),
    "past": ("y, nk, nv = Attention(q, k, v, , pk, pv)", {**QKV4, **PAST}, {"opset": 23, **BATCHED}),
    "past, causal": ("y, nk, nv = Attention<is_causal=1>(q, k, v, , pk, pv)", {**QKV4, **PAST}, {"opset": 23}),
    "past, window": (
        "y, nk, nv = Attention<left_window_size=2>(q, k, v, , pk, pv)",
        {**QKV4, **PAST},
        {"opset": 25, "runtime": False},
    ),
    "window": (
        "y = Attention<left_window_size=1, right_window_size=0>(q, k, v)", QKV4, {"opset": 25, "runtime": False}
    ),
    "right window": ("y = Attention<right_window_size=1>(q, k, v)", QKV4, {"opset": 25, "runtime": False}),
    "lengths": ("y = Attention(q, k, v, , , , s)", {**QKV4, "s": LENGTHS}, {"opset": 24}),
    "lengths, causal": (
        "y = Attention<is_causal=1>(q, k, v, , , , s)",
        {**QKV4, "s": LENGTHS},
        {"opset": 24, "runtime": False},  # onnxruntime masks from the top left here
    ),
    "precision": ("y = Attention<softmax_precision=11>(q, k, v)", QKV4, {"opset": 23}),
}  # fmt: skip
for _mode in (0, 1, 2, 3):
    _capped = "softcap=2.0, " if _mode else ""  # the reference evaluator gives capped scores for raw ones
    _form = f"y0, nk, nv, y = Attention<{_capped}qk_matmul_output_mode={_mode}>(q, k, v, m)"
    CASES[f"scores, mode {_mode}"] = (_form, {**QKV4, "m": (3, 5)}, {"opset": 24, "wrt": ["q", "k"]})
CASES["present"] = ("y0, y, nv = Attention(q, k, v, , pk, pv)", {**QKV4, **PAST}, {"opset": 23, "wrt": ["k", "pk"]})

ANGLES = {"c": (2, 3, 2), "s": (2, 3, 2)}
IDS = np.array([[0, 2, 4], [3, 1, 1]])
for _interleaved in (0, 1):
    _form = f"RotaryEmbedding<interleaved={_interleaved}"
    CASES[f"{_form}>"] = (f"y = {_form}>(x, c, s)", {"x": (2, 2, 3, 4), **ANGLES}, {"opset": 23, **BATCHED})
    CASES[f"{_form}> 3-D"] = (
        f"y = {_form}, num_heads=2>(x, c, s)",
        {"x": (2, 3, 8), **ANGLES},
        {"opset": 23, **BATCHED},
    )
    CASES[f"{_form}> part"] = (
        f"y = {_form}, rotary_embedding_dim=4>(x, c, s)",
        {"x": (2, 2, 3, 6), **ANGLES},
        {"opset": 23, **BATCHED},
    )
    CASES[f"{_form}> by position"] = (
        f"y = {_form}, rotary_embedding_dim=4, num_heads=2>(x, c, s, p)",
        {"x": (2, 3, 16), "p": IDS},
        {"opset": 23, "weights": {"c": (5, 2), "s": (5, 2)}, **BATCHED},
    )  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_gradient(check: Any, case: tuple[Any, ...]) -> None:
    body, inputs, *options = case
    check(body, inputs, **(options[0] if options else {}))


def test_five_products(check: Any) -> None:
    """The scores once more, and one product for each of Q and K, P and V."""
    model = vjp(check.model("y = Attention(q, k, v)", QKV4, opset=23), ["q", "k", "v"])
    ops = [node.op_type for node in model.graph.node]
    assert ops.count("MatMul") == 5
    assert ops.count("Softmax") == 1


def test_a_query_without_keys_has_gradient_0(check: Any) -> None:
    dq, dv = check.gradient("y = Attention(q, k, v, m)", {**QKV4, "m": SOME}, wrt=["q", "v"], opset=23)
    assert np.isfinite(dq).all()
    assert not dq[:, :, 2].any()
    assert not dv[:, :, 2].any()
