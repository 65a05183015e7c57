"""Similarity between an image and a text, of two encoders that were trained together: either side explained."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import pycam
from pycam.targets import Similarity

ROOT = Path(__file__).parents[2]
TRAINED = ROOT / "tests" / "trained"
TOKENS = np.array([[6, 3, 9, 0, 0, 0, 0], [6, 5, 11, 0, 0, 0, 0]])


def cosine(a: Any, b: Any) -> Any:
    a, b = np.asarray(a, float), np.asarray(b, float)
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


@pytest.fixture(scope="module")
def example() -> Any:
    spec = importlib.util.spec_from_file_location("explain_text", ROOT / "examples" / "explain_text.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_image(forward: Any, draw: Any) -> None:
    """The reference is what the other encoder gives."""
    text = forward(TRAINED / "text_encoder.onnx", {"tokens": TOKENS})["embedding"]
    images = np.abs(draw(2, 3, 64, 64))
    explainer = pycam.Explainer(TRAINED / "image_encoder.onnx", "layercam", "features.3", target=Similarity())
    result = explainer(images, [[0, 1]] * 2, reference=text)
    own = forward(TRAINED / "image_encoder.onnx", {"image": images})["embedding"]
    np.testing.assert_allclose(result.extras["score"], cosine(own[:, None], text), rtol=1e-4, atol=1e-6)
    assert not result.flat.any()


def test_the_text(example: Any, forward: Any) -> None:
    """The relevance of a word is how the similarity moves with the length of its embedding."""
    path = TRAINED / "text_encoder.onnx"
    other = forward(path, {"tokens": TOKENS[::-1].copy()})["embedding"]
    similarity, relevance = example.TextExplainer(path)(TOKENS, other)
    np.testing.assert_allclose(similarity, cosine(forward(path, {"tokens": TOKENS})["embedding"], other), rtol=1e-5)
    assert relevance.shape == TOKENS.shape
    np.testing.assert_array_equal(relevance[:, 3:], 0)  # padding is not read

    def moved(word: int, factor: float) -> float:
        model = onnx.load(path)
        table = next(t for t in model.graph.initializer if t.name == "words.weight")
        words = onnx.numpy_helper.to_array(table).copy()
        words[word] *= factor
        table.CopyFrom(onnx.numpy_helper.from_array(words, "words.weight"))
        return float(cosine(forward(model, {"tokens": TOKENS[:1]})["embedding"][0], other[0]))

    slopes = [(moved(word, 1.01) - moved(word, 0.99)) / 0.02 for word in TOKENS[0, :3]]
    np.testing.assert_allclose(relevance[0, :3], slopes, rtol=0.02, atol=1e-3)


def test_a_text_encoder_without_words(example: Any, cnn: Any, tmp_path: Path) -> None:
    onnx.save(cnn("gap"), tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="no Gather reads an input of the model"):
        example.TextExplainer(tmp_path / "model.onnx")
