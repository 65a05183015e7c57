"""Rules of functions that exporters write as several nodes.

Such a function has a simpler derivative than the chain of its nodes has, and onnxruntime fuses it into one kernel:
a rule that reads the values inside would keep it from doing that.  These rules read the function's input and output
only.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from pycam.graph.builder import Builder, constant_of

from .activation import gelu_slope
from .call import Call
from .norm import standardise
from .registry import Pattern, pattern


@pattern("Mul")
def swish(node: ir.Node) -> Pattern | None:
    """`y = x·σ(αx)` ⇒ `dx = dy·(σ + α·y·(1 − σ))`."""
    for x, gate in _both_ways(node):
        sigmoid = _made_by(gate, "Sigmoid")
        if x is None or sigmoid is None:
            continue
        inner, alpha = sigmoid.inputs[0], 1.0
        scaled = _scaled(inner)
        if inner is not x and scaled is not None and scaled[0] is x:
            inner, alpha = scaled
        if inner is not x:
            continue

        def vjp(g: Builder, n: Call, dy: ir.Value, x: ir.Value = x, alpha: float = alpha) -> ir.Value:
            sigma = g.Sigmoid(g.Mul(n.repeat(x), alpha) if alpha != 1.0 else n.repeat(x))
            rest = g.Mul(n.y(), g.Sub(1.0, sigma))
            return g.Mul(dy, g.Add(sigma, g.Mul(rest, alpha) if alpha != 1.0 else rest))

        return Pattern(x, _inside(node, x), vjp)
    return None


@pattern("Mul")
def gelu(node: ir.Node) -> Pattern | None:
    """`y = x·½·(1 + erf(x/√2))`, its factors in any order ⇒ as Gelu."""
    factors = _factors(node)
    half = [f for f in factors if _number(f) is not None]
    rest = [f for f in factors if _number(f) is None]
    if len(half) != 1 or len(rest) != 2 or not math.isclose(_number(half[0]) or 0.0, 0.5):
        return None
    for x, gate in (rest, rest[::-1]):
        add = _made_by(gate, "Add")
        erf = next((e for v in add.inputs if (e := _made_by(v, "Erf")) is not None), None) if add is not None else None
        if add is None or erf is None or not any(_number(v) == 1.0 for v in add.inputs):
            continue
        scaled = _scaled(erf.inputs[0])
        if scaled is not None and scaled[0] is x and math.isclose(scaled[1], math.sqrt(0.5), rel_tol=1e-3):

            def vjp(g: Builder, n: Call, dy: ir.Value, x: ir.Value = x) -> ir.Value:
                return g.Mul(dy, gelu_slope(g, n.repeat(x)))

            return Pattern(x, _inside(node, x), vjp)
    return None


@pattern("Div")
def standardisation(node: ir.Node) -> Pattern | None:
    """`d = x − mean(x)`, `y = d/√(mean(d²) + ε)`: the normalisation within a LayerNormalization of older opsets."""
    centred, root = node.inputs
    sub, sqrt = _made_by(centred, "Sub"), _made_by(root, "Sqrt")
    add = _made_by(sqrt.inputs[0], "Add") if sqrt is not None else None
    if sub is None or add is None:
        return None
    x, mean = sub.inputs[0], _made_by(sub.inputs[1], "ReduceMean")
    variance = next((v for a in add.inputs if (v := _made_by(a, "ReduceMean")) is not None), None)
    epsilon = next((e for a in add.inputs if (e := _number(a)) is not None), None)
    if x is None or x.shape is None or mean is None or variance is None or epsilon is None or mean.inputs[0] is not x:
        return None
    axes = [_axes(m, len(x.shape)) for m in (mean, variance)]
    if _square_of(variance.inputs[0]) is not centred or axes[0] is None or axes[0] != axes[1]:
        return None

    def vjp(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
        return standardise(g, n.repeat(x), list(axes[0] or []), epsilon).gradient(g, dy)

    return Pattern(x, _inside(node, x), vjp)


def _made_by(x: ir.Value | None, op: str) -> ir.Node | None:
    node = x.producer() if x is not None else None
    return node if node is not None and node.op_type == op and node.domain == "" else None


def _both_ways(node: ir.Node) -> tuple[tuple[ir.Value | None, ir.Value | None], ...]:
    a, b = node.inputs
    return (a, b), (b, a)


def _number(x: ir.Value | None) -> float | None:
    """The number that a constant holds, if it is one."""
    array = constant_of(x) if x is not None and x.const_value is not None and x.const_value.size == 1 else None
    return float(array.reshape(())) if array is not None and array.dtype.kind == "f" else None


def _scaled(x: ir.Value | None) -> tuple[ir.Value, float] | None:
    """(z, α) if `x` is `z·α` or `z/(1/α)`."""
    for op in ("Mul", "Div"):
        node = _made_by(x, op)
        if node is None:
            continue
        for z, factor in _both_ways(node) if op == "Mul" else (tuple(node.inputs),):
            number = _number(factor)
            if z is not None and number:
                return z, number if op == "Mul" else 1.0 / number
    return None


def _factors(node: ir.Node) -> list[ir.Value]:
    """The factors of a product of up to three."""
    result: list[ir.Value] = []
    for x in node.inputs:
        inner = _made_by(x, "Mul")
        values = inner.inputs if inner is not None and len(result) < 2 else [x]
        result += [v for v in values if v is not None]
    return result


def _square_of(x: ir.Value | None) -> ir.Value | None:
    power, product = _made_by(x, "Pow"), _made_by(x, "Mul")
    if power is not None:
        return power.inputs[0] if _number(power.inputs[1]) == 2.0 else None
    return product.inputs[0] if product is not None and product.inputs[0] is product.inputs[1] else None


def _axes(node: ir.Node, rank: int) -> list[int] | None:
    """The axes of a ReduceMean that keeps them."""
    axes = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
    if axes is None or not node.attributes.get_int("keepdims", 1):
        return None
    return sorted(int(a) % rank for a in np.atleast_1d(axes))


def _inside(node: ir.Node, x: ir.Value) -> frozenset[ir.Value]:
    """The values between `x` and the output of `node`."""
    found: set[ir.Value] = set()
    waiting = [v for v in node.inputs if v is not None and v is not x]
    while waiting:
        value = waiting.pop()
        producer = value.producer()
        if value in found or producer is None:
            continue
        found.add(value)
        waiting += [v for v in producer.inputs if v is not None and v is not x]
    return frozenset(found)
