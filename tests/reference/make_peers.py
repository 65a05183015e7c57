"""Make the reference arrays of the attribution methods with the packages that have them. From the root:

    python -m tests.reference.make_peers

Made with torch 2.14.1 (CPU), torchvision 0.29.1, grad-cam 1.5.7, captum 0.9.0, torchcam 0.5.0, openvino-xai 1.1.0,
openvino 2024.4.0, ttach 0.0.3, scikit-learn 1.9.1, scipy 1.17.1, onnx 1.23.2, onnxscript 0.7.2, onnxruntime 1.32.0,
numpy 2.4.6, opencv-python-headless 5.0.0.93; the versions of a run are written into the file, under ``about``. Beside
these versions openvino-xai installs with ``pip install --no-deps openvino==2024.4.0 openvino-telemetry
openvino-xai==1.1.0``.

Three small seeded networks (``peers_nets.py``) go through torch's dynamo exporter into ``peers_<net>.onnx``. For two
images and two classes per image ``peers.npz`` keeps (float32, targets int64; N images, K classes, layer C×h×w):

    about                            JSON: versions, noise_seed, and per network: seed, layers (name → module path),
                                     tensors (layer name or attention softmax → ONNX tensor) and cases, which say of
                                     each method: library, layer, options, notes, the arrays' shapes, and how far
                                     float32 itself moves them (from float64, and from images moved by 1e-6)
    <net>/x, targets, logits         (N,3,H,W), (N,K), (N,classes)
    <net>/baseline                   (1,3,H,W)   of integrated_gradients/baseline
    <net>/<layer name>/A, g          the layer's output and the gradient (N,K,…) of the targets' scores; ViT: tokens
    <net>/<case>/raw                 (N,K,h,w) or, where there is no class, (N,h,w): before ReLU, resize, normalisation
    <net>/<case>/final               (N,K,H,W), (N,H,W): grad-cam's whole pipeline, ReLU, s, resize, s
    <net>/<case>/final_negated       that of −raw, where an SVD decides the sign
    <net>/<case>/weights             (N,K,C)     of a method with a weight per channel
    <net>/<case>/scaled              openvino_xai's own scaling: min-maxed without ReLU, not resized
    <net>/<case>/attributions, delta (N,K,3,H,W), (N,K)

A case is ``<method>[/<variant>]``; ``/signed`` (cnn_mlp: a convolution's output) and ``/stream`` (vit: the input of the
last block's first norm) are other layers than ``last``, which for the ViT is the OUTPUT of ``blocks.2.norm1``, as
grad-cam's users take it. Raw maps of the ViT leave out the class token.

Noise is shared, not drawn by the peers: stream i is ``Generator(Philox(key=[noise_seed, i]))``, i the sample's index.
Noise on images: ``std · standard_normal((3,H,W), float32)``, the same for all images and targets; on SS-CAM's masks
``std · standard_normal((H,W), float32)``, the same for all channels too; RISE: see below. The baseline is
``0.5 · standard_normal((1,3,H,W))`` of key [noise_seed + 1, 0].

What was read in the peers' sources and matters (s = min–max with 1e-7, pipeline = ReLU, s, cv2 bilinear resize, s):

grad-cam
    ScoreCAM      masks: upsampled with align_corners=True, then min–maxed (1e-8); softmax over channels of the masked
                  images' logits, no baseline
    AblationCAM   w = (y − y_c)/y with the signed logit; y_c: channel c set to 0 if the minimum over the whole image's
                  activations is exactly 0, otherwise to that minimum − 1e7 (also where all are positive). In a batch
                  the minimum includes the rows ablated before: row i gets min − (i+1)·1e7; recorded with batches of
                  one (the default, 32, differs by 1e-6 here). ViT: a channel of all tokens, class token included
    EigenCAM, EigenGradCAM, SegEigenCAM  SVD of [hw,C] minus column means; A, g·A, |g|·A; LAPACK's sign, the last
                  negated where |min| > |max|
    KPCA_CAM      the same centred matrix; tanh(ZZᵀ/C + 1), centred; √λ·u, entry of largest magnitude positive
    FEM           threshold mean + 2σ (population); weight = share of positions above
    FinerCAM      order classes by |z − z_t|; main = the first, compared with the next three;
                  Σ p(z_t − z_i)/(Σ p + 1e-9), gradient through the softmax p as well; target_idx: one int for all
                  images
    ShapleyCAM    mean(g − ½·H·A), H of the tail behind the layer's output, over all tokens of a ViT; its map of a ViT
                  raises in 1.5.7 (weights are the package's, the sum is ours). H of a logit behind ReLUs is 0, so the
                  package's softmax and ReST (z_c + log softmax_c) targets are recorded too
    FullGrad      |x·dy/dx| (per colour) and |b·g| of Conv2d with bias and BatchNorm2d (β − μγ/√(σ²+ε), g at its
                  output), each channel s, resized; raw is their sum; final = s(raw). Linear, LayerNorm: left out
    RefineCAM     product of whole-pipeline Grad-CAM++ maps, s. Its eigen_smooth argument lands in aug_smooth
    SESS          torchvision resize (antialias) to scales w + i·round(2w/7); windows w×w, stride w, the last shifted
                  back; weight = softmax score / best; final Grad-CAM maps pasted, cv2 bilinear back; mean over patches
                  where > 0; Gaussian blur 11, σ 5; s. No ReLU of scores other than max(·,0)
    DFF           sklearn NMF (random, seed 0, k = 4) of A − per-channel min, [C, N·h·w]; concepts + offset; each map s,
                  resized, no second s
    aug_smooth    mean over flip × (0.9, 1, 1.1) of whole-pipeline maps, no s after; eigen_smooth: EigenCAM of w·A
captum
    GuidedBackprop, Deconvolution  hooks on nn.ReLU modules only: not on functional ReLU, ReLU6, GELU
    GuidedGradCam  × relu(Grad-CAM) resized by "nearest" unless told otherwise, not normalised
    IntegratedGradients  riemann_middle: α = (k+½)/n; delta = Σ − (f(x) − f(baseline)); the default is gausslegendre
    NoiseTunnel   absolute std; vargrad: population variance. Saliency's default is the absolute value
    Occlusion     windows (3,9,7), strides (3,4,3): ceil((L−w)/s)+1 positions, the last clipped; drops averaged over the
                  windows that cover a pixel
torchcam
    SSCAM, ISCAM  masks min–maxed (1e-8) before they are upsampled (align_corners=False); softmax over channels of the
                  mean score. ISCAM's coefficients accumulate, Σ_{j≤i} j/N; `iscam/path` is restated with i/N
    SmoothGradCAMpp  is not recorded: 0.5.0 takes relu(g) and A of the last noisy sample, and Σ(D_3·A) where Grad-CAM++
                  has (ΣA)·D_3; `smooth_gradcam++` is restated (the paper's numerator D_1 is read as D_2, as all do)
openvino_xai
    ReciproCAM    logits of the tail on A·[one position], 1×1, no Gaussian; refuses h ≥ C; one image a call
    ViTReciproCAM masks the stream into the last block (skip path) and, alike, its first norm's output: class token
                  kept, patches × 3×3 binomial/16 cut at the borders. Its torch form leaves the skip path whole: the
                  same at the last block, as asserted
    RISE          grid cells×cells of u < p, cv2 INTER_CUBIC to (cells+1) cells, crop at a shift, clip; Σ logit·mask,
                  undivided; here u = random((cells,cells), float32) of stream i, and the shifts (rows, columns) are
                  int(random(2, float32)·cell) of stream i + 2³². Height and
                  width are swapped in the resize: non-square inputs are restated
    OpenVINO computes in bfloat16 on CPUs that have it (1e-3 off): f32 is asked for
restated (plain torch)
    rollout (rows of mean_h A + I divided by their sum), Chefer (R + relu(g·A)·R), LeGrad: see ``peers_xai.py``.
    legrad-torch 1.1 knows CLIP models only
"""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.peers import PACKAGES
from tests.reference import peers_cam, peers_pixel, peers_xai
from tests.reference.make_gradcam import WELL_CONDITIONED, export, find_tensor, relative
from tests.reference.peers_nets import (
    NETS,
    NOISE_SEED,
    Case,
    Net,
    Subject,
    build,
    forward_outputs,
    images,
    normal,
    pick,
)

FOLDER = Path(__file__).parent
VERSIONS = (*PACKAGES, "openvino", "openvino-xai", "scikit-learn", "scipy", "ttach")


def torch_cases(subject: Subject, baseline: torch.Tensor) -> list[Case]:
    return [
        *peers_cam.cases(subject),
        *peers_pixel.cases(subject, baseline),
        *peers_xai.restated_cases(subject),
    ]


def distance(actual: np.ndarray, exact: np.ndarray, signed: bool) -> float:
    """Relative distance; without regard to the sign of each map where that is arbitrary."""
    if not signed:
        flip = np.sign((actual * exact).sum((-2, -1), keepdims=True))
        actual = actual * np.where(flip == 0, 1, flip)
    return relative(actual, exact) if np.linalg.norm(exact) else float(np.abs(actual).max())


def measured(subject: Subject, baseline: torch.Tensor, cases: list[Case]) -> dict[str, float]:
    """Relative distance of the raw maps and attributions of `cases` from those of `subject`."""
    others = {case.key: case.arrays for case in torch_cases(subject, baseline)}
    return {
        f"{case.key}/{name}": distance(case.arrays[name], others[case.key][name], peers_cam.SIGN not in case.notes)
        for case in cases
        if case.key in others
        for name in ("raw", "aug_raw", "attributions")
        if name in case.arrays
    }


def conditioning(subject: Subject, baseline: torch.Tensor, cases: list[Case]) -> dict[str, float]:
    """How far float32 itself moves every raw map and attribution (relative): the larger of the distances from the one
    made in float64 and from the one of images moved by 1e-6 of themselves."""
    wobble = 1 + 1e-6 * torch.from_numpy(normal(0, tuple(subject.x.shape), NOISE_SEED + 2))
    moved = measured(dataclasses.replace(subject, x=subject.x * wobble), baseline, cases)
    torch.set_default_dtype(torch.float64)
    try:
        double = dataclasses.replace(subject, model=subject.model.double(), x=subject.x.double())
        exact = measured(double, baseline.double(), cases)
    finally:
        torch.set_default_dtype(torch.float32)
        subject.model.float()
    return {key: max(value, moved[key]) for key, value in exact.items()}


def tensors_of(net: Net, model: torch.nn.Module, x: torch.Tensor, path: Path) -> dict[str, str]:
    """ONNX tensor names of the recorded layers, and of the attention maps by module path."""
    wanted = dict(net.layers) | {name: name for name, _ in model.named_modules() if name.endswith("softmax")}
    found = {}
    for name, module in wanted.items():
        with torch.no_grad(), forward_outputs(model, [module]) as seen:
            model(x)
        found[name] = find_tensor(path, x.numpy(), seen[0].numpy())
    return found


def layer_state(subject: Subject, layer: str) -> tuple[np.ndarray, np.ndarray]:
    """Activations (N,…) as the module gives them, and the gradients (N,K,…) of the targets' scores."""
    with forward_outputs(subject.model, [layer]) as seen:
        output = subject.model(subject.x)

    def gradient(classes: np.ndarray) -> np.ndarray:
        return torch.autograd.grad(pick(output, classes).sum(), seen[0], retain_graph=True)[0].numpy()

    return seen[0].detach().numpy(), subject.columns(gradient)


def make(name: str, net: Net) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """All arrays of one network and its description."""
    model, x = build(net), images(2, net.size, net.seed)
    path = FOLDER / f"peers_{name}.onnx"
    export(model, x, path, "dynamo")
    with torch.no_grad():
        logits = model(x).numpy()
    targets = np.argsort(-logits, axis=1)[:, [0, 2]].astype(np.int64)
    baseline = 0.5 * torch.from_numpy(normal(0, (1, 3, *net.size), NOISE_SEED + 1))
    subject = Subject(name, net, model, x, targets)
    tensors = tensors_of(net, model, x, path)
    states = {name: layer_state(subject, layer) for name, layer in net.layers.items()}
    cases = torch_cases(subject, baseline) + list(peers_xai.cases(subject, path, tensors))
    noise = conditioning(subject, baseline, cases)
    arrays = {"x": x.numpy(), "targets": targets, "logits": logits, "baseline": baseline.numpy()}
    for layer, (activations, gradients) in states.items():
        arrays |= {f"{layer}/A": activations, f"{layer}/g": gradients}
    described = {}
    for case in cases:
        if case.key in described:
            raise ValueError(f"{name}: {case.key} is recorded twice")
        arrays |= {f"{case.key}/{key}": np.asarray(value) for key, value in case.arrays.items()}
        described[case.key] = {
            "library": case.library,
            "layer": case.layer,
            "options": case.options,
            "notes": case.notes,
            "arrays": {key: list(np.shape(value)) for key, value in case.arrays.items()},
            "float32_noise": {k.rpartition("/")[2]: v for k, v in noise.items() if k.rpartition("/")[0] == case.key},
        }
    for key, value in arrays.items():
        if not np.isfinite(value).all():
            raise ValueError(f"{name}/{key} is not finite")
    flat = [key for key, v in arrays.items() if key.endswith("/raw") and (v.max((-2, -1)) <= 0).any()]
    if poor := {key: f"{value:.1e}" for key, value in noise.items() if value > WELL_CONDITIONED}:
        raise ValueError(f"{name}: ill-conditioned, choose another seed: {poor}")
    size, worst = path.stat().st_size // 1000, max(noise.values())
    print(f"{name}: {len(cases)} cases, {size} kB of ONNX, {tensors}, flat {flat}, worst float32 noise {worst:.1e}")
    about = {"seed": net.seed, "layers": net.layers, "tensors": tensors, "cases": described}
    return arrays, about


def main() -> int:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    arrays: dict[str, np.ndarray] = {}
    about: dict[str, Any] = {"versions": {package: version(package) for package in VERSIONS}, "nets": {}}
    about["noise_seed"] = NOISE_SEED
    for name, net in NETS.items():
        made, about["nets"][name] = make(name, net)
        arrays |= {f"{name}/{key}": value for key, value in made.items()}
    arrays = {key: value if value.dtype == np.int64 else value.astype(np.float32) for key, value in arrays.items()}
    np.savez_compressed(FOLDER / "peers.npz", about=np.array(json.dumps(about, ensure_ascii=False)), **arrays)
    print(f"{len(arrays)} arrays, {(FOLDER / 'peers.npz').stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
