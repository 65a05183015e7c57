"""Cut a graph into the stages of a recipe, along the placeholders that a method put into it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import onnx_ir as ir

from pycam.runtime.recipe import STAGES, Collected, Fold, Host, Noise, Recipe

from .builder import PREFIX
from .depend import depending
from .shapes import infer, reads

Call: TypeAlias = "tuple[str, tuple[ir.Value, ...], list[ir.Value], dict[str, Any]]"
"""A function of numpy: its name, what it is given, placeholders for what it gives, and its options."""


@dataclass
class Seams:
    """The placeholders (inputs of the whole graph until it is cut) and what each stands for."""

    ids: ir.Value | None = None
    variant: ir.Value | None = None
    at_most: int | None = None
    noise: list[tuple[ir.Value, Noise, ir.Value | None]] = field(default_factory=list)
    host: list[Call] = field(default_factory=list)
    collected: list[tuple[ir.Value, ir.Value, Fold]] = field(default_factory=list)
    gradients: bool = False

    @property
    def placeholders(self) -> list[ir.Value]:
        """All of them."""
        varying = [self.variant] if self.variant is not None else []
        made = [value for _, _, results, _ in self.host for value in results]
        return [*varying, *(n for n, _, _ in self.noise), *made, *(value for _, value, _ in self.collected)]

    @property
    def joins(self) -> bool:
        """Whether the stages can be one graph: nothing random, nothing computed by numpy."""
        return not self.noise and not self.host


def join(graph: ir.Graph, seams: Seams) -> None:
    """Make the stages one graph, in which all variants are one batch."""
    assert seams.joins
    pairs = [(value, y) for y, value, _ in seams.collected]
    if seams.variant is not None and seams.ids is not None:
        pairs.append((seams.variant, seams.ids))
    for placeholder, value in pairs:
        placeholder.replace_all_uses_with(value)
        graph.inputs.remove(placeholder)
    graph.sort()


def cut(graph: ir.Graph, seams: Seams, single: bool) -> tuple[dict[str, ir.Graph], Recipe]:
    """The stages by name, and how they are run.  An output of `graph` comes from the first stage that can compute it.

    Raises:
        ValueError: an output depends on a single batch of variants.
    """
    nodes, placeholders = list(graph), seams.placeholders
    later = depending(nodes, placeholders)
    varying = depending(
        nodes, [p for p in placeholders if p is seams.variant or any(p is n for n, _, _ in seams.noise)]
    )
    if any(y in varying for y in graph.outputs):
        raise ValueError("an output depends on one batch of variants: stack or add up what they give")
    late = [call for call in seams.host if any(x in later for x in call[1])]
    last = depending(nodes, [y for call in late for y in call[2]])
    made = [y for y in graph.outputs if y not in placeholders]  # numpy may have made one already
    heads = [y for y in made if y in last]
    head_reads = _boundary(heads, last, placeholders)
    finished = [y for y in made if y in later and y not in last]
    finished += [
        x for x in [*head_reads, *(x for call in late for x in call[1])] if x in later and x not in placeholders
    ]
    ends = {
        "step": list(dict.fromkeys(y for y, _, _ in seams.collected)),
        "finish": list(dict.fromkeys(finished)),
        "head": heads,
    }
    reading = {
        "step": _boundary(ends["step"], later, placeholders),
        "finish": _boundary(ends["finish"], later, placeholders),
        "head": head_reads,
    }
    early = [
        *(x for values in reading.values() for x in values),
        *(like for _, _, like in seams.noise if like is not None),
        *(x for call in seams.host for x in call[1]),
        *([seams.ids] if seams.ids is not None else []),
    ]
    own = {*graph.inputs, *placeholders}
    ends["prepare"] = list(dict.fromkeys(x for x in [*made, *early] if x not in later and x not in own))
    reading["prepare"] = [x for x in graph.inputs if x not in placeholders]
    _give_shapes(graph, nodes, [x for values in (*reading.values(), *ends.values()) for x in values])
    for y, value, fold in seams.collected:
        value.shape = _collected_shape(y, fold)
    stages = {
        name: ir.convenience.extract(graph, reading[name], ends[name])
        for name in STAGES
        if ends[name] or name == "prepare"
    }
    return stages, _recipe(seams, late, single)


def _recipe(seams: Seams, late: Sequence[Call], single: bool) -> Recipe:
    return Recipe(
        ids=_name(seams.ids),
        variant=_name(seams.variant),
        at_most=seams.at_most,
        noise=tuple(replace(noise, name=value.name or "", like=_name(like)) for value, noise, like in seams.noise),
        host=tuple(Host(call[0], _names(call[1]), _names(call[2]), call[3], late=call in late) for call in seams.host),
        collected=tuple(Collected(y.name or "", value.name or "", fold) for y, value, fold in seams.collected),
        gradients=seams.gradients,
        single=single,
    )


def _give_shapes(graph: ir.Graph, nodes: Sequence[ir.Node], ends: Sequence[ir.Value]) -> None:
    """Give the inputs and outputs of stages their shapes, which ONNX wants there; other values keep what they have."""
    if all(x.shape is not None for x in ends):
        return
    before = {y: (y.shape, y.type) for n in nodes for y in n.outputs}
    infer(nodes, graph.opset_imports, f"{PREFIX}/dim")
    for value, (shape, kind) in before.items():
        if shape is not None or value not in ends:
            value.shape, value.type = shape, kind


def _collected_shape(y: ir.Value, fold: Fold) -> ir.Shape | None:
    if y.shape is None or fold == "sum":
        return y.shape
    return ir.Shape([None, *list(y.shape)[1:]])


def _boundary(outputs: Sequence[ir.Value], later: set[ir.Value], placeholders: Sequence[ir.Value]) -> list[ir.Value]:
    """What a stage reads: placeholders, and values that are there before it."""
    found: dict[ir.Value, None] = {}
    seen: set[ir.Value] = set()
    waiting = list(outputs)
    while waiting:
        x = waiting.pop()
        if x in seen or x.const_value is not None:
            continue
        seen.add(x)
        node = x.producer()
        if x in placeholders or x not in later or node is None:
            found[x] = None
        else:
            waiting += reads(node)
    return list(found)


def _name(value: ir.Value | None) -> str | None:
    return value.name if value is not None else None


def _names(values: Sequence[ir.Value]) -> tuple[str, ...]:
    return tuple(value.name or "" for value in values)
