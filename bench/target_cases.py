"""Cases in which the right region is known: one or more for each kind of target.

A case draws pictures, says what a call explains in them, and which pixels are right.  The small models are those of
`tests/trained`; others lie in the shared folder, and a case whose model is missing is left out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from bench.fashion import CNN, SHARED, fashion_arrays
from pycam import targets

TRAINED = Path(__file__).parents[1] / "tests" / "trained"
sys.path.insert(0, str(TRAINED))
import scenes as made  # noqa: E402  # of the tests, beside the models

MODELS = SHARED / "models"


@dataclass(frozen=True)
class Sample:
    """One picture: what the model takes, what is asked, and what is right.

    Attributes:
        photo: uint8 (H, W, 3), as the model sees it.
        x: What the model takes.
        region: bool (H, W): the right pixels.
        targets: What is explained.
        given: What else the call gives.
        said: What it is, in words.
    """

    photo: NDArray[np.uint8]
    x: Any
    region: NDArray[np.bool_]
    targets: Any = None
    given: Mapping[str, Any] = field(default_factory=dict)
    said: str = ""


@dataclass(frozen=True)
class Case:
    """A kind of target on a model.

    Attributes:
        name: In the table.
        model: File.
        target: None: the usual one.
        layer: "auto", or a name.
        samples: How many, by default.
        draw: (count) → samples.
    """

    name: str
    model: Path
    target: targets.Target | None
    layer: str
    samples: int
    draw: Callable[[int], Iterator[Sample]]


def session(path: Path) -> Any:
    """A model in onnxruntime, quietly."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


# ── classes: items on textures ──────────────────────────────────────────────────────────────────────────────────────


def items(count: int) -> Iterator[Sample]:
    """Fashion items, whose class the network gets right."""
    pictures, masks, labels = fashion_arrays()
    x = pictures[:, None].astype(np.float32) / 255
    right = session(CNN).run(None, {"input": x})[0].argmax(1) == labels
    for i in np.flatnonzero(right)[:count]:
        photo = np.repeat(pictures[i, :, :, None], 3, axis=2)
        yield Sample(photo, x[i : i + 1], masks[i], int(labels[i]), said=f"class {labels[i]}")


# ── scenes of shapes ────────────────────────────────────────────────────────────────────────────────────────────────


def answers(count: int) -> Iterator[Sample]:
    """Questions about one object of a scene, rightly answered; "is there …" only where it is."""
    scenes = made.make_scenes(4 * count, 11)
    asked = made.questions(scenes, 12)
    found = session(TRAINED / "vqa.onnx").run(None, {"image": scenes.images, "question": asked.tokens})[0].argmax(1)
    for n in np.flatnonzero((found == asked.answers) & (asked.objects >= 0))[:count]:
        words = " ".join(made.WORDS[t] for t in asked.tokens[n] if t != made.PAD)
        x = {"image": scenes.images[n : n + 1], "question": asked.tokens[n : n + 1]}
        region = scenes.masks[n, asked.objects[n]]
        yield Sample(scenes.uint8()[n], x, region, int(asked.answers[n]), said=f"{words}?")


def words(count: int) -> Iterator[Sample]:
    """Words of captions about one object, rightly predicted given the words before."""
    scenes = made.make_scenes(count, 21, (2,))
    scenes = scenes.take(made.clear(scenes))
    texts = made.captions(scenes)
    before = np.pad(texts.tokens[:, :-1], ((0, 0), (1, 0)), constant_values=made.START)
    found = session(TRAINED / "captioner.onnx").run(None, {"image": scenes.images, "tokens": before})[0].argmax(-1)
    right = np.argwhere((found == texts.tokens) & (texts.objects >= 0))
    for n, t in right[:: max(1, len(right) // count)][:count]:
        x = {"image": scenes.images[n : n + 1], "tokens": before[n : n + 1]}
        region = scenes.masks[n, texts.objects[n, t]]
        word = made.WORDS[texts.tokens[n, t]]
        yield Sample(
            scenes.uint8()[n],
            x,
            region,
            given={"position": int(t)},
            said=f"{word!r} in {made.decode(texts.tokens[n])!r}",
        )


def objects(count: int) -> Iterator[Sample]:
    """Boxes around one object of a scene each, of those that the detector finds."""
    scenes = made.make_scenes(count, 31)
    rows = session(TRAINED / "yolo.onnx").run(None, {"images": scenes.images})[0].transpose(0, 2, 1)
    for n in range(count):
        for k in np.flatnonzero(scenes.shapes[n] >= 0)[n % 2 :: 2]:
            shape, box = int(scenes.shapes[n, k]), scenes.boxes[n, k]
            near = np.abs(rows[n, :, :2] - (box[:2] + box[2:]) / 2).max(1) < 3
            if (rows[n, near, 4 + shape] > 0.5).any():
                said = f"the {made.SHAPES[shape]} in the box"
                yield Sample(
                    scenes.uint8()[n], scenes.images[n : n + 1], scenes.masks[n, k], shape, {"box": box}, said=said
                )


def ranked(count: int) -> Iterator[Sample]:
    """The two best detections of scenes; which objects they are is told by their boxes."""
    scenes = made.make_scenes(count, 41)
    rows = session(TRAINED / "yolo.onnx").run(None, {"images": scenes.images})[0].transpose(0, 2, 1)
    for n in range(count):
        best = rows[n, rows[n, :, 4:].max(1).argmax()]
        near = np.abs((scenes.boxes[n, :, :2] + scenes.boxes[n, :, 2:]) / 2 - best[:2]).max(1)
        k = int(near.argmin())
        if near[k] < 3 and scenes.shapes[n, k] == best[4:].argmax():
            yield Sample(scenes.uint8()[n], scenes.images[n : n + 1], scenes.masks[n, k], -1, said="the best detection")


def phrases(count: int) -> Iterator[Sample]:
    """Phrases about one object, of scenes that are more like them than the scenes' other objects are."""
    scenes = made.make_scenes(count, 51)
    said = made.phrases(scenes, 52, single=1.0)
    text = session(TRAINED / "text_encoder.onnx").run(None, {"tokens": said.tokens})[0]
    for n in range(count):
        region = scenes.masks[n, int(said.objects[n].argmax())]
        phrase = " ".join(made.WORDS[t] for t in said.tokens[n] if t != made.PAD)
        yield Sample(
            scenes.uint8()[n], scenes.images[n : n + 1], region, given={"reference": text[n]}, said=f"{phrase!r}"
        )


# ── photos ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def photo(name: str, size: tuple[int, int], box: tuple[int, int, int, int] | None = None) -> NDArray[np.uint8]:
    """A photo, or a part of it, at (height, width)."""
    image = Image.open(SHARED / "images" / name).convert("RGB")
    return np.asarray((image.crop(box) if box else image).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def people(count: int) -> Iterator[Sample]:
    """The person in a portrait; what is right is what the network itself marks, which looks right."""
    crop = photo("astronaut.png", (256, 256))
    x = crop[None].astype(np.float32) / 255
    found = session(MODELS / "selfie_seg.onnx").run(None, {"input_1": x})[0][0, ..., 0] > 0.5
    yield Sample(crop, x, found, 0, said="person")


def writing(count: int) -> Iterator[Sample]:
    """Words drawn on a photo: the box around them is right."""
    for i, text in enumerate(("HELLO WORLD", "EXIT", "COFFEE 24", "Platform 9")[:count]):
        image = Image.fromarray(photo("coffee.png", (320, 480)))
        at = (40 + 60 * i, 30 + 60 * i)
        draw = ImageDraw.Draw(image)
        font = ImageFont.load_default(40)
        draw.text(at, text, font=font, fill="white")
        left, top, right, bottom = (int(v) for v in draw.textbbox(at, text, font=font))
        crop = np.asarray(image)
        mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
        x = ((crop / 255 - mean) / std).transpose(2, 0, 1)[None].astype(np.float32)
        region = np.zeros(crop.shape[:2], bool)
        region[top:bottom, left:right] = True
        yield Sample(crop, x, region, 0, said=f"text: {text}")


def characters(count: int) -> Iterator[Sample]:
    """The characters of a line of text: the columns of each are right."""
    text = "EXPLAIN2026"
    font = ImageFont.load_default(36)
    starts = [int(font.getlength(text[:i])) + 12 for i in range(len(text) + 1)]
    image = Image.new("RGB", (starts[-1] + 12, 48), "white")
    ImageDraw.Draw(image).text((12, 2), text, font=font, fill="black")
    crop = np.asarray(image)
    x = ((crop / 255.0 - 0.5) / 0.5).transpose(2, 0, 1)[None].astype(np.float32)
    for i in range(min(count, len(text))):
        region = np.zeros(crop.shape[:2], bool)
        region[:, starts[i] : starts[i + 1]] = True
        yield Sample(crop, x, region, given={"position": i}, said=f"{text[i]!r} of {text!r}")


def cups(count: int) -> Iterator[Sample]:
    """Things in photos, in the boxes drawn by eye."""
    drawn = json.loads((SHARED / "images" / "boxes.json").read_text())
    for name, what in (("coffee.png", "cup"), ("chelsea.png", "cat (COCO's dog here)")):
        width, height = Image.open(SHARED / "images" / name).size
        box = np.array(drawn[name]["boxes"][0]["xyxy"]) * ([512 / width, 512 / height] * 2)
        region = np.zeros((512, 512), bool)
        left, top, right, bottom = box.astype(int)
        region[top:bottom, left:right] = True
        crop = photo(name, (512, 512))
        yield Sample(crop, crop[None].astype(np.float32), region, -1, said=what)


FACE = (150, 0, 310, 200)
"""A crop around the astronaut's face, and the face in it."""


def face(count: int) -> Iterator[Sample]:
    """A face: the part from the hair line to the chin is right."""
    crop = photo("astronaut.png", (224, 224), FACE)
    region = np.zeros((224, 224), bool)
    region[78:212, 62:162] = True
    reference = photo("astronaut.png", (224, 224), (130, 0, 330, 210))
    x, other = (a[None].astype(np.float32) for a in (crop, reference))
    yield Sample(crop, x, region, given={"other": other}, said="a face")


# ── a policy ────────────────────────────────────────────────────────────────────────────────────────────────────────

MOVES = ("stay", "up", "down")


def rallies(count: int) -> Iterator[Sample]:
    """Frames of Pong in which the policy moves towards the ball: ball and own paddle are right, not the other's."""
    rng = np.random.default_rng(61)
    policy = session(MODELS / "pong_policy.onnx")
    found = 0
    while found < count:
        ball, speed = rng.integers([30, 8], [62, 70]), rng.integers([2, -3], [5, 4])
        paddle, other = rng.integers(8, 72, size=2)
        if abs(int(ball[1]) - int(paddle)) < 12:
            continue
        frames = np.stack([_frame(ball, paddle, other), _frame(ball - speed, paddle, other)])
        action = int(policy.run(None, {"frames": frames[None]})[0].argmax())
        if action != (1 if ball[1] < paddle else 2):
            continue
        found += 1
        region = np.zeros((80, 80), bool)
        for x, y in (ball, ball - speed):
            region[max(y - 4, 0) : y + 6, max(x - 4, 0) : x + 6] = True
        region[max(paddle - 8, 0) : paddle + 8, 66:76] = True
        shown = (frames.max(0)[..., None] * 255).astype(np.uint8).repeat(3, axis=2)
        yield Sample(shown, frames[None], region, action, said=f"move {MOVES[action]}")


def _frame(ball: NDArray[np.int64], paddle: int, other: int) -> NDArray[np.float32]:
    frame = np.zeros((80, 80), np.float32)
    x, y = ball
    frame[max(y, 0) : y + 2, max(x, 0) : x + 2] = 1
    frame[paddle - 4 : paddle + 4, 70:72] = 1
    frame[other - 4 : other + 4, 8:10] = 1
    return frame


CASES = [
    Case("class", CNN, targets.Class(), "auto", 100, items),
    Case("probability", CNN, targets.Probability(), "auto", 100, items),
    Case("log-odds", CNN, targets.LogOdds(), "auto", 100, items),
    Case("one-vs-rest", CNN, targets.OneVsRest(), "auto", 100, items),
    Case("regression (a logit)", CNN, targets.Regression(), "auto", 100, items),
    Case("question: VQA", TRAINED / "vqa.onnx", targets.Class(), "select", 100, answers),
    Case("word: caption", TRAINED / "captioner.onnx", targets.Sequence(), "features.3", 100, words),
    Case("character: OCR", MODELS / "ppocr_rec.onnx", targets.Sequence(blank=0), "swish_17.tmp_0", 11, characters),
    Case("box given: YOLO", TRAINED / "yolo.onnx", targets.Detection(), "auto", 60, objects),
    Case("best detection: YOLO", TRAINED / "yolo.onnx", targets.Detection(), "auto", 60, ranked),
    Case("best detection: CenterNet", MODELS / "human_centernet.onnx", targets.Detection(), "auto", 2, cups),
    Case("segmentation: person", MODELS / "selfie_seg.onnx", targets.Segmentation(), "auto", 1, people),
    Case("segmentation: text", MODELS / "ppocr_det.onnx", targets.Segmentation(), "auto", 4, writing),
    Case("expectation: age", MODELS / "human_faceres.onnx", targets.Expectation("age_pred/Softmax:0"), "auto", 1, face),
    Case("similarity: face", MODELS / "human_faceres.onnx", targets.Similarity("global_pooling/Mean"), "auto", 1, face),
    Case("similarity: image and text", TRAINED / "image_encoder.onnx", targets.Similarity(), "auto", 100, phrases),
    Case("action: Pong", MODELS / "pong_policy.onnx", targets.Class(), "1", 60, rallies),
]
