"""Which activations are ReLU-like, for the rule sets: they pass what is positive, and damp what is negative.

Activations of one node stand here, and those spelt out in several nodes whose exact gradient goes node by node
(a ReLU6 as Min of Relu, a PReLU as a sum of two Relus); Swish, GELU, HardSwish and Mish spelt out are in `patterns.py`.
Where the output has the sign of the input it is read instead, as in `activation.py`.

Not ReLU-like: what bounds both sides of 0 (Sigmoid, Tanh, Clip from elsewhere than 0), gates (the sigmoid, or hard
sigmoid however it is spelt, of another value), and activations within a recurrent layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx_ir as ir

from pycam.graph.builder import Builder

from . import activation
from .call import Call
from .match import both_ways, clamp, close, inside, made_by, number, scaled, softplus
from .registry import CONTRIB, VJP, Emit, Pattern, Rectifier, find, pattern


def of_input(g: Builder, n: Call) -> ir.Value:
    """`[x > 0]`."""
    return g.Greater(n.x(0), 0.0)


def of_output(g: Builder, n: Call) -> ir.Value:
    """`[y > 0]`, where that says the same."""
    return g.Greater(n.y(), 0.0)


def _of_either(name: str, default: float) -> Emit:
    """`[y > 0]`, if the parameter `name`, the factor below 0, is not negative; else `[x > 0]`."""
    return lambda g, n: of_output(g, n) if n.attr(name, default) >= 0 else of_input(g, n)


def _selu_slope(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    return g.Mul(dy, n.attr("gamma", activation.SELU_GAMMA))


def _one(
    op: str,
    positive: Emit,
    slope: VJP | None = None,
    when: Callable[[ir.Node], bool] = lambda _: True,
    domain: str = "",
) -> None:
    """Declare an op for a ReLU-like activation of its input 0."""

    def match(node: ir.Node) -> Pattern | None:
        x = node.inputs[0]
        return Pattern(x, frozenset(), None, Rectifier(positive, slope)) if x is not None and when(node) else None

    pattern(op, domain)(match)


def _alpha_is_positive(node: ir.Node) -> bool:
    return node.attributes.get_float("alpha", 1.0) > 0


def _exact(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    rule = find(n.node, 0)
    assert rule is not None
    return rule.vjp(g, n, dy)


_one("ThresholdedRelu", of_output)  # x where x > α: positive where both are
_one("LeakyRelu", _of_either("alpha", 0.01))
_one("Elu", _of_either("alpha", 1.0))
_one("Celu", of_output)
_one("Selu", _of_either("alpha", 1.0), _selu_slope, lambda node: node.attributes.get_float("gamma", 1.0) > 0)
for _op in ("Gelu", "HardSwish", "Mish", "Softplus"):
    _one(_op, of_input, _exact)
_one("Swish", of_input, _exact, _alpha_is_positive)
_one("QuickGelu", of_input, _exact, _alpha_is_positive, CONTRIB)


# ── clamps ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pattern("Relu")
@pattern("Clip")
@pattern("Max")
@pattern("Min")
def relu(node: ir.Node) -> Pattern | None:
    """`y = clip(x, 0, high)`: ReLU, or ReLU6 with a `high` above 1, however it is written; but no gate."""
    found = clamp(node.outputs[0])
    if found is None or not bounds_activation(0.0, found.high) or _is_part_of_gate(node, found.high):
        return None

    def positive(g: Builder, n: Call) -> ir.Value:
        above = of_output(g, n)
        return above if math.isinf(found.high) else g.And(above, g.Less(n.y(), found.high))

    return Pattern(found.x, inside(node, found.x), None, Rectifier(positive))


def bounds_activation(low: float, high: float) -> bool:
    """Whether a clamp is a ReLU or a ReLU6; one between 0 and 1 is a hard sigmoid, or bounds pixels."""
    return low == 0.0 and high > 1.0


def _is_part_of_gate(node: ir.Node, high: float) -> bool:
    """Whether a clamp is that of a hard sigmoid, `clip(z + high/2, 0, high)/high`, or the inner half of one.

    One reader is enough to tell: the walk adds others as it goes.
    """
    y = node.outputs[0]
    readers = [reader for reader, _ in y.uses()]
    if math.isinf(high):
        outer = [(r, clamp(r.outputs[0])) for r in readers if r.op_type in ("Min", "Clip")]
        bounded = [(r, c.high) for r, c in outer if c is not None and not math.isinf(c.high)]
        return any(top <= 1.0 or _is_part_of_gate(r, top) for r, top in bounded)
    found = clamp(y)
    shifted = made_by(_unquantised(found.x), "Add") if found is not None else None
    if shifted is not None and any(c is not None and close(c, high / 2) for c in map(number, shifted.inputs)):
        return True
    factors = [scaled(r.outputs[0]) for r in readers]
    return any(f is not None and f[0] is y and close(f[1], 1.0 / high) for f in factors)


def _unquantised(x: ir.Value) -> ir.Value:
    """What `x` was before it was quantised and dequantised."""
    back = made_by(x, "DequantizeLinear")
    there = made_by(back.inputs[0], "QuantizeLinear") if back is not None else None
    return there.inputs[0] if there is not None and there.inputs[0] is not None else x


# ── spelt out ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _below_0(x: ir.Value, node: ir.Node, factor: float) -> Pattern:
    """`y = x > 0 ? x : factor·x`."""
    positive = of_output if factor >= 0 else (lambda g, n: g.Greater(n.repeat(x), 0.0))
    return Pattern(x, inside(node, x), None, Rectifier(positive))


@pattern("Max")
def leaky_relu(node: ir.Node) -> Pattern | None:
    """`y = max(x, αx)`, `0 < α < 1`."""
    for x, other in both_ways(node):
        times = scaled(other)
        if x is not None and times is not None and times[0] is x and 0 < times[1] < 1:
            return _below_0(x, node, times[1])
    return None


@pattern("Where")
def chosen(node: ir.Node) -> Pattern | None:
    """`y = x > c ? x : z` where `z` is 0, `αx` (and `c` is 0), or `softplus(βx)/β`."""
    condition, a, b = node.inputs
    above = made_by(condition, "Greater", "GreaterOrEqual")
    below = made_by(condition, "Less", "LessOrEqual")
    compare, x, z = (above, a, b) if above is not None else (below, b, a)
    if compare is None or x is None or z is None:
        return None
    threshold, times, compared = number(compare.inputs[1]), scaled(z), compare.inputs[0]
    if threshold is None or threshold < 0:
        return None
    if compared is x and number(z) == 0.0:
        return Pattern(x, inside(node, x), None, Rectifier(of_output))
    if compared is x and times is not None and times[0] is x and threshold == 0:
        return _below_0(x, node, times[1])
    smooth, beta = (z, 1.0) if times is None else (times[0], 1.0 / times[1])
    inner, stretched = softplus(smooth), scaled(softplus(smooth))
    if inner is None or compared not in (x, inner):
        return None
    if not (inner is x and beta == 1.0) and not (stretched and stretched[0] is x and close(stretched[1], beta)):
        return None
    return _softplus(node, x, inner) if beta > 0 else None


@pattern("Log")
def log_of_exp(node: ir.Node) -> Pattern | None:
    """`y = log(1 + eˣ)`: Softplus."""
    x = softplus(node.outputs[0])
    return _softplus(node, x, x) if x is not None else None


def _softplus(node: ir.Node, x: ir.Value, inner: ir.Value) -> Pattern:
    """`softplus(βx)/β` with `βx` given as `inner`: the slope is `sigmoid(βx)`."""
    return Pattern(
        x,
        inside(node, x),
        None,
        Rectifier(lambda g, n: g.Greater(n.repeat(x), 0.0), lambda g, n, dy: g.Mul(dy, g.Sigmoid(n.repeat(inner)))),
    )


@pattern("Add")
@pattern("Sub")
def prelu(node: ir.Node) -> Pattern | None:
    """`y = relu(x) + slope·min(x, 0)`, the minimum written as `−relu(−x)` or `½(x − |x|)`."""
    for a, b in both_ways(node) if node.op_type == "Add" else (tuple(node.inputs),):
        above = clamp(a)
        if a is None or above is None or not math.isinf(above.high):
            continue
        if _is_below_0(_without_factors(b), above.x):

            def positive(g: Builder, n: Call, a: ir.Value = a) -> ir.Value:
                return g.Greater(n.repeat(a), 0.0)

            return Pattern(above.x, inside(node, above.x), None, Rectifier(positive))
    return None


def _without_factors(v: ir.Value | None) -> ir.Value | None:
    """`v` without the constants, of whatever shape, that it is multiplied with, and without its sign."""
    while (node := made_by(v, "Mul", "Div", "Neg")) is not None:
        if node.op_type == "Neg":
            v = node.inputs[0]
            continue
        pairs = both_ways(node) if node.op_type == "Mul" else (tuple(node.inputs),)
        rest = next((x for x, c in pairs if c is not None and c.const_value is not None), None)
        if rest is None:
            break
        v = rest
    return v


def _is_below_0(v: ir.Value | None, x: ir.Value) -> bool:
    """Whether `v` is `relu(−x)`, `x − |x|` or `min(x, 0)`."""
    turned, difference, least = clamp(v), made_by(v, "Sub"), made_by(v, "Min")
    if turned is not None:
        minus = made_by(turned.x, "Neg")
        return minus is not None and minus.inputs[0] is x and math.isinf(turned.high)
    if difference is not None:
        size = made_by(difference.inputs[1], "Abs")
        return difference.inputs[0] is x and size is not None and size.inputs[0] is x
    return least is not None and any(a is x and number(b) == 0.0 for a, b in both_ways(least))
