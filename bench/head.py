"""The native head against numpy + OpenCV, pytorch-grad-cam's own post-processing, and a plain copy, in one run.

    python -m bench.head [repetitions]

One thread, unless a column says two.  The candidates take turns (A B C, A B C, …), so that a slow spell of the machine
hits all of them; figures are medians.  Every result is checked before it is timed.  Batches are more than the caches
hold (several sets of arrays in turn); one image is in the cache.  Bytes are those that any head must move: activations
and gradients in, heatmaps or pictures out, the image of an overlay in; a copy counts what it reads and what it writes.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"  # read when numpy is imported

import cv2  # noqa: E402
import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from pycam import _native  # noqa: E402
from pycam.colormap import colormap  # noqa: E402

Array = NDArray[Any]
BEYOND_CACHE = 128 << 20
JET = colormap("jet")


@dataclass(frozen=True)
class Set:
    """One set of arrays: activations and gradients (N,C,h,w), images (N,side,side,3)."""

    activations: Array
    gradients: Array
    images: Array
    side: int


@dataclass(frozen=True)
class Case:
    title: str
    sets: list[Set]
    overlay: bool

    @property
    def in_cache(self) -> bool:
        """One image's arrays are in the cache when the model has just made them: each runs once before it is timed."""
        return len(self.sets) == 1

    @property
    def floor(self) -> int:
        one = self.sets[0]
        pixels = len(one.images) * one.side**2
        return 2 * one.activations.nbytes + pixels * (6 if self.overlay else 4)


def numpy_cv2(data: Set, overlay: bool) -> Array:
    """What a careful user writes: a matrix product per image, and OpenCV for the resize and the colours."""
    n, c, h, w = data.activations.shape
    side = (data.side, data.side)
    out = np.empty((n, *side, 3), np.uint8) if overlay else np.empty((n, *side), np.float32)
    for i in range(n):
        weights = data.gradients[i].reshape(c, -1).mean(1)
        raw = np.maximum(weights @ data.activations[i].reshape(c, -1), 0).reshape(h, w)
        heatmap = cv2.resize(raw, side, interpolation=cv2.INTER_LINEAR)
        heatmap -= heatmap.min()
        heatmap /= np.float32(1e-7) + heatmap.max()
        if overlay:
            colours = cv2.applyColorMap((heatmap * 255).astype(np.uint8), cv2.COLORMAP_JET)
            out[i] = cv2.addWeighted(data.images[i], 0.5, cv2.cvtColor(colours, cv2.COLOR_BGR2RGB), 0.5, 0)
        else:
            out[i] = heatmap
    return out


def grad_cam() -> Callable[[Set, bool], Array]:
    """pytorch-grad-cam's own code behind the backward pass, on the arrays that its hooks would have caught."""
    import torch
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.image import show_cam_on_image

    torch.set_num_threads(1)

    class Caught:
        activations: list[torch.Tensor]
        gradients: list[torch.Tensor]

        def release(self) -> None:
            """Called when the object goes: there are no hooks."""

    cam = GradCAM.__new__(GradCAM)
    cam.detach, cam.target_layers, cam.activations_and_grads = True, [None], Caught()

    def run(data: Set, overlay: bool) -> Array:
        cam.activations_and_grads.activations = [torch.from_numpy(data.activations)]
        cam.activations_and_grads.gradients = [torch.from_numpy(data.gradients)]
        shape = torch.empty(len(data.images), 3, data.side, data.side, device="meta")
        maps = cam.aggregate_multi_layers(cam.compute_cam_per_layer(shape, [], False))
        if not overlay:
            return np.asarray(maps)
        pictures = [
            show_cam_on_image(image.astype(np.float32) / 255, heatmap, use_rgb=True)
            for image, heatmap in zip(data.images, maps, strict=True)
        ]
        return np.stack(pictures)

    return run


def native(data: Set, overlay: bool, threads: int = 1) -> Array:
    gradients = data.gradients[:, None]
    if overlay:
        return _native.explain(
            data.activations, gradients, outputs=("pictures",), images=data.images, lut=JET, threads=threads
        )[0][:, 0]
    size = (data.side, data.side)
    return _native.explain(data.activations, gradients, size, outputs=("heatmaps",), threads=threads)[0][:, 0]


def case(rng: np.random.Generator, n: int, c: int, h: int, side: int, overlay: bool) -> Case:
    def one() -> Set:
        activations = np.maximum(rng.standard_normal((n, c, h, h), np.float32), 0)
        gradients = rng.standard_normal((n, c, h, h), np.float32) * np.float32(0.1) + np.float32(0.02)
        return Set(activations, gradients, rng.integers(0, 256, (n, side, side, 3), np.uint8), side)

    first = one()
    more = 0 if n == 1 else BEYOND_CACHE // (2 * first.activations.nbytes)
    title = f"({n},{c},{h},{h}) → {side}²{' overlay' if overlay else ''}"
    return Case(title, [first, *(one() for _ in range(more))], overlay)


def timed(case: Case, candidates: dict[str, Callable[[Set], Any]], repetitions: int) -> dict[str, float]:
    """Seconds."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(repetitions + 1):
        for name, candidate in candidates.items():
            data = case.sets[turn % len(case.sets)]
            if case.in_cache:
                candidate(data)
            start = time.perf_counter()
            candidate(data)
            if turn:  # the first touches the memory
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def check(case: Case, peers: dict[str, Callable[[Set, bool], Array]]) -> None:
    """Heatmaps agree within 1e-3 with all; overlays differ by rounding, and grad-cam's by a scale of its own."""
    data = case.sets[0]
    expected = native(data, False)
    for name, peer in peers.items():
        error = float(np.abs(peer(data, False) - expected).max())
        if error > 1e-3:
            raise SystemExit(f"{case.title}: {name} is off by {error:.2g}")
    if case.overlay:
        mean = float(np.abs(numpy_cv2(data, True).astype(int) - native(data, True)).mean())
        if mean > 2:
            raise SystemExit(f"{case.title}: the overlay is off by {mean:.2g} levels in the mean")


def main() -> None:
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 31
    cv2.setNumThreads(1)
    rng = np.random.default_rng(0)
    peers: dict[str, Callable[[Set, bool], Array]] = {"numpy + cv2": numpy_cv2, "grad-cam": grad_cam()}
    cases = [case(rng, *shape) for shape in SHAPES]
    block = np.zeros(16 << 20, np.uint8)
    blocks = cycle([(np.zeros_like(block), np.ones_like(block)) for _ in range(8)])
    print(f"pycam {_native.features()}, numpy {np.__version__}, cv2 {cv2.__version__}, medians of {repetitions}\n")
    print("| | native µs | two threads | numpy + cv2 | grad-cam | ÷ (a) | ÷ (b) | two ÷ one | GB/s | of the copy |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for each in cases:
        check(each, peers)
        candidates: dict[str, Callable[[Set], Any]] = {
            "native": lambda data, over=each.overlay: native(data, over),
            "two": lambda data, over=each.overlay: native(data, over, 2),
            **{name: lambda data, p=peer, over=each.overlay: p(data, over) for name, peer in peers.items()},
            "copy": lambda _: np.copyto(*next(blocks)),
        }
        t = timed(each, candidates, repetitions)
        rate, copied = each.floor / t["native"], 2 * block.nbytes / t["copy"]
        print(
            f"| {each.title} | {t['native'] * 1e6:.0f} | {t['two'] * 1e6:.0f} | {t['numpy + cv2'] * 1e6:.0f} "
            f"| {t['grad-cam'] * 1e6:.0f} | {t['numpy + cv2'] / t['native']:.1f} | {t['grad-cam'] / t['native']:.1f} "
            f"| {t['native'] / t['two']:.2f} | {rate / 1e9:.1f} | {rate / copied:.0%} |",
            flush=True,
        )


SHAPES = [
    (1, 2048, 7, 224, False),
    (32, 2048, 7, 224, False),
    (1, 512, 14, 224, False),
    (32, 512, 14, 224, False),
    (1, 2048, 7, 224, True),
    (32, 2048, 7, 224, True),
]

if __name__ == "__main__":
    main()
