"""Methods: how a raw map comes about.  `registry.METHODS` is the table."""

from importlib import import_module

from .registry import METHODS, Method, check_options, get, methods

_FAMILIES = (
    "gradient",
    "activation",
    "score",
    "ablation",
    "recipro",
    "masks",
    "pixel",
    "path",
    "fullgrad",
    "smooth",
    "finer",
    "refine",
    "sess",
    "concepts",
    "attention",
)
for _family in _FAMILIES:
    import_module(f".{_family}", __name__)

__all__ = ["METHODS", "Method", "check_options", "get", "methods"]
