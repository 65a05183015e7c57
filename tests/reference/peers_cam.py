"""Cases of the package grad-cam, by its own code."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from pytorch_grad_cam import (
    FEM,
    KPCA_CAM,
    AblationCAM,
    DeepFeatureFactorization,
    EigenCAM,
    EigenGradCAM,
    FinerCAM,
    FullGrad,
    GradCAM,
    GradCAMPlusPlus,
    GuidedBackpropReLUModel,
    LayerCAM,
    ScoreCAM,
    ShapleyCAM,
)
from pytorch_grad_cam.ablation_layer import AblationLayer, AblationLayerVit
from pytorch_grad_cam.feature_factorization.deep_feature_factorization import dff
from pytorch_grad_cam.refine_cam import RefineCAM
from pytorch_grad_cam.seg_eigen_cam import SegEigenCAM
from pytorch_grad_cam.sess import SESS
from pytorch_grad_cam.utils.model_targets import ClassifierOutputReST, ClassifierOutputSoftmaxTarget

from bench.peers import _gradcam_image, class_targets
from tests.reference.peers_nets import Case, Subject

LIBRARY = "grad-cam 1.5.7"
SMOOTHED: dict[str, Any] = {"gradcam": GradCAM, "layercam": LayerCAM, "gradcam++": GradCAMPlusPlus}
SIGN = "The SVD's sign is arbitrary: compare up to sign per map; `final_negated` is the pipeline on −raw."


def final_of(raw: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """grad-cam's pipeline from raw maps (N,h,w) to (N,H,W): ReLU, s, resize, s."""
    scaled = _gradcam_image.scale_cam_image(np.maximum(raw, 0), size[::-1])
    return np.asarray(_gradcam_image.scale_cam_image(np.maximum(scaled, 0)))


def finals(raw: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The same for (N,K,h,w)."""
    return np.stack([final_of(raw[:, k], size) for k in range(raw.shape[1])], 1)


def watch(cam: Any, method: str) -> list[np.ndarray]:
    """What `method` of a CAM object returns from now on."""
    seen: list[np.ndarray] = []
    original = getattr(cam, method)

    def note(*args: Any, **options: Any) -> Any:
        value = original(*args, **options)
        seen.append(value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value))
        return value

    setattr(cam, method, note)
    return seen


def call(
    kind: Any, subject: Subject, layer: str, targets: Any, x: torch.Tensor | None = None, **options: Any
) -> dict[str, np.ndarray]:
    """One call as users make it: raw map (N,h,w), or (runs,N,h,w) of several runs, final map (N,H,W), weights (N,C) if
    there are any."""
    made = {key: options.pop(key) for key in ("ablation_layer", "batch_size") if key in options}
    model, reshape = subject.model, subject.net.reshape
    with kind(model=model, target_layers=[model.get_submodule(layer)], reshape_transform=reshape, **made) as cam:
        base = getattr(cam, "base_cam", cam)
        raws, weights = watch(base, "get_cam_image"), watch(base, "get_cam_weights")
        final = cam(input_tensor=subject.x if x is None else x, targets=targets, **options)
    out = {"raw": raws[0] if len(raws) == 1 else np.stack(raws), "final": final}
    return out | ({"weights": np.asarray(weights[0])} if len(weights) == 1 else {})


def stacked(results: Sequence[dict[str, np.ndarray]], axis: int = 1) -> dict[str, np.ndarray]:
    """Dictionaries of arrays stacked by key."""
    return {key: np.stack([result[key] for result in results], axis) for key in results[0]}


def per_class(
    kind: Any, subject: Subject, layer: str, make: Callable[[np.ndarray], Any] = class_targets, **options: Any
) -> dict[str, np.ndarray]:
    """A call per column of targets: raw (N,K,h,w), final (N,K,H,W), weights (N,K,C)."""
    columns = subject.targets.T
    return stacked([call(kind, subject, layer, make(classes), **options) for classes in columns])


class TokenShapleyCAM(ShapleyCAM):  # type: ignore[misc]
    """With a reshape transform 1.5.7 raises in ``get_cam_image``, which gets tokens: the weights are the package's, the
    sum is ours."""

    def get_cam_image(self, x: Any, layer: Any, targets: Any, a: torch.Tensor, g: torch.Tensor, _: bool) -> np.ndarray:
        weights = self.get_cam_weights(x, layer, targets, a, g)
        held = self.activations_and_grads
        held.gradients = []  # views, which release() fails to detach in place
        return np.einsum("nc,nchw->nhw", weights, held.reshape_transform(a).detach().numpy())


def negated(arrays: dict[str, np.ndarray], size: tuple[int, int]) -> dict[str, np.ndarray]:
    raw = arrays["raw"]
    flipped = finals(-raw, size) if raw.ndim == 4 else final_of(-raw, size)
    return arrays | {"final_negated": flipped}


def layer_cases(subject: Subject, name: str, layer: str) -> Iterator[Case]:
    """The methods that take one layer."""
    size, suffix = subject.net.size, "" if name == "last" else f"/{name}"

    def case(key: str, arrays: dict[str, np.ndarray], notes: str = "", **options: Any) -> Case:
        return Case(key + suffix, LIBRARY, arrays, layer, options, notes)

    for key, kind in SMOOTHED.items():
        yield case(key, per_class(kind, subject, layer))
    yield case("scorecam", per_class(ScoreCAM, subject, layer))
    ablation = AblationLayerVit if subject.net.reshape else AblationLayer
    yield case(
        "ablationcam", per_class(AblationCAM, subject, layer, ablation_layer=ablation(), batch_size=1), batch_size=1
    )
    for key, kind in {"eigencam": EigenCAM, "kpca_cam": KPCA_CAM, "fem": FEM}.items():
        arrays = call(kind, subject, layer, None)
        known = {
            "eigencam": SIGN,
            "kpca_cam": "scikit-learn fixes the sign: the entry of largest magnitude is positive",
        }
        yield case(key, arrays if key == "fem" else negated(arrays, size), known.get(key, ""))
    yield case("eigengradcam", negated(per_class(EigenGradCAM, subject, layer), size), SIGN)
    yield case("segeigencam", per_class(SegEigenCAM, subject, layer), "Negated where |min| > |max|.")
    shapley = TokenShapleyCAM if subject.net.reshape else ShapleyCAM
    yield case("shapleycam", per_class(shapley, subject, layer), "For a logit behind ReLUs H = 0: equal to Grad-CAM.")
    for target in (ClassifierOutputSoftmaxTarget, ClassifierOutputReST):

        def targets(classes: np.ndarray, target: Any = target) -> list[Any]:
            return [target(int(c)) for c in classes]

        key = target.__name__.removeprefix("ClassifierOutput").removesuffix("Target").lower()
        note = {"softmax": "y = softmax(z)_c", "rest": "y = z_c + log softmax(z)_c"}[key]
        yield case(f"shapleycam/{key}", per_class(shapley, subject, layer, targets), note)
    yield case("finercam/default", call(FinerCAM, subject, layer, None), "The top class of each image; (N,…), no K.")
    single = [
        [call(FinerCAM, subject, layer, None, subject.x[n : n + 1], target_idx=int(c)) for c in row]
        for n, row in enumerate(subject.targets)
    ]
    rows = [{key: np.stack([r[key][0] for r in row]) for key in ("raw", "final")} for row in single]
    yield case("finercam", stacked(rows, 0), "target_idx = the class; one call per image.")
    opposite = per_class(GradCAM, subject, layer, lambda classes: [lambda o, c=int(c): -o[c] for c in classes])
    yield case("gradcam/counterfactual", opposite, "Grad-CAM of −y")
    first, second = subject.targets.T
    pairs = [
        [lambda o, p=int(p), q=int(q): o[p] - o[q] for p, q in zip(*pair, strict=True)]
        for pair in ((first, second), (second, first))
    ]
    contrast = stacked([call(GradCAM, subject, layer, targets) for targets in pairs])
    yield case(
        "gradcam/contrastive", contrast, "Grad-CAM of y_p − y_q: column 0 has p, q = targets 0, 1; column 1 1, 0"
    )


def smoothing_cases(subject: Subject, layer: str) -> Iterator[Case]:
    """``aug_smooth`` and ``eigen_smooth`` of the gradient methods."""
    for key, kind in SMOOTHED.items():
        aug = per_class(kind, subject, layer, aug_smooth=True)
        yield Case(f"{key}/aug_smooth", LIBRARY, {"final": aug["final"]}, layer, {"aug_smooth": True})
        eigen = per_class(kind, subject, layer, eigen_smooth=True)
        kept = negated({name: eigen[name] for name in ("raw", "final")}, subject.net.size)
        yield Case(f"{key}/eigen_smooth", LIBRARY, kept, layer, {"eigen_smooth": True}, SIGN)
        options: dict[str, Any] = {"aug_smooth": True, "eigen_smooth": True}
        both = per_class(kind, subject, layer, **options)
        arrays = {"final": both["final"], "aug_raw": np.swapaxes(both["raw"], 1, 2)}  # it was (runs,K,N,h,w)
        note = (
            "aug_raw (6,N,K,h,w): raw maps of the runs (flip × 0.9, 1, 1.1; flip outer), before flipping back. " + SIGN
        )
        yield Case(f"{key}/aug_eigen_smooth", LIBRARY, arrays, layer, options, note)


def wide_images(x: torch.Tensor) -> torch.Tensor:
    """Images (N,3,H,1.5·W) of the images and their mirrored left halves."""
    return torch.cat([x, x[..., : x.shape[-1] // 2].flip(-1)], -1)


def sess(key: str, subject: Subject, x: torch.Tensor, layer: str) -> Case:
    options = {"num_scales": 3}
    with SESS(subject.model, [subject.model.get_submodule(layer)], subject.net.reshape, **options) as cam:
        final = subject.columns(lambda classes: cam(x, class_targets(classes)))
    arrays = {"final": final} | ({"x": x.numpy()} if x is not subject.x else {})
    return Case(key, LIBRARY, arrays, layer, options | {"base": "gradcam"}, "Windows of 32×32, the model's input.")


def whole_cases(subject: Subject, layer: str) -> Iterator[Case]:
    """FullGrad, RefineCAM, SESS, DFF and guided backpropagation."""
    model, net, x = subject.model, subject.net, subject.x
    results = []
    for classes in subject.targets.T:
        with FullGrad(model, []) as cam:
            raws = watch(cam, "compute_cam_per_layer")
            final = cam(x, class_targets(classes))
            results.append({"raw": raws[0][:, 0], "final": final})
    yield Case("fullgrad", LIBRARY, stacked(results), "", {}, "raw (N,K,H,W): the sum before the last s.")

    modules = [model.get_submodule(path) for path in net.refine]
    refined = subject.columns(lambda classes: RefineCAM(model, modules, net.reshape)(x, class_targets(classes)))
    yield Case("refinecam", LIBRARY, {"final": refined}, ",".join(net.refine), {"base": "gradcam++"})

    if net.size[0] == net.size[1]:  # windows are square: another model input does not fit them
        yield sess("sess", subject, x, layer)
    if subject.name == "cnn_linear":
        yield sess("sess/wide", subject, wide_images(x), layer)

    with torch.no_grad():
        linear = model.get_submodule(net.concepts_classifier) if net.concepts_classifier else None
        head = (lambda concepts: linear(concepts.to(x.dtype))) if linear else None  # the package makes float32 ones
        factorise = DeepFeatureFactorization(model, model.get_submodule(layer), net.reshape, head)
        found = factorise(x, n_components=4)
        activations = factorise.activations_and_grads.activations[0].numpy()
    concepts, maps = dff(activations.copy(), n_components=4)
    arrays = {"concepts": concepts, "raw": maps, "final": np.stack(found[1])}
    if head is not None:
        arrays["scores"] = found[2]
    np.testing.assert_array_equal(concepts, found[0])
    note = "concepts (C,4), raw (N,4,h,w), final (N,4,H,W), scores (4,classes): the classifier on each concept."
    options = {"n_components": 4, "init": "random", "random_state": 0, "classifier": net.concepts_classifier}
    yield Case("dff", LIBRARY, arrays, layer, options, note)

    if net.reshape is None:
        guided = GuidedBackpropReLUModel(copy.deepcopy(model))  # it swaps the modules of its model
        gradients = [
            [guided(x[n : n + 1].clone(), int(c)).transpose(2, 0, 1) for c in row]
            for n, row in enumerate(subject.targets)
        ]
        yield Case("guided_backprop", LIBRARY, {"attributions": np.array(gradients)}, notes="nn.ReLU modules only")


def cases(subject: Subject) -> Iterator[Case]:
    for name, layer in subject.net.layers.items():
        if name != "middle":
            yield from layer_cases(subject, name, layer)
    layer = subject.net.layers["last"]
    yield from smoothing_cases(subject, layer)
    yield from whole_cases(subject, layer)
