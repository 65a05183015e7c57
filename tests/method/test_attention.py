"""Methods that read attention, against arrays made with torch (tests/reference/make_peers.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

import pycam
from pycam.errors import MethodError
from pycam.graph.attention import attention_maps
from pycam.graph.load import load
from pycam.graph.locate import locate_score
from pycam.graph.normalise import normalise

REFERENCE = Path(__file__).parents[1] / "reference"
MODEL = REFERENCE / "peers_vit.onnx"
ARRAYS = dict(np.load(REFERENCE / "peers.npz"))
X, TARGETS = ARRAYS["vit/x"], ARRAYS["vit/targets"]

METHODS = {"attention_rollout": "rollout", "chefer": "chefer", "legrad": "legrad/cls"}


@pytest.mark.parametrize("method", METHODS)
def test_maps(method: str) -> None:
    result = pycam.Explainer(MODEL, method)(X, TARGETS)
    raw, final = (ARRAYS[f"vit/{METHODS[method]}/{what}"] for what in ("raw", "final"))
    if raw.ndim == 3:  # the same for all targets
        raw, final = (np.repeat(a[:, None], 2, axis=1) for a in (raw, final))
    assert result.raw.shape == raw.shape
    assert np.linalg.norm(result.raw - raw) <= 1e-4 * np.linalg.norm(raw)
    np.testing.assert_allclose(result.heatmaps, final, rtol=0, atol=1e-3)
    assert result.layer == ""
    np.testing.assert_array_equal(result.targets, TARGETS)


def test_rollout_of_the_model_s_own_probabilities() -> None:
    """Worked out in numpy from what onnxruntime gives for the attention of each block."""
    model = normalise(load(MODEL.read_bytes()))
    maps = attention_maps(model.graph, locate_score(model.graph).value)
    for attention in maps:
        if attention.value not in model.graph.outputs:
            model.graph.outputs.append(attention.value)
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    total = np.eye(65)[None]
    for probabilities in session.run([a.value.name for a in maps], {session.get_inputs()[0].name: X}):
        mixed = (probabilities.mean(1) + np.eye(65)) / 2
        total = mixed / mixed.sum(-1, keepdims=True) @ total
    found = pycam.Explainer(MODEL, "attention_rollout")(X).raw[:, 0]
    np.testing.assert_allclose(found, total[:, 0, 1:].reshape(2, 8, 8), rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_one_target_is_several(method: str) -> None:
    explainer = pycam.Explainer(MODEL, method)
    together = explainer(X, TARGETS).raw
    for k in range(2):
        np.testing.assert_allclose(explainer(X, TARGETS[:, k]).raw[:, 0], together[:, k], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_exported(method: str, tmp_path: Path, forward: Any) -> None:
    """This model moves its batch axis, as many do, so that an exported graph takes one target at a time."""
    path = pycam.export(MODEL, tmp_path / "explain.onnx", method=method, classes=1)
    name = pycam.Explainer(path).spec.image
    found = forward(path, {name: X, "targets": TARGETS[:, :1]})
    expected = pycam.Explainer(MODEL, method)(X, TARGETS[:, 0]).heatmaps
    np.testing.assert_allclose(found["heatmaps"], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_a_model_without_attention_is_refused(cnn: Any, method: str) -> None:
    with pytest.raises(MethodError, match=r"the model has no attention .* methods that need none are, .*'gradcam'"):
        pycam.Explainer(cnn(), method)


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_has_nothing_to_do(method: str) -> None:
    with pytest.raises(MethodError, match="looks at the whole model, not at a layer: leave 'anything' out"):
        pycam.Explainer(MODEL, method, layer="anything")


def test_rollout_is_the_same_for_all_targets() -> None:
    raw = pycam.Explainer(MODEL, "attention_rollout")(X, TARGETS).raw
    np.testing.assert_array_equal(raw[:, 0], raw[:, 1])
