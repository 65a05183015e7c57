"""The method table.

A method is one small function of a `Scene` that gives a raw map (N, K, h, w) per layer; its keyword arguments with
their defaults are the method's options.  Most are smaller still: `@weighting` makes a method of a function
`weigh(g, a, da) -> w`: `a` the activations (N, C, h, w), `da` their gradients (K, N, C, h, w), `w` the weights, of the
gradients' shape or 1 on axes that they are constant over.  It broadcasts over the leading axes and so names axes from
the end: −3 is channels, −2 and −1 are positions.  Summing over channels, ReLU, resizing and normalising live elsewhere.
"""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from pycam.errors import MethodError, nearest

if TYPE_CHECKING:
    import onnx_ir as ir

    from .scene import Scene

Weigh: TypeAlias = "Callable[..., ir.Value]"
Draw: TypeAlias = "Callable[..., ir.Value | Sequence[ir.Value]]"
Plan: TypeAlias = Literal["single pass", "split", "perturb"]
Layers: TypeAlias = Literal["many", "one", "none"]

CHANNELS, POSITIONS = -3, [-2, -1]


@dataclass(frozen=True)
class Method:
    """A way to make raw maps.

    Attributes:
        name: What users call it.
        title: The name in the paper.
        paper: arXiv number, DOI, or "" where there is none.
        plan: "single pass": one graph gives scores and maps together.  "split": the model up to the layer once, what
            lies behind it for many variants.  "perturb": the whole model for many variants of the image.
        cost: What it costs, in forward passes.
        needs: What a model must have for it, in words; "" if nothing but an image input and class scores.
        layers: Whether it looks at several layers, at one, or at none (the whole model).
        weighs: It weighs activations, so that `eigen_smooth` applies.
        targeted: It explains given targets; else it finds what it explains by itself.
        levels: Its maps are levels of the score, whose zero means nothing: a heatmap begins at their minimum.
        options: Its options with their defaults.
        draw: The function.
        also: Other names that it goes by, in other libraries.
    """

    name: str
    title: str
    paper: str
    plan: Plan
    cost: str
    needs: str
    layers: Layers
    weighs: bool
    targeted: bool
    levels: bool
    options: Mapping[str, Any]
    draw: Draw
    also: tuple[str, ...] = ()

    def __call__(self, scene: Scene, options: Mapping[str, Any]) -> list[ir.Value]:
        """The raw maps, one per layer (or one).

        Raises:
            MethodError: the model cannot serve it.
        """
        maps = self.draw(scene, **options)
        return list(maps) if isinstance(maps, Sequence) else [maps]


METHODS: dict[str, Method] = {}


def method(
    name: str,
    title: str,
    paper: str,
    *,
    plan: Plan = "single pass",
    cost: str,
    needs: str = "",
    layers: Layers = "one",
    weighs: bool = False,
    targeted: bool = True,
    levels: bool = False,
    also: Sequence[str] = (),
) -> Callable[[Draw], Draw]:
    """Register a function of a `Scene` as a method; see `Method`."""

    def register(draw: Draw) -> Draw:
        taken = {_plain(n) for m in METHODS.values() for n in (m.name, *m.also)}
        if not taken.isdisjoint(map(_plain, (name, *also))):
            raise ValueError(f"a second method called {name!r}, or like it")
        options = {p.name: p.default for p in list(inspect.signature(draw).parameters.values())[1:]}
        METHODS[name] = Method(
            name, title, paper, plan, cost, needs, layers, weighs, targeted, levels, options, draw, tuple(also)
        )
        return draw

    return register


def weighting(
    name: str,
    title: str,
    paper: str,
    *,
    cost: str = "1 forward + backward of the tail",
    needs: str = "",
    gradient: bool = True,
    per_channel: bool = False,
    rectify: bool = False,
    linear_only: bool = False,
    also: Sequence[str] = (),
) -> Callable[[Weigh], Weigh]:
    """Register a function `weigh(g, a, da, *, …) -> w` as a method.

    Args:
        gradient: It reads `da`; else that is None, and `w` is (1, N, C, …): the same for all targets.
        per_channel: The weights are one number per channel, (K, N, C, 1, 1).
        rectify: Each channel's term `w·A` goes through a ReLU before the sum.
        linear_only: It needs a tail of global average pooling and linear layers.
        also: See `Method`.
    """

    def register(weigh: Weigh) -> Weigh:
        from .combine import weighted_maps

        def draw(scene: Scene, **options: Any) -> list[ir.Value]:
            return weighted_maps(
                scene,
                lambda g, a, da: weigh(g, a, da, **options),
                gradient=gradient,
                per_channel=per_channel,
                rectify=rectify,
                linear_only=linear_only,
            )

        draw.__doc__ = weigh.__doc__
        options = [p for p in inspect.signature(weigh).parameters.values() if p.kind is p.KEYWORD_ONLY]
        draw.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [inspect.Parameter("scene", inspect.Parameter.POSITIONAL_OR_KEYWORD), *options]
        )
        method(name, title, paper, cost=cost, needs=needs, layers="many", weighs=True, also=also)(draw)
        return weigh

    return register


def get(name: str) -> Method:
    """The method called `name` (case, "-", "_" and blanks do not matter).

    Raises:
        MethodError: there is none.
    """
    if not isinstance(name, str):
        raise MethodError(f"method={name!r}: give a name of `pycam.methods()`")
    for found in METHODS.values():
        if _plain(name) in map(_plain, (found.name, *found.also)):
            return found
    raise MethodError(f"no method {name!r}; nearest: {nearest(name, METHODS)}. `pycam methods` lists them all")


def check_options(found: Method, options: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a method: those given, and the defaults of the others.

    Raises:
        MethodError: one is unknown, or of another kind than its default.
    """
    for name, value in options.items():
        if name not in found.options:
            known = ", ".join(f"{k}={v!r}" for k, v in found.options.items()) or "none"
            raise MethodError(f"the method {found.name!r} has no option {name!r}; its options: {known}")
        default = found.options[name]
        if default is not None and not _is_like(value, default):
            shown = repr(value) if np.ndim(value) == 0 else f"an array of shape {np.shape(value)}"
            raise MethodError(f"{name}={shown}: the method {found.name!r} takes {_KINDS[type(default)]} there")
    return {**found.options, **{name: _as_python(value) for name, value in options.items()}}


_KINDS: dict[type, str] = {bool: "True or False", int: "an integer", float: "a number", str: "a text"}


def _is_like(value: object, default: object) -> bool:
    """Whether an option is of its default's kind; numpy's numbers are numbers."""
    if isinstance(default, bool) or isinstance(value, (bool, np.bool_)):
        return isinstance(default, bool) and isinstance(value, (bool, np.bool_))
    if isinstance(default, float):
        return isinstance(value, numbers.Real)
    return isinstance(value, numbers.Integral if isinstance(default, int) else type(default))


def _as_python(value: Any) -> Any:
    """An option as JSON will have it."""
    return value.item() if isinstance(value, np.generic) else list(value) if isinstance(value, tuple) else value


def methods() -> list[Method]:
    """All methods, in the order of registration."""
    return list(METHODS.values())


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c not in "-_ ")
