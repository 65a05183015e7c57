"""Rules of the elementwise ops.  Broadcasting is undone by the walk."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from pycam.graph.builder import Builder

from .call import Call
from .registry import ALL, VJP, rule, stop

Derivative: TypeAlias = "Callable[[Builder, Call], ir.Value]"


def where(
    g: Builder, condition: ir.Value, then: ir.Value | float, otherwise: ir.Value | float, like: ir.Value
) -> ir.Value:
    """`condition ? then : otherwise`; numbers get the dtype of `like`."""
    a, b = (v if isinstance(v, ir.Value) else g.constant(v, like.dtype) for v in (then, otherwise))
    return g.Where(condition, a, b)


def masked(g: Builder, dy: ir.Value, condition: ir.Value) -> ir.Value:
    """`dy·[condition]`.  Cast and Mul: onnxruntime's Where takes a quarter more time, and peepholes see through Mul."""
    return g.Mul(dy, g.Cast(condition, to=dy.dtype))


def derivative(op: str, of: Derivative) -> VJP:
    """Register `dx = dy·f'(x)` for a unary op, where `of` emits `f'(x)`."""

    def unary(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
        return g.Mul(dy, of(g, n))

    unary.__name__, unary.__module__ = op.lower(), of.__module__  # of the family that declares it
    return rule(op)(unary)


# ── arithmetic ──────────────────────────────────────────────────────────────────────────────────────────────────────


@rule("Add", 0, 1, broadcasts="inputs")
@rule("Sum", ALL, broadcasts="inputs")
@rule("Sub", 0, broadcasts="inputs")
@rule("Identity")
def same(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`dx = dy`."""
    return dy


@rule("Sub", 1, broadcasts="inputs")
@rule("Neg")
def negated(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`dx = −dy`."""
    return g.Neg(dy)


@rule("Mean", ALL, broadcasts="inputs")
def mean(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = Σx_k / n` ⇒ `dx = dy / n`."""
    return g.Div(dy, float(len(n.node.inputs)))


@rule("Mul", 0, 1, broadcasts="inputs")
def mul(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = a·b` ⇒ `da = dy·b`, `db = dy·a`."""
    return g.Mul(dy, n.x(1 - n.i))


@rule("Div", 0, broadcasts="inputs")
def div_numerator(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = a/b` ⇒ `da = dy/b`."""
    return g.Div(dy, n.x(1))


@rule("Div", 1, broadcasts="inputs")
def div_denominator(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = a/b` ⇒ `db = −dy·a/b² = −dy·y/b`: `b²`, which could overflow, is not needed."""
    return g.Neg(g.Div(g.Mul(dy, n.y()), n.x(1)))


@rule("Pow", 0, broadcasts="inputs")
def pow_base(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = x^e` ⇒ `dx = dy·e·x^(e−1)`, and 0 where `e = 0` (also at `x = 0`, as PyTorch)."""
    x, known = n.x(0), n.const(1)
    if known is not None and known.size == 1:
        if known.item() == 0.5:
            return sqrt(g, n, dy)
        if known.item() == 1.0:
            return dy
        if known.item() == 2.0:
            return g.Mul(dy, g.Mul(x, 2.0))
    e = n.x(1) if n.x(1).dtype == x.dtype else g.Cast(n.x(1), to=x.dtype)
    slope = g.Mul(e, g.Pow(x, g.Sub(e, 1.0)))
    return g.Mul(dy, where(g, g.Equal(e, 0.0), 0.0, slope, dy))


@rule("Pow", 1, broadcasts="inputs")
def pow_exponent(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = x^e` ⇒ `de = dy·y·ln x`, and 0 where `x = 0` and `e ≥ 0` (`y` is 0 or 1 there; as PyTorch)."""
    x, e = n.x(0), n.x(1)
    flat = g.And(g.Equal(x, 0.0), g.GreaterOrEqual(e, 0.0))
    slope = g.Mul(n.y(), g.Log(x))
    de = g.Mul(dy, where(g, flat, 0.0, slope, slope))
    return de if e.dtype == de.dtype else g.Cast(de, to=e.dtype)


@rule("Min", ALL, broadcasts="inputs")
@rule("Max", ALL, broadcasts="inputs")
def extremum(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`dx_k = dy·[x_k = y] / Σ_j [x_j = y]`: ties share evenly, as `torch.maximum` (for two inputs: a half each)."""
    if len(n.node.inputs) == 1:
        return dy
    chosen = [g.Cast(g.Equal(n.x(j), n.y()), to=dy.dtype) for j in range(len(n.node.inputs))]
    return g.Div(g.Mul(dy, chosen[n.i]), g.Sum(*chosen))


@rule("Clip")
def clip(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`dx = dy·[lo < y < hi]`, read from the output.

    0 at the bounds, as PyTorch's `hardtanh` and `relu6`, which exporters write as Clip.  `torch.clamp` differs exactly
    at a bound: it passes the gradient there.
    """
    inside = [
        compare(n.y(), n.x(i)) for i, compare in ((1, g.Greater), (2, g.Less)) if n.has(i) and not _unbounded(n, i)
    ]
    if not inside:
        return dy
    return masked(g, dy, g.And(*inside) if len(inside) == 2 else inside[0])


def _unbounded(n: Call, i: int) -> bool:
    """Whether a bound of Clip is the largest float or beyond: the exporter's way to write none."""
    bound = n.const(i)
    return bound is not None and bool(abs(float(bound.reshape(()))) >= np.finfo(np.float32).max)


stop("Clip", 1, 2, why="bounds are hyperparameters")


@rule("Where", 1, 2, broadcasts="inputs")
def select(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = c ? a : b` ⇒ `da = c ? dy : 0`, `db = c ? 0 : dy`."""
    return where(g, n.x(0), dy, 0.0, dy) if n.i == 1 else where(g, n.x(0), 0.0, dy, dy)


@rule("Dropout")
def dropout(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """At inference Dropout is the identity: `dx = dy`."""
    training = n.const(2)
    if n.has(2) and (training is None or bool(training.reshape(()))):
        raise n.refuse("it may be in training mode: export the model in evaluation mode")
    return dy


# ── functions of one variable ───────────────────────────────────────────────────────────────────────────────────────


@rule("Sqrt")
def sqrt(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`dx = dy / 2y`: infinite at 0, as PyTorch."""
    return g.Div(dy, g.Mul(n.y(), 2.0))


@rule("Log")
def log(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`dx = dy / x`."""
    return g.Div(dy, n.x())


@rule("Erf")
def erf(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`dx = dy·2/√π·exp(−x²)`."""
    return g.Mul(dy, g.Mul(g.Exp(g.Neg(g.Mul(n.x(), n.x()))), 2.0 / math.sqrt(math.pi)))


def _one_minus_square(g: Builder, x: ir.Value) -> ir.Value:
    """`1 − x²` without cancellation near ±1."""
    return g.Mul(g.Sub(1.0, x), g.Add(1.0, x))


derivative("Exp", lambda g, n: n.y())
derivative("Abs", lambda g, n: g.Sign(n.x()))  # 0 at the kink, as PyTorch
derivative("Reciprocal", lambda g, n: g.Neg(g.Mul(n.y(), n.y())))
derivative("Sin", lambda g, n: g.Cos(n.x()))
derivative("Cos", lambda g, n: g.Neg(g.Sin(n.x())))
derivative("Tan", lambda g, n: g.Add(g.Mul(n.y(), n.y()), 1.0))
derivative("Asin", lambda g, n: g.Reciprocal(g.Sqrt(_one_minus_square(g, n.x()))))
derivative("Acos", lambda g, n: g.Neg(g.Reciprocal(g.Sqrt(_one_minus_square(g, n.x())))))
derivative("Atan", lambda g, n: g.Reciprocal(g.Add(g.Mul(n.x(), n.x()), 1.0)))
derivative("Sinh", lambda g, n: g.Cosh(n.x()))
derivative("Cosh", lambda g, n: g.Sinh(n.x()))
derivative("Asinh", lambda g, n: g.Reciprocal(g.Sqrt(g.Add(g.Mul(n.x(), n.x()), 1.0))))
derivative("Acosh", lambda g, n: g.Reciprocal(g.Sqrt(g.Mul(g.Sub(n.x(), 1.0), g.Add(n.x(), 1.0)))))
derivative("Atanh", lambda g, n: g.Reciprocal(_one_minus_square(g, n.x())))


# ── without gradient ────────────────────────────────────────────────────────────────────────────────────────────────

stop("Where", 0, why="the condition is boolean")
stop("Dropout", 1, 2, why="ratio and mode are settings")
for _op in ("Sign", "Floor", "Ceil", "Round"):
    stop(_op, ALL, why="piecewise constant: the gradient is 0 almost everywhere")
for _op in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "And", "Or", "Xor", "IsNaN", "IsInf"):
    stop(_op, ALL, why="the output is boolean")
