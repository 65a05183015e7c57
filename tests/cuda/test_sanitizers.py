"""The CUDA kernels with an OS thread for every CUDA thread, under ThreadSanitizer, AddressSanitizer and UBSan.

What comes out is the same as on fibers, bit for bit; a race, a read outside of a buffer or of shared memory, or a
misaligned access fails the run.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pycam.head.launch import (
    Launch,
    Layer,
    Output,
    Plan,
    Tensor,
    Weighing,
    plan_explain,
    plan_finish,
    plan_overlay,
)

Array = NDArray[Any]
RACES, WEAK_RACES, ERRORS = (
    "-fsanitize=thread",
    "-fsanitize=thread -DMODEL_WEAK_ATOMICS",
    "-fsanitize=address,undefined",
)


def outputs(memory: Any, n: int, k: int, height: int, width: int) -> Output:
    """All outputs, and random images."""
    rng = np.random.default_rng(1)
    images = memory.take(rng.integers(0, 256, (n, height, width, 3), dtype=np.uint8))
    lut = memory.take(rng.integers(0, 256, (256, 3), dtype=np.uint8))
    pictures = memory.empty((n, k, height, width, 3), np.uint8)
    heatmaps, levels = memory.empty((n, k, height, width), np.float32), memory.empty((n, k, height, width), np.uint8)
    flags = memory.empty((n, k), np.uint8)
    strides = {"picture_image": pictures.strides[0], "picture_map": pictures.strides[1], "picture_row": 3 * width}
    return Output(
        height,
        width,
        *(array.ctypes.data for array in (heatmaps, levels, flags, pictures)),
        **strides,
        images=images.ctypes.data,
        image_image=images.strides[0],
        image_row=3 * width,
        lut=lut.ctypes.data,
    )


def weighing(memory: Any, kind: str, weighting: str, channels: int, side: tuple[int, int], images: int = 1) -> Weighing:
    rng = np.random.default_rng([channels, *side])
    shape = (images, channels, *side)
    a, g = (memory.take(rng.standard_normal(shape).astype(kind.replace("f", "float"))) for _ in range(2))
    tensors = (Tensor.dense(array.ctypes.data, kind, shape) for array in (a, g))
    return Weighing(images, 1, channels, *side, *tensors, weighting)


def plans(memory: Any) -> list[Plan]:
    """Every kind of kernel, in one and two launches, with several blocks per map; small: each thread is a real one."""

    def raw_maps(*shape: int) -> Layer:
        array = memory.take(np.random.default_rng(shape).standard_normal((1, 1, *shape)).astype(np.float32))
        return Layer(Tensor.raw_maps(array.ctypes.data, array.shape), *shape)

    raw = memory.empty((1, 1, 5, 6), np.float32)
    few = outputs(memory, 1, 1, 13, 16)
    heatmaps = memory.take(np.random.default_rng(3).random((1, 1, 14, 16), np.float32))
    return [
        plan_explain(weighing(memory, "f32", "mean", 256, (5, 6)), raw.ctypes.data, few, "one"),
        plan_explain(weighing(memory, "f16", "plusplus", 512, (3, 3)), 0, outputs(memory, 1, 1, 13, 16), "two", 1),
        plan_explain(weighing(memory, "f16", "positive", 32, (9, 9), 2), 0, outputs(memory, 2, 1, 9, 16), "one"),
        plan_explain(weighing(memory, "f32", "plusplus", 9, (6, 7)), 0, outputs(memory, 1, 1, 13, 15), "one"),
        plan_finish([raw_maps(4, 5), raw_maps(3, 2)], 1, 1, outputs(memory, 1, 1, 10, 13), 1),
        plan_finish([raw_maps(110, 115)], 1, 1, outputs(memory, 1, 1, 8, 8), 1),
        plan_overlay(heatmaps.ctypes.data, 1, 1, replace(outputs(memory, 1, 1, 14, 16), heatmaps=0), 2),
    ]


def replay(program: Path, recorded: Path, races: bool) -> subprocess.CompletedProcess[str]:
    """ThreadSanitizer cannot place its shadow memory under some settings of address randomisation: then without it."""
    done = subprocess.run([program, recorded], capture_output=True, text=True, check=False, timeout=240)
    if races and "unexpected memory mapping" in done.stderr and shutil.which("setarch"):
        command = ["setarch", "-R", program, recorded]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip(f"ThreadSanitizer cannot run here: {done.stderr.strip().splitlines()[0]}")
    return done


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(RACES, id="races"),
        pytest.param(WEAK_RACES, id="fences", marks=pytest.mark.zoo),
        pytest.param(ERRORS, id="memory", marks=pytest.mark.zoo),
    ],
)
def test_threads_give_the_same_without_a_report(
    model: Any, new_memory: Any, kernels_as_threads: Any, flags: str, tmp_path: Path
) -> None:
    memory = new_memory()
    todo = plans(memory)
    launches: list[Launch] = []
    for plan in todo:
        space = memory.workspace(plan)
        launches += plan.launches(space.ctypes.data)
    buffers: Sequence[Array] = [seen for seen, _ in memory.buffers]
    kernels_as_threads.record(tmp_path / "launches", launches, buffers)
    program = kernels_as_threads.compile(tmp_path / "replay", "-O0", "-DMODEL_THREADS", "-pthread", *flags.split())
    done = replay(program, tmp_path / "launches", "thread" in flags)
    assert done.returncode == 0, done.stderr[:4000]
    model.launch(launches, memory)
    for mine, fibers in zip(kernels_as_threads.replayed(tmp_path / "launches", buffers), buffers, strict=True):
        np.testing.assert_array_equal(mine.view(np.uint8), fibers.view(np.uint8))
