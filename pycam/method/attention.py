"""Methods that read the attention of a transformer: probabilities (N, heads, T, T), from T tokens to T tokens."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pycam.errors import MethodError
from pycam.graph.attention import Attention, attention_maps, global_attention
from pycam.graph.axes import Tokens
from pycam.graph.blocks import block_outputs

from .combine import for_all_targets, shaped
from .registry import method
from .scene import Scene

NEEDS = "a transformer in which every token attends every other (no windows)"


@method("attention_rollout", "Attention rollout", "2005.00928", cost="1 forward", needs=NEEDS, layers="none")
def attention_rollout(s: Scene) -> ir.Value:
    """`R = Π_l Ā_l`, `Ā = ½(mean_h A + I)` with rows that add up to 1; the same for all targets."""
    g, (maps, tokens) = s.g, _attention(s)
    total = None
    for attention in maps:
        mean = g.ReduceMean(s.read(attention.per_head(g, attention.value)), [1], keepdims=0)  # (N, T, T)
        mixed = g.Mul(g.Add(mean, _identity(tokens)), 0.5)
        rows = g.Div(mixed, g.ReduceSum(mixed, [-1], keepdims=1))
        total = rows if total is None else g.MatMul(rows, total)
    assert total is not None
    return for_all_targets(s, g.Unsqueeze(_on_grid(s, total, tokens, axes=1), [1]), (tokens.height, tokens.width))


@method(
    "chefer",
    "Transformer relevance (Chefer et al.)",
    "2103.15679",
    cost="1 forward + backward to the first attention",
    needs=NEEDS,
    layers="none",
)
def chefer(s: Scene) -> ir.Value:
    """`R ← R + Ā·R` over the blocks, from `R = I`; `Ā = mean_h relu(dy/dA ⊙ A)`."""
    g, (maps, tokens) = s.g, _attention(s)
    grads = s.first.gradients([attention.value for attention in maps])
    total = g.constant(_identity(tokens))
    for attention, grad in zip(maps, grads, strict=True):
        a = s.read(attention.per_head(g, attention.value))  # (N, heads, T, T)
        terms = g.Mul(_by_target(s, attention, grad, tokens), a)
        mean = g.ReduceMean(g.Relu(terms), [2], keepdims=0)  # (K, N, T, T)
        total = g.Add(total, g.MatMul(mean, total))
    return _per_target(s, _on_grid(s, total, tokens, axes=2), tokens)


@method(
    "legrad",
    "LeGrad",
    "2404.03214",
    cost="1 forward + 1 head and the backward of 1 block, per block",
    needs=NEEDS,
    layers="none",
)
def legrad(s: Scene) -> ir.Value:
    """`mean_l mean_{h,q} relu(dy_l/dA_l)`: `y_l` the score that the model's head gives to the tokens behind block l,
    `A_l` that block's attention; the mean over heads and over all tokens that attend."""
    g, (maps, tokens) = s.g, _attention(s)
    outputs = block_outputs(s.g.graph, maps, s.score)
    parts = []
    for attention, output in zip(maps, outputs, strict=True):
        behind = s.first if output is outputs[-1] else s.run({outputs[-1]: output})
        grad = behind.gradient(attention.value)
        by_target = g.Relu(_by_target(s, attention, grad, tokens))  # (K, N, heads, T, T)
        parts.append(g.ReduceMean(by_target, [2, 3], keepdims=0))  # (K, N, T)
    mean = g.Mul(g.Sum(*parts), 1.0 / len(parts)) if len(parts) > 1 else parts[0]
    return _per_target(s, _grid_of(s, mean, tokens, axes=2), tokens)


def _attention(s: Scene) -> tuple[list[Attention], Tokens]:
    maps = attention_maps(s.g.graph, s.score)
    tokens = global_attention(maps)
    unknown = next((a for a in maps if a.heads is None), None)
    if unknown is not None:
        raise MethodError(
            f"how many heads the attention {unknown.name!r} has could not be followed: export the model by torch's "
            "dynamo exporter, or with fixed sizes but for the batch"
        )
    return maps, tokens


def _identity(tokens: Tokens) -> NDArray[np.float32]:
    return np.eye(tokens.total, dtype=np.float32)


def _by_target(s: Scene, attention: Attention, grad: ir.Value, tokens: Tokens) -> ir.Value:
    """(K·N, …) → (K, N, heads, T, T)."""
    g, sizes = s.g, [-1, attention.heads or 1, tokens.total, tokens.total]
    shape = g.constant([1, *sizes]) if s.chosen.count is None else g.Concat(s.chosen.count, sizes, axis=0)
    return g.Reshape(attention.per_head(g, grad), shape)


def _on_grid(s: Scene, relevance: ir.Value, tokens: Tokens, axes: int) -> ir.Value:
    """What the score's token takes from the others: (…, T, T) → (…, h, w).  It is the class token, the first of those
    that lie on no position; in a model without, which pools all tokens, their mean."""
    g = s.g
    if not tokens.before and not tokens.after:
        return _grid_of(s, g.ReduceMean(relevance, [-2], keepdims=0), tokens, axes)
    row = 0 if tokens.before else tokens.positions
    return _grid_of(s, g.Gather(relevance, g.constant(row), axis=-2), tokens, axes)


def _grid_of(s: Scene, values: ir.Value, tokens: Tokens, axes: int) -> ir.Value:
    """(…, T) → (…, h, w), without the special tokens; `axes`: how many come before."""
    g = s.g
    start = tokens.before
    grid = g.Slice(values, [start], [start + tokens.positions], [-1])
    return g.Reshape(grid, [*[0] * axes, tokens.height, tokens.width])


def _per_target(s: Scene, maps: ir.Value, tokens: Tokens) -> ir.Value:
    """(K, N, h, w) → (N, K, h, w)."""
    return shaped(s, s.g.Transpose(maps, perm=[1, 0, 2, 3]), (tokens.height, tokens.width))
