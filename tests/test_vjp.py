"""`pycam.vjp` on graphs that are awkward: copies, weights, old ops, empty batches, unnamed nodes."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import pycam
from pycam.errors import LayerError


def model(body, shape, weights=None, opset=21, y=None):
    """A model with the input `x` and the output `y`, in float32."""
    parsed = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> f () => (float y) {{ {body} }}')
    parsed.graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, shape))
    parsed.graph.output[0].CopyFrom(
        helper.make_tensor_value_info("y", TensorProto.FLOAT, y or [f"y{i}" for i in range(len(shape))])
    )
    parsed.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in (weights or {}).items())
    return parsed


def run(proto, feed):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip((o.name for o in session.get_outputs()), session.run(None, feed), strict=True))


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def gradient(proto, x, cotangent):
    return run(pycam.vjp(proto, ["x"]), {"x": x, "y.cotangent": cotangent})["x.gradient"]


def test_copies_that_are_left_out_keep_their_names():
    m = model("h = Tanh(x) hi = Identity(h) hd = Dropout(hi) y = Mul(hd, hi)", [2, 3])
    x, c = draw(2, 3), draw(2, 3, seed=1)
    h = np.tanh(x)
    got = run(pycam.vjp(m, ["hd"]), {"x": x, "y.cotangent": c})["hd.gradient"]
    np.testing.assert_allclose(got, 2 * h * c, rtol=1e-5)
    got = run(pycam.vjp(m, ["x"], "hd"), {"x": x, "hd.cotangent": c})["x.gradient"]
    np.testing.assert_allclose(got, (1 - h**2) * c, rtol=1e-5)


def test_a_weight_has_no_gradient():
    m = model("y = Mul(x, w)", [2, 3], {"w": draw(3)})
    with pytest.raises(LayerError, match="'w' is a weight: pycam has gradients of activations only"):
        pycam.vjp(m, ["w"])


@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize("scale", [2.0, 1.5, 0.5])
@pytest.mark.parametrize(("op", "opset"), [("Upsample", 9), ("Resize", 10)])
def test_old_resizes_count_from_the_corner(op, opset, scale, mode):
    if op == "Upsample" and scale < 1:
        pytest.skip("Upsample makes nothing smaller")
    m = model(f'y = {op}<mode="{mode}">(x, s)', [1, 1, 1, 6], {"s": np.array([1, 1, 1, scale], np.float32)}, opset)
    x = draw(1, 1, 1, 6)
    y = run(m, {"x": x})["y"]
    differentiated = run(pycam.vjp(m, ["x"]), {"x": x, "y.cotangent": np.ones_like(y)})
    np.testing.assert_allclose(differentiated["y"], y, rtol=1e-6)
    ones = [run(m, {"x": np.eye(6, dtype=np.float32)[i].reshape(x.shape)})["y"].sum() for i in range(6)]  # it is linear
    np.testing.assert_allclose(differentiated["x.gradient"].reshape(-1), ones, rtol=1e-5)


@pytest.mark.parametrize("opset", [18, 20])
def test_group_normalization_with_a_scale_per_group(opset):
    """onnx's checker calls it deprecated; it is what its groups are as channels of an InstanceNormalization."""
    weights = {"s": draw(2, seed=1), "b": draw(2, seed=2)}
    m = model("n = GroupNormalization<num_groups=2, epsilon=0.1>(x, s, b) y = Tanh(n)", ["n", 4, 5], weights, opset)
    x = draw(3, 4, 5)

    def forward(x):
        grouped = x.astype(np.float64).reshape(3, 2, -1)
        centred = grouped - grouped.mean(2, keepdims=True)
        normed = centred / np.sqrt((centred**2).mean(2, keepdims=True) + 0.1)
        return np.tanh(normed * weights["s"][:, None] + weights["b"][:, None]).reshape(x.shape)

    c, v = draw(3, 4, 5, seed=3), draw(3, 4, 5, seed=4)
    result = run(pycam.vjp(m, ["x"]), {"x": x, "y.cotangent": c})
    np.testing.assert_allclose(result["y"], forward(x), atol=1e-5)
    step = 1e-5 * v.astype(np.float64)
    want = ((forward(x + step) - forward(x - step)) * c).sum() / 2e-5
    np.testing.assert_allclose((result["x.gradient"] * v).sum(), want, rtol=1e-3)


def test_pads_of_some_axes_in_nodes_without_names():
    body = 'a = Pad<mode="reflect">(x, p, , ax) s = Sin(a) y = Pad(s, p, , ax)'
    m = model(body, ["n", 6, 5], {"p": np.array([1, 2]), "ax": np.array([-2])})
    for node in m.graph.node:
        node.name = ""
    got = gradient(m, draw(2, 6, 5), np.ones((2, 12, 5), np.float32))
    assert got.shape == (2, 6, 5)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_pattern_with_a_number_of_some_rank(rank):
    alpha = np.full((1,) * rank, 1.5, np.float32)
    m = model("a = Mul(x, al) s = Sigmoid(a) y = Mul(x, s)", [3], {"al": alpha}, y=[1, 3] if rank > 1 else [3])
    x = draw(3)
    got = gradient(m, x, np.ones((1, 3) if rank > 1 else 3, np.float32))
    sigma = 1 / (1 + np.exp(-1.5 * x))
    np.testing.assert_allclose(got, sigma + 1.5 * x * sigma * (1 - sigma), rtol=1e-5)


def test_shapes_in_tables_are_not_followed_as_vectors():
    body = "s = Shape(x) u = Unsqueeze(s, one) t = Concat<axis=1>(u, u) r = Slice(t, b, e, z) q = Squeeze(r, z) "
    body += "h = Tanh(x) y = Reshape(h, q)"
    weights = {"one": np.array([1]), "z": np.array([0]), "b": np.array([1]), "e": np.array([2])}
    m = model(body, ["n", 4], weights)
    assert gradient(m, draw(4, 4), np.ones((4, 4), np.float32)).shape == (4, 4)


def test_an_empty_batch_behind_a_max_pool():
    m = model("p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x) y = Mul(p, p)", ["n", 2, 4, 4])
    assert gradient(m, draw(0, 2, 4, 4), draw(0, 2, 2, 2)).shape == (0, 2, 4, 4)
    x = draw(3, 2, 4, 4)
    assert gradient(m, x, draw(3, 2, 2, 2)).shape == x.shape


TAILS = {
    "one axis after the other": ("m = ReduceMean<keepdims=0>(a, w3) g = ReduceMean<keepdims=0>(m, w2)", 4),
    "over the columns": ("m = ReduceMean<keepdims=0>(a, w3) g = Flatten(m)", 24),
    "over the channels": ("m = ReduceMean<keepdims=0>(a, w1) g = Flatten(m)", 36),
    "over everything": ("m = ReduceMean<keepdims=1>(a, w123) g = Flatten(m)", 1),
    "sum over the columns": ("m = ReduceSum<keepdims=0>(a, w3) g = Flatten(m)", 24),
    "over the positions": ("m = ReduceMean<keepdims=0>(a, w23) g = Identity(m)", 4),
}
AXES = {"w1": [1], "w2": [2], "w3": [3], "w23": [2, 3], "w123": [1, 2, 3]}


@pytest.mark.parametrize("method", ["gradcam", "hirescam", "layercam"])
@pytest.mark.parametrize("tail", TAILS)
def test_a_gradient_that_is_constant_over_other_axes_than_the_positions(tail, method):
    """Its raw map is that of the gradient spelt out."""
    text, width = TAILS[tail]
    weights = {k: np.array(v) for k, v in AXES.items()} | {"k": draw(4, 3, 3, 3), "f": draw(width, 5, seed=2)}
    m = model(f"c = Conv(x, k) a = Relu(c) {text} y = MatMul(g, f)", ["n", 3, 8, 8], weights, y=["n", 5])
    x = draw(2, 3, 8, 8, seed=3)
    result = pycam.Explainer(m, method=method, layer="a")(x, np.array([[0, 3], [4, 1]]))
    assert result.raw.shape == (2, 2, 6, 6)
    a = np.maximum(run(extended(m, "c"), {"x": x})["c"], 0)
    for k in range(2):
        cotangent = np.eye(5, dtype=np.float32)[result.targets[:, k]]
        g = run(pycam.vjp(m, ["a"]), {"x": x, "y.cotangent": cotangent})["a.gradient"]
        weight = {"gradcam": g.mean((2, 3), keepdims=True), "hirescam": g, "layercam": np.maximum(g, 0)}[method]
        np.testing.assert_allclose(result.raw[:, k], (weight * a).sum(1), rtol=1e-4, atol=1e-6)


def extended(m, name):
    """The model with one more output."""
    result = onnx.ModelProto.FromString(m.SerializeToString())
    result.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return result


def test_constants_with_an_entry_per_sample_serve_several_targets():
    weights = {"k": draw(4, 3, 3, 3), "cb": draw(2, 4, 6, 6, seed=1), "f": draw(144, 5, seed=2)}
    body = "c = Conv(x, k) a = Tanh(c) b = Mul(a, cb) g = Flatten(b) y = MatMul(g, f)"
    m = model(body, [2, 3, 8, 8], weights, y=[2, 5])
    x, targets = draw(2, 3, 8, 8, seed=3), np.array([[0, 1], [1, 2]])
    explainer = pycam.Explainer(m, layer="a")
    together = explainer(x, targets).raw
    for k in range(2):
        np.testing.assert_allclose(together[:, k], explainer(x, targets[:, k]).raw[:, 0], rtol=1e-5, atol=1e-7)
