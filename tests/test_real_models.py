"""Real models of several frameworks, from the shared folder: they are explained, and every head agrees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import pycam
from pycam.errors import InputError, LayerError

# file: layer that "auto" picks, layout, classes
MODELS = {
    "fashion_scene_cnn": ("/12/Relu_output_0", "NCHW", 10),
    "fer_emotion_deq": ("model_1_1/conv2d_7_1", "NHWC", 7),
    "human_faceres": ("conv_pw_13_relu/clip_by_value:0", "NHWC", 1),
    "lite0": ("head.relu6", "NCHW", 1000),
    "lite0_int8_qdq": ("head.relu6", "NCHW", 1000),
    "lite0_int8_qop": ("head", "NCHW", 1000),
    "mnist_cnn_tf": ("StatefulPartitionedCall/sequential/conv2d_1/Relu:0", "NHWC", 2),
    "pong_policy": ("/5/Relu_output_0", "NCHW", 3),
    "ppocr_det": ("batch_norm_1.tmp_4", "NCHW", 1),
}


def inputs_of(explainer: pycam.Explainer) -> dict[str, np.ndarray]:
    """Random inputs, 1 where the batch is free and 96 where the size is."""
    return {
        i.name: np.random.default_rng(0)
        .normal(size=[d if isinstance(d, int) else 96 if axis else 1 for axis, d in enumerate(i.shape)])
        .astype(i.dtype)
        for i in explainer.inputs
    }


@pytest.mark.parametrize("name", MODELS)
def test_real_models_are_explained(shared: Path, name: str) -> None:
    layer, layout, classes = MODELS[name]
    path = shared / "models" / f"{name}.onnx"
    native = pycam.Explainer(path, threads=1)
    assert native.spec.layers[0].startswith(layer)
    assert (native.spec.layout, native.spec.classes) == (layout, classes)
    x = inputs_of(native)
    result = native(x)
    assert np.isfinite(result.heatmaps).all()
    assert result.flat.any() == (not result.heatmaps.any())
    portable = pycam.Explainer(path, threads=1, head="graph")(x)
    np.testing.assert_allclose(portable.heatmaps, result.heatmaps, atol=1e-4)
    again = native(x, np.repeat(result.targets, 2, axis=1))
    np.testing.assert_allclose(again.heatmaps, np.repeat(result.heatmaps, 2, axis=1), atol=1e-4)


def test_folding_int8_weights_changes_little(shared: Path, shipped: Path, photos: dict[str, Path]) -> None:
    want = pycam.explain(shared / "models" / "lite0.onnx", photos["coffee"], "top3", preprocess=_of(shipped))
    got = pycam.explain(shipped, photos["coffee"], want.targets)
    assert got.label() == "espresso"
    assert np.abs(got.heatmaps - want.heatmaps).mean() < 0.05


def _of(model: Path) -> pycam.Preprocess:
    pre = pycam.Explainer(model).preprocess
    assert pre is not None
    return pre


def test_real_models_that_cannot_be_explained_say_why(shared: Path) -> None:
    models = shared / "models"
    with pytest.raises(LayerError, match=r"branches .* on its input 'sr'.*pins="):
        pycam.Explainer(models / "silero_vad.onnx")
    reader = pycam.Explainer(models / "ppocr_rec.onnx", threads=1)
    with pytest.raises(InputError, match="cannot run on x "):
        reader(np.zeros((1, 3, 96, 96), dtype=np.float32))
