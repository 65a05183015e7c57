"""From shapes, types, strides and wanted outputs to the launches of the CUDA kernels: pure Python, no GPU needed.

    plan = plan_explain(Weighing(...), Output(...))         # or plan_weigh, plan_finish, plan_overlay
    workspace = <plan.workspace_bytes on the device, aligned to 256; its first plan.zeroed_bytes zero>
    for launch in plan.launches(workspace_pointer):
        <launch.kernel with grid (launch.grid,1,1), block (launch.block,1,1), launch.shared_bytes, *launch.arguments>

Arguments are structs passed by value: 0-d numpy arrays of a structured dtype (`jobs.WEIGH`, `jobs.FINISH_ONE`, …).
A plan holds pointers: it may be launched again and again (in a CUDA graph too) as long as they stay what they are; the
kernels leave the zeroed part of the workspace zero.  Launches of one plan must run in order, on one stream; plans that
run at the same time need a workspace each.

The result is bitwise the same for every form, batch size and number of multiprocessors; layout and alignment of the
inputs choose the kernel, and with it the order of sums.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pycam
from pycam.errors import HeadError
from pycam.head.jobs import (
    FINISH_ONE,
    FLAT,
    MAX_LAYERS,
    NOT_FINITE,
    Launch,
    Layer,
    Output,
    Tensor,
    Weighing,
    pack,
    pack_source,
)
from pycam.head.kernels import (
    LUT,
    MAPS_KERNELS,
    RECORD,
    THREADS,
    Finish,
    check_grid,
    check_output,
    check_side,
    check_tensor,
    check_weighing,
    kernel_names,
    partial_source,
    sum_splits,
    weigh,
)

__all__ = [
    "FLAT",
    "MAPS_KERNELS",
    "MAPS_ONLY",
    "NOT_FINITE",
    "NVRTC_OPTIONS",
    "Form",
    "Launch",
    "Layer",
    "Output",
    "Plan",
    "Tensor",
    "Weighing",
    "fatbin",
    "kernel_names",
    "plan_explain",
    "plan_finish",
    "plan_overlay",
    "plan_weigh",
    "source",
]

NVRTC_OPTIONS = ("--std=c++17", "--fmad=false")
"""How the text is compiled: what is fused is written as fmaf, so that every compiler rounds alike."""

MAPS_ONLY = "--define-macro=CAM_MAPS_ONLY"
"""One more option for NVRTC: only the kernels of `plan_finish` and `plan_overlay`, in a tenth of the time."""

Form = Literal["auto", "one", "two"]
"""Whether the last block of a map finishes it in the launch that weighs ("one"), or another launch does ("two")."""


@dataclass(frozen=True)
class Plan:
    """Launches that want a workspace.

    Attributes:
        workspace_bytes: how much, at an address that is a multiple of 256; may be 0.
        zeroed_bytes: how much of its start must be zero before the first launch; it is zero again after the last.
        build: the launches for a workspace's address.
    """

    workspace_bytes: int
    zeroed_bytes: int
    build: Callable[[int], tuple[Launch, ...]]

    def launches(self, workspace: int) -> tuple[Launch, ...]:
        """The launches, in order, with `workspace` (a device address) in their arguments."""
        return self.build(workspace)


_EMPTY = Plan(0, 0, lambda workspace: ())


def source() -> str:
    """The text of all kernels as NVRTC takes it: cam_head.cuh with its own parts in place of their includes.

    Raises:
        HeadError: this installation lacks it.
    """
    main = _installed("cam_head.cuh")
    part: Callable[[re.Match[str]], str] = lambda found: main.with_name(found[1]).read_text("utf-8")  # noqa: E731
    return re.sub(r'#include "(.+)"', part, main.read_text("utf-8"))


def fatbin() -> Path | None:
    """The kernels as nvcc compiled them when pycam was built; None where it was built without."""
    try:
        return _installed("cam_head.fatbin")
    except HeadError:
        return None


def _installed(name: str) -> Path:
    folders = [Path(folder) / "cuda" for folder in pycam.__path__]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise HeadError(f"{name} is not in {', '.join(map(str, folders))}: this pycam was built without it")


class _Workspace:
    """Hands out offsets."""

    def __init__(self) -> None:
        self.size = 0

    def take(self, count: int) -> int:
        offset, self.size = self.size, self.size + (count + 255) // 256 * 256
        return offset


def plan_weigh(job: Weighing, raw: int) -> Plan:
    """Raw maps, to float32 `(N,K,h,w)` at `raw`.  NaN and infinity pass through (`pycam_weigh`)."""
    return plan_explain(job, raw, None)


def plan_explain(
    job: Weighing, raw: int, output: Output | None, form: Form = "auto", multiprocessors: int = 132
) -> Plan:
    """Activations and gradients to heatmaps or overlays (`pycam_explain`).

    Args:
        job: what is weighed.
        raw: where the raw maps go too, float32 `(N,K,h,w)`; or 0.
        output: what is wanted of them; None: only the raw maps.
        form: "auto" is "one" where there are at least as many maps as multiprocessors.  "one" needs maps that fit in
            shared memory, and is "two" otherwise.
        multiprocessors: of the device.

    Raises:
        ValueError: shapes, types or a weighting that do not fit together, or nothing that is wanted.
    """
    check_weighing(job)
    if output is not None:
        check_output(output)
    elif raw == 0:
        raise ValueError("raw: expected an address, as nothing else is wanted")
    count = job.images * job.maps
    if count == 0:
        return _EMPTY
    main, before = weigh(job)
    finish = None if output is None else Finish(job.images, job.maps, output, ((job.height, job.width),))
    one = finish is not None and finish.staged and (form == "one" or (form == "auto" and count >= multiprocessors))
    in_place = main.splits == 1 and raw != 0  # the only partial sum is the raw map
    summed = main.splits > 1 and not (finish is not None and finish.staged)  # by a launch of its own

    area, space = job.height * job.width, _Workspace()
    ticket = space.take(4 * count) if one else 0
    zeroed = space.size
    partial = 0 if in_place else space.take(4 * count * main.splits * area)
    whole = space.take(4 * count * area) if summed and raw == 0 else 0
    weights = space.take(4 * count * job.channels) if before else 0
    records = space.take(RECORD * count) if finish is not None and not finish.staged else 0

    def build(workspace: int) -> tuple[Launch, ...]:
        sums = raw if in_place else workspace + partial
        layer = partial_source(job, main.splits, sums)
        copy_to = 0 if in_place else raw
        launches = []
        given = job.weights
        if before is not None:
            packed = before.packed(job, job.weights, channel_weights=workspace + weights)
            launches.append(before.launch(job, (packed,)))
            given = Tensor(workspace + weights, "f32", job.maps * job.channels, job.channels, 1)
        packed = main.packed(job, given, sums, ticket=workspace + ticket if one else 0)
        if one and finish is not None:
            last = finish.packed([layer], 1, copy_to, many=False)
            return (*launches, main.launch(job, (packed, last), finish.shared_bytes(1)))
        launches.append(main.launch(job, (packed, pack(FINISH_ONE))))
        if summed:
            target = raw or workspace + whole
            launches.append(sum_splits(job, layer, target))
            layer, copy_to = partial_source(job, 1, target), 0
        if finish is not None:
            launches += finish.launches([layer], copy_to, workspace + records, multiprocessors)
        return tuple(launches)

    return Plan(space.size, zeroed, build)


def plan_finish(layers: Sequence[Layer], images: int, maps: int, output: Output, multiprocessors: int = 132) -> Plan:
    """Raw maps of one or more layers to what `output` wants (`pycam_finish`).

    Raises:
        ValueError: no layers or more than `MAX_LAYERS`, sizes out of range, or outputs that lack something.
    """
    if not 1 <= len(layers) <= MAX_LAYERS:
        raise ValueError(f"layers: expected 1 to {MAX_LAYERS}, found {len(layers)}; the head 'cpu' takes more")
    for layer in layers:
        check_side(layer.height, layer.width, "a layer")
        check_tensor(layer.raw, "the raw maps of a layer")
    check_output(output)
    if images * maps == 0:
        return _EMPTY
    finish = Finish(images, maps, output, tuple((layer.height, layer.width) for layer in layers))

    def build(workspace: int) -> tuple[Launch, ...]:
        return finish.launches([pack_source(layer) for layer in layers], 0, workspace, multiprocessors)

    return Plan(0 if finish.staged else RECORD * finish.count, 0, build)


def plan_overlay(heatmaps: int, images: int, maps: int, output: Output, multiprocessors: int = 132) -> Plan:
    """Heatmaps, float32 `(N,K,height,width)`, to levels and pictures (`pycam_overlay`); flags are `NOT_FINITE` or 0.

    Raises:
        ValueError: sizes out of range, outputs that lack something, or heatmaps among the outputs.
    """
    check_output(output)
    dense = Tensor.raw_maps(heatmaps, (images, maps, output.height, output.width))
    check_tensor(dense, "heatmaps")
    if output.heatmaps:
        raise ValueError("output.heatmaps: expected 0, as heatmaps are the input of an overlay")
    if images * maps == 0:
        return _EMPTY
    finish = Finish(images, maps, output, ((output.height, output.width),))
    tiles = finish.tiles(multiprocessors)
    layer = pack_source(Layer(dense, output.height, output.width))

    def build(workspace: int) -> tuple[Launch, ...]:
        job = finish.packed([layer], tiles, workspace=workspace, many=False)
        return (Launch("cam_overlay", check_grid(finish.count * tiles), THREADS, LUT, (job,)),)

    tickets = 4 * finish.count  # behind them, what each block found
    return Plan(tickets * (1 + tiles), tickets, build)
