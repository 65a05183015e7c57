"""Methods × images × classes, explained and laid out as one labelled grid."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from pycam.errors import InputError, MethodError, PycamError
from pycam.progress import progress as show_progress

from . import facts
from .diverging import ALPHA
from .drawing import Box, Contours, Mark
from .layout import Pixels
from .panels import grid

if TYPE_CHECKING:
    from pycam.explainer import Explainer
    from pycam.explanation import Explanation
    from pycam.preprocess import Preprocess

Target: TypeAlias = "int | str"


Given: TypeAlias = "Mapping[str, Any] | Callable[[Explainer, Pixels, Preprocess], Mapping[str, Any]]"


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        names: What the photos are called.
        photos: uint8 (H, W, 3) each: what the model saw.
        results: Method → an explanation for each photo, all of the same targets.
        left_out: Method → why it could not be used.
        output: The model output that was explained.
        model: What the model is called; "" if it has no name.
    """

    names: tuple[str, ...]
    photos: tuple[Pixels, ...]
    results: Mapping[str, tuple[Explanation, ...]]
    left_out: Mapping[str, str] = field(default_factory=dict)
    output: str | None = None
    model: str = ""

    def picture(
        self,
        colormap: str = "jet",
        alpha: float | None = None,
        *,
        contours: Sequence[float] = (),
        boxes: float | None = None,
        signed: bool = False,
        marks: Sequence[Sequence[Mark]] | None = None,
    ) -> Pixels:
        """The grid: a row for each photo and class, a column for each method.

        Args:
            colormap: Of the heatmaps.
            alpha: Opacity of the maps, 0 … 1; None: 0.5, of signed ones 0.7.
            contours: Levels at which lines are drawn, between 0 and 1.
            boxes: Draw the box around the largest component above this share of each map's maximum.
            signed: Show signed raw maps in red and blue in place of heatmaps.
            marks: For each photo what is drawn on it, true boxes for example.

        Returns:
            uint8 (H', W', 3).

        Raises:
            InputError: an unknown colour map, alpha, a level or a threshold out of range, a mark that does not fit.
        """
        if marks is not None and len(marks) != len(self.photos):
            raise InputError(f"{len(self.photos)} photos and {len(marks)} lists of marks: give one for each photo")
        if alpha is None:
            alpha = ALPHA if signed else 0.5
        first = next(iter(self.results.values()))
        rows: list[list[Pixels]] = []
        drawn: list[list[Sequence[Mark]]] = []
        titles, subtitles = [], []
        for n, photo in enumerate(self.photos):
            of_all = [explained[n] for explained in self.results.values()]
            shown = [
                e.signed(photo[None], alpha=alpha)[0] if signed else e.overlay(photo[None], colormap, alpha)[0]
                for e in of_all
            ]
            found = [e.boxes(boxes)[0] for e in of_all] if boxes is not None else []
            for k in range(first[n].targets.shape[1]):
                rows.append([photo, *(overlays[k] for overlays in shown)])
                lines: list[list[Mark]] = [
                    [Contours(e.heatmaps[0, k], tuple(contours))] if len(contours) else [] for e in of_all
                ]
                for line, box in zip(lines, found, strict=False):
                    line += [Box(box[k])] if box[k].any() else []
                drawn.append([marks[n] if marks else [], *lines])
                titles.append(first[n].label(0, k))
                score = facts.score_text(first[n], 0, k, self.output)
                subtitles.append(" · ".join(filter(None, [score, self.names[n]])))
        return grid(
            rows,
            titles,
            ["photo", *map(facts.title_of, self.results)],
            row_subtitles=subtitles,
            column_subtitles=["", *(explained[0].layer for explained in self.results.values())],
            colormap="RdBu" if signed else colormap,
            caption=facts.SIDES if signed else facts.CAPTIONS[first[0].objective],
            footer=" · ".join(self._footer(first[0])),
            marks=drawn,
        )

    def report(self, path: str | os.PathLike[str], **options: Any) -> None:
        """Write the comparison as one HTML file; the options are `write_report`'s."""
        from .report import Entry, write_report

        entries = [
            Entry(name, photo, tuple(explained[n] for explained in self.results.values()), self.output)
            for n, (name, photo) in enumerate(zip(self.names, self.photos, strict=True))
        ]
        options = {"facts": {"model": self.model} if self.model else {}, "left_out": self.left_out} | options
        write_report(path, entries, **options)

    def _footer(self, explanation: Explanation) -> Iterator[str]:
        if self.model:
            yield self.model
        if explanation.objective != "class":
            yield explanation.objective
        yield explanation.provider.removesuffix("ExecutionProvider")
        for name, why in self.left_out.items():
            yield f"left out: {facts.title_of(name)} ({why})"


def compare(
    model: Any,
    images: Sequence[Any],
    methods: Sequence[str],
    targets: Target | Iterable[Target] = "top1",
    *,
    layer: str | Sequence[str] = "auto",
    preprocess: Preprocess | None = None,
    names: Sequence[str] | None = None,
    skip_failing: bool = False,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    labels: Sequence[str] | None = None,
    given: Given | None = None,
    inputs: Mapping[str, Any] | Callable[[Explainer], Mapping[str, Any]] | None = None,
    progress: bool = False,
    **settings: Any,
) -> Comparison:
    """Explain every image with every method.

    Args:
        model: Path, bytes or ModelProto.
        images: Paths, bytes, open files, Pillow images or uint8 arrays (H, W, 3).
        methods: Names of `pycam.methods()`; compiled before anything is explained.
        targets: For each image a class, a label, "top3", or several of these.
        layer: See `Explainer`; methods that look at no layer do without.
        preprocess: How pictures are prepared; None: as the model's metadata say, else ImageNet's usual way.
        names: What the images are called; None: the paths' last parts.
        skip_failing: Leave out a method that this model cannot serve, and say so in the picture, in place of an error.
        options: Method → its options.
        labels: Class names; None: those in the model.
        given: What the target takes besides, as in a call of an `Explainer` (box=, reference=, …), for every image; or
            a function of an explainer, the picture as it was read and the preprocessing that says it.
        inputs: The model's further inputs, the same for every image; or a function of an explainer that says them.
        progress: Show on standard error how far it is.
        **settings: Of `Explainer` (providers, threads, objective, batch, …).

    Raises:
        InputError: no image, no method, one twice, or names that are not one for each image.
        MethodError: an unknown method, or (unless `skip_failing`, or if it is so for all) one that cannot be used.
        ImageError: a picture that cannot be read.
        PycamError: see `Explainer`.

    Example:
        >>> found = compare("vgg16.onnx", ["cat.jpg"], ["cam", "gradcam", "gradcam++"], "top2")
        >>> found.picture().shape
        (1032, 1440, 3)
    """
    from pycam.api import preprocess_of
    from pycam.image import crop, read

    images, methods = list(images), _checked(methods)
    called = tuple(_name(image, n) for n, image in enumerate(images)) if names is None else tuple(names)
    if not images or len(called) != len(images):
        raise InputError(f"{len(images)} images and {len(called)} names: give at least one image, and a name for each")
    pictures = [read(image) for image in images]
    settings |= {"layer": layer, "progress": progress}
    ready, left_out = _compiled(model, methods, options or {}, settings, skip_failing)
    for explainer in ready.values():
        explainer.labels = explainer.labels if labels is None else tuple(labels)
    any_one = next(iter(ready.values()))
    pre = preprocess or preprocess_of(any_one)
    photos = tuple(crop(picture, pre) for picture in pictures)
    wanted = [targets] if isinstance(targets, (int, str)) else list(targets)
    others = inputs(any_one) if callable(inputs) else inputs or {}
    xs = [_with(any_one, _feed(any_one, photo, pre), others) for photo in photos]
    besides = [dict(given(any_one, picture, pre) if callable(given) else given or {}) for picture in pictures]
    chosen = [_resolved(any_one, x, wanted, more) for x, more in zip(xs, besides, strict=True)]
    results: dict[str, list[Explanation]] = {name: [] for name in ready}
    jobs = [(name, n) for name in ready for n in range(len(photos))]
    for name, n in show_progress(jobs, "explanations") if progress else jobs:
        if name in left_out:
            continue
        try:
            results[name].append(ready[name](xs[n], chosen[n], **besides[n]))
        except PycamError as error:
            if not skip_failing or len(left_out) + 1 == len(methods):
                raise
            left_out[name] = str(error)
    return Comparison(
        names=called,
        photos=photos,
        results={name: tuple(found) for name, found in results.items() if name not in left_out},
        left_out=left_out,
        output=any_one.spec.score,
        model=Path(model).stem if isinstance(model, (str, os.PathLike)) else "",
    )


def _checked(methods: Sequence[str]) -> list[str]:
    """The methods under their own names.

    Raises:
        InputError: none, or one twice.
        MethodError: an unknown one.
    """
    from pycam.method import get

    found = [get(name).name for name in ([methods] if isinstance(methods, str) else methods)]
    twice = sorted({name for name in found if found.count(name) > 1})
    if not found or twice:
        raise InputError(f"the method {twice[0]!r} is given twice" if twice else "no method was given")
    return found


def _compiled(
    model: Any,
    methods: Sequence[str],
    options: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, Any],
    skip_failing: bool,
) -> tuple[dict[str, Explainer], dict[str, str]]:
    """(method → its explainer, method → why there is none); an error where none is left, or none may be left out."""
    from pycam.explainer import Explainer
    from pycam.method import get

    ready: dict[str, Explainer] = {}
    left_out: dict[str, str] = {}
    for name in methods:
        own = {**settings, **({"layer": "auto"} if get(name).layers == "none" else {}), **options.get(name, {})}
        try:
            if not get(name).targeted:
                raise MethodError(f"{name!r} finds by itself what it explains: it cannot be compared class by class")
            ready[name] = Explainer(model, name, **own)
        except PycamError as error:
            if not skip_failing or len(left_out) + 1 == len(methods):
                raise
            left_out[name] = str(error)
    return ready, left_out


def _feed(explainer: Explainer, photo: Pixels, pre: Preprocess) -> Any:
    from pycam.api import feed

    return feed(explainer, photo, pre)


def _with(explainer: Explainer, x: Any, others: Mapping[str, Any]) -> Any:
    return {explainer.spec.image: x, **others} if others else x


def _resolved(explainer: Explainer, x: Any, targets: Sequence[Target], given: Mapping[str, Any]) -> Any:
    """The classes as one row (1, K), each once: so that all methods explain the same ones.  What has a score of its own
    (a detection, a word) is asked for by its rank."""
    found = [
        np.array([[t]], np.int64) if isinstance(t, int) and t >= 0 else explainer(x, t, **given).targets
        for t in targets
    ]
    if not found:
        raise InputError("no target was given: give a class, a label, or top1")
    if explainer.spec.target in ("detection", "sequence"):
        from pycam.runtime.feeds import check_targets

        found = [check_targets(t, 1, explainer.spec.classes, explainer.labels) for t in targets]
    row = np.concatenate(found, axis=1)[0].tolist()
    return np.array([list(dict.fromkeys(row))], np.int64)


def _name(image: Any, n: int) -> str:
    return Path(image).name if isinstance(image, (str, os.PathLike)) else f"image {n + 1}"
