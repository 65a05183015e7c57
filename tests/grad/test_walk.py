"""The walk itself: what is on the path, how gradients add up, and what it says when it cannot go on."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator
from onnxruntime.capi import onnxruntime_pybind11_state

from pycam.errors import LayerError, UnsupportedOpError
from pycam.grad import differentiate, ops, registry
from pycam.gradient import vjp
from pycam.graph.builder import Builder


@pytest.mark.parametrize(
    "body",
    [
        "y = Mul(x, x)",
        "y = Add(x, x)",
        "a = Exp(x) b = Sin(x) y = Mul(a, b)",
        "a = Exp(x) y = Add(a, x)",
        "a = Exp(x) b = Mul(a, x) c = Mul(a, b) y = Sub(c, a)",
        "a = Tanh(x) y = Max(a, x, a)",
    ],
)
def test_a_value_used_several_times(check: Any, body: str) -> None:
    check(body, {"x": (2, 3)}, batched=True)


def test_wrt_inside_the_graph(check: Any) -> None:
    """`a` and `x`, of which one leads to the other: each gets its whole gradient."""
    model = vjp(check.model("a = Exp(x) b = Sin(a) y = Mul(a, b)", {"x": np.array([0.3, -0.2])}), ["a", "x"])
    run = ReferenceEvaluator(model)
    x = np.array([0.3, -0.2])
    _, da, dx = run.run(None, {"x": x, "y.cotangent": np.ones(2)})
    a = np.exp(x)
    np.testing.assert_allclose(da, np.sin(a) + a * np.cos(a))
    np.testing.assert_allclose(dx, da * a)


def test_wrt_is_the_output(check: Any) -> None:
    model = vjp(check.model("y = Exp(x)", {"x": (2,)}), ["y"])
    cotangent = np.array([2.0, 3.0])
    feed = {"x": np.zeros(2), "y.cotangent": cotangent}
    np.testing.assert_array_equal(ReferenceEvaluator(model).run(None, feed)[1], cotangent)


def test_output_by_name(check: Any) -> None:
    """A value inside is differentiated; what comes behind it does not matter."""
    model = vjp(check.model("a = Mul(x, x) h = Hardmax(a) y = Det(h)", {"x": (1, 2, 2)}), ["x"], output="a")
    x = np.array([[[1.0, 2.0], [3.0, 4.0]]])
    feed = {"x": x, "a.cotangent": np.ones_like(x)}
    np.testing.assert_array_equal(ReferenceEvaluator(model).run(["x.gradient"], feed)[0], 2 * x)


def test_dead_branches_need_no_rule(check: Any) -> None:
    """Det has no rule: beside the path, before it, or behind it, that does no harm."""
    model = check.model("d = Det(x) e = Exp(x) y = Mul(e, z) f = Det(e)", {"x": (2, 2), "z": (2, 2)})
    assert "d" in {v for node in model.graph.node for v in node.output}
    check(model, {"x": (2, 2), "z": (2, 2)}, forms=["static"])
    check("d = Det(z) y = Mul(x, d)", {"x": (2, 2), "z": (2, 2)}, wrt=["x"])


def test_other_inputs_are_left_alone(check: Any) -> None:
    """Only what leads to `wrt` is differentiated: nothing is built for the weights."""
    model = vjp(check.model("a = MatMul(x, w) y = Mul(a, s)", {"x": (2, 3), "w": (3, 4), "s": (4,)}), ["x"])
    backward = [node.op_type for node in model.graph.node][2:]
    assert backward == ["Mul", "Transpose", "MatMul"]
    assert [v.name for v in model.graph.output] == ["y", "x.gradient"]


def test_stopped_paths_add_nothing(check: Any) -> None:
    body = "f = Floor(x) i = ArgMax<axis=1, keepdims=1>(x) c = Cast<to=11>(i) a = Add(f, c) y = Add(a, x)"
    assert check.gradient(body, {"x": np.array([[0.3, 1.7]])}, 2.0).tolist() == [[2, 2]]


def test_no_path(check: Any) -> None:
    model = check.model("y = Exp(x) t = Exp(z)", {"x": (2,), "z": (2,)})
    with pytest.raises(LayerError, match="no differentiable path leads from 'z' to 'y'"):
        vjp(model, ["z"])


def test_no_path_through_integers(check: Any) -> None:
    model = check.model("i = Cast<to=7>(x) y = Cast<to=11>(i)", {"x": (2,)})
    with pytest.raises(LayerError, match="no differentiable path leads from 'x' to 'y'"):
        vjp(model, ["x"])


def test_an_integer_input_has_no_gradient_but_what_follows_has(check: Any) -> None:
    model = check.model("a = Cast<to=11>(x) y = Mul(a, a)", {"x": np.array([1, 2], np.uint8)})
    with pytest.raises(LayerError, match="no differentiable path leads from 'x' to 'y'"):
        vjp(model, ["x"])
    feed = {"x": np.array([1, 2], np.uint8), "y.cotangent": np.ones(2)}
    got = ReferenceEvaluator(vjp(model, ["a"])).run(["a.gradient"], feed)[0]
    assert got.tolist() == [2, 4]


def test_unknown_name_lists_the_nearest(check: Any) -> None:
    model = check.model("layer4 = Exp(x) y = Exp(layer4)", {"x": (2,)})
    with pytest.raises(LayerError, match=r"no value called 'layer5'.*layer4"):
        vjp(model, ["layer5"])


def test_a_refusal_names_the_op_the_node_the_opset_and_the_reason(check: Any) -> None:
    model = check.model("a = Exp(x) b = Unique(a) y = Exp(b)", {"x": (3,)})
    with pytest.raises(
        UnsupportedOpError, match=r"cannot differentiate Unique \(node .*node1.*, opset 21\): which of several equal"
    ) as caught:
        vjp(model, ["x"])
    assert (caught.value.op, caught.value.value) == ("Unique", "b")
    with pytest.raises(UnsupportedOpError, match=r"Unique"):
        vjp(model, ["a"])
    vjp(model, ["b"])  # behind it


def test_missing_rule_of_another_domain(check: Any) -> None:
    model = check.model("y = Exp(x)", {"x": (2,)})
    model.graph.node[0].domain, model.graph.node[0].op_type = "acme", "Warp"
    model.opset_import.append(onnx.helper.make_opsetid("acme", 3))
    with pytest.raises(
        UnsupportedOpError, match=r"acme::Warp \(node .*node0.*, opset 3\): there is no gradient rule"
    ) as caught:
        vjp(model, ["x"])
    assert caught.value.op == "acme::Warp"


@pytest.mark.parametrize("form", ["static", "batch", "dynamic"])
def test_several_scores_over_a_deep_graph(check: Any, form: str) -> None:
    """Read values are repeated once each, however often a rule reads them."""
    body = "a = Mul(x, x) b = Tanh(a) c = Mul(a, b) y = Softmax(c)"
    graph = check.graph(check.model(body, {"x": (2, 3)}, form=form))
    y, x = graph.outputs[0], graph.inputs[0]
    count = ir.Value(name="count", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT64))
    seed = ir.Value(name="seed", shape=ir.Shape([None, 3]), type=y.type)
    _, repeat = differentiate(Builder(graph), {y: seed}, [x], count=count)
    assert sorted(v.name or "" for v in repeat.tiled) == ["a", "b", "x", "y"]
    assert sum(node.op_type == "Tile" for node in graph) == 4


# ── the registry ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry that forgets what the test declares."""
    monkeypatch.setattr(registry, "RULES", dict(registry.RULES))
    monkeypatch.setattr(registry, "STOPPED", dict(registry.STOPPED))
    monkeypatch.setattr(registry, "REFUSED", dict(registry.REFUSED))


@pytest.mark.usefixtures("own_registry")
@pytest.mark.parametrize(("op", "i"), [("Relu", 0), ("Where", 0), ("Max", registry.ALL), ("Sign", registry.ALL)])
def test_a_second_declaration_is_an_error(op: str, i: int) -> None:
    with pytest.raises(ValueError, match=rf"second declaration for input {i} of ai.onnx::{op}"):
        registry.rule(op, i)(lambda g, n, dy: dy)
    with pytest.raises(ValueError, match=rf"second declaration for input {i} of ai.onnx::{op}"):
        registry.stop(op, i, why="")


@pytest.mark.usefixtures("own_registry")
def test_the_same_op_of_another_domain_is_another_op() -> None:
    registry.rule("Relu", domain="acme")(lambda g, n, dy: dy)
    assert "acme::Relu" in ops()
    assert "Relu" in ops()


@pytest.mark.parametrize("declared", [registry.RULES, registry.STOPPED], ids=["rules", "stops"])
def test_declared_inputs_exist(declared: dict[tuple[str, str, int], object]) -> None:
    """Every rule and stop is for an op and an input that ONNX, or onnxruntime, defines: nobody would find a misspelt
    one."""
    own = {(s.domain, s.name): len(s.inputs) for s in onnxruntime_pybind11_state.get_all_operator_schema()}
    for domain, op, i in declared:
        standard = onnx.defs.has(op, domain)
        known = onnx.defs.get_schema(op, domain).max_input if standard else own[domain, op]
        assert i == registry.ALL or i < known, (op, i)


def test_no_input_has_both_a_rule_and_a_stop() -> None:
    assert not registry.RULES.keys() & registry.STOPPED.keys()
    assert all(registry.STOPPED.values()), "a stop without a reason"
