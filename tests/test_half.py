"""Models in 16 bits: gradients are computed in float32, from the values that the model has.

onnxruntime's CPU provider runs float16 by casting; of bfloat16 it has almost nothing, so that is run by onnx.reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import pycam
from pycam.errors import ModelError
from pycam.gradient import vjp

FLOAT16, BFLOAT16, FLOAT, DOUBLE = TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE
KINDS = {"float16": FLOAT16, "bfloat16": BFLOAT16}
PRECISION = {FLOAT16: 2.0**-10, BFLOAT16: 2.0**-7}
Arrays = Mapping[str, np.ndarray]

TRANSFORMER = """(float[N, 3, 8, 8] x) => (float[N, 10] y) {
    patches = Conv<strides = [4, 4], kernel_shape = [4, 4]>(x, w_patch, b_patch)
    flat = Reshape(patches, flat_shape)
    tokens = Transpose<perm = [0, 2, 1]>(flat)
    placed = Add(tokens, position)
    normed = LayerNormalization(placed, gamma, beta)
    qkv = MatMul(normed, w_qkv)
    q, k, v = Split<axis = -1, num_outputs = 3>(qkv)
    kt = Transpose<perm = [0, 2, 1]>(k)
    dots = MatMul(q, kt)
    scaled = Mul(dots, scale)
    weights = Softmax<axis = -1>(scaled)
    attended = MatMul(weights, v)
    projected = MatMul(attended, w_out)
    added = Add(placed, projected)
    normed2 = LayerNormalization(added, gamma, beta)
    hidden = MatMul(normed2, w_up)
    active = Gelu(hidden)
    down = MatMul(active, w_down)
    last = Add(added, down)
    pooled = ReduceMean<keepdims = 0>(last, one)
    y = Gemm(pooled, w_head, b_head)
}"""


def transformer(text_model: Any) -> onnx.ModelProto:
    """One block of a vision transformer, 4 tokens of 8."""
    rng = np.random.default_rng(5)

    def draw(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (rng.normal(size=shape) * scale).astype(np.float32)

    model = text_model(
        TRANSFORMER, opset=21, ir_version=10,
        w_patch=draw(8, 3, 4, 4, scale=0.15), b_patch=draw(8), position=draw(1, 4, 8),
        gamma=1 + draw(8, scale=0.2), beta=draw(8, scale=0.2),
        w_qkv=draw(8, 24, scale=0.4), w_out=draw(8, 8, scale=0.4),
        w_up=draw(8, 16, scale=0.4), w_down=draw(16, 8, scale=0.3), w_head=draw(8, 10), b_head=draw(10),
        scale=np.float32(8**-0.5), flat_shape=np.array([0, 8, 4]), one=np.array([1]),
    )  # fmt: skip
    return onnx.shape_inference.infer_shapes(model)


def converted(model: onnx.ModelProto, kind: int, keep: Callable[[str], bool] = lambda name: False) -> onnx.ModelProto:
    """`model` in another floating type: initialisers, inputs, outputs; but for the initialisers that `keep` names."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.value_info[:]
    for value in [*result.graph.input, *result.graph.output]:
        if value.type.tensor_type.elem_type == FLOAT:
            value.type.tensor_type.elem_type = kind
    for tensor in result.graph.initializer:
        if tensor.data_type == FLOAT and not keep(tensor.name):
            array = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(kind))
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return result


def evaluate(model: onnx.ModelProto, feeds: Arrays) -> dict[str, np.ndarray]:
    """All outputs by name, by onnx.reference, from feeds cast to what the inputs hold."""
    run = ReferenceEvaluator(model)
    types = {v.name: helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type) for v in model.graph.input}
    names = [v.name for v in model.graph.output]
    arrays = run.run(names, {k: v.astype(types[k]) for k, v in feeds.items()})
    return {k: np.asarray(v) for k, v in zip(names, arrays, strict=True)}


@pytest.fixture(scope="module")
def nets(cnn: Any, text_model: Any) -> dict[str, tuple[onnx.ModelProto, list[str]]]:
    """Name → float32 model, values to differentiate for."""
    return {
        "cnn": (cnn("mlp", batchnorm=True, opset=21), ["x", "early", "features"]),
        "transformer": (transformer(text_model), ["x", "patches", "normed", "weights", "last"]),
    }


def feeds_of(model: onnx.ModelProto, draw: Any) -> dict[str, np.ndarray]:
    shape = [d.dim_value or 2 for d in model.graph.input[0].type.tensor_type.shape.dim]
    classes = model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    return {"x": draw(*shape, seed=2), "y.cotangent": draw(2, classes, seed=3)}


@pytest.mark.parametrize("lower", ["fast", "portable"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["cnn", "transformer"])
def test_gradients_are_those_of_the_float32_model(nets: Any, draw: Any, name: str, kind: str, lower: Any) -> None:
    """But for what the forward pass loses: its weights are rounded, and every value."""
    model, wrt = nets[name]
    feeds = feeds_of(model, draw)
    want = evaluate(vjp(model, wrt, lower=lower), feeds)
    got = evaluate(vjp(converted(model, KINDS[kind]), wrt, lower=lower), feeds)
    for value in wrt:
        dx, expected = got[f"{value}.gradient"], want[f"{value}.gradient"]
        assert dx.dtype == helper.tensor_dtype_to_np_dtype(KINDS[kind])
        error = np.linalg.norm(dx.astype(np.float64) - expected) / np.linalg.norm(expected)
        assert error < 20 * PRECISION[KINDS[kind]], (value, error)  # a ReLU at 0 may go either way


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["cnn", "transformer"])
def test_the_backward_pass_is_in_float32(nets: Any, name: str, kind: str) -> None:
    """Only what is returned is cast back to 16 bits, and no weight that a rule reads has them."""
    model, wrt = nets[name]
    half = converted(model, KINDS[kind])
    differentiated = onnx.shape_inference.infer_shapes(vjp(half, wrt), data_prop=True)
    types = {v.name: v.type.tensor_type.elem_type for v in differentiated.graph.value_info}
    ours = [n for n in differentiated.graph.node if n.name.startswith("pycam/")]
    assert len(ours) > 10
    narrow = [n.op_type for n in ours if types.get(n.output[0]) == KINDS[kind]]
    assert set(narrow) <= {"Cast"}  # of what is returned
    weights = {t.name for t in differentiated.graph.initializer if t.data_type == KINDS[kind]}
    assert [n.op_type for n in ours if weights & set(n.input)] == []


@pytest.mark.parametrize("name", ["cnn", "transformer"])
def test_float16_in_the_runtime(nets: Any, draw: Any, forward: Any, name: str) -> None:
    model, wrt = nets[name]
    feeds = feeds_of(model, draw)
    want = forward(vjp(model, wrt), feeds)
    got = forward(vjp(converted(model, FLOAT16), wrt), {k: v.astype(np.float16) for k, v in feeds.items()})
    for value in wrt:
        expected = want[f"{value}.gradient"]
        np.testing.assert_allclose(got[f"{value}.gradient"], expected, atol=0.01 * np.abs(expected).max())


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_outside_of_the_range_survive(text_model: Any, kind: str) -> None:
    """float16 ends at 6e-8 and 65504: on its way to `x` the gradient is 2⁻³⁸ first, then 2³³."""
    body = "a = Mul(x, tiny) b = Mul(a, tiny) c = Mul(b, tiny) d = Mul(c, large) e = Mul(d, large) f = Mul(e, large) "
    body += "g = Mul(f, large) h = Mul(g, tiny) i = Mul(h, tiny) y = Mul(i, tiny)"
    text = f"(float16[2] x) => (float16[2] y) {{ {body} }}"
    model = text_model(text, opset=21, ir_version=10, tiny=np.float32(2.0**-12), large=np.float32(2.0**15))
    model = converted(model, KINDS[kind])
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = KINDS[kind]
    seed = np.array([2.0**9, 2.0**-2])
    got = evaluate(vjp(model, ["x"]), {"x": np.ones(2), "y.cotangent": seed})["x.gradient"]
    assert got.astype(float).tolist() == (seed * 2.0**-12).tolist()  # between: 2^-27 at h, 2^33 at d


def test_no_explanation_vanishes(cnn: Any, cnn_weights: Any, images: np.ndarray) -> None:
    """A tail whose weights are so small that their product is 0 in float16."""
    weights = cnn_weights("mlp")
    change = {name: weights[name] * np.float32(2.0**-13) for name in ("w_hidden", "w_fc")}
    half = converted(cnn("mlp", change=change), FLOAT16)
    want = pycam.Explainer(cnn("mlp", change=change))(images, 3)
    got = pycam.Explainer(half)(images.astype(np.float16), 3)
    assert 0 < np.abs(want.raw).max() < 2.0**-24
    np.testing.assert_allclose(got.raw, want.raw, atol=0.05 * np.abs(want.raw).max())


# ── explanations ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("head", ["cpu", "graph"])
@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "hirescam", "layercam"])
@pytest.mark.parametrize("tail", ["gap", "mlp", "flatten", "conv", "pooled"])
def test_a_float16_model_is_explained(cnn: Any, images: np.ndarray, tail: str, method: str, head: str) -> None:
    """With several targets; maps are float32, scores the model's own."""
    targets = [[3, 7], [1, 1], [-1, 0]]
    want = pycam.Explainer(cnn(tail), method=method)(images, targets)
    explainer = pycam.Explainer(converted(cnn(tail), FLOAT16), method=method, head=head)
    got = explainer(images.astype(np.float16), targets)
    assert explainer.spec.layer == pycam.Explainer(cnn(tail)).spec.layer
    assert got.raw.dtype == got.heatmaps.dtype == np.float32
    assert got.scores.dtype == np.float16
    np.testing.assert_allclose(got.raw, want.raw, atol=0.02 * np.abs(want.raw).max())
    single = explainer(images.astype(np.float16), [3, 1, -1])
    np.testing.assert_allclose(single.raw[:, 0], got.raw[:, 0], rtol=1e-3, atol=1e-4 * np.abs(got.raw).max())


def test_a_float16_layer_within(cnn: Any, images: np.ndarray) -> None:
    want = pycam.Explainer(cnn("mlp"), layer="early")(images, 3)
    got = pycam.Explainer(converted(cnn("mlp"), FLOAT16), layer="early")(images.astype(np.float16), 3)
    np.testing.assert_allclose(got.raw, want.raw, atol=0.02 * np.abs(want.raw).max())


@pytest.mark.parametrize("many", [False, True])
def test_a_bfloat16_model_is_explained(cnn: Any, images: np.ndarray, many: bool) -> None:
    """By the compiled graph alone: no provider of onnxruntime that is here runs bfloat16."""
    from pycam.compile import compile_model

    targets = np.array([[3, 7], [1, 2], [5, 0]] if many else [[3], [1], [5]])
    want = pycam.Explainer(cnn("mlp"))(images, targets)
    graph = compile_model(converted(cnn("mlp", opset=22), BFLOAT16), many=many)
    onnx.checker.check_model(graph.model, full_check=True)
    feeds = {"x": images.astype(helper.tensor_dtype_to_np_dtype(BFLOAT16)), graph.spec.targets: targets}
    names = [v.name for v in graph.model.graph.output]
    got = dict(zip(names, ReferenceEvaluator(graph.model).run(names, feeds), strict=True))
    assert got["raw"].dtype == got["heatmaps"].dtype == np.float32
    assert got["y"].dtype == helper.tensor_dtype_to_np_dtype(BFLOAT16)
    np.testing.assert_allclose(got["raw"], want.raw, atol=0.04 * np.abs(want.raw).max())
    assert list(got["explained"].ravel()) == targets.ravel().tolist()


def test_a_float32_head_behind_a_float16_body(text_model: Any, cnn_weights: Any, images: np.ndarray) -> None:
    """As mixed precision exports: casts at the seams."""
    weights = cnn_weights()
    text = """({kind}[N, 3, 16, 16] x) => (float[N, 20] y) {{
        before = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]>({image}, w_conv1, b_conv1)
        early = Relu(before)
        late = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(early, w_conv2, b_conv2)
        features = Relu(late)
        {cast}
        flat = Flatten({wide})
        y = Gemm<transB = 1>(flat, w_flat, b_fc)
    }}"""
    names = ("w_conv1", "b_conv1", "w_conv2", "b_conv2", "w_flat", "b_fc")
    plain = text_model(text.format(kind="float", image="x", cast="", wide="features"), **{k: weights[k] for k in names})
    want = pycam.Explainer(plain)(images, [[3, 4], [1, 2], [5, 6]])
    body = {k: v.astype(np.float16) for k, v in weights.items() if "conv" in k}
    mixed = text_model(
        text.format(kind="float", image="half", cast="wide = Cast<to = 1>(features)", wide="wide").replace(
            "before =", "half = Cast<to = 10>(x) before ="
        ),
        **{k: body.get(k, weights[k]) for k in names},
    )
    explainer = pycam.Explainer(mixed)
    got = explainer(images, [[3, 4], [1, 2], [5, 6]])
    assert explainer.spec.layer in ("features", "wide")
    assert got.raw.dtype == np.float32
    np.testing.assert_allclose(got.raw, want.raw, atol=0.02 * np.abs(want.raw).max())
    gradient = vjp(mixed, ["x"])
    assert {v.name: v.type.tensor_type.elem_type for v in gradient.graph.output}["x.gradient"] == FLOAT


def test_double_models_keep_double_gradients(cnn: Any, draw: Any) -> None:
    model = converted(cnn("mlp", batchnorm=True, opset=21), DOUBLE)
    differentiated = vjp(model, ["x", "features"])
    feeds = feeds_of(cnn("mlp"), draw)
    got = evaluate(differentiated, feeds)
    assert {got[f"{name}.gradient"].dtype for name in ("x", "features")} == {np.dtype(np.float64)}
    inferred = onnx.shape_inference.infer_shapes(differentiated)
    assert not [v.name for v in inferred.graph.value_info if v.type.tensor_type.elem_type == FLOAT]
    single = evaluate(vjp(cnn("mlp", batchnorm=True, opset=21), ["x"]), feeds)["x.gradient"]
    assert 0 < np.abs(got["x.gradient"] - single).max() < 1e-5 * np.abs(single).max()


# ── weights ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tail", ["gap", "flatten"])
def test_compressed_weights_are_cast_when_compiled(
    cnn: Any, images: np.ndarray, forward: Any, kind: str, tail: str
) -> None:
    """Weights in 16 bits with a Cast to float32 cost nothing when the model runs: the explain graph has no Cast."""
    model = cnn(tail, opset=21)
    want = pycam.Explainer(model)(images, 3)
    names = [t.name for t in model.graph.initializer]
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(KINDS[kind]))
        tensor.CopyFrom(numpy_helper.from_array(array, f"{tensor.name}.stored"))
    for name in names:
        model.graph.node.insert(0, helper.make_node("Cast", [f"{name}.stored"], [name], to=FLOAT, name=f"cast_{name}"))
    differentiated = vjp(model, ["x"])
    kinds = [node.op_type for node in differentiated.graph.node]
    assert kinds.count("Conv") == 3  # both convolutions, and the second one's gradient with flipped weights
    assert {t.data_type for t in differentiated.graph.initializer} <= {FLOAT, TensorProto.INT64}
    casts = [n for n in differentiated.graph.node if n.op_type == "Cast" and not n.name.startswith("pycam/")]
    assert casts == []
    got = pycam.Explainer(model)(images, 3)
    np.testing.assert_allclose(got.raw, want.raw, atol=5 * PRECISION[KINDS[kind]] * np.abs(want.raw).max())


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_computed_of_weights(text_model: Any, draw: Any, kind: str) -> None:
    """onnxruntime cannot compute bfloat16: onnx.reference does, and the model compiles all the same."""
    model = text_model(
        "(float[N, 3, 8, 8] x) => (float[N, 8, a, b] y) { t = Transpose<perm = [1, 0, 2, 3]>(w) v = Mul(t, s) "
        "y = Conv(x, v) }", opset=21, ir_version=10, w=draw(3, 8, 3, 3), s=np.float32(0.5),
    )  # fmt: skip
    half = converted(model, KINDS[kind])
    feeds = {"x": draw(2, 3, 8, 8), "y.cotangent": draw(2, 8, 6, 6, seed=1)}
    want = evaluate(vjp(model, ["x"]), feeds)["x.gradient"]
    got = evaluate(vjp(half, ["x"]), feeds)["x.gradient"]
    np.testing.assert_allclose(got.astype(np.float32), want, atol=4 * PRECISION[KINDS[kind]] * np.abs(want).max())


def test_a_bfloat16_model_cannot_run_here(cnn: Any) -> None:
    with pytest.raises(ModelError, match="onnxruntime"):
        pycam.Explainer(converted(cnn("mlp"), BFLOAT16))
