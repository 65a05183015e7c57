"""Scenes of `bench/regions.py`: pictures with the class that is explained and the region where it is.

All choices are deterministic, and the first few of a suite stand for all: methods that are slow take only those.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from bench.fashion import SHARED, Missing, fashion_arrays
from pycam import image
from pycam.api import DEFAULT_MODEL
from pycam.preprocess import Preprocess
from pycam.runtime.metadata import PREPROCESS, read_metadata

Pixels = NDArray[np.uint8]
Region = NDArray[np.bool_]

SEED = 0
MOSAICS = 16
MARGIN = 3
"""Pixels that the masks of fashion items are widened by, for the lenient pointing."""
ELSEWHERE = {  # photos that come with a package: its name there
    "motorcycle_left.png": ("skimage", "data/motorcycle_left.png"),
    "flower.jpg": ("sklearn", "datasets/images/flower.jpg"),
    "china.jpg": ("sklearn", "datasets/images/china.jpg"),
}


@dataclass(frozen=True)
class Item:
    """A picture as the model takes it, (1, C, H, W), with K classes.

    Attributes:
        regions: Where each class is, (H, W).
        near: The same with a margin.
    """

    name: str
    x: NDArray[np.float32]
    targets: tuple[int, ...]
    regions: tuple[Region, ...]
    near: tuple[Region, ...]


@dataclass(frozen=True)
class Suite:
    """A model and its scenes.

    Attributes:
        name, title: For the command line, and for people.
        model: Serialised.
        items: The first ones stand for all.
        budget: Rows that may go through the model for one method, see `regions.rows`.
        margin: Pixels between `near` and `regions`.
        shown: How many of the first items go into the picture.
        few: How many items a method takes at most that needs many rows for each.
    """

    name: str
    title: str
    model: bytes
    items: Sequence[Item]
    budget: int
    margin: int = 0
    shown: int = 0
    few: int = 1000


@dataclass(frozen=True)
class Photo:
    """A photo with a class of ImageNet and its region."""

    name: str
    pixels: Pixels
    label: int
    region: Region


def photos() -> tuple[list[Photo], list[str]]:
    """The photos, and what is missing.

    Raises:
        Missing: there are none.
    """
    folder = SHARED / "images"
    if not (folder / "boxes.json").exists():
        raise Missing(f"no photos: {folder.name}/boxes.json is not in the shared folder (set PYCAM_SHARED)")
    found, missing = [], []
    for name, entry in json.loads((folder / "boxes.json").read_text()).items():
        path = folder / name
        if name in ELSEWHERE:
            package, inside = ELSEWHERE[name]
            spec = importlib.util.find_spec(package)
            if spec is None or spec.origin is None or not (path := Path(spec.origin).parent / inside).exists():
                missing.append(f"{name} (comes with {package}, which is not installed)")
                continue
        pixels = image.read(path)
        region = np.zeros(pixels.shape[:2], bool)
        for box in entry["boxes"]:
            left, top, right, bottom = box["xyxy"]
            region[top:bottom, left:right] = True
        mask = folder / f"{name.partition('_')[0]}_mask.png"
        if mask.exists():
            exact = image.read(mask)[:, :, 0] > 127
            if exact.shape == region.shape:
                region = exact
            else:
                missing.append(f"{mask.name} is {exact.shape}, the photo {region.shape}: the box is used")
        label = re.search(r"\d+", entry["boxes"][0]["label"])
        assert label is not None, f"boxes.json: no class number at {name}"
        found.append(Photo(name.partition(".")[0].removesuffix("_left"), pixels, int(label[0]), region))
    return found, missing


def photo_preprocess() -> Preprocess:
    """How pictures are prepared for the shipped model."""
    return Preprocess.from_json(read_metadata(DEFAULT_MODEL)[PREPROCESS])


def views(photo: Photo, pre: Preprocess) -> list[tuple[str, Pixels, Region]]:
    """The centre crop, the whole photo squeezed to the model's size, and both mirrored."""
    whole = _squeezed(photo.pixels, pre.size)
    shown = [
        ("crop", image.crop(photo.pixels, pre), _cropped(photo.region, pre)),
        ("whole", whole, _bool(_squeezed(_pixels(photo.region), pre.size))),
    ]
    return [*shown, *((f"{name} mirrored", seen[:, ::-1], region[:, ::-1]) for name, seen, region in shown)]


def photo_suite(found: Sequence[Photo]) -> Suite:
    """Every photo in four views, all centre crops first."""
    pre = photo_preprocess()
    seen = [views(photo, pre) for photo in found]
    items = [
        Item(f"{photo.name}, {name}", image.prepare(pixels, pre), (photo.label,), (region,), (region,))
        for shown in zip(*seen, strict=True)
        for photo, (name, pixels, region) in zip(found, shown, strict=True)
    ]
    return Suite(
        "photos", "photos", DEFAULT_MODEL.read_bytes(), items, budget=9_000, shown=len(found), few=2 * len(found)
    )


def mosaic_suite(found: Sequence[Photo], count: int = MOSAICS) -> Suite:
    """2 × 2 centre crops of different photos in one picture of twice the size: four classes, a quadrant each."""
    pre = photo_preprocess()
    crops = [image.crop(photo.pixels, pre) for photo in found]
    rng = np.random.default_rng(SEED)
    chosen = rng.permutation(list(itertools.combinations(range(len(found)), 4)))[:count]
    height, width = pre.size
    large = Preprocess((2 * height, 2 * width), pre.mean, pre.std)
    items = []
    for number, four in enumerate(chosen):
        cells = rng.permutation(four)
        picture = np.vstack([np.hstack([crops[i] for i in row]) for row in cells.reshape(2, 2)])
        regions = []
        for place in range(4):
            region = np.zeros(large.size, bool)
            top, left = place // 2 * height, place % 2 * width
            region[top : top + height, left : left + width] = True
            regions.append(region)
        targets = tuple(found[i].label for i in cells)
        items.append(Item(f"mosaic {number}", image.prepare(picture, large), targets, tuple(regions), tuple(regions)))
    return Suite("mosaics", "2×2 mosaics", with_free_size(DEFAULT_MODEL), items, budget=2_600)


def fashion_suite(name: str, title: str, model: Path, indices: Iterable[int], recognised: bool = False) -> Suite:
    """Fashion items on textures, with exact masks; `recognised`: only those whose class the model finds.

    Raises:
        Missing: the scenes or the model are not there.
    """
    pictures, masks, labels = fashion_arrays()
    if not model.exists():
        raise Missing(f"{model.name} is not there")
    chosen = list(indices)
    x: NDArray[np.float32] = pictures[:, None].astype(np.float32) / np.float32(255)
    if recognised:
        session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
        (scores,) = session.run(None, {session.get_inputs()[0].name: x[chosen]})
        chosen = [i for i, best in zip(chosen, scores.argmax(1), strict=True) if best == labels[i]]
    items = [
        Item(f"scene {i}", x[i : i + 1], (int(labels[i]),), (masks[i],), (widened(masks[i], MARGIN),)) for i in chosen
    ]
    return Suite(name, title, model.read_bytes(), items, budget=60_000, margin=MARGIN)


def with_free_size(path: Path) -> bytes:
    """The model with its input's height and width free; it must be fully convolutional."""
    model = onnx.load(path)
    dimensions = model.graph.input[0].type.tensor_type.shape.dim
    dimensions[2].dim_param, dimensions[3].dim_param = "H", "W"
    del model.graph.value_info[:]  # sizes of the old input
    serialised: bytes = model.SerializeToString()
    return serialised


def widened(region: Region, margin: int) -> Region:
    """The region with all pixels at most `margin` from it, along either axis."""
    padded = np.pad(region, margin)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * margin + 1,) * 2)
    return np.asarray(windows.any(axis=(2, 3)))


def _cropped(region: Region, pre: Preprocess) -> Region:
    return _bool(image.crop(_pixels(region), pre))


def _squeezed(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    from PIL import Image

    return np.array(Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.BICUBIC))


def _pixels(region: Region) -> Pixels:
    return np.repeat(region.astype(np.uint8)[:, :, None] * 255, 3, axis=2)


def _bool(pixels: Pixels) -> Region:
    return pixels[:, :, 0] > 127
