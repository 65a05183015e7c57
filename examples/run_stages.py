"""Run an explain graph that was exported to a folder, with onnxruntime and numpy alone (docs/stages.md).

python examples/run_stages.py FOLDER IMAGES.npy [-o heatmaps.npy] [--batch 16]

IMAGES.npy: float32 (N, …), as the model takes them.  Explains the top class of each.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort


def load(folder: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sessions of the stages by name, and what the export says about itself."""
    manifest = json.loads((Path(folder) / "manifest.json").read_text(encoding="utf-8"))
    sessions = {name: ort.InferenceSession(str(Path(folder) / file)) for name, file in manifest["stages"].items()}
    return sessions, manifest["metadata"]["pycam.spec"]


def draw(kind: str, shape: tuple[int, ...], seed: int, variants: Any, stream: int = 0) -> Any:
    """One sample per variant, float32 (len(variants), *shape)."""
    keys = [[seed, int(i) + 2**32 * stream] for i in variants]
    streams = [np.random.Generator(np.random.Philox(key=key)) for key in keys]
    return np.stack([(r.standard_normal if kind == "normal" else r.random)(shape, dtype=np.float32) for r in streams])


def noise_maps(image: Any, samples: int, seed: int, channels_last: bool) -> tuple[Any, ...]:
    return (draw("normal", image.shape[1:3] if channels_last else image.shape[2:], seed, range(samples)),)


# svd, kernel_pca (numpy) and nmf (scikit-learn) are in pycam/runtime/algebra.py.
HOST: dict[str, Callable[..., tuple[Any, ...]]] = {"noise_maps": noise_maps}


def explain(sessions: dict[str, Any], spec: dict[str, Any], given: dict[str, Any], batch: int = 16) -> dict[str, Any]:
    """All outputs by name, for the model's inputs and `targets`; one image if the recipe has variants."""
    made, recipe = dict(given), spec["recipe"]

    def run(stage: str) -> dict[str, Any]:
        if stage not in sessions:
            return {}
        names = [output.name for output in sessions[stage].get_outputs()]
        values = {i.name: made[i.name] for i in sessions[stage].get_inputs()}
        return dict(zip(names, sessions[stage].run(names, values), strict=True))

    def call(late: bool) -> None:
        for host in (host for host in recipe["host"] if host["late"] is late):
            results = HOST[host["function"]](*(made[name] for name in host["sources"]), **host["options"])
            made.update(zip(host["results"], results, strict=True))

    if recipe is None:
        return run("explain")
    made |= run("prepare")
    call(late=False)
    if recipe["variant"] is not None:
        ids, parts = made[recipe["ids"]], []
        rows = max(1, batch // given[spec["targets"]].shape[1]) if recipe["gradients"] else batch
        rows = 1 if recipe["single"] else rows
        for variants in (ids[i : i + rows] for i in range(0, len(ids), rows)):
            made[recipe["variant"]] = variants
            for n in recipe["noise"]:
                shape = made[n["like"]].shape[1:] if n["like"] is not None else tuple(n["shape"])
                made[n["name"]] = draw(n["kind"], shape, n["seed"], variants, n["stream"])
            parts.append(run("step"))
        for c in recipe["collected"]:
            arrays = [part[c["output"]] for part in parts]
            whole = np.concatenate(arrays) if c["fold"] == "stack" else sum(a.astype(np.float64) for a in arrays)
            made[c["input"]] = whole.astype(arrays[0].dtype)
    made |= run("finish")
    call(late=True)
    return made | run("head")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("images", help=".npy, float32 (N, …)")
    parser.add_argument("-o", "--out", default="heatmaps.npy")
    parser.add_argument("--batch", type=int, default=16, help="variants that go through the model at once")
    options = parser.parse_args()
    sessions, spec = load(options.folder)
    if spec["heatmaps"] is None:
        raise SystemExit(f"{options.folder} was exported without heatmaps")
    x = np.load(options.images)
    alone = spec["recipe"] is not None and spec["recipe"]["variant"] is not None
    found = []
    for images in np.split(x, len(x)) if alone else [x]:
        given = {spec["image"]: images, spec["targets"]: np.full((len(images), 1), -1)}  # −1: the top class
        if spec["against"] is not None:
            given[spec["against"]] = np.full((len(images), 1), -1)  # −1: the best class beside it
        found.append(explain(sessions, spec, given, options.batch))
    explained, heatmaps = (np.concatenate([f[spec[name]] for f in found]) for name in ("explained", "heatmaps"))
    np.save(options.out, heatmaps)
    print(f"classes {explained.ravel().tolist()}; wrote {options.out}, {heatmaps.dtype} {heatmaps.shape}")


if __name__ == "__main__":
    main()
