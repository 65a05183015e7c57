"""`Explanation`: what one call found."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .runtime.device import adopted, is_on_device, on_host

if TYPE_CHECKING:
    from .head import Head

LABELLED = ("class", "token", "output")
"""Nouns of targets that the model's labels name."""

LISTED = 1000
"""Up to so many numbers of an extra are written out in `Explanation.to_dict`."""

PIXEL_CLIP = 0.01
"""Share of the pixels that pictures of pixel attributions saturate."""


@dataclass(slots=True, eq=False, repr=False)
class Explanation:
    """Heatmaps of N images × K targets, with what they explain and how they came about.

    Of an Explainer with device="cuda" the heatmaps and raw maps are CuPy arrays, all else is numpy's.  Then `overlay`,
    `shown` and `per_layer` return CuPy arrays too; what ends on the host (boxes, files, reports) copies the maps there
    itself, and `cpu()` does so once for all.

    Attributes:
        heatmaps: float32 (N, K, H, W) in [0, 1], at the input's size; of a signal (N, K, L), of a volume
            (N, K, D, H, W).
        raw: float32 (N, K, h, w), signed, at the layer's size, or (N, K, l), or (N, K, d, h, w); a tuple with one array
            per layer if there are several.
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
        target: Kind of the target, see `pycam.targets`.
        noun: What one of the targets is called: "class", "token", …
        threads: How many threads its pictures may take; None: one per core of this process.
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
    target: str = "class"
    noun: str = "class"
    threads: int | None = None

    def __repr__(self) -> str:
        n, k, *size = self.heatmaps.shape
        made = f"{self.method} at {self.layer}" if self.layer else self.method
        shown = " × ".join(map(str, size)) if len(size) > 1 else f"{size[0]} long"
        return f"<Explanation of {n} × {k} targets: {shown} heatmaps, {made}>"

    def cpu(self) -> Explanation:
        """The same with all maps as numpy arrays; itself where they are."""
        if not self._on_device():
            return self
        raw = tuple(map(on_host, self.raw)) if isinstance(self.raw, tuple) else on_host(self.raw)
        return replace(self, heatmaps=on_host(self.heatmaps), raw=raw)

    def _on_device(self) -> bool:
        return is_on_device(self.heatmaps)

    def _head(self) -> Head:
        """That of where the heatmaps are."""
        from .head import pick

        return pick("cuda") if self._on_device() else pick(threads=self.threads)

    def label(self, n: int = 0, k: int = 0) -> str:
        """Name of the class (or what else the target has) that map (n, k) explains, or its number."""
        target = int(self.targets[n, k])
        if target < 0:
            return f"all {self.noun}s"
        named = self.noun in LABELLED and target < len(self.labels)
        return self.labels[target] if named else f"{self.noun} {target}"

    def per_layer(self) -> tuple[NDArray[np.float32], ...]:
        """Each layer's own heatmaps, float32 (N, K, H, W), in the order that the layers were given.

        Raises:
            InputError: the graph returned no raw maps to make them of.
        """
        from .head.combine import by_rank

        raws = self.raw if isinstance(self.raw, tuple) else (self.raw,)
        if not raws:
            raise InputError("the explain graph returns no raw maps: export it with outputs=('heatmaps', 'raw')")
        size = self.heatmaps.shape[2:]
        return tuple(by_rank(self._head(), [raw], size)[0] for raw in raws)

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
        top = np.quantile(self.heatmaps, 1 - share, axis=tuple(range(2, self.heatmaps.ndim)), keepdims=True).astype(
            np.float32
        )
        return cast("NDArray[np.float32]", np.minimum(self.heatmaps / np.where(top > 0, top, 1), 1).astype(np.float32))

    def overlay(
        self,
        images: NDArray[np.uint8],
        colormap: str = "jet",
        alpha: float = 0.5,
        clip: float | None = None,
        *,
        contours: Sequence[float] = (),
        boxes: float | NDArray[Any] | None = None,
        masks: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.uint8]:
        """The heatmaps over the pictures, with what is to be drawn on them.

        Args:
            images: uint8 (N, H, W, 3) RGB, at the heatmaps' size (what the model saw).
            colormap: "jet", "turbo", "viridis", "inferno", "magma" or "gray".
            alpha: Opacity of the heatmap, 0 … 1.
            clip: See `shown`.
            contours: Levels of the heatmaps at which lines are drawn, between 0 and 1.
            boxes: The threshold of `boxes()`, or boxes as it returns them, (N, K, 4) or (N, K, B, 4), of which zeros
                are none.  For labels and colours see `pycam.pictures.draw`.
            masks: bool (N, H, W) or (N, K, H, W), drawn as outlines.

        Returns:
            uint8 (N, K, H, W, 3).

        Raises:
            InputError: images of another shape or dtype, alpha or a level out of range, a box outside of the picture,
                masks of another size.
        """
        from .colormap import colormap as table

        images = self._checked(images)
        if self._on_device():
            if len(contours) or boxes is not None or masks is not None:
                raise InputError("contours, boxes and masks are drawn on the host: result.cpu().overlay(…)")
            marks = []
        else:
            marks = self._marks(contours, boxes, masks)
        try:
            shown = self._head().overlay(images, self.shown(clip), table(colormap), alpha)
        except ValueError as error:
            raise InputError(str(error)) from None
        if any(marks):
            from .pictures import draw

            n, k = shown.shape[:2]
            tiles = [
                draw(tile, drawn) for tile, drawn in zip(shown.reshape(n * k, *shown.shape[2:]), marks, strict=True)
            ]
            shown = np.stack(tiles).reshape(shown.shape)
        return shown

    def signed(
        self,
        images: NDArray[np.uint8] | None = None,
        *,
        clip: float = 0.01,
        alpha: float = 0.7,
        colormap: str = "RdBu",
    ) -> NDArray[np.uint8]:
        """The signed raw maps: red speaks for the target, blue against it, both on one scale.

        Args:
            images: uint8 (N, H, W, 3) to lay them over, in grey; None: on white.
            clip: Share of a map's pixels, the largest of either sign, that get a last colour.
            alpha: 1 hides the pictures, 0 leaves them at full strength.
            colormap: "RdBu".

        Returns:
            uint8 (N, K, H, W, 3).

        Raises:
            InputError: the graph returned no raw maps, images of another shape or dtype, clip or alpha out of range.
        """
        from .pictures import signed, signed_levels

        if self._on_device():
            return self.cpu().signed(images, clip=clip, alpha=alpha, colormap=colormap)
        self._picture("signed()")
        images = None if images is None else self._checked(images)
        height, width = self.heatmaps.shape[2:]
        return signed(signed_levels(self.raw, (height, width), clip), images, alpha, colormap)

    def boxes(self, threshold: float = 0.15) -> NDArray[np.int64]:
        """The box around the largest component above `threshold` of each map's maximum, as in the Grad-CAM paper.

        Returns:
            int64 (N, K, 4): left, top, right, bottom in pixels, right and bottom exclusive; zeros for a flat map.
            Components are 4-connected; of equal ones the first in reading order counts.

        Raises:
            InputError: threshold outside of 0 … 1.
        """
        from .components import largest_box

        if self._on_device():
            return self.cpu().boxes(threshold)
        if not 0 <= threshold < 1:
            raise InputError(f"threshold={threshold}: give a share of the maximum, 0 ≤ threshold < 1")
        self._picture("boxes()")
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

        self._picture("save()")
        check_writable(path)
        if images is None:
            levels = np.round(on_host(self.shown(clip)) * 255).astype(np.uint8)
            tiles = table(colormap)[levels]
        else:
            tiles = on_host(self.overlay(images, colormap, alpha, clip))
        n, k, height, width, _ = tiles.shape
        write(path, np.ascontiguousarray(tiles.transpose(0, 2, 1, 3, 4).reshape(n * height, k * width, 3)))

    def report(
        self,
        path: str | os.PathLike[str],
        images: NDArray[np.uint8],
        names: Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        """Write one HTML file that shows everything, with sliders for opacity and threshold; it needs no network.

        Args:
            path: .html.
            images: uint8 (N, H, W, 3), at the heatmaps' size (what the model saw).
            names: What the images are called, for example their files.
            **options: Of `pycam.pictures.write_report`: title, colormap, alpha, threshold, facts.

        Raises:
            OutputError: the path cannot be written.
            InputError: images of another shape or dtype, not a name for each, an option out of range.
        """
        from .pictures import Entry, write_report
        from .pictures.facts import one

        here = self.cpu()
        images = here._checked(images)
        names = [f"image {n + 1}" for n in range(len(images))] if names is None else list(names)
        if len(names) != len(images):
            raise InputError(f"{len(images)} images and {len(names)} names: give one for each")
        entries = [Entry(name, images[n], (one(here, n),)) for n, name in enumerate(names)]
        write_report(path, entries, **options)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the arrays of maps, as plain Python values: for JSON.

        Boxes are those of pictures alone.
        Extras of up to 1000 numbers are lists, with None for what is not finite; of others it says the shape.
        """
        return {
            "method": self.method,
            "target": self.target,
            "objective": self.objective,
            "layer": self.layer,
            "provider": self.provider,
            "notes": list(self.notes),
            "targets": self.targets.tolist(),
            "labels": [[self.label(n, k) for k in range(self.targets.shape[1])] for n in range(len(self.targets))],
            "flat": self.flat.tolist(),
            **({"boxes": self.boxes().tolist()} if self.heatmaps.ndim == 4 else {}),
            "extras": {name: _plain(array) for name, array in self.extras.items()},
        }

    def _picture(self, what: str) -> None:
        """Raise InputError where the heatmaps have no rows and columns, or more than these."""
        if self.heatmaps.ndim == 4:
            return
        size = self.heatmaps.shape[2:]
        if len(size) == 1:
            help_ = "plot `heatmaps[n, k]` along the signal"
        else:
            help_ = "take a slice: `dataclasses.replace(result, heatmaps=result.heatmaps[:, :, d])`"
        raise InputError(f"{what} needs heatmaps with rows and columns, and these are {size}: {help_}")

    def _checked(self, images: Any) -> NDArray[np.uint8]:
        """Pictures that lie under the heatmaps."""
        self._picture("a picture of it")
        found: NDArray[np.uint8] = images if is_on_device(images) else np.asarray(images)
        if is_on_device(found):
            found = adopted(found, "the picture")
            found = found if self._on_device() else on_host(found)
        n, _, height, width = self.heatmaps.shape
        if found.shape != (n, height, width, 3) or found.dtype != np.uint8:
            raise InputError(
                f"overlay needs uint8 images of shape {(n, height, width, 3)}; got {found.dtype} {found.shape}"
            )
        return found

    def _marks(self, contours: Any, boxes: Any, masks: Any) -> list[list[Any]]:
        """What is drawn on each of the N·K maps."""
        from .pictures.drawing import marks_of

        found = self.boxes(float(boxes)) if np.ndim(boxes) == 0 and boxes is not None else boxes
        return marks_of(self.heatmaps, contours, found, masks)


def _plain(array: NDArray[Any]) -> Any:
    """A small array as lists, a large one as `{"shape": […]}`."""
    if array.size > LISTED:
        return {"shape": list(array.shape)}
    values = array.astype(object)
    values[~np.isfinite(array)] = None
    return values.tolist()
