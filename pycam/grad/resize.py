"""The rule of Resize."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pycam.graph.builder import Builder

from .call import Call
from .index import along, length, positions
from .registry import rule, stop
from .windows import join

stop("Resize", 1, 2, 3, why="regions, scales and sizes are fixed")

_COPIED = ("mode", "coordinate_transformation_mode", "nearest_mode", "cubic_coeff_a", "exclude_outside", "antialias")


@rule("Resize")
def resize(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = R·x` along each axis, where R depends on the sizes alone ⇒ `dx = Rᵀ·dy`, one axis after the other.

    R is what the same Resize makes of an identity matrix, whatever its mode.  Nearest upsampling by whole numbers
    repeats positions: there the gradient is a sum over blocks, `s₁s₂…` times an average pool.
    """
    rank, axes = n.rank(), _resized(n)
    blocks = _blocks(n, axes)
    if blocks is not None:
        return g.Mul(g.AveragePool(dy, kernel_shape=blocks, strides=blocks), float(np.prod(blocks)))
    matrix = _matrix_of_one_scale if _keeps_ratio(n) else _matrix
    for axis in reversed(axes):
        dy = along(g, dy, matrix(g, n, dy, axis), axis, rank)
    return dy


def _listed(n: Call) -> list[int]:
    """The axes that scales and sizes speak of."""
    return n.axes(n.attr("axes"))


def _keeps_ratio(n: Call) -> bool:
    return bool(n.attr("keep_aspect_ratio_policy", "stretch") != "stretch") and _scales(n) is None and n.has(3)


def _crops(n: Call) -> bool:
    return bool(n.attr("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize")


def _scales(n: Call) -> NDArray[Any] | None:
    scales = n.const(2)
    return scales if scales is not None and scales.size else None


def _resized(n: Call) -> list[int]:
    """The axes whose size may change.  Of images (rank above 2) the batch axis never does."""
    axes, scales = _listed(n), _scales(n)
    if _crops(n):
        roi = n.const(1)
        if roi is None:
            return [a for a in axes if a >= 2 or n.rank() <= 2]
        whole = [(b, e) == (0, 1) for b, e in zip(roi[: len(axes)], roi[len(axes) :], strict=True)]
        cut = {a for a, w in zip(axes, whole, strict=True) if not w}
    else:
        cut = set()
    if scales is not None:
        return [a for a, s in zip(axes, scales, strict=True) if s != 1 or a in cut]
    dims, out = n.dims(), n.out_dims()
    batched = n.rank() > 2
    return [a for a in axes if a in cut or (not (batched and a == 0) and (dims[a] is None or dims[a] != out[a]))]


def _blocks(n: Call, axes: list[int]) -> list[int] | None:
    """Factors of nearest upsampling where output `o` is input `⌊o/s⌋` on every spatial axis, else None."""
    mode, nearest = n.attr("coordinate_transformation_mode", "half_pixel"), n.attr("nearest_mode", "round_prefer_floor")
    # half_pixel: (o + ½)/s - ½ is less than ½ away from ⌊o/s⌋
    repeats = (mode, nearest) == ("asymmetric", "floor") or (mode == "half_pixel" and nearest.startswith("round_"))
    if n.attr("mode", "nearest") != "nearest" or not repeats or n.rank() < 3 or not axes or min(axes) < 2:
        return None
    listed, scales = _listed(n), _scales(n)
    dims, out = n.dims(), n.out_dims()
    factors = [1] * (n.rank() - 2)
    for axis in axes:
        before, after = dims[axis], out[axis]
        if scales is not None:
            factor = float(scales[listed.index(axis)])
        elif isinstance(before, int) and isinstance(after, int):
            factor = after / before
        else:
            return None
        if factor < 1 or factor != int(factor):
            return None
        factors[axis - 2] = int(factor)
    return factors


def _matrix(g: Builder, n: Call, dy: ir.Value, axis: int) -> ir.Value:
    """R (I, O) of one axis: each unit vector, an image of one column, resized as the input was.

    In float32, which every runtime can resize; it becomes a constant where the sizes are known.
    """
    size = length(n, axis)
    at = positions(g, size)
    same = g.Equal(g.Reshape(at, [-1, 1, 1, 1]), g.Reshape(at, [1, 1, -1, 1]))
    units = g.Cast(same, to=ir.DataType.FLOAT)  # (I, 1, I, 1)
    attributes = {name: n.attr(name) for name in _COPIED}
    roi = _region(g, n, axis) if _crops(n) else None
    if n.has(2) and (n.const(2) is None or _scales(n) is not None):
        j, scales = _listed(n).index(axis), _scales(n)
        one = g.constant(np.ones(1, np.float32))
        scale = g.constant(scales[j : j + 1]) if scales is not None else g.Slice(n.node.inputs[2], [j], [j + 1], [0])
        inputs = [units, roi, g.Concat(one, one, scale, one, axis=0)]
    else:
        out = n.out_dims()[axis]
        shape = join(g, [size, 1, out if isinstance(out, int) else g.Shape(dy, start=axis, end=axis + 1), 1])
        inputs = [units, roi, None, shape]
    return g.Cast(g.Squeeze(g.emit("Resize", inputs, attributes)[0], [1, 3]), to=dy.dtype)


def _region(g: Builder, n: Call, axis: int) -> ir.Value:
    """The part of one axis that is resized, as a region of the images of one column."""
    listed = _listed(n)
    j = listed.index(axis)
    ends = g.Cast(g.Gather(n.node.inputs[1], [j, j + len(listed)], axis=0), to=ir.DataType.FLOAT)
    begin, end = g.Slice(ends, [0], [1], [0]), g.Slice(ends, [1], [2], [0])
    zeros, ones = (g.constant(np.full(k, v, np.float32)) for k, v in ((2, 0.0), (2, 1.0)))
    zero, one = (g.constant(np.full(1, v, np.float32)) for v in (0.0, 1.0))
    return g.Concat(zeros, begin, zero, ones, end, one, axis=0)


def _matrix_of_one_scale(g: Builder, n: Call, dy: ir.Value, axis: int) -> ir.Value:
    """R (I, O) of one axis where keep_aspect_ratio_policy scales all alike: from unit images as large as the input.

    They are constant along the other axes, and so is what becomes of them.
    """
    listed, rank = _listed(n), n.rank()
    if min(listed) < min(2, rank - 1):
        raise n.refuse("keep_aspect_ratio_policy over the batch or the channels")
    size = length(n, axis)
    at = positions(g, size)
    here = [-1 if a == axis else 1 for a in range(rank)]
    same = g.Equal(g.Reshape(at, [-1] + [1] * (rank - 1)), g.Reshape(at, here))
    dims = n.dims()
    sizes: list[int | ir.Value] = [size, *[1] * (rank - 1)]
    for a in listed:
        dim = dims[a]
        sizes[a] = dim if isinstance(dim, int) else n.size(a)
    units = g.Expand(g.Cast(same, to=ir.DataType.FLOAT), join(g, sizes))
    attributes = {name: n.attr(name) for name in (*_COPIED, "axes", "keep_aspect_ratio_policy")}
    resized = g.emit("Resize", [units, None, None, n.node.inputs[3]], attributes)[0]
    for a in range(rank - 1, 0, -1):
        if a != axis:
            resized = g.Gather(resized, g.constant(np.array(0)), axis=a)
    return g.Cast(resized, to=dy.dtype)
