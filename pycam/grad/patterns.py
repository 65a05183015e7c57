"""Rules of functions that exporters write as several nodes.

Such a function has a simpler derivative than the chain of its nodes has, and onnxruntime fuses it into one kernel:
a rule that reads the values inside would keep it from doing that.  These rules read the function's input and output
only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
import onnx_ir as ir

from pycam.graph.builder import Builder, constant_of

from .activation import GELU_TANH, gelu_slope, gelu_tanh_slope, hard_swish_gradient, mish_slope
from .call import Call
from .match import both_ways, clamp, close, inside, made_by, number, polynomial, products, scaled, softplus
from .norm import standardise
from .registry import VJP, Pattern, Rectifier, pattern

Slope: TypeAlias = "Callable[[Builder, ir.Value], ir.Value]"
"""`(g, x) → f'(x)`."""


@pattern("Mul")
def swish(node: ir.Node) -> Pattern | None:
    """`y = x·σ(αx)` ⇒ `dx = dy·(σ + α·y·(1 − σ))`."""
    for x, gate in both_ways(node):
        sigmoid = made_by(gate, "Sigmoid")
        if x is None or sigmoid is None:
            continue
        inner, alpha = sigmoid.inputs[0], 1.0
        times = scaled(inner)
        if inner is not x and times is not None and times[0] is x:
            inner, alpha = times
        if inner is not x:
            continue

        def vjp(g: Builder, n: Call, dy: ir.Value, x: ir.Value = x, alpha: float = alpha) -> ir.Value:
            sigma = g.Sigmoid(g.Mul(n.repeat(x), alpha) if alpha != 1.0 else n.repeat(x))
            rest = g.Mul(n.y(), g.Sub(1.0, sigma))
            return g.Mul(dy, g.Add(sigma, g.Mul(rest, alpha) if alpha != 1.0 else rest))

        return _activation(node, x, vjp) if alpha > 0 else Pattern(x, inside(node, x), vjp)
    return None


@pattern("Mul")
@pattern("Div")
def gelu(node: ir.Node) -> Pattern | None:
    """`y = x·½·(1 + erf(x/√2))` or `x·½·(1 + tanh(c(x + a·x³)))`, its factors in any order ⇒ as Gelu."""
    for scale, x, gate in products(node.outputs[0]):
        add = made_by(gate, "Add")
        if add is None or not close(scale, 0.5):
            continue
        for inner, one in both_ways(add):
            slope = _gelu_slope(inner, x) if number(one) == 1.0 else None
            if slope is not None:
                return _activation(node, x, _times(slope, x))
    return None


def _gelu_slope(gate: ir.Value | None, x: ir.Value) -> Slope | None:
    """The slope of `x·½·(1 + gate)`, if that is a GELU."""
    erf, tanh = made_by(gate, "Erf"), made_by(gate, "Tanh")
    if erf is not None:
        times = scaled(erf.inputs[0])
        return gelu_slope if times is not None and times[0] is x and close(times[1], math.sqrt(0.5)) else None
    found = polynomial(tanh.inputs[0], x) if tanh is not None else None
    a, c = GELU_TANH
    wanted = {1: c, 3: a * c}
    known = {k: v for k, v in found.items() if v} if found is not None else {}
    return gelu_tanh_slope if known.keys() == wanted.keys() and all(close(known[k], wanted[k]) for k in known) else None


@pattern("Mul")
@pattern("Div")
def hard_swish(node: ir.Node) -> Pattern | None:
    """`y = x·clip(αx + β, 0, 1)`, `α > 0` ⇒ `dy·(x ≤ −β/α ? 0 : x ≥ (1 − β)/α ? 1 : 2αx + β)`."""
    for scale, x, gate in products(node.outputs[0]):
        line = _hard_sigmoid(gate, x)
        if line is None or not close(scale * line.top, 1.0) or line.alpha * scale <= 0:
            continue
        alpha, beta = line.alpha * scale, line.beta * scale

        def vjp(
            g: Builder, n: Call, dy: ir.Value, x: ir.Value = x, alpha: float = alpha, beta: float = beta
        ) -> ir.Value:
            middle = g.Add(g.Mul(n.repeat(x), 2.0 * alpha), beta)
            return hard_swish_gradient(g, n.repeat(x), dy, middle, -beta / alpha, (1.0 - beta) / alpha)

        return _activation(node, x, vjp)
    return None


class _Line(NamedTuple):
    """`clip(alpha·x + beta, 0, top)`."""

    alpha: float
    beta: float
    top: float


def _hard_sigmoid(gate: ir.Value, x: ir.Value) -> _Line | None:
    whole, clamped = made_by(gate, "HardSigmoid"), clamp(gate)
    if whole is not None and whole.inputs[0] is x:
        return _Line(whole.attributes.get_float("alpha", 0.2), whole.attributes.get_float("beta", 0.5), 1.0)
    if clamped is None or math.isinf(clamped.high):
        return None
    line = polynomial(clamped.x, x)
    if line is None or not line.keys() <= {0, 1}:
        return None
    return _Line(line.get(1, 0.0), line.get(0, 0.0), clamped.high)


@pattern("Mul")
def mish(node: ir.Node) -> Pattern | None:
    """`y = x·tanh(softplus(x))` ⇒ as Mish."""
    for x, gate in both_ways(node):
        tanh = made_by(gate, "Tanh")
        if x is not None and tanh is not None and softplus(tanh.inputs[0]) is x:
            return _activation(node, x, _times(mish_slope, x))
    return None


def _times(slope: Slope, x: ir.Value) -> VJP:
    return lambda g, n, dy: g.Mul(dy, slope(g, n.repeat(x)))


def _activation(node: ir.Node, x: ir.Value, vjp: VJP) -> Pattern:
    """A ReLU-like activation of `x`."""
    return Pattern(x, inside(node, x), vjp, Rectifier(lambda g, n: g.Greater(n.repeat(x), 0.0), vjp))


@pattern("Div")
def standardisation(node: ir.Node) -> Pattern | None:
    """`d = x − mean(x)`, `y = d/√(mean(d²) + ε)`: the normalisation within a LayerNormalization of older opsets."""
    centred, root = node.inputs
    sub, sqrt = made_by(centred, "Sub"), made_by(root, "Sqrt")
    add = made_by(sqrt.inputs[0], "Add") if sqrt is not None else None
    if sub is None or add is None:
        return None
    x, mean = sub.inputs[0], made_by(sub.inputs[1], "ReduceMean")
    variance = next((v for a in add.inputs if (v := made_by(a, "ReduceMean")) is not None), None)
    epsilon = next((e for a in add.inputs if (e := number(a)) is not None), None)
    if x is None or x.shape is None or mean is None or variance is None or epsilon is None or mean.inputs[0] is not x:
        return None
    axes = [_axes(m, len(x.shape)) for m in (mean, variance)]
    if _square_of(variance.inputs[0]) is not centred or axes[0] is None or axes[0] != axes[1]:
        return None

    def vjp(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
        return standardise(g, n.repeat(x), list(axes[0] or []), epsilon).gradient(g, dy)

    return Pattern(x, inside(node, x), vjp)


def _square_of(x: ir.Value | None) -> ir.Value | None:
    power, product = made_by(x, "Pow"), made_by(x, "Mul")
    if power is not None:
        return power.inputs[0] if number(power.inputs[1]) == 2.0 else None
    return product.inputs[0] if product is not None and product.inputs[0] is product.inputs[1] else None


def _axes(node: ir.Node, rank: int) -> list[int] | None:
    """The axes of a ReduceMean that keeps them."""
    axes = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
    if axes is None or not node.attributes.get_int("keepdims", 1):
        return None
    return sorted(int(a) % rank for a in np.atleast_1d(axes))
