"""Objectives: which number `y` a target stands for, and its gradient for the class scores `z`.

Each is a pair of small functions over rows, one row per explanation: `value(g, z, chosen) -> y` takes the scores (N, C)
and gives (N, K); `cotangent(g, z, chosen) -> dy/dz` gives (K·N, C), K outermost.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import onnx_ir as ir

from pycam.errors import MethodError, nearest
from pycam.grad import differentiate
from pycam.graph.shapes import appended, infer

from .choose import Chosen, as_rows, class_count, one_hot

if TYPE_CHECKING:
    from pycam.graph.builder import Builder

Form: TypeAlias = "Callable[[Builder, ir.Value, Chosen], ir.Value]"


@dataclass(frozen=True)
class Objective:
    """What is differentiated.

    Attributes:
        name: What users call it.
        formula: In terms of the class scores `z`, the target `t` and what it is held against, `o`.
        value: `y`.
        cotangent: `dy/dz`.
        contrast: It needs a second class: the graph has the input `against`.
    """

    name: str
    formula: str
    value: Form
    cotangent: Form
    contrast: bool = False


def _of_class(g: Builder, z: ir.Value, chosen: Chosen) -> ir.Value:
    return g.GatherElements(z, chosen.explained, axis=1)


def _hot(g: Builder, z: ir.Value, chosen: Chosen) -> ir.Value:
    return one_hot(g, as_rows(g, chosen.explained, chosen.count is not None), z)


def _rival(chosen: Chosen) -> ir.Value:
    assert chosen.against is not None, "the objective needs classes to hold the targets against"
    return chosen.against


def _over_rival(g: Builder, z: ir.Value, chosen: Chosen) -> ir.Value:
    return g.Sub(_of_class(g, z, chosen), g.GatherElements(z, _rival(chosen), axis=1))


def _hot_over_rival(g: Builder, z: ir.Value, chosen: Chosen) -> ir.Value:
    return g.Sub(_hot(g, z, chosen), one_hot(g, as_rows(g, _rival(chosen), chosen.count is not None), z))


def finer(alpha: float = 1.0, references: int = 3) -> Objective:
    """`y = Σ_i p_i(z_t − α·z_i)/(Σ_i p_i + 1e-9)`, `p = softmax(z)`, `i` the `references` classes nearest to `t` in
    score (2501.11309); all others, where there are fewer.

    Raises:
        MethodError: no class to compare with, or alpha out of range.
    """
    if references < 1:
        raise MethodError(f"references={references}: compare with 1 class or more")
    if not math.isfinite(alpha):
        raise MethodError(f"alpha={alpha}: give a finite number")

    def nearest_classes(g: Builder, z: ir.Value) -> ir.Value:
        """How many to rank: `t` itself and its references, int64 (1,)."""
        known = class_count(z)
        if known is not None and known < 2:
            raise MethodError(f"Finer-CAM holds a class against others, and the score has {known}: use 'gradcam'")
        if known is not None:
            return g.constant([min(references + 1, known)])
        return g.Min([references + 1], g.Slice(g.Shape(z), [1], [2], [0]))

    def rows(g: Builder, z: ir.Value, t: ir.Value) -> ir.Value:
        """(R, C), (R, 1) → (R, 1)."""
        own = g.GatherElements(z, t, axis=1)
        far = g.Neg(g.Abs(g.Sub(z, own)))
        itself = g.Equal(g.Range(g.constant(0), g.Squeeze(g.Slice(g.Shape(z), [1], [2], [0]), [0]), g.constant(1)), t)
        _, near = g.emit("TopK", [g.Where(itself, 1.0, far), nearest_classes(g, z)], {"axis": 1}, outputs=2)
        others = g.Slice(near, [1], [references + 1], [1])  # the first is `t` itself
        p = g.GatherElements(g.Softmax(z, axis=1), others, axis=1)
        terms = g.Mul(p, g.Sub(own, g.Mul(g.GatherElements(z, others, axis=1), alpha)))
        total = g.Add(g.ReduceSum(p, [1], keepdims=1), 1e-9)
        return g.Div(g.ReduceSum(terms, [1], keepdims=1), total)

    def tiled(g: Builder, z: ir.Value, chosen: Chosen) -> tuple[ir.Value, ir.Value]:
        wide = z
        if chosen.count is not None:
            wide = g.Tile(z, g.Concat(chosen.count, [1], axis=0))
            wide.shape = ir.Shape([None, class_count(z)])
        t = g.Unsqueeze(as_rows(g, chosen.explained, chosen.count is not None), [1])
        t.shape = ir.Shape([None, 1])
        return wide, t

    def value(g: Builder, z: ir.Value, chosen: Chosen) -> ir.Value:
        y = rows(g, *tiled(g, z, chosen))  # (K·N, 1)
        return g.Transpose(g.Reshape(y, g.Concat(chosen.count or [1], [-1], axis=0)), perm=[1, 0])

    def cotangent(g: Builder, z: ir.Value, chosen: Chosen) -> ir.Value:
        # The walk wants a value of its own, with a shape, to differentiate for.
        wide, t = tiled(g, z, chosen)
        free = g.Identity(wide)
        free.shape = ir.Shape([None, class_count(z)])
        before = len(g.graph)
        y = rows(g, free, t)
        infer(appended(g.graph, before), g.opsets, g.fresh("dim"))
        seed = g.Expand(g.constant(np.ones((1, 1)), z.dtype), g.Shape(y))
        (found,), _ = differentiate(g, {y: seed}, [free])
        assert found is not None
        return found

    return Objective("finer", "Σ p_i(z_t − α·z_i)/Σ p_i", value, cotangent)


CLASS = Objective("class", "z_t", _of_class, _hot)

OBJECTIVES: dict[str, Objective] = {
    objective.name: objective
    for objective in (
        CLASS,
        Objective(
            "counterfactual",
            "−z_t",
            lambda g, z, chosen: g.Neg(_of_class(g, z, chosen)),
            lambda g, z, chosen: g.Neg(_hot(g, z, chosen)),
        ),
        Objective("contrastive", "z_t − z_o", _over_rival, _hot_over_rival, contrast=True),
    )
}


def get(name: str) -> Objective:
    """The objective called `name`.

    Raises:
        MethodError: there is none.
    """
    if name not in OBJECTIVES:
        raise MethodError(f"no objective {name!r}; there are {nearest(name, OBJECTIVES)}")
    return OBJECTIVES[name]
