"""What all of pytorch-grad-cam's classes have in common, over pycam's explainers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pycam.errors import LayerError, MethodError, ModelError
from pycam.explainer import Explainer
from pycam.explanation import Explanation
from pycam.head import pick
from pycam.method import get
from pycam.runtime.spec import Spec
from pycam.targets.base import Target

from .arrays import inputs_of, like
from .asked import Group, grouped
from .utils.reshape_transforms import fasterrcnn_reshape_transform

Maps = NDArray[np.float32]

_FACTORS = (0.9, 1, 1.1)


class BaseCAM:
    """What all methods have in common.

    Args:
        model: ONNX: a path, bytes or a ModelProto.
        target_layers: Names of layers, as `pycam layers` lists them; the maps of several are averaged.
        reshape_transform: Not used: pycam finds in the graph where tokens lie.
        output: The model output that is explained; the first one if None.
        providers, threads: See `pycam.Explainer`.

    Attributes:
        outputs: The model's output of the last call (a dict where it has several), as the kind of array that the input
            was.
        batch_size: How many variants of an image go through the model at once, for methods that need some; None:
            pycam's own number.
    """

    method: str | None = None
    """Name of the method; None: that of the class."""
    options: Mapping[str, Any] = {}
    """Of the method."""
    reads_scores = True
    """Whether maps depend on the targets at all: where they do not, targets are not looked at."""
    smooths = True
    """Whether `eigen_smooth` does something; where not, it is ignored, as in pytorch-grad-cam."""

    def __init__(
        self,
        model: Any,
        target_layers: Sequence[str],
        reshape_transform: Callable[..., Any] | None = None,
        *,
        output: str | None = None,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
    ) -> None:
        check_transform(reshape_transform)
        self.model = checked_model(model)
        self.target_layers = checked_layers(target_layers)
        self.batch_size: int | None = None
        self.outputs: Any = None
        self._settings: dict[str, Any] = {"output": output, "providers": providers, "threads": threads}
        self._explainers: list[tuple[Any, list[Explainer]]] = []

    def __call__(
        self,
        input_tensor: Any,
        targets: Sequence[Any] | None = None,
        aug_smooth: bool = False,
        eigen_smooth: bool = False,
    ) -> Maps:
        """Explain a batch.

        Args:
            input_tensor: (N, C, H, W), or as the model takes it; numpy's or torch's.  {name: array} for models with
                several inputs.
            targets: One for each image, see `utils.model_targets`; None: the class with the highest output.
            aug_smooth: The mean of the maps of six versions: mirrored or not, times 0.9, 1 and 1.1.
            eigen_smooth: The weighted activations' first singular vector in place of their sum.

        Returns:
            float32 (N, H, W) in [0, 1].

        Raises:
            PycamError: see `pycam.errors`.
        """
        if not aug_smooth:
            return self.forward(input_tensor, targets, eigen_smooth)
        return self.forward_augmentation_smoothing(input_tensor, targets, eigen_smooth)

    def forward(self, input_tensor: Any, targets: Sequence[Any] | None = None, eigen_smooth: bool = False) -> Maps:
        """`__call__` without `aug_smooth`."""
        maps, scores = self._explained(inputs_of(input_tensor), targets, eigen_smooth)
        self.outputs = like(input_tensor, scores)
        return maps

    def forward_augmentation_smoothing(
        self, input_tensor: Any, targets: Sequence[Any] | None = None, eigen_smooth: bool = False
    ) -> Maps:
        """`__call__` with `aug_smooth`.  Each version is explained for itself: without targets by its own top class,
        and a mask stays where it is (`pycam.Explainer(aug_smooth=True)` keeps the class and mirrors the mask)."""
        feeds = inputs_of(input_tensor)
        spec = self._explainer(grouped(targets if self.reads_scores else None, _count(feeds))[0].score, eigen_smooth)[
            0
        ].spec
        maps = []
        for mirrored, factor in product((False, True), _FACTORS):
            step = -1 if mirrored else 1
            version = _version(feeds, spec, step, factor)
            found, scores = self._explained(version, targets, eigen_smooth)
            self.outputs = like(input_tensor, scores)
            maps.append(found[..., ::step])
        return np.asarray(np.mean(maps, axis=0), np.float32)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        """The sessions are let go; a further call makes them again."""
        self._explainers.clear()

    def _explained(self, feeds: Any, targets: Sequence[Any] | None, eigen_smooth: bool) -> tuple[Maps, Any]:
        """The maps, and the model's outputs."""
        count = _count(feeds)
        groups = grouped(targets if self.reads_scores else None, count)
        runs = [self._run(group, feeds, count, eigen_smooth) for group in groups]
        if len(runs) == 1:
            return runs[0][0], runs[0][1].scores
        order = np.argsort([n for group in groups for n in group.images])
        maps = np.concatenate([maps for maps, _ in runs])[order]
        first = self._explainer(groups[0].score, eigen_smooth)[0].spec
        return maps, _put_together([found.scores for _, found in runs], first, order)

    def _run(self, group: Group, feeds: Any, count: int, eigen_smooth: bool) -> tuple[Maps, Explanation]:
        """Maps (n, H, W) of a group's images, and one of the explanations they were made of."""
        explainers = self._explainer(group.score, eigen_smooth)
        spec = explainers[0].spec
        if len(group.images) < count:
            if isinstance(feeds, Mapping):
                batched = feeds.keys() if spec.batched is None else spec.batched
                feeds = {name: array[group.images] if name in batched else array for name, array in feeds.items()}
            else:
                feeds = feeds[group.images]
        classes = group.targets(spec.classes)
        found = [explainer(feeds, classes, **group.given) for explainer in explainers]
        if len(found) == 1:
            return found[0].heatmaps[:, 0], found[0]
        maps, _ = pick().finish([np.asarray(one.raw) for one in found], found[0].heatmaps.shape[2:])
        return maps[:, 0], found[0]

    def _explainer(self, score: Target, eigen_smooth: bool) -> list[Explainer]:
        """One, or for a method that works on a single layer one per layer."""
        smooth = eigen_smooth and self.smooths
        key = score, smooth, self.batch_size
        for known, explainers in self._explainers:
            if known == key:
                return explainers
        found = get(self.method or type(self).__name__)
        layers: list[Any] = list(self.target_layers)
        if found.layers != "one":
            layers = [self.target_layers] if found.layers == "many" else ["auto"]
        settings = {**self._settings, **self.options, "eigen_smooth": smooth}
        if self.batch_size is not None:
            settings["batch"] = self.batch_size
        made = [Explainer(self.model, found.name, layer, score, **settings) for layer in layers]
        self._explainers.append((key, made))
        return made


def checked_model(model: Any) -> Any:
    """`model`, if it is one that pycam reads.

    Raises:
        ModelError: it is a framework's.
    """
    if isinstance(model, (str, os.PathLike, bytes)) or hasattr(model, "metadata_props"):
        return model
    raise ModelError(
        f"model is a {type(model).__name__}; pycam explains ONNX: export it once, for instance with "
        "pycam.frameworks.from_torch(model, (1, 3, 224, 224)), and give the path, bytes or ModelProto"
    )


def checked_layers(layers: Any) -> list[str]:
    """Names of layers.

    Raises:
        LayerError: they are something else, or there are none.
    """
    found = [layers] if isinstance(layers, str) else list(layers)
    if not found:
        raise LayerError("target_layers is empty: name one or more, `pycam layers` lists them, or 'auto'")
    for layer in found:
        if not isinstance(layer, str):
            raise LayerError(
                f"target_layers holds a {type(layer).__name__}: layers go by their names, target_layers=['layer4'] for "
                "model.layer4, ['blocks.11.norm1'] for model.blocks[-1].norm1 of twelve (`pycam layers` lists them)"
            )
    return found


def check_transform(transform: Any) -> None:
    if transform is fasterrcnn_reshape_transform:
        transform(None)  # it says why not


def only_default(name: str, options: Mapping[str, tuple[Any, Any]]) -> None:
    """Raises MethodError for an option that pycam's method does not have, unless it is at its default."""
    for option, (value, default) in options.items():
        if value != default:
            shown = getattr(value, "__name__", repr(value))
            raise MethodError(f"{name}({option}={shown}): pycam's has no such option; leave it at {default!r}")


def _count(feeds: Any) -> int:
    """How many images there are."""
    return len(next(iter(feeds.values())) if isinstance(feeds, Mapping) else feeds)


def _version(feeds: Any, spec: Spec, step: int, factor: float) -> Any:
    """The images mirrored left to right where `step` is −1, times `factor`."""
    image = feeds[spec.image] if isinstance(feeds, Mapping) else feeds
    axis = 3 if spec.layout == "NCHW" else 2
    view = np.flip(image, axis) if step < 0 else image
    view = np.ascontiguousarray(view * np.asarray(factor, image.dtype))
    return {**feeds, spec.image: view} if isinstance(feeds, Mapping) else view


def _put_together(parts: Sequence[Any], spec: Spec, order: NDArray[Any]) -> Any:
    """The model's outputs of several groups of images, in the images' order."""
    if isinstance(parts[0], Mapping):
        return {name: _joined([one[name] for one in parts], spec.axes.get(name, 0), order) for name in parts[0]}
    return _joined(parts, spec.axes.get(spec.outputs[0], 0), order)


def _joined(parts: Sequence[NDArray[Any]], axis: int | None, order: NDArray[Any]) -> NDArray[Any]:
    return parts[0] if axis is None else np.take(np.concatenate(parts, axis), order, axis)
