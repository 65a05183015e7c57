"""What recognises functions that exporters write as several nodes looks at them with."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from pycam.graph.builder import constant_of

Polynomial: TypeAlias = dict[int, float]
"""Degree → coefficient."""


def made_by(x: ir.Value | None, *ops: str) -> ir.Node | None:
    """The node that computes `x`, if it is one of `ops` of the standard."""
    node = x.producer() if x is not None else None
    return node if node is not None and node.op_type in ops and node.domain == "" else None


def both_ways(node: ir.Node) -> tuple[tuple[ir.Value | None, ir.Value | None], ...]:
    """The two inputs of a node, and the same exchanged; nothing where there are not two."""
    if len(node.inputs) != 2:
        return ()
    a, b = node.inputs
    return (a, b), (b, a)


def number(x: ir.Value | None) -> float | None:
    """The number that a constant holds, if it is one."""
    array = constant_of(x) if x is not None and x.const_value is not None and x.const_value.size == 1 else None
    return float(array.reshape(())) if array is not None and array.dtype.kind == "f" else None


def close(a: float, b: float) -> bool:
    """Whether two numbers are the same, one of them perhaps in float16."""
    return math.isclose(a, b, rel_tol=1e-3)


def scaled(x: ir.Value | None) -> tuple[ir.Value, float] | None:
    """(z, α) if `x` is `z·α` or `z/(1/α)`."""
    node = made_by(x, "Mul", "Div")
    if node is None:
        return None
    for z, factor in both_ways(node) if node.op_type == "Mul" else (tuple(node.inputs),):
        found = number(factor)
        if z is not None and found:
            return z, found if node.op_type == "Mul" else 1.0 / found
    return None


def products(y: ir.Value) -> Iterator[tuple[float, ir.Value, ir.Value]]:
    """All (α, a, b) with `y = α·a·b` and at most one constant taken out of each factor and of the whole."""
    whole = scaled(y)
    if whole is not None:
        yield from ((whole[1] * scale, a, b) for scale, a, b in _factors(whole[0]))
    yield from _factors(y)


def _factors(y: ir.Value) -> Iterator[tuple[float, ir.Value, ir.Value]]:
    node = made_by(y, "Mul")
    if node is None or any(x is None or x.const_value is not None for x in node.inputs):
        return
    for a, b in both_ways(node):
        assert a is not None and b is not None
        inner_a, inner_b = scaled(a), scaled(b)
        yield 1.0, a, b
        if inner_b is not None:
            yield inner_b[1], a, inner_b[0]
        if inner_a is not None:
            yield inner_a[1], inner_a[0], b
        if inner_a is not None and inner_b is not None:
            yield inner_a[1] * inner_b[1], inner_a[0], inner_b[0]


def polynomial(y: ir.Value | None, x: ir.Value, depth: int = 6) -> Polynomial | None:
    """`y` as a polynomial in `x` of degree 3 or less, if it is made of sums, products and powers with numbers."""
    if y is x:
        return {1: 1.0}
    known = number(y)
    if known is not None:
        return {0: known}
    node = made_by(y, "Add", "Sub", "Mul", "Div", "Pow") if depth else None
    if node is None:
        return None
    right = number(node.inputs[1])
    if node.op_type in ("Div", "Pow"):
        left = polynomial(node.inputs[0], x, depth - 1) if right else None
        if left is None or right is None:
            return None
        if node.op_type == "Div":
            return {k: c / right for k, c in left.items()}
        return {int(right): 1.0} if left == {1: 1.0} and right in (2.0, 3.0) else None
    p, q = (polynomial(v, x, depth - 1) for v in node.inputs)
    if p is None or q is None:
        return None
    result: Polynomial = {}
    if node.op_type == "Mul":
        for (i, a), (j, b) in ((i, j) for i in p.items() for j in q.items()):
            result[i + j] = result.get(i + j, 0.0) + a * b
    else:
        sign = 1.0 if node.op_type == "Add" else -1.0
        result = {k: p.get(k, 0.0) + sign * q.get(k, 0.0) for k in {*p, *q}}
    return result if max(result) <= 3 else None


def softplus(y: ir.Value | None) -> ir.Value | None:
    """x if `y` is `softplus(x)`, or `log(1 + eˣ)` written out."""
    whole, log = made_by(y, "Softplus"), made_by(y, "Log")
    if whole is not None:
        return whole.inputs[0]
    add = made_by(log.inputs[0], "Add") if log is not None else None
    for a, b in both_ways(add) if add is not None else ():
        exp = made_by(a, "Exp")
        if exp is not None and number(b) == 1.0:
            return exp.inputs[0]
    return None


@dataclass(frozen=True)
class Clamp:
    """`clip(x, 0, high)`."""

    x: ir.Value
    high: float


_LARGEST = float(np.finfo(np.float32).max)
"""A bound that exporters write for none."""


def clamp(y: ir.Value | None) -> Clamp | None:
    """What `y` is the clamp of, from 0 up: a Relu, a Clip, or a Min or Max with a number, or one of each."""
    if y is None:
        return None
    low, high = _bounded_below(y), _bounded_above(y)
    clip = made_by(y, "Clip")
    bounded = clip is not None and len(clip.inputs) == 3 and clip.inputs[2] is not None
    if clip is not None and bounded and clip.inputs[0] is not None and number(clip.inputs[1]) == 0.0:
        top = number(clip.inputs[2])
        return Clamp(clip.inputs[0], top if top < _LARGEST else math.inf) if top is not None else None
    if high is not None:
        inner = _bounded_below(high[0])
        return Clamp(inner, high[1]) if inner is not None else None
    if low is not None:
        outer = _bounded_above(low)
        return Clamp(*outer) if outer is not None else Clamp(low, math.inf)
    return None


def _bounded_below(y: ir.Value) -> ir.Value | None:
    """x if `y` is `max(x, 0)`."""
    node = made_by(y, "Relu", "Max", "Clip")
    if node is None:
        return None
    if node.op_type == "Max":
        return next((x for x, bound in both_ways(node) if number(bound) == 0.0), None)
    if node.op_type == "Clip":
        unbounded = len(node.inputs) == 2 or (len(node.inputs) == 3 and node.inputs[2] is None)
        return node.inputs[0] if unbounded and number(node.inputs[1]) == 0.0 else None
    return node.inputs[0]


def _bounded_above(y: ir.Value) -> tuple[ir.Value, float] | None:
    """(x, c) if `y` is `min(x, c)`."""
    node = made_by(y, "Min", "Clip")
    if node is None:
        return None
    if node.op_type == "Min":
        pairs = both_ways(node)
    else:
        pairs = ((node.inputs[0], node.inputs[2]),) if len(node.inputs) == 3 and node.inputs[1] is None else ()
    return next(((x, c) for x, b in pairs if x is not None and (c := number(b)) is not None), None)


def inside(node: ir.Node, x: ir.Value) -> frozenset[ir.Value]:
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
