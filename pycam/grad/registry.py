"""The rule table: which nodes compute the gradient of an op's input.

Every op that a model may hold stands here in one of these ways, each declared beside its family:

- `@rule`: a small function `rule(g, n, dy) -> dx` for one input (or for several that share the algebra): `g` the
  builder, `n` the forward node as a `Call`, `dy` the gradient of the score for the node's first output.  It returns the
  gradient for the input `n.i`, of the shape that `dy` implies: the walk undoes broadcasting (for ops registered with
  `broadcasts="inputs"`) and adds up the gradients of a value that is used twice.
- `@expansion`: a composite op as simpler ones, `expand(g, n) -> y` (or all its outputs).  The forward node stays; the
  walk goes through its expansion instead, whose nodes nobody computes unless a rule reads them.
- `@region`: a node with subgraphs (If, Loop, Scan), which the walk enters as a whole.
- `@pattern`: several nodes that make up one function, with the gradient of the whole.
- `@rule_set`: another gradient for the ReLU-like activations (`rectifiers.py` says which those are), chosen by name.
- `stop`: no gradient flows into these inputs, with the reason and its kind; `refuse`: pycam does not differentiate
  this op, with the reason.  A refusal is an error where it lies on the path, never a zero.

Rules emit standard inference ops only, each of which has a rule itself, and see every model at one opset: they never
branch on a version.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

import onnx_ir as ir

if TYPE_CHECKING:
    from pycam.graph.builder import Builder

    from .call import Call

Key: TypeAlias = tuple[str, str, int]
"""Domain ("" is ai.onnx), op, input (or `ALL`)."""
VJP: TypeAlias = "Callable[[Builder, Call, ir.Value], ir.Value]"
Emit: TypeAlias = "Callable[[Builder, Call], ir.Value]"
Expand: TypeAlias = "Callable[[Builder, Call], ir.Value | Sequence[ir.Value | None]]"
RegionVJP: TypeAlias = "Callable[[Builder, Call, Sequence[ir.Value]], list[ir.Value | None]]"
Broadcasts: TypeAlias = Literal["inputs", "output"] | None
"""Whether the walk sums dx down to the input's shape: numpy broadcasts the inputs against each other, or the op
broadcasts this input to its output."""
Kind: TypeAlias = Literal["zero", "integer", "random", "setting"]
"""Why no gradient flows: piecewise constant; integers, booleans or text; drawn at random; a hyperparameter."""

_T = TypeVar("_T")

ALL = -1  # stands for "every input" of a variadic op
CONTRIB = "com.microsoft"


@dataclass(frozen=True)
class Rule:
    """A gradient rule with what the walk must know about it."""

    vjp: VJP
    broadcasts: Broadcasts


@dataclass(frozen=True)
class Stop:
    """Inputs into which no gradient flows."""

    why: str
    kind: Kind


@dataclass(frozen=True)
class Rectifier:
    """A ReLU-like activation `f`, as rule sets see it."""

    positive: Emit  # `[x > 0]` as booleans; false also where `f` is flat above 0
    slope: VJP | None = None  # `dy·f'(x)`, right where `positive` is; None: `f'` is 1 there


RuleSet: TypeAlias = "Callable[[Builder, Call, ir.Value, Rectifier], ir.Value]"


@dataclass(frozen=True)
class Pattern:
    """One or several nodes that compute one function of `x`, found at the last of them."""

    x: ir.Value
    inside: frozenset[ir.Value]  # what lies between: no gradient flows there, so nobody may ask for it
    vjp: VJP | None  # None: the exact gradient goes node by node
    rectifier: Rectifier | None = None  # of a ReLU-like activation


Match: TypeAlias = "Callable[[ir.Node], Pattern | None]"

RULES: dict[Key, Rule] = {}
STOPPED: dict[Key, Stop] = {}
REFUSED: dict[Key, str] = {}
EXPANSIONS: dict[tuple[str, str], Expand] = {}
REGIONS: dict[tuple[str, str], RegionVJP] = {}
PATTERNS: dict[tuple[str, str], list[Match]] = {}
RULE_SETS: dict[str, RuleSet | None] = {"exact": None}
"""Name → what replaces the gradient of ReLU-like activations; None: nothing does."""


def rule(op: str, *inputs: int, broadcasts: Broadcasts = None, domain: str = "") -> Callable[[VJP], VJP]:
    """Register a function as the gradient rule of `op` for `inputs` (default: input 0; `ALL` for variadic ops)."""

    def register(vjp: VJP) -> VJP:
        for i in inputs or (0,):
            _claim(domain, op, i)
            RULES[domain, op, i] = Rule(vjp, broadcasts)
        return vjp

    return register


def expansion(op: str, domain: str = "") -> Callable[[Expand], Expand]:
    """Register a function that emits `op` as simpler ops, from the same inputs to the same outputs.

    Outputs that it does not compute are None: a score that depends on one of them is refused.
    """

    def register(expand: Expand) -> Expand:
        _claim(domain, op, None)
        EXPANSIONS[domain, op] = expand
        return expand

    return register


def region(op: str, domain: str = "") -> Callable[[RegionVJP], RegionVJP]:
    """Register the rule of an op with subgraphs: `rule(g, n, wrt)` → one gradient (or None) per value of `wrt`.

    `wrt` are the values that the node reads, as an input or from within a subgraph; `n.dys` the gradients of its
    outputs.
    """

    def register(vjp: RegionVJP) -> RegionVJP:
        _claim(domain, op, None)
        REGIONS[domain, op] = vjp
        return vjp

    return register


def pattern(op: str, domain: str = "") -> Callable[[Match], Match]:
    """Register a function that recognises nodes that make up one function, given the last of them, an `op`."""

    def register(match: Match) -> Match:
        PATTERNS.setdefault((domain, op), []).append(match)
        return match

    return register


def rule_set(name: str) -> Callable[[RuleSet], RuleSet]:
    """Register `rules(g, n, dy, f) -> dx` as the rule set `name`: the gradient of a ReLU-like activation `f`."""

    def register(rules: RuleSet) -> RuleSet:
        if name in RULE_SETS:
            raise ValueError(f"a second rule set {name!r}")
        RULE_SETS[name] = rules
        return rules

    return register


def recognise(node: ir.Node, rules: RuleSet | None = None) -> Pattern | None:
    """The function that `node` is the last node of, if it has a rule as a whole: its own, or by `rules`."""
    for match in PATTERNS.get((node.domain, node.op_type), ()):
        found = match(node)
        if found is None or not _same_shape(found.x, node.outputs[0]):
            continue
        if rules is not None and found.rectifier is not None:
            return replace(found, vjp=partial(_by_rules, rules, found.rectifier))
        if found.vjp is not None:
            return found
    return None


def _by_rules(rules: RuleSet, f: Rectifier, g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    return rules(g, n, dy, f)


def _same_shape(x: ir.Value, y: ir.Value) -> bool:
    """Whether no constant stretched `x`, as far as is known: patterns undo no broadcasting."""
    if x.shape is None or y.shape is None:
        return True
    pairs = zip(x.shape, y.shape, strict=False)
    return len(x.shape) == len(y.shape) and all(a == b for a, b in pairs if isinstance(a, int) and isinstance(b, int))


def stop(op: str, *inputs: int, why: str, kind: Kind = "setting", domain: str = "") -> None:
    """Declare that no gradient flows into `inputs` of `op` (`ALL`: into none of them), and why."""
    for i in inputs:
        _claim(domain, op, i)
        STOPPED[domain, op, i] = Stop(why, kind)


def refuse(op: str, *inputs: int, why: str, domain: str = "") -> None:
    """Declare that pycam does not differentiate `op` for `inputs` (default: for all of them), and why."""
    for i in inputs or (ALL,):
        _claim(domain, op, i)
        REFUSED[domain, op, i] = why


def find(node: ir.Node, i: int) -> Rule | None:
    """The rule of input `i` of `node`, if there is one."""
    return _lookup(RULES, node, i)


def stopped(node: ir.Node, i: int) -> bool:
    """Whether input `i` of `node` is declared to have no gradient."""
    return _lookup(STOPPED, node, i) is not None


def refused(node: ir.Node, i: int) -> str | None:
    """Why the gradient for input `i` of `node` is refused, if it is."""
    return _lookup(REFUSED, node, i)


def knows(node: ir.Node, i: int) -> bool:
    """Whether the gradient for input `i` of `node` is known, be it a declared zero."""
    key = (node.domain, node.op_type)
    return find(node, i) is not None or stopped(node, i) or key in EXPANSIONS or key in REGIONS


def ops() -> list[str]:
    """The names of the ops that are differentiated, `domain::Op` where they have a domain, sorted."""
    return sorted(f"{domain}::{op}" if domain else op for domain, op in declared() if differentiates(op, domain))


def declared() -> Iterator[tuple[str, str]]:
    """(domain, op) of every op that stands in the table."""
    yield from dict.fromkeys((*(key[:2] for key in (*RULES, *STOPPED, *REFUSED)), *EXPANSIONS, *REGIONS))


def differentiates(op: str, domain: str = "") -> bool:
    """Whether a gradient flows through `op`."""
    key = (domain, op)
    return key in EXPANSIONS or key in REGIONS or any(k[:2] == key for k in RULES)


def _lookup(table: dict[Key, _T], node: ir.Node, i: int) -> _T | None:
    key = (node.domain, node.op_type)
    return table.get((*key, i)) or table.get((*key, ALL))


def _claim(domain: str, op: str, i: int | None) -> None:
    taken = [(t, k) for t in (RULES, STOPPED, REFUSED) for k in t if k[:2] == (domain, op) and (i is None or k[2] == i)]
    if taken or (domain, op) in EXPANSIONS or (domain, op) in REGIONS:
        where = "" if i is None else f"input {i} of "
        raise ValueError(f"a second declaration for {where}{domain or 'ai.onnx'}::{op}")
