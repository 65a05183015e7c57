"""Cases of captum and torchcam, by their own code, with the shared noise in place of their random sources."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from captum.attr import (
    Deconvolution,
    GuidedBackprop,
    GuidedGradCam,
    InputXGradient,
    IntegratedGradients,
    NoiseTunnel,
    Occlusion,
    Saliency,
)
from torchcam.methods import ISCAM, SSCAM

from tests.reference.peers_cam import finals
from tests.reference.peers_nets import Case, Subject, forward_outputs, normal, pick

CAPTUM, TORCHCAM = "captum 0.9.0", "torchcam 0.5.0"
TUNNEL: dict[str, Any] = {"nt_samples": 8, "stdevs": 0.25}
OCCLUSION: dict[str, Any] = {"sliding_window_shapes": (3, 9, 7), "strides": (3, 4, 3)}
SSCAM_OPTIONS: dict[str, Any] = {"num_samples": 8, "std": 0.5}
ISCAM_SAMPLES = 6
SMOOTH_OPTIONS: dict[str, Any] = {"num_samples": 8, "std": 0.3}


class Draws:
    """The shared noise under the names of the peers' random sources; counts what was taken."""

    def __init__(self, shape: tuple[int, ...], samples: int) -> None:
        self.shape, self.samples, self.taken = shape, samples, 0

    def tensor(self, std: float, dtype: torch.dtype) -> torch.Tensor:
        value = torch.from_numpy(normal(self.taken % self.samples, self.shape)).to(dtype)
        self.taken += 1
        return std * value

    def captum_normal(self, mean: float, std: torch.Tensor) -> torch.Tensor:
        """Stands for ``torch.normal(0, std)`` in NoiseTunnel, whose batch is image-major: the samples of an image lie
        side by side."""
        assert mean == 0
        assert std.shape[1:] == self.shape
        noise = torch.stack([self.tensor(1.0, std.dtype) for _ in range(self.samples)])
        return std * noise.repeat(std.shape[0] // self.samples, *[1] * len(self.shape))


class TorchcamNoise:
    """Stands for torchcam's ``Normal(0, std)``: one (H,W) draw per sample for all channels and images."""

    def __init__(self, draws: Draws, std: float) -> None:
        self.draws, self.std = draws, std

    def sample(self, size: torch.Size) -> torch.Tensor:
        return self.draws.tensor(self.std, torch.get_default_dtype()).expand(size)


def gradients(subject: Subject) -> Iterator[Case]:
    model, x, rectified = subject.model, subject.x, subject.net.reshape is None
    layer = subject.net.layers["last"]

    def attribute(explainer: Any, **options: Any) -> np.ndarray:
        def column(classes: np.ndarray) -> np.ndarray:
            return explainer.attribute(x.clone(), target=torch.from_numpy(classes), **options).detach().numpy()

        return subject.columns(column)

    def case(key: str, attributions: np.ndarray, notes: str = "", where: str = "", **options: Any) -> Case:
        return Case(key, CAPTUM, {"attributions": attributions}, where, options, notes)

    yield case("saliency", attribute(Saliency(model), abs=False), "The plain gradient.", abs=False)
    yield case("input_x_gradient", attribute(InputXGradient(model)))
    if rectified:  # captum hooks nn.ReLU modules: on a GELU network these are the plain gradient
        yield case("captum_guided_backprop", attribute(GuidedBackprop(model)), "nn.ReLU modules only")
        yield case("deconvnet", attribute(Deconvolution(model)), "nn.ReLU modules only")
        module = model.get_submodule(layer)
        for mode in ("nearest", "bilinear"):
            maps = attribute(GuidedGradCam(model, module), interpolate_mode=mode)
            note = "Guided backpropagation × resized relu(Grad-CAM), not normalised; captum's default mode is nearest."
            yield case(f"guided_gradcam/{mode}", maps, note, layer, interpolate_mode=mode)


def integrated(subject: Subject, baseline: torch.Tensor) -> Iterator[Case]:
    options = {"method": "riemann_middle", "n_steps": 32}
    for key, start in {
        "integrated_gradients": torch.zeros_like(baseline),
        "integrated_gradients/baseline": baseline,
    }.items():
        columns = [
            IntegratedGradients(subject.model).attribute(
                subject.x, start, target=torch.from_numpy(classes), return_convergence_delta=True, **options
            )
            for classes in subject.targets.T
        ]
        arrays = {
            "attributions": torch.stack([values for values, _ in columns], 1).detach().numpy(),
            "delta": torch.stack([delta for _, delta in columns], 1).detach().numpy(),
        }
        note = (
            "delta (N,K) = Σ attributions − (f(x) − f(baseline)); the baseline is zero or <model>/baseline (1,3,H,W)."
        )
        yield Case(key, CAPTUM, arrays, "", options, note)


def tunnels(subject: Subject) -> Iterator[Case]:
    tunnel, shape = NoiseTunnel(Saliency(subject.model)), tuple(subject.x.shape[1:])
    for key in ("smoothgrad", "vargrad"):
        draws = Draws(shape, TUNNEL["nt_samples"])

        def column(classes: np.ndarray, key: str = key, draws: Draws = draws) -> np.ndarray:
            with mock.patch.object(torch, "normal", draws.captum_normal):
                target = torch.from_numpy(classes)
                return tunnel.attribute(subject.x, nt_type=key, target=target, abs=False, **TUNNEL).detach().numpy()

        values = subject.columns(column)
        assert draws.taken == TUNNEL["nt_samples"] * subject.targets.shape[1]
        note = "Saliency(abs=False); sample i adds stdevs · standard_normal((3,H,W)) of stream i to every image."
        yield Case(key, CAPTUM, {"attributions": values}, "", TUNNEL, note)


def occlusion(subject: Subject) -> Case:
    def column(classes: np.ndarray) -> np.ndarray:
        explainer = Occlusion(subject.model)
        return explainer.attribute(subject.x, target=torch.from_numpy(classes), baselines=0, **OCCLUSION).numpy()

    note = "Score drop averaged over the windows that cover a pixel; the last window of a row or column is clipped."
    return Case("occlusion", CAPTUM, {"attributions": subject.columns(column)}, "", OCCLUSION | {"baselines": 0}, note)


def score_masks(subject: Subject, layer: str) -> Iterator[Case]:
    """SS-CAM and IS-CAM of torchcam."""
    size, model = subject.net.size, subject.model

    def record(make: Any, draws: Draws | None) -> dict[str, np.ndarray]:
        results = []
        for classes in subject.targets.T:
            with make() as extractor, torch.no_grad():
                if draws:
                    extractor._distrib = TorchcamNoise(draws, SSCAM_OPTIONS["std"])
                model(subject.x)
                weights = extractor._get_weights(classes.tolist())[0]
                raw = torch.einsum("nc,nchw->nhw", weights, extractor.hook_a[0])
                positive = extractor(classes.tolist(), normalized=False)[0]
                torch.testing.assert_close(positive, raw.relu())
                results.append((raw.numpy(), weights.numpy()))
        raws, weights = (np.stack(part, 1) for part in zip(*results, strict=True))
        return {"raw": raws, "final": finals(raws, size), "weights": weights}

    draws = Draws(size, SSCAM_OPTIONS["num_samples"])
    arrays = record(lambda: SSCAM(model, layer, **SSCAM_OPTIONS), draws)
    assert draws.taken == 2 * SSCAM_OPTIONS["num_samples"] * subject.targets.shape[1]
    note = "Sample i adds std · standard_normal((H,W)) of stream i to the masks of all channels and images."
    yield Case("sscam", TORCHCAM, arrays, layer, SSCAM_OPTIONS, note)
    arrays = record(lambda: ISCAM(model, layer, num_samples=ISCAM_SAMPLES), None)
    note = "torchcam's coefficients accumulate: Σ_{j≤i} j/N."
    yield Case("iscam", TORCHCAM, arrays, layer, {"num_samples": ISCAM_SAMPLES}, note)
    arrays = restated_iscam(subject, layer)
    note = "Coefficients i/N, i = 1…N: a path from 0 to the masked image."
    yield Case("iscam/path", "restated", arrays, layer, {"num_samples": ISCAM_SAMPLES}, note)


def restated_iscam(subject: Subject, layer: str) -> dict[str, np.ndarray]:
    """IS-CAM along an integration path: ``w = softmax_c(mean_i y(i/N · U(minmax(A_c)) ⊙ x))``; masks as torchcam's."""
    x, size = subject.x, subject.net.size
    results = []
    with torch.no_grad():
        with forward_outputs(subject.model, [layer]) as seen:
            subject.model(x)
        (a,) = seen
        low = a - a.amin((2, 3), keepdim=True)
        masks = low / (low.amax((2, 3), keepdim=True) + 1e-8)
        masks = torch.nn.functional.interpolate(masks, size, mode="bilinear", align_corners=False)
        masked = masks[:, :, None] * x[:, None]
        for classes in subject.targets.T:
            mean = torch.zeros(a.shape[:2])
            for step in range(1, ISCAM_SAMPLES + 1):
                scores = subject.model((step / ISCAM_SAMPLES * masked).flatten(0, 1)).unflatten(0, a.shape[:2])
                mean += torch.stack([scores[n, :, int(c)] for n, c in enumerate(classes)]) / ISCAM_SAMPLES
            weights = mean.softmax(1)
            results.append((torch.einsum("nc,nchw->nhw", weights, a).numpy(), weights.numpy()))
    raws, weights = (np.stack(part, 1) for part in zip(*results, strict=True))
    return {"raw": raws, "final": finals(raws, size), "weights": weights}


def restated_smooth(subject: Subject, layer: str) -> Case:
    """Smooth Grad-CAM++: with ``D_p`` the mean of g^p over noisy inputs and A of the clean input,
    ``α = D_2/(2·D_2 + ΣA·D_3 + 1e-6)``, ``w = Σ relu(D_1)·α``, ``raw = Σ_c w·A``. torchcam 0.5.0 takes relu(g) and A of
    the last noisy sample and sums D_3·A inside Σ."""
    count, std = SMOOTH_OPTIONS["num_samples"], SMOOTH_OPTIONS["std"]
    shape = tuple(subject.x.shape[1:])
    with torch.no_grad(), forward_outputs(subject.model, [layer]) as seen:
        subject.model(subject.x)
    (a,) = seen
    results = []
    for classes in subject.targets.T:
        draws, powers = Draws(shape, count), [torch.zeros_like(a) for _ in range(3)]
        for _ in range(count):
            with forward_outputs(subject.model, [layer]) as noisy:
                output = subject.model(subject.x + draws.tensor(std, subject.x.dtype))
            (g,) = torch.autograd.grad(pick(output, classes).sum(), noisy)
            for p, total in enumerate(powers):
                total += g ** (p + 1) / count
        first, second, third = powers
        alpha = second / (2 * second + a.sum((2, 3), keepdim=True) * third + 1e-6)
        weights = (first.relu() * alpha).sum((2, 3))
        results.append((torch.einsum("nc,nchw->nhw", weights, a).numpy(), weights.numpy()))
    raws, weights = (np.stack(part, 1) for part in zip(*results, strict=True))
    arrays = {"raw": raws, "final": finals(raws, subject.net.size), "weights": weights}
    note = (
        "Not torchcam's (see make_peers.py); sample i adds std · standard_normal((3,H,W)) of stream i to every image."
    )
    return Case("smooth_gradcam++", "restated", arrays, layer, SMOOTH_OPTIONS, note)


def cases(subject: Subject, baseline: torch.Tensor) -> Iterator[Case]:
    yield from gradients(subject)
    yield from integrated(subject, baseline)
    yield from tunnels(subject)
    yield occlusion(subject)
    if subject.net.reshape is None:
        layer = subject.net.layers["last"]
        yield from score_masks(subject, layer)
        yield restated_smooth(subject, layer)
