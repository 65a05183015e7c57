"""Methods side by side: one row per method, one column per photo.

python examples/compare_methods.py PHOTO [PHOTO …] -o methods.png [--model m.onnx] [--methods cam gradcam … | all]

"all" takes every method that runs the model once; what the model cannot serve is named and left out.
"""

from __future__ import annotations

import argparse

import numpy as np

import pycam
from pycam import image
from pycam.api import DEFAULT_MODEL, feed, preprocess_of
from pycam.errors import MethodError
from pycam.pictures import grid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+")
    parser.add_argument("-o", "--out", default="methods.png")
    parser.add_argument("--model", default=str(DEFAULT_MODEL))
    parser.add_argument("--layer", default="auto")
    parser.add_argument("--methods", nargs="+", default=["cam", "gradcam", "gradcam++", "layercam"])
    options = parser.parse_args()
    image.check_writable(options.out)

    known = {method.name: method for method in pycam.methods()}
    wanted = options.methods
    if wanted == ["all"]:
        wanted = [name for name, method in known.items() if method.plan != "perturb"]
    explainers: list[pycam.Explainer] = []
    for name in wanted:
        layer = "auto" if name in known and known[name].layers == "none" else options.layer
        try:
            explainers.append(pycam.Explainer(options.model, method=name, layer=layer))
        except MethodError as error:
            if options.methods != ["all"]:
                raise
            print(f"left out: {known[name].title}: {error}")

    pre = preprocess_of(explainers[0])
    crops = np.stack([image.crop(image.read(path), pre) for path in options.photos])
    results = [explainer(feed(explainer, crops, pre)) for explainer in explainers]
    rows = [list(crops), *(list(result.overlay(crops)[:, 0]) for result in results)]
    titles = ["photo", *(known[result.method].title for result in results)]
    columns = [results[0].label(n) for n in range(len(crops))]
    footer = f"{results[0].layer} · the top class of each photo"
    image.write(options.out, grid(rows, titles, columns, colormap="jet", footer=footer))
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
