"""Gradients of the ops that count, and that accumulate products."""

from __future__ import annotations

import numpy as np
import pytest

from pycam.errors import BatchAxisError, UnsupportedOpError


def cum_prod(x, axis, exclusive=0, reverse=0):
    axis = int(np.reshape(axis, ()))
    x = np.flip(x, axis) if reverse else x
    y = np.cumprod(x, axis)
    if exclusive:
        y = np.concatenate([np.ones_like(np.take(x, [0], axis)), np.take(y, range(y.shape[axis] - 1), axis)], axis)
    return np.flip(y, axis) if reverse else y


OPS = {"CumProd": cum_prod, "Mod": lambda a, b, fmod=0: np.fmod(a, b) if fmod else np.mod(a, b)}


@pytest.mark.parametrize("flags", ["", "exclusive=1", "reverse=1", "exclusive=1, reverse=1"])
def test_cum_prod(check, flags):
    call = f"CumProd<{flags}>" if flags else "CumProd"
    for axis in (1, -1):
        weights = {"a": np.array(axis)}
        check(f"y = {call}(x, a)", {"x": (2, 5, 3)}, weights=weights, opset=26, ops=OPS, batched=True)
    for shape in (2, 1), (4,):
        weights = {"a": np.array(-1)}
        check(f"y = {call}(x, a)", {"x": shape}, weights=weights, opset=26, ops=OPS, forms=("static", "dynamic"))


@pytest.mark.parametrize("form", ["static", "dynamic"])
def test_products_are_right_where_factors_are_0(check, form):
    x = np.array([[2.0, 0, 3, 0, 5]])
    dx = check.gradient("y = CumProd(x, a)", {"x": x}, weights={"a": np.array(1)}, opset=26, ops=OPS, form=form)
    np.testing.assert_allclose(dx, [[1, 2 + 6, 0, 0, 0]])
    if form == "static":  # the second derivative is right there as well
        check("y = CumProd(x, a)", {"x": x}, weights={"a": np.array(1)}, opset=26, ops=OPS, forms=(form,))


def test_the_axis_of_a_product_is_known_and_not_the_batch(check):
    with pytest.raises(UnsupportedOpError, match="its axis"):
        check.gradient("y = CumProd(x, a)", {"x": (2, 3), "a": np.array(1)}, wrt=["x"], opset=26, ops=OPS)
    axis = {"a": np.array(0)}
    with pytest.raises(BatchAxisError):
        check("y = CumProd(x, a)", {"x": (2, 3)}, weights=axis, opset=26, ops=OPS, forms=("static",), batched=True)


def test_range(check):
    inputs = {"s": np.array(0.5), "e": np.array(2.9), "d": np.array(0.7)}
    check("y = Range(s, e, d)", inputs, wrt=["s", "d"], forms=("static",), second=False)  # linear in them
    ds, dd = check.gradient("y = Range(s, e, d)", inputs, wrt=["s", "d"])
    assert (ds, dd) == (4, 6)


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_one_hot(check, axis):
    inputs = {"i": np.array([[1, 3, -1], [0, 9, 2]]), "v": np.array([0.25, -0.5])}
    check(f"d = Constant<value_int=4>() y = OneHot<axis={axis}>(i, d, v)", inputs, wrt=["v"], second=False)  # linear


@pytest.mark.parametrize("fmod", [0, 1])
def test_mod(check, fmod):
    inputs = {
        "a": np.array([[5.25, -5.25, 5.25, -5.25], [0.3, 7.7, -9.1, 2.2]]),
        "b": np.array([[2.0, 2.0, -2.0, -2.0]]),
    }
    check(f"y = Mod<fmod={fmod}>(a, b)", inputs, ops=OPS, runtime=fmod == 1)  # with fmod=0 it is for integers there
    check(f"y = Mod<fmod={fmod}>(a, b)", {**inputs, "b": np.array(0.8)}, wrt=["a"], ops=OPS, runtime=fmod == 1)


@pytest.mark.parametrize("shape", [(3, 3), (2, 2, 2), (2, 1, 1), (2, 2, 4, 4)])
def test_det(check, shape):
    check("y = Det(x)", {"x": shape}, batched=len(shape) > 2, forms=("static", "batch")[: len(shape) - 1], rtol=1e-5)


def test_det_where_it_is_0(check):
    x = np.array([[1.0, 2, 3], [2, 4, 6], [1, 0, 1]])
    cofactors = check.gradient("y = Det(x)", {"x": x})
    np.testing.assert_allclose(cofactors, [[4, 4, -4], [-2, -2, 2], [0, 0, 0]], atol=1e-12)
    with pytest.raises(UnsupportedOpError, match="size of its matrices"):
        check.gradient("y = Det(x)", {"x": x}, form="dynamic")
