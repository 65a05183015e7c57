"""Smoothing by test-time augmentation, as pytorch-grad-cam's `aug_smooth`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pycam.errors import InputError, MethodError
from pycam.explanation import Explanation

from .device import on_host
from .given import Call, seen_mirrored
from .layouts import is_picture, kind_of
from .spec import Spec

FACTORS = (1.0, 0.9, 1.1)
Arrays = dict[str, NDArray[Any]]


def smoothed(
    explain: Callable[[Arrays, Arrays], Explanation], feeds: Arrays, spec: Spec, targets: Arrays
) -> Explanation:
    """The mean over six versions of the images: mirrored or not, times 0.9, 1 and 1.1.

    Args:
        explain: (feeds, targets) → explanation.
        feeds: What the model takes.
        spec: Of the graph.
        targets: {input name: array (N, …)}: the targets, what they are held against, if anything, and what else the
            target is given.  Negative ones are looked up once, for the image as it is.

    Returns:
        The explanation of the images as they are, with the mean of all versions' raw maps, heatmaps and extras that
        are maps of the image's size; maps of mirrored images are mirrored back.

    Raises:
        InputError: the graph takes pixels, which cannot be scaled.
        MethodError: the image is no picture; the method finds by itself what it explains, which need not be the same
            in all versions; or the target is written in the image.
    """
    if not spec.targeted:
        raise MethodError(
            f"aug_smooth averages maps of the same targets, and the method {spec.method!r} finds by itself what it "
            "explains: leave aug_smooth out"
        )
    if any(one.kind == "positions" for one in spec.given.values()):
        raise MethodError(
            "aug_smooth mirrors the image, and what is written in it would say something else: leave it out"
        )
    if not is_picture(spec.layout):
        raise MethodError(
            f"aug_smooth mirrors pictures, and the input {spec.image!r} is {kind_of(spec.layout)}: leave it out"
        )
    image = feeds[spec.image]
    if image.dtype.kind != "f":
        raise InputError(
            f"aug_smooth scales the values of a normalised image, and the input {spec.image!r} takes {image.dtype}: "
            "give the model without its preprocessing"
        )
    axis = 3 if spec.layout == "NCHW" else 2
    first = explain(feeds, targets)
    images, count, height, width = first.heatmaps.shape
    call = Call(images, count, height, width)
    fixed = targets | {spec.targets: first.targets}
    fixed |= {one.input: first.extras["boxes"] for one in spec.given.values() if one.kind == "boxes"}
    if spec.against is not None:
        fixed[spec.against] = first.extras["against"]
    size = first.heatmaps.shape[2:]
    maps = {name: [array] for name, array in first.extras.items() if array.ndim > 3 and array.shape[-2:] == size}
    raws, heatmaps = [_raws(first)], [first.heatmaps]
    for mirrored, factor in list(product((False, True), FACTORS))[1:]:
        view = np.flip(image, axis) if mirrored else image
        view = (view * image.dtype.type(factor)).copy()  # in C order; CuPy's arrays too
        found = explain({**feeds, spec.image: view}, seen_mirrored(fixed, spec.given, call) if mirrored else fixed)
        back = slice(None, None, -1 if mirrored else 1)
        raws.append([raw[..., back] for raw in _raws(found)])
        heatmaps.append(found.heatmaps[..., back])
        for name, views in maps.items():
            views.append(found.extras[name][..., back])
    mean = [_mean(layer) for layer in zip(*raws, strict=True)]
    return replace(
        first,
        heatmaps=_mean(heatmaps),
        raw=mean[0] if len(mean) == 1 else tuple(mean),
        flat=on_host(np.stack([m.max(axis=(2, 3)) <= 0 for m in heatmaps]).all(axis=0)),
        extras=first.extras | {name: _mean(views) for name, views in maps.items()},
    )


def _mean(maps: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    return cast("NDArray[np.float32]", np.stack(maps).mean(axis=0, dtype=np.float64).astype(np.float32))


def _raws(found: Explanation) -> list[NDArray[np.float32]]:
    return list(found.raw) if isinstance(found.raw, tuple) else [found.raw]
