"""The onnx package's own node tests as cases: each one of a differentiable op is gradient-checked.

`Σ dx·v` is compared with central differences of the reference evaluator along random directions `v`, in float64.
A few inputs are moved a little first, off the kinks and ties that round numbers sit on.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper
from onnx.backend.test.case.node import collect_testcases
from onnx.backend.test.case.test_case import TestCase

from pycam.errors import UnsupportedOpError
from pycam.grad.reverse import between
from pycam.gradient import find_value, vjp
from pycam.graph.load import load
from pycam.graph.normalise import NEWEST, OLDEST, normalise

LARGEST = 20_000
"""Numbers in the inputs of a case beyond which it is left to the small ones of its op."""

FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE)
RUNTIME = tuple(int(part) for part in ort.__version__.split(".")[:2])
TESTED_RUNTIME = (1, 31)

REFUSED: dict[str, str] = {
    "unique_": "which of several equal inputs a value stands for is not defined",
    "roialign_mode_max": "mode=max",
    "batchnorm_example_training_mode": "training mode",
    "batchnorm_epsilon_training_mode": "training mode",
    "convtranspose_output_shape": "an output larger than its windows cover",
}
"""What pycam refuses, by the beginning of the cases' names, and what its error says."""

IN_RUNTIME: dict[str, str] = {
    **dict.fromkeys(("gru_", "lstm_", "rnn_", "simple_rnn_"), "the reference reads an output left out as an input"),
    "gridsample": "the reference has float32 coordinates",
    **dict.fromkeys(("maxpool_2d_p", "maxpool_2d_same_lower", "maxpool_with_argmax_2d_p"), "the reference fails"),
    **dict.fromkeys(("mvn", "rotary_embedding"), "the reference's constants are float32"),
    **dict.fromkeys(("scan9_", "loop11"), "their bodies say float32"),
    "scatter_with": "the reference has no Scatter",
    "group_normalization_e": "the reference computes in float32",
    "l1normalization_axis_last": "the reference computes in float32",
}
"""Cases that the reference evaluator cannot do in float64, and why: there onnxruntime does, in float32."""

COARSE: dict[str, str] = {
    "affine_grid": "the reference computes in float32",
}
"""Cases whose differences are taken over wider steps, and why."""

LEFT_OUT: dict[str, str] = {
    "acosh_example": "at the edge of the domain",
    "linear_attention": "the reference mixes float32 in: test_state.py has it right",
    "causal_conv_with_state": "the reference mixes float32 in: test_state.py has it right",
    **{f"{op}_batchwise": "onnxruntime has no layout=1: see test_recurrent.py" for op in ("gru", "lstm", "simple_rnn")},
    "mod_float_edge_cases": "infinities",
    **dict.fromkeys(("basic_deform_conv", "deform_conv"), "at whole offsets, where it has kinks: see test_sample.py"),
    "l2normalization_axis_0": "at a vector of length 0",
    **dict.fromkeys(("simple_rnn_bidirectional", "rnn_seq_length"), "saturated: no gradient is left in float32"),
    "attention_causal_boolmask_nan_robustness_expanded": "the body divides 0 by 0",
    "attention_23_boolmask_fullymasked_row_nan_robustness_expanded": "the body divides 0 by 0",
    "attention_4d_causal_nonpad_negative_offset_structural_empty_expanded": "the body divides 0 by 0",
    "attention_23_fullymasked_qk_matmul_output_mode3_zero_expanded": "the body divides 0 by 0",
    "attention_24_fullymasked_qk_matmul_output_mode3_zero_expanded": "the body divides 0 by 0",
    "attention_local_window_gqa_rank4_mask_expanded": "the body divides 0 by 0",
    "reduce_max_empty_set": "the largest of nothing",
    "reduce_min_empty_set": "the smallest of nothing",
    "reduce_log_sum_empty_set": "the logarithm of 0",
    "reduce_log_sum_exp_empty_set": "the logarithm of 0",
    "dynamicquantizelinear": "the output is integer; the scale, which is not, counts as a setting",
    "maxunpool_export_with_output_shape": "the reference counts indices in another shape than PyTorch and onnxruntime",
}
"""Cases without a gradient to compare, or with one that is compared elsewhere, and why."""

FLAT = {
    ("test_scan9_multi_state", "initial_prod"),
    *((f"test_gridsample_{kind}nearest{rest}", "Grid")
      for kind in ("", "volumetric_")
      for corners in ("", "_align_corners_0", "_align_corners_1")
      for rest in (corners, f"{corners}_additional_1")),
}  # fmt: skip
"""(case, input) without a differentiable path to the output."""

Arrays = dict[str, np.ndarray]


@functools.cache
def cases() -> dict[str, TestCase]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {case.name: case for case in collect_testcases(None) if case.kind == "node" and _suits(case)}


def _suits(case: TestCase) -> bool:
    """Whether a float goes in and a float comes out, in ops and an opset that are pycam's business."""
    model = case.model
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    standard = all(node.domain in ("", "ai.onnx") for node in model.graph.node)
    inputs = list(case.data_sets[0][0])
    numbers = sum(np.size(x) for x in inputs if isinstance(x, np.ndarray))
    floats = [_is_float(v) for v in model.graph.input], [_is_float(v) for v in model.graph.output]
    plain = all(isinstance(x, np.ndarray) and x.dtype.kind in "fiub" for x in inputs)
    return plain and standard and OLDEST <= opset <= NEWEST and numbers <= LARGEST and any(floats[0]) and any(floats[1])


def _is_float(value: onnx.ValueInfoProto) -> bool:
    return value.type.tensor_type.elem_type in FLOATS


def doubled(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in float64, but for what an op takes or gives in float32 only (the scales of Resize)."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    pinned: set[str] = set()
    for node in result.graph.node:
        schema = onnx.defs.get_schema(node.op_type, opset)
        allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
        formal = [*zip(node.input, schema.inputs, strict=False), *zip(node.output, schema.outputs, strict=False)]
        pinned.update(x for x, f in formal if "tensor(double)" not in allowed.get(f.type_str, [f.type_str]))
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.DOUBLE
            if attribute.HasField("t") and node.op_type in ("Constant", "ConstantOfShape"):
                attribute.t.CopyFrom(_doubled_tensor(attribute.t))
    for value in [*result.graph.input, *result.graph.output, *result.graph.value_info]:
        if value.name not in pinned and value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for tensor in result.graph.initializer:
        if tensor.name not in pinned:
            tensor.CopyFrom(_doubled_tensor(tensor))
    return result


def _doubled_tensor(tensor: onnx.TensorProto) -> onnx.TensorProto:
    if tensor.data_type != TensorProto.FLOAT:
        return tensor
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name)


def reachable(model: onnx.ModelProto, output: str) -> list[str]:
    """The floating inputs from which a differentiable path leads to `output`."""
    graph = normalise(load(model)).graph
    path = between(list(graph), list(graph.inputs), [find_value(graph, output)])
    return [
        v.name or "" for v in graph.inputs if v in path.values and v.dtype is not None and v.dtype.is_floating_point()
    ]


def moved(name: str, array: np.ndarray, by: float) -> np.ndarray:
    """A little away from round numbers, and as float64 if it is floating."""
    if array.dtype.kind != "f":
        return array
    noise = np.random.default_rng(len(name)).uniform(-1, 1, array.shape)
    return np.asarray(array.astype(np.float64) * (1 + by * noise) + 0.1 * by * noise)


def listed(name: str, table: dict[str, str]) -> str | None:
    """The entry of `table` for a case, which it names by how the case's name begins."""
    return next((why for start, why in table.items() if name.startswith(f"test_{start}")), None)


@pytest.mark.parametrize("name", [name for name in cases() if not listed(name, LEFT_OUT)])
def test_gradient(check, name):
    case, runtime = cases()[name], listed(name, IN_RUNTIME)
    if runtime is not None and RUNTIME < TESTED_RUNTIME:
        pytest.skip(f"onnxruntime before {TESTED_RUNTIME} lacks some of these ops")
    model, feed = prepared(case, double=runtime is None)
    output = next(v.name for v in case.model.graph.output if _is_float(v))
    refused = listed(name, REFUSED)
    wrt = [x for x in reachable(model, output) if (name, x) not in FLAT]
    if refused is not None:
        with pytest.raises(UnsupportedOpError, match=refused):
            vjp(model, wrt, output)
    elif wrt:  # else the op is declared to have no gradient: test_table.py holds it to that
        coarse = runtime is not None or listed(name, COARSE) is not None
        evaluator = check.evaluator if runtime is None else in_runtime
        check_directions(evaluator, model, vjp(model, wrt, output), output, feed, wrt, coarse=coarse)


def in_runtime(model: onnx.ModelProto) -> Callable[[Arrays], list[np.ndarray]]:
    """The model in float32, by onnxruntime."""
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = {i.name for i in session.get_inputs()}

    def run(feed: Arrays) -> list[np.ndarray]:
        single = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in feed.items() if k in names}
        return [np.asarray(v) for v in session.run(None, single)]

    return run


def prepared(case: TestCase, *, double: bool) -> tuple[onnx.ModelProto, Arrays]:
    """The case with its integer inputs (axes, shapes, indices) as initialisers, and the others' values."""
    model = doubled(case.model) if double else onnx.ModelProto.FromString(case.model.SerializeToString())
    given = dict(zip((v.name for v in model.graph.input), case.data_sets[0][0], strict=False))
    kinds = {v.name: v.type.tensor_type.elem_type for v in model.graph.input}
    feed: Arrays = {}
    kind = TensorProto.DOUBLE if double else TensorProto.FLOAT
    for value in list(model.graph.input):
        array = given.get(value.name)
        if isinstance(array, np.ndarray) and array.dtype.kind in "iub" and array.size:
            model.graph.initializer.append(numpy_helper.from_array(array, value.name))
            model.graph.input.remove(value)
        elif array is not None:
            feed[value.name] = (
                moved(value.name, array, 1e-3 if double else 0.05) if kinds[value.name] == kind else array
            )
    return model, feed


def check_directions(
    evaluator: Callable[[onnx.ModelProto], Callable[[Arrays], list[np.ndarray]]],
    model: onnx.ModelProto,
    differentiated: onnx.ModelProto,
    output: str,
    feed: Arrays,
    wrt: list[str],
    *,
    coarse: bool,
) -> None:
    rng = np.random.default_rng(11)
    forward, backward = evaluator(model), evaluator(differentiated)
    position = [v.name for v in model.graph.output].index(output)
    y = forward(feed)[position]
    cotangent = rng.normal(size=y.shape)
    grads = backward({**feed, f"{output}.cotangent": cotangent})[-len(wrt) :]
    for _ in range(2):
        v = {k: rng.normal(size=feed[k].shape) for k in wrt}
        got = sum(float(np.sum(g * v[k])) for k, g in zip(wrt, grads, strict=True))
        step = 1e-3 if coarse else 1e-6
        ahead, behind = (forward({**feed, **{k: feed[k] + s * step * v[k] for k in wrt}})[position] for s in (1, -1))
        want = float(np.sum(cotangent * (ahead.astype(np.float64) - behind))) / (2 * step)
        scale = max(abs(want), sum(float(np.linalg.norm(g)) for g in grads), 1e-6)
        assert abs(got - want) <= (2e-2 if coarse else 1e-5) * scale, f"{got}, want {want}"
