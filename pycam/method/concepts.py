"""Deep Feature Factorization: the concepts that a layer tells apart, and which class each speaks for."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from pycam.errors import MethodError
from pycam.graph.depend import batched_inputs, batched_values, depending, needed
from pycam.graph.locate import dims
from pycam.graph.shapes import reads
from pycam.runtime.algebra import check_installed

from .registry import method
from .scene import Scene


@method(
    "dff",
    "Deep Feature Factorization",
    "1806.10206",
    cost="1 forward + a factorisation of A + 1 tail per concept",
    needs="scikit-learn; a score that depends on the image through the layer alone",
    targeted=False,
    also=("DeepFeatureFactorization",),
)
def dff(s: Scene, *, components: int = 5, seed: int = 0, iterations: int = 200) -> ir.Value:
    """`A − b ≈ concepts·maps`, all non-negative, `b` the least of each channel: one map per concept, for all images of
    the batch together, so that a concept is the same in all of them.

    Concepts come in the order of what they explain of `A`; `targets` says the class with the highest score for each,
    and `extras["concepts"]` (N, components, classes) all scores: the model's where the layer holds the concept's
    features at every position.

    Options:
        components: How many concepts, and maps; 3 to 10 are sensible.  A pass of the tail each, and the factorisation
            grows with them.
        seed: Of its random start, 0 … 2³² − 1: another may find other concepts.
        iterations: Of it at most; scikit-learn warns where they do not suffice, then raise it.
    """
    for name, value in {"components": components, "iterations": iterations}.items():
        if value < 1:
            raise MethodError(f"{name}={value}: give 1 or more")
    if not 0 <= seed < 2**32:
        raise MethodError(f"seed={seed}: give 0 … 2³² − 1")
    if s.objective.name != "class":
        raise MethodError(f"{s.title} finds what it explains: objective={s.objective.name!r} does not apply")
    check_installed(["nmf"])
    if isinstance(dims(s.x)[0], int) and dims(s.x)[0] != 1:
        raise MethodError(
            f"{s.title} runs the model on its concepts, and this one takes batches of exactly {dims(s.x)[0]}: "
            "export it with a free batch size, or with 1"
        )
    g, layer = s.g, s.layer
    _check_alone(s, layer)
    channels = dims(layer)[1]
    if isinstance(channels, int) and components > channels:
        raise MethodError(f"components={components}: the layer {layer.name!r} has {channels} channels, give fewer")
    a = s.read(layer)
    n, c, *positions = (None if d == "?" else d for d in dims(a))
    maps, concepts = s.host(
        "nmf",
        a,
        results=[(n, components, *positions), (components, c)],
        components=components,
        seed=seed,
        iterations=iterations,
    )
    sizes = g.Concat([components], g.Slice(g.Shape(layer), [1], [4], [0]), axis=0)
    features = g.Expand(g.Unsqueeze(concepts, [2, 3]), sizes)
    scores = s.run({layer: g.Cast(features, to=layer.dtype) if layer.dtype != a.dtype else features}).classes
    batch = g.Slice(g.Shape(maps), [0], [1], [0])
    s.explained = g.Expand(g.ArgMax(scores, axis=1, keepdims=0), g.Concat(batch, [components], axis=0))
    wide = g.Unsqueeze(scores, [0])
    s.report("concepts", g.Expand(wide, g.Concat(batch, [1, 1], axis=0)))
    return maps


def _check_alone(s: Scene, layer: ir.Value) -> None:
    """Whether the score depends on the image through the layer alone.

    Raises:
        MethodError: it does not: then the scores of a concept would be those of one image as well.
    """
    nodes = list(s.g.graph)
    behind = depending(nodes, [layer])
    tail = [n for n in needed(nodes, [s.score], [layer]) if any(y in behind for y in n.outputs)]
    beside = _values(tail, batched_values(batched_inputs(s.g.graph.inputs), nodes)) - behind
    if beside:
        name = min(value.name or "" for value in beside)
        raise MethodError(
            f"{s.title} asks the model for the score of features that no image has, and behind the layer "
            f"{layer.name!r} the score also reads {name!r}: choose a layer that everything leads through, "
            "see `pycam layers`"
        )


def _values(tail: Sequence[ir.Node], batched: frozenset[ir.Value]) -> set[ir.Value]:
    """What these nodes read of values with a batch axis, besides their sizes."""
    return {x for n in tail if n.op_type not in ("Shape", "Size") for x in reads(n) if x in batched}
