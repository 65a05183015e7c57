"""What is explained, as options of commands: the kind of target, where to look, and how tokens lie."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pycam.errors import InputError, TargetError

if TYPE_CHECKING:
    from pycam.explainer import Explainer
    from pycam.preprocess import Preprocess
    from pycam.targets import Target


def add_target_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is built into a graph."""
    parser.add_argument(
        "--as",
        dest="kind",
        metavar="KIND[:NAME=VALUE,…]",
        help="kind of target, see `pycam targets` (default: what the outputs look like)",
    )
    parser.add_argument(
        "--tokens",
        type=int,
        nargs="+",
        metavar="N",
        help="grid of a transformer's tokens where the graph does not tell: height width [special before [after]]",
    )
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="of the image, where the model leaves it free"
    )
    add_model_arguments(parser)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare how the model's inputs are read."""
    parser.add_argument(
        "--layout",
        metavar="[INPUT=]LAYOUT",
        help="how the axes of the image input lie, where its shape does not tell: NCHW, NHWC, NCL, NLC, NL, NCDHW, "
        "NDHWC; with an input's name, that one is the image",
    )
    parser.add_argument(
        "--pin",
        action="append",
        default=[],
        metavar="INPUT=VALUE",
        help="an input that is a setting, as a constant of the graph: --pin sr=16000; repeat for several",
    )


def model_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """They as keyword arguments; none for those that were not given.

    Raises:
        InputError: a form that is none.
    """
    found: dict[str, Any] = {}
    if (text := getattr(arguments, "layout", None)) is not None:
        name, equals, layout = text.rpartition("=")
        found["layout"] = {name: layout} if equals else layout
    for text in getattr(arguments, "pin", []):
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise InputError(f"--pin {text!r}: write INPUT=VALUE, as in --pin sr=16000")
        found.setdefault("pins", {})[name] = _load(value) if value.endswith(".npy") else _value(value)
    return found


def target_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """They as keyword arguments of `Explainer` and `export`; none for those that were not given."""
    kind = getattr(arguments, "kind", None)
    found = {name: getattr(arguments, name, None) for name in ("tokens", "size")}
    return {
        **({"target": parse_target(kind)} if kind is not None else {}),
        **{name: tuple(value) for name, value in found.items() if value is not None},
        **model_arguments(arguments),
    }


def parse_target(text: str) -> Target:
    """`detection:threshold=0.4,labels=classes` → the target.

    Raises:
        TargetError: an unknown kind, option or form.
    """
    from pycam import targets

    kind, _, rest = text.partition(":")
    made = targets.get(kind)
    known = {f.name for f in fields(made)}
    options: dict[str, Any] = {}
    for part in _parts(rest):
        name, equals, value = part.partition("=")
        if not equals or name not in known:
            listed = ", ".join(sorted(known)) or "none"
            raise TargetError(f"--as {text}: {part!r} is no option of the target {kind!r}; its options: {listed}")
        options[name] = _value(value)
    try:
        return made(**options)
    except TypeError:
        raise TargetError(
            f"--as {text}: the options do not fit, or one is missing; see `pycam targets {kind}`"
        ) from None


def _parts(text: str) -> list[str]:
    """The text cut at commas, but for those within brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[(") - (character in "])")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts if text else []


def add_region_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what a call gives besides the targets; places are those of the photo, in pixels."""
    parser.add_argument(
        "--mask", metavar="FILE", help="of a segmentation: picture of the photo's size, white = explain"
    )
    parser.add_argument(
        "--box", metavar="L,T,R,B", help="box in the photo, in pixels: of a detection, or the region of a segmentation"
    )
    parser.add_argument("--pixel", metavar="X,Y", help="of a segmentation: one pixel of the photo")
    parser.add_argument("--position", type=int, help="of a sequence: which character or step, from 0")
    parser.add_argument(
        "--reference",
        action="append",
        metavar="FILE",
        help="of a similarity: another photo, or its embedding as a .npy file; repeat for several",
    )
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="further input of the model: numbers as [[1,2,3]], or a .npy file; repeat for several",
    )


def region(
    arguments: argparse.Namespace, explainer: Explainer, photo: NDArray[np.uint8], pre: Preprocess
) -> dict[str, Any]:
    """What the call gives, in pixels of the model's input, where `photo` (H, W, 3) is what was read.

    Raises:
        InputError, TargetError: a file that cannot be read, or a place outside of what the model sees.
    """
    from pycam.image import crop, crop_box, read

    left, top, right, bottom = crop_box(photo.shape[0], photo.shape[1], pre)
    rows, columns = pre.size
    scale = np.array([columns / (right - left), rows / (bottom - top)])
    seen = f"the model sees {left:.0f},{top:.0f} to {right:.0f},{bottom:.0f} of the photo"
    given: dict[str, Any] = {}
    if arguments.box is not None:
        box = (np.array(_numbers("--box", arguments.box, 4)).reshape(2, 2) - (left, top)) * scale
        if (box[1] <= 0).any() or (box[0] >= (columns, rows)).any():
            raise TargetError(f"--box {arguments.box} lies outside of what the model sees: {seen}")
        given["box"] = box.ravel()
    if arguments.pixel is not None:
        at = np.floor((np.array(_numbers("--pixel", arguments.pixel, 2)) + 0.5 - (left, top)) * scale).astype(np.int64)
        if (at < 0).any() or (at >= (columns, rows)).any():
            raise TargetError(f"--pixel {arguments.pixel} lies outside of what the model sees: {seen}")
        given["pixel"] = at
    if arguments.mask is not None:
        mask = read(arguments.mask)
        if mask.shape != photo.shape:
            raise TargetError(
                f"--mask {arguments.mask} is {mask.shape[1]} × {mask.shape[0]} pixels, and the photo is "
                f"{photo.shape[1]} × {photo.shape[0]}"
            )
        given["mask"] = crop(mask, pre).max(axis=-1) / np.float32(255)
    if arguments.position is not None:
        given["position"] = arguments.position
    if arguments.reference is not None:
        others = further_inputs(arguments, explainer)
        found = [_reference(path, explainer, pre, others) for path in arguments.reference]
        several: list[NDArray[Any]] = [np.reshape(one, (-1, one.shape[-1])) for one in found]
        if len({row.shape[1:] for row in several}) > 1:
            raise InputError(f"--reference: embeddings of shapes {', '.join(str(row.shape) for row in several)} differ")
        given["reference"] = np.concatenate(several)
    return given


def inputs(arguments: argparse.Namespace, explainer: Explainer, x: Any) -> Any:
    """The image `x` with the model's further inputs.

    Raises:
        InputError: one that is unknown, or not an array.
    """
    others = further_inputs(arguments, explainer)
    return {explainer.spec.image: x, **others} if others else x


def further_inputs(arguments: argparse.Namespace, explainer: Explainer) -> dict[str, NDArray[Any]]:
    """Every --input by its name.

    Raises:
        InputError: one that is unknown, given twice, or not an array.
    """
    found: dict[str, NDArray[Any]] = {}
    dtypes = {i.name: i.dtype for i in explainer.inputs}
    for text in arguments.input:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--input {text!r}: write NAME=VALUE, as in --input 'question=[[4,8,15]]'")
        if name not in dtypes or name == explainer.spec.image or name in found:
            others = ", ".join(n for n in dtypes if n != explainer.spec.image) or "none"
            raise InputError(f"--input {name}: the model's further inputs are {others}, each given once")
        found[name] = _array(value, text, dtypes[name])
    return found


def _array(value: str, text: str, dtype: np.dtype[Any] | None) -> NDArray[Any]:
    """Numbers, or those of a .npy file, as the input takes them."""
    try:
        array = _load(value) if value.endswith(".npy") else np.asarray(_value(value))
    except ValueError:  # rows of different lengths
        array = np.array("")
    wanted = dtype or array.dtype
    if array.dtype.kind not in "biuf" or (array.dtype.kind == "f" and wanted.kind != "f"):
        raise InputError(f"--input {text!r}: write numbers of dtype {wanted.name}, as in [[4,8,15]], or a .npy file")
    return array.astype(wanted)


def _reference(path: str, explainer: Explainer, pre: Preprocess, others: dict[str, NDArray[Any]]) -> NDArray[Any]:
    """The embedding in a .npy file, or that of a photo."""
    from pycam.api import feed
    from pycam.image import crop, read

    if path.endswith(".npy"):
        return _load(path)
    x = feed(explainer, crop(read(path), pre), pre)
    return explainer.embed({explainer.spec.image: x, **others} if others else x)


def _load(path: str) -> NDArray[Any]:
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the array {path!r}: {error}") from None


def _numbers(flag: str, text: str, count: int) -> Sequence[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != count or not np.isfinite(values).all() or max(map(abs, values)) > 1e9:
        raise InputError(f"{flag} {text!r}: write {count} numbers with commas between, in pixels of the photo")
    return values


def _value(text: str) -> Any:
    """A value as JSON has it, or as it is; lists as tuples, which do not change."""
    try:
        found = json.loads({"True": "true", "False": "false", "None": "null"}.get(text, text))
    except ValueError:
        return text
    return _frozen(found)


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
