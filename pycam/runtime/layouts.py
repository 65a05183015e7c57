"""How the axes of an image input lie, by letters: N the batch, C the channels, all others positions.

Pictures have rows and columns; signals (sound, an electrocardiogram) have one axis of positions; volumes (computed
tomography, video) have three, of which the first, D, is depth, or time.
"""

from __future__ import annotations

LAYOUTS = ("NCHW", "NHWC", "NCL", "NLC", "NL", "NCDHW", "NDHWC")


def position_axes(layout: str) -> tuple[int, ...]:
    """Where the positions lie."""
    return tuple(axis for axis, letter in enumerate(layout) if letter not in "NC")


def is_picture(layout: str) -> bool:
    """Whether there are rows and columns, and nothing else."""
    return len(position_axes(layout)) == 2


KINDS = {1: "a signal", 2: "a picture", 3: "a volume"}
"""What an input of so many axes of positions is called."""


def kind_of(layout: str) -> str:
    """What such an input is called, with its layout: "a signal (NCL)"."""
    return f"{KINDS[len(position_axes(layout))]} ({layout})"
