"""Gradients of Gemm and MatMul."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from pycam.errors import BatchAxisError, UnsupportedOpError
from pycam.grad import differentiate
from pycam.gradient import vjp
from pycam.graph.builder import Builder

MODULE = "pycam.grad.linear"
BATCHED = {"batched": True}

CASES: dict[str, tuple[Any, ...]] = {}
for _a, _b in [
    ((2, 3), (3, 4)),
    ((1, 3), (3, 1)),
    ((5, 2, 3), (5, 3, 4)),
    ((5, 2, 3), (3, 4)),
    ((2, 3), (5, 3, 4)),
    ((6, 1, 2, 3), (5, 3, 4)),
    ((1, 2, 3), (5, 3, 4)),
    ((5, 2, 3), (1, 3, 4)),
    ((2, 5, 2, 3), (2, 1, 3, 2)),
    ((3,), (3,)),
    ((3,), (3, 4)),
    ((2, 3), (3,)),
    ((3,), (5, 3, 4)),
    ((5, 2, 3), (3,)),
    ((1,), (1, 1)),
]:
    CASES[f"MatMul {_a} {_b}"] = ("y = MatMul(a, b)", {"a": _a, "b": _b})
CASES["MatMul weights"] = ("y = MatMul(a, w)", {"a": (2, 3)}, {"weights": {"w": (3, 4)}, **BATCHED})
CASES["MatMul weights, tokens"] = ("y = MatMul(a, w)", {"a": (2, 5, 3)}, {"weights": {"w": (3, 4)}, **BATCHED})
CASES["MatMul weights, vector"] = ("y = MatMul(a, w)", {"a": (2, 5, 3)}, {"weights": {"w": (3,)}, **BATCHED})
CASES["MatMul attention"] = ("y = MatMul(a, b)", {"a": (2, 3, 4, 5), "b": (2, 3, 5, 4)}, BATCHED)
CASES["MatMul of weights on the left"] = ("y = MatMul(w, a)", {"a": (2, 3, 4)}, {"weights": {"w": (5, 3)}, **BATCHED})

for _ta in (0, 1):
    for _tb in (0, 1):
        _inputs = {"a": (3, 2) if _ta else (2, 3), "b": (4, 3) if _tb else (3, 4)}
        _form = f"Gemm<alpha=0.5, beta=2.0, transA={_ta}, transB={_tb}>"
        CASES[f"{_form}, no C"] = (f"y = {_form}(a, b)", _inputs)
        for _c in ((2, 4), (4,), (1, 4), (2, 1), (1,), ()):
            CASES[f"{_form}, C {_c}"] = (f"y = {_form}(a, b, c)", {**_inputs, "c": _c})
CASES["Gemm"] = ("y = Gemm(a, b, c)", {"a": (2, 3), "b": (3, 4), "c": (4,)})
CASES["Gemm of weights"] = ("y = Gemm(x, w, b)", {"x": (2, 3)}, {"weights": {"w": (3, 4), "b": (4,)}, **BATCHED})
CASES["Gemm of torch"] = (
    "y = Gemm<transB=1>(x, w, b)",
    {"x": (2, 3)},
    {"weights": {"w": (4, 3), "b": (4,)}, **BATCHED},
)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_gradient(check: Any, case: tuple[Any, ...]) -> None:
    body, inputs, *options = case
    check(body, inputs, **(options[0] if options else {}))


def test_every_rule_has_a_case(check: Any) -> None:
    assert check.untested(MODULE, CASES.values()) == set()
    without = [case for name, case in CASES.items() if " C (" not in name and name != "Gemm"]
    assert check.untested(MODULE, without) == {("Gemm", 2)}


@pytest.mark.parametrize(
    ("body", "shape"), [("y = MatMul(x, w)", (3, 4)), ("y = Gemm(x, w)", (3, 4)), ("y = Gemm<transB=1>(x, w)", (4, 3))]
)
def test_one_product_per_layer(check: Any, body: str, shape: tuple[int, int]) -> None:
    """No other op is left after constants are folded: the transposed weights are one."""
    model = vjp(check.model(body, {"x": (2, 3)}, weights={"w": shape}), ["x"])
    backward = [node.op_type for node in model.graph.node][1:]
    assert backward == ["MatMul"]


@pytest.mark.parametrize(
    ("body", "inputs", "wrt", "op"),
    [
        ("y = MatMul(x, w)", {"x": (2, 5, 3), "w": (3, 4)}, "w", "MatMul"),
        ("y = MatMul(w, x)", {"w": (4, 3), "x": (2, 3, 5)}, "w", "MatMul"),
        ("y = Gemm(x, w)", {"x": (2, 3), "w": (3, 4)}, "w", "Gemm"),
        ("y = Gemm<transA=1>(w, x)", {"w": (2, 3), "x": (2, 4)}, "w", "Gemm"),
        ("y = Gemm(x, v, w)", {"x": (2, 3), "v": (3, 4), "w": (4,)}, "w", "Gemm"),
    ],
)
def test_operands_without_a_batch_axis_refuse_several_scores(
    check: Any, body: str, inputs: dict[str, Any], wrt: str, op: str
) -> None:
    """Their gradients for K scores cannot travel along the batch axis: an error, not a wrong sum."""
    graph = check.graph(check.model(body, inputs))
    y, w = graph.outputs[0], next(v for v in graph.inputs if v.name == wrt)
    count = ir.Value(name="count", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT64))
    seed = ir.Value(name="seed", shape=y.shape, type=y.type)
    with pytest.raises(
        BatchAxisError, match=rf"{op} \(node .*node0.*, opset 21\).*without a batch axis.*one target per image"
    ):
        differentiate(Builder(graph), {y: seed}, [w], count=count)


def test_unknown_rank_is_refused(check: Any) -> None:
    inputs = {"x": (2, 3), "shape": np.array([2, 3]), "w": (3, 4)}
    model = check.model("r = Reshape(x, shape) y = MatMul(r, w)", inputs, form="dynamic")
    with pytest.raises(
        UnsupportedOpError, match=r"MatMul \(node .*node1.*, opset 21\).*could not find the rank of its input 0"
    ):
        vjp(model, ["w"])


def test_zero_sized_batch(check: Any) -> None:
    got = check.gradient(
        "y = MatMul(x, w)", {"x": np.zeros((0, 3))}, np.zeros((0, 4)), weights={"w": (3, 4)}, form="batch"
    )
    assert got.shape == (0, 3)
