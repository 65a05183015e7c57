"""`Explanation`: what one call found."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError

LISTED = 1000
"""Up to so many numbers of an extra are written out in `Explanation.to_dict`."""

PIXEL_CLIP = 0.01
"""Share of the pixels that pictures of pixel attributions saturate."""


@dataclass(slots=True, eq=False, repr=False)
class Explanation:
    """Heatmaps of N images × K targets, with what they explain and how they came about.

    Attributes:
        heatmaps: float32 (N, K, H, W) in [0, 1], at the input's size.
        raw: float32 (N, K, h, w), signed, at the layer's size; a tuple with one array per layer if there are several.
        scores: The model's own output; a dict if it has several; {} if the graph returns none.
        targets: int64 (N, K): the classes that were explained, negative ones looked up.
        flat: bool (N, K): the map had no positive part (its heatmap is all zeros).
        layer: The layer, or the layers joined by ", ".
        method: Name of the method.
        provider: The onnxruntime execution provider that ran.
        notes: What the compiler had to decide, in sentences.
        labels: Class names, () if the model carries none.
        extras: What the method returns besides the maps, by name; see its entry in `docs/methods.md`.
        objective: What was differentiated: "class", "counterfactual" or "contrastive".
    """

    heatmaps: NDArray[np.float32]
    raw: NDArray[np.float32] | tuple[NDArray[np.float32], ...]
    scores: NDArray[Any] | dict[str, NDArray[Any]]
    targets: NDArray[np.int64]
    flat: NDArray[np.bool_]
    layer: str
    method: str
    provider: str
    notes: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    extras: dict[str, NDArray[Any]] = field(default_factory=dict)
    objective: str = "class"

    def __repr__(self) -> str:
        n, k, height, width = self.heatmaps.shape
        made = f"{self.method} at {self.layer}" if self.layer else self.method
        return f"<Explanation of {n} × {k} targets: {height} × {width} heatmaps, {made}>"

    def label(self, n: int = 0, k: int = 0) -> str:
        """Name of the class that map (n, k) explains, or its number."""
        target = int(self.targets[n, k])
        return self.labels[target] if target < len(self.labels) else f"class {target}"

    def shown(self, clip: float | None = None) -> NDArray[np.float32]:
        """The heatmaps as pictures show them.

        Args:
            clip: Share of a map's pixels, the largest, that get the last colour.  None: 0.01 for a method that
                attributes to single pixels, of which a few would leave the others black; 0 for other methods.

        Returns:
            float32 (N, K, H, W) in [0, 1].

        Raises:
            InputError: clip out of range.
        """
        share = (PIXEL_CLIP if "attributions" in self.extras else 0.0) if clip is None else clip
        if not 0 <= share < 1:
            raise InputError(f"clip={clip}: give a share of the pixels, 0 ≤ clip < 1")
        if share == 0:
            return self.heatmaps
        top = np.quantile(self.heatmaps, 1 - share, axis=(2, 3), keepdims=True).astype(np.float32)
        return np.asarray(np.minimum(self.heatmaps / np.where(top > 0, top, 1), 1), np.float32)

    def overlay(
        self, images: NDArray[np.uint8], colormap: str = "jet", alpha: float = 0.5, clip: float | None = None
    ) -> NDArray[np.uint8]:
        """The heatmaps over the pictures.

        Args:
            images: uint8 (N, H, W, 3) RGB, at the heatmaps' size (what the model saw).
            colormap: "jet", "turbo", "viridis", "inferno", "magma" or "gray".
            alpha: Opacity of the heatmap, 0 … 1.
            clip: See `shown`.

        Returns:
            uint8 (N, K, H, W, 3).

        Raises:
            InputError: images of another shape or dtype, alpha out of range.
        """
        from .colormap import colormap as table
        from .head import pick

        images = np.asarray(images)
        n, _, height, width = self.heatmaps.shape
        if images.shape != (n, height, width, 3) or images.dtype != np.uint8:
            raise InputError(
                f"overlay needs uint8 images of shape {(n, height, width, 3)}; got {images.dtype} {images.shape}"
            )
        try:
            return pick().overlay(images, self.shown(clip), table(colormap), alpha)
        except ValueError as error:
            raise InputError(str(error)) from None

    def boxes(self, threshold: float = 0.15) -> NDArray[np.int64]:
        """The box around the largest component above `threshold` of each map's maximum, as in the Grad-CAM paper.

        Returns:
            int64 (N, K, 4): left, top, right, bottom in pixels, right and bottom exclusive; zeros for a flat map.
            Components are 4-connected; of equal ones the first in reading order counts.

        Raises:
            InputError: threshold outside of 0 … 1.
        """
        from .components import largest_box

        if not 0 <= threshold < 1:
            raise InputError(f"threshold={threshold}: give a share of the maximum, 0 ≤ threshold < 1")
        n, k = self.heatmaps.shape[:2]
        boxes = [largest_box(m > threshold * m.max()) for m in self.heatmaps.reshape(n * k, *self.heatmaps.shape[2:])]
        return np.array(boxes, dtype=np.int64).reshape(n, k, 4)

    def save(
        self,
        path: str | os.PathLike[str],
        images: NDArray[np.uint8] | None = None,
        colormap: str = "jet",
        alpha: float = 0.5,
        clip: float | None = None,
    ) -> None:
        """Write the maps as a picture: one row per image, one column per target.

        Args:
            path: .png, .jpg or .webp.
            images: uint8 (N, H, W, 3) to lay the maps over; None writes the maps alone.
            colormap, alpha, clip: See `overlay`.

        Raises:
            OutputError: the path cannot be written.
        """
        from .colormap import colormap as table
        from .image import check_writable, write

        check_writable(path)
        if images is None:
            levels = np.round(self.shown(clip) * 255).astype(np.uint8)
            tiles = table(colormap)[levels]
        else:
            tiles = self.overlay(images, colormap, alpha, clip)
        n, k, height, width, _ = tiles.shape
        write(path, np.ascontiguousarray(tiles.transpose(0, 2, 1, 3, 4).reshape(n * height, k * width, 3)))

    def to_dict(self) -> dict[str, Any]:
        """Everything but the arrays of maps, as plain Python values: for JSON.

        Extras of up to 1000 numbers are lists, with None for what is not finite; of others it says the shape.
        """
        return {
            "method": self.method,
            "objective": self.objective,
            "layer": self.layer,
            "provider": self.provider,
            "notes": list(self.notes),
            "targets": self.targets.tolist(),
            "labels": [[self.label(n, k) for k in range(self.targets.shape[1])] for n in range(len(self.targets))],
            "flat": self.flat.tolist(),
            "boxes": self.boxes().tolist(),
            "extras": {name: _plain(array) for name, array in self.extras.items()},
        }


def _plain(array: NDArray[Any]) -> Any:
    """A small array as lists, a large one as `{"shape": […]}`."""
    if array.size > LISTED:
        return {"shape": list(array.shape)}
    values = array.astype(object)
    values[~np.isfinite(array)] = None
    return values.tolist()
