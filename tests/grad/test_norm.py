"""Gradients of the normalisations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pycam.errors import UnsupportedOpError
from pycam.gradient import vjp

MODULE = "pycam.grad.norm"
BATCHED = {"batched": True}
POSITIVE = np.array([0.5, 1.5, 2.0])


def lrn(x: np.ndarray, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> np.ndarray:
    """The reference evaluator's LRN mixes up batch and channels: this one is written from the specification."""
    total = np.zeros_like(x)
    for c in range(x.shape[1]):
        window = x[:, max(0, c - (size - 1) // 2) : c + -(-(size - 1) // 2) + 1]
        total[:, c] = (window**2).sum(axis=1)
    return x / (bias + alpha / size * total) ** beta


def group_norm(
    x: np.ndarray, scale: np.ndarray, bias: np.ndarray, num_groups: int, epsilon: float = 1e-5, **_: Any
) -> Any:
    """The reference evaluator has none for opset 21, where scale and bias are per channel."""
    grouped = x.reshape(x.shape[0], num_groups, -1)
    centred = grouped - grouped.mean(axis=2, keepdims=True)
    normal = (centred / np.sqrt((centred**2).mean(axis=2, keepdims=True) + epsilon)).reshape(x.shape)
    per_channel = (-1, *[1] * (x.ndim - 2))
    return normal * scale.reshape(per_channel) + bias.reshape(per_channel)


def rms_norm(x: np.ndarray, scale: np.ndarray, axis: int = -1, epsilon: float = 1e-5, **_: Any) -> np.ndarray:
    axes = tuple(range(axis % x.ndim, x.ndim))
    return np.asarray(x / np.sqrt((x**2).mean(axis=axes, keepdims=True) + epsilon) * scale)


def lp_norm(x: np.ndarray, axis: int = -1, p: int = 2) -> np.ndarray:
    return np.asarray(x / np.linalg.norm(x, ord=p, axis=axis, keepdims=True))


CASES: dict[str, tuple[Any, ...]] = {}

_STORED = {"s": (3,), "b": (3,), "m": (3,), "v": POSITIVE}
for _shape in ((2, 3), (2, 3, 4), (2, 3, 2, 2), (2, 3, 2, 1, 2)):
    _options = {"weights": _STORED, **BATCHED}
    CASES[f"BatchNormalization {_shape}"] = ("y = BatchNormalization(x, s, b, m, v)", {"x": _shape}, _options)
CASES["BatchNormalization, epsilon"] = (
    "y = BatchNormalization<epsilon=0.3>(x, s, b, m, v)",
    {"x": (2, 3, 2)},
    {"weights": _STORED, **BATCHED},
)
CASES["BatchNormalization, computed"] = (
    "y = BatchNormalization<epsilon=0.3>(x, s, b, m, v)",
    {"x": (2, 3, 2), **_STORED},
    {"wrt": ["x"]},
)

for _axis, _s in ((-1, (4,)), (1, (3, 4)), (2, (4,)), (-2, (3, 4)), (0, (2, 3, 4)), (-2, (4,)), (1, (1, 1))):
    _form = f"LayerNormalization<axis={_axis}, epsilon=0.01>"
    CASES[f"{_form} {_s}"] = (f"y = {_form}(x, s, b)", {"x": (2, 3, 4), "s": _s, "b": _s})
_options = {"weights": {"s": (4,), "b": (4,)}, **BATCHED}
CASES["LayerNormalization"] = ("y = LayerNormalization(x, s, b)", {"x": (2, 3, 4)}, _options)
CASES["LayerNormalization without B"] = ("y = LayerNormalization(x, s)", {"x": (2, 3, 4)}, _options)
CASES["LayerNormalization of one"] = (
    "y = LayerNormalization(x, s)",
    {"x": (2, 1)},
    {"weights": {"s": (1,)}, **BATCHED},
)

for _axis, _s in ((-1, (4,)), (1, (3, 4)), (-2, (4,))):
    _form = f"RMSNormalization<axis={_axis}, epsilon=0.01>"
    _options = {"opset": 23, "ops": {"RMSNormalization": rms_norm}}
    CASES[f"{_form} {_s}"] = (f"y = {_form}(x, s)", {"x": (2, 3, 4), "s": _s}, _options)
_options = {"opset": 23, "ops": {"RMSNormalization": rms_norm}, "weights": {"s": (4,)}, **BATCHED}
CASES["RMSNormalization"] = ("y = RMSNormalization(x, s)", {"x": (2, 3, 4)}, _options)

for _shape in ((2, 3, 4), (2, 3, 2, 3), (1, 3, 2, 1, 2)):
    _options = {"weights": {"s": (3,), "b": (3,)}, **BATCHED}
    _form = "InstanceNormalization<epsilon=0.01>"
    CASES[f"{_form} {_shape}"] = (f"y = {_form}(x, s, b)", {"x": _shape}, _options)
for _groups, _shape in ((2, (2, 4, 3)), (1, (2, 4, 2, 2)), (4, (2, 4, 2, 2)), (2, (2, 4, 1, 2, 2)), (2, (2, 4))):
    _options = {"weights": {"s": (4,), "b": (4,)}, "ops": {"GroupNormalization": group_norm}, **BATCHED}
    _form = f"GroupNormalization<num_groups={_groups}, epsilon=0.01>"
    CASES[f"{_form} {_shape}"] = (f"y = {_form}(x, s, b)", {"x": _shape}, _options)

for _p in (1, 2):
    for _axis in (-1, 1):
        _options = {"ops": {"LpNormalization": lp_norm}, **BATCHED}
        _form = f"LpNormalization<p={_p}, axis={_axis}>"
        CASES[_form] = (f"y = {_form}(x)", {"x": (2, 3, 4)}, _options)

for _size in (1, 2, 3, 4, 5, 9):
    for _shape in ((2, 6), (2, 6, 3), (2, 6, 1, 2), (1, 6, 2, 1, 2)):
        _options = {"ops": {"LRN": lrn}, "runtime": _size % 2 == 1 and len(_shape) == 4, **BATCHED}
        _form = f"LRN<size={_size}, alpha=0.7, beta=0.6, bias=1.3>"
        CASES[f"{_form} {_shape}"] = (f"y = {_form}(x)", {"x": _shape}, _options)
CASES["LRN"] = ("y = LRN<size=5>(x)", {"x": (2, 6, 1, 2)}, {"ops": {"LRN": lrn}, **BATCHED})


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_gradient(check: Any, case: tuple[Any, ...]) -> None:
    body, inputs, *options = case
    check(body, inputs, **(options[0] if options else {}))


def test_every_rule_has_a_case(check: Any) -> None:
    assert check.untested(MODULE, CASES.values()) == set()
    without = [case for name, case in CASES.items() if not name.startswith("LRN")]
    assert check.untested(MODULE, without) == {("LRN", 0)}


@pytest.mark.parametrize("body", ["y = LayerNormalization(x, s)", "y = LayerNormalization<axis=1>(x, s)"])
def test_layer_norm_far_from_0(check: Any, body: str) -> None:
    """In float32, where `mean(x²) − μ²` would lose most digits."""
    x = 100.0 + np.random.default_rng(0).normal(size=(2, 16)).round(3)
    check(body, {"x": x}, weights={"s": (16,)}, rtol=1e-5)


def test_norm_of_0_has_gradient_0(check: Any) -> None:
    ops = {"LpNormalization": lambda x, **_: x}  # the forward of a zero vector is not what is tested
    got = check.gradient("y = LpNormalization(x)", {"x": np.array([[0.0, 0.0]])}, ops=ops)
    assert got.tolist() == [[0, 0]]


def test_training_mode_is_refused(check: Any) -> None:
    model = check.model(
        "y, rm, rv = BatchNormalization<training_mode=1>(x, s, b, m, v)", {"x": (2, 3, 4)}, weights=_STORED
    )
    with pytest.raises(UnsupportedOpError, match=r"BatchNormalization \(node .*node0.*, opset 21\).*training mode"):
        vjp(model, ["x"])


def test_gradient_through_statistics_is_refused(check: Any) -> None:
    """A score that reads the mean, and BatchNormalization by statistics of the input: errors, not wrong numbers."""
    model = check.model("z, mean = LayerNormalization(x, s) y = Add(z, mean)", {"x": (2, 3)}, weights={"s": (3,)})
    with pytest.raises(UnsupportedOpError, match=r"LayerNormalization \(node .*node0.*, opset 21\).*Mean or InvStdDev"):
        vjp(model, ["x"])
    body = "mean = ReduceMean<keepdims=0>(x, a) y = BatchNormalization(x, s, b, mean, v)"
    model = check.model(body, {"x": (2, 3)}, weights={**_STORED, "a": np.array([0])})
    with pytest.raises(UnsupportedOpError, match=r"no gradient rule for input 3 of BatchNormalization \(node .*node1"):
        vjp(model, ["x"])
