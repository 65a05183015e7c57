"""Gradients of the ops that pick values by position."""

from __future__ import annotations

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

from pycam.errors import BatchAxisError, UnsupportedOpError
from pycam.gradient import vjp

STATIC, KNOWN = ("static",), ("static", "batch")
MAX, MIN = 2**63 - 1, -(2**63)


def cut(starts, ends, axes=None, steps=None):
    """The nodes of a Slice with these constants."""
    lists = {"s": starts, "e": ends, "a": axes, "t": steps}
    constants = " ".join(f"{k} = Constant<value_ints={v}>()" for k, v in lists.items() if v is not None)
    names = ["x", *(k if v is not None else "" for k, v in lists.items())]
    return f"{constants} y = Slice({', '.join(names).rstrip(', ')})"


SLICES = [
    (cut([0, 1], [2, 3]), (2, 4)),
    (cut([1], [3], [1]), (2, 4, 3)),
    (cut([1, 0], [MAX, 2], [1, 2]), (2, 4, 3)),
    (cut([-3, -2], [-1, MAX], [-1, 1]), (2, 4, 5)),
    (cut([0], [MAX], [1]), (2, 4)),
    (cut([0], [2**31 - 1], [1]), (2, 4)),
    (cut([1, 0], [MAX, 5], [1, 2], [2, 3]), (2, 6, 5)),
    (cut([0], [MAX], [1], [2]), (2, 5)),
    (cut([-1], [MIN], [1], [-1]), (2, 4)),
    (cut([3, -1], [0, -6], [1, 2], [-2, -1]), (2, 5, 5)),
    (cut([-20], [20], [1]), (2, 4)),
    (cut([1], [-1], [2], [3]), (2, 3, 9)),
    (cut([1, 1], [-1, -1], [2, 3]), (2, 3, 4, 5)),
]


@pytest.mark.parametrize(("body", "shape"), SLICES)
def test_slice(check, body, shape):
    check(body, {"x": shape}, batched="a = C" in body)


@pytest.mark.parametrize(("start", "end", "step"), [(1, 3, 1), (-3, -1, 1), (-9, 9, 1), (1, 5, 2), (-1, -5, -2)])
def test_slice_at_run_time(check, start, end, step):
    body = f"a = Constant<value=int32[1] {{1}}>() t = Constant<value=int32[1] {{{step}}}>() y = Slice(x, s, e, a, t)"
    inputs = {"x": (2, 5, 2), "s": np.array([start], np.int32), "e": np.array([end], np.int32)}
    check(body, inputs, wrt=["x"], forms=KNOWN)


@pytest.mark.parametrize("lower", ["fast", "portable"])
def test_slice_along_axes_and_in_steps_that_the_graph_computes(check, lower):
    cuts = {"s": np.array([-1, 0]), "e": np.array([MIN, 3]), "a": np.array([2, 0]), "t": np.array([-2, 2])}
    check("y = Slice(x, s, e, a, t)", {"x": (4, 2, 5), **cuts}, wrt=["x"], lower=lower)
    check("y = Slice(x, s, e, a)", {"x": (4, 2), "s": cuts["a"][1:], "e": cuts["e"][1:], "a": cuts["a"][1:]}, wrt=["x"])
    inputs = {"x": (2, 3), "s": np.array([0]), "e": np.array([1]), "a": np.array([1])}
    with pytest.raises(BatchAxisError, match="moves the batch"):
        check("y = Slice(x, s, e, a)", inputs, wrt=["x"], batched=True)


def pick(indices, axis):
    array = np.asarray(indices)
    constant = (
        f"int64[{','.join(map(str, array.shape))}] {{{','.join(map(str, array.reshape(-1)))}}}"
        if array.ndim
        else f"int64 {{{array}}}"
    )
    return f"i = Constant<value={constant}>() y = Gather<axis={axis}>(x, i)"


GATHERS = [
    (1, 1), (-1, 1), (0, 2), (-2, -1),
    ([2], 1), ([-1], 1), ([1, 2], 1), ([0, 2, 0], 1), ([0, -1, 0, 2, 0], 2), ([1] * 7, 1), ([-4, 3, -1], 1),
    ([[0, 1], [1, 3]], 1), ([[2], [-1]], -1), ([[1, 2, 3]], 1),
]  # fmt: skip


@pytest.mark.parametrize(("indices", "axis"), GATHERS)
def test_gather(check, indices, axis):
    check(pick(indices, axis), {"x": (2, 4, 4, 4)}, batched=True)


@pytest.mark.parametrize("indices", [np.array(2), np.array([0, -1, 0]), np.array([[1, 2], [1, -4]], np.int32)])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_gather_at_run_time(check, indices, axis):
    check(f"y = Gather<axis={axis}>(x, i)", {"x": (4, 5, 4), "i": indices}, wrt=["x"])


def test_duplicates_add_up(check):
    for body in (pick([1, 1, 0, 1], 1), pick([1, 1, 0, 1, 1, 1, 1], 1)):
        dx = check.gradient(body, {"x": (1, 3)})
        times = body.count("1,") + body.count("1}")
        np.testing.assert_array_equal(dx[0, 2], 0)
        assert dx[0, 0] == 1
        assert dx[0, 1] == dx.sum() - 1 > 2, times


ELSE = [
    ("y = Trilu(x)", {"x": (2, 3, 4)}, {"batched": True}),
    ("k = Constant<value_int=-1>() y = Trilu<upper=0>(x, k)", {"x": (2, 3, 4)}, {"batched": True}),
    ("p = Constant<value_ints=[0,1,-1,2]>() y = Pad(x, p, v)", {"x": (2, 3), "v": np.array(0.5)}, {"second": False}),
]  # fmt: skip


@pytest.mark.parametrize(("body", "inputs", "options"), ELSE)
def test_other_ops(check, body, inputs, options):
    check(body, inputs, **{"ops": {"Pad": _pad}, **options})


@pytest.mark.parametrize("indices", [np.array([0, -1, 0]), np.array([[1, 2], [1, -4]])])
def test_a_run_time_gather_in_portable_form(check, indices):
    check("y = Gather<axis=1>(x, i)", {"x": (2, 5, 4), "i": indices}, wrt=["x"], lower="portable")


def test_scatter_of_opset_10_becomes_scatter_elements(check):
    inputs = {"x": (2, 3), "i": np.array([[0, 2], [1, 0]]), "u": (2, 2)}
    model = check.model("y = Scatter<axis=1>(x, i, u)", inputs, opset=10)
    assert [node.op_type for node in check.graph(model)] == ["ScatterElements"]
    feed = {**check.draw(inputs), "y.cotangent": np.arange(6.0).reshape(2, 3)}
    dx, du = ReferenceEvaluator(vjp(model, ["x", "u"])).run(["x.gradient", "u.gradient"], feed)
    np.testing.assert_array_equal(dx, [[0, 1, 0], [0, 0, 5]])
    np.testing.assert_array_equal(du, [[0, 2], [4, 3]])


def around(pads, mode="constant", axes=None):
    a = f"a = Constant<value_ints={axes}>()" if axes else ""
    return f'p = Constant<value_ints={pads}>() {a} y = Pad<mode="{mode}">(x, p{", , a" if axes else ""})'


PADS = [
    (around([0, 1, 0, 2]), (2, 3)),
    (around([0, -1, 0, 2]), (2, 3)),
    (around([0, -1, -1, 0, -1, 1]), (2, 4, 3)),
    (around([1, 2], axes=[-1]), (2, 3)),
    (around([1, 0, -1, 2], axes=[2, 1]), (2, 3, 4)),
    (around([0, 2, 1, 0, 1, 2], "reflect"), (2, 3, 4)),
    (around([0, 0, 2, 2, 0, 0, 1, 3], "reflect"), (1, 2, 4, 4)),
    (around([0, 1, 0, 2], "edge"), (2, 3)),
    (around([0, 6, 0, 5], "edge"), (2, 3)),
    (around([2, 1], "wrap", axes=[1]), (2, 3, 2)),
    (around([0, 0], "edge", axes=[1]), (2, 3)),
]


def _pad(x, pads, value=None, axes=None, mode="constant"):
    """onnx.reference's refuses negative pads."""
    axes = list(range(x.ndim)) if axes is None else [int(a) for a in axes]
    for axis, before, after in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        around = [(0, 0)] * x.ndim
        around[axis] = (max(before, 0), max(after, 0))
        x = np.pad(x, around, mode=mode, **({"constant_values": value or 0} if mode == "constant" else {}))
        x = np.take(x, np.arange(max(-before, 0), x.shape[axis] - max(-after, 0)), axis)
    return x


@pytest.mark.parametrize(("body", "shape"), PADS)
def test_pad(check, body, shape):
    check(body, {"x": shape}, batched=True, ops={"Pad": _pad})


def test_pad_at_run_time(check):
    check("y = Pad(x, p)", {"x": (2, 3), "p": np.array([0, 1, -1, 2])}, wrt=["x"], forms=KNOWN, ops={"Pad": _pad})
    for mode in ("edge", "reflect", "wrap"):
        inputs = {"x": (2, 3), "p": np.array([0, 1, 1, 2])}
        check(f'y = Pad<mode="{mode}">(x, p)', inputs, wrt=["x"], forms=KNOWN, ops={"Pad": _pad})
    axes = {"x": (2, 3), "p": np.array([1, 2]), "a": np.array([1])}
    with pytest.raises(UnsupportedOpError, match="mode=edge"):
        check.gradient('y = Pad<mode="edge">(x, p, , a)', axes, wrt=["x"], ops={"Pad": _pad})


def test_the_value_of_a_pad_that_repeats_is_not_used(check):
    body = 'p = Constant<value_ints=[0,1,0,1]>() y = Pad<mode="edge">(x, p, v)'
    assert check.gradient(body, {"x": (1, 2), "v": np.array(0.5)}, wrt=["v"], ops={"Pad": _pad}) == 0


def test_every_rule_has_a_case(check):
    cases = [(body, {"x": shape}) for body, shape in [*SLICES, *PADS]]
    cases += [(pick(i, axis), {"x": (2, 4, 4, 4)}) for i, axis in GATHERS]
    assert not check.untested("pycam.grad.index", [*cases, *ELSE])
