"""Sessions: providers and their options, threads, memory that is given back, warming up."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import pycam
from pycam.errors import InputError, ModelError, ProviderError
from pycam.runtime import providers
from pycam.runtime.session import make_session

Net = Callable[..., onnx.ModelProto]
CPU = "CPUExecutionProvider"


@pytest.fixture
def tiny(cnn: Net) -> bytes:
    """The small CNN."""
    return cnn().SerializeToString()


@pytest.fixture
def has_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """An onnxruntime that says it has CUDA and TensorRT."""
    names = ["TensorrtExecutionProvider", "CUDAExecutionProvider", CPU]
    monkeypatch.setattr(ort, "get_available_providers", lambda: names)


@pytest.mark.parametrize("asked", ["CPU", "cpu", CPU, ["cpuexecutionprovider"], ("CPU", {}), [("cpu", {})], None])
def test_the_cpu_by_any_name(tiny: bytes, asked: Any) -> None:
    assert make_session(tiny, asked).get_providers() == [CPU]


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("cuda", "CUDAExecutionProvider"),
        ("TensorRT", "TensorrtExecutionProvider"),
        ("trt", "TensorrtExecutionProvider"),
        ("DirectML", "DmlExecutionProvider"),
        ("dml", "DmlExecutionProvider"),
        ("coreml", "CoreMLExecutionProvider"),
        ("XNNPACK", "XnnpackExecutionProvider"),
        ("openvino", "OpenVINOExecutionProvider"),
        ("OpenVINOExecutionProvider", "OpenVINOExecutionProvider"),
    ],
)
def test_friendly_names(asked: str, name: str) -> None:
    assert providers.choose(asked) == [(name, {})]


def test_options_become_text_in_order_of_preference(has_cuda: None) -> None:
    asked: Any = ["CUDA", ("TensorRT", {"trt_fp16_enable": True, "trt_max_workspace_size": 2**30}), "CPU"]
    assert providers.choose(asked) == [
        ("CUDAExecutionProvider", {}),
        ("TensorrtExecutionProvider", {"trt_fp16_enable": "True", "trt_max_workspace_size": "1073741824"}),
        (CPU, {}),
    ]


def test_cuda_by_default_where_it_is(has_cuda: None) -> None:
    assert [name for name, _ in providers.choose(None)] == ["CUDAExecutionProvider", CPU]


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        (["cpuu"], ProviderError, r"cpuuExecutionProvider is unknown \(nearest: CPU.*which has .*CPUExec"),
        ([], ProviderError, "the provider list is empty"),
        ("XNNPACK", ProviderError, r"XnnpackExecutionProvider is not in this onnxruntime.*--use_xnnpack"),
        ("CoreML", ProviderError, r"CoreMLExecutionProvider is not in this onnxruntime.*macOS"),
        (["CPU", "cpu"], InputError, "CPUExecutionProvider is there twice"),
        ([("CPU", {"threads": 3})], InputError, r"CPU takes no options.*threads= and spin="),
        ([("CUDA", [1])], InputError, r"options of the provider 'CUDA' are \[1\]: give a dictionary"),
        ([("CUDA", {"device_id": [1]})], InputError, "option 'device_id'.*is of type list: options are text"),
        ([("CUDA", {"device_id": None})], InputError, "option 'device_id'.*is of type NoneType"),
        ([("CUDA", {1: "a"})], InputError, "option 1: 'a'"),
        ([("CUDA", {}, 3)], InputError, "give a name, or"),
        ([3], InputError, "provider 3: give a name"),
        (3, InputError, "providers=3: give a list"),
    ],
)
def test_what_cannot_be_had_is_an_error(tiny: bytes, asked: Any, error: type[Exception], message: str) -> None:
    if asked in ("XNNPACK", "CoreML") and providers.choose(asked)[0].name in ort.get_available_providers():
        pytest.skip(f"this onnxruntime has {asked}")
    with pytest.raises(error, match=message):
        make_session(tiny, asked)


def test_cuda_without_cuda(cnn: Net) -> None:
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(ProviderError, match=r"CUDAExecutionProvider is not in this onnxruntime.*'pycam-onnx\[gpu\]'"):
        pycam.Explainer(cnn(), providers=["CUDA"])


def test_falling_back_in_silence_is_an_error(tiny: bytes, has_cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime's GPU wheel starts on the CPU where there is no GPU: only the session's providers tell."""
    real = ort.InferenceSession
    monkeypatch.setattr(ort, "InferenceSession", lambda source, options, **_: real(source, options, providers=[CPU]))
    with pytest.raises(
        ProviderError, match=r"CUDAExecutionProvider was asked for but could not start \(.*CPUExec.*: ."
    ):
        make_session(tiny, ["CUDA", "CPU"])
    with pytest.raises(ProviderError, match="TensorrtExecutionProvider was asked for"):
        make_session(tiny, ["TensorRT", "CPU"])
    assert make_session(tiny).get_providers() == [CPU]  # not asked for by name


def test_a_provider_that_raises(tiny: bytes, has_cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that cannot run a model is told from a model that nothing can run."""
    real = ort.InferenceSession

    def start(source: Any, options: Any, providers: Any, **_: Any) -> Any:
        if providers[0][0] != CPU:
            raise RuntimeError("no kernel")
        return real(source, options, providers=[CPU])

    monkeypatch.setattr(ort, "InferenceSession", start)
    with pytest.raises(
        ProviderError, match="CUDAExecutionProvider cannot run this model, which the CPU can: no kernel"
    ):
        make_session(tiny, "CUDA")
    assert make_session(tiny).get_providers() == [CPU]
    with pytest.raises(ModelError, match="refuses the model"):
        make_session(b"\x08\x08", "CUDA")


@pytest.mark.skipif(not hasattr(ort, "get_ep_devices"), reason="this onnxruntime has no plugins")
def test_a_plugin(tiny: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of a plugin, with the CPU's own device in its place, which onnxruntime describes like a plugin's."""
    (device,) = [d for d in ort.get_ep_devices() if d.ep_name == CPU]
    monkeypatch.setattr(providers, "plugin_devices", lambda name: [device] if name == CPU else [])
    assert make_session(tiny, "CPU").get_providers() == [CPU]
    assert providers.picked(CPU, {"device": "cpu", "other": "1"}) == ([device], {"other": "1"})
    with pytest.raises(ProviderError, match="has no device of type 'NPU' here; it has CPU"):
        providers.picked(CPU, {"device": "npu"})


@pytest.mark.skipif(not hasattr(ort, "get_ep_devices"), reason="this onnxruntime has no plugins")
def test_a_plugin_that_is_not_there(tiny: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_openvino", None)
    with pytest.raises(ProviderError, match=r"plugin that is not installed: pip install onnxruntime-ep-openvino"):
        make_session(tiny, "OpenVINO")
    package: Any = types.ModuleType("onnxruntime_ep_openvino")
    package.get_library_path = lambda: str(tmp_path / "lib.so")
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_openvino", package)
    with pytest.raises(ProviderError, match=r"OpenVINOExecutionProvider cannot be loaded from .*lib\.so"):
        make_session(tiny, "OpenVINO")


def test_openvino(cnn: Net, images: np.ndarray) -> None:
    """Where its plugin is installed: it runs and agrees, or finds no device and says so."""
    pytest.importorskip("onnxruntime_ep_openvino", reason="needs onnxruntime-ep-openvino")
    precise = {"load_config": '{"CPU": {"INFERENCE_PRECISION_HINT": "f32"}}'}
    try:
        explainer = pycam.Explainer(cnn(), providers=[("OpenVINO", precise)])
    except ProviderError as error:
        assert "finds no device here" in str(error)  # noqa: PT017
        pytest.skip(str(error))
    found = explainer(images)
    assert found.provider == "OpenVINOExecutionProvider"
    np.testing.assert_allclose(found.heatmaps, pycam.Explainer(cnn())(images).heatmaps, atol=1e-3)


@pytest.mark.parametrize("threads", [0, -1, True, 1.5, "2"])
def test_no_such_number_of_threads(tiny: bytes, threads: Any) -> None:
    with pytest.raises(InputError, match=r"threads=.*: give a positive number, or None"):
        make_session(tiny, threads=threads)


def test_what_onnxruntime_is_told(tiny: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    said: dict[str, str] = {}

    class Options(ort.SessionOptions):
        def add_session_config_entry(self, name: str, value: str) -> None:
            said[name] = value
            super().add_session_config_entry(name, value)

    monkeypatch.setattr(ort, "SessionOptions", Options)
    session = make_session(tiny, threads=3, spin=False)
    assert session.get_session_options().intra_op_num_threads == 3
    assert said == {"session.intra_op.allow_spinning": "0", "session.inter_op.allow_spinning": "0"}
    said.clear()
    make_session(tiny)
    assert said == {}


def test_neither_spinning_nor_shrinking_changes_a_bit(cnn: Net, images: np.ndarray) -> None:
    want = pycam.Explainer(cnn("vgg"))(images, [[1, 2]] * 3)
    got = pycam.Explainer(cnn("vgg"), spin=False, shrink=True)(images, [[1, 2]] * 3)
    np.testing.assert_array_equal(got.heatmaps, want.heatmaps)
    np.testing.assert_array_equal(got.raw, want.raw)


# ---- memory ----------------------------------------------------------------------------------------------------------


def resident() -> float:
    """Megabytes of this process that are in memory."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("needs /proc/self/statm to measure memory")
    return int(statm.read_text().split()[1]) * 4096 / 1e6


def test_shrinking_gives_memory_back(text_model: Any) -> None:
    """One large run, then small ones: what the large one needed is not kept."""
    body = "{ a = Relu(x) b = Exp(a) c = Add(a, b) d = Abs(c) y = ReduceSum<keepdims = 0>(d) }"
    model = text_model(f"(float[N, N] x) => (float y) {body}").SerializeToString()
    large, small = np.zeros((4096, 4096), np.float32), np.zeros((8, 8), np.float32)  # 67 MB: more than malloc keeps
    held = {}
    for shrink in (False, True):
        session = make_session(model, threads=1, shrink=shrink)
        session.run(None, {"x": small})
        before = resident()
        session.run(None, {"x": large})
        session.run(None, {"x": small})
        held[shrink] = resident() - before
        del session
    assert held[False] > 120  # two matrices at least are kept ready
    assert held[True] < 8


@pytest.mark.parametrize("shrink", [False, True])
def test_memory_is_bounded_in_a_long_run(cnn: Net, shrink: bool) -> None:
    """Batches of varying sizes, K and shapes: after the first round, no more memory is taken."""
    explainer = pycam.Explainer(cnn(), shrink=shrink)
    sizes = [1, 7, 3, 32, 2, 17, 64, 5]

    def round_trip() -> None:
        for n in sizes:
            explainer(np.full((n, 3, 16, 16), 0.5, np.float32), "top3" if n % 2 else None)

    for _ in range(10):
        round_trip()
    before = resident()
    for _ in range(60):
        round_trip()
    assert resident() - before < 4


# ---- warming up ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["gradcam", "ablationcam", "scorecam", "layercam"])
def test_warming_up(cnn: Net, images: np.ndarray, method: str) -> None:
    explainer = pycam.Explainer(cnn(), method, "features")
    want = explainer(images).heatmaps
    seconds = explainer.warmup(3)
    assert isinstance(seconds, float)
    assert seconds > 0
    np.testing.assert_array_equal(explainer(images).heatmaps, want)
    explainer.warmup(2, targets=2)


def test_warming_up_for_several_targets(cnn: Net, images: np.ndarray) -> None:
    explainer = pycam.Explainer(cnn("turned"), layer="features")  # where each needs its own run
    assert explainer.warmup(3, targets=2) > 0
    assert explainer(images, "top3").heatmaps.shape == (3, 3, 16, 16)


def test_warming_up_smoothly_and_with_pixels(cnn: Net, tmp_path: Path) -> None:
    assert pycam.Explainer(cnn(), aug_smooth=True).warmup() > 0
    pre = pycam.Preprocess(size=(16, 16), mean=(127.0,) * 3, std=(64.0,) * 3)
    assert pycam.Explainer(pycam.export(cnn(), tmp_path / "e.onnx", preprocess=pre)).warmup(2) > 0


def test_a_free_size_must_be_given(cnn: Net) -> None:
    explainer = pycam.Explainer(cnn(height="H", width="W"))
    with pytest.raises(InputError, match=r"'x' leaves its axes \[2, 3\] free: say how long they are, size=\(height, w"):
        explainer.warmup()
    assert explainer.warmup(size=(16, 24)) > 0
    assert explainer.warmup(size={"x": (None, None, 24, 16)}) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch": 0}, "batch=0"),
        ({"batch": 2.5}, "batch=2.5"),
        ({"targets": 0}, "=0: give the number"),
        ({"size": (17, 16)}, r"size= gives \(None, None, 17, 16\) for the input 'x', which is \(N, 3, 16, 16\)"),
        ({"size": (16,)}, "have 2 sizes"),
        ({"size": {"z": (1, 2)}}, "size= names the input 'z'; the model has x"),
        ({"size": {"x": (1, 2)}}, r"size= gives \(1, 2\)"),
        ({"size": (0, 16)}, r"size= gives"),
    ],
)
def test_warming_up_with_what_does_not_fit(cnn: Net, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pycam.Explainer(cnn()).warmup(**arguments)


def test_warming_up_another_batch_than_the_model_takes(cnn: Net) -> None:
    explainer = pycam.Explainer(cnn(batch=2))
    assert explainer.warmup(2) > 0
    with pytest.raises(InputError, match="batch=1: the model takes batches of 2"):
        explainer.warmup()


def test_warming_up_further_inputs(cnn: Net) -> None:
    assert pycam.Explainer(cnn(extra_input=True)).warmup(2) > 0


def test_warming_up_what_is_given_more(cnn: Net) -> None:
    explainer = pycam.Explainer(cnn(), "gradcam", target=pycam.targets.Similarity())
    assert explainer.warmup() > 0
