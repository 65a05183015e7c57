"""What the CUDA kernels are asked to do: the structs of `csrc/include/pycam.h` with device pointers, and their packing.

Pointers are plain integers, 0 where there is none.  Nothing here needs a GPU or dereferences anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Type(NamedTuple):
    """An element type: its code in `pycam_type`, and its size."""

    code: int
    bytes: int


TYPES = {"f32": Type(0, 4), "f16": Type(1, 2), "bf16": Type(2, 2)}
"""Element types by name."""

WEIGHTINGS = {"given": 0, "mean": 1, "positive": 2, "rectified": 3, "plusplus": 4}
"""`pycam_weighting` without the prefix, in lower case."""

MAX_LAYERS = 32
"""How many layers one launch can average."""


@dataclass(frozen=True)
class Tensor:
    """Numbers that are read (`pycam_tensor`): element (n,k,c,y,x) is n·image + k·map + c·channel + y·row + x·column
    elements behind the pointer.

    Args:
        pointer: address on the device, aligned to the type.
        type: "f32", "f16" or "bf16".
        image, map, channel, row, column: strides, in elements; 0 repeats, negative is allowed.
    """

    pointer: int
    type: str
    image: int = 0
    map: int = 0
    channel: int = 0
    row: int = 0
    column: int = 0

    @classmethod
    def dense(cls, pointer: int, type: str, shape: Sequence[int]) -> Tensor:
        """A contiguous array: `(N,C)`, `(N,K,C)` weights; `(N,C,h,w)`, `(N,K,C,h,w)` activations or gradients."""
        *lead, channels, height, width = shape if len(shape) >= 4 else (*shape, 1, 1)
        spatial = (width, 1) if len(shape) >= 4 else (0, 0)
        per_map = channels * height * width
        maps = lead[1] if len(lead) == 2 else 1
        return cls(pointer, type, maps * per_map, per_map if len(lead) == 2 else 0, height * width, *spatial)

    @classmethod
    def tokens(cls, pointer: int, type: str, shape: Sequence[int], skip: int, width: int) -> Tensor:
        """Contiguous `(N,T,C)`, of which tokens `skip`, `skip` + 1, … are the positions of rows of `width`."""
        _, count, channels = shape
        start = pointer + skip * channels * TYPES[type].bytes
        return cls(start, type, count * channels, 0, 1, width * channels, channels)

    @classmethod
    def raw_maps(cls, pointer: int, shape: Sequence[int], type: str = "f32") -> Tensor:
        """Contiguous raw maps `(N,K,h,w)`."""
        _, maps, height, width = shape
        return cls(pointer, type, maps * height * width, height * width, 0, width, 1)


@dataclass(frozen=True)
class Weighing:
    """`pycam_weighing`: raw maps `(N,K,h,w)` as weighted sums of activations over channels.

    Args:
        images, maps, channels, height, width: N, K, C, h, w; all at least 1.
        activations: element (n,k,c,y,x).
        weights: weights or gradients; of the activations' type, or f32 where the weighting is not mean or plusplus.
        weighting: a key of `WEIGHTINGS`.
    """

    images: int
    maps: int
    channels: int
    height: int
    width: int
    activations: Tensor
    weights: Tensor
    weighting: str


@dataclass(frozen=True)
class Layer:
    """`pycam_layer`: raw maps of one layer; `raw.channel` is not used."""

    raw: Tensor
    height: int
    width: int


@dataclass(frozen=True)
class Output:
    """`pycam_output`: what is wanted, at one size.  Pointers may be 0: not wanted.

    Args:
        height, width: of heatmaps and pictures.
        heatmaps: float32 `(N,K,height,width)`, dense.
        levels: uint8 `(N,K,height,width)`, dense.
        flags: uint8 `(N,K)`, every one is written: `FLAT` where a map had no positive part, `NOT_FINITE` where a raw
            map held NaN or +inf (which the host must make an error: PYCAM_NOT_FINITE); both may be set.
        pictures: uint8 `(N,K,height,width,3)`; its strides count bytes, a pixel stride of 4 keeps the fourth byte.
        images: uint8 `(N,height,width,3)`, with strides of its own.
        lut: uint8 `(256,3)`, dense.
        alpha: opacity of the colours, 0 to 1.
    """

    height: int
    width: int
    heatmaps: int = 0
    levels: int = 0
    flags: int = 0
    pictures: int = 0
    picture_image: int = 0
    picture_map: int = 0
    picture_row: int = 0
    picture_pixel: int = 3
    images: int = 0
    image_image: int = 0
    image_row: int = 0
    image_pixel: int = 3
    lut: int = 0
    alpha: float = 0.5


FLAT, NOT_FINITE = 1, 2  # bits of Output.flags

_POINTER, _LONG, _INT = np.uint64, np.int64, np.int32

TENSOR = np.dtype(
    [("data", _POINTER), *((axis, _LONG) for axis in ("image", "map", "channel", "row", "column"))], align=True
)
WEIGH = np.dtype(
    [
        ("activations", TENSOR),
        ("weights", TENSOR),
        *((name, _POINTER) for name in ("partial", "ticket", "channel_weights")),
        *((name, _INT) for name in ("maps", "channels", "height", "width", "splits", "tiles", "positions")),
        *((name, _INT) for name in ("channels_first", "weighting", "weights_type", "finishes", "unused")),
    ],
    align=True,
)
SOURCE = np.dtype(
    [
        ("data", _POINTER),
        *((axis, _LONG) for axis in ("image", "map", "split", "row", "column")),
        *((name, _INT) for name in ("type", "height", "width", "splits")),
    ],
    align=True,
)


def _finish_type(layers: int) -> np.dtype[Any]:
    pointers = ("raw", "heatmaps", "levels", "flags", "pictures", "images", "lut", "statistics")
    strides = (
        "picture_image",
        "picture_map",
        "picture_row",
        "picture_pixel",
        "image_image",
        "image_row",
        "image_pixel",
    )
    numbers = ("maps", "height", "width", "tiles", "alpha", "aligned", "layer_count", "unused")
    fields = [*((p, _POINTER) for p in pointers), *((s, _LONG) for s in strides), *((n, _INT) for n in numbers)]
    return np.dtype([*fields, ("layers", SOURCE, (layers,))], align=True)


FINISH_ONE = _finish_type(1)
FINISH_MANY = _finish_type(MAX_LAYERS)
"""`cam::Tensor`, `cam::Weigh`, `cam::Source`, `cam::Finish<1>` and `cam::Finish<MAX_LAYERS>` of cam_head.cuh."""

Packed = NDArray[np.void]


def pack(kind: np.dtype[Any], **values: Any) -> Packed:
    """One struct as a 0-d structured array, zero where nothing is given."""
    packed = np.zeros((), kind)
    for name, value in values.items():
        packed[name] = value
    return packed


def pack_tensor(tensor: Tensor) -> tuple[int, ...]:
    """The fields of `TENSOR`."""
    return (tensor.pointer, tensor.image, tensor.map, tensor.channel, tensor.row, tensor.column)


def pack_source(layer: Layer, split: int = 0, splits: int = 1) -> tuple[int, ...]:
    """The fields of `SOURCE`."""
    raw = layer.raw
    place = (raw.pointer, raw.image, raw.map, split, raw.row, raw.column)
    return (*place, TYPES[raw.type].code, layer.height, layer.width, splits)


def scaled(alpha: float) -> int:
    """floor(65536 alpha + 0.5): the opacity in integers."""
    return int(np.floor(65536 * alpha + 0.5))


@dataclass(frozen=True)
class Launch:
    """One kernel launch: grid and block have one axis; `arguments` are passed by value, as structs."""

    kernel: str
    grid: int
    block: int
    shared_bytes: int
    arguments: tuple[Packed, ...]
