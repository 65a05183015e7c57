"""Panels: sizes, places and robustness.  How they look was judged by eye; these tests hold what was found good."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pycam.colormap import colormap
from pycam.errors import ImageError
from pycam.pictures import grid, picture

Pixels = npt.NDArray[np.uint8]

MARGIN = 24
RED, GREEN, BLUE = (250, 0, 0), (0, 250, 0), (0, 0, 250)
COLOURS = np.random.default_rng(0).integers(0, 200, (16, 3), dtype=np.uint8) | np.array([1, 2, 4], np.uint8)


def flat(colour: Any, height: int = 224, width: int = 224) -> Pixels:
    return np.broadcast_to(np.array(colour, np.uint8), (height, width, 3))


def where(sheet: Pixels, colour: Any) -> tuple[int, int, int, int]:
    """Top, left, height and width of the box of one colour."""
    rows, columns = np.nonzero((sheet == np.array(colour, np.uint8)).all(axis=2))
    assert len(rows), f"{colour} is not in the picture"
    top, left = int(rows.min()), int(columns.min())
    return top, left, int(rows.max()) - top + 1, int(columns.max()) - left + 1


def holds(sheet: Pixels, row: Pixels) -> bool:
    """Whether a row of pixels occurs somewhere in the sheet."""
    return any(row.tobytes() in line.tobytes() for line in sheet)


def test_photo_at_the_left_then_one_panel_per_overlay() -> None:
    sheet = picture(flat(RED), np.stack([flat(GREEN), flat(BLUE)]), ["cat", "dog"], ["90 %", "5 %"], footer="gradcam")
    assert sheet.dtype == np.uint8
    assert sheet.ndim == 3
    assert sheet.flags.c_contiguous
    boxes = [where(sheet, colour) for colour in (RED, GREEN, BLUE)]
    assert len({(top, height, width) for top, _, height, width in boxes}) == 1  # same size, one row
    assert boxes[0][1] == MARGIN
    assert boxes[0][1] < boxes[1][1] < boxes[2][1]
    assert (sheet[:20] == 255).all()  # a white margin all around
    assert (sheet[-20:] == 255).all()
    assert (sheet[:, :20] == 255).all()
    assert (sheet[:, -20:] == 255).all()


@pytest.mark.parametrize(
    ("overlays", "lines", "columns"), [(1, 1, 2), (3, 1, 4), (4, 2, 3), (5, 2, 3), (7, 2, 4), (8, 3, 3)]
)
def test_more_than_four_panels_wrap_evenly(overlays: int, lines: int, columns: int) -> None:
    many = np.stack([flat(colour) for colour in COLOURS[1 : overlays + 1]])
    sheet = picture(flat(COLOURS[0]), many, [str(k) for k in range(overlays)])
    boxes = [where(sheet, colour) for colour in COLOURS[: overlays + 1]]
    assert len({box[0] for box in boxes}) == lines
    assert len({box[1] for box in boxes}) == columns
    assert boxes == sorted(boxes)  # in reading order


@pytest.mark.parametrize(
    ("height", "width", "shown"),
    [
        (28, 28, (308, 308)),  # pixel art: a whole factor
        (1, 1, (320, 320)),
        (64, 32, (320, 160)),
        (224, 224, (320, 320)),
        (400, 400, (400, 400)),
        (3000, 4000, (384, 512)),
        (900, 30, (512, 17)),
    ],
)
def test_tiny_photos_are_enlarged_and_large_ones_reduced(height: int, width: int, shown: tuple[int, int]) -> None:
    sheet = picture(flat(RED, height, width), flat(GREEN, height, width)[None], ["a class"])
    assert where(sheet, RED)[2:] == shown
    assert where(sheet, GREEN)[2:] == shown


def test_pixels_of_a_tiny_photo_stay_sharp() -> None:
    board = np.indices((8, 8)).sum(0)[:, :, None] % 2 * np.array(RED)
    sheet = picture(board.astype(np.uint8), flat(GREEN, 8, 8)[None], ["a class"])
    top, left, height, width = where(sheet, RED)
    shown = sheet[top : top + height, left : left + width]
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) == 2


@pytest.mark.parametrize("name", ["jet", "viridis"])
def test_the_colour_bar_shows_the_map(name: str) -> None:
    sheet = picture(flat(RED), flat(GREEN)[None], ["cat"], colormap=name)
    for end in (0, 255):
        assert holds(sheet, colormap(name)[[end]])
    without = grid([[flat(RED)]], ["row"], ["column"])
    assert where(grid([[flat(RED)]], ["row"], ["column"], colormap=name), RED) == where(without, RED)


def test_the_footer_adds_lines_as_it_needs() -> None:
    heights = [
        picture(flat(RED), flat(GREEN)[None], ["cat"], footer=" · ".join(["gradcam"] * words)).shape[0]
        for words in (0, 1, 20, 40)
    ]
    assert heights == sorted(set(heights))
    everything = picture(flat(RED), flat(GREEN)[None], ["cat"], footer="word " * 10_000)
    assert everything.shape[0] < 600  # the last line is shortened


@pytest.mark.parametrize(
    "title", ["a" * 500, "word " * 100, "", " ", "two\nlines\tand a tab", "crème → 中文 – ß \u0301 🐈"]
)
def test_any_title_fits_its_panel(title: str) -> None:
    plain = picture(flat(RED), flat(GREEN)[None], ["cat"], ["95 %"])
    sheet = picture(flat(RED), flat(GREEN)[None], [title], [title])
    assert sheet.shape == plain.shape
    assert where(sheet, GREEN) == where(plain, GREEN)
    assert (sheet[:, -20:] == 255).all()
    assert grid([[flat(RED)]], [title], [title], footer=title, colormap="jet", caption=(title, title)).shape[1] < 640


def test_accents_are_dropped_and_strangers_marked() -> None:
    """The built-in font has no accents: letters without them beat empty boxes."""
    spelled = picture(flat(RED), flat(GREEN)[None], ["creme brulee > ? ?"], colormap="jet")
    shown = picture(flat(RED), flat(GREEN)[None], ["crème brûlée > 中 🐈"], colormap="jet")
    np.testing.assert_array_equal(shown, spelled)


def test_the_same_input_gives_the_same_picture() -> None:
    first, second = (picture(flat(RED), flat(GREEN)[None], ["cat"], ["1 %"], footer="gradcam") for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("photo", "overlays", "titles", "subtitles", "message"),
    [
        (flat(RED), flat(GREEN)[None][:0], [], None, "K ≥ 1"),
        (flat(RED), flat(GREEN), ["cat"], None, "expected overlays"),
        (flat(RED), flat(GREEN, 10, 10)[None], ["cat"], None, "expected overlays"),
        (flat(RED), flat(GREEN)[None], ["cat", "dog"], None, "1 overlays, 2 titles"),
        (flat(RED), flat(GREEN)[None], ["cat"], ["1", "2"], "2 subtitles"),
        (flat(RED).astype(float), flat(GREEN)[None], ["cat"], None, "uint8"),
        (flat(RED), flat(GREEN)[None].astype(float), ["cat"], None, "uint8"),
        (flat(RED)[..., 0], flat(GREEN)[None, ..., 0], ["cat"], None, "expected"),
        (flat(RED, 0, 5), flat(RED, 0, 5)[None], ["cat"], None, "uint8 pictures"),
    ],
)
def test_what_does_not_fit_is_refused(photo: Any, overlays: Any, titles: Any, subtitles: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        picture(photo, overlays, titles, subtitles)


def test_an_unknown_colour_map_is_refused() -> None:
    with pytest.raises(ImageError, match="nearest"):
        picture(flat(RED), flat(GREEN)[None], ["cat"], colormap="jett")


# ---- grid ------------------------------------------------------------------------------------------------------------


def test_a_grid_is_aligned_whatever_the_sizes_and_titles() -> None:
    shapes = [(224, 224), (28, 28), (600, 400), (100, 300), (224, 224), (50, 50)]
    cells = [flat(colour, *shape) for colour, shape in zip(COLOURS, shapes, strict=False)]
    sheet = grid([cells[:3], cells[3:]], ["coffee", "a camera man in a park " * 9], ["a", "b" * 99, ""], footer="x")
    boxes = [where(sheet, colour) for colour in COLOURS[:6]]
    for upper, lower in zip(boxes[:3], boxes[3:], strict=True):
        assert upper[1] == lower[1]  # columns
    for row in (boxes[:3], boxes[3:]):
        assert len({top for top, *_ in row}) == 1  # rows
    assert max(boxes[k][0] + boxes[k][2] for k in range(3)) < boxes[3][0]


def test_an_empty_cell_keeps_its_place() -> None:
    full = grid([[flat(RED), flat(GREEN)], [flat(BLUE), flat(GREEN)]], ["a", "b"], ["c", "d"])
    sparse = grid([[None, flat(GREEN)], [flat(BLUE), None]], ["a", "b"], ["c", "d"])
    assert sparse.shape == full.shape
    assert where(sparse, BLUE) == where(full, BLUE)
    assert grid([[None]], ["a"], ["b"]).shape[2] == 3


def test_many_columns_shrink_to_a_sheet() -> None:
    assert grid([[flat(RED)] * 8], ["a"], list("abcdefgh")).shape[1] < 2000
    assert grid([[flat(RED, 28, 28)] * 8], ["a"], list("abcdefgh")).shape[1] < 2000


@pytest.mark.parametrize(
    ("rows", "row_titles", "column_titles"),
    [([], [], ["a"]), ([[]], ["a"], []), ([[None]], ["a", "b"], ["c"]), ([[None], [None, None]], ["a", "b"], ["c"])],
)
def test_a_ragged_grid_is_refused(rows: Any, row_titles: Any, column_titles: Any) -> None:
    with pytest.raises(ImageError, match="rows of"):
        grid(rows, row_titles, column_titles)
