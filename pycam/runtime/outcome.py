"""From what a program returns to what an explanation holds: heatmaps, on the device or not, the rest on the host."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pycam.errors import HeadError, InputError, ProviderError

from .device import CAPTURE, Bound, Host, is_on_device
from .layouts import kind_of, position_axes
from .missing import no_device
from .spec import Spec

if TYPE_CHECKING:
    from pycam.head import Head

DEVICES = ("cpu", "cuda")
"""Where the maps of an explanation can be."""


class Outcome(NamedTuple):
    """What a call found.

    Attributes:
        heatmaps, raws: numpy arrays, or CuPy arrays that are nobody else's.
        flat: bool (N, K).
        arrays: All other outputs of the graph, by name.
    """

    heatmaps: Any
    flat: NDArray[np.bool_]
    raws: list[Any]
    arrays: dict[str, NDArray[Any]]


def outcome(
    place: Host | Bound, outputs: Mapping[str, Any], head: Head | None, size: tuple[int, ...], spec: Spec, device: str
) -> Outcome:
    """Finish the maps where they are if the head can, and bring home what is wanted there.  Within a `turn` of `place`.

    Args:
        place: Where the outputs are.
        outputs: By name.
        head: What makes heatmaps of raw maps; None: the graph did.
        size, spec: See `finished`.
        device: One of `DEVICES`: where heatmaps and raw maps are wanted.

    Raises:
        InputError: NaN or infinity.
    """
    from pycam.head.combine import finished

    names = [name for name in (*spec.raw, spec.heatmaps) if name is not None and name in outputs]
    maps = {name: outputs[name] for name in names}
    if not _works_there(head, len(size)):
        maps = place.fetch(maps)
    raws = [maps[name] for name in spec.raw]
    heatmaps, flat = finished(head, raws, maps.get(spec.heatmaps or ""), size, spec)
    others = {*spec.outputs, *spec.extras.values(), spec.explained}
    wanted = {name: array for name, array in outputs.items() if name in others}
    if device == "cuda":
        kept = place.keep(heatmaps) if head is None else heatmaps  # those of a head are new
        arrays = place.fetch({**wanted, "": flat})
        return Outcome(kept, arrays.pop(""), [place.keep(raw) for raw in raws], arrays)
    rest = {f" {i}": array for i, array in enumerate([heatmaps, flat, *raws])}  # no output is called like this
    found = place.fetch({**wanted, **rest})
    heatmaps, flat, *raws = (found[name] for name in rest)
    return Outcome(heatmaps, flat, raws, {name: found[name] for name in wanted})


def _works_there(head: Head | None, axes: int) -> bool:
    """Whether maps with so many axes of positions are finished on the device that they are on."""
    return (head is None or head.name == "cuda") and axes < 3


def choose_head(head: Head | None, asked: str | None, session: Any, spec: Spec, device: str) -> Head | None:
    """The head for a session's maps: that of the device they are on, where nothing else was asked for.

    Args:
        head: What was picked without knowing the session; None: the graph makes heatmaps.
        asked: The name that the user gave.
        session: That takes the image.
        spec: Of the graph.
        device: One of `DEVICES`.

    Raises:
        ProviderError: maps are to stay on a device, and the session does not leave them there.
        HeadError: they are to stay there, and the head works elsewhere.
    """
    if device == "cpu" and not isinstance(session, Bound) and (head is None or head.name != "cuda"):
        return head  # the usual case, without what is about devices
    from pycam.head.jobs import MAX_LAYERS

    axes = len(position_axes(spec.layout))
    free = head is not None and asked is None and not os.environ.get("PYCAM_HEAD")
    if free and isinstance(session, Bound) and axes < 3 and len(spec.raw) <= MAX_LAYERS:
        from pycam.head import pick

        head = pick("cuda")
    if head is not None and head.name == "cuda" and len(spec.raw) > MAX_LAYERS:
        raise HeadError(f"the head 'cuda' combines up to {MAX_LAYERS} layers, and here are {len(spec.raw)}: use 'cpu'")
    if device == "cuda":
        if not isinstance(session, Bound):
            raise ProviderError(f"device='cuda': {_why_unbound(session, spec)}")
        if not _works_there(head, axes):
            which = head.name if head is not None and axes < 3 else f"for {kind_of(spec.layout)}"
            raise HeadError(f"device='cuda': the head {which} works on the CPU; leave head= or device= out")
    return head


def _why_unbound(session: Any, spec: Spec) -> str:
    provider = session.get_providers()[0]
    if provider not in CAPTURE:
        return f"the model runs on {provider}; give providers=['CUDAExecutionProvider'], or leave device= out"
    if spec.recipe is not None:
        return f"the method {spec.method!r} combines several passes on the host; leave device= out"
    return no_device() or "the session was made without IO binding"


def check_device(device: str) -> str:
    """`device`, if there is such a place.

    Raises:
        InputError: there is none.
    """
    if device not in DEVICES:
        raise InputError(f"device={device!r}: give 'cpu' or 'cuda'; providers= says which CUDA device")
    return device


def check_place(feeds: Mapping[str, Any], session: Any) -> None:
    """Raise InputError where an input is on a device that the session does not read from."""
    if isinstance(session, Bound):
        return
    for name, array in feeds.items():
        if is_on_device(array):
            raise InputError(
                f"the input {name!r} lies on a CUDA device, and the model, which runs on {session.get_providers()[0]}, "
                "reads from the host: give numpy (x.get() of CuPy, x.cpu().numpy() of torch)"
            )
