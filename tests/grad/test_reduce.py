"""Gradients of the reductions."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from pycam.errors import BatchAxisError, UnsupportedOpError
from pycam.grad import differentiate
from pycam.gradient import vjp
from pycam.graph.builder import Builder

MODULE = "pycam.grad.reduce"
BATCHED = {"batched": True}
OPS = (
    "ReduceSum",
    "ReduceMean",
    "ReduceMax",
    "ReduceMin",
    "ReduceL1",
    "ReduceL2",
    "ReduceSumSquare",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceProd",
)
LINEAR = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd")
NONE = np.zeros(0, np.int64)


def values(op: str, *shape: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    return rng.uniform(0.5, 2, shape) if op == "ReduceLogSum" else rng.normal(size=shape)


CASES: dict[str, tuple[Any, ...]] = {}
for _op in OPS:
    for _keep in (0, 1):
        _form = f"{_op}<keepdims={_keep}>"
        CASES[f"{_form} all"] = (f"y = {_form}(x)", {"x": values(_op, 2, 3)})
        CASES[f"{_form} empty is all"] = (f"y = {_form}(x, a)", {"x": values(_op, 2, 3)}, {"weights": {"a": NONE}})
        for _axes in ([1], [-1], [0], [1, 2], [-2, -1], [0, -1], [2, 1]):
            _options = {"weights": {"a": np.array(_axes)}, "batched": 0 not in _axes}
            CASES[f"{_form} {_axes}"] = (f"y = {_form}(x, a)", {"x": values(_op, 2, 3, 4)}, _options)
        _options = {"weights": {"a": np.array([1, 2])}, **BATCHED}
        CASES[f"{_form} over one"] = (f"y = {_form}(x, a)", {"x": values(_op, 2, 1, 1)}, _options)
for _op in LINEAR:
    _form = f"{_op}<noop_with_empty_axes=1>"
    CASES[f"{_form} none"] = (
        f"s = Mul(x, x) y = {_form}(s)",
        {"x": values(_op, 2, 3)},
        {"runtime": _op == "ReduceSum"},
    )
    CASES[f"{_form} some"] = (
        f"y = {_form}(x, a)",
        {"x": values(_op, 2, 3)},
        {"weights": {"a": np.array([1])}, **BATCHED},
    )
for _exclusive in (0, 1):
    for _reverse in (0, 1):
        _form = f"CumSum<exclusive={_exclusive}, reverse={_reverse}>"
        for _axis in (1, -1):
            _options = {"weights": {"a": np.array(_axis)}, **BATCHED}
            CASES[f"{_form} {_axis}"] = (f"y = {_form}(x, a)", {"x": (2, 3, 4)}, _options)


for _op in OPS:
    for _name, _at in (("some", np.array([1])), ("two", np.array([0, -1])), ("all", NONE)):
        for _keep in (0, 1):
            CASES[f"{_op}<keepdims={_keep}>, computed: {_name}"] = (
                f"y = {_op}<keepdims={_keep}>(x, a)",
                {"x": values(_op, 2, 3, 2), "a": _at},
                {"runtime": bool(_keep), "second": False},  # onnx infers no rank
            )
for _op in LINEAR:
    CASES[f"{_op}, computed: none"] = (
        f"s = Mul(x, x) y = {_op}<noop_with_empty_axes=1>(s, a)",
        {"x": values(_op, 2, 3), "a": NONE},
        {"runtime": _op == "ReduceSum", "second": False},
    )


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_gradient(check: Any, case: tuple[Any, ...]) -> None:
    body, inputs, *options = case
    check(body, inputs, **(options[0] if options else {}))


def test_every_rule_has_a_case(check: Any) -> None:
    assert check.untested(MODULE, CASES.values()) == set()
    without = [case for name, case in CASES.items() if not name.startswith("ReduceL1")]
    assert check.untested(MODULE, without) == {("ReduceL1", 0)}


@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin"])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_ties_share_evenly(check: Any, op: str, keepdims: int) -> None:
    """As `torch.amax`; `torch.max(x, dim)` would give all of it to one of them."""
    x = np.array([[2.0, 2.0, 2.0], [5.0, 5.0, 4.0 if op == "ReduceMax" else 6.0]])
    dy = np.array([[3.0], [4.0]]) if keepdims else np.array([3.0, 4.0])
    got = check.gradient(f"y = {op}<keepdims={keepdims}>(x, a)", {"x": x}, dy, weights={"a": np.array([1])})
    assert got.tolist() == [[1, 1, 1], [2, 2, 0]]


def test_norm_of_0(check: Any) -> None:
    """0, as PyTorch, not `0/0`; other rows are as ever."""
    x = np.array([[0.0, 0.0], [3.0, 4.0]])
    got = check.gradient("y = ReduceL2(x, a)", {"x": x}, [[1.0], [5.0]], weights={"a": np.array([1])})
    np.testing.assert_allclose(got, [[0, 0], [3, 4]])


def test_l1_at_its_kink(check: Any) -> None:
    assert check.gradient("y = ReduceL1(x)", {"x": np.array([-2.0, 0.0, 3.0])}, 2.0).tolist() == [-2, 0, 2]


def test_product_with_zeros(check: Any) -> None:
    x = np.array([[2.0, 3.0, 4.0], [0.0, 3.0, 4.0], [0.0, 3.0, 0.0]])
    got = check.gradient("y = ReduceProd<keepdims=0>(x, a)", {"x": x}, weights={"a": np.array([1])})
    assert got.tolist() == [[12, 8, 6], [12, 0, 0], [0, 0, 0]]


def test_log_sum_exp_does_not_overflow(check: Any) -> None:
    got = check.gradient(
        "y = ReduceLogSumExp(x, a)", {"x": np.array([1e4, 1e4, -1e4])}, 3.0, weights={"a": np.array([0])}
    )
    np.testing.assert_allclose(got, [1.5, 1.5, 0])


def test_mean_divides_before_it_expands(check: Any) -> None:
    """The division is over the positions of `y`, so that a gradient constant over positions stays small."""
    model = vjp(check.model("y = ReduceMean(x, a)", {"x": (2, 3, 4, 4)}, weights={"a": np.array([2, 3])}), ["x"])
    assert [node.op_type for node in model.graph.node] == ["ReduceMean", "Div", "Expand"]


@pytest.mark.parametrize("op", [op for op in OPS if op not in LINEAR])
def test_computed_axes_that_may_be_none_are_refused(check: Any, op: str) -> None:
    model = check.model(f"y = {op}<noop_with_empty_axes=1>(x, a)", {"x": values(op, 2, 3), "a": np.array([1])})
    with pytest.raises(UnsupportedOpError, match=rf"{op} \(node .*node0.*, opset 21\): its axes are computed"):
        vjp(model, ["x"])


@pytest.mark.parametrize("op", [op for op in OPS if op not in LINEAR])
def test_ambiguous_no_op_is_refused(check: Any, op: str) -> None:
    model = check.model(f"y = {op}<noop_with_empty_axes=1>(x)", {"x": values(op, 2, 3)})
    with pytest.raises(UnsupportedOpError, match=rf"{op} \(node .*node0.*, opset 21\): without axes"):
        vjp(model, ["x"])


@pytest.mark.parametrize("op", OPS)
def test_reduction_of_the_batch_refuses_several_scores(check: Any, op: str) -> None:
    model = check.model(f"y = {op}(x, a)", {"x": values(op, 2, 3)}, weights={"a": np.array([0])})
    graph = check.graph(model)
    y, x = graph.outputs[0], graph.inputs[0]
    count = ir.Value(name="count", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT64))
    seed = ir.Value(name="seed", shape=y.shape, type=y.type)
    with pytest.raises(BatchAxisError, match=rf"{op} \(node .*node0.*, opset 21\) moves the batch axis"):
        differentiate(Builder(graph), {y: seed}, [x], count=count)


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
def test_indices_carry_no_gradient(check: Any, op: str) -> None:
    body = f"i = {op}<axis=0, keepdims=0>(x) f = Cast<to=11>(i) y = Add(f, x)"
    assert check.gradient(body, {"x": np.array([0.5, 2.5])}).tolist() == [1, 1]
