"""Gradients of the elementwise ops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pycam.errors import LayerError, UnsupportedOpError
from pycam.gradient import vjp

MODULE = "pycam.grad.elementwise"
BATCHED = {"batched": True}


def uniform(low: float, high: float, *shape: int) -> np.ndarray:
    return np.random.default_rng(5).uniform(low, high, shape)


CASES: dict[str, tuple[Any, ...]] = {}

# Functions of one variable, on a part of their domain away from kinks.
for _op in ("Exp", "Neg", "Abs", "Sin", "Cos", "Tan", "Atan", "Sinh", "Cosh", "Asinh", "Erf", "Reciprocal", "Identity"):
    CASES[_op] = (f"y = {_op}(x)", {"x": (2, 3, 2)}, BATCHED)
for _op in ("Asin", "Acos", "Atanh"):
    CASES[_op] = (f"y = {_op}(x)", {"x": uniform(-0.95, 0.95, 3, 4)}, BATCHED)
for _op in ("Sqrt", "Log"):
    CASES[_op] = (f"y = {_op}(x)", {"x": uniform(0.1, 5, 3, 4)}, BATCHED)
CASES["Acosh"] = ("y = Acosh(x)", {"x": uniform(1.1, 5, 3, 4)}, BATCHED)
CASES["scalar"] = ("y = Exp(x)", {"x": 0.3})

# Two operands, broadcast in every direction.
for _op in ("Add", "Sub", "Mul", "Div", "Pow"):
    for _a, _b in [
        ((2, 3), (2, 3)),
        ((2, 3), (3,)),
        ((3,), (2, 3)),
        ((2, 1, 3), (4, 1)),
        ((1, 3), (2, 1)),
        ((1, 1), (2, 3)),
        ((2, 3), ()),
        ((), (2, 3)),
    ]:
        _inputs = {"a": uniform(0.5, 2, *_a), "b": uniform(0.6, 2.1, *_b)}
        CASES[f"{_op} {_a} {_b}"] = (f"y = {_op}(a, b)", _inputs)
    CASES[f"{_op} batched"] = (f"y = {_op}(a, b)", {"a": uniform(0.5, 2, 2, 3), "b": uniform(1, 2, 2, 1)}, BATCHED)
    CASES[f"{_op} constant"] = (f"y = {_op}(a, w)", {"a": uniform(0.5, 2, 2, 3)}, {"weights": {"w": (3,)}, **BATCHED})

# x to a constant power; a negative base where the exponent is whole.
for _e in (-1.5, 0.0, 0.5, 1.0, 1.5):
    _options = {"weights": {"e": _e}, **BATCHED}
    CASES[f"Pow {_e}"] = ("y = Pow(x, e)", {"x": uniform(0.5, 2, 2, 3)}, _options)
for _e in (-2.0, 2.0, 3.0):
    CASES[f"Pow {_e}"] = ("y = Pow(x, e)", {"x": (2, 3)}, {"weights": {"e": _e}, **BATCHED})
CASES["Pow whole"] = ("y = Pow(x, e)", {"x": (2, 3)}, {"weights": {"e": np.array([2, 3, 0])}, **BATCHED})
CASES["Pow wider exponent"] = ("y = Pow(x, e)", {"x": (3,)}, {"weights": {"e": np.full((1, 1), 2.0)}})

# Any number of operands.
for _op in ("Max", "Min", "Sum", "Mean"):
    CASES[f"{_op} of 1"] = (f"y = {_op}(a)", {"a": (2, 3)}, BATCHED)
    CASES[f"{_op} of 2"] = (f"y = {_op}(a, b)", {"a": (2, 3), "b": (2, 3)}, BATCHED)
    CASES[f"{_op} of 3"] = (f"y = {_op}(a, b, c)", {"a": (2, 1, 3), "b": (4, 1), "c": (3,)})
    CASES[f"{_op} constant"] = (f"y = {_op}(a, w)", {"a": (2, 3)}, {"weights": {"w": 0.1}, **BATCHED})

_CLIP = {"weights": {"lo": -0.5, "hi": 0.7}, **BATCHED}
CASES["Clip"] = ("y = Clip(x, lo, hi)", {"x": (4, 5)}, _CLIP)
CASES["Clip below"] = ("y = Clip(x, lo)", {"x": (4, 5)}, _CLIP)
CASES["Clip above"] = ("y = Clip(x, , hi)", {"x": (4, 5)}, _CLIP)
CASES["Clip nowhere"] = ("y = Clip(x)", {"x": (4, 5)}, BATCHED)
CASES["Clip to the largest float"] = (
    "y = Clip(x, lo, hi)",
    {"x": (4, 5)},
    {"weights": {"lo": 0.0, "hi": 3.4028235e38}},
)
CASES["Clip by inputs"] = ("y = Clip(x, lo, hi)", {"x": (4, 5), "lo": -0.5, "hi": 0.7}, {"wrt": ["x"]})
CASES["Clip the other way round"] = ("y = Clip(x, hi, lo)", {"x": (4, 5)}, _CLIP)

_CONDITION = np.array([[True, False, True], [False, False, True]])
CASES["Where"] = ("y = Where(c, a, b)", {"c": _CONDITION, "a": (2, 3), "b": (2, 3)}, BATCHED)
CASES["Where broadcast"] = ("y = Where(c, a, b)", {"c": _CONDITION, "a": (3,), "b": (2, 1)})
CASES["Where condition"] = ("y = Where(c, a, b)", {"c": _CONDITION[:, :1], "a": (1, 3), "b": ()})
CASES["Where computed"] = ("p = Greater(x, z) y = Where(p, x, z)", {"x": (2, 3)}, {"weights": {"z": 0.0}, **BATCHED})

CASES["Dropout"] = ("y = Dropout(x, r, t)", {"x": (2, 3)}, {"weights": {"r": 0.5, "t": np.array(False)}, **BATCHED})
CASES["Dropout bare"] = ("y = Dropout(x)", {"x": (2, 3)})


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_gradient(check: Any, case: tuple[Any, ...]) -> None:
    body, inputs, *options = case
    check(body, inputs, **(options[0] if options else {}))


def test_every_rule_has_a_case(check: Any) -> None:
    assert check.untested(MODULE, CASES.values()) == set()
    without = [case for name, case in CASES.items() if not name.startswith(("Pow", "Tan"))]
    assert check.untested(MODULE, without) == {("Pow", 0), ("Pow", 1), ("Tan", 0)}


def test_absolute_value_has_gradient_0_at_its_kink(check: Any) -> None:
    assert check.gradient("y = Abs(x)", {"x": np.array([-2.0, 0.0, 3.0])}).tolist() == [-1, 0, 1]


@pytest.mark.parametrize("op", ["Max", "Min"])
def test_ties_share_evenly(check: Any, op: str) -> None:
    """`torch.maximum` and `torch.minimum` give a half each; n tied operands get 1/n each."""
    a, b = np.array([1.0, 2.0, 2.0]), np.array([1.0, 2.0, 2.0])
    assert [g.tolist() for g in check.gradient(f"y = {op}(a, b)", {"a": a, "b": b}, [2.0, 4.0, 6.0])] == [[1, 2, 3]] * 2
    thirds = check.gradient(f"y = {op}(a, b, c)", {"a": a, "b": b, "c": a}, 3.0)
    assert [g.tolist() for g in thirds] == [[1, 1, 1]] * 3


def test_a_value_tied_with_itself_gets_all(check: Any) -> None:
    assert check.gradient("y = Max(x, x)", {"x": np.array([1.0, -1.0])}, 3.0).tolist() == [3, 3]


def test_clip_has_gradient_0_at_its_bounds(check: Any) -> None:
    """The convention of `hardtanh` and `relu6`; `torch.clamp` would give 1 at -1 and 6."""
    x = np.array([-2.0, -1.0, -0.5, 0.0, 6.0, 7.0])
    got = check.gradient("y = Clip(x, lo, hi)", {"x": x}, weights={"lo": -1.0, "hi": 6.0})
    assert got.tolist() == [0, 0, 1, 1, 0, 0]


def test_clip_to_an_empty_range_has_no_gradient(check: Any) -> None:
    got = check.gradient("y = Clip(x, lo, hi)", {"x": np.array([-1.0, 0.5, 2.0])}, weights={"lo": 1.0, "hi": 0.0})
    assert got.tolist() == [0, 0, 0]


def test_powers_of_0(check: Any) -> None:
    """As PyTorch: no NaN from `0·ln 0` or `0·0^(−1)`."""
    x, e = np.array([0.0, 0.0, 0.0, 2.0, 3.0]), np.array([0.0, 1.0, 2.0, 0.0, 1.0])
    dx, de = check.gradient("y = Pow(x, e)", {"x": x, "e": e})
    assert dx.tolist() == [0, 1, 0, 0, 1]
    np.testing.assert_allclose(de, [0, 0, 0, np.log(2), 3 * np.log(3)])


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0, 3.0])
def test_constant_powers_of_0(check: Any, exponent: float) -> None:
    got = check.gradient("y = Pow(x, e)", {"x": np.array([0.0, -2.0])}, weights={"e": exponent})
    assert got.tolist() == {0.0: [0, 0], 1.0: [1, 1], 2.0: [0, -4], 3.0: [0, 12]}[exponent]


def test_square_root_at_0_is_infinite(check: Any) -> None:
    assert check.gradient("y = Sqrt(x)", {"x": np.array([0.0, 4.0])}).tolist() == [np.inf, 0.25]


def test_division_does_not_overflow(check: Any) -> None:
    """`−a/b²` with `b² > 3e38`: the gradient is small, not 0 or NaN."""
    _, db = check.gradient("y = Div(a, b)", {"a": np.array([1e30]), "b": np.array([1e25])})
    np.testing.assert_allclose(db, [-1e-20])


def test_where_stops_a_nan(check: Any) -> None:
    """The branch that is not chosen gets 0, whatever the other one carries."""
    inputs = {"c": np.array([True, False]), "a": np.array([1.0, 2.0]), "b": np.array([3.0, 4.0])}
    da, db = check.gradient("y = Where(c, a, b)", inputs, [np.inf, 1.0])
    assert da.tolist() == [np.inf, 0]
    assert db.tolist() == [0, 1]


@pytest.mark.parametrize("op", ["Sign", "Floor", "Ceil", "Round"])
def test_steps_carry_no_gradient(check: Any, op: str) -> None:
    """Beside another path they add nothing; as the only path they are none."""
    assert check.gradient(f"s = {op}(x) y = Add(s, x)", {"x": np.array([0.3, -1.7])}).tolist() == [1, 1]
    with pytest.raises(LayerError, match="no differentiable path leads from 'x' to 'y'"):
        vjp(check.model(f"y = {op}(x)", {"x": (2,)}), ["x"])


@pytest.mark.parametrize("op", ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"])
def test_comparisons_carry_no_gradient(check: Any, op: str) -> None:
    body = f"p = {op}(x, z) n = Not(p) q = Or(p, n) f = Cast<to=11>(q) y = Mul(f, x)"
    assert check.gradient(body, {"x": np.array([0.3, -1.7])}, weights={"z": 0.0}).tolist() == [1, 1]


def test_dropout_in_training_mode_is_refused(check: Any) -> None:
    body, weights = "y = Dropout(x, r, t)", {"r": 0.5, "t": np.array(True)}
    with pytest.raises(UnsupportedOpError, match=r'Dropout \(node "?\'?node0.*opset 21\).*training mode'):
        vjp(check.model(body, {"x": (2,)}, weights=weights), ["x"])
    unknown = check.model(body, {"x": (2,), "t": np.array(False)}, weights={"r": 0.5})
    with pytest.raises(UnsupportedOpError, match="training mode"):
        vjp(unknown, ["x"])
