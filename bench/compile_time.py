"""Compile time against the size of the model: it grows linearly.

    python -m bench.compile_time [--nodes 100 300 1000 3000 10000]

Two kinds of model: a residual chain of convolutions (Conv, Relu, Add), and a chain of transformer blocks (LayerNorm,
attention, MLP) in plain ops.  The time is of `pycam.vjp` with respect to the input, the best of three.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import pycam


def convolutions(nodes: int) -> onnx.ModelProto:
    """Blocks of Conv, Relu and Add."""
    body, weights, value = [], [numpy_helper.from_array(np.full((4, 4, 3, 3), 0.1, np.float32), "w")], "x"
    for i in range(nodes // 3):
        body += [
            helper.make_node("Conv", [value, "w"], [f"c{i}"], f"conv{i}", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"c{i}"], [f"r{i}"], f"relu{i}"),
            helper.make_node("Add", [f"r{i}", value], [f"a{i}"], f"add{i}"),
        ]
        value = f"a{i}"
    return _model(body, weights, ["N", 4, 8, 8], value)


def transformers(nodes: int) -> onnx.ModelProto:
    """Blocks of a LayerNormalization, attention with one head, and an MLP with Gelu."""
    ones = np.ones(8, np.float32)
    weights = [
        numpy_helper.from_array(np.eye(8, dtype=np.float32), "w"),
        numpy_helper.from_array(ones, "scale"),
    ]
    body, value = [], "x"
    for i in range(nodes // 11):
        body += [
            helper.make_node("LayerNormalization", [value, "scale"], [f"n{i}"], f"norm{i}"),
            helper.make_node("MatMul", [f"n{i}", "w"], [f"q{i}"], f"q{i}"),
            helper.make_node("MatMul", [f"n{i}", "w"], [f"k{i}"], f"k{i}"),
            helper.make_node("Transpose", [f"k{i}"], [f"t{i}"], f"t{i}", perm=[0, 2, 1]),
            helper.make_node("MatMul", [f"q{i}", f"t{i}"], [f"s{i}"], f"s{i}"),
            helper.make_node("Softmax", [f"s{i}"], [f"p{i}"], f"p{i}"),
            helper.make_node("MatMul", [f"p{i}", f"n{i}"], [f"o{i}"], f"o{i}"),
            helper.make_node("Add", [f"o{i}", value], [f"a{i}"], f"a{i}"),
            helper.make_node("MatMul", [f"a{i}", "w"], [f"h{i}"], f"h{i}"),
            helper.make_node("Gelu", [f"h{i}"], [f"g{i}"], f"g{i}"),
            helper.make_node("Add", [f"g{i}", f"a{i}"], [f"b{i}"], f"b{i}"),
        ]
        value = f"b{i}"
    return _model(body, weights, ["N", 5, 8], value)


def _model(
    nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto], shape: Sequence[int | str], output: str
) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, "bench", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def seconds(make: Callable[[int], onnx.ModelProto], nodes: int) -> tuple[int, float]:
    """Nodes that there are, and the best time of three."""
    model, best = make(nodes), float("inf")
    for _ in range(3):
        start = time.perf_counter()
        pycam.vjp(model, ["x"])
        best = min(best, time.perf_counter() - start)
    return len(model.graph.node), best


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.compile_time", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--nodes", nargs="+", type=int, default=[100, 300, 1000, 3000, 10000])
    options = parser.parse_args(argv)
    print("| model | nodes | compile time | per node |\n|---|---:|---:|---:|")
    for make in (convolutions, transformers):
        for nodes in options.nodes:
            count, best = seconds(make, nodes)
            print(f"| {make.__name__} | {count} | {best:.2f} s | {best / count * 1e3:.2f} ms |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
