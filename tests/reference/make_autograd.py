"""Make the reference arrays of ``tests/grad/test_autograd.py`` with torch's autograd. From the root:

    python -m tests.reference.make_autograd

Made with torch 2.14.1 (CPU), torchvision 0.29.1, onnx 1.23.2, onnxruntime 1.32.0, numpy 2.4.6; the versions of a run
are written into the file, under ``about``.

``autograd_cases.py`` holds the cases: a few ONNX nodes, their inputs, the same function in torch. This script runs
torch in float64, forward and backward for one seeded cotangent, asserts that the forward values are those of
``onnx.reference`` (1e-9; where that lacks the op or has it wrong, of onnxruntime in float32, 1e-5) and keeps all of it
in ``autograd.npz``. One array per case would be mostly headers, so the file has four:

    about     JSON: the versions, and per case its nodes as text, the opset, and name, dtype and shape of each array
    floats    float64: per case the floating inputs and weights, cotangent, y, and the gradients of the floating inputs
    singles   float32: the float32 weights
    ints      int64: the inputs and weights that are neither (bool, integers)
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
import zlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from .autograd_cases import CASES, GRID, Case

FOLDER = Path(__file__).parent
PACKAGES = ("torch", "torchvision", "onnx", "onnxruntime", "numpy")
LIMIT = 600_000  # bytes


def gradients(name: str, case: Case) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """y, a cotangent, and the gradients of the floating inputs, all in float64."""
    tensors = [torch.from_numpy(np.array(v)) for v in case.inputs.values()]
    floating = [t.requires_grad_() for t in tensors if t.is_floating_point()]
    y = case.function(*tensors)
    if y.dtype != torch.float64 or not floating:
        raise ValueError(f"{name}: y is {y.dtype}, {len(floating)} floating inputs")
    rng = np.random.default_rng(zlib.crc32(f"cotangent {name}".encode()))
    cotangent = np.asarray(np.round(rng.normal(size=tuple(y.shape)) * GRID) / GRID)
    grads = torch.autograd.grad(y, floating, torch.from_numpy(cotangent), allow_unused=False)
    return y.detach().numpy(), cotangent, [g.numpy() for g in grads]


def model(case: Case) -> onnx.ModelProto:
    """The ONNX side, in float64."""
    names = ", ".join(f"{kind(v.dtype)}[{', '.join(map(str, v.shape))}] {k}" for k, v in case.inputs.items())
    header = f'<ir_version: 10, opset_import: ["" : {case.opset}]>'
    result = onnx.parser.parse_model(f"{header} f ({names}) => (double y) {{ {case.body} }}")
    result.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in case.weights.items())
    return result


def kind(dtype: np.dtype[Any]) -> str:
    return {"float64": "double", "float32": "float"}.get(dtype.name, dtype.name)


def single(double: onnx.ModelProto) -> onnx.ModelProto:
    """The same model in float32."""
    result = onnx.ModelProto()
    result.CopyFrom(double)
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


def distance(got: np.ndarray, want: np.ndarray) -> float:
    """Largest difference over the largest value; infinite if shapes or special values differ."""
    if got.shape != want.shape or not np.array_equal(np.isfinite(got), np.isfinite(want)):
        return np.inf
    finite = np.isfinite(want)
    scale = max(float(np.abs(want[finite]).max(initial=0)), 1e-3)
    return float(np.abs(got[finite] - want[finite]).max(initial=0)) / scale


def check_forward(case: Case, want: np.ndarray) -> str:
    """Why the two sides do not agree, or which runtime had to confirm it ("" for the reference evaluator)."""
    double = model(case)
    with np.errstate(all="ignore"):
        try:
            far = distance(np.asarray(ReferenceEvaluator(double).run(None, dict(case.inputs))[0]), want)
            first = f"reference is {far:.1e} away"
        except Exception as error:
            far, first = np.inf, f"reference: {str(error).splitlines()[0][:90] if str(error) else type(error).__name__}"
    if far <= 1e-9:
        return ""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    feed = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in case.inputs.items()}
    try:
        session = ort.InferenceSession(single(double).SerializeToString(), options, providers=["CPUExecutionProvider"])
        far = distance(session.run(None, feed)[0], want)
    except Exception as error:
        if far <= 1e-6:
            return f"{first}, onnxruntime has not this op"
        return f"FAILED {first}; onnxruntime: {str(error).splitlines()[0][:160]}"
    return f"onnxruntime ({first})" if far <= 1e-5 else f"FAILED {first}; onnxruntime is {far:.1e} away"


class Pool:
    """Arrays one behind the other."""

    def __init__(self) -> None:
        self.parts: dict[str, list[np.ndarray]] = {"floats": [], "singles": [], "ints": []}

    def add(self, array: np.ndarray) -> list[Any]:
        """Keep an array; its dtype and shape."""
        pool = {"float64": "floats", "float32": "singles"}.get(array.dtype.name, "ints")
        self.parts[pool].append(array.reshape(-1).astype(np.int64) if pool == "ints" else array.reshape(-1))
        return [array.dtype.name, list(array.shape)]

    def arrays(self) -> dict[str, np.ndarray]:
        return {name: np.concatenate(parts) for name, parts in self.parts.items()}


def main(only: Sequence[str] = ()) -> int:
    """Check all cases (those whose name holds one of `only`), and write the file if it is about all."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    pool, described, failed = Pool(), {}, 0
    for name, case in CASES.items():
        if only and not any(part in name for part in only):
            continue
        try:
            y, cotangent, grads = gradients(name, case)
            verdict = check_forward(case, y)
        except Exception as error:
            verdict = f"FAILED torch: {type(error).__name__} {str(error)[:200]}"
        failed += verdict.startswith("FAILED")
        if verdict:
            print(f"{name:45} {verdict}")
        if not verdict.startswith("FAILED"):
            described[name] = {
                "body": case.body,
                "opset": case.opset,
                "inputs": {k: pool.add(v) for k, v in case.inputs.items()},
                "weights": {k: pool.add(v) for k, v in case.weights.items()},
                "y": [pool.add(cotangent), pool.add(y)][1][1],
            }
            for grad in grads:
                pool.add(grad)
    print(f"{len(described)} cases, {failed} failed")
    if only or failed:
        return int(failed > 0)
    about = {"versions": {package: version(package) for package in PACKAGES}, "cases": described}
    path = FOLDER / "autograd.npz"
    np.savez_compressed(path, about=np.array(json.dumps(about)), **pool.arrays())
    size = path.stat().st_size
    print(f"{size / 1e3:.0f} kB")
    return int(size > LIMIT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
