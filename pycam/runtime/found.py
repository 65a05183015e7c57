"""Whether the explain graph found what the call asked for; else an error that says what it found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pycam.errors import TargetError, ordinal

from .spec import Spec

Arrays: TypeAlias = "Mapping[str, NDArray[Any]]"
Check: TypeAlias = "Callable[[Spec, Arrays, Arrays, Sequence[str]], None]"


def check_found(spec: Spec, arrays: Arrays, extras: Arrays, labels: Sequence[str] = ()) -> None:
    """Check what a run found.

    Args:
        spec: Of the graph.
        arrays: What the graph was told to explain: graph input → array.
        extras: What it found: key of `Spec.extras` → array; `explained`, int64 (N, K), is among them.
        labels: Names of the classes, if they are known.

    Raises:
        TargetError: it is not what was asked for.
    """
    check = CHECKS.get(spec.target)
    if check is not None:
        check(spec, arrays, extras, labels)


def _detection(spec: Spec, arrays: Arrays, extras: Arrays, labels: Sequence[str]) -> None:
    """The detection has a score above the threshold, is of the rank that was asked for, and matches the box."""
    targets, boxes = arrays[spec.targets], arrays[spec.given["box"].input]
    threshold, overlap = spec.target_options["threshold"], spec.target_options["overlap"]
    above = f"above the score {threshold:g}"
    for n, k in np.ndindex(targets.shape):
        target, score, iou = int(targets[n, k]), float(extras["box_scores"][n, k]), float(extras["iou"][n, k])
        box = boxes[n, k] if boxes[n, k].max() >= 0 else None
        where = f" in image {n}" if len(targets) > 1 else ""
        name = _class(int(extras["explained"][n, k]), labels)
        count = int(extras["detections"][n, k])
        if box is not None and target < -1:
            raise TargetError(
                f"box= says which detection is explained, and targets={target} the {ordinal(-target)} best: give a "
                "class with it, or −1 for any"
            )
        if score <= threshold:
            found = f"the best is {score:.3g} for {name}" if score > 0 else "there is none"
            of = f" of {name}" if target >= 0 else ""
            raise TargetError(
                f"no detection{of} {above}{where}: {found}.  Give the target a lower threshold=, or another class; are "
                "the image's preprocessing and the box format right?"
            )
        if box is None and -target > count:
            there = f"there is {count}" if count == 1 else f"there are {count}"
            raise TargetError(f"{target} is the {ordinal(-target)} best detection, and {there} {above}{where}")
        if box is not None and iou <= overlap:
            which = "the nearest" if iou > 0 else "none above the score touches it, the best"
            raise TargetError(
                f"no detection{f' of {name}' if target >= 0 else ''} overlaps the box {_box(box)} by more than IoU "
                f"{overlap:g}{where}: {which} is {name} at {_box(extras['boxes'][n, k])} with IoU {iou:.2g}"
            )


def _sequence(spec: Spec, arrays: Arrays, extras: Arrays, labels: Sequence[str]) -> None:
    """There is such a position, or the token is said."""
    targets, positions = arrays[spec.targets], arrays[spec.given["position"].input]
    for n, k in np.argwhere(extras["steps"] < 0):
        target, position, length = int(targets[n, k]), int(positions[n, k]), int(extras["length"][n, k])
        image = f"image {n} says" if len(targets) > 1 else "the image says"
        if position >= 0:
            there = f"positions 0 to {length - 1}" if length else "nothing"
            raise TargetError(f"position={position}: {image} {there}; −1 is the whole")
        if target < 0:
            raise TargetError(f"{image} nothing: every step is blank, or lies behind the end")
        raise TargetError(f"{image} {_class(target, labels, 'token')} nowhere: give its position= to ask for it there")


def _class(index: int, labels: Sequence[str], noun: str = "class") -> str:
    return f"{noun} {index} ({labels[index]})" if 0 <= index < len(labels) else f"{noun} {index}"


def _box(box: NDArray[Any]) -> str:
    return f"({', '.join(f'{v:.0f}' for v in box)})"


CHECKS: dict[str, Check] = {"detection": _detection, "sequence": _sequence}
"""Kind of target → its check."""
