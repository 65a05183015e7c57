"""The contract of the heads (csrc/include/pycam.h) in numpy and float64; weighings and outputs to try it on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pycam.head.launch import FLAT, Output, Plan, Tensor, Weighing

Array = NDArray[Any]
TOLERANCE = 1e-5


# ---- an independent reference: the formulas of csrc/include/pycam.h in numpy, float64 --------------------------------


def stretch(x: Array) -> Array:
    x = x - x.min(axis=(-2, -1), keepdims=True)
    return x / (1e-7 + x.max(axis=(-2, -1), keepdims=True))


def interpolation(n: int, o: int) -> Array:
    """The (o,n) matrix of bilinear sampling with half-pixel centres and clamped edges."""
    at = np.clip((np.arange(o) + 0.5) * n / o - 0.5, 0, n - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(n)[None, :]))  # a tent around each source pixel


def finish_numpy(raws: Sequence[Array], height: int, width: int) -> Array:
    maps = [stretch(np.maximum(raw.astype(np.float64), 0)) for raw in raws]
    layers = [interpolation(m.shape[-2], height) @ m @ interpolation(m.shape[-1], width).T for m in maps]
    return stretch(np.mean([np.maximum(layer, 0) for layer in layers], axis=0))


def weigh_numpy(a: Array, g: Array, weighting: str) -> tuple[Array, Array]:
    """Raw maps, and what their tolerance is relative to; a: (N,1 or K,C,h,w), g: (N,K,C,h,w) or (N,K,C,1,1)."""
    a, g = a.astype(np.float64), g.astype(np.float64)
    size = np.abs(g)
    if weighting == "mean":
        g, size = g.mean((-2, -1), keepdims=True), size.mean((-2, -1), keepdims=True)
    elif weighting == "plusplus":
        total = a.sum((-2, -1), keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            alpha = np.maximum(g, 0) * g**2 / (2 * g**2 + total * g**3 + 1e-6)
        g = np.where(g == 0, 0, alpha).sum((-2, -1), keepdims=True)
        size = np.abs(g)
    elif weighting == "positive":
        g = np.maximum(g, 0)
    terms = np.maximum(g * a, 0) if weighting == "rectified" else g * a
    return terms.sum(2), (size * np.abs(a)).sum(2)


def levels_numpy(heatmaps: Array) -> Array:
    return np.floor(np.clip(heatmaps.astype(np.float64), 0, 1) * 255 + 0.5).astype(np.uint8)


def pictures_numpy(images: Array, heatmaps: Array, lut: Array, alpha: float) -> Array:
    image = images[:, None].astype(np.int64)
    a = int(np.floor(65536 * alpha + 0.5))
    return ((65536 * image + a * (lut[levels_numpy(heatmaps)].astype(np.int64) - image) + 32768) >> 16).astype(np.uint8)


# ---- what the tests are run on ---------------------------------------------------------------------------------------


def to_type(values: Array, kind: str) -> tuple[Array, Array]:
    """The bits as they lie in memory, and the float32 numbers that they mean."""
    if kind == "bf16":
        bits = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        return bits, (bits.astype(np.uint32) << 16).view(np.float32)
    bits = values.astype(np.float16 if kind == "f16" else np.float32)
    return bits, bits.astype(np.float32)


LAYOUTS = ("dense", "tokens", "odd")


def place(memory: Any, values: Array, kind: str, layout: str) -> tuple[Tensor, Array]:
    """(N,K,C,h,w) in memory, its axis K left out if its size is 1."""
    n, k, c, h, w = values.shape
    bits, numbers = to_type(values, kind)
    if layout == "dense":
        buffer = memory.take(bits)
        return Tensor.dense(buffer.ctypes.data, kind, bits.shape if k > 1 else bits[:, 0].shape), numbers
    if layout == "tokens":
        assert k == 1
        tokens = np.full((n, 1 + h * w, c), np.nan, np.float32)
        tokens = to_type(tokens, kind)[0]
        tokens[:, 1:] = bits[:, 0].reshape(n, c, h * w).transpose(0, 2, 1)
        buffer = memory.take(tokens)
        return Tensor.tokens(buffer.ctypes.data, kind, tokens.shape, 1, w), numbers
    # Off by one element, rows and columns backwards with gaps: negative strides
    spaced = to_type(np.full((n, k, c, h + 1, 2 * w), np.nan, np.float32), kind)[0]
    spaced[:, :, :, 1:, ::2] = bits[:, :, :, ::-1, ::-1]
    buffer = memory.take(spaced, offset=spaced.itemsize)
    strides = [stride // spaced.itemsize for stride in spaced.strides]
    last = buffer.ctypes.data + (h * strides[3] + 2 * (w - 1)) * spaced.itemsize
    image, per_map, channel, row, _ = strides
    return Tensor(last, kind, image, 0 if k == 1 else per_map, channel, -row, -2), numbers


@dataclass
class Case:
    """A weighing in memory, and its reference."""

    memory: Any
    job: Weighing
    raw: Array
    expected: Array
    size: Array  # what the tolerance is relative to

    def check_raw(self) -> None:
        difference = np.abs(self.raw - self.expected)
        assert np.all(difference <= TOLERANCE * self.size + 1e-38), float((difference / (self.size + 1e-30)).max())


def make_case(
    new_memory: Callable[[], Any],
    weighting: str,
    kind: str,
    shape: tuple[int, int, int, int, int],
    layout: str = "dense",
    by_channel: bool = False,
    weights_kind: str | None = None,
    seed: int = 0,
) -> Case:
    n, k, c, h, w = shape
    rng = np.random.default_rng([seed, *shape])
    memory = new_memory()
    activations, a = place(memory, rng.standard_normal((n, 1, c, h, w)) + 0.3, kind, layout)
    g_values = rng.standard_normal((n, k, c, *((1, 1) if by_channel else (h, w)))) * 0.1 + 0.02
    g_values[rng.random(g_values.shape) < 0.1] = 0
    weights_kind = weights_kind or kind
    if by_channel:
        bits, g = to_type(g_values, weights_kind)
        buffer = memory.take(bits[..., 0, 0])
        weights = Tensor.dense(buffer.ctypes.data, weights_kind, (n, k, c))
    else:
        weights, g = place(memory, g_values, weights_kind, layout if k == 1 or layout != "tokens" else "dense")
    expected, size = weigh_numpy(a, g, weighting)
    raw = memory.empty((n, k, h, w), np.float32)
    return Case(memory, Weighing(n, k, c, h, w, activations, weights, weighting), raw, expected, size)


@dataclass
class Wanted:
    """Outputs in memory."""

    output: Output
    heatmaps: Array
    levels: Array
    flags: Array
    images: Array
    pictures: Array
    lut: Array

    def check(self, raws: Sequence[Array], flat: Array | None = None) -> None:
        """Heatmaps by the reference, the rest by the heatmaps."""
        expected = finish_numpy(raws, self.output.height, self.output.width)
        difference = np.abs(self.heatmaps - expected)
        assert difference.max(initial=0) <= TOLERANCE, float(difference.max())
        positive = np.any([(raw > 0).any((-2, -1)) for raw in raws], axis=0)
        np.testing.assert_array_equal(self.flags, np.where(positive, 0, FLAT))
        self.check_colours(self.heatmaps)

    def check_colours(self, heatmaps: Array) -> None:
        np.testing.assert_array_equal(self.levels, levels_numpy(heatmaps))
        painted = pictures_numpy(self.images[..., :3], heatmaps, self.lut, self.output.alpha)
        np.testing.assert_array_equal(self.pictures[..., :3], painted)
        assert np.all(self.pictures[..., 3:] == 0xFF)


def want(memory: Any, n: int, k: int, height: int, width: int, pixel: int = 3, offset: int = 0) -> Wanted:
    """Everything, `offset` elements from an aligned address."""
    rng = np.random.default_rng([n, k, height, width])
    images = memory.take(rng.integers(0, 256, (n, height, width, pixel), dtype=np.uint8), offset)
    pictures = memory.empty((n, k, height, width, pixel), np.uint8, offset)
    lut = memory.take(rng.integers(0, 256, (256, 3), dtype=np.uint8))
    heatmaps = memory.empty((n, k, height, width), np.float32, 4 * offset)
    levels, flags = memory.empty((n, k, height, width), np.uint8, offset), memory.empty((n, k), np.uint8)
    address: Callable[[Array], int] = lambda array: array.ctypes.data  # noqa: E731
    output = Output(
        height,
        width,
        heatmaps=address(heatmaps),
        levels=address(levels),
        flags=address(flags),
        pictures=address(pictures),
        picture_image=pictures.strides[0],
        picture_map=pictures.strides[1],
        picture_row=pictures.strides[2],
        picture_pixel=pixel,
        images=address(images),
        image_image=images.strides[0],
        image_row=images.strides[1],
        image_pixel=pixel,
        lut=address(lut),
        alpha=0.5 if width % 2 else 0.4,  # one half: levels that lie exactly between two
    )
    return Wanted(output, heatmaps, levels, flags, images, pictures, lut)


def names(plan: Plan) -> list[str]:
    return [launch.kernel for launch in plan.launches(4096)]
