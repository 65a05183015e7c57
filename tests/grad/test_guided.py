"""Rule sets: Guided Backprop and Deconvnet at ReLU-like activations, against their formulas in numpy."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from scipy import special

from pycam.errors import InputError
from pycam.grad import differentiate, registry
from pycam.gradient import vjp
from pycam.graph.builder import Builder
from pycam.graph.load import load
from pycam.graph.normalise import normalise

runtime = pytest.mark.skipif(
    tuple(int(p) for p in ort.__version__.split(".")[:2]) < (1, 26), reason="the runtime lacks some of these ops"
)

CONSTANTS = {"zero": 0.0, "half": 0.5, "one": 1.0, "two": 2.0, "three": 3.0, "six": 6.0, "sixth": 1 / 6, "tenth": 0.1}
CONSTANTS |= {"root": 2**0.5, "c": (2 / np.pi) ** 0.5, "a": 0.044715, "ca": (2 / np.pi) ** 0.5 * 0.044715, "q": 1.702}
CONSTANTS |= {"minus": -1.0, "twenty": 20.0, "quarter": 0.25, "minus_quarter": -0.25}
NUMBERS = "".join(f"{name} = Constant<value=double {{{value!r}}}>() " for name, value in CONSTANTS.items())


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _softplus(x):
    return np.log1p(np.exp(x))


def _relu(x):
    return np.maximum(x, 0)


def _relu6(x):
    return np.clip(x, 0, 6)


def _leaky(alpha):
    return lambda x: np.where(x > 0, x, alpha * x)


def _elu(alpha):
    return lambda x: np.where(x > 0, x, alpha * np.expm1(x))


def _gelu(x):
    return x * 0.5 * (1 + special.erf(x / np.sqrt(2)))


def _gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _swish(alpha):
    return lambda x: x * _sigmoid(alpha * x)


def _hard_swish(x):
    return x * np.clip(x / 6 + 0.5, 0, 1)


def _mish(x):
    return x * np.tanh(_softplus(x))


ONE_PLUS_TANH = "t = Tanh(j) b = Add(t, one)"
TANH_OF = f"i = Add(x, l) j = Mul(i, c) {ONE_PLUS_TANH}"
OPS = {  # name → nodes, the function
    "Relu": ("y = Relu(x)", _relu),
    "Clip as ReLU": ("y = Clip(x, zero)", _relu),
    "Clip as ReLU6": ("y = Clip(x, zero, six)", _relu6),
    "Clip to 2": ("y = Clip(x, zero, two)", lambda x: np.clip(x, 0, 2)),
    "LeakyRelu": ("y = LeakyRelu<alpha=0.2>(x)", _leaky(0.2)),
    "LeakyRelu, negative": ("y = LeakyRelu<alpha=-0.2>(x)", _leaky(-0.2)),
    "PRelu": ("y = PRelu(x, quarter)", _leaky(0.25)),
    "PRelu, negative": ("y = PRelu(x, minus_quarter)", _leaky(-0.25)),
    "ThresholdedRelu": ("y = ThresholdedRelu<alpha=0.7>(x)", lambda x: np.where(x > 0.7, x, 0)),
    "ThresholdedRelu, negative": ("y = ThresholdedRelu<alpha=-0.7>(x)", lambda x: np.where(x > -0.7, x, 0)),
    "Elu": ("y = Elu<alpha=0.5>(x)", _elu(0.5)),
    "Elu, negative": ("y = Elu<alpha=-0.5>(x)", _elu(-0.5)),
    "Selu": ("y = Selu<alpha=1.5, gamma=1.2>(x)", lambda x: 1.2 * _elu(1.5)(x)),
    "Celu": ("y = Celu<alpha=1.5>(x)", lambda x: np.where(x > 0, x, 1.5 * np.expm1(x / 1.5))),
    "Gelu": ("y = Gelu(x)", _gelu),
    "Gelu, tanh": ('y = Gelu<approximate="tanh">(x)', _gelu_tanh),
    "HardSwish": ("y = HardSwish(x)", _hard_swish),
    "Mish": ("y = Mish(x)", _mish),
    "Softplus": ("y = Softplus(x)", _softplus),
    "Swish": ("y = Swish<alpha=1.3>(x)", _swish(1.3)),
}
SPELT = {
    "ReLU, Max": ("y = Max(x, zero)", _relu),
    "ReLU, Max the other way": ("y = Max(zero, x)", _relu),
    "ReLU, Where": ("b = Greater(x, zero) y = Where(b, x, zero)", _relu),
    "ReLU6, Min of Relu": ("r = Relu(x) y = Min(r, six)", _relu6),
    "ReLU6, Min of Max": ("r = Max(x, zero) y = Min(six, r)", _relu6),
    "ReLU6, Max of Min": ("r = Min(x, six) y = Max(r, zero)", _relu6),
    "threshold": ("b = LessOrEqual(x, half) y = Where(b, zero, x)", lambda x: np.where(x > 0.5, x, 0)),
    "leaky, Max": ("l = Mul(x, tenth) y = Max(l, x)", _leaky(0.1)),
    "leaky, Where": ("l = Mul(x, tenth) b = Greater(x, zero) y = Where(b, x, l)", _leaky(0.1)),
    "PReLU, two Relus": (
        "p = Relu(x) m = Neg(x) r = Relu(m) s = Mul(quarter, r) t = Neg(s) y = Add(p, t)",
        _leaky(0.25),
    ),
    "PReLU, Sub": ("p = Relu(x) m = Neg(x) r = Relu(m) s = Mul(quarter, r) y = Sub(p, s)", _leaky(0.25)),
    "PReLU, Abs": (
        "p = Relu(x) m = Abs(x) r = Sub(x, m) s = Mul(quarter, r) t = Mul(s, half) y = Add(t, p)",
        _leaky(0.25),
    ),
    "SiLU": ("s = Sigmoid(x) y = Mul(s, x)", _swish(1)),
    "quick GELU": ("z = Mul(x, q) s = Sigmoid(z) y = Mul(x, s)", _swish(1.702)),
    "GELU": ("z = Div(x, root) e = Erf(z) b = Add(e, one) m = Mul(x, b) y = Mul(half, m)", _gelu),
    "GELU, divided": ("z = Div(x, root) e = Erf(z) b = Add(e, one) m = Mul(x, b) y = Div(m, two)", _gelu),
    "GELU tanh": (
        f"s = Mul(x, x) k = Mul(s, x) l = Mul(a, k) {TANH_OF} h = Mul(half, x) y = Mul(h, b)",
        _gelu_tanh,
    ),
    "GELU tanh, Pow": (
        f"k = Pow(x, three) l = Mul(a, k) {TANH_OF} m = Mul(x, b) y = Mul(m, half)",
        _gelu_tanh,
    ),
    "GELU tanh, factored": (
        f"s = Mul(x, x) l = Mul(s, ca) f = Add(l, c) j = Mul(x, f) {ONE_PLUS_TANH} h = Mul(b, half) y = Mul(x, h)",
        _gelu_tanh,
    ),
    "HardSwish": ("s = HardSigmoid<alpha=0.16666667, beta=0.5>(x) y = Mul(x, s)", _hard_swish),
    "HardSwish, keras": (
        "s = HardSigmoid<alpha=0.2, beta=0.5>(x) y = Mul(s, x)",
        lambda x: x * np.clip(0.2 * x + 0.5, 0, 1),
    ),
    "HardSwish, ReLU6": ("t = Add(x, three) s = Clip(t, zero, six) d = Div(s, six) y = Mul(x, d)", _hard_swish),
    "HardSwish, divided last": ("t = Add(x, three) s = Clip(t, zero, six) d = Mul(x, s) y = Div(d, six)", _hard_swish),
    "HardSwish, sixth of x": (
        "t = Add(three, x) r = Relu(t) s = Min(r, six) d = Mul(x, sixth) y = Mul(d, s)",
        _hard_swish,
    ),
    "HardSwish, Clip to 1": ("t = Mul(x, sixth) i = Add(t, half) s = Clip(i, zero, one) y = Mul(x, s)", _hard_swish),
    "Mish": ("p = Softplus(x) t = Tanh(p) y = Mul(x, t)", _mish),
    "Mish, Log": ("e = Exp(x) i = Add(e, one) p = Log(i) t = Tanh(p) y = Mul(t, x)", _mish),
    "Softplus, Log": ("e = Exp(x) i = Add(one, e) y = Log(i)", _softplus),
    "Softplus, threshold": ("p = Softplus(x) b = Greater(x, twenty) y = Where(b, x, p)", _softplus),
    "Softplus, beta": (
        "z = Mul(x, two) p = Softplus(z) d = Div(p, two) b = Greater(z, twenty) y = Where(b, x, d)",
        lambda x: _softplus(2 * x) / 2,
    ),
}
CONTRIB = {
    "Gelu": ("y = com.microsoft.Gelu(x)", _gelu),
    "FastGelu": ("y = com.microsoft.FastGelu(x)", _gelu_tanh),
    "BiasGelu": ("y = com.microsoft.BiasGelu(x, bias)", lambda x: _gelu(x + BIAS)),
    "QuickGelu": ("y = com.microsoft.QuickGelu(x)", _swish(1.702)),
}
EXACT = {  # what is no ReLU-like activation: gates, and what bounds both sides of 0
    "Sigmoid": "y = Sigmoid(x)",
    "Tanh": "y = Tanh(x)",
    "HardSigmoid": "y = HardSigmoid(x)",
    "Clip to −1 … 1": "y = Clip(x, minus, one)",
    "Clip to 0 … 1": "y = Clip(x, zero, one)",
    "Min with a number": "y = Min(x, half)",
    "Max with another number": "y = Max(x, half)",
    "Max of two values": "z = Exp(x) y = Max(x, z)",
    "Abs": "y = Abs(x)",
    "sigmoid gate": "z = Sin(x) s = Sigmoid(z) y = Mul(x, s)",
    "hard sigmoid gate": "z = Sin(x) s = HardSigmoid(z) y = Mul(x, s)",
    "ReLU6 gate": "z = Sin(x) t = Add(z, three) r = Clip(t, zero, six) s = Div(r, six) y = Mul(x, s)",
    "ReLU6 gate, bias folded": "z = Sin(x) r = Clip(z, zero, six) s = Div(r, six) y = Mul(x, s)",
    "ReLU6 gate, Min": "z = Sin(x) t = Add(z, three) r = Relu(t) m = Min(r, six) s = Mul(m, sixth) y = Mul(x, s)",
    "tanh gate": "z = Sin(x) t = Tanh(z) y = Mul(x, t)",
}

X = np.random.default_rng(0).normal(size=(4, 5)) * 3.0
DY = np.random.default_rng(1).normal(size=(4, 5))
BIAS = np.random.default_rng(2).normal(size=5)


def _slope(f, x):
    return (f(x + 1e-6) - f(x - 1e-6)) / 2e-6


def _expected(rules, f, x, dy):
    relu = np.maximum(dy, 0)
    return relu if rules == "deconvnet" else (x > 0) * relu * _slope(f, x)


def _run(model, feed, names=("x",)):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = {
        i.name: np.float16 if "16" in i.type else np.float32 if "float" in i.type else None
        for i in session.get_inputs()
    }
    given = {k: np.asarray(v, kinds[k]) if kinds[k] else v for k, v in feed.items() if k in kinds}
    found = session.run([f"{name}.gradient" for name in names], given)
    return found[0] if len(names) == 1 else found


def _guided(check, body, rules, x=X, dy=DY, **options):
    inputs = {"x": x, "bias": BIAS} if "bias" in body else {"x": x}
    opset = 24 if " Swish" in body else 21
    model = check.single(check.model(NUMBERS + body, inputs, opset=opset))
    return _run(vjp(model, ["x"], rules=rules, **options), {**inputs, "y.cotangent": dy})


@runtime
@pytest.mark.parametrize("lower", ["fast", "portable"])
@pytest.mark.parametrize("rules", ["guided", "deconvnet"])
@pytest.mark.parametrize(("body", "f"), [*OPS.values(), *SPELT.values()], ids=[*OPS, *(f"spelt: {k}" for k in SPELT)])
def test_an_activation_follows_the_formula(check, body, f, rules, lower):
    got = _guided(check, body, rules, lower=lower)
    np.testing.assert_allclose(got, _expected(rules, f, X, DY), rtol=1e-4, atol=1e-5)


@runtime
@pytest.mark.parametrize("rules", ["guided", "deconvnet"])
@pytest.mark.parametrize(("body", "f"), CONTRIB.values(), ids=CONTRIB)
def test_an_activation_of_the_runtime_follows_the_formula(check, body, f, rules):
    """A bias belongs to what the activation is of: `[x + bias > 0]`."""
    shift = BIAS if "bias" in body else 0.0
    want = _expected(rules, (lambda z: f(z - shift)), X + shift, DY)
    np.testing.assert_allclose(_guided(check, body, rules), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rules", ["guided", "deconvnet"])
@pytest.mark.parametrize("body", EXACT.values(), ids=EXACT)
def test_what_is_no_activation_keeps_its_gradient(check, body, rules):
    np.testing.assert_array_equal(_guided(check, body, rules), _guided(check, body, "exact"))


@pytest.mark.parametrize(("body", "f"), SPELT.values(), ids=SPELT)
def test_exact_is_the_gradient_of_what_is_spelt_out(check, body, f):
    np.testing.assert_allclose(_guided(check, body, "exact"), DY * _slope(f, X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rules", ["guided", "deconvnet"])
def test_nothing_passes_at_0(check, rules):
    got = _guided(check, "y = Relu(x)", rules, x=np.array([0.0, -1.0, 1.0, 1.0]), dy=np.array([1.0, 1.0, 1.0, -1.0]))
    np.testing.assert_array_equal(got, [0, 0, 1, 0] if rules == "guided" else [1, 1, 1, 0])


def _network(rng):
    w, v, u = (rng.normal(size=s) for s in ((6, 8), (8, 7), (7, 3)))
    body = "a = MatMul(x, w) p = Relu(a) b = MatMul(p, v) r = LeakyRelu<alpha=0.1>(b) y = MatMul(r, u)"
    return body, w, v, u


def _network_by_hand(rules, x, dy, w, v, u):
    a = x @ w
    b = np.maximum(a, 0) @ v
    for weights, z in ((u, b), (v, a)):
        dy = np.maximum(dy @ weights.T, 0)
        dy = dy * (z > 0) if rules == "guided" else dy
    return dy @ w.T


@pytest.mark.parametrize("rules", ["guided", "deconvnet"])
def test_a_network_of_two_layers_is_as_by_hand(check, rules):
    rng = np.random.default_rng(5)
    body, w, v, u = _network(rng)
    x, dy = rng.normal(size=(2, 6)), rng.normal(size=(2, 3))
    model = check.single(check.model(body, {"x": x}, weights={"w": w, "v": v, "u": u}))
    got = _run(vjp(model, ["x"], rules=rules), {"x": x, "y.cotangent": dy})
    np.testing.assert_allclose(got, _network_by_hand(rules, x, dy, w, v, u), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rules", ["guided", "deconvnet"])
def test_two_targets_share_a_pass(check, rules):
    rng = np.random.default_rng(6)
    body, *weights = _network(rng)
    x, dys = rng.normal(size=(2, 6)), rng.normal(size=(2, 2, 3))
    double = check.model(body, {"x": x}, weights=dict(zip("wvu", weights, strict=True)))
    model = normalise(load(double))
    graph = model.graph
    y = graph.outputs[0]
    seed = ir.Value(name="seed", shape=ir.Shape([None, 3]), type=y.type)
    count = ir.Value(name="count", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT64))
    (dx,), _ = differentiate(Builder(graph), {y: seed}, [graph.inputs[0]], count, rules=rules)
    assert dx is not None
    graph.inputs.extend([seed, count])
    graph.outputs[:] = [dx]
    dx.type = y.type
    (got,) = check.evaluator(ir.to_proto(model))({"x": x, "seed": dys.reshape(4, 3), "count": np.array([2])})
    want = np.concatenate([_network_by_hand(rules, x, dy, *weights) for dy in dys])
    np.testing.assert_allclose(got, want, rtol=1e-9)


@pytest.mark.parametrize("body", ["y = Relu(x)", "s = Sigmoid(x) y = Mul(x, s)", "y = Clip(x, zero, six)"])
def test_float16(body):
    weights = {"zero": np.float16(0), "six": np.float16(6)}
    nodes = onnx.parser.parse_graph(f"f (float16[4, 5] x) => (float16[4, 5] y) {{ {body} }}").node
    x, dy = X.astype(np.float16), DY.astype(np.float16)
    model = _model(nodes, {"x": x.shape}, {"y": dy.shape}, weights, TensorProto.FLOAT16)
    got = _run(vjp(model, ["x"], rules="guided"), {"x": x, "y.cotangent": dy})
    f = _relu if "Relu" in body else _swish(1) if "Sigmoid" in body else _relu6
    assert got.dtype == np.float16
    np.testing.assert_allclose(got, _expected("guided", f, x.astype(float), dy.astype(float)), rtol=5e-3, atol=1e-3)


@pytest.mark.parametrize("rules", ["guided", "deconvnet"])
@pytest.mark.parametrize(
    ("activation", "parameters", "f"),
    [("Relu", [], _relu), ("LeakyRelu", [0.2], _leaky(0.2)), ("Clip", [0.0, 2.0], lambda x: np.clip(x, 0, 2))],
)
def test_an_activation_within_a_convolution(rules, activation, parameters, f):
    """onnxruntime's FusedConv, 1×1: a matrix product over the channels."""
    rng = np.random.default_rng(8)
    x, w, dy = rng.normal(size=(1, 3, 2, 2)) * 2, rng.normal(size=(4, 3, 1, 1)), rng.normal(size=(1, 4, 2, 2))
    given = {"activation_params": parameters} if parameters else {}
    node = helper.make_node("FusedConv", ["x", "w"], ["y"], domain="com.microsoft", activation=activation, **given)
    model = _model([node], {"x": x.shape}, {"y": dy.shape}, {"w": w.astype(np.float32)})
    z = np.einsum("oc,nchw->nohw", w[..., 0, 0], x)
    want = np.einsum("oc,nohw->nchw", w[..., 0, 0], _expected(rules, f, z, dy))
    got = _run(vjp(model, ["x"], rules=rules), {"x": x, "y.cotangent": dy})
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rules", ["guided", "deconvnet"])
def test_a_relu_that_a_quantiser_absorbed(rules):
    """`Q` from 0 up after a layer is its ReLU; at the image it is none, and keeps the gradient's sign."""
    w = np.array([[1.0, -2.0], [0.5, 1.0]], np.float32)
    weights = {"w": w, "s": np.float32(0.02), "z": np.uint8(0)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["i"]),
        helper.make_node("DequantizeLinear", ["i", "s", "z"], ["j"]),
        helper.make_node("MatMul", ["j", "w"], ["a"]),
        helper.make_node("QuantizeLinear", ["a", "s", "z"], ["b"]),
        helper.make_node("DequantizeLinear", ["b", "s", "z"], ["y"]),
    ]
    x, dy = np.array([[1.0, 1.0], [0.4, 2.0], [1.0, 0.1]]), np.array([[1.0, 1.0], [-1.0, 1.0], [1.0, 1.0]])
    model = _model(nodes, {"x": x.shape}, {"y": dy.shape}, weights)
    got = _run(vjp(model, ["x"], rules=rules), {"x": x, "y.cotangent": dy})
    np.testing.assert_allclose(got, _expected(rules, _relu, x @ w, dy) @ w.T, rtol=1e-4)
    assert (got < 0).any()


@pytest.mark.parametrize("rules", ["guided", "deconvnet"])
def test_an_activation_within_a_branch(rules):
    text = """<ir_version: 10, opset_import: ["" : 21]> f (float[4, 5] x, bool on) => (float[4, 5] y) {
        y = If (on) <then_branch = g () => (float[4, 5] p) { p = Relu(x) },
                     else_branch = h () => (float[4, 5] q) { q = Tanh(x) }>
    }"""
    model = vjp(onnx.parser.parse_model(text), ["x"], rules=rules)
    feed = {"x": X, "y.cotangent": DY}
    got = _run(model, {**feed, "on": np.array(True)})
    np.testing.assert_allclose(got, _expected(rules, _relu, X, DY), rtol=1e-4)
    np.testing.assert_allclose(
        _run(model, {**feed, "on": np.array(False)}), DY * (1 - np.tanh(X) ** 2), rtol=1e-3, atol=1e-5
    )


def test_slopes_that_are_computed(check):
    """PRelu with a slope that the graph computes: that one's gradient is the exact one."""
    slope = np.array([0.2, 0.3, -0.1, 0.4, 0.5])
    model = check.single(check.model("t = Neg(s) y = PRelu(x, t)", {"x": X, "s": -slope}))
    dx, ds = _run(vjp(model, ["x", "s"], rules="guided"), {"x": X, "s": -slope, "y.cotangent": DY}, ["x", "s"])
    np.testing.assert_allclose(dx, (X > 0) * np.maximum(DY, 0), rtol=1e-5)
    np.testing.assert_allclose(ds, -(DY * np.minimum(X, 0)).sum(0), rtol=1e-4, atol=1e-5)


@runtime
@pytest.mark.parametrize("rules", ["guided", "deconvnet"])
def test_a_gated_unit_is_guided_as_op_and_spelt_out(check, rules):
    b = np.random.default_rng(9).normal(size=(4, 5))
    want = _expected(rules, _swish(1), X, DY * b)
    for body, opset in (("y = SwiGLU(x, b)", 28), ("s = Sigmoid(x) t = Mul(x, s) y = Mul(t, b)", 21)):
        if opset > onnx.defs.onnx_opset_version():
            continue
        double = check.model(body, {"x": X, "b": b}, opset=opset)
        model = vjp(double, ["x"], rules=rules)
        got = check.evaluator(model)({"x": X, "b": b, "y.cotangent": DY})[-1]
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-8)


BODIES = ["y = Relu(z)", "y = Clip(z, zero, six)", "y = LeakyRelu(z)", "y = Elu(z)", "y = Max(z, zero)"]


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("rules", ["guided", "deconvnet"])
def test_the_input_of_an_activation_is_not_read(check, body, rules):
    """Else onnxruntime could not fuse it with the convolution."""
    model = check.model(f"{NUMBERS} z = Neg(x) {body}", {"x": (2, 3)})
    differentiated = vjp(model, ["x"], rules=rules).graph.node
    assert len([n for n in differentiated if "z" in n.input]) == 1
    added = {n.op_type for n in differentiated if n.name.startswith("pycam")}
    assert added <= ({"Relu", "Neg", "Identity"} if rules == "deconvnet" else {*added, "Relu"} - {"Where"})


def test_exact_is_the_default(check):
    model = check.model("s = Sigmoid(x) t = Mul(x, s) y = Relu(t)", {"x": (2, 3)})
    assert vjp(model, ["x"]).SerializeToString() == vjp(model, ["x"], rules="exact").SerializeToString()


def test_an_unknown_rule_set(check):
    model = check.model("y = Relu(x)", {"x": (2, 3)})
    with pytest.raises(InputError, match="no rule set 'guide': choose one of exact, guided, deconvnet"):
        vjp(model, ["x"], rules="guide")


def test_a_rule_set_is_declared_once():
    with pytest.raises(ValueError, match="a second rule set 'guided'"):
        registry.rule_set("guided")(lambda g, n, dy, f: dy)


def _model(nodes, inputs, outputs, weights, dtype=TensorProto.FLOAT):
    def info(values):
        return [helper.make_tensor_value_info(k, dtype, v) for k, v in values.items()]

    tensors = [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(
        helper.make_graph(nodes, "g", info(inputs), info(outputs), tensors), opset_imports=opsets, ir_version=10
    )
