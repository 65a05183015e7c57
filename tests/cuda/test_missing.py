"""pycam.runtime.missing: what is said where CUDA cannot be used, on machines of which each lacks something else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import types
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

import pycam
from pycam.errors import InputError, ProviderError
from pycam.runtime.device import adopted, is_on_device
from pycam.runtime.missing import no_device, no_driver, why_not

CUDA = "CUDAExecutionProvider"
DRIVER = """
const char* text = "%(text)s";
int cuInit(unsigned flags) { return %(init)d; }
int cuDeviceGetCount(int* count) { *count = %(count)d; return 0; }
int cuGetErrorString(int error, const char** to) { *to = text; return 0; }
"""


def driver(folder: Path, **values: Any) -> str:
    """A library like NVIDIA's driver."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")
    if os.name != "posix" or compiler is None:
        pytest.skip("a driver for the test needs a C compiler on a POSIX system")
    source = folder / "driver.c"
    source.write_text(DRIVER % {"init": 0, "count": 1, "text": "", **values})
    subprocess.run([compiler, "-shared", "-fPIC", str(source), "-o", str(folder / "libdriver.so")], check=True)
    return str(folder / "libdriver.so")


def test_no_driver() -> None:
    assert no_driver("libthere-is-none.so.7").startswith("the NVIDIA driver is not installed (libthere-is-none.so.7")


def test_a_driver_that_cannot_start(tmp_path: Path) -> None:
    found = no_driver(driver(tmp_path, init=803, text="system has unsupported display driver"))
    assert found == "the NVIDIA driver cannot start: error 803, system has unsupported display driver"


def test_a_driver_without_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = driver(tmp_path, count=0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert no_driver(library) == "the NVIDIA driver sees no device"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert no_driver(library) == "the NVIDIA driver sees no device (CUDA_VISIBLE_DEVICES=-1)"


def test_a_driver_with_a_device(tmp_path: Path) -> None:
    assert no_driver(driver(tmp_path)) == ""


def cupy(count: Any) -> Any:
    runtime = types.SimpleNamespace(getDeviceCount=count)
    module = types.ModuleType("cupy")
    module.cuda = types.SimpleNamespace(runtime=runtime)  # type: ignore[attr-defined]
    return module


def broken() -> int:
    raise RuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version")


def test_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", cupy(lambda: 2))
    assert no_device() == ""
    monkeypatch.setattr("pycam.runtime.missing.no_driver", lambda: "the driver is asleep")
    for count in (broken, lambda: 0):
        monkeypatch.setitem(sys.modules, "cupy", cupy(count))
        assert no_device() == "no CUDA device: the driver is asleep"
    monkeypatch.setattr("pycam.runtime.missing.no_driver", lambda: "")
    assert no_device() == "no CUDA device: the CUDA runtime counts none"
    monkeypatch.setitem(sys.modules, "cupy", cupy(broken))
    assert no_device().startswith("no CUDA device: cudaErrorInsufficientDriver: ")


def test_no_cupy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "cupy.py").write_text("raise ImportError('libcudart.so.13: no such file')")
    assert no_device() == "CuPy cannot be imported: libcudart.so.13: no such file"
    (tmp_path / "cupy.py").write_text("raise ModuleNotFoundError('No module named \\'cupy\\'', name='cupy')")
    assert no_device() == "CuPy is not installed: pip install 'pycam-onnx[gpu]'"


def wheel(folder: Path, monkeypatch: pytest.MonkeyPatch, *libraries: str) -> None:
    """An onnxruntime with these libraries beside its own, which cannot be loaded."""
    (folder / "capi").mkdir()
    for name in libraries:
        (folder / "capi" / name).write_bytes(b"\0" * 64)
    monkeypatch.setattr(ort, "__file__", str(folder / "__init__.py"))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(metadata, "distributions", list)


def test_the_wheel_for_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel(tmp_path, monkeypatch)
    assert "as it is installed has no libonnxruntime_providers_cuda.so: uninstall onnxruntime, then" in why_not(CUDA)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="libraries are called like those of Linux here")
def test_libraries_that_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel(tmp_path, monkeypatch, "libonnxruntime_providers_shared.so", "libonnxruntime_providers_cuda.so")
    monkeypatch.setattr("pycam.runtime.missing.no_driver", lambda: "the driver is asleep")
    found = why_not(CUDA)
    assert found.startswith(
        "the driver is asleep; a library that libonnxruntime_providers_cuda.so needs cannot be loaded: "
    )
    assert "pip install 'onnxruntime-gpu[cuda,cudnn]'" in found


def test_both_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel(tmp_path, monkeypatch)
    both = [types.SimpleNamespace(metadata={"Name": name}) for name in ("numpy", "onnxruntime", "onnxruntime-gpu")]
    monkeypatch.setattr(metadata, "distributions", lambda: both)
    assert why_not(CUDA).startswith("onnxruntime and onnxruntime-gpu are both installed, and overwrite one another")


def test_a_provider_that_nothing_is_known_about() -> None:
    assert why_not("SomeExecutionProvider").startswith("it did not say why: onnxruntime's log does")


def test_a_provider_that_cannot_be_had_is_an_error(cnn: Any) -> None:
    """With onnxruntime-gpu and no device it would fall back in silence; with the wheel for the CPU there is none."""
    if CUDA in ort.get_available_providers() and not no_driver():
        pytest.skip("there is a CUDA device here")
    with pytest.raises(ProviderError, match=CUDA) as caught:
        pycam.Explainer(cnn(), providers=["CUDA"])
    if CUDA in ort.get_available_providers():
        assert "the NVIDIA driver" in str(caught.value)
    assert pycam.Explainer(cnn()).provider == "CPUExecutionProvider"  # it was not asked for


class Elsewhere:
    """A device array, where there is no device."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0


def test_what_lies_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_on_device(Elsewhere())
    assert is_on_device(types.SimpleNamespace(__cuda_array_interface__={}))
    assert not any(map(is_on_device, (np.ones(3), [1.0], 3)))
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(
        InputError, match=r"the input 'x' lies on a CUDA device, which pycam reaches through CuPy: CuPy"
    ):
        adopted(Elsewhere(), "the input 'x'")
