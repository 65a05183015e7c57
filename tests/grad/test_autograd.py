"""Gradients against torch's autograd: the arrays that `tests/reference/make_autograd.py` stored.

An independent reference: torch's kernels and formulas are nobody's here.  Every case is differentiated for all its
floating inputs, with its sizes known and unknown, and for the first of them with the others constant.  Gradients are
evaluated in float64 by onnx.reference (to 1e-9) and in float32 by onnxruntime (to 1e-4), relative to the largest one.

In float64 only the backward pass is evaluated, at the `y` of the file: onnx.reference lacks some ops and has others
wrong (LRN, grouped ConvTranspose, LpNormalization with p=1, lengths of sequences, …).  What a case cannot do is listed
below with the reason.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops import op_scan
from scipy import special

from pycam.errors import UnsupportedOpError
from pycam.grad import registry
from pycam.grad.reverse import carries_gradient
from pycam.gradient import vjp
from pycam.graph.load import load
from pycam.graph.normalise import normalise

FILE = Path(__file__).parents[1] / "reference" / "autograd.npz"
RUNTIME = tuple(int(part) for part in ort.__version__.split(".")[:2])
TESTED_RUNTIME = (1, 31)
"""Older runtimes (on Python 3.10 the newest is 1.23) lack ops of these cases: there float64 has to do."""

REFUSED: dict[str, str] = {
    f"{op} of none": "runtimes disagree on what noop_with_empty_axes computes here"
    for op in ("ReduceLogSumExp", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceSumSquare")
}
"""Refused on purpose: case → why."""

KNOWN: dict[str, Callable[[str, int, int], bool]] = {
    **dict.fromkeys(("Conv", "ConvTranspose", "DeformConv", "CausalConvWithState"), lambda x, axis, rank: x == "w"),
    **dict.fromkeys(("Attention", "RotaryEmbedding"), lambda x, axis, rank: axis not in (0, rank - 2)),
    **dict.fromkeys(("Slice", "Resize"), lambda x, axis, rank: x in ("s", "e")),
    "LinearAttention": lambda x, axis, rank: axis == 1,
    "GatherND": lambda x, axis, rank: x == "i",
    "STFT": lambda x, axis, rank: x == "w",
    "DepthToSpace": lambda x, axis, rank: axis == 1,
}
"""What stays known where sizes are unknown, as any model knows it: op → of (input, axis, rank).  Kernels, numbers and
widths of heads, the length of a window, how many axes a vector names.
"""

REFUSED_DYNAMIC = {
    "ConvTranspose to a shape": "the pads that lead to this shape depend on the sizes",
    "sequence": "how many elements the sequence has is not known",
}
"""Refused on purpose where sizes are unknown."""

LOOSER: dict[str, tuple[float, str]] = {
    "Resize": (1e-6, "the rule has the runtime resize an identity matrix in float32"),
    "HardSigmoid of default": (1e-7, "the rule takes the slope 0.2 as float64, the op's own is float32"),
}
"""Case, or the op that cases begin with → relative tolerance in float64, and why it is not 1e-9."""

NOT_IN_RUNTIME: dict[str, str] = {
    "Einsum i...->i (2, 3)": "an ellipsis that the result has not is not implemented",
    **{f"{op}, batch first": "layout=1 is not implemented" for op in ("RNN", "GRU", "LSTM")},
    "AveragePool ceil, no window in the end pad include=1": "up to opset 21 onnx infers a window too many",
    **{f"SwiGLU{scaled}": "Swish of opset 25 and later is not implemented" for scaled in ("", " scaled")},
}
"""What onnxruntime 1.32 cannot run, forward already: case → why."""


@dataclass(frozen=True)
class Case:
    """One case as it was stored; the model is in float64 and declares the shapes of its inputs."""

    model: onnx.ModelProto
    inputs: Mapping[str, np.ndarray]
    cotangent: np.ndarray
    y: np.ndarray
    gradients: Mapping[str, np.ndarray]

    @property
    def wrt(self) -> list[str]:
        return list(self.gradients)


def _cases() -> Iterator[tuple[str, Case]]:
    """Take the arrays in the order in which `make_autograd.py` put them."""
    with np.load(FILE) as file:
        pools = {name: file[name] for name in ("floats", "singles", "ints")}
        described = json.loads(str(file["about"]))["cases"]
    begin: Counter[str] = Counter()

    def take(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        pool = {"float64": "floats", "float32": "singles"}.get(dtype, "ints")
        start, count = begin[pool], int(np.prod(shape))
        begin[pool] += count
        return pools[pool][start : start + count].astype(dtype).reshape(shape)

    for name, case in described.items():
        inputs = {k: take(*v) for k, v in case["inputs"].items()}
        weights = {k: take(*v) for k, v in case["weights"].items()}
        cotangent, y = (take("float64", case["y"]) for _ in range(2))
        gradients = {k: take("float64", v.shape) for k, v in inputs.items() if v.dtype == np.float64}
        model = _model(case["body"], case["opset"], inputs, weights, y.ndim)
        yield name, Case(model, inputs, cotangent, y, gradients)


def _model(
    body: str, opset: int, inputs: Mapping[str, np.ndarray], weights: Mapping[str, np.ndarray], rank: int
) -> onnx.ModelProto:
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> f () => (double y) {{ {body} }}')
    model.graph.input.extend(
        helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for k, v in inputs.items()
    )
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in weights.items())
    dims = [f"y{i}" for i in range(rank)]  # what they are is for shape inference to find
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.DOUBLE, dims))
    return model


CASES = dict(_cases())


def _case(name: str) -> Case:
    case = CASES[name]
    opset = case.model.opset_import[0].version
    if opset > onnx.defs.onnx_opset_version():
        pytest.skip(f"opset {opset} is newer than this onnx package")
    return case


def _sizes_unknown(name: str) -> onnx.ModelProto:
    """The case's model, which of its inputs knows the ranks only, and what `KNOWN` says."""
    result = onnx.ModelProto()
    result.CopyFrom(_case(name).model)
    known = KNOWN.get(name.split()[0].rstrip(","), lambda x, axis, rank: False)
    for value in result.graph.input:
        dims = value.type.tensor_type.shape.dim
        for axis, dim in enumerate(dims):
            if not known(value.name, axis, len(dims)):
                dim.dim_param = f"{value.name}{axis}"
    return result


def _single(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model in float32."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    _to_single(result.graph)
    return result


def _to_single(graph: onnx.GraphProto) -> None:
    for value in [*graph.input, *graph.output]:
        if value.type.tensor_type.elem_type == TensorProto.DOUBLE:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.DOUBLE:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == TensorProto.DOUBLE:
                attribute.i = TensorProto.FLOAT
            if attribute.HasField("g"):
                _to_single(attribute.g)


def _stand_in(name: str, function: Callable[..., np.ndarray]) -> type[OpRun]:
    def _run(self: OpRun, *inputs: np.ndarray, **attributes: Any) -> tuple[np.ndarray, ...]:
        return (np.asarray(function(*inputs, **attributes), dtype=inputs[0].dtype),)

    return type(name, (OpRun,), {"op_domain": "", "_run": _run})


def _gather_elements(x: np.ndarray, index: np.ndarray, axis: int = 0) -> np.ndarray:
    axis %= x.ndim
    covered = tuple(slice(None) if d == axis else slice(n) for d, n in enumerate(index.shape))
    return np.take_along_axis(x[covered], index, axis)


def _conv_transpose(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None = None,
    *,
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None,
    group: int | None = None,
    **_: Any,
) -> np.ndarray:
    n, size, kernel, group = x.ndim - 2, x.shape[2:], w.shape[2:], group or 1
    strides, dilations = strides or [1] * n, dilations or [1] * n
    pads, more = pads or [0] * 2 * n, output_padding or [0] * n
    whole = [(size[i] - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1 + more[i] for i in range(n)]
    y = np.zeros((len(x), w.shape[1] * group, *whole))
    x, w = x.reshape(len(x), group, -1, *size), w.reshape(group, -1, *w.shape[1:])
    for k in np.ndindex(*kernel):
        begin = [k[i] * dilations[i] for i in range(n)]
        at = tuple(slice(a, a + (size[i] - 1) * strides[i] + 1, strides[i]) for i, a in enumerate(begin))
        part = np.einsum("ngc...,gco->ngo...", x, w[(..., *k)])
        y[(..., *at)] += part.reshape(*y.shape[:2], *size)
    y = y[(..., *(slice(pads[i], whole[i] - pads[n + i]) for i in range(n)))]
    return y if b is None else y + b.reshape(-1, *[1] * n)


def _affine_grid(theta: np.ndarray, size: np.ndarray, align_corners: int | None = None) -> np.ndarray:
    axes = [np.linspace(-1, 1, n) if align_corners else (2 * np.arange(n) + 1) / n - 1 for n in size[2:]]
    points = np.stack([*np.meshgrid(*axes, indexing="ij")[::-1], np.ones(size[2:])], -1)
    return np.einsum("ndk,...k->n...d", theta, points)


class Scan(op_scan.Scan):
    """A Scan that may go backwards."""

    op_domain = ""

    def __init__(self, node: onnx.NodeProto, run_params: dict[str, Any]) -> None:
        forward = onnx.NodeProto()
        forward.CopyFrom(node)
        directions = {a.name: list(a.ints) for a in node.attribute if a.name.endswith("_directions")}
        for attribute in [a for a in forward.attribute if a.name in directions]:
            forward.attribute.remove(attribute)
        super().__init__(forward, run_params)
        self.backward_inputs = directions.get("scan_input_directions", [])
        self.backward_outputs = directions.get("scan_output_directions", [])

    def _run(self, *inputs: np.ndarray, **attributes: Any) -> tuple[np.ndarray, ...]:
        states = len(inputs) - self.num_scan_inputs
        outputs = super()._run(*inputs[:states], *_turned(inputs[states:], self.backward_inputs), **attributes)
        return (*outputs[:states], *_turned(outputs[states:], self.backward_outputs))


def _turned(arrays: Sequence[np.ndarray], backward: Sequence[int]) -> list[np.ndarray]:
    return [x[::-1] if i < len(backward) and backward[i] else x for i, x in enumerate(arrays)]


STAND_INS = [
    _stand_in("Erf", special.erf),
    _stand_in("GatherElements", _gather_elements),
    _stand_in("ConvTranspose", _conv_transpose),
    _stand_in("AffineGrid", _affine_grid),
    Scan,
]
"""onnx.reference computes Erf and AffineGrid in float32, wants indices as wide as the data, has no groups in
ConvTranspose, and Scan goes forwards only.
"""


def _backward(differentiated: onnx.ModelProto, case: Case) -> list[np.ndarray]:
    """The gradients in float64, at the stored `y`: whoever makes it only, is cut off."""
    graph = differentiated.graph
    used = {x for node in graph.node for x in node.input}
    maker = next((node for node in graph.node if "y" in node.output), None)
    if maker is not None and not used & {y for y in maker.output if y not in ("", "y")}:
        graph.node.remove(maker)
        graph.input.append(helper.make_tensor_value_info("y", TensorProto.DOUBLE, None))
        del graph.output[0]
    for k, node in enumerate(graph.node):  # onnx.reference would read an output "" as every input that is left out
        node.output[:] = [y or f"unused {k} {i}" for i, y in enumerate(node.output)]
    evaluator = ReferenceEvaluator(differentiated, new_ops=STAND_INS)
    feed = {**case.inputs, "y": case.y, "y.cotangent": case.cotangent}
    with np.errstate(all="ignore"):  # rules divide first and select afterwards
        outputs = evaluator.run(None, {v.name: feed[v.name] for v in graph.input})
    return [np.asarray(v) for v in outputs[-len(case.gradients) :]]


def _run(differentiated: onnx.ModelProto, case: Case) -> list[np.ndarray]:
    """y and the gradients in float32, by onnxruntime."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(differentiated.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {**case.inputs, "y.cotangent": case.cotangent}
    single = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in feed.items()}
    known = {i.name for i in session.get_inputs()}
    names = ["y", *(f"{name}.gradient" for name in case.gradients)]
    return session.run(names, {k: v for k, v in single.items() if k in known})


def _assert_close(got: np.ndarray, want: np.ndarray, rtol: float, what: str) -> None:
    assert got.shape == want.shape, f"{what}: shape {got.shape}, want {want.shape}"
    scale = float(np.abs(want).max(initial=0, where=np.isfinite(want)))
    np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol * max(scale, 1e-3), err_msg=what)


def _rest_constant(case: Case) -> Case:
    """The case with its first floating input as the only one: the others become initialisers, as weights are."""
    first, *rest = case.wrt
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    kept = [v for v in model.graph.input if v.name not in rest]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.graph.initializer.extend(numpy_helper.from_array(case.inputs[x], x) for x in rest)
    inputs = {k: v for k, v in case.inputs.items() if k not in rest}
    return Case(model, inputs, case.cotangent, case.y, {first: case.gradients[first]})


def _assert_reference(name: str, case: Case) -> None:
    rtol, _ = LOOSER.get(name) or LOOSER.get(name.split()[0]) or (1e-9, "")
    for (x, want), got in zip(case.gradients.items(), _backward(vjp(case.model, case.wrt), case), strict=True):
        _assert_close(got, want, rtol, f"d/d{x}")


def _assert_runtime(case: Case) -> None:
    y, *gradients = _run(vjp(_single(case.model), case.wrt), case)
    _assert_close(y, case.y, 1e-4, "y")
    for (x, want), got in zip(case.gradients.items(), gradients, strict=True):
        _assert_close(got, want, 1e-4, f"d/d{x}")


in_runtime = pytest.mark.skipif(RUNTIME < TESTED_RUNTIME, reason=f"onnxruntime before {TESTED_RUNTIME} lacks ops")
DIFFERENTIABLE = [name for name in CASES if name not in REFUSED]
RUNNING = [name for name in DIFFERENTIABLE if name not in NOT_IN_RUNTIME]
SEVERAL = [name for name in CASES if len(CASES[name].wrt) > 1]


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradient(name: str) -> None:
    _assert_reference(name, _case(name))


@pytest.mark.parametrize("name", [name for name in DIFFERENTIABLE if name not in REFUSED_DYNAMIC])
def test_gradient_with_unknown_sizes(name: str) -> None:
    _assert_reference(name, replace(_case(name), model=_sizes_unknown(name)))


@in_runtime
@pytest.mark.parametrize("name", RUNNING)
def test_gradient_in_onnxruntime(name: str) -> None:
    _assert_runtime(_case(name))


@pytest.mark.parametrize("name", SEVERAL)
def test_gradient_of_the_first_input(name: str) -> None:
    _assert_reference(name, _rest_constant(_case(name)))


@in_runtime
@pytest.mark.parametrize("name", [name for name in SEVERAL if name not in NOT_IN_RUNTIME])
def test_gradient_of_the_first_input_in_onnxruntime(name: str) -> None:
    _assert_runtime(_rest_constant(_case(name)))


@pytest.mark.parametrize("name", REFUSED)
def test_refusal(name: str) -> None:
    case = _case(name)
    with pytest.raises(UnsupportedOpError):
        vjp(case.model, case.wrt)


@pytest.mark.parametrize("name", REFUSED_DYNAMIC)
def test_refusal_with_unknown_sizes(name: str) -> None:
    case = _case(name)
    with pytest.raises(UnsupportedOpError):
        vjp(_sizes_unknown(name), case.wrt)


def test_lists_name_cases() -> None:
    assert set(REFUSED) | set(REFUSED_DYNAMIC) | set(NOT_IN_RUNTIME) <= set(CASES)
    assert set(LOOSER) | set(KNOWN) <= {*CASES, *(name.split()[0] for name in CASES)}


@pytest.mark.parametrize("lower", ["fast", "portable"])
def test_every_emitted_op_has_a_rule(lower: Any) -> None:
    """Closure: whatever the rules emit in any of the cases can be differentiated again."""
    without: set[str] = set()
    for name in DIFFERENTIABLE:
        case = _case(name)
        graph = normalise(load(vjp(case.model, case.wrt, lower=lower))).graph
        for node in graph.all_nodes():
            emitted = (node.name or "").startswith("pycam/")
            floats = any(carries_gradient(y) for y in node.outputs)
            if emitted and floats:
                without.update(
                    f"{node.op_type} for input {i}"
                    for i, x in enumerate(node.inputs)
                    if x is not None and carries_gradient(x) and not registry.knows(node, i)
                )
    assert not without
