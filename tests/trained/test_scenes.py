"""The generated scenes, and the small models that were trained on them: `README.md` here says what they are."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest

FOLDER = Path(__file__).parent
MODELS = ("captioner", "vqa", "image_encoder", "text_encoder", "yolo")
SEED = 11  # neither of training nor of the figures in README.md


def test_the_same_seed_gives_the_same_scenes(scenes: ModuleType) -> None:
    first, second, other = (scenes.make_scenes(6, seed) for seed in (3, 3, 4))
    for name in ("images", "shapes", "colours", "boxes", "masks"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert (first.images != other.images).any()
    assert first.images.dtype == np.float32
    assert first.images.min() >= 0
    assert first.images.max() <= 1


def test_boxes_are_those_of_the_masks_and_lie_apart(scenes: ModuleType) -> None:
    made = scenes.make_scenes(50, 5, (1, 2, 3, 4))
    assert set((made.shapes >= 0).sum(1)) == {1, 2, 3, 4}
    for n in range(len(made)):
        there = made.shapes[n] >= 0
        assert len(set(made.shapes[n, there])) == len(set(made.colours[n, there])) == there.sum()
        assert not made.masks[n, ~there].any()
        assert made.masks[n].sum(0).max() == 1
        for mask, box in zip(made.masks[n, there], made.boxes[n, there], strict=True):
            y, x = np.nonzero(mask)
            np.testing.assert_array_equal(box, [x.min(), y.min(), x.max() + 1, y.max() + 1])


def test_objects_have_their_colour(scenes: ModuleType) -> None:
    made = scenes.make_scenes(30, 6)
    for n, k in np.argwhere(made.shapes >= 0):
        red, green, blue = made.images[n][:, made.masks[n, k]].mean(1)
        strong = {"red": red, "green": green, "blue": blue}
        primary = {"yellow": ("red", "green"), "purple": ("red", "blue"), "cyan": ("green", "blue")}
        name = scenes.COLOURS[made.colours[n, k]]
        high = primary.get(name, (name,))
        assert min(strong[c] for c in high) > max(v for c, v in strong.items() if c not in high)


def test_captions_say_what_lies_where(scenes: ModuleType) -> None:
    made = scenes.make_scenes(40, 7, (2,))
    texts = scenes.captions(made)
    for n in range(len(made)):
        words = scenes.decode(texts.tokens[n]).split()
        a, b = texts.objects[n, 0], texts.objects[n, len(words) - 1]
        assert {a, b} == {0, 1}
        for obj, (colour, shape) in ((a, words[:2]), (b, words[-2:])):
            assert scenes.COLOURS[made.colours[n, obj]] == colour
            assert scenes.SHAPES[made.shapes[n, obj]] == shape
        axis = 0 if words[2] == "left" else 1
        centres = (made.boxes[n, :, :2] + made.boxes[n, :, 2:]) / 2
        assert centres[a, axis] < centres[b, axis]
        assert words[2:-2] in (["left", "of"], ["above"])


def test_questions_are_about_the_object_that_they_name(scenes: ModuleType) -> None:
    made = scenes.make_scenes(60, 8)
    asked = scenes.questions(made, 9)
    for n in range(len(made)):
        words, answer, obj = scenes.decode(asked.tokens[n]).split(), scenes.ANSWERS[asked.answers[n]], asked.objects[n]
        shape, colour = scenes.SHAPES[made.shapes[n, obj]], scenes.COLOURS[made.colours[n, obj]]
        if words[1] == "colour":
            assert (words[-1], answer) == (shape, colour)
        elif words[1] == "shape":
            assert (words[-1], answer) == (colour, shape)
        else:
            assert answer == ("yes" if obj >= 0 else "no")
            assert (scenes.SHAPES.index(words[-1]) in made.shapes[n]) == (obj >= 0)
    assert (asked.objects < 0).any()


def test_phrases_are_true_of_the_scenes_that_have_what_they_name(scenes: ModuleType) -> None:
    made = scenes.make_scenes(60, 10)
    said = scenes.phrases(made, 11)
    for j in range(len(made)):
        things = {tuple(thing.split()[1:]) for thing in scenes.decode(said.tokens[j]).split(" and ")}
        assert len(things) == said.objects[j].sum()
        for i in range(len(made)):
            pairs = zip(made.colours[i], made.shapes[i], strict=True)
            has = {(scenes.COLOURS[c], scenes.SHAPES[s]) for c, s in pairs if s >= 0}
            assert said.true[i, j] == (things <= has)
    assert said.true.diagonal().all()


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_small_and_carries_its_words(name: str, scenes: ModuleType) -> None:
    path = FOLDER / f"{name}.onnx"
    assert path.stat().st_size < 1_000_000
    model = onnx.load(path, load_external_data=False)
    assert all(t.data_location == onnx.TensorProto.DEFAULT for t in model.graph.initializer)
    found = {p.key: tuple(p.value.split("\n")) for p in model.metadata_props}
    labels = {"captioner": scenes.WORDS, "vqa": scenes.ANSWERS, "yolo": scenes.SHAPES}.get(name)
    assert found.get("pycam.labels") == labels
    assert found.get("words") == (scenes.WORDS if name in ("captioner", "vqa", "text_encoder") else None)


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("captioner", {"words": 0.98, "captions": 0.95}),
        ("vqa", {"answers": 0.97}),
        ("clip", {"phrase": 0.97, "scene": 0.97}),
        ("yolo", {"recall": 0.98, "precision": 0.98}),
    ],
)
def test_a_model_is_as_good_as_said(name: str, least: dict[str, float], accuracy: ModuleType) -> None:
    reached = getattr(accuracy, name)(120, SEED)
    assert all(reached[key] >= value for key, value in least.items()), reached
