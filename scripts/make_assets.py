"""Make the files under `pycam/assets` from their sources.

    pip download --no-deps torchvision matplotlib        # the labels and the colour maps are read out of the wheels
    PYTHONPATH=. python scripts/make_assets.py SOURCES --torchvision torchvision-*.whl --matplotlib matplotlib-*.whl

SOURCES is a folder with `models/lite0_w8.onnx`, `images/coffee.png` and `images/camera.png`.  A wheel that is not given
leaves its asset as it is.  The same sources give the same bytes, but for the JPEGs under another Pillow.  NOTICE at the
root says whose work each file is.
"""

from __future__ import annotations

import argparse
import ast
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from pycam import image
from pycam.preprocess import Preprocess
from pycam.runtime.metadata import LABELS, PREPROCESS

ASSETS = Path(__file__).resolve().parent.parent / "pycam" / "assets"

# As EfficientNet-Lite was evaluated: a centre crop of 224/256, bicubic, (x − 127) / 128.
LITE0 = Preprocess(size=(224, 224), mean=(127.0,) * 3, std=(128.0,) * 3, channels="RGB", crop=0.875, resample="bicubic")

PHOTOS = ("coffee", "camera")
LONGEST = 640
QUALITY = 88

MAPS = ("turbo", "viridis", "inferno", "magma")


def labels(torchvision: Path, out: Path) -> None:
    """One label a line, in the order of the classes."""
    names = literals(torchvision, "torchvision/models/_meta.py")["_IMAGENET_CATEGORIES"]
    if len(names) != 1000 or any("\n" in name for name in names):
        raise SystemExit(f"expected 1000 one-line labels in {torchvision}, got {len(names)}")
    (out / "imagenet_labels.txt").write_text("\n".join(names) + "\n", encoding="utf-8")


def colormaps(matplotlib: Path, out: Path) -> None:
    """uint8 (256,3) tables, rounded as matplotlib's own `bytes=True` and OpenCV do."""
    tables = literals(matplotlib, "matplotlib/_cm_listed.py")
    rounded = {name: np.round(np.array(tables[f"_{name}_data"]) * 255).astype(np.uint8) for name in MAPS}
    np.savez_compressed(out / "colormaps.npz", **rounded)  # type: ignore[arg-type]  # numpy's stub: any keyword is bool


def literals(wheel: Path, member: str) -> dict[str, Any]:
    """The literal assignments of a Python file inside a wheel: read, not run."""
    with zipfile.ZipFile(wheel) as archive:
        tree = ast.parse(archive.read(member))
    found: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                found[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                continue  # an expression
    return found


def photos(images: Path, out: Path) -> None:
    """Modest JPEGs; a grey picture stays grey."""
    from PIL import Image

    for name in PHOTOS:
        photo = Image.open(images / f"{name}.png")
        photo.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
        photo.save(out / f"{name}.jpg", quality=QUALITY, optimize=True)


def model(models: Path, out: Path) -> None:
    """The model with its preprocessing and its labels inside."""
    proto = onnx.load(models / "lite0_w8.onnx")
    names = (out / "imagenet_labels.txt").read_text(encoding="utf-8").splitlines()
    onnx.helper.set_model_props(proto, {PREPROCESS: LITE0.to_json(), LABELS: "\n".join(names)})
    with image.replacing(out / "lite0_w8.onnx") as file:
        file.write(proto.SerializeToString(deterministic=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", type=Path, help="folder with models/ and images/")
    parser.add_argument("--torchvision", type=Path, metavar="WHEEL", help="source of the labels")
    parser.add_argument("--matplotlib", type=Path, metavar="WHEEL", help="source of the colour maps")
    parser.add_argument("--out", type=Path, default=ASSETS, help="where to (default: pycam/assets)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.torchvision:
        labels(options.torchvision, options.out)
    if options.matplotlib:
        colormaps(options.matplotlib, options.out)
    photos(options.sources / "images", options.out)
    model(options.sources / "models", options.out)
    for path in sorted(options.out.iterdir()):
        print(f"{path.stat().st_size:>10,} {path.name}")


if __name__ == "__main__":
    main()
