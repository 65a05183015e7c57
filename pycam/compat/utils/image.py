"""Pictures, as pytorch-grad-cam's `utils.image` has them, without OpenCV and torchvision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pycam.colormap import colormap as table
from pycam.compat.arrays import Tensor, to_numpy
from pycam.errors import ImageError, InputError

COLORMAPS = {2: "jet", 13: "magma", 14: "inferno", 16: "viridis", 20: "turbo"}
"""OpenCV's number, as `cv2.COLORMAP_JET`, of the colour maps that pycam has."""

_EPSILON = 1e-7


def show_cam_on_image(
    img: ArrayLike,
    mask: ArrayLike,
    use_rgb: bool = False,
    colormap: int | str = 2,
    image_weight: float = 0.5,
) -> NDArray[np.uint8]:
    """A heatmap over an image: `(1 − w)·colours(mask) + w·img`, scaled so that its maximum is 255.

    Args:
        img: float (H, W, 3) in [0, 1].
        mask: float (H, W) in [0, 1].
        use_rgb: The image is RGB; else it is BGR, and so are the heatmap's colours.
        colormap: OpenCV's number (2: jet, 13: magma, 14: inferno, 16: viridis, 20: turbo) or pycam's name.
        image_weight: `w`.

    Returns:
        uint8 (H, W, 3).

    Raises:
        InputError: values out of range, or sizes that do not fit.
        ImageError: a colour map that pycam does not have.
    """
    image, levels = to_numpy(img), to_numpy(mask)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype.kind != "f" or image.max() > 1:
        raise InputError(
            f"img must be float (H, W, 3) in [0, 1], np.float32(picture) / 255; got {image.dtype} {image.shape}"
            + (f" up to {image.max():g}" if image.size else "")
        )
    if levels.shape != image.shape[:2]:
        raise InputError(f"mask must have the image's size {image.shape[:2]}; got {levels.shape}: maps[0] is the first")
    if not (levels.min() >= -_EPSILON and levels.max() <= 1 + _EPSILON):
        raise InputError(f"mask must lie in [0, 1]; it spans {levels.min():g} to {levels.max():g}")
    if not 0 <= image_weight <= 1:
        raise InputError(f"image_weight={image_weight}: give 0 … 1")
    index = (255 * np.clip(levels, 0, 1)).astype(np.uint8)
    colours = table(_name(colormap))[index]
    heatmap = (colours if use_rgb else colours[..., ::-1]).astype(np.float32) / 255
    both = (1 - image_weight) * heatmap + image_weight * image
    top = both.max()
    return np.asarray(255 * (both / top if top > 0 else both), np.uint8)


def preprocess_image(
    img: ArrayLike, mean: Sequence[float] = (0.5, 0.5, 0.5), std: Sequence[float] = (0.5, 0.5, 0.5)
) -> Tensor:
    """`(img − mean)/std` as a model takes it.

    Args:
        img: float (H, W, C) in [0, 1], or uint8.
        mean, std: Per channel.

    Returns:
        float32 (1, C, H, W), of numpy; `.to(device)` and the like do nothing.

    Raises:
        InputError: another shape, or not a value per channel.
    """
    image = to_numpy(img)
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or len(mean) != len(std) or len(mean) not in (1, image.shape[2]):
        raise InputError(
            f"img must be (H, W, C) with a mean and a std per channel; got {image.shape}, {len(mean)} and {len(std)}"
        )
    values = image.astype(np.float32) / (255 if image.dtype == np.uint8 else 1)
    normal = (values - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return np.ascontiguousarray(normal.transpose(2, 0, 1)[None]).view(Tensor)


def deprocess_image(img: ArrayLike) -> NDArray[np.uint8]:
    """A gradient as a picture: mean 0.5, deviation 0.1, clipped to [0, 1], times 255."""
    values = to_numpy(img)
    spread = (values - values.mean()) / (values.std() + 1e-5)
    return np.asarray(255 * np.clip(0.1 * spread + 0.5, 0, 1), np.uint8)


def scale_cam_image(cam: ArrayLike, target_size: tuple[int, int] | None = None) -> NDArray[np.float32]:
    """Maps (N, h, w) min-maxed, each by itself, and resized.

    Args:
        cam: The maps.
        target_size: Width and height; None: the maps keep theirs.
    """
    maps = to_numpy(cam)
    if maps.ndim != 3:
        raise InputError(f"maps must be (N, h, w); got {maps.shape}")
    lifted = maps - maps.min(axis=(1, 2), keepdims=True)
    scaled = (lifted / (_EPSILON + lifted.max(axis=(1, 2), keepdims=True))).astype(np.float32)
    return scaled if target_size is None else _resized(scaled, target_size[1], target_size[0])


def scale_accross_batch_and_channels(tensor: ArrayLike, target_size: tuple[int, int]) -> NDArray[np.float32]:
    """`scale_cam_image` of every channel of (N, C, h, w)."""
    maps = to_numpy(tensor)
    n, c = maps.shape[:2]
    return scale_cam_image(maps.reshape(n * c, *maps.shape[2:]), target_size).reshape(n, c, *target_size[::-1])


def create_labels_legend(concept_scores: ArrayLike, labels: Mapping[int, str] | Sequence[str], top_k: int = 2) -> Any:
    """For each row of scores (concepts, classes), the names and scores of its `top_k` classes, a line each."""
    scores = to_numpy(concept_scores)
    best = np.argsort(scores, axis=1)[:, ::-1][:, :top_k]
    return [
        "\n".join(f"{','.join(labels[c].split(',')[:3])}:{row[c]:.2f}" for c in classes.tolist())
        for row, classes in zip(scores, best, strict=True)
    ]


def show_factorization_on_image(
    img: ArrayLike,
    explanations: ArrayLike,
    colors: Sequence[ArrayLike] | None = None,
    image_weight: float = 0.5,
    concept_labels: Sequence[str] | None = None,
) -> NDArray[np.uint8]:
    """Concepts over an image: each pixel in the colour of the concept that is strongest there, as bright as it is.

    Args:
        img: float (H, W, 3) RGB in [0, 1].
        explanations: float (concepts, H, W) in [0, 1].
        colors: RGB in [0, 1] per concept; None: around the rainbow.
        image_weight: `w` of `w·img + (1 − w)·colours`.
        concept_labels: A text per concept: a legend of the image's size is put beside it.

    Returns:
        uint8 (H, W, 3), twice as wide with a legend.
    """
    image, maps = to_numpy(img), to_numpy(explanations)
    if maps.ndim != 3 or image.shape != (*maps.shape[1:], 3):
        raise InputError(f"img must be (H, W, 3) and explanations (concepts, H, W); got {image.shape}, {maps.shape}")
    shades = _rainbow(len(maps)) if colors is None else np.stack([to_numpy(one)[:3] for one in colors])
    if len(shades) < len(maps):
        raise InputError(f"{len(shades)} colors for {len(maps)} concepts: give one for each")
    full = shades / np.maximum(shades.max(axis=1, keepdims=True), _EPSILON)  # the brightness is the concept's
    colours = full[maps.argmax(axis=0)] * maps.max(axis=0)[..., None]
    result = np.asarray(255 * (image * image_weight + colours * (1 - image_weight)), np.uint8)
    if concept_labels is None:
        return result
    if len(concept_labels) != len(maps):
        raise InputError(f"{len(concept_labels)} labels for {len(maps)} concepts: give one for each")
    return np.hstack([result, _legend(full[: len(maps)], concept_labels, *image.shape[:2])])


_RAINBOW = (
    (0.0, (1.0, 0.0, 0.16)),
    (0.03, (1.0, 0.0, 0.0)),
    (0.215, (1.0, 1.0, 0.0)),
    (0.4, (0.0, 1.0, 0.0)),
    (0.586, (0.0, 1.0, 1.0)),
    (0.77, (0.0, 0.0, 1.0)),
    (0.954, (1.0, 0.0, 1.0)),
    (1.0, (1.0, 0.0, 0.75)),
)
"""matplotlib's "gist_rainbow": place → RGB."""


def _rainbow(count: int) -> NDArray[np.float64]:
    """Colours (count, 3) along it."""
    places, anchors = [place for place, _ in _RAINBOW], np.array([colour for _, colour in _RAINBOW])
    where = np.arange(count) / count
    return np.stack([np.interp(where, places, channel) for channel in anchors.T], axis=1)


def _legend(shades: NDArray[Any], texts: Sequence[str], height: int, width: int) -> NDArray[np.uint8]:
    """A square of colour and a text per concept, on white."""
    from PIL import Image, ImageDraw, ImageFont

    page = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(page)
    step = height / len(texts)
    lines = max(text.count("\n") + 1 for text in texts)
    font = ImageFont.load_default(max(6, min(step / (1.4 * lines), width / 16)))
    for i, (shade, text) in enumerate(zip(shades, texts, strict=True)):
        top, side = i * step, min(step, width / 10) * 0.8
        pen.rectangle((2, top + 2, 2 + side, top + 2 + side), fill=tuple(int(255 * c) for c in shade))
        pen.multiline_text((side + 8, top + 2), text, fill="black", font=font)
    return np.asarray(page)


def _name(colormap: int | str) -> str:
    if isinstance(colormap, str):
        return colormap
    if int(colormap) not in COLORMAPS:
        known = ", ".join(f"{number} ({name})" for number, name in COLORMAPS.items())
        raise ImageError(f"colormap={colormap}: pycam has none of OpenCV's maps but {known}")
    return COLORMAPS[int(colormap)]


def _resized(maps: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """(N, h, w) → (N, height, width): bilinear, half-pixel centres, edges clamped, no antialiasing."""
    down, across = _taps(maps.shape[1], height), _taps(maps.shape[2], width)
    return np.asarray(down @ maps @ across.T, np.float32)


def _taps(size: int, wanted: int) -> NDArray[np.float32]:
    """(wanted, size): what each of `wanted` pixels takes of `size`."""
    at = np.clip((np.arange(wanted) + 0.5) * size / wanted - 0.5, 0, size - 1)
    return np.asarray(np.maximum(0, 1 - np.abs(at[:, None] - np.arange(size))), np.float32)
