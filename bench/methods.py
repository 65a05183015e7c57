"""Cost of every method, in forward passes and in milliseconds, beside the peer that has it; the targets of the project.

    python -m bench.methods [--only REGEX] [--again] [--seconds 20] [--table] [--write]

ResNet-50, MobileNetV2 and ViT-B/16 with seeded weights, one image of 224×224, one class, one thread. A method is timed
in turn with the plain forward of the same model in onnxruntime (A B A B; a ratio is the median of the ratios of
neighbours), the peer in turn with torch's forward, and then pycam in turn with the peer. What takes longer than
``ONCE`` seconds is run once, and marked so; nothing is extrapolated. Beside the times stands how far the two results
are apart. `--only` selects rows "model/method" and "target/name".

A row has a process of its own. Rows lie in ``methods.jsonl`` of the cache folder: what is there is not run again.
Exit code 1 when a target is missed or a row failed.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch

import pycam
from bench import models, peers, report
from bench.latency import Call, alternate, forward
from bench.parity_methods import aligned, distances, layers_of, ours
from bench.peer_maps import PEERS, TORCHCAM, Maps, Peer, applies, occlusion, sscam, torchcam_call
from bench.subjects import NETS, Subject, classes_of, subject
from pycam.method import registry

MODELS = ("resnet50", "mobilenet_v2", "vit_b_16")
ROUNDS, ONCE = 15, 30.0
OPTIONS: dict[str, dict[str, Any]] = {
    "integrated_gradients": {"steps": 8},
    "smoothgrad": {"samples": 4, "noise": 0.1},
    "vargrad": {"samples": 4, "noise": 0.1},
    "smoothgradcam++": {"samples": 4, "noise": 0.1},
    "sscam": {"samples": 1, "std": 0.5},
    "iscam": {"samples": 1},
    "rise": {"samples": 32},
    "occlusion": {"window": 32, "stride": 32},
    "sess": {"scales": 2},
}
"""Few variants, so that a peer ends; the cost is proportional to them."""
CALLS: dict[str, Any] = {
    "occlusion": occlusion(32, 32),
    "sscam": functools.partial(sscam, samples=1),
    "iscam": torchcam_call("ISCAM", num_samples=1),  # with one sample its coefficient is right
}
"""Peers with these options, where they are not those of ``bench/peer_maps.py``."""
LAYERS = {"many": "last", "one": "last", "none": "none"}
BATCHES = (4, 16, 64)
MANY = 10


@dataclass(frozen=True)
class Row:
    """One method on one model, or what one target asks for."""

    name: str
    ms: float | None = None
    forwards: float | None = None
    peer: str = ""
    peer_ms: float | None = None
    peer_forwards: float | None = None
    faster: float | None = None
    difference: Mapping[str, float] = field(default_factory=dict)
    once: Sequence[str] = ()
    note: str = ""
    failed: bool = False

    def text(self) -> str:
        return json.dumps({key: value for key, value in asdict(self).items() if value not in (None, "", [], {}, ())})


def timed_pair(base: Call, other: Call, seconds: float) -> tuple[float, float, float, bool]:
    """Milliseconds of both, other ÷ base, and whether one call of `other` was all."""
    start = time.perf_counter()
    other()
    first = time.perf_counter() - start
    if first < ONCE:
        return *alternate(base, other, ROUNDS, seconds)[:3], False
    base()
    start = time.perf_counter()
    base()
    beside = time.perf_counter() - start
    return 1e3 * beside, 1e3 * first, first / beside, True


def torch_forward(s: Subject) -> Call:
    def call() -> Any:
        with torch.no_grad():
            return s.model(s.x)

    return call


def peer_of(method: str, net: str) -> Peer | None:
    """The peer with the options of this bench, if it takes the network."""
    peer = PEERS.get("reciprocam/tokens" if method == "reciprocam" and net.startswith("vit") else method)
    if peer is None or applies(peer, net, NETS[net].relu, NETS[net].reshape is not None):
        return None
    layer = "last" if peer.layer == "mid" else peer.layer
    return replace(
        peer,
        call=CALLS.get(method, peer.call),
        own=None if method == "iscam" else peer.own,
        options={**peer.options, **OPTIONS.get(method, {})},
        layer=layer,
    )


def measure(model: str, method: str, seconds: float, layer: str | None = None) -> Row:
    """One row; `layer` in place of the network's last one."""
    s = subject(model, "full", 1, False)
    classes = classes_of(s, [0]).numpy()
    peer = peer_of(method, model)
    how = peer or Peer("", _nothing, OPTIONS.get(method, {}), layer=LAYERS[registry.METHODS[method].layers])
    place = layer or layers_of(how, s.net)
    x, held = s.x.numpy(), dict[str, Maps]()
    try:
        found = pycam.Explainer(s.path, method=method, layer=place, threads=1, **how.options)
    except (pycam.MethodError, pycam.LayerError) as error:
        return Row(f"{model}/{method}", note=f"does not apply: {error}"[:160])

    def pycams() -> None:
        held["pycam"] = ours(how, found, x, classes)

    plain = forward(s.path, x, 1)
    _, ms, forwards, once = timed_pair(plain, pycams, seconds)
    row = Row(f"{model}/{method}", ms, forwards, once=["pycam"] if once else [])
    if peer is None:
        return row
    where = place if isinstance(place, str) else place[-1]
    call = peer.own or peer.call

    def peers_() -> None:
        held["peer"] = call(s, where, classes[:, 0])

    _, peer_ms, peer_forwards, peer_once = timed_pair(torch_forward(s), peers_, seconds)
    faster = peer_ms / ms if once or peer_once else alternate(pycams, peers_, ROUNDS, seconds)[2]
    if peer.own is not None and method != "ablationcam":  # another formula: what is compared is the restated one
        held["peer"] = peer.call(s, where, classes[:, 0])
    expected = {key: value[:, None] for key, value in held["peer"].items()}
    return replace(
        row,
        peer=TORCHCAM if peer.own is not None and method != "ablationcam" else peer.library,
        peer_ms=peer_ms,
        peer_forwards=peer_forwards,
        faster=faster,
        difference=distances(aligned(peer, expected, held["pycam"], s.size), held["pycam"]),
        once=[*row.once, *(["peer"] if peer_once else [])],
    )


def _nothing(s: Subject, layer: str, classes: np.ndarray) -> Maps:
    return {}


# --------------------------------------------------------------------------------------------- what the targets ask for


def many_classes(layer: str, seconds: float) -> Row:
    """Ten calls with one class ÷ one call with ten, Grad-CAM on ResNet-50."""
    s = subject("resnet50", "full", 1, False)
    classes, x = classes_of(s, range(MANY)).numpy(), s.x.numpy()
    found = pycam.Explainer(s.path, method="gradcam", layer=layer, threads=1)
    single = np.concatenate([found(x, targets=classes[:, k : k + 1]).raw for k in range(MANY)], 1)
    together = found(x, targets=classes).raw
    error = float(np.linalg.norm(single - together) / np.linalg.norm(single))

    def one_by_one() -> None:
        for k in range(MANY):
            found(x, targets=classes[:, k : k + 1])

    ms, calls_ms, ratio, _ = alternate(lambda: found(x, targets=classes), one_by_one, ROUNDS, 2 * seconds)
    return Row(
        f"target/classes {layer}", ms, peer="ten calls", peer_ms=calls_ms, faster=ratio, difference={"raw": error}
    )


_PEAK = """
import numpy as np, pycam, onnxruntime as ort
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
start = peak()
x = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
if METHOD:
    pycam.Explainer(PATH, method=METHOD, layer=LAYER, threads=1, batch=BATCH)(x, targets=0)
else:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(PATH, options, providers=["CPUExecutionProvider"])
    for _ in range(2):
        session.run(None, {"input": np.repeat(x, BATCH, 0)})
print(start, peak())
"""


def peak_memory(method: str, batch: int) -> float:
    """Largest resident size in MB of a process that explains one image (or runs a batch of them)."""
    s = subject("resnet50", "full", 1, False)
    values = {"PATH": str(s.path), "METHOD": method, "LAYER": s.net.last, "BATCH": batch}
    program = "".join(f"{key} = {value!r}\n" for key, value in values.items()) + _PEAK
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def memory(batch: int) -> Row:
    """Score-CAM's peak beside that of the plain forward with so many images."""
    explained, plain = peak_memory("scorecam", batch), peak_memory("", batch)
    return Row(f"target/memory {batch}", difference={"scorecam, MB": explained, "plain, MB": plain})


def row_of(name: str, seconds: float) -> Row:
    """Measure a row, given its name."""
    kind, _, rest = name.partition("/")
    try:
        if kind != "target":
            return measure(kind, rest, seconds)
        what, *where = rest.split()
        if what == "ablation":
            return replace(measure(where[0], "ablationcam", seconds, where[1]), name=name)
        return many_classes(where[0], seconds) if what == "classes" else memory(int(where[0]))
    except Exception as error:  # a bench goes on with the next row, and counts this one
        return Row(name, note=" ".join(f"{type(error).__name__}: {error}".split())[:300], failed=True)


NAMES = [f"{model}/{method.name}" for model in MODELS for method in pycam.methods()] + [
    "target/ablation vgg16 features.29",
    "target/ablation resnet50 layer4.1",
    "target/classes layer3",
    "target/classes layer2",
    *(f"target/memory {batch}" for batch in BATCHES),
]

TARGETS: tuple[tuple[str, str, str, bool, float], ...] = (
    ("Ablation-CAM, ResNet-50's last layer, forwards", "resnet50/ablationcam", "forwards", False, 1.1),
    ("Ablation-CAM, ResNet-50's last layer, × faster than grad-cam", "resnet50/ablationcam", "faster", True, 300),
    ("Ablation-CAM, VGG-16 features.29, × faster", "target/ablation vgg16 features.29", "faster", True, 10),
    ("Ablation-CAM, ResNet-50 layer4.1, × faster", "target/ablation resnet50 layer4.1", "faster", True, 10),
    ("Recipro-CAM, ResNet-50, forwards", "resnet50/reciprocam", "forwards", False, 1.3),
    ("Score-CAM, ResNet-50, × faster than grad-cam", "resnet50/scorecam", "faster", True, 1.5),
    ("Guided Grad-CAM, ResNet-50, forwards", "resnet50/guided_gradcam", "forwards", False, 2.6),
    ("FullGrad, ResNet-50, forwards", "resnet50/fullgrad", "forwards", False, 3),
    ("EigenCAM, ResNet-50, forwards", "resnet50/eigencam", "forwards", False, 1.1),
    ("10 classes at layer3, × cheaper than 10 calls", "target/classes layer3", "faster", True, 3),
    ("10 classes at layer2, × cheaper than 10 calls", "target/classes layer2", "faster", True, 3),
)
"""What, the row, its field, whether it is a least value, the value."""


def verdicts(rows: Mapping[str, Row]) -> list[tuple[str, bool]]:
    """The targets whose rows are there, and whether they are met."""
    out = []
    for what, name, key, least, limit in TARGETS:
        value = getattr(rows[name], key) if name in rows else None
        if value is not None:
            met = value >= limit if least else value <= limit
            out.append((f"{what}: {value:.2f} (target {'≥' if least else '≤'} {limit:g})", met))
    return out


def table(rows: Mapping[str, Row], model: str) -> str:
    """Markdown: the methods of one model."""
    lines = []
    for row in rows.values():
        kind, _, method = row.name.partition("/")
        if kind != model:
            continue
        given = ", ".join(f"{key}={value}" for key, value in OPTIONS.get(method, {}).items())
        name = f"{method} ({given})" if given else method
        if row.ms is None or row.forwards is None:
            lines.append([name, *["–"] * 6, row.note.replace("|", "/")])
            continue
        once = {who: " ¹" if who in row.once else "" for who in ("pycam", "peer")}
        cells = [name, f"{row.forwards:.2f}{once['pycam']}", f"{row.ms:.1f}", row.peer or "–"]
        if row.peer_ms is None or row.peer_forwards is None:
            lines.append([*cells, "–", "–", "–", "–"])
            continue
        key = next((k for k in ("final", "attributions", "raw") if k in row.difference), "")
        apart = f"{row.difference[key]:.0e} ({key})" if key else "–"
        cells += [f"{row.peer_forwards:.2f}{once['peer']}", f"{row.peer_ms:.1f}", f"{row.faster:.1f}", apart]
        lines.append(cells)
    header = ["method", "forwards", "ms", "peer", "peer's forwards (torch)", "peer's ms", "peer ÷ pycam", "apart"]
    return f"**{model}**\n\n{report.table(header, lines)}"


def summary(rows: Mapping[str, Row]) -> str:
    parts = [table(rows, model) for model in MODELS if any(name.startswith(f"{model}/") for name in rows)]
    peaks = [rows[name] for batch in BATCHES if (name := f"target/memory {batch}") in rows and not rows[name].failed]
    if peaks:
        lines = [
            [r.name.split()[-1], *(f"{r.difference[k]:.0f}" for k in ("scorecam, MB", "plain, MB"))] for r in peaks
        ]
        header = ["batch", "Score-CAM, peak MB", "plain forward of so many images, peak MB"]
        parts.append(f"**Memory of Score-CAM on ResNet-50** (fresh processes)\n\n{report.table(header, lines)}")
    parts.append("\n".join(f"- {'met' if met else '**missed**'}: {text}" for text, met in verdicts(rows)))
    parts += [f"- failed: {row.name}: {row.note}" for row in rows.values() if row.failed]
    return "\n\n".join(part for part in parts if part)


def recorded() -> dict[str, Row]:
    """What was measured so far, the latest of each row, in order."""
    path = models.cache() / "methods.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    found = {row.name: row for row in (Row(**json.loads(line)) for line in lines)}
    return {name: found[name] for name in NAMES if name in found}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.methods", description="Cost of every method.")
    parser.add_argument("--only", type=re.compile, default=re.compile(""), help="a regex on the names of rows")
    parser.add_argument("--again", action="store_true", help="measure what was measured before, too")
    parser.add_argument("--seconds", type=float, default=20, help="time for one pair")
    parser.add_argument("--row", help="measure one row here and print it as JSON")
    parser.add_argument("--list", action="store_true", help="print the names of the rows")
    parser.add_argument("--table", action="store_true", help="measure nothing, show what was measured")
    parser.add_argument("--write", action="store_true", help="write the tables to bench/RESULTS.md")
    options = parser.parse_args(argv)
    if options.list:
        print("\n".join(NAMES))
        return 0
    if options.row:
        torch.set_num_threads(1)
        print(json.dumps(asdict(row_of(options.row, options.seconds))))
        return 0
    done = recorded()
    for name in NAMES if not options.table else ():
        if not options.only.search(name) or (name in done and not done[name].failed and not options.again):
            continue
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "bench.methods",
            "--row",
            name,
            "--seconds",
            str(options.seconds),
        ]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode:
            row = Row(name, note=run.stderr.strip()[-300:], failed=True)
        else:
            row = Row(**json.loads(run.stdout.splitlines()[-1]))
        with open(models.cache() / "methods.jsonl", "a") as file:
            file.write(json.dumps(asdict(row)) + "\n")
        print(row.text(), flush=True)
    rows = recorded()
    text = summary(rows)
    print(f"\n{text}")
    if options.write:
        intro = (
            "`python -m bench.methods`, 224×224, batch 1, one class, one thread; cost in forwards of the same model, "
            "pycam's in onnxruntime, the peer's in torch; medians of alternating runs. ¹ run once. "
            "Apart: largest difference of heatmaps (final), or relative of attributions and raw maps."
        )
        report.write_section("Cost of all methods", f"{report.circumstances(peers.PACKAGES)}\n\n{intro}\n\n{text}")
    return 0 if all(met for _, met in verdicts(rows)) and not any(row.failed for row in rows.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
