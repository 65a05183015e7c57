"""Gradients of com.microsoft's attention: against numpy stand-ins, which are checked against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import special

from pycam.errors import UnsupportedOpError
from pycam.grad import registry
from pycam.gradient import vjp

BATCHED = {"batched": True}


def attend(q: Any, k: Any, v: Any, scale: float, bias: Any) -> np.ndarray:
    """Per head, `(N, heads, T, D)`, back to `(N, T, heads·D)`."""
    scores = q @ k.swapaxes(-1, -2) * (scale or 1 / np.sqrt(q.shape[-1])) + bias
    y = special.softmax(scores, axis=-1) @ v
    return np.asarray(y.swapaxes(1, 2).reshape(len(y), y.shape[2], -1))


def mask_of(mask: Any, keys: int, value: float) -> Any:
    if mask is None:
        return 0.0
    if mask.ndim == 1:
        mask = np.arange(keys) < mask[:, None]
    mask = mask[:, None, None] if mask.ndim == 2 else mask[:, None]
    return np.where(mask > 0, 0.0, value)


def ahead(queries: int, keys: int, unidirectional: int) -> Any:
    allowed = np.arange(keys) <= np.arange(queries)[:, None] + keys - queries
    return np.where(allowed, 0.0, -3e38) if unidirectional else 0.0


def heads_of(x: np.ndarray, heads: int) -> np.ndarray:
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def multi_head_attention(
    query: np.ndarray, key: Any = None, value: Any = None, bias: Any = None, mask: Any = None, more: Any = None,
    past_key: Any = None, past_value: Any = None, num_heads: int = 1, scale: float = 0.0,
    mask_filter_value: float = -10000.0, unidirectional: int = 0,
) -> tuple[np.ndarray, ...]:  # fmt: skip
    if query.ndim == 5:
        q, k, v = (query[:, :, :, i].swapaxes(1, 2) for i in range(3))
        if bias is not None:
            q, k, v = (x + b.reshape(1, num_heads, 1, -1) for x, b in zip((q, k, v), np.split(bias, 3), strict=True))
    else:
        hidden = query.shape[2]
        parts = [0.0, 0.0, 0.0] if bias is None else [bias[:hidden], bias[hidden : 2 * hidden], bias[2 * hidden :]]
        q = heads_of(query + parts[0], num_heads)
        if value is None:
            k, v = (key[:, :, :, i].swapaxes(1, 2) for i in range(2))
        elif key.ndim == 4:
            k, v = key, value
        else:
            k, v = heads_of(key + parts[1], num_heads), heads_of(value + parts[2], num_heads)
    if past_key is not None:
        k, v = np.concatenate([past_key, k], 2), np.concatenate([past_value, v], 2)
    added = mask_of(mask, k.shape[2], mask_filter_value) + ahead(q.shape[2], k.shape[2], unidirectional)
    return attend(q, k, v, scale, added + (0.0 if more is None else more)), k, v


def attention(
    x: np.ndarray, weights: np.ndarray, bias: Any = None, mask: Any = None, past: Any = None, more: Any = None,
    num_heads: int = 1, qkv_hidden_sizes: Any = None, scale: float = 0.0, mask_filter_value: float = -10000.0,
    unidirectional: int = 0, **_: Any,
) -> tuple[np.ndarray, ...]:  # fmt: skip
    packed = x @ weights + (0.0 if bias is None else bias)
    cuts = [packed.shape[-1] // 3] * 3 if qkv_hidden_sizes is None else qkv_hidden_sizes
    q, k, v = (heads_of(part, num_heads) for part in np.split(packed, np.cumsum(cuts)[:2], axis=-1))
    if past is not None:
        k, v = np.concatenate([past[0], k], 2), np.concatenate([past[1], v], 2)
    added = mask_of(mask, k.shape[2], mask_filter_value) + ahead(q.shape[2], k.shape[2], unidirectional)
    y = attend(q, k, v, scale, added + (0.0 if more is None else more))
    return y, np.stack([k, v]) if qkv_hidden_sizes is None else y


def rotary_embedding(
    x: np.ndarray, ids: np.ndarray, cos: np.ndarray, sin: np.ndarray, interleaved: int = 0, num_heads: int = 0,
    rotary_embedding_dim: int = 0, **_: Any,
) -> np.ndarray:  # fmt: skip
    flat, part = x.ndim == 3, rotary_embedding_dim or 2 * cos.shape[1]
    heads = heads_of(x, num_heads or x.shape[2] // part) if flat else x
    if ids.ndim == 1:
        ids = ids + np.arange(heads.shape[2])[None]
    c, s = cos[ids][:, None], sin[ids][:, None]
    turned, rest = heads[..., :part], heads[..., part:]
    a, b = (turned[..., 0::2], turned[..., 1::2]) if interleaved else np.split(turned, 2, axis=-1)
    real, imaginary = a * c - b * s, a * s + b * c
    both = (
        np.stack([real, imaginary], -1).reshape(turned.shape) if interleaved else np.concatenate([real, imaginary], -1)
    )
    y = np.concatenate([both, rest], -1)
    return y.swapaxes(1, 2).reshape(x.shape) if flat else y


OPS = {
    f"{registry.CONTRIB}::{op}": f
    for op, f in (
        ("MultiHeadAttention", multi_head_attention),
        ("Attention", attention),
        ("RotaryEmbedding", rotary_embedding),
    )
}

QKV = {"q": (2, 3, 8), "k": (2, 5, 8), "v": (2, 5, 8)}
LENGTHS = np.array([2, 5], np.int32)
KEYS = np.array([[1, 1, 0, 1, 1], [0, 1, 1, 1, 0]], np.int32)
PAIRS = np.stack([np.tri(3, 5, 1), np.ones((3, 5))]).astype(np.int32)
PAST = {"pk": (2, 2, 4, 4), "pv": (2, 2, 4, 4)}
SELF = {"x": (2, 3, 6)}
ONE = {"w": (6, 24), "b": (24,)}
IDS = np.array([[0, 2, 4], [3, 1, 1]])
CACHES = {"c": (6, 2), "s": (6, 2)}
SHORT = {"rtol": 1e-5}

CASES: dict[str, tuple[Any, ...]] = {
    f"{op} {name}": (f"{outputs} = com.microsoft.{op}<{attributes}>({arguments})", inputs, options)
    for op, name, outputs, attributes, arguments, inputs, options in (
        ("MultiHeadAttention", "", "y", "num_heads=2", "q, k, v", QKV, BATCHED),
        ("MultiHeadAttention", "scale", "y", "num_heads=2, scale=0.3", "q, k, v", QKV, {}),
        ("MultiHeadAttention", "other width of values", "y", "num_heads=2", "q, k, v, b", {**QKV, "v": (2, 5, 6)},
         {"weights": {"b": (22,)}, "forms": ("static", "batch"), **BATCHED}),
        ("MultiHeadAttention", "bias", "y", "num_heads=2", "q, k, v, b", {**QKV, "b": (24,)},
         {"forms": ("static", "batch")}),
        ("MultiHeadAttention", "lengths", "y", "num_heads=2", "q, k, v, , m", {**QKV, "m": LENGTHS},
         {"forms": ("static",), **BATCHED}),
        ("MultiHeadAttention", "keys", "y", "num_heads=2", "q, k, v, , m", {**QKV, "m": KEYS}, BATCHED),
        ("MultiHeadAttention", "stored keys", "y", "num_heads=2, mask_filter_value=-5.0", "q, k, v, , m", QKV,
         {"weights": {"m": KEYS[:1]}, "runtime": False}),
        ("MultiHeadAttention", "pairs", "y", "num_heads=2", "q, k, v, , m", {**QKV, "m": PAIRS}, BATCHED),
        ("MultiHeadAttention", "more", "y", "num_heads=2", "q, k, v, , , r", {**QKV, "r": (1, 2, 3, 5)}, {}),
        ("MultiHeadAttention", "one way", "y", "num_heads=2, unidirectional=1", "q, q, q", {"q": (2, 3, 8)}, BATCHED),
        ("MultiHeadAttention", "past", "y, nk, nv", "num_heads=2", "q, k, v, , , , pk, pv",
         {**QKV, "k": (2, 3, 8), "v": (2, 3, 8), **PAST}, BATCHED),
        ("MultiHeadAttention", "present", "y0, y, nv", "num_heads=2", "q, k, v, , , , pk, pv",
         {**QKV, "k": (2, 3, 8), "v": (2, 3, 8), **PAST}, {"wrt": ["k", "pk"], "runtime": False}),
        ("MultiHeadAttention", "packed", "y", "num_heads=2", "q", {"q": (2, 3, 2, 3, 4)}, {"runtime": False}),
        ("MultiHeadAttention", "packed, bias", "y", "num_heads=2", "q, , , b", {"q": (2, 3, 2, 3, 4), "b": (24,)},
         {"runtime": False, "forms": ("static", "batch")}),
        ("MultiHeadAttention", "packed keys", "y", "num_heads=2", "q, k", {"q": (2, 3, 8), "k": (2, 5, 2, 2, 4)},
         {"runtime": False}),
        ("MultiHeadAttention", "another sequence", "y", "num_heads=2", "q, k, v, b",
         {"q": (2, 3, 8), "k": (2, 2, 5, 4), "v": (2, 2, 5, 4)},
         {"weights": {"b": np.arange(24) / 24 * np.repeat([1, 0, 0], 8)}, "forms": ("static", "batch")}),
        ("Attention", "", "y", "num_heads=2", "x, w, b", SELF, {"weights": ONE, **BATCHED}),
        ("Attention", "parameters", "y", "num_heads=2, scale=0.3", "x, w, b", {**SELF, **ONE},
         {"forms": ("static", "batch")}),
        ("Attention", "widths", "y", "num_heads=2, qkv_hidden_sizes=[8, 8, 4]", "x, w, b", SELF,
         {"weights": {"w": (6, 20), "b": (20,)}, **BATCHED}),
        ("Attention", "keys", "y", "num_heads=2", "x, w, b, m", {**SELF, "m": KEYS[:, 1:4]},
         {"weights": ONE, **BATCHED}),
        ("Attention", "pairs, one way", "y", "num_heads=2, unidirectional=1", "x, w, b, m",
         {**SELF, "m": PAIRS[:, :, :3]}, {"weights": ONE, **BATCHED}),
        ("Attention", "lengths", "y", "num_heads=2", "x, w, b, m", {**SELF, "m": np.array([2, 3], np.int32)},
         {"weights": ONE, "forms": ("static",)}),
        ("Attention", "more", "y", "num_heads=2", "x, w, b, , , r", {**SELF, "r": (2, 2, 3, 3)},
         {"weights": ONE, **BATCHED}),
        ("Attention", "past", "y, n", "num_heads=2", "x, w, b, , p", {**SELF, "p": (2, 2, 2, 4, 4)}, {"weights": ONE}),
        *(
            ("RotaryEmbedding", f"{name} {order}", "y", f"interleaved={order}{attributes}", "x, p, c, s",
             {"x": x, "p": ids}, {"weights": CACHES, "batched": ids.ndim == 2})
            for order in (0, 1)
            for name, attributes, x, ids in (
                ("3-D", "", (2, 3, 8), IDS),
                ("4-D", "", (2, 2, 3, 4), IDS),
                ("from a position", "", (2, 3, 8), np.array([2])),
                ("of a part", ", rotary_embedding_dim=4, num_heads=2", (2, 3, 12), IDS),
            )
        ),
    )
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_gradient(check: Any, case: tuple[Any, ...]) -> None:
    body, inputs, options = case
    check(body, inputs, ops=OPS, **options)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[2].get("runtime", True)])
def test_stand_ins_compute_what_onnxruntime_does(check: Any, name: str) -> None:
    body, inputs, options = CASES[name]
    check.forward(body, inputs, weights=options.get("weights"), ops=OPS)


@pytest.mark.parametrize(
    ("body", "inputs", "why"),
    [
        ("Attention<num_heads=2, do_rotary=1>(x, w, b)", {**SELF, **ONE}, "do_rotary"),
        ("Attention<num_heads=2>(x, w, b, m)", {**SELF, **ONE, "m": np.arange(4, dtype=np.int32)}, "begin and end"),
        (
            "Attention<num_heads=2>(x, w, b, m)",
            {**SELF, **ONE, "m": np.ones((2, 1, 3, 3), np.int32)},
            "a mask of 4 axes",
        ),
        ("RotaryEmbedding<is_packed_batching=1>(x, p, w, w)", {"x": (2, 3, 8), "p": IDS, "w": (6, 2)}, "different"),
        (
            "RotaryEmbedding<rotary_embedding_dim=4>(x, p, w, w)",
            {"x": (2, 3, 12), "p": IDS, "w": (6, 2)},
            "its number of heads",
        ),
        (
            "GroupQueryAttention<num_heads=2, kv_num_heads=1>(x, w, w)",
            {"x": (2, 3, 8), "w": (2, 3, 4)},
            "cache of keys",
        ),
        ("PackedAttention<num_heads=2>(x, w, w)", {"x": (2, 3, 8), "w": (2, 3, 4)}, "different lengths"),
    ],
)
def test_refusals(check: Any, body: str, inputs: dict[str, Any], why: str) -> None:
    model = check.model(f"y = com.microsoft.{body}", inputs)
    with pytest.raises(UnsupportedOpError, match=why):
        vjp(model, ["x"])
