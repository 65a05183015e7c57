"""Every method that a peer has: how the peer is called, and with which options pycam does the same.

``PEERS`` maps a key, "method" or "method/variant", to a `Peer`. Its call explains one class per image and gives some of
"raw" (N,h,w), "final" (N,H,W) and "attributions" (N,3,H,W). What a peer does otherwise than its paper, or what has no
peer here, is restated in torch, and its library says so. Noise is that of `pycam`: sample i of a seed is drawn by
``Generator(Philox(key=[seed, i]))``, the same for all images.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import cv2
import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.peers import _gradcam_image, class_targets
from bench.subjects import Subject

_cams = importlib.import_module("pytorch_grad_cam")
_ablation = importlib.import_module("pytorch_grad_cam.ablation_layer")
_seg = importlib.import_module("pytorch_grad_cam.seg_eigen_cam")
_refine = importlib.import_module("pytorch_grad_cam.refine_cam")
_sess = importlib.import_module("pytorch_grad_cam.sess")
_dff = importlib.import_module("pytorch_grad_cam.feature_factorization.deep_feature_factorization")
_captum = importlib.import_module("captum.attr")
_torchcam = importlib.import_module("torchcam.methods")

GRADCAM, CAPTUM, TORCHCAM = "grad-cam", "captum", "torchcam"
Maps = dict[str, np.ndarray]
Call = Callable[[Subject, str, np.ndarray], Maps]
"""(subject, layer, classes (N,)) → maps."""

SAMPLES, STEPS, MASKS, SCALES, NOISE, STD = 4, 8, 32, 2, 0.1, 0.5
WINDOW, STRIDE = 16, 8


@dataclass(frozen=True)
class Peer:
    """How a peer makes the maps of a method.

    Attributes:
        library: Whose code it is.
        call: The peer; `options` say what it does in terms of pycam's `Explainer`.
        size: At which of `subjects.SIZES` it is compared.
        layer: "last", "mid", "refine" or "none", of `subjects.Net`.
        sign: The map's sign is arbitrary in the peer.
        guided: It sees activations that are `nn.ReLU` alone.
        nets: "all", "cnn" or "vit".
        own: The peer's own call where `call` is restated: for its cost.
        against: Each class is held against the next one.
        count: How many images, and classes of each, are compared at the small size; one at the full one.
    """

    library: str
    call: Call
    options: Mapping[str, Any] = field(default_factory=dict)
    size: str = "full"
    layer: str = "last"
    sign: bool = False
    guided: bool = False
    nets: str = "all"
    own: Call | None = None
    against: bool = False
    count: int = 2


def noise(shape: Sequence[int], index: int, seed: int = 0) -> np.ndarray:
    """Sample `index` of the shared noise, standard normal."""
    return np.random.Generator(np.random.Philox(key=[seed, index])).standard_normal(shape, dtype=np.float32)


def pipeline(raw: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """pytorch-grad-cam's, from raw maps (N,h,w) to (N,H,W): ReLU, min-max, resize, min-max."""
    scaled = _gradcam_image.scale_cam_image(np.maximum(raw, 0), size[::-1])
    return np.asarray(_gradcam_image.scale_cam_image(np.maximum(scaled, 0)))


def with_final(raw: np.ndarray, s: Subject) -> Maps:
    return {"raw": raw, "final": pipeline(raw, s.size)}


def levels(raw: np.ndarray, s: Subject) -> Maps:
    """Maps that are levels of the score, whose zero means nothing: heatmaps begin at their minimum."""
    return {"raw": raw, "final": pipeline(raw - raw.min((1, 2), keepdims=True), s.size)}


@contextlib.contextmanager
def outputs_of(s: Subject, layers: Sequence[str]) -> Iterator[list[torch.Tensor]]:
    """What these layers give while the model runs."""
    seen: list[torch.Tensor] = []
    handles = [s.module(layer).register_forward_hook(lambda _m, _i, out: seen.append(out)) for layer in layers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def scores(output: torch.Tensor, classes: np.ndarray) -> torch.Tensor:
    return output.gather(1, torch.from_numpy(classes)[:, None])[:, 0]


# ----------------------------------------------------------------------------------------------------- pytorch-grad-cam


def cam_call(
    kind: Any,
    targets: Callable[[np.ndarray], Any] = class_targets,
    made: Mapping[str, Any] | None = None,
    **options: Any,
) -> Call:
    """A class of pytorch-grad-cam as users call it; the raw map is noted on the way."""

    def call(s: Subject, layer: str, classes: np.ndarray) -> Maps:
        extra = {key: make(s) for key, make in (made or {}).items()}
        with kind(model=s.model, target_layers=[s.module(layer)], reshape_transform=s.net.reshape, **extra) as cam:
            raws: list[np.ndarray] = []
            get_cam_image = cam.get_cam_image

            def note(*args: Any) -> np.ndarray:
                raws.append(get_cam_image(*args))
                return raws[-1]

            cam.get_cam_image = note
            final = cam(input_tensor=s.x, targets=targets(classes), **options)
        return {"final": final} | ({"raw": np.asarray(raws[0])} if len(raws) == 1 else {})

    return call


class _Shapley(_cams.ShapleyCAM):  # type: ignore[misc, name-defined]
    """1.5.7 raises in ``get_cam_image`` where there is a reshape transform: its weights, our sum."""

    def get_cam_image(self, x: Any, layer: Any, targets: Any, a: torch.Tensor, g: torch.Tensor, _: bool) -> np.ndarray:
        weights = self.get_cam_weights(x, layer, targets, a, g)
        held = self.activations_and_grads
        held.gradients = []  # views, which release() fails to detach in place
        features = held.reshape_transform(a) if held.reshape_transform else a
        return np.einsum("nc,nchw->nhw", weights, features.detach().numpy())


def shapley(s: Subject, layer: str, classes: np.ndarray) -> Maps:
    with sdpa_kernel(SDPBackend.MATH):  # torch's fused attention has no second derivative
        return cam_call(_Shapley)(s, layer, classes)


def finer(s: Subject, layer: str, classes: np.ndarray) -> Maps:
    """One call per image: FinerCAM takes one class for the whole batch."""
    parts: list[Maps] = []
    for n, category in enumerate(classes):
        cam = _cams.FinerCAM(s.model, [s.module(layer)], s.net.reshape)
        raws: list[np.ndarray] = []
        base = cam.base_cam
        get_cam_image = base.get_cam_image
        base.get_cam_image = lambda *args, raws=raws, get=get_cam_image: raws.append(get(*args)) or raws[-1]
        with cam:
            final = cam(s.x[n : n + 1], None, target_idx=int(category))
        parts.append({"raw": raws[0], "final": final})
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def fullgrad(s: Subject, layer: str, classes: np.ndarray) -> Maps:
    with _cams.FullGrad(s.model, []) as cam:
        raws: list[np.ndarray] = []
        inner = cam.compute_cam_per_layer
        cam.compute_cam_per_layer = lambda *args: raws.append(inner(*args)) or raws[-1]
        final = cam(s.x, class_targets(classes))
    return {"raw": raws[0][:, 0], "final": final}


def refine(s: Subject, layer: str, classes: np.ndarray) -> Maps:
    modules = [s.module(path) for path in s.net.refine]
    cam = _refine.RefineCAM(s.model, modules, s.net.reshape)
    try:
        return {"final": cam(s.x, class_targets(classes))}
    finally:
        for base in cam.base_cam_per_layer:
            base.activations_and_grads.release()


def sess(s: Subject, layer: str, classes: np.ndarray, **options: Any) -> Maps:
    with _sess.SESS(s.model, [s.module(layer)], s.net.reshape, **options) as cam:
        return {"final": cam(s.x, class_targets(classes))}


def dff(s: Subject, layer: str, classes: np.ndarray) -> Maps:
    """Concept maps (N,k,h,w), those of all images at once."""
    with torch.no_grad(), outputs_of(s, [layer]) as seen:
        s.model(s.x)
    _, maps = _dff.dff(s.features(seen[0]).numpy().copy(), n_components=5)
    return {"raw": maps}


def guided_backprop(s: Subject, layer: str, classes: np.ndarray) -> Maps:
    """One image per call, (H,W,3); on a copy, since the peer leaves one ReLU behind in place of all."""
    guided = _cams.GuidedBackpropReLUModel(copy.deepcopy(s.model))
    found = [guided(s.x[n : n + 1].clone(), int(c)).transpose(2, 0, 1) for n, c in enumerate(classes)]
    return {"attributions": np.array(found)}


def _opposite(classes: np.ndarray) -> list[Any]:
    return [lambda o, c=int(c): -o[c] for c in classes]


def rival(classes: np.ndarray) -> np.ndarray:
    """What "contrastive" holds a class against here."""
    return (classes + 1) % 1000


def _contrast(classes: np.ndarray) -> list[Any]:
    pairs = zip(classes, rival(classes), strict=True)
    return [lambda o, p=int(p), q=int(q): o[p] - o[q] for p, q in pairs]


def _ablation_layer(s: Subject) -> Any:
    return _ablation.AblationLayerVit() if s.net.reshape else _ablation.AblationLayer()


def _ablation_batch(s: Subject) -> int:
    """1 where activations can be negative: there, what the peer sets a channel to depends on the channels beside it in
    the batch."""
    return 32 if s.net.relu else 1


# --------------------------------------------------------------------------------------------------------------- captum


def attribution(make: Callable[[Subject, str], Any], **options: Any) -> Call:
    def call(s: Subject, layer: str, classes: np.ndarray) -> Maps:
        found = make(s, layer).attribute(s.x.clone(), target=torch.from_numpy(classes), **options)
        return {"attributions": found.detach().numpy()}

    return call


def by_image(call: Call) -> Call:
    """One call per image."""

    def calls(s: Subject, layer: str, classes: np.ndarray) -> Maps:
        parts = [call(s.with_images(s.x[n : n + 1]), layer, classes[n : n + 1]) for n in range(len(classes))]
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    return calls


def tunnel(kind: str, samples: int) -> Call:
    """NoiseTunnel with the shared noise in place of ``torch.normal``; the deviation is a share of the image's range."""

    def one(s: Subject, layer: str, classes: np.ndarray) -> Maps:
        std = NOISE * float(s.x.max() - s.x.min())
        drawn = np.stack([noise(s.x.shape[1:], i) for i in range(samples)])

        def normal(_: float, deviation: torch.Tensor) -> torch.Tensor:
            return deviation * torch.from_numpy(drawn).to(deviation.dtype)

        with mock.patch.object(torch, "normal", normal):
            found = _captum.NoiseTunnel(_captum.Saliency(s.model)).attribute(
                s.x, nt_type=kind, nt_samples=samples, stdevs=std, target=torch.from_numpy(classes), abs=False
            )
        return {"attributions": found.detach().numpy()}

    return by_image(one)


def occlusion(window: int, stride: int) -> Call:
    """The same for all channels of an image, whose window covers all: one is the map."""

    def call(s: Subject, layer: str, classes: np.ndarray) -> Maps:
        found = _captum.Occlusion(s.model).attribute(
            s.x,
            (3, window, window),
            (3, stride, stride),
            0,
            target=torch.from_numpy(classes),
            perturbations_per_eval=16,
        )
        return {"raw": found[:, 0].detach().numpy()}

    return call


# ------------------------------------------------------------------------------------------------------------- torchcam


class _Draws:
    """Stands for torchcam's ``Normal(0, std)``: sample i is the same map for all channels."""

    def __init__(self, std: float, size: tuple[int, int], dtype: torch.dtype) -> None:
        self.std, self.size, self.taken, self.dtype = std, size, 0, dtype

    def sample(self, shape: torch.Size) -> torch.Tensor:
        drawn = torch.from_numpy(noise(self.size, self.taken)).to(self.dtype)
        self.taken += 1
        return (self.std * drawn).expand(shape)


def sscam(s: Subject, layer: str, classes: np.ndarray, samples: int = 2) -> Maps:
    with _torchcam.SSCAM(s.model, layer, num_samples=samples, std=STD) as extractor, torch.no_grad():
        extractor._distrib = _Draws(STD, s.size, s.x.dtype)
        s.model(s.x)
        (weights,) = extractor._get_weights(classes.tolist())
        raw = torch.einsum("nc,nchw->nhw", weights, extractor.hook_a[0])
    return with_final(raw.numpy(), s)


def torchcam_call(kind: str, **options: Any) -> Call:
    """An extractor of torchcam as users call it."""

    def call(s: Subject, layer: str, classes: np.ndarray) -> Maps:
        with getattr(_torchcam, kind)(s.model, layer, **options) as extractor:
            logits = s.model(s.x)
            return with_final(extractor(classes.tolist(), logits, normalized=False)[0].detach().numpy(), s)

    return call


def iscam(s: Subject, layer: str, classes: np.ndarray, samples: int = 2) -> Maps:
    """Weights `softmax_c(mean_i y(i/samples · x ⊙ U(minmax A_c)))`: a path from 0 to the masked image."""
    with torch.no_grad():
        with outputs_of(s, [layer]) as seen:
            s.model(s.x)
        (a,) = seen
        low = a - a.amin((2, 3), keepdim=True)
        masks = low / (low.amax((2, 3), keepdim=True) + 1e-8)
        weights = []
        for n, category in enumerate(classes):
            own = torch.nn.functional.interpolate(masks[n][:, None], s.size, mode="bilinear", align_corners=False)
            mean = torch.zeros(a.shape[1], dtype=a.dtype)
            for step in range(1, samples + 1):
                rows = [s.model(step / samples * part * s.x[n])[:, int(category)] for part in own.split(32)]
                mean += torch.cat(rows) / samples
            weights.append(mean.softmax(0))
    return with_final(torch.einsum("nc,nchw->nhw", torch.stack(weights), a).numpy(), s)


def smooth_plus_plus(s: Subject, layer: str, classes: np.ndarray) -> Maps:
    """`Σ relu(D₁)·D₂/(2·D₂ + (ΣA)·D₃ + 1e-6)`, `D_p = mean_i g_i^p`."""
    span = NOISE * (s.x.amax((1, 2, 3), keepdim=True) - s.x.amin((1, 2, 3), keepdim=True))
    with torch.no_grad(), outputs_of(s, [layer]) as seen:
        s.model(s.x)
    a = s.features(seen[0])
    powers = [torch.zeros_like(a) for _ in range(3)]
    for i in range(SAMPLES):
        drawn = torch.from_numpy(noise(s.x.shape[1:], i)).to(s.x.dtype)
        with outputs_of(s, [layer]) as noisy:
            output = s.model(s.x + span * drawn)
        (g,) = torch.autograd.grad(scores(output, classes).sum(), noisy)
        for p, total in enumerate(powers):
            total += s.features(g) ** (p + 1) / SAMPLES
    first, second, third = powers
    share = second / (2 * second + a.sum((2, 3), keepdim=True) * third + 1e-6)
    weights = (first.relu() * share).sum((2, 3))
    return with_final(torch.einsum("nc,nchw->nhw", weights, a).numpy(), s)


# --------------------------------------------------------------------------------------------------------- openvino_xai


def recipro(s: Subject, layer: str, classes: np.ndarray) -> Maps:
    """The score of the tail where one position is left (features), or the class token and the 3×3 Gaussian around one
    (tokens in front of the last attention, whose other summand does not reach the class token)."""

    def one(n: int, category: int) -> torch.Tensor:
        def masked(_m: Any, _i: Any, out: torch.Tensor) -> torch.Tensor:
            h, w = s.features(out).shape[2:]
            alone = torch.eye(h * w, dtype=out.dtype)
            if s.net.reshape is None:
                return out * alone.reshape(h * w, 1, h, w)
            kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]], dtype=out.dtype) / 16
            spread = torch.nn.functional.conv2d(alone.reshape(-1, 1, h, w), kernel[None, None], padding=1).flatten(1)
            return out * torch.cat([torch.ones_like(spread[:, :1]), spread], 1)[:, :, None]

        handle = s.module(layer).register_forward_hook(masked)
        try:
            with torch.no_grad():
                return s.model(s.x[n : n + 1])[:, category]
        finally:
            handle.remove()

    rows = torch.stack([one(n, int(c)) for n, c in enumerate(classes)])
    side = math.isqrt(rows.shape[1])
    return levels(rows.reshape(len(rows), side, -1).numpy(), s)


def rise(s: Subject, layer: str, classes: np.ndarray, masks: int = MASKS, cells: int = 8) -> Maps:
    """`Σ_i y(x ⊙ M_i)·M_i / (masks/2)`: masks as openvino_xai makes them."""
    height, width = s.size
    cell = [math.ceil(length / cells) for length in s.size]
    drawn = []
    for i in range(masks):
        bits, shifts = (np.random.Generator(np.random.Philox(key=[0, i + (stream << 32)])) for stream in (0, 1))
        grid = (bits.random((cells, cells), dtype=np.float32) < 0.5).astype(np.float32)
        full = cv2.resize(grid, ((cells + 1) * cell[1], (cells + 1) * cell[0]), interpolation=cv2.INTER_CUBIC)
        down, right = (int(v * np.float32(c)) for v, c in zip(shifts.random(2, dtype=np.float32), cell, strict=True))
        drawn.append(np.clip(full[down : down + height, right : right + width], 0, 1))
    every = torch.from_numpy(np.stack(drawn)).to(s.x.dtype)
    found = []
    with torch.no_grad():
        for x, category in zip(s.x, classes, strict=True):
            y = torch.cat([s.model(part[:, None] * x)[:, int(category)] for part in every.split(16)])
            found.append(torch.einsum("m,mhw->hw", y, every) / (masks / 2))
    return levels(torch.stack(found).numpy(), s)


# ------------------------------------------------------------------------------------------------------------ attention


def attentions(s: Subject, grad: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The scores and every block's attention (N·heads, T, T), as torch computes it step by step."""
    seen: list[torch.Tensor] = []
    softmax = torch.nn.functional.softmax

    def noted(*args: Any, **options: Any) -> torch.Tensor:
        seen.append(softmax(*args, **options))
        return seen[-1]

    inner = torch.nn.MultiheadAttention.forward

    def with_weights(self: Any, *args: Any, **options: Any) -> Any:
        return inner(self, *args, **options | {"need_weights": True, "average_attn_weights": False})

    patches = (
        mock.patch.object(torch.nn.functional, "softmax", noted),
        mock.patch.object(torch.nn.MultiheadAttention, "forward", with_weights),
        mock.patch.object(torch.backends.mha, "get_fastpath_enabled", return_value=False),
    )
    with contextlib.ExitStack() as stack, torch.set_grad_enabled(grad):
        for patch in patches:
            stack.enter_context(patch)
        output = s.model(s.x)
    return output, seen


def _by_heads(s: Subject, value: torch.Tensor) -> torch.Tensor:
    return value.unflatten(0, (len(s.x), -1))


def _grid(s: Subject, rows: torch.Tensor) -> Maps:
    """Maps of what each patch token gives (N, T − 1)."""
    side = math.isqrt(rows.shape[1])
    return with_final(rows.unflatten(1, (side, side)).detach().numpy(), s)


def rollout(s: Subject, layer: str, classes: np.ndarray) -> Maps:
    """`R = Π (mean_h A + I)`, rows divided by their sum; class row."""
    _, seen = attentions(s, grad=False)
    eye = torch.eye(seen[0].shape[-1], dtype=s.x.dtype)
    total = eye
    for attention in seen:
        mixed = _by_heads(s, attention).mean(1) + eye
        total = mixed / mixed.sum(-1, keepdim=True) @ total
    return _grid(s, total[:, 0, 1:])


def chefer(s: Subject, layer: str, classes: np.ndarray) -> Maps:
    """`R ← R + mean_h relu(g·A)·R` from `R = I`; class row."""
    output, seen = attentions(s, grad=True)
    grads = torch.autograd.grad(scores(output, classes).sum(), seen)
    total = torch.eye(seen[0].shape[-1], dtype=s.x.dtype).expand(len(s.x), -1, -1)
    for attention, g in zip(seen, grads, strict=True):
        total = total + _by_heads(s, (g * attention).relu()).mean(1) @ total
    return _grid(s, total[:, 0, 1:])


def legrad(s: Subject, layer: str, classes: np.ndarray) -> Maps:
    """`mean_l mean_{h,i} relu(dy_l/dA_l)`, `y_l = head(norm(Z_l))` of the class token."""
    blocks = [f"encoder.layers.encoder_layer_{i}" for i in range(len(s.model.encoder.layers))]
    with outputs_of(s, blocks) as states:
        _, seen = attentions(s, grad=True)
    total: Any = 0
    for attention, state in zip(seen, states, strict=True):
        y = s.model.heads(s.model.encoder.ln(state)[:, 0])
        (g,) = torch.autograd.grad(scores(y, classes).sum(), attention, retain_graph=True)
        total = total + _by_heads(s, g.relu()).mean((1, 2))[:, 1:] / len(seen)
    return _grid(s, total)


# ------------------------------------------------------------------------------------------------------------ the table

_SMALL: dict[str, Any] = {"size": "small"}
_MID: dict[str, Any] = {"size": "small", "layer": "mid"}
_WHOLE: dict[str, Any] = {"size": "small", "layer": "none"}
_SMOOTHED = {"gradcam": _cams.GradCAM, "gradcam++": _cams.GradCAMPlusPlus, "layercam": _cams.LayerCAM}
_RESTATED = "restated, "

PEERS: dict[str, Peer] = {
    "gradcam": Peer(GRADCAM, cam_call(_cams.GradCAM)),
    "gradcam++": Peer(GRADCAM, cam_call(_cams.GradCAMPlusPlus)),
    "xgradcam": Peer(GRADCAM, cam_call(_cams.XGradCAM)),
    "layercam": Peer(GRADCAM, cam_call(_cams.LayerCAM)),
    "hirescam": Peer(GRADCAM, cam_call(_cams.HiResCAM)),
    "gradcam_elementwise": Peer(GRADCAM, cam_call(_cams.GradCAMElementWise)),
    "gradcam/counterfactual": Peer(GRADCAM, cam_call(_cams.GradCAM, _opposite), {"objective": "counterfactual"}),
    "gradcam/contrastive": Peer(
        GRADCAM, cam_call(_cams.GradCAM, _contrast), {"objective": "contrastive"}, against=True
    ),
    **{
        f"{name}/aug_smooth": Peer(GRADCAM, cam_call(kind, aug_smooth=True), {"aug_smooth": True}, **_MID)
        for name, kind in _SMOOTHED.items()
    },
    **{
        f"{name}/eigen_smooth": Peer(GRADCAM, cam_call(kind, eigen_smooth=True), {"eigen_smooth": True}, sign=True)
        for name, kind in _SMOOTHED.items()
    },
    "eigencam": Peer(GRADCAM, cam_call(_cams.EigenCAM), sign=True),
    "eigengradcam": Peer(GRADCAM, cam_call(_cams.EigenGradCAM), sign=True),
    "segeigencam": Peer(GRADCAM, cam_call(_seg.SegEigenCAM), sign=True),
    "kpcacam": Peer(GRADCAM, cam_call(_cams.KPCA_CAM), sign=True),
    "fem": Peer(GRADCAM, cam_call(_cams.FEM)),
    "finercam": Peer(GRADCAM, finer),
    "shapleycam": Peer(GRADCAM, shapley),
    "refinecam": Peer(GRADCAM, refine, layer="refine"),
    "dff": Peer(GRADCAM, dff, nets="cnn"),
    "scorecam": Peer(GRADCAM, cam_call(_cams.ScoreCAM), count=1, **_MID),
    "ablationcam": Peer(
        GRADCAM,
        cam_call(_cams.AblationCAM, made={"ablation_layer": _ablation_layer, "batch_size": _ablation_batch}),
        own=cam_call(_cams.AblationCAM, made={"ablation_layer": _ablation_layer}),
        count=1,
        **_MID,
    ),
    "sess": Peer(GRADCAM, functools.partial(sess, num_scales=SCALES), {"scales": SCALES}, **_SMALL),
    "fullgrad": Peer(GRADCAM, fullgrad, nets="cnn", **_WHOLE),
    "guided_backprop": Peer(GRADCAM, guided_backprop, guided=True, **_WHOLE),
    "guided_backprop/captum": Peer(
        CAPTUM, attribution(lambda s, _: _captum.GuidedBackprop(copy.deepcopy(s.model))), guided=True, **_WHOLE
    ),
    "deconvnet": Peer(CAPTUM, attribution(lambda s, _: _captum.Deconvolution(s.model)), guided=True, **_WHOLE),
    "guided_gradcam": Peer(
        CAPTUM,
        attribution(lambda s, layer: _captum.GuidedGradCam(s.model, s.module(layer)), interpolate_mode="bilinear"),
        guided=True,
        size="small",
    ),
    "guided_gradcam/nearest": Peer(
        CAPTUM,
        attribution(lambda s, layer: _captum.GuidedGradCam(s.model, s.module(layer)), interpolate_mode="nearest"),
        {"interpolation": "nearest"},
        guided=True,
        size="small",
    ),
    "gradient": Peer(CAPTUM, attribution(lambda s, _: _captum.Saliency(s.model), abs=False), **_WHOLE),
    "input_x_gradient": Peer(CAPTUM, attribution(lambda s, _: _captum.InputXGradient(s.model)), **_WHOLE),
    "integrated_gradients": Peer(
        CAPTUM,
        attribution(lambda s, _: _captum.IntegratedGradients(s.model), method="riemann_middle", n_steps=STEPS),
        {"steps": STEPS},
        **_WHOLE,
    ),
    "smoothgrad": Peer(CAPTUM, tunnel("smoothgrad", SAMPLES), {"samples": SAMPLES, "noise": NOISE}, **_WHOLE),
    "vargrad": Peer(CAPTUM, tunnel("vargrad", SAMPLES), {"samples": SAMPLES, "noise": NOISE}, **_WHOLE),
    "occlusion": Peer(CAPTUM, occlusion(WINDOW, STRIDE), {"window": WINDOW, "stride": STRIDE}, **_WHOLE),
    "sscam": Peer(TORCHCAM, sscam, {"samples": 2, "std": STD}, nets="cnn", count=1, **_MID),
    "iscam": Peer(
        _RESTATED + TORCHCAM,
        iscam,
        {"samples": 2},
        nets="cnn",
        count=1,
        own=torchcam_call("ISCAM", num_samples=2),
        **_MID,
    ),
    "smoothgradcam++": Peer(
        _RESTATED + TORCHCAM,
        smooth_plus_plus,
        {"samples": SAMPLES, "noise": NOISE},
        own=torchcam_call("SmoothGradCAMpp", num_samples=SAMPLES),
        **_MID,
    ),
    "reciprocam": Peer(_RESTATED + "openvino_xai", recipro, {"gaussian": False}, nets="cnn"),
    "reciprocam/tokens": Peer(_RESTATED + "openvino_xai", recipro, nets="vit"),
    "rise": Peer(_RESTATED + "openvino_xai", rise, {"samples": MASKS}, **_WHOLE),
    "attention_rollout": Peer(_RESTATED + "2005.00928", rollout, nets="vit", layer="none"),
    "chefer": Peer(_RESTATED + "2103.15679", chefer, nets="vit", layer="none"),
    "legrad": Peer(_RESTATED + "2404.03214", legrad, nets="vit", layer="none"),
}


def applies(peer: Peer, name: str, relu: bool, tokens: bool) -> str:
    """ "" if a peer can explain a network, else why not."""
    if peer.guided and not relu:
        return "the peer sees nn.ReLU alone"
    if peer.nets == "cnn" and tokens:
        return "the peer takes features of CNNs alone"
    if peer.nets == "vit" and not name.startswith("vit"):
        return "for ViTs"
    return ""
