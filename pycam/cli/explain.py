"""Explain photos: print what the model sees and write pictures that show where."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pycam.errors import InputError, OutputError, PycamError
from pycam.progress import progress

from .options import add_method_arguments, method_arguments

if TYPE_CHECKING:
    from pycam.explainer import Explainer
    from pycam.explanation import Explanation
    from pycam.preprocess import Preprocess

HELP = "explain photos"
SECONDS = 0.5  # how long to measure a time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "images", nargs="*", metavar="photo", help="picture files (default: a photo that ships with pycam)"
    )
    parser.add_argument(
        "--model", help="ONNX model or exported explain graph (default: EfficientNet-Lite0, ships with pycam)"
    )
    add_method_arguments(parser)
    parser.add_argument("--target", help="class number, label, or top1 … top16 (default: top3)")
    parser.add_argument(
        "--against", help="with --objective contrastive: the class to hold the target against (default: the next best)"
    )
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
    parser.add_argument("--colormap", default="jet", help="jet, turbo, viridis, inferno, magma or gray (default: jet)")
    parser.add_argument("--alpha", type=float, default=0.5, help="opacity of the heatmap, 0 to 1 (default: 0.5)")
    parser.add_argument("--provider", action="append", help="onnxruntime execution provider, in order of preference")
    parser.add_argument("--threads", type=int, help="threads within an op (default: all cores)")
    parser.add_argument("--labels", help="text file with one class name per line (default: those in the model)")
    parser.add_argument(
        "--mean", type=float, nargs="+", help="per channel, of values 0–255 (default: as the model says)"
    )
    parser.add_argument("--std", type=float, nargs="+", help="per channel, of values 0–255")
    parser.add_argument("--json", action="store_true", help="print one JSON object per photo instead of text")


def run(arguments: argparse.Namespace) -> int:
    """Explain every photo; a photo that fails does not stop the others, but makes the exit code 1."""
    from pycam.api import ASSETS, DEFAULT_MODEL, preprocess_of
    from pycam.colormap import colormap
    from pycam.explainer import Explainer

    images = [Path(p) for p in arguments.images] or [ASSETS / "coffee.jpg"]
    colormap(arguments.colormap)
    if not 0 <= arguments.alpha <= 1:
        raise InputError(f"--alpha {arguments.alpha}: give an opacity between 0 and 1")
    outs = _plan_outputs(images, arguments.out)
    model = arguments.model or DEFAULT_MODEL
    explainer = Explainer(
        model,
        providers=arguments.provider,
        threads=arguments.threads,
        aug_smooth=arguments.aug_smooth,
        progress=not arguments.json,
        **({} if arguments.batch is None else {"batch": arguments.batch}),
        **method_arguments(arguments),
    )
    if arguments.labels:
        explainer.labels = _read_labels(arguments.labels)
    pre = _preprocess(preprocess_of(explainer), arguments.mean, arguments.std)
    if not arguments.json:
        for note in explainer.spec.notes:
            print(f"note: {note}")
    failed = 0
    for path, out in progress(list(zip(images, outs, strict=True))):
        try:
            report = _explain(path, out, explainer, pre, arguments, model if len(images) == 1 else None)
        except PycamError as error:
            failed += 1
            print(f"pycam: {path}: {error}", file=sys.stderr)
            continue
        print(json.dumps(report) if arguments.json else _text(report), flush=True)
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
) -> dict[str, Any]:
    """Explain one photo, write its picture, and report; `timed`: the model to measure beside it, or None."""
    from pycam.api import feed
    from pycam.image import crop, read, write
    from pycam.picture import picture

    photo = crop(read(path), pre)
    x = feed(explainer, photo, pre)
    forward = _forward_ms(timed, explainer, x, arguments) if timed is not None else None
    start = time.perf_counter()
    target = arguments.target or ("top3" if explainer.spec.targeted else None)
    result = explainer(x, target, arguments.against)
    taken = 1e3 * (time.perf_counter() - start)
    if timed is not None and taken < 1e3 * SECONDS:  # else once is enough
        taken = _median_ms(lambda: explainer(x))
    times = {"explanation": taken} | ({"forward": forward} if forward is not None else {})
    scores = _scores(explainer, result)
    report: dict[str, Any] = {
        "photo": str(path),
        "picture": str(out),
        "top": _top(explainer, scores),
    } | result.to_dict()
    report["times_ms"] = times
    shown = list(range(result.targets.shape[1]))
    write(
        out,
        picture(
            photo,
            result.overlay(photo[None], arguments.colormap, arguments.alpha)[0],
            [result.label(0, k) for k in shown],
            [_subtitle(scores, result, k) for k in shown],
            colormap=arguments.colormap,
            footer=" · ".join(
                [
                    *filter(None, [result.method, result.layer]),
                    result.provider.removesuffix("ExecutionProvider"),
                    *_timing(times),
                ]
            ),
            photo_title=path.name,
        ),
    )
    return report


def _text(report: dict[str, Any]) -> str:
    top = [f"  {p:6.1%}  {label}" if 0 <= p <= 1 else f"  {p:8.3f}  {label}" for label, p in report["top"]]
    flat = [label for label, f in zip(report["labels"][0], report["flat"][0], strict=True) if f]
    lines = [
        report["photo"],
        *top,
        f"  method {', '.join(filter(None, [report['method'], _at(report['layer']), report['provider']]))}",
        *(f"  {line}" for line in _timing(report["times_ms"])),
        *(f"  flat: nothing in the photo speaks for {label!r} at this layer" for label in flat),
        f"  wrote {report['picture']}",
    ]
    return "\n".join(lines)


def _at(layer: str) -> str:
    return f"layer {layer}" if layer else ""


def _timing(times: dict[str, float]) -> list[str]:
    explain = f"explanation {times['explanation']:.2f} ms"
    if "forward" not in times:
        return [explain]
    return [f"forward {times['forward']:.2f} ms", f"{explain} ({times['explanation'] / times['forward']:.2f}×)"]


def _subtitle(scores: NDArray[Any] | None, result: Explanation, k: int) -> str:
    note = "nothing speaks for it" if result.flat[0, k] else ""
    if scores is None:
        return note
    value = float(scores[int(result.targets[0, k])])
    return " · ".join(filter(None, [f"{value:.1%}" if 0 <= value <= 1 else f"score {value:.3g}", note]))


def _scores(explainer: Explainer, result: Explanation) -> NDArray[Any] | None:
    """Class scores of one photo, as probabilities where there are several classes; None if they are not a vector."""
    found = result.scores[explainer.spec.score] if isinstance(result.scores, dict) and result.scores else result.scores
    if isinstance(found, dict) or found.ndim != 2:
        return None
    row: NDArray[Any] = found[0].astype(np.float64)
    if explainer.spec.probabilities or len(row) == 1:
        return row
    exp = np.exp(row - row.max())
    return np.asarray(exp / exp.sum())


def _top(explainer: Explainer, scores: NDArray[Any] | None, count: int = 5) -> list[tuple[str, float]]:
    if scores is None:
        return []
    order = np.argsort(-scores, kind="stable")[:count]
    labels = explainer.labels
    return [(labels[i] if i < len(labels) else f"class {i}", float(scores[i])) for i in order]


def _median_ms(call: Callable[[], Any]) -> float:
    """Median time of a call in milliseconds, over about SECONDS, after one to warm up."""
    call()
    taken: list[float] = []
    end = time.perf_counter() + SECONDS
    while not taken or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        taken.append(1e3 * (time.perf_counter() - start))
    return statistics.median(taken)


def _forward_ms(model: Any, explainer: Explainer, x: Any, arguments: argparse.Namespace) -> float | None:
    """The plain forward pass, to compare with; None where only the explain graph is at hand.

    Its session must be gone before the explanation is timed, and come before it: the idle threads of one session go on
    spinning for a while and take the core from the other's.
    """
    from pycam.compile import forward_model
    from pycam.runtime.metadata import read_metadata
    from pycam.runtime.session import make_session
    from pycam.runtime.spec import KEY

    if (
        (isinstance(model, (str, os.PathLike)) and os.path.isdir(model))
        or KEY in read_metadata(model)
        or len(explainer.inputs) > 1
    ):
        return None
    proto, folder = forward_model(model)
    session = make_session(proto.SerializeToString(), arguments.provider, arguments.threads, folder)
    return _median_ms(lambda: session.run(None, {explainer.spec.image: x}))


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


def _read_labels(path: str) -> tuple[str, ...]:
    try:
        return tuple(Path(path).read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the labels {path!r}: {error}") from None


def _preprocess(pre: Preprocess, mean: Sequence[float] | None, std: Sequence[float] | None) -> Preprocess:
    channels = len(pre.channels)
    changes = {name: tuple(v) * (channels if len(v) == 1 else 1) for name, v in (("mean", mean), ("std", std)) if v}
    return replace(pre, **changes)  # type: ignore[arg-type]
