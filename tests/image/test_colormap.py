"""Colour maps: known colours at known places, and monotone lightness where it is promised."""

from __future__ import annotations

import numpy as np
import pytest

from pycam.colormap import COLORMAPS, colormap
from pycam.errors import ImageError

# Rows of cv2.applyColorMap (OpenCV 5), converted to RGB.
OPENCV = {
    "jet": {
        0: (0, 0, 128),
        31: (0, 0, 252),
        32: (0, 0, 255),
        96: (2, 255, 254),
        127: (126, 255, 130),
        255: (128, 0, 0),
    },
    "turbo": {0: (48, 18, 59), 255: (122, 4, 3)},
    "viridis": {0: (68, 1, 84), 255: (253, 231, 37)},
    "inferno": {0: (0, 0, 4), 255: (252, 255, 164)},
    "magma": {0: (0, 0, 4), 255: (252, 253, 191)},
    "gray": {0: (0, 0, 0), 77: (77, 77, 77), 255: (255, 255, 255)},
}


@pytest.mark.parametrize("name", COLORMAPS)
def test_a_table_of_256_colours(name: str) -> None:
    table = colormap(name)
    assert table.shape == (256, 3)
    assert table.dtype == np.uint8
    for row, expected in OPENCV[name].items():
        np.testing.assert_allclose(table[row].astype(int), expected, atol=1)
    assert np.abs(np.diff(table.astype(int), axis=0)).max() <= 12  # no jumps: neighbours look alike


@pytest.mark.parametrize("name", ["viridis", "inferno", "magma", "gray"])
def test_perceptual_maps_grow_lighter(name: str) -> None:
    luma = colormap(name) @ np.array([0.299, 0.587, 0.114])
    assert (np.diff(luma) > -0.75).all()  # up to rounding
    assert luma[-1] - luma[0] > 150


def test_jet_is_the_default_and_first() -> None:
    assert colormap() is colormap("jet")
    assert COLORMAPS[0] == "jet"


def test_tables_are_shared_and_so_read_only() -> None:
    for name in COLORMAPS:
        with pytest.raises(ValueError, match="read-only"):
            colormap(name)[0, 0] = 1


def test_jet_agrees_with_opencv_everywhere() -> None:
    cv2 = pytest.importorskip("cv2")
    bgr = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_JET)[:, 0]
    assert np.abs(colormap("jet").astype(int) - bgr[:, ::-1]).max() <= 1


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ImageError, match=r"unknown colour map 'jett'.*jet, turbo, viridis, inferno, magma, gray"):
        colormap("jett")
    with pytest.raises(ValueError, match="nearest"):
        colormap("")
