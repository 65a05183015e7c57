"""Gradients of the ops that pick values, each by positions of its own."""

from __future__ import annotations

import numpy as np
import pytest

from pycam.errors import BatchAxisError, UnsupportedOpError
from pycam.gradient import vjp

KNOWN = ("static", "batch")


def gather_elements(x, i, axis=0):
    """onnx.reference's wants indices that cover the other axes."""
    axis %= x.ndim
    covered = tuple(slice(None) if a == axis else slice(n) for a, n in enumerate(i.shape))
    return np.take_along_axis(x[covered], i, axis)


OPS = {"GatherElements": gather_elements}
CASES = [
    ("y = GatherElements<axis=1>(x, i)", {"x": (2, 4), "i": np.array([[0, 0, -1], [3, 1, 3]])}, {"batched": True}),
    ("y = GatherElements<axis=0>(x, i)", {"x": (3, 2, 2), "i": np.array([[[0, 2], [1, -3]]])}, {}),
    ("y = GatherElements<axis=-1>(x, i)", {"x": (2, 2, 3), "i": np.array([[[0], [2]], [[1], [1]]])},
     {"batched": True}),
    ("y = GatherElements<axis=1>(x, i)", {"x": (3, 4, 2), "i": np.array([[[0], [0], [-1]], [[3], [1], [3]]])}, {}),
    ("y = GatherND(x, i)", {"x": (2, 3, 4), "i": np.array([[0, 1], [1, -1], [0, 1]])}, {"forms": KNOWN}),
    ("y = GatherND(x, i)", {"x": (2, 3), "i": np.array([[[0, 1]], [[1, 2]]])}, {"forms": KNOWN}),
    ("y = GatherND<batch_dims=1>(x, i)", {"x": (2, 3, 4), "i": np.array([[1], [-1]])},
     {"forms": KNOWN[:1], "batched": True}),
    ("y = GatherND<batch_dims=1>(x, i)", {"x": (2, 3, 4), "i": np.array([[[1, 2], [1, 2]], [[0, 3], [2, 2]]])},
     {"forms": KNOWN}),
    ("y = GatherND<batch_dims=2>(x, i)", {"x": (2, 2, 3, 2), "i": np.array([[[1], [2]], [[0], [0]]])},
     {"forms": KNOWN}),
    ("k = Constant<value_ints=[2]>() y, i = TopK(x, k)", {"x": (2, 3, 4)}, {"batched": True}),
    ("k = Constant<value_ints=[2]>() y, i = TopK<axis=1, largest=0>(x, k)", {"x": (2, 3, 4)}, {"batched": True}),
    ("k = Constant<value_ints=[3]>() y, i = TopK<axis=-2, sorted=0>(x, k)", {"x": (2, 3, 4)},
     {"runtime": False}),  # each runtime has an order of its own
    ("k = Constant<value_ints=[2]>() y, i = TopK<axis=0>(x, k)", {"x": (3, 2)}, {}),
    ("y, i = TopK(x, k)", {"x": (2, 5), "k": np.array([3])}, {}),
    ("y = Compress<axis=1>(x, c)", {"x": (2, 4, 2), "c": np.array([True, False, True, True])}, {}),
    ("y = Compress<axis=-1>(x, c)", {"x": (2, 4), "c": np.array([False, True])}, {"batched": True}),  # short
    ("y = Compress<axis=0>(x, c)", {"x": (3, 2), "c": np.array([False, True, True])}, {}),
    ("y = Compress(x, c)", {"x": (2, 3), "c": np.array([False, True, False, False, True])}, {}),
    ("y = Compress(x, c)", {"x": (4,), "c": np.array([False, True, False, True])}, {}),
    ("y = Compress<axis=1>(x, c)", {"x": (2, 2), "c": np.array([False, False])}, {"second": False}),  # nothing
]  # fmt: skip


@pytest.mark.parametrize("lower", ["fast", "portable"])
@pytest.mark.parametrize(("body", "inputs", "options"), CASES)
def test_pick(check, body, inputs, options, lower):
    check(body, inputs, wrt=["x"], **{"ops": OPS, "lower": lower, **options})


def test_constant_condition(check):
    body = "c = Constant<value=bool[3] {1,0,1}>() y = Compress<axis=1>(x, c)"
    check(body, {"x": (2, 3)}, batched=True)


def test_of_equal_values_topk_takes_the_first(check):
    body = "k = Constant<value_ints=[2]>() y, i = TopK(x, k)"
    dx = check.gradient(body, {"x": np.array([[1.0, 2, 2, 2]])})
    np.testing.assert_array_equal(dx, [[0, 1, 1, 0]])


@pytest.mark.parametrize(("body", "inputs", "options"), CASES)
def test_portable_gradients_scatter_nothing(check, body, inputs, options):
    nodes = vjp(check.model(body, inputs), ["x"], lower="portable").graph.node
    assert not any(node.op_type.startswith("Scatter") for node in nodes)


@pytest.mark.parametrize(
    ("body", "inputs"),
    [
        ("y = GatherElements<axis=0>(x, i)", {"x": (2, 2), "i": np.array([[0, 1]])}),
        ("y = GatherElements<axis=1>(x, i)", {"x": (2, 2), "i": np.array([[0, 1]])}),  # for the first image only
        ("y = GatherND(x, i)", {"x": (2, 3), "i": np.array([[0, 1], [1, 2]])}),
        ("k = Constant<value_ints=[2]>() y, i = TopK<axis=0>(x, k)", {"x": (3, 2)}),
        ("y = Compress(x, c)", {"x": (2, 3), "c": np.array([False, True])}),
        ("y = Compress<axis=0>(x, c)", {"x": (2, 3), "c": np.array([False, True])}),
    ],
)
def test_several_targets_want_the_images_apart(check, body, inputs):
    with pytest.raises(BatchAxisError):
        check(body, inputs, wrt=["x"], ops=OPS, forms=("static",), batched=True)


def test_how_many_axes_are_named_must_be_known(check):
    with pytest.raises(UnsupportedOpError, match="how many axes"):
        check.gradient("y = GatherND(x, i)", {"x": (2, 3), "i": np.array([[0, 1]])}, wrt=["x"], form="dynamic")


def test_every_rule_has_a_case(check):
    cases = [(body, inputs, {**options, "wrt": ["x"]}) for body, inputs, options in CASES]
    assert not check.untested("pycam.grad.pick", cases)
