"""Rules of the convolutions."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pycam.graph.builder import Builder

from .call import Call
from .registry import rule
from .windows import Axis, scatter, share, windows


@rule("Conv", 0)
def conv(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y[o] = Σ_t W[t]·x[o·s - b + t·δ]` ⇒ `dx[i] = Σ W[t]ᵀ·dy[o]` over all `o·s - b + t·δ = i`.

    At stride 1, `o = i + b - t·δ`: a convolution with the flipped and transposed weights and the pads `δ(k-1) - b`.
    onnxruntime runs that faster than ConvTranspose (depthwise 3 times), which the strided case takes.
    """
    axes = windows(n, _kernel(n))
    group = n.attr("group", 1)
    weights = n.const(1)
    before, after = _full(axes)
    if weights is None or any(a.stride > 1 for a in axes) or min(before + after) < 0:
        return scatter(g, n, dy, n.x(1), axes, group=group)
    dilations = [a.dilation for a in axes]
    return g.Conv(dy, g.constant(flipped(weights, group)), dilations=dilations, pads=before + after, group=group)


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
@rule("ConvTranspose", 1)
def weights(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    raise n.refuse("its weights depend on what is differentiated for; pycam has gradients of activations only")


@rule("Conv", 2)
@rule("ConvTranspose", 2)
def bias(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = … + b[c]` ⇒ `db[c] = Σ dy[:, c, …]`."""
    return g.ReduceSum(dy, [0, *range(2, n.rank(0))], keepdims=0)


def flipped(weights: NDArray[Any], group: int) -> NDArray[Any]:
    """(M, C/g, k…) → (C, M/g, k…): in and out channels swapped within each group, spatial axes reversed."""
    m, c, *kernel = weights.shape
    grouped = weights.reshape(group, m // group, c, *kernel).swapaxes(1, 2)
    spatial = tuple(range(2, 2 + len(kernel)))
    return np.ascontiguousarray(np.flip(grouped.reshape(group * c, m // group, *kernel), spatial))


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
