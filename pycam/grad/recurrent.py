"""Recurrent layers, written out as a Scan over their steps.

    RNN   h' = f(x·Wᵀ + h·Rᵀ + b)
    GRU   z, r = f(…),  h̃ = g(x·Wᵀ + (r∘h)·Rᵀ + b),  h' = (1 − z)∘h̃ + z∘h
    LSTM  i, o, f = f(…),  c' = f∘c + i∘g(…),  h' = o∘h(c')

`x·Wᵀ + b` does not depend on the step before, and is one product for all steps in front of the Scan.  A step behind
the end of its sequence hands on its state and gives zeros.  Under `lower="portable"` up to `_UNROLLED` steps are
written out one after the other, without a Scan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from pycam.graph.builder import Builder

from .bodies import copy_of, leave, typed
from .call import Call, Dim
from .registry import expansion

_UNROLLED = 64

Activation = Callable[[Builder, ir.Value], ir.Value]
Step = Callable[[Builder, ir.Value, Sequence[ir.Value]], list[ir.Value]]
"""(builder, the step's share of `x·Wᵀ + b`, states) → states, the hidden one first."""


@dataclass(frozen=True)
class Layer:
    """One direction of a recurrent layer: its weights, as values of the graph."""

    g: Builder
    n: Call
    direction: int
    gates: int
    size: int  # H

    def weight(self, i: int) -> ir.Value:
        """Input `i` (directions outermost) for this direction."""
        d = self.direction
        return self.g.Squeeze(self.g.Slice(self.n.x(i), [d], [d + 1], [0]), [0])

    def recurrence(self, first: int = 0, last: int | None = None) -> ir.Value:
        """`Rᵀ` for the gates `first…last`."""
        return self.g.Transpose(self._rows(self.weight(2), first, last or self.gates), perm=[1, 0])

    def bias(self, first: int, last: int) -> ir.Value | None:
        """The entries of `B` for the gates `first…last`, those of `R` counted after those of `W`."""
        return self._rows(self.weight(3), first, last) if self.n.has(3) else None

    def peephole(self, which: int) -> ir.Value | None:
        return self._rows(self.weight(7), which, which + 1) if self.n.has(7) else None

    def activations(self, count: int, default: Sequence[str], clipped: int | None = None) -> list[Activation]:
        """The activation functions of this direction, the first `clipped` of them (None: all) with a clip before."""
        names = [str(name).lower() for name in self.n.attr("activations") or [*default, *default]]
        alphas, betas = (iter(self.n.attr(f"activation_{which}") or []) for which in ("alpha", "beta"))
        every = [_activation(self.n, name, alphas, betas) for name in names]
        mine = every[self.direction * count : (self.direction + 1) * count]
        clip = self.n.attr("clip")
        return (
            [*(_clipped(f, float(clip)) for f in mine[:clipped]), *mine[count if clipped is None else clipped :]]
            if clip
            else mine
        )

    def _rows(self, x: ir.Value, first: int, last: int) -> ir.Value:
        return self.g.Slice(x, [first * self.size], [last * self.size], [0])


def _clipped(f: Activation, bound: float) -> Activation:
    return lambda g, x: f(g, g.Clip(x, -bound, bound))


_PLAIN: dict[str, str] = {
    name.lower(): name for name in ("Tanh", "Sigmoid", "Relu", "Softsign", "Softplus")
}  # fmt: skip
_ATTRIBUTES: dict[str, tuple[str, dict[str, float]]] = {
    "leakyrelu": ("LeakyRelu", {"alpha": 0.01}),
    "thresholdedrelu": ("ThresholdedRelu", {"alpha": 1.0}),
    "elu": ("Elu", {"alpha": 1.0}),
    "hardsigmoid": ("HardSigmoid", {"alpha": 0.2, "beta": 0.5}),
}
"""Activations whose parameters are those of the op, with their defaults."""
_SCALED: dict[str, Callable[[Builder, ir.Value, float, float], ir.Value]] = {
    "scaledtanh": lambda g, x, alpha, beta: g.Mul(g.Tanh(g.Mul(x, beta)), alpha),
    "affine": lambda g, x, alpha, beta: g.Add(g.Mul(x, alpha), beta),
}
"""Activations that are no op; ONNX names no defaults for their parameters."""


def _activation(n: Call, name: str, alphas: Iterator[float], betas: Iterator[float]) -> Activation:
    """The function called `name`; parameters are given in turn to the functions that have them."""
    if name in _PLAIN:
        return lambda g, x: g.emit(_PLAIN[name], [x])[0]
    if name in _ATTRIBUTES:
        op, defaults = _ATTRIBUTES[name]
        given = {"alpha": alphas, "beta": betas}
        attributes = {which: float(next(given[which], default)) for which, default in defaults.items()}
        return lambda g, x: g.emit(op, [x], attributes)[0]
    if name not in _SCALED:
        raise n.refuse(f"its activation {name!r} is none that ONNX names")
    alpha, beta = next(alphas, None), next(betas, None)
    if alpha is None or beta is None:
        raise n.refuse(f"its activation {name!r} has no activation_alpha and activation_beta")
    return lambda g, x: _SCALED[name](g, x, float(alpha), float(beta))


@expansion("RNN")
def rnn(g: Builder, n: Call) -> list[ir.Value]:
    """`h' = f(x·Wᵀ + h·Rᵀ + b)`."""

    def step_of(layer: Layer) -> Step:
        (f,), r = layer.activations(1, ["Tanh"]), layer.recurrence()
        return lambda b, x, states: [f(b, b.Add(x, b.MatMul(states[0], r)))]

    return _layers(g, n, 1, step_of, both=1)


@expansion("GRU")
def gru(g: Builder, n: Call) -> list[ir.Value]:
    """`z, r = f(…)`, `h̃ = g(x·Wᵀ + (r∘h)·Rᵀ + b)`, `h' = (1 − z)∘h̃ + z∘h`.

    With `linear_before_reset` the reset gate acts on `h·Rᵀ + b_R` instead.
    """
    linear = bool(n.attr("linear_before_reset", 0))

    def step_of(layer: Layer) -> Step:
        f, act = layer.activations(2, ["Sigmoid", "Tanh"])
        r_gates, r_new, b_new = layer.recurrence(0, 2), layer.recurrence(2, 3), layer.bias(5, 6)

        def step(b: Builder, x: ir.Value, states: Sequence[ir.Value]) -> list[ir.Value]:
            h = states[0]
            x_z, x_r, x_h = b.emit("Split", [x], {"axis": -1, "num_outputs": 3}, outputs=3)
            h_z, h_r = b.emit("Split", [b.MatMul(h, r_gates)], {"axis": -1, "num_outputs": 2}, outputs=2)
            z, r = f(b, b.Add(x_z, h_z)), f(b, b.Add(x_r, h_r))
            if linear:
                product = b.MatMul(h, r_new)
                new = b.Mul(r, product if b_new is None else b.Add(product, b_new))
            else:
                new = b.MatMul(b.Mul(r, h), r_new)
            new = act(b, b.Add(x_h, new))
            return [b.Add(new, b.Mul(z, b.Sub(h, new)))]

        return step

    return _layers(g, n, 3, step_of, both=2 if linear else 3)


@expansion("LSTM")
def lstm(g: Builder, n: Call) -> list[ir.Value]:
    """`i, o, f = f(…)`, `c' = f∘c + i∘g(…)`, `h' = o∘h(c')`.

    Peepholes add `p∘c` to the arguments of `i` and `f`, and `p∘c'` to that of `o`; `input_forget` is `f = 1 − i`.
    A clip bounds the arguments of the gates, not that of `h(c')`, as in onnxruntime.
    """
    coupled = bool(n.attr("input_forget", 0))

    def step_of(layer: Layer) -> Step:
        f, act, out = layer.activations(3, ["Sigmoid", "Tanh", "Tanh"], clipped=2)
        r, peepholes = layer.recurrence(), [layer.peephole(k) for k in range(3)]

        def gate(b: Builder, x: ir.Value, c: ir.Value, which: int) -> ir.Value:
            peephole = peepholes[which]
            return f(b, x if peephole is None else b.Add(x, b.Mul(peephole, c)))

        def step(b: Builder, x: ir.Value, states: Sequence[ir.Value]) -> list[ir.Value]:
            h, c = states
            gates = b.Add(x, b.MatMul(h, r))
            x_i, x_o, x_f, x_c = b.emit("Split", [gates], {"axis": -1, "num_outputs": 4}, outputs=4)
            i = gate(b, x_i, c, 0)
            forget = b.Sub(1.0, i) if coupled else gate(b, x_f, c, 2)
            c = b.Add(b.Mul(forget, c), b.Mul(i, act(b, x_c)))
            return [b.Mul(gate(b, x_o, c, 1), out(b, c)), c]

        return step

    return _layers(g, n, 4, step_of, both=4)


def _layers(g: Builder, n: Call, gates: int, step_of: Callable[[Layer], Step], both: int) -> list[ir.Value]:
    """All directions of a recurrent layer: `Y`, `Y_h` (and `Y_c`).

    Args:
        g: The builder.
        n: The layer.
        gates: How many there are.
        step_of: Makes the function that computes one step.
        both: For how many gates the two biases are added up before the Scan; behind these `R`'s acts within the step.
    """
    size = n.attr("hidden_size") or n.dims(2)[2]
    directions = {"bidirectional": 2}.get(str(n.attr("direction", "forward")), 1)
    if not isinstance(size, int):
        raise n.refuse("its hidden_size is known only when the graph runs")
    batch_first = bool(n.attr("layout", 0))
    x = g.Transpose(n.x(0), perm=[1, 0, 2]) if batch_first else n.x(0)
    mask = _mask(g, n, x)
    found: list[list[ir.Value]] = []  # per direction: y, h, c
    for d in range(directions):
        layer = Layer(g, n, d, gates, size)
        share = g.MatMul(x, g.Transpose(layer.weight(1), perm=[1, 0]))
        bias = _bias(layer, both)
        share = share if bias is None else g.Add(share, bias)
        states = [_initial(layer, x, i, batch_first) for i in ((5, 6) if n.node.op_type == "LSTM" else (5,))]
        backwards = d == 1 or n.attr("direction", "forward") == "reverse"
        run = _unrolled if _steps(n) is not None else _scanned
        found.append(run(layer, step_of(layer), share, mask, states, backwards))
    y, *last = zip(*found, strict=True)
    y_all = _joined(g, y, 1)
    last_all = [_joined(g, values, 0) for values in last]
    if batch_first:
        y_all = g.Transpose(y_all, perm=[2, 0, 1, 3])
        last_all = [g.Transpose(value, perm=[1, 0, 2]) for value in last_all]
    return [y_all, *last_all]


def _steps(n: Call) -> int | None:
    """How many steps are to be written out one after the other, if they are."""
    steps = _size(n, steps=True)
    limit = _UNROLLED if n.g.portable else 1
    return steps if isinstance(steps, int) and 0 < steps <= limit else None


def _size(n: Call, *, steps: bool) -> Dim:
    """How many steps there are, or else how many sequences, as far as the shape of `X` tells."""
    x = n.node.inputs[0]
    if x is None or x.shape is None:
        return None
    size = x.shape[0 if steps != bool(n.attr("layout", 0)) else 1]
    return size if isinstance(size, int) else size.value


def _bias(layer: Layer, both: int) -> ir.Value | None:
    """`b_W + b_R`; for the gates behind the first `both` only `b_W`."""
    b_w = layer.bias(0, layer.gates)
    b_r = layer.bias(layer.gates, layer.gates + both)
    if b_w is None or b_r is None:
        return None
    g = layer.g
    rest = (layer.gates - both) * layer.size
    return g.Add(b_w, g.Pad(b_r, [0, rest]) if rest else b_r)


def _initial(layer: Layer, x: ir.Value, i: int, batch_first: bool) -> ir.Value:
    """The first state (N, H): input `i`, zeros where it is left out."""
    g, n, d = layer.g, layer.n, layer.direction
    if not n.has(i):
        shape = g.Concat(g.Shape(x, start=1, end=2), [layer.size], axis=0)
        return g.Expand(g.constant(0.0, n.dtype(0)), shape)
    axis = 1 if batch_first else 0
    return g.Squeeze(g.Slice(n.x(i), [d], [d + 1], [axis]), [axis])


def _mask(g: Builder, n: Call, x: ir.Value) -> ir.Value | None:
    """(T, N, 1): whether a step lies within its sequence."""
    if not n.has(4):
        return None
    steps = g.Range(0, g.Squeeze(g.Shape(x, start=0, end=1), [0]), 1)
    lengths = g.Cast(n.x(4), to=ir.DataType.INT64)
    return g.Unsqueeze(g.Less(g.Unsqueeze(steps, [1]), lengths), [2])


def _masked(b: Builder, mask: ir.Value | None, new: list[ir.Value], old: Sequence[ir.Value]) -> list[ir.Value]:
    """The step's output and states, `new` where the mask is set, else zeros and the `old` states."""
    if mask is None:
        return [new[0], *new]
    zero = b.constant(0.0, new[0].dtype)
    return [b.Where(mask, new[0], zero), *(b.Where(mask, a, z) for a, z in zip(new, old, strict=True))]


def _scanned(
    layer: Layer, step: Step, share: ir.Value, mask: ir.Value | None, states: list[ir.Value], backwards: bool
) -> list[ir.Value]:
    """`y` (T, N, H) and the last states, by a Scan."""
    g = layer.g
    copy = copy_of(g, None)
    batch = _size(layer.n, steps=False)
    dims = ir.Shape([batch, layer.size])
    carried = [copy.input("state", share.dtype, dims.copy()) for _ in states]
    x = copy.input("step", share.dtype, ir.Shape([batch, layer.gates * layer.size]))
    inside = copy.input("within", ir.DataType.BOOL, ir.Shape([batch, 1])) if mask is not None else None
    y, *new = _masked(copy.g, inside, step(copy.g, x, carried), carried)
    copy.graph.inputs.extend([*carried, x, *([] if inside is None else [inside])])
    for value in (y, *new):
        typed(value, share.dtype, dims)
    leave(copy, [*new, y])
    slices = [share] if mask is None else [share, mask]
    attributes = {
        "body": copy.graph,
        "num_scan_inputs": len(slices),
        "scan_input_directions": [int(backwards)] * len(slices),
        "scan_output_directions": [int(backwards)],
    }
    *last, ys = g.emit("Scan", [*states, *slices], attributes, outputs=len(states) + 1)
    return [ys, *last]


def _unrolled(
    layer: Layer, step: Step, share: ir.Value, mask: ir.Value | None, states: list[ir.Value], backwards: bool
) -> list[ir.Value]:
    """The same, step after step."""
    g, count = layer.g, _steps(layer.n)
    assert count is not None
    xs = _apart(g, share, count)
    masks = [None] * count if mask is None else _apart(g, mask, count)
    ys: list[ir.Value] = []
    for t in reversed(range(count)) if backwards else range(count):
        y, *states = _masked(g, masks[t], step(g, xs[t], states), states)
        ys.append(y)
    ys = ys[::-1] if backwards else ys
    return [_joined(g, ys, 0), *states]


def _apart(g: Builder, x: ir.Value, count: int) -> list[ir.Value]:
    pieces = g.emit("Split", [x], {"axis": 0, "num_outputs": count}, outputs=count) if count > 1 else [x]
    return [g.Squeeze(piece, [0]) for piece in pieces]


def _joined(g: Builder, values: Sequence[ir.Value], axis: int) -> ir.Value:
    parts = [g.Unsqueeze(value, [axis]) for value in values]
    return g.Concat(*parts, axis=axis) if len(parts) > 1 else parts[0]
