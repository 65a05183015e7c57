"""Time and memory of Grad-CAM at the last layer: plain onnxruntime, pycam, pytorch-grad-cam, torchcam and captum.

    python -m bench.latency [--models …] [--threads 1 2] [--batches 1 16] [--rounds 30] [--no-peers] [--write]

Everything that is compared runs in one process, in turn: A B A B. Times are medians; a ratio is the median of the
ratios of neighbours, so that a machine that slows down for a while slows both. All contenders end at the same thing,
the upsampled and normalised map, and this is checked before they are timed. The targets of the project, for one thread
and batch 1, are in ``TARGETS``; exit code 1 when one is missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch

from bench import models, peers, report

MODELS = ("resnet50", "vgg16", "googlenet", "densenet121", "mobilenet_v2", "efficientnet_b0")
PAUSE = 0.01
"""Seconds between calls: idle worker threads of one runtime spin for a while, and would take the core from the next
one."""

FEWEST = 5
SAME = 1e-2
"""Largest difference of a heatmap from pytorch-grad-cam's that still is the same picture."""

TARGETS = {"mean": 1.03, "each": 1.06, "classes": 1.10, "overlay": 1.04, "peer": 4.0, "memory": 1.15, "compile": 2.0}
MANY = 10
"""Classes explained at once in the K = 10 measurement."""

OVERLAY = "pycam, overlay"
"""The whole explanation: scores, heatmap, and the heatmap over the photo."""

Call = Callable[[], Any]


@dataclass(frozen=True)
class Pair:
    """Two calls timed in turn."""

    model: str
    threads: int
    batch: int
    base: str
    other: str
    base_ms: float
    other_ms: float
    ratio: float
    rounds: int

    def text(self) -> str:
        times = f"{self.base} {self.base_ms:.2f} ms, {self.other} {self.other_ms:.2f} ms, ratio {self.ratio:.3f}"
        return f"{self.model:18} threads {self.threads} batch {self.batch:2}  {times}, {self.rounds} rounds"


def timed(call: Call) -> float:
    time.sleep(PAUSE)
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def alternate(base: Call, other: Call, rounds: int, seconds: float) -> tuple[float, float, float, int]:
    """Medians in ms of both calls, median of the paired ratios other/base, and rounds: `rounds`, or fewer (not under 5)
    to fit into `seconds`."""
    warm = [timed(call) for call in (base, other, base, other)]
    count = min(rounds, max(FEWEST, int(seconds / sum(warm[2:]))))
    times = [(timed(base), timed(other)) for _ in range(count)]
    ratio = statistics.median(b / a for a, b in times)
    return 1e3 * statistics.median(a for a, _ in times), 1e3 * statistics.median(b for _, b in times), ratio, count


def forward(path: Path, x: np.ndarray, threads: int) -> Call:
    """The plain session, as a user would make it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"input": x})


def check_same(calls: Mapping[str, Call]) -> None:
    """All contenders draw the picture that pytorch-grad-cam draws; raise otherwise."""
    heatmaps = {name: np.asarray(call()) for name, call in calls.items()}
    reference = heatmaps["pytorch-grad-cam"]
    for name, heatmap in heatmaps.items():
        difference = np.abs(heatmap - reference).max()
        if not difference <= SAME:
            raise ValueError(f"{name} differs from pytorch-grad-cam by {difference:.1e}: nothing to time")


def make_pycam(path: Path, layer: str, x: np.ndarray, targets: np.ndarray, threads: int) -> Call:
    """A call that returns pycam's heatmaps: (N,H,W) for one class per image, else (N,K,H,W)."""
    import pycam

    explainer = pycam.Explainer(path, method="gradcam", layer=layer, threads=threads)

    def call() -> np.ndarray:
        heatmaps: np.ndarray = explainer(x, targets=targets).heatmaps
        return heatmaps[:, 0] if targets.shape[1] == 1 else heatmaps

    return call


def make_overlay(path: Path, layer: str, x: np.ndarray, targets: np.ndarray, threads: int) -> Call:
    """A call that returns pycam's overlays, (N,K,H,W,3)."""
    import pycam

    explainer = pycam.Explainer(path, method="gradcam", layer=layer, threads=threads)
    photos = np.random.default_rng(0).integers(0, 256, (len(x), *x.shape[2:], 3), np.uint8)
    return lambda: explainer(x, targets=targets).overlay(photos)


def measure(
    name: str, exporter: str, threads: int, batch: int, rounds: int, seconds: float, with_peers: bool, with_pycam: bool
) -> list[Pair]:
    """All pairs of one model at one thread count and batch size."""
    torch.set_num_threads(threads)
    layer, path = models.MODELS[name].last, models.export(name, exporter)
    images = models.images(name, batch)
    x = images.numpy()
    plain = forward(path, x, threads)
    classes = np.argsort(-plain()[0], axis=1)[:, :MANY].astype(np.int64)
    pairs = []

    def compare(base: str, base_call: Call, other: str, call: Call, limit: float) -> None:
        pairs.append(Pair(name, threads, batch, base, other, *alternate(base_call, call, rounds, limit)))
        print(pairs[-1].text(), flush=True)

    ours: dict[str, Call] = {}
    if with_pycam:  # before the peers are made: no service that runs a plain session has them in its memory
        ours["pycam"] = make_pycam(path, layer, x, classes[:, :1], threads)
        if batch == 1:
            ours[f"pycam, {MANY} classes"] = make_pycam(path, layer, x, classes, threads)
            ours[OVERLAY] = make_overlay(path, layer, x, classes[:, :1], threads)
    for other, call in ours.items():
        compare("forward", plain, other, call, seconds)
    if with_peers:
        model = models.build(name)
        theirs = {peer: make(model, layer, images, classes[:, 0]) for peer, make in peers.PEERS.items()}
        check_same(theirs | {k: call for k, call in ours.items() if k == "pycam"})
        base, base_call = ("pycam", ours["pycam"]) if with_pycam else ("forward", plain)
        for other, call in theirs.items():
            compare(base, base_call, other, call, seconds / 2)
    return pairs


def in_fresh_process(name: str, threads: int, batch: int, argv: Sequence[str]) -> list[Pair]:
    """`measure` in a process of its own: what other models and peers leave in memory slows the next call down."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pairs.json"
        case = ["--models", name, "--threads", str(threads), "--batches", str(batch), "--pairs", str(file)]
        subprocess.run([sys.executable, "-m", "bench.latency", *argv, *case], check=True)  # the later option counts
        return [Pair(**pair) for pair in json.loads(file.read_text())]


# Fresh processes: peak memory and compile time. Each snippet prints one JSON object; peak() is the largest resident
# size so far, in MB.
_PEAK = """
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
"""
_SNIPPETS = {
    "plain": """
import json, numpy as np, onnxruntime as ort
options = ort.SessionOptions(); options.intra_op_num_threads = 1
session = ort.InferenceSession(PATH, options, providers=["CPUExecutionProvider"])
session.run(None, {"input": np.zeros(SHAPE, np.float32) + 0.5})
print(json.dumps({"peak": peak()}))
""",
    "explainer": """
import json, time, numpy as np, pycam
options = {} if EXPORTED else {"method": "gradcam", "layer": LAYER}
explainer = pycam.Explainer(PATH, threads=1, **options)
explainer(np.zeros(SHAPE, np.float32) + 0.5, targets=0)
print(json.dumps({"peak": peak()}))
""",
    "compile": """
import json, time
if PRELOAD:
    import numpy, onnx, onnx_ir, onnxruntime, pycam
    pycam.export, pycam.Explainer
start = time.perf_counter()
import pycam
pycam.export(PATH, OUT, method="gradcam", layer=LAYER)
print(json.dumps({"seconds": time.perf_counter() - start, "peak": peak()}))
""",
    "open": """
import json, time, numpy, onnxruntime
start = time.perf_counter()
onnxruntime.InferenceSession(PATH, providers=["CPUExecutionProvider"])
plain = time.perf_counter() - start
import pycam, onnx, onnx_ir
pycam.Explainer
start = time.perf_counter()
pycam.Explainer(PATH, method="gradcam", layer=LAYER)
print(json.dumps({"plain": plain, "explainer": time.perf_counter() - start}))
""",
}


def fresh(snippet: str, **values: object) -> dict[str, float]:
    """Run a snippet in a fresh interpreter with `values` as upper-case names; its JSON answer."""
    constants = {key.upper(): str(value) if isinstance(value, Path) else value for key, value in values.items()}
    names = "".join(f"{key} = {value!r}\n" for key, value in constants.items())
    done = subprocess.run(
        [sys.executable, "-c", names + _PEAK + _SNIPPETS[snippet]], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{snippet}: {done.stderr.strip()}")
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def median_of(count: int, key: str, snippet: str, **values: object) -> float:
    return statistics.median(fresh(snippet, **values)[key] for _ in range(count))


def memory(name: str, exporter: str) -> dict[str, float]:
    """Peak resident memory in MB: plain session, pycam with an exported explain graph, pycam compiling in the process.
    Batch 1, one run each."""
    path, layer, size = models.export(name, exporter), models.MODELS[name].last, models.MODELS[name].size
    out, shape = models.cache() / f"{name}.explain.onnx", (1, 3, size, size)
    fresh("compile", path=path, out=out, layer=layer, preload=False)
    figures = {
        "plain": median_of(3, "peak", "plain", path=path, shape=shape),
        "exported": median_of(3, "peak", "explainer", path=out, shape=shape, exported=True),
        "compiling": median_of(3, "peak", "explainer", path=path, shape=shape, exported=False, layer=layer),
    }
    for leftover in out.parent.glob(out.name + "*"):
        leftover.unlink()
    print(f"{name:18} peak MB {figures}", flush=True)
    return figures


def compile_times(name: str, exporter: str) -> dict[str, float]:
    """Seconds in fresh processes, medians of five: export with and without imports; opening a plain session and an
    Explainer."""
    path, layer, out = models.export(name, exporter), models.MODELS[name].last, models.cache() / f"{name}.explain.onnx"
    figures = {
        "export, imports included": median_of(5, "seconds", "compile", path=path, out=out, layer=layer, preload=False),
        "export, imports excluded": median_of(5, "seconds", "compile", path=path, out=out, layer=layer, preload=True),
        "plain InferenceSession(path)": median_of(5, "plain", "open", path=path, layer=layer),
        "Explainer(path), imports excluded": median_of(5, "explainer", "open", path=path, layer=layer),
    }
    for leftover in out.parent.glob(out.name + "*"):
        leftover.unlink()
    print(f"{name:18} seconds {figures}", flush=True)
    return figures


def latency_tables(pairs: Sequence[Pair]) -> str:
    """One table per thread count and batch size, with the geometric mean of every ratio below."""
    parts = []
    for threads, batch in sorted({(pair.threads, pair.batch) for pair in pairs}):
        group = [pair for pair in pairs if (pair.threads, pair.batch) == (threads, batch)]
        others = list(dict.fromkeys((pair.base, pair.other) for pair in group))
        rows = []
        for name in dict.fromkeys(pair.model for pair in group):
            of_model = {(pair.base, pair.other): pair for pair in group if pair.model == name}
            first = next(iter(of_model.values()))
            cells = [f"{p.ratio:.3f} ({p.other_ms:.1f} ms)" if (p := of_model.get(key)) else "–" for key in others]
            rows.append([name, f"{first.base_ms:.2f}", *cells, min(p.rounds for p in of_model.values())])
        means = [f"{report.geometric_mean(p.ratio for p in group if (p.base, p.other) == key):.3f}" for key in others]
        rows.append(["**geometric mean**", "", *(f"**{mean}**" for mean in means), ""])
        header = ["model", f"{group[0].base}, ms", *(f"{other} ÷ {base}" for base, other in others), "fewest rounds"]
        parts.append(f"**{threads} thread{'s' * (threads > 1)}, batch {batch}**\n\n{report.table(header, rows)}")
    return "\n\n".join(parts)


def verdicts(
    pairs: Sequence[Pair], peaks: Mapping[str, Mapping[str, float]], compiled: Mapping[str, float]
) -> list[tuple[str, bool]]:
    """The project's targets, as far as they were measured, and whether they are met."""
    single = [pair for pair in pairs if (pair.threads, pair.batch) == (1, 1)]
    own = [pair.ratio for pair in single if pair.other == "pycam" and pair.model in MODELS]
    many = [pair.ratio for pair in single if pair.other == f"pycam, {MANY} classes"]
    drawn = [pair.ratio for pair in single if pair.other == OVERLAY and pair.model == "mobilenet_v2"]
    peer = [pair.ratio for pair in single if pair.other == "pytorch-grad-cam" and pair.base == "pycam"]
    grown = [figures["exported"] / figures["plain"] for figures in peaks.values()]
    out: list[tuple[str, bool]] = []
    if own:
        mean, worst = report.geometric_mean(own), max(own)
        out.append(
            (f"Grad-CAM / forward, geometric mean {mean:.3f} (target ≤ {TARGETS['mean']})", mean <= TARGETS["mean"])
        )
        out.append((f"Grad-CAM / forward, worst {worst:.3f} (target ≤ {TARGETS['each']})", worst <= TARGETS["each"]))
    if many:
        out.append(
            (
                f"{MANY} classes / forward, worst {max(many):.3f} (target ≤ {TARGETS['classes']})",
                max(many) <= TARGETS["classes"],
            )
        )
    if drawn:
        out.append(
            (
                f"MobileNetV2 with its overlay / forward, {drawn[0]:.3f} (target ≤ {TARGETS['overlay']})",
                drawn[0] <= TARGETS["overlay"],
            )
        )
    if peer:
        out.append(
            (
                f"pytorch-grad-cam / pycam, least {min(peer):.1f} (target ≥ {TARGETS['peer']:g})",
                min(peer) >= TARGETS["peer"],
            )
        )
    if grown:
        out.append(
            (
                f"peak memory / plain session, worst {max(grown):.2f} (target ≤ {TARGETS['memory']})",
                max(grown) <= TARGETS["memory"],
            )
        )
    if compiled:
        seconds = compiled["export, imports included"]
        out.append(
            (
                f"compiling ResNet-50, imports included: {seconds:.2f} s (target ≤ {TARGETS['compile']:g} s)",
                seconds <= TARGETS["compile"],
            )
        )
    return out


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.latency", description="Time and memory of Grad-CAM at the last layer."
    )
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(models.MODELS), metavar="MODEL")
    parser.add_argument("--exporter", default="legacy", choices=models.EXPORTERS)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument(
        "--seconds",
        type=float,
        default=20,
        help="time for one pair; slow ones get fewer rounds, at least five; peers get half",
    )
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--no-pycam", action="store_true", help="the peers against the plain forward")
    parser.add_argument("--no-memory", action="store_true", help="skip peak memory and compile time")
    parser.add_argument(
        "--pairs", metavar="FILE", help="measure here, write the pairs to FILE as JSON, and nothing else"
    )
    parser.add_argument("--write", action="store_true", help="write the tables to bench/RESULTS.md")
    options = parser.parse_args(argv)

    cases = [(name, t, b) for name in options.models for t in options.threads for b in options.batches]
    settings = (options.rounds, options.seconds, not options.no_peers, not options.no_pycam)
    if options.pairs:
        pairs = [pair for name, t, b in cases for pair in measure(name, options.exporter, t, b, *settings)]
        Path(options.pairs).write_text(json.dumps([asdict(pair) for pair in pairs]))
        return 0
    pairs = [pair for case in cases for pair in in_fresh_process(*case, sys.argv[1:] if argv is None else argv)]
    peaks: dict[str, dict[str, float]] = {}
    compiled: dict[str, float] = {}
    if not (options.no_memory or options.no_pycam):
        peaks = {name: memory(name, options.exporter) for name in options.models}
        compiled = compile_times("resnet50", options.exporter)
    (models.cache() / "latency.json").write_text(
        json.dumps({"pairs": [asdict(pair) for pair in pairs], "peak_mb": peaks, "compile_s": compiled}, indent=1)
    )
    parts = [latency_tables(pairs)]
    if peaks:
        header = ["model", "plain session, MB", "pycam, exported graph ÷ plain", "pycam, compiling in process ÷ plain"]
        rows = [
            [n, f"{p['plain']:.0f}", f"{p['exported'] / p['plain']:.2f}", f"{p['compiling'] / p['plain']:.2f}"]
            for n, p in peaks.items()
        ]
        parts.append(
            "**Peak memory** (VmHWM of a fresh process, one thread, batch 1, one run)\n\n" + report.table(header, rows)
        )
        rows = [[what, f"{seconds:.2f}"] for what, seconds in compiled.items()]
        parts.append(
            "**Compiling ResNet-50** (fresh process, median of five)\n\n" + report.table(["", "seconds"], rows)
        )
    checks = verdicts(pairs, peaks, compiled)
    parts.append("\n".join(f"- {'met' if met else '**missed**'}: {text}" for text, met in checks))
    text = "\n\n".join(parts)
    print(f"\n{text}")
    if options.write:
        intro = (
            f"`python -m bench.latency`, {options.exporter} exports, layer `last` of `bench/models.py`. "
            "A ratio is the median over alternating pairs; beside it the median time of what stands left of the ÷."
        )
        report.write_section("Latency and memory", f"{report.circumstances(peers.PACKAGES)}\n\n{intro}\n\n{text}")
    return 0 if all(met for _, met in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
