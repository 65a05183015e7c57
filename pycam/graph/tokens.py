"""Tokens (N, T, C) that lie on the image's grid, as features (N, C, h, w)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import onnx_ir as ir

from pycam.errors import LayerError
from pycam.grad.registry import CONTRIB
from pycam.grad.windows import END

from .axes import BATCH_AXIS, Axes, Tokens, dims, on_grid, takes_grid, tokens_of
from .axis_rules import taken, terms
from .builder import Builder
from .shapes import appended, infer, reads

__all__ = [
    "Grids",
    "Placed",
    "Tokens",
    "as_features",
    "given_tokens",
    "grids",
    "matters",
    "misfit",
    "name_after",
    "placed",
]

Grids: TypeAlias = "dict[ir.Value, Tokens]"

_SPECIAL = 17
"""More special tokens than that are not looked for."""

_FUSED = {("", "Attention"): False, (CONTRIB, "Attention"): True, (CONTRIB, "MultiHeadAttention"): False}
"""Ops that mix keys and values over tokens, and whether input 0 always is what these are made of."""


def grids(axes: Mapping[ir.Value, Axes]) -> Grids:
    """The values that are tokens (N, T, C) on the image's grid, more than one of them each way."""
    found: Grids = {}
    for value, (first, *rest) in ((v, a) for v, a in axes.items() if len(a) == 3):
        tokens = tokens_of(rest[0])
        if first == BATCH_AXIS and tokens is not None and min(tokens[:2]) > 1 and not on_grid(rest[1]):
            found[value] = tokens
    return found


def given_tokens(given: Sequence[int]) -> Tokens:
    """(height, width), (height, width, before) or (height, width, before, after) as tokens.

    Raises:
        LayerError: other numbers.
    """
    numbers = list(given)
    whole = all(isinstance(n, int) for n in numbers)
    if not whole or not 2 <= len(numbers) <= 4 or min(numbers[:2]) < 1 or min(numbers) < 0:
        raise LayerError(
            f"tokens={given!r}: give (height, width) of the grid, and behind them how many special tokens lie before "
            "and after it: (14, 14), (14, 14, 1) or (14, 14, 1, 4)"
        )
    return Tokens(*numbers)


def misfit(given: Tokens, count: int | str, image: Sequence[int | str]) -> str:
    """What is wrong with `given` where there are `count` tokens of an image of this size, and what would fit."""
    numbers = [n for i, n in enumerate(given) if i < 2 or any(given[i:])]
    asked = f"tokens=({', '.join(map(str, numbers))}) are "
    asked += "".join([f"{given.height}·{given.width}", *(f" + {n}" for n in numbers[2:]), f" = {given.total}"])
    if not isinstance(count, int):
        return (
            f"as many tokens as the image's size makes ({count}), and {asked}; name the layer, or fix the image's size"
        )
    likely = " or ".join(str(grid) for grid in fitting(count, image))
    return f"{count} tokens, and {asked}; {f'it would fit {likely}' if likely else 'no grid fits'}"


def fitting(count: int | str, image: Sequence[int | str]) -> list[tuple[int, ...]]:
    """Grids of an image's proportions (of a square, if these are not known) that `count` tokens can be, with few
    special ones before them."""
    if not isinstance(count, int):
        return []
    sizes = [d for d in image if isinstance(d, int)]
    height, width = sizes if len(sizes) == 2 else (1, 1)
    found: list[tuple[int, ...]] = []
    for special in range(min(_SPECIAL, count)):
        rows = round(((count - special) * height / width) ** 0.5)
        columns = rows * width // height
        if rows > 1 and rows * columns == count - special and rows * width == columns * height:
            found.append((rows, columns, special) if special else (rows, columns))
    return found


def matters(
    graph: ir.Graph, axes: Mapping[ir.Value, Axes], on_path: Collection[ir.Value], score: ir.Value
) -> set[ir.Value]:
    """The values on a path to the score whose positions on the grid the score depends on, not just special tokens.

    Behind the last attention a class token is read alone, and the others lead nowhere.
    """
    found: set[ir.Value] = {score, *(y for y in on_path if not gridded(y, axes))}
    for node in reversed(list(graph)):
        ys = [y for y in node.outputs if y in on_path]
        if node.op_type == "Split" and len(ys) > 1 and gridded(node.inputs[0], axes):
            ys = [y for y in ys if gridded(y, axes) or y not in axes]  # the others are special tokens alone
        for i, x in enumerate(node.inputs):
            if x is None or not ys or x not in on_path or x in found or _takes_special(node, x, axes):
                continue
            if _mixes(node, i, x, axes) or any(y in found for y in ys):
                found.add(x)
        found.update(x for x in reads(node) if x not in node.inputs and x in on_path and ys)
    return found


def gridded(value: ir.Value | None, axes: Mapping[ir.Value, Axes]) -> bool:
    """Whether positions of the image lie along any axis of a value."""
    return value is not None and any(on_grid(axis) for axis in axes.get(value, ()))


def _takes_special(node: ir.Node, x: ir.Value, axes: Mapping[ir.Value, Axes]) -> bool:
    """Whether a node takes special tokens of `x` alone."""
    if x is not node.inputs[0]:
        return False
    for i, axis in enumerate(axes.get(x, ())):
        tokens = tokens_of(axis)
        indices = taken(node, i, tokens.total) if tokens is not None else None
        if tokens is not None and indices is not None:
            return not takes_grid(tokens, indices)
    return False


def _mixes(node: ir.Node, i: int, x: ir.Value, axes: Mapping[ir.Value, Axes]) -> bool:
    """Whether each token of the result depends on all tokens of input `i`."""
    lies = axes.get(x, ())
    if (packed := _FUSED.get((node.domain, node.op_type))) is not None:
        return i > 0 or packed or (len(node.inputs) < 2 or node.inputs[1] is None)
    if node.op_type in ("MatMul", "MatMulInteger") and len(lies) >= 2:
        return on_grid(lies[-1 if i == 0 else -2])
    if node.op_type == "Einsum" and (written := terms(node)) is not None:
        return any(on_grid(axis) and k not in written[1] for k, axis in zip(written[0][i], lies, strict=False))
    return False


class Placed(NamedTuple):
    """The tokens (N, T, C) that features were taken from."""

    made: ir.Value
    """As the model makes them."""
    read: ir.Value
    """Put together again of the features and the special tokens: what later nodes read."""
    tokens: Tokens

    @property
    def special(self) -> bool:
        """Whether there are tokens that lie on no position of the image."""
        return bool(self.tokens.before or self.tokens.after)


def placed(features: ir.Value) -> Placed | None:
    """Where `as_features` took features from; None for features that the model has as such."""
    found = features.meta.get("placed")
    return found if isinstance(found, Placed) else None


def as_features(graph: ir.Graph, value: ir.Value, tokens: Tokens) -> ir.Value:
    """The grid's tokens of `value` as (N, C, h, w): taken apart and put together again behind it, with the special
    tokens around them; whoever read `value` reads that."""
    g, uses, count, c = Builder(graph), list(value.uses()), len(graph), dims(value)[2]
    end = tokens.before + tokens.positions
    special = bool(tokens.before or tokens.after)
    grid = g.Slice(value, [tokens.before], [end], [1]) if special else value
    # The Transpose comes last: Builder would see through a Reshape of a Reshape, past these features.
    features = g.Transpose(g.Reshape(grid, [0, tokens.height, tokens.width, c]), perm=[0, 3, 1, 2])
    back = g.Reshape(g.Transpose(features, perm=[0, 2, 3, 1]), [0, tokens.positions, c])
    if special:
        before = [g.Slice(value, [0], [tokens.before], [1])] if tokens.before else []
        after = [g.Slice(value, [end], [END], [1])] if tokens.after else []
        back = g.Concat(*before, back, *after, axis=1)
    infer(appended(graph, count), g.opsets, g.fresh("dim"))
    name_after(g, value, features, "features")
    features.meta["tokens"] = value  # whose special tokens are part of the layer as well
    features.meta["placed"] = Placed(value, back, tokens)
    for user, i in uses:
        user.replace_input_with(i, back)
    graph.sort()  # the new ones were put at the end
    return features


def name_after(g: Builder, source: ir.Value, made: ir.Value, what: str) -> None:
    """Call `made` by the name of `source` and `what` it is; its node lies in the module that `source` is from."""
    made.name = g.free(f"{source.name}/{what}")
    made.meta["layer_of"] = source
    node, model = made.producer(), source.producer()
    if node is None or model is None:
        return
    node.metadata_props.update(model.metadata_props)
    scope = (model.name or "").split(";")[0].rpartition("/")[0]
    node.name = g.free(f"{scope}/{what}")
