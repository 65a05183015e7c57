"""Where explanations of every kind of target look: in the right region, or not?

For each case of `bench/target_cases.py`: the share of pictures whose maximum lies in the right region (pointing), and
the mean share of the heatmap's energy in it, beside the region's share of the picture and the same of maps with random
weights (`method="random"` at the same layer).  A flat map is a miss.

    python -m bench.targets              # print the table; --write puts it into RESULTS.md
    python -m bench.targets --gallery docs/targets.jpg   # one example of each case, methods beside each other
    python -m bench.targets --only YOLO  # cases whose name holds this
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import pycam
from bench import report
from bench.target_cases import CASES, Case, Sample
from pycam.image import write
from pycam.pictures import Contours, draw, grid

METHODS = ("gradcam", "layercam", "hirescam", "random")
WIDTH = 1200
"""Of the gallery, in pixels."""
TITLE = "Targets: the right region"


class Found(NamedTuple):
    """Of one case and method."""

    pointing: float
    energy: float
    area: float
    count: int


def explainers(case: Case) -> dict[str, pycam.Explainer]:
    """One for each method."""
    return {
        method: pycam.Explainer(case.model, method, case.layer, target=case.target, threads=2) for method in METHODS
    }


def explain(explainer: pycam.Explainer, sample: Sample) -> pycam.Explanation:
    """What the sample asks."""
    given: dict[str, Any] = dict(sample.given)
    other = given.pop("other", None)
    if other is not None and explainer.spec.target == "similarity":
        given["reference"] = explainer.embed(other)
    return explainer(sample.x, sample.targets, **given)


def measure(case: Case) -> tuple[dict[str, Found], str]:
    """Method → what was found, and the layer that was looked at."""
    made = explainers(case)
    rows: dict[str, list[tuple[bool, float, float]]] = {method: [] for method in made}
    for sample in case.draw(case.samples):
        for method, explainer in made.items():
            result = explain(explainer, sample)
            heatmap = result.heatmaps[0, 0]
            if result.flat[0, 0]:
                rows[method].append((False, 0.0, float(sample.region.mean())))
                continue
            share = float(heatmap[sample.region].sum() / heatmap.sum())
            rows[method].append((bool(sample.region.flat[heatmap.argmax()]), share, float(sample.region.mean())))
    layer = next(iter(made.values())).spec.layer
    return {method: Found(*np.mean(found, axis=0).tolist(), len(found)) for method, found in rows.items()}, layer


def here(only: str) -> Iterator[Case]:
    """The cases that are asked for and whose model is there; others are named."""
    for case in CASES:
        if only.lower() not in case.name.lower():
            continue
        if case.model.exists():
            yield case
        else:
            print(f"left out: {case.name}: {case.model.name} is not here")


def text(results: Mapping[str, tuple[dict[str, Found], str]]) -> str:
    """The section."""
    header = ["target: case", "layer", "pictures", "area", *METHODS]
    rows = [
        [
            name,
            f"`{layer}`",
            found[METHODS[0]].count,
            f"{found[METHODS[0]].area:.0%}",
            *(f"{found[m].pointing:.0%} / {found[m].energy:.0%}" for m in METHODS),
        ]
        for name, (found, layer) in results.items()
    ]
    about = (
        "Per method: pictures whose maximum lies in the right region / mean share of the heatmap's energy in it "
        "(`bench/targets.py`). `area` is the region's share of the picture, `random` weighs the same layer's channels "
        "at random."
    )
    return (
        f"{report.circumstances(['pycam-onnx', 'onnxruntime', 'numpy'])}\n\n{about}\n\n{report.table(header, rows)}\n"
    )


def gallery(cases: list[Case], path: Path, side: int = 160) -> None:
    """One example of each case that draws other pictures: the photo with the right region outlined, and the maps."""
    from PIL import Image

    def small(picture: Any) -> Any:
        height, width = picture.shape[:2]
        scale = side / max(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))

    titles, cells = [], []
    for case in {case.draw: case for case in reversed(cases)}.values():
        sample = next(iter(case.draw(case.samples)))
        shown = [draw(sample.photo, [Contours(sample.region.astype(np.float32), (0.5,))])]
        shown += [explain(one, sample).overlay(sample.photo[None])[0, 0] for one in explainers(case).values()]
        cells.append([small(picture) for picture in shown])
        titles.append((case.name, sample.said))
    titles, cells = titles[::-1], cells[::-1]
    columns = ["right region", *METHODS]
    drawn = Image.fromarray(
        grid(cells, [name for name, _ in titles], columns, row_subtitles=[said for _, said in titles])
    )
    write(path, np.asarray(drawn.resize((WIDTH, round(drawn.height * WIDTH / drawn.width)), Image.Resampling.LANCZOS)))


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--write", action="store_true", help=f"put the table into {report.RESULTS.name}")
    parser.add_argument("--gallery", type=Path, help="write a picture with one example of each case, and nothing else")
    arguments = parser.parse_args()
    cases = list(here(arguments.only))
    if arguments.gallery is not None:
        gallery(cases, arguments.gallery)
        return
    results = {}
    for case in cases:
        results[case.name] = measure(case)
        found, layer = results[case.name]
        shown = ", ".join(f"{m} {one.pointing:.0%}/{one.energy:.0%}" for m, one in found.items())
        print(f"{case.name} at {layer}: area {found[METHODS[0]].area:.1%}, {shown}", flush=True)
    section = text(results)
    if arguments.write:
        report.write_section(TITLE, section)
    else:
        print(section)


if __name__ == "__main__":
    main()
