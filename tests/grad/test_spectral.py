"""Gradients of Fourier transforms."""

from __future__ import annotations

import numpy as np
import pytest

from pycam.errors import BatchAxisError, UnsupportedOpError

REAL, COMPLEX = (2, 5, 3, 1), (2, 5, 3, 2)


def transform(length=None, axis=None, **attributes):
    listed = ", ".join(f"{k}={v}" for k, v in attributes.items())
    made = f"n = Constant<value_int={length}>() " if length is not None else ""
    made += f"a = Constant<value_int={axis}>() " if axis is not None else ""
    names = ", ".join(["x", "n" if length is not None else "", "a" if axis is not None else ""]).rstrip(", ")
    return f"{made} y = DFT{f'<{listed}>' if listed else ''}({names})"


CASES = [
    *((transform(length, axis, inverse=inverse), shape)
      for length in (None, 3, 7) for axis in (None, 1) for inverse in (0, 1) for shape in (REAL, COMPLEX)),
    *((transform(length, axis, onesided=1), REAL) for length in (None, 4, 7) for axis in (1, -2)),
]  # fmt: skip


@pytest.mark.parametrize(("body", "shape"), CASES)
def test_dft(check, body, shape):
    check(body, {"x": shape}, opset=20, batched=True, forms=("static", "dynamic"), runtime=not odd(body))


def odd(body):
    """onnxruntime has no inverse transform of real numbers."""
    return "inverse=1" in body


@pytest.mark.parametrize("length", [None, 4, 5, 9])
def test_half_a_spectrum_back_to_real_numbers(check, length):
    """onnxruntime has no such transform."""
    check(transform(length, 1, inverse=1, onesided=1), {"x": (2, 4, 2)}, opset=20, runtime=False, batched=True)


def test_length_and_axis_that_the_graph_computes(check):
    body = "a = Constant<value_int=1>() y = DFT(x, n, a)"
    for n in (2, 4, 6):
        check(body, {"x": (2, 4, 1), "n": np.array(n)}, wrt=["x"], opset=20)
    half = "a = Constant<value_int=1>() y = DFT<inverse=1, onesided=1>(x, n, a)"
    for n in (4, 5, 8):
        check(half, {"x": (2, 4, 2), "n": np.array(n)}, wrt=["x"], opset=20, runtime=False)
    with pytest.raises(UnsupportedOpError, match="its axis"):
        check.gradient("y = DFT(x, , a)", {"x": (2, 4, 1), "a": np.array(1)}, wrt=["x"], opset=20)


def test_older_models_have_the_axis_as_an_attribute(check):
    check("y = DFT<axis=1, onesided=1>(x)", {"x": (2, 4, 3, 1)}, opset=17)


def test_the_batch_is_no_signal(check):
    with pytest.raises(BatchAxisError, match="batch axis"):
        check(transform(None, 0), {"x": (2, 4, 1)}, opset=20, forms=("static",), batched=True)


def stft(x, step, window=None, length=None, onesided=1):
    """onnx.reference's pads frames that reach beyond the signal."""
    n = len(window) if window is not None else int(length) if length is not None else x.shape[1]
    starts = range(0, x.shape[1] - n + 1, int(step))
    frames = np.stack([x[:, s : s + n] for s in starts], axis=1)
    signal = frames[..., 0] + (1j * frames[..., 1] if x.shape[-1] == 2 else 0)
    y = np.fft.fft(signal * (1 if window is None else window), axis=-1)
    y = y[..., : n // 2 + 1] if onesided else y
    return np.stack([y.real, y.imag], axis=-1)


OPS = {"STFT": stft}
FRAMES = [
    ("y = STFT<onesided=1>(x, t, w)", {"x": (2, 9, 1), "w": (4,)}, 2),
    ("y = STFT<onesided=0>(x, t, w)", {"x": (1, 7, 1), "w": (3,)}, 3),
    ("y = STFT<onesided=0>(x, t, w)", {"x": (1, 7, 2), "w": (3,)}, 1),
    ("n = Constant<value_int=4>() y = STFT<onesided=1>(x, t, , n)", {"x": (1, 8, 1)}, 3),
]


@pytest.mark.parametrize("lower", ["fast", "portable"])
@pytest.mark.parametrize(("body", "inputs", "step"), FRAMES)
def test_stft(check, body, inputs, step, lower):
    # onnxruntime has no STFT in float64 to fold, nor one of complex signals
    runtime = inputs["x"][-1] == 1
    options = {"ops": OPS, "lower": lower, "runtime": runtime}
    check(body, inputs, weights={"t": np.array(step)}, forms=("static", "batch"), **options)
    options["runtime"] = False  # the test would give `y`, of which onnx infers nothing, another rank
    check(body, inputs, weights={"t": np.array(step)}, forms=("dynamic",), **options)


def test_frames_that_the_graph_counts(check):
    body = "y = STFT<onesided=1>(x, t, w, n)"
    inputs = {"x": (2, 9, 1), "t": np.array(2), "w": (4,), "n": np.array(4)}
    check(body, inputs, wrt=["x", "w"], ops=OPS, forms=("dynamic",), runtime=False)


def test_stft_of_several_targets(check):
    weights = {"t": np.array(2), "w": np.array([0.5, 1.0, 1.0, 0.5])}
    check("y = STFT<onesided=1>(x, t, w)", {"x": (2, 8, 1)}, weights=weights, ops=OPS, forms=("static",), batched=True)
