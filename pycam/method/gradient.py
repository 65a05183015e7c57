"""Methods that weigh activations by gradients.  Formulas as in the papers and in pytorch-grad-cam 1.5.7."""

from __future__ import annotations

import onnx_ir as ir

from pycam.graph.builder import Builder

from .registry import POSITIONS, weighting


@weighting(
    "cam",
    "Class Activation Mapping",
    "1512.04150",
    cost="1 forward",
    needs="global average pooling and linear layers behind the layer",
    per_channel=True,
    linear_only=True,
)
def cam(g: Builder, a: ir.Value, da: ir.Value) -> ir.Value:
    """`w` = the class's row of the linear layer behind global average pooling: there it is `Σ_ij g`."""
    return g.ReduceSum(da, POSITIONS, keepdims=1)


@weighting("gradcam", "Grad-CAM", "1610.02391", per_channel=True)
def gradcam(g: Builder, a: ir.Value, da: ir.Value) -> ir.Value:
    """`w = mean_ij g`."""
    return g.ReduceMean(da, POSITIONS, keepdims=1)


@weighting("gradcam++", "Grad-CAM++", "1710.11063", also=("GradCAMPlusPlus", "GradCAMpp"), per_channel=True)
def gradcam_plus_plus(g: Builder, a: ir.Value, da: ir.Value) -> ir.Value:
    """`α = g²/(2g² + (ΣA)·g³ + 1e-6)`, `w = Σ relu(g)·α`."""
    square = g.Mul(da, da)
    total = g.ReduceSum(a, POSITIONS, keepdims=1)
    below = g.Add(g.Add(g.Mul(square, 2.0), g.Mul(g.Mul(square, da), total)), 1e-6)
    return g.ReduceSum(g.Mul(g.Relu(da), g.Div(square, below)), POSITIONS, keepdims=1)


@weighting("xgradcam", "XGrad-CAM", "2008.02312", per_channel=True)
def xgradcam(g: Builder, a: ir.Value, da: ir.Value) -> ir.Value:
    """`w = Σ g·A / (ΣA + 1e-7)`."""
    total = g.ReduceSum(a, POSITIONS, keepdims=1)
    return g.Div(g.ReduceSum(g.Mul(da, a), POSITIONS, keepdims=1), g.Add(total, 1e-7))


@weighting("layercam", "LayerCAM", "10.1109/TIP.2021.3089943")
def layercam(g: Builder, a: ir.Value, da: ir.Value) -> ir.Value:
    """`w = relu(g)`, one weight per position."""
    return g.Relu(da)


@weighting("hirescam", "HiResCAM", "2011.08891")
def hirescam(g: Builder, a: ir.Value, da: ir.Value) -> ir.Value:
    """`w = g`, one weight per position."""
    return da


@weighting("gradcam_elementwise", "Grad-CAM, element-wise", "", rectify=True)
def gradcam_elementwise(g: Builder, a: ir.Value, da: ir.Value) -> ir.Value:
    """`Σ_c relu(g·A)`: only terms that speak for the score count."""
    return da
