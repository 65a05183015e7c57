"""RefineCAM: what all layers agree on."""

from __future__ import annotations

import onnx_ir as ir

from pycam.graph.locate import dims
from pycam.head.graph import heatmaps

from .combine import shaped, weighted
from .gradient import gradcam_plus_plus
from .registry import method
from .scene import Scene


@method(
    "refinecam",
    "RefineCAM",
    "2605.14641",
    cost="1 forward + backward of the tail",
    needs="several layers, best the last of each stage: of one it is Grad-CAM++ at the image's size",
    layers="many",
    weighs=True,
)
def refinecam(s: Scene) -> ir.Value:
    """`Π_l heatmap_l`: the product over the layers of Grad-CAM++'s heatmaps, at the image's size."""
    grads = s.first.gradients(s.layers)
    product: ir.Value | None = None
    for layer, grad in zip(s.layers, grads, strict=True):
        a = s.read(layer)
        w = gradcam_plus_plus(s.g, a, s.split(grad, a))
        large = heatmaps(s.g, [weighted(s, a, w, per_channel=True)], s.size, [dims(a)[2:]])
        product = large if product is None else s.g.Mul(product, large)
    assert product is not None
    rows, columns = (2, 3) if s.layout == "NCHW" else (1, 2)
    return shaped(s, product, [dims(s.x)[rows], dims(s.x)[columns]])
