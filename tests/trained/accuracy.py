"""How well the small models do on new scenes: the figures that the training scripts print and the test checks.

The models run in onnxruntime, from their files; numpy alone beside it.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import scenes as made
from numpy.typing import NDArray

FOLDER = Path(__file__).parent


@functools.cache
def session(name: str) -> Any:
    """`<name>.onnx` in onnxruntime, one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(FOLDER / f"{name}.onnx", options, providers=["CPUExecutionProvider"])


def run(name: str, **feeds: NDArray[Any]) -> NDArray[np.float32]:
    """The first output of `<name>.onnx`."""
    return np.asarray(session(name).run(None, feeds)[0], dtype=np.float32)


def captioner(count: int, seed: int) -> dict[str, float]:
    """Words given the right words before them; whole captions written word by word, always taking the likeliest."""
    scenes = made.make_scenes(count, seed, (2,))
    scenes = scenes.take(made.clear(scenes))
    words = made.captions(scenes).tokens
    before = np.pad(words[:, :-1], ((0, 0), (1, 0)), constant_values=made.START)
    right = run("captioner", image=scenes.images, tokens=before).argmax(-1) == words
    written = np.full((len(words), 1), made.START)
    for _ in range(words.shape[1]):
        following = run("captioner", image=scenes.images, tokens=written)[:, -1].argmax(-1)
        written = np.concatenate([written, following[:, None]], axis=1)
    whole = [made.decode(a) == made.decode(b) for a, b in zip(written, words, strict=True)]
    return {"words": float(right[words != made.PAD].mean()), "captions": float(np.mean(whole))}


def vqa(count: int, seed: int) -> dict[str, float]:
    """Right answers, of all and by the kind of the question."""
    rng = np.random.default_rng(seed)
    scenes = made.make_scenes(count, rng)
    asked = made.questions(scenes, rng)
    right = run("vqa", image=scenes.images, question=asked.tokens).argmax(-1) == asked.answers
    kinds = {word: (asked.tokens == made.WORDS.index(word)).any(1) for word in ("colour", "shape", "there")}
    return {"answers": float(right.mean())} | {word: float(right[of].mean()) for word, of in kinds.items()}


def clip(count: int, seed: int, choices: int = 10) -> dict[str, float]:
    """The right phrase among `choices` for a scene and the right scene for a phrase: the most similar; what happens to
    be true as well is no choice."""
    rng = np.random.default_rng(seed)
    scenes = made.make_scenes(count, rng)
    said = made.phrases(scenes, rng)
    a, b = run("image_encoder", image=scenes.images), run("text_encoder", tokens=said.tokens)
    cosine = (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T
    cosine[said.true & ~np.eye(count, dtype=bool)] = -2
    groups = [slice(i, i + choices) for i in range(0, count - choices + 1, choices)]
    of = np.stack([cosine[g, g] for g in groups])
    own = np.arange(choices)
    return {"phrase": float((of.argmax(2) == own).mean()), "scene": float((of.argmax(1) == own).mean())}


def yolo(count: int, seed: int, score: float = 0.5, iou: float = 0.5) -> dict[str, float]:
    """Recall (of the objects, those with a box of their class) and precision (of the boxes, those right): the boxes
    with a class score above `score`, less those that overlap a better one."""
    scenes = made.make_scenes(count, seed)
    found = right = 0
    for n, rows in enumerate(run("yolo", images=scenes.images).transpose(0, 2, 1)):
        kept: list[tuple[NDArray[np.float32], int]] = []
        for row in rows[np.argsort(-rows[:, 4:].max(1))]:
            box = np.concatenate([row[:2] - row[2:4] / 2, row[:2] + row[2:4] / 2])
            if row[4:].max() > score and all(overlap(box, b) < iou for b, _ in kept):
                kept.append((box, int(row[4:].argmax())))
        found += len(kept)
        for box, shape in zip(scenes.boxes[n], scenes.shapes[n], strict=True):
            right += any(s == shape and overlap(box, b) > iou for b, s in kept)
    return {"recall": right / int((scenes.shapes >= 0).sum()), "precision": right / max(found, 1)}


def overlap(a: NDArray[Any], b: NDArray[Any]) -> float:
    """IoU of two boxes x0 y0 x1 y1."""
    both = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
    return float(both / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - both))
