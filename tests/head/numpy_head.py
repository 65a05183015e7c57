"""What the tests of native heads share: the formulas of `csrc/include/pycam.h` in numpy and float64, independent of the
heads; arrays of every kind, type and layout; the settings of hypothesis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

Array = NDArray[Any]
TOLERANCE = 1e-5
WEIGHTINGS = ("given", "mean", "positive", "rectified", "plusplus")

settings.register_profile(
    "head", deadline=None, max_examples=150, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("head")


# ---- the formulas ----------------------------------------------------------------------------------------------------


def stretch(x: Array) -> Array:
    x = x - x.min(axis=(-2, -1), keepdims=True)
    return x / (1e-7 + x.max(axis=(-2, -1), keepdims=True))


def interpolation(n: int, o: int) -> Array:
    """The (o,n) matrix of bilinear sampling with half-pixel centres and clamped edges."""
    at = np.clip((np.arange(o) + 0.5) * n / o - 0.5, 0, n - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(n)[None, :]))  # a tent around each source pixel


def finish(raws: Sequence[Array], height: int, width: int) -> tuple[Array, Array]:
    """Heatmaps (N,K,height,width) and flat (N,K)."""
    positive = [np.maximum(raw.astype(np.float64), 0) for raw in raws]
    layers = [
        np.maximum(interpolation(p.shape[2], height) @ stretch(p) @ interpolation(p.shape[3], width).T, 0)
        for p in positive
    ]
    flat = np.all([p.max(axis=(2, 3)) == 0 for p in positive], axis=0)
    return stretch(np.mean(layers, axis=0)), flat


def weigh(activations: Array, weights: Array, weighting: str) -> tuple[Array, Array]:
    """Raw maps (N,K,h,w), and the sum of absolute terms that their tolerance is relative to."""
    a = activations.astype(np.float64)[:, None]
    g = weights.astype(np.float64)
    g = g if g.ndim == 5 else g[..., None, None]
    where = (-2, -1)
    if weighting == "mean":
        terms, sizes = g.mean(where, keepdims=True) * a, np.abs(g).mean(where, keepdims=True) * np.abs(a)
    elif weighting == "plusplus":
        g = np.broadcast_to(g, np.broadcast_shapes(g.shape, a.shape))
        below = 2 * g**2 + a.sum(where, keepdims=True) * g**3 + 1e-6
        terms = np.where(g == 0, 0, np.maximum(g, 0) * g**2 / below).sum(where, keepdims=True) * a
        sizes = np.abs(terms)
    else:
        terms = {"given": g * a, "positive": np.maximum(g, 0) * a, "rectified": np.maximum(g * a, 0)}[weighting]
        sizes = np.abs(g * a)
    return terms.sum(2), sizes.sum(2)


def levels(maps: Array) -> Array:
    return np.floor(np.clip(maps.astype(np.float64), 0, 1) * 255 + 0.5).astype(int)


def overlay(images: Array, maps: Array, lut: Array, alpha: float) -> Array:
    """The blend in real numbers: what the one in integers is half a level and 0.002 from, at most."""
    return (1 - alpha) * images[:, None].astype(np.float64) + alpha * lut[levels(maps)].astype(np.float64)


# ---- what the tests are run on ---------------------------------------------------------------------------------------

seeds = st.integers(0, 2**32 - 1)
sides = st.one_of(st.integers(1, 9), st.sampled_from([14, 16, 17, 31, 56, 65]))

TYPES: dict[str, Any] = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
types = st.sampled_from(list(TYPES))


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
    "around the eps": lambda rng, shape: noise(rng, shape) * 1e-7,  # denormal in float16
    "below the eps": lambda rng, shape: noise(rng, shape) * 1e-12,
    "denormal": lambda rng, shape: noise(rng, shape) * 1e-41,
    "huge": lambda rng, shape: noise(rng, shape) * 3e37,  # in float16 the largest there is
    "minus infinity": lambda rng, shape: np.where(rng.random(shape) > 0.5, noise(rng, shape), -np.inf),
}
kinds = st.sampled_from(list(KINDS))


def make(kind: str, seed: int, shape: tuple[int, ...], type_: str = "float32") -> Array:
    values = KINDS[kind](np.random.default_rng(seed), shape)
    if type_ == "float16":
        values = np.where(np.isinf(values), values, np.clip(values, -6e4, 6e4))
    return values.astype(TYPES[type_])


def _behind(array: Array, factor: int, start: int) -> Array:
    """The same values with every axis cut out of one that is `factor` times as long, and `start` longer."""
    large = np.full([start + factor * size for size in array.shape], 77, array.dtype)
    view = large[tuple(slice(start, start + factor * size, factor) for size in array.shape)]
    view[...] = array
    return view


def _as(order: Callable[[int], Sequence[int]]) -> Callable[[Array], Array]:
    """The same values, with memory in the order of these axes."""

    def view(array: Array) -> Array:
        axes = order(array.ndim)
        return np.ascontiguousarray(array.transpose(axes)).transpose(np.argsort(axes))

    return view


def _tokens(array: Array) -> Array:
    """(…, C, h, w) as a view of tokens (…, 2 + h·w, C), of which the first two are no positions."""
    *lead, c, h, w = array.shape
    tokens = np.full((*lead, 2 + h * w, c), 77, array.dtype)
    grid = tokens[..., 2:, :].reshape(*lead, h, w, c)
    view = np.moveaxis(grid, -1, -3)
    view[...] = array
    assert not array.size or np.shares_memory(view, tokens)
    return view


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "dense": np.ascontiguousarray,
    "channels last": _as(lambda rank: [*range(rank - 3), rank - 2, rank - 1, rank - 3]),
    "columns first": _as(lambda rank: [*range(rank - 2), rank - 1, rank - 2]),
    "backwards": _as(lambda rank: [*reversed(range(rank))]),
    "positions first": _as(lambda rank: [rank - 2, rank - 1, *range(rank - 2)]),
    "tokens": _tokens,
    "padded": lambda array: _behind(array, 1, 3),
    "every other": lambda array: _behind(array, 2, 1),
    "every third": lambda array: _behind(array, 3, 0),
    "reversed": lambda array: np.ascontiguousarray(array[(slice(None, None, -1),) * array.ndim])[
        (slice(None, None, -1),) * array.ndim
    ],
    "mirrored": lambda array: np.ascontiguousarray(array[..., ::-1])[..., ::-1],
}
layouts = st.sampled_from(list(LAYOUTS))
