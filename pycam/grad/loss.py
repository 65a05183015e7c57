"""Losses of class scores, as sums over a table of zeros and ones: which class each position is of.

    loss = −Σ_c W_c·log p_c,   W = weight·[label = c],   and the mean is over Σ W.

Labels that are ignored have a weight of 0 for their class; those outside of the classes belong to none.
"""

from __future__ import annotations

import onnx_ir as ir

from pycam.graph.builder import Builder

from .attention import span
from .call import Call
from .registry import expansion


@expansion("SoftmaxCrossEntropyLoss")
def softmax_cross_entropy(g: Builder, n: Call) -> list[ir.Value | None]:
    """The loss of `log softmax(x)` over axis 1, which is output 1."""
    log_p = g.LogSoftmax(n.x(0), axis=1)
    return [_loss(g, n, log_p), log_p]


@expansion("NegativeLogLikelihoodLoss")
def negative_log_likelihood(g: Builder, n: Call) -> ir.Value:
    """The loss of `x = log p`."""
    return _loss(g, n, n.x(0))


def _loss(g: Builder, n: Call, log_p: ir.Value) -> ir.Value:
    reduction, ignored = str(n.attr("reduction", "mean")), n.attr("ignore_index")
    rank, classes = n.rank(0), n.dims(0)[1]
    per_class = [-1, *[1] * (rank - 2)]
    every = span(g, classes if isinstance(classes, int) else n.size(1, 0))
    labels = g.Unsqueeze(g.Cast(n.x(1), to=ir.DataType.INT64), [1])
    table = g.Cast(g.Equal(labels, g.Reshape(every, per_class)), to=n.dtype(0))
    if ignored is not None:
        kept = g.Cast(g.Not(g.Equal(every, int(ignored))), to=n.dtype(0))
        table = g.Mul(table, g.Reshape(kept, per_class))
    if n.has(2):
        table = g.Mul(table, g.Reshape(n.x(2), per_class))
    picked = g.Neg(g.Mul(log_p, table))
    if reduction == "none":
        return g.ReduceSum(picked, [1], keepdims=0)
    axes = list(range(rank))
    total = g.ReduceSum(picked, axes, keepdims=0)
    if reduction == "sum":
        return total
    if ignored is None and not n.has(2):  # every label counts
        count = g.Cast(g.Size(n.node.inputs[1]), to=n.dtype(0))
        return g.Div(total, count)
    return g.Div(total, g.ReduceSum(table, axes, keepdims=0))


@expansion("CastLike")
def cast_like(g: Builder, n: Call) -> ir.Value:
    """A Cast to the type of input 1."""
    dtype = n.node.inputs[1].dtype if n.node.inputs[1] is not None else None
    if dtype is None:
        raise n.refuse("the type of its input 1 is unknown")
    return g.Cast(n.x(0), to=dtype)
