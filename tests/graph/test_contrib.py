"""Models that onnxruntime's optimiser saved: the same gradients as the originals', and shapes behind its ops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

import pycam
from pycam.errors import ModelError
from pycam.gradient import vjp
from pycam.graph.contrib import infer_shapes
from pycam.graph.load import load
from pycam.graph.normalise import normalise

RNG = np.random.default_rng(0)


def parsed(text: str, opset: int, **weights: Any) -> onnx.ModelProto:
    """A model of opset `opset`; a tuple is the shape of a weight to be drawn."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}')
    for name, value in weights.items():
        array = RNG.normal(size=value).astype(np.float32) * 0.3 if isinstance(value, tuple) else np.asarray(value)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


NORM = """
    m{i} = ReduceMean<axes=[-1]>(n{i}) c{i} = Sub(n{i}, m{i}) p{i} = Pow(c{i}, two) v{i} = ReduceMean<axes=[-1]>(p{i})
    e{i} = Add(v{i}, tiny) r{i} = Sqrt(e{i}) d{i} = Div(c{i}, r{i}) g{i} = Mul(d{i}, gamma) l{i} = Add(g{i}, beta)
"""
TRANSFORMER = (
    """
    f (float[N,6,16] x) => (float[N,3] y) {
    q0 = MatMul(x, wq) q1 = Add(q0, bias) q2 = Reshape(q1, cut) q = Transpose<perm=[0,2,1,3]>(q2)
    k0 = MatMul(x, wk) k1 = Add(k0, bias) k2 = Reshape(k1, cut) k = Transpose<perm=[0,2,3,1]>(k2)
    u0 = MatMul(x, wv) u1 = Add(u0, bias) u2 = Reshape(u1, cut) u = Transpose<perm=[0,2,1,3]>(u2)
    s0 = MatMul(q, k) s1 = Div(s0, root) p = Softmax<axis=-1>(s1)
    a0 = MatMul(p, u) a1 = Transpose<perm=[0,2,1,3]>(a0) a2 = Reshape(a1, joined)
    o0 = MatMul(a2, wo) o1 = Add(o0, bias) n1 = Add(o1, x)
    """
    + NORM.format(i=1)
    + """
    h0 = MatMul(l1, w1) h1 = Add(h0, b1) z0 = Div(h1, root2) z1 = Erf(z0) z2 = Add(z1, one) z3 = Mul(h1, z2)
    h2 = Mul(z3, half) h3 = MatMul(h2, w2) h4 = Add(h3, bias) n2 = Add(h4, l1)
    """
    + NORM.format(i=2)
    + """
    pooled = ReduceMean<axes=[1], keepdims=0>(l2) y = Gemm(pooled, head, zero) }
    """
)
CNN = """
    f (float[N,3,16,16] x) => (float[N,5] y) {
    a0 = Conv<pads=[1,1,1,1]>(x, w0, b8) a = Relu(a0) b0 = Conv<pads=[1,1,1,1]>(a, w1, b8) b1 = Add(b0, a) b = Relu(b1)
    d0 = Conv<pads=[1,1,1,1], strides=[2,2]>(b, w1, b8) d = LeakyRelu<alpha=0.2>(d0)
    e0 = Conv(d, w2, b8) e = Sigmoid(e0) f0 = Conv(e, w2, b8) g = Tanh(f0)
    h0 = Conv(g, w2, b8) h = HardSigmoid(h0) i0 = Conv(h, w2, b8) i = Clip(i0, low, high)
    p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(i) q = GlobalAveragePool(p) r = Flatten(q)
    s0 = Gemm(r, w3, b6) s = Relu(s0) y = Gemm(s, w4, b5) }
"""


def transformer(opset: int) -> onnx.ModelProto:
    scalars = {"root": 2.0, "root2": 2**0.5, "one": 1.0, "half": 0.5, "two": 2.0, "tiny": 1e-5}
    return parsed(
        TRANSFORMER,
        opset,
        **dict.fromkeys(("wq", "wk", "wv", "wo"), (16, 16)),
        **dict.fromkeys(("bias", "gamma", "beta"), (16,)),
        **{name: np.float32(value) for name, value in scalars.items()},
        w1=(16, 32),
        b1=(32,),
        w2=(32, 16),
        head=(16, 3),
        zero=(3,),
        cut=np.array([0, 0, 4, 4]),
        joined=np.array([0, 0, 16]),
    )


def cnn() -> onnx.ModelProto:
    return parsed(
        CNN, 17, w0=(8, 3, 3, 3), w1=(8, 8, 3, 3), w2=(8, 8, 1, 1), w3=(8, 6), w4=(6, 5), b8=(8,), b6=(6,), b5=(5,),
        low=np.float32(0), high=np.float32(6),
    )  # fmt: skip


def rms() -> onnx.ModelProto:
    """What becomes SimplifiedLayerNormalization, in the standard domain."""
    text = """f (float[N,6,16] x) => (float[N,6,16] y) {
        p = Pow(x, two) m = ReduceMean<axes=[-1]>(p) e = Add(m, tiny) r = Sqrt(e) d = Div(x, r) y = Mul(d, gamma) }"""
    return parsed(text, 17, two=np.float32(2), tiny=np.float32(1e-6), gamma=(16,))


def optimised(model: onnx.ModelProto, folder: Path, level: str = "EXTENDED") -> onnx.ModelProto:
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimised.onnx")


def gradient(model: onnx.ModelProto, x: np.ndarray, cotangent: np.ndarray) -> Any:
    data = vjp(model, ["x"]).SerializeToString()
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    return session.run(["x.gradient"], {"x": x, "y.cotangent": cotangent})[0]


@pytest.mark.parametrize(
    ("model", "inputs", "outputs", "fused"),
    [
        (transformer(17), (2, 6, 16), (2, 3), {"SkipLayerNormalization", "FusedMatMul", "BiasGelu"}),
        (transformer(13), (2, 6, 16), (2, 3), {"SkipLayerNormalization", "FusedMatMul", "BiasGelu"}),
        (cnn(), (2, 3, 16, 16), (2, 5), {"FusedConv", "FusedGemm"}),
        (rms(), (2, 6, 16), (2, 6, 16), {"SimplifiedLayerNormalization"}),
    ],
    ids=["transformer, opset 17", "transformer, opset 13", "cnn", "rms"],
)
def test_same_gradient_as_the_original(
    model: onnx.ModelProto, inputs: tuple[int, ...], outputs: tuple[int, ...], fused: set[str], tmp_path: Path
) -> None:
    fast = optimised(model, tmp_path)
    assert fused <= {node.op_type for node in fast.graph.node}
    x, cotangent = (np.random.default_rng(1).normal(size=s).astype(np.float32) for s in (inputs, outputs))
    want, got = gradient(model, x, cotangent), gradient(fast, x, cotangent)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_same_maps_of_two_classes(tmp_path: Path) -> None:
    """Several targets in one pass, at the layer that is found in both models."""
    x, targets = np.random.default_rng(1).normal(size=(2, 3, 16, 16)).astype(np.float32), np.array([[0, 1], [2, 3]])
    model = cnn()
    results = [pycam.Explainer(m)(x, targets=targets) for m in (model, optimised(model, tmp_path))]
    assert results[0].layer == results[1].layer
    np.testing.assert_allclose(results[0].raw, results[1].raw, atol=1e-6)


@pytest.mark.parametrize("opset", [13, 16])
def test_layer_normalisation_before_it_was_in_the_standard(opset: int, tmp_path: Path) -> None:
    """onnxruntime puts it into the standard domain at any opset, where onnx's checker and converter do not know it."""
    text = "f (float[N,6,16] n0) => (float[N,6,16] l0) {" + NORM.format(i=0) + "}"
    model = parsed(text, opset, two=np.float32(2), tiny=np.float32(1e-5), gamma=(16,), beta=(16,))
    fast = optimised(model, tmp_path)
    assert [(node.domain, node.op_type) for node in fast.graph.node] == [("", "LayerNormalization")]
    graph = normalise(load(fast)).graph
    (node,) = graph
    assert (node.domain, node.op_type, graph.opset_imports[""]) == ("", "LayerNormalization", 21)


def test_layout_optimisations_are_refused(tmp_path: Path) -> None:
    """Blocks of channels are as wide as this CPU's registers."""
    fast = optimised(cnn(), tmp_path, "ALL")
    if not any(node.domain == "com.microsoft.nchwc" for node in fast.graph.node):
        pytest.skip("onnxruntime has no blocked layout for this CPU")
    with pytest.raises(ModelError, match=r"layout optimisations for one CPU.*save it at level extended or lower"):
        vjp(fast, ["x"])
    model = parsed("f (float[1,4,4,3] x) => (float[1,4,4,3] y) { y = com.ms.internal.nhwc.MaxPool(x) }", 21)
    with pytest.raises(ModelError, match=r"it holds com.ms.internal.nhwc::MaxPool"):
        vjp(model, ["x"])


def contrib(body: str, inputs: str, opset: int = 21) -> onnx.ModelProto:
    text = f'<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]> f ({inputs}) => (y) {{ {body} }}'
    return onnx.parser.parse_model(text)


@pytest.mark.parametrize(
    ("body", "inputs", "shape"),
    [
        ("y = com.microsoft.Gelu(x)", "float[N,S,4] x", ["N", "S", 4]),
        ("z = com.microsoft.Gelu(x) y = Transpose(z)", "float[N,3] x", [3, "N"]),
        ("z = com.microsoft.Gelu(x) u = Relu(z) y = com.microsoft.BiasGelu(u, b)",
         "float[N,3] x, float[3] b", ["N", 3]),
        ('y = com.microsoft.FusedConv<strides=[2,2], activation="Relu">(x, w)',
         "float[N,3,9,9] x, float[8,3,3,3] w", ["N", 8, 4, 4]),
        ("y = com.microsoft.FusedMatMul<transA=1, transBatchA=1>(a, b)", "float[4,N,3] a, float[N,4,5] b", ["N", 3, 5]),
        ("y = com.microsoft.FusedMatMul<alpha=0.5>(a, b)", "float[N,3,4] a, float[4] b", ["N", 3]),
        ("y = com.microsoft.MatMulNBits<K=16, N=5, bits=4, block_size=16>(x, w, s)",
         "float[N,S,16] x, uint8[5,1,8] w, float[5] s", ["N", "S", 5]),
        ("y = com.microsoft.MultiHeadAttention<num_heads=2>(q, k, v)",
         "float[N,S,8] q, float[N,T,8] k, float[N,T,6] v", ["N", "S", 6]),
        ("y = com.microsoft.MultiHeadAttention<num_heads=2>(q)", "float[N,S,2,3,4] q", ["N", "S", 8]),
        ("y = com.microsoft.MultiHeadAttention<num_heads=2>(q, k, v)",
         "float[N,S,8] q, float[N,2,T,4] k, float[N,2,T,4] v", ["N", "S", 8]),
        ("z, y = com.microsoft.MultiHeadAttention<num_heads=2>(q, q, q)", "float[N,S,8] q", ["N", 2, "S", 4]),
        ("y = com.microsoft.Attention<num_heads=2>(x, w, b)",
         "float[N,S,6] x, float[6,24] w, float[24] b", ["N", "S", 8]),
        ("z, m, r, y = com.microsoft.SkipLayerNormalization(x, x, g)", "float[N,S,6] x, float[6] g", ["N", "S", 6]),
        ("z, y = com.microsoft.SkipLayerNormalization(x, x, g)", "float[N,S,6] x, float[6] g", ["N", "S", 1]),
        ("y = com.microsoft.EmbedLayerNormalization(i, , w, p, , g, b)",
         "int32[N,S] i, float[9,6] w, float[5,6] p, float[6] g, float[6] b", ["N", "S", 6]),
        ("y = com.microsoft.NhwcMaxPool<kernel_shape=[2,2], strides=[2,2]>(x)", "float[N,8,6,3] x", ["N", 4, 3, 3]),
        ("y = GroupNormalization<num_groups=2>(x, s, s)", "float[N,4,H,W] x, float[4] s", ["N", 4, "H", "W"]),
        ("y = Attention<q_num_heads=4, kv_num_heads=2>(q, k, v)",
         "float[N,S,8] q, float[N,T,4] k, float[N,T,6] v", ["N", "S", 12]),
        ("y, nk, nv = Attention(q, k, v, , pk, pv)",
         "float[N,2,S,4] q, float[N,2,T,4] k, float[N,2,T,3] v, float[N,2,5,4] pk, float[N,2,5,3] pv",
         ["N", 2, "S", 3]),
    ],
)  # fmt: skip
def test_shapes(body: str, inputs: str, shape: list[int | str]) -> None:
    model = contrib(body, inputs, 23)
    inferred = infer_shapes(model)
    dims = [d.dim_value or d.dim_param for d in inferred.graph.output[0].type.tensor_type.shape.dim]
    assert dims == shape
    assert [node.SerializeToString() for node in inferred.graph.node] == [
        node.SerializeToString() for node in model.graph.node
    ]
    assert not [v.name for v in inferred.graph.value_info if v.name.startswith("pycam")]


def test_shapes_within_branches() -> None:
    body = """
        z = If (c) <then_branch = t () => (float[N,3] u) { u = com.microsoft.Gelu(x) },
                    else_branch = e () => (float[N,3] v) { v = Relu(x) }>
        y = Transpose(z)
    """
    inferred = infer_shapes(contrib(body, "float[N,3] x, bool c"))
    assert inferred.graph.output[0].type.tensor_type.shape.dim[0].dim_value == 3
    then = next(a.g for a in inferred.graph.node[0].attribute if a.name == "then_branch")
    assert [(node.domain, node.op_type) for node in then.node] == [("com.microsoft", "Gelu")]


def test_an_unknown_op_leaves_the_shape_unknown() -> None:
    inferred = infer_shapes(contrib("y = com.microsoft.Rfft(x)", "float[N,8] x"))
    assert not inferred.graph.output[0].type.tensor_type.HasField("shape")


def test_a_model_of_contrib_ops_alone() -> None:
    """It imports no standard opset; what pycam adds needs one."""
    header = '<ir_version: 10, opset_import: ["com.microsoft" : 1]>'
    text = "f (float[2,3] x) => (float[2,3] y) { y = com.microsoft.Gelu(x) }"
    differentiated = vjp(onnx.parser.parse_model(header + text), ["x"])
    assert {o.domain for o in differentiated.opset_import} == {"", "com.microsoft"}
    session = ort.InferenceSession(differentiated.SerializeToString(), providers=["CPUExecutionProvider"])
    zero = np.zeros((2, 3), np.float32)
    assert session.run(["x.gradient"], {"x": zero, "y.cotangent": zero + 1})[0].tolist() == [[0.5] * 3] * 2
