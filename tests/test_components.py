"""The largest component's box, against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from pycam.components import largest_box


def expected_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    labels, count = ndimage.label(mask)
    if count == 0:
        return 0, 0, 0, 0
    sizes = ndimage.sum_labels(mask, labels, range(1, count + 1))
    rows, columns = ndimage.find_objects(labels)[int(np.argmax(sizes))]  # scipy numbers them in reading order
    return columns.start, rows.start, columns.stop, rows.stop


@pytest.mark.parametrize("density", [0.1, 0.3, 0.5, 0.6, 0.7, 0.9])
def test_random_masks(density: float) -> None:
    rng = np.random.default_rng(int(density * 100))
    for _ in range(60):
        mask = rng.random(rng.integers(1, 25, size=2)) < density
        assert largest_box(mask) == expected_box(mask), mask


@pytest.mark.parametrize(
    ("drawing", "box"),
    [
        (["...", "..."], (0, 0, 0, 0)),
        (["###", "###"], (0, 0, 3, 2)),
        (["#..", "..#"], (0, 0, 1, 1)),  # of equal ones the first
        ([".#.", "#.#"], (1, 0, 2, 1)),  # corners do not touch
        (["#.#.#", "#.#.#", "#####"], (0, 0, 5, 3)),  # three runs that only meet at the end
        (["#####", "....#", "###.#", "#...#", "#####"], (0, 0, 5, 5)),  # a spiral
        (["##.", "...", "###"], (0, 2, 3, 3)),
        (["##...", "..###", "###.."], (0, 1, 5, 3)),
    ],
)
def test_drawn_masks(drawing: list[str], box: tuple[int, int, int, int]) -> None:
    mask = np.array([[c == "#" for c in row] for row in drawing])
    assert largest_box(mask) == box


def test_a_mask_that_is_not_contiguous() -> None:
    mask = np.zeros((6, 8), dtype=bool)
    mask[1:4, 2:7] = True
    assert largest_box(mask.T) == (1, 2, 4, 7)
    assert largest_box(mask[::-1]) == (2, 2, 7, 5)


def test_of_equal_components_the_first_in_reading_order_counts() -> None:
    """A cup, whose arms meet only at its bottom, around a block of as many pixels."""
    mask = np.zeros((11, 7), dtype=bool)
    mask[:, [0, 6]] = mask[10] = mask[:9, 2:5] = True
    labels, _ = ndimage.label(mask)
    assert (labels == 1).sum() == (labels == 2).sum() == 27
    assert largest_box(mask) == (0, 0, 7, 11)
