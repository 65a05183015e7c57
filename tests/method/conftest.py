"""The small CNN as matrices, in double: scores and gradients that owe nothing to pycam.

Test modules share these as fixtures (there are no imports between them).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

REFERENCE = Path(__file__).parents[1] / "reference"

RULES = {
    "exact": lambda g, z: g * (z > 0),
    "guided": lambda g, z: np.maximum(g, 0) * (z > 0),
    "deconvnet": lambda g, z: np.maximum(g, 0),
}


def convolution(weights: np.ndarray, size: int, stride: int) -> np.ndarray:
    """The matrix of a 3×3 convolution with padding 1, (M·o·o, C·size·size)."""
    c = weights.shape[1]
    basis = np.pad(np.eye(c * size * size).reshape(-1, c, size, size), ((0, 0), (0, 0), (1, 1), (1, 1)))
    out = sum(
        np.einsum("ncij,mc->nmij", basis[:, :, i : i + size : stride, j : j + size : stride], weights[:, :, i, j])
        for i in range(3)
        for j in range(3)
    )
    return np.asarray(out).reshape(c * size * size, -1).T


class Net:
    """The small CNN as matrices: [(matrix, bias, activation behind)], in double."""

    def __init__(self, tail: str, w: dict[str, np.ndarray]) -> None:
        pool = np.repeat(np.eye(6), 64, axis=1) / 64
        w = {k: v.astype(np.float64) for k, v in w.items()}
        tails: dict[str, list[tuple[np.ndarray, Any, str]]] = {
            "gap": [(w["w_fc"] @ pool, w["b_fc"], "")],
            "flatten": [(w["w_flat"], w["b_fc"], "")],
            "mlp": [(w["w_hidden"].T @ pool, 0, "relu"), (w["w_fc"], w["b_fc"], "")],
            "conv": [(convolution(w["w_conv3"], 8, 1), 0, "relu"), (w["w_fc"] @ pool, w["b_fc"], "")],
        }
        self.layers = [
            (convolution(w["w_conv1"], 16, 2), w["b_conv1"].repeat(64), "abs"),
            (convolution(w["w_conv2"], 8, 1), w["b_conv2"].repeat(64), "relu"),
            *tails[tail],
        ]

    def forward(self, x: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """What goes into the activations, and what comes out; the last is the logits, (N, classes)."""
        before, after, a = [], [], x.reshape(len(x), -1).astype(np.float64)
        for matrix, bias, activation in self.layers:
            z = a @ matrix.T + bias
            a = {"relu": np.maximum(z, 0), "abs": np.abs(z), "": z}[activation]
            before.append(z)
            after.append(a)
        return before, after

    def gradients(self, x: np.ndarray, classes: np.ndarray, rules: str = "exact") -> list[np.ndarray]:
        """Of one class per image: for x, and for what comes out of each layer, (N, …)."""
        before, _ = self.forward(x)
        g = np.eye(before[-1].shape[1])[classes]
        found = [g]
        for (matrix, _, activation), z in zip(self.layers[::-1], before[::-1], strict=True):
            g = RULES[rules](g, z) if activation == "relu" else g
            if activation == "abs":  # the Relu behind it gets |z|
                g = RULES[rules](g, np.abs(z)) * np.sign(z)
            g = g @ matrix
            found.append(g)
        return found[::-1]

    def dx(self, x: np.ndarray, targets: np.ndarray, rules: str = "exact") -> np.ndarray:
        """(N, K, C, H, W)."""
        columns = [self.gradients(x, targets[:, k], rules)[0] for k in range(targets.shape[1])]
        return np.stack(columns, 1).reshape(*targets.shape, *x.shape[1:])


def _halved(model: onnx.ModelProto) -> onnx.ModelProto:
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float16), tensor.name))
    return model


def _relative(actual: np.ndarray, wanted: np.ndarray) -> float:
    assert actual.shape == wanted.shape
    return float(np.linalg.norm(actual - wanted) / np.linalg.norm(wanted))


def _bilinear(m: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(…, h, w) → (…, H, W), half-pixel centres, edges clamped."""
    matrices = []
    for n, count in zip(m.shape[-2:], size, strict=True):
        at = np.clip((np.arange(count) + 0.5) * n / count - 0.5, 0, n - 1)
        low = np.minimum(np.floor(at).astype(int), max(n - 2, 0))
        matrix = np.zeros((count, n))
        matrix[np.arange(count), low] += 1 - (at - low)
        matrix[np.arange(count), np.minimum(low + 1, n - 1)] += at - low
        matrices.append(matrix)
    return np.asarray(matrices[0] @ m @ matrices[1].T)


class Peer:
    """A small net of tests/reference and the arrays that are stored for it.

    Attributes:
        path: The model.
        x, targets: What was explained.
        layers: Short name → tensor: "last" is the layer of most cases.
    """

    def __init__(self, path: Path, name: str, about: dict[str, Any], arrays: Any) -> None:
        self.path, self._name, self._arrays = path, name, arrays
        self.x, self.targets = self["x"], self["targets"]
        self.layers: dict[str, str] = about["tensors"]

    def __getitem__(self, key: str) -> np.ndarray:
        return np.asarray(self._arrays[f"{self._name}/{key}"])


@pytest.fixture(scope="session")
def net(cnn_weights: Callable[..., dict[str, np.ndarray]]) -> Callable[[str], Net]:
    """`net(tail)`: the small CNN with that tail, see `Net`."""
    return lambda tail: Net(tail, cnn_weights(tail))


@pytest.fixture(scope="session")
def relative() -> Callable[[np.ndarray, np.ndarray], float]:
    """Relative error in the 2-norm of two arrays of the same shape."""
    return _relative


@pytest.fixture(scope="session")
def bilinear() -> Callable[[np.ndarray, tuple[int, int]], np.ndarray]:
    """`bilinear(m, (H, W))`: (…, h, w) → (…, H, W)."""
    return _bilinear


@pytest.fixture(scope="session")
def halved() -> Callable[[onnx.ModelProto], onnx.ModelProto]:
    """A model in float16."""
    return _halved


@pytest.fixture(scope="session")
def peers() -> Callable[[str], Peer]:
    """`peers(net)`: a small net with what other libraries made of it, see tests/reference/make_peers.py."""
    arrays = np.load(REFERENCE / "peers.npz")
    about = json.loads(str(arrays["about"]))["nets"]
    return lambda name: Peer(REFERENCE / f"peers_{name}.onnx", name, about[name], arrays)
