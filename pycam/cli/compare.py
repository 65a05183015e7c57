"""Compare methods: methods × photos × classes in one labelled picture."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pycam.errors import MethodError

from .aim import add_region_arguments, add_target_arguments, further_inputs, region, target_arguments
from .draw import add_picture_arguments, check_picture_arguments
from .options import add_session_arguments, method_arguments, read_labels, session_arguments

if TYPE_CHECKING:
    from pycam.pictures import Comparison

HELP = "compare methods on photos in one picture"
METHODS = ("gradcam", "gradcam++", "layercam")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "images", nargs="*", metavar="photo", help="picture files (default: a photo that ships with pycam)"
    )
    parser.add_argument("--model", help="ONNX model (default: EfficientNet-Lite0, ships with pycam)")
    parser.add_argument(
        "--method",
        action="append",
        help=f"see `pycam methods`; repeat for several (default: {', '.join(METHODS)})",
    )
    parser.add_argument(
        "--target",
        action="append",
        help="class number, numbers as 281,282, label, or top1 … top16; repeat for several (default: top1)",
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="for the methods that have it, see `pycam methods NAME`; repeat for several",
    )
    parser.add_argument("--layer", action="append", help="see `pycam layers`; repeat to average several")
    parser.add_argument("--output", help="the model output to explain (default: the first)")
    add_target_arguments(parser)
    add_region_arguments(parser)
    parser.add_argument(
        "--objective", default="class", help="class, counterfactual or contrastive, as in `pycam explain`"
    )
    parser.add_argument(
        "--skip-failing",
        action="store_true",
        help="leave out methods that the model cannot serve, and say so in the picture, in place of an error",
    )
    parser.add_argument("-o", "--out", default="comparison.png", help="picture to write (default: comparison.png)")
    parser.add_argument("--report", help="HTML file to write as well: the same with sliders, usable without a network")
    add_picture_arguments(parser)
    add_session_arguments(parser)
    parser.add_argument("--labels", help="text file with one class name per line (default: those in the model)")


def run(arguments: argparse.Namespace) -> int:
    """Explain, draw, write; everything that can be checked beforehand is."""
    from pycam.api import ASSETS, DEFAULT_MODEL
    from pycam.image import check_writable, write
    from pycam.pictures import compare

    contours = check_picture_arguments(arguments)
    out = check_writable(arguments.out)
    report = check_writable(arguments.report, suffixes=(".html", ".htm")) if arguments.report else None
    model = arguments.model or DEFAULT_MODEL
    methods = arguments.method or list(METHODS)
    found = compare(
        model,
        arguments.images or [ASSETS / "coffee.jpg"],
        methods,
        _targets(arguments.target),
        layer=arguments.layer or "auto",
        output=arguments.output,
        objective=arguments.objective,
        options=_options(arguments, methods, model),
        labels=read_labels(arguments.labels) if arguments.labels else None,
        skip_failing=arguments.skip_failing,
        given=lambda explainer, picture, pre: region(arguments, explainer, picture, pre),
        inputs=lambda explainer: further_inputs(arguments, explainer),
        progress=True,
        **session_arguments(arguments),
        **target_arguments(arguments),
    )
    write(
        out,
        found.picture(
            arguments.colormap, arguments.alpha, contours=contours, boxes=arguments.boxes, signed=arguments.signed
        ),
    )
    if report is not None:
        found.report(report, colormap=arguments.colormap, alpha=0.5 if arguments.alpha is None else arguments.alpha)
    _say(found, [str(path) for path in (out, report) if path is not None])
    return 0


def _say(found: Comparison, written: Sequence[str]) -> None:
    for method, why in found.left_out.items():
        print(f"left out: {method}: {why}", file=sys.stderr)
    for n, name in enumerate(found.names):
        first = next(iter(found.results.values()))[n]
        print(f"{name}: {', '.join(first.label(0, k) for k in range(first.targets.shape[1]))}")
    for method, results in found.results.items():
        print(f"  {method}{f' at {results[0].layer}' if results[0].layer else ''}")
    for path in written:
        print(f"wrote {path}")


def _targets(given: Sequence[str] | None) -> list[int | str]:
    """Numbers as numbers, everything else as it is."""
    row: list[int | str] = []
    for text in given or ["top1"]:
        if re.fullmatch(r"\s*[0-9]+(\s*,\s*[0-9]+)*\s*", text):
            row += [int(part) for part in text.split(",")]
        else:
            row.append(text)
    return row


def _options(arguments: argparse.Namespace, methods: Sequence[str], model: Any) -> dict[str, dict[str, Any]]:
    """Method → its --options.

    Raises:
        MethodError: one that none of the methods has.
    """
    from pycam.method import get

    named = {text: text.partition("=")[0] for text in arguments.option}
    known = {get(method).name: get(method).options for method in methods}
    for name in named.values():
        if not any(name in options for options in known.values()):
            raise MethodError(
                f"none of the methods {', '.join(known)} has an option {name!r}; see `pycam methods NAME`"
            )
    common = {**vars(arguments), "eigen_smooth": False}
    found = {}
    for method, options in known.items():
        own = argparse.Namespace(
            **common | {"method": method, "option": [text for text, name in named.items() if name in options]}
        )
        given = method_arguments(own, model)
        found[method] = {name: value for name, value in given.items() if name in options}
    return found
