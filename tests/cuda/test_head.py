"""pycam.head.cuda on a fake device (fake.py), whose kernels run on the CPU model: against the reference head."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pycam.head
from pycam import _native
from pycam.errors import HeadError
from pycam.head import launch
from pycam.head.combine import finished
from pycam.head.cuda import kernel

TOLERANCE = 1e-5


@pytest.fixture
def device(model: Any, new_memory: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    spec = importlib.util.spec_from_file_location("fake_cupy", Path(__file__).with_name("fake.py"))
    assert spec is not None
    assert spec.loader is not None
    fake = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fake)
    device = fake.Device(model, new_memory())
    monkeypatch.setitem(sys.modules, "cupy", fake.module_of(device))
    monkeypatch.setattr(launch, "source", lambda: "the text")  # which the fake does not read: the model was made of it
    monkeypatch.setattr(launch, "fatbin", lambda: None)
    yield device
    device.memory.check()


@pytest.fixture
def cupy(device: Any) -> Any:
    return sys.modules["cupy"]


@pytest.fixture
def head(device: Any) -> Any:
    return pycam.head.pick("cuda")


@pytest.fixture
def spec_of() -> Any:
    return types.SimpleNamespace(levels=False, combine="mean")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def reference(raws: Any, size: tuple[int, int]) -> Any:
    return _native.finish_ref([np.asarray(raw, np.float32) for raw in raws], size)


def test_why_it_is_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert pycam.head.available()["cuda"].startswith("CuPy ")
    with pytest.raises(HeadError, match=r"'cuda' is unknown or not available.*cuda \(CuPy "):
        pycam.head.pick("cuda")


def test_a_machine_without_a_device(device: Any) -> None:
    device.count = 0
    assert "no CUDA device: " in pycam.head.available()["cuda"]


def test_the_head_for_what_is_on_the_host_stays_the_cpus(device: Any) -> None:
    assert pycam.head.available()["cuda"] == ""
    assert pycam.head.pick().name == "cpu"


@pytest.mark.parametrize("sizes", [[(7, 7)], [(14, 14), (7, 7)], [(1, 1)], [(20, 3), (5, 40), (2, 2)], [(96, 96)]])
@pytest.mark.parametrize("size", [(32, 48), (13, 7)])
def test_finish(head: Any, cupy: Any, device: Any, rng: Any, sizes: Any, size: Any) -> None:
    raws = [rng.standard_normal((2, 3, *one)).astype(np.float32) for one in sizes]
    for raw in raws:
        raw[1, 2] = -abs(raw[1, 2])
    maps, flat = head.finish([cupy.asarray(raw) for raw in raws], size)
    expected, expected_flat = reference(raws, size)
    assert isinstance(maps, cupy.ndarray)
    np.testing.assert_allclose(maps.get(), expected, rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(flat, expected_flat)
    assert flat[1, 2]
    assert device.copies["to host"] == 2  # the flags, and what this test looks at
    assert device.copies["to device"] == len(raws)  # by this test


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_strides_and_types_are_read_as_they_lie(head: Any, cupy: Any, device: Any, rng: Any, kind: Any) -> None:
    raw = rng.standard_normal((3, 2, 9, 6)).astype(kind)
    there = cupy.asarray(raw)
    for view in (lambda x: x.transpose(1, 0, 3, 2)[:, :, ::-1], lambda x: x[1:, :, ::2, 1::3]):
        before = len(device.memory.buffers)
        maps, _ = head.finish([view(there)], (12, 12))
        assert len(device.memory.buffers) - before <= 3  # heatmaps, flags, a workspace
        np.testing.assert_allclose(maps.get(), reference([view(raw)], (12, 12))[0], rtol=0, atol=TOLERANCE)


def test_numpy_in_numpy_out(head: Any, device: Any, rng: Any) -> None:
    raw = rng.standard_normal((1, 2, 5, 5))
    maps, _ = head.finish([raw], (10, 10))  # float64: converted
    assert isinstance(maps, np.ndarray)
    np.testing.assert_allclose(maps, reference([raw], (10, 10))[0], rtol=0, atol=TOLERANCE)
    assert head.finish([np.zeros((0, 2, 5, 5), np.float32)], (4, 4))[0].shape == (0, 2, 4, 4)


@pytest.mark.parametrize("weighting", ["mean", "given", "positive", "rectified", "plusplus"])
@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("shape", [(2, 16, 7, 7), (1, 5, 3, 11), (1, 8, 20, 20)])
def test_explain(head: Any, cupy: Any, rng: Any, weighting: str, kind: Any, shape: Any) -> None:
    a = np.maximum(rng.standard_normal(shape), 0).astype(kind)
    g = rng.standard_normal((shape[0], 2, *shape[1:])).astype(kind)
    maps, flat, raw = head.explain(cupy.asarray(a), cupy.asarray(g), (24, 24), weighting)
    expected = _native.explain_ref(a, g, (24, 24), weighting, outputs=("raw",))[0]
    scale = np.abs(g.astype(float)).max() * np.abs(a.astype(float)).sum(1).max()
    np.testing.assert_allclose(raw.get(), expected, rtol=0, atol=TOLERANCE * scale)
    of_raw, of_raw_flat = reference([raw.get()], (24, 24))
    np.testing.assert_allclose(maps.get(), of_raw, rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(flat, of_raw_flat)


def test_weights_by_channel_and_one_map_per_image(head: Any, cupy: Any, rng: Any) -> None:
    a, w = rng.random((2, 6, 4, 4)), rng.standard_normal((2, 3, 6))
    _, _, raw = head.explain(a, w, (8, 8), "given")
    np.testing.assert_allclose(raw, np.einsum("nchw,nkc->nkhw", a, w), rtol=0, atol=1e-5)
    _, _, raw = head.explain(a, a, (8, 8), "mean")
    assert raw.shape == (2, 1, 4, 4)
    with pytest.raises(ValueError, match=r"activations \(2, 6, 4, 4\) and weights \(2, 3, 5\)"):
        head.explain(a, w[..., :5], (8, 8))
    with pytest.raises(ValueError, match="weighting"):
        head.explain(a, w, (8, 8), "no such")


@pytest.mark.parametrize("shape", [(2, 3, 16, 20), (1, 1, 7, 9), (1, 2, 1, 1)])
def test_overlay_gives_the_same_bytes(head: Any, cupy: Any, rng: Any, shape: Any) -> None:
    n, _, height, width = shape
    maps, lut = rng.random(shape).astype(np.float32), rng.integers(0, 256, (256, 3), np.uint8)
    images = rng.integers(0, 256, (n, height, width, 3), np.uint8)
    expected = _native.overlay_ref(images, maps, lut, 0.3)
    shown = head.overlay(cupy.asarray(images), cupy.asarray(maps), lut, 0.3)
    assert isinstance(shown, cupy.ndarray)
    np.testing.assert_array_equal(shown.get(), expected)
    wide = np.repeat(images, 2, axis=2)  # a picture in a larger one
    np.testing.assert_array_equal(
        head.overlay(cupy.asarray(wide)[:, :, ::2], cupy.asarray(maps), lut, 0.3).get(), expected
    )
    np.testing.assert_array_equal(head.overlay(images, maps, lut, 0.3), expected)


def test_bad_input(head: Any, rng: Any) -> None:
    raw = np.ones((2, 3, 4, 4), np.float32)
    for raws in ([], [raw, raw[:1]], [raw[0]]):
        with pytest.raises(ValueError, match=r"raws: expected one array \(N, K, h, w\)"):
            head.finish(raws, (8, 8))
    raw[1, 2, 0, 3] = np.nan
    with pytest.raises(ValueError, match=r"raws: NaN or infinity in map \(1, 2\)"):
        head.finish([raw], (8, 8))
    maps, lut, images = np.ones((1, 1, 2, 2)), np.zeros((256, 3), np.uint8), np.zeros((1, 2, 2, 3), np.uint8)
    for wrong in ((images / 2, maps, lut, 0.5), (images[:, :1], maps, lut, 0.5), (images, maps, lut[1:], 0.5)):
        with pytest.raises(ValueError, match=r"images|lut"):
            head.overlay(*wrong)
    with pytest.raises(ValueError, match="alpha"):
        head.overlay(images, maps, lut, 1.5)
    with pytest.raises(ValueError, match=r"maps: NaN or infinity in map \(0, 0\)"):
        head.overlay(images, maps * np.nan, lut, 0.5)


def test_weighing_kernels_are_compiled_when_they_are_needed(head: Any, device: Any) -> None:
    raw = np.ones((1, 1, 4, 4), np.float32)
    head.finish([raw], (8, 8))
    head.overlay(np.zeros((1, 4, 4, 3), np.uint8), raw, np.zeros((256, 3), np.uint8), 0.5)
    assert [launch.MAPS_ONLY in given["options"] for given in device.modules] == [True]
    head.explain(raw, raw, (8, 8))
    assert [launch.MAPS_ONLY in given["options"] for given in device.modules] == [True, False]


def test_launches_are_those_of_the_plan_on_the_current_stream(head: Any, cupy: Any, device: Any) -> None:
    stream = cupy.cuda.Stream(non_blocking=True)
    raw = cupy.asarray(np.ones((1, 1, 4, 4), np.float32))
    head.finish([raw], (8, 8))
    with stream:
        stream.wait_event(device.null.record())
        head.finish([raw], (8, 8))
    launches = [entry[1:] for entry in device.log if entry[0] == "launch"]
    assert launches == [("cam_finish", 0), ("cam_finish", stream.ptr)]


def test_where_the_kernels_come_from(
    head: Any, cupy: Any, device: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(launch, "fatbin", lambda: tmp_path / "cam_head.fatbin")
    assert kernel(cupy, "cam_finish", 0)[0] == "fatbin"
    assert device.modules == [{"path": str(tmp_path / "cam_head.fatbin")}]
    with pytest.raises(
        HeadError, match=r"kernel 'no_such' cannot be had \(fatbin: CUDA.*; nvrtc: CUDA_ERROR_NOT_FOUND"
    ):
        kernel(cupy, "no_such", 0)


def test_the_text_is_compiled_where_there_is_no_fatbin_or_the_driver_is_too_old_for_it(
    head: Any, cupy: Any, device: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(launch, "fatbin", lambda: tmp_path / "refused.fatbin")
    assert kernel(cupy, "cam_finish", 0)[0] == "nvrtc"
    options = (*launch.NVRTC_OPTIONS, launch.MAPS_ONLY)
    assert device.modules[-1] == {"code": "the text", "options": options, "backend": "nvrtc"}
    count = len(device.modules)
    head.finish([np.ones((1, 1, 4, 4), np.float32)], (8, 8))
    assert len(device.modules) == count  # nothing is compiled again


def test_a_kernel_that_cannot_be_compiled_is_no_fault_of_the_maps(
    head: Any, monkeypatch: pytest.MonkeyPatch, spec_of: Any
) -> None:
    monkeypatch.setattr(launch, "source", lambda: 1 / 0)
    with pytest.raises(HeadError, match="nvrtc: division by zero"):
        finished(head, [np.ones((1, 1, 4, 4), np.float32)], None, (8, 8), spec_of)
