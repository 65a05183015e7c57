"""From gradients to a raw map: `Σ_c w·A`, for K targets at once."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from pycam.errors import MethodError
from pycam.graph.builder import Builder
from pycam.graph.locate import dims
from pycam.graph.simplify import Spread, expand, moved_from, spread_of

from .registry import CHANNELS, Method


def raw_map(g: Builder, method: Method, a: ir.Value, da: ir.Value, count: ir.Value | None) -> ir.Value:
    """The raw map (N, K, h, w) of one layer.

    Args:
        g: Builder of the explain graph.
        method: How activations and gradients are weighed.
        a: Activations (N, C, h, w).
        da: Gradients (K·N, C, h, w), K outermost.
        count: K as an int64 vector of length 1, or None when it is 1.

    Raises:
        MethodError: the method needs a GAP + linear tail and this one is not.
    """
    if method.linear_only and _over_positions(da) is None:
        raise MethodError(
            f"{method.title} needs global average pooling and linear layers behind the layer {a.name!r}, "
            "whose gradient here depends on the position: use 'gradcam', which is the same where both apply"
        )
    w = method.weigh(g, a, _split(g, da, a, count))
    n, c, *positions = dims(a)
    found = _over_positions(w)
    if (found is not None or method.per_channel) and not method.rectify:
        channels = found[0] if found is not None else w  # (K, N, C, 1, 1)
        rows = _looked_up(g, channels, c)
        if rows is None:
            by_target = g.Reshape(channels, _vector(g, [count or 1, _size(n), c], a))
            rows = g.Transpose(by_target, perm=[1, 0, 2])
        flat = g.Reshape(a, _vector(g, [_size(n), c, -1 if isinstance(n, int) else _area(positions)], a))
        maps = g.MatMul(rows, flat)  # (N, K, h·w)
        return g.Reshape(maps, _vector(g, [0, 0, *positions], a))  # 0 copies N and K
    terms = g.Mul(w, a)
    summed = g.ReduceSum(g.Relu(terms) if method.rectify else terms, [CHANNELS], keepdims=0)  # (K, N, h, w)
    return g.Transpose(summed, perm=[1, 0, 2, 3])


def _over_positions(x: ir.Value | None) -> tuple[ir.Value, ir.Value, Spread] | None:
    """`spread_of(x)`, if exactly the positions were stretched: then one number per channel says it all."""
    found = spread_of(x)
    return found if found is not None and found[2].axes == (-2, -1) else None


def _split(g: Builder, da: ir.Value, a: ir.Value, count: ir.Value | None) -> ir.Value:
    """(K·N, C, h, w) → (K, N, C, h, w); a gradient that is constant over positions stays small."""
    n, c, *positions = dims(a)
    found = _over_positions(da)
    if found is None:
        split = g.Reshape(da, _vector(g, [count or 1, _size(n), c, *positions], a))
        moved = moved_from(da)
        if moved is not None:
            source = g.Reshape(moved.source, _vector(g, [count or 1, _size(n), c, *moved.source_sizes], a))
            split.meta["moved"] = moved._replace(source=source)
        return split
    small = g.Reshape(found[0], _vector(g, [count or 1, _size(n), c, 1, 1], a))
    return expand(g, small, _vector(g, [1, 1, 1, *positions], a), found[2])


def _looked_up(g: Builder, x: ir.Value | None, channels: int | str) -> ir.Value | None:
    """Weights that are rows of a matrix, looked up by class, directly as (N, K, C); None if they are something else.

    Behind global average pooling the walk ends in `scale · Gather(W, rows)` with reshapes between, all per row.
    Looking up by the (N, K) classes in place of their flattened rows leaves out everything that only moves axes.
    """
    node = x.producer() if x is not None else None
    if node is None:
        return None
    first, *others = node.inputs
    if node.op_type == "Gather" and first is not None and node.attributes.get_int("axis", 0) == 0:
        explained = others[0].meta.get("rows of") if others[0] is not None else None
        row = dims(first)[1:]
        return g.Gather(first, explained, axis=0) if explained is not None and row == (channels,) else None
    if node.op_type == "Reshape":
        return _looked_up(g, first, channels)
    scalar = others and all(o is not None and o.const_value is not None and o.const_value.size == 1 for o in others)
    if node.op_type not in ("Mul", "Div") or not scalar:
        return None
    rows = _looked_up(g, first, channels)
    return g.emit(node.op_type, [rows, *others])[0] if rows is not None else None


def _size(n: int | str) -> int:
    """The batch in a Reshape: known, or whatever is left."""
    return n if isinstance(n, int) else -1


def _area(positions: Sequence[int | str]) -> int | str:
    h, w = positions
    return h * w if isinstance(h, int) and isinstance(w, int) else "h·w"


def _vector(g: Builder, sizes: Sequence[int | str | ir.Value], a: ir.Value) -> ir.Value:
    """A shape: ints stay, a Value is a size computed when the graph runs, a symbol is looked up in the shape of `a`."""
    if all(isinstance(s, int) for s in sizes):
        return g.constant([int(s) for s in sizes if isinstance(s, int)])
    symbols = [d if isinstance(d, str) else None for d in dims(a)]
    parts: list[ir.Value | list[int]] = []
    for size in sizes:
        if isinstance(size, int):
            if parts and isinstance(parts[-1], list):
                parts[-1].append(size)
            else:
                parts.append([size])
        elif isinstance(size, ir.Value):
            parts.append(size)
        elif size == "h·w":
            parts.append(g.ReduceProd(g.Slice(g.Shape(a), [2], [4], [0]), [0], keepdims=1))
        else:
            axis = symbols.index(size)
            parts.append(g.Slice(g.Shape(a), [axis], [axis + 1], [0]))
    shape = g.Concat(*parts, axis=0)
    tail: list[int] = []
    for size in reversed(sizes):
        if not isinstance(size, int):
            break
        tail.insert(0, size)
    if 0 not in sizes:  # 0 copies a size from what is reshaped: a peephole must not exchange that
        shape.meta["tail"] = tail
    return shape
