"""On a real GPU, where there is one: the kernels, sessions, streams and CUDA graphs that other tests have fakes of.

    pytest -n 0 -rs tests/cuda/test_gpu.py
    compute-sanitizer --tool memcheck python -m pytest -n 0 tests/cuda/test_gpu.py  (also racecheck, synccheck …)

Needs CuPy with NVRTC; sessions need onnxruntime-gpu.  PYCAM_GPU=1 makes a missing device an error in place of a skip.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

import pycam
from pycam import _native
from pycam.head import Head, jobs, launch, pick
from pycam.head.cuda import SOURCES, _module, kernel
from pycam.runtime.device import CAPTURE
from pycam.runtime.missing import no_device

CUDA = "CUDAExecutionProvider"
MISSING = no_device()
NO_CUDA = "" if CUDA in ort.get_available_providers() else f"onnxruntime {ort.__version__} has no CUDA: install [gpu]"
FORMS = ([CUDA], [(CUDA, {"enable_cuda_graph": "1"})])

if MISSING and os.environ.get("PYCAM_GPU"):
    raise RuntimeError(f"PYCAM_GPU is set, and there is no device: {MISSING}")
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)
with_sessions = pytest.mark.skipif(bool(NO_CUDA), reason=NO_CUDA)


@pytest.fixture(scope="module")
def cupy() -> Any:
    return pytest.importorskip("cupy")


@pytest.fixture(scope="module")
def head() -> Any:
    return pick("cuda")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def close(found: Any, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(found.get() if hasattr(found, "get") else found, expected, rtol=0, atol=tolerance)


# ---- the head --------------------------------------------------------------------------------------------------------


def test_every_kernel_loads(head: Any, cupy: Any) -> None:
    for name in launch.kernel_names():
        source, found = kernel(cupy, name, cupy.cuda.Device().id)
        assert source == ("nvrtc" if launch.fatbin() is None else "fatbin")
        assert found.local_size_bytes == 0, f"{name} spills"


def test_both_sources_give_the_same_bits(head: Any, cupy: Any, rng: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if launch.fatbin() is None:
        pytest.skip("pycam was built without a fatbin (PYCAM_CUDA)")
    raw = rng.standard_normal((2, 3, 7, 7)).astype(np.float32)
    ready, _ = head.finish([raw], (224, 224))
    monkeypatch.setitem(SOURCES, "fatbin", lambda cupy, maps_only: None)
    for cache in (_module, kernel):
        cache.cache_clear()
    np.testing.assert_array_equal(head.finish([raw], (224, 224))[0], ready)
    for cache in (_module, kernel):
        cache.cache_clear()


@pytest.mark.parametrize("count", [1, 8, 300])
@pytest.mark.parametrize("sizes", [[(7, 7)], [(14, 14), (7, 7)], [(1, 1)], [(96, 130)], [(200, 200), (3, 2)]])
def test_finish(head: Any, cupy: Any, rng: Any, count: int, sizes: Any) -> None:
    raws = [rng.standard_normal((count, 1, *size)).astype(np.float32) for size in sizes]
    raws[0][0] = -abs(raws[0][0])
    maps, flat = head.finish([cupy.asarray(raw) for raw in raws], (224, 200))
    expected, expected_flat = _native.finish_ref(raws, (224, 200))
    close(maps, expected)
    np.testing.assert_array_equal(flat, expected_flat)
    again, _ = head.finish([cupy.asarray(raw) for raw in raws], (224, 200))
    assert bool((again == maps).all())  # bitwise, from call to call


@pytest.mark.parametrize("weighting", list(jobs.WEIGHTINGS))
@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("shape", [(1, 2048, 7, 7), (40, 2048, 7, 7), (2, 511, 14, 14), (1, 64, 56, 56), (3, 5, 3, 11)])
def test_explain(head: Any, cupy: Any, rng: Any, weighting: str, kind: Any, shape: Any) -> None:
    a = np.maximum(rng.standard_normal(shape), 0).astype(kind)
    g = rng.standard_normal((shape[0], 4, *shape[1:])).astype(kind)
    maps, flat, raw = head.explain(cupy.asarray(a), cupy.asarray(g), (224, 224), weighting)
    expected = _native.explain_ref(a, g, (224, 224), weighting, outputs=("raw",))[0]
    scale = np.abs(g.astype(float)).max() * np.abs(a.astype(float)).sum(1).max()
    close(raw, expected, 1e-5 * scale)
    of_raw, of_raw_flat = _native.finish_ref([raw.get()], (224, 224))
    close(maps, of_raw)
    np.testing.assert_array_equal(flat, of_raw_flat)


def test_strides_are_read_as_they_lie(head: Any, cupy: Any, rng: Any) -> None:
    raw = rng.standard_normal((3, 9, 6, 2)).astype(np.float16)
    maps, _ = head.finish([cupy.asarray(raw).transpose(0, 3, 1, 2)[:, :, ::-1]], (20, 20))
    expected = _native.finish_ref([raw.transpose(0, 3, 1, 2)[:, :, ::-1].astype(np.float32)], (20, 20))[0]
    close(maps, expected)


@pytest.mark.parametrize("size", [(224, 224), (7, 9), (1, 1), (1080, 1920)])
def test_overlay_gives_the_same_bytes(head: Any, cupy: Any, rng: Any, size: Any) -> None:
    maps, lut = rng.random((2, 2, *size)).astype(np.float32), rng.integers(0, 256, (256, 3), np.uint8)
    images = rng.integers(0, 256, (2, *size, 3), np.uint8)
    shown = head.overlay(cupy.asarray(images), cupy.asarray(maps), lut, 0.4)
    np.testing.assert_array_equal(shown.get(), _native.overlay_ref(images, maps, lut, 0.4))


def test_memory_is_taken_once(head: Any, cupy: Any, rng: Any) -> None:
    raw = cupy.asarray(rng.standard_normal((8, 1, 14, 14)).astype(np.float32))
    pool = cupy.get_default_memory_pool()
    head.finish([raw], (224, 224))
    before = pool.total_bytes()
    for _ in range(50):
        head.finish([raw], (224, 224))
    assert pool.total_bytes() == before


def test_not_finite(head: Any, rng: Any) -> None:
    raw = rng.standard_normal((2, 2, 5, 5)).astype(np.float32)
    raw[1, 0, 4, 4] = np.nan
    with pytest.raises(ValueError, match=r"NaN or infinity in map \(1, 0\)"):
        head.finish([raw], (16, 16))


# ---- sessions --------------------------------------------------------------------------------------------------------


def same(found: pycam.Explanation, expected: pycam.Explanation) -> None:
    """Up to what TF32 and other orders of sums make of a network."""
    for name in ("heatmaps", "raw", "scores"):
        ours, theirs = getattr(found.cpu(), name), getattr(expected, name)
        np.testing.assert_allclose(ours, theirs, rtol=1e-2, atol=1e-2 * np.abs(theirs).max(), err_msg=name)
    np.testing.assert_array_equal(found.targets, expected.targets)


def on_gpu(providers: Any) -> list[Any]:
    """Without TF32, which rounds to 10 bits."""
    name, options = providers[0] if isinstance(providers[0], tuple) else (providers[0], {})
    return [(name, {**options, "use_tf32": "0"})]


@with_sessions
@pytest.mark.parametrize("providers", FORMS)
@pytest.mark.parametrize("head", [None, "graph", "cpu"])
def test_it_explains_as_the_cpu_does(cnn: Any, images: np.ndarray, providers: Any, head: Any) -> None:
    net = cnn(tail="mlp")
    explainer = pycam.Explainer(net, providers=on_gpu(providers), head=head)
    plain = pycam.Explainer(net, providers=["CPUExecutionProvider"])
    assert explainer.provider in CAPTURE
    for targets in (None, [[1, 2, 3]] * 3, None, None):
        same(explainer(images, targets), plain(images, targets))


@with_sessions
@pytest.mark.parametrize("providers", FORMS)
def test_maps_that_stay_are_not_overwritten(cnn: Any, draw: Any, cupy: Any, providers: Any) -> None:
    explainer = pycam.Explainer(cnn(), providers=on_gpu(providers), device="cuda")
    plain = pycam.Explainer(cnn(), providers=["CPUExecutionProvider"])
    batches = [cupy.asarray(draw(2, 3, 16, 16, seed=seed)) for seed in range(20)]
    found = [explainer(batch) for batch in batches]
    assert all(isinstance(one.heatmaps, cupy.ndarray) for one in found)
    for one, batch in zip(found, batches, strict=True):
        same(one, plain(batch.get()))


@with_sessions
@pytest.mark.parametrize("providers", FORMS)
def test_what_the_caller_put_on_its_stream_comes_first(cnn: Any, draw: Any, cupy: Any, providers: Any) -> None:
    explainer = pycam.Explainer(cnn(), providers=on_gpu(providers))
    x, plain = draw(1, 3, 16, 16), pycam.Explainer(cnn(), providers=["CPUExecutionProvider"])
    busy, late = cupy.ones((4096, 4096), np.float32), cupy.empty(x.shape, np.float32)
    there = cupy.asarray(x)
    explainer(there)
    with cupy.cuda.Stream(non_blocking=True) as mine:
        for _ in range(8):
            busy = busy @ busy * np.float32(1 / 4096)
        late[...] = there
        found = explainer(late)
        mine.synchronize()
    same(found, plain(x))


@with_sessions
@pytest.mark.parametrize("providers", FORMS)
def test_many_threads(cnn: Any, draw: Any, providers: Any) -> None:
    explainer = pycam.Explainer(cnn(), providers=on_gpu(providers))
    plain = pycam.Explainer(cnn(), providers=["CPUExecutionProvider"])
    batches = [draw(1 + seed % 3, 3, 16, 16, seed=seed) for seed in range(48)]
    for batch in batches[:3]:
        explainer(batch)  # captures, before others use the device
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(explainer, batches))
    for one, batch in zip(found, batches, strict=True):
        same(one, plain(batch))


@with_sessions
def test_the_same_bits_again(shipped: Any, draw: Any) -> None:
    explainer = pycam.Explainer(shipped, providers=[CUDA])
    shape = [size if isinstance(size, int) else 1 for size in explainer.input_shape]
    x = draw(*shape)
    first = explainer(x)
    for _ in range(5):
        np.testing.assert_array_equal(explainer(x).heatmaps, first.heatmaps)


@with_sessions
@pytest.mark.parametrize("convert", ["dlpack", "interface"])
def test_arrays_of_torch(cnn: Any, draw: Any, convert: str) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    x = draw(2, 3, 16, 16)
    explainer = pycam.Explainer(cnn(), providers=on_gpu([CUDA]))
    there: Any = torch.from_numpy(x).cuda()

    class Interface:
        __cuda_array_interface__ = there.__cuda_array_interface__

    wrapped: Callable[[], Any] = {"dlpack": lambda: there, "interface": Interface}[convert]
    same(explainer(wrapped()), pycam.Explainer(cnn(), providers=["CPUExecutionProvider"])(x))


def test_the_head_is_one_like_the_others(head: Any) -> None:
    checked: Head = head
    assert checked.name == "cuda"
    assert pick().name == "cpu"
