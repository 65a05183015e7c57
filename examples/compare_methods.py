"""Methods side by side: one row per method, one column per photo.

python examples/compare_methods.py PHOTO [PHOTO …] -o methods.png [--model m.onnx] [--methods cam gradcam …]
"""

from __future__ import annotations

import argparse

import numpy as np

import pycam
from pycam import image
from pycam.api import DEFAULT_MODEL, feed, preprocess_of
from pycam.picture import grid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+")
    parser.add_argument("-o", "--out", default="methods.png")
    parser.add_argument("--model", default=str(DEFAULT_MODEL))
    parser.add_argument("--layer", default="auto")
    parser.add_argument("--methods", nargs="+", default=["cam", "gradcam", "gradcam++", "layercam"])
    options = parser.parse_args()
    image.check_writable(options.out)

    explainers = [pycam.Explainer(options.model, method=name, layer=options.layer) for name in options.methods]
    pre = preprocess_of(explainers[0])
    crops = np.stack([image.crop(image.read(path), pre) for path in options.photos])
    results = [explainer(feed(explainer, crops, pre)) for explainer in explainers]
    rows = [list(crops), *(list(result.overlay(crops)[:, 0]) for result in results)]
    titles = ["photo", *(method.title for name in options.methods for method in pycam.methods() if method.name == name)]
    columns = [results[0].label(n) for n in range(len(crops))]
    footer = f"{results[0].layer} · the top class of each photo"
    image.write(options.out, grid(rows, titles, columns, colormap="jet", footer=footer))
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
