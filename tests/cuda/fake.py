"""A device that is not there: as much of CuPy and of onnxruntime's IO binding as pycam uses, over guarded host memory.

What it shows, as the real ones would:
- What is put on a stream runs later: when the stream, or an event of it, is waited for.  A result that is read too
  early holds NaN; memory that another stream has yet to write does too.
- A device array is no numpy array: mixing them is a TypeError, and every copy between host and device is counted.
- Kernels are really executed, by name, on the CPU model of a CUDA block (cuda_model.hpp), with the grid, shared memory
  and packed arguments they were launched with; they may touch the buffers of the device and nothing else.
- onnxruntime's outputs belong to it (the next run overwrites them), and it computes on the stream that its provider
  option names.  A captured CUDA graph reads and writes where it did when it was captured, and belongs to the thread
  that captured it.

What it cannot show: that the real CuPy and onnxruntime behave like this; real concurrency (a stream's work runs whole,
in order); memory that runs out, or is freed while in use; that the text compiles (the model was made of it before);
speed; and everything else about a GPU.  test_gpu.py is for those.
"""

from __future__ import annotations

import ctypes
import threading
import types
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

NO_STREAM = 0


class Stream:
    """A queue of work."""

    def __init__(self, device: Device, pointer: int) -> None:
        self.device, self.ptr = device, pointer
        self.work: list[Callable[[], None]] = []
        self.done = 0
        self.before: list[Stream] = []

    def put(self, work: Callable[[], None]) -> None:
        self.work.append(work)

    def run_until(self, count: int) -> None:
        while self.done < count:
            self.done += 1
            self.work[self.done - 1]()

    def record(self) -> tuple[Stream, int]:
        return self, len(self.work)

    def wait_event(self, event: tuple[Stream, int]) -> None:
        stream, count = event
        self.put(lambda: stream.run_until(count))

    def synchronize(self) -> None:
        self.device.log.append(("synchronize", self.ptr))
        self.run_until(len(self.work))

    def __enter__(self) -> Stream:
        self.before.append(self.device.current)
        self.device.local.stream = self
        return self

    def __exit__(self, *_: object) -> None:
        self.device.local.stream = self.before.pop()


class Device:
    """Memory, streams, counts, and a log of what was done in which order."""

    def __init__(self, model: Any, memory: Any) -> None:
        self.model, self.memory = model, memory
        self.local = threading.local()
        self.streams: dict[int, Stream] = {}
        self.null = self.stream(NO_STREAM)
        self.copies: Counter[str] = Counter()
        self.log: list[tuple[Any, ...]] = []
        self.modules: list[dict[str, Any]] = []
        self.runs: list[dict[str, Any]] = []
        self.count = 1

    @property
    def current(self) -> Stream:
        return getattr(self.local, "stream", self.null)

    def stream(self, pointer: int | None = None) -> Stream:
        pointer = 0x1000 + 0x100 * len(self.streams) if pointer is None else pointer
        return self.streams.setdefault(pointer, Stream(self, pointer))

    def empty(self, shape: Any, dtype: Any = np.float64) -> Array:
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        return Array(self, self.memory.empty(shape, dtype))

    def here(self, array: Any) -> np.ndarray:
        """The values of a device array, after all that was put on the current stream."""
        self.current.run_until(len(self.current.work))
        return array.values  # type: ignore[no-any-return]


def _unwrapped(device: Device, value: Any) -> Any:
    if isinstance(value, Array):
        return device.here(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_unwrapped(device, one) for one in value)
    if isinstance(value, np.ndarray) and value.ndim:
        raise TypeError("Unsupported type <class 'numpy.ndarray'>: a host array among device arrays")
    return value


class Array(np.lib.mixins.NDArrayOperatorsMixin):
    """`cupy.ndarray`."""

    __module__ = "cupy"

    def __init__(self, device: Device, values: np.ndarray, number: int = 0) -> None:
        self.owner, self.values = device, values
        self.device = types.SimpleNamespace(id=number)
        self.data = types.SimpleNamespace(ptr=values.ctypes.data, memset_async=self._memset)

    shape = property(lambda self: self.values.shape)
    dtype = property(lambda self: self.values.dtype)
    ndim = property(lambda self: self.values.ndim)
    size = property(lambda self: self.values.size)
    nbytes = property(lambda self: self.values.nbytes)
    itemsize = property(lambda self: self.values.itemsize)
    strides = property(lambda self: self.values.strides)

    @property
    def flags(self) -> Any:
        return types.SimpleNamespace(c_contiguous=self.values.flags.c_contiguous)  # there is no `aligned`

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.device.id

    def __dlpack__(self, **_: Any) -> Any:
        return self

    def _made(self, values: Any) -> Array:
        if not isinstance(values, np.ndarray) or values.base is None:
            values = self.owner.memory.take(np.asarray(values))
        return Array(self.owner, values)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        return self._made(np.array(getattr(ufunc, method)(*_unwrapped(self.owner, inputs), **kwargs)))

    def __array_function__(self, function: Any, _: Any, args: Any, kwargs: Any) -> Any:
        return self._made(np.array(function(*_unwrapped(self.owner, args), **kwargs)))

    def __getitem__(self, key: Any) -> Array:
        return Array(self.owner, self.values[key])  # numbers of their own, which CuPy has too, are not needed

    def __setitem__(self, key: Any, value: Any) -> None:
        source = value.values if isinstance(value, Array) else _unwrapped(self.owner, value)
        self.owner.current.put(lambda: self.values.__setitem__(key, source))

    def __len__(self) -> int:
        return len(self.values)

    def __bool__(self) -> bool:
        return bool(self.get())

    def __format__(self, text: str) -> str:
        return format(self.get()[()], text)

    def reshape(self, *shape: Any) -> Array:
        return Array(self.owner, self.values.reshape(*shape))

    def transpose(self, *axes: int) -> Array:
        return Array(self.owner, self.values.transpose(*axes))

    def astype(self, dtype: Any, copy: bool = True) -> Array:
        same = self.dtype == dtype and not copy
        return self if same else self._made(np.array(self.owner.here(self).astype(dtype)))

    def copy(self) -> Array:
        made = self.owner.empty(self.shape, self.dtype)
        self.owner.current.put(lambda: np.copyto(made.values, self.values))
        return made

    def max(self, **kwargs: Any) -> Array:
        return self._made(np.array(self.owner.here(self).max(**kwargs)))

    def min(self, **kwargs: Any) -> Array:
        return self._made(np.array(self.owner.here(self).min(**kwargs)))

    def sum(self, **kwargs: Any) -> Array:
        return self._made(np.array(self.owner.here(self).sum(**kwargs)))

    def all(self, **kwargs: Any) -> Array:
        return self._made(np.array(self.owner.here(self).all(**kwargs)))

    def mean(self, **kwargs: Any) -> Array:
        return self._made(np.array(self.owner.here(self).mean(**kwargs)))

    def prod(self, **kwargs: Any) -> Array:
        return self._made(np.array(self.owner.here(self).prod(**kwargs)))

    def _memset(self, value: int, size: int) -> None:
        self.owner.current.put(lambda: ctypes.memset(self.data.ptr, value, size) and None)

    def set(self, values: np.ndarray, stream: Stream | None = None) -> None:
        assert values.flags.c_contiguous
        assert values.shape == self.shape
        assert values.dtype == self.dtype
        self.owner.copies["to device"] += 1
        staged = values.copy()
        (stream or self.owner.current).put(lambda: np.copyto(self.values, staged))

    def get(self, stream: Stream | None = None, blocking: bool = True) -> np.ndarray:
        self.owner.copies["to host"] += 1
        self.owner.log.append(("to host", self.shape))
        stream = stream or self.owner.current
        result = np.frombuffer(b"\xff" * self.nbytes, self.dtype).reshape(self.shape).copy()
        stream.put(lambda: np.copyto(result, self.values))
        if blocking:
            stream.run_until(len(stream.work))
        return result


class Kernel:
    """`cupy.RawKernel` on the model."""

    def __init__(self, device: Device, name: str, module: dict[str, Any]) -> None:
        self.device, self.name, self.module = device, name, module

    @property
    def kernel(self) -> None:
        """Compiles and loads."""
        if "refused" in str(self.module.get("path")):
            raise RuntimeError("CUDA_ERROR_UNSUPPORTED_PTX_VERSION")
        if not self.device.model.knows(self.name):
            raise RuntimeError(f"CUDA_ERROR_NOT_FOUND: {self.name}")

    def __call__(self, grid: Any, block: Any, args: Any, *, shared_mem: int = 0) -> None:
        from pycam.head.launch import Launch

        device, stream = self.device, self.device.current
        assert all(isinstance(a, np.ndarray) and a.size == 1 for a in args)  # by value, as CuPy takes structs
        launch = Launch(self.name, *grid, *block, shared_mem, tuple(a.copy() for a in args))
        device.log.append(("launch", self.name, stream.ptr))
        stream.put(lambda: device.model._launch(launch, device.memory, 0))


def module_of(device: Device) -> Any:
    """What stands for the module `cupy`."""

    class RawModule:
        def __init__(self, **given: Any) -> None:
            device.modules.append(given)
            self.given = given

        def get_function(self, name: str) -> Kernel:
            return Kernel(device, name, self.given)

    class CudaDevice:
        def __init__(self, number: int = 0) -> None:
            self.id, self.attributes = number, {"MultiProcessorCount": 4}

        def __enter__(self) -> CudaDevice:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    def asarray(values: Any) -> Array:
        if isinstance(values, Array):
            return values
        device.copies["to device"] += 1
        made, staged = device.empty(np.shape(values), np.asarray(values).dtype), np.array(values)
        device.current.put(lambda: np.copyto(made.values, staged))
        return made

    def asnumpy(array: Any, stream: Any = None, *, blocking: bool = True) -> np.ndarray:
        return array.get(stream, blocking) if isinstance(array, Array) else np.asarray(array)

    def from_dlpack(value: Any) -> Array:
        if value.__dlpack_device__()[0] != 2:
            raise BufferError("not on the device")
        found: Array = value.__dlpack__(stream=device.current.ptr)
        return Array(device, found.values, found.device.id)

    def ascontiguousarray(array: Array) -> Array:
        return array if array.values.flags.c_contiguous else array.copy()

    def new_stream(non_blocking: bool) -> Stream:
        assert non_blocking
        return device.stream()

    runtime = types.SimpleNamespace(getDeviceCount=lambda: device.count)
    cuda = types.SimpleNamespace(
        Stream=new_stream,
        ExternalStream=lambda pointer, _: device.stream(pointer),
        get_current_stream=lambda: device.current,
        Device=CudaDevice,
        runtime=runtime,
    )
    cupy = types.ModuleType("cupy")
    vars(cupy).update(ndarray=Array, empty=device.empty, asarray=asarray, asnumpy=asnumpy, from_dlpack=from_dlpack)
    vars(cupy).update(ascontiguousarray=ascontiguousarray, RawModule=RawModule, cuda=cuda)
    return cupy


class Binding:
    """`IOBinding`."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.inputs: dict[str, tuple[np.ndarray, bool]] = {}  # values, and whether they are on the device
        self.outputs: dict[str, np.ndarray | None] = {}
        self.made: list[Array] = []

    def bind_cpu_input(self, name: str, array: np.ndarray) -> None:
        self.session.device.copies["to device"] += 1
        self.inputs[name] = (array.copy(), False)

    def bind_input(self, name: str, kind: str, number: int, dtype: Any, shape: Any, pointer: int) -> None:
        assert (kind, number) == ("cuda", self.session.number)
        self.inputs[name] = (self._view(pointer, dtype, shape), True)

    def bind_output(self, name: str, kind: str, number: int = 0, *place: Any) -> None:
        assert (kind, number) == ("cuda", self.session.number)
        self.outputs[name] = self._view(place[2], place[0], place[1]) if place else None

    def get_outputs(self) -> Sequence[Array]:
        return self.made

    def _view(self, pointer: int, dtype: Any, shape: Any) -> np.ndarray:
        """Of memory that belongs to the device."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        for seen, _ in self.session.device.memory.buffers:
            start = pointer - seen.ctypes.data
            if start >= 0 and start + size <= seen.nbytes:
                return seen.reshape(-1).view(np.uint8)[start : start + size].view(dtype).reshape(shape)
        raise AssertionError(f"address {pointer:#x} is not on the device")


class Session:
    """An `InferenceSession` with the provider CUDA, computed by one with the CPU's."""

    def __init__(self, device: Device, session: Any, providers: Sequence[tuple[str, dict[str, str]]]) -> None:
        self.device, self.session, self.providers = device, session, providers
        options = providers[0][1]
        self.stream = device.streams[int(options["user_compute_stream"])]
        assert self.stream.ptr != NO_STREAM
        self.number = int(options["device_id"])
        self.captures = options.get("enable_cuda_graph") == "1"
        self.graphs: dict[tuple[int, str], Binding] = {}
        self.own: list[Array] = []

    def get_inputs(self) -> Any:
        return self.session.get_inputs()

    def get_outputs(self) -> Any:
        return self.session.get_outputs()

    def get_providers(self) -> list[str]:
        return [name for name, _ in self.providers]

    def io_binding(self) -> Binding:
        return Binding(self)

    def run(self, *_: Any) -> None:
        raise AssertionError("a session on the device was run through the host")

    def run_with_iobinding(self, binding: Binding, options: Any) -> None:
        assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        identifier = options.get_run_config_entry("gpu_graph_id") if self.captures else "-1"
        self.device.log.append(("run", identifier, self.stream.ptr))
        if identifier != "-1":
            assert all(on_device for _, on_device in binding.inputs.values()), "a graph reads from the host"
            assert all(place is not None for place in binding.outputs.values()), "a graph writes to memory of its own"
            binding = self.graphs.setdefault((threading.get_ident(), identifier), binding)
        for old in self.own:  # its arena takes them back
            self.stream.put(lambda old=old: old.values.view(np.uint8).fill(0xFF))
        self.stream.run_until(len(self.stream.work))
        values = self._computed(binding)
        self.own = [self.device.empty(v.shape, v.dtype) for v in values]
        binding.made = list(self.own)
        for value, new, place in zip(values, self.own, binding.outputs.values(), strict=True):
            self.stream.put(lambda v=value, to=new.values if place is None else place: np.copyto(to, v))

    def _computed(self, binding: Binding) -> Any:
        feeds = {name: array for name, (array, _) in binding.inputs.items()}
        return self.session.run(list(binding.outputs), feeds)
