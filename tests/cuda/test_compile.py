"""Every CUDA kernel, compiled for every architecture by NVRTC (pip install nvidia-cuda-nvrtc): without GPU or toolkit.

What ptxas says of each kernel is asserted: nothing is spilled to local memory, and there is no local stack.
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pycam.head.launch import MAPS_KERNELS, MAPS_ONLY, NVRTC_OPTIONS, kernel_names

ARCHITECTURES = (75, 80, 86, 87, 89, 90, 100, 120)
CSRC = Path(__file__).parents[2] / "csrc"


class Nvrtc:
    """The few functions of libnvrtc that compile a text."""

    def __init__(self, library: Path) -> None:
        for part in library.parent.glob("libnvrtc-builtins.so.*"):  # it would look for this on the system's path only
            ctypes.CDLL(str(part))
        self.library = ctypes.CDLL(str(library))

    def call(self, name: str, *arguments: object) -> int:
        function = getattr(self.library, f"nvrtc{name}")
        function.restype = ctypes.c_int
        status: int = function(*arguments)
        return status

    def text(self, program: ctypes.c_void_p, what: str) -> str:
        size = ctypes.c_size_t()
        self.call(f"Get{what}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self.call(f"Get{what}", program, buffer)
        return buffer.value.decode()

    def compile(self, text: str, architecture: int, *more: str) -> str:
        """What compiler and ptxas have to say; raises if it does not compile."""
        program = ctypes.c_void_p()
        name = b"cam_head.cuh"
        assert self.call("CreateProgram", ctypes.byref(program), text.encode(), name, 0, None, None) == 0
        verbose = ("--ptxas-options=-v", "--ptxas-options=-warn-spills", f"--gpu-architecture=sm_{architecture}")
        options = [option.encode() for option in (*NVRTC_OPTIONS, *verbose, *more)]
        status = self.call("CompileProgram", program, len(options), (ctypes.c_char_p * len(options))(*options))
        log = self.text(program, "ProgramLog")
        self.call("DestroyProgram", ctypes.byref(program))
        assert status == 0, log
        return log


def libraries() -> Iterator[Path]:
    """libnvrtc as the wheels of NVIDIA install it, newest first."""
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        yield from sorted(Path(folder).glob("*/lib/libnvrtc.so.*"), reverse=True)


@pytest.fixture(scope="session")
def nvrtc() -> Nvrtc:
    for library in libraries():
        return Nvrtc(library)
    pytest.skip("NVRTC is not installed: pip install nvidia-cuda-nvrtc")


def one_text() -> str:
    """As `pycam.head.launch.source` joins it, from the source tree."""
    return join_text(CSRC / "cam_head.cuh")


def join_text(main: Path) -> str:
    return re.sub(
        r'#include "(.+)"', lambda found: (main.parent / found[1]).read_text("utf-8"), main.read_text("utf-8")
    )


RESOURCES = re.compile(
    r"entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers",
    re.DOTALL,
)


def check_resources(log: str, kernels: Sequence[str] = kernel_names()) -> dict[str, int]:
    """Registers by kernel; asserts that none spills, and that all are there."""
    found = RESOURCES.findall(log)
    wasteful = [entry for entry in found if entry[1:4] != ("0", "0", "0")]
    assert not wasteful, f"(kernel, stack, stores, loads, registers): {wasteful}"
    # Functions that are not inlined have properties of their own.
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    assert set(frames) == {("0", "0", "0")}
    registers = {name: int(count) for name, *_, count in found}
    assert sorted(registers) == sorted(kernels)
    return registers


@pytest.mark.parametrize(
    "architecture", [80, *(pytest.param(a, marks=pytest.mark.zoo) for a in ARCHITECTURES if a != 80)]
)
def test_nvrtc_compiles_every_kernel_without_spills(nvrtc: Nvrtc, architecture: int) -> None:
    registers = check_resources(nvrtc.compile(one_text(), architecture))
    # A block of 256 threads has to fit an architecture's 65,536 registers; the small kernels twice.
    assert max(registers.values()) <= 255
    assert all(count <= 128 for name, count in registers.items() if not name.endswith("_256"))


def test_the_kernels_of_raw_maps_compile_alone(nvrtc: Nvrtc) -> None:
    check_resources(nvrtc.compile(one_text(), 90, MAPS_ONLY), MAPS_KERNELS)


@pytest.mark.zoo
def test_nvcc_compiles_every_kernel_without_spills(tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not installed")
    (tmp_path / "cam_head.cu").write_text('#include "cam_head.cuh"\n')
    options = [*NVRTC_OPTIONS, "-arch=sm_90", "-cubin", "-Xptxas=-v,-warn-spills", f"-I{CSRC}"]
    command = [nvcc, *options, "cam_head.cu", "-o", "cam_head.cubin"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    check_resources(done.stderr)


def test_the_text_includes_nothing_but_its_own_parts() -> None:
    assert set(re.findall(r"#include (.+)", (CSRC / "cam_head.cuh").read_text("utf-8"))) == {
        f'"{path.name}"' for path in CSRC.glob("cam_*.cuh") if path.name != "cam_head.cuh"
    }
    assert "#include" not in one_text()


def test_source_is_that_text() -> None:
    from pycam.head.launch import source

    assert source() == one_text(), "the kernels that are installed are not those of csrc/: install pycam again"
