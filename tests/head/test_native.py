"""pycam._native: raw maps to heatmaps.  The vectorised head against the reference, and the reference against numpy."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
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
TOLERANCE = shared.TOLERANCE
make, seeds, sides = shared.make, shared.seeds, shared.sides


def agree(raws: Sequence[Array], height: int, width: int) -> None:
    """Both heads and numpy, within the contract."""
    lead = raws[0].shape[:2]
    maps, flat = _native.finish(raws, (height, width))
    maps_ref, flat_ref = _native.finish_ref(raws, (height, width))
    expected, expected_flat = shared.finish(raws, height, width)

    assert maps.shape == maps_ref.shape == (*lead, height, width)
    assert maps.dtype == maps_ref.dtype == np.float32
    assert flat.shape == flat_ref.shape == lead
    assert flat.dtype == flat_ref.dtype == np.bool_
    np.testing.assert_allclose(maps_ref, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(maps, maps_ref, rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(flat_ref, expected_flat)
    np.testing.assert_array_equal(flat, expected_flat)
    assert np.all((maps >= 0) & (maps <= 1))
    assert not maps[flat].any()


@st.composite
def raw_layers(draw: st.DrawFn, most: int = 4) -> list[Array]:
    lead = draw(st.sampled_from([(1, 1), (1, 3), (2, 1), (2, 2), (0, 1), (1, 0)]))
    return [
        shared.LAYOUTS[draw(shared.layouts)](
            make(draw(shared.kinds), draw(seeds), (*lead, draw(sides), draw(sides)), draw(shared.types))
        )
        for _ in range(draw(st.integers(1, most)))
    ]


opposite = np.linspace(0, 1, 63, dtype=np.float32).reshape(1, 1, 7, 9)
checkers = (np.indices((8, 8)).sum(0) % 2).astype(np.float32)[None, None]


@given(raws=raw_layers(), height=sides, width=sides)
@example(raws=[opposite, 1 - opposite], height=32, width=32)  # layers that cancel: the second s magnifies what is left
@example(raws=[checkers], height=4, width=4)  # every sample is the mean of four: constant
@example(raws=[make("one peak", 1, (1, 2, 300, 211))], height=7, width=5)  # shrinks by 40
@example(raws=[make("noise", 1, (1, 1, 3, 2)), make("noise", 2, (1, 1, 5, 1))], height=640, width=480)
@example(raws=[make("noise", 3, (1, 1, 200, 200), "float16")], height=224, width=224)
@example(raws=[make("noise", 3, (1, 1, 7, 7))], height=2000, width=3000)
@example(raws=[make("noise", 3, (1, 1, 300, 211)), make("noise", 4, (1, 1, 1, 1))], height=400, width=300)
@example(raws=[make("noise", 5, (1, 1, 1, 5000))], height=3, width=9000)
@example(raws=[make("noise", 6, (1, 1, 5000, 1))], height=9000, width=2)
def test_finish(raws: list[Array], height: int, width: int) -> None:
    agree(raws, height, width)


@pytest.mark.parametrize("kind", list(shared.KINDS))
@pytest.mark.parametrize("type_", list(shared.TYPES))
def test_every_kind_of_map(kind: str, type_: str) -> None:
    for size in [(1, 1), (7, 7), (13, 5), (49, 50)]:
        agree([make(kind, 1, (1, 2, *size), type_)], 33, 47)
        agree([make(kind, 1, (1, 2, *size), type_), make("noise", 2, (1, 2, 7, 7), type_)], 14, 15)


@pytest.mark.parametrize("layout", list(shared.LAYOUTS))
@pytest.mark.parametrize("type_", list(shared.TYPES))
def test_layouts_give_bitwise_the_same(layout: str, type_: str) -> None:
    raw = make("noise", 0, (2, 3, 5, 7), type_)
    for finish in (_native.finish, _native.finish_ref):
        for got, expected in zip(
            finish([shared.LAYOUTS[layout](raw)] * 2, (20, 9)), finish([raw] * 2, (20, 9)), strict=True
        ):
            np.testing.assert_array_equal(got, expected)


def test_strides_of_zero() -> None:
    """One map for all images, and one row for all rows."""
    raw = make("noise", 0, (1, 2, 5, 7))
    for finish in (_native.finish, _native.finish_ref):
        for view in (np.broadcast_to(raw, (3, 2, 5, 7)), np.broadcast_to(raw[:, :, :1], (1, 2, 5, 7))):
            np.testing.assert_array_equal(finish([view], (9, 11))[0], finish([view.copy()], (9, 11))[0])


@pytest.mark.parametrize("side", [1, 2, 3, 7, 14, 28])
@pytest.mark.parametrize("out", [1, 2, 7, 13, 224])
def test_the_extremes_of_a_map_are_found(side: int, out: int) -> None:
    """min and max are taken from a few rows only: over many maps they must be those of all rows."""
    raws = [make("noise", side, (6, 5, side, side)), make("noise", out, (6, 5, side + 2, side))]
    for layers in (raws[:1], raws):
        np.testing.assert_allclose(
            _native.finish(layers, (out, out))[0], shared.finish(layers, out, out)[0], rtol=0, atol=TOLERANCE
        )


def test_flat_means_no_positive_part_in_any_layer() -> None:
    raws = [np.full((1, 3, 2, 2), -1, np.float32), np.full((1, 3, 4, 4), -1, np.float32)]
    raws[1][0, 1, 2, 2] = 1e-30  # positive, though far too small to be seen beside the eps
    raws[0][0, 2] = 5  # a constant: zeros by the formula, but not for want of a positive part
    for finish in (_native.finish, _native.finish_ref):
        maps, flat = finish(raws, (8, 8))
        assert flat.tolist() == [[True, False, False]]
        assert maps[0, 0].max() == 0
        assert maps[0, 2].max() == 0


def test_the_eps_is_that_of_the_formula() -> None:
    """s(s(x)) for x in {0, 1e-7}: 1e-7 / 2e-7 = 1/2, then 0.5 / (0.5 + 1e-7)."""
    raw = np.array([[[[0, 1e-7]]]], np.float32)
    for finish in (_native.finish, _native.finish_ref):
        np.testing.assert_allclose(finish([raw], (1, 2))[0][0, 0, 0], [0, 0.5 / (0.5 + 1e-7)], atol=1e-7)
    raw = np.array([[[[0, 1e-14]]]], np.float32)  # 1e-7 after the first, one half after the second
    for finish in (_native.finish, _native.finish_ref):
        np.testing.assert_allclose(finish([raw], (1, 2))[0][0, 0, 0], [0, 0.5], atol=1e-6)


def test_results_of_one_size_are_recycled_and_no_two_share_memory() -> None:
    raw = make("noise", 0, (1, 1, 7, 7))
    first = _native.finish([raw], (224, 224))[0]
    second = _native.finish([raw], (224, 224))[0]
    assert not np.shares_memory(first, second)
    address, view = second.ctypes.data, first[0, 0, 3:]
    del first, second
    assert _native.finish([raw], (224, 224))[0].ctypes.data == address
    kept = [_native.finish([raw], (224, 224))[0] for _ in range(4)]
    assert not any(np.shares_memory(view, each) for each in kept)  # a view keeps its memory


def test_features() -> None:
    features = _native.features()
    assert set(features) == {"clones", "compiler", "version"}
    assert features["compiler"] != "unknown"
