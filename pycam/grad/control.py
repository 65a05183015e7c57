"""The rules of the nodes with subgraphs: If, Scan, Loop.

The gradient of an `If` is an `If` with the same condition; that of a `Scan` is a `Scan` the other way round; that of a
`Loop`, whose number of steps is known once it has run, is a `Scan` over what its steps left.  Their subgraphs are the
forward ones, copied and walked backwards (`bodies.py`).  What the way back reads of a step is written down on the way
there: the forward node gets further outputs, its own stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from pycam.graph.builder import Builder

from .bodies import (
    RANDOM,
    Copy,
    copy_of,
    gradient_type,
    hoist,
    leave,
    save_branch,
    save_steps,
    store,
    typed,
    zeros_like,
)
from .call import Call
from .index import one_target
from .registry import ALL, refuse, region, stop
from .reverse import between, carries_gradient, differentiate

_FORWARD, _REVERSE = 0, 1

Grads = list[ir.Value | None]


@region("If")
def if_(g: Builder, n: Call, wrt: Sequence[ir.Value]) -> Grads:
    """Each branch gives its own gradients, and zeros for what only the other one reads."""
    one_target(n, "chooses between subgraphs")
    bodies = [n.node.attributes[name].as_graph() for name in ("then_branch", "else_branch")]
    copies = [copy_of(g, body) for body in bodies]
    found = []
    for copy in copies:
        copy.infer()
        found.append(_walk(n, copy, dict(enumerate(n.dys)), wrt))
    used = [k for k in range(len(wrt)) if any(grads[k] is not None for grads in found)]
    result: Grads = [None] * len(wrt)
    if not used:
        return result
    for copy, grads in zip(copies, found, strict=True):
        leave(copy, [grads[k] or zeros_like(copy.g, wrt[k]) for k in used])
    for i, copy in enumerate(copies):
        save_branch(g, n.node, copy, bodies[i], bodies[1 - i])
        _refuse_chance(n, copy)
    attributes = {"then_branch": copies[0].graph, "else_branch": copies[1].graph}
    for k, dx in zip(used, g.emit("If", [n.node.inputs[0]], attributes, outputs=len(used)), strict=True):
        result[k] = typed(dx, gradient_type(wrt[k]), wrt[k].shape)
    return result


def _walk(n: Call, copy: Copy, dys: dict[int, ir.Value | None], wrt: Sequence[ir.Value]) -> Grads:
    """The gradients for `wrt` in a copied body, given those of its outputs."""
    seeds: dict[ir.Value, ir.Value] = {}
    for i, dy in dys.items():
        y = copy.outputs[i]
        if dy is not None and carries_gradient(y):
            seeds[y] = copy.g.Add(seeds[y], dy) if y in seeds else dy
    return differentiate(copy.g, seeds, wrt, rules=n.rules)[0]


def _refuse_chance(n: Call, copy: Copy) -> None:
    """Random numbers that could not be written down would be other ones on the way back."""
    chance = next((node for node in copy.graph.all_nodes() if node.op_type in RANDOM), None)
    if chance is not None:
        raise n.refuse(f"{chance.op_type} within it draws an unknown number of values")


@dataclass(frozen=True)
class Scanned:
    """A value that is cut into steps, or joined out of them: where it stands in the body, and how it is cut."""

    value: ir.Value | None  # of the node
    place: int  # among the inputs or the outputs of the body
    axis: int = 0
    direction: int = _FORWARD


@dataclass(frozen=True)
class State:
    """A value that the steps hand on."""

    initial: ir.Value
    final: int  # output of the node
    input: int  # of the body
    output: int  # of the body


@dataclass(frozen=True)
class Steps:
    """A Scan or Loop: the same body, step after step."""

    body: ir.Graph
    states: list[State]
    inputs: list[Scanned]
    outputs: list[Scanned]
    maybe_none: bool = False  # there may be no step at all
    counter: int | None = None  # the body's input that holds the number of the step


@region("Scan")
def scan(g: Builder, n: Call, wrt: Sequence[ir.Value]) -> Grads:
    """Step t: `s', v = f(s, u)` ⇒ from the last step to the first, `ds, du = fᵀ(ds', dv)`."""
    one_target(n, "runs a subgraph step by step")
    node, body = n.node, n.node.attributes["body"].as_graph()
    count = int(n.attr("num_scan_inputs"))
    carried = len(node.inputs) - count
    states = [State(_given(node.inputs[k]), k, k, k) for k in range(carried)]
    inputs = _scanned(n, node.inputs[carried:], carried, "input")
    outputs = _scanned(n, node.outputs[carried:], carried, "output")
    return _backwards(g, n, wrt, Steps(body, states, inputs, outputs))


def _scanned(n: Call, values: Sequence[ir.Value | None], first: int, what: str) -> list[Scanned]:
    axes = n.attr(f"scan_{what}_axes") or [0] * len(values)
    directions = n.attr(f"scan_{what}_directions") or [_FORWARD] * len(values)
    each = zip(values, axes, directions, strict=True)
    return [Scanned(value, first + k, int(axis), int(d)) for k, (value, axis, d) in enumerate(each)]


def _given(value: ir.Value | None) -> ir.Value:
    assert value is not None
    return value


@region("Loop")
def loop(g: Builder, n: Call, wrt: Sequence[ir.Value]) -> Grads:
    """As Scan.  The body's outputs begin with the condition, its inputs with the number of the step and the condition.

    Every step counts that was run: how many, its outputs tell, so that an early end by the condition is no matter.
    With no step at all the carried values stay what they were.
    """
    one_target(n, "runs a subgraph step by step")
    node, body = n.node, n.node.attributes["body"].as_graph()
    states = [State(_given(x), k, k + 2, k + 1) for k, x in enumerate(node.inputs[2:])]
    outputs = [Scanned(y, k + 1) for k, y in enumerate(node.outputs) if k >= len(states)]
    trips, condition = n.const(0), n.const(1)
    runs = (trips is None and not n.has(0)) or (trips is not None and trips.item() >= 1)
    starts = not n.has(1) or (condition is not None and condition.item())
    return _backwards(g, n, wrt, Steps(body, states, [], outputs, not (runs and starts), counter=0))


def _backwards(g: Builder, n: Call, wrt: Sequence[ir.Value], steps: Steps) -> Grads:
    copy = copy_of(g, steps.body)
    _shapes(n, copy, steps)
    carried = _carried(n, copy, wrt, steps)
    scored = [s for s in steps.outputs if n.dys[_index(n, s)] is not None]
    cut = [s for s in steps.inputs if s.value in wrt]
    around = [x for x in wrt if x in copy.captured]

    # The body: from the gradients of the states behind a step, and of its outputs, to those in front of it.
    d_states = [_cotangent(copy, copy.outputs[s.output], copy.inputs[s.input].shape) for s in carried]
    d_outputs = [_cotangent(copy, copy.outputs[s.place], copy.outputs[s.place].shape) for s in scored]
    seeds: dict[int, ir.Value | None] = {s.output: d for s, d in zip(carried, d_states, strict=True)}
    seeds.update({s.place: d for s, d in zip(scored, d_outputs, strict=True)})
    found = _walk(
        n, copy, seeds, [copy.inputs[i] for i in (*(s.input for s in carried), *(s.place for s in cut))] + around
    )
    before = [dx or zeros_like(copy.g, d) for dx, d in zip(found, d_states, strict=False)]
    pieces = [(s, dx) for s, dx in zip(cut, found[len(carried) :], strict=False) if dx is not None]
    sums = [(x, dx) for x, dx in zip(around, found[len(carried) + len(cut) :], strict=True) if dx is not None]
    totals = [copy.input("sum", gradient_type(x), x.shape) for x, _ in sums]
    added = [copy.g.Add(total, dx) for total, (_, dx) in zip(totals, sums, strict=True)]
    leave(copy, [*before, *added, *(dx for _, dx in pieces)])

    # What is scanned: these gradients, and what the body reads of the forward step.
    slices = [Scanned(n.dys[_index(n, s)], k, s.axis, s.direction) for k, s in enumerate(scored)]
    read = _read(g, n, copy, steps)
    copy.graph.inputs.extend([*d_states, *totals, *d_outputs, *(x for x, _ in read)])
    slices += [s for _, s in read]
    if not slices:  # then nothing but how many steps there were
        slices.append(
            steps.inputs[0] if steps.inputs else Scanned(store(g, n.node, steps.body, steps.body.inputs[0]), 0)
        )
        copy.graph.inputs.append(copy.input("step", _given(slices[0].value).dtype, None))
    start = [n.dys[s.final] or zeros_like(g, n.node.outputs[s.final]) for s in carried]
    start += [zeros_like(g, x) for x, _ in sums]
    ends = _run(g, copy.graph, start, slices, [s for s, _ in pieces], steps.maybe_none)

    into = [*(s.initial for s in carried), *(x for x, _ in sums), *(_given(s.value) for s, _ in pieces)]
    result: dict[ir.Value, ir.Value] = {}  # a value may be a first state, be cut into steps, and be read from within
    for x, dx in zip(into, ends, strict=True):
        typed(dx, gradient_type(x), x.shape)
        result[x] = g.Add(result[x], dx) if x in result else dx
    return [result.get(x) for x in wrt]


def _cotangent(copy: Copy, y: ir.Value, shape: ir.Shape | None) -> ir.Value:
    return copy.input("cotangent", gradient_type(y), shape)


def _read(g: Builder, n: Call, copy: Copy, steps: Steps) -> list[tuple[ir.Value, Scanned]]:
    """What the reverse body reads of the forward step: its value there, and the stack that it is a slice of."""
    read = [(x, Scanned(stack, 0)) for x, stack in save_steps(g, n.node, copy, steps.body)]
    _refuse_chance(n, copy)
    scanned = {copy.inputs[s.place]: s for s in steps.inputs}
    for x, own in zip(copy.inputs, list(steps.body.inputs), strict=True):
        if not x.uses():
            continue
        if isinstance(x.type, ir.SequenceType):
            raise n.refuse(f"its steps read the sequence {own.name!r} that it carries")
        if steps.counter is not None and x is copy.inputs[1]:
            x.replace_all_uses_with(g.constant(True))  # in a Loop's body the condition was true
        else:
            read.append((x, scanned.get(x) or Scanned(store(g, n.node, steps.body, own), 0)))
    return read


def _index(n: Call, s: Scanned) -> int:
    """Which output of the node `s` is."""
    return next(k for k, y in enumerate(n.node.outputs) if y is s.value)


def _run(
    g: Builder,
    body: ir.Graph,
    start: list[ir.Value],
    slices: Sequence[Scanned],
    pieces: Sequence[Scanned],
    maybe_none: bool,
) -> list[ir.Value]:
    """The reverse Scan; where there may be no step, behind a condition: runtimes refuse a Scan over nothing."""
    inputs = [*start, *(s.value for s in slices)]
    attributes = {
        "body": body,
        "num_scan_inputs": len(slices),
        "scan_input_axes": [s.axis for s in slices],
        "scan_input_directions": [1 - s.direction for s in slices],
        "scan_output_axes": [s.axis for s in pieces] or None,
        "scan_output_directions": [1 - s.direction for s in pieces] or None,
    }
    count = len(body.outputs)
    if not count:
        return []
    if not maybe_none:
        hoist(body, g.graph)
        return list(g.emit("Scan", inputs, attributes, outputs=count))
    then, otherwise = (copy_of(g, None) for _ in range(2))
    hoist(body, then.graph)
    scanned = then.g.emit("Scan", inputs, attributes, outputs=count)
    for y, x in zip(scanned, start, strict=True):
        typed(y, x.dtype, x.shape)
    leave(then, list(scanned))
    leave(otherwise, list(start))
    some = g.Greater(g.Shape(slices[0].value, start=0, end=1), 0)
    some = g.Squeeze(some, [0])
    return list(g.emit("If", [some], {"then_branch": then.graph, "else_branch": otherwise.graph}, outputs=count))


def _carried(n: Call, copy: Copy, wrt: Sequence[ir.Value], steps: Steps) -> list[State]:
    """The states through which a gradient travels: some `wrt` acts on them, and the score depends on them."""
    nodes = list(copy.graph)
    floats = [s for s in steps.states if carries_gradient(copy.inputs[s.input])]
    acted = {s.input for s in floats if s.initial in wrt}
    fixed = [*(x for x in wrt if x in copy.captured), *(copy.inputs[s.place] for s in steps.inputs if s.value in wrt)]
    while True:
        start = [*fixed, *(copy.inputs[i] for i in acted)]
        reached = between(nodes, start, copy.outputs).values
        more = {s.input for s in floats if copy.outputs[s.output] in reached} - acted
        if not more:
            break
        acted |= more
    counted = {s.output for s in floats if n.dys[s.final] is not None}
    given = [copy.outputs[s.place] for s in steps.outputs if n.dys[_index(n, s)] is not None]
    while True:
        end = [*given, *(copy.outputs[i] for i in counted)]
        values = between(nodes, [copy.inputs[s.input] for s in floats], end).values
        more = {s.output for s in floats if copy.inputs[s.input] in values} - counted
        if not more:
            break
        counted |= more
    carried = [s for s in floats if s.input in acted and s.output in counted]
    for s in carried:
        if isinstance(copy.inputs[s.input].type, ir.SequenceType):
            raise n.refuse(f"it carries the sequence {s.initial.name!r} from step to step")
    return carried


def _shapes(n: Call, copy: Copy, steps: Steps) -> None:
    """Give the body's inputs the types and shapes that they have in every step, and infer the others."""
    for scanned in steps.inputs:
        x, inner = _given(scanned.value), copy.inputs[scanned.place]
        if x.shape is not None:
            rest = list(x.shape)
            del rest[scanned.axis]
            inner.shape = _merged(ir.Shape(rest), inner.shape)
        inner.type = x.type
    for s in steps.states:
        inner = copy.inputs[s.input]
        inner.type = s.initial.type
        inner.shape = _merged(s.initial.shape, inner.shape if steps.counter is None else None)
    while True:
        copy.infer()
        changed = False
        for s in steps.states:
            before, after = copy.inputs[s.input], copy.outputs[s.output]
            if before.shape is None or before is after:
                continue
            if after.shape is None or len(after.shape) != len(before.shape):
                before.shape, changed = None, True
                continue
            for axis, (b, a) in enumerate(zip(before.shape, after.shape, strict=True)):
                if b == a or b == ir.SymbolicDim(None):
                    continue
                if isinstance(a, int) and isinstance(b, int) and carries_gradient(before):
                    raise n.refuse(
                        f"the shape of what it carries ({s.initial.name!r}) changes from step to step: axis {axis} "
                        f"has {b} positions before the first step and {a} behind it"
                    )
                before.shape[axis] = None
                changed = True
        if not changed:
            return


def _merged(shape: ir.Shape | None, declared: ir.Shape | None) -> ir.Shape | None:
    """`shape`, and what a body that keeps shapes (that of a Scan) declares besides."""
    if shape is None or declared is None or len(shape) != len(declared):
        shape = shape if shape is not None else declared
        return shape.copy() if shape is not None else None
    return ir.Shape(
        [a if isinstance(a, int) or not isinstance(b, int) else b for a, b in zip(shape, declared, strict=True)]
    )


# ── sequences and optionals: what the normaliser left of them ────────────────────────────────────────────────────────

_WHY = "a sequence could not be followed at compile time: its length, or which element it is, depends on values"
for _op in ("SequenceAt", "SequenceConstruct", "SequenceErase", "SequenceInsert", "SplitToSequence",
            "ConcatFromSequence"):  # fmt: skip
    refuse(_op, why=_WHY)
refuse("SequenceMap", why="it runs a subgraph for every element of a sequence")
for _op in ("Optional", "OptionalGetElement"):
    refuse(_op, why="whether there is a value is known only when the graph runs")
for _op in ("SequenceEmpty", "SequenceLength", "OptionalHasElement"):
    stop(_op, ALL, why="the output does not depend on values", kind="integer")
