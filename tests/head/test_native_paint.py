"""pycam._native: colours over images: the same bytes from every head and on every way, at any size and layout."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pycam import _native


def _load() -> Any:
    """`numpy_head.py`, which lies beside this file."""
    name = "numpy_head"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


shared = _load()
Array = NDArray[Any]
seeds, sides = shared.seeds, shared.sides
FINISH, EXPLAIN = (_native.finish, _native.finish_ref), (_native.explain, _native.explain_ref)
OVERLAY, LEVELS = (_native.overlay, _native.overlay_ref), (_native.levels, _native.levels_ref)
EVERYTHING = ("heatmaps", "levels", "pictures", "flat")

# How images lie.
PLACES: dict[str, Callable[[Array], Array]] = {
    "dense": np.ascontiguousarray,
    "padded rows": lambda images: np.pad(images, ((0, 0), (1, 2), (3, 4), (0, 0)))[:, 1:-2, 3:-4],
    "every other pixel": lambda images: np.repeat(np.repeat(images, 2, 1), 2, 2)[:, ::2, ::2],
    "three of six": lambda images: np.concatenate([images, images[::-1]], 3)[..., : images.shape[3]],
    "columns first": lambda images: np.ascontiguousarray(images.swapaxes(1, 2)).swapaxes(1, 2),
    "upside down": lambda images: np.ascontiguousarray(images[::-1, ::-1])[::-1, ::-1],
    "mirrored": lambda images: np.ascontiguousarray(images[:, :, ::-1])[:, :, ::-1],
    "images last": lambda images: np.ascontiguousarray(images.transpose(1, 2, 0, 3)).transpose(2, 0, 1, 3),
}
places = st.sampled_from(list(PLACES))


def photos(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.integers(0, 256, shape, np.uint8)


@given(
    seed=seeds, n=st.integers(0, 2), k=st.integers(0, 3), h=sides, w=sides, alpha=st.floats(0, 1),
    channels=st.sampled_from([3, 4]), place=places,
)  # fmt: skip
@example(0, 1, 1, 224, 224, 0.5, 3, "dense")  # ties
@example(0, 1, 1, 224, 224, 0.5, 4, "dense")
@example(0, 1, 1, 32, 32, 0.0, 3, "dense")
@example(0, 1, 1, 32, 32, 1.0, 3, "dense")
def test_overlay(seed: int, n: int, k: int, h: int, w: int, alpha: float, channels: int, place: str) -> None:
    rng = np.random.default_rng(seed)
    images, lut = photos(rng, (n, h, w, channels)), photos(rng, (256, 3))
    maps = (rng.random((n, k, h, w)) * 1.2 - 0.1).astype(np.float32)  # some to be clamped
    laid = PLACES[place](images)
    np.testing.assert_array_equal(laid, images)
    pictures, pictures_ref = (overlay(laid, maps, lut, alpha) for overlay in OVERLAY)
    assert pictures.shape == (n, k, h, w, channels)
    assert pictures.dtype == np.uint8
    np.testing.assert_array_equal(pictures, pictures_ref)
    assert np.all(np.abs(pictures[..., :3] - shared.overlay(images[..., :3], maps, lut, alpha)) <= 0.502)
    assert np.all(pictures[..., 3:] == images[:, None, ..., 3:])  # the opacity is left as it is
    np.testing.assert_array_equal(images, laid)  # and so are the images
    for levels in LEVELS:
        np.testing.assert_array_equal(levels(maps), shared.levels(maps))


@pytest.mark.parametrize("which", [0, 1])
def test_the_nearest_level_and_its_colour(which: int) -> None:
    """All floats beside each boundary (i + 0.5) / 255, where one rounding too many would show."""
    edges = ((np.arange(255) + 0.5) / 255).astype(np.float32)
    ends = [-np.inf, -1, -1e-40, 0, 1e-40, 1, 2, np.inf]
    maps = np.concatenate([np.nextafter(edges, 0), edges, np.nextafter(edges, 1), ends])
    maps = maps.astype(np.float32).reshape(1, 1, 1, -1)
    lut = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    images = np.zeros((1, 1, maps.size, 3), np.uint8)
    np.testing.assert_array_equal(OVERLAY[which](images, maps, lut, 1.0)[..., 0], shared.levels(maps))
    np.testing.assert_array_equal(LEVELS[which](maps), shared.levels(maps))


@pytest.mark.parametrize("alpha", [0.0, 1 / 65536, 0.25, 0.3, 0.5, 0.999, 1.0])
def test_every_pair_of_image_and_colour(alpha: float) -> None:
    images = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 256, 1)[None, ..., None].repeat(3, 3)
    lut = np.arange(256, dtype=np.uint8)[:, None].repeat(3, 1)
    maps = np.broadcast_to(np.arange(256, dtype=np.float32) / 255, (1, 1, 256, 256)).copy()
    a = int(65536 * alpha + 0.5)
    image, colour = np.arange(256)[:, None], np.arange(256)[None]
    expected = (65536 * image + a * (colour - image) + 32768) >> 16
    for overlay in OVERLAY:
        np.testing.assert_array_equal(overlay(images, maps, lut, alpha)[0, 0], expected[..., None].repeat(3, 2))


@given(
    seed=seeds, n=st.integers(0, 2), k=st.integers(0, 2), h=sides, w=sides, height=sides, width=sides,
    channels=st.sampled_from([3, 4]), place=places, layers=st.integers(1, 2),
)  # fmt: skip
@example(0, 1, 1, 7, 7, 224, 224, 3, "dense", 1)
@example(0, 1, 1, 7, 7, 1080, 1920, 4, "dense", 1)
@example(0, 1, 1, 7, 7, 2000, 3000, 3, "padded rows", 1)
@example(0, 2, 1, 300, 211, 33, 31, 3, "mirrored", 2)
def test_all_outputs_are_those_of_the_heatmaps(
    seed: int, n: int, k: int, h: int, w: int, height: int, width: int, channels: int, place: str, layers: int
) -> None:
    """Byte for byte the levels and overlay of the same head's heatmaps, with others or alone, at the images' size."""
    rng = np.random.default_rng(seed)
    images, lut = PLACES[place](photos(rng, (n, height, width, channels))), photos(rng, (256, 3))
    raws = [rng.standard_normal((n, k, h + i, w)).astype(np.float32) for i in range(layers)]
    for finish, overlay, levels in zip(FINISH, OVERLAY, LEVELS, strict=True):
        maps, found, pictures, flat = finish(raws, None, EVERYTHING, images=images, lut=lut, alpha=0.4)
        np.testing.assert_array_equal(maps, finish(raws, (height, width))[0])
        np.testing.assert_array_equal(found, levels(maps))
        np.testing.assert_array_equal(pictures, overlay(images, maps, lut, 0.4))
        np.testing.assert_array_equal(flat, finish(raws, (1, 1))[1])
        (alone,) = finish(raws, (height, width), ("pictures",), images=images, lut=lut, alpha=0.4)
        np.testing.assert_array_equal(alone, pictures)
        (alone,) = finish(raws, (height, width), ("levels",))
        np.testing.assert_array_equal(alone, found)


@pytest.mark.parametrize("weighting", shared.WEIGHTINGS)
@pytest.mark.parametrize("place", list(PLACES))
def test_explain_straight_to_pictures(weighting: str, place: str) -> None:
    rng = np.random.default_rng(0)
    activations = np.maximum(rng.standard_normal((2, 19, 7, 5)), 0).astype(np.float16)
    slopes = rng.standard_normal((2, 3, 19, 7, 5)).astype(np.float32)
    images, lut = PLACES[place](photos(rng, (2, 61, 47, 4))), photos(rng, (256, 3))
    for explain, overlay, levels in zip(EXPLAIN, OVERLAY, LEVELS, strict=True):
        maps, _ = explain(activations, slopes, (61, 47), weighting)
        pictures, found = explain(
            activations, slopes, None, weighting, ("pictures", "levels"), images=images, lut=lut, alpha=0.7
        )
        np.testing.assert_array_equal(found, levels(maps))
        np.testing.assert_array_equal(pictures, overlay(images, maps, lut, 0.7))


def test_one_image_under_the_maps_of_many() -> None:
    rng = np.random.default_rng(0)
    raw, lut = rng.standard_normal((4, 2, 7, 7)).astype(np.float32), photos(rng, (256, 3))
    image = photos(rng, (1, 20, 30, 3))
    for finish in FINISH:
        view, copies = (
            finish([raw], None, ("pictures",), images=images, lut=lut)[0]
            for images in (np.broadcast_to(image, (4, 20, 30, 3)), image.repeat(4, 0))
        )
        np.testing.assert_array_equal(view, copies)
