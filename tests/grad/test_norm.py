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


def layer_norm(
    x: np.ndarray, scale: np.ndarray, bias: np.ndarray, axis: int = -1, epsilon: float = 1e-5, **_: Any
) -> tuple[np.ndarray, ...]:
    """The reference evaluator computes the statistics in float32."""
    axes = tuple(range(axis % x.ndim, x.ndim))
    mean, r = x.mean(axis=axes, keepdims=True), 1 / np.sqrt(x.var(axis=axes, keepdims=True) + epsilon)
    return (x - mean) * r * scale + bias, mean, r


def mean_variance_norm(x: np.ndarray, axes: Any = (0, 2, 3)) -> np.ndarray:
    """The function that onnx gives for it computes in float32."""
    centred = x - x.mean(axis=tuple(axes), keepdims=True)
    return np.asarray(centred / (np.sqrt((centred**2).mean(axis=tuple(axes), keepdims=True)) + 1e-9))


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

CASES["BatchNormalization, all computed"] = (
    "y = BatchNormalization<epsilon=0.3>(x, s, b, m, v)",
    {"x": (2, 3, 2, 2), **_STORED},
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

for _outputs, _name in (("z, y", "mean"), ("z, m, y", "deviation"), ("z, m, r", "all")):
    _body = f"{_outputs} = LayerNormalization<axis=1, epsilon=0.01, stash_type=11>(x, s, b)"
    _body += " u = Mul(z, m) y = Add(u, r)" if _name == "all" else ""
    _options = {"wrt": ["x", "s", "b"] if _name == "all" else ["x"], "ops": {"LayerNormalization": layer_norm}}
    _options["runtime"] = False  # which computes the statistics in float32 only
    CASES[f"LayerNormalization, {_name}"] = (_body, {"x": (2, 3, 4), "s": (3, 4), "b": (3, 4)}, _options)

for _axes in ([0, 2, 3], [0, 1, 2, 3], [2, 3], [1]):
    _form = f"MeanVarianceNormalization<axes={_axes}>"
    _options = {"ops": {"MeanVarianceNormalization": mean_variance_norm}, "batched": 0 not in _axes}
    CASES[_form] = (f"y = {_form}(x)", {"x": (2, 3, 2, 4)}, _options)

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

CASES["MeanVarianceNormalization"] = (
    "y = MeanVarianceNormalization(x)",
    {"x": (2, 3, 2, 4)},
    {"ops": {"MeanVarianceNormalization": mean_variance_norm}},
)
CASES["InstanceNormalization, computed"] = (
    "y = InstanceNormalization(x, s, b)",
    {"x": (2, 3, 2, 3), "s": (3,), "b": (3,)},
)
CASES["GroupNormalization, computed"] = (
    "y = GroupNormalization<num_groups=2>(x, s, b)",
    {"x": (2, 4, 2, 2), "s": (4,), "b": (4,)},
    {"ops": {"GroupNormalization": group_norm}},
)
for _axis in (-1, 1):
    _form = f"SimplifiedLayerNormalization<axis={_axis}, epsilon=0.01>"
    _s = (3, 4)[_axis:] if _axis < 0 else (3, 4)
    CASES[_form] = (
        f"y = {_form}(x, s)",
        {"x": (2, 3, 4), "s": _s},
        {"ops": {"SimplifiedLayerNormalization": rms_norm}},
    )

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


def test_statistics_that_depend_on_the_input(check: Any) -> None:
    """BatchNormalization by the batch's own mean: its gradient flows through input 3."""
    body = "mean = ReduceMean<keepdims=0>(x, a) y = BatchNormalization(x, s, b, mean, v)"
    check(body, {"x": (2, 3)}, weights={**{k: v for k, v in _STORED.items() if k != "m"}, "a": np.array([0])})


def test_constant_input_of_mean_variance_norm(check: Any) -> None:
    got = check.gradient(
        "y = MeanVarianceNormalization<axes=[1]>(x)",
        {"x": np.full((1, 2), 3.0)},
        [[1.0, 0.0]],
        ops={"MeanVarianceNormalization": mean_variance_norm},
        runtime=False,  # the gradient is as large as 1e9
    )
    np.testing.assert_allclose(got, [[5e8, -5e8]])


def test_gradient_through_the_simplified_deviation_is_refused(check: Any) -> None:
    body = "z, y = SimplifiedLayerNormalization(x, s)"
    model = check.model(body, {"x": (2, 3)}, weights={"s": (3,)})
    with pytest.raises(UnsupportedOpError, match=r"SimplifiedLayerNormalization \(node .*node0.*InvStdVar"):
        vjp(model, ["x"])
