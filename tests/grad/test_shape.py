"""Gradients of the ops that move values."""

from __future__ import annotations

import numpy as np
import pytest

from pycam.errors import UnsupportedOpError

KNOWN = ("static", "batch")

PIECES = "s = Constant<value_ints=[1,2,3,1]>() p, q, r, t = Split<axis=1>(x, s) "
CASES = [
    # body, inputs, options
    ("s = Constant<value_ints=[0,-1]>() y = Reshape(x, s)", {"x": (2, 3, 4)}, {}),
    ("s = Constant<value_ints=[-1,2,3]>() y = Reshape(x, s)", {"x": (2, 3, 4)}, {}),
    ("s = Shape(x) t = Constant<value_ints=[1]>() u = Concat<axis=0>(s, t) y = Reshape(x, u)", {"x": (2, 3)}, {}),
    ("y = Flatten(x)", {"x": (2, 3, 4)}, {}),
    ("y = Flatten<axis=2>(x)", {"x": (2, 3, 4)}, {"batched": False}),
    ("a = Constant<value_ints=[-1,2]>() y = Squeeze(x, a)", {"x": (2, 3, 1, 1)}, {}),
    ("y = Squeeze(x)", {"x": (2, 1, 3, 1)}, {"forms": KNOWN[:1], "batched": False}),
    ("a = Constant<value_ints=[-1,1]>() y = Unsqueeze(x, a)", {"x": (2, 3)}, {}),
    ("y = Transpose(x)", {"x": (2, 3, 4)}, {"batched": False}),
    ("y = Transpose<perm=[0,2,3,1]>(x)", {"x": (2, 3, 4, 2)}, {}),
    ("y = Transpose<perm=[2,0,1]>(x)", {"x": (2, 3, 4)}, {"batched": False}),
    ("s = Constant<value_ints=[2,3,4,5]>() y = Expand(x, s)", {"x": (2, 3, 1, 1)}, {}),
    ("s = Constant<value_ints=[2,3,4]>() y = Expand(x, s)", {"x": (4,)}, {"batched": False}),
    ("s = Constant<value_ints=[1,1,1]>() y = Expand(x, s)", {"x": (2, 3, 4)}, {"forms": KNOWN}),
    ("y = Concat<axis=1>(a, b, c)", {"a": (2, 3, 2), "b": (2, 1, 2), "c": (2, 4, 2)}, {}),
    ("y = Concat<axis=-1>(a, b)", {"a": (2, 3, 2), "b": (2, 3, 4)}, {}),
    ("y = Concat<axis=1>(a, a)", {"a": (2, 3, 2)}, {}),
    ("y = Concat<axis=1>(a)", {"a": (2, 3, 2)}, {}),
    ("y = Concat<axis=0>(a, b)", {"a": (2, 3), "b": (1, 3)}, {"batched": False}),
    ("p, q = Split<axis=1, num_outputs=2>(x) y = Mul(p, q)", {"x": (2, 4, 3)}, {}),
    ("p, q = Split<axis=1, num_outputs=2>(x) s = Relu(p) y = Concat<axis=1>(s, q)", {"x": (2, 5, 3)}, {}),
    ("p, q, r = Split<axis=-1, num_outputs=3>(x) y = Relu(q)", {"x": (2, 4, 6)}, {}),
    (PIECES + "u = Concat<axis=1>(p, r) y = Relu(u)", {"x": (2, 7)}, {}),
    (PIECES + "u = Concat<axis=1>(q, t) y = Relu(u)", {"x": (2, 7)}, {}),
    ("p, q = Split<axis=0, num_outputs=2>(x) y = Mul(p, q)", {"x": (4, 3)}, {"batched": False}),
    ("r = Constant<value_ints=[1,2,3]>() y = Tile(x, r)", {"x": (2, 3, 4)}, {}),
    ("r = Constant<value_ints=[3,1]>() y = Tile(x, r)", {"x": (2, 3)}, {"batched": False}),
    ("r = Constant<value_ints=[1,1]>() y = Tile(x, r)", {"x": (2, 3)}, {}),
    ("y = DepthToSpace<blocksize=2>(x)", {"x": (2, 8, 2, 3)}, {}),
    ('y = DepthToSpace<blocksize=2, mode="CRD">(x)', {"x": (2, 8, 2, 3)}, {"forms": KNOWN}),
    ("y = SpaceToDepth<blocksize=2>(x)", {"x": (2, 2, 4, 6)}, {}),
]  # fmt: skip


@pytest.mark.parametrize(("body", "inputs", "options"), CASES)
def test_gradient(check, body, inputs, options):
    check(body, inputs, **{"batched": True, **options})


def test_every_rule_has_a_case(check):
    assert not check.untested("pycam.grad.shape", CASES)


def test_repeats_that_the_graph_computes(check):
    check("y = Tile(x, r)", {"x": (2, 3), "r": np.array([2, 3])}, wrt=["x"])


def test_crd_needs_the_number_of_channels(check):
    with pytest.raises(UnsupportedOpError, match="CRD"):
        check.gradient('y = DepthToSpace<blocksize=2, mode="CRD">(x)', {"x": (2, 8, 2, 3)}, form="dynamic")


FRONT = "t = Transpose<perm=[1,0,2]>(x) z = Constant<value_ints=[0]>() "


@pytest.mark.parametrize(
    "picked",
    [
        "p, q, r = Split<axis=0, num_outputs=3>(t) y = Mul(p, q)",
        "i = Constant<value_int=1>() j = Constant<value_int=-1>() p = Gather(t, i) q = Gather(t, j) y = Mul(p, q)",
        "s = Constant<value_ints=[1]>() e = Constant<value_ints=[2]>() p = Slice(t, s, e, z) y = Squeeze(p, z)",
    ],
)
def test_queries_keys_and_values_are_cut_from_axis_0(check, picked):
    """Vision transformers bring (3, N, …) to the front and pick from axis 0, which then is not the batch."""
    check(FRONT + picked, {"x": (2, 3, 4)})
