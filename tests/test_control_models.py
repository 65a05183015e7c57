"""Whole models with control flow, against the frameworks they come from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

import pycam

STORED = sorted((Path(__file__).parent / "reference" / "control").glob("*.onnx"))


def _session(model: bytes | str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("lower", ["fast", "portable"])
@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_torch(path: Path, lower: str) -> None:
    known = np.load(path.with_suffix(".npz"))
    session = _session(pycam.vjp(path, ["x"], lower=lower).SerializeToString())
    feed = {"x": known["x"], "y.cotangent": known["cotangent"]}
    y, gradient = session.run(["y", "x.gradient"], feed)
    np.testing.assert_allclose(y, known["y"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradient, known["gradient"], rtol=1e-3, atol=1e-5 * np.abs(known["gradient"]).max())


@pytest.mark.parametrize(("rate", "samples"), [(16000, 576), (8000, 288)])
def test_silero_vad(shared: Path, rate: int, samples: int) -> None:
    """Speech detection: an If between two networks of convolutions and an LSTM, with more of them inside; the length
    of the audio is free, so the ranks of values in the branches are too."""
    path = shared / "models" / "silero_vad.onnx"
    forward, backward = _session(str(path)), _session(pycam.vjp(path, ["input", "state"]).SerializeToString())
    rng = np.random.default_rng(0)
    t = np.arange(samples) / rate
    voice = sum(np.sin(2 * np.pi * 140 * k * t) / k for k in range(1, 12))  # not where the features are 0
    x = (0.2 * voice + 0.05 * rng.normal(size=(2, samples))).astype(np.float32)
    feed = {"input": x, "state": rng.normal(size=(2, 2, 128)).astype(np.float32) * 0.3, "sr": np.array(rate)}
    names = ["output", "input.gradient", "state.gradient"]
    y, *gradients = backward.run(names, {**feed, "output.cotangent": np.ones((2, 1), np.float32)})
    np.testing.assert_allclose(y, forward.run(["output"], feed)[0], rtol=1e-4, atol=1e-6)
    for name, gradient, step in zip(("input", "state"), gradients, (2e-3, 2e-2), strict=True):
        elsewhere = rng.normal(size=gradient.shape)
        direction = gradient / np.linalg.norm(gradient) + elsewhere / np.linalg.norm(elsewhere)
        direction /= np.linalg.norm(direction)
        moved = ({**feed, name: (feed[name] + s * step * direction).astype(np.float32)} for s in (1, -1))
        ahead, behind = (forward.run(["output"], f)[0].astype(np.float64).sum() for f in moved)
        assert float(np.sum(gradient * direction)) == pytest.approx((ahead - behind) / (2 * step), rel=0.02), name
