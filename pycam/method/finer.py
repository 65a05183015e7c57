"""Grad-CAM of other derivatives: of what tells a class from those like it, and to the second order."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from pycam.errors import MethodError
from pycam.grad import differentiate
from pycam.graph.locate import dims
from pycam.graph.shapes import appended, infer
from pycam.targets.objectives import finer

from .combine import weighted
from .registry import POSITIONS, method
from .scene import Scene


@method(
    "finercam",
    "Finer-CAM",
    "2501.11309",
    cost="1 forward + backward of the tail",
    needs="at least two classes",
    layers="many",
    weighs=True,
)
def finercam(s: Scene, *, alpha: float = 1.0, references: int = 3) -> Sequence[ir.Value]:
    """Grad-CAM of `y = Σ_i p_i(z_t − α·z_i)/(Σ_i p_i + 1e-9)`, `p = softmax(z)`, `i` the classes nearest in score.

    Options:
        alpha: How much of what the others share is taken away: 0 is Grad-CAM, 1 the difference; 0.5 to 1 are sensible.
        references: How many of the nearest classes the target is held against, 1 or more; they cost nothing.
    """
    if s.objective.name != "class":
        raise MethodError(
            f"{s.title} has an objective of its own, and objective={s.objective.name!r} was asked for: "
            "leave it out, or use 'gradcam'"
        )
    grads = s.first.gradients(s.layers, objective=finer(float(alpha), references))
    return [_by_mean(s, s.read(layer), grad) for layer, grad in zip(s.layers, grads, strict=True)]


@method(
    "shapleycam",
    "Shapley-CAM",
    "2501.06261",
    cost="1 forward + backward of the tail, and its derivative; as Grad-CAM where the tail is piecewise affine",
    layers="many",
    weighs=True,
)
def shapleycam(s: Scene) -> Sequence[ir.Value]:
    """`w = mean_ij (g − ½·H·A)`, `H` the second derivatives of `y` for `A`."""
    g, before = s.g, len(s.g.graph)
    grads = s.first.gradients(s.layers)
    maps = []
    for layer, grad in zip(s.layers, grads, strict=True):
        change = _along(s, grad, layer, before)
        maps.append(_by_mean(s, s.read(layer), grad if change is None else g.Sub(grad, g.Mul(change, 0.5))))
    return maps


def _by_mean(s: Scene, a: ir.Value, grad: ir.Value) -> ir.Value:
    w = s.g.ReduceMean(s.split(grad, a), POSITIONS, keepdims=1)
    return weighted(s, a, w, per_channel=True)


def _along(s: Scene, grad: ir.Value, layer: ir.Value, before: int) -> ir.Value | None:
    """`H·A` (K·N, C, h, w), the derivative of the gradient along the activations; None where it does not depend on
    them.  `before`: how many nodes there were before the gradient's.

    Walking back from the gradient gives `r(u) = Σ_k H_kᵀ·u_k` (N, …) for any u (K·N, …), which is linear in u: walking
    back from `<r, A>` to u gives `H_k·A` for every k, in one go.
    """
    g = s.g
    whole = layer.meta.get("tokens", layer)  # the class token is part of what is changed
    u = g.Identity(grad)
    rest = dims(layer)[1:]
    u.shape = ir.Shape([None, *(None if d == "?" else d for d in rest)])
    _infer(s, before)
    (r,), _ = differentiate(g, {grad: u}, [whole])
    if r is None:
        return None
    _infer(s, before)
    seed = s.read(whole)
    (found,), _ = differentiate(g, {r: seed}, [u])
    return found


def _infer(s: Scene, before: int) -> None:
    """Shapes of the nodes behind the first `before`, for those that walk them."""
    infer(appended(s.g.graph, before), s.g.opsets, s.g.fresh("dim"))
