"""Gradients of the pools, against pools written as loops: onnx.reference's have bugs (ceil_mode, dilated averages)."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest

from pycam.grad import differentiate
from pycam.gradient import vjp
from pycam.graph.builder import Builder


def _windows(x, kernel, strides, dilations, pads, auto_pad, ceil_mode, fill):
    """(N, C, O…, k…) of a padded x, the mask of positions inside of x, and that of those inside of x and its pads."""
    rank = len(kernel)
    strides, dilations, pads = strides or [1] * rank, dilations or [1] * rank, pads or [0] * 2 * rank
    result, real, padded = x, np.ones(x.shape), np.ones(x.shape)
    for j, (k, s, d) in enumerate(zip(kernel, strides, dilations, strict=True)):
        size, begin, end = x.shape[2 + j], pads[j], pads[rank + j]
        if auto_pad == "VALID":
            begin = end = 0
        elif auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            total = max((-(-size // s) - 1) * s + d * (k - 1) + 1 - size, 0)
            begin = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
            end = total - begin
        room = size + begin + end - d * (k - 1) - 1
        count = (-(-room // s) if ceil_mode else room // s) + 1
        if ceil_mode and (count - 1) * s >= size + begin:
            count -= 1
        at = np.arange(count)[:, None] * s - begin + np.arange(k) * d
        result, real, padded = (
            np.moveaxis(np.take(v, np.clip(at, 0, size - 1), axis=2 + j), 3 + j, -1) for v in (result, real, padded)
        )
        shape = [1, 1, *[1] * j, count, *[1] * (rank - 1 - j), *[1] * j, k]
        column = at.reshape(shape)
        inside = (column >= 0) & (column < size)
        result = np.where(inside, result, fill)
        real = real * inside
        padded = padded * ((column >= -begin) & (column < size + end))
    return result, real, padded


def max_pool(
    x, auto_pad=None, ceil_mode=0, dilations=None, kernel_shape=None, pads=None, storage_order=0, strides=None
):
    at, _, _ = _windows(x, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode, -np.inf)
    return at.max(axis=tuple(range(-len(kernel_shape), 0)))


def average_pool(
    x, auto_pad=None, ceil_mode=0, count_include_pad=0, dilations=None, kernel_shape=None, pads=None, strides=None
):
    at, real, padded = _windows(x, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode, 0.0)
    axes = tuple(range(-len(kernel_shape), 0))
    return at.sum(axis=axes) / (padded if count_include_pad else real).sum(axis=axes)


def lp_pool(x, auto_pad=None, ceil_mode=0, dilations=None, kernel_shape=None, p=2, pads=None, strides=None):
    at, _, _ = _windows(np.abs(x) ** p, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode, 0.0)
    return at.sum(axis=tuple(range(-len(kernel_shape), 0))) ** (1 / p)


OPS = {"MaxPool": max_pool, "AveragePool": average_pool, "LpPool": lp_pool}

POOLS = [
    ("kernel_shape=[2,2], strides=[2,2]", (2, 2, 4, 6)),
    ("kernel_shape=[2,2], strides=[2,2]", (2, 2, 5, 7)),  # the last row and column are not covered
    ("kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]", (2, 2, 6, 7)),
    ("kernel_shape=[3,3], pads=[1,1,1,1]", (2, 2, 4, 5)),
    ("kernel_shape=[3,2], pads=[0,1,2,0]", (2, 2, 4, 5)),
    ("kernel_shape=[2,3], strides=[3,1], pads=[1,0,0,1]", (2, 2, 8, 5)),
    ("kernel_shape=[2,1], strides=[3,2]", (2, 2, 9, 6)),  # strides above the kernel
    ("kernel_shape=[3,3], strides=[2,2], ceil_mode=1", (2, 2, 6, 7)),
    ("kernel_shape=[3,2], strides=[2,2], pads=[1,1,0,1], ceil_mode=1", (2, 1, 5, 6)),
    ("kernel_shape=[2,2], strides=[2,2], ceil_mode=1", (2, 1, 5, 6)),
    ("kernel_shape=[3,2], dilations=[2,3], pads=[1,1,2,1]", (2, 1, 6, 6)),
    ("kernel_shape=[3,2], dilations=[2,3], strides=[2,3]", (2, 1, 8, 9)),
    ("kernel_shape=[3], strides=[2], pads=[1,1]", (2, 2, 7)),
    ("kernel_shape=[2], strides=[2], ceil_mode=1", (2, 2, 7)),
    ("kernel_shape=[2,3,2], strides=[2,2,1], pads=[0,1,0,0,1,0]", (1, 2, 4, 4, 3)),
    ("kernel_shape=[1,2,2], strides=[1,2,2]", (1, 2, 2, 4, 5)),
    ("kernel_shape=[3,4]", (2, 2, 3, 4)),  # the whole image
    ("kernel_shape=[3,2], strides=[2,2], auto_pad=\"SAME_UPPER\"", (2, 1, 6, 5)),
    ("kernel_shape=[3,4], strides=[2,3], auto_pad=\"SAME_LOWER\"", (2, 1, 6, 7)),
    ("kernel_shape=[2,4], auto_pad=\"SAME_LOWER\"", (2, 1, 4, 5)),
    ("kernel_shape=[3,2], strides=[2,2], auto_pad=\"VALID\"", (2, 1, 6, 5)),
]  # fmt: skip


@pytest.mark.parametrize(("attributes", "shape"), POOLS)
def test_max_pool(check, attributes, shape):
    check(f"y = MaxPool<{attributes}>(x)", {"x": shape}, ops=OPS, batched=True)


@pytest.mark.parametrize("padded", [0, 1])
@pytest.mark.parametrize(("attributes", "shape"), POOLS)
def test_average_pool(check, attributes, shape, padded):
    check(f"y = AveragePool<{attributes}, count_include_pad={padded}>(x)", {"x": shape}, ops=OPS, batched=True)


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_no_window_begins_in_the_end_pad(check, op):
    """PyTorch and onnxruntime leave such a window out; onnx's shape inference counts it before opset 22."""
    body = f"y = {op}<kernel_shape=[2,2], strides=[3,3], pads=[1,1,1,1], ceil_mode=1>(x)"
    check(body, {"x": (2, 1, 6, 7)}, ops=OPS, forms=["dynamic"])
    check(body, {"x": (2, 1, 6, 7)}, ops=OPS, opset=22)


@pytest.mark.parametrize("p", [1, 2, 3])
def test_lp_pool(check, p):
    check(
        f"y = LpPool<kernel_shape=[3,2], strides=[2,2], pads=[1,0,1,0], p={p}>(x)",
        {"x": (2, 2, 5, 6)},
        ops=OPS,
        batched=True,
    )
    check(f"y = GlobalLpPool<p={p}>(x)", {"x": (2, 2, 3, 4)}, ops={"GlobalLpPool": _global_lp}, batched=True)


def _global_lp(x, p=2):
    return (np.abs(x) ** p).sum(axis=(2, 3), keepdims=True) ** (1 / p)


def _global_max(x):
    """onnx.reference's takes the wrong axes unless there are two of them."""
    return x.max(axis=tuple(range(2, x.ndim)), keepdims=True)


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 4, 5), (2, 2, 2, 3, 2)])
@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool"])
def test_global_pools(check, op, shape):
    check(f"y = {op}(x)", {"x": shape}, ops={"GlobalMaxPool": _global_max}, batched=True)


def test_lp_pool_of_zeros_has_no_gradient(check):
    dx = check.gradient("y = LpPool<kernel_shape=[2], strides=[2]>(x)", {"x": np.array([[[0.0, 0, 3, 4]]])}, ops=OPS)
    np.testing.assert_allclose(dx, [[[0, 0, 0.6, 0.8]]], rtol=1e-6)


TIES = np.array([
    [1, 1, 0, 2],
    [1, 0, 2, 2],
    [3, 3, 3, 0],
    [0, 3, 3, 3.0],
])  # fmt: skip


def test_ties_go_to_the_first_maximum_in_row_major_order(check):
    """What torch.nn.functional.max_pool2d(TIES, 3, stride=1), (…, 2, stride=2) and adaptive_max_pool2d(…, 1) give."""

    def gradient(body, form):
        return check.gradient(body, {"x": TIES[None, None]}, np.arange(1.0, 5).reshape(1, 1, 2, 2), form=form)[0, 0]

    for form in check.forms:
        dx = gradient("y = MaxPool<kernel_shape=[3,3]>(x)", form)
        np.testing.assert_array_equal(dx, [[0, 0, 0, 0], [0, 0, 0, 0], [4, 6, 0, 0], [0, 0, 0, 0]])
        dx = gradient("y = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x)", form)
        np.testing.assert_array_equal(dx, [[1, 0, 0, 2], [0, 0, 0, 0], [3, 0, 4, 0], [0, 0, 0, 0]])
        dx = check.gradient("y = GlobalMaxPool(x)", {"x": TIES[None, None]}, form=form)[0, 0]
        np.testing.assert_array_equal(dx, np.eye(16)[8].reshape(4, 4))


def test_ties_at_the_border_and_between_rows(check):
    """A tie in the first row at a late column comes before one in the second row at an early column; pads never win."""
    x = np.array([[0, 0, 5.0], [5, 0, 0], [-9, -9, -9]])[None, None]
    dx = check.gradient("y = MaxPool<kernel_shape=[3,3], strides=[3,3]>(x)", {"x": x})[0, 0]
    np.testing.assert_array_equal(dx, np.eye(9)[2].reshape(3, 3))
    dx = check.gradient(
        "y = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)", {"x": -np.ones((1, 1, 3, 3))}, ops=OPS
    )
    np.testing.assert_array_equal(dx[0, 0], [[1, 1, 0], [1, 1, 0], [0, 0, 0]])


def test_only_portable_ops(check):
    model = check.model("y = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)", {"x": (1, 2, 6, 6)})
    nodes = vjp(model, ["x"]).graph.node
    assert not {"MaxUnpool", "ScatterElements", "ScatterND"} & {node.op_type for node in nodes}
    assert all(len(node.output) == 1 for node in nodes)


def test_a_mean_over_the_gradient_of_a_global_average_costs_nothing(check):
    """Grad-CAM's weights behind a global average: `mean(expand(dy/HW)) = dy/HW`."""
    for body in ("y = GlobalAveragePool(x)", "y = AveragePool<kernel_shape=[3,4]>(x)"):
        graph = ir.from_proto(check.model(body, {"x": (2, 5, 3, 4)}, form="batch")).graph
        g, y = Builder(graph), graph.outputs[0]
        seed = ir.Value(name="seed", shape=y.shape, type=y.type)
        (dx,), _ = differentiate(g, {y: seed}, [graph.inputs[0]])
        assert g.ReduceMean(dx, [-2, -1], keepdims=1).producer().op_type == "Mul"


def test_windows_reference():
    """The loops above agree with a hand-made case."""
    x = np.arange(5.0).reshape(1, 1, 5)
    assert list(max_pool(x, kernel_shape=[2], strides=[2], ceil_mode=1)[0, 0]) == [1, 3, 4]
    assert list(average_pool(x, kernel_shape=[3], strides=[2], pads=[1, 1])[0, 0]) == [0.5, 2, 3.5]
    for shape in itertools.product([2, 3], repeat=2):
        y = average_pool(np.ones((1, 1, 6, 6)), kernel_shape=list(shape), pads=[1, 1, 1, 1])
        assert (y == 1).all()
