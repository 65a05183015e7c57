"""Checks of options that several methods have."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pycam.errors import MethodError

if TYPE_CHECKING:
    import onnx_ir as ir

    from .scene import Scene

SEEDS = 1 << 64


def at_least(name: str, value: float, least: float) -> None:
    """Raises MethodError if `value` is smaller than `least`, or not finite."""
    if not least <= value < math.inf:
        raise MethodError(f"{name}={value}: it must be {least} or more, and finite")


def check_seed(seed: int) -> None:
    """Raises MethodError if random numbers cannot be drawn from `seed`."""
    if not 0 <= seed < SEEDS:
        raise MethodError(f"seed={seed}: it must lie in 0 … 2⁶⁴ − 1")


def maskable(s: Scene) -> ir.Value:
    """The image, parts of which are taken away, as the model takes it; raises MethodError if it holds integers."""
    return floating_image(s, "multiplies the image by masks")


def floating_image(s: Scene, why: str) -> ir.Value:
    """The image as the model takes it.

    Raises:
        MethodError: it holds integers, and the method does `why`.
    """
    if s.x.dtype is None or not s.x.dtype.is_floating_point():
        raise MethodError(
            f"{s.title} {why}, and the input {s.x.name!r} takes {s.x.dtype}: "
            "give a model that takes floats (preprocess= puts the preprocessing into the graph)"
        )
    return s.x
