"""pycam says why a vision model decided, at close to the price of the decision.

ONNX in, ONNX out: a model becomes an *explain graph* that returns its scores together with class activation maps.

    >>> import pycam
    >>> explainer = pycam.Explainer("resnet50.onnx", method="gradcam", layer="auto")
    >>> result = explainer(x, targets=281)
    >>> result.heatmaps.shape
    (1, 1, 224, 224)

Names are imported when they are first used, so that `import pycam` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import compat as compat
    from . import frameworks as frameworks
    from . import pictures as pictures
    from . import targets as targets
    from .api import explain, export, layers
    from .errors import PycamError
    from .explainer import Explainer
    from .explanation import Explanation
    from .gradient import vjp
    from .method import methods
    from .preprocess import Preprocess

_HOME = {
    "Explainer": "explainer",
    "Explanation": "explanation",
    "Preprocess": "preprocess",
    "PycamError": "errors",
    "explain": "api",
    "export": "api",
    "layers": "api",
    "methods": "method",
    "vjp": "gradient",
}

_PACKAGES = ("compat", "frameworks", "pictures", "targets")
"""Of their own names; `pycam.targets` is there without an import of its own."""

__all__ = ["Explainer", "Explanation", "Preprocess", "PycamError", "explain", "export", "layers", "methods", "vjp"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("pycam-onnx")
        except PackageNotFoundError:
            return "0+source"  # run from the source tree
    if name in _PACKAGES:
        return import_module(f".{name}", __name__)
    if name not in _HOME:
        raise AttributeError(f"module 'pycam' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PACKAGES})
