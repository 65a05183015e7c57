"""`Preprocess`: what a model expects of its input picture, as data that travels inside the model.

A model carries it as JSON in its ONNX metadata, under `pycam.runtime.metadata.PREPROCESS`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pycam.errors import InputError, nearest

__all__ = ["Preprocess"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "layout": ("NCHW", "NHWC"),
    "channels": ("RGB", "BGR", "L"),
    "resample": ("bilinear", "bicubic"),
}

# What to assume of an unknown model, by its number of channels: colour nets are mostly trained on normalised ImageNet
# crops (the statistics are torchvision's), grey ones (digits, faces) on whole pictures scaled to [0, 1].
_DEFAULTS: dict[int, dict[str, Any]] = {
    3: {"channels": "RGB", "mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375), "crop": 0.875},
    1: {"channels": "L", "mean": (0.0,), "std": (255.0,), "crop": 1.0},
}


@dataclass(frozen=True)
class Preprocess:
    """How a picture becomes a model's input; immutable, checked when made (`InputError`).

    `mean` and `std` apply to values in 0–255, `(x − mean) / std`, in the order of `channels` as the model sees them.
    `crop` is the share of the shorter side that a centre crop keeps; 1.0 keeps the largest box of the model's aspect.
    """

    size: tuple[int, int]
    """Height and width of the model's input."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    channels: Literal["RGB", "BGR", "L"] = "RGB"
    crop: float = 1.0
    resample: Literal["bilinear", "bicubic"] = "bilinear"

    def __post_init__(self) -> None:
        for field, choices in _CHOICES.items():
            value = getattr(self, field)
            if value not in choices:
                raise InputError(f"preprocess: {field} must be one of {', '.join(choices)}, got {value!r}")
        count = len(self.channels)
        # JSON has lists only: frozen and hashable needs tuples
        object.__setattr__(self, "size", _numbers("size", self.size, 2, int))
        object.__setattr__(self, "mean", _numbers("mean", self.mean, count, float))
        object.__setattr__(self, "std", _numbers("std", self.std, count, float))
        object.__setattr__(self, "crop", _numbers("crop", (self.crop,), 1, float)[0])
        if min(self.size) < 1:
            raise InputError(f"preprocess: size must be positive, got {self.size}")
        if min(self.std) <= 0:
            raise InputError(f"preprocess: std must be positive, got {self.std}")
        if not 0 < self.crop <= 1:
            raise InputError(f"preprocess: crop must be in (0, 1], got {self.crop}")

    def to_json(self) -> str:
        """One line of JSON that `from_json` reads back to an equal object."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Preprocess:
        """Parse `to_json`'s form.  Raises `InputError`: not JSON, not an object, a missing, unknown or bad field."""
        try:
            fields = json.loads(text)
        except ValueError as error:
            raise InputError(f"preprocess: not JSON ({error})") from error
        if not isinstance(fields, dict):
            raise InputError(f"preprocess: expected a JSON object, got {type(fields).__name__}")
        known = {field.name: field.default is dataclasses.MISSING for field in dataclasses.fields(cls)}
        for name in fields.keys() - known.keys():
            raise InputError(f"preprocess: unknown field {name!r}; nearest: {nearest(name, known)}")
        for name in sorted(name for name, needed in known.items() if needed and name not in fields):
            raise InputError(f"preprocess: the field {name!r} is missing")
        return cls(**fields)

    @classmethod
    def for_input(cls, shape: Sequence[int | str | None], default_size: int = 224) -> Preprocess:
        """A guess from the shape of a model's ONNX input, for a model that carries no preprocessing.

        Rank 4; NCHW if dimension 1 is 1 or 3, NHWC if the last is; with both symbolic, NCHW as ONNX has it.  A symbolic
        height or width becomes `default_size`.  Three channels get ImageNet's mean and std and a crop of 0.875, one
        channel 0–1.  Raises `InputError` where the shape is not a picture's.
        """
        if len(shape) == 4:
            for layout, channel, rows in (("NCHW", 1, 2), ("NHWC", 3, 1)):
                if shape[channel] in _DEFAULTS:
                    return cls._guess(shape, layout, shape[channel], rows, default_size)
            if not isinstance(shape[1], int) and not isinstance(shape[3], int):
                return cls._guess(shape, "NCHW", 3, 2, default_size)
        raise InputError(
            f"an input of shape {tuple(shape)} is not a batch of pictures with 1 or 3 channels: "
            "prepare the array yourself, or give a Preprocess"
        )

    @classmethod
    def _guess(
        cls, shape: Sequence[int | str | None], layout: Any, channels: Any, rows: int, default_size: int
    ) -> Preprocess:
        height, width = (
            side if isinstance(side, int) and side > 0 else default_size for side in shape[rows : rows + 2]
        )
        return cls(size=(height, width), layout=layout, **_DEFAULTS[channels])


def _numbers(field: str, values: Any, count: int, kind: type[int] | type[float]) -> tuple[Any, ...]:
    """`values` as a tuple of `count` finite ints or floats."""
    if not isinstance(values, (tuple, list)) or len(values) != count:
        raise InputError(f"preprocess: {field} needs {count} numbers, got {values!r}")
    for value in values:
        fits = isinstance(value, (int, kind)) and not isinstance(value, bool) and math.isfinite(value)
        if not fits:
            raise InputError(f"preprocess: {field} must hold finite {kind.__name__}s, got {value!r}")
    return tuple(kind(value) for value in values)
