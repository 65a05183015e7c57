"""Gradients of the activations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import special

MODULE = "pycam.grad.activation"
X = {"x": (3, 4, 2)}
BATCHED = {"batched": True}
SWISH = {"opset": 24, "ops": {"Swish": lambda x, alpha=1.0: x * special.expit(alpha * x)}}

_FORMS = """
    Relu  LeakyRelu  LeakyRelu<alpha=0.3>  LeakyRelu<alpha=-0.3>  LeakyRelu<alpha=0.0>
    Elu  Elu<alpha=0.4>  Elu<alpha=-0.4>  Selu  Selu<alpha=0.5,gamma=2.0>  Selu<alpha=-0.5>  Celu  Celu<alpha=0.4>
    Sigmoid  HardSigmoid  HardSigmoid<alpha=0.7,beta=0.2>  HardSwish  Tanh  Softplus  Softsign  Mish
    Gelu  Gelu<approximate="tanh">  ThresholdedRelu  ThresholdedRelu<alpha=0.2>  ThresholdedRelu<alpha=-0.4>
    Shrink  Shrink<bias=0.2,lambd=0.3>
    Softmax  Softmax<axis=1>  Softmax<axis=-2>  LogSoftmax  LogSoftmax<axis=1>  LogSoftmax<axis=-2>
"""
CASES: dict[str, tuple[Any, ...]] = {form: (f"y = {form}(x)", X, BATCHED) for form in _FORMS.split()}
CASES["Softmax<axis=0>"] = ("y = Softmax<axis=0>(x)", X)
CASES["Softmax over one"] = ("y = Softmax(x)", {"x": (3, 1)}, BATCHED)
CASES["HardSwish, wide"] = ("y = HardSwish(x)", {"x": np.linspace(-5, 5, 12).reshape(3, 4)}, BATCHED)
CASES["Swish"] = ("y = Swish(x)", X, {**SWISH, **BATCHED})
CASES["Swish, alpha"] = ("y = Swish<alpha=1.7>(x)", X, {**SWISH, **BATCHED})
SWIGLU = {"opset": 28, "ops": {"SwiGLU": lambda a, b, alpha=1.0: a * special.expit(alpha * a) * b}, "runtime": False}
CASES["SwiGLU"] = ("y = SwiGLU(a, b)", {"a": (3, 4), "b": (3, 4)}, {**SWIGLU, **BATCHED})
CASES["SwiGLU, alpha"] = ("y = SwiGLU<alpha=1.7>(a, b)", {"a": (3, 4), "b": (3, 4)}, SWIGLU)
CASES["PRelu"] = ("y = PRelu(x, s)", {"x": (2, 3, 4), "s": (3, 1)})
CASES["PRelu of one slope"] = ("y = PRelu(x, s)", {"x": (2, 3), "s": (1,)})
CASES["PRelu of any slope"] = ("y = PRelu(x, s)", {"x": (2, 3), "s": (2, 3)}, BATCHED)
CASES["PRelu constant"] = (
    "y = PRelu(x, s)",
    {"x": (2, 3, 4)},
    {"weights": {"s": np.array([[0.1], [0.0], [2.0]])}, **BATCHED},
)
CASES["PRelu negative"] = (
    "y = PRelu(x, s)",
    {"x": (2, 3, 4)},
    {"weights": {"s": np.array([[0.1], [0.0], [-2.0]])}, **BATCHED},
)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_gradient(check: Any, case: tuple[Any, ...]) -> None:
    body, inputs, *options = case
    check(body, inputs, **(options[0] if options else {}))


def test_every_rule_has_a_case(check: Any) -> None:
    assert check.untested(MODULE, CASES.values()) == set()
    without = [case for name, case in CASES.items() if not name.startswith("PRelu")]
    assert check.untested(MODULE, without) == {("PRelu", 0), ("PRelu", 1)}


@pytest.mark.parametrize(
    ("op", "x", "expected"),
    [
        ("Relu", [0.0], [0.0]),
        ("LeakyRelu<alpha=0.25>", [0.0], [0.25]),
        ("LeakyRelu<alpha=-0.25>", [0.0], [-0.25]),
        ("Elu<alpha=0.5>", [0.0], [0.5]),
        ("Celu<alpha=0.5>", [0.0], [1.0]),
        ("Selu<alpha=2.0,gamma=0.5>", [0.0], [1.0]),
        ("ThresholdedRelu<alpha=1.0>", [1.0], [0.0]),
        ("HardSigmoid<alpha=0.25,beta=0.5>", [-2.0, 0.0, 2.0], [0.0, 0.25, 0.0]),
        ("HardSwish", [-4.0, -3.0, 0.0, 3.0, 4.0], [0.0, 0.0, 0.5, 1.0, 1.0]),
    ],
)
def test_kinks_follow_pytorch(check: Any, op: str, x: list[float], expected: list[float]) -> None:
    assert check.gradient(f"y = {op}(x)", {"x": np.array(x)}).tolist() == expected


def test_prelu_at_its_kink(check: Any) -> None:
    """The slope for x, and 0 for the slope, as PyTorch."""
    dx, ds = check.gradient("y = PRelu(x, s)", {"x": np.array([0.0, -2.0, 3.0]), "s": np.array([0.25])})
    assert dx.tolist() == [0.25, 0.25, 1]
    assert ds.tolist() == [-2]


@pytest.mark.parametrize(
    "op",
    [
        "Softplus",
        "Sigmoid",
        "Tanh",
        "Mish",
        "Gelu",
        'Gelu<approximate="tanh">',
        "Softsign",
        "Elu",
        "Selu",
        "Celu",
        "HardSwish",
    ],
)
def test_large_inputs_neither_overflow_nor_give_nan(check: Any, op: str) -> None:
    """In float32, where `eˣ` overflows at 89 and `x²` at 2e19."""
    x = np.array([-1e30, -1e20, -1e4, -100.0, 100.0, 1e4, 1e20, 1e30])
    got = check.gradient(f"y = {op}(x)", {"x": x})  # also compares with onnxruntime in float32
    assert np.isfinite(got).all()
    assert (np.abs(got) < 2).all()


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_large_logits(check: Any, op: str) -> None:
    got = check.gradient(f"y = {op}(x)", {"x": np.array([[1e4, -1e4, 1e4]])}, [[1.0, 0.0, 0.0]])
    np.testing.assert_allclose(got, [[0.25, 0, -0.25]] if op == "Softmax" else [[0.5, 0, -0.5]])
