"""The one check that every gradient rule passes: `check(body, inputs)`.

Test modules share it as a fixture (there are no imports between them).  A case is

    check("y = Gemm<transB=1>(a, b)", {"a": (2, 3), "b": (4, 3)})

that is: the nodes of a graph whose output is `y`, and its inputs: arrays in float64, or shapes to be drawn from a
normal distribution.  All floating inputs are differentiated for unless `wrt` names some; `weights` become initialisers.
"""

from __future__ import annotations

import functools
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops import op_loop, op_scan
from scipy import special

from pycam.errors import LayerError
from pycam.grad import differentiate, registry
from pycam.grad.reverse import between
from pycam.gradient import vjp
from pycam.graph.builder import Builder, Lower
from pycam.graph.contrib import infer_shapes
from pycam.graph.load import load
from pycam.graph.normalise import normalise

RUNTIME = tuple(int(part) for part in ort.__version__.split(".")[:2])
TESTED_RUNTIME = (1, 31)
"""Older runtimes (on Python 3.10 the newest is 1.23) lack some forward ops that these tests use (Swish, a broadcast
LayerNormalization scale, …) or compute them otherwise: there rules are checked in float64 only, whole models in both.
"""

FORMS = ("static", "batch", "dynamic")
"""How much the model's inputs say of their shapes: all, all but the batch axis `N`, or only their ranks."""

Inputs = Mapping[str, Any]  # name → array, number, or a shape (tuple of int) to be drawn


def _op(name: str, function: Callable[..., np.ndarray]) -> type[OpRun]:
    """A stand-in for an op of the reference evaluator: `function(*inputs, **attributes)`; `domain::Op` has a domain."""

    def _run(self: OpRun, *inputs: np.ndarray, **attributes: Any) -> tuple[np.ndarray, ...]:
        given = {k: v for k, v in attributes.items() if v is not None}
        made = function(*inputs, **given)
        return tuple(np.asarray(y, dtype=inputs[0].dtype) for y in (made if isinstance(made, tuple) else (made,)))

    domain, _, op = name.rpartition("::")
    return type(op, (OpRun,), {"op_domain": domain, "_run": _run})


def _gelu(x: np.ndarray, approximate: str = "none") -> np.ndarray:
    if approximate == "tanh":
        return np.asarray(0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))))
    return np.asarray(0.5 * x * (1 + special.erf(x / np.sqrt(2))))


# The reference evaluator's Erf computes in float32, and Gelu is made of it; its Mean does not broadcast.
STAND_INS: dict[str, Callable[..., np.ndarray]] = {
    "Erf": special.erf,
    "Gelu": _gelu,
    "Mean": lambda *xs: functools.reduce(np.add, xs) / len(xs),
}


class Loop(op_loop.Loop):
    """The reference evaluator's Loop joins the outputs of steps along their first axis, where ONNX stacks them."""

    def _run(
        self, trips: Any, condition: Any, *states: Any, context: Any = None, bindings: Any = None, **_: Any
    ) -> tuple[np.ndarray, ...]:
        names, kept = self.body.input_names, [[] for _ in range(self.K)]  # type: ignore[var-annotated]
        step, go = 0, condition is None or bool(condition)
        while go and (trips is None or step < trips):
            feed = {**(context or {}), **dict(zip(names, (np.int64(step), np.array(True), *states), strict=True))}
            go, *found = self._run_body(feed, bindings=bindings)
            states = tuple(found[: self.N])
            for stack, piece in zip(kept, found[self.N :], strict=True):
                stack.append(piece)
            step += 1
        outputs = self.body.onnx_graph_.output[1 + self.N :]
        return (*states, *(_stacked(stack, output) for stack, output in zip(kept, outputs, strict=True)))


def _stacked(pieces: list[np.ndarray], output: onnx.ValueInfoProto) -> np.ndarray:
    if pieces:
        return np.stack(pieces)
    kind = output.type.tensor_type
    return np.zeros([0, *(d.dim_value for d in kind.shape.dim)], helper.tensor_dtype_to_np_dtype(kind.elem_type))


class Scan(op_scan.Scan):
    """The reference evaluator's Scan knows neither axes nor directions."""

    def __init__(self, node: onnx.NodeProto, params: dict[str, Any]) -> None:
        OpRun.__init__(self, node, params)

    def _run(self, *inputs: np.ndarray, context: Any = None, bindings: Any = None, **_: Any) -> tuple[np.ndarray, ...]:
        count = len(inputs) - self.num_scan_inputs
        states, slices = inputs[:count], inputs[count:]
        kept: list[list[np.ndarray]] = [[] for _ in self.body.output_names[count:]]
        cut = list(zip(slices, self._each("input_axes", slices), self._each("input_directions", slices), strict=True))
        steps = slices[0].shape[cut[0][1]]
        assert steps, "onnxruntime refuses a Scan over nothing"
        for t in range(steps):
            now = [np.take(x, -1 - t if backwards else t, axis) for x, axis, backwards in cut]
            feed = {**(context or {}), **dict(zip(self.body.input_names, (*states, *now), strict=True))}
            found = self._run_body(feed, bindings=bindings)
            states = tuple(found[:count])
            for (stack, piece), backwards in zip(
                zip(kept, found[count:], strict=True), self._each("output_directions", kept), strict=True
            ):
                stack.insert(0 if backwards else t, piece)
        return (*states, *(np.stack(k, axis) for k, axis in zip(kept, self._each("output_axes", kept), strict=True)))

    def _each(self, what: str, values: Sequence[Any]) -> list[int]:
        return list(getattr(self, f"scan_{what}") or [0] * len(values))


class Check:
    """Compares the gradients of a small model with central differences, and its runtimes with each other."""

    forms = FORMS

    def __call__(
        self,
        body: str | onnx.ModelProto,
        inputs: Inputs,
        *,
        weights: Inputs | None = None,
        wrt: Sequence[str] | None = None,
        forms: Iterable[str] = FORMS,
        opset: int = 21,
        ops: Mapping[str, Callable[..., np.ndarray]] | None = None,
        runtime: bool = True,
        batched: bool = False,
        second: bool = True,
        rtol: float = 1e-6,
        lower: Lower = "fast",
    ) -> None:
        """Assert that `vjp` gives the gradients of the first output for `wrt`.

        Args:
            body: The nodes as text, or a whole model in float64.
            inputs: The graph's inputs; what is not floating is not differentiated for.
            weights: Initialisers (of a `body`).
            wrt: Names to differentiate for; default: all floating `inputs`.
            forms: Which of `FORMS` to run.
            opset: Of a `body`.
            ops: numpy forward functions for ops that the reference evaluator has not, or has wrong.
            runtime: Also run in onnxruntime, in float32.
            batched: Axis 0 of every input is the batch: also compare the gradients of two scores in one pass
                with those of two passes.
            second: Also differentiate the gradient, and compare that with central differences of it: every op that a
                rule emits has a rule itself.
            rtol: Tolerance of the central differences, relative to the largest gradient.
            lower: As of `vjp`.
        """
        arrays = self.draw(inputs, str(body))
        names = list(wrt) if wrt is not None else [k for k, v in arrays.items() if v.dtype.kind == "f"]
        plain = self.model(body, arrays, weights=weights, opset=opset)
        forward = _reference(plain, ops)
        y = forward(arrays)[0]
        cotangent = np.random.default_rng(7).normal(size=y.shape)
        expected = [_central_differences(forward, arrays, name, cotangent) for name in names]
        feed = {**arrays, f"{plain.graph.output[0].name}.cotangent": cotangent}
        for form in forms:
            double = self.model(body, arrays, weights=weights, opset=opset, form=form, every=batched)
            differentiated = vjp(double, names, lower=lower)
            _assert_portable(differentiated, plain)
            for name, want, got in zip(
                names, expected, _reference(differentiated, ops)(feed)[-len(names) :], strict=True
            ):
                _assert_close(got, want, rtol, f"d/d{name}, {form}, against central differences")
            if form == "static":
                self._assert_portable_form(double, differentiated, names, feed, expected, ops, rtol)
            if second and form == "static":
                self._assert_second_order(differentiated, names, feed, ops, rtol, lower)
            if runtime:
                self._assert_runtime(double, names, feed, expected, form, lower)
            if batched and form != "dynamic":
                _assert_repeats(double, names, arrays, y.shape, ops, form)

    def gradient(
        self,
        body: str | onnx.ModelProto,
        inputs: Inputs,
        cotangent: Any = 1.0,
        *,
        weights: Inputs | None = None,
        wrt: Sequence[str] | None = None,
        opset: int = 21,
        ops: Mapping[str, Callable[..., np.ndarray]] | None = None,
        form: str = "static",
        runtime: bool = True,
    ) -> Any:
        """The gradient itself (a list if there are several), for tests that know the numbers: kinks and ties."""
        arrays = self.draw(inputs, str(body))
        names = list(wrt) if wrt is not None else [k for k, v in arrays.items() if v.dtype.kind == "f"]
        double = self.model(body, arrays, weights=weights, opset=opset, form=form)
        y = _reference(double, ops)(arrays)[0]
        feed = {
            **arrays,
            f"{double.graph.output[0].name}.cotangent": np.broadcast_to(np.asarray(cotangent, float), y.shape),
        }
        grads = _reference(vjp(double, names), ops)(feed)[-len(names) :]
        if runtime:
            self._assert_runtime(double, names, feed, grads, form)
        return grads if len(names) > 1 else grads[0]

    def forward(
        self,
        body: str | onnx.ModelProto,
        inputs: Inputs,
        *,
        weights: Inputs | None = None,
        opset: int = 21,
        ops: Mapping[str, Callable[..., np.ndarray]] | None = None,
    ) -> None:
        """Assert that onnxruntime computes in float32 what the reference evaluator, or `ops`, do in float64."""
        arrays = self.draw(inputs, str(body))
        double = self.model(body, arrays, weights=weights, opset=opset)
        (got,) = _session(_float32(double)).run(None, _single(arrays))
        _assert_close(got, _reference(double, ops)(arrays)[0], 1e-4, "the forward pass")

    @staticmethod
    def run(model: onnx.ModelProto, feed: Inputs, names: Sequence[str]) -> list[np.ndarray]:
        """Outputs of a model in float64, computed by onnxruntime in float32."""
        return list(_session(_float32(model)).run(list(names), _single(feed)))

    def model(
        self,
        body: str | onnx.ModelProto,
        inputs: Inputs,
        *,
        weights: Inputs | None = None,
        opset: int = 21,
        form: str = "static",
        every: bool = False,
    ) -> onnx.ModelProto:
        """The forward model in float64; `form` says how much of the inputs' shapes it knows."""
        arrays = self.draw(inputs, str(body))
        model = (
            body if isinstance(body, onnx.ModelProto) else _parse(body, arrays, self.draw(weights or {}, "w"), opset)
        )
        return _with_shapes(model, arrays, form, every)

    @staticmethod
    def single(model: onnx.ModelProto) -> onnx.ModelProto:
        """The same model in float32."""
        return _float32(model)

    @staticmethod
    def evaluator(model: onnx.ModelProto) -> Callable[[Inputs], list[np.ndarray]]:
        """The model as a function of a feed, in the dtypes that it names: the reference evaluator, put right."""
        return _reference(model, None)

    @staticmethod
    def graph(model: onnx.ModelProto) -> ir.Graph:
        """The normalised graph, as `differentiate` takes it."""
        return normalise(load(model)).graph

    def differentiable(self, body: str | onnx.ModelProto, inputs: Inputs, **options: Any) -> set[tuple[str, int]]:
        """The (op, input) pairs whose rules a case exercises."""
        arrays = self.draw(inputs, str(body))
        known = {k: v for k, v in options.items() if k in ("weights", "opset")}
        graph = self.graph(self.model(body, arrays, **known))
        names = options.get("wrt") or [k for k, v in arrays.items() if v.dtype.kind == "f"]
        path = between(list(graph), [_value(graph, name) for name in names], [graph.outputs[0]])
        return {
            (node.op_type, registry.ALL if (node.domain, node.op_type, registry.ALL) in registry.RULES else i)
            for node in path.nodes
            for i, x in enumerate(node.inputs)
            if x in path.values and registry.find(node, i) is not None
        }

    def untested(self, module: str, cases: Iterable[Sequence[Any]]) -> set[tuple[str, int]]:
        """The (op, input) pairs that `module` has a rule for and none of `cases` (body, inputs[, options]) reaches."""
        rules = {(op, i) for (_, op, i), rule in registry.RULES.items() if rule.vjp.__module__ == module}
        assert rules, f"{module} has no rules"
        seen: set[tuple[str, int]] = set()
        for body, inputs, *options in cases:
            seen |= self.differentiable(body, inputs, **(options[0] if options else {}))
        return rules - seen

    @staticmethod
    def draw(inputs: Inputs, salt: str = "") -> dict[str, np.ndarray]:
        """Arrays as they are, floats as float64; a tuple of ints is a shape to be drawn (the same in every run)."""
        arrays: dict[str, np.ndarray] = {}
        for name, value in inputs.items():
            if isinstance(value, tuple) and all(type(v) is int for v in value):
                value = np.random.default_rng(zlib.crc32(f"{name} {salt}".encode())).normal(size=value)
            array = np.asarray(value)
            arrays[name] = array.astype(np.float64) if array.dtype.kind == "f" else array
        return arrays

    @staticmethod
    def _assert_portable_form(
        double: onnx.ModelProto,
        fast: onnx.ModelProto,
        names: Sequence[str],
        feed: Inputs,
        expected: Sequence[np.ndarray],
        ops: Mapping[str, Callable[..., np.ndarray]] | None,
        rtol: float,
    ) -> None:
        """`lower="portable"` adds no form that some runtime gets wrong, and gives the same gradients."""
        portable = vjp(double, names, lower="portable")
        forward = {y for node in double.graph.node for y in node.output}
        reshapes = {y: node for node in portable.graph.node if node.op_type == "Reshape" for y in node.output}
        constants = {t.name: numpy_helper.to_array(t) for t in portable.graph.initializer}
        for node in (n for graph in _graphs(portable.graph) for n in graph.node if not forward & {*n.output}):
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            wrong = (
                node.op_type == "MaxUnpool"
                or (node.op_type == "MaxPool" and len(node.output) > 1)
                or (node.op_type.startswith("Scatter") and attributes.get("reduction", b"none") != b"none")
                or (node.op_type == "ConvTranspose" and attributes.get("group", 1) > 1)
                or node.op_type == "HardSigmoid"  # times something: OpenCV makes it a HardSwish
                or _copies_over(node, reshapes, constants)  # OpenCV copies from the first Reshape's input
            )
            assert not wrong, f"{node.op_type} {attributes} is not portable"
        if portable.graph.node != fast.graph.node:
            for name, want, got in zip(names, expected, _reference(portable, ops)(feed)[-len(names) :], strict=True):
                _assert_close(got, want, rtol, f"d/d{name}, portable, against central differences")

    @staticmethod
    def _assert_second_order(
        differentiated: onnx.ModelProto,
        names: Sequence[str],
        feed: Inputs,
        ops: Mapping[str, Callable[..., np.ndarray]] | None,
        rtol: float,
        lower: Lower,
    ) -> None:
        """`vjp` of `vjp`: `Σ v·gradient` changes along a direction as its own gradient says."""
        rng = np.random.default_rng(9)
        first = _reference(differentiated, ops)
        floating = [*names, next(k for k in feed if k.endswith(".cotangent"))]
        along = {k: rng.normal(size=np.shape(feed[k])) for k in floating}
        step = 1e-5
        ahead, behind = (
            first({k: v + sign * step * along[k] if k in along else v for k, v in feed.items()})[-len(names) :]
            for sign in (1, -1)
        )
        for j, name in enumerate(names):
            v = rng.normal(size=ahead[j].shape)
            want = float(np.sum(v * (ahead[j] - behind[j]))) / (2 * step)
            got = 0.0
            for k in floating:
                try:
                    again = vjp(differentiated, [k], f"{name}.gradient", lower=lower)
                except LayerError:  # the gradient does not depend on it: the op is linear in it
                    continue
                got += float(np.sum(along[k] * _reference(again, ops)({**feed, f"{name}.gradient.cotangent": v})[-1]))
            scale = max(abs(want), float(np.abs(ahead[j]).max(initial=0.0)), 1e-3)
            assert abs(got - want) <= 100 * rtol * scale, f"second order of d/d{name}: {got}, want {want}"

    @staticmethod
    def _assert_runtime(
        double: onnx.ModelProto,
        names: Sequence[str],
        feed: Inputs,
        expected: Sequence[np.ndarray],
        form: str,
        lower: Lower = "fast",
    ) -> None:
        if RUNTIME < TESTED_RUNTIME:
            return
        differentiated = vjp(_float32(double), names, lower=lower)
        session = _session(differentiated)
        single = _single(feed)
        known = {i.name for i in session.get_inputs()}
        grads = session.run([f"{name}.gradient" for name in names], {k: v for k, v in single.items() if k in known})
        for name, want, got in zip(names, expected, grads, strict=True):
            _assert_close(got, want, 1e-4, f"d/d{name}, {form}, onnxruntime in float32")


def _copies_over(
    node: onnx.NodeProto, reshapes: Mapping[str, onnx.NodeProto], constants: Mapping[str, np.ndarray]
) -> bool:
    """Whether a Reshape copies a size (0) from what another one made with known sizes."""
    if node.op_type != "Reshape" or node.input[0] not in reshapes:
        return False
    inner, outer = (constants.get(n.input[1]) for n in (reshapes[node.input[0]], node))
    return inner is not None and outer is not None and any(s == 0 and inner[i] > 0 for i, s in enumerate(outer))


def _session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _single(feed: Inputs) -> dict[str, np.ndarray]:
    return {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in feed.items()}


def _parse(body: str, inputs: Inputs, weights: Inputs, opset: int) -> onnx.ModelProto:
    names = ", ".join(f"{_type(v)} {k}" for k, v in inputs.items())
    contrib = f', "{registry.CONTRIB}" : 1' if f"{registry.CONTRIB}." in body else ""
    text = f'<ir_version: 10, opset_import: ["" : {opset}{contrib}]> f ({names}) => (double y) {{ {body} }}'
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in weights.items())
    for i, node in enumerate(model.graph.node):
        node.name = f"node{i}"
    return model


def _type(array: np.ndarray) -> str:
    name = {"float64": "double", "float32": "float"}.get(array.dtype.name, array.dtype.name)
    return f"{name}[{', '.join(map(str, array.shape))}]" if array.ndim else name


def _with_shapes(
    model: onnx.ModelProto, arrays: Mapping[str, np.ndarray], form: str, every: bool = False
) -> onnx.ModelProto:
    """`model` with the shapes of its inputs as `form` says, and all others inferred from them.

    `every`: axis 0 of all inputs is the batch, not just of those that have the first one's rank.
    """
    assert form in FORMS, form
    result = onnx.ModelProto()
    result.CopyFrom(model)
    first = next(iter(arrays.values()))
    for value in result.graph.input:
        array = arrays[value.name]
        dims: list[int | str] = list(array.shape)
        if form == "dynamic":
            dims = [f"{value.name}{i}" for i in range(array.ndim)]
        elif (
            form == "batch" and (every or array.ndim == first.ndim) and array.ndim and array.shape[0] == first.shape[0]
        ):
            dims[0] = "N"
        value.CopyFrom(helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, dims))
    del result.graph.value_info[:]
    for value in result.graph.output:
        value.ClearField("type")
    result = infer_shapes(result)
    for value in result.graph.output:
        if not value.type.tensor_type.HasField(
            "shape"
        ):  # nothing is inferred for GroupNormalization, and for computed axes
            value.CopyFrom(
                helper.make_tensor_value_info(value.name, TensorProto.DOUBLE, [f"y{i}" for i in range(first.ndim)])
            )
    return result


def _float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model in float32: every tensor, type and Cast that says double."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graphs = list(_graphs(result.graph))
    for value in [v for graph in graphs for v in (*graph.input, *graph.output, *graph.value_info)]:
        if value.type.tensor_type.elem_type == TensorProto.DOUBLE:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    tensors = [tensor for graph in graphs for tensor in graph.initializer]
    for node in [node for graph in graphs for node in graph.node]:
        for attribute in node.attribute:
            tensors += [attribute.t] if attribute.HasField("t") else []
            if attribute.name in ("to", "dtype") and attribute.i == TensorProto.DOUBLE:
                attribute.i = TensorProto.FLOAT
    for tensor in tensors:
        if tensor.data_type == TensorProto.DOUBLE:
            array = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return result


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and its subgraphs."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


def _reference(
    model: onnx.ModelProto, ops: Mapping[str, Callable[..., np.ndarray]] | None
) -> Callable[[Inputs], list[np.ndarray]]:
    present = {
        f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        for graph in _graphs(model.graph)
        for node in graph.node
    }
    stand_ins = {**STAND_INS, **(ops or {})}
    evaluator = ReferenceEvaluator(
        model, new_ops=[Loop, Scan, *(_op(k, f) for k, f in stand_ins.items() if k in present)]
    )
    names = [value.name for value in model.graph.input]

    def run(feed: Inputs) -> list[np.ndarray]:
        with np.errstate(all="ignore"):  # rules divide first and select afterwards
            return [np.asarray(v) for v in evaluator.run(None, {k: feed[k] for k in names})]

    return run


def _central_differences(
    forward: Callable[[Inputs], list[np.ndarray]], arrays: Inputs, name: str, cotangent: np.ndarray
) -> np.ndarray:
    base = arrays[name]
    gradient = np.zeros(base.shape)
    for index in np.ndindex(base.shape):
        step = 1e-5 * max(1.0, abs(base[index]))
        score = []
        for moved in (base[index] + step, base[index] - step):
            point = base.copy()
            point[index] = moved
            score.append(float(np.sum(cotangent * forward({**arrays, name: point})[0])))
        gradient[index] = (score[0] - score[1]) / (2 * step)
    return gradient


def _assert_repeats(
    double: onnx.ModelProto,
    names: Sequence[str],
    arrays: Inputs,
    shape: tuple[int, ...],
    ops: Mapping[str, Callable[..., np.ndarray]] | None,
    form: str,
) -> None:
    """`differentiate(…, count=2)` gives both gradients, one after the other along axis 0."""
    output = double.graph.output[0].name
    cotangents = np.random.default_rng(8).normal(size=(2, *shape))
    apart = _reference(vjp(double, names), ops)
    expected = [apart({**arrays, f"{output}.cotangent": c})[-len(names) :] for c in cotangents]

    model = normalise(load(double))
    graph = model.graph
    y, xs = graph.outputs[0], [_value(graph, name) for name in names]
    assert y.shape is not None
    seed = ir.Value(name="seed", shape=ir.Shape([None, *y.shape[1:]]), type=y.type)
    count = ir.Value(name="count", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT64))
    g = Builder(graph)
    grads, _ = differentiate(g, {y: seed}, xs, count=count)
    graph.inputs.extend([seed, count])
    for grad in grads:
        assert grad is not None
        output_value = g.Identity(grad)
        output_value.type = y.type
        graph.outputs.append(output_value)
    feed = {**arrays, "seed": cotangents.reshape(-1, *shape[1:]), "count": np.array([2])}
    for i, got in enumerate(_reference(ir.to_proto(model), ops)(feed)[-len(names) :]):
        want = np.concatenate([e[i] for e in expected])
        _assert_close(got, want, 1e-9, f"d/d{names[i]}, {form}, two scores in one pass")


def _value(graph: ir.Graph, name: str) -> ir.Value:
    return next(v for v in [*graph.inputs, *(y for n in graph for y in n.outputs)] if v.name == name)


def _assert_portable(model: onnx.ModelProto, forward: onnx.ModelProto) -> None:
    """All nodes are standard but those of the forward model, whose names stay."""
    own = {(node.domain, node.op_type, tuple(node.output)) for node in forward.graph.node}
    added = {node.domain for node in model.graph.node if (node.domain, node.op_type, tuple(node.output)) not in own}
    assert added <= {"", "ai.onnx"}
    assert {o.domain for o in model.opset_import} - {"ai.onnx"} <= {"", *(node.domain for node in forward.graph.node)}
    training = {n.op_type for n in model.graph.node if re.search(r"Grad(ient)?$|Momentum|Ada(m|grad)", n.op_type)}
    assert not training, training


def _assert_close(got: np.ndarray, want: np.ndarray, rtol: float, what: str) -> None:
    assert got.shape == want.shape, f"{what}: shape {got.shape}, want {want.shape}"
    scale = float(np.abs(want).max(initial=0.0, where=np.isfinite(want)))
    np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol * max(scale, 1e-3), err_msg=what)


@pytest.fixture(scope="session")
def check() -> Check:
    """See the module's docstring and `Check.__call__`."""
    return Check()
