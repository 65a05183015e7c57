"""Rules of the linear layers: Gemm, MatMul."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from pycam.errors import BatchAxisError
from pycam.graph.builder import Builder

from .call import Call, Dim, describe
from .registry import rule
from .reverse import unbroadcast


@rule("Gemm", 0)
def gemm_a(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = α·A'·B' + β·C` ⇒ `dA' = α·dy·B'ᵀ`, where `'` transposes if the attribute says so."""
    if n.attr("transA", 0):
        _refuse_shared(n)
    b = n.x(1) if n.attr("transB", 0) else _transposed(g, n.x(1), 2)
    da = _scaled(g, g.MatMul(dy, b), n.attr("alpha", 1.0))
    return _transposed(g, da, 2) if n.attr("transA", 0) else da


@rule("Gemm", 1)
def gemm_b(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = α·A'·B' + β·C` ⇒ `dB' = α·A'ᵀ·dy`, where `'` transposes if the attribute says so."""
    _refuse_shared(n)
    a = n.x(0) if n.attr("transA", 0) else _transposed(g, n.x(0), 2)
    db = _scaled(g, g.MatMul(a, dy), n.attr("alpha", 1.0))
    return _transposed(g, db, 2) if n.attr("transB", 0) else db


@rule("Gemm", 2, broadcasts="output")
def gemm_c(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = α·A'·B' + β·C` ⇒ `dC = β·dy`; the walk sums it to the shape of `C`."""
    return _scaled(g, dy, n.attr("beta", 1.0))


@rule("MatMul", 0)
def matmul_a(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = A·B` ⇒ `dA = dy·Bᵀ`, summed over the batch axes that broadcasting stretched."""
    if n.rank(0) < max(n.rank(1), 2):
        _refuse_shared(n)
    b = _transposed(g, _matrix(g, n, 1), max(n.rank(1), 2))
    da = g.MatMul(_matrix_of_result(g, n, dy), b)
    if n.rank(0) == 1:
        return _summed(n, g.Squeeze(da, [-2]), n.dims(0)[-1:])
    return _summed(n, da, n.dims(0)[-2:])


@rule("MatMul", 1)
def matmul_b(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`y = A·B` ⇒ `dB = Aᵀ·dy`, summed over the batch axes that broadcasting stretched."""
    if n.rank(1) < max(n.rank(0), 3):
        _refuse_shared(n)
    a = _transposed(g, _matrix(g, n, 0), max(n.rank(0), 2))
    db = g.MatMul(a, _matrix_of_result(g, n, dy))
    if n.rank(1) == 1:
        return _summed(n, g.Squeeze(db, [-1]), n.dims(1)[-1:])
    return _summed(n, db, n.dims(1)[-2:])


def _matrix(g: Builder, n: Call, i: int) -> ir.Value:
    """Operand `i` of MatMul; a vector as the row (left) or column (right) that it stands for."""
    return n.x(i) if n.rank(i) > 1 else g.Unsqueeze(n.x(i), [i])


def _matrix_of_result(g: Builder, n: Call, dy: ir.Value) -> ir.Value:
    """`dy` with the axes of length 1 that vector operands left out."""
    axes = [axis for axis, i in ((-2, 0), (-1, 1)) if n.rank(i) == 1]
    return g.Unsqueeze(dy, axes) if axes else dy


def _summed(n: Call, dx: ir.Value, own: Sequence[Dim]) -> ir.Value:
    """`dx` (batch axes of the result, then `own`) with the shape of the operand."""
    batch = n.out_dims()[: len(n.out_dims()) - sum(n.rank(i) > 1 for i in (0, 1))]
    ones: list[Dim] = [1] * len(own)
    return unbroadcast(n, dx, [*batch, *own], n.dims(), [[*n.dims(1 - n.i)[:-2], *ones]])


def _transposed(g: Builder, x: ir.Value, rank: int) -> ir.Value:
    """`x` with its last two axes exchanged."""
    return g.Transpose(x, perm=[*range(rank - 2), rank - 1, rank - 2])


def _scaled(g: Builder, x: ir.Value, factor: float) -> ir.Value:
    return g.Mul(x, factor) if factor != 1.0 else x


def _refuse_shared(n: Call) -> None:
    """An operand without a batch axis is shared by all samples: its gradients for K scores cannot travel together."""
    if n.repeat.count is not None:
        raise BatchAxisError(
            f"{describe(n.node)} reads input {n.i} without a batch axis, so several targets cannot share one pass: "
            "compile for one target per image (classes=1)"
        )
