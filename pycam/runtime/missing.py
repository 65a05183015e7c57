"""Why CUDA cannot be used here: the reasons that onnxruntime, which falls back to the CPU, and CuPy do not tell."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import sys
from functools import lru_cache

DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"

LIBRARIES = {
    "CUDAExecutionProvider": "onnxruntime_providers_cuda",
    "TensorrtExecutionProvider": "onnxruntime_providers_tensorrt",
}
"""Provider → the library beside onnxruntime's own that holds it."""


def no_device() -> str:
    """Why no CUDA device can be used through CuPy, in one phrase; "" if one can."""
    try:
        import cupy
    except ImportError as error:
        if error.name == "cupy":
            return "CuPy is not installed: pip install 'pycam-onnx[gpu]'"
        return f"CuPy cannot be imported: {error}"
    try:
        count = int(cupy.cuda.runtime.getDeviceCount())
    except RuntimeError as error:  # CuPy's errors are
        return f"no CUDA device: {no_driver() or error}"
    return "" if count else f"no CUDA device: {no_driver() or 'the CUDA runtime counts none'}"


def no_driver(library: str = DRIVER) -> str:
    """What is wrong with NVIDIA's driver; "" if it is there and sees a device.

    Args:
        library: The driver's; given by tests.
    """
    try:
        driver = ctypes.CDLL(library)
    except OSError as error:
        return f"the NVIDIA driver is not installed ({error})"
    status = driver.cuInit(0)
    if status:
        text = ctypes.c_char_p()
        driver.cuGetErrorString(status, ctypes.byref(text))
        return f"the NVIDIA driver cannot start: error {status}, {(text.value or b'unknown').decode()}"
    count = ctypes.c_int()
    driver.cuDeviceGetCount(ctypes.byref(count))
    if count.value:
        return ""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "the NVIDIA driver sees no device" + (f" (CUDA_VISIBLE_DEVICES={visible})" if visible is not None else "")


def why_not(provider: str) -> str:
    """Why onnxruntime cannot start a provider, as far as can be found out: the wheel, the driver, missing libraries.

    Args:
        provider: Its full name, such as "CUDAExecutionProvider".

    Returns:
        One or more reasons, joined by "; ".
    """
    reasons = [_wheels(), *_libraries(provider)] if provider in LIBRARIES else []
    found = [reason for reason in reasons if reason]
    return "; ".join(found) or "it did not say why: onnxruntime's log does (set_default_logger_severity(2))"


def _wheels() -> str:
    """Whether the wheels of onnxruntime, which fill the same folder, are in each other's way."""
    from importlib import metadata

    installed = {
        name for d in metadata.distributions() if (name := (d.metadata["Name"] or "").lower()).startswith("onnxruntime")
    } & {"onnxruntime", "onnxruntime-gpu"}
    if len(installed) == 2:
        return (
            "onnxruntime and onnxruntime-gpu are both installed, and overwrite one another: uninstall both, then "
            "install onnxruntime-gpu"
        )
    return ""


def _libraries(provider: str) -> list[str]:
    """What is wrong with the provider's library and the driver behind it."""
    from pathlib import Path

    import onnxruntime as ort

    folder = Path(ort.__file__).parent / "capi"
    pattern = "{}.dll" if sys.platform == "win32" else "lib{}.so"
    paths = [folder / pattern.format(name) for name in ("onnxruntime_providers_shared", LIBRARIES[provider])]
    absent = [path.name for path in paths if not path.exists()]
    if absent:
        wheel = f"onnxruntime {ort.__version__} as it is installed has no {absent[-1]}"
        return [f"{wheel}: uninstall onnxruntime, then install onnxruntime-gpu"]
    reasons = [no_driver()]
    try:
        for path in paths:
            ctypes.CDLL(str(path))
    except OSError as error:
        if DRIVER in str(error):  # said already
            return reasons
        built = getattr(ort, "cuda_version", "")
        needs = f" (it is built for CUDA {built})" if built else ""
        reasons.append(
            f"a library that {paths[1].name} needs cannot be loaded: {error}{needs}; "
            "pip install 'onnxruntime-gpu[cuda,cudnn]' brings those of CUDA and cuDNN, TensorRT's come with tensorrt"
        )
    return reasons


@lru_cache(maxsize=1)
def preload() -> str:
    """Load the libraries of CUDA and cuDNN that pip installed, which onnxruntime does not find by itself.

    Returns:
        What onnxruntime had to say about it: "" if all were found.
    """
    import onnxruntime as ort

    if not hasattr(ort, "preload_dlls"):  # before 1.21
        return ""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        ort.preload_dlls()
    return said.getvalue().strip()
