"""Pixel attribution, FullGrad and Smooth Grad-CAM++ against stored arrays of grad-cam 1.5.7 and captum 0.9.

`tests/reference/make_peers.py` makes them, with the versions that it names.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pycam

REFERENCE = Path(__file__).parents[1] / "reference"
RAW_TOLERANCE, FINAL_TOLERANCE = 1e-4, 1e-3
ARRAYS: dict[str, np.ndarray] = dict(np.load(REFERENCE / "peers.npz"))
ABOUT: dict[str, Any] = json.loads(str(ARRAYS["about"]))
OURS = {  # the peer's case → method, options
    "saliency": ("gradient", {}),
    "input_x_gradient": ("input_x_gradient", {}),
    "guided_backprop": ("guided_backprop", {}),
    "captum_guided_backprop": ("guided_backprop", {}),
    "deconvnet": ("deconvnet", {}),
    "guided_gradcam/nearest": ("guided_gradcam", {"interpolation": "nearest"}),
    "guided_gradcam/bilinear": ("guided_gradcam", {"interpolation": "bilinear"}),
    "integrated_gradients": ("integrated_gradients", {"steps": 32, "baseline": 0.0}),
    "fullgrad": ("fullgrad", {}),
    "smoothgrad": ("smoothgrad", {"std": 0.25}),
    "vargrad": ("vargrad", {"std": 0.25}),
    "smooth_gradcam++": ("smoothgradcam++", {"std": 0.3}),
}
CASES = [
    (net, case)
    for net in ABOUT["nets"]
    for case in OURS
    if case in ABOUT["nets"][net]["cases"]  # the peers know modules of ReLU only: no guided methods for the ViT
    and (net, case) != ("cnn_mlp", "fullgrad")  # a batch normalisation behind a bias: see the test of its own
]
NAMES = {"raw": "raw", "final": "heatmaps", "attributions": "attributions", "delta": "completeness"}


def found(net: str, method: str, options: dict[str, Any]) -> dict[str, np.ndarray]:
    """What pycam makes of the images and targets of a network.

    Peers take the noise's deviation, pycam the share of an image's range that it is: so images go one by one.
    """
    x, targets = ARRAYS[f"{net}/x"], ARRAYS[f"{net}/targets"]
    path = REFERENCE / f"peers_{net}.onnx"
    settings = [options] * len(x)
    if "std" in options:
        shares = [options["std"] / float(np.ptp(image)) for image in x]
        settings = [{"samples": 8, "seed": ABOUT["noise_seed"], "noise": share, "batch": 6} for share in shares]
    if method in ("guided_gradcam", "smoothgradcam++"):
        settings = [s | {"layer": ABOUT["nets"][net]["layers"]["last"]} for s in settings]
    results = [pycam.Explainer(path, method, **s)(x[n : n + 1], targets[n : n + 1]) for n, s in enumerate(settings)]
    made = [{"raw": r.raw, "heatmaps": r.heatmaps, **r.extras} for r in results]
    return {name: np.concatenate([m[name] for m in made]) for name in made[0]}


def test_what_is_compared() -> None:
    assert len(CASES) == 12 + 11 + 6


@pytest.mark.parametrize(("net", "case"), CASES)
def test_peers(net: str, case: str, relative: Any) -> None:
    method, options = OURS[case]
    made = found(net, method, options)
    for name in ABOUT["nets"][net]["cases"][case]["arrays"]:
        if name == "weights":
            continue
        actual, wanted = made[NAMES[name]], ARRAYS[f"{net}/{case}/{name}"]
        if name in ("final", "delta"):
            np.testing.assert_allclose(actual, wanted, rtol=0, atol=FINAL_TOLERANCE)
        else:
            assert relative(actual, wanted) <= RAW_TOLERANCE, name


def test_fullgrad_of_a_convolution_with_bias_before_batchnorm() -> None:
    """pytorch-grad-cam counts the convolution's bias and the batch normalisation's, 12 channels each; pycam has one
    bias for both: less, nowhere more."""
    difference = ARRAYS["cnn_mlp/fullgrad/raw"] - found("cnn_mlp", "fullgrad", {})["raw"]
    assert difference.min() > -1e-3
    assert difference.max() < 12 + 1e-3
