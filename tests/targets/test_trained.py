"""Questions, captions and phrases about one object of a scene: the map lies on it, and moves with the words."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pycam
from pycam.targets import Class, Sequence, Similarity

TRAINED = Path(__file__).parents[1] / "trained"
COUNT = 40


@pytest.fixture(scope="module")
def made() -> Any:
    """The generator of scenes."""
    spec = importlib.util.spec_from_file_location("trained_scenes", TRAINED / "scenes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def judged(result: pycam.Explanation, masks: np.ndarray) -> tuple[float, float, float]:
    """(share of maps whose maximum lies in the object, mean share of energy in it, mean share of the picture)."""
    maps = result.heatmaps[:, 0]
    flat = maps.reshape(len(maps), -1)
    hits = np.take_along_axis(masks.reshape(len(maps), -1), flat.argmax(1)[:, None], 1)
    return float(hits.mean()), float(((maps * masks).sum((1, 2)) / maps.sum((1, 2))).mean()), float(masks.mean())


def test_a_question_lights_what_it_asks_about(made: Any) -> None:
    scenes = made.make_scenes(COUNT, 5, (2,))
    explainer = pycam.Explainer(TRAINED / "vqa.onnx", layer="select", target=Class())
    rows = np.arange(COUNT)
    for first in (0, 1):  # the same pictures, and another object
        asked = [
            made.encode(f"what colour is the {made.SHAPES[s]}", made.QUESTION_LENGTH, front=True)
            for s in scenes.shapes[:, first]
        ]
        result = explainer({"image": scenes.images, "question": np.array(asked)})
        right = result.targets[:, 0] == scenes.colours[:, first]
        assert right.mean() > 0.95
        hits, energy, area = judged(result, scenes.masks[rows, first])
        other = judged(result, scenes.masks[rows, 1 - first])
        assert hits > 0.85
        assert energy > max(0.6, 6 * area)
        assert other[1] < 0.1
        assert explainer.labels[result.targets[0, 0]] in made.COLOURS


@pytest.mark.parametrize(("method", "least"), [("gradcam", 0.15), ("layercam", 0.7), ("hirescam", 0.7)])
def test_a_word_of_a_caption_lights_its_object(made: Any, method: str, least: float) -> None:
    scenes = made.make_scenes(COUNT, 6, (2,))
    scenes = scenes.take(made.clear(scenes))
    texts = made.captions(scenes)
    before = np.pad(texts.tokens[:, :-1], ((0, 0), (1, 0)), constant_values=made.START)
    explainer = pycam.Explainer(TRAINED / "captioner.onnx", method, target=Sequence())
    assert explainer.spec.layer.startswith("features.3")
    result = explainer({"image": scenes.images, "tokens": before}, position=1)  # the first object's shape
    assert (result.targets[:, 0] == texts.tokens[:, 1]).mean() > 0.95
    hits, energy, area = judged(result, scenes.masks[np.arange(len(scenes)), texts.objects[:, 1]])
    random = pycam.Explainer(TRAINED / "captioner.onnx", "random", target=Sequence())
    chance = judged(
        random({"image": scenes.images, "tokens": before}, position=1),
        scenes.masks[np.arange(len(scenes)), texts.objects[:, 1]],
    )
    assert hits > max(0.8, chance[0])
    assert energy > max(least, 2 * area)
    assert method == "gradcam" or energy > 2 * chance[1]


def test_a_phrase_lights_what_it_names(made: Any, forward: Any) -> None:
    scenes = made.make_scenes(COUNT, 7)
    said = made.phrases(scenes, 8, single=1.0)
    text = forward(TRAINED / "text_encoder.onnx", {"tokens": said.tokens})["embedding"]
    masks = scenes.masks[np.arange(COUNT), said.objects.argmax(1)]
    for method in ("gradcam", "hirescam"):
        explainer = pycam.Explainer(TRAINED / "image_encoder.onnx", method, target=Similarity())
        hits, energy, area = judged(explainer(scenes.images, 0, reference=text[:, None]), masks)
        assert hits > 0.75  # on the object itself, not in its box
        assert energy > 6 * area
