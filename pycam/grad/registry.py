"""The rule table: which nodes compute the gradient of an op's input.

A rule is a small function `rule(g, n, dy) -> dx` for one input (or for several that share the algebra):
`g` the builder, `n` the forward node as a `Call`, `dy` the gradient of the score for the node's first output.
It returns the gradient for the input `n.i`, of the shape that `dy` implies: the walk undoes broadcasting
(for ops registered with `broadcasts=True`) and adds up the gradients of a value that is used twice.
Rules emit standard inference ops only, and see every model at one opset: they never branch on a version.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import onnx_ir as ir

if TYPE_CHECKING:
    from pycam.graph.builder import Builder

    from .call import Call

VJP: TypeAlias = "Callable[[Builder, Call, ir.Value], ir.Value]"
ALL = -1  # stands for "every input" of a variadic op


@dataclass(frozen=True)
class Rule:
    """A gradient rule with what the walk must know about it."""

    vjp: VJP
    broadcasts: bool  # numpy broadcasting between the inputs: the walk sums dx down to the input's shape


RULES: dict[tuple[str, str, int], Rule] = {}
STOPPED: dict[tuple[str, str, int], str] = {}


def rule(op: str, *inputs: int, broadcasts: bool = False, domain: str = "") -> Callable[[VJP], VJP]:
    """Register a function as the gradient rule of `op` for `inputs` (default: input 0; `ALL` for variadic ops)."""

    def register(vjp: VJP) -> VJP:
        for i in inputs or (0,):
            _claim(domain, op, i)
            RULES[domain, op, i] = Rule(vjp, broadcasts)
        return vjp

    return register


def stop(op: str, *inputs: int, why: str, domain: str = "") -> None:
    """Declare that no gradient flows into `inputs` of `op` (`ALL`: into none of them), and why."""
    for i in inputs:
        _claim(domain, op, i)
        STOPPED[domain, op, i] = why


def find(node: ir.Node, i: int) -> Rule | None:
    """The rule of input `i` of `node`, if there is one."""
    key = (node.domain, node.op_type)
    return RULES.get((*key, i)) or RULES.get((*key, ALL))


def stopped(node: ir.Node, i: int) -> bool:
    """Whether input `i` of `node` is declared to have no gradient."""
    key = (node.domain, node.op_type)
    return (*key, i) in STOPPED or (*key, ALL) in STOPPED


def ops() -> list[str]:
    """The names of the ops that have a rule, sorted."""
    return sorted({f"{domain}::{op}" if domain else op for domain, op, _ in RULES})


def _claim(domain: str, op: str, i: int) -> None:
    if (domain, op, i) in RULES or (domain, op, i) in STOPPED:
        raise ValueError(f"a second declaration for input {i} of {domain or 'ai.onnx'}::{op}")
