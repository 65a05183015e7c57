"""Methods: how activations and gradients become a raw map.  `registry.METHODS` is the table."""

from importlib import import_module

from .registry import METHODS, Method, get, methods

for _family in ("gradient",):
    import_module(f".{_family}", __name__)

__all__ = ["METHODS", "Method", "get", "methods"]
