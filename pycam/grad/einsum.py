"""Rules of Einsum: the gradient of an operand is an Einsum of `dy` and the other operands.

    y[out] = Σ Π_j x_j[t_j]   ⇒   dx_i[t_i] = Σ dy[out]·Π_{j≠i} x_j[t_j],   summed over what is not in t_i.

Two things such an Einsum cannot say: an index of `t_i` that stands nowhere else was summed alone, so `dx_i` is constant
along it; and an index that stands twice in `t_i` picks a diagonal, so `dx_i` is 0 off it.  An ellipsis is spelled out:
ranks are known.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from pycam.graph.builder import Builder

from .call import Call, Dim
from .index import one_target, positions
from .registry import ALL, rule
from .reverse import unbroadcast

Term = list[str]
"""The indices of an operand, one per axis: letters, and `…1`, `…0` for the axes of an ellipsis, from its end."""


class Equation(NamedTuple):
    """The indices of each operand and of the output."""

    terms: list[Term]
    out: Term


def parse(equation: str, ranks: Sequence[int]) -> Equation:
    """An equation with its ellipses spelled out; without `->`, the output has the indices that stand once, sorted."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    written = left.split(",")
    terms = [_spelled(term, rank - len(term.replace("...", ""))) for term, rank in zip(written, ranks, strict=True)]
    dots = max((term for term in terms), key=lambda t: sum(_dotted(i) for i in t))
    dots = [i for i in dots if _dotted(i)]
    if arrow:
        return Equation(terms, _spelled(right, len(dots)))
    every = [index for term in terms for index in term]
    return Equation(terms, [*dots, *sorted(i for i in set(every) if not _dotted(i) and every.count(i) == 1)])


def _spelled(term: str, dots: int) -> Term:
    before, ellipsis, after = term.partition("...")
    return [*before, *(f"…{k}" for k in reversed(range(dots)) if ellipsis), *after]


def _dotted(index: str) -> bool:
    return index.startswith("…")


@rule("Einsum", ALL)
def einsum(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`dx = Einsum(dy, the other operands)`, stretched along what was summed alone, 0 off the diagonals."""
    equation = parse(str(n.attr("equation")), [n.rank(j) for j in range(len(n.node.inputs))])
    term = equation.terms[n.i]
    _refuse_shared(n, equation)
    others = [(n.x(j), t) for j, t in enumerate(equation.terms) if j != n.i]
    elsewhere = {*equation.out, *(index for _, t in others for index in t)}
    found = [index for k, index in enumerate(term) if index in elsewhere and index not in term[:k]]
    dx = _product(g, n, [(dy, equation.out), *_in_order(equation.out, others)], found)
    made = [k for k, index in enumerate(term) if index not in elsewhere or index in term[:k]]
    if made:
        dx = g.Unsqueeze(dx, made)
    for k, index in enumerate(term):
        if index in term[:k]:
            dx = g.Mul(dx, _diagonal(g, n, dy, term.index(index), k))
    alone = [_alone(n, equation, k, index not in elsewhere) for k, index in enumerate(term)]
    if None in alone:
        dx = g.Expand(dx, n.shape())
    elif any(alone):
        dx = n.expand_like(dx, [k for k, a in enumerate(alone) if a])
    return _unbroadcast(n, dx, equation, made)


def _alone(n: Call, equation: Equation, k: int, nowhere: bool) -> bool | None:
    """Whether axis `k` of the operand was summed alone: its index stands nowhere else, or only with a size of 1.

    None where only the running graph knows.
    """
    term, index, own = equation.terms[n.i], equation.terms[n.i][k], n.dims()[k]
    if term.count(index) > 1 or index in equation.out or own == 1:
        return nowhere and term.count(index) == 1
    others = [
        d for j, t in enumerate(equation.terms) if j != n.i for i, d in zip(t, n.dims(j), strict=True) if i == index
    ]
    if any(isinstance(d, int) and d > 1 for d in others) or (own is not None and own in others):
        return False
    return nowhere or True if all(d == 1 for d in others) else None


def _in_order(start: Term, others: list[tuple[ir.Value, Term]]) -> list[tuple[ir.Value, Term]]:
    """`others`, such that each shares an index with those before it if it can: onnxruntime multiplies from the left."""
    seen, rest, ordered = set(start), list(others), []
    while rest:
        best = max(rest, key=lambda o: len(seen & set(o[1])))
        rest.remove(best)
        ordered.append(best)
        seen |= set(best[1])
    return ordered


def _product(g: Builder, n: Call, operands: list[tuple[ir.Value, Term]], out: Term) -> ir.Value:
    """The Einsum; nothing, a Transpose or a MatMul where it is no more."""
    (dy, term), *others = operands
    if not others and sorted(term) == sorted(out):
        perm = [term.index(index) for index in out]
        return dy if perm == list(range(len(perm))) else g.Transpose(dy, perm=perm)
    if len(others) == 1:
        product = _matmul(g, operands[0], operands[1], out)
        if product is not None:
            return product
    letters = dict(zip(dict.fromkeys(i for _, t in operands for i in t), string.ascii_lowercase, strict=False))
    if len({i for _, t in operands for i in t}) > len(letters):
        raise n.refuse(f"more than {len(string.ascii_lowercase)} indices")
    spelled = ["".join(letters[i] for i in t) for t in (*(t for _, t in operands), out)]
    return g.Einsum(*(x for x, _ in operands), equation=f"{','.join(spelled[:-1])}->{spelled[-1]}")


def _matmul(g: Builder, a: tuple[ir.Value, Term], b: tuple[ir.Value, Term], out: Term) -> ir.Value | None:
    """`…lc, …cr -> …lr` with the last two in any order, and `…c, cr -> …r`.

    Three times as fast as onnxruntime's Einsum, which transposes what MatMul reads as it lies.
    """
    for (x, s), (y, t) in ((a, b), (b, a)):
        if len(t) == 2 and len(s) == len(out) > 1 and s[:-1] == out[:-1] and {s[-1], out[-1]} == set(t):
            return g.MatMul(x, _swapped(g, y, 2) if t[0] != s[-1] else y)
        lead = len(out) - 2
        if lead < 0 or len(s) != len(out) or len(t) != len(out) or not s[:lead] == t[:lead] == out[:lead]:
            continue
        left, right = out[lead:]
        shared = set(s[lead:]) & set(t[lead:]) - {left, right}
        if len(shared) == 1 and {left, *shared} == set(s[lead:]) and {right, *shared} == set(t[lead:]):
            rows = x if s[lead] == left else _swapped(g, x, len(s))
            return g.MatMul(rows, y if t[-1] == right else _swapped(g, y, len(t)))
    return None


def _swapped(g: Builder, x: ir.Value, rank: int) -> ir.Value:
    """`x` with its last two axes exchanged."""
    return g.Transpose(x, perm=[*range(rank - 2), rank - 1, rank - 2])


def _unbroadcast(n: Call, dx: ir.Value, equation: Equation, made: list[int]) -> ir.Value:
    """Sums where a size of 1 stood against a larger one."""
    narrow = n.dims()
    wide: list[Dim] = []
    for k, index in enumerate(equation.terms[n.i]):
        sizes = _sizes(n, equation, index)
        larger = next((s for s in sizes if s != 1), 1)
        if k in made:
            wide.append(narrow[k])
        elif narrow[k] == 1:
            wide.append(larger)
        else:  # the same, or a size that may turn out to be 1
            wide.append(next((s for s in sizes if s not in (narrow[k], 1)), narrow[k]))
    unnamed = [k for k, d in enumerate(narrow) if d is None and k not in made and (k or n.repeat.count is None)]
    return unbroadcast(n, dx, wide, narrow) if wide != narrow or unnamed else dx


def _sizes(n: Call, equation: Equation, index: str) -> list[Dim]:
    """All the sizes that an index has."""
    return [d for j, t in enumerate(equation.terms) for i, d in zip(t, n.dims(j), strict=True) if i == index]


def _diagonal(g: Builder, n: Call, dy: ir.Value, first: int, second: int) -> ir.Value:
    """1 where the positions on two axes are equal, else 0; of rank `n.rank()`."""
    size, rank = n.dims()[first], n.rank()
    if isinstance(size, int):
        shape = [1] * rank
        shape[first] = shape[second] = size
        return g.constant(np.eye(size).reshape(shape), dy.dtype)
    along = positions(g, n.size(first))
    rows, columns = (g.Unsqueeze(along, [a for a in range(rank) if a != axis]) for axis in (first, second))
    return g.Cast(g.Equal(rows, columns), to=dy.dtype)


def _refuse_shared(n: Call, equation: Equation) -> None:
    """What would come out wrong: sizes that onnx infers wrongly, batches that move."""
    for index, size in zip(equation.out, n.out_dims(), strict=True):
        if size == 1 and not _dotted(index) and any(s != 1 for s in _sizes(n, equation, index)):
            raise n.refuse(
                f"its index {index!r} has size 1 in the first operand and is larger in another: exchange them"
            )
    if n.repeat.count is None:
        return
    batch = equation.out[0] if equation.out else ""
    for j, term in enumerate(equation.terms):
        batched = j == n.i or n.node.inputs[j] in n.repeat.batched
        leads = bool(term) and term[0] == batch and term.count(batch) == 1
        free = all(d == 1 for i, d in zip(term, n.dims(j), strict=True) if i == batch)
        if not (leads if batched else free):
            one_target(n, f"moves the batch axis, or reads operand {j} without one")
