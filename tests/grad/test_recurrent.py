"""RNN, GRU and LSTM: their expansions, against recurrences in numpy that are checked against onnxruntime first."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import helper

from pycam.errors import BatchAxisError, UnsupportedOpError
from pycam.grad import differentiate
from pycam.gradient import vjp
from pycam.graph.builder import Builder

Array = np.ndarray
Function = Callable[[Array], Array]


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


_FUNCTIONS: dict[str, tuple[int, Callable[..., Array]]] = {  # how many parameters; the function
    "Tanh": (0, np.tanh),
    "Sigmoid": (0, _sigmoid),
    "Relu": (0, lambda x: np.maximum(x, 0)),
    "Softsign": (0, lambda x: x / (1 + abs(x))),
    "Softplus": (0, lambda x: np.log1p(np.exp(x))),
    "LeakyRelu": (1, lambda x, a=0.01: np.where(x < 0, a * x, x)),
    "Elu": (1, lambda x, a=1.0: np.where(x < 0, a * (np.exp(x) - 1), x)),
    "ThresholdedRelu": (1, lambda x, a=1.0: np.where(x > a, x, 0)),
    "HardSigmoid": (2, lambda x, a=0.2, b=0.5: np.clip(a * x + b, 0, 1)),
    "ScaledTanh": (2, lambda x, a, b: a * np.tanh(b * x)),
    "Affine": (2, lambda x, a, b: a * x + b),
}


def _activations(names: Sequence[str], alphas: Sequence[float], betas: Sequence[float], clip: float) -> list[Function]:
    alpha, beta = iter(alphas), iter(betas)

    def make(name: str) -> Function:
        count, function = _FUNCTIONS[name]
        given = [v for values in (alpha, beta)[:count] if (v := next(values, None)) is not None]
        return lambda x: function(np.clip(x, -clip, clip) if clip else x, *given)

    return [make(name) for name in names]


def _run(
    op: str,
    x: Array,
    w: Array,
    r: Array,
    b: Array | None = None,
    lengths: Array | None = None,
    h0: Array | None = None,
    c0: Array | None = None,
    p: Array | None = None,
    *,
    activations: Sequence[str] = (),
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    clip: float = 0.0,
    direction: str = "forward",
    layout: int = 0,
    linear_before_reset: int = 0,
    input_forget: int = 0,
    hidden_size: int = 0,
) -> tuple[Array, ...]:
    """`op` as ONNX describes it, step by step and sequence by sequence."""
    default = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}[op]
    count, size = w.shape[0], r.shape[2]
    names = [n if isinstance(n, str) else n.decode() for n in activations] or default * count
    functions = _activations(names, activation_alpha, activation_beta, clip)
    if layout:
        x = x.swapaxes(0, 1)
        h0, c0 = (v if v is None else v.swapaxes(0, 1) for v in (h0, c0))
    steps, batch = x.shape[:2]
    y = np.zeros((steps, count, batch, size))
    h_last, c_last = (np.zeros((count, batch, size)) for _ in range(2))
    for d in range(count):
        f = functions[d * len(default) : (d + 1) * len(default)]
        bw, br = (np.zeros(w.shape[1]),) * 2 if b is None else np.split(b[d], 2)
        for n in range(batch):
            h = np.zeros(size) if h0 is None else h0[d, n]
            c = np.zeros(size) if c0 is None else c0[d, n]
            own = range(steps if lengths is None else int(lengths[n]))
            for t in reversed(own) if d == 1 or direction == "reverse" else own:
                xs = np.split(w[d] @ x[t, n] + bw, len(w[d]) // size)
                rs, bs = np.split(r[d], len(w[d]) // size), np.split(br, len(w[d]) // size)
                if op == "RNN":
                    h = f[0](xs[0] + rs[0] @ h + bs[0])
                elif op == "GRU":
                    z, reset = (f[0](xs[k] + rs[k] @ h + bs[k]) for k in (0, 1))
                    inner = reset * (rs[2] @ h + bs[2]) if linear_before_reset else rs[2] @ (reset * h) + bs[2]
                    h = (1 - z) * f[1](xs[2] + inner) + z * h
                else:
                    pi, po, pf = np.split(p[d], 3) if p is not None else (np.zeros(size),) * 3
                    i, o, forget, new = (xs[k] + rs[k] @ h + bs[k] for k in range(4))
                    i = f[0](i + pi * c)
                    forget = 1 - i if input_forget else f[0](forget + pf * c)
                    c = forget * c + i * f[1](new)
                    plain = _activations(names, activation_alpha, activation_beta, 0.0)[d * 3 + 2]  # not clipped
                    h = f[0](o + po * c) * plain(c)
                y[t, d, n] = h
            h_last[d, n], c_last[d, n] = h, c
    if layout:
        y, h_last, c_last = y.transpose(2, 0, 1, 3), h_last.swapaxes(0, 1), c_last.swapaxes(0, 1)
    return (y, h_last, c_last) if op == "LSTM" else (y, h_last)


OPS = {op: functools.partial(_run, op) for op in ("RNN", "GRU", "LSTM")}
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
SIZE, INPUT, BATCH, STEPS = 2, 2, 2, 3


def _case(
    op: str,
    attributes: str = "",
    *,
    without: Sequence[str] = (),
    lengths: bool = False,
    p: bool = False,
    layout: int = 0,
) -> tuple[str, dict[str, Any]]:
    """The text of a model that ends in `op`, and its inputs: `y` is made of all outputs."""
    count = 2 if "bidirectional" in attributes else 1
    first = (BATCH, count) if layout else (count, BATCH)
    inputs: dict[str, Any] = {
        "x": (BATCH, STEPS, INPUT) if layout else (STEPS, BATCH, INPUT),
        "w": (count, GATES[op] * SIZE, INPUT),
        "r": (count, GATES[op] * SIZE, SIZE),
        "b": (count, 2 * GATES[op] * SIZE),
        "n": np.array([STEPS, 1][:BATCH], np.int32),
        "h": (*first, SIZE),
        "c": (*first, SIZE),
        "p": (count, 3 * SIZE),
    }
    names = ["x", "w", "r", "b", "n", "h", *(["c", "p"] if op == "LSTM" else [])]
    left_out = {*without, *(() if lengths else "n"), *(() if p else "p")}
    inputs = {name: inputs[name] for name in names if name not in left_out}
    given = ", ".join("" if name in left_out else name for name in names).rstrip(", ")
    options = ", ".join(s for s in (f"hidden_size={SIZE}", attributes, f"layout={layout}" if layout else "") if s)
    outputs = ("ys", "hs", "cs") if op == "LSTM" else ("ys", "hs")
    # Y is (T, D, N, H) and the last states are (D, N, H); with layout=1 (N, T, D, H) and (N, D, H).
    lift = "".join(f"{v}1 = {f'Unsqueeze({v}, one)' if layout else f'Identity({v})'} " for v in outputs[1:])
    body = f"{', '.join(outputs)} = {op}<{options}>({given}) {lift} d = Mul(ys, hs1) "
    body += "e = Tanh(cs1) f = Add(d, e) " if op == "LSTM" else "f = Identity(d) "
    return f"one = Constant<value = int64[1] {{1}}>() {body} y = Mul(f, ys)", inputs


CASES = [
    *(_case(op) for op in GATES),
    *(_case(op, 'direction="reverse"') for op in GATES),
    *(_case(op, 'direction="bidirectional"') for op in GATES),
    *(_case(op, 'direction="bidirectional"', lengths=True) for op in GATES),
    *(_case(op, 'direction="reverse"', lengths=True, layout=1) for op in GATES),
    *(_case(op, without=["b", "h", "c"]) for op in GATES),
    *(_case(op, layout=1, without=["h", "c"]) for op in GATES),
    *(_case(op, "clip=0.7") for op in GATES),
    _case("GRU", "linear_before_reset=1"),
    _case("GRU", 'linear_before_reset=1, direction="bidirectional"'),
    _case("GRU", "linear_before_reset=1", without=["b"]),
    _case("LSTM", 'direction="bidirectional"', p=True),
    _case("LSTM", "input_forget=1", p=True),
    _case("RNN", 'activations=["Softsign"]'),
    _case("RNN", 'activations=["Affine"], activation_alpha=[0.8], activation_beta=[0.1]'),
    _case("RNN", 'direction="bidirectional", activations=["LeakyRelu", "HardSigmoid"], activation_alpha=[0.1, 0.3], '
                 "activation_beta=[0.4]"),
    _case("RNN", 'direction="bidirectional", activations=["ThresholdedRelu", "Elu"], activation_alpha=[0.2, 0.5]'),
    _case("GRU", 'activations=["Softplus", "Relu"]'),
    _case("LSTM", 'activations=["HardSigmoid", "ScaledTanh", "Tanh"], activation_alpha=[0.3, 1.5], '
                  "activation_beta=[0.5, 0.6]"),
]  # fmt: skip


def _forward(check: Any, body: str, inputs: Mapping[str, Any]) -> Iterator[tuple[str, Array, Array]]:
    """Each output of the recurrent layer: by numpy, and by onnxruntime."""
    arrays = check.draw(inputs, body)
    model = check.single(check.model(body, arrays))
    node = next(node for node in model.graph.node if node.op_type in GATES)
    del model.graph.output[:]
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in node.output)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    single = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in arrays.items()}
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute if a.name != "direction"}
    direction = next((a.s.decode() for a in node.attribute if a.name == "direction"), "forward")
    ours = OPS[node.op_type](*(arrays.get(name) for name in node.input), **attributes, direction=direction)
    yield from zip(node.output, ours, session.run(list(node.output), single), strict=True)


@pytest.mark.parametrize(("body", "inputs"), [c for c in CASES if "layout" not in c[0]])
def test_numpy_computes_what_onnxruntime_does(check: Any, body: str, inputs: dict[str, Any]) -> None:
    for name, ours, theirs in _forward(check, body, inputs):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(("body", "inputs"), CASES)
def test_gradients(check: Any, body: str, inputs: dict[str, Any]) -> None:
    # One form of the shapes, and first order: the other tests have all of them, for the same expansions.
    check(body, inputs, ops=OPS, runtime="layout" not in body, forms=["static"], second=False)


@pytest.mark.parametrize("op", GATES)
def test_with_shapes_unknown_and_twice(check: Any, op: str) -> None:
    body, inputs = _case(op, 'direction="bidirectional"', lengths=True)
    weights = {name: inputs.pop(name) for name in ("w", "r", "b")}
    check(body, {**inputs, "n": np.array([1, 3], np.int32)}, weights=weights, ops=OPS)


@pytest.mark.parametrize("op", GATES)
def test_portable_is_unrolled(check: Any, op: str) -> None:
    body, inputs = _case(op, 'direction="bidirectional"', lengths=True)
    arrays = check.draw(inputs, body)
    model = check.single(check.model(body, arrays))
    models = [vjp(model, ["x", "h"], lower=lower) for lower in ("fast", "portable")]
    ops = [{node.op_type for node in m.graph.node} for m in models]
    assert "Scan" in ops[0]
    assert not ops[1] & {"Scan", "Loop", "If"}
    rng = np.random.default_rng(0)
    feed = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in arrays.items()}
    feed["y.cotangent"] = rng.normal(size=(STEPS, 2, BATCH, SIZE)).astype(np.float32)
    names = ["x.gradient", "h.gradient"]
    fast, portable = (ort.InferenceSession(m.SerializeToString()).run(names, feed) for m in models)
    for a, b in zip(fast, portable, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_one_step_needs_no_scan(check: Any) -> None:
    body, inputs = _case("LSTM")
    inputs["x"] = (1, BATCH, INPUT)
    check(body, inputs, ops=OPS, forms=["static"], second=False)
    differentiated = vjp(check.model(body, inputs), ["x"])
    assert "Scan" not in {node.op_type for node in differentiated.graph.node}


def test_targets_do_not_share_a_pass(check: Any) -> None:
    body, inputs = _case("GRU")
    graph = check.graph(check.model(body, inputs))
    seed = ir.Value(name="seed", shape=graph.outputs[0].shape, type=graph.outputs[0].type)
    count = ir.Value(name="count", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT64))
    with pytest.raises(BatchAxisError, match="one target per image"):
        differentiate(Builder(graph), {graph.outputs[0]: seed}, [graph.inputs[0]], count=count)


@pytest.mark.parametrize(
    ("attributes", "why"),
    [('activations=["Wave"]', "none that ONNX names"), ('activations=["Affine"]', "has no activation_alpha")],
)
def test_refused(check: Any, attributes: str, why: str) -> None:
    body, inputs = _case("RNN", attributes)
    with pytest.raises(UnsupportedOpError, match=why):
        vjp(check.model(body, inputs), ["x"])


def test_unrolled_steps_share_their_weights(check: Any) -> None:
    body, inputs = _case("GRU")
    weights = {name: inputs.pop(name) for name in ("w", "r", "b")}
    stored = []
    for steps in (4, 16):
        model = vjp(check.model(body, {**inputs, "x": (steps, BATCH, INPUT)}, weights=weights), ["x"], lower="portable")
        stored.append(sum(len(t.raw_data) for t in model.graph.initializer if len(t.dims) == 2))
    assert stored[0] == stored[1]
