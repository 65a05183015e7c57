"""The method table.

A method is one small function `weigh(g, a, da) -> w`: `a` the activations (N, C, h, w), `da` their gradients
(K, N, C, h, w), `w` the weights, of the gradients' shape or 1 on axes that they are constant over.  It broadcasts over
the leading axes and so names axes from the end: −3 is channels, −2 and −1 are positions.  Summing over channels, ReLU,
resizing and normalising live elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from pycam.errors import MethodError, nearest

if TYPE_CHECKING:
    import onnx_ir as ir

    from pycam.graph.builder import Builder

Weigh: TypeAlias = "Callable[[Builder, ir.Value, ir.Value], ir.Value]"

CHANNELS, POSITIONS = -3, [-2, -1]


@dataclass(frozen=True)
class Method:
    """A way to turn activations and gradients into a raw map.

    Attributes:
        name: What users call it.
        title: The name in the paper.
        paper: arXiv number, DOI, or "" where there is none.
        plan: "single pass": one graph gives scores and maps together.
        cost: What it costs beside the forward pass.
        weigh: The weighting function.
        per_channel: The weights are one number per channel, (K, N, C, 1, 1).
        rectify: Each channel's term `w·A` goes through a ReLU before the sum.
        linear_only: It needs a tail of global average pooling and linear layers.
    """

    name: str
    title: str
    paper: str
    plan: str
    cost: str
    weigh: Weigh
    per_channel: bool = False
    rectify: bool = False
    linear_only: bool = False


METHODS: dict[str, Method] = {}


def method(
    name: str,
    title: str,
    paper: str,
    *,
    per_channel: bool = False,
    rectify: bool = False,
    linear_only: bool = False,
) -> Callable[[Weigh], Weigh]:
    """Register a weighting function as a single-pass method."""

    def register(weigh: Weigh) -> Weigh:
        if name in METHODS:
            raise ValueError(f"a second method called {name!r}")
        cost = "1 forward" if linear_only else "1 forward + backward of the tail"
        METHODS[name] = Method(name, title, paper, "single pass", cost, weigh, per_channel, rectify, linear_only)
        return weigh

    return register


def get(name: str) -> Method:
    """The method called `name` (case, "-", "_" and blanks do not matter).

    Raises:
        MethodError: there is none.
    """
    for known, found in METHODS.items():
        if _plain(known) == _plain(name):
            return found
    raise MethodError(f"no method {name!r}; there are {nearest(name, METHODS, count=len(METHODS))}")


def methods() -> list[Method]:
    """All methods, in the order of registration."""
    return list(METHODS.values())


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c not in "-_ ")
