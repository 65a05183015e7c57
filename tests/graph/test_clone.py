"""Running a part of a graph again on other values, and cutting a graph into stages."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from pycam.grad import differentiate
from pycam.graph import emit
from pycam.graph.affine import is_affine
from pycam.graph.builder import Builder
from pycam.graph.clone import clone
from pycam.graph.load import load
from pycam.graph.locate import locate_layers, locate_score
from pycam.graph.normalise import normalise

Net = Any
TAILS = ("gap", "mean", "flatten", "mlp", "vgg", "pooled", "conv", "turned")


def rerun(
    model: Any, name: str, rows: int, forward: Any, feeds: dict[str, np.ndarray], other: np.ndarray
) -> np.ndarray:
    """The score of a copy of what lies behind the value `name`, on the rows `other`."""
    made = normalise(load(model))
    graph = made.graph
    values = {v.name: v for v in [*graph.inputs, *(y for n in graph for y in n.outputs)]}
    value = values[name]
    assert value.dtype is not None
    g = Builder(graph)
    given = ir.Value(name="given", type=ir.TensorType(value.dtype))
    graph.inputs.append(given)
    copy = clone(g, {value: given}, [graph.outputs[0]], g.Slice(g.Shape(given), [0], [1], [0]))
    emit.add_output(graph, copy[graph.outputs[0]], "again", None, ir.DataType.FLOAT)
    return np.asarray(forward(emit.finish(made, stand_alone=True), feeds | {"given": other})["again"])


@pytest.mark.parametrize("tail", TAILS)
def test_a_copy_computes_what_the_original_does(cnn: Net, forward: Any, draw: Any, tail: str) -> None:
    model, one, many = cnn(tail), draw(1, 3, 16, 16), draw(5, 3, 16, 16)
    expected = forward(model, {"x": many})["y"]
    np.testing.assert_allclose(rerun(model, "x", 5, forward, {"x": one}, many), expected, rtol=1e-5, atol=1e-6)


def test_values_beside_the_copy_are_repeated(text_model: Any, forward: Any, draw: Any) -> None:
    """A skip connection and a concatenation reach around the layer."""
    model = text_model(
        """(float[N, 2, 4, 4] x) => (float[N, 3] y) {
            a = Relu(x)
            b = Abs(x)
            c = Add(a, b)
            d = Concat<axis = 1>(c, x)
            p = GlobalAveragePool(d)
            f = Flatten(p)
            y = MatMul(f, w)
        }""",
        w=np.arange(12, dtype=np.float32).reshape(4, 3) / 10,
    )
    x, other = draw(1, 2, 4, 4), draw(3, 2, 4, 4)
    found = rerun(model, "a", 3, forward, {"x": x}, other)
    d = np.concatenate([other + np.abs(x), np.repeat(x, 3, axis=0)], axis=1)
    np.testing.assert_allclose(found, d.mean((2, 3)) @ (np.arange(12).reshape(4, 3) / 10), rtol=1e-5, atol=1e-6)


def test_sizes_of_the_batch_are_computed_anew(text_model: Any, forward: Any, draw: Any) -> None:
    """The batch size comes from the image; a token is stretched to it, as class tokens are."""
    model = text_model(
        """(float[N, 2, 4] x) => (float[N, 2, 5] y) {
            shape = Shape<start = 0, end = 1>(x)
            whole = Concat<axis = 0>(shape, rest)
            token = Expand(start, whole)
            a = Relu(x)
            flat = Concat<axis = 0>(shape, twice)
            b = Reshape(a, flat)
            y = Concat<axis = 2>(token, b)
        }""",
        rest=np.array([2, 1]),
        twice=np.array([2, 4]),
        start=np.full((1, 1, 1), 7, np.float32),
    )
    x, other = draw(1, 2, 4), draw(3, 2, 4)
    found = rerun(model, "a", 3, forward, {"x": x}, other)
    np.testing.assert_array_equal(found, np.concatenate([np.full((3, 2, 1), 7), other], axis=2))


def test_a_value_that_does_not_depend_is_repeated(text_model: Any, forward: Any, draw: Any) -> None:
    model = text_model(
        "(float[N, 2] x) => (float[N, 2] y, float[N, 2] z) { a = Relu(x) y = Neg(x) z = Neg(a) }",
    )
    x, other = draw(1, 2), draw(4, 2)
    np.testing.assert_array_equal(rerun(model, "a", 4, forward, {"x": x}, other), np.repeat(-x, 4, axis=0))


def test_subgraphs_are_copied_with_their_node(text_model: Any, forward: Any, draw: Any) -> None:
    model = text_model(
        """(float[N, 2] x, bool c) => (float[N, 2] y) {
            a = Relu(x)
            y = If (c) <
                then_branch = yes () => (float[N, 2] t) { t = Neg(a) },
                else_branch = no () => (float[N, 2] e) { e = Add(a, x) }
            >
        }""",
    )
    x, other = draw(1, 2), draw(3, 2)
    for condition, expected in ((True, -other), (False, other + x)):
        found = rerun(model, "a", 3, forward, {"x": x, "c": np.array(condition)}, other)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("tail", "affine"),
    [
        ("gap", True),
        ("mean", True),
        ("flatten", True),
        ("turned", True),
        ("mlp", False),
        ("vgg", False),
        ("conv", False),
    ],
)
def test_affine_tails_are_recognised(cnn: Net, tail: str, affine: bool) -> None:
    graph = normalise(load(cnn(tail))).graph
    score = locate_score(graph).value
    (layer,) = locate_layers(graph, "features", score)
    g = Builder(graph)
    (grad,), _ = differentiate(g, {score: g.ConstantOfShape(g.Shape(score))}, [layer])
    assert grad is not None
    assert is_affine(layer, score, grad) is affine


@pytest.mark.parametrize("op", ["Floor", "Round", "Sign"])
def test_steps_are_not_affine(text_model: Any, op: str) -> None:
    """The gradient of a step is a constant 0, and yet it changes the score."""
    model = text_model(
        f"(float[N, 2, 4, 4] x) => (float[N, 2] y) {{ a = Relu(x) s = {op}(a) b = Add(a, s) "
        "p = GlobalAveragePool(b) y = Flatten(p) }"
    )
    graph = normalise(load(model)).graph
    score = locate_score(graph).value
    (layer,) = locate_layers(graph, "a", score)
    g = Builder(graph)
    (grad,), _ = differentiate(g, {score: g.ConstantOfShape(g.Shape(score))}, [layer])
    assert grad is not None
    assert not is_affine(layer, score, grad)


def test_sizes_read_on_the_way_hide_no_step(text_model: Any) -> None:
    """A tail that divides by a size which it reads when it runs is affine; a step in the same tail is none."""
    for op, affine in (("Identity", True), ("Floor", False)):
        model = text_model(
            f"""(float[N, 2, h, w] x) => (float[N, 2] y) {{
                a = Relu(x)
                s = {op}(a)
                b = Add(a, s)
                total = ReduceSum<keepdims = 0>(b, axes)
                height = Shape<start = 2, end = 3>(x)
                count = Cast<to = 1>(height)
                y = Div(total, count)
            }}""",
            axes=np.array([2, 3]),
        )
        graph = normalise(load(model)).graph
        score = locate_score(graph).value
        (layer,) = locate_layers(graph, "a", score)
        g = Builder(graph)
        (grad,), _ = differentiate(g, {score: g.ConstantOfShape(g.Shape(score))}, [layer])
        assert grad is not None
        assert is_affine(layer, score, grad) is affine
