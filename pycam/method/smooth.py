"""Smooth Grad-CAM++: Grad-CAM++ with gradients averaged over noise."""

from __future__ import annotations

import onnx_ir as ir

from .combine import weighted
from .gradient import gradcam_plus_plus
from .path import check_noise, noisy_image, over_variants
from .registry import POSITIONS, method
from .scene import Scene


@method(
    "smoothgradcam++",
    "Smooth Grad-CAM++",
    "1908.01224",
    plan="perturb",
    cost="1 forward + backward of the tail per sample + 1 forward; as Grad-CAM++ where the tail is affine",
    weighs=True,
    also=("SmoothGradCAMpp",),
)
def smoothgradcam_plus_plus(s: Scene, *, samples: int = 50, noise: float = 0.15, seed: int = 0) -> ir.Value:
    """Grad-CAM++ with `D_p = mean_i g^p` over noisy images: `w = Σ relu(D₁)·D₂/(2·D₂ + (ΣA)·D₃ + 1e-6)`.

    `A` is that of the image itself.  Where the score is an affine function of the layer, noise leaves `g` as it is and
    this is Grad-CAM++.  torchcam 0.5.0 takes `relu(g)` and `A` of the last noisy image, and sums `D₃·A` over positions
    in place of `A`: its numbers differ.

    Options:
        samples: Noisy images, a forward pass and a backward pass of the tail each; 10 to 50 are usual.
        noise: Its deviation as a share of the image's range; 0.1 to 0.2 is usual.
        seed: Of the noise, 0 … 2⁶⁴ − 1.
    """
    g, layer = s.g, s.layer
    check_noise(samples, noise, seed)
    a = s.read(layer)
    da = s.affine(layer)
    if da is not None:
        return weighted(s, a, gradcam_plus_plus(g, a, s.split(da, a)), per_channel=True)
    rows = s.run({s.x: noisy_image(s, samples, noise, seed)}, keep=[layer]).gradient(layer)
    square = g.Mul(rows, rows)
    first, second, third = (  # (K, 1, C, h, w)
        g.Unsqueeze(g.Mul(over_variants(s, power), 1.0 / samples), [1]) for power in (rows, square, g.Mul(square, rows))
    )
    below = g.Add(g.Add(g.Mul(second, 2.0), g.Mul(third, g.ReduceSum(a, POSITIONS, keepdims=1))), 1e-6)
    w = g.ReduceSum(g.Mul(g.Relu(first), g.Div(second, below)), POSITIONS, keepdims=1)
    return weighted(s, a, w, per_channel=True)
