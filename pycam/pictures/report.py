"""A run as one HTML file: photos, heatmaps that a browser colours, scores, and how it was made.

The file is all there is: style, script, pictures and maps are inside, and its content security policy forbids the
browser to load anything else, or to run a script that is not this one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pycam.colormap import COLORMAPS, colormap
from pycam.errors import InputError

from . import facts as said
from .diverging import signed_levels
from .embed import asset, compressed, encoded, fingerprint, png, signed_table
from .layout import Pixels

if TYPE_CHECKING:
    from pycam.explanation import Explanation

TOP = 5
"""So many of the best classes are listed for each photo."""

_NOTHING = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="  # until the script runs
_SMALL = 64  # up to this size people want to see the pixels


@dataclass(frozen=True, eq=False)
class Entry:
    """One photo of a report.

    Attributes:
        name: What it is called, for example its file.
        photo: uint8 (H, W, 3), at the heatmaps' size: what the model saw.
        results: Explanations of this one photo, by several methods for example.
        output: The model output that was explained; needed only if the graph returns several.
    """

    name: str
    photo: Pixels
    results: Sequence[Explanation]
    output: str | None = None


def write_report(
    path: str | os.PathLike[str],
    entries: Iterable[Entry],
    *,
    title: str = "What the model looked at",
    colormap: str = "jet",
    alpha: float = 0.5,
    threshold: float = 0.0,
    facts: Mapping[str, str] | None = None,
    left_out: Mapping[str, str] | None = None,
) -> None:
    """Write one HTML file with sliders for opacity and threshold and a choice of colours; it needs no network.

    Args:
        path: .html; written whole or not at all.
        entries: The photos with their explanations.
        title: Heading of the page.
        colormap: The one to begin with.
        alpha: The opacity to begin with, 0 … 1.
        threshold: Share of each map's maximum under which it is hidden, to begin with, 0 … 1.
        facts: What else is to be said, by name: the model, times.
        left_out: Method → why it could not be used.

    Raises:
        OutputError: the path cannot be written.
        InputError: no entry, a photo that does not fit its heatmaps, alpha or threshold out of range.
        ImageError: an unknown colour map.
    """
    from pycam.image import check_writable, replacing

    check_writable(path, suffixes=(".html", ".htm"))
    page = report(
        entries,
        title=title,
        colormap=colormap,
        alpha=alpha,
        threshold=threshold,
        facts=facts or {},
        left_out=left_out or {},
    )
    with replacing(path) as file:
        file.write(page.encode())


def report(
    entries: Iterable[Entry],
    *,
    title: str,
    colormap: str,
    alpha: float,
    threshold: float,
    facts: Mapping[str, str],
    left_out: Mapping[str, str],
) -> str:
    """The page as text; see `write_report`."""
    entries = list(entries)
    if not entries or not all(entry.results for entry in entries):
        raise InputError("a report needs at least one photo, and an explanation of each")
    for name, value in (("alpha", alpha), ("threshold", threshold)):
        if not 0 <= value <= 1:
            raise InputError(f"{name}={value}: give a share between 0 and 1")
    for entry in entries:
        _check(entry)
    style, script = (asset(f"report.{kind}") for kind in ("css", "js"))
    policy = (
        f"default-src 'none'; img-src data:; script-src '{fingerprint(script)}'; "
        "style-src 'unsafe-inline'; form-action 'none'; base-uri 'none'"
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<p class="soft">{escape(_summary(entries))}</p>
</header>
<noscript><p>The heatmaps are coloured by a script in this file: allow it to run to see them.</p></noscript>
<p id="trouble" role="alert" hidden></p>
{_controls(entries[0].results[0].objective, colormap, alpha, threshold)}
<main>
{"".join(_section(entry) for entry in entries)}{_made(entries, facts, left_out)}</main>
<script>{script}</script>
</body>
</html>
"""


# ---- parts -----------------------------------------------------------------------------------------------------------


def _controls(objective: str, chosen: str, alpha: float, threshold: float) -> str:
    colormap(chosen)
    colours = "".join(
        f'<option value="{name}" data-table="{encoded(colormap(name))}"{" selected" if name == chosen else ""}>'
        f"{name}</option>"
        for name in COLORMAPS
    )
    ends = [
        f'data-low="{escape(low)}" data-high="{escape(high)}"' for low, high in (said.CAPTIONS[objective], said.SIDES)
    ]
    return f"""<form id="controls" class="controls" aria-label="How the heatmaps are shown" autocomplete="off" hidden>
<div class="sliders">
<div class="field"><label for="opacity">Opacity</label>
<input type="range" id="opacity" min="0" max="100" value="{round(100 * alpha)}">
<output id="opacity-value" for="opacity"></output></div>
<div class="field"><label for="threshold">Threshold</label>
<input type="range" id="threshold" min="0" max="100" value="{round(100 * threshold)}">
<output id="threshold-value" for="threshold"></output></div>
</div><div class="choices">
<div class="field switch"><label for="outline">Outline</label><input type="checkbox" id="outline"></div>
<div class="field switch"><label for="colours">Colours</label><select id="colours">{colours}</select></div>
<div class="field switch"><label for="show">Show</label><select id="show">
<option value="heatmap" {ends[0]}>heatmap</option>
<option value="signed" data-table="{encoded(signed_table())}" {ends[1]}>for and against</option>
</select></div>
<div class="bar" role="img" aria-label="Colour scale"><span id="low"></span>
<canvas id="bar" width="256" height="1"></canvas><span id="high"></span></div>
</div></form>"""


def _section(entry: Entry) -> str:
    """A photo, its maps, and the model's best classes.  Several methods stand beside each other, class by class."""
    height, width = entry.photo.shape[:2]
    size = f'width="{width}" height="{height}"'
    kind = "view small" if max(height, width) <= _SMALL else "view"
    photo = _figure(
        kind, f'<img src="data:image/png;base64,{png(entry.photo)}" {size} alt="{escape(entry.name)}">', "photo"
    )
    again = _figure(kind, f'<img class="again" src="{_NOTHING}" {size} alt="{escape(entry.name)}">', "photo")
    maps = [_maps(result, kind, size, entry) for result in entry.results]
    first = entry.results[0]
    if len(maps) == 1:
        groups = [photo + "".join(maps[0])]
    else:
        groups = [(again if k else photo) + "".join(of_class) for k, of_class in enumerate(zip(*maps, strict=True))]
    explained = [(first.label(0, k), said.score_text(first, 0, k, entry.output)) for k in range(len(groups))]
    heads = [f"<h3>{escape(' · '.join(filter(None, texts)))}</h3>\n" for texts in explained]
    body = "".join(
        f'{head if len(maps) > 1 else ""}<div class="maps">\n{group}</div>\n'
        for head, group in zip(heads, groups, strict=True)
    )
    best = said.top(first, 0, TOP, entry.output)
    scores = _table(("class", "score"), [(label, said.number(score)) for label, score in best]) if best else ""
    said_scores = f"<h3>What the model says</h3>{scores}" if scores else ""
    return f"<section>\n<h2>{escape(entry.name)}</h2>\n{body}{said_scores}</section>\n"


def _maps(result: Explanation, kind: str, size: str, entry: Entry) -> list[str]:
    """A figure for each target: named after it, or after the method where several are compared."""
    method, several = said.title_of(result.method), len(entry.results) > 1
    signs = _signed(result, entry.photo.shape[:2])
    figures = []
    for k, heatmap in enumerate(np.round(result.shown()[0] * 255).astype(np.uint8)):
        label = result.label(0, k)
        note = "nothing speaks for it" if result.flat[0, k] else ""
        spoken = " · ".join(filter(None, [f"{method} for {label}", note]))
        signed = f' data-signed="{compressed(signs[k])}"' if signs is not None else ""
        canvas = (
            f'<img src="{_NOTHING}" {size} alt=""><canvas {size} role="img" aria-label="{escape(spoken)}" '
            f'data-heatmap="{compressed(heatmap)}"{signed}></canvas>'
        )
        title, side = (method, "") if several else (label, said.score_text(result, 0, k, entry.output))
        figures.append(_figure(f"{kind} over", canvas, title, side, note))
    return figures


def _figure(kind: str, inside: str, title: str, side: str = "", below: str = "") -> str:
    small = f"<small>{escape(below)}</small>" if below else ""
    return (
        f'<figure><div class="{kind}">{inside}</div>'
        f"<figcaption><span>{escape(title)}{small}</span><span>{escape(side)}</span></figcaption></figure>\n"
    )


def _made(entries: Sequence[Entry], facts: Mapping[str, str], left_out: Mapping[str, str]) -> str:
    """How it was made: methods, layers, providers, and what the compiler had to decide."""
    results = [result for entry in entries for result in entry.results]
    rows = dict.fromkeys((said.title_of(r.method), r.layer or "none", r.objective, r.provider) for r in results)
    notes = dict.fromkeys(note for r in results for note in r.notes)
    parts = [_table(("method", "layer", "objective", "provider"), rows)]
    if facts:
        parts.append(_table(("", ""), facts.items()))
    if left_out:
        why = [(said.title_of(name), reason) for name, reason in left_out.items()]
        parts.append(f"<h3>Left out</h3>{_table(('method', 'why'), why)}")
    if notes:
        parts.append(f"<h3>Notes</h3><ul>{''.join(f'<li>{escape(note)}</li>' for note in notes)}</ul>")
    return f"<section>\n<h2>How it was made</h2>\n{''.join(parts)}\n</section>\n"


def _table(head: tuple[str, ...], rows: Iterable[Sequence[str]]) -> str:
    titles = "".join(f'<th scope="col">{escape(title)}</th>' for title in head)
    lines = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    above = f"<thead><tr>{titles}</tr></thead>" if any(head) else ""
    return f'<div class="scroll"><table>{above}<tbody>{lines}</tbody></table></div>\n'


def _summary(entries: Sequence[Entry]) -> str:
    methods = dict.fromkeys(said.title_of(result.method) for entry in entries for result in entry.results)
    photos = f"{len(entries)} photo{'s' if len(entries) > 1 else ''}"
    return f"{', '.join(methods)} · {photos} · made with pycam"


# ---- data ------------------------------------------------------------------------------------------------------------


def _check(entry: Entry) -> None:
    photo = entry.photo
    if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3:
        raise InputError(f"{entry.name}: expected a uint8 photo (H, W, 3), got {photo.dtype} {photo.shape}")
    for result in entry.results:
        n, _, *size = result.heatmaps.shape
        if n != 1 or tuple(size) != photo.shape[:2]:
            raise InputError(
                f"{entry.name}: the photo is {photo.shape[:2]}, the heatmaps are {result.heatmaps.shape}: "
                "an entry is one photo at its heatmaps' size"
            )
        if not np.array_equal(result.targets, entry.results[0].targets):
            raise InputError(f"{entry.name}: its explanations are of different targets: give an entry for each")


def _signed(result: Explanation, size: tuple[int, int]) -> NDArray[np.uint8] | None:
    """uint8 (K, H, W): 128 is zero, 1 is −1, 255 is 1; None where the graph returned no raw maps."""
    if isinstance(result.raw, tuple) and not result.raw:
        return None
    values: NDArray[np.uint8] = (np.round(signed_levels(result.raw, size)[0] * 127) + 128).astype(np.uint8)
    return values
