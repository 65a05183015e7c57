"""Rules of the nodes with subgraphs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import parser

from pycam.errors import BatchAxisError, UnsupportedOpError
from pycam.grad import differentiate
from pycam.gradient import vjp
from pycam.graph.builder import Builder

TRUE, FALSE = np.array(True), np.array(False)


def _if(then: str, otherwise: str, outputs: str = "z", condition: str = "c", makes: str = "ab") -> str:
    """Branches make `a` and `b` (and `a1`, `b1`, … for more outputs), or what `makes` names."""
    more = [str(k or "") for k in range(outputs.count(",") + 1)]
    branches = [
        f"{name} = {name} () => ({', '.join(f'double[] {v}{k}' for k in more)}) {{ {body} }}"
        for name, v, body in (("then_branch", makes[0], then), ("else_branch", makes[1], otherwise))
    ]
    return f"{outputs} = If({condition}) <{', '.join(branches)}> "


IFS = {
    "both read x": _if("p = MatMul(x, w) a = Tanh(p)", "q = Neg(x) b = Mul(q, x)") + "y = Mul(z, z)",
    "what only one reads": _if("a = Mul(x, x)", "b = MatMul(v, w)") + "y = Add(z, x)",
    "values from between": "u = Tanh(x) " + _if("a = Mul(u, u)", "b = MatMul(u, w)") + "y = Mul(z, u)",
    "an outer value as it is": _if("a = Identity(x)", "b = Tanh(v)") + "y = Mul(z, z)",
    "a constant branch": _if("p = Shape(x) a = ConstantOfShape<value = double[1] {2.0}>(p)", "b = Exp(x)")
    + "y = Mul(z, x)",
    "several outputs": _if("a = Tanh(x) a1 = Mul(x, v)", "b = MatMul(x, w) b1 = Neg(v)", "z, z1") + "y = Mul(z, z1)",
    "the same output twice": _if("a = Tanh(x) a1 = Identity(a)", "b = Exp(x) b1 = Neg(b)", "z, z1") + "y = Mul(z, z1)",
    "an unused output": _if("a = Tanh(x) a1 = Mul(x, v)", "b = MatMul(x, w) b1 = Neg(v)", "z, z1") + "y = Mul(z, x)",
    "nested": _if(
        "s = ReduceSum<keepdims = 0>(x) k = Constant<value = double {0.5}>() d = Less(s, k)"
        + _if("e = Tanh(x)", "f = Mul(x, x)", "i", "d", "ef")
        + "j = MatMul(i, w) a = Mul(i, j)",
        "b = Sin(x)",
    )
    + "y = Mul(z, x)",
}


@pytest.mark.parametrize("condition", [TRUE, FALSE])
@pytest.mark.parametrize("body", IFS.values(), ids=IFS)
def test_if(check: Any, body: str, condition: np.ndarray) -> None:
    inputs = {"x": (2, 3), "v": (2, 3), "w": (3, 3), "c": condition}
    unused = "v" if "z1 = If" in body and "z1)" not in body else ""
    check(body, inputs, wrt=[name for name in "xvw" if (f"({name}" in body or f" {name})" in body) and name != unused])


def test_if_writes_down_what_its_gradient_reads(check: Any) -> None:
    """The product is computed once, whichever branch runs."""
    inputs = {"x": (2, 3), "v": (2, 3), "w": (3, 3), "c": TRUE}
    model = vjp(check.model(IFS["both read x"], inputs), ["x"])
    backward = [n for n in model.graph.node if n.op_type == "If"][1]
    ops = [n.op_type for a in backward.attribute for n in a.g.node]
    assert ops.count("MatMul") == 1  # that with the transposed weights
    assert "Tanh" not in ops


def _scan(body: str, states: str, outputs: str, inputs: str, given: str, made: str, **attributes: Any) -> str:
    options = "".join(f", {k} = [{', '.join(map(str, v))}]" for k, v in attributes.items())
    count = len(inputs.split(",")) if inputs else 0
    head = ", ".join(f"double[] {v.strip()}" for v in f"{states}, {inputs}".split(",") if v.strip())
    tail = ", ".join(f"double[] {v.strip()}" for v in outputs.split(","))
    return f"{made} = Scan<num_scan_inputs = {count}{options}, body = f ({head}) => ({tail}) {{ {body} }}>({given}) "


_STEP = "m = MatMul(h, w) n = Add(m, u) h1 = Tanh(n) o = Mul(h, h1)"
SCANS: dict[str, tuple[str, dict[str, Any]]] = {
    "state and output": (
        _scan(_STEP, "h", "h1, o", "u", "s, x", "f, t") + "a = Mul(t, t) y = Mul(a, f)",
        {"x": (4, 2, 3), "s": (2, 3), "w": (3, 3)},
    ),
    "only the last state": (
        _scan(_STEP, "h", "h1, o", "u", "s, x", "f, t") + "y = Mul(f, f)",
        {"x": (4, 2, 3), "s": (2, 3), "w": (3, 3)},
    ),
    "only the outputs, backwards": (
        _scan(_STEP, "h", "h1, o", "u", "s, x", "f, t", scan_input_directions=[1]) + "y = Mul(t, t)",
        {"x": (4, 2, 3), "s": (2, 3), "w": (3, 3)},
    ),
    "outputs put in front": (
        _scan(_STEP, "h", "h1, o", "u", "s, x", "f, t", scan_output_directions=[1]) + "y = Mul(t, x)",
        {"x": (4, 2, 3), "s": (2, 3), "w": (3, 3)},
    ),
    "axes": (
        _scan(_STEP, "h", "h1, o", "u", "s, x", "f, t", scan_input_axes=[1], scan_output_axes=[2]) + "y = Mul(t, t)",
        {"x": (2, 4, 3), "s": (2, 3), "w": (3, 3)},
    ),
    "negative axes, backwards": (
        _scan(_STEP, "h", "h1, o", "u", "s, x", "f, t", scan_input_axes=[-1], scan_output_axes=[-2],
              scan_input_directions=[1], scan_output_directions=[1]) + "y = Mul(t, t)",
        {"x": (2, 3, 4), "s": (2, 3), "w": (3, 3)},
    ),
    "two states and two inputs": (
        _scan("p = Mul(h, u) h1 = Add(p, k) q = Sin(h1) k1 = Mul(q, v) o = Mul(k, u)", "h, k", "h1, k1, o", "u, v",
              "s, s, x, z", "f, k9, t", scan_input_directions=[0, 1]) + "a = Mul(t, f) y = Add(a, k9)",
        {"x": (3, 2), "z": (3, 2), "s": (2,)},
    ),
    "no state": (
        _scan("o = MatMul(u, w)", "", "o", "u", "x", "t") + "y = Mul(t, t)",
        {"x": (4, 2, 3), "w": (3, 3)},
    ),
    "a state that is not read": (
        _scan("h1 = Neg(h) o = Tanh(u)", "h", "h1, o", "u", "s, x", "f, t") + "y = Mul(t, f)",
        {"x": (3, 2), "s": (2,)},
    ),
    "a value in three places": (
        _scan("a = Mul(h, u) b = ReduceSum<keepdims = 0>(s) h1 = Mul(a, b) o = Identity(h1)", "h", "h1, o", "u", "s, x",
              "f, t") + "y = Mul(t, f)",
        {"x": (3, 3), "s": (3,)},
    ),
    "linear: nothing is read": (
        _scan("h1 = Add(h, u) o = Neg(h1)", "h", "h1, o", "u", "s, x", "f, t") + "y = Add(t, f)",
        {"x": (3, 2), "s": (2,)},
    ),
    "an If inside": (
        _scan("b = ReduceSum<keepdims = 0>(u) zero = Constant<value = double {0.0}>() c = Less(b, zero) "
              + _if("d = MatMul(h, w)", "e = Mul(h, u)", "i", makes="de")
              + "h1 = Tanh(i) o = Mul(h1, u)", "h", "h1, o", "u", "s, x", "f, t") + "y = Mul(t, f)",
        {"x": (4, 2, 3), "s": (2, 3), "w": (3, 3)},
    ),
    "a Scan inside": (
        _scan(_scan("g1 = Mul(g, e) r = Sin(g1)", "g", "g1, r", "e", "h, u", "h1, rs")
              + "q = ReduceSum<keepdims = 0>(rs) o = Mul(h1, q)", "h", "h1, o", "u", "s, x", "f, t") + "y = Mul(t, f)",
        {"x": (2, 3, 2), "s": (2,)},
    ),
    "one step": (
        _scan(_STEP, "h", "h1, o", "u", "s, x", "f, t") + "y = Mul(t, f)",
        {"x": (1, 2, 3), "s": (2, 3), "w": (3, 3)},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("body", "inputs"), SCANS.values(), ids=SCANS)
def test_scan(check: Any, body: str, inputs: dict[str, Any]) -> None:
    check(body, inputs)


def _loop(body: str, states: str, outputs: str, given: str, made: str) -> str:
    head = ", ".join(["int64 i", "bool go", *(f"double[] {v.strip()}" for v in states.split(",") if v.strip())])
    tail = ", ".join(["bool on", *(f"double[] {v.strip()}" for v in outputs.split(","))])
    return f"{made} = Loop<body = f ({head}) => ({tail}) {{ {body} }}>({given}) "


_GO = "yes = Constant<value = bool {1}>() "
_THREE = "n = Constant<value = int64 {3}>() "
_ON = "on = Identity(go) "
LOOPS: dict[str, tuple[str, dict[str, Any]]] = {
    "state, output and a captured row": (
        _loop(_ON + "u = Gather(x, i) m = MatMul(h, w) k = Add(m, u) h1 = Tanh(k) o = Mul(h, h1)", "h", "h1, o",
              "n, , s", "f, t") + "a = Mul(t, t) y = Mul(a, f)",
        {"x": (4, 2, 3), "s": (2, 3), "w": (3, 3), "n": np.array(4)},
    ),
    "known number of steps": (
        _THREE + _GO + _loop(_ON + "a = Sin(h) h1 = Mul(a, s)", "h", "h1", "n, yes, s", "f") + "y = Mul(f, f)",
        {"s": (2, 3)},
    ),
    "the number of the step": (
        _THREE + _loop(_ON + "a = Cast<to = 11>(i) b = Mul(h, a) h1 = Sin(b) o = Mul(h1, a)", "h", "h1, o", "n, , s",
                       "f, t") + "a = ReduceSum<keepdims = 0>(t) y = Mul(f, a)",
        {"s": (2, 3)},
    ),
    "an early end": (
        "n = Constant<value = int64 {9}>() " + _GO
        + _loop("a = Mul(h, w) h1 = Add(a, h) b = ReduceSum<keepdims = 0>(h1) k = Constant<value = double {9.0}>() "
                "on = Less(b, k)", "h", "h1", "n, yes, s", "f") + "y = Mul(f, f)",
        {"s": np.array([1.0, 0.5]), "w": np.array([0.6, 0.9])},
    ),
    "as long as the condition holds": (
        _GO + _loop("a = Mul(h, w) h1 = Add(a, h) b = ReduceSum<keepdims = 0>(h1) k = Constant<value = double {9.0}>() "
                    "on = Less(b, k)", "h", "h1", ", yes, s", "f") + "y = Mul(f, f)",
        {"s": np.array([1.0, 0.5]), "w": np.array([0.6, 0.9])},
    ),
    "linear": (_loop(_ON + "h1 = Add(h, h)", "h", "h1", "n, , s", "f") + "y = Neg(f)", {"s": (2,), "n": np.array(3)}),
    "no step": (
        _loop(_ON + "a = MatMul(h, w) h1 = Tanh(a)", "h", "h1", "n, , s", "f") + "y = Mul(f, f)",
        {"s": (2, 3), "w": (3, 3), "n": np.array(0)},
    ),
    "no step by the condition": (
        _THREE + _loop(_ON + "a = MatMul(h, w) h1 = Tanh(a)", "h", "h1", "n, c, s", "f") + "y = Mul(f, f)",
        {"s": (2, 3), "w": (3, 3), "c": FALSE},
    ),
    "no state": (
        _THREE + _GO + _loop(_ON + "u = Gather(x, i) o = MatMul(u, w)", "", "o", "n, yes", "t") + "y = Mul(t, t)",
        {"x": (3, 2, 3), "w": (3, 3)},
    ),
    "states exchanged": (
        _THREE + _loop(_ON + "h1 = Identity(k) k1 = Mul(h, k)", "h, k", "h1, k1", "n, , s, x", "f, e")
        + "y = Mul(f, e)",
        {"s": (2,), "x": (2,)},
    ),
    "an integer handed on": (
        _THREE + _loop(_ON + "two = Constant<value = int64 {2}>() j1 = Mul(j, two) a = Cast<to = 11>(j) b = Mul(h, a) "
                       "h1 = Sin(b)", "h, j", "h1, j1", "n, , s, one", "f, e").replace("double[] j", "int64 j")
        + "y = Mul(f, f)",
        {"s": (2, 3), "one": np.array(1)},
    ),
    "a Loop inside": (
        _THREE + _loop(
            _ON + "j = Add(i, n) " + _loop(_ON.replace("on", "on2") + "g1 = Sin(g)", "g", "g1", "j, , h", "q")
            .replace("bool on)", "bool on2)").replace("bool on,", "bool on2,").replace("int64 i,", "int64 i2,")
            .replace("bool go,", "bool go2,").replace("(go)", "(go2)") + "h1 = Mul(q, s)", "h", "h1", "n, , s", "f",
        ) + "y = Mul(f, f)",
        {"s": (2,)},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("body", "inputs"), LOOPS.values(), ids=LOOPS)
def test_loop(check: Any, body: str, inputs: dict[str, Any]) -> None:
    check(body, inputs)


def _run(model: Any, feed: dict[str, Any], names: list[str]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(names, feed))


def test_an_untouched_value_comes_back_from_no_step(check: Any) -> None:
    """With no step a Loop is the identity."""
    body, inputs = LOOPS["no step"]
    cotangent = np.arange(6.0).reshape(2, 3)
    got = check.gradient(body.replace("y = Mul(f, f)", "y = Identity(f)"), inputs, cotangent, wrt=["s"])
    np.testing.assert_array_equal(got, cotangent)


_CHANCE = (
    '<ir_version: 10, opset_import: ["" : 21]> f (float[4, 3] x, float[3] s) => (float[4, 3] y) { '
    "f, y = Scan<num_scan_inputs = 1, body = b (float[] h, float[] u) => (float[] h1, float[] o) "
    "{ r = RandomUniformLike(u) o = Mul(u, r) h1 = Identity(h) }>(s, x) }"
)


def test_random_numbers_are_those_of_the_forward_pass() -> None:
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    feed = {"x": x, "s": x[0], "y.cotangent": np.ones((4, 3), np.float32)}
    y, gradient = _run(vjp(parser.parse_model(_CHANCE), ["x"]), feed, ["y", "x.gradient"])
    np.testing.assert_allclose(gradient * x, y, rtol=1e-5)


def test_float16() -> None:
    text = (
        '<ir_version: 10, opset_import: ["" : 21]> f (FLOAT[5, 2] x, FLOAT[2] s, FLOAT[2, 2] w, bool c) '
        "=> (FLOAT[2] y) { "
        "h0 = If(c) <then_branch = t () => (FLOAT[] a) { a = Tanh(s) }, "
        "else_branch = e () => (FLOAT[] b) { b = Neg(s) }> "
        "y, o = Scan<num_scan_inputs = 1, body = b (FLOAT[] h, FLOAT[] u) => (FLOAT[] h1, FLOAT[] o) "
        "{ m = MatMul(h, w) n = Add(m, u) h1 = Tanh(n) o = Mul(u, h) }>(h0, x) }"
    )
    rng = np.random.default_rng(0)
    feed = {
        "x": rng.normal(size=(5, 2)),
        "s": rng.normal(size=2),
        "w": rng.normal(size=(2, 2)),
        "y.cotangent": np.ones(2),
    }
    names = ["x.gradient", "s.gradient", "w.gradient"]
    half, single = (
        _run(
            vjp(parser.parse_model(text.replace("FLOAT", dtype)), ["x", "s", "w"]),
            {**{k: v.astype(dtype.replace("float", "float32") if dtype == "float" else dtype) for k, v in feed.items()},
             "c": TRUE},
            names,
        )
        for dtype in ("float16", "float")
    )  # fmt: skip
    for name, a, b in zip(names, half, single, strict=True):
        assert a.dtype == np.float16
        np.testing.assert_allclose(a, b, rtol=0.02, atol=0.02, err_msg=name)


@pytest.mark.parametrize(
    ("body", "inputs"),
    [
        (IFS["both read x"], {"x": (2, 3), "w": (3, 3), "c": TRUE}),
        SCANS["state and output"],
        LOOPS["state, output and a captured row"],
    ],
    ids=["If", "Scan", "Loop"],
)
def test_targets_do_not_share_a_pass(check: Any, body: str, inputs: dict[str, Any]) -> None:
    graph = check.graph(check.model(body, inputs))
    seed = ir.Value(name="seed", shape=graph.outputs[0].shape, type=graph.outputs[0].type)
    count = ir.Value(name="count", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT64))
    with pytest.raises(BatchAxisError, match="one target per image"):
        differentiate(Builder(graph), {graph.outputs[0]: seed}, [graph.inputs[0]], count=count)


def test_a_growing_state_is_refused(check: Any) -> None:
    body = _THREE + _loop(_ON + "h1 = Concat<axis = 0>(h, s)", "h", "h1", "n, , s", "f") + "y = ReduceSum(f)"
    with pytest.raises(UnsupportedOpError, match="axis 0 has 2 positions before the first step and 4 behind it"):
        vjp(check.model(body, {"s": (2,)}), ["s"])


def test_random_numbers_that_cannot_be_kept_are_refused(check: Any) -> None:
    step = "k = NonZero(u) p = Gather(u, k) r = RandomUniformLike(p) m = Mul(p, r) o = ReduceSum<keepdims = 0>(m)"
    body = _scan(step, "", "o", "u", "x", "y")
    with pytest.raises(UnsupportedOpError, match="RandomUniformLike within it draws an unknown number of values"):
        vjp(check.model(body, {"x": (3, 2)}), ["x"])


def test_names_and_outputs_of_the_model_stay(check: Any) -> None:
    body, inputs = LOOPS["state, output and a captured row"]
    model = check.model(body, inputs)
    differentiated = vjp(model, ["x"])
    assert [v.name for v in differentiated.graph.output] == ["y", "x.gradient"]
    loop = next(n for n in differentiated.graph.node if n.op_type == "Loop")
    assert list(loop.output[:2]) == ["f", "t"]
    assert "f.gradient" in [v.name for v in vjp(model, ["f"]).graph.output]  # also what the Loop made
