"""The in-graph head: raw maps → heatmaps as ONNX nodes, so that an exported graph needs nothing of pycam.

The pipeline of pytorch-grad-cam: with `s(x) = (x − min)/(1e-7 + max(x − min))` per map,
`heatmap = s(mean_l relu(resize(s(relu(raw_l)))))`; resize is bilinear, half-pixel, without antialias.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from pycam.graph.builder import Builder

_AXES = [-2, -1]
EPSILON = 1e-7


def heatmaps(g: Builder, raws: Sequence[ir.Value], size: ir.Value) -> ir.Value:
    """Raw maps (N, K, h_l, w_l), one per layer, and `size` int64 (2,) → heatmaps (N, K, H, W) in [0, 1]."""
    layers = []
    for raw in raws:
        unit = _min_max(g, g.Relu(raw))
        shape = g.Concat(g.Slice(g.Shape(raw), [0], [2], [0]), size, axis=0)
        layers.append(g.Resize(unit, None, None, shape, mode="linear", coordinate_transformation_mode="half_pixel"))
    mean = layers[0] if len(layers) == 1 else g.Mul(g.Sum(*layers), 1.0 / len(layers))
    return _min_max(g, mean)


def _min_max(g: Builder, x: ir.Value) -> ir.Value:
    lifted = g.Sub(x, g.ReduceMin(x, _AXES, keepdims=1))
    return g.Div(lifted, g.Add(g.ReduceMax(lifted, _AXES, keepdims=1), EPSILON))
