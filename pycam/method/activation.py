"""Methods that read activations alone, or their singular vectors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from pycam.errors import MethodError
from pycam.graph.builder import Builder
from pycam.graph.locate import dims
from pycam.runtime.noise import draw

from .checks import check_seed
from .combine import for_all_targets, projected, weighted
from .registry import POSITIONS, method, weighting
from .scene import Scene


@method("eigencam", "EigenCAM", "2008.00299", cost="1 forward", layers="many")
def eigencam(s: Scene) -> Sequence[ir.Value]:
    """`X·v₁`: the activations, less their channel means, projected onto their first right singular vector, its
    peak positive.  The same for all targets."""
    return [projected(s, s.g.Unsqueeze(a, [1]), a, shared=True) for a in map(s.read, s.layers)]


@method("eigengradcam", "EigenGradCAM", "2008.00299", cost="1 forward + backward of the tail", layers="many")
def eigengradcam(s: Scene) -> Sequence[ir.Value]:
    """EigenCAM of `g·A` in place of `A`."""
    return [projected(s, _by_target(s, s.g.Mul(da, a)), a) for a, da in _gradients(s)]


@method("segeigencam", "Seg-Eigen-CAM", "10.3390/app15137562", cost="1 forward + backward of the tail", layers="many")
def segeigencam(s: Scene) -> Sequence[ir.Value]:
    """EigenCAM of `|g|·A`."""
    return [projected(s, _by_target(s, s.g.Mul(s.g.Abs(da), a)), a) for a, da in _gradients(s)]


@method("kpcacam", "KPCA-CAM", "2410.00267", cost="1 forward + an eigenvector of h·w × h·w", layers="many")
def kpcacam(s: Scene) -> Sequence[ir.Value]:
    """The first kernel principal component of the activations, less their channel means, at all positions: kernel
    `tanh(<x, x'>/C + 1)`; its peak is positive.  The same for all targets."""
    return [projected(s, s.g.Unsqueeze(a, [1]), a, "kernel_pca", shared=True) for a in map(s.read, s.layers)]


@weighting(
    "fem", "Feature Explanation Method", "10.1109/IPTA50016.2020.9286629", cost="1 forward", gradient=False,
    per_channel=True,
)  # fmt: skip
def fem(g: Builder, a: ir.Value, da: None, *, k: float = 2.0) -> ir.Value:
    """`w = mean_ij [A > μ + k·σ]`, μ and σ (of the population) those of the channel.  The same for all targets.

    Options:
        k: Deviations above the mean from which on an activation is rare; 2 as in the paper, 1 to 3 are sensible.  Costs
            nothing.
    """
    rest = g.Sub(a, g.ReduceMean(a, POSITIONS, keepdims=1))
    sigma = g.Sqrt(g.ReduceMean(g.Mul(rest, rest), POSITIONS, keepdims=1))
    rare = g.Cast(g.Greater(rest, g.Mul(sigma, float(k))), to=ir.DataType.FLOAT)
    return g.Unsqueeze(g.ReduceMean(rare, POSITIONS, keepdims=1), [0])


@method("mean_activation", "Mean activation", "", cost="1 forward", layers="many")
def mean_activation(s: Scene) -> Sequence[ir.Value]:
    """`mean_c A`.  The same for all targets."""
    return [for_all_targets(s, s.g.ReduceMean(a, [1], keepdims=1), dims(a)[2:]) for a in map(s.read, s.layers)]


@method("random", "Random weights", "", cost="1 forward", layers="many", weighs=True, also=("RandomCAM",))
def random(s: Scene, *, seed: int = 0) -> Sequence[ir.Value]:
    """`w` uniform in [−1, 1], drawn once per channel: the baseline that a metric needs.  The same for all targets.

    Options:
        seed: Of the weights, 0 … 2⁶⁴ − 1: average a metric over several.
    """
    check_seed(seed)
    g, maps = s.g, []
    for i, layer in enumerate(s.layers):
        channels = dims(layer)[1]
        if not isinstance(channels, int):
            raise MethodError(
                f"{s.title} draws a weight per channel when it is compiled, and how many the layer {layer.name!r} "
                f"{list(dims(layer))} has is not known then: choose another layer"
            )
        w = 2 * draw("uniform", (channels,), seed, [0], stream=i).reshape(1, 1, channels, 1, 1) - 1
        a = s.read(layer)
        rows = g.Concat([1], g.Slice(g.Shape(a), [0], [1], [0]), [1, 1, 1], axis=0)
        maps.append(weighted(s, a, g.Expand(g.constant(np.asarray(w)), rows), per_channel=True, shared=True))
    return maps


def _gradients(s: Scene) -> list[tuple[ir.Value, ir.Value]]:
    """(A, g) of every layer: (N, C, h, w), (K, N, C, h, w)."""
    pairs = zip(map(s.read, s.layers), s.first.gradients(s.layers), strict=True)
    return [(a, s.split(grad, a)) for a, grad in pairs]


def _by_target(s: Scene, terms: ir.Value) -> ir.Value:
    """(K, N, C, h, w) → (N, K, C, h, w)."""
    return s.g.Transpose(terms, perm=[1, 0, 2, 3, 4])
