"""pycam._native: the vectorised head against the reference, and the reference against numpy."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pycam import _native

Array = NDArray[Any]
TOLERANCE = 1e-5
settings.register_profile("head", deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("head")


# ---- an independent reference: the formulas of NUMERICS.md in numpy, float64 -----------------------------------------


def stretch(x: Array) -> Array:
    x = x - x.min(axis=(-2, -1), keepdims=True)
    return x / (1e-7 + x.max(axis=(-2, -1), keepdims=True))


def interpolation(n: int, o: int) -> Array:
    """The (o,n) matrix of bilinear sampling with half-pixel centres and clamped edges."""
    at = np.clip((np.arange(o) + 0.5) * n / o - 0.5, 0, n - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(n)[None, :]))  # a tent around each source pixel


def finish_numpy(raws: Sequence[Array], height: int, width: int) -> tuple[Array, Array]:
    positive = [np.maximum(raw.astype(np.float64), 0) for raw in raws]
    layers = [
        np.maximum(interpolation(p.shape[1], height) @ stretch(p) @ interpolation(p.shape[2], width).T, 0)
        for p in positive
    ]
    flat = np.all([p.max(axis=(1, 2)) == 0 for p in positive], axis=0)
    return stretch(np.mean(layers, axis=0)), flat


def weigh_numpy(activations: Array, weights: Array, rectify: bool) -> tuple[Array, Array]:
    """The raw maps, and the sum of absolute terms that their tolerance is relative to."""
    a = activations.astype(np.float64)[:, None]
    w = weights.astype(np.float64)
    terms = a * (w if w.ndim == 5 else w[..., None, None])
    return (np.maximum(terms, 0) if rectify else terms).sum(2), np.abs(terms).sum(2)


def overlay_numpy(images: Array, maps: Array, lut: Array, alpha: float) -> Array:
    index = np.floor(np.clip(maps.astype(np.float64), 0, 1) * 255 + 0.5).astype(int)
    return (1 - alpha) * images[:, None].astype(np.float64) + alpha * lut[index].astype(np.float64)


# ---- what the tests are run on ---------------------------------------------------------------------------------------

seeds = st.integers(0, 2**32 - 1)
sides = st.one_of(st.integers(1, 9), st.sampled_from([14, 16, 17, 31, 56, 65]))


def noise(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.standard_normal(shape)


KINDS: dict[str, Callable[[np.random.Generator, tuple[int, ...]], Array]] = {
    "noise": noise,
    "positive": lambda rng, shape: rng.random(shape) + 3,
    "negative": lambda rng, shape: -rng.random(shape) - 1e-3,
    "zeros": lambda rng, shape: np.zeros(shape),
    "constant": lambda rng, shape: np.full(shape, rng.random() + 0.1),
    "nearly constant": lambda rng, shape: 1 + 1e-6 * rng.random(shape),
    "one peak": lambda rng, shape: (rng.random(shape) > 0.95) * 1.0,
    "steps": lambda rng, shape: rng.integers(-1, 2, shape).astype(float),
    "around the eps": lambda rng, shape: noise(rng, shape) * 1e-7,
    "below the eps": lambda rng, shape: noise(rng, shape) * 1e-12,
    "denormal": lambda rng, shape: noise(rng, shape) * 1e-41,
    "huge": lambda rng, shape: noise(rng, shape) * 3e37,
    "minus infinity": lambda rng, shape: np.where(rng.random(shape) > 0.5, noise(rng, shape), -np.inf),
}


def make(kind: str, seed: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    return KINDS[kind](np.random.default_rng(seed), shape).astype(np.float32)


@st.composite
def raw_layers(draw: st.DrawFn) -> list[NDArray[np.float32]]:
    maps = draw(st.integers(0, 3))
    return [
        make(draw(st.sampled_from(list(KINDS))), draw(seeds), (maps, draw(sides), draw(sides)))
        for _ in range(draw(st.integers(1, 4)))
    ]


opposite = np.linspace(0, 1, 63, dtype=np.float32).reshape(1, 7, 9)
checkers = (np.indices((8, 8)).sum(0) % 2).astype(np.float32)[None]


# ---- finish ----------------------------------------------------------------------------------------------------------


@given(raws=raw_layers(), height=sides, width=sides)
@example(raws=[opposite, 1 - opposite], height=32, width=32)  # layers that cancel: the second s magnifies what is left
@example(raws=[checkers], height=4, width=4)  # every sample is the mean of four: constant
@example(raws=[make("one peak", 1, (2, 300, 211))], height=7, width=5)  # shrinks by 40
@example(raws=[make("noise", 1, (1, 3, 2)), make("noise", 2, (1, 5, 1))], height=640, width=480)
@example(raws=[make("noise", 3, (1, 200, 200))], height=224, width=224)
def test_finish(raws: list[Array], height: int, width: int) -> None:
    maps, flat = _native.finish(raws, height, width)
    maps_ref, flat_ref = _native.finish_ref(raws, height, width)
    expected, expected_flat = finish_numpy(raws, height, width)

    assert maps.shape == maps_ref.shape == (raws[0].shape[0], height, width)
    assert maps.dtype == maps_ref.dtype == np.float32
    assert flat.dtype == flat_ref.dtype == np.bool_
    np.testing.assert_allclose(maps_ref, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(maps, maps_ref, rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(flat_ref, expected_flat)
    np.testing.assert_array_equal(flat, expected_flat)
    assert np.all((maps >= 0) & (maps <= 1))
    assert not maps[flat].any()


@pytest.mark.parametrize("side", [1, 2, 3, 7, 14, 28])
@pytest.mark.parametrize("out", [1, 2, 7, 13, 224])
def test_the_extremes_of_a_map_are_found(side: int, out: int) -> None:
    """min and max are taken from a few rows only: over many maps they must be those of all rows."""
    raws = [make("noise", side, (60, side, side)), make("noise", out, (60, side + 2, side))]
    for layers in (raws[:1], raws):
        np.testing.assert_allclose(
            _native.finish(layers, out, out)[0], finish_numpy(layers, out, out)[0], rtol=0, atol=TOLERANCE
        )


def test_flat_means_no_positive_part_in_any_layer() -> None:
    raws = [np.full((3, 2, 2), -1, np.float32), np.full((3, 4, 4), -1, np.float32)]
    raws[1][1, 2, 2] = 1e-30  # positive, though far too small to be seen beside the eps
    raws[0][2] = 5  # a constant: zeros by the formula, but not for want of a positive part
    for finish in (_native.finish, _native.finish_ref):
        maps, flat = finish(raws, 8, 8)
        assert flat.tolist() == [True, False, False]
        assert maps[0].max() == 0
        assert maps[2].max() == 0


def test_the_eps_is_that_of_the_formula() -> None:
    """s(s(x)) for x in {0, 1e-7}: 1e-7 / 2e-7 = 1/2, then 0.5 / (0.5 + 1e-7)."""
    raw = np.array([[[0, 1e-7]]], np.float32)
    for finish in (_native.finish, _native.finish_ref):
        np.testing.assert_allclose(finish([raw], 1, 2)[0][0, 0], [0, 0.5 / (0.5 + 1e-7)], atol=1e-7)
    raw = np.array([[[0, 1e-14]]], np.float32)  # 1e-7 after the first, one half after the second
    for finish in (_native.finish, _native.finish_ref):
        np.testing.assert_allclose(finish([raw], 1, 2)[0][0, 0], [0, 0.5], atol=1e-6)


# ---- weigh and fused -------------------------------------------------------------------------------------------------

channels = st.one_of(st.integers(1, 9), st.sampled_from([64, 130]))
small_sides = st.sampled_from([1, 2, 3, 5, 7, 14])


@given(
    seed=seeds, n=st.integers(0, 2), k=st.integers(0, 3), c=channels, h=small_sides, w=small_sides,
    dense=st.booleans(), rectify=st.booleans(),
)  # fmt: skip
@example(seed=0, n=1, k=1, c=2048, h=7, w=7, dense=False, rectify=False)
@example(seed=0, n=2, k=2, c=51, h=7, w=7, dense=True, rectify=True)
def test_weigh(seed: int, n: int, k: int, c: int, h: int, w: int, dense: bool, rectify: bool) -> None:
    rng = np.random.default_rng(seed)
    activations = rng.standard_normal((n, c, h, w), np.float32)
    weights = rng.standard_normal((n, k, c, h, w) if dense else (n, k, c), np.float32)
    expected, size = weigh_numpy(activations, weights, rectify)
    for weigh, tolerance in ((_native.weigh_ref, 1e-7), (_native.weigh, TOLERANCE)):
        raw = weigh(activations, weights, rectify)
        assert raw.shape == (n, k, h, w)
        assert raw.dtype == np.float32
        assert np.all(np.abs(raw - expected) <= tolerance * size)


def test_weigh_lets_nan_and_infinity_through() -> None:
    activations = np.ones((1, 5, 2, 2), np.float32)
    activations[0, 1, 0, 0], activations[0, 4, 1, 1] = np.nan, np.inf
    for weigh in (_native.weigh, _native.weigh_ref):
        raw = weigh(activations, np.ones((1, 1, 5), np.float32))[0, 0]
        assert np.isnan(raw[0, 0])
        assert raw[1, 1] == np.inf
        assert raw[0, 1] == 5


@given(
    seed=seeds, n=st.integers(0, 3), c=channels, h=small_sides, w=small_sides,
    height=st.sampled_from([14, 31, 224]), width=st.sampled_from([14, 33, 224]),
)  # fmt: skip
@example(seed=0, n=1, c=2048, h=7, w=7, height=224, width=224)
@example(seed=0, n=1, c=512, h=14, w=14, height=224, width=224)
def test_fused(seed: int, n: int, c: int, h: int, w: int, height: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    # Well conditioned, as a tolerance on maps (rather than on raw maps) requires: a peak in every channel, in the
    # corner, where enlarging keeps it; positive gradients, so that the sum does not cancel.
    activations = rng.random((n, c, h, w), np.float32)
    activations[..., 0, 0] += 2
    gradients = rng.random((n, c, h, w), np.float32) + np.float32(0.1)
    means = gradients.astype(np.float64).mean((2, 3))
    expected, expected_flat = finish_numpy([np.einsum("nc,nchw->nhw", means, activations)], height, width)
    for fused in (_native.fused, _native.fused_ref):
        maps, flat = fused(activations, gradients, height, width)
        np.testing.assert_allclose(maps, expected, rtol=0, atol=TOLERANCE)
        np.testing.assert_array_equal(flat, expected_flat)


def test_fused_with_a_negative_sum_is_flat() -> None:
    activations, gradients = np.ones((2, 3, 7, 7), np.float32), np.ones((2, 3, 7, 7), np.float32)
    gradients[1] = -1
    for fused in (_native.fused, _native.fused_ref):
        maps, flat = fused(activations, gradients, 14, 14)
        assert flat.tolist() == [False, True]
        assert not maps.any()


# ---- overlay ---------------------------------------------------------------------------------------------------------


@given(seed=seeds, n=st.integers(0, 2), k=st.integers(0, 3), h=sides, w=sides, alpha=st.floats(0, 1))
@example(seed=0, n=1, k=1, h=224, w=224, alpha=0.5)  # more than one block of pixels, and ties
@example(seed=0, n=1, k=1, h=32, w=32, alpha=0.0)
@example(seed=0, n=1, k=1, h=32, w=32, alpha=1.0)
def test_overlay(seed: int, n: int, k: int, h: int, w: int, alpha: float) -> None:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, h, w, 3), np.uint8)
    lut = rng.integers(0, 256, (256, 3), np.uint8)
    maps = (rng.random((n, k, h, w)) * 1.2 - 0.1).astype(np.float32)  # some to be clamped
    pictures, pictures_ref = _native.overlay(images, maps, lut, alpha), _native.overlay_ref(images, maps, lut, alpha)
    assert pictures.shape == (n, k, h, w, 3)
    assert pictures.dtype == np.uint8
    np.testing.assert_array_equal(pictures, pictures_ref)
    assert np.all(np.abs(pictures - overlay_numpy(images, maps, lut, alpha)) <= 0.502)


@pytest.mark.parametrize("overlay", [_native.overlay, _native.overlay_ref])
def test_overlay_picks_the_nearest_colour(overlay: Callable[..., Array]) -> None:
    """All floats beside each boundary (i + 0.5) / 255, where one rounding too many would show."""
    edges = ((np.arange(255) + 0.5) / 255).astype(np.float32)
    maps = np.concatenate([np.nextafter(edges, 0), edges, np.nextafter(edges, 1), [-np.inf, 0, 1, np.inf]])
    maps = maps.astype(np.float32).reshape(1, 1, 1, -1)
    lut = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    images = np.zeros((1, 1, maps.size, 3), np.uint8)
    expected = np.floor(np.clip(maps.astype(np.float64), 0, 1) * 255 + 0.5)
    np.testing.assert_array_equal(overlay(images, maps, lut, 1.0)[..., 0], expected)


# ---- threads ---------------------------------------------------------------------------------------------------------


def test_threads_give_bitwise_the_same() -> None:
    rng = np.random.default_rng(0)
    jobs = [
        (rng.standard_normal((2, c, s, s), np.float32), rng.standard_normal((2, c, s, s), np.float32), 20 + s)
        for c, s in [(64, 7), (65, 14), (3, 1), (33, 28)]
    ]
    lut = rng.integers(0, 256, (256, 3), np.uint8)

    def work() -> list[bytes]:
        results = []
        for activations, gradients, size in jobs:
            maps, flat = _native.fused(activations, gradients, size, size)
            raw = _native.weigh(activations, gradients[:, None], True)
            layers, _ = _native.finish([raw[:, 0], activations[:, 0].copy()], size, size + 1)
            pictures = _native.overlay(np.zeros((2, size, size, 3), np.uint8), maps[:, None], lut, 0.4)
            results += [x.tobytes() for x in (maps, flat, raw, layers, pictures)]
        return results

    expected, wrong = work(), []

    def check() -> None:
        wrong.extend(i for i in range(30) if work() != expected)

    threads = [threading.Thread(target=check) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# ---- bad inputs ------------------------------------------------------------------------------------------------------

A = np.ones((2, 3, 4, 5), np.float32)
W = np.ones((2, 1, 3), np.float32)
R = np.ones((2, 4, 5), np.float32)
IMAGES, MAPS = np.zeros((2, 4, 5, 3), np.uint8), np.zeros((2, 1, 4, 5), np.float32)
LUT = np.zeros((256, 3), np.uint8)
UNALIGNED = np.zeros(A.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(A.shape)


def with_value(array: Array, index: tuple[int, ...], value: float) -> Array:
    array = array.copy()
    array[index] = value
    return array


REFUSED: list[tuple[str, tuple[Any, ...], str]] = [
    # function, arguments, message
    ("weigh", ([1, 2], W), r"activations: expected a C-contiguous float32 array \(N, C, h, w\), found list"),
    ("weigh", (A.astype(np.float64), W), r"activations: .* found float64 \(2, 3, 4, 5\)"),
    ("weigh", (A.astype(">f4"), W), r"activations: .* found >f4 \(2, 3, 4, 5\)"),
    ("weigh", (A[..., ::2], W), r"activations: .* found float32 \(2, 3, 4, 3\), not C-contiguous"),
    ("weigh", (UNALIGNED, W), r"activations: .* found float32 \(2, 3, 4, 5\), not aligned"),
    ("weigh", (A[0], W), r"activations: .* found float32 \(3, 4, 5\)"),
    ("weigh", (A[:, :0], W), r"activations: .* with C at least 1, found float32 \(2, 0, 4, 5\)"),
    ("weigh", (A[:, :, :0], W), r"activations: .* with h at least 1, found"),
    ("weigh", (A, None), r"weights: expected .* \(N, K, C\) or \(N, K, C, h, w\), found NoneType"),
    ("weigh", (A, A), r"weights: expected .* \(N, K, C\) or \(N, K, C, h, w\), found float32 \(2, 3, 4, 5\)"),
    ("weigh", (A, W[..., :2].copy()), r"weights: expected shape \(2, 1, 3\) for .*\(2, 3, 4, 5\), found \(2, 1, 2\)"),
    ("weigh", (A, A[:, None, :, :2].copy()), r"weights: expected shape \(2, 1, 3, 4, 5\) .* found \(2, 1, 3, 2, 5\)"),
    ("finish", (R, 8, 8), r"raws: expected a list of at least one array \(M, h, w\), found float32 \(2, 4, 5\)"),
    ("finish", ([], 8, 8), r"raws: .* found an empty one"),
    ("finish", ([R, R.astype(np.float16)], 8, 8), r"raws\[1\]: .* found float16 \(2, 4, 5\)"),
    ("finish", ([R, R[:1]], 8, 8), r"raws\[1\]: expected shape \(2, 4, 5\) with the M of raws\[0\], found \(1, 4, 5\)"),
    ("finish", ([R[:, :0]], 8, 8), r"raws\[0\]: .* with h at least 1"),
    ("finish", ([R], 0, 8), r"height: expected 1 to 16777216, found 0"),
    ("finish", ([R], 8, -1), r"width: .* found -1"),
    ("finish", ([R, with_value(R, (1, 2, 3), np.nan)], 8, 8), r"raws\[1\]: .* NaN at \[1, 2, 3\]"),
    ("finish", ([with_value(R, (0, 3, 4), np.inf)], 8, 8), r"raws\[0\]: .* \+inf at \[0, 3, 4\]"),
    ("fused", (A, W, 8, 8), r"gradients: .* found float32 \(2, 1, 3\)"),
    ("fused", (A, A[:1], 8, 8), r"gradients: expected shape \(2, 3, 4, 5\) like activations, found \(1, 3, 4, 5\)"),
    ("fused", (A, A, 8, 0), r"width: .* found 0"),
    ("fused", (with_value(A, (1, 2, 3, 4), np.nan), A, 8, 8), r"weighted sum, which is NaN at \[1, 3, 4\]"),
    ("overlay", (IMAGES.astype(np.float32), MAPS, LUT, 0.5), r"images: .* uint8 .* found float32"),
    ("overlay", (IMAGES[..., :1].copy(), MAPS, LUT, 0.5), r"images: expected shape \(2, 4, 5, 3\)"),
    ("overlay", (IMAGES, MAPS[:, 0], LUT, 0.5), r"maps: .* found float32 \(2, 4, 5\)"),
    ("overlay", (IMAGES, MAPS[:1], LUT, 0.5), r"maps: expected shape \(2, 1, 4, 5\) for images"),
    ("overlay", (IMAGES, MAPS, LUT[:255], 0.5), r"lut: expected shape \(256, 3\)"),
    ("overlay", (IMAGES, MAPS, LUT, 1.5), r"alpha: expected 0 to 1, found 1.5"),
    ("overlay", (IMAGES, MAPS, LUT, float("nan")), r"alpha: expected 0 to 1, found -?nan"),
    ("overlay", (IMAGES, with_value(MAPS, (1, 0, 0, 0), np.nan), LUT, 0.5), r"maps: NaN has no colour"),
]


@pytest.mark.parametrize("suffix", ["", "_ref"])
@pytest.mark.parametrize(
    ("function", "arguments", "message"), REFUSED, ids=[f"{f}-{i}" for i, (f, *_) in enumerate(REFUSED)]
)
def test_refused(function: str, arguments: tuple[Any, ...], message: str, suffix: str) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(_native, function + suffix)(*arguments)


def test_features() -> None:
    features = _native.features()
    assert set(features) == {"clones", "compiler", "version"}
    assert features["compiler"] != "unknown"
