"""Generated scenes of which everything is known: coloured shapes on a textured ground, with masks, boxes and words.

What the small models beside this file are trained on, and what their explanations are checked against.  numpy alone;
the same seed gives the same scenes, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SIZE = 64
SHAPES = ("square", "circle", "triangle", "cross")
COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan")
PAD, START, END = 0, 1, 2
WORDS = (
    *("<pad>", "<start>", "<end>"),
    *COLOURS,
    *SHAPES,
    *("left", "of", "above", "what", "colour", "shape", "is", "the", "there", "a", "and"),
)
"""Every word of captions, questions and phrases; a token is an index into it."""
ANSWERS = (*COLOURS, *SHAPES, "yes", "no")
CAPTION_LENGTH = 6
"""Words of the longest caption, `<end>` not counted: red square left of blue circle."""
QUESTION_LENGTH = 5
PHRASE_LENGTH = 7

_RGB = ((0.85, 0.12, 0.12), (0.1, 0.65, 0.15), (0.12, 0.2, 0.9), (0.9, 0.82, 0.1), (0.6, 0.15, 0.75), (0.1, 0.75, 0.8))
_RADII = (5, 12)  # smallest and largest half side of a shape, in pixels
_GAP = 2  # pixels between two boxes, at least


@dataclass(frozen=True)
class Scenes:
    """A batch of N scenes with at most K objects each; in a scene no two have the same shape or the same colour.

    Attributes:
        images: float32 (N, 3, 64, 64), RGB in [0, 1].
        shapes, colours: int64 (N, K), indices into `SHAPES` and `COLOURS`; −1: no such object.
        boxes: int64 (N, K, 4), x0 y0 x1 y1 in pixels, the last two exclusive; zeros: no such object.
        masks: bool (N, K, 64, 64), the object's pixels.
    """

    images: NDArray[np.float32]
    shapes: NDArray[np.int64]
    colours: NDArray[np.int64]
    boxes: NDArray[np.int64]
    masks: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.images)

    def take(self, which: NDArray[np.int64] | NDArray[np.bool_]) -> Scenes:
        """Some of them: by their numbers, or by a mask."""
        return Scenes(*(x[which] for x in (self.images, self.shapes, self.colours, self.boxes, self.masks)))

    def uint8(self) -> NDArray[np.uint8]:
        """The images as pictures, (N, 64, 64, 3)."""
        return np.round(self.images.transpose(0, 2, 3, 1) * 255).astype(np.uint8)


class Texts(NamedTuple):
    """Captions of N scenes: what each word is about is known."""

    tokens: NDArray[np.int64]
    """(N, T), `PAD` where there is none."""
    objects: NDArray[np.int64]
    """(N, T): the object that a word is about; −1: none or two."""


class Questions(NamedTuple):
    """One question for each of N scenes."""

    tokens: NDArray[np.int64]
    """(N, T), padded in front: the last word is at the end."""
    answers: NDArray[np.int64]
    """(N,), indices into `ANSWERS`."""
    objects: NDArray[np.int64]
    """(N,): the object that the question is about; −1: it is not there, and the answer is no."""


class Phrases(NamedTuple):
    """A phrase for each of N scenes: one object, "a red square", or two, "a red square and a blue circle"."""

    tokens: NDArray[np.int64]
    """(N, T), padded behind."""
    objects: NDArray[np.bool_]
    """(N, K): what the phrase names."""
    true: NDArray[np.bool_]
    """(N, N): whether phrase j is true of scene i."""


def make_scenes(count: int, seed: int | np.random.Generator, objects: Sequence[int] = (2, 3)) -> Scenes:
    """Draw `count` scenes with any number of `objects` each (1 to 4), their boxes at least two pixels apart."""
    rng = np.random.default_rng(seed)
    k = max(objects)
    numbers = rng.choice(np.asarray(objects), size=count)
    there = np.arange(k) < numbers[:, None]
    shapes = np.where(there, _distinct(rng, count, len(SHAPES), k), -1)
    colours = np.where(there, _distinct(rng, count, len(COLOURS), k), -1)
    places = np.stack([_places(rng, k) for _ in range(count)])
    masks = _masks(places, shapes)
    boxes = np.where(there[..., None], _boxes(places), 0)
    return Scenes(_paint(rng, masks, colours), shapes, colours, boxes, masks)


def encode(words: str | Iterable[str], length: int, *, front: bool = False) -> list[int]:
    """Tokens of the words, padded to `length` behind or in `front`."""
    tokens = [WORDS.index(w) for w in (words.split() if isinstance(words, str) else words)]
    padding = [PAD] * (length - len(tokens))
    return padding + tokens if front else tokens + padding


def decode(tokens: Iterable[int]) -> str:
    """The words up to `<end>`, without padding and `<start>`."""
    words = []
    for token in tokens:
        if token == END:
            break
        if token not in (PAD, START):
            words.append(WORDS[token])
    return " ".join(words)


def captions(scenes: Scenes) -> Texts:
    """Of scenes with two objects, "red square left of blue circle" or "red square above blue circle", then `<end>`.

    The relation is that of the axis on which the centres are further apart; tokens (N, 7).
    """
    centres = (scenes.boxes[:, :2, :2] + scenes.boxes[:, :2, 2:]) / 2
    between = centres[:, 1] - centres[:, 0]
    rows = []
    for n, (dx, dy) in enumerate(between):
        beside = abs(dx) >= abs(dy)
        a, b = (0, 1) if (dx if beside else dy) > 0 else (1, 0)
        middle = [("left", -1), ("of", -1)] if beside else [("above", -1)]
        words = [*_named(scenes, n, a), *middle, *_named(scenes, n, b), ("<end>", -1)]
        words += [("<pad>", -1)] * (CAPTION_LENGTH + 1 - len(words))
        rows.append([(WORDS.index(word), obj) for word, obj in words])
    tokens, objects = np.moveaxis(np.asarray(rows, dtype=np.int64).reshape(-1, CAPTION_LENGTH + 1, 2), -1, 0)
    return Texts(tokens, objects)


def clear(scenes: Scenes) -> NDArray[np.bool_]:
    """(N,) whether a caption's relation is beyond doubt: one distance is at least 1.4 times the other, and more than 8
    pixels."""
    centres = (scenes.boxes[:, :2, :2] + scenes.boxes[:, :2, 2:]) / 2
    small, large = np.sort(np.abs(centres[:, 1] - centres[:, 0]), axis=1).T
    return (large >= 1.4 * small) & (large > 8)


def questions(scenes: Scenes, seed: int | np.random.Generator) -> Questions:
    """A question about each scene: "what colour is the square", "what shape is red" or "is there a square"."""
    rng = np.random.default_rng(seed)
    rows: list[tuple[list[int], int, int]] = []
    for n, kind in enumerate(rng.integers(3, size=len(scenes))):
        present = np.flatnonzero(scenes.shapes[n] >= 0)
        obj = int(rng.choice(present))
        shape, colour = scenes.shapes[n, obj], scenes.colours[n, obj]
        if kind == 0:
            words, answer = f"what colour is the {SHAPES[shape]}", COLOURS[colour]
        elif kind == 1:
            words, answer = f"what shape is {COLOURS[colour]}", SHAPES[shape]
        else:
            absent = np.setdiff1d(np.arange(len(SHAPES)), scenes.shapes[n])
            if len(absent) and rng.integers(2):
                shape, obj = rng.choice(absent), -1
            words, answer = f"is there a {SHAPES[shape]}", "no" if obj < 0 else "yes"
        rows.append((encode(words, QUESTION_LENGTH, front=True), ANSWERS.index(answer), obj))
    tokens, answers, objects = zip(*rows, strict=True)
    return Questions(np.asarray(tokens), np.asarray(answers), np.asarray(objects))


def phrases(scenes: Scenes, seed: int | np.random.Generator, single: float = 0.5) -> Phrases:
    """A phrase about one object of each scene (with probability `single`) or about two."""
    rng = np.random.default_rng(seed)
    tokens, named = [], np.zeros(scenes.shapes.shape, dtype=bool)
    for n in range(len(scenes)):
        present = rng.permutation(np.flatnonzero(scenes.shapes[n] >= 0))[: 1 if rng.random() < single else 2]
        named[n, present] = True
        things = [f"a {COLOURS[scenes.colours[n, k]]} {SHAPES[scenes.shapes[n, k]]}" for k in present]
        tokens.append(encode(" and ".join(things), PHRASE_LENGTH))
    kinds = np.where(scenes.shapes >= 0, scenes.shapes * len(COLOURS) + scenes.colours, -1)
    wanted = np.where(named, kinds, -1)
    found = (wanted[:, :, None, None] == kinds[None, None]).any(-1)  # (phrase, object, scene)
    true = (found | (wanted < 0)[:, :, None]).all(1).T
    return Phrases(np.asarray(tokens, dtype=np.int64), named, true)


def _named(scenes: Scenes, n: int, k: int) -> list[tuple[str, int]]:
    """Colour and shape of an object, each with its number."""
    return [(COLOURS[scenes.colours[n, k]], k), (SHAPES[scenes.shapes[n, k]], k)]


def _distinct(rng: np.random.Generator, count: int, kinds: int, k: int) -> NDArray[np.int64]:
    """(count, k) indices below `kinds`, different within a row."""
    return rng.permuted(np.tile(np.arange(kinds), (count, 1)), axis=1)[:, :k]


def _places(rng: np.random.Generator, k: int) -> NDArray[np.int64]:
    """(k, 3): centre x, centre y and radius of objects whose boxes do not touch.  Begins again when it is stuck."""
    while True:
        places: list[tuple[int, int, int]] = []
        for _ in range(60):
            r = int(rng.integers(_RADII[0], _RADII[1] + 1))
            x, y = rng.integers(r + 1, SIZE - r - 1, size=2).tolist()
            if all(max(abs(x - u), abs(y - v)) > r + s + _GAP for u, v, s in places):
                places.append((x, y, r))
            if len(places) == k:
                return np.asarray(places)


def _masks(places: NDArray[np.int64], shapes: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(N, K, 64, 64): each shape fills its box, from centre − radius to centre + radius."""
    axis = np.arange(SIZE)
    cx, cy, r = (places[..., i, None, None] for i in range(3))
    dx, dy = axis[None, None, None, :] - cx, axis[None, None, :, None] - cy
    inside = (abs(dx) <= r) & (abs(dy) <= r)
    kinds = [
        inside,
        dx**2 + dy**2 <= r**2,
        inside & (2 * abs(dx) <= dy + r),  # its tip is up
        inside & ((3 * abs(dx) <= r) | (3 * abs(dy) <= r)),
    ]
    none = np.zeros_like(inside)
    return np.select([(shapes == i)[..., None, None] for i in range(len(SHAPES))], kinds, none)


def _boxes(places: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N, K, 4): the smallest boxes around the masks of `_masks`."""
    centre, r = places[..., :2], places[..., 2:]
    return np.concatenate([centre - r, centre + r + 1], axis=-1)


def _paint(rng: np.random.Generator, masks: NDArray[np.bool_], colours: NDArray[np.int64]) -> NDArray[np.float32]:
    """(N, 3, 64, 64): a dull ground with coarse and fine texture; objects with a shade of their own; noise over all."""
    n, k = colours.shape

    def normal(scale: float, *shape: int) -> NDArray[np.float32]:
        return scale * rng.standard_normal((n, *shape), dtype=np.float32)

    ground = rng.uniform(0.25, 0.75, (n, 1, 1, 1)).astype(np.float32) + normal(0.03, 3, 1, 1)
    images = ground + (normal(0.09, 1, 8, 8) + normal(0.02, 3, 8, 8)).repeat(8, 2).repeat(8, 3)
    images += normal(0.05, 1, 32, 32).repeat(2, 2).repeat(2, 3)
    light = rng.uniform(0.8, 1.1, (n, k, 1)).astype(np.float32)
    shades = np.asarray(_RGB, dtype=np.float32)[colours] * light + normal(0.03, k, 3)
    scene, obj, y, x = np.nonzero(masks)
    images[scene, :, y, x] = shades[scene, obj]
    images += normal(0.04, 3, SIZE, SIZE)
    return np.clip(images, 0, 1, out=images)
