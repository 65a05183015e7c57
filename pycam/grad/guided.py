"""The rule sets: what replaces the gradient of ReLU-like activations (`rectifiers.py`) when a model is compiled.

One function each, of the gradient `dy` for what comes out of an activation `f`.  All other ops keep their rules.
"""

from __future__ import annotations

import onnx_ir as ir

from pycam.graph.builder import Builder

from .call import Call
from .elementwise import masked
from .registry import Rectifier, rule_set


@rule_set("guided")
def guided(g: Builder, n: Call, dy: ir.Value, f: Rectifier) -> ir.Value:
    """`[x > 0]·relu(dy)·f'(x)`: Guided Backprop, Springenberg et al., arXiv 1412.6806."""
    dy = g.Relu(dy)
    return masked(g, dy if f.slope is None else f.slope(g, n, dy), f.positive(g, n))


@rule_set("deconvnet")
def deconvnet(g: Builder, n: Call, dy: ir.Value, f: Rectifier) -> ir.Value:
    """`relu(dy)`, whatever went in: Zeiler & Fergus, arXiv 1311.2901."""
    return g.Relu(dy)
