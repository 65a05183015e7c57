"""Give nodes the names of the modules that they come from, where an exporter does not: by their values.

The model runs in its framework, where every module's output is noted, and as ONNX, where every value is; a value that
equals a module's output is that output.  So it does not matter what the exporter did with the graph.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

Recorded = Sequence[tuple[str, NDArray[Any]]]
"""Module path and output, in the order in which the modules were done."""

TOLERANCE = 1e-3
"""Relative difference of one value as two frameworks compute it."""
ROUNDING = 1e-6
"""Relative difference up to which two values are taken for equal, and their order decides."""
_MOVES = ("Identity", "Dropout", "Transpose")  # their output is their input, in another layout
_TURNS = {3: ((0, 1, 2), (0, 2, 1)), 4: ((0, 1, 2, 3), (0, 3, 1, 2), (0, 2, 3, 1))}  # channels first or last


def name_nodes(graph: onnx.GraphProto, values: Mapping[str, NDArray[Any]], recorded: Recorded) -> None:
    """Name the node that makes a module's output `/path/of/module/Op`, which `pycam.graph.locate` reads.

    A module whose output is nowhere in the graph (folded into the next one) gets no name.  Of modules with the same
    output, the one that was done first, which is the innermost, keeps it.
    """
    nodes = [node for node in graph.node if node.op_type not in _MOVES and node.output and node.output[0] in values]
    kept = matched([values[node.output[0]] for node in nodes], recorded)
    used = {node.name for node in graph.node}
    for index, path in kept.items():
        base = f"/{path.replace('.', '/')}/{nodes[index].op_type}"
        nodes[index].name = next(name for name in _numbered(base) if name not in used)
        used.add(nodes[index].name)


def _numbered(base: str) -> Iterable[str]:
    yield base
    number = 1
    while True:
        yield f"{base}_{number}"
        number += 1


def matched(values: Sequence[NDArray[Any]], recorded: Recorded) -> dict[int, str]:
    """Index of a value → the module whose output it is.

    Values may equal each other, as do a block's input and output where its branch adds next to nothing, or a
    convolution's with and without a bias of zeros. Both sides are in the order of computation, and a module's output is
    the last value that it computes: so, from the end, the last equal one before the modules that came later is taken.
    """
    by_size: dict[int, list[int]] = defaultdict(list)
    for i, value in enumerate(values):
        by_size[value.size].append(i)
    found: dict[int, str] = {}
    bound = len(values)
    for path, array in reversed(_different(recorded)):
        errors = {i: _difference(values[i], array) for i in by_size[array.size] if i not in found}
        least = min(errors.values(), default=np.inf)
        fine = [i for i, error in errors.items() if error <= min(max(4 * least, ROUNDING), TOLERANCE)]
        before = [i for i in fine if i < bound]
        if fine:  # branches may be computed in another order
            index = before[-1] if before else min(fine, key=lambda i: errors[i])
            found[index] = path
            bound = min(bound, index)
    return found


def _different(recorded: Recorded) -> list[tuple[str, NDArray[Any]]]:
    """Without the modules that return what the one before returned: a Sequential its last, an identity its input."""
    kept: list[tuple[str, NDArray[Any]]] = []
    for path, array in recorded:
        if not kept or not np.array_equal(kept[-1][1], array):
            kept.append((path, array))
    return kept


def _difference(a: NDArray[Any], b: NDArray[Any]) -> float:
    """The least relative difference of two arrays over the layouts that an exporter may choose."""
    if a.ndim != b.ndim or not np.issubdtype(a.dtype, np.floating):
        return np.inf
    turns = _TURNS.get(a.ndim, (tuple(range(a.ndim)),))
    turned = [t for t in (b.transpose(turn) for turn in turns) if t.shape == a.shape]
    return min((relative(a, t) for t in turned), default=np.inf)


def relative(a: NDArray[Any], b: NDArray[Any]) -> float:
    """‖a − b‖ / ‖b‖."""
    size = float(np.linalg.norm(b.astype(np.float64).ravel()))
    error = float(np.linalg.norm((a.astype(np.float64) - b).ravel()))
    return error / size if size else (np.inf if error else 0.0)
