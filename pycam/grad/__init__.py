"""Gradients as ONNX nodes: the rule table (one module per op family) and the reverse walk."""

from importlib import import_module

from .registry import ops
from .reverse import differentiate

FAMILIES = (
    "elementwise",
    "quantised",
    "activation",
    "linear",
    "conv",
    "pool",
    "reduce",
    "norm",
    "shape",
    "index",
    "pick",
    "resize",
    "scatter",
    "sample",
    "roi",
    "spectral",
    "count",
    "declared",
    "patterns",
    "rectifiers",
    "guided",
    "control",
    "recurrent",
    "einsum",
    "attention",
    "state",
    "loss",
    "contrib",
    "contrib_attention",
)
for _family in FAMILIES:
    import_module(f".{_family}", __name__)

__all__ = ["FAMILIES", "differentiate", "ops"]
