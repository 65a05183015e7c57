"""Explain photos: print what the model sees and write pictures that show where."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pycam.errors import OutputError, PycamError, TargetError
from pycam.progress import progress
from pycam.runtime.spec import CLASSES

from . import timing, wording
from .aim import add_region_arguments, inputs, region
from .draw import add_picture_arguments, asked, check_picture_arguments, colours, marks, overlays
from .options import add_method_arguments, add_session_arguments, method_arguments, read_labels, session_arguments

if TYPE_CHECKING:
    from pycam.explainer import Explainer
    from pycam.explanation import Explanation
    from pycam.pictures import Entry
    from pycam.preprocess import Preprocess

HELP = "explain photos"
_GUESSED = {1: "values from 0 to 1 were", 3: "ImageNet's mean and deviation were"}  # by channels, see `Preprocess`


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "images", nargs="*", metavar="photo", help="picture files (default: a photo that ships with pycam)"
    )
    parser.add_argument(
        "--model", help="ONNX model or exported explain graph (default: EfficientNet-Lite0, ships with pycam)"
    )
    add_method_arguments(parser)
    parser.add_argument(
        "--target",
        action="append",
        help="class number, numbers as 281,282, label, or top1 … top16; repeat for several (default: top3)",
    )
    parser.add_argument(
        "--against", help="with --objective contrastive: the class to hold the target against (default: the next best)"
    )
    add_region_arguments(parser)
    parser.add_argument(
        "--aug-smooth", action="store_true", help="average over six versions of the photo: mirrored, darker, brighter"
    )
    parser.add_argument(
        "--batch", type=int, help="variants of a photo that may go through the model at once (default: 16)"
    )
    parser.add_argument(
        "-o",
        "--out",
        help="picture to write, or a folder for several photos (default: <photo>_explained.png in the current folder)",
    )
    parser.add_argument(
        "--report", help="HTML file to write as well: all photos with sliders, usable without a network"
    )
    add_picture_arguments(parser)
    add_session_arguments(parser)
    parser.add_argument("--labels", help="text file with one class name per line (default: those in the model)")
    parser.add_argument(
        "--mean",
        type=float,
        nargs="+",
        help="per channel, of values 0–255 (default: as the model says, else ImageNet's; 0 for grey pictures)",
    )
    parser.add_argument(
        "--std",
        type=float,
        nargs="+",
        help="per channel, of values 0–255 (default: as the model says, else ImageNet's; 255 for grey pictures)",
    )
    parser.add_argument(
        "--crop", type=float, help="share of the shorter side that the model sees, 0 to 1 (default: as the model says)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per photo instead of text")


def run(arguments: argparse.Namespace) -> int:
    """Explain every photo; a photo that fails does not stop the others, but makes the exit code 1."""
    from pycam.api import ASSETS, DEFAULT_MODEL, preprocess_of
    from pycam.explainer import Explainer
    from pycam.image import check_writable

    images = [Path(p) for p in arguments.images] or [ASSETS / "coffee.jpg"]
    check_picture_arguments(arguments)
    page = check_writable(arguments.report, suffixes=(".html", ".htm")) if arguments.report else None
    outs = _plan_outputs(images, arguments.out)
    model = arguments.model or DEFAULT_MODEL
    explainer = Explainer(
        model,
        aug_smooth=arguments.aug_smooth,
        progress=not arguments.json,
        **({} if arguments.batch is None else {"batch": arguments.batch}),
        **session_arguments(arguments),
        **method_arguments(arguments, model),
    )
    if arguments.labels:
        explainer.labels = read_labels(arguments.labels)
    pre = _preprocess(preprocess_of(explainer), arguments.mean, arguments.std)
    pre = pre if arguments.crop is None else replace(pre, crop=arguments.crop)
    notes = _guesses(explainer, pre, arguments)
    if not arguments.json:
        for note in (*explainer.spec.notes, *notes):
            print(f"note: {note}")
    failed, entries = 0, []
    for path, out in progress(list(zip(images, outs, strict=True))):
        try:
            report, text, entry = _explain(path, out, explainer, pre, arguments, model if len(images) == 1 else None)
        except PycamError as error:
            failed += 1
            print(f"pycam: {path}: {error}", file=sys.stderr)
            continue
        report["notes"] += notes
        entries += [entry] if page is not None else []
        print(json.dumps(report) if arguments.json else text, flush=True)
    if page is not None and entries:
        _write_page(page, entries, str(model), arguments)
    if failed and len(images) > 1:
        print(f"pycam: {failed} of {len(images)} photos failed", file=sys.stderr)
    return 1 if failed else 0


def _explain(
    path: Path,
    out: Path,
    explainer: Explainer,
    pre: Preprocess,
    arguments: argparse.Namespace,
    timed: Any,
) -> tuple[dict[str, Any], str, Entry]:
    """Explain one photo, write its picture, and report: for JSON, as text, and for the HTML page.

    `timed`: the model to measure beside it, or None.
    """
    from pycam.api import feed
    from pycam.image import crop, read, write
    from pycam.pictures import Entry, picture
    from pycam.pictures.facts import class_scores, top

    whole = read(path)
    photo = crop(whole, pre)
    x = inputs(arguments, explainer, feed(explainer, photo, pre))
    given = region(arguments, explainer, whole, pre)
    target = _targets(arguments.target, explainer)
    forward, why = timing.forward_ms(timed, explainer, x, arguments) if timed is not None else (None, "")
    result, taken = timing.timed(lambda: explainer(x, target, arguments.against, **given), again=timed is not None)
    times = {"explanation": taken} | ({"forward": forward} if forward is not None else {})
    table = class_scores(result, explainer.spec.score)
    scores = table[0] if table is not None else None
    report: dict[str, Any] = {
        "photo": str(path),
        "picture": str(out),
        "top": top(result, 0, 5, explainer.spec.score),
    } | result.to_dict()
    shown = list(range(result.targets.shape[1]))
    report["options"] = dict(explainer.spec.options)
    if "against" in result.extras:
        report["against"] = [[wording.rival(result, k) for k in shown]]
    report["notes"] += [why] if why else []
    report["times_ms"] = times
    colormap, caption = colours(result, arguments)
    write(
        out,
        picture(
            photo,
            overlays(result, photo, arguments),
            [wording.title(result, k) for k in shown],
            [_subtitle(scores, result, k) for k in shown],
            colormap=colormap,
            caption=caption,
            marks=marks(result, arguments),
            photo_marks=asked(given),
            footer=" · ".join(
                [
                    *filter(None, [result.method, result.layer, wording.objective(result)]),
                    result.provider.removesuffix("ExecutionProvider"),
                    *timing.words(times),
                ]
            ),
            photo_title=path.name,
        ),
    )
    return report, _text(report, result, why), Entry(path.name, photo, (result,), explainer.spec.score)


def _write_page(path: Path, entries: Sequence[Entry], model: str, arguments: argparse.Namespace) -> None:
    """The HTML report of all photos."""
    from pycam.pictures import write_report

    alpha = 0.5 if arguments.alpha is None else arguments.alpha
    write_report(path, entries, colormap=arguments.colormap, alpha=alpha, facts={"model": Path(model).name})
    if not arguments.json:
        print(f"wrote {path}")


def _text(report: dict[str, Any], result: Explanation, why: str) -> str:
    """The report for people; `why`: what kept the forward pass from being timed."""
    top = [f"  {p:6.1%}  {label}" if 0 <= p <= 1 else f"  {p:8.3f}  {label}" for label, p in report["top"]]
    shown = range(result.targets.shape[1])
    aim = wording.objective(result)
    concepts = [(wording.title(result, k), wording.own_score(result, k)) for k in shown]
    lines = [
        report["photo"],
        *top,
        f"  method {', '.join(filter(None, [result.method, _at(result.layer), result.provider]))}",
        *([f"  objective {aim}"] if aim else []),
        *(f"  {line}" for line in timing.words(report["times_ms"])),
        *([f"  {why}"] if why else []),
        *(f"  {title} ({score})" for title, score in concepts if score is not None),
        *(f"  flat: {wording.flat(result, k)}" for k in shown if result.flat[0, k]),
        f"  wrote {report['picture']}",
    ]
    return "\n".join(lines)


def _at(layer: str) -> str:
    return f"layer {layer}" if layer else ""


def _subtitle(scores: NDArray[Any] | None, result: Explanation, k: int) -> str:
    note = wording.flat_shortly(result) if result.flat[0, k] else ""
    value = wording.own_score(result, k)
    if value is not None:
        return " · ".join(filter(None, [value, note]))
    if scores is None:
        return note
    score = float(scores[int(result.targets[0, k])])
    return " · ".join(filter(None, [f"{score:.1%}" if 0 <= score <= 1 else f"score {score:.3g}", note]))


def _targets(given: Sequence[str] | None, explainer: Explainer) -> Any:
    """Every --target, as one row: numbers, a label, or "top3".

    Raises:
        TargetError: see `check_targets`; or a rank beyond its reach.
    """
    from pycam.runtime.feeds import DEEPEST, check_targets

    if given is None:
        return "top3" if explainer.spec.targeted and explainer.spec.target in CLASSES else None
    if not explainer.spec.targeted:
        return given[0]  # the explainer says that it takes none
    row: list[int] = []
    for text in given:
        rank = re.fullmatch("top([0-9]+)", text)
        if rank and not 1 <= int(rank[1]) <= DEEPEST:
            raise TargetError(f"--target {text}: give top1 … top{DEEPEST}")
        several = re.fullmatch(r"\s*-?[0-9]+(\s*,\s*-?[0-9]+)+\s*", text)
        for part in text.split(",") if several else [text]:
            row += check_targets(part.strip(), 1, explainer.spec.classes, explainer.labels)[0].tolist()
    return np.array([row], dtype=np.int64)


def _plan_outputs(images: Sequence[Path], out: str | None) -> list[Path]:
    """A path per photo, each checked before the work begins.

    Raises:
        OutputError: one cannot be written, or two photos would write the same file.
    """
    from pycam.image import check_writable

    folder = Path(out) if out is not None and (len(images) > 1 or Path(out).is_dir()) else None
    if folder is not None and not folder.is_dir():
        raise OutputError(f"{len(images)} photos need a folder to write to: {str(folder)!r} is not one; make it first")
    if out is not None and folder is None:
        return [check_writable(out)]
    paths = [(folder or Path()) / f"{image.stem}_explained.png" for image in images]
    twice = sorted({str(p) for p in paths if paths.count(p) > 1})
    if twice:
        raise OutputError(f"two photos would both write {twice[0]!r}: explain them in separate calls")
    return [check_writable(path) for path in paths]


def _preprocess(pre: Preprocess, mean: Sequence[float] | None, std: Sequence[float] | None) -> Preprocess:
    channels = len(pre.channels)
    changes = {name: tuple(v) * (channels if len(v) == 1 else 1) for name, v in (("mean", mean), ("std", std)) if v}
    return replace(pre, **changes)  # type: ignore[arg-type]


def _guesses(explainer: Explainer, pre: Preprocess, arguments: argparse.Namespace) -> list[str]:
    """What neither the model nor the flags say, and had to be assumed."""
    if explainer.preprocess is not None:
        return []
    rows = explainer.input_shape[2:] if explainer.spec.layout == "NCHW" else explainer.input_shape[1:3]
    free = not all(isinstance(d, int) for d in rows)
    height, width = pre.size
    sizes = [f"the model takes images of any size: {height} × {width} was assumed (--size)"] if free else []
    if arguments.mean and arguments.std:
        return sizes
    missing = [f"--{name}" for name in ("mean", "std") if not getattr(arguments, name)]
    guess = f"{_GUESSED[len(pre.channels)]} assumed ({', '.join(missing)})"
    cropped = (
        ""
        if pre.crop == 1
        else f", and the middle {pre.crop:.1%} of the shorter side is shown to it (--crop 1 for all)"
    )
    return [*sizes, f"the model does not say how pictures are prepared: {guess}{cropped}"]
