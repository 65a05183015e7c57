"""pycam._native: bad input, and a message that says which argument, what was expected and what was found."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from pycam import _native

Array = NDArray[Any]

A = np.ones((2, 3, 4, 5), np.float32)
W = np.ones((2, 1, 3), np.float32)
G = np.ones((2, 2, 3, 4, 5), np.float32)
R = np.ones((2, 1, 4, 5), np.float32)
SIZE = (8, 9)
IMAGES, MAPS = np.zeros((2, 4, 5, 3), np.uint8), np.zeros((2, 1, 4, 5), np.float32)
LUT = np.zeros((256, 3), np.uint8)
UNALIGNED = np.zeros(A.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(A.shape)
RECORDS = np.zeros(A.shape, np.dtype([("flag", "u1"), ("value", "f4")]))["value"]
NAMED = np.zeros(A.shape, np.dtype([("bfloat16", "u2")]))
PICTURES = {"images": IMAGES, "lut": LUT}


def with_value(array: Array, index: tuple[int, ...], value: float) -> Array:
    array = array.copy()
    array[index] = value
    return array


def empty(axis: int, array: Array = A) -> Array:
    return array[(slice(None),) * axis + (slice(0),)]


REFUSED: list[tuple[str, tuple[Any, ...], dict[str, Any], str]] = [
    # function, arguments, named arguments, message
    ("weigh", ([1, 2], W), {}, r"activations: expected a float32, .* array \(N, C, h, w\), found list$"),
    ("weigh", (A.astype(np.float64), W), {}, r"activations: .* found float64 \(2, 3, 4, 5\)$"),
    ("weigh", (A.astype(">f4"), W), {}, r"activations: .* found >f4 \(2, 3, 4, 5\)$"),
    ("weigh", (A.astype(">f2"), W), {}, r"activations: .* found >f2 \(2, 3, 4, 5\)$"),
    ("weigh", (A.astype(np.uint16), W), {}, r"activations: .* found uint16 \(2, 3, 4, 5\)$"),
    ("weigh", (NAMED, W), {}, r"activations: .* found \[\('bfloat16', '<u2'\)\] \(2, 3, 4, 5\)$"),
    ("weigh", (A.astype(ml_dtypes.float8_e5m2), W), {}, r"activations: .* found float8_e5m2 \(2, 3, 4, 5\)$"),
    ("weigh", (UNALIGNED, W), {}, r"activations: .* found float32 \(2, 3, 4, 5\), not aligned$"),
    ("weigh", (RECORDS, W), {}, r"activations: expected strides .* multiples of 4 bytes, found \(300, 100, 25, 5\)$"),
    ("weigh", (A[0], W), {}, r"activations: .* found float32 \(3, 4, 5\)$"),
    ("weigh", (empty(1), W), {}, r"activations: .* with C at least 1, found float32 \(2, 0, 4, 5\)$"),
    ("weigh", (empty(2), W), {}, r"activations: .* with h at least 1, found"),
    ("weigh", (empty(3), W), {}, r"activations: .* with w at least 1, found"),
    ("weigh", (A, None), {}, r"weights: expected .* \(N, K, C\) or \(N, K, C, h, w\), found NoneType$"),
    ("weigh", (A, A), {}, r"weights: expected .* \(N, K, C\) or \(N, K, C, h, w\), found float32 \(2, 3, 4, 5\)$"),
    ("weigh", (A, W.astype(int)), {}, r"weights: expected .* \(N, K, C\), found int64 \(2, 1, 3\)$"),
    ("weigh", (A, W[..., :2]), {}, r"weights: expected shape \(2, 1, 3\) for .*\(2, 3, 4, 5\), found \(2, 1, 2\)$"),
    ("weigh", (A, W[:1]), {}, r"weights: expected shape \(2, 1, 3\) for .*\(2, 3, 4, 5\), found \(1, 1, 3\)$"),
    ("weigh", (A, G[:, :, :, :2]), {}, r"weights: expected shape \(2, 2, 3, 4, 5\) .* found \(2, 2, 3, 2, 5\)$"),
    ("weigh", (A, W, "means"), {}, r"weighting: expected one of \(given, mean, .*plusplus\), found 'means'$"),
    ("weigh", (A, W, 1), {}, r"weighting: expected one of \(given, .*\), found int$"),
    ("weigh", (A, W), {"threads": -1}, r"threads: expected 0 \(one per core\) to 1024, found -1$"),
    ("weigh", (A, W), {"threads": 10**6}, r"threads: .* found 1000000$"),
    ("weigh", (A, W), {"threads": 1.5}, r"threads: .* found float$"),
    ("weigh", (A, W), {"threads": None}, r"threads: .* found NoneType$"),
    (
        "finish",
        (R, SIZE),
        {},
        r"raws: expected a list of at least one array \(N, K, h, w\), found float32 \(2, 1, 4, 5\)$",
    ),
    ("finish", ([], SIZE), {}, r"raws: .* found an empty one$"),
    ("finish", ([R, R.astype(np.float64)], SIZE), {}, r"raws\[1\]: .* found float64 \(2, 1, 4, 5\)$"),
    ("finish", ([R[0]], SIZE), {}, r"raws\[0\]: .* array \(N, K, h, w\), found float32 \(1, 4, 5\)$"),
    (
        "finish",
        ([R, R[:1]], SIZE),
        {},
        r"raws\[1\]: .*\(2, 1, 4, 5\) with the N and K of raws\[0\], found \(1, 1, 4, 5\)$",
    ),
    ("finish", ([R[:, :, :0]], SIZE), {}, r"raws\[0\]: .* with h at least 1"),
    ("finish", ([R],), {}, r"size: .* where there are no images whose size it could be, found NoneType$"),
    ("finish", ([R], 8), {}, r"size: expected \(height, width\), .* found int$"),
    ("finish", ([R], (0, 8)), {}, r"size: expected \(height, width\), each 1 to 16777216, found \(0, 8\)$"),
    ("finish", ([R], (8, -1)), {}, r"size: .* found \(8, -1\)$"),
    ("finish", ([R], (8, 2**25)), {}, r"size: .* found \(8, 33554432\)$"),
    ("finish", ([R], (8, 8.5)), {}, r"size: .* found \(8, 8.5\)$"),
    ("finish", ([R], (8, 8, 3)), {}, r"size: .* found \(8, 8, 3\)$"),
    ("finish", ([R], SIZE, "flat"), {}, r"outputs: expected a tuple or list of names of \(heatmaps, .*\), found str$"),
    ("finish", ([R], SIZE, ("heatmap",)), {}, r"outputs: .* found heatmap$"),
    ("finish", ([R], SIZE, ("raw",)), {}, r"outputs: .* \(heatmaps, levels, pictures, flat\), found raw$"),
    ("finish", ([R], SIZE, (1,)), {}, r"outputs: .* found int$"),
    ("finish", ([R], SIZE, ("pictures",)), {}, r"images: .* for the pictures in outputs, found NoneType$"),
    ("finish", ([R], SIZE, ("pictures",)), PICTURES, r"size: expected \(4, 5\), that of the images, found \(8, 9\)$"),
    ("finish", ([R], None, ("pictures",)), {"images": IMAGES}, r"lut: .* uint8 array \(256, 3\), found NoneType$"),
    ("finish", ([R[:1]], None, ("pictures",)), PICTURES, r"images: expected 1 of them, .* found 2$"),
    ("finish", ([R, with_value(R, (1, 0, 2, 3), np.nan)], SIZE), {}, r"raws\[1\]: .* NaN at \[1, 0, 2, 3\]$"),
    ("finish", ([with_value(R, (0, 0, 3, 4), np.inf)], SIZE), {}, r"raws\[0\]: .* \+inf at \[0, 0, 3, 4\]$"),
    ("finish", ([with_value(R, (1, 0, 3, 1), np.inf).astype(np.float16)], (1, 1)), {}, r"\+inf at \[1, 0, 3, 1\]$"),
    ("explain", (A, A, SIZE), {}, r"weights: .* found float32 \(2, 3, 4, 5\)$"),
    ("explain", (A, G[:1], SIZE), {}, r"weights: expected shape \(2, 2, 3, 4, 5\) for .* found \(1, 2, 3, 4, 5\)$"),
    ("explain", (A, G, (8, 0)), {}, r"size: .* found \(8, 0\)$"),
    ("explain", (A, G, SIZE, "average"), {}, r"weighting: .* found 'average'$"),
    ("explain", (A, G, SIZE, "mean", ("maps",)), {}, r"outputs: .*flat, raw\), found maps$"),
    ("explain", (with_value(A, (1, 2, 3, 4), np.nan), G, SIZE), {}, r"weighted sum, which is NaN at \[1, 0, 3, 4\]$"),
    ("explain", (A * np.float32(3e38), G, SIZE), {}, r"weighted sum, which is \+inf at \[0, 0, 0, 0\]$"),
    ("explain", (A, with_value(G, (0, 1, 0, 0, 0), np.inf), SIZE), {}, r"which is \+inf at \[0, 1, 0, 0\]$"),
    ("overlay", (IMAGES.astype(np.float32), MAPS, LUT), {}, r"images: .* uint8 .* found float32"),
    ("overlay", (None, MAPS, LUT), {}, r"images: .* found None$"),
    ("overlay", (IMAGES[0], MAPS, LUT), {}, r"images: .* \(N, H, W, 3 or 4\), found uint8 \(4, 5, 3\)$"),
    ("overlay", (IMAGES[..., :1], MAPS, LUT), {}, r"images: .* \(red, green, blue last\), found uint8 \(2, 4, 5, 1\)$"),
    ("overlay", (IMAGES[..., ::-1], MAPS, LUT), {}, r"images: .* last axis has a stride of 1, found .*, -1\)$"),
    ("overlay", (IMAGES, MAPS[:, 0], LUT), {}, r"maps: .* found float32 \(2, 4, 5\)$"),
    ("overlay", (IMAGES, MAPS.astype(np.float16), LUT), {}, r"maps: .* float32 .* found float16"),
    ("overlay", (IMAGES, MAPS[..., ::-1], LUT), {}, r"maps: .* found float32 \(2, 1, 4, 5\), not C-contiguous$"),
    ("overlay", (IMAGES, MAPS[:1], LUT), {}, r"images: expected 1 of them, one for the maps of each, found 2$"),
    (
        "overlay",
        (IMAGES[:, :3], MAPS, LUT),
        {},
        r"maps: expected shape \(2, 1, 3, 5\) at the size of the images, found",
    ),
    (
        "overlay",
        (IMAGES, MAPS, LUT[:255]),
        {},
        r"lut: expected shape \(256, 3\) \(a colour per level\), found \(255, 3\)$",
    ),
    ("overlay", (IMAGES, MAPS, LUT[:, ::-1]), {}, r"lut: .* not C-contiguous$"),
    ("overlay", (IMAGES, MAPS, LUT.astype(int)), {}, r"lut: .* found int64 \(256, 3\)$"),
    ("overlay", (IMAGES, MAPS, LUT, 1.5), {}, r"alpha: expected 0 to 1, found 1.5"),
    ("overlay", (IMAGES, MAPS, LUT, float("nan")), {}, r"alpha: expected 0 to 1, found -?nan$"),
    ("overlay", (IMAGES, MAPS, LUT, "half"), {}, r"alpha: expected 0 to 1, found str$"),
    (
        "overlay",
        (IMAGES, with_value(MAPS, (1, 0, 2, 4), np.nan), LUT),
        {},
        r"maps: NaN at \[1, 0, 2, 4\] has no colour$",
    ),
    ("levels", (MAPS[0],), {}, r"maps: .* found float32 \(1, 4, 5\)$"),
    ("levels", (with_value(MAPS, (1, 0, 3, 4), np.nan),), {}, r"maps: NaN at \[1, 0, 3, 4\] has no colour$"),
]


@pytest.mark.parametrize("suffix", ["", "_ref"])
@pytest.mark.parametrize(
    ("function", "arguments", "named", "message"), REFUSED, ids=[f"{f}-{i}" for i, (f, *_) in enumerate(REFUSED)]
)
def test_refused(function: str, arguments: tuple[Any, ...], named: dict[str, Any], message: str, suffix: str) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(_native, function + suffix)(*arguments, **named)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_bad_map_among_many_is_found_by_any_number_of_threads(threads: int) -> None:
    raw = with_value(np.ones((7, 3, 5, 5), np.float32), (6, 1, 4, 0), np.nan)
    with pytest.raises(ValueError, match=r"NaN at \[6, 1, 4, 0\]"):
        _native.finish([raw], (20, 20), threads=threads)
    with pytest.raises(ValueError, match=r"NaN at \[6, 1, 4, 0\]"):
        _native.overlay(np.zeros((7, 5, 5, 3), np.uint8), raw, LUT, threads=threads)


def test_more_than_there_can_be_is_a_memory_error() -> None:
    with pytest.raises(MemoryError):
        _native.finish([np.broadcast_to(np.float32(0), (1 << 20, 1 << 20, 1, 1))], (1 << 24, 1 << 24))


def test_finite_wants_dense_floats() -> None:
    assert _native.finite(A)
    assert _native.finite(A[:0])
    assert not any(_native.finite(with_value(A, (1, 2, 3, 4), v)) for v in (np.nan, np.inf, -np.inf))
    for values in (A.astype(np.float16), A[..., ::2], 1.0):
        with pytest.raises(ValueError, match="values: expected a C-contiguous float32 array, found"):
            _native.finite(values)
