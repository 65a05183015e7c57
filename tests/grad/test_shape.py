"""Gradients of the ops that move values."""

from __future__ import annotations

import numpy as np
import pytest

from pycam.errors import BatchAxisError

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
    ('y = DepthToSpace<blocksize=2, mode="CRD">(x)', {"x": (2, 8, 2, 3)}, {}),
    ("y = SpaceToDepth<blocksize=2>(x)", {"x": (2, 2, 4, 6)}, {}),
    *((f"s = Constant<value_ints={to}>() y = CenterCropPad<axes={axes}>(x, s)", {"x": (2, 4, 5)}, {})
      for axes, to in (("[1,2]", "[2,2]"), ("[1,2]", "[7,8]"), ("[-1]", "[6]"), ("[1,-1]", "[3,9]"), ("[2]", "[5]"))),
    ("s = Constant<value_ints=[3,4]>() y = CenterCropPad(x, s)", {"x": (2, 5)}, {"batched": False}),
    ("y = ReverseSequence<batch_axis=0, time_axis=1>(x, n)", {"x": (2, 4, 2), "n": np.array([2, 4])},
     {"forms": KNOWN[:1]}),
    ("y = ReverseSequence(x, n)", {"x": (4, 3), "n": np.array([1, 3, 4])}, {"batched": False}),
]  # fmt: skip


@pytest.mark.parametrize(("body", "inputs", "options"), CASES)
def test_gradient(check, body, inputs, options):
    check(body, inputs, **{"batched": True, **options})


def test_every_rule_has_a_case(check):
    assert not check.untested("pycam.grad.shape", CASES)


def test_sizes_that_the_graph_computes(check):
    body = "p, q, r = Split<axis=1>(x, s) y = Relu(q)"
    check(body, {"x": (2, 7), "s": np.array([1, 4, 2])}, wrt=["x"])
    for to in (2, 4, 7):
        body = "y = CenterCropPad<axes=[1]>(x, s)"
        check(body, {"x": (2, 4, 3), "s": np.array([to])}, wrt=["x"], forms=("static", "dynamic"))


def test_a_split_into_many(check):
    pieces = ", ".join(f"p{i}" for i in range(24))
    check(f"{pieces} = Split<axis=1, num_outputs=24>(x) a = Mul(p3, p20) y = Mul(a, p21)", {"x": (2, 48)}, batched=True)


def test_sequences_of_several_targets_belong_to_the_images(check):
    with pytest.raises(BatchAxisError, match="same lengths"):
        check("y = ReverseSequence(x, n)", {"x": (3, 2), "n": np.array([1, 3])}, forms=("static",), batched=True)


def test_repeats_that_the_graph_computes(check):
    check("y = Tile(x, r)", {"x": (2, 3), "r": np.array([2, 3])}, wrt=["x"])


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_space_to_depth_of_opset_28(check, mode):
    """It has a mode from there on, which onnxruntime 1.32 does not know."""
    check(f'y = SpaceToDepth<blocksize=2, mode="{mode}">(x)', {"x": (2, 2, 4, 2)}, opset=28, runtime=False)


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
