"""The in-graph head: raw maps → heatmaps as ONNX nodes, so that an exported graph needs nothing of pycam.

The pipeline of pytorch-grad-cam: with `s(x) = (x − min)/(1e-7 + max(x − min))` per map,
`heatmap = s(mean_l relu(resize(s(relu(raw_l)))))`; resize is bilinear, half-pixel, without antialias.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from pycam.graph.builder import Builder, constant_of
from pycam.runtime.spec import ROUNDING

_AXES = [-2, -1]
EPSILON = 1e-7
_BILINEAR = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}


def heatmaps(
    g: Builder, raws: Sequence[ir.Value], size: ir.Value, small: Sequence[Sequence[int | str]] | None = None
) -> ir.Value:
    """Raw maps (N, K, h_l, w_l), one per layer, and `size` int64 (2,) → heatmaps (N, K, H, W) in [0, 1].

    `small` has the (h_l, w_l) as far as they are known.
    """
    layers = []
    for i, raw in enumerate(raws):
        unit = _min_max(g, g.Relu(raw))
        scales = _scales(size, small[i]) if g.portable and small is not None else None
        if scales is not None:  # tract resizes to sizes only if it knows the batch's as well
            layers.append(g.Resize(unit, None, g.constant(scales), **_BILINEAR))
            continue
        shape = g.Concat(g.Slice(g.Shape(raw), [0], [2], [0]), size, axis=0)
        layers.append(g.Resize(unit, None, None, shape, **_BILINEAR))
    mean = layers[0] if len(layers) == 1 else g.Mul(g.Sum(*layers), 1.0 / len(layers))
    return _min_max(g, mean)


def from_minimum(g: Builder, x: ir.Value) -> ir.Value:
    """Each map, of levels of a score, less its minimum; 0 where it differs by rounding alone."""
    lifted = _lifted(g, x)
    noise = g.Mul(g.ReduceMax(g.Abs(x), _AXES, keepdims=1), ROUNDING)
    return g.Where(g.LessOrEqual(g.ReduceMax(lifted, _AXES, keepdims=1), noise), 0.0, lifted)


def _lifted(g: Builder, x: ir.Value) -> ir.Value:
    return g.Sub(x, g.ReduceMin(x, _AXES, keepdims=1))


def _min_max(g: Builder, x: ir.Value) -> ir.Value:
    lifted = _lifted(g, x)
    return g.Div(lifted, g.Add(g.ReduceMax(lifted, _AXES, keepdims=1), EPSILON))


def _scales(size: ir.Value, small: Sequence[int | str]) -> np.ndarray | None:
    """From the sizes of a map to `size`, if both are known; a runtime rounds what they give downwards."""
    large = constant_of(size)
    if large is None or not all(isinstance(s, int) for s in small):
        return None
    before, after = np.array(small, np.float64), large.astype(np.float64)
    scales = (after / before).astype(np.float32)
    scales = np.where(before * scales < after, np.nextafter(scales, np.float32(np.inf)), scales)
    return np.concatenate([np.ones(2, np.float32), scales])
