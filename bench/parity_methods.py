"""Every method that a peer has, map by map, on six networks: the second half of ``bench/parity.py``.

    python -m bench.parity_methods [--models resnet50 …] [--only REGEX] [--again] [--table] [--write]

A case is a method of a peer (``bench/peer_maps.py``) on a network (``bench/subjects.py``): one image and class at
224×224; two images with two classes each at 64×64, or one with one where the peer runs the model once per channel. It
is ``ok`` when raw maps and attributions are within 1e-4 (relative, 2-norm) and heatmaps within 1e-3 (absolute); up to
the sign where the peer's sign is that of its SVD. As in ``bench/parity.py``, two kinds of cases that float32 cannot
settle are told apart: ``kink`` (it passes once the images are moved by about a rounding error, both for pycam and for
the peer; only looked for in networks with ReLUs) and ``ill`` (the peer's own float32 maps are further than 2e-5 from
its maps in float64, and pycam's are within ten times that).

Results lie in ``parity_methods.jsonl`` of the cache folder: what is there is not run again, but for failures.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

import pycam
from bench import models, peers, report, steady
from bench.parity import FINAL_TOLERANCE, NOISE_FACTOR, RANKS, RAW_TOLERANCE, WELL_CONDITIONED, absolute, relative
from bench.peer_maps import PEERS, Maps, Peer, applies, pipeline, rival
from bench.subjects import NETS, SIZES, Subject, classes_of, subject

NUDGES = 3
LIMITS = {"raw": RAW_TOLERANCE, "attributions": RAW_TOLERANCE, "final": FINAL_TOLERANCE}


@dataclass(frozen=True)
class Case:
    """One comparison."""

    model: str
    key: str
    status: str  # ok, kink, ill, FAIL, ERROR, or "–": it does not apply
    errors: Mapping[str, float] = field(default_factory=dict)
    noise: Mapping[str, float] = field(default_factory=dict)
    """How far float32 moves the peer's own maps; only looked up where the case is not plainly ok."""
    seconds: float = 0.0
    note: str = ""

    def text(self) -> str:
        figures = ", ".join(f"{name} {error:.1e}" for name, error in self.errors.items())
        noise = ", ".join(f"{name} {error:.1e}" for name, error in self.noise.items())
        own = f" (peer's own {noise})" if noise else ""
        return f"{self.model:16} {self.key:26} {self.status:5} {figures}{own} {self.seconds:.0f} s {self.note}".rstrip()


def layers_of(peer: Peer, net: Any) -> str | list[str]:
    """What the peer's `layer` means in a network, as pycam takes it."""
    return {"last": net.last, "mid": net.mid, "refine": list(net.refine), "none": "auto"}[peer.layer]


def explainer(peer: Peer, key: str, s: Subject, **more: Any) -> pycam.Explainer:
    """pycam's side of a case."""
    options = {**peer.options, **more}
    return pycam.Explainer(s.path, method=key.split("/")[0], layer=layers_of(peer, s.net), **options)


def theirs(peer: Peer, s: Subject, classes: np.ndarray) -> Maps:
    """The peer's maps of classes (N,K): (N,K,…) each."""
    layer = layers_of(peer, s.net)
    columns = [peer.call(s, layer if isinstance(layer, str) else layer[-1], column) for column in classes.T]
    return {key: np.stack([maps[key] for maps in columns], 1) for key in columns[0]}


def ours(peer: Peer, found: pycam.Explainer, x: np.ndarray, classes: np.ndarray) -> Maps:
    """pycam's, (N,K,…)."""
    if not found.spec.targeted:
        result = found(x)
        return {"raw": result.raw[:, None], "final": result.heatmaps[:, None]}
    against = {"against": rival(classes)} if peer.against else {}
    result = found(x, targets=classes, **against)
    extra = {"attributions": result.extras["attributions"]} if "attributions" in result.extras else {}
    return {"raw": result.raw, "final": result.heatmaps, **extra}


def aligned(peer: Peer, expected: Maps, actual: Maps, size: tuple[int, int]) -> Maps:
    """The peer's maps with the sign of ours where theirs is arbitrary, or in the order of ours where that is."""
    if "raw" not in expected or expected["raw"].shape != actual["raw"].shape:
        return expected
    raw = expected["raw"]
    if raw.ndim == 5:  # concepts: (N,1,k,h,w), each put where it fits best
        flat = (
            np.moveaxis(raw, 2, 0).reshape(raw.shape[2], -1),
            np.moveaxis(actual["raw"], 2, 0).reshape(raw.shape[2], -1),
        )
        distance = np.linalg.norm(flat[0][None] - flat[1][:, None], axis=2)
        return {"raw": raw[:, :, distance.argmin(1)]}
    if not peer.sign:
        return expected
    sign = np.sign((raw * actual["raw"]).sum((-2, -1), keepdims=True))
    turned = raw * np.where(sign == 0, 1, sign)
    final = np.stack([pipeline(turned[:, k], size) for k in range(turned.shape[1])], 1)
    return {"raw": turned, "final": final}


def distances(expected: Maps, actual: Maps) -> dict[str, float]:
    return {
        key: (absolute if key == "final" else relative)(actual[key], value)
        for key, value in expected.items()
        if key in actual
    }


def within(errors: Mapping[str, float], noise: Mapping[str, float]) -> bool:
    """Whether all errors are within the limits, or ten times the peer's own noise."""
    limits = {key: max(LIMITS[key], NOISE_FACTOR * noise.get(key, 0.0)) if noise else LIMITS[key] for key in errors}
    return bool(errors) and all(error <= limits[key] for key, error in errors.items())  # False for NaN


def compare(name: str, key: str, peer: Peer) -> Case:
    """One case; whatever goes wrong becomes its note."""
    net = NETS[name]
    why = applies(peer, name, net.relu, net.reshape is not None)
    if why:
        return Case(name, key, "–", note=why)
    start = time.perf_counter()
    side = "peer"
    try:
        s = subject(name, peer.size)
        count = peer.count if peer.size == "small" else 1
        s = s.with_images(s.x[:count])
        classes = classes_of(s, RANKS[:count]).numpy()
        if key == "dff":
            classes = classes[:, :1]
        side = "pycam"
        found = explainer(peer, key, s)
        tried: list[dict[str, float]] = []
        for draw in range(1 + (NUDGES if net.kinks else 0)):
            moved = s.with_images(steady.nudge(s.x, draw)) if draw else s
            side = "peer"
            expected = theirs(peer, moved, classes)
            side = "pycam"
            actual = ours(peer, found, moved.x.numpy(), classes)
            tried.append(distances(aligned(peer, expected, actual, s.size), actual))
            spent = time.perf_counter() - start
            if within(tried[-1], {}) or spent > 60 or (draw == 0 and _hopeless(tried[0])):
                break
        status, note, noise = "ok", "", dict[str, float]()
        if not within(tried[-1], {}):
            side = "peer, in float64"
            exact = theirs(peer, s.in_float64(), classes)
            single = theirs(peer, s, classes)
            noise = distances(aligned(peer, exact, single, s.size), single)
            ill = max(noise.get("raw", 0.0), noise.get("attributions", 0.0), noise.get("final", 0.0)) > WELL_CONDITIONED
            status = "ill" if ill and within(tried[0], noise) else "FAIL"
            tried = tried[:1]
        elif len(tried) > 1:
            first = ", ".join(f"{name} {error:.1e}" for name, error in tried[0].items())
            status, note = "kink", f"first {first}; nudged {len(tried) - 1} times"
    except Exception as error:  # a bench goes on with the next case, and counts this one
        text = " ".join(f"{side}: {type(error).__name__}: {error}".split())
        traceback.print_exc(limit=-4)
        return Case(name, key, "ERROR", seconds=time.perf_counter() - start, note=text[:300])
    return Case(name, key, status, tried[-1], noise, time.perf_counter() - start, note)


def _hopeless(errors: Mapping[str, float]) -> bool:
    """Too far off for a flipped ReLU."""
    return any(not error < 0.5 for error in errors.values())


def cell(case: Case | None) -> str:
    """What the table says of a case: the larger of its relative errors / its heatmap's error."""
    if case is None:
        return " "
    if case.status in ("–", "ERROR"):
        return case.status
    raw = [error for key, error in case.errors.items() if key != "final"]
    parts = [f"{max(raw):.0e}" if raw else "", f"{case.errors['final']:.0e}" if "final" in case.errors else ""]
    text = " / ".join(part for part in parts if part)
    return text if case.status == "ok" else f"{text} {case.status}"


def summary(cases: Mapping[tuple[str, str], Case]) -> str:
    """Markdown: methods × networks, and what is not plainly ok."""
    keys = [key for key in PEERS if any(key == k for _, k in cases)]
    rows = []
    for key in keys:
        peer = PEERS[key]
        options = ", ".join(f"{k}={v}" for k, v in peer.options.items())
        where = f"{peer.layer}, {peer.size}"
        rows.append([f"{key}{f' ({options})' if options else ''}", peer.library, where])
        rows[-1] += [cell(cases.get((name, key))) for name in NETS]
    text = report.table(["method", "peer", "layer, size", *NETS], rows)
    others = [case for case in cases.values() if case.status not in ("ok", "–")]
    if others:
        lines = [
            [case.model, case.key, case.status]
            + [", ".join(f"{k} {v:.1e}" for k, v in figures.items()) or "–" for figures in (case.errors, case.noise)]
            + [case.note]
            for case in others
        ]
        header = ["model", "method", "status", "errors", "peer's own noise", "note"]
        text += f"\n\nCases that are not plainly `ok`:\n\n{report.table(header, lines)}"
    return text


def verdict(cases: Mapping[tuple[str, str], Case]) -> str:
    count = Counter(case.status for case in cases.values())
    return (
        f"{sum(count.values()) - count['–']} cases: {count['ok']} ok; {count['kink']} ok but for a flipped ReLU; "
        f"{count['ill']} ill-conditioned, within {NOISE_FACTOR:g} × the peer's own float32 error; "
        f"{count['FAIL'] + count['ERROR']} failed."
    )


def recorded() -> dict[tuple[str, str], Case]:
    """What was found so far, the latest of each case, in the order of the table."""
    path = models.cache() / "parity_methods.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    found = {(case.model, case.key): case for case in (Case(**json.loads(line)) for line in lines)}
    return {(name, key): found[name, key] for name in NETS for key in PEERS if (name, key) in found}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.parity_methods", description="pycam against its peers.")
    parser.add_argument("--models", nargs="+", default=list(NETS), choices=list(NETS), metavar="MODEL")
    parser.add_argument("--only", type=re.compile, default=re.compile(""), help="a regex on method or method/variant")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--again", action="store_true", help="run what was found ok before, too")
    parser.add_argument("--table", action="store_true", help="run nothing, show what was found")
    parser.add_argument("--write", action="store_true", help="write the table to bench/RESULTS.md")
    options = parser.parse_args(argv)

    done = recorded()
    registered = {method.name for method in pycam.methods()}
    for name in options.models if not options.table else ():
        for key, peer in sorted(PEERS.items(), key=lambda item: item[1].size):
            known = done.get((name, key))
            skip = key.split("/")[0] not in registered or not options.only.search(key) or peer.size not in options.sizes
            if skip or (known and known.status in ("ok", "kink", "ill", "–") and not options.again):
                continue
            case = compare(name, key, peer)
            with open(models.cache() / "parity_methods.jsonl", "a") as file:
                file.write(json.dumps(asdict(case)) + "\n")
            print(case.text(), flush=True)
    cases = recorded()
    text, counts = summary(cases), verdict(cases)
    print(f"\n{text}\n\n{counts}")
    if options.write:
        intro = (
            "`python -m bench.parity_methods`: every method that a peer has. A cell is the relative error of the "
            "raw map (or the attributions) / the absolute error of the heatmap. "
            "Full is 224×224, small 64×64. Weights are seeded, not trained; images are seeded, those at 64×64 (and of "
            "the CNNs) drawn until their gradients are steady; one class. Kink: it agrees on a redrawn image, a ReLU "
            "having flipped. Restated: the formula, where a peer deviates or is not installed. DFF refuses "
            f"transformers whose residual stream goes around the layer. {counts}"
        )
        report.write_section(
            "Parity of all methods with their peers", f"{report.circumstances(peers.PACKAGES)}\n\n{intro}\n\n{text}"
        )
    return 1 if any(case.status in ("FAIL", "ERROR") for case in cases.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
