"""Small seeded detectors with heads of every form, and a reference for them in numpy: which entry, its score, its
gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from pycam.targets import Detection

SIZE, GRID, CLASSES, THRESHOLD = 32, 8, 3, 0.3
ANCHORS = GRID * GRID
Array = np.ndarray
Outputs = Mapping[str, Array]


def sigmoid(v: Array) -> Array:
    return 1 / (1 + np.exp(-v))


def softmax(v: Array, axis: int) -> Array:
    e = np.exp(v - v.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def points(cell: float = 0.5) -> Array:
    """Centres of the cells, (64, 2) in pixels."""
    y, x = np.indices((GRID, GRID)).reshape(2, -1)
    return (np.stack([x, y], 1) + cell) * SIZE / GRID


def corners(x: Array, y: Array, w: Array, h: Array) -> Array:
    return np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1)


@dataclass(frozen=True)
class Head:
    """A head: ONNX text from `raw` (N, columns, 8, 8) to outputs, and the same in numpy for `raw` of one image
    (columns, 64): boxes (A, 4) in pixels, probabilities (A, C) and y (A, C)."""

    columns: int
    text: str
    outputs: str
    read: Callable[[Array], tuple[Array, Array, Array]]
    target: Detection
    classes: int = CLASSES
    within: bool = True
    """Boxes are cut to the image."""


def read_yolo8(raw: Array) -> tuple[Array, Array, Array]:
    at, size = points() + raw[:2].T * 4, np.exp(raw[2:4].T) * 8
    return corners(*at.T, *size.T), sigmoid(raw[4:].T), raw[4:].T


def read_yolo5(raw: Array) -> tuple[Array, Array, Array]:
    p = sigmoid(raw.T)
    at, size = points(0) + (p[:, :2] * 2 - 0.5) * 4, (p[:, 2:4] * 2) ** 2 * 6
    return corners(*at.T, *size.T), p[:, 5:] * p[:, 4:5], raw[5:].T + raw[4:5].T


def read_ssd(raw: Array) -> tuple[Array, Array, Array]:
    at, size = points() + raw[:2].T * 0.1 * 10, np.exp(raw[2:4].T * 0.2) * 10
    p = softmax(raw[4:].T, 1)
    p[:, 0] = 0  # the background
    return corners(*at.T, *size.T), p, raw[4:].T


def read_centre(raw: Array) -> tuple[Array, Array, Array]:
    at, far = points(0), np.abs(raw[:4].T) * 16
    return np.concatenate([at - far[:, :2], at + far[:, 2:]], 1), sigmoid(raw[4:].T), raw[4:].T


def read_sizes(raw: Array) -> tuple[Array, Array, Array]:
    at, size = points(0) + raw[2:4].T * 4, np.abs(raw[:2].T) * 8 * 4
    return corners(*at.T, *size.T), sigmoid(raw[4:].T), raw[4:].T


def read_plain(raw: Array) -> tuple[Array, Array, Array]:
    """Corners as shares of the image, logits without activation."""
    at, size = points() / SIZE, np.abs(raw[2:4].T) * 0.1 + 0.1
    return corners(*at.T, *size.T) * SIZE, sigmoid(raw[4:].T), raw[4:].T


def read_face(raw: Array) -> tuple[Array, Array, Array]:
    """Boxes from their anchors, in pixels; one class; a second set of anchors that are 8 wide."""
    boxes = [corners(*(points() + raw[i : i + 2].T).T, *(np.abs(raw[i + 2 : i + 4].T) * 16).T) for i in (0, 4)]
    z = np.concatenate([raw[8], raw[9]])[:, None]
    return np.concatenate(boxes), sigmoid(z), z


FACE = np.concatenate([points(), points()])
HEADS = {
    "yolo8": Head(
        4 + CLASSES,
        """
        flat = Reshape(raw, flat_shape)
        xy, wh, cls = Split<axis = 1>(flat, parts)
        moved = Mul(xy, stride)
        at = Add(moved, points_first)
        grown = Exp(wh)
        sizes = Mul(grown, eight)
        p = Sigmoid(cls)
        output0 = Concat<axis = 1>(at, sizes, p)""",
        "float[N, 7, 64] output0",
        read_yolo8,
        Detection(),
    ),
    "yolo5": Head(
        5 + CLASSES,
        """
        wide = Reshape(raw, wide_shape)
        last = Transpose<perm = [0, 2, 1]>(wide)
        p = Sigmoid(last)
        xy, wh, conf = Split<axis = 2>(p, parts5)
        xy2 = Mul(xy, two)
        xy3 = Sub(xy2, half)
        xy4 = Mul(xy3, stride)
        at = Add(xy4, corners_last)
        wh2 = Mul(wh, two)
        wh3 = Mul(wh2, wh2)
        sizes = Mul(wh3, six)
        joined = Concat<axis = 2>(at, sizes, conf)
        output = Reshape(joined, joined_shape)""",
        "float[N, 64, 8] output",
        read_yolo5,
        Detection(),
    ),
    "ssd": Head(
        5 + CLASSES,
        """
        flat = Reshape(raw, wide_shape)
        last = Transpose<perm = [0, 2, 1]>(flat)
        loc, logits = Split<axis = 2>(last, parts_ssd)
        conf = Softmax<axis = 2>(logits)""",
        "float[N, 64, 4] loc, float[N, 64, 4] conf",
        read_ssd,
        Detection(boxes="loc", scores="conf", anchors=np.concatenate([points(), np.full((ANCHORS, 2), 10)], 1)),
        CLASSES + 1,
    ),
    "centre": Head(
        4 + CLASSES,
        """
        sides, cls = Split<axis = 1>(raw, parts_apart)
        far = Abs(sides)
        farther = Mul(far, sixteen)
        wh = Transpose<perm = [0, 2, 3, 1]>(farther)
        p = Sigmoid(cls)
        heat = Transpose<perm = [0, 2, 3, 1]>(p)""",
        "float[N, 8, 8, 4] wh, float[N, 8, 8, 3] heat",
        read_centre,
        Detection(),
    ),
    "sizes": Head(
        4 + CLASSES,
        """
        size, offset, cls = Split<axis = 1>(raw, parts)
        positive = Abs(size)
        wh = Mul(positive, eight)
        reg = Identity(offset)
        hm = Sigmoid(cls)""",
        "float[N, 3, 8, 8] hm, float[N, 2, 8, 8] wh, float[N, 2, 8, 8] reg",
        read_sizes,
        Detection(boxes=("wh", "reg"), scores="hm"),
    ),
    "plain": Head(
        4 + CLASSES,
        """
        flat = Reshape(raw, flat_shape)
        unused, wh, cls = Split<axis = 1>(flat, parts)
        positive = Abs(wh)
        scaled = Mul(positive, third)
        size = Add(scaled, tenth)
        halved = Mul(size, half)
        low = Sub(shares_first, halved)
        high = Add(shares_first, halved)
        both = Concat<axis = 1>(low, high)
        boxes = Transpose<perm = [0, 2, 1]>(both)
        scores = Transpose<perm = [0, 2, 1]>(cls)""",
        "float[N, 64, 4] boxes, float[N, 64, 3] scores",
        read_plain,
        Detection(),
    ),
    "face": Head(
        10,
        """
        flat = Reshape(raw, flat10_shape)
        xy, wh, xy2, wh2, s1, s2 = Split<axis = 1>(flat, parts_face)
        a = Abs(wh)
        b = Mul(a, sixteen)
        c = Concat<axis = 1>(xy, b)
        box_1 = Transpose<perm = [0, 2, 1]>(c)
        a2 = Abs(wh2)
        b2 = Mul(a2, sixteen)
        c2 = Concat<axis = 1>(xy2, b2)
        box_2 = Transpose<perm = [0, 2, 1]>(c2)
        score_1 = Transpose<perm = [0, 2, 1]>(s1)
        score_2 = Transpose<perm = [0, 2, 1]>(s2)""",
        "float[N, 64, 1] score_1, float[N, 64, 4] box_1, float[N, 64, 4] box_2, float[N, 64, 1] score_2",
        read_face,
        Detection(boxes=("box_1", "box_2"), scores=["score_1", "score_2"], box="centre", unit="pixels", anchors=FACE),
        1,
    ),
}
# The list of "centre" behind non-maximum suppression, of one image.
LIST = """
        flat = Reshape(raw, flat_shape)
        sides, cls = Split<axis = 1>(flat, parts_apart)
        far = Abs(sides)
        farther = Mul(far, sixteen)
        last = Transpose<perm = [0, 2, 1]>(farther)
        low, high = Split<axis = 2, num_outputs = 2>(last)
        from = Sub(corners_last, low)
        to = Add(corners_last, high)
        every = Concat<axis = 2>(from, to)
        p = Sigmoid(cls)
        kept = NonMaxSuppression(every, p, hundred, half1, least1)
        axis1 = Constant<value_ints = [1]>()
        n_a = Gather<axis = 1>(kept, zero_two)
        n_c_a = Identity(kept)
        boxes = GatherND(every, n_a)
        scores = GatherND(p, n_c_a)
        one = Constant<value_ints = [1]>()
        classes = Gather<axis = 1>(kept, one)
        labels = Squeeze(classes, axis1)"""
CONSTANTS: dict[str, Any] = {
    "flat_shape": [0, 4 + CLASSES, ANCHORS],
    "wide_shape": [0, 5 + CLASSES, ANCHORS],
    "flat10_shape": [0, 10, ANCHORS],
    "joined_shape": [0, ANCHORS, 5 + CLASSES],
    "parts": [2, 2, CLASSES],
    "parts5": [2, 2, 1 + CLASSES],
    "parts_ssd": [4, 1 + CLASSES],
    "parts_apart": [4, CLASSES],
    "parts_face": [2, 2, 2, 2, 1, 1],
    "zero_two": [0, 2],
    "hundred": [100],
    "points_first": points().T[None],
    "shares_first": points().T[None] / SIZE,
    "corners_last": points(0)[None],
    "half1": [0.5],
    "least1": [0.05],
    "stride": 4.0,
    "eight": 8.0,
    "two": 2.0,
    "half": 0.5,
    "six": 6.0,
    "sixteen": 16.0,
    "third": 0.1,
    "tenth": 0.1,
}


@dataclass(frozen=True)
class Net:
    """image (N, 3, 32, 32) -> features (N, 6, 8, 8) -> raw -> the head."""

    head: Head
    proto: onnx.ModelProto
    first: Array
    second: Array
    bias: Array

    def features(self, x: Array) -> Array:
        """(6, 8, 8) of one image."""
        tiles = x.reshape(3, GRID, 4, GRID, 4).transpose(1, 3, 0, 2, 4).reshape(GRID, GRID, -1)
        return np.maximum(np.einsum("hwi,ci->chw", tiles, self.first.reshape(6, -1)), 0)

    def read(self, a: Array) -> tuple[Array, Array, Array]:
        raw = np.einsum("oc,chw->ohw", self.second[:, :, 0, 0], a) + self.bias[:, None, None]
        boxes, p, y = self.head.read(raw.reshape(len(raw), -1).astype(np.float64))
        return np.clip(boxes, 0, SIZE) if self.head.within else boxes, p, y


def build(head: Head, seed: int = 0, batch: str = "N", bias: float = -1.5) -> Net:
    rng = np.random.default_rng(seed)
    first = (rng.normal(size=(6, 3, 4, 4)) / 4).astype(np.float32)
    second = rng.normal(size=(head.columns, 6, 1, 1)).astype(np.float32)
    biases = np.zeros(head.columns, np.float32)
    biases[4:] = bias
    proto = onnx.parser.parse_model(f"""
        <ir_version: 9, opset_import: ["" : 18]>
        detector (float[{batch}, 3, 32, 32] image) => ({head.outputs.replace("N", batch)}) {{
            convolved = Conv<strides = [4, 4]>(image, w_first)
            features = Relu(convolved)
            raw = Conv(features, w_second, w_bias){head.text}
        }}""")
    values = {"w_first": first, "w_second": second, "w_bias": biases}
    values |= {
        name: np.asarray(v, np.int64 if np.asarray(v).dtype.kind == "i" else np.float32)
        for name, v in CONSTANTS.items()
    }
    used = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in values.items() if n in used)
    onnx.checker.check_model(proto)
    return Net(head, proto, first, second, biases)


def overlap(a: Array, b: Array) -> Array:
    """IoU of boxes (…, 4); 0 of empty ones."""
    both = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - both
    return both / np.maximum(union, 1e-12)


def objects(boxes: Array, best: Array) -> list[int]:
    """Non-maximum suppression, one by one."""
    kept: list[int] = []
    for a in np.argsort(-best, kind="stable"):
        if best[a] > THRESHOLD and all(overlap(boxes[a], boxes[b]) <= 0.5 for b in kept):
            kept.append(int(a))
    return kept


def pick(boxes: Array, p: Array, target: int, box: Array | None) -> tuple[int, int]:
    """(entry, class)."""
    score = p.max(1) if target < 0 else p[:, target]
    if box is not None:
        a = int(np.where(score > THRESHOLD, overlap(boxes, box), -1).argmax())
    else:
        a = objects(boxes, score)[-1 - target] if target < 0 else int(score.argmax())
    return a, int(p[a].argmax()) if target < 0 else target


def gradient(y: Callable[[Array], float], a: Array, step: float = 1e-5) -> Array:
    found = np.empty_like(a)
    for at in np.ndindex(a.shape):
        up, down = a.copy(), a.copy()
        up[at] += step
        down[at] -= step
        found[at] = (y(up) - y(down)) / (2 * step)
    return found


def images(seed: int, count: int = 2) -> Array:
    return np.random.default_rng(seed).normal(size=(count, 3, SIZE, SIZE)).astype(np.float32)


def make_list(outputs: str = "float[D, 4] boxes, float[D] scores, int64[D] labels", more: str = "") -> Net:
    return build(Head(4 + CLASSES, LIST + more, outputs, read_centre, Detection(), within=False), batch="1")


def asked_for(target: int = -1, box: Array | None = None) -> dict[str, Array]:
    """What a graph takes besides the image."""
    given = np.full((1, 1, 4), -1) if box is None else np.reshape(box, (1, 1, 4))
    return {"targets": np.array([[target]]), "box": given.astype(np.float32)}
