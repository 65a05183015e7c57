"""The Score-CAM family: a channel weighs as much as the score of what it leaves of the image.

Channels that are constant over the positions have a mask of zeros, all the same: one of them is run for all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from pycam.graph.locate import dims

from .checks import at_least, check_seed, maskable
from .combine import weighted
from .pixel import image_positions
from .registry import POSITIONS, method
from .scene import Scene

EPSILON = 1e-8
"""Of the masks' min-max, as the peers have it."""

_CORNERS = "align_corners"
_HALF = "half_pixel"


class Channels(NamedTuple):
    """Those that are run."""

    ids: ir.Value  # int64 (V,): every live channel, and one dead one
    slots: ir.Value  # int64 (C,): where each channel's score lies among theirs
    at_most: int | None  # C, if it is known


@method(
    "scorecam",
    "Score-CAM",
    "1910.01279",
    plan="perturb",
    cost="1 forward per live channel + 2",
    weighs=True,
)
def scorecam(s: Scene) -> ir.Value:
    """`w = softmax_c(y(x ⊙ M_c))`, `M_c = minmax(resize(A_c))`, resized with aligned corners."""
    a = s.read(s.layer)
    channels = _masks(s, a)
    own = _maps(s, a, s.vary(channels.ids, channels.at_most))
    y = s.stack(_score(s, _unit(s, _enlarged(s, own, _CORNERS))))  # (V, K)
    return _weighed(s, a, s.g.Gather(y, channels.slots, axis=0))


@method(
    "faster_scorecam",
    "Faster Score-CAM",
    "",
    plan="perturb",
    cost="1 forward per chosen channel + 1",
    weighs=True,
)
def faster_scorecam(s: Scene, *, channels: int = 10) -> ir.Value:
    """Score-CAM with the `channels` of largest variance over the positions alone, the softmax over these.

    They are chosen as tf-keras-vis does (its `max_N`), which then weighs by the scores themselves, without a softmax.

    Options:
        channels: How many are run, a forward pass each, of the layer's hundreds; 10 to 100 are sensible.  More than
            there are: all.
    """
    at_least("channels", channels, 1)
    g, a = s.g, s.read(s.layer)
    count = dims(a)[1]
    most = min(channels, count) if isinstance(count, int) else None
    deviation = g.Sub(a, g.ReduceMean(a, POSITIONS, keepdims=1))
    variance = g.Reshape(g.ReduceMean(g.Mul(deviation, deviation), POSITIONS, keepdims=0), [-1])  # (C,)
    k = g.constant([most]) if most is not None else g.Min(g.constant([channels]), g.Shape(variance))
    _, ids = g.emit("TopK", [variance, k], {"axis": 0}, outputs=2)
    chosen = g.Gather(a, ids, axis=1)
    assert a.shape is not None
    chosen.shape = ir.Shape([a.shape[0], most, *list(a.shape)[2:]])
    own = _maps(s, a, s.vary(ids, channels))
    y = s.stack(_score(s, _unit(s, _enlarged(s, own, _CORNERS))))
    return _weighed(s, chosen, y)


@method(
    "sscam",
    "SS-CAM",
    "2006.14255",
    plan="perturb",
    cost="1 forward per live channel and sample + samples + 1",
    weighs=True,
)
def sscam(s: Scene, *, samples: int = 35, std: float = 2.0, seed: int = 0) -> ir.Value:
    """`w = softmax_c(mean_i y(x ⊙ (M_c + n_i)))`, `M_c = resize(minmax(A_c))`, `n_i` normal with deviation `std`.

    As torchcam's, but for the noise: sample `i` is the same for all channels, so that they differ by their masks alone,
    and for all images.

    Options:
        samples: Noises per channel; every one costs a forward pass per live channel, so begin with 2 to 5.
        std: Deviation of the noise, of masks in 0 … 1: 2 as in the paper drowns them, 0.1 to 0.5 leaves them visible.
        seed: Of the noise, 0 … 2⁶⁴ − 1.
    """
    at_least("std", std, 0.0)
    check_seed(seed)
    size = [d if isinstance(d, int) else None for d in image_positions(s)]
    g, x = s.g, maskable(s)
    options = {"samples": samples, "seed": seed, "channels_last": s.layout == "NHWC"}
    at_least("samples", samples, 1)
    (bank,) = s.host("noise_maps", x, results=[[samples, *size]], **options)

    def noisy(mask: ir.Value, sample: ir.Value) -> ir.Value:
        return g.Add(mask, g.Unsqueeze(g.Mul(g.Gather(bank, sample, axis=0), float(std)), [1]))

    return _averaged(s, samples, noisy)


@method(
    "iscam",
    "IS-CAM",
    "2010.03023",
    plan="perturb",
    cost="1 forward per live channel and sample + samples + 1",
    weighs=True,
)
def iscam(s: Scene, *, samples: int = 10) -> ir.Value:
    """`w = softmax_c(mean_i y(i/samples · x ⊙ M_c))`, i = 1 … samples, `M_c = resize(minmax(A_c))`.

    torchcam 0.5.0 adds the coefficients up, so that its path ends at a multiple of the masked image: its numbers
    differ.

    Options:
        samples: Steps up to the masked image; every one costs a forward pass per live channel, so begin with 3.
    """
    at_least("samples", samples, 1)
    g = s.g

    def along(mask: ir.Value, sample: ir.Value) -> ir.Value:
        share = g.Mul(g.Cast(g.Add(sample, [1]), to=ir.DataType.FLOAT), 1.0 / samples)
        return g.Mul(mask, g.Unsqueeze(share, [1, 2, 3]))

    return _averaged(s, samples, along)


def _averaged(s: Scene, samples: int, change: Callable[[ir.Value, ir.Value], ir.Value]) -> ir.Value:
    """The map whose weights are `softmax_c(mean_i y(x ⊙ change(M_c, i)))`; a variant is a channel and a sample."""
    g, a = s.g, s.read(s.layer)
    channels = _masks(s, a)
    pairs = g.Add(g.Mul(g.Unsqueeze(channels.ids, [1]), [samples]), g.constant(np.arange(samples)[None]))
    most = channels.at_most * samples if channels.at_most is not None else None
    variant = s.vary(g.Reshape(pairs, [-1]), most)
    channel = g.Div(variant, [samples])
    mask = _enlarged(s, _unit(s, _maps(s, a, channel)), _HALF)
    y = s.stack(_score(s, change(mask, g.Sub(variant, g.Mul(channel, [samples])))))  # (V·samples, K)
    rows = g.Reshape(g.Transpose(y, perm=[1, 0]), [0, -1, samples])  # (K, V, samples)
    mean = g.Transpose(g.ReduceMean(rows, [2], keepdims=0), perm=[1, 0])
    return _weighed(s, a, g.Gather(mean, channels.slots, axis=0))


def distinct(s: Scene, dead: ir.Value, at_most: int | str) -> Channels:
    """The channels that must be run, where all that are `dead`, bool (C,), give the same score."""
    g = s.g
    nth = g.CumSum(g.Cast(dead, to=ir.DataType.INT64), g.constant(0))
    first = g.And(dead, g.Equal(nth, [1]))
    run = g.Or(g.Not(dead), first)
    place = g.Sub(g.CumSum(g.Cast(run, to=ir.DataType.INT64), g.constant(0)), [1])
    shared = g.ReduceSum(g.Where(first, place, [0]), [0], keepdims=1)
    ids = g.Reshape(g.NonZero(run), [-1])
    return Channels(ids, g.Where(dead, shared, place), at_most if isinstance(at_most, int) else None)


def _masks(s: Scene, a: ir.Value) -> Channels:
    """The channels of `a` (1, C, h, w) whose masks differ: a constant one's is 0."""
    g = s.g
    lowest, highest = g.ReduceMin(a, POSITIONS, keepdims=0), g.ReduceMax(a, POSITIONS, keepdims=0)
    return distinct(s, g.Reshape(g.Equal(lowest, highest), [-1]), dims(a)[1])


def _maps(s: Scene, a: ir.Value, channel: ir.Value) -> ir.Value:
    """Some channels of `a` (1, C, h, w), each less its minimum, as (M, 1, h, w): a constant one is exactly 0, which a
    resized one need not be."""
    own = s.g.Transpose(s.g.Gather(a, channel, axis=1), perm=[1, 0, 2, 3])
    return s.g.Sub(own, s.g.ReduceMin(own, POSITIONS, keepdims=1))


def _enlarged(s: Scene, maps: ir.Value, corners: str) -> ir.Value:
    """Maps (M, 1, h, w) at the image's size."""
    g = s.g
    size = g.Concat(g.Slice(g.Shape(maps), [0], [2], [0]), s.size, axis=0)
    return g.Resize(maps, None, None, size, mode="linear", coordinate_transformation_mode=corners)


def _unit(s: Scene, maps: ir.Value) -> ir.Value:
    """Each map min-maxed: 0 … 1."""
    g = s.g
    lifted = g.Sub(maps, g.ReduceMin(maps, POSITIONS, keepdims=1))
    return g.Div(lifted, g.Add(g.ReduceMax(lifted, POSITIONS, keepdims=1), EPSILON))


def _score(s: Scene, mask: ir.Value) -> ir.Value:
    """`y(x ⊙ mask)`, (M, K), for masks (M, 1, H, W)."""
    x = maskable(s)
    fitting = s.g.Cast(mask, to=x.dtype) if x.dtype != ir.DataType.FLOAT else mask
    return s.run({x: s.g.Mul(x, s.as_image(fitting))}).y


def _weighed(s: Scene, a: ir.Value, y: ir.Value) -> ir.Value:
    """`Σ_c softmax_c(y)·A` for scores (C, K)."""
    w = s.g.Transpose(s.g.Softmax(y, axis=0), perm=[1, 0])
    return weighted(s, a, s.g.Unsqueeze(w, [1, 3, 4]), per_channel=True)
