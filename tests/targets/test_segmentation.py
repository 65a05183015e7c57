"""Segmentation: a class over a mask, a box, a pixel, or where it wins."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, ImageDraw, ImageFont

import pycam
from pycam.errors import LayerError, ModelError, TargetError
from pycam.graph.builder import Builder
from pycam.targets import Segmentation
from pycam.targets.segmentation import area_means

FOLDER = Path(__file__).parent
TARGETS = np.array([[0, 2], [-1, 1]])
MASK = np.random.default_rng(5).uniform(size=(8, 12)) * (np.random.default_rng(6).uniform(size=(8, 12)) > 0.5)

TEXT = """({image} x) => ({result} y) {{
    image = {before}
    stem = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]>(image, w_stem)
    features = Relu(stem)
    hidden = Conv<kernel_shape = [1, 1]>(features, w_hidden)
    active = Sigmoid(hidden)
    logits = Conv<kernel_shape = [1, 1]>(active, w_last)
    laid = {after}
    y = {end}
}}"""


def drawn(classes: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    shapes = {"w_stem": (5, 3, 3, 3), "w_hidden": (6, 5, 1, 1), "w_last": (classes, 6, 1, 1)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def build(
    text_model: Any, layout: str = "NCHW", end: str = "Identity(laid)", classes: int = 3, sizes: Any = (8, 12)
) -> onnx.ModelProto:
    """Logits (N, classes, 4, 6), or (N, 4, 6, classes)."""
    height, width = sizes
    shapes = {"NCHW": f"N, 3, {height}, {width}", "NHWC": f"N, {height}, {width}, 3"}
    last = layout == "NHWC"
    text = TEXT.format(
        image=f"float[{shapes[layout]}]",
        result="float[N, p, q, r]",
        before="Transpose<perm = [0, 3, 1, 2]>(x)" if last else "Identity(x)",
        after="Transpose<perm = [0, 2, 3, 1]>(logits)" if last else "Identity(logits)",
        end=end,
    )
    return text_model(text, **drawn(classes))


def tail(a: np.ndarray, classes: int = 3) -> np.ndarray:
    """Features (5, h, w) → logits (classes, h, w)."""
    w = {name: array.astype(np.float64) for name, array in drawn(classes).items()}
    active = 1 / (1 + np.exp(-np.einsum("oc,chw->ohw", w["w_hidden"][:, :, 0, 0], a)))
    return np.einsum("oc,chw->ohw", w["w_last"][:, :, 0, 0], active)


@pytest.fixture(scope="module")
def x(draw: Any) -> np.ndarray:
    return draw(2, 3, 8, 12, seed=3)


@pytest.fixture(scope="module")
def features(x: np.ndarray, text_model: Any, forward: Any) -> np.ndarray:
    model = build(text_model)
    model.graph.output.append(onnx.ValueInfoProto(name="features"))
    return forward(model, {"x": x})["features"]


def wanted(
    reference: Any, method: str, features: np.ndarray, targets: np.ndarray, mask: np.ndarray | None, sign: float = 1
) -> np.ndarray:
    """Raw maps (N, K, 4, 6) for a mask at the output's size, or for where each class wins."""
    found = np.empty((*targets.shape, 4, 6))
    for n, k in np.ndindex(targets.shape):
        wins = tail(features[n]).argmax(0)
        t = targets[n, k]
        m = mask if mask is not None else wins == t
        found[n, k] = reference(method, lambda a, m=m, t=t: sign * float((tail(a)[t] * m).sum()), features[n])
    return found


ENDS = {
    "plain": ("Identity(laid)", {}),
    "softmax": ("Softmax<axis = AXIS>(laid)", {}),
    "sigmoid": ("Sigmoid(laid)", {}),
    "argmax": ("ArgMax<axis = AXIS>(laid)", {}),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_gradients(
    text_model: Any, reference: Any, close: Any, x: np.ndarray, features: np.ndarray, layout: str, end: str
) -> None:
    """Of a mask, whose means over 2 × 2 pixels weigh the positions of the output, and where classes win."""
    axis = {"NCHW": 1, "NHWC": 3}[layout]
    model = build(text_model, layout, ENDS[end][0].replace("AXIS", str(axis)))
    if end == "argmax":
        model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    explainer = pycam.Explainer(model, "layercam", "features", target=Segmentation())
    image = x if layout == "NCHW" else np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    small = MASK.reshape(4, 2, 6, 2).mean((1, 3))
    scores = np.stack([tail(a) for a in features])
    targets = np.where(TARGETS < 0, (scores * small).sum((2, 3)).argmax(1)[:, None], TARGETS)
    given = explainer(image, TARGETS, mask=MASK)
    np.testing.assert_array_equal(given.targets, targets)
    close(given.raw, wanted(reference, "layercam", features, targets, small))
    np.testing.assert_allclose(given.extras["area"], np.full((2, 2), small.mean()), rtol=1e-5)

    wins = scores.argmax(1)
    found = explainer(image, [[0, 1, 2]] * 2)
    every = np.array([[0, 1, 2]] * 2)
    close(found.raw, wanted(reference, "layercam", features, every, None))
    area = np.stack([(wins == t).mean((1, 2)) for t in range(3)], 1)
    np.testing.assert_allclose(found.extras["area"], area, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(explainer(image, 1).targets, [[1], [1]])


@pytest.mark.parametrize("method", ["gradcam", "ablationcam"])
def test_methods_and_objectives(
    text_model: Any, reference: Any, close: Any, x: np.ndarray, features: np.ndarray, method: str
) -> None:
    """Variants of Ablation-CAM keep the positions where a class wins in the image itself."""
    wins = [np.bincount(tail(a).argmax(0).ravel(), minlength=3) for a in features]
    every = np.stack([count.argsort()[::-1][:2] for count in wins])
    assert min(count[row].min() for count, row in zip(wins, every, strict=True)) > 0
    against = pycam.Explainer(build(text_model), method, "features", target=Segmentation(), objective="counterfactual")
    close(against(x, every).raw, wanted(reference, method, features, every, None, -1))
    held = pycam.Explainer(build(text_model), "gradcam", "features", target=Segmentation(), objective="contrastive")
    own, other = (wanted(reference, "gradcam", features, np.array([[t], [t]]), None) for t in (2, 0))
    close(held(x, 2, 0).raw, own - other)


def test_parity(forward: Any) -> None:
    """With grad-cam's SemanticSegmentationTarget, through logits that are resized to the image's size."""
    arrays = np.load(FOLDER / "segmentation.npz")
    tensors = json.loads(str(arrays["about"]))["tensors"]
    path, x, targets = FOLDER / "segmentation.onnx", arrays["x"], arrays["targets"]
    np.testing.assert_allclose(forward(path, {"input": x})["logits"], arrays["logits"], atol=1e-5)
    for key in (key[:-4] for key in arrays.files if key.endswith("/raw")):
        kind, layer, method = key.split("/")
        explainer = pycam.Explainer(path, method, tensors[layer], target=Segmentation())
        result = explainer(x, targets, mask=arrays["masks"] if kind == "drawn" else None)
        raw = arrays[f"{key}/raw"]
        assert np.linalg.norm(result.raw - raw) <= 1e-4 * np.linalg.norm(raw), key
        np.testing.assert_allclose(result.heatmaps, arrays[f"{key}/final"], atol=1e-3, err_msg=key)


@pytest.mark.parametrize(("before", "after"), [((6, 9), (3, 3)), ((7, 5), (3, 8)), ((4, 4), (4, 4)), ((5, 1), (1, 2))])
@pytest.mark.parametrize("free", [False, True])
def test_area_means(text_model: Any, forward: Any, before: Any, after: Any, free: bool) -> None:
    model = ir.from_proto(text_model("(float[N, 1, H, W] x) => (float[N, 1, H, W] y) { y = Identity(x) }"))
    g = Builder(model.graph)
    y = model.graph.inputs[0]
    for axis, size in zip((2, 3), after, strict=True):
        y = area_means(g, y, axis, g.Add(g.constant([size - 1]), [1]) if free else size)
    y.name, y.type = "small", ir.TensorType(ir.DataType.FLOAT)
    model.graph.outputs.append(y)
    image = np.random.default_rng(0).uniform(size=(2, 1, *before)).astype(np.float32)

    def overlaps(n: int, m: int) -> np.ndarray:
        ends, starts = np.arange(1, m + 1)[:, None] * n / m, np.arange(m)[:, None] * n / m
        shared = np.minimum(ends, np.arange(1, n + 1)) - np.maximum(starts, np.arange(n))
        return np.maximum(shared, 0) * m / n

    rows, columns = (overlaps(n, m) for n, m in zip(before, after, strict=True))
    np.testing.assert_allclose(
        forward(ir.to_proto(model), {"x": image})["small"], rows @ image @ columns.T, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("form", ["NCHW", "NHWC", "NHW"])
def test_one_class(text_model: Any, reference: Any, close: Any, x: np.ndarray, features: np.ndarray, form: str) -> None:
    """Where its logit is positive."""
    model = build(text_model, "NHWC" if form == "NHWC" else "NCHW", "Sigmoid(laid)", classes=1)
    if form == "NHW":
        model.graph.node[-1].output[0] = "wide"
        model.graph.node.append(helper.make_node("Squeeze", ["wide", "one"], ["y"], name="squeeze"))
        model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "one"))
        del model.graph.output[0].type.tensor_type.shape.dim[3:]
    image = np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if form == "NHWC" else x
    target = Segmentation()
    result = pycam.Explainer(model, "gradcam", "features", target=target)(image)
    positive = np.stack([tail(a, 1)[0] > 0 for a in features])
    assert 0 < positive.mean() < 1
    if form == "NHW":  # the sigmoid lies before the Squeeze, so its values are what is summed: positive everywhere
        assert result.extras["area"].tolist() == [[1], [1]]
        return
    maps = [
        reference("gradcam", lambda b, m=m: float((tail(b, 1)[0] * m).sum()), a)
        for a, m in zip(features, positive, strict=True)
    ]
    close(result.raw[:, 0], np.stack(maps))
    np.testing.assert_allclose(result.extras["area"][:, 0], positive.mean((1, 2)), rtol=1e-6)
    np.testing.assert_array_equal(result.targets, 0)


def test_a_class_that_wins_nowhere(text_model: Any, x: np.ndarray) -> None:
    model = build(text_model)
    model.graph.initializer[2].CopyFrom(
        numpy_helper.from_array(drawn(3)["w_last"] * np.float32([1, 0, 0])[:, None, None, None] - 0.0, "w_last")
    )
    explainer = pycam.Explainer(model, "gradcam", "features", target=Segmentation())
    result = explainer(x, 2)  # a tie of 1 and 2 is 1's
    assert result.flat.all()
    assert not result.extras["area"].any()
    assert not result.heatmaps.any()


def test_region_words(text_model: Any, x: np.ndarray) -> None:
    """A box and a pixel are masks."""
    explainer = pycam.Explainer(build(text_model), "layercam", "features", target=Segmentation())
    box, pixel = np.zeros((8, 12)), np.zeros((8, 12))
    box[2:7, 1:5], pixel[3, 9] = 1, 1
    np.testing.assert_array_equal(explainer(x, 1, box=(1, 2, 5, 7)).raw, explainer(x, 1, mask=box).raw)
    one = explainer(x, 1, pixel=(9, 3))
    np.testing.assert_array_equal(one.raw, explainer(x, 1, mask=pixel).raw)
    assert np.argwhere(one.raw[0, 0] != 0).tolist() in ([[1, 4]], [])
    np.testing.assert_allclose(one.extras["area"], 1 / 96, rtol=1e-5)
    several = explainer(x, 1, mask=np.stack([box, pixel]))
    np.testing.assert_allclose(several.raw[1], one.raw[1], atol=1e-6)


def test_free_sizes(text_model: Any, x: np.ndarray) -> None:
    """The axis of the classes is the one whose size is known; it may be said, too."""
    fixed = pycam.Explainer(build(text_model), "gradcam", "features", target=Segmentation())(x, TARGETS, mask=MASK)
    model = build(text_model, sizes=("H", "W"))
    free = pycam.Explainer(model, "gradcam", "features", target=Segmentation())
    assert "axis 1 of the output 'y' was taken for the classes" in free.spec.notes
    result = free(x, TARGETS, mask=MASK)
    np.testing.assert_allclose(result.raw, fixed.raw, rtol=1e-4, atol=1e-5)
    told = pycam.Explainer(model, "gradcam", "features", target=Segmentation(class_axis=-3))
    assert not told.spec.notes
    np.testing.assert_array_equal(told(x, TARGETS, mask=MASK).raw, result.raw)


def test_a_softmax_over_another_axis(text_model: Any, x: np.ndarray) -> None:
    """It is part of the score."""
    model = build(text_model, end="Softmax<axis = 3>(laid)")
    explainer = pycam.Explainer(model, "gradcam", "features", target=Segmentation())
    assert not any("stepped behind" in note for note in explainer.spec.notes)
    result = explainer(x, 1, mask="all")
    assert result.flat.all() or np.abs(result.raw).max() < 1e-5  # a row's sum is 1, whatever the features


def test_turned(text_model: Any, x: np.ndarray) -> None:
    """An output whose columns come before its rows."""
    plain = pycam.Explainer(build(text_model), "gradcam", "features", target=Segmentation())
    turned = build(text_model, end="Transpose<perm = [0, 1, 3, 2]>(laid)")
    explainer = pycam.Explainer(turned, "gradcam", "features", target=Segmentation())
    np.testing.assert_allclose(explainer(x, 1, mask=MASK).raw, plain(x, 1, mask=MASK).raw, rtol=1e-4, atol=1e-6)


def test_sixteen_bits(text_model: Any, close: Any, x: np.ndarray) -> None:
    model = build(text_model)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    half = pycam.Explainer(model, "gradcam", "features", target=Segmentation())(x.astype(np.float16), 1, mask=MASK)
    full = pycam.Explainer(build(text_model), "gradcam", "features", target=Segmentation())(x, 1, mask=MASK)
    close(half.raw, full.raw, 0.02)


def test_exported(text_model: Any, forward: Any, tmp_path: Path, x: np.ndarray) -> None:
    pycam.export(build(text_model), tmp_path / "explain.onnx", layer="features", target=Segmentation())
    explained = pycam.Explainer(build(text_model), "gradcam", "features", target=Segmentation(), head="graph")
    for mask in (np.full((2, 8, 12), -1.0), np.broadcast_to(MASK, (2, 8, 12))):
        feeds = {"x": x, "targets": TARGETS, "mask": mask.astype(np.float32)}
        alone = forward(tmp_path / "explain.onnx", feeds)
        result = explained(x, TARGETS, mask=None if mask[0, 0, 0] < 0 else mask)
        np.testing.assert_allclose(alone["heatmaps"], result.heatmaps, atol=1e-5)
    again = pycam.Explainer(tmp_path / "explain.onnx", target=Segmentation())
    np.testing.assert_allclose(again(x, TARGETS, mask=MASK).heatmaps, result.heatmaps, atol=1e-5)


def test_bad_input(text_model: Any, cnn: Any, x: np.ndarray, images: np.ndarray) -> None:
    with pytest.raises(
        TargetError, match=r"the output 'y' has shape \['N', 20\]; a segmentation is \(N, classes, h, w\)"
    ):
        pycam.Explainer(cnn("gap"), "gradcam", "features", target=Segmentation())
    for axis in (0, 4, -4):
        with pytest.raises(TargetError, match=f"class_axis={axis}: the output 'y' has 4 axes"):
            pycam.Explainer(build(text_model), "gradcam", "features", target=Segmentation(class_axis=axis))
    with pytest.raises(ModelError, match="no output 'mask'"):
        pycam.Explainer(build(text_model), "gradcam", "features", target=Segmentation("mask"))
    with pytest.raises(LayerError):
        pycam.Explainer(build(text_model), "gradcam", "feature", target=Segmentation())
    explainer = pycam.Explainer(build(text_model), "gradcam", "features", target=Segmentation())
    with pytest.raises(TargetError, match="class 3 is out of range"):
        explainer(x, 3)
    with pytest.raises(TargetError, match=r"mask= has shape \(4, 6\); it must have the image's size"):
        explainer(x, 1, mask=np.ones((4, 6)))


def test_people(shared: Path, inside: Callable[..., Any]) -> None:
    """A person in a photo: the map lies on them, for the whole of them and for a pixel."""
    with Image.open(shared / "images" / "astronaut.png") as image:
        x = np.asarray(image.convert("RGB").resize((256, 256)), np.float32)[None] / 255
    path, layer = shared / "models" / "selfie_seg.onnx", "add_12__xeno_compat__1"
    explainer = pycam.Explainer(path, "gradcam", layer, target=Segmentation())
    for given in ({}, {"pixel": (110, 60)}):
        result = explainer(x, **given)
        person = np.asarray(result.scores).reshape(256, 256) > 0.5
        hit, energy, share = inside(result.heatmaps[0, 0], person)
        assert hit
        assert energy > 0.9 > share + 0.3
    assert explainer(x).extras["area"][0, 0] == pytest.approx(person.mean(), abs=1e-4)


def test_text_in_a_photo(shared: Path, inside: Callable[..., Any]) -> None:
    """Sizes are free; the text was drawn."""
    with Image.open(shared / "images" / "astronaut.png") as image:
        photo = image.convert("RGB").resize((320, 256))
    pen = ImageDraw.Draw(photo)
    pen.rectangle((20, 190, 220, 235), fill="white")
    pen.text((28, 194), "HELLO WORLD", "black", font=ImageFont.load_default(28))
    x = np.asarray(photo, np.float32) / 255 - np.float32([0.485, 0.456, 0.406])
    x = (x / np.float32([0.229, 0.224, 0.225])).transpose(2, 0, 1)[None]
    region = np.zeros((256, 320))
    region[190:235, 20:220] = 1
    explainer = pycam.Explainer(shared / "models" / "ppocr_det.onnx", "layercam", "p2o.Concat.1", target=Segmentation())
    for given in ({}, {"box": (20, 190, 220, 235)}):
        hit, energy, share = inside(explainer(np.ascontiguousarray(x), **given).heatmaps[0, 0], region)
        assert hit
        assert energy > 0.9 > 5 * share
