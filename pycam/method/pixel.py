"""Methods that attribute the score to pixels by one gradient for the image, exact or by another rule for activations.

All report "attributions" (N, K, C, H, W): signed, channels first whatever the model's layout.  The raw map (N, K, H, W)
is made of them in one of two ways:

- what is a gradient says how much the score hangs on a pixel, and its sign only whether the pixel would have to be
  brighter or darker: the map is the maximum over channels of the absolute value (Simonyan et al., arXiv 1312.6034);
- what is multiplied by the image is a share of the score: the map is the sum over channels, whose positive part, which
  heatmaps show, speaks for the class.
"""

from __future__ import annotations

import onnx_ir as ir

from pycam.errors import MethodError
from pycam.graph.locate import dims
from pycam.graph.views import as_positions, view_of

from .checks import floating_image
from .combine import shaped, weighted
from .gradient import gradcam
from .registry import CHANNELS, method
from .scene import Rules, Scene

_INTERPOLATIONS = {
    "bilinear": {"mode": "linear", "coordinate_transformation_mode": "half_pixel"},
    "nearest": {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
}
_ONE_GRADIENT = "1 forward + backward"


def image_of(s: Scene) -> ir.Value:
    """The image that is differentiated for, as the model takes it; raises MethodError if it holds integers."""
    return floating_image(s, "needs the gradient for the image")


def image_positions(s: Scene) -> tuple[int | str, ...]:
    """H and W of the image, as far as they are known."""
    return dims(s.x)[2:] if s.layout == "NCHW" else dims(s.x)[1:3]


def by_image(s: Scene, rows: ir.Value) -> ir.Value:
    """(K·N, C, H, W), K outermost → (N, K, C, H, W)."""
    g, count = s.g, s.chosen.count
    if count is None:
        return g.Unsqueeze(rows, [1])
    sizes = g.Concat(count, [-1], g.Slice(g.Shape(rows), [1], [4], [0]), axis=0)
    return g.Transpose(g.Reshape(rows, sizes), perm=[1, 0, 2, 3, 4])


def sensitivity(s: Scene, found: ir.Value) -> ir.Value:
    """Report attributions (N, K, C, H, W) that are gradients; the raw map is `max_c |·|`."""
    _report(s, found)
    return shaped(s, s.g.ReduceMax(s.g.Abs(found), [CHANNELS], keepdims=0), image_positions(s))


def contribution(s: Scene, found: ir.Value) -> ir.Value:
    """Report attributions (N, K, C, H, W) that are shares of the score; the raw map is `Σ_c`, signed."""
    _report(s, found)
    return shaped(s, s.g.ReduceSum(found, [CHANNELS], keepdims=0), image_positions(s))


def _report(s: Scene, found: ir.Value) -> None:
    """Attributions (N, K, C, H, W), of a signal (N, K, C, L), of a volume (N, K, C, D, H, W)."""
    s.report("attributions", as_positions(s.g, found, view_of(s.x), s.axes, lead=3))


def _gradient(s: Scene, rules: Rules = "exact") -> ir.Value:
    """`dy/dx` (N, K, C, H, W)."""
    return by_image(s, s.channels_first(s.first.gradient(image_of(s), rules)))


@method("gradient", "Gradient saliency", "1312.6034", cost=_ONE_GRADIENT, layers="none", also=("Saliency",))
def gradient(s: Scene) -> ir.Value:
    """Attributions `dy/dx`; raw map `max_c |dy/dx|`."""
    return sensitivity(s, _gradient(s))


@method("input_x_gradient", "Input × gradient", "1605.01713", cost=_ONE_GRADIENT, layers="none")
def input_x_gradient(s: Scene) -> ir.Value:
    """Attributions `x·dy/dx`; raw map `Σ_c x·dy/dx`."""
    found = _gradient(s)
    return contribution(s, s.g.Mul(found, s.g.Unsqueeze(s.read(s.pixels), [1])))


@method("guided_backprop", "Guided Backpropagation", "1412.6806", cost=_ONE_GRADIENT, layers="none")
def guided_backprop(s: Scene) -> ir.Value:
    """Attributions `dy/dx` with `g·[x > 0]·[g > 0]` for the gradient of every ReLU-like activation; raw `max_c |·|`."""
    return sensitivity(s, _gradient(s, "guided"))


@method("deconvnet", "Deconvnet", "1311.2901", cost=_ONE_GRADIENT, layers="none", also=("Deconvolution",))
def deconvnet(s: Scene) -> ir.Value:
    """Attributions `dy/dx` with `g·[g > 0]` for the gradient of every ReLU-like activation; raw map `max_c |·|`."""
    return sensitivity(s, _gradient(s, "deconvnet"))


@method("guided_gradcam", "Guided Grad-CAM", "1610.02391", cost="1 forward + backward + backward of the tail")
def guided_gradcam(s: Scene, *, interpolation: str = "bilinear") -> ir.Value:
    """Attributions: Guided Backpropagation `⊙ resize(relu(Grad-CAM))`, as captum's; raw map `max_c |·|`.

    Options:
        interpolation: Of the resize: "bilinear", as in the paper, or "nearest", captum's default.
    """
    g = s.g
    if interpolation not in _INTERPOLATIONS:
        raise MethodError(f"interpolation={interpolation!r}: choose one of {', '.join(_INTERPOLATIONS)}")
    a = s.read(s.layer)
    da = s.split(s.first.gradient(s.layer), a)
    cam = g.Relu(weighted(s, a, gradcam(g, a, da), per_channel=True))
    size = g.Concat(g.Slice(g.Shape(cam), [0], [2], [0]), s.size, axis=0)
    large = g.Resize(cam, None, None, size, **_INTERPOLATIONS[interpolation])
    return sensitivity(s, g.Mul(_gradient(s, "guided"), g.Unsqueeze(large, [2])))
