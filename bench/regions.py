"""Is the right region shown?  Every method of `pycam.methods()` on scenes where the object's place is known.

    python -m bench.regions [--only REGEX] [--suites photos mosaics fashion vit] [--share 1.0]
                            [--again] [--write]
    python -m bench.regions --grid docs/methods_grid.jpg     # the picture: methods × photos

Pointing: the heatmap's maximum lies in the region (a flat map misses; of several maxima the share that does).
Energy: the share of the heatmap that lies in the region (0 for a flat map).  Scenes: see `bench/regions_data.py`.
A method that runs the model on many variants takes the first scenes only, as many as its suite's budget of rows allows:
that depends on the method alone, not on the machine.  What fails is listed with its error.

It goes on where it stopped: results lie in ``$PYCAM_BENCH_CACHE/regions.json`` (default: ``bench/.cache``).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

import pycam
from bench import report
from bench.fashion import CACHE, CNN, TRAINED, VIT, Missing
from bench.regions_data import (
    Item,
    Region,
    Suite,
    fashion_suite,
    mosaic_suite,
    photo_preprocess,
    photo_suite,
    photos,
    views,
)
from pycam import image
from pycam.api import DEFAULT_MODEL
from pycam.colormap import colormap
from pycam.errors import MethodError, PycamError
from pycam.head import pick
from pycam.pictures import grid

TITLE = "Right region"
SEEDS = 5
"""Of the baseline Random."""
CHUNK = 20
"""Pictures in one call."""
DEAR = 50
"""Rows a scene from which a method takes the first few scenes only."""
UNKNOWN = 1000
"""Variants of a method that does not say how many it has."""


AREA = "(area of the region)"
INTRODUCTION = f"""`python -m bench.regions`, in per cent. **Pointing**: the heatmap's maximum lies in the box, mask or
quadrant (a flat map misses); **energy**: the share of the heatmap that lies in it. Methods as they come, layer `auto`,
the class that is there as the target. Random weights: the mean of {SEEDS} seeds. The last row is the share of the
picture that the region takes: what a map that knows nothing reaches. `scenes`: methods that run the model on many
variants of an image take the first ones only: compare across such numbers with care. Empty: not measured. Methods
that look at no target (EigenCAM, KPCA-CAM, FEM, mean activation) cannot tell the cells of a mosaic apart: 25 is theirs
by construction.""".replace("\n", " ")


Heatmap: TypeAlias = "NDArray[np.float32]"
VIT_WORDS = """No trained vision transformer is at hand, so `python -m bench.regions_vit` trains a small one (8 × 8
tokens, 4 blocks) on the first 800 scenes. It finds the class of 61 % of the other 200; measured are those it finds.
Token features have signs, so methods made for features behind a ReLU do badly here.""".replace("\n", " ")
Row: TypeAlias = "list[NDArray[np.uint8] | None]"
MAY_SHIP = ("camera", "coffee", "chelsea", "rocket")
"""Photos in the public domain."""


@dataclass(frozen=True)
class Entry:
    """A row of the table: a method with settings."""

    method: str
    title: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Result:
    """What a method reached on a suite; `error` says why there is nothing."""

    pointing: float = 0.0
    near: float = 0.0
    energy: float = 0.0
    flat: int = 0
    maps: int = 0
    items: int = 0
    of: int = 0
    rows: int = 0
    seconds: float = 0.0
    error: str = ""
    refused: bool = False


REDUCED: dict[tuple[str, str], dict[str, Any]] = {
    **{("rise", suite): {"samples": 500} for suite in ("photos", "mosaics", "fashion", "vit")},
    **{(method, "photos"): {"samples": 2} for method in ("sscam", "iscam")},
}
"""(method, suite) → options with which it stays within the budget; the table says so."""


def entries() -> list[Entry]:
    """Every method as it comes, Grad-CAM's smoothings, and Random with several seeds as one row."""
    rows = [Entry(m.name, m.title, {}) for m in pycam.methods()]
    rows += [
        Entry("gradcam", "Grad-CAM, aug_smooth", {"aug_smooth": True}),
        Entry("gradcam", "Grad-CAM, eigen_smooth", {"eigen_smooth": True}),
    ]
    return sorted(rows, key=lambda entry: entry.method == "random")  # the baseline last


def suites(names: Sequence[str]) -> tuple[list[Suite], list[str]]:
    """The suites that there is data for, and what is missing."""
    found: list[Suite] = []
    missing: list[str] = []
    if {"photos", "mosaics"} & set(names):
        try:
            pictures, absent = photos()
            missing += absent
            makers = {"photos": photo_suite, "mosaics": mosaic_suite}
            found += [make(pictures) for name, make in makers.items() if name in names]
        except Missing as error:
            missing.append(str(error))
    models: dict[str, Callable[[], Suite]] = {
        "fashion": lambda: fashion_suite("fashion", "fashion scenes", CNN, range(1000)),
        "vit": lambda: fashion_suite("vit", "fashion scenes, small ViT", VIT, range(TRAINED, 1000), recognised=True),
    }
    for name, suite in models.items():
        if name in names:
            try:
                found.append(suite())
            except Missing as error:
                advice = " (python -m bench.regions_vit makes it)" if str(error).startswith(VIT.name) else ""
                missing.append(f"{name}: {error}{advice}")
    return found, missing


# ---- measuring -------------------------------------------------------------------------------------------------------


def rows(explainer: pycam.Explainer, targets: int) -> int:
    """Rows that go through the whole model for one picture, about; a backward pass counts as two rows."""
    recipe, plan = explainer.spec.recipe, explainer.spec.plan
    views = 6 if explainer.aug_smooth else 1
    if plan != "perturb" or recipe is None or not recipe.varies:  # a split's variants pass a small tail only
        return views if explainer.spec.layers else views * (1 + 2 * targets)
    count = UNKNOWN if recipe.at_most is None else recipe.at_most
    return views * count * (3 * targets if recipe.gradients else 1)


def measure(entry: Entry, suite: Suite, share: float = 1.0) -> Result:
    """A method on a suite; errors are results too."""
    settings = {**entry.settings, **REDUCED.get((entry.method, suite.name), {})}
    seeds = range(SEEDS) if entry.method == "random" else [None]
    began, cost, count = time.perf_counter(), 0, 0
    scores: list[tuple[float, float, float, float]] = []
    drawn: list[Heatmap] = []
    try:
        for seed in seeds:
            options = settings if seed is None else {**settings, "seed": seed}
            explainer = pycam.Explainer(suite.model, method=entry.method, threads=1, **options)
            cost = rows(explainer, len(suite.items[0].targets))
            most = len(suite.items) if cost <= DEAR else min(len(suite.items), suite.few)
            count = min(most, int(suite.budget * share) // cost)
            if not count:
                return Result(
                    error=f"{cost} rows a scene: more than the budget of {int(suite.budget * share)}", rows=cost
                )
            for start in range(0, count, CHUNK):
                items = suite.items[start : min(start + CHUNK, count)]
                maps = explained(explainer, items)
                scores += [
                    judged(heatmap, region, near)
                    for item, of_item in zip(items, maps, strict=True)
                    for heatmap, region, near in zip(of_item, item.regions, item.near, strict=True)
                ]
                drawn += [of_item[0] for of_item in maps[: max(0, suite.shown - start)]]
        if drawn:
            np.save(map_file(entry), np.array(drawn, np.float16)[: suite.shown])
    except MethodError as error:
        return Result(error=str(error), refused=True, of=len(suite.items))
    except Exception as error:  # a fault of the method: it belongs in the table, not in the way
        if not isinstance(error, PycamError):
            traceback.print_exc()
        return Result(error=f"{type(error).__name__}: {error}", of=len(suite.items))
    pointing, near, energy, flat = np.array(scores).T
    return Result(
        pointing=float(pointing.mean()),
        near=float(near.mean()),
        energy=float(energy.mean()),
        flat=int(flat.sum()),
        maps=len(scores),
        items=count,
        of=len(suite.items),
        rows=cost,
        seconds=time.perf_counter() - began,
    )


def area(suite: Suite) -> Result:
    """What the regions take of the pictures: chance."""
    pairs = [(r.mean(), near.mean()) for item in suite.items for r, near in zip(item.regions, item.near, strict=True)]
    share, near = np.mean(pairs, axis=0)
    count = len(suite.items)
    return Result(float(share), float(near), float(share), maps=len(pairs), items=count, of=count)


def judged(heatmap: Heatmap, region: Region, near: Region) -> tuple[float, float, float, float]:
    """(pointing, pointing within the margin, energy, flat) of a map."""
    return pointing(heatmap, region), pointing(heatmap, near), energy(heatmap, region), float(heatmap.max() <= 0)


def explained(explainer: pycam.Explainer, items: Sequence[Item]) -> Heatmap:
    """Heatmaps (N, K, H, W), one per target; of a method that finds concepts, the one that speaks for it most."""
    x, targets = np.concatenate([item.x for item in items]), np.array([item.targets for item in items])
    if explainer.spec.targeted:
        return np.asarray(explainer(x, targets).heatmaps)
    result = explainer(x)
    concepts = result.extras["concepts"]  # (N, concepts, classes)
    chosen = np.take_along_axis(concepts, targets[:, None], axis=2).argmax(1)  # (N, K)
    return np.take_along_axis(result.heatmaps, chosen[:, :, None, None], axis=1)


def pointing(heatmap: Heatmap, region: Region) -> float:
    """The share of the maxima that lie in the region: 1 or 0 but for ties; 0 for a flat map."""
    highest = heatmap.max()
    return float(region[heatmap == highest].mean()) if highest > 0 else 0.0


def energy(heatmap: Heatmap, region: Region) -> float:
    """The share of the heatmap in the region; 0 for a flat map."""
    total = heatmap.sum(dtype=np.float64)
    return float(heatmap[region].sum(dtype=np.float64) / total) if total > 0 else 0.0


# ---- keeping and telling ---------------------------------------------------------------------------------------------


def key(entry: Entry, suite: str) -> str:
    """Under which a result is kept."""
    return f"{entry.title}|{suite}"


def kept() -> dict[str, Result]:
    """Results of earlier runs."""
    path = CACHE / "regions.json"
    return {k: Result(**v) for k, v in json.loads(path.read_text()).items()} if path.exists() else {}


def keep(results: Mapping[str, Result]) -> None:
    """Write the results."""
    CACHE.mkdir(parents=True, exist_ok=True)
    text = json.dumps({k: asdict(v) for k, v in results.items()}, indent=1)
    (CACHE / "regions.json").write_text(text)


def percent(value: float) -> str:
    return f"{100 * value:.0f}"


def section(listed: Sequence[Entry], shown: Sequence[Suite], results: Mapping[str, Result], missing: list[str]) -> str:
    """The section of RESULTS.md."""
    parts = [
        report.circumstances(["numpy", "onnxruntime", "onnx", "scikit-image", "scikit-learn"]),
        INTRODUCTION,
    ]
    main = [suite for suite in shown if suite.name != "vit"]
    groups = [main, [suite for suite in shown if suite.name == "vit"]]
    for group in filter(None, groups):
        parts.append(f"**{', '.join(suite.title for suite in group)}**")
        if group is not main:
            parts.append(VIT_WORDS)
        parts.append(_table(listed, group, results))
    notes = [note for entry in listed for note in _notes(entry, shown, results)]
    notes = [*(_below(listed, suite, results) for suite in shown), *notes]
    if missing:
        notes.append(f"not here: {'; '.join(missing)}")
    if notes:
        parts.append("\n".join(f"- {note}" for note in dict.fromkeys(notes)))
    return "\n\n".join(parts)


def _table(listed: Sequence[Entry], group: Sequence[Suite], results: Mapping[str, Result]) -> str:
    header = ["method"]
    for suite in group:
        near = [f"within {suite.margin} px"] if suite.margin else []
        header += [f"{suite.title}: pointing", *near, "energy", "scenes"]
    lines = []
    for entry in [*listed, Entry("", AREA, {})]:
        cells: list[str] = []
        for suite in group:
            found = area(suite) if entry.title == AREA else results.get(key(entry, suite.name))
            columns = 4 if suite.margin else 3
            if found is None or found.error:
                why = "" if found is None else "refused" if found.refused else "—" if found.rows else "**failed**"
                cells += [why, *[""] * (columns - 1)]
                continue
            near = [percent(found.near)] if suite.margin else []
            cells += [percent(found.pointing), *near, percent(found.energy), str(found.items)]
        if any(cell not in ("", "refused") for cell in cells):
            lines.append([entry.title, *cells])
    return report.table(header, lines)


def _below(listed: Sequence[Entry], suite: Suite, results: Mapping[str, Result]) -> str:
    """The methods that reach less than random weights on average."""
    found = {e.title: r for e in listed if (r := results.get(key(e, suite.name))) is not None and not r.error}
    baseline = next((found[e.title] for e in listed if e.method == "random" and e.title in found), None)
    if baseline is None:
        return f"{suite.title}: random weights were not measured"
    worse = {
        "pointing": [title for title, r in found.items() if r.pointing < baseline.pointing],
        "energy": [title for title, r in found.items() if r.energy < baseline.energy],
    }
    listing = "; ".join(f"in {name}: {', '.join(titles) or 'none'}" for name, titles in worse.items())
    return f"below random weights on {suite.title}, {listing}"


def _notes(entry: Entry, shown: Sequence[Suite], results: Mapping[str, Result]) -> list[str]:
    """What the table does not say of a method."""
    notes, errors = [], dict[str, list[str]]()
    for suite in shown:
        found = results.get(key(entry, suite.name))
        if found is None:
            continue
        reduced = REDUCED.get((entry.method, suite.name))
        if reduced and not found.error:
            notes.append(f"{entry.title} on {suite.title} with {', '.join(f'{k}={v!r}' for k, v in reduced.items())}")
        if found.error:
            word = "refused" if found.refused else "not run" if found.rows else "failed"
            errors.setdefault(f"{word}: {found.error}", []).append(suite.title)
        elif found.flat:
            notes.append(f"{entry.title}: {found.flat} of {found.maps} maps of {suite.title} are flat")
    return notes + [f"{entry.title}, {', '.join(titles)}, {error}" for error, titles in errors.items()]


# ---- the picture -----------------------------------------------------------------------------------------------------


def map_file(entry: Entry) -> Path:
    """Where the heatmaps of the photos' centre crops are kept for the picture."""
    CACHE.mkdir(parents=True, exist_ok=True)
    return CACHE / f"regions-{re.sub('[^a-z0-9]+', '_', entry.title.lower())}.npy"


def draw_grid(listed: Sequence[Entry], path: Path, names: Sequence[str]) -> list[str]:
    """Methods × photos on the shipped model, in two blocks, of the heatmaps that were measured; what has none."""
    from PIL import Image

    image.check_writable(path)
    everything, _ = photos()
    places = [i for i, photo in enumerate(everything) if not names or photo.name in names]
    found = [everything[i] for i in places]
    pre = photo_preprocess()
    crops = [views(photo, pre)[0][1] for photo in found]
    labels = (DEFAULT_MODEL.parent / "imagenet_labels.txt").read_text().splitlines()
    rows: list[tuple[str, Row]] = [("photo", list(crops))]
    absent = []
    for entry in listed:
        if not map_file(entry).exists():
            absent.append(entry.title)
            continue
        kept_maps = np.load(map_file(entry)).astype(np.float32)
        top = np.quantile(kept_maps, 0.99, axis=(1, 2), keepdims=True)  # else pixel attributions are all but black
        kept_maps = np.minimum(kept_maps / np.where(top > 0, top, 1), 1).astype(np.float32)
        row: Row = []
        for place, seen in zip(places, crops, strict=True):
            maps = kept_maps[place : place + 1, None]  # none for a method that took fewer photos
            row.append(pick().overlay(seen[None], maps, colormap("jet"), 0.5)[0, 0] if len(maps) else None)
        rows.append((entry.title, row))
    half = (len(rows) + 1) // 2
    left, right = rows[:half], [("photo", rows[0][1]), *rows[half:]]
    right += [("", [None] * len(crops))] * (len(left) - len(right))
    left += [("", [None] * len(crops))] * (len(right) - len(left))
    table = [[*one, _text(title), *two] for (_, one), (title, two) in zip(left, right, strict=True)]
    columns = [labels[photo.label] for photo in found]
    footer = (
        "EfficientNet-Lite0, the last layer where a method looks at one · explained is the class above each photo · "
        "the highest 1 % of a map has the last colour"
    )
    picture = grid(table, [title for title, _ in left], [*columns, "", *columns], colormap="jet", footer=footer)
    Image.fromarray(picture).save(path, quality=78)  # that of a JPEG: smaller than photos are written
    return absent


def _text(title: str) -> NDArray[np.uint8]:
    """A white cell that says the title of the row right of it."""
    from PIL import Image, ImageDraw, ImageFont

    cell = Image.new("RGB", (180, 180), "white")
    words = "\n".join(textwrap.wrap(title.replace("×", "x"), 18))
    ImageDraw.Draw(cell).multiline_text((10, 75), words, "black", ImageFont.load_default(15))
    return np.array(cell)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.regions", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", metavar="REGEX", help="methods by name or title")
    parser.add_argument("--suites", nargs="+", default=["photos", "mosaics", "fashion", "vit"])
    parser.add_argument("--share", type=float, default=1.0, help="of the budgets of rows, for a busy machine")
    parser.add_argument("--again", action="store_true", help="also what was measured before")
    parser.add_argument("--write", action="store_true", help="what was asked for, into RESULTS.md")
    parser.add_argument("--grid", type=Path, metavar="FILE", help="draw the picture, and measure nothing")
    parser.add_argument("--photos", nargs="*", default=MAY_SHIP, help="of the picture; none: all of them")
    options = parser.parse_args(argv)

    everything = entries()
    chosen = [e for e in everything if re.search(options.only, f"{e.method} {e.title}")]
    if options.grid is not None:
        print("\n".join(f"not measured: {title}" for title in draw_grid(chosen, options.grid, options.photos)))
        return 0
    shown, missing = suites(options.suites)
    print("\n".join(f"missing: {text}" for text in missing))
    for suite in shown:
        for entry in chosen:
            name = key(entry, suite.name)
            results = kept()
            if name in results and not options.again and not (results[name].error and not results[name].rows):
                continue
            found = measure(entry, suite, options.share)
            keep(kept() | {name: found})  # read again: another process may have written
            said = found.error or (
                f"pointing {percent(found.pointing)} near {percent(found.near)} energy {percent(found.energy)}, "
                f"{found.items} of {found.of} scenes, flat {found.flat}, {found.seconds:.0f} s"
            )
            print(f"{suite.name:8} {entry.title:30} {said}", flush=True)
    if not shown:
        return 0
    text = section(everything, shown, kept(), missing)
    print(text)
    if options.write:
        report.write_section(TITLE, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
