"""pycam._native: activations and weights to raw maps, and on to heatmaps, in every type, layout and weighting."""

from __future__ import annotations

import importlib.util
import sys
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
seeds, types, layouts = shared.seeds, shared.types, shared.layouts
weightings = st.sampled_from(shared.WEIGHTINGS)
channels = st.one_of(st.integers(1, 9), st.sampled_from([16, 33, 64, 130]))
small_sides = st.sampled_from([1, 2, 3, 5, 7, 14, 17])
HEADS = ((_native.weigh, _native.explain), (_native.weigh_ref, _native.explain_ref))


def rectified(rng: np.random.Generator, shape: tuple[int, ...], type_: str) -> Array:
    """Activations as behind a ReLU."""
    return np.maximum(rng.standard_normal(shape), 0).astype(shared.TYPES[type_])


def gradients(rng: np.random.Generator, shape: tuple[int, ...], type_: str) -> Array:
    return (rng.standard_normal(shape) * rng.choice([1e-3, 1.0, 30.0])).astype(shared.TYPES[type_])


def agree(activations: Array, weights: Array, weighting: str) -> None:
    """Both heads and numpy, within the contract."""
    expected, sizes = shared.weigh(activations, weights, weighting)
    for weigh, tolerance in ((_native.weigh_ref, 1e-7), (_native.weigh, TOLERANCE)):
        raw = weigh(activations, weights, weighting)
        assert raw.shape == (*weights.shape[:2], *activations.shape[2:])
        assert raw.dtype == np.float32
        assert np.all(np.abs(raw - expected) <= tolerance * sizes + 1e-45)


@given(
    seed=seeds, n=st.integers(0, 2), k=st.integers(0, 3), c=channels, h=small_sides, w=small_sides,
    everywhere=st.booleans(), weighting=weightings, of_a=types, of_g=types, like_a=layouts, like_g=layouts,
)  # fmt: skip
@example(0, 1, 1, 2048, 7, 7, True, "given", "float32", "float32", "dense", "dense")
@example(0, 1, 1, 2048, 7, 7, False, "mean", "float16", "float16", "dense", "dense")
@example(0, 1, 2, 1281, 7, 7, False, "mean", "bfloat16", "float32", "channels last", "channels last")
@example(0, 1, 1, 383, 14, 14, False, "plusplus", "float16", "float16", "tokens", "tokens")
@example(0, 1, 1, 5, 300, 211, False, "positive", "float32", "float32", "dense", "channels last")
@example(0, 2, 2, 51, 7, 7, False, "rectified", "float32", "bfloat16", "dense", "every other")
@example(0, 1, 1, 2047, 1, 1, False, "plusplus", "float32", "float32", "dense", "dense")
def test_weigh(
    seed: int, n: int, k: int, c: int, h: int, w: int, everywhere: bool, weighting: str,
    of_a: str, of_g: str, like_a: str, like_g: str,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    activations = rectified(rng, (n, c, h, w), of_a)
    weights = gradients(rng, (n, k, c) if everywhere else (n, k, c, h, w), of_g)
    agree(shared.LAYOUTS[like_a](activations), shared.LAYOUTS[like_g](weights), weighting)


@pytest.mark.parametrize("weighting", ["given", "mean", "positive", "rectified"])
@pytest.mark.parametrize("layout", list(shared.LAYOUTS))
def test_signed_activations(weighting: str, layout: str) -> None:
    rng = np.random.default_rng(0)
    activations = shared.LAYOUTS[layout](rng.standard_normal((2, 37, 7, 9)).astype(np.float32))
    for shape in ((2, 3, 37), (2, 3, 37, 7, 9)):
        agree(activations, shared.LAYOUTS[layout](rng.standard_normal(shape).astype(np.float32)), weighting)


@pytest.mark.parametrize("weighting", shared.WEIGHTINGS)
def test_strides_of_zero(weighting: str) -> None:
    """One image for all, one channel for all, one row for all: as when they were copied."""
    rng = np.random.default_rng(0)
    a, g = rectified(rng, (1, 9, 5, 7), "float32"), gradients(rng, (1, 2, 9, 5, 7), "float32")
    views = [
        (np.broadcast_to(a, (3, 9, 5, 7)), np.broadcast_to(g, (3, 2, 9, 5, 7))),
        (np.broadcast_to(a[:, :1], a.shape), np.broadcast_to(g[:, :, :1], g.shape)),
        (np.broadcast_to(a[:, :, :1], a.shape), np.broadcast_to(g[..., :1], g.shape)),
        (a, np.broadcast_to(g[:, :1], (1, 4, 9, 5, 7))),
    ]
    for activations, weights in views:
        agree(activations, weights, weighting)


@pytest.mark.parametrize("weighting", shared.WEIGHTINGS)
def test_weights_that_are_the_same_at_all_positions_are_those_of_a_dense_array(weighting: str) -> None:
    rng = np.random.default_rng(1)
    activations, weights = rectified(rng, (2, 12, 5, 4), "float32"), gradients(rng, (2, 3, 12), "float32")
    dense = np.ascontiguousarray(np.broadcast_to(weights[..., None, None], (2, 3, 12, 5, 4)))
    _, sizes = shared.weigh(activations, dense, weighting)
    for weigh, _ in HEADS:
        difference = np.abs(weigh(activations, weights, weighting) - weigh(activations, dense, weighting))
        assert np.all(difference <= 2 * TOLERANCE * sizes)


def test_every_half_is_read_as_what_it_is() -> None:
    """All 65536 of either type: denormals, infinities and NaN among them."""
    bits = np.arange(1 << 16, dtype=np.uint16).reshape(1, 1, 256, 256)
    for type_ in ("float16", "bfloat16"):
        values = bits.view(shared.TYPES[type_])
        with np.errstate(invalid="ignore"):  # signalling NaN
            expected = values.astype(np.float32)
        for weigh, _ in HEADS:
            raw = weigh(values, np.ones((1, 1, 1), np.float32))
            np.testing.assert_array_equal(raw, expected)


@pytest.mark.parametrize("kind", ["denormal", "huge"])
def test_the_ends_of_the_range(kind: str) -> None:
    activations = shared.make(kind, 1, (1, 3, 7, 7))
    agree(activations, np.full((1, 1, 3), 0.125 if kind == "huge" else 1, np.float32), "given")


def test_nan_and_infinity_pass_through() -> None:
    activations = np.ones((1, 5, 2, 2), np.float32)
    activations[0, 1, 0, 0], activations[0, 4, 1, 1], activations[0, 2, 1, 0] = np.nan, np.inf, -np.inf
    for weigh, _ in HEADS:
        raw = weigh(activations, np.ones((1, 1, 5), np.float32))[0, 0]
        assert np.isnan(raw[0, 0])
        assert raw[1, 1] == np.inf
        assert raw[1, 0] == -np.inf
        assert raw[0, 1] == 5


@pytest.mark.parametrize("weighting", ["given", "mean", "positive", "rectified", "plusplus"])
@pytest.mark.parametrize("where", ["activations", "weights"])
def test_no_weighting_hides_nan(weighting: Any, where: str) -> None:
    arrays = {"activations": np.ones((1, 5, 2, 2), np.float32), "weights": np.ones((1, 1, 5, 2, 2), np.float32)}
    arrays[where][..., 3, 1, 1] = np.nan
    for weigh, _ in HEADS:
        assert np.isnan(weigh(arrays["activations"], arrays["weights"], weighting)[0, 0, 1, 1])


@pytest.mark.parametrize("weighting", ["mean", "plusplus", "rectified", "given"])
@pytest.mark.parametrize("by_points", [False, True])
def test_many_positions_keep_the_tolerance(weighting: Any, by_points: bool) -> None:
    """Constant values: every rounding error has the same sign."""
    activations, gradients = np.full((1, 3, 224, 224), 0.1, np.float32), np.full((1, 1, 3, 224, 224), 0.3, np.float32)
    if by_points:
        activations = np.moveaxis(np.ascontiguousarray(np.moveaxis(activations, 1, -1)), -1, 1)
        gradients = np.moveaxis(np.ascontiguousarray(np.moveaxis(gradients, 2, -1)), -1, 2)
    expected = _native.weigh_ref(activations, gradients, weighting)
    np.testing.assert_allclose(_native.weigh(activations, gradients, weighting), expected, rtol=1e-5)


@pytest.mark.parametrize("by_points", [False, True])
@pytest.mark.parametrize("weighting", ["given", "rectified"])
def test_many_channels_keep_the_tolerance(weighting: Any, by_points: bool) -> None:
    shape = (1, 2, 2, 1 << 16) if by_points else (1, 1 << 16, 2, 2)
    activations, weights = np.full(shape, 0.1, np.float32), np.full((1, *shape), 0.3, np.float32)
    if by_points:
        activations, weights = np.moveaxis(activations, -1, 1), np.moveaxis(weights, -1, 2)
    expected = _native.weigh_ref(activations, weights, weighting)
    np.testing.assert_allclose(_native.weigh(activations, weights, weighting), expected, rtol=1e-5)


# ---- explain ---------------------------------------------------------------------------------------------------------


@given(
    seed=seeds, n=st.integers(0, 2), k=st.integers(0, 2), c=channels, h=small_sides, w=small_sides,
    size=st.sampled_from([(14, 14), (31, 33), (1, 1), (224, 224), (5, 120)]), weighting=weightings,
    type_=types, layout=layouts,
)  # fmt: skip
@example(0, 1, 1, 2048, 7, 7, (224, 224), "mean", "float32", "dense")
@example(0, 2, 1, 512, 14, 14, (224, 224), "mean", "float16", "channels last")
@example(0, 1, 1, 3, 7, 7, (2000, 3000), "mean", "float32", "dense")
def test_explain(
    seed: int, n: int, k: int, c: int, h: int, w: int, size: tuple[int, int], weighting: str, type_: str, layout: str
) -> None:
    """The raw maps are those of `weigh`, the heatmaps those of `finish` for them; `raw` left out changes nothing."""
    rng = np.random.default_rng(seed)
    activations = shared.LAYOUTS[layout](rectified(rng, (n, c, h, w), type_))
    weights = shared.LAYOUTS[layout](gradients(rng, (n, k, c, h, w), type_))
    expected, sizes = shared.weigh(activations, weights, weighting)
    for (_, explain), finish in zip(HEADS, (_native.finish, _native.finish_ref), strict=True):
        raw, maps, flat = explain(activations, weights, size, weighting, ("raw", "heatmaps", "flat"))
        assert maps.shape == (n, k, *size)
        assert np.all(np.abs(raw - expected) <= TOLERANCE * sizes)
        again, flat_again = finish([raw], size)
        np.testing.assert_array_equal(maps, again)
        np.testing.assert_array_equal(flat, flat_again)
        np.testing.assert_allclose(maps, _native.finish_ref([raw], size)[0], rtol=0, atol=TOLERANCE)
        for got, expected_ in zip(explain(activations, weights, size, weighting), (maps, flat), strict=True):
            np.testing.assert_array_equal(got, expected_)


def test_grad_cam_against_numpy() -> None:
    """Well conditioned, as a tolerance on heatmaps (rather than on raw maps) requires: a peak in every channel, in the
    corner, where enlarging keeps it; positive gradients, so that the sum does not cancel."""
    rng = np.random.default_rng(0)
    for c, side in ((2048, 7), (512, 14), (7, 28)):
        activations = rng.random((2, c, side, side), np.float32)
        activations[..., 0, 0] += 2
        slopes = rng.random((2, 1, c, side, side), np.float32) + np.float32(0.1)
        expected, flat = shared.finish([shared.weigh(activations, slopes, "mean")[0]], 224, 224)
        for _, explain in HEADS:
            maps, flat_found = explain(activations, slopes, (224, 224))
            np.testing.assert_allclose(maps, expected, rtol=0, atol=TOLERANCE)
            np.testing.assert_array_equal(flat_found, flat)


def test_a_negative_sum_is_flat() -> None:
    activations, slopes = np.ones((2, 3, 7, 7), np.float32), np.ones((2, 1, 3, 7, 7), np.float32)
    slopes[1] = -1
    for _, explain in HEADS:
        maps, flat = explain(activations, slopes, (14, 14))
        assert flat.tolist() == [[False], [True]]
        assert not maps.any()


def test_outputs_come_in_the_order_of_their_names() -> None:
    activations, slopes = np.ones((1, 3, 7, 5), np.float32), np.ones((1, 2, 3, 7, 5), np.float32)
    for _, explain in HEADS:
        assert explain(activations, slopes, (9, 8), "mean", ()) == ()
        results = explain(activations, slopes, (9, 8), "mean", ["flat", "raw", "levels", "flat", "heatmaps"])
        assert [(r.dtype.name, r.shape) for r in results] == [
            ("bool", (1, 2)), ("float32", (1, 2, 7, 5)), ("uint8", (1, 2, 9, 8)), ("bool", (1, 2)),
            ("float32", (1, 2, 9, 8)),
        ]  # fmt: skip
