"""Marks: contour lines against scikit-image's, boxes, masks, and what does not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import pycam
from pycam.errors import ImageError, InputError
from pycam.pictures import PALETTE, Box, Contours, Mask, contours, draw, grid, picture

Pixels = npt.NDArray[np.uint8]


def ground(height: int = 64, width: int = 96, value: int = 120) -> Pixels:
    return np.full((height, width, 3), value, np.uint8)


def hill(height: int = 40, width: int = 60, x: float = 25.0, y: float = 18.0) -> npt.NDArray[np.float32]:
    rows, columns = np.mgrid[:height, :width] + 0.5
    return np.exp(-(((columns - x) / 12) ** 2) - ((rows - y) / 8) ** 2).astype(np.float32)


def changed(before: Pixels, after: Pixels) -> npt.NDArray[np.bool_]:
    return (before != after).any(axis=2)


# ---- contour lines ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.1, 0.37, 0.5, 0.9])
def test_contours_are_those_of_scikit_image(level: float) -> None:
    measure = pytest.importorskip("skimage.measure")
    rng = np.random.default_rng(3)
    values = hill() + 0.6 * hill(x=50, y=30) + 0.02 * rng.random((40, 60))
    ours = contours(values, level)
    theirs = [line[:, ::-1] + 0.5 for line in measure.find_contours(values.astype(float), level)]
    assert sorted(map(len, ours)) == sorted(map(len, theirs))
    points, expected = np.concatenate(ours), np.concatenate(theirs)
    apart = np.abs(points[:, None] - expected).max(axis=2)
    assert apart.min(axis=0).max() < 1e-6  # every point of theirs is one of ours
    assert apart.min(axis=1).max() < 1e-6


def test_a_circle_closes_where_it_should() -> None:
    rows, columns = np.mgrid[:101, :101] + 0.5
    distance = np.hypot(rows - 50, columns - 50)
    (line,) = contours(distance, 30)
    assert (line[0] == line[-1]).all()
    np.testing.assert_allclose(np.hypot(*(line - 50).T), 30, atol=0.02)
    x, y = line.T
    area = abs((x[:-1] * y[1:] - x[1:] * y[:-1]).sum()) / 2
    assert area == pytest.approx(np.pi * 30**2, rel=2e-3)


def test_saddles_follow_the_middle() -> None:
    low, high = np.array([[1, 0], [0, 1.0]]), np.array([[1, 0.4], [0.4, 1.0]])
    assert len(contours(low, 0.6)) == len(contours(high, 0.6)) == 2
    ends = [sorted(tuple(p) for p in line) for line in contours(high, 0.6)]
    assert all({round(x + y, 6) for x, y in line} != {2.0} for line in ends)
    cut = [np.mean(line, axis=0) for line in contours(high, 0.6)]  # the two high corners stay together
    assert {tuple(c > 1) for c in cut} == {(True, False), (False, True)}
    apart = [np.mean(line, axis=0) for line in contours(low, 0.6)]
    assert {tuple(c > 1) for c in apart} == {(True, True), (False, False)}


@pytest.mark.parametrize("values", [np.zeros((5, 5)), np.ones((1, 9)), np.ones((9, 1)), np.full((3, 3), 0.5)])
def test_no_line_where_nothing_crosses(values: Any) -> None:
    assert contours(values, 0.5) == []


@pytest.mark.parametrize("values", [np.zeros(5), np.zeros((1, 5, 5)), np.array([[0, np.nan], [1, 1]])])
def test_contours_of_what_is_no_map(values: Any) -> None:
    with pytest.raises(InputError, match="one finite map"):
        contours(values, 0.5)


# ---- drawn -----------------------------------------------------------------------------------------------------------


def test_a_box_is_where_it_was_said() -> None:
    before = ground()
    after = draw(before, [Box((20, 10, 70, 50), colour=(0, 255, 0))])
    rows, columns = np.nonzero((after == (0, 255, 0)).all(axis=2))
    assert abs(rows.min() - 10) <= 1
    assert abs(rows.max() - 49) <= 1
    assert abs(columns.min() - 20) <= 1
    assert abs(columns.max() - 69) <= 1
    assert not changed(before, after)[15:45, 25:65].any()  # the inside is left alone
    assert (before == 120).all()  # and the picture given, too


def test_a_label_stands_at_its_box_and_inside_the_picture() -> None:
    corners = [(0, 0, 20, 20), (80, 0, 96, 10), (0, 50, 10, 64), (85, 55, 96, 64), (0, 0, 96, 64), (30, 30, 50, 40)]
    for xyxy in corners:
        bare = draw(ground(), [Box(xyxy, colour=(0, 255, 0))])
        tagged = draw(ground(), [Box(xyxy, "cat", (0, 255, 0))])
        rows, columns = np.nonzero(changed(bare, tagged))
        assert len(rows) > 30
        tag = tagged[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert ((tag == (0, 255, 0)).all(axis=2)).mean() > 0.3
        assert (tag.sum(axis=2) < 200).any()  # ink
        assert rows.min() <= xyxy[3] + 4  # beside the box
        assert rows.max() >= xyxy[1] - 20


def test_labels_of_boxes_at_the_same_place_do_not_cover_each_other() -> None:
    boxes = [Box((30, 30, 120, 110), name, colour) for name, colour in zip(("one", "two"), PALETTE, strict=False)]
    both = draw(ground(150, 150), boxes)
    for box in boxes:
        alone = draw(ground(150, 150), [Box(box.xyxy, box.label, box.colour)])
        tag = (alone == box.colour).all(axis=2).sum()
        assert (both == box.colour).all(axis=2).sum() > 0.3 * tag
    assert len({tuple(np.argwhere((both == box.colour).all(axis=2))[0]) for box in boxes}) == 2


def test_a_box_over_the_edge_is_cut() -> None:
    cut, whole = (draw(ground(), [Box(xyxy)]) for xyxy in ((-30, 20, 40, 900.5), (0, 20, 40, 64)))
    np.testing.assert_array_equal(cut, whole)


def test_a_mask_is_outlined_or_tinted() -> None:
    mask = np.zeros((64, 96), bool)
    mask[20:40, 30:60] = True
    outlined = draw(ground(), [Mask(mask, (255, 0, 0))])
    assert not changed(ground(), outlined)[25:35, 35:55].any()
    tinted = draw(ground(), [Mask(mask, (255, 0, 0), tint=0.5)])
    np.testing.assert_allclose(tinted[30, 45], (187, 60, 60), atol=1)
    assert not changed(ground(), tinted)[:15].any()
    whole = draw(ground(), [Mask(np.ones((64, 96), bool))])  # along the picture's edge
    assert changed(ground(), whole)[0].all()
    assert not changed(ground(), whole)[10:-10, 10:-10].any()
    np.testing.assert_array_equal(draw(ground(), [Mask(np.zeros((64, 96), bool))]), ground())


def test_contours_are_drawn_along_their_level() -> None:
    values = hill(64, 96)
    after = draw(ground(64, 96), [Contours(values, (0.5,), (255, 255, 0))])
    drawn = values[(after == (255, 255, 0)).all(axis=2)]
    assert len(drawn) > 20
    assert drawn.min() > 0.4
    assert drawn.max() < 0.6
    np.testing.assert_array_equal(draw(ground(), [Contours(np.zeros((64, 96)), (0.5,))]), ground())


def test_marks_are_sharp_on_an_enlarged_picture() -> None:
    """A panel of a tiny picture draws its marks after it was enlarged."""
    tiny = ground(16, 16)
    sheet = picture(tiny, tiny[None], ["a"], marks=[[Box((4, 4, 12, 12), colour=(0, 255, 0))]])
    rows, columns = np.nonzero((sheet == (0, 255, 0)).all(axis=2))
    assert columns.max() - columns.min() == pytest.approx(8 * 20, abs=4)
    inner = sheet[rows.min() + 10, columns.min() - 3 : columns.min() + 12]
    assert (inner == (0, 255, 0)).all(axis=1).sum() <= 4  # a line, not a pixel of 20
    table = grid([[tiny, None]], ["r"], ["a", "b"], marks=[[[Box((4, 4, 12, 12), colour=(0, 255, 0))], []]])
    assert (table == (0, 255, 0)).all(axis=2).any()


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        (Box((5, 5, 5, 9)), "empty"),
        (Box((10, 10, 5, 9)), r"left, top, right, bottom"),
        (Box((100, 0, 120, 9)), r"outside of the picture, 96 wide and 64 high"),
        (Box((0, -9, 20, 0)), "outside"),
        (Box((0, 0, np.nan, 9)), "not finite"),
        (Box((0, 0, 9)), "four numbers"),
        (Box("left"), "four numbers"),  # type: ignore[arg-type]
        (Mask(np.zeros((64, 95), bool)), r"height and width \(64, 96\), got \(64, 95\)"),
        (Mask(np.zeros((64, 96))), "a mask is bool, not float64"),  # type: ignore[arg-type]
        (Mask(np.zeros((64, 96), bool), tint=2), "opacity"),
        (Contours(np.zeros((7, 7))), r"height and width \(64, 96\), got \(7, 7\)"),
        (Contours(np.zeros((64, 96)), (0.5, 1.0)), "contour level 1"),
        (Contours(np.zeros((64, 96)), (0.0,)), "in between"),
        (Contours(np.zeros((64, 96)), ("high",)), "give levels between"),  # type: ignore[arg-type]
        (Contours(np.full((64, 96), np.nan)), "finite"),
        ((0, 0, 9, 9), "a mark is a Box, Contours or Mask, not tuple"),
    ],
)
def test_a_mark_that_does_not_fit(mark: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        draw(ground(), [mark])


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)])
def test_what_is_no_picture(image: Any) -> None:
    with pytest.raises(ImageError, match="uint8 picture"):
        draw(image, [])


def test_marks_and_subtitles_must_be_as_many() -> None:
    image = ground(20, 20)
    with pytest.raises(ImageError, match="1 overlays and 2 lists of marks"):
        picture(image, image[None], ["a"], marks=[[], []])
    for wrong in ({"marks": [[]]}, {"row_subtitles": []}, {"column_subtitles": ["a", "b"]}):
        with pytest.raises(ImageError, match="subtitles and marks"):
            grid([[image]], ["r"], ["c"], **wrong)


def test_subtitles_take_their_place() -> None:
    image = np.full((224, 224, 3), (250, 0, 0), np.uint8)
    plain = grid([[image, image]], ["r"], ["a", "b"])
    more = grid([[image, image]], ["r"], ["a", "b"], column_subtitles=["layer4", ""], row_subtitles=["95 % · a.jpg"])
    assert more.shape[1] == plain.shape[1]
    assert more.shape[0] > plain.shape[0]


def test_a_long_row_title_is_not_clipped_by_a_flat_picture() -> None:
    flat = np.full((10, 640, 3), (250, 0, 0), np.uint8)
    sheet = grid([[flat]], ["a long name of a class of things"], ["a"], row_subtitles=["99 % · photo.jpg"])
    assert sheet.shape[0] > grid([[flat]], ["a"], ["a"]).shape[0]


# ---- on an explanation -----------------------------------------------------------------------------------------------


@pytest.fixture
def result(cnn: Any, images: npt.NDArray[np.float32]) -> pycam.Explanation:
    return pycam.Explainer(cnn())(images, "top2")


def test_an_overlay_takes_marks(result: pycam.Explanation) -> None:
    n, k, height, width = result.heatmaps.shape
    photos = np.full((n, height, width, 3), 90, np.uint8)
    plain = result.overlay(photos, "gray")
    mask = np.zeros((n, height, width), bool)
    mask[:, 4:9, 4:9] = True
    found = result.boxes(0.5)
    several = np.stack([found, np.broadcast_to([2, 2, 9, 9], found.shape)], axis=2)
    for i, j in np.ndindex(n, k):
        box = [] if result.flat[i, j] else [Box(found[i, j])]
        for options, marks in (
            ({"contours": (0.3, 0.6)}, [Contours(result.heatmaps[i, j], (0.3, 0.6))]),
            ({"boxes": 0.5}, box),
            ({"boxes": found}, box),
            ({"boxes": several}, [*box, Box((2, 2, 9, 9))]),
            ({"masks": mask}, [Mask(mask[i])]),
            ({"masks": np.repeat(mask[:, None], k, axis=1)}, [Mask(mask[i])]),
        ):
            shown = result.overlay(photos, "gray", **options)  # type: ignore[arg-type]
            np.testing.assert_array_equal(shown[i, j], draw(plain[i, j], marks))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"contours": (0.5, 7)}, "contour level 7"),
        ({"boxes": 1.5}, "threshold=1.5"),
        ({"boxes": np.ones((3, 4))}, r"boxes must be \(3, 2, 4\)"),
        ({"boxes": np.full((3, 2, 4), [90, 90, 99, 99])}, "outside of the picture"),
        ({"masks": np.ones((3, 16, 15), bool)}, r"masks must be \(3, 16, 16\) or \(3, 2, 16, 16\)"),
        ({"masks": np.ones((3, 16, 16))}, "a mask is bool"),
    ],
)
def test_marks_that_do_not_fit_an_overlay(result: pycam.Explanation, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        result.overlay(np.zeros((3, 16, 16, 3), np.uint8), **options)
