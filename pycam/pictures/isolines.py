"""Contour lines by marching squares.

Our own, as contourpy or scikit-image (the libraries that have it) would be a further compiled dependency of every
install for what is forty lines of numpy; the tests hold them against scikit-image's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pycam.errors import InputError

_TOP, _RIGHT, _BOTTOM, _LEFT = range(4)  # edges of a cell, whose corners are the centres of four pixels

# Which corners are above the level (1 top left, 2 top right, 4 bottom right, 8 bottom left) -> the edges that a line
# joins.  5 and 10 are saddles: here with the middle below the level; with it above, the table has 16 more.
_LINES: dict[int, tuple[tuple[int, int], ...]] = {
    1: ((_LEFT, _TOP),),
    2: ((_TOP, _RIGHT),),
    3: ((_LEFT, _RIGHT),),
    4: ((_RIGHT, _BOTTOM),),
    5: ((_LEFT, _TOP), (_RIGHT, _BOTTOM)),
    6: ((_TOP, _BOTTOM),),
    7: ((_LEFT, _BOTTOM),),
    8: ((_LEFT, _BOTTOM),),
    9: ((_TOP, _BOTTOM),),
    10: ((_TOP, _RIGHT), (_LEFT, _BOTTOM)),
    11: ((_RIGHT, _BOTTOM),),
    12: ((_LEFT, _RIGHT),),
    13: ((_TOP, _RIGHT),),
    14: ((_LEFT, _TOP),),
    21: ((_TOP, _RIGHT), (_LEFT, _BOTTOM)),
    26: ((_LEFT, _TOP), (_RIGHT, _BOTTOM)),
}


def contours(values: NDArray[Any], level: float) -> list[NDArray[np.float64]]:
    """The lines where `values`, interpolated linearly between the centres of pixels, cross `level`.

    Args:
        values: (H, W), finite; a mask counts as 0 and 1.
        level: A value equal to it counts as below.

    Returns:
        Polylines (P, 2): x, y in pixels, pixel (row, column) having its centre at (column + ½, row + ½).  A closed one
        ends where it began; others end at the picture's edge.

    Raises:
        InputError: not a finite (H, W) map.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or not np.isfinite(values).all():
        raise InputError(f"contours need one finite map (H, W), got shape {values.shape}")
    segments = _segments(values, level)
    ends, links = np.unique(segments, return_inverse=True)
    points = _points(values, level, ends)
    return [points[chain] for chain in _chains(links.reshape(-1, 2).tolist(), len(ends))]


def outline(mask: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Closed lines around the True pixels of a mask (H, W), along the picture's edge too."""
    return [line - 1 for line in contours(np.pad(mask, 1), 0.5)]


def _segments(values: NDArray[np.float64], level: float) -> NDArray[np.intp]:
    """(S, 2): the two edges that each piece of line joins, as numbers.

    The edge from a pixel to its right neighbour has the pixel's number, that to the lower one H·W more.
    """
    height, width = values.shape
    above = values > level
    code = above[:-1, :-1] + 2 * above[:-1, 1:] + 4 * above[1:, 1:] + 8 * above[1:, :-1]
    centre = (values[:-1, :-1] + values[:-1, 1:] + values[1:, 1:] + values[1:, :-1]) / 4
    code = code + 16 * (((code == 5) | (code == 10)) & (centre > level))
    down = height * width
    found = [np.zeros((0, 2), np.intp)]
    for number, lines in _LINES.items():
        rows, columns = np.nonzero(code == number)
        pixel = rows * width + columns
        edges = {_TOP: pixel, _LEFT: pixel + down, _BOTTOM: pixel + width, _RIGHT: pixel + down + 1}
        found += [np.stack([edges[a], edges[b]], axis=1) for a, b in lines]
    return np.concatenate(found)


def _points(values: NDArray[np.float64], level: float, edges: NDArray[np.intp]) -> NDArray[np.float64]:
    """(P, 2): where `level` lies on each edge."""
    height, width = values.shape
    down, pixel = edges >= height * width, edges % (height * width)
    flat = values.ravel()
    here, there = flat[pixel], flat[pixel + np.where(down, width, 1)]
    share = (level - here) / (there - here)
    x, y = pixel % width + 0.5, pixel // width + 0.5
    return np.stack([x + share * ~down, y + share * down], axis=1)


def _chains(links: list[list[int]], count: int) -> list[list[int]]:
    """Links joined into chains: each end is in one link (an end of a chain) or in two."""
    near: list[list[int]] = [[] for _ in range(count)]
    for a, b in links:
        near[a].append(b)
        near[b].append(a)
    chains = []
    left = [len(n) for n in near]
    for start in sorted(range(count), key=lambda i: len(near[i])):  # open chains begin at an end of theirs
        if not left[start]:
            continue
        chain = [start]
        while near[chain[-1]]:
            here = chain[-1]
            there = near[here].pop()
            near[there].remove(here)
            left[here] -= 1
            left[there] -= 1
            chain.append(there)
        chains.append(chain)
    return chains
