"""What a model sees of a picture: `Preprocess`, crop, prepare, and the assets that carry it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

import pycam.image
from pycam import image
from pycam.errors import ImageError, InputError
from pycam.image import Preprocess
from pycam.runtime.metadata import LABELS, PREPROCESS, read_metadata

ASSETS = Path(pycam.image.__file__).with_name("assets")
PHOTO: npt.NDArray[np.uint8] = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
GREY = PHOTO[:, :, 0]
PRE = Preprocess(size=(8, 8), mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0))


# ---- preprocess ------------------------------------------------------------------------------------------------------


def test_preprocess_survives_json() -> None:
    pre = Preprocess((224, 192), (127.0,), (128.0,), "NHWC", "L", 0.875, "bicubic")
    assert Preprocess.from_json(pre.to_json()) == pre
    assert hash(Preprocess.from_json(pre.to_json())) == hash(pre)
    assert "\n" not in pre.to_json()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": [224]}, "size needs 2"),
        ({"size": 224}, "size needs 2"),
        ({"size": [0, 224]}, "size must be positive"),
        ({"size": [1.5, 224]}, "size must hold"),
        ({"mean": [1, 2]}, "mean needs 3"),
        ({"mean": [1, 2, "3"]}, "mean must hold"),
        ({"mean": [1, 2, float("nan")]}, "mean must hold finite"),
        ({"std": [1, 0, 1]}, "std must be positive"),
        ({"std": [1, True, 1]}, "std must hold"),
        ({"crop": 0}, "crop must be in"),
        ({"crop": 1.1}, "crop must be in"),
        ({"crop": "all"}, "crop must hold"),
        ({"layout": "HWC"}, "layout must be one of NCHW, NHWC"),
        ({"channels": "rgb"}, "channels must be one of"),
        ({"channels": ["RGB"]}, "channels must be one of"),
        ({"resample": "nearest"}, "resample must be one of"),
        ({"crops": 1}, "unknown field 'crops'; nearest: crop"),
    ],
)
def test_a_bad_field_is_named(change: dict[str, Any], message: str) -> None:
    fields = json.loads(PRE.to_json()) | change
    with pytest.raises(InputError, match=message):
        Preprocess.from_json(json.dumps(fields))


@pytest.mark.parametrize(
    ("text", "message"), [("", "not JSON"), ("[1]", "JSON object"), ('{"mean": [1], "std": [1]}', "'size' is missing")]
)
def test_what_is_not_a_preprocess_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Preprocess.from_json(text)


@pytest.mark.parametrize(
    ("shape", "size", "layout", "channels"),
    [
        ((1, 3, 320, 640), (320, 640), "NCHW", "RGB"),
        (("N", 3, "H", None), (224, 224), "NCHW", "RGB"),
        ((1, 1, 64, 64), (64, 64), "NCHW", "L"),
        (("N", 28, 28, 1), (28, 28), "NHWC", "L"),
        ((None, 256, 128, 3), (256, 128), "NHWC", "RGB"),
        ((1, 3, 3, 3), (3, 3), "NCHW", "RGB"),
        (("N", "C", "H", "W"), (224, 224), "NCHW", "RGB"),
        ((1, 3, 0, -1), (224, 224), "NCHW", "RGB"),
    ],
)
def test_a_guess_from_the_input_shape(shape: Any, size: tuple[int, int], layout: str, channels: str) -> None:
    pre = Preprocess.for_input(shape)
    assert (pre.size, pre.layout, pre.channels) == (size, layout, channels)
    if channels == "RGB":
        np.testing.assert_allclose(pre.mean, np.array([0.485, 0.456, 0.406]) * 255)
        np.testing.assert_allclose(pre.std, np.array([0.229, 0.224, 0.225]) * 255)


@pytest.mark.parametrize("shape", [(), (1, 3, 224), (1, 2, 80, 80), (1, 4, "H", "W"), ("N", 5, 5, "C")])
def test_no_guess_where_the_shape_is_not_a_pictures(shape: Any) -> None:
    with pytest.raises(InputError, match="give a Preprocess"):
        Preprocess.for_input(shape)


# ---- crop and prepare ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "size", "share", "box"),
    [
        (100, 200, (10, 10), 1.0, (50, 0, 150, 100)),
        (200, 100, (10, 10), 0.5, (25, 75, 75, 125)),
        (100, 100, (10, 20), 1.0, (0, 25, 100, 75)),
        (100, 400, (10, 20), 0.875, (112.5, 6.25, 287.5, 93.75)),
    ],
)
def test_the_crop_box_has_the_models_aspect(
    height: int, width: int, size: tuple[int, int], share: float, box: tuple[float, ...]
) -> None:
    pre = dataclasses.replace(PRE, size=size, crop=share)
    assert image.crop_box(height, width, pre) == pytest.approx(box)


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (7, 9), (300, 200)])
def test_any_picture_is_cropped_to_the_models_size(shape: tuple[int, int], resample: Any) -> None:
    pre = dataclasses.replace(PRE, size=(12, 16), crop=0.875, resample=resample)
    flat = np.full((*shape, 3), 77, np.uint8)
    np.testing.assert_array_equal(image.crop(flat, pre), np.full((12, 16, 3), 77))


def test_a_picture_of_the_right_size_is_cropped_to_itself() -> None:
    pre = dataclasses.replace(PRE, size=(20, 30))
    np.testing.assert_array_equal(image.crop(PHOTO, pre), PHOTO)


@pytest.mark.parametrize(
    "bad",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)],
)
def test_crop_takes_pictures_only(bad: Any) -> None:
    with pytest.raises(ImageError, match="expected a uint8 picture"):
        image.crop(bad, PRE)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("channels", ["RGB", "BGR"])
def test_prepare_normalises_in_the_models_order(layout: Any, channels: Any) -> None:
    pre = dataclasses.replace(PRE, size=(20, 30), layout=layout, channels=channels)
    made = image.prepare(PHOTO, pre)
    order = PHOTO if channels == "RGB" else PHOTO[..., ::-1]
    expected = (order.astype(np.float64) - [1, 2, 3]) / [4, 5, 6]
    assert made.dtype == np.float32
    assert made.flags.c_contiguous
    assert made.shape == ((1, 3, 20, 30) if layout == "NCHW" else (1, 20, 30, 3))
    np.testing.assert_allclose(made[0] if layout == "NHWC" else made[0].transpose(1, 2, 0), expected, rtol=1e-6)


def test_prepare_makes_grey_as_pillow_does() -> None:
    pre = Preprocess((20, 30), (0.0,), (1.0,), "NHWC", "L")
    np.testing.assert_array_equal(
        image.prepare(PHOTO, pre)[0, :, :, 0], np.asarray(Image.fromarray(PHOTO).convert("L"))
    )
    grey = image.read(GREY)
    np.testing.assert_array_equal(image.prepare(grey, pre)[0, :, :, 0], GREY)


def test_prepare_takes_one_several_or_a_batch() -> None:
    pre = dataclasses.replace(PRE, size=(20, 30))
    other = PHOTO[::-1].copy()
    several = image.prepare([PHOTO, other], pre)
    assert several.shape == (2, 3, 20, 30)
    np.testing.assert_array_equal(several, image.prepare(np.stack([PHOTO, other]), pre))
    np.testing.assert_array_equal(several[:1], image.prepare(PHOTO, pre))


@pytest.mark.parametrize(
    ("crops", "error", "message"),
    [
        ([], InputError, "empty"),
        (PHOTO, InputError, "crop it first"),
        (np.zeros((8, 8, 3)), ImageError, "uint8"),
        (np.zeros((1, 3, 8, 8), np.uint8), ImageError, "uint8 picture"),
    ],
)
def test_prepare_refuses_what_does_not_fit(crops: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        image.prepare(crops, PRE)


# ---- the model that ships --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("photo", "label", "probability"), [("coffee", "espresso", 0.95), ("camera", "tripod", 0.94)])
def test_the_model_that_ships_recognises_the_photos_that_ship(photo: str, label: str, probability: float) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = ASSETS / "lite0_w8.onnx"
    metadata = read_metadata(model)
    pre = Preprocess.from_json(metadata[PREPROCESS])
    labels = metadata[LABELS].split("\n")
    x = image.prepare(image.crop(image.read(ASSETS / f"{photo}.jpg"), pre), pre)
    logits = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"input": x})[0][0]
    probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    assert labels[int(probabilities.argmax())] == label
    assert probabilities.max() == pytest.approx(probability, abs=0.01)


def test_the_assets_belong_together() -> None:
    labels = (ASSETS / "imagenet_labels.txt").read_text(encoding="utf-8").splitlines()
    assert len(labels) == len(set(labels)) == 1000
    assert (labels[0], labels[281], labels[999]) == ("tench", "tabby", "toilet tissue")
    assert read_metadata(ASSETS / "lite0_w8.onnx")[LABELS].split("\n") == labels
    for photo in ("coffee", "camera"):
        assert max(image.read(ASSETS / f"{photo}.jpg").shape) <= 640
