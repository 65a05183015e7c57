"""How tokens become a grid: pycam finds that in the graph, so these are accepted by the methods and not used.

They do what their names say when called.
"""

from __future__ import annotations

from typing import Any

from pycam.errors import LayerError


def vit_reshape_transform(tensor: Any, height: int = 14, width: int = 14) -> Any:
    """Tokens (N, 1 + height·width, C), the class token first, as (N, C, height, width)."""
    return _grid(tensor[:, 1:], height, width)


def swinT_reshape_transform(tensor: Any, height: int = 7, width: int = 7) -> Any:
    """Tokens (N, height·width, C) as (N, C, height, width)."""
    return _grid(tensor, height, width)


def fasterrcnn_reshape_transform(x: Any) -> Any:
    """Has no counterpart: it lays the levels of a feature pyramid over each other.

    Raises:
        LayerError: always.
    """
    raise LayerError(
        "a layer of pycam is one value of the model, not the pyramid of a Faster R-CNN's backbone: leave "
        "reshape_transform out and name a level, or several, whose maps are averaged (`pycam layers`)"
    )


def _grid(tokens: Any, height: int, width: int) -> Any:
    rows = tokens.reshape(tokens.shape[0], height, width, tokens.shape[2])
    return rows.swapaxes(2, 3).swapaxes(1, 2)
