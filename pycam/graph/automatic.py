"""`layer="auto"`: the layer that shows best what a score looks at."""

from __future__ import annotations

import functools
import operator
from collections import Counter
from collections.abc import Iterable, Sequence

import onnx_ir as ir

from pycam.errors import LayerError
from pycam.grad import registry

from .axes import Tokens, dims
from .branches import branching
from .candidates import FLOATS, LayerSearch, lies_between, narrows, size_of_grid, spatial
from .layout import channels_last, on_image, untransposed
from .quantised import as_read, before_rounding
from .ranks import FORMS, read_whole
from .shapes import reads
from .tokens import fitting, gridded, matters

_POOLS = {"MaxPool", "AveragePool", "LpPool"}
_WEIGHTED = {"Conv", "ConvTranspose", "MatMul", "Gemm"}
"""Ops that project features onto classes, boxes, masks."""
_REGIONS = {"RoiAlign", "MaxRoiPool"}
"""Ops that cut regions of the image out of features (input 0): behind them there is no grid of the image."""
_EARLY = 2
"""What all paths lead through comes early if the coarsest features lie more than so many times as deep."""
_MOVES = {"Reshape", "Transpose", "Flatten", "Squeeze"}
"""Ops that flatten features, and do nothing more."""
_BEFORE = {*_POOLS, "Transpose", "Reshape"}
"""Ops behind which features of signals and volumes are the same, or pooled."""
_PARTS = {"Concat", "ScatterND", "ScatterElements", "Where"}
"""Ops that put branches beside each other, each of which makes some of the scores."""


def automatic(model: LayerSearch) -> ir.Value:
    """The last spatial features before they are pooled or flattened: all that the score sees of the image, where there
    is such a value, else the last on the image's grid.

    Tokens are such features as far as the score depends on those of the grid: before the last attention, where it reads
    a class token.
    """
    graph, score = model.graph, model.score
    if model.dimensions != 2:
        return _automatic_of_rank(model)
    alive = matters(graph, model.axes, model.on_path, score)
    every = [y for node in graph for y in node.outputs if model.explainable(y)]
    narrow, image = narrows(graph, lies_between(graph, model.images, [score]).values), on_image(graph)
    if not any(len(dims(x)) == 4 for x in model.images):  # clips, volumes, sound: four axes may be anything
        every = [v for v in every if v in image]
    values = [v for v in every if v in alive and model.has_positions(v)]
    spatials = [v for v in every if v not in model.tokens]
    branches = _branch_ends(model, alive)
    choices = ([v for v in values if v in narrow], branches, [v for v in spatials if v in image], values, spatials)
    found = next((choice[-1] for choice in choices if choice), None)
    if not model.tokens and (tokens := _counted_tokens(model, narrow)) is not None:
        told = LayerSearch(graph, score, tokens=tokens)
        value = automatic(told)
        model.tokens |= told.tokens
        return value
    if found is None:
        raise LayerError(
            "layer='auto' found no spatial features (N, C, h, w), nor tokens (N, T, C) on the image's grid, between "
            f"the input and the score {score.name!r}: name a layer{branching(graph)}"
        )
    if (hidden := _hidden_tokens(model, found)) is not None:
        x = model.images[0]
        raise LayerError(
            f"layer='auto' found no features behind {found.name!r} but tokens ({hidden.name!r} {list(dims(hidden))}), "
            f"whose grid is known for images of one size alone: fix the size of the model's input {x.name!r} "
            f"{list(dims(x))}, say how the tokens lie (tokens=), or name a layer"
        )
    return _unpooled(model, found)


def _automatic_of_rank(model: LayerSearch) -> ir.Value:
    """The same of a signal or a volume, whose tokens are not followed."""
    whole = read_whole(model.graph, model.on_path)
    every = [y for node in model.graph for y in node.outputs if y in whole and model.explainable(y)]
    narrow = narrows(model.graph, lies_between(model.graph, model.images, [model.score]).values)
    value = next((choice[-1] for choice in ([v for v in every if v in narrow], every) if choice), None)
    if value is None:
        raise LayerError(
            f"layer='auto' found no features {FORMS[model.dimensions]} with more than one position between the input "
            f"and the score {model.score.name!r}: name a layer{branching(model.graph)}"
        )
    value = as_read(value)
    while (node := before_rounding(value).producer()) is not None and node.op_type in _BEFORE:
        before = node.inputs[0]
        if before is None or not model.explainable(before):
            break
        value = before
    return as_read(value)


def _counted_tokens(model: LayerSearch, narrow: set[ir.Value]) -> Tokens | None:
    """How tokens lie that cannot be followed, by their number, which is that of the position table: the grid of the
    image's proportions whose patches fill the image, with the fewest special tokens before it."""
    size = size_of_grid(model.images[0]) if len(dims(model.images[0])) == 4 else ()
    counts = [
        dims(y)[1]
        for node in model.graph
        for y in node.outputs
        if y in narrow and y not in model.axes and y.dtype in FLOATS and len(dims(y)) == 3
    ]
    if not counts or model.given is not None:
        return None
    fit = [Tokens(*grid) for grid in fitting(counts[-1], size)]
    fit = [t for t in fit if all(isinstance(d, int) and d % n == 0 for d, n in zip(size, t[:2], strict=True))]
    return fit[0] if fit else None


def _branch_ends(model: LayerSearch, alive: set[ir.Value]) -> list[ir.Value]:
    """Where branches from the image to the score never meet on a grid (two sizes of patches): of each the last value
    that all of it leads through, that on the coarsest grid last.  Empty where there is one branch."""
    lies = {v for v in model.on_path & alive if gridded(v, model.axes) and not v.is_graph_input()}
    branch: dict[ir.Value, set[ir.Value]] = {}
    for node in model.graph:
        made = {y for y in node.outputs if y in lies}
        if not made:
            continue
        joined = [made, *(branch[x] for x in dict.fromkeys(reads(node)) if x in branch)]
        whole = max(joined, key=len)
        for part in joined:
            whole |= part
            for v in part:
                branch[v] = whole
    branches = list({id(part): part for part in branch.values()}.values())
    if len(branches) < 2:
        return []
    order = {y: i for i, node in enumerate(model.graph) for y in node.outputs}
    ends = []
    for part in branches:
        fine = [v for v in _alone(model, part) if model.explainable(v) and model.has_positions(v)]
        if fine:
            ends.append(max(fine, key=order.__getitem__))
    return sorted(ends, key=lambda v: (-(_positions(model, v) or 0), order[v]))


def _alone(model: LayerSearch, part: set[ir.Value]) -> set[ir.Value]:
    """The values of `part` beside which no other one of them is still to be read."""
    readers = [node for node in model.graph if not model.on_path.isdisjoint(node.outputs)]
    waiting = Counter(x for node in readers for x in {*reads(node)} & part)
    live: set[ir.Value] = set()
    found: set[ir.Value] = set()
    for node in readers:
        for x in {*reads(node)} & part:
            waiting[x] -= 1
            if not waiting[x]:
                live.discard(x)
        made = part.intersection(node.outputs)
        live |= made
        if made and len(live) == 1:
            found |= live
    return found


def _hidden_tokens(model: LayerSearch, found: ir.Value) -> ir.Value | None:
    """The tokens that the features `found` are flattened to and that layers then work on, where the image's size is
    free, so that their grid is not known."""
    if found in model.axes or all(isinstance(d, int) for x in model.images for d in dims(x)[1:]):
        return None
    flat = {found}
    tokens: ir.Value | None = None
    for node in model.graph:
        y = node.outputs[0]
        if node.op_type in _MOVES and node.inputs[0] in flat:
            flat.add(y)
            tokens = y if len(dims(y)) == 3 and tokens is None else tokens
        if tokens is not None and y in model.on_path and len(dims(y)) == 3 and _has_weights(node):
            return tokens
    return None


def automatic_spatial(model: LayerSearch, points: bool = False) -> ir.Value:
    """For scores that keep positions (masks, boxes): the last features on the image's grid that all of `model.ends`
    depend on and all paths lead through, before their last projections.

    From each end the way leads back through whatever has no weights (Resize, activations, reshapes) to the last
    convolution or linear layer, which projects features onto classes: what it reads is the latest layer there can be.
    Where branches are put beside each other (anchors, scales, box and class), each has its own, and only what all of
    them depend on counts; where they are summed, what any of them depends on.

    Where the paths part early, in a pyramid of features whose first level already leads to the score, what all lead
    through has seen little: then it is the last on the coarsest grid that all ends depend on, the end of the backbone.

    Raises:
        LayerError: the ends have no features on the image's grid in common.
    """
    grid = model.on_the_image()
    shared = [v for v in _in_common(model, grid) if v in grid]
    narrow, coarse, depth = _last_narrow(model, shared), _last_coarse(model, shared), _depths(model.graph)
    if coarse is not None and (depth[narrow] * _EARLY < depth[coarse] or (points and depth[narrow] > depth[coarse])):
        return _unpooled(model, coarse)
    return _unpooled(model, narrow)


def _in_common(model: LayerSearch, grid: set[ir.Value]) -> list[ir.Value]:
    """The values that all ends depend on, in the order of computation, up to what the last projections read.

    Sets of values are the bits of integers: `behind` holds a value and all that it depends on; `read` the same up to
    the last value on the grid; `shared` that in front of the last op with weights.
    """
    path = lies_between(model.graph, model.images, model.ends)
    values = [*model.images, *(y for node in path.nodes for y in node.outputs if y in path.values)]
    bit = {y: 1 << i for i, y in enumerate(values)}
    behind, read, shared = ({x: bit[x] for x in model.images} for _ in range(3))
    regions: set[ir.Value] = set()
    for node in path.nodes:
        given = [x for i, x in enumerate(node.inputs) if x in bit and not registry.stopped(node, i)]
        given += [x for x in reads(node) if x in bit and x not in node.inputs]
        if node.op_type in _REGIONS:
            given = given[:1]
        join = _all_of if node.op_type in _PARTS else _any_of
        cut_out = node.op_type in _REGIONS or any(x in regions for x in given)
        before = _any_of(behind[x] for x in given)
        ahead = join(read[x] for x in given)
        weighted = node.op_type in _REGIONS or _has_weights(node)
        for y in node.outputs:
            if y not in bit:
                continue
            behind[y] = before | bit[y]
            read[y] = behind[y] if y in grid and not cut_out else ahead
            shared[y] = ahead if weighted else join(shared[x] for x in given)
            if cut_out:
                regions.add(y)
    common = _all_of(shared.get(end, 0) for end in model.ends)
    return [y for y in values if common & bit[y]]


def _all_of(sets: Iterable[int]) -> int:
    """What is in each of the sets."""
    every = list(sets)
    return functools.reduce(operator.and_, every) if every else 0


def _any_of(sets: Iterable[int]) -> int:
    """What is in any of the sets."""
    return functools.reduce(operator.or_, sets, 0)


def _has_weights(node: ir.Node) -> bool:
    """Whether a node projects features: it multiplies by weights."""
    return node.op_type in _WEIGHTED and any(x is not None and x.const_value is not None for x in node.inputs[:2])


def _positions(model: LayerSearch, value: ir.Value) -> int | None:
    """How many positions features have; None if that is not known."""
    if value in model.tokens:
        return model.tokens[value].positions
    shape = dims(value)
    height, width = shape[1:3] if channels_last(value) else shape[2:]
    return height * width if isinstance(height, int) and isinstance(width, int) else None


def _last_narrow(model: LayerSearch, shared: Sequence[ir.Value]) -> ir.Value:
    """The last value that all paths to the ends lead through."""
    narrow = narrows(model.graph, lies_between(model.graph, model.images, model.ends).values)
    found = next((v for v in reversed(shared) if v in narrow), None)
    if found is None:
        ends = ", ".join(repr(v.name) for v in model.ends)
        raise LayerError(
            f"layer='auto' found no features (N, C, h, w) or tokens (N, T, C) on the image's grid that all of {ends} "
            "depend on: name a layer"
        )
    return found


def _last_coarse(model: LayerSearch, shared: Sequence[ir.Value]) -> ir.Value | None:
    """The last value on the coarsest grid of more than one position; None where no sizes are known."""
    area = {v: size for v in shared if (size := _positions(model, v)) is not None and size > 1}
    return next((v for v in reversed(area) if area[v] == min(area.values())), None)


def _depths(graph: ir.Graph) -> dict[ir.Value, int]:
    """How many layers with weights lie one behind the other before each value."""
    depth: dict[ir.Value, int] = {}
    for node in graph:
        before = max((depth.get(x, 0) for x in reads(node)), default=0)
        depth |= dict.fromkeys(node.outputs, before + _has_weights(node))
    return depth


def _unpooled(model: LayerSearch, found: ir.Value) -> ir.Value:
    """What was pooled, flattened or transposed to `found`, and nothing more."""
    value = _before_flattening(model, found) if found in model.tokens else untransposed(as_read(found))
    while (node := before_rounding(value).producer()) is not None and node.op_type in _POOLS:
        before = node.inputs[0]
        if before is None or before not in model.on_path or not spatial(before) or before.is_graph_input():
            break
        value = before
    return as_read(value)


def _before_flattening(model: LayerSearch, tokens: ir.Value) -> ir.Value:
    """The features that were flattened to `tokens`, if nothing else happened to them."""
    value = tokens
    while (node := value.producer()) is not None and node.op_type in _MOVES:
        before = node.inputs[0]
        if before is None or before.is_graph_input():
            break
        value = before
        if spatial(value) and model.has_positions(value):
            return value
    return tokens
