"""Fourier transforms: DFT and STFT.

A transform is linear; with `F` the complex matrix `exp(−2πi·kn/N)` (of the signal's length padded or cut to `N`), the
adjoint of `F` is its conjugate transpose, which is `N` times the inverse transform.  Real and imaginary parts are the
last axis, so a real input's gradient is the real part.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from pycam.graph.builder import Builder

from .call import Call
from .index import length, positions
from .registry import expansion, rule, stop
from .sample import Size

stop("DFT", 1, 2, why="lengths and axes are integers", kind="integer")


@rule("DFT")
def dft(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """The adjoint, cut or padded to the length of `x`.

    - `y = F·x`: `dx = Fᴴ·dy = N·inverse(dy)`; onesided, `dy` is 0 where `y` was cut off;
    - `y = Fᴴ·x/N`: `dx = F·dy/N`;
    - the same onesided (a real `y`, each frequency but the outer ones standing for two): `dx = c·F·dy/N`, `c` 1 or 2.
    """
    axis = n.const(2) if n.has(2) else np.array(-2)
    if axis is None:
        raise n.refuse("its axis is known only when the graph runs")
    at = int(axis) % n.rank()
    inverse, onesided = bool(n.attr("inverse", 0)), bool(n.attr("onesided", 0))
    own = length(n, at)
    size = _length(g, n, own, 2 if inverse and onesided else 1)
    scale = g.constant(float(size), dy.dtype) if isinstance(size, int) else g.Cast(size, to=dy.dtype)
    where_to = g.constant(np.array(at))
    count = g.constant(np.array(size)) if isinstance(size, int) else g.Squeeze(size, [0])
    if not inverse:
        dx = g.Mul(g.DFT(dy, count, where_to, inverse=1), scale)
        return _real(g, n, _fit(g, dx, at, size, own))
    if not onesided:
        dx = g.Div(g.DFT(dy, count, where_to), scale)
        return _real(g, n, _fit(g, dx, at, size, own))
    half = size // 2 + 1 if isinstance(size, int) else g.Add(g.Div(size, [2]), [1])
    twice = _twice(g, size, half, dy.dtype)
    twice = g.Reshape(twice, [-1] + [1] * (n.rank() - 1 - at))
    dx = g.Mul(g.Div(g.DFT(dy, count, where_to, onesided=1), scale), twice)
    return _real(g, n, _fit(g, dx, at, half, own))


def _length(g: Builder, n: Call, own: Size, default: int) -> Size:
    """N: given, or what the input has (of a half spectrum, `2·(L − 1)`)."""
    if n.has(1):
        known = n.const(1)
        return int(known.reshape(())) if known is not None else g.Reshape(g.Cast(n.x(1), to=ir.DataType.INT64), [1])
    if default == 1:
        return own
    return 2 * (own - 1) if isinstance(own, int) else g.Mul(g.Sub(own, [1]), [2])


def _twice(g: Builder, size: Size, half: Size, dtype: ir.DataType | None) -> ir.Value:
    """How many of the N frequencies each of a half spectrum stands for: 1 for 0 and N/2, else 2."""
    if isinstance(size, int) and isinstance(half, int):
        k = np.arange(half)
        return g.constant(np.where((k == 0) | (2 * k == size), 1.0, 2.0), dtype)
    at = positions(g, half)
    outer = g.Or(g.Equal(at, 0), g.Equal(g.Mul(at, 2), size))
    return g.Sub(2.0, g.Cast(outer, to=dtype))


def _fit(g: Builder, value: ir.Value, axis: int, size: Size, wanted: Size) -> ir.Value:
    """`value`, of `size` positions on an axis, cut or padded with zeros to `wanted`."""
    if isinstance(size, int) and isinstance(wanted, int):
        if size < wanted:
            return g.Pad(value, [0, wanted - size], None, [axis])
        return value if size == wanted else g.Slice(value, [0], [wanted], [axis])
    if size is wanted:
        return value
    size, wanted = (g.constant([v]) if isinstance(v, int) else v for v in (size, wanted))
    more = g.Max(g.Sub(wanted, size), g.constant([0]))
    return g.Slice(g.Pad(value, g.Concat([0], more, axis=0), None, [axis]), [0], wanted, [axis])


def _real(g: Builder, n: Call, dx: ir.Value) -> ir.Value:
    """The real part of a complex gradient if the input is real."""
    parts = n.dims()[-1]
    if parts == 2:
        return dx
    return g.Slice(dx, [0], [1] if parts == 1 else n.size(-1), [n.rank() - 1])


@expansion("STFT")
def stft(g: Builder, n: Call) -> ir.Value:
    """The DFT of windowed frames; cutting into frames is a convolution with an identity matrix."""
    frames = _frames(g, n, g.Unsqueeze(n.x(0), [1]))  # (B, frames, length, 1 or 2)
    if n.has(2):
        frames = g.Mul(frames, g.Unsqueeze(n.x(2), [1]))
    return g.DFT(frames, None, g.constant(np.array(2)), onesided=n.attr("onesided", 1))


def _frames(g: Builder, n: Call, signal: ir.Value) -> ir.Value:
    step, frame = n.const(1), _frame_length(n)
    if step is not None and isinstance(frame, int):
        cutter = g.constant(np.eye(frame).reshape(frame, 1, frame, 1), signal.dtype)
        cut = g.Conv(signal, cutter, strides=[int(step.reshape(())), 1])
        return g.Transpose(cut, perm=[0, 2, 1, 3])
    hop = g.Cast(n.x(1), to=ir.DataType.INT64)
    many = g.Div(g.Sub(n.size(1, 0), [frame] if isinstance(frame, int) else frame), hop)
    starts = g.Mul(positions(g, g.Add(many, [1])), hop)
    return g.Gather(n.x(0), g.Add(g.Unsqueeze(starts, [1]), positions(g, frame)), axis=1)


def _frame_length(n: Call) -> Size:
    """Given, or that of the window, or that of the signal."""
    if n.has(3):
        known = n.const(3)
        return int(known.reshape(())) if known is not None else n.g.Reshape(n.g.Cast(n.x(3), to=ir.DataType.INT64), [1])
    axis, i = (0, 2) if n.has(2) else (1, 0)
    dim = n.dims(i)[axis]
    return dim if isinstance(dim, int) else n.size(axis, i)
