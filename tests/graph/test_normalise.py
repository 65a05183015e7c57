"""Normal form: one opset, flat, constants folded; and the same function as before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pycam.errors import ModelError
from pycam.graph.emit import finish
from pycam.graph.load import load
from pycam.graph.locate import module_path
from pycam.graph.normalise import NEWEST, OLDEST, OPSET, normalise

Net = Callable[..., onnx.ModelProto]
Forward = Callable[..., dict[str, np.ndarray]]


def normal_form(source: Any) -> onnx.ModelProto:
    """What the compiler starts from, as a protobuf."""
    return finish(normalise(load(source)), stand_alone=True)


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.fixture(scope="module")
def same(forward: Forward) -> Callable[..., onnx.ModelProto]:
    """`same(model, {name: array})`: normalised, and asserted to compute what it did."""

    def check(model: onnx.ModelProto, feeds: dict[str, np.ndarray], atol: float = 1e-5) -> onnx.ModelProto:
        normal = normal_form(model)
        onnx.checker.check_model(normal, full_check=True)
        want, got = forward(model, feeds), forward(normal, feeds)
        assert list(want) == list(got)
        for name, array in want.items():
            np.testing.assert_allclose(got[name], array, atol=atol, rtol=1e-5, err_msg=name)
        return normal

    return check


@pytest.mark.parametrize("opset", range(OLDEST, NEWEST + 1))
@pytest.mark.parametrize("end", ["Softmax", "Dropout"])
def test_every_opset(cnn: Net, images: np.ndarray, same: Any, opset: int, end: str) -> None:
    try:
        model = cnn("flatten", opset=opset, batchnorm=True, end=end)
        normal = same(model, {"x": images})
    except Exception as error:
        if "ONNX Runtime" in str(error) or "till opset" in str(error):
            pytest.skip(f"this onnxruntime does not run opset {opset}")
        raise
    assert normal.opset_import[0].version == max(opset, OPSET)
    assert not {"Dropout", "Identity", "Constant"} & set(ops(normal)[:-1])  # the last one makes the output


def test_an_opset_that_is_too_old_or_too_new(cnn: Net) -> None:
    for opset, why in ((OLDEST - 1, f"from {OLDEST}"), (NEWEST + 1, f"up to {NEWEST}: update onnx")):
        model = cnn()
        model.opset_import[0].version = opset
        with pytest.raises(ModelError, match=f"opset {opset}.*{why}"):
            normalise(load(model))


@pytest.mark.parametrize("opset", [9, 11, 12])
@pytest.mark.parametrize("batch", [2, "N"])
def test_an_old_softmax_is_still_a_softmax(cnn: Net, opset: int, batch: int | str) -> None:
    """Its meaning changed in opset 13; the score is looked for behind it."""
    normal = normal_form(cnn("flatten", opset=opset, end="Softmax", batch=batch))
    assert normal.graph.node[-1].op_type == "Softmax"


def test_symbols_stay(cnn: Net, images: np.ndarray, same: Any) -> None:
    normal = same(cnn(batch="batch", height="H", width="W"), {"x": images[:2, :, :, :9].copy()})
    shape = normal.graph.input[0].type.tensor_type.shape
    assert [d.dim_param or d.dim_value for d in shape.dim] == ["batch", 3, "H", "W"]
    graph = normalise(load(cnn(batch="batch", height="H", width="W"))).graph
    features = next(y for node in graph for y in node.outputs if y.name == "features")
    assert features.shape is not None
    assert [str(d) for d in features.shape[:2]] == ["batch", "6"]
    assert not any(isinstance(d, int) for d in features.shape[2:])


def test_functions_are_inlined(images: np.ndarray, same: Any) -> None:
    text = """<ir_version: 9, opset_import: ["" : 18, "local" : 1]>
        g (float[N, 3, 16, 16] x) => (float[N, 3, 16, 16] y) {
            a = local.outer(x)
            y = local.inner(a)
        }
        <opset_import: ["" : 18, "local" : 1], domain: "local"> outer (x) => (y) { t = local.inner(x) y = Tanh(t) }
        <opset_import: ["" : 18], domain: "local"> inner (x) => (y) { y = Relu(x) }"""
    normal = same(onnx.parser.parse_model(text), {"x": images})
    assert ops(normal) == ["Relu", "Tanh", "Relu"]
    assert not normal.functions
    assert [o.domain for o in normal.opset_import] == [""]


def test_constant_nodes_become_initialisers(text_model: Any, draw: Any, same: Any) -> None:
    model = text_model(
        """(float[N, 4] x) => (float[N, 4] y) {
            c = Constant<value = float[4] {1, 2, 3, 4}>()
            two = Constant<value_float = 2.0>()
            a = Mul(x, c)
            y = Add(a, two)
        }"""
    )
    normal = same(model, {"x": draw(2, 4)})
    assert ops(normal) == ["Mul", "Add"]
    assert {t.name for t in normal.graph.initializer} == {"c", "two"}


def test_what_is_known_is_computed(text_model: Any, draw: Any, same: Any) -> None:
    """Through several nodes, with one value that is also read from outside of them and one that is an output."""
    model = text_model(
        """(float[N, 4] x) => (float[N, 4] y, float[2, 2] square) {
            double = Add(w, w)
            square = MatMul(double, double)
            shape = Constant<value_ints = [1, 4]>()
            row = Reshape(square, shape)
            a = Mul(x, row)
            y = Add(a, row)
        }""",
        w=draw(2, 2),
    )
    normal = same(model, {"x": draw(5, 4)})
    assert [op for op in ops(normal) if op != "Identity"] == ["Mul", "Add"]


def test_a_static_shape_is_folded_away(text_model: Any, draw: Any, same: Any) -> None:
    model = text_model(
        """(float[2, 3, 4] x) => (float[a, b] y) {
            s = Shape(x)
            axes = Constant<value_ints = [0]>()
            n = ReduceMax<keepdims = 1>(s)
            minus = Constant<value_ints = [-1]>()
            shape = Concat<axis = 0>(n, minus)
            y = Reshape(x, shape)
        }"""
    )
    normal = same(model, {"x": draw(2, 3, 4)})
    assert ops(normal) == ["Reshape"]


def quantised(rng: np.random.Generator, shape: tuple[int, ...], channels: bool = True) -> dict[str, np.ndarray]:
    return {
        "q": rng.integers(-127, 127, size=shape).astype(np.int8),
        "s": rng.uniform(0.01, 0.02, shape[0] if channels else ()).astype(np.float32),
        "z": np.zeros(shape[0] if channels else (), dtype=np.int8),
    }


@pytest.mark.parametrize("opset", [13, 18, 21])
def test_int8_weights_become_float(text_model: Any, draw: Any, same: Any, opset: int) -> None:
    arrays = quantised(np.random.default_rng(0), (70, 3, 5, 5))  # above and below the limit of a "large" weight
    model = text_model(
        """(float[N, 3, 9, 9] x) => (float[N, 70, a, b] y) {
            w = DequantizeLinear<axis = 0>(q, s, z)
            y = Conv(x, w)
        }""",
        opset=opset,
        **arrays,
    )
    normal = same(model, {"x": draw(2, 3, 9, 9)}, atol=1e-4)
    assert ops(normal) == ["Conv"]
    (weight,) = normal.graph.initializer
    want = arrays["q"].astype(np.float32) * arrays["s"][:, None, None, None]
    np.testing.assert_allclose(numpy_helper.to_array(weight), want, rtol=1e-6)


def test_the_shipped_model_runs_at_float_speed(shipped: Path) -> None:
    assert "DequantizeLinear" in ops(onnx.load(shipped))
    assert "DequantizeLinear" not in ops(normal_form(shipped))


def test_quantised_activations_are_left(text_model: Any, draw: Any, same: Any) -> None:
    """There the runtime fuses QuantizeLinear, DequantizeLinear and the op into an int8 kernel, weights included."""
    model = text_model(
        """(float[N, 3, 9, 9] x) => (float[N, 4, a, b] y) {
            xq = QuantizeLinear(x, xs, xz)
            xd = DequantizeLinear(xq, xs, xz)
            w = DequantizeLinear<axis = 0>(q, s, z)
            y = Conv(xd, w)
        }""",
        xs=np.float32(0.03),
        xz=np.int8(0),
        **quantised(np.random.default_rng(0), (4, 3, 3, 3)),
    )
    normal = same(model, {"x": draw(2, 3, 9, 9)}, atol=1e-4)
    assert sorted(ops(normal)) == ["Conv", "DequantizeLinear", "DequantizeLinear", "QuantizeLinear"]


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("a = Relu(x) y = Identity(a)", ["Relu", "Identity"]),  # what makes an output stays
        ("a = Identity(x) b = Identity(a) c = Relu(b) d = Dropout(c) y = Identity(d)", ["Relu", "Identity"]),
        ("a = Identity(x) y = Tanh(a)", ["Tanh"]),
        ("y = Identity(x)", ["Identity"]),  # an input cannot be an output by another name
        ("a = Relu(x) b = Identity(a) y = Add(a, b)", ["Relu", "Add"]),
        ("a = Relu(x) b, mask = Dropout(a) y = Tanh(b)", ["Relu", "Tanh"]),
    ],
)
def test_dropout_and_identity_go(text_model: Any, draw: Any, same: Any, body: str, left: list[str]) -> None:
    model = text_model(f"(float[N, 4] x) => (float[N, 4] y) {{ {body} }}")
    assert ops(same(model, {"x": draw(2, 4)})) == left


def test_outputs_that_are_the_same_value(text_model: Any, draw: Any, same: Any) -> None:
    model = text_model(
        """(float[N, 4] x) => (float[N, 4] y, float[N, 4] z, float[N, 4] a) {
            a = Relu(x)
            y = Identity(a)
            z = Identity(a)
        }"""
    )
    same(model, {"x": draw(2, 4)})
    model = text_model(
        """(float[N, 4] x) => (float[N, 4] y, float[N, 4] z) { a = Relu(x) y = Identity(a) z = Dropout(a) }"""
    )
    same(model, {"x": draw(2, 4)})


def test_a_dropout_whose_mask_is_read_stays(text_model: Any, draw: Any, same: Any) -> None:
    model = text_model(
        """(float[N, 4] x) => (float[N, 4] y, float[N, 4] m) {
            a = Relu(x)
            y, mask = Dropout(a)
            m = Cast<to = 1>(mask)
        }"""
    )
    assert "Dropout" in ops(same(model, {"x": draw(2, 4)}))


def test_an_average_over_one_pixel_goes(text_model: Any, draw: Any, same: Any) -> None:
    body = "a = Relu(x) b = AveragePool<{}>(a) y = Tanh(b)"
    sure = text_model(f"(float[N, 2, 4, 4] x) => (float[N, 2, h, w] y) {{ {body.format('kernel_shape = [1, 1]')} }}")
    assert ops(same(sure, {"x": draw(2, 2, 4, 4)})) == ["Relu", "Tanh"]
    for attributes in ("kernel_shape = [1, 1], strides = [2, 2]", "kernel_shape = [1, 2]"):
        other = text_model(f"(float[N, 2, 4, 4] x) => (float[N, 2, h, w] y) {{ {body.format(attributes)} }}")
        assert "AveragePool" in ops(same(other, {"x": draw(2, 2, 4, 4)}))


def test_nodes_in_any_order(cnn: Net, images: np.ndarray, forward: Forward) -> None:
    model, shuffled = cnn(), cnn()
    del shuffled.graph.node[:]
    shuffled.graph.node.extend(reversed(model.graph.node))
    normal = normal_form(shuffled)
    np.testing.assert_allclose(forward(normal, {"x": images})["y"], forward(model, {"x": images})["y"], atol=1e-6)


def test_initialisers_that_are_inputs_as_well(cnn: Net, images: np.ndarray, same: Any) -> None:
    model = cnn("flatten", opset=9)
    model.ir_version = 3
    model.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in model.graph.initializer
    )
    normal = same(model, {"x": images})
    assert [v.name for v in normal.graph.input] == ["x"]


def test_weights_above_and_below_the_limit_keep_their_values(cnn: Net) -> None:
    model = cnn("flatten")
    before = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    after = {t.name: numpy_helper.to_array(t) for t in normal_form(model).graph.initializer}
    assert {"w_flat", "b_fc"} <= set(after)
    for name in after:
        assert np.array_equal(after[name], before[name]), name


def test_a_subgraph_reads_values_from_outside(text_model: Any, draw: Any, same: Any) -> None:
    model = text_model(
        """(float[N, 4] x) => (float[N, 4] y) {
            yes = Constant<value = bool {1}>()
            two = Constant<value_float = 2.0>()
            four = Mul(two, two)
            a = Identity(x)
            y = If(yes) <
                then_branch = g1 () => (float[N, 4] t) { t = Mul(a, four) },
                else_branch = g2 () => (float[N, 4] e) { e = Identity(a) }
            >
        }"""
    )
    same(model, {"x": draw(2, 4)})


def test_metadata_of_nodes_survives_the_conversion_of_opsets(cnn: Net) -> None:
    model = cnn(opset=13)
    for node in model.graph.node:
        entry = node.metadata_props.add()
        entry.key, entry.value = "origin", node.name
    for node in normalise(load(model)).graph:
        assert node.metadata_props["origin"] == node.name


def test_contradictions_are_named(cnn: Net) -> None:
    wrong_weight = cnn(change={"w_fc": np.zeros((20, 7))})
    with pytest.raises(ModelError, match=r"contradict.*Gemm"):
        normalise(load(wrong_weight))
    unknown_value = cnn()
    unknown_value.graph.node[-1].input[0] = "nobody"
    with pytest.raises(ModelError, match="nobody"):
        normalise(load(unknown_value))
    twice = cnn()
    twice.graph.node.append(twice.graph.node[-1])
    with pytest.raises(ModelError):
        normalise(load(twice))
    circle = cnn()
    circle.graph.node[1].input[0] = "features"
    with pytest.raises(ModelError, match=r"cycl|circ|order"):
        normalise(load(circle))


def test_an_operator_of_another_domain_is_kept(text_model: Any, draw: Any, same: Any) -> None:
    for opset in (13, 18, 21):
        model = text_model("(float[N, 4] x) => (float[N, 4] y) { a = Relu(x) y = Tanh(a) }", opset=opset)
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        node = model.graph.node[1]
        node.op_type, node.domain = "QuickGelu", "com.microsoft"
        normal = normal_form(model)
        assert [n.domain for n in normal.graph.node] == ["", "com.microsoft"]


def test_values_have_types(text_model: Any) -> None:
    """What rules read: dtype and rank of every value."""
    model = text_model("(float[N, 4] x) => (float[N, 4] y) { a = Relu(x) y = Tanh(a) }", opset=11)
    for node in normalise(load(model)).graph:
        assert node.outputs[0].dtype == TensorProto.FLOAT
        assert node.outputs[0].shape is not None


def test_functions_are_inlined_whatever_versions_they_name(text_model: Any, draw: Any, same: Any) -> None:
    """jax2onnx gives the domain of a function another version inside than outside, onnxscript the default domain."""
    for own, default in ((1, 21), (21, 21), (1, 18), (21, 18)):
        model = onnx.parser.parse_model(
            f"""<ir_version: 10, opset_import: ["" : 21, "block" : 1]>
            g (float[N, 4] x) => (float[N, 4] y) {{ a = Relu(x) [first] b = block.F(a) [second] y = block.F(b) }}
            <domain: "block", opset_import: ["" : {default}, "block" : {own}]>
            F (u) => (v) {{ [inner] t = Tanh(u) [last] v = Add(t, u) }}"""
        )
        normal = same(model, {"x": draw(2, 4)})
        assert ops(normal) == ["Relu", "Tanh", "Add", "Tanh", "Add"]
        names = [node.name for node in normal.graph.node]
        assert [names[2], names[4]] == ["first", "second"]  # what made the function's output is found by its call


def test_names_given_twice_make_no_modules(text_model: Any) -> None:
    model = text_model("(float[N, 4] x) => (float[N, 4] y) { a = Relu(x) b = Tanh(a) y = Tanh(b) }")
    for node in model.graph.node:
        node.name = "/block/Act"
    nodes = list(normalise(load(model)).graph)
    assert len({node.name for node in nodes}) == 3
    assert {module_path(node) for node in nodes} == {"block"}


def test_the_default_domain_by_its_long_name(text_model: Any, draw: Any, same: Any) -> None:
    model = text_model("(float[N, 4] x) => (float[N, 4] y) { a = Relu(x) y = Tanh(a) }", opset=13)
    model.opset_import[0].domain = model.graph.node[0].domain = "ai.onnx"
    normal = same(model, {"x": draw(2, 4)})
    assert [(o.domain, o.version) for o in normal.opset_import] == [("", OPSET)]


def test_shapes_behind_computed_constants(text_model: Any, draw: Any, same: Any) -> None:
    """paddle2onnx reshapes a bias by a constant behind an Identity, where onnx's inference sees no further."""
    model = text_model(
        """(float[N, 3, h, w] x) => (float[N, 4, h2, w2] y) {
            raw = Constant<value_ints = [1, -1, 1, 1]>()
            shape = Identity(raw)
            bias = Reshape(b, shape)
            pooled = GlobalAveragePool(x)
            c = Conv(pooled, w1)
            d = Add(c, bias)
            y = Relu(d)
        }""",
        w1=draw(4, 3, 1, 1),
        b=draw(4),
    )
    normal = same(model, {"x": draw(2, 3, 5, 6)})
    assert ops(normal) == ["GlobalAveragePool", "Conv", "Add", "Relu"]
    (shape,) = (node.outputs[0].shape for node in normalise(load(model)).graph if node.op_type == "Add")
    assert shape is not None
    assert shape[1:] == (4, 1, 1)
