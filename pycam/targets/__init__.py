"""What is explained: a target makes a score out of the model's outputs.

    >>> explainer = pycam.Explainer("segmentation.onnx", target=pycam.targets.Segmentation())
    >>> explainer(x, targets=15, box=(30, 40, 120, 200))

A kind of target is a small frozen value in one file; its fields are its options.  `pycam targets` lists them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pycam.errors import TargetError, nearest

from .base import Target

if TYPE_CHECKING:
    from .classes import Binary, Class, LogOdds, OneVsRest, Probability
    from .custom import Custom, Weighted
    from .detection import Detection
    from .regression import Expectation, Regression
    from .segmentation import Segmentation
    from .sequence import Sequence
    from .similarity import Similarity

_HOME = {
    "Class": "classes",
    "Probability": "classes",
    "LogOdds": "classes",
    "OneVsRest": "classes",
    "Binary": "classes",
    "Regression": "regression",
    "Expectation": "regression",
    "Segmentation": "segmentation",
    "Similarity": "similarity",
    "Sequence": "sequence",
    "Detection": "detection",
    "Weighted": "custom",
    "Custom": "custom",
}

__all__ = [
    "Binary",
    "Class",
    "Custom",
    "Detection",
    "Expectation",
    "LogOdds",
    "OneVsRest",
    "Probability",
    "Regression",
    "Segmentation",
    "Sequence",
    "Similarity",
    "Target",
    "Weighted",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pycam.targets' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def kinds() -> dict[str, type[Target]]:
    """Every kind of target by its name."""
    found: list[type[Target]] = [__getattr__(name) for name in _HOME]
    return {one.kind: one for one in found}


def get(kind: str) -> type[Target]:
    """The kind of target called `kind`.

    Raises:
        TargetError: there is none.
    """
    known = kinds()
    if kind not in known:
        raise TargetError(f"no kind of target is called {kind!r}; there are {nearest(kind, known)}")
    return known[kind]
