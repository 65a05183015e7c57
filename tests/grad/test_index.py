"""Gradients of the ops that pick values by position."""

from __future__ import annotations

import numpy as np
import pytest

from pycam.errors import UnsupportedOpError

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


def test_slice_along_run_time_axes_is_refused(check):
    one = np.array([1])
    with pytest.raises(UnsupportedOpError, match="which axes"):
        check.gradient(
            "y = Slice(x, s, e, a)", {"x": (2, 3), "s": one, "e": one + 1, "a": one}, wrt=["x"], form="static"
        )


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
    ("y = GatherElements<axis=1>(x, i)", {"x": (2, 4), "i": np.array([[0, 0, -1], [3, 1, 3]])},
     {"wrt": ["x"], "batched": True}),
    ("y = GatherElements<axis=0>(x, i)", {"x": (3, 2, 2), "i": np.array([[[0, 2], [1, -3]]])}, {"wrt": ["x"]}),
    ("y = GatherElements<axis=-1>(x, i)", {"x": (2, 2, 3), "i": np.array([[[0], [2]], [[1], [1]]])},
     {"wrt": ["x"], "batched": True, "ops": {"GatherElements": lambda x, i, axis=0: np.take_along_axis(x, i, axis)}}),
    ("y = GatherND(x, i)", {"x": (2, 3, 4), "i": np.array([[0, 1], [1, -1], [0, 1]])}, {"wrt": ["x"], "forms": KNOWN}),
    ("y = GatherND(x, i)", {"x": (2, 3), "i": np.array([[[0, 1]], [[1, 2]]])}, {"wrt": ["x"], "forms": KNOWN}),
    ("y = ScatterElements<axis=1>(x, i, u)", {"x": (2, 4), "i": np.array([[0, 3], [2, 1]]), "u": (2, 2)},
     {"batched": True}),
    ('y = ScatterElements<axis=1, reduction="add">(x, i, u)',
     {"x": (2, 4), "i": np.array([[0, 0], [2, 1]]), "u": (2, 2)}, {}),
    ("y = ScatterND(x, i, u)", {"x": (3, 4), "i": np.array([[0, 3], [2, 1]]), "u": (2,)}, {}),
    ('y = ScatterND<reduction="add">(x, i, u)', {"x": (3, 4), "i": np.array([[2], [2]]), "u": (2, 4)}, {}),
    ("y = Trilu(x)", {"x": (2, 3, 4)}, {"batched": True}),
    ("k = Constant<value_int=-1>() y = Trilu<upper=0>(x, k)", {"x": (2, 3, 4)}, {"batched": True}),
]  # fmt: skip


@pytest.mark.parametrize(("body", "inputs", "options"), ELSE)
def test_other_ops(check, body, inputs, options):
    check(body, inputs, **options)


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
        x = np.pad(x, around, mode=mode)
        x = np.take(x, np.arange(max(-before, 0), x.shape[axis] - max(-after, 0)), axis)
    return x


@pytest.mark.parametrize(("body", "shape"), PADS)
def test_pad(check, body, shape):
    check(body, {"x": shape}, batched=True, ops={"Pad": _pad})


def test_pad_at_run_time(check):
    check("y = Pad(x, p)", {"x": (2, 3), "p": np.array([0, 1, -1, 2])}, wrt=["x"], forms=KNOWN, ops={"Pad": _pad})
    with pytest.raises(UnsupportedOpError, match="mode=edge"):
        check.gradient('y = Pad<mode="edge">(x, p)', {"x": (2, 3), "p": np.array([0, 1, 0, 2])}, wrt=["x"])


def test_every_rule_has_a_case(check):
    cases = [(body, {"x": shape}) for body, shape in [*SLICES, *PADS]]
    cases += [(pick(i, axis), {"x": (2, 4, 4, 4)}) for i, axis in GATHERS]
    assert not check.untested("pycam.grad.index", [*cases, *ELSE])
