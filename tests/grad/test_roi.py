"""Gradients of the ops that pool regions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pycam.errors import BatchAxisError, UnsupportedOpError

REGIONS = np.array([[0.3, 1.1, 5.3, 4.2], [1.5, -2, 6.2, 3.4], [2.1, 2.2, 2.5, 3.3], [3.2, 3.1, 9.0, 9.0]])
IMAGES = np.array([0, 1, 1, 0])


def aligned(**attributes):
    listed = ", ".join(f'{k}="{v}"' if isinstance(v, str) else f"{k}={v}" for k, v in attributes.items())
    return f"y = RoiAlign<{listed}>(x, r, b)"


@pytest.mark.parametrize("lower", ["fast", "portable"])
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("mode", ["half_pixel", "output_half_pixel"])
def test_roi_align(check, mode, ratio, lower):
    body = aligned(output_height=2, output_width=3, sampling_ratio=ratio, spatial_scale=0.75,
                   coordinate_transformation_mode=mode)  # fmt: skip
    inputs = {"x": (2, 2, 4, 5), "r": REGIONS, "b": IMAGES}
    # Samples on the border and beyond have kinks, and differences of the regions are taken across some.
    check(body, inputs, wrt=["x"], opset=16, lower=lower)
    inner = {"x": (2, 1, 7, 7), "r": np.array([[1.1, 2.3, 6.2, 5.4], [2.2, 1.3, 4.9, 7.1]]), "b": np.array([1, 0])}
    check(body, inner, wrt=["r"], opset=16, forms=("static", "dynamic"), lower=lower)


def test_one_bin_of_default_attributes(check):
    check("y = RoiAlign(x, r, b)", {"x": (1, 2, 4, 5), "r": REGIONS[:2], "b": np.array([0, 0])}, wrt=["x"], opset=16)


def test_an_empty_region_has_no_samples(check):
    empty = np.array([[2.0, 1.0, 2.0, 3.0]])
    dx = check.gradient(
        "y = RoiAlign(x, r, b)", {"x": (1, 1, 4, 4), "r": empty, "b": np.array([0])}, wrt=["x"], opset=16
    )
    assert not dx.any()


@pytest.mark.parametrize("ratio", [0, 2])
def test_no_region_at_all(check, ratio):
    inputs = {"x": (1, 1, 4, 4), "r": np.zeros((0, 4)), "b": np.zeros(0, np.int64)}
    dx = check.gradient(aligned(sampling_ratio=ratio), inputs, wrt=["x"], opset=16, form="dynamic")
    assert dx.shape == (1, 1, 4, 4)
    assert not dx.any()


def test_a_region_gathers_images(check):
    inputs = {"x": (2, 1, 4, 4), "r": REGIONS, "b": IMAGES}
    with pytest.raises(BatchAxisError, match="Gather"):
        check("y = RoiAlign(x, r, b)", inputs, wrt=["x"], opset=16, forms=("static",), batched=True)


def test_maximum_of_samples_is_refused(check):
    inputs = {"x": (1, 1, 4, 4), "r": REGIONS[:1], "b": IMAGES[:1]}
    with pytest.raises(UnsupportedOpError, match="mode=max"):
        check.gradient(aligned(mode="max"), inputs, wrt=["x"], opset=16)


def max_roi_pool(x, rois, pooled_shape, spatial_scale=1.0):
    """As onnxruntime; onnx.reference has none."""
    (ph, pw), (h, w) = pooled_shape, x.shape[2:]
    y = np.zeros((len(rois), x.shape[1], ph, pw))
    for r, region in enumerate(rois):
        scaled = region[1:] * spatial_scale
        left, top, right, bottom = (int(np.sign(v) * np.floor(abs(v) + 0.5)) for v in scaled)
        bh, bw = max(bottom - top + 1, 1) / ph, max(right - left + 1, 1) / pw
        for p, q in itertools.product(range(ph), range(pw)):
            rows = slice(*np.clip([np.floor(p * bh) + top, np.ceil((p + 1) * bh) + top], 0, h).astype(int))
            columns = slice(*np.clip([np.floor(q * bw) + left, np.ceil((q + 1) * bw) + left], 0, w).astype(int))
            bin_ = x[int(region[0]), :, rows, columns]
            y[r, :, p, q] = bin_.max((1, 2)) if bin_.size else 0
    return y


OPS = {"MaxRoiPool": max_roi_pool}
POOLED = np.array([[0.0, 0, 1, 5, 4], [1, -3, 2, 3, 9], [1, 2, 2, 2, 2], [0, 8, 8, 9, 9]])


def test_max_roi_pool(check):
    for body in (
        "y = MaxRoiPool<pooled_shape=[2,3]>(x, r)",
        "y = MaxRoiPool<pooled_shape=[2,2], spatial_scale=0.5>(x, r)",
    ):
        check(body, {"x": (2, 2, 5, 6), "r": POOLED}, wrt=["x"], ops=OPS)


def test_the_first_of_equal_pixels_is_the_maximum(check):
    x, region = np.array([[0.0, 1, 1], [1, 1, 0]]).reshape(1, 1, 2, 3), np.array([[0.0, 0, 0, 2, 1]])
    dx = check.gradient("y = MaxRoiPool<pooled_shape=[1,1]>(x, r)", {"x": x, "r": region}, wrt=["x"], ops=OPS)
    np.testing.assert_array_equal(dx, [[[[0, 1, 0], [0, 0, 0]]]])
