"""Quantised values are differentiated straight-through, in float; casts are passed."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from pycam.errors import LayerError, UnsupportedOpError
from pycam.grad import registry
from pycam.gradient import vjp

MODULE = "pycam.grad.quantised"
RNG = np.random.default_rng(0)

BATCHED = {"batched": True}
CASES: dict[str, Any] = {
    "Cast to the same": ("s = Mul(x, x) y = Cast<to=11>(s)", {"x": (2, 3)}, BATCHED),
}
ROUND_TRIP = "q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)"
DYNAMIC = "f = Cast<to=1>(x) q, s, z = DynamicQuantizeLinear(f) d = DequantizeLinear(q, s, z) y = Cast<to=11>(d)"
SQUARED = (
    "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = Mul(d, d)",
    {"x": np.array([-0.26, 0.1, 0.76])},
    {"weights": {"s": 0.5, "z": np.array(0, np.int8)}},
)


def slopes(check: Any, x: Any, s: Any, z: Any, body: str = ROUND_TRIP, **options: Any) -> Any:
    return check.gradient(body, {"x": np.asarray(x)}, weights={"s": np.asarray(s), "z": z}, **options).tolist()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_gradient(check: Any, case: tuple[Any, ...]) -> None:
    body, inputs, *options = case
    check(body, inputs, **(options[0] if options else {}))


def test_every_rule_has_a_case(check: Any) -> None:
    cases = [*CASES.values(), SQUARED, (DYNAMIC, {"x": (2, 3)})]
    assert check.untested(MODULE, cases) == set()
    assert check.untested(MODULE, cases[:1]) == {
        ("QuantizeLinear", 0), ("DequantizeLinear", 0), ("DynamicQuantizeLinear", 0)
    }  # fmt: skip


# ── straight-through ────────────────────────────────────────────────────────────────────────────────────────────────


def test_quantisation_is_passed_straight_through(check: Any) -> None:
    body, inputs, options = SQUARED
    assert check.gradient(body, inputs, **options).tolist() == [-1, 0, 2]  # 2·d, at the quantised d


def test_a_range_that_begins_at_0_has_absorbed_a_relu(check: Any) -> None:
    """What it cuts off at the top passes: that is the quantiser's doing, not the network's."""
    x = [-1.0, 0.0, 0.5, 100.0, 200.0]
    assert slopes(check, x, 0.5, np.uint8(0)) == [0, 0, 1, 1, 1]
    assert slopes(check, x, 0.5, np.int8(-128)) == [0, 0, 1, 1, 1]
    assert slopes(check, x, 0.5, np.uint16(0)) == [0, 0, 1, 1, 1]


def test_a_range_from_0_to_6_has_absorbed_a_relu6(check: Any) -> None:
    x = [-1.0, 0.0, 0.5, 5.9, 6.0, 7.0]
    assert slopes(check, x, 6 / 255, np.uint8(0)) == [0, 0, 1, 1, 0, 0]
    assert slopes(check, x, 5.97 / 255, np.int8(-128)) == [0, 0, 1, 1, 0, 0]  # as calibrated
    assert slopes(check, x, 5.0 / 255, np.uint8(0)) == [0, 0, 1, 1, 1, 1]


def test_a_range_with_both_signs_absorbs_nothing(check: Any) -> None:
    """Other than PyTorch's fake-quantise: the best class, beyond what the calibration saw, keeps its gradient."""
    assert slopes(check, [-100.0, 0.0, 100.0], 0.5, np.uint8(128)) == [1, 1, 1]
    assert slopes(check, [-100.0, 0.0, 100.0], 0.5, np.int8(0)) == [1, 1, 1]


def test_a_zero_point_that_is_left_out_is_0(check: Any) -> None:
    got = check.gradient("q = QuantizeLinear(x, s) y = DequantizeLinear(q, s)", {"x": np.array([-1.0, 1.0])},
                         weights={"s": 0.5})  # fmt: skip
    assert got.tolist() == [0, 1]
    got = check.gradient("q = QuantizeLinear<output_dtype=3>(x, s) y = DequantizeLinear(q, s)",
                         {"x": np.array([-1.0, 1.0])}, weights={"s": 0.5})  # fmt: skip
    assert got.tolist() == [1, 1]


@pytest.mark.parametrize("before", ["Relu", "Sigmoid", "Abs", "Exp", "Softmax"])
def test_what_cannot_be_negative_needs_no_mask(check: Any, before: str) -> None:
    """A mean that rounds to 0 keeps its gradient, and an activation that is there does its own work."""
    body = f"a = {before}(x) q = QuantizeLinear(a, s, z) y = DequantizeLinear(q, s, z)"
    model = vjp(check.model(body, {"x": (1, 4)}, weights={"s": 1000.0, "z": np.uint8(0)}), ["x"])
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("Greater") == (before == "Relu")
    pooled = (
        "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) m = ReduceMean<keepdims=0>(d) "
        "r = QuantizeLinear(m, s, z) y = DequantizeLinear(r, s, z)"
    )
    assert slopes(check, [0.4, 0.0, 0.0, 0.0], 0.4, np.uint8(0), pooled) == [0.25, 0, 0, 0]  # the mean is rounded to 0


def test_a_scale_per_channel(check: Any) -> None:
    x = np.array([[-1.0, -1.0, -1.0], [7.0, 7.0, 7.0]])
    body = "q = QuantizeLinear<axis=1>(x, s, z) y = DequantizeLinear<axis=1>(q, s, z)"
    scale, zero = np.array([6 / 255, 0.5, 0.5]), np.array([0, 0, 9], np.uint8)
    assert slopes(check, x, scale, zero, body) == [[0, 0, 1], [0, 1, 1]]
    assert slopes(check, x, scale, zero, body, form="dynamic") == [[0, 0, 1], [0, 1, 1]]


def test_a_scale_per_block(check: Any) -> None:
    x = np.array([[-1.0, -1.0, -1.0, -1.0], [7.0, 7.0, 7.0, 7.0]])
    body = "q = QuantizeLinear<axis=1, block_size=2>(x, s, z) y = DequantizeLinear<axis=1, block_size=2>(q, s, z)"
    scale, zero = np.array([[6 / 255, 0.5]] * 2), np.array([[0, 9]] * 2, np.uint8)
    assert slopes(check, x, scale, zero, body, runtime=False) == [[0, 0, 1, 1], [0, 0, 1, 1]]
    with pytest.raises(UnsupportedOpError, match="its blocks are quantised differently"):
        slopes(check, x, scale, zero, body, form="dynamic", runtime=False)


@pytest.mark.parametrize(("kind", "zero"), [("UINT4", 0), ("INT4", -8), ("INT4", 0), ("UINT4", 7)])
def test_four_bits(kind: str, zero: int) -> None:
    model = round_trip(getattr(TensorProto, kind), zero)
    got = run(vjp(model, ["x"]), {"x": np.array([-3.0, 1.0, 90.0], np.float32), "y.cotangent": np.ones(3, np.float32)})
    begins = zero == {"UINT4": 0, "INT4": -8}[kind]
    assert got["x.gradient"].tolist() == [0.0 if begins else 1.0, 1, 1]


@pytest.mark.parametrize("kind", ["FLOAT8E4M3FN", "FLOAT8E5M2"])
def test_eight_bit_floats_pass(kind: str) -> None:
    x = np.array([-900.0, 0.0, 1.5, 1e5], np.float32)
    feed = {"x": x, "y.cotangent": np.array([1, 2, 3, 4], np.float32)}
    assert run(vjp(round_trip(getattr(TensorProto, kind), 0), ["x"]), feed)["x.gradient"].tolist() == [1, 2, 3, 4]
    cast = f"(float[4] x) => (float[4] y) {{ h = Cast<to={getattr(TensorProto, kind)}>(x) y = Cast<to=1>(h) }}"
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> g {cast}')
    assert run(vjp(model, ["x"]), feed)["x.gradient"].tolist() == [1, 2, 3, 4]


def round_trip(kind: int, zero: int) -> onnx.ModelProto:
    text = "(float[n] x) => (float[n] y) { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> g {text}')
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "s"))
    model.graph.initializer.append(helper.make_tensor("z", kind, [], [zero]))
    return model


def run(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    known = {i.name for i in session.get_inputs()}
    return dict(zip(names, session.run(names, {k: v for k, v in feed.items() if k in known}), strict=True))


def test_quantised_integers_are_taken_for_the_floats_they_stand_for() -> None:
    """As what is differentiated for, and as what is differentiated: gradients are float, in units of the floats."""
    body = "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) e = Mul(d, d) y = QuantizeLinear(e, s, z)"
    text = f"(float[n] x) => (uint8[n] y) {{ {body} }}"
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> g {text}')
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(ARRAYS[k]), k) for k in ("s", "z"))
    x = np.array([-1.0, 0.5, 2.0], np.float32)
    got = run(vjp(model, ["q", "x"]), {"x": x, "y.cotangent": np.array([1, 10, 100], np.float32)})
    assert got["y"].dtype == np.uint8
    np.testing.assert_allclose(got["q.gradient"], 2 * x * [1, 10, 100], rtol=0.03)
    np.testing.assert_array_equal(got["q.gradient"], got["x.gradient"])


def test_the_gradient_is_differentiated_again(check: Any) -> None:
    """`y = x̂²` ⇒ `dx = 2x̂·dy` ⇒ `d²x = 2·dy`, where the range passes it."""
    body = SQUARED[0]
    first = vjp(check.model(body, {"x": (3,)}, weights={"s": 0.5, "z": np.uint8(0)}), ["x"])
    again = ReferenceEvaluator(vjp(first, ["x"], "x.gradient"))
    feed = {"x": np.array([-1.0, 0.6, 3.0]), "y.cotangent": np.ones(3), "x.gradient.cotangent": np.array([1.0, 2, 3])}
    assert again.run(None, feed)[-1].tolist() == [0, 4, 6]


def test_cast_through_another_precision(check: Any) -> None:
    got = check.gradient("h = Cast<to=1>(x) s = Mul(h, h) y = Cast<to=11>(s)", {"x": np.array([0.5, -3.0])})
    assert got.dtype == np.float64
    assert got.tolist() == [1, -6]


def test_cast_from_integers_has_no_gradient(check: Any) -> None:
    body = "i = Cast<to=7>(x) f = Cast<to=11>(i) y = Add(f, x)"
    assert check.gradient(body, {"x": np.array([0.5, 2.5])}).tolist() == [1, 1]


def test_the_scale_is_a_setting(check: Any) -> None:
    body = "m = ReduceMax<keepdims=0>(x) q = QuantizeLinear(x, m, z) y = DequantizeLinear(q, m, z)"
    got = check.gradient(body, {"x": np.array([0.5, 2.0])}, weights={"z": np.int8(0)})
    assert got.tolist() == [1, 1]
    with pytest.raises(LayerError, match="no differentiable path"):
        vjp(check.model(ROUND_TRIP, {"x": (2,), "s": np.array(0.5)}, weights={"z": np.int8(0)}), ["s"])


def test_the_range_of_dynamic_quantisation_is_a_setting(check: Any) -> None:
    assert check.gradient(DYNAMIC, {"x": np.array([-1.0, 0.0, 0.3, 9.0])}).tolist() == [1, 1, 1, 1]
    body = "f = Cast<to=1>(x) q, s, z = DynamicQuantizeLinear(f) y = Cast<to=11>(s)"
    with pytest.raises(LayerError, match="no differentiable path"):
        vjp(check.model(body, {"x": (3,)}), ["x"])


# ── integer ops ─────────────────────────────────────────────────────────────────────────────────────────────────────

ARRAYS = {
    "m": RNG.integers(-60, 60, (5, 6)).astype(np.int8),
    "mz": np.int8(3),
    "mzs": RNG.integers(-5, 5, 6).astype(np.int8),
    "ms": np.float32(0.01),
    "mss": RNG.uniform(0.005, 0.01, 6).astype(np.float32),
    "bias": RNG.normal(size=6).astype(np.float32),
    "w": RNG.integers(-60, 60, (4, 3, 3, 3)).astype(np.int8),
    "wz": np.int8(2),
    "s": np.float32(0.03),
    "z": np.uint8(120),
    "to": np.array([4, 5]),
}
DEQUANTISED = ARRAYS["m"].astype(np.float32) * 0.01
MATMUL = "i = MatMulInteger(q, m, z0, mz) f = Cast<to=1>(i) k = Mul(s0, ms) y = Mul(f, k)"

INTEGER: dict[str, tuple[str, tuple[int, ...], str]] = {
    # name: (quantised, shape of x, the same in float)
    "MatMulInteger": (
        f"q, s0, z0 = DynamicQuantizeLinear(x) {MATMUL}",
        (4, 5),
        "v = DequantizeLinear(m, ms, mz) y = MatMul(x, v)",
    ),
    "MatMulInteger, static": (
        "q = QuantizeLinear(x, s, z) i = MatMulInteger(q, m, z) f = Cast<to=1>(i) k = Mul(s, ms) y = Mul(f, k)",
        (4, 5),
        "v = DequantizeLinear(m, ms) y = MatMul(x, v)",
    ),
    "MatMulInteger per column": (
        (
            "q, s0, z0 = DynamicQuantizeLinear(x) i = MatMulInteger(q, m, z0, mzs) f = Cast<to=1>(i) k = Mul(s0, mss) "
            "p = Mul(f, k) y = Add(p, bias)"
        ),
        (4, 5),
        "v = DequantizeLinear(m, mss, mzs) p = MatMul(x, v) y = Add(p, bias)",
    ),
    "MatMulInteger of what was moved": (
        f"g, s0, z0 = DynamicQuantizeLinear(x) h = Transpose<perm=[1, 0, 2]>(g) q = Reshape(h, to) {MATMUL}",
        (2, 2, 5),
        "v = DequantizeLinear(m, ms, mz) h = Transpose<perm=[1, 0, 2]>(x) q = Reshape(h, to) y = MatMul(q, v)",
    ),
    "MatMulInteger of two": (
        (
            "q, s0, z0 = DynamicQuantizeLinear(x) t = Transpose(x) p, s1, z1 = DynamicQuantizeLinear(t) "
            "i = MatMulInteger(q, p, z0, z1) f = Cast<to=1>(i) k = Mul(s0, s1) y = Mul(f, k)"
        ),
        (4, 5),
        "t = Transpose(x) y = MatMul(x, t)",
    ),
    "ConvInteger": (
        (
            "q, s0, z0 = DynamicQuantizeLinear(x) i = ConvInteger<pads=[1, 1, 1, 1], strides=[2, 2]>(q, w, z0, wz) "
            "f = Cast<to=1>(i) k = Mul(s0, ms) y = Mul(f, k)"
        ),
        (2, 3, 5, 5),
        "v = DequantizeLinear(w, ms, wz) y = Conv<pads=[1, 1, 1, 1], strides=[2, 2]>(x, v)",
    ),
    "MatMulIntegerToFloat": (
        "q, s0, z0 = DynamicQuantizeLinear(x) y = com.microsoft.MatMulIntegerToFloat(q, m, s0, mss, z0, mzs, bias)",
        (4, 5),
        "v = DequantizeLinear(m, mss, mzs) p = MatMul(x, v) y = Add(p, bias)",
    ),
    "DynamicQuantizeMatMul": (
        "y = com.microsoft.DynamicQuantizeMatMul(x, m, ms, mz, bias)",
        (4, 5),
        "v = DequantizeLinear(m, ms, mz) p = MatMul(x, v) y = Add(p, bias)",
    ),
    "DynamicQuantizeMatMul per column": (
        "y = com.microsoft.DynamicQuantizeMatMul(x, m, mss, mzs)",
        (4, 5),
        "v = DequantizeLinear(m, mss, mzs) y = MatMul(x, v)",
    ),
}


def model_of(body: str, shape: tuple[int, ...], batch: int | str | None = None) -> onnx.ModelProto:
    dims = ", ".join(map(str, (batch or shape[0], *shape[1:])))
    rank = 4 if "Conv" in body else 2
    text = f"(float[{dims}] x) => (float[{', '.join('abcd'[:rank])}] y) {{ {body} }}"
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]> g {text}')
    used = {x for node in model.graph.node for x in node.input}
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in ARRAYS.items() if k in used)
    for node in model.graph.node:
        node.name = f"node_{node.output[0]}"
    return model


@pytest.mark.parametrize("batch", [None, "N"])
@pytest.mark.parametrize("name", INTEGER)
def test_an_integer_op_has_the_gradient_of_its_float_form(name: str, batch: str | None) -> None:
    """And the forward pass stays what it was."""
    quantised, shape, plain = INTEGER[name]
    if batch and "moved" in name:
        batch = None
    x = RNG.normal(size=shape).astype(np.float32)
    model = model_of(quantised, shape, batch)
    y = run(model, {"x": x})["y"]
    feed = {"x": x, "y.cotangent": RNG.normal(size=y.shape).astype(np.float32)}
    got = run(vjp(model, ["x"]), feed)
    want = run(vjp(model_of(plain, shape, batch), ["x"]), feed)
    np.testing.assert_array_equal(got["y"], y)
    np.testing.assert_allclose(got["y"], want["y"], atol=0.05 * np.abs(y).max())
    atol = 1e-5 if "two" not in name else 0.02 * np.abs(want["x.gradient"]).max()  # there it reads the rounded x
    np.testing.assert_allclose(got["x.gradient"], want["x.gradient"], atol=atol, rtol=1e-4)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("mask", [False, True])
def test_quantised_attention(dynamic: bool, mask: bool) -> None:
    weights = {
        "w": RNG.integers(-60, 60, (4, 12)).astype(np.int8), "ws": np.float32(0.01), "wz": np.int8(2),
        "b": RNG.normal(size=12).astype(np.float32), "s": np.float32(0.02), "z": np.uint8(128),
        "lengths": np.array([3, 2], np.int32),
    }  # fmt: skip
    made = "q, s0, z0 = DynamicQuantizeLinear(x)" if dynamic else "q = QuantizeLinear(x, s, z)"
    scale, zero = ("s0", "z0") if dynamic else ("s", "z")
    lengths = "lengths" if mask else ""
    quantised = f"{made} y = com.microsoft.QAttention<num_heads=2>(q, w, b, {scale}, ws, {lengths}, {zero}, wz)"
    plain = f"v = DequantizeLinear(w, ws, wz) y = com.microsoft.Attention<num_heads=2>(x, v, b, {lengths})"
    models = []
    for body in (quantised, plain):
        graph = f"g (float[2, 3, 4] x) => (float[2, 3, 4] y) {{ {body} }}"
        text = f'<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]> {graph}'
        model = onnx.parser.parse_model(text)
        used = {x for node in model.graph.node for x in node.input}
        model.graph.initializer.extend(
            numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items() if k in used
        )
        models.append(model)
    x, dy = (RNG.normal(size=(2, 3, 4)).astype(np.float32) for _ in range(2))
    got, want = (run(vjp(model, ["x"]), {"x": x, "y.cotangent": dy}) for model in models)
    np.testing.assert_array_equal(got["y"], run(models[0], {"x": x})["y"])
    np.testing.assert_allclose(got["y"], want["y"], atol=0.03)
    np.testing.assert_allclose(got["x.gradient"], want["x.gradient"], atol=0.03 * np.abs(want["x.gradient"]).max())


def test_integers_without_a_scale_have_no_gradient() -> None:
    model = model_of("q = Cast<to=2>(x) i = MatMulInteger(q, m) y = Cast<to=1>(i)", (4, 5))
    with pytest.raises(LayerError, match="no differentiable path"):
        vjp(model, ["x"])


def test_activations_with_several_scales_are_refused() -> None:
    body = "q = QuantizeLinear<axis=0>(x, bias4, z4) i = MatMulInteger(q, m, z4) y = Cast<to=1>(i)"
    model = model_of(body, (4, 5))
    model.graph.initializer.append(numpy_helper.from_array(np.full(4, 0.1, np.float32), "bias4"))
    model.graph.initializer.append(numpy_helper.from_array(np.full(4, 9, np.uint8), "z4"))
    with pytest.raises(UnsupportedOpError, match=r"MatMulInteger .*several scales"):
        vjp(model, ["x"])


REFUSED = sorted(op for domain, op, _ in registry.REFUSED if domain == "com.microsoft" and op.startswith(("Q", "Dyn")))


@pytest.mark.parametrize("op", REFUSED)
def test_what_is_refused_says_why(op: str) -> None:
    model = model_of(f"a = Exp(x) b = com.microsoft.{op}(a) y = Exp(b)", (4, 5))
    why = re.escape(registry.REFUSED["com.microsoft", op, registry.ALL])
    with pytest.raises(UnsupportedOpError, match=rf"cannot differentiate com.microsoft::{op} \(node 'node_b'.*{why}"):
        vjp(model, ["x"])


def test_all_quantised_ops_stand_in_the_table() -> None:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    table = set(registry.declared())
    schemas = {(s.domain, s.name) for s in state.get_all_operator_schema() if s.domain in ("", "com.microsoft")}
    schemas |= {(s.domain, s.name) for s in onnx.defs.get_all_schemas() if s.domain == ""}
    found = [
        (domain, op)
        for domain, op in sorted(schemas)
        if op.startswith(("QLinear", "QGemm", "QAttention", "QOrdered", "QEmbed", "QMoE", "DynamicQuantize"))
        or op.endswith(("Integer", "Integer16", "IntegerToFloat", "QuantizeLinear", "WithOrder", "quantizeLinear"))
    ]
    assert len(found) > 30
    assert [key for key in found if key not in table] == []


# ── models ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("opset", [13, 19, 21, 23])
def test_a_convolution_behind_a_quantised_weight_uses_it_flipped(opset: int) -> None:
    """Dequantised once, when compiled: a Conv, and no ConvTranspose."""
    body = (
        "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) v = DequantizeLinear<axis=0>(w, ws, wzs) "
        "c = Conv(d, v) p = QuantizeLinear(c, s, z) y = DequantizeLinear(p, s, z)"
    )
    model = model_of(body, (2, 3, 5, 5))
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", opset))
    scale = RNG.uniform(0.005, 0.01, 4).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(scale, "ws"))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(4, np.int8), "wzs"))
    differentiated = vjp(model, ["x"])
    kinds = [node.op_type for node in differentiated.graph.node]
    assert kinds.count("Conv") == 2
    assert "ConvTranspose" not in kinds
    assert kinds.count("DequantizeLinear") == 3  # those of the forward pass
    x = RNG.normal(size=(2, 3, 5, 5)).astype(np.float32)
    dy = RNG.normal(size=(2, 4, 3, 3)).astype(np.float32)
    weights = ARRAYS["w"] * scale[:, None, None, None]
    plain = model_of("y = Conv(x, w)", (2, 3, 5, 5))
    plain.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "w"))
    want = ReferenceEvaluator(vjp(plain, ["x"])).run(["x.gradient"], {"x": x, "y.cotangent": dy})[0]
    got = run(differentiated, {"x": x, "y.cotangent": dy})["x.gradient"]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_the_relu_before_a_quantiser_stays_fused(tmp_path: Any) -> None:
    """Its rule reads the dequantised value, so that the runtime needs no float one."""
    body = (
        "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) v = DequantizeLinear(w, ms, wz) "
        "c = Conv(d, v) a = Relu(c) p = QuantizeLinear(a, s, z0) r = DequantizeLinear(p, s, z0) y = Exp(r)"
    )
    model = model_of(body, (2, 3, 5, 5))
    model.graph.initializer.append(numpy_helper.from_array(np.uint8(0), "z0"))
    for proto, count in ((model, 1), (vjp(model, ["x"]), 1)):
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        options.log_severity_level = 3
        ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        kinds = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
        assert kinds.count("QLinearConv") == count
        assert "Relu" not in kinds
