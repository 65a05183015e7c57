"""Gradients of the ops that sample images between pixels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pycam.errors import BatchAxisError, LayerError, UnsupportedOpError
from pycam.gradient import vjp


def _reflected(c, low, span):
    far = np.abs(c - low)
    flips = np.floor(far / span) if span > 0 else np.zeros_like(c)
    rest = far - flips * span
    return np.where(flips % 2 == 0, rest, span - rest) + low if span > 0 else np.zeros_like(c)


def grid_sample(x, grid, mode="linear", padding_mode="zeros", align_corners=0):
    """As PyTorch and onnxruntime; onnx.reference's has float32 coordinates."""
    rank, sizes = x.ndim - 2, x.shape[2:]

    def padded(c, size):
        if padding_mode == "zeros":
            return c
        if padding_mode == "reflection":
            c = _reflected(c, 0.0, size - 1) if align_corners else _reflected(c, -0.5, size)
        return np.clip(c, 0, size - 1)

    def near(d):
        return ((-0.75 + 2) * d - (-0.75 + 3)) * d * d + 1

    def far(d):
        return -0.75 * (((d - 5) * d + 8) * d - 4)

    taps = []
    for j, size in enumerate(sizes):
        v = grid[..., rank - 1 - j]
        c = (v + 1) / 2 * (size - 1) if align_corners else ((v + 1) * size - 1) / 2
        low = np.floor(c)
        t = c - low
        if mode == "cubic":
            weights = (far(t + 1), near(t), near(1 - t), far(2 - t))
            taps.append([(padded(low + k - 1, size), w) for k, w in enumerate(weights)])
        elif mode == "nearest":
            taps.append([(np.rint(padded(c, size)), np.ones_like(c))])
        else:
            c = padded(c, size)
            taps.append([(np.floor(c), 1 - c + np.floor(c)), (np.floor(c) + 1, c - np.floor(c))])
    y = np.zeros((*x.shape[:2], *grid.shape[1:-1]))
    image = np.arange(x.shape[0]).reshape(-1, *[1] * rank)
    for combination in itertools.product(*taps):
        weight, at = np.ones(grid.shape[:-1]), []
        for (place, w), size in zip(combination, sizes, strict=True):
            weight = weight * w * ((place >= 0) & (place <= size - 1))
            at.append(np.clip(place, 0, size - 1).astype(int))
        y += np.moveaxis(x[(image, slice(None), *at)], -1, 1) * weight[:, None]
    return y


def affine_grid(theta, size, align_corners=0):
    axes = []
    for n in size[2:]:
        at = np.arange(n)
        axes.append(2 * at / (n - 1) - 1 if align_corners else (2 * at + 1) / n - 1)
    base = np.stack([*np.meshgrid(*axes, indexing="ij")[::-1], np.ones(size[2:])], axis=-1)
    return np.einsum("...k,njk->n...j", base, theta)


OPS = {"GridSample": grid_sample, "AffineGrid": affine_grid}

MODES = [
    (mode, padding, corners)
    for mode in ("linear", "nearest", "cubic")
    for padding in ("zeros", "border", "reflection")
    for corners in (0, 1)
]


def sampled(mode, padding, corners):
    return f'y = GridSample<mode="{mode}", padding_mode="{padding}", align_corners={corners}>(x, g)'


def grid(*shape, reach=1.8, seed=3):
    """Coordinates in the image and beyond; on no pixel, where there is a kink."""
    return np.random.default_rng(seed).uniform(-reach, reach, shape)


def wrt(mode):
    return ["x"] if mode == "nearest" else ["x", "g"]


@pytest.mark.parametrize("lower", ["fast", "portable"])
@pytest.mark.parametrize(("mode", "padding", "corners"), MODES)
def test_grid_sample(check, mode, padding, corners, lower):
    inputs = {"x": (2, 2, 3, 4), "g": grid(2, 1, 3, 2)}
    body, forms = sampled(mode, padding, corners), ("static", "dynamic") if corners else ("batch",)
    check(body, inputs, wrt=wrt(mode), ops=OPS, opset=20, batched=True, lower=lower, forms=forms)


@pytest.mark.parametrize("lower", ["fast", "portable"])
@pytest.mark.parametrize(("mode", "padding", "corners"), [m for m in MODES if m[0] != "cubic"])
def test_grid_sample_in_3d(check, mode, padding, corners, lower):
    inputs = {"x": (1, 2, 2, 3, 2), "g": grid(1, 2, 1, 2, 3)}
    body = sampled(mode, padding, corners)
    check(body, inputs, wrt=wrt(mode), ops=OPS, opset=20, forms=("dynamic" if corners else "static",), lower=lower)


def test_cubic_in_3d_is_the_product_of_three_axes(check):
    inputs = {"x": (1, 1, 2, 2, 2), "g": grid(1, 1, 1, 1, 3)}
    check(sampled("cubic", "zeros", 0), inputs, ops=OPS, opset=20, forms=("static",), runtime=False)


def test_one_grid_of_a_single_pixel(check):
    for padding, corners in itertools.product(("zeros", "border", "reflection"), (0, 1)):
        inputs = {"x": (1, 1, 1, 3), "g": grid(1, 1, 2, 2, reach=0.8)}
        check(sampled("linear", padding, corners), inputs, ops=OPS, forms=("static",))


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_the_names_of_opset_16(check, mode):
    new = {"bilinear": "linear", "bicubic": "cubic"}[mode]
    inputs = {"x": (1, 2, 3, 4), "g": grid(1, 2, 3, 2)}
    body = f'y = GridSample<mode="{mode}">(x, g)'
    old = {"GridSample": lambda x, g, **kept: grid_sample(x, g, **{**kept, "mode": new})}
    check(body, inputs, opset=16, ops=old, second=False)  # onnx.reference would take the stand-in for opset 20 as well


def test_at_a_pixel_the_gradient_is_that_of_the_next_one(check):
    x = np.array([1.0, 2, 4, 8]).reshape(1, 1, 1, 4)
    inputs = {"x": x, "g": np.array([[[[-1 / 3, 0.0]]]])}  # pixel 1 with align_corners
    body = sampled("linear", "zeros", 1)
    dx, dg = check.gradient(body, inputs, ops=OPS, runtime=False)  # in float32 it is beside the pixel
    np.testing.assert_allclose(dx, [[[[0, 1, 0, 0]]]], atol=1e-12)
    np.testing.assert_allclose(dg[0, 0, 0, 0], (4 - 2) * 1.5)


def test_no_gradient_beyond_the_border(check):
    """At the border neither, as in PyTorch."""
    inputs = {"x": np.arange(4.0).reshape(1, 1, 1, 4), "g": np.array([[[[-1.0, 0], [1, 0], [-2, 0], [0.5, 0]]]])}
    _, dg = check.gradient(sampled("linear", "border", 1), inputs, ops=OPS)
    np.testing.assert_allclose(dg[0, 0, :, 0], [0, 0, 0, 1.5])


def test_nearest_has_no_gradient_for_the_grid(check):
    model = check.model(sampled("nearest", "zeros", 0), {"x": (1, 1, 3, 3), "g": grid(1, 2, 2, 2)})
    with pytest.raises(LayerError, match="no differentiable path"):
        vjp(model, ["g"])


def test_several_targets_want_a_grid_that_belongs_to_the_images(check):
    with pytest.raises(BatchAxisError, match="same indices"):
        check("y = GridSample(x, g)", {"x": (2, 1, 3, 3)}, weights={"g": grid(2, 2, 2, 2)}, ops=OPS, batched=True)


@pytest.mark.parametrize("corners", [0, 1])
def test_affine_grid(check, corners):
    body = f"y = AffineGrid<align_corners={corners}>(t, s)"
    for theta, size in ((2, 2, 3), [2, 1, 3, 4]), ((1, 3, 4), [1, 1, 2, 3, 2]):
        check(body, {"t": theta}, weights={"s": np.array(size)}, ops=OPS, batched=len(size) == 4, opset=20)
        check(body, {"t": theta, "s": np.array(size)}, ops=OPS, opset=20, forms=("static", "batch"))
    with pytest.raises(UnsupportedOpError, match="for images or for volumes"):
        check.gradient(body, {"t": (1, 2, 3), "s": np.array([1, 1, 2, 3])}, wrt=["t"], form="dynamic", ops=OPS)


def test_affine_grid_of_a_single_pixel(check):
    """Its corner is the middle, as in PyTorch."""
    ones = {"AffineGrid": lambda t, s, align_corners: np.broadcast_to(t[:, None, None, :, 2], (1, 1, 1, 2))}
    body = "y = AffineGrid<align_corners=1>(t, s)"
    size = {"s": np.array([1, 1, 1, 1])}
    for given, weights in ({}, size), (size, {}):
        dt = check.gradient(body, {"t": (1, 2, 3), **given}, weights=weights, ops=ones, runtime=False)
        np.testing.assert_array_equal(dt, [[[0, 0, 1], [0, 0, 1]]])


def test_spatial_transformer(check):
    body = 'h = AffineGrid(t, s) y = GridSample<padding_mode="border">(x, h)'
    inputs = {"x": (2, 2, 3, 4), "t": np.random.default_rng(0).normal(size=(2, 2, 3))}
    check(body, inputs, weights={"s": np.array([2, 2, 3, 3])}, ops=OPS, opset=20, batched=True)


DEFORMED = [
    # attributes, x, w, groups of offsets, windows
    ("", (2, 2, 3, 3), (3, 2, 2, 2), 1, (2, 2)),
    ("pads=[1,0,1,2], strides=[2,1], dilations=[1,2]", (1, 1, 4, 3), (2, 1, 2, 2), 1, (3, 3)),
    ("group=2, offset_group=2", (2, 4, 3, 3), (4, 2, 2, 2), 2, (2, 2)),
    ("offset_group=2", (1, 4, 3, 3), (2, 4, 1, 2), 2, (3, 2)),
]  # fmt: skip


@pytest.mark.parametrize("lower", ["fast", "portable"])
@pytest.mark.parametrize(("attributes", "x", "w", "groups", "out"), DEFORMED)
def test_deform_conv(check, attributes, x, w, groups, out, lower):
    taps = w[2] * w[3]
    call = f"DeformConv<{attributes}>" if attributes else "DeformConv"
    inputs = {
        "x": x,
        "w": w,
        "o": grid(x[0], groups * taps * 2, *out, reach=1.2),
        "b": (w[0],),
        "m": (x[0], groups * taps, *out),
    }
    deformed = {"DeformConv": deform_conv}
    form = "static" if lower == "fast" else "batch"
    check(f"y = {call}(x, w, o, b, m)", inputs, ops=deformed, forms=(form,), lower=lower)
    if lower == "fast":
        images = {k: inputs[k] for k in "xo"}
        check(f"y = {call}(x, w, o)", images, weights={"w": w}, ops=deformed, forms=("batch",), batched=True)


def deform_conv(x, w, offset, b=None, mask=None, dilations=None, group=1, kernel_shape=None, offset_group=1,
                pads=None, strides=None):  # fmt: skip
    strides, dilations, pads = strides or [1, 1], dilations or [1, 1], pads or [0] * 4
    n, c, (kh, kw), (oh, ow) = x.shape[0], x.shape[1], w.shape[2:], offset.shape[2:]
    offset = offset.reshape(n, offset_group, kh, kw, 2, oh, ow)
    mask = np.ones((n, offset_group, kh, kw, oh, ow)) if mask is None else mask.reshape(n, offset_group, kh, kw, oh, ow)
    y, per = np.zeros((n, w.shape[0], oh, ow)), c // offset_group
    each, out = c // group, w.shape[0] // group
    for t, s in itertools.product(range(kh), range(kw)):
        columns = np.zeros((n, c, oh, ow))
        for k in range(offset_group):
            i = np.arange(oh)[:, None] * strides[0] - pads[0] + t * dilations[0] + offset[:, k, t, s, 0]
            j = np.arange(ow) * strides[1] - pads[1] + s * dilations[1] + offset[:, k, t, s, 1]
            at = np.stack([(2 * j + 1) / x.shape[3] - 1, (2 * i + 1) / x.shape[2] - 1], axis=-1)
            mine = slice(k * per, (k + 1) * per)
            columns[:, mine] = grid_sample(x[:, mine], at) * mask[:, k, None, t, s]
        for k in range(group):
            y[:, k * out : (k + 1) * out] += np.einsum(
                "nchw,mc->nmhw", columns[:, k * each : (k + 1) * each], w[k * out : (k + 1) * out, :, t, s]
            )
    return y if b is None else y + b[:, None, None]


def test_deform_conv_over_one_axis_and_three(check):
    for rank in (1, 3):
        x, w, taps = (1, 2, *(3, 2, 3)[:rank]), (2, 2, *(2, 1, 2)[:rank]), (2, 2, 4)[rank - 1]
        out = (2, 2, 2)[:rank]
        inputs = {"x": x, "w": w, "o": grid(1, taps * rank, *out, reach=0.9)}
        model = check.model("y = DeformConv(x, w, o)", inputs)
        zero = {**check.draw(inputs), "o": np.zeros((1, taps * rank, *out))}
        grads = _run(vjp(model, ["x", "w"]), {**zero, "y.cotangent": np.ones((1, 2, *out))})
        plain = _run(vjp(check.model("y = Conv(x, w)", {"x": x, "w": w}), ["x", "w"]),
                     {**{k: zero[k] for k in "xw"}, "y.cotangent": np.ones((1, 2, *out))})  # fmt: skip
        for got, want in zip(grads, plain, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-9)


def _run(model, feed):
    from onnx.reference import ReferenceEvaluator

    known = {"DeformConv", "Conv"}
    model.graph.output.pop(0)
    keep = [node for node in model.graph.node if not (node.op_type in known and node.output[0] == "y")]
    del model.graph.node[:]
    model.graph.node.extend(keep)
    return ReferenceEvaluator(model).run(None, {i.name: feed[i.name] for i in model.graph.input})


def test_refused(check):
    inputs = {"x": (1, 1, 3, 3), "w": (1, 1, 2, 2), "o": (1, 8, 2, 2)}
    with pytest.raises(UnsupportedOpError, match="shape of its weights"):
        check.gradient("y = DeformConv(x, w, o)", inputs, wrt=["x"], form="dynamic", ops={"DeformConv": deform_conv})


def test_portable_sampling_is_made_of_products(check):
    inputs = {"x": (1, 2, 3, 3), "g": grid(1, 2, 2, 2)}
    nodes = vjp(check.model("y = GridSample(x, g)", inputs), ["x", "g"], lower="portable").graph.node
    assert not {node.op_type for node in nodes} & {"GatherND", "GatherElements", "ScatterND", "ScatterElements"}


def test_a_grid_of_another_float(check):
    body = "h = Cast<to=1>(g) y = GridSample(x, h)"
    check(body, {"x": (1, 2, 3, 3), "g": grid(1, 2, 2, 2)}, rtol=1e-2, ops=OPS, second=False, wrt=["x"], opset=20)
