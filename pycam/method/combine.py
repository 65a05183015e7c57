"""From gradients to a raw map: `Σ_c w·A`, for K targets at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from pycam.errors import MethodError
from pycam.graph.builder import Builder
from pycam.graph.locate import dims
from pycam.graph.simplify import Spread, expand, moved_from, spread_of

from .registry import CHANNELS, Weigh

if TYPE_CHECKING:
    from .scene import Scene


def weighted_maps(
    scene: Scene, weigh: Weigh, *, gradient: bool, per_channel: bool, rectify: bool, linear_only: bool
) -> list[ir.Value]:
    """The raw maps of all layers, weighed by `weigh(g, a, da)`.

    Raises:
        MethodError: the method needs a GAP + linear tail and this one is not.
    """
    count = scene.chosen.count
    grads = scene.first.gradients(scene.layers) if gradient else [None] * len(scene.layers)
    maps = []
    for layer, grad in zip(scene.layers, grads, strict=True):
        if linear_only and _over_positions(grad) is None:
            raise MethodError(
                f"{scene.title} needs global average pooling and linear layers behind the layer {layer.name!r}, "
                "whose gradient here depends on the position: use 'gradcam', which is the same where both apply"
            )
        a = scene.read(layer)
        w = weigh(scene.g, a, split(scene.g, grad, a, count) if grad is not None else None)
        maps.append(weighted(scene, a, w, per_channel=per_channel, rectify=rectify, shared=not gradient))
    return maps


def weighted(
    scene: Scene,
    a: ir.Value,
    w: ir.Value,
    *,
    per_channel: bool = False,
    rectify: bool = False,
    shared: bool = False,
) -> ir.Value:
    """The raw map `Σ_c w·A` of one layer, (N, K, h, w); with `scene.eigen` the projection of `w·A` onto its first
    singular vector.

    Args:
        scene: Whose layer it is.
        a: Activations (N, C, h, w).
        w: Weights (K, N, C, h, w), with 1 for h and w where they are constant over the positions.
        per_channel: w is (K, N, C, 1, 1).
        rectify: `Σ_c relu(w·A)`.
        shared: w is the same for all targets, with 1 in place of K.
    """
    g = scene.g
    if scene.eigen:
        terms = g.Mul(w, a)
        features = g.Transpose(g.Relu(terms) if rectify else terms, perm=[1, 0, 2, 3, 4])
        return projected(scene, features, a, shared=shared)
    raw = _summed(g, a, w, None if shared else scene.chosen.count, per_channel, rectify)
    return for_all_targets(scene, raw, dims(a)[2:]) if shared else shaped(scene, raw, dims(a)[2:])


def projected(
    scene: Scene, features: ir.Value, a: ir.Value, function: str = "svd", *, shared: bool = False, **options: Any
) -> ir.Value:
    """The raw map (N, K, h, w) that `algebra.<function>` makes of `features` (N, K, C, h, w).

    `shared`: they are the same for all targets, (N, 1, C, h, w).
    """
    positions = dims(a)[2:]
    sizes = [None if d == "?" else d for d in (dims(a)[0], None, *positions)]
    (found,) = scene.host(function, features, results=[sizes], **options)
    return for_all_targets(scene, found, positions) if shared else shaped(scene, found, positions)


def for_all_targets(scene: Scene, raw: ir.Value, positions: Sequence[int | str]) -> ir.Value:
    """A raw map (N, 1, h, w) that is the same for all targets as (N, K, h, w).

    Raises:
        MethodError: another objective than the score was asked for, which would change nothing.
    """
    if scene.objective.name != "class":
        raise MethodError(
            f"{scene.title} does not look at the score, so objective={scene.objective.name!r} would change nothing: "
            "leave it out, or choose a method that does"
        )
    g, count = scene.g, scene.chosen.count
    wide = raw if count is None else g.Expand(raw, g.Concat([1], count, [1, 1], axis=0))
    return shaped(scene, wide, positions)


def shaped(scene: Scene, raw: ir.Value, positions: Sequence[int | str]) -> ir.Value:
    """`raw` with its shape (N, K, *positions) noted."""
    sizes = (dims(scene.x)[0], "K" if scene.chosen.count is not None else 1, *positions)
    raw.shape = ir.Shape([None if d == "?" else d for d in sizes])
    return raw


def _summed(g: Builder, a: ir.Value, w: ir.Value, count: ir.Value | None, per_channel: bool, rectify: bool) -> ir.Value:
    n, c, *positions = dims(a)
    found = _over_positions(w)
    if (found is not None or per_channel) and not rectify:
        channels = found[0] if found is not None else w  # (K, N, C, 1, 1)
        rows = _looked_up(g, channels, c)
        if rows is None:
            by_target = g.Reshape(channels, _vector(g, [count or 1, _size(n), c], a))
            rows = g.Transpose(by_target, perm=[1, 0, 2])
        flat = g.Reshape(a, _vector(g, [_size(n), c, -1 if isinstance(n, int) else _area(positions)], a))
        maps = g.MatMul(rows, flat)  # (N, K, h·w)
        return g.Reshape(maps, _vector(g, [0, 0, *positions], a))  # 0 copies N and K
    terms = g.Mul(w, a)
    summed = g.ReduceSum(g.Relu(terms) if rectify else terms, [CHANNELS], keepdims=0)  # (K, N, h, w)
    return g.Transpose(summed, perm=[1, 0, 2, 3])


def _over_positions(x: ir.Value | None) -> tuple[ir.Value, ir.Value, Spread] | None:
    """`spread_of(x)`, if exactly the positions were stretched: then one number per channel says it all."""
    found = spread_of(x)
    return found if found is not None and found[2].axes == (-2, -1) else None


def split(g: Builder, da: ir.Value, a: ir.Value, count: ir.Value | None) -> ir.Value:
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
