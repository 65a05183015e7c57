"""Explainers whose tensors stay on a device: against those of the CPU, on a fake (fake.py says what that shows)."""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pycam
from pycam.errors import HeadError, InputError, ProviderError
from pycam.head import launch
from pycam.runtime import device as runtime
from pycam.runtime.session import make_session

CUDA = ["CUDAExecutionProvider"]
GRAPHS = [("CUDAExecutionProvider", {"enable_cuda_graph": "1"})]


@pytest.fixture
def device(model: Any, new_memory: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    spec = importlib.util.spec_from_file_location("fake_cupy", Path(__file__).with_name("fake.py"))
    assert spec is not None
    assert spec.loader is not None
    fake = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fake)
    device = fake.Device(model, new_memory())
    device.sessions = []

    def session(source: Any, providers: Any = None, **options: Any) -> Any:
        real = make_session(source, ["CPUExecutionProvider"], **options)
        if providers is None or providers[0][0] not in runtime.CAPTURE:
            return real
        device.sessions.append(fake.Session(device, real, providers))
        return device.sessions[-1]

    monkeypatch.setitem(sys.modules, "cupy", fake.module_of(device))
    monkeypatch.setattr(launch, "source", lambda: "the text")
    monkeypatch.setattr(launch, "fatbin", lambda: None)
    monkeypatch.setattr(runtime, "make_session", session)
    monkeypatch.setattr("pycam.loading.make_session", session)  # of stages
    yield device
    device.memory.check()


@pytest.fixture
def cupy(device: Any) -> Any:
    return sys.modules["cupy"]


def on_cpu(net: Any, *arguments: Any, **options: Any) -> pycam.Explainer:
    return pycam.Explainer(net, *arguments, providers=["CPUExecutionProvider"], **options)


def same(found: pycam.Explanation, expected: pycam.Explanation) -> None:
    """`found` is of numpy arrays and equals what the CPU found."""
    for name in ("heatmaps", "raw", "scores", "targets", "flat"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert isinstance(ours, np.ndarray), name
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("providers", [CUDA, GRAPHS, ["TensorrtExecutionProvider", "CUDAExecutionProvider"]])
@pytest.mark.parametrize("head", [None, "cuda", "graph", "cpu"])
def test_it_explains_as_the_cpu_does(cnn: Any, images: np.ndarray, device: Any, providers: Any, head: Any) -> None:
    net = cnn(tail="mlp")
    explainer = pycam.Explainer(net, providers=providers, head=head)
    expected = pycam.Explainer(net, providers=["CPUExecutionProvider"])
    for targets in (None, [[1, 2, 3]] * 3, None):
        same(explainer(images, targets), expected(images, targets))
    assert explainer.provider == (providers[0] if isinstance(providers[0], str) else providers[0][0])
    kernels = {entry[1] for entry in device.log if entry[0] == "launch"}
    assert kernels == ({"cam_finish"} if head in (None, "cuda") else set())


def test_one_stream_of_its_own_per_session(cnn: Any, images: np.ndarray, device: Any) -> None:
    for _ in range(2):
        pycam.Explainer(cnn(), providers=CUDA)(images)
    streams = [s.stream.ptr for s in device.sessions]
    assert len(set(streams)) == 2
    assert 0 not in streams
    for session, stream in zip(device.sessions, streams, strict=True):
        assert session.providers[0] == ("CUDAExecutionProvider", {"device_id": "0", "user_compute_stream": str(stream)})
    assert {entry[-1] for entry in device.log if entry[0] in ("run", "launch")} == set(streams)


def test_tensorrt_and_cuda_share_the_stream(cnn: Any, images: np.ndarray, device: Any) -> None:
    pycam.Explainer(cnn(), providers=[("Tensorrt", {"trt_fp16_enable": "1"}), "CUDA", "CPU"])
    (first, mine), (second, shared), (third, none) = device.sessions[0].providers
    assert [first, second, third] == [f"{p}ExecutionProvider" for p in ("Tensorrt", "CUDA", "CPU")]
    assert mine == {**shared, "trt_fp16_enable": "1"}
    assert none == {}


def test_a_stream_of_the_users(cnn: Any, images: np.ndarray, device: Any) -> None:
    mine = device.stream()
    explainer = pycam.Explainer(cnn(), providers=[("CUDAExecutionProvider", {"user_compute_stream": str(mine.ptr)})])
    explainer(images)
    assert ("run", "-1", mine.ptr) in device.log


def test_the_head_is_launched_before_the_host_waits(cnn: Any, images: np.ndarray, device: Any) -> None:
    explainer = pycam.Explainer(cnn(), providers=CUDA)
    device.log.clear()
    device.copies.clear()
    explainer(images)
    kinds = [entry[0] for entry in device.log]
    assert kinds[: kinds.index("launch") + 1] == ["run", "launch"]
    # scores, explained classes, heatmaps, raw maps; and which are flat
    assert device.copies == {"to device": 2, "to host": 5}  # the image and the targets


def test_maps_stay_on_the_device(cnn: Any, images: np.ndarray, device: Any, cupy: Any) -> None:
    explainer = pycam.Explainer(cnn(), providers=CUDA, device="cuda")
    expected = on_cpu(cnn())(images)
    device.copies.clear()
    result = explainer(images)
    assert device.copies["to host"] == 3  # scores, classes, flags
    assert isinstance(result.heatmaps, cupy.ndarray)
    assert isinstance(result.raw, cupy.ndarray)
    again = explainer(images[::-1].copy())  # overwrites what is not a copy
    same(result.cpu(), expected)
    np.testing.assert_allclose(again.heatmaps.get(), expected.heatmaps[::-1], rtol=0, atol=1e-5)
    assert result.cpu().cpu().heatmaps.shape == result.heatmaps.shape


def test_maps_of_the_graph_stay_too(cnn: Any, images: np.ndarray, device: Any, cupy: Any, tmp_path: Path) -> None:
    pycam.export(cnn(), tmp_path / "explain.onnx")
    explainer = pycam.Explainer(tmp_path / "explain.onnx", providers=CUDA, device="cuda")
    result = explainer(images)
    explainer(-images)
    assert isinstance(result.heatmaps, cupy.ndarray)
    same(result.cpu(), on_cpu(tmp_path / "explain.onnx")(images))


def test_what_an_explanation_on_the_device_does(
    cnn: Any, images: np.ndarray, device: Any, cupy: Any, tmp_path: Path
) -> None:
    result = pycam.Explainer(cnn(), providers=CUDA, device="cuda")(images)
    expected = on_cpu(cnn())(images)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    shown = result.overlay(cupy.asarray(pixels))
    assert isinstance(shown, cupy.ndarray)
    assert np.abs(shown.get().astype(int) - expected.overlay(pixels)).max() <= 1  # a level, where rounding differs
    assert isinstance(result.overlay(pixels), cupy.ndarray)
    assert isinstance(result.per_layer()[0], cupy.ndarray)
    np.testing.assert_array_equal(result.boxes(), expected.boxes())
    assert result.to_dict()["boxes"] == expected.to_dict()["boxes"]
    assert repr(result) == repr(expected)
    result.save(tmp_path / "maps.png")
    result.save(tmp_path / "over.png", cupy.asarray(pixels))
    assert result.signed(pixels).shape == (3, 1, 16, 16, 3)
    with pytest.raises(InputError, match=r"drawn on the host.*cpu\(\)"):
        result.overlay(pixels, boxes=0.2)
    assert result.cpu().overlay(pixels, boxes=0.2).shape == shown.shape


class Foreign:
    """A device array of another library."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()

    def __dlpack__(self, **given: Any) -> Any:
        return self.array.__dlpack__(**given)


@pytest.mark.parametrize("providers", [CUDA, GRAPHS])
@pytest.mark.parametrize("wrap", [lambda x: x, Foreign])
def test_device_arrays_go_in_without_a_copy(
    cnn: Any, images: np.ndarray, device: Any, cupy: Any, providers: Any, wrap: Callable[[Any], Any]
) -> None:
    explainer = pycam.Explainer(cnn(), providers=providers)
    expected = on_cpu(cnn())(images)
    there = cupy.asarray(images)
    explainer(wrap(there))
    device.copies.clear()
    found = explainer(wrap(there))
    assert device.copies["to device"] == 1  # the targets
    same(found, expected)
    same(explainer({"image": wrap(there)} if explainer.spec.image == "image" else wrap(there)), expected)


def test_what_the_caller_put_on_its_stream_comes_first(cnn: Any, images: np.ndarray, device: Any, cupy: Any) -> None:
    explainer = pycam.Explainer(cnn(), providers=CUDA)
    mine = cupy.cuda.Stream(non_blocking=True)
    with mine:
        there = cupy.asarray(images)  # yet to be copied
        found = explainer(there)
    same(found, on_cpu(cnn())(images))


def test_a_session_waits_for_the_stream_of_its_caller(cnn: Any, images: np.ndarray, device: Any, cupy: Any) -> None:
    session = pycam.Explainer(cnn(), providers=CUDA)._one.session
    place = runtime.place_of(session)
    assert isinstance(place, runtime.Bound)
    with cupy.cuda.Stream(non_blocking=True):
        feeds = {session.get_inputs()[0].name: cupy.asarray(images)}  # yet to be copied
        feeds |= {i.name: np.full((3, 1), -1, np.int64) for i in session.get_inputs()[1:]}
        names = [o.name for o in session.get_outputs()]
        with place.turn():
            found = place.fetch(dict(zip(names, session.run(names, feeds), strict=True)))
    plain = on_cpu(cnn())._one.session.run(names, {**feeds, session.get_inputs()[0].name: images})
    for name, array in zip(names, plain, strict=True):
        np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-6)


def test_bad_device_arrays(cnn: Any, images: np.ndarray, device: Any, cupy: Any) -> None:
    explainer = pycam.Explainer(cnn(), providers=CUDA)
    there = cupy.asarray(images)
    with pytest.raises(InputError, match=r"has shape \(3, 3, 16\)"):
        explainer(there[..., 0])
    with pytest.raises(InputError, match="is float64; the model takes float32"):
        explainer(cupy.asarray(images.astype(np.float64)))
    there[1, 2, 3, 4] = np.float32(np.nan)
    with pytest.raises(InputError, match=r"holds nan at \(1, 2, 3, 4\)"):
        explainer(there)
    elsewhere = cupy.asarray(images)
    elsewhere.device.id = 1
    with pytest.raises(InputError, match=r"lies on CUDA device 1, and the session runs on device 0"):
        explainer(elsewhere)
    with pytest.raises(InputError, match=r"lies on a CUDA device, and the model, which runs on CPU.*x\.get\(\)"):
        pycam.Explainer(cnn(), providers=["CPUExecutionProvider"])(cupy.asarray(images))


def test_numbers_that_overflow(cnn: Any, images: np.ndarray, device: Any) -> None:
    for providers in (CUDA, ["CPUExecutionProvider"]):
        with pytest.raises(InputError, match="the explanation is not finite"):
            pycam.Explainer(cnn(tail="mlp"), providers=providers)(images * np.float32(5e37))


@pytest.mark.parametrize("providers", [CUDA, GRAPHS])
def test_many_threads(cnn: Any, draw: Any, device: Any, providers: Any) -> None:
    explainer, plain = pycam.Explainer(cnn(), providers=providers), on_cpu(cnn())
    batches = [draw(1 + seed % 3, 3, 16, 16, seed=seed) for seed in range(24)]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(explainer, batches))
    for one, batch in zip(found, batches, strict=True):
        same(one, plain(batch))
    if providers is GRAPHS:  # one graph per shape, all of one thread
        graphs = device.sessions[0].graphs
        assert len(graphs) == 3
        assert len({thread for thread, _ in graphs}) == 1
        assert threading.get_ident() not in {thread for thread, _ in graphs}


def test_a_graph_per_shape_and_no_more_than_there_may_be(
    cnn: Any, draw: Any, device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "GRAPHS", 2)
    explainer, plain = pycam.Explainer(cnn(), providers=GRAPHS), on_cpu(cnn())
    for count in (1, 2, 3, 2, 1, 3):
        batch = draw(count, 3, 16, 16, seed=count)
        same(explainer(batch), plain(batch))
    runs = [entry[1] for entry in device.log if entry[0] == "run"]
    assert runs == ["-1", "1", "-1", "2", "-1", "2", "1", "-1"]
    before = len(device.memory.buffers)
    explainer(draw(1, 3, 16, 16))
    fresh = [seen for seen, _ in device.memory.buffers[before:] if seen.shape == (1, 3, 16, 16)]
    assert not fresh  # the image went to where the graph reads it


def test_smoothing_and_signals(cnn: Any, images: np.ndarray, device: Any, cupy: Any) -> None:
    smooth = pycam.Explainer(cnn(), providers=CUDA, aug_smooth=True, device="cuda")
    same(smooth(cupy.asarray(images)).cpu(), on_cpu(cnn(), aug_smooth=True)(images))


@pytest.mark.parametrize("combine", ["mean", "max", "product"])
def test_several_layers(cnn: Any, images: np.ndarray, device: Any, combine: Any) -> None:
    layers = ["features", "first"]
    names = [row.name for row in pycam.layers(cnn())][:2] or layers
    options = {"layer": names, "combine": combine}
    found = pycam.Explainer(cnn(), providers=CUDA, device="cuda", **options)(images).cpu()
    expected = on_cpu(cnn(), **options)(images)
    np.testing.assert_allclose(found.heatmaps, expected.heatmaps, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(found.flat, expected.flat)
    for ours, theirs in zip(found.raw, expected.raw, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_methods_that_combine_passes_on_the_host(cnn: Any, images: np.ndarray, device: Any) -> None:
    with pytest.raises(ProviderError, match=r"device='cuda': "):
        pycam.Explainer(cnn(), "scorecam", providers=CUDA, device="cuda")


def test_device_is_checked(cnn: Any, device: Any) -> None:
    with pytest.raises(InputError, match="device='gpu': give 'cpu' or 'cuda'"):
        on_cpu(cnn(), device="gpu")
    with pytest.raises(ProviderError, match=r"device='cuda': the model runs on CPUExecutionProvider; give providers="):
        pycam.Explainer(cnn(), providers=["CPUExecutionProvider"], device="cuda")
    with pytest.raises(HeadError, match=r"device='cuda': the head cpu works on the CPU"):
        pycam.Explainer(cnn(), providers=CUDA, device="cuda", head="cpu")


def test_embeddings_come_home(text_model: Any, draw: Any, device: Any) -> None:
    net = text_model(
        "(float[N, 3, 8, 8] x) => (float[N, 4] y) {"
        " c = Conv(x, w) r = Relu(c) p = GlobalAveragePool(r) y = Flatten(p) }",
        w=draw(4, 3, 3, 3),
    )
    x = draw(2, 3, 8, 8)
    target = pycam.targets.Similarity()
    found = pycam.Explainer(net, providers=CUDA, target=target).embed(x)
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(found, on_cpu(net, target=target).embed(x), rtol=0, atol=1e-6)
