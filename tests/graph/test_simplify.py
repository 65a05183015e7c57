"""Peepholes: a GAP + linear tail costs nothing, and no number ever changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from pycam.compile import compile_model
from pycam.graph import builder
from pycam.graph.builder import Builder
from pycam.graph.emit import finish
from pycam.graph.simplify import Spread, expand, spread_of

Net = Callable[..., onnx.ModelProto]
METHODS = ("gradcam", "gradcam++", "xgradcam", "layercam", "hirescam", "gradcam_elementwise")


def added(model: onnx.ModelProto, op: str) -> list[onnx.NodeProto]:
    """The nodes of an op that pycam added."""
    return [n for n in model.graph.node if n.op_type == op and n.name.startswith("pycam/")]


def sizes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {t.name: tuple(t.dims) for t in model.graph.initializer}


# ---- whole tails -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", ["gap", "mean"])
@pytest.mark.parametrize("method", ["cam", "gradcam"])
def test_pooling_and_a_linear_layer_collapse(cnn: Net, tail: str, method: str) -> None:
    graph = compile_model(cnn(tail), method=method, outputs=["raw"])
    assert not graph.repeats
    assert len(added(graph.model, "Gather")) == 1
    for op in ("OneHot", "Expand", "Tile", "ReduceMean"):
        assert not added(graph.model, op), op
    weights = {name for name, shape in sizes(graph.model).items() if len(shape) == 2}
    assert not any(weights & set(node.input) for node in added(graph.model, "MatMul"))


def test_flattening_and_a_linear_layer_need_the_mean_of_the_weights(cnn: Net, cnn_weights: Any) -> None:
    model = compile_model(cnn("vgg"), outputs=["raw"]).model
    assert not added(model, "ReduceMean")
    means = [onnx.numpy_helper.to_array(t) for t in model.graph.initializer if tuple(t.dims) == (16, 6)]
    assert len(means) == 1
    np.testing.assert_allclose(means[0], cnn_weights()["w_wide"].reshape(16, 6, 64).mean(axis=2), rtol=1e-5, atol=1e-7)
    used = {name for node in model.graph.node for name in node.input if node.name.startswith("pycam/")}
    assert "w_wide" not in used


def test_a_sum_need_not_know_where_a_max_pool_moved_the_gradient_to(cnn: Net) -> None:
    graph = compile_model(cnn("pooled"), layer="features", outputs=["raw"])
    assert not graph.repeats
    assert [tuple(t.dims) for t in graph.model.graph.initializer if t.name.startswith("pycam/")].count((16, 6)) == 1
    assert not added(graph.model, "MaxPool")
    assert not added(graph.model, "Equal")


def test_flattening_and_one_linear_layer_need_a_row_of_the_weights(cnn: Net) -> None:
    model = compile_model(cnn("flatten"), outputs=["raw"]).model
    assert ["w_flat" in node.input for node in added(model, "Gather")] == [True]
    assert not added(model, "OneHot")


@pytest.mark.parametrize("tail", ["gap", "mean", "flatten", "vgg", "pooled", "mlp", "conv"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("many", [True, False])
def test_results_equal_the_computation_without_peepholes(
    cnn: Net, images: np.ndarray, forward: Any, monkeypatch: pytest.MonkeyPatch, tail: str, method: str, many: bool
) -> None:
    model = cnn(tail)
    targets = np.array([[1, 2], [3, -1], [19, 0]])[:, : 2 if many else 1]
    feeds = {"x": images, "targets": targets}
    got = forward(compile_model(model, method=method, layer="features", outputs=["raw"], many=many).model, feeds)["raw"]
    monkeypatch.setattr(builder, "PEEPHOLES", {})
    plain = compile_model(model, method=method, layer="features", outputs=["raw"], many=many).model
    want = forward(plain, feeds)["raw"]
    assert added(plain, "OneHot")
    assert np.abs(want).max() > 1e-4
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


# ---- single peepholes ------------------------------------------------------------------------------------------------

Build = Callable[[Builder, dict[str, ir.Value]], ir.Value]


def compute(
    build: Build, feeds: dict[str, np.ndarray], forward: Any, symbols: Sequence[str] = ()
) -> tuple[Any, list[str]]:
    """What `build` makes of graph inputs, and the ops that it took.  Inputs in `symbols` have symbolic sizes."""
    inputs = {}
    for name, array in feeds.items():
        shape: list[int | str] = [f"{name}{i}" for i in range(array.ndim)] if name in symbols else list(array.shape)
        inputs[name] = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))
    graph = ir.Graph(list(inputs.values()), [], nodes=[], opset_imports={"": 21}, name="g")
    g = Builder(graph)
    result = g.Identity(build(g, inputs))
    result.name, result.type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph.outputs.append(result)
    model = finish(ir.Model(graph, ir_version=10), stand_alone=True)
    return forward(model, feeds)["y"], [node.op_type for node in model.graph.node if node.op_type != "Identity"]


@pytest.fixture
def same(forward: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """`same(build, feeds)`: equal with and without peepholes, shapes included; the ops that the simpler form takes."""

    def check(build: Build, feeds: dict[str, np.ndarray], symbols: Sequence[str] = ()) -> list[str]:
        got, ops = compute(build, feeds, forward, symbols)
        with monkeypatch.context() as patch:
            patch.setattr(builder, "PEEPHOLES", {})
            want, _ = compute(build, feeds, forward, symbols)
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
        return ops

    return check


def spread(g: Builder, x: ir.Value, height: int = 4, width: int = 5) -> ir.Value:
    """`x` (2, 3, 1, 1) stretched to (2, 3, height, width)."""
    return expand(g, x, g.constant([1, 3, height, width]), Spread((-2, -1), (height, width)))


@pytest.mark.parametrize("op", ["Relu", "Neg", "Abs", "Sign"])
def test_a_function_of_a_stretched_value(draw: Any, same: Any, op: str) -> None:
    ops = same(
        lambda g, v: g.ReduceMean(getattr(g, op)(spread(g, v["x"])), [-2, -1], keepdims=1), {"x": draw(2, 3, 1, 1)}
    )
    assert ops == [op]


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize(
    "shape",
    [
        (2, 3, 4, 5),
        (1, 3, 4, 5),
        (2, 1, 4, 5),
        (4, 5),
        (2, 3, 1, 1),
        (2, 3, 1, 5),
        (2, 3, 4, 1),
        (1,),
        (3, 1, 1),
        (7, 1, 1, 4, 5),
    ],
)
def test_a_stretched_value_and_another(draw: Any, same: Any, op: str, swap: bool, shape: tuple[int, ...]) -> None:
    """The stretching may be left out only where the partner is as large itself."""

    def build(g: Builder, v: dict[str, ir.Value]) -> ir.Value:
        operands = [spread(g, v["x"]), v["a"]]
        return getattr(g, op)(*(operands[::-1] if swap else operands))

    feeds = {"x": draw(2, 3, 1, 1) + 3, "a": draw(*shape, seed=1) + 3}
    ops = same(build, feeds)
    assert ("Expand" in ops) == (shape[-2:] != (4, 5))


@pytest.mark.parametrize(
    "constant", [2.0, np.float32([[[[3.0]]]]), np.float32(np.arange(1, 6)), np.float32([[1], [2], [3], [4]])]
)
def test_a_stretched_value_and_a_constant(draw: Any, same: Any, constant: Any) -> None:
    def build(g: Builder, v: dict[str, ir.Value]) -> ir.Value:
        return g.ReduceSum(g.Mul(spread(g, v["x"]), constant), [-2, -1], keepdims=1)

    ops = same(build, {"x": draw(2, 3, 1, 1)})
    assert ("Expand" in ops) == (np.size(constant) > 1)


def test_two_stretched_values(draw: Any, same: Any) -> None:
    feeds = {"x": draw(2, 3, 1, 1), "z": draw(2, 3, 1, 1, seed=1)}
    ops = same(lambda g, v: g.ReduceMean(g.Add(spread(g, v["x"]), spread(g, v["z"])), [-2, -1], keepdims=1), feeds)
    assert ops == ["Add"]
    # one of them stretched less: (2, 3, 4, 5) + (2, 3, 1, 5)
    same(lambda g, v: g.Add(spread(g, v["x"]), expand(g, v["z"], g.constant([1, 3, 1, 5]), Spread((-1,), (5,)))), feeds)


@pytest.mark.parametrize("op", ["ReduceMean", "ReduceSum"])
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("axes", [[-2, -1], [-1, -2], [2, 3], [-1], [-3, -2, -1], [0], [0, 1, 2, 3]])
def test_reductions_of_a_stretched_value(draw: Any, same: Any, op: str, keepdims: int, axes: list[int]) -> None:
    ops = same(lambda g, v: getattr(g, op)(spread(g, v["x"]), axes, keepdims=keepdims), {"x": draw(2, 3, 1, 1)})
    assert ("Expand" in ops) == (sorted(axes) != [-2, -1] or not keepdims)


@pytest.mark.parametrize("op", ["ReduceMean", "ReduceSum"])
def test_a_reduction_over_no_axes_is_one_over_all(draw: Any, same: Any, op: str) -> None:
    nothing = np.array([], dtype=np.int64)

    def linear(g: Builder, v: dict[str, ir.Value]) -> ir.Value:
        x = g.Reshape(g.MatMul(v["x"], g.constant(draw(4, 6, seed=2))), [-1, 2, 3])
        return getattr(g, op)(x, nothing, keepdims=1)

    same(linear, {"x": draw(2, 4)})
    same(lambda g, v: getattr(g, op)(spread(g, v["x"]), nothing, keepdims=1), {"x": draw(2, 3, 1, 1)})


@pytest.mark.parametrize(("lead", "symbols"), [([-1], []), ([2], []), ([0], []), ([2, 1], [])])
def test_the_mean_of_a_linear_map(draw: Any, same: Any, lead: list[int], symbols: list[str]) -> None:
    weights = draw(7, 3 * 4 * 5, seed=3)

    def build(g: Builder, v: dict[str, ir.Value]) -> ir.Value:
        return g.ReduceMean(g.Reshape(g.MatMul(v["x"], g.constant(weights)), [*lead, 3, 4, 5]), [-2, -1], keepdims=1)

    ops = same(build, {"x": draw(2, 7)}, symbols)
    assert "ReduceMean" not in ops


def test_the_mean_of_a_linear_map_over_other_axes_than_its_columns(draw: Any, same: Any) -> None:
    """The reshape mixes rows and columns of the product, so the weights alone do not say the mean."""
    weights = draw(7, 30, seed=3)

    def build(g: Builder, v: dict[str, ir.Value]) -> ir.Value:
        return g.ReduceMean(g.Reshape(g.MatMul(v["x"], g.constant(weights)), [1, 3, 4, 5]), [-2, -1], keepdims=1)

    assert "ReduceMean" in same(build, {"x": draw(2, 7)})


@pytest.mark.parametrize("transposed", [False, True])
def test_one_hot_times_weights(draw: Any, same: Any, transposed: bool) -> None:
    weights = draw(6, 4, seed=1)

    def build(g: Builder, v: dict[str, ir.Value]) -> ir.Value:
        hot = g.OneHot(g.Cast(v["i"], to=ir.DataType.INT64), [6], g.constant([0.0, 1.0], ir.DataType.FLOAT), axis=-1)
        hot.meta["one_hot"] = True
        w = g.constant(weights)
        return g.MatMul(hot, g.Transpose(g.constant(weights.T.copy()), perm=[1, 0]) if transposed else w)

    ops = same(build, {"i": np.array([3, 0, 5], dtype=np.float32)})
    assert "Gather" in ops
    assert "MatMul" not in ops


def test_reshapes_in_a_row(draw: Any, same: Any) -> None:
    x = {"x": draw(2, 3, 4)}
    assert same(lambda g, v: g.Reshape(g.Reshape(v["x"], [6, 4]), [8, 3]), x) == ["Reshape"]
    assert same(lambda g, v: g.Reshape(g.Reshape(v["x"], [6, 4]), [0, -1]), x) == ["Reshape"]
    assert same(lambda g, v: g.Reshape(g.Reshape(v["x"], [0, 12]), [0, 4, 3]), x) == ["Reshape"]  # both copy the 2
    assert same(lambda g, v: g.Reshape(g.Reshape(v["x"], [-1, 4]), [0, -1]), x) == ["Reshape"]
    assert same(lambda g, v: g.Reshape(g.Reshape(v["x"], [-1, 3, 4]), [0, 2, -1]), x) == ["Reshape"]
    assert same(lambda g, v: g.Reshape(g.Reshape(v["x"], [0, -1]), [-1, 0]), x) == ["Reshape", "Reshape"]
    assert same(lambda g, v: g.Reshape(g.Reshape(v["x"], [6, 4]), [-1]), x) == ["Reshape"]


@pytest.mark.parametrize(
    ("kernel", "attributes", "ops"),
    [
        (1, {}, ["Conv", "Expand"]),
        (1, {"pads": [0, 0, 0, 0], "strides": [1, 1]}, ["Conv", "Expand"]),
        (1, {"group": 3}, ["Conv", "Expand"]),
        (1, {"pads": [1, 1, 1, 1]}, ["Expand", "Conv"]),
        (1, {"strides": [2, 2]}, ["Expand", "Conv"]),
        (2, {}, ["Expand", "Conv"]),
    ],
)
def test_a_convolution_of_one_position_stays_small(
    draw: Any, same: Any, kernel: int, attributes: dict[str, Any], ops: list[str]
) -> None:
    """One that sees its neighbours, or pads, is not the same everywhere any more."""
    weight = draw(6, 1 if "group" in attributes else 3, kernel, kernel)
    assert same(lambda g, v: g.Conv(spread(g, v["x"]), weight, **attributes), {"x": draw(2, 3, 1, 1)}) == ops


def test_a_stretched_value_is_known_as_such(draw: Any) -> None:
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([2, 3, 1, 1]))
    g = Builder(ir.Graph([x], [], nodes=[], opset_imports={"": 21}, name="g"))
    found = spread_of(spread(g, x))
    assert found is not None
    assert found[0] is x
    assert spread_of(g.Expand(x, [2, 3, 4, 5])) is None  # nobody said which axes that stretches
    assert spread_of(None) is None
