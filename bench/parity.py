"""Raw maps and heatmaps of pycam against pytorch-grad-cam: twelve torchvision models, both torch exporters.

    python -m bench.parity [--models resnet50 …] [--methods gradcam …] [--exporters legacy] [--layers last] [--write]

    python -m bench.parity --every-method [what bench.parity_methods takes]   # all methods of all peers, six networks

Two images (steady ones, see ``bench/steady.py``), two classes each. A row is ``ok`` when the raw map is within 1e-4
(relative, 2-norm) and the heatmap within 1e-3 (absolute). Two kinds of rows that float32 cannot settle are told apart,
never hidden:

- ``ill``: the column *ref noise*, the distance of the reference's own raw map from the one made in float64, exceeds
  2e-5, because the formula divides by a sum that comes near zero (Grad-CAM++ and XGrad-CAM on signed activations). The
  row may err by ten times the reference's own error.
- ``kink``: a ReLU flipped between torch and onnxruntime. The row passes the same tolerances once the images are moved
  by about a rounding error; a wrong formula would not.

Exit code 1 when any row fails.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from bench import models, peers, report, steady

METHODS = ("cam", *peers.GRADCAM_CLASSES)
LAYERS = ("last", "middle")
RAW_TOLERANCE, FINAL_TOLERANCE = 1e-4, 1e-3
WELL_CONDITIONED, NOISE_FACTOR = 2e-5, 10.0
KINK_DRAWS = 3
RANKS = (0, 9)
"""The classes that are explained, by rank of their score."""


@dataclass(frozen=True)
class Reference:
    """pytorch-grad-cam's maps, (N,K,h,w) and (N,K,H,W), and how far float32 alone moves them."""

    raw: np.ndarray
    final: np.ndarray
    raw_noise: float
    final_noise: float


@dataclass(frozen=True)
class Row:
    model: str
    exporter: str
    layer: str
    method: str
    status: str  # ok, ill, kink, FAIL or ERROR
    raw_error: float | None = None
    heatmap_error: float | None = None
    ref_noise: float | None = None
    seconds: float | None = None
    note: str | None = None

    def text(self) -> str:
        figures = " ".join(
            f"{x:9.1e}" if x is not None else " " * 9 for x in (self.raw_error, self.heatmap_error, self.ref_noise)
        )
        case = f"{self.model:19} {self.exporter:7} {self.layer:7} {self.method:20}"
        return f"{case} {figures}  {self.status:5} {self.note or ''}".rstrip()


def relative(actual: np.ndarray, expected: np.ndarray) -> float:
    """‖actual − expected‖ / ‖expected‖; infinite when shapes differ or the reference is zero and we are not."""
    if actual.shape != expected.shape:
        return float("inf")
    error, size = np.linalg.norm(actual.astype(np.float64) - expected), np.linalg.norm(expected)
    return float(error / size) if size else float(np.where(error, np.inf, 0.0))


def absolute(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(actual - expected).max()) if actual.shape == expected.shape else float("inf")


def wanted(name: str, layers: Sequence[str], methods: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Pairs of layer and method; CAM only at the last layer of models whose tail is global average pooling and one
    linear layer."""
    for layer in layers:
        for method in methods:
            if method != "cam" or (layer == "last" and models.MODELS[name].linear_tail):
                yield layer, method


def make_maps(
    name: str, model: torch.nn.Module, x: torch.Tensor, classes: torch.Tensor, pairs: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
    """Raw and final reference maps for each pair of layer and method, in the precision of `model` and `x`; classes is
    (N,K)."""
    spec = models.MODELS[name]
    order = ("middle", "last")  # as the forward meets them
    out: dict[tuple[str, str], list[tuple[np.ndarray, np.ndarray]]] = {pair: [] for pair in pairs}
    for column in classes.T:
        captured = dict(
            zip(order, models.gradients(model, x, column, [spec.layer(which) for which in order]), strict=True)
        )
        for (layer, method), maps in out.items():
            activations, gradients = (tensor.numpy() for tensor in captured[layer])
            if method == "cam":
                weight = model.get_submodule(spec.linear_tail).weight.detach()[column].numpy()
                maps.append(peers.cam_from(activations, weight, (x.shape[2], x.shape[3])))
            else:
                maps.append(peers.gradcam_from(method, model, activations, gradients, x))
    return {
        pair: (np.stack([raw for raw, _ in maps], 1), np.stack([final for _, final in maps], 1))
        for pair, maps in out.items()
    }


def make_references(
    name: str, model: torch.nn.Module, x: torch.Tensor, pairs: Sequence[tuple[str, str]]
) -> tuple[np.ndarray, dict[tuple[str, str], Reference]]:
    """The classes (N,K) that are explained and the reference of each pair. Leaves `model` in float64."""
    with torch.no_grad():
        classes = model(x).argsort(1, descending=True)[:, list(RANKS)]
    single = make_maps(name, model, x, classes, pairs)
    double = make_maps(name, model.double(), x.double(), classes, pairs)
    references = {
        pair: Reference(raw, final, relative(raw, double[pair][0]), absolute(final, double[pair][1]))
        for pair, (raw, final) in single.items()
    }
    return classes.numpy(), references


def compare(
    name: str, exporter: str, layer: str, method: str, x: np.ndarray, classes: np.ndarray, reference: Reference
) -> Row:
    """One row: pycam through its public API. Whatever it raises becomes the row's error."""
    start = time.perf_counter()
    ill = reference.raw_noise > WELL_CONDITIONED
    raw_limit = max(RAW_TOLERANCE, NOISE_FACTOR * reference.raw_noise) if ill else RAW_TOLERANCE
    final_limit = max(FINAL_TOLERANCE, NOISE_FACTOR * reference.final_noise) if ill else FINAL_TOLERANCE
    errors: list[tuple[float, float]] = []
    try:
        import pycam

        explainer = pycam.Explainer(
            models.export(name, exporter), method=method, layer=models.MODELS[name].layer(layer)
        )
        for draw in range(1 + KINK_DRAWS):
            result = explainer((steady.nudge(x, draw) if draw else x).numpy(), targets=classes)
            errors.append((relative(result.raw, reference.raw), absolute(result.heatmaps, reference.final)))
            if errors[-1][0] <= raw_limit and errors[-1][1] <= final_limit:  # False for NaN
                break
    except Exception as error:  # a benchmark goes on with the next row, and counts this one
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return Row(name, exporter, layer, method, "ERROR", ref_noise=reference.raw_noise, note=text[:300])
    passed = errors[-1][0] <= raw_limit and errors[-1][1] <= final_limit
    status = "FAIL" if not passed else "kink" if len(errors) > 1 else "ill" if ill else "ok"
    note = f"first {errors[0][0]:.1e}, nudged {len(errors) - 1} times" if status == "kink" else None
    return Row(
        name, exporter, layer, method, status, *errors[-1], reference.raw_noise, time.perf_counter() - start, note
    )


def summary(rows: Sequence[Row]) -> str:
    """Markdown: the worst errors per model and exporter over layers and methods, and every row that is not ``ok``."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.model, row.exporter), []).append(row)
    lines = []
    for (name, exporter), group in groups.items():
        fine = [row for row in group if row.status == "ok"]
        worst = [
            f"{max(values):.1e}" if (values := [getattr(row, key) for row in fine]) else "–"
            for key in ("raw_error", "heatmap_error")
        ]
        count = Counter(row.status for row in group)
        lines.append([name, exporter, *worst, count["ok"], count["ill"], count["kink"], count["FAIL"] + count["ERROR"]])
    text = report.table(
        ["model", "exporter", "worst raw, relative", "worst heatmap, absolute", "ok", "ill", "kink", "failed"],
        lines,
    )
    others = [row for row in rows if row.status != "ok"]
    if others:
        cells = [
            [row.model, row.exporter, row.layer, row.method, row.status]
            + [f"{x:.1e}" if x is not None else "–" for x in (row.raw_error, row.heatmap_error, row.ref_noise)]
            + [row.note or ""]
            for row in others
        ]
        header = ["model", "exporter", "layer", "method", "status", "raw", "heatmap", "reference's own noise", "note"]
        text += "\n\nRows that are not plainly `ok`:\n\n" + report.table(header, cells)
    return text


def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    if "--every-method" in given:
        from bench import parity_methods  # which builds on this module

        given.remove("--every-method")
        return parity_methods.main(given)
    parser = argparse.ArgumentParser(
        prog="python -m bench.parity", description="pycam against pytorch-grad-cam, map by map."
    )
    parser.add_argument(
        "--models", nargs="+", default=list(models.MODELS), choices=list(models.MODELS), metavar="MODEL"
    )
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, metavar="METHOD")
    parser.add_argument("--exporters", nargs="+", default=list(models.EXPORTERS), choices=models.EXPORTERS)
    parser.add_argument("--layers", nargs="+", default=list(LAYERS), choices=LAYERS)
    parser.add_argument(
        "--output", type=Path, help="JSON lines, one per row (default: parity.jsonl in the cache folder)"
    )
    parser.add_argument("--write", action="store_true", help="write the summary to bench/RESULTS.md")
    options = parser.parse_args(given)

    rows: list[Row] = []
    with open(options.output or models.cache() / "parity.jsonl", "w") as lines:
        for name in options.models:
            pairs = list(wanted(name, options.layers, options.methods))
            model = models.build(name)
            x = steady.images(name, model)
            classes, references = make_references(name, model, x, pairs)
            for exporter in options.exporters:
                for (layer, method), reference in references.items():
                    rows.append(compare(name, exporter, layer, method, x, classes, reference))
                    lines.write(json.dumps(asdict(rows[-1])) + "\n")
                    lines.flush()
                    print(rows[-1].text(), flush=True)
    text = summary(rows)
    count = Counter(row.status for row in rows)
    failed = count["FAIL"] + count["ERROR"]
    verdict = (
        f"{len(rows)} rows: {count['ok']} ok; {count['ill']} ill-conditioned, "
        f"within {NOISE_FACTOR:g} × the reference's own float32 error; "
        f"{count['kink']} ok but for a flipped ReLU; {failed} failed."
    )
    print(f"\n{text}\n\n{verdict}")
    if options.write:
        limits = f"raw maps within {RAW_TOLERANCE:g} relative and heatmaps within {FINAL_TOLERANCE:g} absolute"
        explained = f"`python -m bench.parity`: {limits} of pytorch-grad-cam's."
        report.write_section(
            "Parity with pytorch-grad-cam", f"{report.circumstances(peers.PACKAGES)}\n\n{explained} {verdict}\n\n{text}"
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
