"""libpycam: built, installed and linked as an embedder does, and its native tests, with sanitizers too.

Each way of building is built once per session, for all workers; what this machine lacks is skipped, with the reason.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from pycam.colormap import COLORMAPS, colormap

fcntl = pytest.importorskip("fcntl", reason="the native tests are for POSIX systems")

ROOT = Path(__file__).resolve().parents[2]
CONSUMER = Path(__file__).with_name("consumer")
PAGE = ROOT / "docs" / "embedding.md"
VERSION = re.findall(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)[0]

PROGRAMS = ("test_abi", "test_contract", "test_errors", "test_threads", "test_memory")
OPTIMISED = ["-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_COMPILE_WARNING_AS_ERROR=ON"]
QUICK = [
    "-DCMAKE_BUILD_TYPE=Debug",
    "-DCMAKE_CXX_FLAGS=-O1",
    "-DCMAKE_C_FLAGS=-O1",
    "-DCMAKE_COMPILE_WARNING_AS_ERROR=ON",
]

WAYS: dict[str, list[str]] = {
    "default": OPTIMISED,
    "portable": [*QUICK, "-DPYCAM_CLONES=OFF"],
    "clang": [*OPTIMISED, "-DCMAKE_C_COMPILER=clang", "-DCMAKE_CXX_COMPILER=clang++"],
    "address": [*QUICK, "-DPYCAM_LIBRARY=OFF", "-DPYCAM_SANITIZE=address,undefined"],
    "thread": [*QUICK, "-DPYCAM_LIBRARY=OFF", "-DPYCAM_SANITIZE=thread"],
}
"""The ways of building, by name, as options of CMake."""

SANITIZERS = {"address": "address,undefined", "thread": "thread"}

Build = Callable[[str], Path]


def run(command: Sequence[str | Path], where: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    """What the command prints; a failing test, with that, where it fails."""
    done = subprocess.run(
        command, cwd=where, env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=300, check=False
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, f"{' '.join(map(str, command))}: exit status {done.returncode}\n{output[-6000:]}"
    return output


def need(*programs: str) -> None:
    """Skip where one of the programs is not installed."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of this session have."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "libpycam"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def build(shared: Path) -> Build:
    """The build folder of a way of building, with what it installs in its folder `installed`."""

    def built(way: str) -> Path:
        need("cmake", "c++" if way != "clang" else "clang++")
        if way in SANITIZERS:
            probe_sanitizer(shared, SANITIZERS[way])
        folder = shared / way
        with (shared / f"{way}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / "done").exists():
                generator = ["-G", "Ninja"] if shutil.which("ninja") else []
                run(["cmake", *generator, "-S", ROOT, "-B", folder, "-DPYCAM_TESTS=ON", *WAYS[way]])
                run(["cmake", "--build", folder, "--parallel", "2"])
                run(["cmake", "--install", folder, "--prefix", folder / "installed"])
                (folder / "done").touch()
        return folder

    return built


def probe_sanitizer(shared: Path, names: str) -> None:
    """Skip where a program of nothing does not build or run with these sanitizers."""
    source, program = shared / "nothing.cpp", shared / f"nothing-{names}-{os.getpid()}"
    source.write_text("int main() {}\n")
    for command in (["c++", f"-fsanitize={names}", str(source), "-o", str(program)], [str(program)]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"no {names} sanitizer here: {done.stderr.strip()[-300:] or done.returncode}")


def passed(output: str) -> bool:
    """Whether the last line of a native test says that there were tests and none failed."""
    return re.search(r"^[1-9]\d* passed, 0 failed$", output, re.MULTILINE) is not None


# ---- the native tests ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_native(build: Build, way: str, program: str) -> None:
    path = build(way) / "tests" / "native" / program
    if program == "test_memory" and not path.exists():
        pytest.skip("sanitizers, and C libraries other than glibc, have a malloc that cannot be counted")
    assert passed(run([path]))


@pytest.mark.parametrize("program", ["test_abi", "test_errors", "test_threads"])
def test_valgrind(build: Build, program: str) -> None:
    """Of the portable build, as valgrind knows no AVX-512; a forked child has lost its threads' memory by nature."""
    need("valgrind")
    checks = ["-q", "--leak-check=full", "--errors-for-leak-kinds=definite,possible", "--error-exitcode=9"]
    assert passed(run(["valgrind", *checks, build("portable") / "tests" / "native" / program, "-fork"]))


# ---- what is installed -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def prefix(build: Build) -> Path:
    return build("default") / "installed"


def libraries(prefix: Path) -> Path:
    """The folder of the libraries: lib, lib64 or lib/<architecture>."""
    return next(iter(prefix.rglob("libpycam.a"))).parent


def test_what_is_installed(prefix: Path) -> None:
    lib = libraries(prefix)
    assert {path.name for path in lib.iterdir() if path.is_file()} >= {
        "libpycam.a",
        f"libpycam.so.{VERSION}",
        "libpycam.so.1",
    }
    assert [path.relative_to(prefix).as_posix() for path in (prefix / "include").rglob("*.h")] == ["include/pycam.h"]
    assert {path.name for path in (lib / "pkgconfig").iterdir()} == {"pycam.pc", "pycam-static.pc"}
    assert not list(prefix.rglob("*.py"))
    for path in prefix.rglob("*"):  # nothing that would be wrong in another place
        if path.suffix in {".pc", ".cmake"}:
            assert str(prefix.parent) not in path.read_text()


def test_nothing_but_the_interface_is_exported(prefix: Path) -> None:
    need("nm", "readelf")
    library = libraries(prefix) / "libpycam.so"
    header = (ROOT / "csrc" / "include" / "pycam.h").read_text()
    declared = set(re.findall(r"^PYCAM_API .*?(pycam_\w+)\(", header, re.MULTILINE))
    exported = {line.split()[-1] for line in run(["nm", "-D", "--defined-only", library]).splitlines()}
    assert exported == declared
    assert "[libpycam.so.1]" in run(["readelf", "-d", library])


@pytest.mark.parametrize("language", ["c -std=c11", "c -std=c99", "c++ -std=c++17", "c++ -std=c++11"])
def test_the_header_stands_alone(language: str, tmp_path: Path) -> None:
    need("c++", "cc")
    kind, standard = language.split()
    source = tmp_path / ("program." + ("c" if kind == "c" else "cpp"))
    source.write_text("#include <pycam.h>\nint main(void) { pycam_output output; return sizeof output == 0; }\n")
    flags = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror", "-fsyntax-only", standard]
    run(["cc" if kind == "c" else "c++", *flags, f"-I{ROOT / 'csrc' / 'include'}", source])


def test_the_shared_library_from_python(prefix: Path) -> None:
    library = ctypes.CDLL(str(libraries(prefix) / "libpycam.so"))
    library.pycam_version.restype = ctypes.c_char_p
    library.pycam_colormap.restype = ctypes.c_void_p
    library.pycam_colormap.argtypes = [ctypes.c_char_p]
    assert library.pycam_version().decode() == VERSION
    assert library.pycam_abi() == 1
    for name in COLORMAPS:
        table = np.frombuffer(ctypes.string_at(library.pycam_colormap(name.encode()), 768), np.uint8)
        np.testing.assert_array_equal(table.reshape(256, 3), colormap(name))
    assert library.pycam_colormap(b"RdBu") is None


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_colour_maps_are_what_the_script_writes() -> None:
    assert (ROOT / "csrc" / "colormaps.cpp").read_text() == script("make_colormaps").text()


# ---- linked by others ------------------------------------------------------------------------------------------------


def program_of_the_page(folder: Path) -> Path:
    """The C program of docs/embedding.md, as it stands there."""
    (text,) = re.findall(r"^```c\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    source = folder / "program.c"
    source.write_text(text)
    return source


def picture(program: Path, folder: Path, env: Mapping[str, str] | None = None) -> bytes:
    """What the program writes to explained.ppm."""
    folder.mkdir()
    run([program], where=folder, env=env)
    return (folder / "explained.ppm").read_bytes()


@pytest.mark.parametrize("language", ["C", "CXX"])
def test_find_package(prefix: Path, tmp_path: Path, language: str) -> None:
    """From a tree that was moved after it was installed."""
    moved = tmp_path / "moved"
    shutil.copytree(prefix, moved, symlinks=True)
    source = program_of_the_page(tmp_path) if language == "C" else CONSUMER / "overlay.cpp"
    wanted = VERSION.rpartition(".")[0]
    options = [f"-DLANGUAGE={language}", f"-DPROGRAM={source}", f"-DWANTED={wanted}", f"-DCMAKE_PREFIX_PATH={moved}"]
    run(["cmake", "-S", CONSUMER, "-B", tmp_path / "build", *options])
    run(["cmake", "--build", tmp_path / "build"])
    shared, static = (picture(tmp_path / "build" / f"with_{kind}", tmp_path / kind) for kind in ("pycam", "static"))
    assert shared == static
    assert shared.startswith(b"P6 224 224 255\n" if language == "C" else b"P6 60 40 255\n")
    assert len(set(shared)) > 50
    if language == "CXX":
        said = run([tmp_path / "build" / "with_static"], where=tmp_path)
        assert said == f"{VERSION}, 1: output.alpha: expected 0 to 1, found 2\n"


def test_find_package_of_another_version(prefix: Path, tmp_path: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.22)\nproject(another LANGUAGES C)\nfind_package(pycam 99)\n"
        f'if(pycam_FOUND OR NOT pycam_CONSIDERED_VERSIONS STREQUAL "{VERSION}")\n'
        '  message(FATAL_ERROR "found")\nendif()\n'
    )
    run(["cmake", "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={prefix}"])


@pytest.mark.parametrize("package", ["pycam", "pycam-static"])
@pytest.mark.parametrize("compiler", ["cc", "clang"])
def test_pkg_config(prefix: Path, tmp_path: Path, package: str, compiler: str) -> None:
    need("pkg-config", compiler)
    lib = libraries(prefix)
    flags = run(["pkg-config", "--cflags", "--libs", package], env={"PKG_CONFIG_PATH": str(lib / "pkgconfig")}).split()
    strict = ["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror"]
    run([compiler, *strict, program_of_the_page(tmp_path), *flags, "-o", tmp_path / "program"])
    env = {"LD_LIBRARY_PATH": str(lib)} if package == "pycam" else {}
    assert picture(tmp_path / "program", tmp_path / "out", env).startswith(b"P6 224 224 255\n")


def test_pictures_of_the_page_are_those_of_python(prefix: Path, tmp_path: Path) -> None:
    """The program of the page against its formulas in numpy."""
    lib = libraries(prefix)
    link = [f"-I{prefix / 'include'}", lib / "libpycam.a", "-lstdc++", "-lm", "-pthread"]
    run(["cc", program_of_the_page(tmp_path), *link, "-o", tmp_path / "program"])
    got = np.frombuffer(picture(tmp_path / "program", tmp_path / "out")[-3 * 224 * 224 :], np.uint8).reshape(
        224, 224, 3
    )
    raw = np.arange(49).reshape(7, 7) / 49  # times a positive sum of weights, which s takes out
    at = np.clip((np.arange(224) + 0.5) / 32 - 0.5, 0, 6)
    tent = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(7)))
    heatmap = tent @ (raw / raw.max()) @ tent.T
    under = np.arange(224)[:, None, None] * np.ones((1, 224, 3))
    want = 0.5 * under + 0.5 * colormap("jet")[np.floor(heatmap * 255 + 0.5).astype(int)]
    assert np.mean(np.abs(got - want) > 3) < 0.001  # a level may differ where it is nearly a half
