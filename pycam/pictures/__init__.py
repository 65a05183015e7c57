"""Pictures that a person likes to look at: panels, grids, marks on them, comparisons of methods, reports.

    picture         a photo beside its overlays
    grid            a table of pictures
    draw            boxes, contour lines and masks on a picture: `Box`, `Contours`, `Mask`
    contours        the lines where a map crosses a level
    signed          a signed map in red and blue
    compare         methods × images × classes in one grid
    write_report    a run as one HTML file

Pixels are uint8 RGB everywhere; Pillow is imported when a function is called, not before.
"""

from __future__ import annotations

from .comparison import Comparison, compare
from .diverging import signed, signed_levels
from .drawing import PALETTE, Box, Contours, Mark, Mask, draw
from .isolines import contours
from .panels import grid, picture
from .report import Entry, write_report

__all__ = [
    "PALETTE",
    "Box",
    "Comparison",
    "Contours",
    "Entry",
    "Mark",
    "Mask",
    "compare",
    "contours",
    "draw",
    "grid",
    "picture",
    "signed",
    "signed_levels",
    "write_report",
]
