"""Rules of the activations.

They read the output `y` where the algebra allows: reading the input of an activation stops onnxruntime from fusing it
with the convolution before.  At a kink they follow PyTorch.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from pycam.graph.builder import Builder

from .call import Call
from .elementwise import derivative, masked, where
from .registry import Rectifier, rule, stop

# ── piecewise linear ────────────────────────────────────────────────────────────────────────────────────────────────


@rule("Relu")
def relu(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`dy·[y > 0]`; 0 at the kink, as PyTorch."""
    return masked(g, dy, g.Greater(n.y(), 0.0))


@rule("LeakyRelu")
def leaky_relu(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`dy·(x > 0 ? 1 : α)`; `x` and `y` have the same sign if `α ≥ 0`.  α at the kink."""
    alpha = n.attr("alpha", 0.01)
    positive = g.Greater(n.y() if alpha >= 0 else n.x(), 0.0)
    return g.Mul(dy, where(g, positive, 1.0, alpha, dy))


@rule("PRelu", 0, broadcasts="inputs")
def prelu(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`dy·(x > 0 ? 1 : slope)`; `x` and `y` have the same sign if no slope is negative.  The slope at the kink."""
    if n.rule_set is not None:
        return n.rule_set(g, n, dy, Rectifier(_prelu_positive))
    return g.Mul(dy, where(g, _prelu_positive(g, n), 1.0, n.x(1), dy))


def _prelu_positive(g: Builder, n: Call) -> ir.Value:
    slope = n.const(1)
    return g.Greater(n.y() if slope is not None and (slope >= 0).all() else n.x(0), 0.0)


@rule("PRelu", 1, broadcasts="inputs")
def prelu_slope(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = slope·x` where `x ≤ 0` ⇒ `d slope = dy·min(x, 0)`."""
    return g.Mul(dy, g.Min(n.x(0), 0.0))


@rule("ThresholdedRelu")
def thresholded_relu(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = [x > α]·x` ⇒ `dy·[x > α]`, which is `dy·[y > 0]` if `α ≥ 0`.  0 at the threshold, as PyTorch."""
    alpha = n.attr("alpha", 1.0)
    return masked(g, dy, g.Greater(n.y(), 0.0) if alpha >= 0 else g.Greater(n.x(), alpha))


@rule("HardSigmoid")
def hard_sigmoid(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = clip(αx + β, 0, 1)` ⇒ `dy·α·[0 < y < 1]`; 0 at the kinks, as PyTorch."""
    inside = g.And(g.Greater(n.y(), 0.0), g.Less(n.y(), 1.0))
    return g.Mul(masked(g, dy, inside), n.attr("alpha", 0.2))


@rule("HardSwish")
def hard_swish(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = x·clip(x/6 + ½, 0, 1)` ⇒ `dy·(x ≤ −3 ? 0 : x ≥ 3 ? 1 : x/3 + ½)`.

    0 and 1 at the kinks, the one-sided derivatives of smaller size, as PyTorch since its #148049 (before: −½, 1½).
    """
    return hard_swish_gradient(g, n.x(), dy, g.Add(g.Div(n.x(), 3.0), 0.5), -3.0, 3.0)


def hard_swish_gradient(g: Builder, x: ir.Value, dy: ir.Value, middle: ir.Value, low: float, high: float) -> ir.Value:
    """`dy·(x ≤ low ? 0 : x ≥ high ? 1 : middle)`."""
    below_high = where(g, g.Less(x, high), middle, 1.0, dy)
    return g.Mul(dy, where(g, g.Greater(x, low), below_high, 0.0, dy))


@rule("Shrink")
def shrink(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = x ∓ bias` where `|x| > λ`, else 0 ⇒ `dy·[|x| > λ]`."""
    return masked(g, dy, g.Greater(g.Abs(n.x()), n.attr("lambd", 0.5)))


# ── exponential below 0 ─────────────────────────────────────────────────────────────────────────────────────────────


@rule("Elu")
def elu(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = x > 0 ? x : α(eˣ − 1)` ⇒ `dy·(x > 0 ? 1 : α·eˣ)`, and `α·eˣ = y + α`.  α at the kink, as PyTorch."""
    return _exponential_below(g, n, dy, 1.0, n.attr("alpha", 1.0))


SELU_GAMMA = 1.05070102214813232421875


@rule("Selu")
def selu(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`γ·elu(x, α)` ⇒ `dy·(x > 0 ? γ : γα·eˣ)`, and `γα·eˣ = y + γα`.  γα at the kink, as PyTorch."""
    alpha = n.attr("alpha", 1.67326319217681884765625)
    gamma = n.attr("gamma", SELU_GAMMA)
    return _exponential_below(g, n, dy, gamma, gamma * alpha)


def _exponential_below(g: Builder, n: Call, dy: ir.Value, above: float, below: float) -> ir.Value:
    """`dy·(x > 0 ? above : below·eˣ)`; read from the output, if its sign is that of the input."""
    positive = g.Greater(n.y() if above >= 0 and below >= 0 else n.x(), 0.0)
    return g.Mul(dy, where(g, positive, above, g.Add(n.y(), below), dy))


@rule("Celu")
def celu(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = max(x, 0) + min(0, α(exp(x/α) − 1))` ⇒ `dy·(x > 0 ? 1 : exp(x/α))`, and `exp(x/α) = y/α + 1`."""
    slope = g.Add(g.Div(n.y(), n.attr("alpha", 1.0)), 1.0)
    return g.Mul(dy, where(g, g.Greater(n.y(), 0.0), 1.0, slope, dy))


# ── smooth ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _slope_of_sigmoid(g: Builder, y: ir.Value) -> ir.Value:
    """`y(1 − y)`."""
    return g.Mul(y, g.Sub(1.0, y))


def _slope_of_tanh(g: Builder, y: ir.Value) -> ir.Value:
    """`1 − y²`."""
    return g.Sub(1.0, g.Mul(y, y))


derivative("Sigmoid", lambda g, n: _slope_of_sigmoid(g, n.y()))
derivative("Tanh", lambda g, n: _slope_of_tanh(g, n.y()))
derivative("Softplus", lambda g, n: g.Sigmoid(n.x()))


@rule("Softsign")
def softsign(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = x/(1 + |x|)` ⇒ `dy/(1 + |x|)²`, divided twice: the square could overflow."""
    denominator = g.Add(g.Abs(n.x()), 1.0)
    return g.Div(g.Div(dy, denominator), denominator)


@rule("Swish")
def swish(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = x·σ`, `σ = sigmoid(αx)` ⇒ `dy·(σ + αx·σ(1 − σ)) = dy·(σ + α·y·(1 − σ))`."""
    return swish_gradient(g, n, dy, float(n.attr("alpha", 1.0)))


def swish_gradient(g: Builder, n: Call, dy: ir.Value, alpha: float) -> ir.Value:
    """The gradient of `y = x·sigmoid(αx)`, which is node `n`."""
    sigma = g.Sigmoid(_times(g, n.x(), alpha))
    return g.Mul(dy, g.Add(sigma, g.Mul(_times(g, n.y(), alpha), g.Sub(1.0, sigma))))


def _times(g: Builder, x: ir.Value, alpha: float) -> ir.Value:
    return g.Mul(x, alpha) if alpha != 1.0 else x


@rule("SwiGLU", 0)
def swiglu_gate(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = a·σ·b`, `σ = sigmoid(αa)` ⇒ `da = dy·b·(σ + α·aσ·(1 − σ))`."""
    alpha, d_swish = float(n.attr("alpha", 1.0)), g.Mul(dy, n.x(1))
    if n.rule_set is not None and alpha > 0:
        return n.rule_set(g, n, d_swish, Rectifier(lambda g, n: g.Greater(n.x(0), 0.0), _swiglu_slope))
    return _swiglu_slope(g, n, d_swish)


def _swiglu_slope(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`dy·(σ + α·aσ·(1 − σ))`."""
    alpha = float(n.attr("alpha", 1.0))
    sigma = g.Sigmoid(_times(g, n.x(0), alpha))
    inner = g.Mul(_times(g, g.Mul(n.x(0), sigma), alpha), g.Sub(1.0, sigma))
    return g.Mul(dy, g.Add(sigma, inner))


@rule("SwiGLU", 1)
def swiglu_linear(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = a·sigmoid(αa)·b` ⇒ `db = dy·a·sigmoid(αa)`."""
    return g.Mul(dy, g.Mul(n.x(0), g.Sigmoid(_times(g, n.x(0), float(n.attr("alpha", 1.0))))))


@rule("Mish")
def mish(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = x·t`, `t = tanh(softplus(x))` ⇒ `dy·(t + x·(1 − t²)·sigmoid(x))`."""
    return g.Mul(dy, mish_slope(g, n.x()))


def mish_slope(g: Builder, x: ir.Value) -> ir.Value:
    """`t + x·(1 − t²)·sigmoid(x)`."""
    t = g.Tanh(g.Softplus(x))
    return g.Add(t, g.Mul(x, g.Mul(_slope_of_tanh(g, t), g.Sigmoid(x))))


GELU_TANH = (0.044715, math.sqrt(2.0 / math.pi))
"""`(a, c)` of `gelu(x) ≈ ½x(1 + tanh(c(x + a·x³)))`."""


@rule("Gelu")
def gelu(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = x·Φ(x)` ⇒ `dy·(Φ + x·φ)`, `Φ = ½(1 + erf(x/√2))`, `φ = exp(−x²/2)/√(2π)`."""
    if n.attr("approximate", "none") == "tanh":
        return g.Mul(dy, gelu_tanh_slope(g, n.x()))
    return g.Mul(dy, gelu_slope(g, n.x()))


def gelu_slope(g: Builder, x: ir.Value) -> ir.Value:
    """`Φ(x) + x·φ(x)`."""
    cdf = g.Mul(g.Add(g.Erf(g.Mul(x, math.sqrt(0.5))), 1.0), 0.5)
    pdf = g.Mul(g.Exp(g.Mul(g.Mul(x, x), -0.5)), 1.0 / math.sqrt(2.0 * math.pi))
    return g.Add(cdf, g.Mul(x, pdf))


def gelu_tanh_slope(g: Builder, x: ir.Value) -> ir.Value:
    """`y = ½x(1 + t)`, `t = tanh(c(x + a·x³))` ⇒ `½(1 + t + s·c·(1 + 3a·x²))`, `s = x(1 − t²)`.

    `s·x²` is computed as `(s·x)·x`: `s` is 0 long before `x²` overflows.
    """
    a, c = GELU_TANH
    t = g.Tanh(g.Mul(g.Mul(x, g.Add(g.Mul(g.Mul(x, x), a), 1.0)), c))
    s = g.Mul(x, _slope_of_tanh(g, t))
    inner = g.Add(s, g.Mul(g.Mul(g.Mul(s, x), x), 3.0 * a))
    return g.Mul(g.Add(g.Add(t, 1.0), g.Mul(inner, c)), 0.5)


# ── over an axis ────────────────────────────────────────────────────────────────────────────────────────────────────


@rule("Softmax")
def softmax(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`dx = y·(dy − Σ dy·y)` over the axis."""
    total = g.ReduceSum(g.Mul(dy, n.y()), [_axis(n)], keepdims=1)
    return g.Mul(n.y(), g.Sub(dy, total))


@rule("LogSoftmax")
def log_softmax(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`dx = dy − eʸ·Σ dy` over the axis."""
    return g.Sub(dy, g.Mul(g.Exp(n.y()), g.ReduceSum(dy, [_axis(n)], keepdims=1)))


def _axis(n: Call) -> int:
    return int(n.attr("axis", -1)) % n.rank()


stop("Hardmax", 0, why="piecewise constant: the gradient is 0 almost everywhere")
