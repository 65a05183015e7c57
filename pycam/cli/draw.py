"""How pictures are drawn, as options of commands."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pycam.errors import InputError

if TYPE_CHECKING:
    from pycam.explanation import Explanation
    from pycam.pictures import Mark

BOXED = 0.15  # share of a map's maximum above which --boxes draws a box, as in the Grad-CAM paper


def add_picture_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    parser.add_argument("--colormap", default="jet", help="jet, turbo, viridis, inferno, magma or gray (default: jet)")
    parser.add_argument("--alpha", type=float, help="opacity of the maps, 0 to 1 (default: 0.5, of signed ones 0.7)")
    parser.add_argument("--contours", metavar="LEVELS", help="levels at which lines are drawn, as 0.25,0.5,0.75")
    parser.add_argument(
        "--boxes",
        type=float,
        nargs="?",
        const=BOXED,
        metavar="SHARE",
        help=f"box the largest component above this share of each map's maximum ({BOXED} if not given)",
    )
    parser.add_argument("--signed", action="store_true", help="show what speaks for the target in red, against in blue")


def check_picture_arguments(arguments: argparse.Namespace) -> tuple[float, ...]:
    """The levels of contours.

    Raises:
        InputError: one of the options is out of range.
        ImageError: there is no such colour map.
    """
    from pycam.colormap import colormap

    colormap(arguments.colormap)
    if arguments.alpha is not None and not 0 <= arguments.alpha <= 1:
        raise InputError(f"--alpha {arguments.alpha}: give an opacity between 0 and 1")
    if arguments.boxes is not None and not 0 <= arguments.boxes < 1:
        raise InputError(f"--boxes {arguments.boxes}: give a share of the maximum, 0 ≤ share < 1")
    return _levels(arguments.contours)


def overlays(result: Explanation, photo: NDArray[np.uint8], arguments: argparse.Namespace) -> NDArray[np.uint8]:
    """The maps of one photo over it, uint8 (K, H, W, 3)."""
    if arguments.signed:
        tiles = result.signed(photo[None], alpha=0.7 if arguments.alpha is None else arguments.alpha)
    else:
        tiles = result.overlay(photo[None], arguments.colormap, 0.5 if arguments.alpha is None else arguments.alpha)
    return np.asarray(tiles[0], np.uint8)


def colours(result: Explanation, arguments: argparse.Namespace) -> tuple[str, tuple[str, str]]:
    """The colour map, and what its two ends mean."""
    from pycam.pictures.facts import CAPTIONS, SIDES

    return ("RdBu", SIDES) if arguments.signed else (arguments.colormap, CAPTIONS[result.objective])


def asked(given: Mapping[str, Any]) -> list[Mark]:
    """What is drawn on the photo: the region that was asked for."""
    from pycam.pictures import PALETTE, Box, Mask

    x, y = given.get("pixel", (0, 0))
    shown: dict[str, Callable[[], Mark]] = {
        "box": lambda: Box(given["box"], colour=PALETTE[1]),
        "pixel": lambda: Box((x - 2, y - 2, x + 3, y + 3), colour=PALETTE[1]),
        "mask": lambda: Mask(given["mask"] > 0, PALETTE[1]),
    }
    return [draw() for name, draw in shown.items() if name in given]


def marks(result: Explanation, arguments: argparse.Namespace) -> list[list[Mark]]:
    """What is drawn on each panel of the first image: contours, the box of the map, and what a detector found."""
    from pycam.pictures import PALETTE, Box, Contours

    levels = _levels(arguments.contours)
    around = result.boxes(arguments.boxes)[0] if arguments.boxes is not None else None
    found = result.extras.get("boxes")
    drawn: list[list[Mark]] = []
    for k in range(result.targets.shape[1]):
        panel: list[Mark] = [Contours(result.heatmaps[0, k], levels)] if levels else []
        if around is not None and around[k].any():
            panel.append(Box(around[k]))
        if found is not None:
            panel.append(Box(found[0, k], result.label(0, k), PALETTE[0]))
        drawn.append(panel)
    return drawn


def _levels(text: str | None) -> tuple[float, ...]:
    from pycam.pictures.drawing import check_levels

    if text is None:
        return ()
    try:
        levels = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--contours {text!r}: write levels with commas between, as 0.25,0.5") from None
    return check_levels(levels)
