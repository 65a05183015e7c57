"""The C++ example, built once per run as its README says: libpycam, onnxruntime's headers, the program."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import onnxruntime as ort
import pytest

import pycam

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "cpp"
API = (1, 21)
"""The onnxruntime that the headers are of; the program asks for it or a newer one."""

Run: TypeAlias = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of the run share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cpp_example"
    folder.mkdir(exist_ok=True)
    return folder


@contextmanager
def alone(workshop: Path) -> Iterator[None]:
    """One worker at a time."""
    with open(workshop / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def must(command: Sequence[object], **options: Any) -> None:
    """Run it; what it printed is the message if it fails."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{command}: {done.stdout[-4000:]}\n{done.stderr[-4000:]}"


def headers(workshop: Path) -> Path | None:
    """Where onnxruntime's headers are; None: CMake finds them itself.  Skips with the reason where there are none."""
    if "ONNXRUNTIME_INCLUDE_DIR" in os.environ:
        return Path(os.environ["ONNXRUNTIME_INCLUDE_DIR"])
    folder = workshop / "headers"
    if not (folder / "copyright").exists():
        fetched = subprocess.run([str(EXAMPLE / "fetch_headers"), str(folder)], capture_output=True, text=True)
        if fetched.returncode != 0:
            pytest.skip(f"no headers of onnxruntime: {fetched.stderr.strip()}")
    return folder


@pytest.fixture(scope="session")
def program(workshop: Path) -> Path:
    """The example, linked with a libpycam that was installed into a prefix."""
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not here")
    if tuple(map(int, ort.__version__.split(".")[:2])) < API:
        pytest.skip(f"onnxruntime {ort.__version__} is older than the headers")
    done = workshop / "build" / "pycam_edge"
    with alone(workshop):
        if not done.exists():
            include = headers(workshop)
            python = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
            prefix = workshop / "prefix"
            must(["cmake", "-S", ROOT, "-B", workshop / "library"])
            must(["cmake", "--build", workshop / "library"])
            must(["cmake", "--install", workshop / "library", "--prefix", prefix])
            given = [f"-DCMAKE_PREFIX_PATH={prefix}"]
            given += [] if include is None else [f"-DONNXRUNTIME_INCLUDE_DIR={include}"]
            must(["cmake", "-S", EXAMPLE, "-B", workshop / "build", *given, "-DCMAKE_CXX_FLAGS=-Werror"], env=python)
            must(["cmake", "--build", workshop / "build"])
    return done


@pytest.fixture(scope="session")
def jpeg(program: Path) -> None:
    """Skip where the program was built without libjpeg."""
    if "no_jpeg" in "".join(p.name for p in program.parent.rglob("*.o")):
        pytest.skip("libjpeg is not here")


@pytest.fixture(scope="session")
def edge(program: Path) -> Run:
    """Run the program with these arguments; `lines` go to its standard input."""

    def run(*arguments: object, lines: str | None = None) -> subprocess.CompletedProcess[str]:
        command = [str(program), *map(str, arguments)]
        return subprocess.run(command, input=lines, capture_output=True, text=True, timeout=300)

    return run


@pytest.fixture(scope="session")
def answers(edge: Run) -> Callable[..., list[dict[str, Any]]]:
    """What it answers in JSON."""

    def read(*arguments: object, lines: str | None = None) -> list[dict[str, Any]]:
        done = edge(*arguments, *(("--json",) if lines is None else ("--serve",)), lines=lines)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return read


GRAPHS: dict[str, dict[str, Any]] = {
    "pixels": {"preprocess": True, "outputs": ["scores", "raw"]},
    "tensor": {"outputs": ["scores", "raw"]},
    "heatmaps": {"preprocess": True, "outputs": ["scores", "heatmaps"]},
    "silent": {"preprocess": True, "outputs": ["raw"]},
}


@pytest.fixture(scope="session")
def graphs(workshop: Path, shipped: Path) -> dict[str, Path]:
    """Explain graphs of the model that ships, by kind."""
    paths = {name: workshop / f"{name}.onnx" for name in GRAPHS}
    with alone(workshop):
        for name, options in GRAPHS.items():
            if not paths[name].exists():
                pycam.export(shipped, paths[name], method="gradcam", **options)
    return paths
