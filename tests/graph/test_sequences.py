"""Sequences and optionals are normalised away, and nothing is computed otherwise for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import parser

from pycam.errors import UnsupportedOpError
from pycam.gradient import vjp

ONE, TWO = "one = Constant<value = int64 {1}>() ", "two = Constant<value = int64 {2}>() "
JOIN = "y = ConcatFromSequence<axis = 0>(m)"
LOOP = (
    "n = Constant<value = int64 {3}>() e = SequenceEmpty<dtype = 11>() "
    "f, l = Loop<body = b (int64 i, bool go, double[] h, seq(double[]) q) => (bool on, double[] h1, seq(double[]) q1) "
    "{ on = Identity(go) u = Gather(x, i) p = Mul(h, u) h1 = Sin(p) q1 = SequenceInsert(q, h1) }>(n, , s, e) "
)
INPUTS = {"x": (3, 4), "s": (4,)}

RESOLVED = {
    "split and at": "l = SplitToSequence(x) " + ONE + "a = SequenceAt(l, one) y = Mul(a, x)",
    "split without keeping the axis": "l = SplitToSequence<axis = 1, keepdims = 0>(x) " + ONE
    + "a = SequenceAt(l, one) y = Mul(a, a)",
    "negative position": "l = SplitToSequence<axis = -1>(x) m = Constant<value = int64 {-1}>() a = SequenceAt(l, m) "
    "y = Mul(a, x)",
    "split in twos": "l = SplitToSequence<axis = 0>(x, two) " + ONE + "a = SequenceAt(l, one) y = Mul(a, a)",
    "split in given sizes": "z = Constant<value = int64[2] {1, 3}>() l = SplitToSequence<axis = 1>(x, z) " + ONE
    + "a = SequenceAt(l, one) y = Mul(a, a)",
    "split and joined": "l = SplitToSequence<axis = 1>(x) a = ConcatFromSequence<axis = 1>(l) y = Mul(a, a)",
    "unbound and stacked": "l = SplitToSequence<axis = 1, keepdims = 0>(x) "
    "a = ConcatFromSequence<axis = 0, new_axis = 1>(l) y = Mul(a, a)",
    "unbound and joined": "z = Unsqueeze(x, k) l = SplitToSequence<axis = 1, keepdims = 0>(z) "
    "a = ConcatFromSequence<axis = 1>(l) y = Mul(a, a)",
    "made and joined": "t = Sin(x) l = SequenceConstruct(x, t) a = ConcatFromSequence<axis = 1>(l) y = Mul(a, a)",
    "made and stacked": "t = Sin(x) l = SequenceConstruct(x, t) a = ConcatFromSequence<axis = -1, new_axis = 1>(l) "
    "y = Mul(a, a)",
    "an element at run time": "t = Sin(x) l = SequenceConstruct(x, t) a = SequenceAt(l, at) y = Mul(a, x)",
    "inserted": "e = SequenceEmpty<dtype = 11>() t = Sin(x) l0 = SequenceInsert(e, x) "
    "z = Constant<value = int64 {0}>() l1 = SequenceInsert(l0, t, z) a = ConcatFromSequence<axis = 1>(l1) "
    "b = Cos(a) y = Mul(a, b)",
    "erased": "t = Sin(x) c = Cos(x) l = SequenceConstruct(x, t, c) " + ONE + "l1 = SequenceErase(l, one) "
    "a = ConcatFromSequence<axis = 1>(l1) y = Mul(a, a)",
    "its length": "t = Sin(x) l = SequenceConstruct(x, t) n = SequenceLength(l) c = Cast<to = 11>(n) a = Mul(x, c) "
    "y = Mul(a, t)",
    "the length of a split": "l = SplitToSequence<axis = 1>(x) n = SequenceLength(l) c = Cast<to = 11>(n) "
    "a = Mul(x, c) y = Mul(a, x)",
    "an optional": "o = Optional(x) h = OptionalHasElement(o) g = OptionalGetElement(o) c = Cast<to = 11>(h) "
    "a = Mul(g, c) y = Mul(a, g)",
    "no optional": "h = OptionalHasElement(x) g = OptionalGetElement(x) c = Cast<to = 11>(h) a = Mul(g, c) "
    "y = Mul(a, g)",
    "in a branch": ONE + "l = SplitToSequence<axis = 1>(x) y = If(flag) <then_branch = t () => (double[] a) "
    "{ p = SequenceAt(l, one) a = Mul(p, x) }, else_branch = f () => (double[] b) { b = Sin(x) }>",
    "a list made in a Loop, stacked": LOOP + "a = ConcatFromSequence<axis = 0, new_axis = 1>(l) y = Mul(a, f)",
    "a list made in a Loop, stacked behind": LOOP + "a = ConcatFromSequence<axis = 1, new_axis = 1>(l) y = Mul(a, a)",
    "a list made in a Loop, joined": LOOP + "a = ConcatFromSequence<axis = 0>(l) y = Mul(a, a)",
    "an element of a list made in a Loop": LOOP + ONE + "a = SequenceAt(l, one) y = Mul(a, f)",
    "a list read in a Loop": "n = Constant<value = int64 {3}>() l = SplitToSequence<axis = 0, keepdims = 0>(x) "
    "y = Loop<body = b (int64 i, bool go, double[] h) => (bool on, double[] h1) "
    "{ on = Identity(go) u = SequenceAt(l, i) p = Mul(h, u) h1 = Sin(p) }>(n, , s) ",
}  # fmt: skip


def _model(body: str, form: str) -> onnx.ModelProto:
    shapes = {"static": "double[3, 4] x, double[4] s", "dynamic": "double[A, B] x, double[B] s"}[form]
    text = f'<ir_version: 10, opset_import: ["" : 21]> f ({shapes}, int64 at, bool flag) => (double[] y) {{ {body} }}'
    model = parser.parse_model(text)
    constants = {"k": np.array([2]), "two": np.array(2)}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(a, name) for name, a in constants.items())
    return model


def _run(model: onnx.ModelProto, feed: dict[str, Any], names: list[str]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    known = {i.name for i in session.get_inputs()}
    return list(session.run(names, {k: v for k, v in feed.items() if k in known}))


@pytest.mark.parametrize("form", ["static", "dynamic"])
@pytest.mark.parametrize("body", RESOLVED.values(), ids=RESOLVED)
def test_resolved(body: str, form: str) -> None:
    if form == "dynamic" and ("(x, two)" in body or "SequenceAt(l, at)" in body):
        pytest.skip("how many pieces there are is known only when the graph runs")
    rng = np.random.default_rng(0)
    feed = {"x": rng.normal(size=(3, 4)), "s": rng.normal(size=4), "at": np.array(1), "flag": np.array(True)}
    model = _model(body, form)
    (y,) = _run(model, feed, ["y"])
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.DOUBLE, [None] * y.ndim))
    differentiated = vjp(model, ["x"])
    assert not {n.op_type for n in differentiated.graph.node if "Sequence" in n.op_type or "Optional" in n.op_type}
    cotangent = rng.normal(size=y.shape)
    again, gradient = _run(differentiated, {**feed, "y.cotangent": cotangent}, ["y", "x.gradient"])
    np.testing.assert_allclose(again, y, rtol=1e-12)
    for index in np.ndindex(3, 4):
        step = np.zeros((3, 4))
        step[index] = 1e-6
        ahead, behind = (_run(model, {**feed, "x": feed["x"] + sign * step}, ["y"])[0] for sign in (1, -1))
        want = float(np.sum(cotangent * (ahead - behind)) / 2e-6)
        assert gradient[index] == pytest.approx(want, rel=1e-6, abs=1e-7)


def test_names_stay() -> None:
    model = _model(RESOLVED["split and at"], "static")
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.DOUBLE, [3, 4]))
    names = {y for n in vjp(model, ["a"]).graph.node for y in n.output}
    assert {"a", "y", "a.gradient"} <= names


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (
            "l = SplitToSequence<axis = 0>(x, at) " + ONE + "a = SequenceAt(l, one) y = Mul(a, a)",
            "could not be followed",
        ),
        (
            "l = SplitToSequence(x) m = SequenceMap<body = b (double[] p) => (double[] q) { q = Sin(p) }>(l) " + JOIN,
            "could not be followed|subgraph for every element",
        ),
        (
            LOOP.replace("SequenceInsert(q, h1)", "SequenceInsert(q, h1, i)") + "y = ConcatFromSequence<axis = 0>(l)",
            "sequence",
        ),
    ],
)
def test_what_cannot_be_followed_is_refused(body: str, why: str) -> None:
    model = _model(body, "dynamic")
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.DOUBLE, [None] * 2))
    with pytest.raises(UnsupportedOpError, match=why):
        vjp(model, ["x"])
