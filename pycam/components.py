"""Connected components of a mask, as runs joined by union-find: no dependency for the one box that is needed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def largest_box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the largest 4-connected component of a (H, W) mask; zeros if it is empty.

    Of components of equal size the first in reading order counts.
    """
    runs = _runs(mask)
    parent = list(range(len(runs)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    above, j = 0, 0  # runs are in reading order: a two-pointer sweep meets each pair of neighbours once
    for i, (row, left, right) in enumerate(runs):
        while above < i and runs[above][0] < row - 1:
            above += 1
        j = above
        while j < i and runs[j][0] == row - 1:
            if runs[j][1] < right and left < runs[j][2]:
                a, b = sorted((root(j), root(i)))
                parent[b] = a
            j += 1
    sizes: dict[int, int] = {}
    boxes: dict[int, tuple[int, int, int, int]] = {}
    for i, (row, left, right) in enumerate(runs):
        r = root(i)
        sizes[r] = sizes.get(r, 0) + right - left
        x0, y0, x1, y1 = boxes.get(r, (left, row, right, row + 1))
        boxes[r] = (min(x0, left), min(y0, row), max(x1, right), max(y1, row + 1))
    return boxes[max(sizes, key=lambda r: (sizes[r], -r))] if sizes else (0, 0, 0, 0)


def _runs(mask: NDArray[np.bool_]) -> list[tuple[int, int, int]]:
    """(row, left, right) of every horizontal run of True, in reading order; right is exclusive."""
    padded = np.zeros((mask.shape[0], mask.shape[1] + 2), dtype=np.int8)
    padded[:, 1:-1] = mask
    edges = np.diff(padded, axis=1)
    rows, lefts = np.nonzero(edges == 1)
    _, rights = np.nonzero(edges == -1)
    return [(int(r), int(a), int(b)) for r, a, b in zip(rows, lefts, rights, strict=True)]
