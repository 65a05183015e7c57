"""csrc/cuda.cmake: what PYCAM_CUDA does where nvcc is, is too old, or is not."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
PROJECT = f"""
cmake_minimum_required(VERSION 3.22)
project(cuda_alone LANGUAGES NONE)
set(PYCAM_PYTHON ON)
include("{CSRC.as_posix()}/cuda.cmake")
"""
# Says its release, and "compiles" by writing down how it was called.
NVCC = """#!/bin/sh
case "$*" in
  *--version*) echo "Cuda compilation tools, release {release}, V{release}.1" ;;
  *) for last; do :; done; echo "$*" > "$last" ;;
esac
"""


def configure(folder: Path, nvcc: str, *options: str) -> subprocess.CompletedProcess[str]:
    if os.name != "posix" or not shutil.which("cmake") or not shutil.which("ninja"):
        pytest.skip("needs cmake and ninja on a POSIX system")
    (folder / "CMakeLists.txt").write_text(PROJECT)
    path = folder / "nvcc"
    if nvcc != "none":
        path.write_text(NVCC.format(release=nvcc))
        path.chmod(0o755)
    command = ["cmake", "-G", "Ninja", "-S", folder, "-B", folder / "build", f"-DPYCAM_NVCC={path}", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def installed(folder: Path) -> set[str]:
    for command in (["--build", folder / "build"], ["--install", folder / "build", "--prefix", folder / "to"]):
        subprocess.run(["cmake", *command], check=True, capture_output=True)
    return {path.name for path in (folder / "to" / "pycam" / "cuda").iterdir()}


TEXTS = {path.name for path in CSRC.glob("cam_*.cuh")}


@pytest.mark.parametrize(
    ("nvcc", "reason"), [("none", "--version failed"), ("11.8", "is release 11.8, and the kernels need 12.0")]
)
def test_on_without_a_usable_nvcc_is_an_error(tmp_path: Path, nvcc: str, reason: str) -> None:
    done = configure(tmp_path, nvcc, "-DPYCAM_CUDA=ON")
    assert done.returncode != 0
    assert "PYCAM_CUDA=ON, but" in done.stderr
    assert reason in " ".join(done.stderr.split())


@pytest.mark.parametrize(("nvcc", "option"), [("none", "AUTO"), ("11.8", "AUTO"), ("13.0", "OFF")])
def test_otherwise_only_the_text_is_installed(tmp_path: Path, nvcc: str, option: str) -> None:
    done = configure(tmp_path, nvcc, f"-DPYCAM_CUDA={option}")
    assert done.returncode == 0, done.stderr
    assert installed(tmp_path) == TEXTS


def test_what_nvcc_is_asked_for(tmp_path: Path) -> None:
    done = configure(tmp_path, "13.0", "-DPYCAM_CUDA_ARCHITECTURES=80;90")
    assert done.returncode == 0, done.stderr
    assert installed(tmp_path) == TEXTS | {"cam_head.fatbin"}
    call = (tmp_path / "to" / "pycam" / "cuda" / "cam_head.fatbin").read_text()
    for part in ("--fmad=false", "-compress-all", "arch=compute_75,code=compute_75", "code=sm_80", "code=sm_90"):
        assert part in call
