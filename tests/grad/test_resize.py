"""Gradients of Resize in all its modes."""

from __future__ import annotations

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

from pycam.errors import UnsupportedOpError
from pycam.gradient import vjp


def scaled(scales, attributes="", axes=None):
    """A Resize with constant scales."""
    listed = ", ".join(([f"axes={axes}"] if axes else []) + ([attributes] if attributes else []))
    return f"s = Constant<value_floats={scales}>() y = Resize{f'<{listed}>' if listed else ''}(x, , s)"


def sized(sizes, attributes="", axes=None):
    return scaled(sizes, attributes, axes).replace("value_floats", "value_ints").replace("(x, , s)", "(x, , , s)")


NEAREST = [
    (scaled([1.0, 1.0, 2.0, 2.0]), (2, 2, 2, 3)),
    (scaled([1.0, 1.0, 2.0, 3.0], 'coordinate_transformation_mode="asymmetric", nearest_mode="floor"'), (2, 2, 2, 3)),
    (scaled([1.0, 1.0, 3.0, 1.0], 'coordinate_transformation_mode="asymmetric"'), (2, 2, 3, 2)),
    (scaled([1.0, 1.0, 1.5, 0.5]), (2, 2, 4, 4)),
    (scaled([1.0, 1.0, 2.0, 2.0], 'nearest_mode="ceil"'), (2, 2, 2, 3)),
    (scaled([1.0, 1.0, 2.0, 2.0], 'coordinate_transformation_mode="align_corners"'), (2, 2, 3, 3)),
    (scaled([1.0, 1.0, 3.0]), (2, 2, 3)),
    (scaled([1.0, 1.0, 2.0, 2.0, 2.0]), (1, 2, 2, 2, 2)),
    (sized([2, 2, 4, 6]), (2, 2, 2, 3)),
    (sized([5, 3], axes=[2, 3]), (2, 2, 3, 4)),
    (scaled([2.0], axes=[3]), (2, 2, 3, 4)),
]  # fmt: skip

MODES = ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel", "half_pixel_symmetric")
LINEAR = [
    *((scaled([1.0, 1.0, 2.0, 0.5], f'mode="linear", coordinate_transformation_mode="{mode}"'), (2, 2, 4, 4))
      for mode in MODES),
    # align_corners with sizes that scales do not reach exactly: onnx.reference does not round them, onnxruntime does
    *((scaled([1.0, 1.0, 1.7, 0.6], f'mode="linear", coordinate_transformation_mode="{mode}"'), (2, 2, 3, 4))
      for mode in MODES if mode != "align_corners"),
    (sized([2, 2, 7, 2], 'mode="linear"'), (2, 2, 3, 4)),
    (sized([2, 2, 1, 1], 'mode="linear", coordinate_transformation_mode="pytorch_half_pixel"'), (2, 2, 3, 4)),
    (sized([6, 7], 'mode="linear"', axes=[2, 3]), (2, 2, 3, 4)),
    (scaled([2.0, 1.0], 'mode="linear"', axes=[3, 2]), (2, 2, 3, 4)),
    (scaled([1.0, 1.0, 2.0], 'mode="linear"'), (2, 2, 3)),
    (scaled([1.0, 1.0, 2.0, 2.0, 1.5], 'mode="linear"'), (1, 1, 2, 2, 2)),
    (sized([2, 2, 2, 3], 'mode="linear", antialias=1'), (2, 2, 5, 6)),
]  # fmt: skip

CUBIC = [
    (scaled([1.0, 1.0, 2.0, 0.5], 'mode="cubic"'), (2, 2, 3, 4)),
    (scaled([1.0, 1.0, 2.0, 2.0], 'mode="cubic", cubic_coeff_a=-0.5'), (2, 2, 3, 4)),
    (scaled([1.0, 1.0, 2.0, 2.0], 'mode="cubic", coordinate_transformation_mode="align_corners"'), (2, 2, 3, 4)),
    (scaled([1.0, 1.0, 1.5, 2.0], 'mode="cubic", exclude_outside=1'), (2, 2, 4, 4)),
    (sized([2, 2, 2, 3], 'mode="cubic", antialias=1'), (2, 2, 5, 6)),
]  # fmt: skip


@pytest.mark.parametrize(("body", "shape"), NEAREST + LINEAR + CUBIC)
def test_resize(check, body, shape):
    """Matrices are float32 in these float64 models too: several scores are compared where that is exact."""
    exact = ("linear" not in body and "cubic" not in body) or ("2.0, 0.5]" in body and "align_corners" not in body)
    check(body, {"x": shape}, batched=exact)


def test_scales_and_sizes_that_the_graph_computes(check):
    scales = "one = Constant<value_floats=[1.0,1.0]>() q = Cast<to=1>(f) s = Concat<axis=0>(one, q) "
    inputs = {"x": (2, 2, 3, 4), "f": np.array([2.0, 1.5])}
    check(scales + 'y = Resize<mode="linear">(x, , s)', inputs, wrt=["x"], forms=["static", "dynamic"])
    sizes = (
        "h = Shape<start=0, end=2>(x) hw = Shape<start=2>(z) s = Concat<axis=0>(h, hw) "
        'y = Resize<mode="linear", coordinate_transformation_mode="align_corners">(x, , , s)'
    )
    check(sizes, {"x": (2, 2, 3, 4), "z": (2, 1, 5, 7)}, wrt=["x"])


CROP = 'coordinate_transformation_mode="tf_crop_and_resize"'


def cropped(region, scales=None, sizes=None, attributes="", axes=None):
    made = f"r = Constant<value_floats={region}>() "
    listed = ", ".join([CROP, *([f"axes={axes}"] if axes else []), *([attributes] if attributes else [])])
    if scales:
        return f"{made} s = Constant<value_floats={scales}>() y = Resize<{listed}>(x, r, s)"
    return f"{made} s = Constant<value_ints={sizes}>() y = Resize<{listed}>(x, r, , s)"


CROPS = [
    cropped([0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0], scales=[1.0, 1.0, 2.0, 0.5]),
    # Of another size on every axis that is cut: where it is the same, onnxruntime does not cut.
    cropped([0.25, 0.5, 0.75, 1.0], sizes=[3, 4], axes=[2, 3], attributes='mode="linear"'),
    cropped([-0.25, 0.5, 0.5, 1.5], sizes=[3, 4], axes=[2, 3], attributes='mode="linear", extrapolation_value=2.0'),
]


@pytest.mark.parametrize("body", CROPS)
def test_crop_and_resize(check, body):
    check(body, {"x": (2, 2, 4, 6)}, rtol=1e-5)


RATIOS = [
    sized([5, 5], f'mode="{mode}", keep_aspect_ratio_policy="{policy}"', axes=[2, 3])
    for mode in ("linear", "nearest")
    for policy in ("not_larger", "not_smaller")
]


@pytest.mark.parametrize("body", RATIOS)
def test_one_scale_for_all_axes(check, body):
    check(body, {"x": (2, 1, 3, 4)}, rtol=1e-5)
    volume = body.replace("[5, 5]", "[4, 3, 5]").replace("axes=[2, 3]", "axes=[2, 3, 4]")
    check(volume, {"x": (1, 1, 2, 3, 4)}, forms=("static",), rtol=1e-5, runtime=False)


def test_one_scale_for_images_and_channels_is_refused(check):
    body = sized([1, 2, 4, 6], 'keep_aspect_ratio_policy="not_smaller"')
    with pytest.raises(UnsupportedOpError, match="keep_aspect_ratio_policy over the batch"):
        check.gradient(body, {"x": (1, 1, 2, 3)}, runtime=False)


def test_upsample_becomes_a_resize(check):
    """Deprecated since opset 10; the version converter knows what took its place."""
    for mode in ("nearest", "linear"):
        body = f's = Constant<value=float[4] {{1.0,1.0,2.0,3.0}}>() y = Upsample<mode="{mode}">(x, s)'
        model = check.model(body, {"x": (1, 2, 2, 3)}, opset=9)
        assert [node.op_type for node in check.graph(model)] == ["Resize"]
        feed = {"x": np.zeros((1, 2, 2, 3)), "y.cotangent": np.ones((1, 2, 4, 9))}
        dx = ReferenceEvaluator(vjp(model, ["x"])).run(["x.gradient"], feed)[0]
        np.testing.assert_allclose(dx.sum(), 72, rtol=1e-6)


def test_nearest_by_whole_numbers_is_an_average_pool(check):
    model = check.model(NEAREST[1][0], {"x": NEAREST[1][1]}, form="dynamic")
    assert [node.op_type for node in vjp(model, ["x"]).graph.node][1:3] == ["AveragePool", "Mul"]
