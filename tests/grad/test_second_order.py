"""Hessian-vector products of whole networks: `vjp` of `vjp`, against central differences of the gradient.

That each rule's own nodes have rules is held to in `conftest.py` (every case is differentiated twice) and in
`test_autograd.py` (every op that is emitted anywhere stands in the table).
"""

from __future__ import annotations

import numpy as np
import pytest

from pycam.gradient import vjp

CNN = """
    c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)
    n1 = BatchNormalization(c1, scale, shift, mean, variance)
    s1 = Sigmoid(n1) a1 = Mul(n1, s1)
    p1 = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(a1)
    c2 = Conv<strides=[2,2], pads=[1,1,1,1]>(p1, w2)
    a2 = Elu(c2)
    c3 = Conv(p1, w3) q = AveragePool<kernel_shape=[2,2], strides=[2,2]>(c3) r = Add(a2, q)
    g = GlobalAveragePool(r) f = Flatten(g)
    logits = Gemm<transB=1>(f, w4, b4)
    y = LogSoftmax<axis=1>(logits)
"""
CNN_WEIGHTS = {
    "w1": (4, 3, 3, 3), "b1": (4,), "scale": (4,), "shift": (4,), "mean": (4,),
    "variance": np.array([0.5, 1.0, 1.5, 2.0]),
    "w2": (6, 4, 3, 3), "w3": (6, 4, 1, 1), "w4": (5, 6), "b4": (5,),
}  # fmt: skip

TRANSFORMER = """
    e = MatMul(x, embed) t = Add(e, position)
    n1 = LayerNormalization(t, scale1, shift1)
    qkv = MatMul(n1, w_qkv)
    heads = Reshape(qkv, split)
    h = Transpose<perm=[2,0,3,1,4]>(heads)
    q0, k0, v0 = Split<axis=0, num_outputs=3>(h)
    first = Constant<value_ints=[0]>()
    q = Squeeze(q0, first) k = Squeeze(k0, first) v = Squeeze(v0, first)
    kt = Transpose<perm=[0,1,3,2]>(k)
    scores = MatMul(q, kt) scaled = Mul(scores, factor) p = Softmax<axis=-1>(scaled)
    o = MatMul(p, v) ot = Transpose<perm=[0,2,1,3]>(o) joined = Reshape(ot, join) projected = MatMul(joined, w_o)
    r = Add(t, projected)
    n2 = LayerNormalization(r, scale2, shift2)
    m = MatMul(n2, w_up) a = Gelu(m) d = MatMul(a, w_down) z = Add(r, d)
    middle = Constant<value_ints=[1]>()
    pooled = ReduceMean<keepdims=0>(z, middle)
    y = MatMul(pooled, head)
"""
TRANSFORMER_WEIGHTS = {
    "embed": (3, 4), "position": (5, 4), "scale1": (4,), "shift1": (4,), "w_qkv": (4, 12), "w_o": (4, 4),
    "split": np.array([0, 5, 3, 2, 2]), "join": np.array([0, 5, 4]), "factor": np.array(0.7), "scale2": (4,),
    "shift2": (4,), "w_up": (4, 8), "w_down": (8, 4), "head": (4, 3),
}  # fmt: skip

NETS = {
    "cnn": (CNN, CNN_WEIGHTS, (2, 3, 8, 8), (2, 5)),
    "transformer": (TRANSFORMER, TRANSFORMER_WEIGHTS, (2, 5, 3), (2, 3)),
}


@pytest.mark.parametrize("lower", ["fast", "portable"])
@pytest.mark.parametrize("form", ["static", "batch"])
@pytest.mark.parametrize("net", NETS)
def test_hessian_vector_product(check, net, form, lower):
    """`H·v = d(g·v)/dx`, symmetric: the gradient of `g·v` is how the gradient changes along `v`."""
    body, weights, shape, classes = NETS[net]
    model = check.model(body, {"x": shape}, weights=weights, form=form)
    first = vjp(model, ["x"], lower=lower)
    second = vjp(first, ["x"], "x.gradient", lower=lower)
    rng = np.random.default_rng(5)
    x, v, cotangent = rng.normal(size=shape), rng.normal(size=shape), np.eye(*classes)
    gradient, product = check.evaluator(first), check.evaluator(second)
    step = 1e-5
    ahead, behind = (gradient({"x": x + s * step * v, "y.cotangent": cotangent})[-1] for s in (1, -1))
    want = (ahead - behind) / (2 * step)
    got = product({"x": x, "y.cotangent": cotangent, "x.gradient.cotangent": v})[-1]
    assert np.abs(want).max() > 1e-3, "a net without curvature tests nothing"
    np.testing.assert_allclose(got, want, atol=1e-6 * np.abs(want).max())
