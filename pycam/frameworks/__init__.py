"""Export a framework's model to ONNX with the names of its layers kept: `from_torch`, `from_keras`, `from_jax`,
`from_paddle`.

Each runs the framework's own exporter, checks the result against the model, and gives back an `onnx.ModelProto`, or the
path that it was written to.  `pycam.layers` and `layer=` then know the layers by the names that they have in the
framework: `layer4`, `block5_conv3`, `blocks.1.norm`.

    >>> from pycam.frameworks import from_torch
    >>> explainer = pycam.Explainer(from_torch(model, (1, 3, 224, 224), labels=names), layer="layer4")

A framework is imported when its function is called.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .jax import from_jax
    from .keras import from_keras
    from .paddle import from_paddle
    from .torch import from_torch

_HOME = {
    "from_jax": "jax",
    "from_keras": "keras",
    "from_paddle": "paddle",
    "from_torch": "torch",
}

__all__ = ["from_jax", "from_keras", "from_paddle", "from_torch"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pycam.frameworks' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
