"""Gradients of com.microsoft's ops but attention: against numpy stand-ins, which are checked against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import special

from pycam.errors import UnsupportedOpError
from pycam.grad import contrib, registry
from pycam.gradient import vjp

MODULE = "pycam.grad.contrib"
BATCHED = {"batched": True}


def gelu(x: np.ndarray, **_: Any) -> np.ndarray:
    return np.asarray(0.5 * x * (1 + special.erf(x / np.sqrt(2))))


def fast_gelu(x: np.ndarray, bias: Any = 0.0) -> np.ndarray:
    x = x + bias
    return np.asarray(0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))))


def silu(x: np.ndarray, alpha: float = 1.0) -> np.ndarray:
    return np.asarray(x * special.expit(alpha * x))


def swiglu(
    gate: np.ndarray,
    up: Any = None,
    activation_alpha: float = 1.0,
    activation_beta: float = 0.0,
    limit: float = 0.0,
    **_: Any,
) -> np.ndarray:
    gate, up = np.split(gate, 2, axis=-1) if up is None else (gate, up)
    if limit > 0:
        gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
    return silu(gate, activation_alpha) * (up + activation_beta)


def bias_split_gelu(x: np.ndarray, bias: np.ndarray) -> np.ndarray:
    left, right = np.split(x + bias, 2, axis=-1)
    return left * gelu(right)


ACTIVATIONS: dict[str, Any] = {
    "": lambda x: x,
    "Relu": lambda x: np.maximum(x, 0),
    "LeakyRelu": lambda x, a=0.01: np.where(x > 0, x, a * x),
    "ThresholdedRelu": lambda x, a=1.0: np.where(x > a, x, 0),
    "Elu": lambda x, a=1.0: np.where(x > 0, x, a * np.expm1(x)),
    "Sigmoid": special.expit,
    "Tanh": np.tanh,
    "HardSigmoid": lambda x, a=0.2, b=0.5: np.clip(a * x + b, 0, 1),
    "Clip": lambda x, a, b: np.clip(x, a, b),
    "Softplus": lambda x: np.logaddexp(x, 0),
    "Softsign": lambda x: x / (1 + np.abs(x)),
}


def fused_conv(
    x: np.ndarray,
    w: np.ndarray,
    b: Any = None,
    z: Any = None,
    activation: str = "",
    activation_params: Any = (),
    **_: Any,
) -> np.ndarray:
    """Stride 1, pads 1, a 3×3 kernel, one group."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    y = np.einsum("nchwij,mcij->nmhw", windows, w) + (0 if b is None else b[:, None, None]) + (0 if z is None else z)
    return np.asarray(ACTIVATIONS[activation](y, *activation_params))


def fused_gemm(
    a: np.ndarray,
    b: np.ndarray,
    c: Any = 0.0,
    activation: str = "",
    activation_alpha: Any = None,
    activation_beta: Any = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,  # the attribute's name
    transB: int = 0,
    **_: Any,
) -> np.ndarray:
    y = alpha * ((a.T if transA else a) @ (b.T if transB else b)) + beta * c
    return np.asarray(ACTIVATIONS[activation](y, *(p for p in (activation_alpha, activation_beta) if p is not None)))


def fused_matmul(
    a: np.ndarray,
    b: np.ndarray,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    transBatchA: int = 0,
    transBatchB: int = 0,
) -> np.ndarray:
    def operand(x: np.ndarray, batch: int, last: int) -> np.ndarray:
        x = np.moveaxis(x, 0, -2) if batch else x
        return x.swapaxes(-1, -2) if last and x.ndim > 1 else x

    return np.asarray(alpha * (operand(a, transBatchA, transA) @ operand(b, transBatchB, transB)))


def skip_layer_norm(
    x: np.ndarray, skip: np.ndarray, gamma: np.ndarray, beta: Any = None, bias: Any = None, epsilon: float = 1e-12
) -> tuple[np.ndarray, ...]:
    total = x + skip + (0 if bias is None else bias)
    mean, r = total.mean(-1, keepdims=True), 1 / np.sqrt(total.var(-1, keepdims=True) + epsilon)
    return (total - mean) * r * gamma + (0 if beta is None else beta), mean, r, total


def skip_rms_norm(
    x: np.ndarray, skip: np.ndarray, gamma: np.ndarray, bias: Any = None, epsilon: float = 1e-12
) -> tuple[np.ndarray, ...]:
    total = x + skip + (0 if bias is None else bias)
    r = 1 / np.sqrt((total**2).mean(-1, keepdims=True) + epsilon)
    return total * r * gamma, r, r, total


def group_norm(
    x: np.ndarray,
    gamma: np.ndarray,
    beta: np.ndarray,
    groups: int = 1,
    epsilon: float = 1e-5,
    channels_last: int = 1,
    activation: int = 0,
) -> np.ndarray:
    x = np.moveaxis(x, -1, 1) if channels_last else x
    grouped = x.reshape(len(x), groups, -1)
    centred = grouped - grouped.mean(-1, keepdims=True)
    y = (centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)).reshape(x.shape)
    y = y * gamma[:, None, None] + beta[:, None, None]
    y = silu(y) if activation else y
    return np.moveaxis(y, 1, -1) if channels_last else y


def skip_group_norm(
    x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, skip: np.ndarray, bias: Any = 0.0, **attributes: Any
) -> tuple[np.ndarray, ...]:
    last = attributes.get("channels_last", 1)
    if skip.ndim == 2:
        skip = skip[:, None, None] if last else skip[:, :, None, None]
    total = x + skip + (bias if last else np.reshape(bias, (-1, 1, 1)))
    return group_norm(total, gamma, beta, **attributes), total


def pool(x: np.ndarray, kernel_shape: Any = (2, 2), **_: Any) -> np.ndarray:
    n, h, w, c = x.shape
    return np.asarray(x.reshape(n, h // 2, 2, w // 2, 2, c).max(axis=(2, 4)))


def cdist(a: np.ndarray, b: np.ndarray, metric: str) -> np.ndarray:
    squared = ((a[:, None] - b[None]) ** 2).sum(-1)
    return np.asarray(np.sqrt(squared) if metric == "euclidean" else squared)


def dequantised(a: np.ndarray, q: np.ndarray, scales: np.ndarray, *rest: Any, **attributes: Any) -> np.ndarray:
    """MatMulNBits of 4 bits with one block of 16 per row."""
    zero = rest[0] if rest and rest[0] is not None else None
    nibbles = np.stack([q & 15, q >> 4], axis=-1).reshape(attributes["N"], -1)[:, : attributes["K"]].astype(float)
    offset = 8.0 if zero is None else (zero[:, :1] & 15 if zero.dtype == np.uint8 else zero).astype(float)
    y = a @ ((nibbles - offset) * scales.reshape(-1, 1)).T
    return np.asarray(y + rest[2] if len(rest) > 2 else y)


OPS: dict[str, Any] = {
    "Gelu": gelu,
    "FastGelu": fast_gelu,
    "BiasGelu": lambda a, b: gelu(a + b),
    "BiasSplitGelu": bias_split_gelu,
    "QuickGelu": lambda x, alpha=1.702: silu(x, alpha),
    "ScaledSiLU": lambda x, scale=None, alpha=1.0: silu(x * (alpha if scale is None else scale)),
    "SwiGLU": swiglu,
    "FusedConv": fused_conv,
    "FusedGemm": fused_gemm,
    "FusedMatMul": fused_matmul,
    "TransposeMatMul": fused_matmul,
    "GemmFastGelu": lambda x, w, bias=0.0: fast_gelu(x @ w + bias),
    "MatMulNBits": dequantised,
    "Inverse": np.linalg.inv,
    "CDist": cdist,
    "SkipLayerNormalization": skip_layer_norm,
    "SkipSimplifiedLayerNormalization": skip_rms_norm,
    "GroupNorm": group_norm,
    "SkipGroupNorm": skip_group_norm,
    "BiasAdd": lambda x, bias, skip: x + bias + skip,
    "BiasDropout": lambda x, bias, residual=0.0: x + bias + residual,
    "GatedAdd": lambda x, y, gate: x + y * gate,
    "ExpandDims": lambda x, axis: np.expand_dims(x, int(axis)),
    "Trilu": lambda x, k=0, upper=1: np.triu(x, k) if upper else np.tril(x, k),
    "Pad": lambda x, pads, value=0.0, mode="constant": np.pad(
        x, list(zip(*np.reshape(pads, (2, -1)), strict=True)), constant_values=float(np.reshape(value, ()))
    ),
    "GatherND": lambda x, indices, **_: x[tuple(np.moveaxis(indices, -1, 0))],
    "NhwcMaxPool": pool,
}
STAND_INS = {f"{registry.CONTRIB}::{op}": f for op, f in OPS.items()}

SEQUENCE = {"x": (2, 3, 4)}
CASES: dict[str, tuple[Any, ...]] = {}


def case(name: str, body: str, inputs: dict[str, Any], *, forward: bool = True, **options: Any) -> None:
    """One more case; `forward` says that onnxruntime runs the op on a CPU in float32."""
    body = f"y = com.microsoft.{body}" if not body.startswith("z") else body
    CASES[name] = (body, inputs, {"runtime": forward, **options})


case("Gelu", "Gelu(x)", SEQUENCE, **BATCHED)
case("FastGelu", "FastGelu(x)", SEQUENCE, **BATCHED)
case("FastGelu, bias", "FastGelu(x, b)", {**SEQUENCE, "b": (4,)})
case("BiasGelu", "BiasGelu(x, b)", SEQUENCE, weights={"b": (4,)}, **BATCHED)
case("BiasSplitGelu", "BiasSplitGelu(x, b)", {**SEQUENCE, "b": (4,)}, forward=False)
case("QuickGelu", "QuickGelu(x)", SEQUENCE, **BATCHED)
case("QuickGelu, alpha", "QuickGelu<alpha=0.7>(x)", SEQUENCE, **BATCHED)
case("ScaledSiLU", "ScaledSiLU<alpha=0.7>(x)", SEQUENCE, **BATCHED)
case("ScaledSiLU, scale", "ScaledSiLU(x, s)", {**SEQUENCE, "s": ()})
case("SwiGLU", "SwiGLU(x, u)", {**SEQUENCE, "u": (2, 3, 4)}, forward=False, **BATCHED)
case("SwiGLU, packed", "SwiGLU<activation_alpha=1.7, activation_beta=1.0, limit=0.8>(x)", SEQUENCE, forward=False)

_CONV = {"w": (2, 3, 3, 3), "b": (2,)}
for _activation, _params in {
    "Relu": "", "Tanh": "", "Sigmoid": "", "LeakyRelu": "0.3", "Clip": "-0.5, 2.0", "HardSigmoid": "0.3, 0.4"
}.items():  # fmt: skip
    _given = f'activation="{_activation}"' + (f", activation_params=[{_params}]" if _params else "")
    _form = f"FusedConv<{_given}, pads=[1,1,1,1], kernel_shape=[3,3]>"
    case(f"FusedConv {_activation}", f"{_form}(x, w, b)", {"x": (2, 3, 3, 4)}, weights=_CONV, **BATCHED)
    case(
        f"FusedConv {_activation}, sum",
        f"{_form}(x, w, b, z)",
        {"x": (2, 3, 3, 4), "z": (2, 2, 3, 4)},
        weights=_CONV,
        **BATCHED,
    )
case(
    "FusedConv, bias",
    'FusedConv<activation="Relu", pads=[1,1,1,1], kernel_shape=[3,3]>(x, w, b)',
    {"x": (2, 3, 3, 4), "b": (2,)},
    weights={"w": (2, 3, 3, 3)},
)
for _activation, _params in {
    "Relu": (), "LeakyRelu": (0.3,), "Elu": (0.7,), "Sigmoid": (), "Tanh": (), "HardSigmoid": (0.3, 0.4),
    "Softplus": (), "Softsign": (), "ThresholdedRelu": (0.4,),
}.items():  # fmt: skip
    _given = ", ".join(f"activation_{k}={v}" for k, v in zip(("alpha", "beta"), _params, strict=False))
    _form = f'FusedGemm<activation="{_activation}"' + (f", {_given}" if _given else "")
    case(f"FusedGemm {_activation}", f"{_form}, transB=1>(x, w, b)", {"x": (2, 3)}, weights={"w": (4, 3), "b": (4,)})
case(
    "FusedGemm, all",
    'FusedGemm<activation="Tanh", alpha=0.5, beta=0.7, transA=1>(a, b, c)',
    {"a": (3, 2), "b": (3, 4), "c": (2, 1)},
)
for _attributes, _a, _b in (
    ("alpha=0.5", (2, 3, 4), (2, 4, 5)),
    ("transA=1", (2, 4, 3), (2, 4, 5)),
    ("transB=1, alpha=2.0", (2, 3, 4), (2, 5, 4)),
    ("transA=1, transB=1", (2, 4, 3), (5, 4)),
    ("transBatchA=1", (3, 2, 4), (2, 4, 5)),
    ("transBatchB=1, transB=1", (2, 2, 3, 4), (5, 2, 2, 4)),
    ("transBatchA=1, transA=1, transBatchB=1", (4, 2, 3), (4, 2, 5)),
    ("alpha=0.5", (4,), (2, 4, 5)),
):
    _batched = {"batched": len(_a) == len(_b) and "transBatch" not in _attributes}
    case(f"FusedMatMul {_attributes} {_a}", f"FusedMatMul<{_attributes}>(a, b)", {"a": _a, "b": _b}, **_batched)
case("TransposeMatMul", "TransposeMatMul<transB=1>(a, b)", {"a": (2, 3, 4), "b": (2, 5, 4)}, **BATCHED)
case("GemmFastGelu", "GemmFastGelu(x, w, b)", SEQUENCE, weights={"w": (4, 5), "b": (5,)}, forward=False)

_Q = np.random.default_rng(3).integers(0, 256, (3, 1, 8)).astype(np.uint8)
_NBITS = "MatMulNBits<K=16, N=3, bits=4, block_size=16>"
_SCALES = np.array([0.5, 1.0, 0.25])
for _name, _inputs, _more in (
    ("", "", {}),
    (", zero points", ", p", {"p": np.array([[3], [7], [9]], np.uint8)}),
    (", float zero points", ", p", {"p": np.array([[3.5], [7.0], [9.0]])}),
    (", bias", ", , , b", {"b": np.array([1.0, 2.0, 3.0])}),
):
    case(
        f"MatMulNBits{_name}",
        f"{_NBITS}(a, q, s{_inputs})",
        {"a": (2, 3, 16)},
        weights={"q": _Q, "s": _SCALES, **_more},
        **BATCHED,
    )
case("MatMulNBits, short", "MatMulNBits<K=13, N=3, bits=4, block_size=16>(a, q, s)", {"a": (2, 13)},
     weights={"q": _Q, "s": _SCALES})  # fmt: skip
case("Inverse", "Inverse(x)", {"x": np.eye(3) * 3 + np.arange(18).reshape(2, 3, 3) % 5}, **BATCHED)
for _metric in ("euclidean", "sqeuclidean"):
    case(f"CDist {_metric}", f'CDist<metric="{_metric}">(a, b)', {"a": (3, 4), "b": (2, 4)})

_NORM = {"g": (4,), "e": (4,), "b": (4,)}
case("SkipLayerNormalization", "SkipLayerNormalization<epsilon=0.01>(x, s, g, e, b)", {**SEQUENCE, "s": (2, 3, 4)},
     weights=_NORM, **BATCHED)  # fmt: skip
case("SkipLayerNormalization, parameters", "SkipLayerNormalization<epsilon=0.01>(x, s, g, e)",
     {**SEQUENCE, "s": (3, 4), "g": (4,), "e": (4,)})  # fmt: skip
case("SkipLayerNormalization, sum",
     "z, , , t = com.microsoft.SkipLayerNormalization<epsilon=0.01>(x, s, g, e) y = Mul(z, t)",
     {**SEQUENCE, "s": (2, 3, 4)}, weights=_NORM, **BATCHED)  # fmt: skip
_FORM = "SkipSimplifiedLayerNormalization<epsilon=0.01>"
case("SkipSimplifiedLayerNormalization", f"{_FORM}(x, s, g, b)", {**SEQUENCE, "s": (2, 3, 4)},
     weights=_NORM, **BATCHED)  # fmt: skip
case("SkipSimplifiedLayerNormalization, parameters", f"{_FORM}(x, s, g, b)",
     {**SEQUENCE, "s": (2, 3, 4), "g": (4,), "b": (4,)})  # fmt: skip
case("SkipSimplifiedLayerNormalization, sum", f"z, , , t = com.microsoft.{_FORM}(x, s, g) y = Mul(z, t)",
     {**SEQUENCE, "s": (2, 3, 4), "g": (4,)})  # fmt: skip
_GPU: dict[str, Any] = {"forward": False, "forms": ("static", "batch")}  # the number of channels must be known
_IMAGE = {"x": (2, 2, 3, 4)}
case("GroupNorm", "GroupNorm<groups=2, epsilon=0.01>(x, g, e)", _IMAGE, weights=_NORM, **_GPU, **BATCHED)
case("GroupNorm, SiLU, channels second", "GroupNorm<groups=2, activation=1, channels_last=0>(x, g, e)",
     {"x": (2, 4, 2, 3), "g": (4,), "e": (4,)}, **_GPU)  # fmt: skip
case("SkipGroupNorm", "SkipGroupNorm<groups=2, activation=1>(x, g, e, s, b)", {**_IMAGE, "s": (2, 4)},
     weights=_NORM, **_GPU, **BATCHED)  # fmt: skip
case("SkipGroupNorm, channels second", "SkipGroupNorm<groups=2, channels_last=0>(x, g, e, s, b)",
     {"x": (2, 4, 2, 3), "s": (2, 4, 2, 3)}, weights=_NORM, **_GPU)  # fmt: skip

case("BiasAdd", "BiasAdd(x, b, s)", {**SEQUENCE, "b": (4,), "s": (2, 3, 4)}, forward=False)
case("BiasDropout", "BiasDropout(x, b, s)", {**SEQUENCE, "b": (4,), "s": (2, 3, 4)}, forward=False)
case("GatedAdd", "GatedAdd(x, u, t)", {**SEQUENCE, "u": (2, 3, 4), "t": (2, 3, 1)}, **BATCHED)
case("ExpandDims", "ExpandDims(x, a)", SEQUENCE, weights={"a": np.array(-1, np.int32)})
case("Trilu", "Trilu<upper=0>(x, k)", {"x": (2, 3, 3)}, weights={"k": np.array(1)}, **BATCHED)
case("Pad", "Pad(x, p)", {"x": (2, 3)}, weights={"p": np.array([0, 1, 0, 2])}, **BATCHED)
case("GatherND", "GatherND(x, i)", {"x": (3, 4)}, weights={"i": np.array([[0, 1], [2, 3], [0, 1]])})
case("NhwcMaxPool", "NhwcMaxPool<kernel_shape=[2,2], strides=[2,2]>(x)", {"x": (2, 4, 6, 3)}, forward=False, **BATCHED)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_gradient(check: Any, case: tuple[Any, ...]) -> None:
    body, inputs, options = case
    check(body, inputs, ops=STAND_INS, **options)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[2]["runtime"]])
def test_stand_ins_compute_what_onnxruntime_does(check: Any, name: str) -> None:
    """In float32, by comparing the forward pass of the two."""
    body, inputs, options = CASES[name]
    check.forward(body, inputs, weights=options.get("weights"), ops=STAND_INS)


def test_every_rule_has_a_case() -> None:
    ops = {
        op for domain, op in registry.declared() if domain == registry.CONTRIB and registry.differentiates(op, domain)
    }
    own = {op for op in ops if _module(op) == MODULE}
    cased = {body.split("com.microsoft.")[1].split("<")[0].split("(")[0] for body, *_ in CASES.values()}
    assert own - cased == {"GridSample"}  # see below


def _module(op: str) -> str:
    expand = registry.EXPANSIONS.get((registry.CONTRIB, op))
    rules = [r.vjp for (d, o, _), r in registry.RULES.items() if (d, o) == (registry.CONTRIB, op)]
    return (expand or rules[0]).__module__


@pytest.mark.parametrize(("mode", "standard"), [("bilinear", "linear"), ("nearest", "nearest")])
def test_grid_sample_is_the_standards(check: Any, mode: str, standard: str) -> None:
    """The reference evaluator has no GridSample of com.microsoft: it is given the standard's gradient to compare."""
    rng = np.random.default_rng(0)
    inputs = {"x": rng.normal(size=(1, 2, 4, 5)), "t": rng.uniform(-0.9, 0.9, (1, 3, 3, 2))}
    cotangent = rng.normal(size=(1, 2, 3, 3))
    grads = []
    for op, name in (("GridSample", standard), ("com.microsoft.GridSample", mode)):
        model = check.model(f'y = {op}<mode="{name}", align_corners=1>(x, t)', inputs)
        nodes = vjp(model, ["x"])
        grads.append(check.run(nodes, {**inputs, "y.cotangent": cotangent}, ["y", "x.gradient"]))
    for want, got in zip(*grads, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_unpacking_of_weights(bits: int) -> None:
    """Low bits first: as onnxruntime's MatMulNBits reads them."""
    numbers = np.random.default_rng(0).integers(0, 1 << bits, (3, 16))
    shifted = numbers.reshape(3, -1, 8 // bits) << np.arange(0, 8, bits)
    np.testing.assert_array_equal(contrib.unpack(shifted.sum(-1).astype(np.uint8), bits), numbers)


def test_kinks_of_fused_activations(check: Any) -> None:
    """Those of the activations themselves: 0 for Relu and at the bounds of Clip, α for LeakyRelu."""
    weights = {"w": np.eye(3), "b": np.zeros(3)}
    for given, expected in (
        ('activation="Relu"', [0, 0, 1]),
        ('activation="LeakyRelu", activation_alpha=0.5', [0.5, 0.5, 1]),
        ('activation="HardSigmoid", activation_alpha=1.0, activation_beta=0.0', [0, 0, 0]),
    ):
        body = f"y = com.microsoft.FusedGemm<{given}>(x, w, b)"
        got = check.gradient(body, {"x": np.array([[-1.0, 0.0, 1.0]])}, weights=weights, ops=STAND_INS)
        assert got.tolist() == [expected], given


@pytest.mark.parametrize(
    ("body", "inputs", "why"),
    [
        ('FusedGemm<activation="ScaledTanh">(x, w)', {"x": (2, 3), "w": (3, 4)}, "its activation is ScaledTanh"),
        ('FusedGemm<activation="Elu", activation_alpha=-1.0>(x, w)', {"x": (2, 3), "w": (3, 4)}, "negative alpha"),
        ('CDist<metric="cosine">(x, w)', {"x": (2, 3), "w": (4, 3)}, "metric=cosine"),
        ("MatMulNBits<K=16, N=3, bits=4, block_size=16>(x, w, s)", {"x": (2, 16), "w": _Q, "s": _SCALES}, "computed"),
        ("GatedAdd(x, w, s, v)", {"x": (2, 3), "w": (2, 3), "s": (2, 4), "v": (4, 1)}, "projected"),
        ("Rfft(x)", {"x": (2, 4)}, "CUDA only: export the model with DFT"),
        ("BiasSoftmax<axis=1>(x, w)", {"x": (2, 4), "w": (1, 4)}, "for GPUs only"),
        ("BiasDropout(x, w, , , t)", {"x": (2, 4), "w": (4,), "t": np.array(True)}, "training mode"),
    ],
)
def test_refusals(check: Any, body: str, inputs: dict[str, Any], why: str) -> None:
    model = check.model(f"y = com.microsoft.{body}", inputs)
    with pytest.raises(UnsupportedOpError, match=why):
        vjp(model, ["x"])
