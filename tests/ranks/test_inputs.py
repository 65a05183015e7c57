"""Which input is the image and how its axes lie; inputs that are pinned; models with several inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import pycam
from pycam.cli import main
from pycam.errors import InputError, LayerError, MethodError, ModelError

Net = Callable[..., onnx.ModelProto]
Model = Callable[..., onnx.ModelProto]
Draw = Callable[..., np.ndarray]


def _grad_cam(features: np.ndarray, w: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Behind global average pooling and `w` (classes, C): (N, 1, h, w)."""
    return np.einsum("nc,nchw->nhw", w[classes], features)[:, None] / np.prod(features.shape[2:])


@pytest.mark.parametrize("free", [(), ("batch",), ("batch", "height", "width")], ids=["fixed", "batch", "size"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("channels", [1, 3, 4, 12])
def test_grey_colour_and_many_bands(
    cnn: Net, cnn_weights: Any, forward: Any, draw: Draw, channels: int, layout: str, free: tuple[str, ...]
) -> None:
    """Where the channels lie is seen from the ops that read the image, whatever its sizes say."""
    sizes: dict[str, Any] = {"batch": 1, "height": 16, "width": 20} | dict(zip(free, "NHW", strict=False))
    model = cnn(layout=layout, channels=channels, **sizes)
    x = draw(2 if free else 1, channels, 16, 20)
    x = np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if layout == "NHWC" else x
    explainer = pycam.Explainer(model)
    result = explainer(x)
    assert explainer.spec.layout == layout
    assert result.heatmaps.shape == (len(x), 1, 16, 20)
    inner = onnx.ModelProto()
    inner.CopyFrom(model)
    inner.graph.output.append(onnx.helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, None))
    found = forward(inner, {"x": x})
    want = _grad_cam(found["features"], cnn_weights()["w_fc"], found["y"].argmax(axis=1))
    np.testing.assert_allclose(result.raw, want, atol=1e-5 * np.abs(want).max())


def test_a_layout_that_cannot_be_told(text_model: Model, draw: Draw) -> None:
    """A linear layer for each pixel: nothing says which axis holds the channels."""
    w, v = draw(6, 8, 8, seed=1), draw(6, 5, seed=2)
    text = """(float[N, 6, 8, 8] x) => (float[N, 5] y) {
        a = Mul(x, w) r = Relu(a) axes = Constant<value_ints = [2, 3]>()
        pooled = ReduceMean<keepdims = 0>(r, axes) y = MatMul(pooled, v) }"""
    model, x = text_model(text, w=w, v=v), draw(2, 6, 8, 8)
    assert pycam.Explainer(model).spec.layout == "NCHW"
    told = pycam.Explainer(model, "gradient", layout="NHWC")
    assert told(x).heatmaps.shape == (2, 1, 6, 8)
    assert told(x).extras["attributions"].shape == (2, 1, 8, 6, 8)
    same = pycam.Explainer(model, "gradient", layout={"x": "NHWC"})(x)
    assert np.array_equal(same.raw, told(x).raw)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("HWC", r"layout='HWC': choose one of NCHW, NHWC, NCL, NLC, NL, NCDHW, NDHWC"),
        ("NCL", r"layout='NCL': the input 'x' has 4 axes .*; NCHW or NHWC would fit"),
        ({"z": "NCHW"}, r"the model has no input 'z'; it has x"),
        ({"x": "NCHW", "y": "NCHW"}, "name one input"),
    ],
)
def test_a_layout_that_does_not_fit(cnn: Net, layout: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pycam.Explainer(cnn(), layout=layout)
    with pytest.raises(InputError, match=message):
        pycam.layers(cnn(), layout=layout)


def test_the_input_that_is_the_image_can_be_named(text_model: Model, draw: Draw) -> None:
    """Two views of a scene: the first is explained, or the one that is named."""
    text = """(float[N, 3, 8, 8] left, float[N, 3, 8, 8] right) => (float[N, 4] y) {
        a = Conv(left, w) b = Conv(right, w) ra = Relu(a) rb = Relu(b) s = Add(ra, rb)
        pooled = GlobalAveragePool(s) f = Flatten(pooled) y = Gemm(f, v) }"""
    model = text_model(text, w=draw(5, 3, 3, 3), v=draw(5, 4, seed=1))
    x = {"left": draw(2, 3, 8, 8, seed=2), "right": draw(2, 3, 8, 8, seed=3)}
    first = pycam.Explainer(model, "input_x_gradient")
    other = pycam.Explainer(model, "input_x_gradient", layout={"right": "NCHW"})
    assert (first.spec.image, other.spec.image) == ("left", "right")
    swapped = first({"left": x["right"], "right": x["left"]}, 1)
    np.testing.assert_allclose(other(x, 1).raw, swapped.raw, rtol=1e-5, atol=1e-6)
    assert np.abs(other(x, 1).raw - first(x, 1).raw).max() > 0.01


@pytest.mark.parametrize("order", ["image first", "image last"])
@pytest.mark.parametrize("output", [None, "p"])
def test_several_inputs_and_outputs(text_model: Model, draw: Draw, order: str, output: str | None) -> None:
    inputs = ["float[N, 3, 8, 8] x", "float[N, 2] facts", "float gain"]
    inputs = inputs if order == "image first" else inputs[::-1]
    text = f"""({", ".join(inputs)}) => (float[N, 4] y, float[N, 4] p, float[N, 2] twice) {{
        a = Conv(x, w) r = Relu(a) pooled = GlobalAveragePool(r) f = Flatten(pooled) g = Mul(f, gain)
        both = Concat<axis = 1>(g, facts) y = Gemm(both, v) p = Softmax(y) twice = Add(facts, facts) }}"""
    w, v = draw(5, 3, 3, 3), draw(7, 4, seed=1)
    model = text_model(text, w=w, v=v)
    feeds = {"x": draw(2, 3, 8, 8, seed=2), "facts": draw(2, 2, seed=3), "gain": np.float32(2)}
    result = pycam.Explainer(model, output=output)(feeds)
    assert set(result.scores) == {"y", "p", "twice"}
    assert result.targets[:, 0].tolist() == result.scores["y"].argmax(axis=1).tolist()
    assert result.raw.shape == (2, 1, 6, 6)
    windows = np.lib.stride_tricks.sliding_window_view(feeds["x"], (3, 3), (2, 3))
    features = np.maximum(np.einsum("nchwij,ocij->nohw", windows, w), 0)
    want = _grad_cam(features, 2 * v[:5].T, result.targets[:, 0])
    np.testing.assert_allclose(result.raw, want, atol=1e-5 * np.abs(want).max())
    for method in ("occlusion", "scorecam"):
        found = pycam.Explainer(model, method, output=output)(feeds)
        assert found.heatmaps.shape == (2, 1, 8, 8)
    pinned = pycam.Explainer(model, output=output, pins={"gain": 2})
    assert [i.name for i in pinned.inputs if i.name != "facts"] == ["x"]
    np.testing.assert_allclose(pinned({k: feeds[k] for k in ("x", "facts")}).raw, result.raw, rtol=1e-5, atol=1e-6)


BRANCHES = """(float[N, L] sound, int64 rate) => (float[N, 3] y) {
    two = Constant<value_int = 16000>() fast = Equal(rate, two)
    y = If(fast) <
        then_branch = wide () => (float[N, 3] y1) {
            i1 = Unsqueeze(sound, one) a1 = Conv<strides = [4]>(i1, w1) r1 = Relu(a1)
            p1 = GlobalAveragePool(r1) f1 = Flatten(p1) y1 = MatMul(f1, v) },
        else_branch = narrow () => (float[N, 3] y2) {
            i2 = Unsqueeze(sound, one) a2 = Conv<strides = [2]>(i2, w2) r2 = Relu(a2)
            p2 = GlobalAveragePool(r2) f2 = Flatten(p2) y2 = MatMul(f2, v) } > }"""


@pytest.fixture
def branches(text_model: Model, draw: Draw) -> onnx.ModelProto:
    """A classifier of sounds with an `If` on the sampling rate."""
    one = np.array([1], np.int64)
    return text_model(BRANCHES, w1=draw(6, 1, 9), w2=draw(6, 1, 5, seed=1), v=draw(6, 3, seed=2), one=one)


@pytest.mark.parametrize(("rate", "name", "kernel", "stride"), [(16000, "r1", "w1", 4), (8000, "r2", "w2", 2)])
def test_a_pinned_input_settles_its_branches(
    branches: onnx.ModelProto, draw: Draw, tmp_path: Path, rate: int, name: str, kernel: str, stride: int
) -> None:
    x = draw(2, 100, seed=4)
    listed = pycam.layers(branches, pins={"rate": rate})
    assert name in {layer.name for layer in listed}
    explainer = pycam.Explainer(branches, pins={"rate": rate})
    assert explainer.spec.layout == "NL"
    assert [i.name for i in explainer.inputs] == ["sound"]
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in branches.graph.initializer}
    w, v = weights[kernel], weights["v"]
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2], 1)[:, ::stride]
    features = np.maximum(np.einsum("nlk,ck->ncl", windows, w[:, 0]), 0)
    scores = features.mean(axis=2) @ v
    result = explainer(x)
    np.testing.assert_allclose(result.scores, scores, rtol=1e-4, atol=1e-5)
    want = np.einsum("nc,ncl->nl", v.T[scores.argmax(axis=1)], features)[:, None] / features.shape[2]
    np.testing.assert_allclose(result.raw, want, atol=1e-5 * np.abs(want).max())
    path = pycam.export(branches, tmp_path / "e.onnx", pins={"rate": rate})
    exported = pycam.Explainer(path)
    assert np.array_equal(exported(x).targets, result.targets)
    np.testing.assert_allclose(exported(x).heatmaps, result.heatmaps, atol=1e-5)
    with pytest.raises(MethodError, match=r"its inputs built in \(the image 'sound' is NL\): leave pins= out"):
        pycam.Explainer(path, pins={"rate": rate})
    with pytest.raises(MethodError, match="leave layout= out"):
        pycam.Explainer(path, layout="NCL")
    assert pycam.Explainer(path, layout="NL").spec.layout == "NL"


def test_a_branching_model_says_what_to_pin(branches: onnx.ModelProto, draw: Draw) -> None:
    with pytest.raises(LayerError, match=r"branches \(If\) on its input 'rate'.*pins=\{'rate': …\}"):
        pycam.Explainer(branches)
    feeds = {"sound": draw(2, 100), "rate": np.int64(8000)}
    whole = pycam.Explainer(branches, "gradient")(feeds)  # looks at no layer
    pinned = pycam.Explainer(branches, "gradient", pins={"rate": 8000})(feeds["sound"])
    np.testing.assert_allclose(whole.raw, pinned.raw, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("pins", "message"),
    [
        ({"rates": 1}, "the model has no input 'rates' to pin; it has sound, rate"),
        ({"rate": 1.5}, "the input 'rate' holds int64, and 1.5 is none"),
        ({"rate": "fast"}, "the value of the input 'rate' is no array of int64"),
        ({"rate": [1, 2]}, r"the input 'rate' has shape \[\], and its value has \[2\]"),
        ({"rate": 1, "sound": np.zeros((1, 9))}, "every input of the model"),
    ],
)
def test_pins_that_do_not_fit(branches: onnx.ModelProto, pins: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pycam.Explainer(branches, pins=pins)


def test_the_model_itself_stays_as_it_is(branches: onnx.ModelProto) -> None:
    before = branches.SerializeToString()
    pycam.Explainer(branches, pins={"rate": 8000.0})  # a number of the same value
    assert branches.SerializeToString() == before


def test_on_the_command_line(branches: onnx.ModelProto, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, path = tmp_path / "m.onnx", tmp_path / "e.onnx"
    onnx.save(branches, model)
    assert main(["layers", str(model), "--pin", "rate=16000"]) == 0
    assert "r1" in capsys.readouterr().out
    assert main(["export", str(model), str(path), "--pin", "rate=16000", "--layout", "sound=NL"]) == 0
    assert "inputs: sound (NL)" in capsys.readouterr().out
    assert pycam.Explainer(path).spec.layer == "r1"
    for arguments, message in (
        (["--pin", "rate"], "write INPUT=VALUE"),
        (["--pin", "speed=3"], "no input 'speed' to pin"),
        (["--layout", "NLW"], "layout='NLW': choose one of"),
    ):
        assert main(["layers", str(model), *arguments]) == 1
        assert message in capsys.readouterr().err


def test_text_is_no_signal(text_model: Model) -> None:
    """Word numbers are integers, and nothing can be said of them."""
    text = """(int64[N, 7] words) => (float[N, 3] y) {
        e = Gather(table, words) axes = Constant<value_ints = [1]>() y = ReduceMean<keepdims = 0>(e, axes) }"""
    model = text_model(text, table=np.ones((9, 3), np.float32))
    with pytest.raises(ModelError, match=r"no image input: a picture .*, a volume .*, or a signal .* words \['N', 7\]"):
        pycam.Explainer(model)


def test_layers_of_another_form(text_model: Model, draw: Draw) -> None:
    """A spectrogram of a signal has two axes of positions, and no way back."""
    text = """(float[N, 1, 64] x) => (float[N, 3] y) {
        shape = Constant<value_ints = [0, 1, 8, 8]>() grid = Reshape(x, shape) a = Conv(grid, w) r = Relu(a)
        pooled = GlobalAveragePool(r) f = Flatten(pooled) y = MatMul(f, v) }"""
    model = text_model(text, w=draw(5, 1, 3, 3), v=draw(5, 3, seed=1))
    with pytest.raises(LayerError, match=r"has shape \['N', 5, 6, 6\].*a signal needs features \(N, C, l\) or \(N, l"):
        pycam.Explainer(model, layer="r")
    with pytest.raises(LayerError, match=r"found no features \(N, C, l\) or \(N, l, C\)"):
        pycam.Explainer(model)
    assert pycam.Explainer(model, "gradient")(draw(2, 1, 64)).heatmaps.shape == (2, 1, 64)


def test_rows_of_one_row(text_model: Model, draw: Draw) -> None:
    """Converters write convolutions of signals as those of pictures with one row, or one column."""
    w, v, x = draw(5, 3, 7, seed=1), draw(5, 4, seed=2), draw(2, 3, 30)
    found = {}
    for axis, kernel in ((2, w[:, :, None]), (3, w[..., None])):
        text = f"""(float[N, 3, 30] x) => (float[N, 4] y) {{
            axes = Constant<value_ints = [{axis}]>() grid = Unsqueeze(x, axes) a = Conv(grid, w) r = Relu(a)
            back = Squeeze(r, axes) over = Constant<value_ints = [2]>()
            pooled = ReduceMean<keepdims = 0>(back, over) y = MatMul(pooled, v) }}"""
        model = text_model(text, w=kernel, v=v)
        found[axis] = [pycam.Explainer(model, method, layer="r")(x) for method in ("gradcam", "ablationcam")]
        assert pycam.Explainer(model, layer="back").spec.layers == ("back",)
    windows = np.lib.stride_tricks.sliding_window_view(x, 7, 2)
    features = np.maximum(np.einsum("nclk,ock->nol", windows, w), 0)
    for gradcam, ablation in found.values():
        want = np.einsum("nc,ncl->nl", v.T[gradcam.targets[:, 0]], features)[:, None] / features.shape[2]
        np.testing.assert_allclose(gradcam.raw, want, atol=1e-5 * np.abs(want).max())
        assert ablation.raw.shape == (2, 1, 24)


PINS = {"sr": 16000}
FRAME = {"input": [1, 576], "state": [2, 1, 128]}


def test_silero(shared: Path) -> None:
    """The voice detector: three inputs, an If on the sampling rate, Ifs on shapes, an LSTM."""
    model = shared / "models" / "silero_vad.onnx"
    with pytest.raises(LayerError, match=r"branches \(If\) on its input 'sr'.*pins=\{'sr': …\}"):
        pycam.Explainer(model, target=pycam.targets.Binary())
    listed = {layer.module.rpartition("__/")[2]: layer.shape for layer in pycam.layers(model, pins=PINS, size=FRAME)}
    assert listed["stft"] == (1, 129, 4)
    assert listed["encoder/0/activation"] == (1, 128, 4)
    assert listed["encoder/1/activation"] == (1, 64, 2)
    explainer = pycam.Explainer(model, target=pycam.targets.Binary(), pins=PINS, size=FRAME)
    assert explainer.spec.layout == "NL"
    assert explainer.spec.layer.endswith("encoder/1/activation")
    rate8 = {layer.name for layer in pycam.layers(model, pins={"sr": 8000})}
    assert all("else_branch" in name for name in rate8)


def _voice(start: int, end: int, seed: int) -> np.ndarray:
    """A frame of near silence with something like a vowel in it: harmonics of 130 Hz with three formants."""
    rng = np.random.default_rng(seed)
    t, sound = np.arange(end - start) / 16000, np.zeros(end - start)
    for f in 130 * np.arange(1, 30):
        level = 0.02 + sum(
            np.exp(-(((f - peak) / width) ** 2)) for peak, width in ((700, 150), (1200, 200), (2600, 300))
        )
        sound += level * np.sin(2 * np.pi * f * t + rng.uniform(0, 6))
    frame = rng.normal(scale=1e-3, size=(1, 576))
    frame[0, start:end] += 0.5 * sound / np.abs(sound).max() * np.hanning(end - start) ** 0.3
    return frame.astype(np.float32)


@pytest.mark.parametrize(("method", "share"), [("gradcam", 0.8), ("layercam", 0.8), ("integrated_gradients", 0.95)])
def test_silero_points_at_the_voice(shared: Path, method: str, share: float) -> None:
    """Of frames with a vowel in the first or last 256 of 576 samples, and noise that is as loud in the others."""
    explainer = pycam.Explainer(
        shared / "models" / "silero_vad.onnx",
        method,
        target=pycam.targets.Binary(),
        pins=PINS | {"state": np.zeros((2, 1, 128))},
        size={"input": FRAME["input"]},
    )
    hits = []
    for start, other in ((0, 320), (320, 0)):
        for seed in range(10):
            frame = _voice(start, start + 256, seed)
            loud = np.sqrt((frame[0, start : start + 256] ** 2).mean())
            noise = np.random.default_rng(seed + 99).normal(scale=loud, size=256)
            frame[0, other : other + 256] += noise.astype(np.float32)
            maps = explainer(frame).heatmaps[0, 0]
            hits.append(maps.max() > 0 and start <= maps.argmax() < start + 256)
    assert np.mean(hits) >= share
