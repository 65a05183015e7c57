"""What a full input gradient costs: the backward of whole networks against their plain forward.

    python -m bench.backward [--models resnet50 …] [--lower fast portable] [--repeats 15] [--memory] [--profile]

One thread, batch 1, a dynamic batch axis; the plain session and the session of `pycam.vjp(model, wrt=["input"])` take
turns (A B A B …) and the medians are compared, so that a noisy machine slows both alike.  The gradient is checked
against torch's first.  The floor is 2.0: as many multiply-adds back as forth.

`--memory` gives the peak resident memory of a process that runs the one or the other; `--profile` prints where the
time goes, per op.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch

import pycam
from bench import models
from bench.peers import torchvision

MODELS = ("resnet50", "vgg16", "vit_b_16", "mobilenet_v2", "efficientnet_b0")
TARGETS = {"resnet50": 2.4, "vgg16": 2.3, "vit_b_16": 2.2, "mobilenet_v2": 2.6, "efficientnet_b0": 2.8}
LOWERS = ("fast", "portable")


def network(name: str) -> tuple[torch.nn.Module, Path]:
    """The seeded network and its export (torch's dynamo exporter, dynamic batch), from the cache."""
    if name in models.MODELS:
        model = models.build(name)
        return model, models.export(name, "dynamo", model=model)
    torch.manual_seed(models.SEED)
    model = getattr(torchvision.models, name)(weights=None).eval()
    torch.nn.init.normal_(model.heads.head.weight, std=0.02)  # torchvision starts at zero, where all gradients are
    path = models.cache() / "dynamo" / f"{name}.onnx"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        models.to_onnx(model, image(2), path, "dynamo")
    return model, path


def image(count: int = 1) -> torch.Tensor:
    """Seeded images (count, 3, 224, 224)."""
    return models.images("resnet50", count)


def session(model: onnx.ModelProto | Path, profile: Path | None = None) -> ort.InferenceSession:
    """A session on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def cotangent(classes: int = 1000) -> np.ndarray:
    """One class of one image."""
    return np.eye(1, classes, 281, dtype=np.float32)


def measure(name: str, lowers: Sequence[str], repeats: int) -> dict[str, Any]:
    """Milliseconds of the forward and the ratios of the gradient's medians to it; the error against torch."""
    network_, path = network(name)
    x = image().requires_grad_(True)
    logits = network_(x)
    reference = torch.autograd.grad(logits[0, 281], x)[0].numpy()
    feed = {"input": x.detach().numpy()}
    plain = session(path)
    back = {lower: session(pycam.vjp(path, ["input"], lower=lower)) for lower in lowers}
    both = {**feed, "logits.cotangent": cotangent(logits.shape[1])}
    runs = {"plain": lambda: plain.run(None, feed)} | {
        lower: (lambda s=s: s.run(["input.gradient"], both)) for lower, s in back.items()
    }
    errors = {
        lower: float(np.linalg.norm(runs[lower]()[0] - reference) / np.linalg.norm(reference)) for lower in lowers
    }
    times: dict[str, list[float]] = {key: [] for key in runs}
    for _ in range(repeats):
        for key, run in runs.items():
            start = time.perf_counter()
            run()
            times[key].append(time.perf_counter() - start)
    medians = {key: float(np.median(values)) * 1e3 for key, values in times.items()}
    return {
        "name": name,
        "forward": medians["plain"],
        "ratios": {lower: medians[lower] / medians["plain"] for lower in lowers},
        "errors": errors,
    }


def memory(name: str, lower: str) -> float:
    """Peak resident megabytes that a process needs for the plain model ("plain") or its gradient, run thrice, over what
    its imports take; the gradient is written to a file before."""
    program = (
        "import re, sys, numpy as np, onnxruntime as ort\n"
        "path, lower = sys.argv[1:]\n"
        "def peak(): return int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
        "base = peak()\n"
        "o = ort.SessionOptions(); o.intra_op_num_threads = 1; o.log_severity_level = 3\n"
        "s = ort.InferenceSession(path, o, providers=['CPUExecutionProvider'])\n"
        "feed = {'input': np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)}\n"
        "names = None\n"
        "if lower != 'plain':\n"
        "    feed['logits.cotangent'] = np.eye(1, 1000, 281, dtype=np.float32); names = ['input.gradient']\n"
        "for _ in range(3): s.run(names, feed)\n"
        "print(peak() - base)\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = network(name)[1]
        if lower != "plain":
            written = Path(folder) / "gradient.onnx"
            written.write_bytes(pycam.vjp(path, ["input"], lower=lower).SerializeToString())
            path = written
        result = subprocess.run(
            [sys.executable, "-c", program, str(path), lower], check=True, capture_output=True, text=True
        )
    return int(result.stdout) / 1024


def profile(name: str, lower: str, runs: int = 5) -> str:
    """Milliseconds per run and op type, forward nodes apart from those that pycam emitted."""
    _, path = network(name)
    with tempfile.TemporaryDirectory() as folder:
        runner = session(pycam.vjp(path, ["input"], lower=lower), Path(folder) / "profile")
        for _ in range(runs):
            runner.run(["input.gradient"], {"input": image().numpy(), "logits.cotangent": cotangent()})
        events = json.loads(Path(runner.end_profiling()).read_text())
    spent: collections.Counter[tuple[str, str]] = collections.Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            ours = "backward" if "pycam/" in event["name"] else "forward"
            spent[ours, event["args"]["op_name"]] += event["dur"]
    rows = [f"  {ms / runs / 1e3:8.2f} ms  {side:8}  {op}" for (side, op), ms in spent.most_common(16)]
    return "\n".join(rows)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.backward", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--lower", nargs="+", default=list(LOWERS), choices=LOWERS)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args(argv)
    columns = "".join(f" {lower} ÷ forward |" for lower in options.lower)
    print(f"| network | forward |{columns} target | error |\n|---|---:|{'---:|' * (len(options.lower) + 2)}")
    for name in options.models:
        row = measure(name, options.lower, options.repeats)
        ratios = "".join(f" {row['ratios'][lower]:.2f} |" for lower in options.lower)
        error = max(row["errors"].values())
        print(f"| {name} | {row['forward']:.1f} ms |{ratios} {TARGETS.get(name, 0):.1f} | {error:.1e} |", flush=True)
        if options.memory:
            plain = memory(name, "plain")
            for lower in options.lower:
                print(f"  memory, {lower}: {memory(name, lower) / plain:.2f} of {plain:.0f} MB", flush=True)
        if options.profile:
            for lower in options.lower:
                print(profile(name, lower), flush=True)
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
