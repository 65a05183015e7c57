"""Idle threads that spin, or sleep: what it costs one session, and two that take turns in one process.

    python -m bench.spin [--rounds 40] [--write]

Every round times all settings in turn (A B A B): one call of one Explainer, and one call each of two.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np

import pycam
from bench import report
from pycam.api import DEFAULT_MODEL


def measure(threads: int, rounds: int) -> dict[str, float]:
    """Medians in milliseconds: "one, spin", "one, no spin", "two, spin", "two, no spin"; and the processor time."""
    x = np.full((1, 3, 224, 224), 0.5, np.float32)
    pairs = {
        spin: [pycam.Explainer(DEFAULT_MODEL, threads=threads, spin=spin) for _ in range(2)] for spin in (True, False)
    }
    calls: dict[str, Callable[[], object]] = {}
    for spin, (first, second) in pairs.items():
        name = "spin" if spin else "no spin"
        calls[f"one, {name}"] = lambda first=first: first(x)  # type: ignore[misc]
        calls[f"two, {name}"] = lambda first=first, second=second: (first(x), second(x))  # type: ignore[misc]
    taken: dict[str, list[float]] = {name: [] for name in calls}
    busy: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(0.05)  # let the threads of the setting before go to sleep
            call()
            start, worked = time.perf_counter(), time.process_time()
            for _ in range(3):
                call()
            taken[name].append((time.perf_counter() - start) / 3 * 1e3)
            busy[name].append((time.process_time() - worked) / 3 * 1e3)
    medians = {name: statistics.median(values) for name, values in taken.items()}
    return medians | {f"{name}, processor": statistics.median(values) for name, values in busy.items()}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.spin", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--write", action="store_true", help="write the table to bench/RESULTS.md")
    options = parser.parse_args(argv)
    rows = []
    for threads in options.threads:
        found = measure(threads, options.rounds)
        for which, title in (("one", "one session"), ("two", "two in turn")):
            cells = [
                f"{found[f'{which}, {name}']:.1f} ({found[f'{which}, {name}, processor']:.1f})"
                for name in ("spin", "no spin")
            ]
            rows.append([f"{title}, {threads} thread{'s' * (threads > 1)}", *cells])
    text = report.table(["EfficientNet-Lite0, Grad-CAM", "spin=True, ms (processor time)", "spin=False, ms"], rows)
    load = f"Load of the machine, one minute's mean: {os.getloadavg()[0]:.1f}."
    print(f"{text}\n\n{load}")
    if options.write:
        where = report.circumstances(["onnxruntime", "numpy"])
        intro = f"`python -m bench.spin`, medians of {options.rounds} rounds A B A B.  {load}"
        report.write_section("Spinning threads", f"{where}\n\n{intro}\n\n{text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
