"""Gradients of the convolutions, against ones written as loops (onnx.reference has no grouped ConvTranspose)."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pycam.errors import BatchAxisError, UnsupportedOpError
from pycam.gradient import vjp


def _spread(kernel, strides, dilations, pads, auto_pad, size):
    """Begin and end pads per axis, as the specification has them."""
    rank = len(kernel)
    if auto_pad == "VALID":
        return [(0, 0)] * rank
    if auto_pad in (None, "NOTSET"):
        return [(pads[j], pads[rank + j]) for j in range(rank)]
    result = []
    for k, s, d, i in zip(kernel, strides, dilations, size, strict=True):
        total = max((-(-i // s) - 1) * s + d * (k - 1) + 1 - i, 0)
        result.append(
            (total // 2, total - total // 2) if auto_pad == "SAME_UPPER" else (total - total // 2, total // 2)
        )
    return result


def conv(x, w, b=None, auto_pad=None, dilations=None, group=1, kernel_shape=None, pads=None, strides=None):
    rank, kernel = x.ndim - 2, w.shape[2:]
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    around = _spread(kernel, strides, dilations, pads or [0] * 2 * rank, auto_pad, x.shape[2:])
    x = np.pad(x, [(0, 0), (0, 0), *around])
    count = [(x.shape[2 + j] - dilations[j] * (kernel[j] - 1) - 1) // strides[j] + 1 for j in range(rank)]
    m, c = w.shape[:2]
    y = np.zeros((x.shape[0], m, *count))
    for t in itertools.product(*map(range, kernel)):
        cut = tuple(
            slice(t[j] * dilations[j], t[j] * dilations[j] + (count[j] - 1) * strides[j] + 1, strides[j])
            for j in range(rank)
        )
        at = x[(slice(None), slice(None), *cut)].reshape(x.shape[0], group, c, *count)
        weight = w[(..., *t)].reshape(group, m // group, c)
        y += np.einsum("ngc...,gmc->ngm...", at, weight).reshape(y.shape)
    return y if b is None else y + b.reshape(-1, *[1] * rank)


def conv_transpose(x, w, b=None, auto_pad=None, dilations=None, group=1, kernel_shape=None, output_padding=None,
                   output_shape=None, pads=None, strides=None):  # fmt: skip
    rank, kernel = x.ndim - 2, w.shape[2:]
    strides, dilations, extra = strides or [1] * rank, dilations or [1] * rank, output_padding or [0] * rank
    pads = list(pads or [0] * 2 * rank)
    size = x.shape[2:]
    full = [(size[j] - 1) * strides[j] + dilations[j] * (kernel[j] - 1) + 1 + extra[j] for j in range(rank)]
    if output_shape or auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        for j, y in enumerate(output_shape or [i * s for i, s in zip(size, strides, strict=True)]):
            total = full[j] - y
            pads[j] = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
            pads[rank + j] = total - pads[j]
    c, m = w.shape[:2]
    y = np.zeros((x.shape[0], group * m, *full))
    for t in itertools.product(*map(range, kernel)):
        cut = tuple(
            slice(t[j] * dilations[j], t[j] * dilations[j] + (size[j] - 1) * strides[j] + 1, strides[j])
            for j in range(rank)
        )
        product = np.einsum(
            "ngc...,gcm->ngm...",
            x.reshape(x.shape[0], group, c // group, *size),
            w[(..., *t)].reshape(group, c // group, m),
        )
        y[(slice(None), slice(None), *cut)] += product.reshape(x.shape[0], group * m, *size)
    y = y[(..., *(slice(pads[j], full[j] - pads[rank + j]) for j in range(rank)))]
    return y if b is None else y + b.reshape(-1, *[1] * rank)


OPS = {"Conv": conv, "ConvTranspose": conv_transpose}

CONVS = [
    # attributes, x, w
    ("", (2, 3, 5, 6), (4, 3, 3, 3)),
    ("pads=[1,1,1,1]", (2, 3, 4, 5), (2, 3, 3, 3)),
    ("pads=[0,2,1,0]", (2, 2, 4, 5), (3, 2, 3, 3)),
    ("pads=[0,1]", (2, 2, 6), (3, 2, 3)),
    ("pads=[4,4,4,4]", (2, 2, 3, 3), (3, 2, 3, 3)),  # pads beyond the kernel's reach
    ("dilations=[2,3], pads=[2,3,1,2]", (2, 2, 5, 7), (3, 2, 3, 2)),
    ("group=2, pads=[1,1,1,1]", (2, 4, 4, 4), (6, 2, 3, 3)),
    ("group=4, pads=[1,1,1,1]", (2, 4, 4, 4), (4, 1, 3, 3)),
    ("group=3", (2, 3, 4, 4), (6, 1, 2, 2)),  # depthwise with a multiplier
    ("", (2, 3, 4, 4), (4, 3, 1, 1)),
    ("", (2, 2, 3, 4, 3), (3, 2, 2, 3, 2)),
    ("strides=[2,2], pads=[1,1,1,1]", (2, 2, 6, 6), (3, 2, 3, 3)),  # one row and column not reached
    ("strides=[2,2], pads=[1,1,1,1]", (2, 2, 5, 7), (3, 2, 3, 3)),
    ("strides=[2,2]", (2, 2, 6, 5), (3, 2, 1, 1)),
    ("strides=[3,2], pads=[1,0,0,1]", (2, 2, 9, 7), (3, 2, 2, 3)),
    ("strides=[4,5]", (2, 2, 7, 9), (3, 2, 2, 1)),  # strides above the kernel
    ("strides=[2,3], dilations=[3,2], pads=[2,1,1,2]", (2, 2, 9, 9), (3, 2, 2, 3)),
    ("strides=[2,2], group=2, pads=[1,1,1,1]", (2, 4, 6, 5), (4, 2, 3, 3)),
    ("strides=[2,2], group=3, pads=[2,2,2,2]", (2, 3, 6, 5), (3, 1, 5, 5)),
    ("strides=[2], pads=[2,0]", (2, 2, 8), (3, 2, 4)),
    ("strides=[2,1,3]", (1, 2, 4, 3, 5), (2, 2, 2, 2, 2)),
    ("strides=[2,1], pads=[5,1,5,1]", (1, 2, 4, 3), (2, 2, 2, 2)),
    ('auto_pad="VALID", strides=[2,2]', (2, 2, 6, 5), (3, 2, 3, 3)),
    ('auto_pad="SAME_UPPER"', (2, 2, 4, 5), (3, 2, 2, 4)),
    ('auto_pad="SAME_LOWER"', (2, 2, 4, 5), (3, 2, 2, 4)),
    ('auto_pad="SAME_UPPER", strides=[2,2]', (2, 2, 6, 5), (3, 2, 3, 4)),
    ('auto_pad="SAME_LOWER", strides=[2,3]', (2, 2, 6, 7), (3, 2, 3, 4)),
    ('auto_pad="SAME_UPPER", strides=[3,2]', (2, 2, 7, 5), (3, 2, 1, 2)),
]  # fmt: skip


@pytest.mark.parametrize(("attributes", "x", "w"), CONVS)
def test_conv(check, attributes, x, w):
    call = f"Conv<{attributes}>" if attributes else "Conv"
    check(f"y = {call}(x, w)", {"x": x}, weights={"w": w}, ops=OPS, batched=True)


@pytest.mark.parametrize(("attributes", "x", "w"), [CONVS[1], CONVS[6], CONVS[12]])
def test_conv_with_bias_and_weights_that_are_no_constants(check, attributes, x, w):
    weight = np.random.default_rng(1).normal(size=w)
    body = f"v = Mul(w, s) y = Conv<{attributes}>(x, v, b)"
    check(
        body,
        {"x": x, "s": np.array(2.0), "b": (w[0],)},
        weights={"w": weight},
        wrt=["x", "b"],
        ops=OPS,
        forms=["static", "batch"],
    )


TRANSPOSED = [
    ("", (2, 3, 3, 4), (3, 2, 3, 2)),
    ("strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]", (2, 3, 3, 4), (3, 2, 3, 3)),
    ("strides=[2,3], pads=[0,1,2,0], dilations=[2,1]", (2, 3, 4, 3), (3, 2, 3, 4)),
    ("strides=[3,2], dilations=[1,3], output_padding=[2,1]", (2, 3, 3, 4), (3, 2, 2, 2)),
    ("strides=[2,2], group=2", (2, 4, 3, 3), (4, 3, 2, 2)),
    ("group=3, pads=[1,1,1,1]", (2, 3, 4, 4), (3, 1, 3, 3)),
    ("strides=[2], pads=[1,0]", (2, 2, 4), (2, 3, 4)),
    ("strides=[2,2,1]", (1, 2, 2, 3, 2), (2, 2, 2, 1, 2)),
    ('auto_pad="VALID", strides=[2,2]', (2, 2, 3, 3), (2, 2, 3, 3)),
    ('auto_pad="SAME_UPPER", strides=[2,2]', (2, 2, 3, 4), (2, 2, 3, 4)),
    ('auto_pad="SAME_LOWER", strides=[2,2]', (2, 2, 3, 4), (2, 2, 3, 4)),
]  # fmt: skip


@pytest.mark.parametrize(("attributes", "x", "w"), TRANSPOSED)
def test_conv_transpose(check, attributes, x, w):
    call = f"ConvTranspose<{attributes}>" if attributes else "ConvTranspose"
    check(f"y = {call}(x, w)", {"x": x}, weights={"w": w}, ops=OPS, batched=True)


@pytest.mark.parametrize("upper", ["", ', auto_pad="SAME_UPPER"'])
def test_conv_transpose_to_a_given_shape(check, upper):
    body = f"y = ConvTranspose<strides=[2,2], output_shape=[6,8]{upper}>(x, w)"
    check(body, {"x": (2, 2, 3, 4)}, weights={"w": (2, 3, 3, 4)}, ops=OPS, forms=["static", "batch"])
    with pytest.raises(UnsupportedOpError, match="output_shape"):
        check(body, {"x": (2, 2, 3, 4)}, weights={"w": (2, 3, 3, 4)}, ops=OPS, forms=["dynamic"])


def test_output_padding_beyond_the_stride(check):
    """The specification allows it up to the dilation; onnxruntime refuses to run the forward op."""
    body = "y = ConvTranspose<strides=[1,2], dilations=[3,3], output_padding=[2,1]>(x, w)"
    check(body, {"x": (2, 3, 3, 4)}, weights={"w": (3, 2, 2, 2)}, ops=OPS, runtime=False)


def test_bias_of_conv_transpose(check):
    check("y = ConvTranspose(x, w, b)", {"x": (2, 3, 3, 4), "b": (2,)}, weights={"w": (3, 2, 2, 2)}, ops=OPS)


@pytest.mark.parametrize(("attributes", "x", "w"), CONVS)
def test_weights(check, attributes, x, w):
    """The gradient for images and weights at once, as second order needs it."""
    call = f"Conv<{attributes}>" if attributes else "Conv"
    check(f"y = {call}(x, w)", {"x": x, "w": w}, ops=OPS, forms=("static",))
    kernel = f"kernel_shape={list(w[2:])}" + (f", {attributes}" if attributes else "")
    check(f"y = Conv<{kernel}>(x, w)", {"x": x, "w": w}, wrt=["w"], ops=OPS, forms=("dynamic",))


@pytest.mark.parametrize(("attributes", "x", "w"), TRANSPOSED)
def test_weights_of_conv_transpose(check, attributes, x, w):
    call = f"ConvTranspose<{attributes}>" if attributes else "ConvTranspose"
    check(f"y = {call}(x, w)", {"x": x, "w": w}, ops=OPS, forms=("static", "batch"))


def test_weights_have_no_batch_axis(check):
    for op in ("Conv", "ConvTranspose"):
        inputs = {"x": (2, 2, 3, 3), "w": (2, 2, 2, 2)}
        with pytest.raises(BatchAxisError, match="without a batch axis"):
            check(f"y = {op}(x, w)", inputs, wrt=["w"], ops=OPS, forms=("static",), second=False, batched=True)


def test_convolution_with_weights_made_from_the_image(check):
    body = "k = Constant<value_ints=[2,2]>() s = Constant<value_ints=[0,1]>() a = Constant<value_ints=[2,3]>() "
    body += "v = Slice(x, s, k, a) w = Tanh(v) y = Conv<pads=[1,1,0,0]>(x, w)"
    check(body, {"x": (2, 2, 3, 4)}, ops=OPS, forms=("static", "batch"))


FOLDED = [
    # attributes, input, image, block
    ("", (2, 8, 6), [3, 4], [2, 2]),
    ("strides=[2,1], pads=[1,0,1,1], dilations=[1,2]", (1, 4, 6), [3, 4], [2, 2]),
    ("strides=[2]", (2, 4, 3), [7], [2]),  # the last position is in no block
    ("", (1, 8, 2), [2, 3, 2], [2, 2, 2]),
]  # fmt: skip


def col2im(x, image, block, dilations=None, pads=None, strides=None):
    """As a sum of shifted images; onnx.reference's is for images only."""
    rank = len(block)
    strides, dilations, pads = strides or [1] * rank, dilations or [1] * rank, pads or [0] * 2 * rank
    full = [image[j] + pads[j] + pads[rank + j] for j in range(rank)]
    count = [(full[j] - dilations[j] * (block[j] - 1) - 1) // strides[j] + 1 for j in range(rank)]
    x = x.reshape(x.shape[0], -1, *block, *count)
    y = np.zeros((*x.shape[:2], *full))
    for t in itertools.product(*map(range, block)):
        cut = [slice(t[j] * dilations[j], t[j] * dilations[j] + (count[j] - 1) * strides[j] + 1, strides[j])
               for j in range(rank)]  # fmt: skip
        y[(slice(None), slice(None), *cut)] += x[(slice(None), slice(None), *t)]
    return y[(..., *(slice(pads[j], full[j] - pads[rank + j]) for j in range(rank)))]


@pytest.mark.parametrize(("attributes", "x", "image", "block"), FOLDED)
def test_col2im(check, attributes, x, image, block):
    call = f"Col2Im<{attributes}>" if attributes else "Col2Im"
    weights = {"s": np.array(image), "k": np.array(block)}
    folds = {**OPS, "Col2Im": col2im}
    check(f"y = {call}(x, s, k)", {"x": x}, weights=weights, ops=folds, batched=True, runtime=len(image) == 2)
    given = {"x": x, "s": np.array(image)}
    check(f"y = {call}(x, s, k)", given, weights={"k": np.array(block)}, ops=folds, forms=("dynamic",), runtime=False)


def test_col2im_of_unknown_blocks_is_refused(check):
    inputs = {"x": (2, 8, 6), "s": np.array([3, 4]), "k": np.array([2, 2])}
    with pytest.raises(UnsupportedOpError, match="shape of its blocks"):
        check.gradient("y = Col2Im(x, s, k)", inputs, wrt=["x"], ops={"Col2Im": col2im})


def test_stride_one_is_a_convolution_and_else_a_transposed_one(check):
    def emitted(attributes, pads):
        model = check.model(
            f"y = Conv<{attributes} pads=[{pads},{pads}]>(x, w)", {"x": (1, 2, 8)}, weights={"w": (2, 2, 3)}
        )
        return [node.op_type for node in vjp(model, ["x"]).graph.node]

    assert emitted("", 1)[:2] == ["Conv", "Conv"]
    assert emitted("", 3)[:2] == ["Conv", "ConvTranspose"]
    assert emitted("strides=[2],", 1)[:2] == ["Conv", "ConvTranspose"]
