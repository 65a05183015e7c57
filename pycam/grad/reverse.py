"""The walk: gradients of a score for values of its graph, as new nodes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from pycam.errors import BatchAxisError, InputError, UnsupportedOpError
from pycam.graph.builder import Builder
from pycam.graph.depend import batched_inputs, batched_values, is_held
from pycam.graph.quantised import carries_nothing, is_quantised
from pycam.graph.shapes import infer, reads

from . import registry
from .batch import moves_batch
from .call import HALF, Call, Dim, Repeat, cannot_differentiate, describe


def differentiate(
    g: Builder,
    seeds: Mapping[ir.Value, ir.Value],
    wrt: Sequence[ir.Value],
    count: ir.Value | None = None,
    *,
    rules: str = "exact",
) -> tuple[list[ir.Value | None], Repeat]:
    """Append the nodes that compute the vector-Jacobian products of `seeds` for `wrt`.

    Args:
        g: Builder of the graph that holds the forward nodes.
        seeds: Differentiated value → its cotangent, of the same shape.
        wrt: Values to differentiate for.
        count: K as an int64 vector of length 1 when each cotangent's batch axis is `K·N` (K outermost), else None.
        rules: Name of the rule set: "exact"; "guided" or "deconvnet" give ReLU-like activations another gradient.

    Returns:
        One gradient per value of `wrt`, of that value's shape (batch axis `K·N`), or None where no path leads to it;
        and the record of the forward values that had to be repeated.  Gradients of float16 and bfloat16 values are
        computed, and returned, in float32.

    Raises:
        UnsupportedOpError: an op on the path has no rule.
        BatchAxisError: an op on the path moves the batch axis, and `count` is given.
        InputError: there is no such rule set.
    """
    if rules not in registry.RULE_SETS:
        raise InputError(f"there is no rule set {rules!r}: choose one of {', '.join(registry.RULE_SETS)}")
    rule_set = registry.RULE_SETS[rules]
    nodes, stand_ins = _expanded(g, list(g.graph), wrt, seeds)
    path = between(nodes, wrt, seeds, stand_ins)
    if count is not None:
        moving = next((node for node in path.nodes if moves_batch(node)), None)
        if moving is not None:
            raise BatchAxisError(
                f"{describe(moving)} moves the batch axis, so several targets cannot share one pass: "
                "compile for one target per image (classes=1)"
            )
    batched = batched_values(
        batched_inputs(g.graph.inputs), list(g.graph)
    )  # all: rules read outputs of composite nodes too
    repeat = Repeat(g, count, batched)
    grads: dict[ir.Value, ir.Value] = {}

    def add(value: ir.Value, grad: ir.Value) -> None:
        value = stand_ins.get(value, value)
        grads[value] = g.Add(grads[value], grad) if value in grads else grad

    for y, seed in seeds.items():
        add(y, g.Cast(seed, to=ir.DataType.FLOAT) if seed.dtype in HALF else seed)
    for node in reversed(path.nodes):
        dys = [grads.get(y) for y in node.outputs]
        if all(dy is None for dy in dys):
            continue
        region = registry.REGIONS.get((node.domain, node.op_type))
        if region is not None:
            inside = [x for x in reads(node) if stand_ins.get(x, x) in path.values and carries_gradient(x)]
            for x, found in zip(inside, region(g, Call(g, repeat, node, 0, dys, rules), inside), strict=True):
                if found is not None:
                    add(x, found)
            continue
        whole = registry.recognise(node, rule_set)
        if whole is not None and stand_ins.get(whole.x, whole.x) in path.values and whole.inside.isdisjoint(wrt):
            assert whole.vjp is not None
            add(whole.x, whole.vjp(g, Call(g, repeat, node, 0, dys, rules), dys[0]))  # type: ignore[arg-type]  # one output
            continue
        for i, given in enumerate(node.inputs):
            if given is None or (x := stand_ins.get(given, given)) not in path.values or not carries_gradient(x):
                continue
            rule = registry.find(node, i)
            if rule is None:
                if registry.stopped(node, i):  # the same value is another, differentiable input
                    continue
                raise unsupported(node, i)
            call = Call(g, repeat, node, i, dys, rules)
            dx = rule.vjp(g, call, dys[0])  # type: ignore[arg-type]  # rules of ops with several outputs read n.dys
            if rule.broadcasts:
                others = call.peers() if rule.broadcasts == "inputs" else []
                dx = unbroadcast(call, dx, call.out_dims(), call.dims(), others)
            add(given, dx)
    wanted = [stand_ins.get(x, x) for x in wrt]
    return [grads.get(x) if x in path.values else None for x in wanted], repeat


def unsupported(node: ir.Node, i: int) -> UnsupportedOpError:
    """The error for a node on the path whose input `i` has no gradient rule."""
    why = registry.refused(node, i) or "there is no gradient rule; have the exporter write it with other ops"
    return cannot_differentiate(node, f"for its input {i}, {why}" if len(node.inputs) > 1 else why)


def _expanded(
    g: Builder, nodes: list[ir.Node], wrt: Sequence[ir.Value], seeds: Mapping[ir.Value, object]
) -> tuple[list[ir.Node], dict[ir.Value, ir.Value]]:
    """`nodes` with the composite ones on the path replaced by simpler ones that are appended to the graph.

    Returns:
        The nodes to walk, and for each output of a composite node the value that stands in for it there.  The graph
        keeps the composite: it computes the forward value, and what only the walk needed of the expansion is dropped.
    """
    stand_ins: dict[ir.Value, ir.Value] = {}
    while True:
        path = between(nodes, wrt, seeds, stand_ins)
        composite = {n for n in path.nodes if (n.domain, n.op_type) in registry.EXPANSIONS}
        if not composite:
            return nodes, stand_ins
        walked: list[ir.Node] = []
        for node in nodes:
            if node not in composite:
                walked.append(node)
                continue
            nodes_before = len(g.graph)
            for y, value in zip(node.outputs, _expand(g, node), strict=False):
                if value is not None:
                    stand_ins |= {x: value for x, stand_in in stand_ins.items() if stand_in is y}  # an expansion's last
                    stand_ins[y] = value
                elif y in path.values:
                    raise cannot_differentiate(
                        node, f"the score depends on its output {y.name!r}, which has no gradient"
                    )
            made = list(itertools.islice(reversed(g.graph), len(g.graph) - nodes_before))[::-1]
            infer(made, g.opsets, g.fresh("dim"))
            walked += made
        nodes = walked


def _expand(g: Builder, node: ir.Node) -> Sequence[ir.Value | None]:
    call = Call(g, Repeat(g, None, frozenset()), node, 0, [None] * len(node.outputs))
    made = registry.EXPANSIONS[node.domain, node.op_type](g, call)
    values = [made] if isinstance(made, ir.Value) else list(made)
    # An expansion may find that the op does nothing here, and give back what it was given.
    return [g.Identity(v) if v is not None and v in node.inputs else v for v in values]


class Path:
    """The nodes and values that lie between some values and what is computed from them."""

    def __init__(self, nodes: list[ir.Node], values: set[ir.Value]) -> None:
        self.nodes = nodes
        self.values = values


def between(
    nodes: Sequence[ir.Node],
    start: Sequence[ir.Value],
    end: Mapping[ir.Value, object] | Sequence[ir.Value],
    stand_ins: Mapping[ir.Value, ir.Value] | None = None,
) -> Path:
    """What lies on a differentiable path from `start` to `end`; `nodes` in topological order.

    A value that has a stand-in is reached, and wanted, as that.
    """
    stands = stand_ins or {}
    reached: set[ir.Value] = {stands.get(x, x) for x in start}
    read = {node: [stands.get(x, x) for x in _differentiable_reads(node)] for node in nodes}
    for node in nodes:
        if any(x in reached for x in read[node]):
            reached.update(y for y in node.outputs if carries_gradient(y))
    wanted: set[ir.Value] = {stands.get(y, y) for y in end}
    chosen: list[ir.Node] = []
    for node in reversed(nodes):
        if any(y in wanted and y in reached for y in node.outputs):
            chosen.append(node)
            wanted.update(x for x in read[node] if x in reached)
    return Path(chosen[::-1], wanted & reached)


def _differentiable_reads(node: ir.Node) -> list[ir.Value]:
    """What a node reads, but for inputs that are declared to have no gradient."""
    if (node.domain, node.op_type) in registry.REGIONS:
        return list(reads(node))
    return [x for i, x in enumerate(node.inputs) if x is not None and not registry.stopped(node, i)]


def carries_gradient(value: ir.Value) -> bool:
    """Whether a gradient flows through `value`: it is floating, or a quantised float; or its dtype is unknown.

    None flows where `graph.depend.hold` says so.
    """
    if carries_nothing(value) or is_held(value):
        return False
    return value.dtype is None or value.dtype.is_floating_point() or is_quantised(value)


def unbroadcast(
    call: Call, dx: ir.Value, wide: Sequence[Dim], narrow: Sequence[Dim], others: Sequence[Sequence[Dim]] = ()
) -> ir.Value:
    """Sum `dx` (of dims `wide`) over the axes that broadcasting stretched, down to dims `narrow` of the input.

    An axis of unknown size was not stretched where all `others`, what the input was broadcast against, have size 1.
    """
    g = call.g
    lead = len(wide) - len(narrow)
    if lead and call.repeat.count is not None:
        raise BatchAxisError(
            f"{describe(call.node)} reads input {call.i} without a batch axis, so several targets cannot "
            "share one pass: compile for one target per image (classes=1)"
        )
    pairs = list(zip(wide[lead:], narrow, strict=True))
    repeated = call.repeat.count is not None and lead == 0  # then axis 0 is K·N in both

    def unknown(i: int, w: Dim, n: Dim) -> bool:
        if isinstance(n, int) or (w == n and n is not None) or (repeated and i == 0):
            return False
        behind = len(pairs) - i  # the axis, counted from the end
        return not others or any(len(dims) >= behind and dims[-behind] != 1 for dims in others)

    if any(unknown(i, w, n) for i, (w, n) in enumerate(pairs)):
        return _unbroadcast_dynamic(call, dx, lead, len(narrow))
    stretched = [lead + i for i, (w, n) in enumerate(pairs) if n == 1 and w != 1]
    if stretched:
        dx = g.ReduceSum(dx, stretched, keepdims=1)
    return g.ReduceSum(dx, list(range(lead)), keepdims=0) if lead else dx


def _unbroadcast_dynamic(call: Call, dx: ir.Value, lead: int, rank: int) -> ir.Value:
    """The same where sizes are known only when the graph runs: an axis of size 1 in the input is summed."""
    g = call.g
    if lead:
        dx = g.ReduceSum(dx, list(range(lead)), keepdims=0)
    shape = call.shape()
    ones = g.Squeeze(g.NonZero(g.Equal(shape, [1] * rank)), [0])
    summed = g.ReduceSum(dx, ones, keepdims=1, noop_with_empty_axes=1)
    if summed.shape is None:
        summed.shape = ir.Shape([None] * rank)  # inference gives up here, and a second walk asks for the rank
    return g.Reshape(summed, shape)
