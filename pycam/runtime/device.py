"""Sessions whose tensors stay on their CUDA device: IO binding, one stream shared with CuPy, CUDA graphs.

    numpy, CuPy, torch … ─bind→ onnxruntime ─DLPack→ CuPy arrays → head → `fetch`: numpy, or they stay where they are

Everything that a call does on the device is put on one stream, which belongs to the session, and the host waits for
it once the head has been launched too.  Calls from several threads take turns: a lock is held from binding to the last
copy.
No GPU has run this module: `tests/cuda/test_gpu.py` is there for the first that does.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pycam.errors import InputError, ProviderError

from .missing import no_device
from .providers import Asked, Provider, choose
from .session import make_session

CAPTURE = {"CUDAExecutionProvider": "enable_cuda_graph", "TensorrtExecutionProvider": "trt_cuda_graph_enable"}
"""Providers that compute on a CUDA device → their option that asks for CUDA graphs."""

GRAPHS = 16
"""So many shapes of a session get a CUDA graph, with buffers of their own, if graphs are wanted; others do without."""

_ON_CUDA = (2, 13)  # DLPack: kDLCUDA, kDLCUDAManaged


class Host:
    """Where the arrays of an ordinary session are: nothing needs to be done to get at them."""

    @contextmanager
    def turn(self) -> Iterator[None]:
        """No turns are taken."""
        yield

    def fetch(self, arrays: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """The same arrays."""
        return dict(arrays)

    def keep(self, array: Any) -> Any:
        """The same array."""
        return array


class Bound:
    """An `InferenceSession` that leaves its outputs on the device, as CuPy arrays.

    Attributes:
        session: onnxruntime's.
        stream: CuPy's, on which the session computes.
        device: Number of the device.
        capture: Whether calls are captured as CUDA graphs: one per combination of input shapes, up to `GRAPHS`.
    """

    def __init__(self, session: Any, cupy: Any, stream: Any, device: int, capture: bool) -> None:
        self._fixed: dict[Any, _Fixed] = {}
        self._worker: Any = _one_thread() if capture else None
        self.session, self.stream = session, stream  # given up in this order: the session uses the stream
        self.device, self.capture = device, capture
        self._cupy = cupy
        self._lock, self._turns = threading.RLock(), 0

    def get_inputs(self) -> Any:
        """See `InferenceSession`."""
        return self.session.get_inputs()

    def get_outputs(self) -> Any:
        """See `InferenceSession`."""
        return self.session.get_outputs()

    def get_providers(self) -> list[str]:
        """See `InferenceSession`."""
        return list(self.session.get_providers())

    @contextmanager
    def turn(self) -> Iterator[None]:
        """While it lasts no other thread uses the session, and CuPy's current stream is the session's.

        What the caller put on CuPy's current stream before comes first; at the end all is computed.  A turn within a
        turn is the same one.
        """
        with self._lock:
            if self._turns:
                yield
                return
            before = self._cupy.cuda.get_current_stream().record()
            with self._cupy.cuda.Device(self.device), self.stream:
                self.stream.wait_event(before)
                self._turns = 1
                try:
                    yield
                finally:
                    self._turns = 0
                    self.stream.synchronize()

    def run(self, names: Sequence[str], feeds: Mapping[str, Any], run_options: Any = None) -> list[Any]:
        """As `InferenceSession.run`, but the outputs are CuPy arrays that the stream has yet to compute.

        They share memory with onnxruntime, or are overwritten by the next run: use them within a `turn`, and `keep` or
        `fetch` what is to last.

        Raises:
            InputError: an array lies on another device.
        """
        for name, array in feeds.items():
            if is_on_device(array) and array.device.id != self.device:
                raise InputError(
                    f"the input {name!r} lies on CUDA device {array.device.id}, and the session runs on device "
                    f"{self.device}: copy it there, or choose the device with "
                    "providers=[('CUDAExecutionProvider', {'device_id': …})]"
                )
        with self.turn():
            if not self.capture:
                return self._run(names, feeds, run_options)
            return self._run_captured(names, feeds)

    def fetch(self, arrays: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """The arrays as numpy; the host waits once for all of them."""
        found = {
            name: self._cupy.asnumpy(array, stream=self.stream, blocking=False) if is_on_device(array) else array
            for name, array in arrays.items()
        }
        self.stream.synchronize()
        return found

    def keep(self, array: Any) -> Any:
        """A copy on the device that nothing will overwrite, and that outlives the session."""
        return array.copy()

    def _run(self, names: Sequence[str], feeds: Mapping[str, Any], options: Any = None) -> list[Any]:
        binding = self.session.io_binding()
        held = []  # while the run needs them
        if any(is_on_device(array) and array.dtype.kind in "ib" for array in feeds.values()):
            self.stream.synchronize()  # onnxruntime reads what its nodes on the CPU need, such as sizes, while binding
        for name, array in feeds.items():
            if is_on_device(array):
                held.append(self._bind(binding.bind_input, name, self._cupy.ascontiguousarray(array)))
            else:
                binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name in names:
            binding.bind_output(name, "cuda", self.device)
        self.session.run_with_iobinding(binding, run_options() if options is None else options)
        return [self._cupy.from_dlpack(value) for value in binding.get_outputs()]

    def _bind(self, bind: Any, name: str, array: Any) -> Any:
        bind(name, "cuda", self.device, array.dtype, array.shape, array.data.ptr)
        return array

    def _run_captured(self, names: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
        """Replay the graph of these shapes: its inputs are copied to where it reads them.

        The first run for some shapes tells those of the outputs; the second, which follows at once, is captured.
        """
        key = (tuple(names), tuple((name, array.dtype.str, array.shape) for name, array in feeds.items()))
        fixed = self._fixed.get(key)
        if fixed is None:
            outputs = [array.copy() for array in self._ungraphed(names, feeds)]
            if len(self._fixed) == GRAPHS:
                return outputs
            fixed = self._fixed[key] = self._prepared(names, feeds, outputs)
        for name, array in feeds.items():
            place = fixed.inputs[name]
            if is_on_device(array):
                place[...] = array
            else:
                place.set(np.ascontiguousarray(array), stream=self.stream)
        self._work(fixed.binding, fixed.options)
        return list(fixed.outputs)

    def _ungraphed(self, names: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
        return self._run(names, feeds, run_options(gpu_graph_id="-1"))

    def _prepared(self, names: Sequence[str], feeds: Mapping[str, Any], outputs: list[Any]) -> _Fixed:
        """Buffers for inputs; `outputs` become those for outputs; all of them bound."""
        binding = self.session.io_binding()
        inputs = {name: self._cupy.empty(array.shape, array.dtype) for name, array in feeds.items()}
        for name, array in inputs.items():
            self._bind(binding.bind_input, name, array)
        for name, array in zip(names, outputs, strict=True):
            self._bind(binding.bind_output, name, array)
        return _Fixed(binding, inputs, outputs, run_options(gpu_graph_id=str(len(self._fixed) + 1)))

    def _work(self, binding: Any, options: Any) -> None:
        self._worker.submit(self.session.run_with_iobinding, binding, options).result()


def _one_thread() -> Any:
    """For onnxruntime, which keeps captured graphs per thread: one makes and replays all of them."""
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(1, "pycam-cuda-graph")


class _Fixed(NamedTuple):
    """Where a CUDA graph reads and writes."""

    binding: Any
    inputs: Mapping[str, Any]
    outputs: Sequence[Any]
    options: Any


def run_options(**entries: str) -> Any:
    """onnxruntime's run options: it does not wait for the stream at the end of a run."""
    import onnxruntime as ort

    options = ort.RunOptions()
    for name, value in {"disable_synchronize_execution_providers": "1", **entries}.items():
        options.add_run_config_entry(name, value)
    return options


def open_session(
    model: str | os.PathLike[str] | bytes, providers: Asked | Sequence[Asked] | None = None, **options: Any
) -> Any:
    """A session, bound to its device where that is a CUDA device which CuPy can use too.

    Args:
        model, options: See `make_session`.
        providers: The same.  `device_id`, `user_compute_stream` and the options of `CAPTURE` are heeded here as well.

    Returns:
        `Bound`, or an ordinary session.

    Raises:
        ProviderError: see `make_session`.
    """
    chosen = _chosen(providers)
    if not chosen or chosen[0].name not in CAPTURE or no_device():
        return make_session(model, providers, **options)
    import cupy

    first, settings = chosen[0]
    device = int(settings.get("device_id", 0))
    stream = _stream(cupy, device, settings.get("user_compute_stream"))
    shared = {"device_id": str(device), "user_compute_stream": str(stream.ptr)}
    bound = [(name, {**given, **shared}) if name in CAPTURE else (name, dict(given)) for name, given in chosen]
    try:
        session = make_session(model, bound, **options)
    except ProviderError:
        if providers is None:  # CUDA was not asked for
            return make_session(model, ["CPUExecutionProvider"], **options)
        raise
    return Bound(session, cupy, stream, device, str(settings.get(CAPTURE[first], "0")).lower() in ("1", "true"))


def _chosen(providers: Asked | Sequence[Asked] | None) -> list[Provider]:
    """What is asked for; [] where there is no onnxruntime, which `make_session` says."""
    try:
        return choose(providers)
    except ImportError:
        return []


def _stream(cupy: Any, device: int, given: Any) -> Any:
    """The stream that the user wants, else a new one: never stream 0, which onnxruntime takes for none."""
    with cupy.cuda.Device(device):
        return cupy.cuda.ExternalStream(int(given), device) if given else cupy.cuda.Stream(non_blocking=True)


def place_of(session: Any) -> Host | Bound:
    """Where a session's arrays are."""
    return session if isinstance(session, Bound) else Host()


def is_on_device(array: Any) -> bool:
    """Whether an array of any library lies on a CUDA device."""
    if isinstance(array, np.ndarray):
        return False
    if hasattr(array, "__dlpack_device__"):
        return int(array.__dlpack_device__()[0]) in _ON_CUDA
    return hasattr(array, "__cuda_array_interface__")


def on_host(array: Any) -> NDArray[Any]:
    """An array of numpy's or CuPy's as numpy's."""
    found: NDArray[Any] = array if isinstance(array, np.ndarray) else array.get()
    return found


def adopted(array: Any, name: str) -> Any:
    """A device array of any library as a CuPy array of the same memory.

    Args:
        array: With `__dlpack__` or `__cuda_array_interface__`.
        name: What it is called in errors.

    Raises:
        InputError: CuPy is missing, or cannot read it.
    """
    if reason := no_device():
        raise InputError(f"{name} lies on a CUDA device, which pycam reaches through CuPy: {reason}")
    import cupy

    if isinstance(array, cupy.ndarray):
        return array
    try:
        return cupy.from_dlpack(array) if hasattr(array, "__dlpack__") else cupy.asarray(array)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{name} cannot be read where it lies ({error}): detach it, or give numpy") from None
