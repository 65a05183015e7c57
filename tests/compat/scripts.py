"""pytorch-grad-cam's README examples, transcribed by what they do, as functions of the library that they import.

`make_compat.py` ran them with pytorch-grad-cam on torch models; the tests run them with pycam.compat on the exported
ones.  Apart from the library, `model` and `layer` (a name → what `target_layers` takes) are all that differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

SIGNED = "svd"
"""An example whose maps depend on the sign of a singular vector, which pytorch-grad-cam leaves open."""


class Example(NamedTuple):
    """A script.

    Attributes:
        run: (library, model, layer, images) → arrays.
        net: A name of `compat_nets.NETS`.
        images: How many.
        notes: `SIGNED`, or "".
    """

    run: Callable[..., Mapping[str, Any]]
    net: str
    images: int = 1
    notes: str = ""


EXAMPLES: dict[str, Example] = {}

SIZES = {
    "cnn_linear": (32, 32),
    "cnn_mlp": (32, 40),
    "vit": (32, 32),
    "binary": (20, 24),
    "probabilities": (20, 24),
    "segmentation": (24, 30),
    "coarse": (24, 30),
    "detector": (24, 28),
    "swin": (24, 24),
}
"""Network → height and width of its images."""

PLAIN = {"outputs", "gradient", "concepts"}
"""Arrays that are no maps."""

STEP = 2
"""Of maps every so many rows and columns are stored."""


def images(net: str, count: int) -> np.ndarray:
    """Blobs with finer noise, float32 (count, 3, H, W)."""
    rng = np.random.Generator(np.random.Philox(key=[5, sum(net.encode())]))
    height, width = SIZES[net]
    blobs = np.kron(rng.standard_normal((2, 3, 4, 5)), np.ones((1, 1, 10, 8)))[..., :height, :width]
    return np.float32(blobs + 0.4 * rng.standard_normal((2, 3, height, width)))[:count]


def example(net: str, images: int = 1, notes: str = "") -> Callable[[Any], Any]:
    """Register a script under its function's name."""

    def register(run: Any) -> Any:
        EXAMPLES[run.__name__] = Example(run, net, images, notes)
        return run

    return register


def photo(x: Any) -> np.ndarray:
    """The first image as pictures have it, (H, W, 3) in [0, 1]."""
    rgb = np.asarray(x)[0].transpose(1, 2, 0)
    return np.float32((rgb - rgb.min()) / (rgb.max() - rgb.min()))


@example("cnn_mlp")
def basic(lib: Any, model: Any, layer: Any, x: Any) -> Mapping[str, Any]:
    targets = [lib.ClassifierOutputTarget(2)]
    with lib.GradCAM(model=model, target_layers=[layer("features.8")]) as cam:
        grayscale_cam = cam(input_tensor=x, targets=targets)
        grayscale_cam = grayscale_cam[0, :]
        visualization = lib.show_cam_on_image(photo(x), grayscale_cam, use_rgb=True)
        outputs = cam.outputs
    return {"maps": grayscale_cam, "picture": visualization, "outputs": outputs}


@example("cnn_mlp", 2)
def top_class(lib: Any, model: Any, layer: Any, x: Any) -> Mapping[str, Any]:
    cam = lib.GradCAM(model=model, target_layers=[layer("features.8")])
    return {"maps": cam(input_tensor=x, targets=None)}


@example("cnn_mlp", 2, SIGNED)
def smoothed(lib: Any, model: Any, layer: Any, x: Any) -> Mapping[str, Any]:
    targets = [lib.ClassifierOutputTarget(1), lib.ClassifierOutputTarget(7)]
    cam = lib.GradCAM(model=model, target_layers=[layer("features.8")])
    return {
        "aug": cam(input_tensor=x, targets=targets, aug_smooth=True),
        "aug_top": cam(input_tensor=x, targets=None, aug_smooth=True),
        "eigen": cam(input_tensor=x, targets=targets, eigen_smooth=True),
        "both": cam(input_tensor=x, targets=targets, aug_smooth=True, eigen_smooth=True),
    }


@example("cnn_mlp", 2)
def several_layers(lib: Any, model: Any, layer: Any, x: Any) -> Mapping[str, Any]:
    targets = [lib.ClassifierOutputTarget(1), lib.ClassifierOutputTarget(-2)]
    layers = [layer("features.5"), layer("features.8")]
    kinds = (lib.GradCAM, lib.LayerCAM, lib.ScoreCAM, lib.AblationCAM, lib.FEM)
    return {kind.__name__: kind(model=model, target_layers=layers)(x, targets) for kind in kinds}


@example("cnn_mlp", 2, SIGNED)
def all_methods(lib: Any, model: Any, layer: Any, x: Any) -> Mapping[str, Any]:
    methods = {
        "gradcam": lib.GradCAM,
        "hirescam": lib.HiResCAM,
        "scorecam": lib.ScoreCAM,
        "gradcam++": lib.GradCAMPlusPlus,
        "ablationcam": lib.AblationCAM,
        "xgradcam": lib.XGradCAM,
        "eigencam": lib.EigenCAM,
        "eigengradcam": lib.EigenGradCAM,
        "layercam": lib.LayerCAM,
        "gradcamelementwise": lib.GradCAMElementWise,
        "kpcacam": lib.KPCA_CAM,
        "fem": lib.FEM,
        "shapleycam": lib.ShapleyCAM,
        "finercam": lib.FinerCAM,
        "segeigencam": lib.SegEigenCAM,
    }
    targets = [lib.ClassifierOutputTarget(4), lib.ClassifierOutputTarget(0)]
    maps = {}
    for name, kind in methods.items():
        with kind(model=model, target_layers=[layer("features.8")]) as cam:
            cam.batch_size = 8
            maps[name] = cam(input_tensor=x, targets=targets)
    return maps


@example("cnn_mlp", 2)
def finer(lib: Any, model: Any, layer: Any, x: Any) -> Mapping[str, Any]:
    layers = [layer("features.8")]
    cam = lib.FinerCAM(model=model, target_layers=layers, base_method=lib.GradCAM)
    layer_cam = lib.FinerCAM(model=model, target_layers=layers, base_method=lib.LayerCAM)
    targets = [lib.FinerWeightedTarget(2, [5, 1], 0.5), lib.FinerWeightedTarget(0, [3, 9], 0.5)]
    return {
        "default": cam(input_tensor=x, targets=None),
        "class": cam(input_tensor=x, targets=None, target_idx=6, alpha=0.6, comparison_categories=[1, 3]),
        "layercam": layer_cam(input_tensor=x, targets=None),
        "targets": lib.GradCAM(model=model, target_layers=layers)(x, targets),
    }


@example("cnn_mlp", 2)
def of_several(lib: Any, model: Any, layer: Any, x: Any) -> Mapping[str, Any]:
    layers = [layer("features.5"), layer("features.8")]
    targets = [lib.ClassifierOutputTarget(3), lib.ClassifierOutputTarget(8)]
    return {
        "refinecam": lib.RefineCAM(model=model, target_layers=layers)(x, targets),
        "refinecam_layercam": lib.RefineCAM(model, layers, base_method=lib.LayerCAM)(x, targets),
    }


@example("cnn_linear", 2)
def windows(lib: Any, model: Any, layer: Any, x: Any) -> Mapping[str, Any]:
    targets = [lib.ClassifierOutputTarget(3), lib.ClassifierOutputTarget(8)]
    return {"sess": lib.SESS(model=model, target_layers=[layer("features.8")], num_scales=3)(x, targets)}


@example("cnn_mlp", 2)
def class_targets(lib: Any, model: Any, layer: Any, x: Any) -> Mapping[str, Any]:
    cam = lib.GradCAMPlusPlus(model=model, target_layers=[layer("features.8")])
    rest = lib.GradCAM(model=model, target_layers=[layer("features.8")])
    return {
        "softmax": cam(x, [lib.ClassifierOutputSoftmaxTarget(c) for c in (0, 6)]),
        "rest": rest(x, [lib.ClassifierOutputReST(c) for c in (2, 6)]),
        "mixed": rest(x, [lib.ClassifierOutputSoftmaxTarget(4), lib.ClassifierOutputTarget(4)]),
    }


@example("cnn_linear", 2)
def fullgrad(lib: Any, model: Any, layer: Any, x: Any) -> Mapping[str, Any]:
    cam = lib.FullGrad(model=model, target_layers=[])
    return {"maps": cam(x, [lib.ClassifierOutputTarget(2), lib.ClassifierOutputTarget(6)]), "top": cam(x, None)}


@example("cnn_linear")
def guided(lib: Any, model: Any, layer: Any, x: Any) -> Mapping[str, Any]:
    with lib.GradCAM(model=model, target_layers=[layer("features.8")]) as cam:
        grayscale_cam = cam(input_tensor=x, targets=[lib.ClassifierOutputTarget(5)])[0, :]
    gb_model = lib.GuidedBackpropReLUModel(model=model, device="cpu")
    gb = gb_model(x, target_category=5)
    cam_gb = lib.deprocess_image(grayscale_cam[..., None] * gb)
    return {"gradient": gb, "picture_cam_gb": cam_gb, "picture_gb": lib.deprocess_image(gb)}


@example("cnn_linear")
def guided_top_class(lib: Any, model: Any, layer: Any, x: Any) -> Mapping[str, Any]:
    return {"gradient": lib.GuidedBackpropReLUModel(model)(x)}


@example("cnn_linear", 2)
def concepts(lib: Any, model: Any, layer: Any, x: Any) -> Mapping[str, Any]:
    dff = lib.DeepFeatureFactorization(model=model, target_layer=layer("features.8"))
    found, explanations = dff(x, 3)
    # The order of concepts has no meaning: by their names' first feature.
    order = np.argsort(-np.asarray(found).sum(0) * np.stack(explanations).sum((0, 2, 3)))
    return {"concepts": np.asarray(found)[:, order], "maps": np.stack(explanations)[:, order]}


@example("binary", 2)
def binary(lib: Any, model: Any, layer: Any, x: Any) -> Mapping[str, Any]:
    cam = lib.GradCAM(model=model, target_layers=[layer("features.3")])
    return {
        "both": cam(x, [lib.BinaryClassifierOutputTarget(1), lib.BinaryClassifierOutputTarget(0)]),
        "raw": cam(x, [lib.RawScoresOutputTarget()] * 2),
    }


@example("probabilities", 2)
def softmax_inside(lib: Any, model: Any, layer: Any, x: Any) -> Mapping[str, Any]:
    cam = lib.GradCAMPlusPlus(model=model, target_layers=[layer("features.3")])
    score = lib.ScoreCAM(model=model, target_layers=[layer("features.3")])
    return {
        "class": cam(x, [lib.ClassifierOutputTarget(1)] * 2),
        "softmax": cam(x, [lib.ClassifierOutputSoftmaxTarget(1)] * 2),
        "rest": cam(x, [lib.ClassifierOutputReST(1)] * 2),
        "scorecam": score(x, [lib.ClassifierOutputTarget(1)] * 2),
    }


def _vit(lib: Any, model: Any, layers: Any, x: Any, reshape: Any, ablation: Any) -> Mapping[str, Any]:
    targets = [lib.ClassifierOutputTarget(3), lib.ClassifierOutputTarget(1)]
    kinds = (lib.GradCAM, lib.GradCAMPlusPlus, lib.XGradCAM, lib.LayerCAM, lib.HiResCAM, lib.ScoreCAM, lib.EigenCAM)
    maps = {k.__name__: k(model, layers, reshape_transform=reshape)(x, targets) for k in kinds}
    cam = lib.AblationCAM(model=model, target_layers=layers, reshape_transform=reshape, ablation_layer=ablation)
    return {**maps, "AblationCAM": cam(x, targets, eigen_smooth=False), "aug": cam(x, targets, aug_smooth=True)}


@example("vit", 2, SIGNED)
def vit(lib: Any, model: Any, layer: Any, x: Any) -> Mapping[str, Any]:
    def reshape_transform(tensor: Any) -> Any:
        return lib.vit_reshape_transform(tensor, height=8, width=8)

    return _vit(lib, model, [layer("blocks.2.norm1")], x, reshape_transform, lib.AblationLayerVit())


@example("swin", 2, SIGNED)
def swin(lib: Any, model: Any, layer: Any, x: Any) -> Mapping[str, Any]:
    def reshape_transform(tensor: Any) -> Any:
        return lib.swinT_reshape_transform(tensor, height=6, width=6)

    return _vit(lib, model, [layer("blocks.1.norm2")], x, reshape_transform, lib.AblationLayerVit())


def _segmentation(lib: Any, model: Any, layer: Any, x: Any, masks: Any) -> Mapping[str, Any]:
    targets = [lib.SemanticSegmentationTarget(1, masks[0]), lib.SemanticSegmentationTarget(2, masks[1])]
    maps = {}
    for kind in (lib.GradCAM, lib.GradCAMPlusPlus, lib.ScoreCAM, lib.AblationCAM, lib.SegEigenCAM):
        with kind(model=model, target_layers=[layer("features.3")]) as cam:
            maps[kind.__name__] = cam(input_tensor=x, targets=targets)
            if kind is lib.GradCAM:
                maps["aug"] = cam(input_tensor=x, targets=targets, aug_smooth=True)
    return maps


@example("segmentation", 2)
def segmentation(lib: Any, model: Any, layer: Any, x: Any) -> Mapping[str, Any]:
    rows, columns = np.mgrid[:24, :30]
    return _segmentation(lib, model, layer, x, np.float32([rows > columns, rows + columns < 20]))


@example("coarse", 2)
def coarse_segmentation(lib: Any, model: Any, layer: Any, x: Any) -> Mapping[str, Any]:
    rows, columns = np.mgrid[:12, :15]
    return _segmentation(lib, model, layer, x, np.float32([rows > columns, (rows + columns < 9) * 0.5]))


@example("detector")
def detection(lib: Any, model: Any, layer: Any, x: Any) -> Mapping[str, Any]:
    boxes = np.float32([[2, 1, 15, 13], [14, 10, 27, 22], [0, 0, 2, 2]])
    labels = lib.labels_of(model, x, boxes)
    targets = [lib.FasterRCNNBoxScoreTarget(labels=labels, bounding_boxes=boxes, iou_threshold=0.2)]
    maps = {}
    for kind in (lib.GradCAM, lib.HiResCAM, lib.ScoreCAM, lib.AblationCAM):
        with kind(model=model, target_layers=[layer("features.3")]) as cam:
            maps[kind.__name__] = cam(input_tensor=x, targets=targets)
    return maps
