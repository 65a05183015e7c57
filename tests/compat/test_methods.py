"""Classes: options, inputs of other kinds, what is kept between calls, and what is refused."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import pycam
from pycam import compat
from pycam.errors import LayerError, MethodError, ModelError
from pycam.method import get

BASED = [
    kind
    for name in compat.__all__
    if isinstance(kind := getattr(compat, name), type) and issubclass(kind, compat.BaseCAM)
]
METHODS = [kind for kind in BASED if kind is not compat.BaseCAM]


@pytest.fixture(scope="module")
def x(scripts: ModuleType) -> np.ndarray:
    return scripts.images("cnn_mlp", 2)


@pytest.fixture(scope="module")
def path(onnx_model: Any) -> str:
    return str(onnx_model("cnn_mlp"))


@pytest.mark.parametrize("kind", [*METHODS, compat.FinerCAM, compat.DeepFeatureFactorization])
def test_every_class_is_a_method_by_its_name(kind: type) -> None:
    assert get(kind.__name__).name


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="GradCam"):
        compat.GradCam  # noqa: B018
    assert set(compat.__all__) <= set(dir(compat))


def test_models_layers_and_several_calls(path: str, x: np.ndarray) -> None:
    wanted = compat.GradCAM(path, ["features.8"])(x)
    for model in (Path(path), Path(path).read_bytes(), onnx.load(path)):
        np.testing.assert_array_equal(compat.GradCAM(model, ["features.8"])(x), wanted)
    with compat.GradCAM(path, "features.8") as cam:
        np.testing.assert_array_equal(cam(x), wanted)
    np.testing.assert_array_equal(cam(x), wanted)  # the sessions are made again
    assert wanted.dtype == np.float32
    assert wanted.shape == (2, 32, 40)


def test_outputs(path: str, x: np.ndarray, onnx_model: Any, scripts: ModuleType, lib: SimpleNamespace) -> None:
    cam = compat.GradCAM(path, ["features.8"])
    assert cam.outputs is None
    cam(x)
    np.testing.assert_allclose(cam.outputs, ort.InferenceSession(path).run(None, {"input": x})[0], atol=1e-5)
    cam(x, aug_smooth=True)  # of the last version
    last = np.float32(1.1) * x[..., ::-1]
    np.testing.assert_allclose(cam.outputs, ort.InferenceSession(path).run(None, {"input": last})[0], atol=1e-5)
    boxes = np.float32([[2, 1, 15, 13]])
    found = compat.GradCAM(onnx_model("detector"), ["features.3"])
    found(scripts.images("detector", 1), [lib.FasterRCNNBoxScoreTarget([1], boxes, 0.0)])
    assert set(found.outputs) == {"boxes", "labels", "scores"}


def test_named_inputs(path: str, x: np.ndarray) -> None:
    cam = compat.GradCAM(path, ["features.8"])
    targets = [class_target(1), class_target(2)]
    for smooth in (False, True):
        np.testing.assert_array_equal(cam({"input": x}, targets, aug_smooth=smooth), cam(x, targets, aug_smooth=smooth))
    mixed = [class_target(1), None]
    np.testing.assert_array_equal(cam({"input": x}, mixed), cam(x, mixed))


def class_target(category: int) -> Any:
    from pycam.compat.utils.model_targets import ClassifierOutputTarget

    return ClassifierOutputTarget(category)


def test_layout_nhwc(cnn: Any) -> None:
    """Mirrored along the right axis."""
    path, image = cnn(layout="NHWC"), np.random.default_rng(0).normal(size=(1, 16, 16, 3)).astype(np.float32)
    cam = compat.GradCAM(path, ["auto"])
    twice = cam(image, [class_target(3)], aug_smooth=True), cam(image[:, :, ::-1], [class_target(3)], aug_smooth=True)
    np.testing.assert_allclose(twice[0], twice[1][..., ::-1], atol=1e-5)


def test_batch_size_is_taken(path: str, x: np.ndarray) -> None:
    cam = compat.ScoreCAM(path, ["features.8"])
    first = cam(x)
    cam.batch_size = 3
    np.testing.assert_allclose(cam(x), first, atol=1e-5)
    assert [explainers[0].batch for _, explainers in cam._explainers] == [16, 3]
    cam.batch_size = 0
    with pytest.raises(pycam.PycamError, match="batch"):
        cam(x)


def test_options(path: str, x: np.ndarray) -> None:
    wanted = pycam.Explainer(path, "fem", "features.8", k=1.0)(x).heatmaps[:, 0]
    np.testing.assert_array_equal(compat.FEM(path, ["features.8"], k=1)(x), wanted)
    assert compat.RandomCAM(path, ["features.8"])(x).shape == (2, 32, 40)
    eigen = compat.EigenCAM(path, ["features.8"])
    np.testing.assert_array_equal(eigen(x, eigen_smooth=True), eigen(x))


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda p: compat.GradCAM(object(), ["layer4"]), ModelError, "from_torch"),
        (lambda p: compat.GradCAM(p, []), LayerError, "empty"),
        (lambda p: compat.GradCAM(p, [object()]), LayerError, "by their names"),
        (lambda p: compat.GuidedBackpropReLUModel(object()), ModelError, "from_torch"),
        (lambda p: compat.DeepFeatureFactorization(p, "features.9x"), LayerError, "features"),
        (lambda p: compat.AblationCAM(p, ["features.8"], ratio_channels_to_ablate=0.1), MethodError, "ratio_channels"),
        (lambda p: compat.KPCA_CAM(p, ["features.8"], kernel="rbf"), MethodError, "kernel"),
        (lambda p: compat.SESS(p, ["features.8"], pool="max"), MethodError, "pool"),
        (lambda p: compat.SESS(p, ["features.8"], base_method=compat.LayerCAM), MethodError, "base_method=LayerCAM"),
    ],
)
def test_refused(path: str, make: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        make(path)


def test_refused_when_called(path: str, x: np.ndarray, lib: SimpleNamespace) -> None:
    with pytest.raises(LayerError, match=r"features\.8"):
        compat.GradCAM(path, ["features.88"])(x)
    with pytest.raises(MethodError, match="FullGrad"):
        compat.FullGrad(path)(x, eigen_smooth=True)
    with pytest.raises(pycam.PycamError, match="float64"):
        compat.GradCAM(path, ["features.8"])(x.astype(np.float64))
    with pytest.raises(LayerError, match="pyramid"):
        compat.GradCAM(path, ["features.8"], reshape_transform=lib.fasterrcnn_reshape_transform)


def test_reshape_transforms_do_what_they_say(lib: SimpleNamespace) -> None:
    tokens = np.arange(2 * 7 * 3).reshape(2, 7, 3)
    grid = lib.vit_reshape_transform(tokens, 2, 3)
    assert grid.shape == (2, 3, 2, 3)
    assert grid[1, 2, 1, 0] == tokens[1, 1 + 3, 2]
    assert lib.swinT_reshape_transform(tokens[:, 1:], 2, 3).shape == (2, 3, 2, 3)


def test_concepts_are_computed_on(onnx_model: Any, scripts: ModuleType) -> None:
    seen = []
    dff = compat.DeepFeatureFactorization(
        onnx_model("cnn_linear"), "features.8", computation_on_concepts=lambda c: seen.append(c) or c.sum(1)
    )
    concepts, maps, sums = dff(scripts.images("cnn_linear", 2), n_components=4)
    assert concepts.shape == (16, 4)
    assert [one.shape for one in maps] == [(4, 32, 32)] * 2
    np.testing.assert_array_equal(seen[0].T, concepts)
    np.testing.assert_allclose(sums, concepts.sum(0), rtol=1e-5)
