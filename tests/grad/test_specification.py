"""Expansions against the examples that onnx gives for each op (its backend node tests): same forward pass."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.backend.test.case.node import collect_testcases
from onnx.reference import ReferenceEvaluator

from pycam.grad import registry
from pycam.grad.call import Call, Repeat
from pycam.graph.builder import Builder
from pycam.graph.load import load
from pycam.graph.normalise import normalise

OPS = (
    "Attention",
    "CausalConvWithState",
    "LinearAttention",
    "NegativeLogLikelihoodLoss",
    "RotaryEmbedding",
    "SoftmaxCrossEntropyLoss",
)


@functools.cache
def all_examples() -> list[Any]:
    with warnings.catch_warnings():  # onnx computes the expected outputs of every op when it is first asked
        warnings.simplefilter("ignore")
        return [e for e in collect_testcases(None) if "expanded" not in e.name]


def examples(op: str) -> list[Any]:
    return [e for e in all_examples() if any(node.op_type == op for node in e.model.graph.node)]


@pytest.mark.parametrize("op", OPS)
def test_expansions_compute_the_examples(op: str) -> None:
    tested = 0
    for example in examples(op):
        for inputs, outputs in example.data_sets:
            expand(example.model, inputs, outputs, example.name)
            tested += 1
    assert tested


def expand(proto: onnx.ModelProto, inputs: Any, outputs: Any, name: str) -> None:
    """The outputs of the model's only node, computed by its expansion instead."""
    model = normalise(load(proto))
    graph = model.graph
    (node,) = (n for n in graph if ("", n.op_type) in registry.EXPANSIONS)
    g = Builder(graph)
    call = Call(g, Repeat(g, None, frozenset()), node, 0, [None] * len(node.outputs))
    made = registry.EXPANSIONS["", node.op_type](g, call)
    values = [made] if isinstance(made, ir.Value) else list(made)
    wanted = dict(zip([v.name for v in proto.graph.output], outputs, strict=True))
    index = {y.name: i for i, y in enumerate(node.outputs)}
    kept = [(k, v) for k, v in wanted.items() if k in index]
    assert kept, name
    graph.outputs.clear()
    for k, _ in kept:
        y = g.Identity(values[index[k]])
        y.dtype, y.shape = ir.DataType.FLOAT, None
        graph.outputs.append(y)
    names = [v.name for v in proto.graph.input]
    given = {k: x for k, x in zip(names, inputs, strict=True) if k in {v.name for v in graph.inputs}}
    evaluator = ReferenceEvaluator(ir.to_proto(model))
    tolerance = 2e-2 if any(np.asarray(x).dtype.itemsize == 2 for x in inputs) else 1e-4
    for (k, want), got in zip(kept, evaluator.run(None, given), strict=True):
        assert np.shape(got) == np.shape(want), f"{name}, output {k}"
        np.testing.assert_allclose(got, np.asarray(want, np.float32), atol=tolerance, rtol=tolerance, err_msg=name)
