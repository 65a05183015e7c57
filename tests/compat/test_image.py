"""`utils.image` against formulas in double, and against OpenCV's numbers where pytorch-grad-cam stored them
(`test_examples.py`)."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from pycam.colormap import colormap
from pycam.errors import ImageError, InputError, PycamError

RNG = np.random.default_rng(3)
IMAGE = RNG.random((6, 8, 3), np.float32)
MASK = RNG.random((6, 8), np.float32)


@pytest.mark.parametrize(
    ("number", "name"), [(2, "jet"), (13, "magma"), (14, "inferno"), (16, "viridis"), (20, "turbo")]
)
@pytest.mark.parametrize("use_rgb", [True, False])
def test_overlay(lib: SimpleNamespace, number: int, name: str, use_rgb: bool) -> None:
    colours = colormap(name)[(255 * MASK).astype(int)].astype(np.float64)
    colours = colours if use_rgb else colours[..., ::-1]
    both = 0.3 * IMAGE + 0.7 * colours / 255
    wanted = 255 * both / both.max()
    for given in (number, name):
        found = lib.show_cam_on_image(IMAGE, MASK, use_rgb=use_rgb, colormap=given, image_weight=0.3)
        assert found.dtype == np.uint8
        assert np.abs(found - wanted).max() < 1.001


def test_black_image_and_gray_zero(lib: SimpleNamespace) -> None:
    found = lib.show_cam_on_image(np.zeros((2, 2, 3), np.float32), np.zeros((2, 2)), image_weight=1.0)
    assert not found.any()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"img": IMAGE * 255}, r"\[0, 1\]"),
        ({"img": (IMAGE * 255).astype(np.uint8)}, "float"),
        ({"img": IMAGE[..., 0]}, r"\(H, W, 3\)"),
        ({"mask": MASK[None]}, "size"),
        ({"mask": MASK[:3]}, "size"),
        ({"mask": MASK * 2}, "spans"),
        ({"mask": MASK * np.nan}, "spans"),
        ({"image_weight": 1.5}, "image_weight"),
        ({"colormap": 5}, "none of OpenCV"),
        ({"colormap": "jett"}, "jet"),
    ],
)
def test_bad_overlay(lib: SimpleNamespace, change: dict[str, object], match: str) -> None:
    with pytest.raises((InputError, ImageError), match=match):
        lib.show_cam_on_image(**{"img": IMAGE, "mask": MASK, **change})


def test_preprocess(lib: SimpleNamespace) -> None:
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    found = lib.preprocess_image(IMAGE, mean=mean, std=std)
    assert found.shape == (1, 3, 6, 8)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0].transpose(1, 2, 0), (IMAGE - mean) / std, rtol=1e-5, atol=1e-6)
    eight = (255 * IMAGE).astype(np.uint8)
    np.testing.assert_allclose(lib.preprocess_image(eight)[0, 1], (eight[..., 1] / 255 - 0.5) / 0.5, atol=1e-6)
    assert found.to("cuda:0").cpu().detach().numpy().base is not None
    assert type(found.cuda().numpy()) is np.ndarray
    assert found[0].unsqueeze(0).shape == found.shape
    with pytest.raises(InputError, match="per channel"):
        lib.preprocess_image(IMAGE, mean=[0.5], std=[0.5, 0.5])
    with pytest.raises(InputError, match="per channel"):
        lib.preprocess_image(IMAGE[..., :2])


def test_deprocess(lib: SimpleNamespace) -> None:
    g = RNG.normal(size=(5, 5, 3))
    wanted = np.clip((g - g.mean()) / (g.std() + 1e-5) * 0.1 + 0.5, 0, 1) * 255
    assert np.abs(lib.deprocess_image(g) - wanted).max() < 1.001


def test_scaled(lib: SimpleNamespace) -> None:
    maps = RNG.normal(size=(2, 3, 4)).astype(np.float32)
    found = lib.scale_cam_image(maps)
    np.testing.assert_allclose(found.min((1, 2)), 0)
    np.testing.assert_allclose(found.max((1, 2)), 1, atol=1e-6)
    large = lib.scale_cam_image(maps, (8, 6))  # width, height
    assert large.shape == (2, 6, 8)
    np.testing.assert_allclose(large[:, 0, 0], found[:, 0, 0], atol=1e-6)
    np.testing.assert_allclose(large[:, 1, 1], (found[:, 0:2, 0:2] * [[9, 3], [3, 1]]).sum((1, 2)) / 16, atol=1e-6)
    assert lib.scale_accross_batch_and_channels(maps[None], (8, 6)).shape == (1, 2, 6, 8)
    assert not lib.scale_cam_image(np.ones((1, 2, 2))).any()
    with pytest.raises(InputError, match="maps"):
        lib.scale_cam_image(maps[0])


def test_factorization(lib: SimpleNamespace) -> None:
    maps = np.zeros((2, 4, 4), np.float32)
    maps[0, :2], maps[1, 2:] = 0.5, 1.0
    found = lib.show_factorization_on_image(
        np.zeros((4, 4, 3)), maps, colors=[[1, 0, 0], [0, 0, 0.5]], image_weight=0.2
    )
    np.testing.assert_array_equal(found[0, 0], [int(255 * 0.8 * 0.5), 0, 0])
    np.testing.assert_array_equal(found[3, 0], [0, 0, int(255 * 0.8)])  # as bright as the concept, not as the colour
    labels = lib.create_labels_legend(
        np.array([[0.1, 0.7, 0.2], [0.5, 0.1, 0.4]]), {0: "a, b", 1: "c", 2: "d"}, top_k=2
    )
    assert labels == ["c:0.70\nd:0.20", "a, b:0.50\nd:0.40"]
    legend = lib.show_factorization_on_image(np.zeros((40, 60, 3)), np.ones((2, 40, 60)), concept_labels=labels)
    assert legend.shape == (40, 120, 3)
    assert len(np.unique(legend[:, 60:].reshape(-1, 3), axis=0)) > 2
    for wrong in ({"colors": [[1, 0, 0]]}, {"concept_labels": ["one"]}):
        with pytest.raises(InputError, match="for 2 concepts"):
            lib.show_factorization_on_image(np.zeros((4, 4, 3)), maps, **wrong)
    with pytest.raises(PycamError, match="concepts"):
        lib.show_factorization_on_image(np.zeros((4, 5, 3)), maps)
