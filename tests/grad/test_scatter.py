"""Gradients of the ops that write values at positions."""

from __future__ import annotations

import numpy as np
import pytest

from pycam.gradient import vjp

STATIC, KNOWN = ("static",), ("static", "batch")


def scatter_elements(x, i, u, axis=0, reduction="none"):
    y, axis = x.copy(), axis % x.ndim
    for at in np.ndindex(i.shape):
        to = (*at[:axis], i[at], *at[axis + 1 :])
        y[to] = _reduced(reduction, y[to], u[at])
    return y


def scatter_nd(x, i, u, reduction="none"):
    y = x.copy()
    for at in np.ndindex(i.shape[:-1]):
        y[tuple(i[at])] = _reduced(reduction, y[tuple(i[at])], u[at])
    return y


def gather_elements(x, i, axis=0):
    """onnx.reference's wants indices that cover the other axes."""
    axis %= x.ndim
    covered = tuple(slice(None) if a == axis else slice(n) for a, n in enumerate(i.shape))
    return np.take_along_axis(x[covered], i, axis)


def _reduced(reduction, a, b):
    return {
        "none": lambda: b,
        "add": lambda: a + b,
        "mul": lambda: a * b,
        "min": lambda: np.minimum(a, b),
        "max": lambda: np.maximum(a, b),
    }[reduction]()


def max_unpool(x, i, shape=None, kernel_shape=None, pads=None, strides=None):
    if shape is None:
        sizes = zip(x.shape[2:], strides, kernel_shape, strict=True)
        shape = (*x.shape[:2], *((n - 1) * s + k for n, s, k in sizes))
    y = np.zeros(int(np.prod(shape)))
    y[i.reshape(-1)] = x.reshape(-1)
    return y.reshape(shape)


OPS = {
    "GatherElements": gather_elements,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "MaxUnpool": max_unpool,
}

ELEMENTS = [
    ("axis=1", {"x": (2, 4), "i": np.array([[0, 3], [2, 1]]), "u": (2, 2)}),
    ("axis=-1", {"x": (2, 3, 4), "i": np.array([[[0, -1]], [[2, 1]]]), "u": (2, 1, 2)}),  # fewer rows than x
    ("axis=1", {"x": (2, 3, 2), "i": np.array([[[-1], [0]], [[1], [2]]], np.int32), "u": (2, 2, 1)}),
]
DUPLICATES = [
    ("axis=1", {"x": (2, 4), "i": np.array([[0, 0, 3], [2, 2, 2]]), "u": (2, 3)}),
    ("axis=0", {"x": (3, 2), "i": np.array([[0, -1], [0, 2]]), "u": (2, 2)}),
]
ND = [
    ("", {"x": (3, 4), "i": np.array([[0, 3], [2, 1]]), "u": (2,)}),
    ("", {"x": (3, 2, 2), "i": np.array([[-1], [0]]), "u": (2, 2, 2)}),
    ("", {"x": (2, 3, 2), "i": np.array([[[0, 1]], [[1, -1]]]), "u": (2, 1, 2)}),
]
ND_DUPLICATES = [
    ("", {"x": (3, 4), "i": np.array([[2], [2], [0]]), "u": (3, 4)}),
    ("", {"x": (2, 3), "i": np.array([[[1, 2]], [[1, -1]]]), "u": (2, 1)}),
]


def _call(op, attributes, reduction):
    listed = ", ".join(filter(None, [attributes, f'reduction="{reduction}"']))
    return f"y = {op}<{listed}>(x, i, u)"


CASES = [
    *((_call("ScatterElements", a, r), x) for r in ("none", "add", "mul", "min", "max") for a, x in ELEMENTS),
    *((_call("ScatterElements", a, r), x) for r in ("add", "mul", "min", "max") for a, x in DUPLICATES),
    *((_call("ScatterND", a, r), x) for r in ("none", "add", "mul", "min", "max") for a, x in ND),
    *((_call("ScatterND", a, r), x) for r in ("add", "mul", "min", "max") for a, x in ND_DUPLICATES),
]


@pytest.mark.parametrize("lower", ["fast", "portable"])
@pytest.mark.parametrize(("body", "inputs"), CASES)
def test_scatter(check, body, inputs, lower):
    # How many axes the indices of ScatterND name has to be known.
    forms = ("static", "dynamic") if "Elements" in body else KNOWN
    check(body, inputs, ops=OPS, forms=forms, lower=lower)


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "min", "max"])
def test_elements_of_several_targets(check, reduction):
    inputs = {"x": (2, 4), "i": np.array([[0, 3], [2, 1]]), "u": (2, 2)}
    check(_call("ScatterElements", "axis=1", reduction), inputs, ops=OPS, batched=True)


@pytest.mark.parametrize("lower", ["fast", "portable"])
def test_products_are_right_where_factors_are_0(check, lower):
    """Torch's rule divides by the update that is 0 unless it is the only one."""
    inputs = {"x": np.array([[2.0, 3, 0]]), "i": np.array([[0, 0, 1, 1, 2]]), "u": np.array([[0.0, 5, 0, 0, 4]])}
    check(_call("ScatterElements", "axis=1", "mul"), inputs, ops=OPS, second=False, lower=lower)  # kinks of a 0
    dx, du = check.gradient(_call("ScatterElements", "axis=1", "mul"), inputs, ops=OPS)
    np.testing.assert_array_equal(dx, [[0, 0, 4]])
    np.testing.assert_array_equal(du, [[10, 0, 0, 0, 0]])


def test_ties_share_evenly(check):
    inputs = {"x": np.array([[1.0, 0, 1]]), "i": np.array([[0, 0, 1, 2]]), "u": np.array([[1.0, 1, 2, 0]])}
    dx, du = check.gradient(_call("ScatterElements", "axis=1", "max"), inputs, ops=OPS)
    np.testing.assert_allclose(dx, [[1 / 3, 0, 1]])
    np.testing.assert_allclose(du, [[1 / 3, 1 / 3, 1, 0]])


@pytest.mark.parametrize(("body", "inputs"), [case for case in CASES if "none" not in case[0]])
def test_portable_gradients_scatter_nothing(check, body, inputs):
    nodes = vjp(check.model(body, inputs), ["x", "u"], lower="portable").graph.node
    assert sum(node.op_type.startswith("Scatter") for node in nodes) == 1  # the forward op


TENSOR = [
    ("y = TensorScatter(x, u, i)", {"x": (2, 1, 4, 2), "u": (2, 1, 2, 2), "i": np.array([0, 2])}),
    ("y = TensorScatter(x, u)", {"x": (2, 4, 2), "u": (2, 2, 2)}),
    ('y = TensorScatter<mode="circular", axis=1>(x, u, i)', {"x": (2, 4, 2), "u": (2, 3, 2), "i": np.array([3, 1])}),
    ('y = TensorScatter<mode="circular", axis=-1>(x, u, i)', {"x": (2, 3, 4), "u": (2, 3, 4), "i": np.array([6, 1])}),
]


@pytest.mark.parametrize("lower", ["fast", "portable"])
@pytest.mark.parametrize(("body", "inputs"), TENSOR)
def test_tensor_scatter(check, body, inputs, lower):
    check(body, inputs, opset=24, lower=lower)
    check(body, inputs, opset=24, lower=lower, forms=STATIC, batched=True)


UNPOOLED = "y = MaxUnpool<kernel_shape=[2,2], strides=[2,2]>(x, i)"
AT = np.array([[[[0, 3], [9, 14]], [[21, 18], [24, 31]]], [[[33, 38], [40, 46]], [[48, 55], [61, 62]]]])


def test_max_unpool(check):
    check(UNPOOLED, {"x": (2, 2, 2, 2), "i": AT}, ops=OPS, batched=True)
    body = "s = Constant<value_ints=[1,1,5,5]>() y = MaxUnpool<kernel_shape=[2,2], strides=[2,2]>(x, i, s)"
    check(body, {"x": (1, 1, 2, 2), "i": np.array([[[[0, 3], [10, 18]]]])}, ops=OPS, forms=KNOWN)
    line = "y = MaxUnpool<kernel_shape=[2], strides=[2]>(x, i)"
    check(line, {"x": (1, 2, 2), "i": np.array([[[0, 3], [4, 7]]])}, ops=OPS)


def test_unpooling_what_was_pooled(check):
    body = "p, i = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x) y = MaxUnpool<kernel_shape=[2,2], strides=[2,2]>(p, i)"
    check(body, {"x": (2, 2, 4, 4)}, ops=OPS)


def test_every_rule_has_a_case(check):
    cases = [(body, inputs, {"ops": OPS}) for body, inputs in CASES]
    assert not check.untested("pycam.grad.scatter", [*cases, (UNPOOLED, {"x": (2, 2, 2, 2), "i": AT})])
