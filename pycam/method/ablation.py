"""Ablation-CAM: a channel weighs as much as the score loses without it."""

from __future__ import annotations

import onnx_ir as ir

from pycam.graph.locate import dims
from pycam.graph.tokens import placed

from .combine import weighted
from .registry import POSITIONS, method
from .scene import Scene
from .score import distinct

FAR, FAR_HALF = 1e7, 1e3
"""How far below the minimum an ablated channel is set, where the minimum is not 0: pytorch-grad-cam's constant, and
what float16 can hold."""


@method(
    "ablationcam",
    "Ablation-CAM",
    "10.1109/WACV45572.2020.00360",
    plan="split",
    cost="1 forward + 1 tail per live channel; 1 forward where the tail is affine",
    weighs=True,
)
def ablationcam(s: Scene) -> ir.Value:
    """`w_c = (y − y_c)/y`, `y_c` with channel c set to 0, or to `min A − 1e7` where `min A ≠ 0`.

    Of tokens the channel is ablated in all, the special ones (class, registers) as well.  pytorch-grad-cam takes the
    minimum over what it ablated before as well, so that its numbers depend on its batch where `min A ≠ 0`; these are
    those of a batch of 1.  Of a float16 model, which cannot hold 1e7, it is 1e3.
    """
    g, a = s.g, s.read(s.layer)
    found = placed(s.layer)
    layer, axis = (found.made, 2) if found is not None and found.special else (s.layer, 1)
    v = s.read(layer)
    rank = len(dims(v))
    lowest = g.ReduceMin(v, list(range(1, rank)), keepdims=1)
    far = FAR_HALF if layer.dtype == ir.DataType.FLOAT16 else FAR
    fill = g.Where(g.Equal(lowest, 0.0), lowest, g.Sub(lowest, far))  # (N, 1, …)
    y = g.Unsqueeze(g.Transpose(s.first.y, perm=[1, 0]), [2, 3, 4])  # (K, N, 1, 1, 1)
    da = s.affine(layer) if layer is s.layer else None
    if da is not None:  # then y_c = y + Σ g·(fill − A) over the channel's positions
        drop = g.ReduceSum(g.Mul(s.split(da, a), g.Sub(a, fill)), POSITIONS, keepdims=1)
        return weighted(s, a, _share(s, drop, y), per_channel=True)
    others = [i for i in range(rank) if i != axis]
    there = [g.Equal(reduce(v, others, keepdims=1), fill) for reduce in (g.ReduceMin, g.ReduceMax)]
    channels = distinct(s, g.Reshape(g.And(*there), [-1]), dims(v)[axis])  # one that holds `fill` alone loses nothing
    channel = g.Unsqueeze(s.vary(channels.ids, channels.at_most), list(range(1, rank)))  # (M, 1, …)
    ablated = g.Where(g.Equal(channel, g.Unsqueeze(s.range_along(v, axis), others)), fill, v)
    varied = g.Cast(ablated, to=layer.dtype) if layer.dtype != v.dtype else ablated
    left = g.Gather(s.stack(s.run({layer: varied}).y), channels.slots, axis=0)  # (C, K)
    scores = g.Unsqueeze(g.Transpose(left, perm=[1, 0]), [1, 3, 4])  # (K, 1, C, 1, 1)
    return weighted(s, a, _share(s, g.Sub(y, scores), y), per_channel=True)


def _share(s: Scene, drop: ir.Value, y: ir.Value) -> ir.Value:
    """`drop/y`; 0 where `y` is 0, of which nothing is a share: the map is flat."""
    g = s.g
    nothing = g.Equal(y, 0.0)
    return g.Where(nothing, g.constant(0.0, y.dtype), g.Div(drop, g.Where(nothing, g.constant(1.0, y.dtype), y)))
