"""Gradients of functions that exporters write as several nodes."""

from __future__ import annotations

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

from pycam.grad import registry
from pycam.gradient import vjp

NUMBERS = (
    "half = Constant<value=double {0.5}>() one = Constant<value=double {1.0}>() two = Constant<value=double {2.0}>() "
    "three = Constant<value=double {3.0}>() "
    "root = Constant<value=double {1.4142135623730951}>() less = Constant<value=double {0.7071067811865476}>() "
    "alpha = Constant<value=double {1.702}>() eps = Constant<value=double {0.00001}>() "
    "last = Constant<value_ints=[-1]>() "
)

RECOGNISED = {
    "swish": "s = Sigmoid(x) y = Mul(x, s)",
    "swish, gate first": "s = Sigmoid(x) y = Mul(s, x)",
    "quick gelu": "a = Mul(x, alpha) s = Sigmoid(a) y = Mul(x, s)",
    "gelu": "a = Div(x, root) e = Erf(a) b = Add(e, one) c = Mul(x, b) y = Mul(c, half)",
    "gelu, half first": "h = Mul(x, half) a = Mul(x, less) e = Erf(a) b = Add(one, e) y = Mul(h, b)",
    "gelu, half of the gate": "a = Div(x, root) e = Erf(a) b = Add(e, one) c = Mul(half, b) y = Mul(x, c)",
    "standardisation": (
        "m = ReduceMean(x, last) d = Sub(x, m) q = Pow(d, two) v = ReduceMean(q, last) w = Add(v, eps) r = Sqrt(w) "
        "y = Div(d, r)"
    ),
    "standardisation, product": (
        "m = ReduceMean(x, last) d = Sub(x, m) q = Mul(d, d) v = ReduceMean(q, last) w = Add(eps, v) r = Sqrt(w) "
        "y = Div(d, r)"
    ),
}

OTHERS = {
    "gate of another value": "z = Exp(x) s = Sigmoid(z) y = Mul(x, s)",
    "other divisor than √2": "a = Div(x, two) e = Erf(a) b = Add(e, one) c = Mul(x, b) y = Mul(c, half)",
    "other factor than ½": "a = Div(x, root) e = Erf(a) b = Add(e, one) c = Mul(x, b) y = Mul(c, two)",
    "variance of another value": (
        "m = ReduceMean(x, last) d = Sub(x, m) q = Pow(x, two) v = ReduceMean(q, last) w = Add(v, eps) r = Sqrt(w) "
        "y = Div(d, r)"
    ),
    "cube": (
        "m = ReduceMean(x, last) d = Sub(x, m) q = Pow(d, three) a = Abs(q) v = ReduceMean(a, last) w = Add(v, eps) "
        "r = Sqrt(w) y = Div(d, r)"
    ),
    "plain product": "a = Exp(x) y = Mul(x, a)",
}


@pytest.mark.parametrize("body", RECOGNISED.values(), ids=RECOGNISED)
def test_recognised(check, body):
    inputs = {"x": (2, 3, 4)}
    last = list(check.graph(check.model(NUMBERS + body, inputs)))[-1]
    assert registry.recognise(last) is not None
    check(NUMBERS + body, inputs, batched=True)


@pytest.mark.parametrize("body", OTHERS.values(), ids=OTHERS)
def test_what_only_looks_alike_is_differentiated_node_by_node(check, body):
    inputs = {"x": np.random.default_rng(3).uniform(0.1, 2, (2, 3))}
    last = list(check.graph(check.model(NUMBERS + body, inputs)))[-1]
    assert registry.recognise(last) is None
    check(NUMBERS + body, inputs)


def test_a_value_inside_can_be_asked_for(check):
    """The gradient for the gate of a swish is x·dy, though the walk would otherwise step over it."""
    x = np.array([0.5, -2.0])
    model = check.model("s = Sigmoid(x) y = Mul(x, s)", {"x": x})
    ds, dx = ReferenceEvaluator(vjp(model, ["s", "x"])).run(None, {"x": x, "y.cotangent": np.ones(2)})[-2:]
    np.testing.assert_allclose(ds, x)
    sigma = 1 / (1 + np.exp(-x))
    np.testing.assert_allclose(dx, sigma + x * sigma * (1 - sigma))
