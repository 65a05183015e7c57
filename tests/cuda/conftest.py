"""The kernels of csrc/cam_head.cuh on a CPU: a library of them on the model of cuda_model.hpp, and memory to run on.

PYCAM_CUDA_TEXT names another folder to take the kernels from: mutate.py plants bugs there.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pycam.head.launch import Launch, Plan

Array = NDArray[Any]
HERE = Path(__file__).parent
TEXT = Path(os.environ.get("PYCAM_CUDA_TEXT", HERE.parents[1] / "csrc"))
FLAGS = ("-std=c++17", "-g", "-U_FORTIFY_SOURCE", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-psabi")
GUARD = 256  # bytes on both sides of a buffer that kernels must leave alone


def compile_model(target: Path, *flags: str) -> Path:
    """tests/cuda/kernels.cpp, as `target`; skips the test where there is no compiler for it."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if os.name != "posix" or compiler is None:
        pytest.skip("the model of a CUDA block needs g++ or clang++ on a POSIX system")
    folders = [f"-I{HERE}", f"-I{TEXT}"]
    command = [compiler, *FLAGS, "-ffp-contract=off", *flags, *folders, str(HERE / "kernels.cpp"), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    return target


def sanitized(target: Path, *flags: str) -> Path:
    """The program of kernels.cpp with a sanitizer; skips the test where the compiler has none."""
    try:
        return compile_model(target, *flags, "-fno-sanitize-recover=all")
    except RuntimeError as error:
        missing = re.search(r"cannot find .*(?:tsan|asan|ubsan).*|unsupported option '-fsanitize.*", str(error))
        if missing is None:
            raise
        pytest.skip(f"the compiler's sanitizer is not installed: {missing[0]}")


class Memory:
    """Buffers that stand for the device's: aligned to 256, guarded, and known to the model by their ranges."""

    def __init__(self) -> None:
        self.buffers: list[tuple[Array, Array]] = []  # (what is seen, with guards)

    def take(self, values: Array, offset: int = 0) -> Array:
        """A copy of `values`, `offset` bytes behind an address that is a multiple of 256."""
        whole = np.full(values.nbytes + 2 * GUARD + 512, 0xA5, np.uint8)
        start = -whole.ctypes.data % 256 + GUARD + offset
        seen = whole[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
        seen[...] = values
        self.buffers.append((seen, whole))
        return seen

    def empty(self, shape: Sequence[int] | int, dtype: Any, offset: int = 0) -> Array:
        """A buffer of 0xff: NaN, if it is read as float."""
        size = np.dtype(dtype).itemsize
        lead = (shape,) if isinstance(shape, int) else tuple(shape)
        return self.take(np.full((*lead, size), 0xFF, np.uint8).view(dtype).reshape(lead), offset)

    def workspace(self, plan: Plan) -> Array:
        """What `plan` asks for: NaN, where it need not be zero."""
        space = self.empty(max(plan.workspace_bytes, 1), np.uint8)
        space[: plan.zeroed_bytes] = 0
        return space

    def check(self) -> None:
        for seen, whole in self.buffers:
            start = seen.ctypes.data - whole.ctypes.data
            assert np.all(whole[:start] == 0xA5), "a write before a buffer"
            assert np.all(whole[start + seen.nbytes :] == 0xA5), "a write behind a buffer"


class Model:
    """Runs plans on a library made of kernels.cpp."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))
        self.library.model_launch.restype = ctypes.c_char_p
        count, pointer, size = ctypes.c_uint, ctypes.c_void_p, ctypes.c_size_t
        self.library.model_launch.argtypes = [ctypes.c_char_p, count, count, size, pointer, pointer, size, count]
        self.kernels: set[str] = set()  # that ran

    def knows(self, kernel: str) -> bool:
        """Whether the text has it: a launch of nothing says what is wrong with it first."""
        return b"no kernel" not in self.library.model_launch(kernel.encode(), 0, 0, 0, None, None, 0, 0)

    def sizes(self, count: int) -> list[int]:
        return list((ctypes.c_int * count).in_dll(self.library, "model_sizes"))

    def run(self, plan: Plan, memory: Memory, seed: int = 0, times: int = 1) -> None:
        """The launches of `plan`; asserts what a plan promises of its workspace, and that nothing else was touched.

        Args:
            plan: its pointers are into `memory`.
            memory: all buffers.
            seed: 0: blocks and threads in their order, else a random one.
            times: how often, on one workspace.
        """
        space = memory.workspace(plan)
        for _ in range(times):
            self.launch(plan.launches(space.ctypes.data), memory, seed)
        assert not space[: plan.zeroed_bytes].any(), "the tickets are not zero again"
        memory.check()

    def launch(self, launches: Sequence[Launch], memory: Memory, seed: int = 0) -> None:
        for launch in launches:
            self._launch(launch, memory, seed)

    def _launch(self, launch: Launch, memory: Memory, seed: int) -> None:
        self.kernels.add(launch.kernel)
        arguments = (ctypes.c_void_p * len(launch.arguments))(*(a.ctypes.data for a in launch.arguments))
        ranges = np.array([(seen.ctypes.data, seen.nbytes) for seen, _ in memory.buffers], np.uint64)
        error = self.library.model_launch(
            launch.kernel.encode(),
            launch.grid,
            launch.block,
            launch.shared_bytes,
            arguments,
            ranges.ctypes.data,
            len(ranges),
            seed,
        ).decode()
        assert not error, f"{launch.kernel}: {error}"


def record(path: Path, launches: Sequence[Launch], buffers: Sequence[Array]) -> None:
    """A file that the program of kernels.cpp replays."""
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(buffers)))
        for buffer in buffers:
            file.write(struct.pack("<QQ", buffer.ctypes.data, buffer.nbytes) + buffer.tobytes())
        file.write(struct.pack("<Q", len(launches)))
        for launch in launches:
            numbers = (launch.grid, launch.block, launch.shared_bytes, len(launch.arguments))
            file.write(launch.kernel.encode().ljust(64, b"\0") + struct.pack("<4Q", *numbers))
            for argument in launch.arguments:
                file.write(struct.pack("<Q", argument.nbytes) + argument.tobytes())


def replayed(path: Path, buffers: Sequence[Array]) -> list[Array]:
    """What the replay left in each buffer."""
    data, at, found = path.read_bytes(), 8, []
    for buffer in buffers:
        at += 16
        found.append(np.frombuffer(data, buffer.dtype, buffer.size, at).reshape(buffer.shape))
        at += buffer.nbytes
    return found


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    library = compile_model(tmp_path_factory.mktemp("cuda_model") / "model.so", "-O1", "-fPIC", "-shared")
    return Model(library)


@pytest.fixture(scope="session")
def new_memory() -> type[Memory]:
    return Memory


@pytest.fixture(scope="session")
def kernels_as_threads() -> Any:
    """What it takes to run launches in a program of their own: `compile`, `record`, `replayed`."""
    return SimpleNamespace(compile=sanitized, record=record, replayed=replayed)
