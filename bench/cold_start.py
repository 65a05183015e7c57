"""Cold start: from a new process to its first heatmap, beside a plain onnxruntime process that runs the forward.

    python -m bench.cold_start [--models lite0 …] [--rounds 15] [--threads 1] [--write]

Every sample is a process of its own, with a pair's two in turn: A B A B.  The time is that of the whole process, from
before it is started to its end, and imports are part of it.  Files are in the page cache, as after a first start.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pycam
from bench import report
from pycam.api import DEFAULT_MODEL

SHARED = Path(os.environ.get("PYCAM_SHARED") or Path(__file__).parents[2] / "shared") / "models"
MODELS = ("lite0_w8", "lite0", "human_faceres", "mnist_cnn_tf", "fashion_scene_cnn")
TARGET = 1.15

_INPUT = """
def ramp(shape):
    import numpy as np
    shape = [d if isinstance(d, int) else 1 for d in shape]
    return (np.arange(int(np.prod(shape))) % 251 / 251).astype(np.float32).reshape(shape)
"""

_PLAIN = """
import onnxruntime as ort
options = ort.SessionOptions()
options.log_severity_level = 3
options.intra_op_num_threads = THREADS or 0
session = ort.InferenceSession(PATH, options, providers=["CPUExecutionProvider"])
(given,) = session.get_inputs()
session.run(None, {given.name: ramp(given.shape)})
"""

_PYCAM = """
import pycam
explainer = pycam.Explainer(PATH, threads=THREADS, cache=CACHE)
assert explainer(ramp(explainer.input_shape)).heatmaps.max() <= 1
"""


def seconds(script: str, **values: object) -> tuple[float, float]:
    """(time, processor time) of a process that runs the script with `values` as upper-case names."""
    names = "".join(f"{key.upper()} = {value!r}\n" for key, value in values.items())
    before, start = os.times(), time.perf_counter()
    subprocess.run([sys.executable, "-c", names + _INPUT + script], check=True, env=_environment())
    end, after = time.perf_counter(), os.times()
    return end - start, after.children_user + after.children_system - before.children_user - before.children_system


def pair(rounds: int, one: Mapping[str, object], other: Mapping[str, object]) -> dict[str, float]:
    """Medians of both in milliseconds, and the median of the ratios other ÷ one, over rounds A B A B."""
    samples = []
    for number in range(rounds + 1):
        taken = [*seconds(**one), *seconds(**other)]  # type: ignore[arg-type]
        samples += [taken] if number else []  # the first fills the page cache
    first, first_cpu, second, second_cpu = (1e3 * statistics.median(column) for column in zip(*samples, strict=True))
    return {
        "one": first,
        "other": second,
        "ratio": statistics.median(b / a for a, _, b, _ in samples),
        "processor ratio": second_cpu / first_cpu,
    }


def measure(model: Path, rounds: int, threads: int | None, folder: Path) -> dict[str, dict[str, float]]:
    """Every process against the plain one."""
    exported = pycam.export(model, folder / f"{model.stem}.explain.onnx")
    plain: dict[str, object] = {"script": _PLAIN, "path": str(model), "threads": threads}
    subjects = {
        "exported": (exported, False),
        "exported, cache": (exported, str(folder / "cache")),
        "model, cache": (model, str(folder / "cache")),
        "model": (model, False),
    }
    found = {}
    for name, (path, cache) in subjects.items():
        some = rounds if name != "model" else max(3, rounds // 5)  # a compilation: slow, and no target
        subject: dict[str, object] = {"script": _PYCAM, "path": str(path), "threads": threads, "cache": cache}
        found[name] = pair(some, plain, subject)
        print(model.stem, name, {key: round(value, 3) for key, value in found[name].items()}, flush=True)
    return found


def _environment() -> dict[str, str]:
    """Bytecode is kept, as that of what is installed: some machines have this off for what is worked on."""
    unwanted = ("PYCAM_CACHE", "PYTHONDONTWRITEBYTECODE")
    kept = {name: value for name, value in os.environ.items() if name not in unwanted}
    return {**kept, "PYTHONPYCACHEPREFIX": os.path.join(tempfile.gettempdir(), "pycam-cold-start")}


def _text(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    names = ("exported", "exported, cache", "model, cache", "model")
    rows = []
    for model, found in results.items():
        plain = statistics.median(found[name]["one"] for name in names[:3])
        rows.append([model, f"{plain:.0f}", *(f"{found[n]['other']:.0f} ({found[n]['ratio']:.2f})" for n in names)])
    means = [report.geometric_mean(found[n]["ratio"] for found in results.values()) for n in names]
    rows.append(["**geometric mean**", "", *(f"**{mean:.2f}**" for mean in means)])
    header = ["model", "plain, ms", *(f"{name}, ms (÷ plain)" for name in names)]
    worst = max(found["exported"]["ratio"] for found in results.values())
    cached = max(found["exported, cache"]["ratio"] for found in results.values())
    checks = [
        (f"exported ÷ plain, worst {worst:.2f} (target ≤ {TARGET})", worst <= TARGET),
        (f"exported with the cache ÷ plain, worst {cached:.2f} (target < 1)", cached < 1),
    ]
    verdicts = "\n".join(f"- {'met' if met else '**missed**'}: {text}" for text, met in checks)
    return f"{report.table(header, rows)}\n\n{verdicts}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.cold_start", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="MODEL")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, help="within an op, of both (default: onnxruntime's)")
    parser.add_argument("--write", action="store_true", help="write the table to bench/RESULTS.md")
    options = parser.parse_args(argv)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            model = DEFAULT_MODEL if name == DEFAULT_MODEL.stem else SHARED / f"{name}.onnx"
            if not model.exists():
                print(f"{name}: left out, {model} is not there")
                continue
            results[name] = measure(model, options.rounds, options.threads, Path(folder))
    text = _text(results)
    print(f"\n{text}\n{json.dumps(results)}")
    if options.write:
        threads = "onnxruntime's default of threads" if options.threads is None else f"{options.threads} thread(s)"
        intro = (
            f"`python -m bench.cold_start`: whole processes, from start to end, medians of {options.rounds} rounds A B "
            f"A B, {threads}.  Plain: onnxruntime runs the model; exported: `Explainer` of its explain graph, Grad-CAM "
            "at the last layer, to the first heatmap; model: `Explainer` of the model itself, which compiles it, "
            "unless the cache has it.  "
            f"Load of the machine, one minute's mean: {os.getloadavg()[0]:.1f}."
        )
        where = report.circumstances(["onnxruntime", "numpy", "onnx", "onnx-ir"])
        report.write_section("Cold start", f"{where}\n\n{intro}\n\n{text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
