"""Rules of the convolutions."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from pycam.graph.builder import Builder

from .call import Call
from .index import one_target
from .registry import rule, stop
from .windows import Axis, axis_size, begin_pad, flipped, join, scatter, share, windows


@rule("Conv", 0)
def conv(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y[o] = Σ_t W[t]·x[o·s - b + t·δ]` ⇒ `dx[i] = Σ W[t]ᵀ·dy[o]` over all `o·s - b + t·δ = i`.

    At stride 1, `o = i + b - t·δ`: a convolution with the flipped and transposed weights and the pads `δ(k-1) - b`.
    onnxruntime runs that faster than ConvTranspose (depthwise 3 times), which the strided case takes.
    """
    axes = windows(n, _kernel(n))
    group = n.attr("group", 1)
    before, after = _full(axes)
    if n.const(1) is None or any(a.stride > 1 for a in axes) or min(before + after) < 0:
        return scatter(g, n, dy, n.x(1), axes, group=group)
    dilations = [a.dilation for a in axes]
    turned = flipped(g, n.x(1), group, len(axes))
    return g.Conv(dy, turned, dilations=dilations, pads=before + after, group=group)


@rule("ConvTranspose", 0)
def conv_transpose(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = scatter(x, W)` ⇒ `dx = Conv(dy, W)`: same strides, dilations, pads and groups, and the same layout of W.

    `Y = (I-1)s + δ(k-1)+1 + p - b - e`, so Conv gives `I + ⌊p/s⌋` positions: an output padding `p ≥ s` is cut off.
    """
    kernel = _kernel(n)
    axes = windows(n, kernel)
    rank = len(axes)
    extra = n.attr("output_padding") or [0] * rank
    pads = _transposed_pads(n, axes, extra)
    strides, dilations = [a.stride for a in axes], [a.dilation for a in axes]
    dx = g.Conv(dy, n.x(1), strides=strides, dilations=dilations, pads=pads, group=n.attr("group", 1))
    if all(p < s for p, s in zip(extra, strides, strict=True)):
        return dx
    return g.Slice(dx, [0] * rank, g.Slice(n.shape(), [2], [2 + rank], [0]), list(range(2, 2 + rank)))


@rule("Conv", 1)
def weights(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y[m, o] = Σ W[m, c, t]·x[c, o·s - b + t·δ]` ⇒ `dW[m, c, t]` is the same sum over images and windows `o`."""
    axes = windows(n, _kernel(n))
    pads = [(a.begin, a.end) for a in axes]
    x = n.x(0)
    if any(b is None or e is None for b, e in pads):  # auto_pad=SAME_* of sizes that only the graph knows
        for j, a in enumerate(axes):
            begin = begin_pad(g, n, a, j, dy)
            covered = g.Add(g.Mul(axis_size(g, dy, 2 + j), [a.stride]), [a.reach + 1 - a.stride])
            end = g.Max(g.Sub(g.Sub(covered, n.size(2 + j, 0)), [begin] if isinstance(begin, int) else begin), [0])
            x = g.Pad(x, join(g, [begin, end]), None, [2 + j])
        pads = [(0, 0)] * len(axes)
    exact = all(a.overhang() is not None and (a.end or 0) - (a.overhang() or 0) < a.dilation for a in axes)
    return _correlation(g, n, x, dy, axes, [b or 0 for b, _ in pads] + [e or 0 for _, e in pads], exact=exact)


@rule("ConvTranspose", 1)
def transposed_weights(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y[m, i·s - b + t·δ] += W[c, m, t]·x[c, i]`: as Conv's, with `dy` for the image and `x` for the windows."""
    axes = windows(n, _kernel(n))
    extra = n.attr("output_padding") or [0] * len(axes)
    exact = all(p < a.dilation for p, a in zip(extra, axes, strict=True))
    return _correlation(g, n, dy, n.x(0), axes, _transposed_pads(n, axes, extra), exact=exact)


def _correlation(
    g: Builder, n: Call, image: ir.Value, windows_of: ir.Value, axes: list[Axis], pads: list[int], *, exact: bool
) -> ir.Value:
    """`dW[m, c, t] = Σ_n Σ_o v[n, m, o]·image[n, c, o·s - b + t·δ]`: a convolution of `image` with the weights `v`.

    Images and channels change places, strides and dilations too.  A group of channels is one of (channels of it ·
    images).  What no window reaches may leave further positions `t`, which are cut off unless `exact`.
    """
    one_target(n, "reads its weights without a batch axis")
    group, rank = int(n.attr("group", 1)), len(axes)
    spatial = list(range(2, 2 + rank))
    if group > 1:  # (N, g·c, …) → (c, g·N, …)
        sizes = [axis_size(g, image, a) for a in spatial]
        apart = g.Reshape(image, join(g, [0, group, -1, *sizes]))
        swapped = g.Transpose(apart, perm=[2, 1, 0, *(a + 1 for a in spatial)])
        images = g.Mul(axis_size(g, image, 0), [group])
        image = g.Reshape(swapped, join(g, [0, images, *sizes]))
    else:
        image = g.Transpose(image, perm=[1, 0, *spatial])
    dw = g.Conv(
        image,
        g.Transpose(windows_of, perm=[1, 0, *spatial]),
        strides=[a.dilation for a in axes],
        dilations=[a.stride for a in axes],
        pads=pads,
        group=group,
    )
    dw = g.Transpose(dw, perm=[1, 0, *spatial])
    return dw if exact else g.Slice(dw, [0] * rank, [a.kernel for a in axes], spatial)


@rule("Conv", 2)
@rule("ConvTranspose", 2)
def bias(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = … + b[c]` ⇒ `db[c] = Σ dy[:, c, …]`."""
    one_target(n, "reads its bias without a batch axis")
    return g.ReduceSum(dy, [0, *range(2, n.rank(0))], keepdims=0)


def _full(axes: list[Axis]) -> tuple[list[int], list[int]]:
    """Pads δ(k-1) - b and δ(k-1) - e; -1 where unknown (which is at strides above 1 only)."""
    before = [-1 if a.begin is None else a.reach - a.begin for a in axes]
    return before, [-1 if a.end is None else a.reach - a.end for a in axes]


def _kernel(n: Call) -> list[int]:
    kernel = n.attr("kernel_shape") or n.static(1, start=2)
    if kernel is None:
        raise n.refuse("the size of its kernel is unknown")
    return list(kernel)


def _transposed_pads(n: Call, axes: list[Axis], extra: list[int]) -> list[int]:
    """The pads that ConvTranspose cuts off: given, or what `auto_pad` or `output_shape` leave over."""
    auto_pad, wanted = n.attr("auto_pad", "NOTSET"), n.attr("output_shape")
    if wanted is None and not auto_pad.startswith("SAME"):
        pads = [int(p) for p in n.attr("pads") or [0] * 2 * len(axes)]
        return pads if auto_pad == "NOTSET" else [0] * len(pads)
    shares = []
    for j, a in enumerate(axes):
        if wanted is None:  # then Y = I·s
            total = extra[j] + a.reach + 1 - a.stride
        elif a.size is None:
            raise n.refuse("output_shape with an input whose size is known only when the graph runs")
        else:
            total = (a.size - 1) * a.stride + a.reach + 1 + extra[j] - wanted[len(wanted) - len(axes) + j]
        if total < 0:
            raise n.refuse("an output larger than its windows cover")
        shares.append(share(total, auto_pad == "SAME_UPPER"))
    return [b for b, _ in shares] + [e for _, e in shares]


@rule("Col2Im")
def col2im(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y` adds blocks up where they lie ⇒ `dx` cuts them out: a convolution with an identity matrix."""
    block = n.const(2)
    if block is None:
        raise n.refuse("the shape of its blocks is known only when the graph runs")
    kernel = [int(k) for k in block]
    rank, taps = len(kernel), int(np.prod(kernel))
    sizes = [axis_size(g, dy, 2 + j) for j in range(rank)]
    cutter = g.constant(np.eye(taps).reshape(taps, 1, *kernel), dy.dtype)
    blocks = g.Conv(
        g.Reshape(dy, join(g, [-1, 1, *sizes])),
        cutter,
        strides=n.attr("strides"),
        dilations=n.attr("dilations"),
        pads=n.attr("pads"),
    )
    return n.reshape_like(blocks)


stop("Col2Im", 1, 2, why="shapes are integers", kind="integer")
