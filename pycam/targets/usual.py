"""The target of an Explainer that is told none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pycam.runtime.layouts import is_picture

from .base import Target
from .classes import Class
from .detection import Detection
from .segmentation import Segmentation

if TYPE_CHECKING:
    from .outputs import Outputs


def usual(model: Outputs) -> Target:
    """A detection where some outputs of a picture can only be boxes and their scores, unless the user names an output;
    a segmentation where the output has rows and columns, (N, C, h, w) or (N, h, w, C); else classes."""
    from .heads import is_detector

    if not is_picture(model.layout):
        return Class()
    if model.default is None and is_detector(model):
        return Detection()
    shape = model.output().shape
    if shape is None or len(shape) != 4 or list(shape[2:]) == [1, 1] or list(shape[1:3]) == [1, 1]:
        return Class()
    return Segmentation()
