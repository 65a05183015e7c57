"""The CUDA head: the kernels of `csrc/cam_head.cuh`, launched by CuPy.

Device arrays of any library are read where they lie, with their strides, and results are CuPy arrays; of numpy arrays
the results are numpy arrays.  All work goes to CuPy's current stream; memory comes from CuPy's pool, so that calls of
the same shapes allocate nothing anew.  The host waits once per call, for the flags of the maps.
`HEAD` raises ImportError, with the reason, where there is no CuPy or no CUDA device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pycam.errors import HeadError
from pycam.head import Head, launch
from pycam.runtime.device import adopted, is_on_device
from pycam.runtime.missing import no_device

Array: TypeAlias = Any
"""numpy's, CuPy's, or any other that lies on the device and knows DLPack or `__cuda_array_interface__`."""

TYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
"""Name of a dtype → what the kernels call it."""


def _fatbin(cupy: Any, maps_only: bool) -> Any:
    """All kernels as they were compiled when pycam was built; None if they were not."""
    path = launch.fatbin()
    return None if path is None else cupy.RawModule(path=str(path))


def _text(cupy: Any, maps_only: bool) -> Any:
    """Their text, compiled by NVRTC for the device at hand; CuPy keeps the result in its cache on disk."""
    options = (*launch.NVRTC_OPTIONS, launch.MAPS_ONLY) if maps_only else tuple(launch.NVRTC_OPTIONS)
    return cupy.RawModule(code=launch.source(), options=options, backend="nvrtc")


SOURCES: dict[str, Callable[[Any, bool], Any]] = {"fatbin": _fatbin, "nvrtc": _text}
"""Where the kernels come from, best first: name → the CuPy module, or None."""


@lru_cache(maxsize=4)
def _module(cupy: Any, source: str, maps_only: bool) -> Any:
    return SOURCES[source](cupy, maps_only)


@lru_cache(maxsize=512)
def kernel(cupy: Any, name: str, device: int) -> tuple[str, Any]:
    """(the name in `SOURCES` of where it comes from, the kernel), ready for the device.

    A driver that is older than the nvcc of the fatbin refuses it; what NVRTC compiles is for the device itself.

    Args:
        cupy: The module.
        name: A name of `launch.kernel_names()`.
        device: Number of the current device.

    Raises:
        HeadError: no source has it; the message says why.
    """
    reasons = []
    for source in SOURCES:
        try:
            module = _module(cupy, source, name in launch.MAPS_KERNELS)
            if module is not None:
                found = module.get_function(name)
                _ = found.kernel  # compiles and loads, which CuPy else does at the first launch
                return source, found
        except Exception as error:  # CuPy's, the driver's and NVRTC's have no base class in common
            reasons.append(f"{source}: {error}")
    raise HeadError(
        f"the CUDA kernel {name!r} cannot be had ({'; '.join(reasons)}).  NVRTC comes with the CUDA toolkit, or with "
        "pip install 'cupy-cuda13x[ctk]'"
    )


@lru_cache(maxsize=64)
def _multiprocessors(cupy: Any, device: int) -> int:
    return int(cupy.cuda.Device(device).attributes["MultiProcessorCount"])


@dataclass(frozen=True)
class CudaHead:
    """A `Head` on a CUDA device.

    Attributes:
        cupy: The module.
    """

    cupy: Any
    name: str = "cuda"

    def with_threads(self, threads: int | None) -> CudaHead:
        """The same: the threads are the device's."""
        return self

    def finish(self, raws: Sequence[Array], size: tuple[int, int]) -> tuple[Array, NDArray[np.bool_]]:
        """See `Head.finish`.  Heatmaps of device arrays stay on the device; which are flat is known to the host."""
        lead = tuple(raws[0].shape[:2]) if len(raws) else ()
        if not lead or any(raw.ndim != 4 or tuple(raw.shape[:2]) != lead for raw in raws):
            shapes = [tuple(raw.shape) for raw in raws]
            raise ValueError(f"raws: expected one array (N, K, h, w) per layer with the same N and K, found {shapes}")
        arrays = [_numbers(self._here(raw, "raws")) for raw in raws]
        layers = [launch.Layer(_tensor(raw, "nkyx"), *raw.shape[2:]) for raw in arrays]
        maps, flags, output = self._outputs(lead, size)
        self._run(launch.plan_finish(layers, lead[0], lead[1], output, self._here_count()))
        return self._like(raws[0], maps), self._checked(flags)

    def explain(
        self, activations: Array, weights: Array, size: tuple[int, int], weighting: str = "mean"
    ) -> tuple[Array, NDArray[np.bool_], Array]:
        """Heatmaps from activations and weights or gradients, without raw maps on the way to memory and back.

        Args:
            activations: float32, float16 or bfloat16 (N, C, h, w), any strides; others are converted.
            weights: (N, C, h, w), (N, K, C, h, w) or (N, K, C), likewise.
            size: Height and width of the heatmaps.
            weighting: "mean" (Grad-CAM), "plusplus", "given", "positive" or "rectified": see `pycam_weighting` in
                pycam.h.

        Returns:
            As `finish`, and the raw maps, float32 (N, K, h, w).

        Raises:
            ValueError: shapes, types or a weighting that do not fit together, NaN or infinity in a raw map.
        """
        a, w = _numbers(self._here(activations, "activations")), _numbers(self._here(weights, "weights"))
        if a.dtype != w.dtype:
            a, w = _floats(a), _floats(w)
        w = w[:, None] if w.ndim == 4 else w
        images, channels = a.shape[0], a.shape[1] if a.ndim == 4 else 0
        fits = w.ndim in (3, 5) and w.shape[0] == images and w.shape[2] == channels
        if a.ndim != 4 or not fits or (w.ndim == 5 and w.shape[3:] != a.shape[2:]):
            raise ValueError(
                f"activations {tuple(activations.shape)} and weights {tuple(weights.shape)}: expected (N, C, h, w) and "
                "(N, C, h, w), (N, K, C, h, w) or (N, K, C)"
            )
        lead = (images, w.shape[1])
        axes = "nkcyx" if w.ndim == 5 else "nkc"
        height, width = a.shape[2:]
        job = launch.Weighing(*lead, channels, height, width, _tensor(a, "ncyx"), _tensor(w, axes), weighting)
        raw = self.cupy.empty((*lead, *a.shape[2:]), np.float32)
        maps, flags, output = self._outputs(lead, size)
        self._run(launch.plan_explain(job, raw.data.ptr, output, multiprocessors=self._here_count()))
        flat = self._checked(flags)
        return self._like(activations, maps), flat, self._like(activations, raw)

    def overlay(self, images: Array, maps: Array, lut: Array, alpha: float) -> Array:
        """See `Head.overlay`.  The pictures are on the device if the maps or the images are."""
        pixels, heat = self._here(images, "images"), self._here(maps, "maps")
        n, k, height, width = heat.shape if heat.ndim == 4 else (0, 0, 0, 0)
        if heat.ndim != 4 or tuple(pixels.shape) != (n, height, width, 3) or pixels.dtype != np.uint8:
            raise ValueError(
                f"images {pixels.dtype} {tuple(pixels.shape)} and maps {tuple(heat.shape)}: expected uint8 "
                "(N, H, W, 3) and (N, K, H, W)"
            )
        if tuple(lut.shape) != (256, 3) or lut.dtype != np.uint8:
            raise ValueError(f"lut: expected uint8 (256, 3), found {lut.dtype} {tuple(lut.shape)}")
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha: expected 0 to 1, found {alpha}")
        heat = self.cupy.ascontiguousarray(_floats(heat))
        pixels = pixels if pixels.strides[3] == 1 else self.cupy.ascontiguousarray(pixels)
        colours = self.cupy.ascontiguousarray(self._here(lut, "lut"))
        pictures = self.cupy.empty((n, k, height, width, 3), np.uint8)
        flags = self.cupy.empty((n, k), np.uint8)
        output = launch.Output(
            height,
            width,
            flags=flags.data.ptr,
            pictures=pictures.data.ptr,
            **_steps(pictures, "picture_image", "picture_map", "picture_row", "picture_pixel"),
            images=pixels.data.ptr,
            **_steps(pixels, "image_image", "image_row", "image_pixel"),
            lut=colours.data.ptr,
            alpha=alpha,
        )
        self._run(launch.plan_overlay(heat.data.ptr, n, k, output, self._here_count()))
        self._checked(flags, "maps")
        return pictures if is_on_device(maps) or is_on_device(images) else self.cupy.asnumpy(pictures)

    def _here(self, array: Array, name: str) -> Any:
        """As a CuPy array: of the same memory if it is on the device, else copied there."""
        return adopted(array, name) if is_on_device(array) else self.cupy.asarray(array)

    def _here_count(self) -> int:
        return _multiprocessors(self.cupy, self.cupy.cuda.Device().id)

    def _outputs(self, lead: tuple[int, ...], size: tuple[int, int]) -> tuple[Any, Any, launch.Output]:
        """Heatmaps (N, K, height, width) and flags (N, K), yet to be written, and the wish for them."""
        maps, flags = self.cupy.empty((*lead, *size), np.float32), self.cupy.empty(lead, np.uint8)
        return maps, flags, launch.Output(*size, heatmaps=maps.data.ptr, flags=flags.data.ptr)

    def _run(self, plan: launch.Plan) -> None:
        """Put a plan's launches on the current stream.

        The workspace goes back to CuPy's pool at once: what takes it from there runs later on the same stream.
        """
        workspace = self.cupy.empty(plan.workspace_bytes, np.uint8)
        if plan.zeroed_bytes:
            workspace.data.memset_async(0, plan.zeroed_bytes)
        device = self.cupy.cuda.Device().id
        for step in plan.launches(workspace.data.ptr):
            launched = kernel(self.cupy, step.kernel, device)[1]
            launched((step.grid,), (step.block,), step.arguments, shared_mem=step.shared_bytes)

    def _checked(self, flags: Any, what: str = "raws") -> NDArray[np.bool_]:
        """Which maps are flat, (N, K); here the host waits for the device.

        Raises:
            ValueError: a map is not finite.
        """
        found = self.cupy.asnumpy(flags)
        wrong = np.argwhere(found & launch.NOT_FINITE)
        if len(wrong):
            n, k = wrong[0].tolist()
            raise ValueError(f"{what}: NaN or infinity in map ({n}, {k})")
        return np.asarray((found & launch.FLAT) != 0)

    def _like(self, source: Array, result: Any) -> Array:
        """The result where the source is."""
        return result if is_on_device(source) else self.cupy.asnumpy(result)


def _floats(array: Any) -> Any:
    return array if array.dtype == np.float32 else array.astype(np.float32)


def _numbers(array: Any) -> Any:
    """As the kernels can read it."""
    return array if array.dtype.name in TYPES else array.astype(np.float32)


def _tensor(array: Any, axes: str) -> launch.Tensor:
    """Where its elements lie.

    Args:
        array: CuPy's.
        axes: A letter per axis: n, k, c, y, x.
    """
    steps = dict(zip(axes, (step // array.itemsize for step in array.strides), strict=True))
    return launch.Tensor(array.data.ptr, TYPES[array.dtype.name], *(steps.get(axis, 0) for axis in "nkcyx"))


def _steps(pixels: Any, *names: str) -> dict[str, Any]:
    """Strides in bytes, but of the colours."""
    return dict(zip(names, pixels.strides[:-1], strict=True))


def __getattr__(name: str) -> Head:
    """`HEAD`, where it can run."""
    if name != "HEAD":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if reason := no_device():
        raise ImportError(reason)
    import cupy

    return CudaHead(cupy)
