"""`aug_smooth` and `eigen_smooth`, against their parts and pytorch-grad-cam's own results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pycam
from pycam.errors import InputError, MethodError

TARGETS = np.array([[3, 7], [0, 12]])


def versions(x: np.ndarray, axis: int = 3) -> list[tuple[bool, np.ndarray]]:
    return [
        (mirrored, np.ascontiguousarray((np.flip(x, axis) if mirrored else x) * np.float32(factor)))
        for mirrored in (False, True)
        for factor in (0.9, 1, 1.1)
    ]


def mean_of(parts: list[tuple[bool, np.ndarray]]) -> np.ndarray:
    return np.mean([np.flip(m, -1) if mirrored else m for mirrored, m in parts], axis=0)


@pytest.mark.parametrize("method", ["gradcam", "layercam", "scorecam", "ablationcam", "eigencam", "shapleycam"])
def test_aug_smooth(cnn: Any, images: np.ndarray, method: str) -> None:
    """The mean of six explanations, mirrored back; it is not stretched again."""
    plain = pycam.Explainer(cnn("conv"), method, "features")
    smooth = pycam.Explainer(cnn("conv"), method, "features", aug_smooth=True)(images[:2], TARGETS)
    found = [(mirrored, plain(view, TARGETS)) for mirrored, view in versions(images[:2])]
    np.testing.assert_allclose(smooth.heatmaps, mean_of([(m, r.heatmaps) for m, r in found]), atol=1e-6)
    raw = mean_of([(m, np.asarray(r.raw)) for m, r in found])
    np.testing.assert_allclose(smooth.raw, raw, atol=1e-6 * np.abs(raw).max())
    np.testing.assert_array_equal(smooth.scores, plain(images[:2], TARGETS).scores)
    assert smooth.heatmaps.dtype == smooth.raw.dtype == np.float32


def test_aug_smooth_of_several_layers_and_last_channels(cnn: Any, images: np.ndarray) -> None:
    layers, x = ["late", "features"], np.ascontiguousarray(images[:2].transpose(0, 2, 3, 1))
    plain = pycam.Explainer(cnn("mlp", layout="NHWC"), "layercam", layers)
    smooth = pycam.Explainer(cnn("mlp", layout="NHWC"), "layercam", layers, aug_smooth=True)(x, TARGETS)
    found = [(mirrored, plain(view, TARGETS)) for mirrored, view in versions(x, 2)]
    assert isinstance(smooth.raw, tuple)
    for i, raw in enumerate(smooth.raw):
        np.testing.assert_allclose(raw, mean_of([(m, r.raw[i]) for m, r in found]), atol=1e-6)
    np.testing.assert_allclose(smooth.heatmaps, mean_of([(m, r.heatmaps) for m, r in found]), atol=1e-6)


def test_aug_smooth_explains_the_class_of_the_image_itself(cnn: Any, images: np.ndarray) -> None:
    smooth = pycam.Explainer(cnn("conv"), aug_smooth=True)
    plain = pycam.Explainer(cnn("conv"))
    top = plain(images).targets
    for targets in (None, "top3"):
        result = smooth(images, targets)
        np.testing.assert_array_equal(result.targets, plain(images, targets).targets)
    np.testing.assert_array_equal(smooth(images).heatmaps, smooth(images, top).heatmaps)


def test_aug_smooth_of_a_contrast(cnn: Any, images: np.ndarray) -> None:
    """What the targets are held against is looked up for the image itself, too."""
    options: dict[str, Any] = {"layer": "features", "objective": "contrastive"}
    smooth, plain = (pycam.Explainer(cnn("conv"), aug_smooth=aug, **options) for aug in (True, False))
    rivals = plain(images, 3).extras["against"]
    parts = [(m, plain(view, 3, rivals).heatmaps) for m, view in versions(images)]
    for against in (None, rivals):
        result = smooth(images, 3, against)
        np.testing.assert_allclose(result.heatmaps, mean_of(parts), atol=1e-6)
        np.testing.assert_array_equal(result.extras["against"], rivals)


def test_aug_smooth_of_attributions(cnn: Any, images: np.ndarray) -> None:
    """What a method returns besides is averaged where it is maps of the image."""
    plain = pycam.Explainer(cnn("conv"), "gradient")
    smooth = pycam.Explainer(cnn("conv"), "gradient", aug_smooth=True)(images[:2], TARGETS)
    found = [(m, plain(view, TARGETS).extras["attributions"]) for m, view in versions(images[:2])]
    np.testing.assert_allclose(smooth.extras["attributions"], mean_of(found), atol=1e-6)


def test_aug_smooth_refuses_pixels(shipped: Path, tmp_path: Path) -> None:
    path = pycam.export(shipped, tmp_path / "explain.onnx", preprocess=True)
    explainer = pycam.Explainer(path, aug_smooth=True)
    with pytest.raises(InputError, match="aug_smooth scales the values of a normalised image"):
        explainer(np.zeros((1, *explainer.input_shape[1:]), np.uint8))


def projection(terms: np.ndarray) -> np.ndarray:
    """(C, h, w) → (h, w), its peak positive."""
    rows = terms.reshape(len(terms), -1).T.astype(np.float64)
    rows = rows - rows.mean(axis=0)
    found = rows @ np.linalg.svd(rows, full_matrices=False)[2][0]
    return np.asarray(found * np.sign(found[np.abs(found).argmax()])).reshape(terms.shape[1:])


@pytest.mark.parametrize("tail", ["gap", "flatten", "mlp", "conv"])
@pytest.mark.parametrize("method", ["gradcam", "hirescam", "layercam", "gradcam_elementwise"])
def test_eigen_smooth(cnn: Any, net: Any, relative: Any, images: np.ndarray, method: str, tail: str) -> None:
    x = images[:2]
    a = net(tail).forward(x)[1][1].reshape(2, 6, 8, 8)
    result = pycam.Explainer(cnn(tail), method, "features", eigen_smooth=True)(x, TARGETS)
    for k, column in enumerate(TARGETS.T):
        g = net(tail).gradients(x, column)[2].reshape(2, 6, 8, 8)
        terms = {
            "gradcam": g.mean((2, 3), keepdims=True) * a,
            "hirescam": g * a,
            "layercam": np.maximum(g, 0) * a,
            "gradcam_elementwise": np.maximum(g * a, 0),
        }[method]
        assert relative(result.raw[:, k], np.array([projection(one) for one in terms])) <= 1e-5


def test_eigen_smooth_of_several_layers_with_aug_smooth(cnn: Any, images: np.ndarray) -> None:
    options: dict[str, Any] = {"eigen_smooth": True, "objective": "counterfactual"}
    both = pycam.Explainer(cnn("conv"), "gradcam", ["late", "features"], aug_smooth=True, **options)(images, 3)
    for i, layer in enumerate(("late", "features")):
        alone = pycam.Explainer(cnn("conv"), "gradcam", layer, **options)
        parts = [(m, np.asarray(alone(view, 3).raw)) for m, view in versions(images)]
        np.testing.assert_allclose(both.raw[i], mean_of(parts), atol=1e-5)


def test_eigen_smooth_refuses(cnn: Any) -> None:
    for method in ("eigencam", "sess", "gradient"):
        with pytest.raises(MethodError, match="eigen_smooth works on methods that weigh activations"):
            pycam.Explainer(cnn("gap"), method, eigen_smooth=True)


@pytest.mark.parametrize("method", ["gradcam", "layercam", "gradcam++"])
@pytest.mark.parametrize("name", ["cnn_linear", "cnn_mlp", "vit"])
def test_parity(peers: Any, relative: Any, method: str, name: str) -> None:
    """With grad-cam 1.5.7; eigen smoothing up to the sign, which it leaves to LAPACK."""
    peer = peers(name)
    layer = peer.layers["last"]
    aug = pycam.Explainer(peer.path, method, layer, aug_smooth=True)(peer.x, peer.targets)
    np.testing.assert_allclose(aug.heatmaps, peer[f"{method}/aug_smooth/final"], atol=1e-3)
    eigen = pycam.Explainer(peer.path, method, layer, eigen_smooth=True)
    result, raw = eigen(peer.x, peer.targets), peer[f"{method}/eigen_smooth/raw"]
    sign = np.sign((result.raw * raw).sum((2, 3), keepdims=True))
    assert relative(result.raw * sign, raw) <= 1e-4
    finals = [peer[f"{method}/eigen_smooth/{which}"] for which in ("final", "final_negated")]
    np.testing.assert_allclose(result.heatmaps, np.where(sign > 0, *finals), atol=1e-3)
    stored = peer[f"{method}/aug_eigen_smooth/aug_raw"]
    for (_, view), raws in zip(versions(peer.x), stored, strict=True):
        ours = eigen(view, peer.targets).raw
        assert relative(ours * np.sign((ours * raws).sum((2, 3), keepdims=True)), raws) <= 1e-4
