"""Gradients through the model zoos: torchvision's and timm's, both of pycam.vjp against torch in float64.

Every classification, segmentation and video model of torchvision, and the smallest models of every module of timm, with
seeded random weights: what an architecture asks of the differentiation does not depend on them. Nothing is downloaded.
As in `bench/models.py`, batch-norm statistics are fitted to seeded images; everything that starts at zero (layer
scales, skip gains, residual norms, position tables) is drawn anew, since blocks that do nothing would test nothing.

    python -m bench.zoo --export           # export, check the forward, keep torch's float64 gradient; then exits
    python -m bench.zoo --check            # pycam.vjp by onnxruntime in float32 against what was kept
    python -m bench.zoo                    # both, model by model
    python -m bench.zoo --table            # print the section of RESULTS.md; --write puts it there
    python -m bench.zoo --bisect --only REGEX   # where the gradient goes wrong, module by module

Both stages go on where they stopped: `--failed` repeats failures, `--again` everything, `--only REGEX` selects.
Each model runs in a process of its own with limits on time and memory. Results, exports and references lie in
``$PYCAM_BENCH_CACHE/zoo`` (default: ``bench/.cache/zoo``), one JSON line a model in ``$PYCAM_BENCH_CACHE/zoo.jsonl``
and, for the exports, ``zoo-export.jsonl``; large exports are deleted and made anew when needed.

Two images, each with its top class. The layer is what `layer="auto"` picks; torch's gradient for it is that of the
value that equals it (no two layers have the same), so no names need to be matched.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import re
import resource
import sys
import time
import traceback
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from bench import report
from bench.zoo_models import SKIPPED, Entry, build, entries

TOLERANCE = 1e-3
"""Relative error of a gradient that needs no explanation."""
FORWARD_TOLERANCE = 1e-3
NOISE_FACTOR = 10.0
"""A larger error is put down to float32 where torch's own is at least a tenth of it."""
NUDGES = 3
NUDGE = 2e-6
"""Change of the images, relative to their standard deviation, that decides whether a ReLU flipped; see `steady.py`."""
SECONDS = 600
MEMORY = 10 * 2**30
KEPT_EXPORT = 150 * 2**20
KEPT_TOTAL = 9 * 2**30
KEPT_LAYERS = 6 * 2**20
"""Bytes of inner values that are kept for one model (and as much for their gradients), counted from the score back."""
PARTS = {"__getitem__", "split", "chunk", "unbind", "narrow", "select", "tensor_split"}
"""What cuts a value: a piece may equal the value that it was put together from, but gets only part of its gradient."""
PACKAGES = ("torch", "torchvision", "timm", "onnx", "onnxruntime", "onnxscript", "onnx-ir", "numpy")


class StageError(RuntimeError):
    """What went wrong with a model, and in which stage."""

    def __init__(self, stage: str, message: str) -> None:
        super().__init__(message)
        self.stage = stage


# ------------------------------------------------------------------------------------------------------------- results


@dataclass
class Export:
    """What the export stage found out about a model."""

    name: str
    family: str
    exporter: str = ""
    nodes: int = 0
    weights: int = 0
    bytes: int = 0
    input_shape: list[int] = field(default_factory=list)
    output_shape: list[int] = field(default_factory=list)
    forward_error: float | None = None  # onnxruntime's forward of the export, against torch in float64
    torch_error: float | None = None  # torch's input gradient in float32, against float64
    alive: float | None = None  # share of the images' values with a gradient
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    stage: str = ""  # where it failed: build, export, reference
    failure: str = ""


@dataclass
class Check:
    """What the check stage found out about a model."""

    name: str
    family: str
    status: str = ""  # ok, kink, noise, mismatch, or failed
    compile_seconds: float | None = None
    run_seconds: float | None = None
    nodes: int = 0  # of the model with its gradient
    forward_error: float | None = None
    input_error: float | None = None
    image_errors: list[float] = field(default_factory=list)  # of each image, the larger of input's and layer's
    torch_error: float | None = None
    layer: str = ""
    module: str = ""
    layer_op: str = ""
    layer_shape: list[int | str] = field(default_factory=list)
    layer_error: float | None = None
    layer_torch_error: float | None = None
    layer_reference: str = ""  # module and function of torch that make it; or why there is none
    layer_failure: str = ""
    nudges: int = 0
    missing: list[str] = field(default_factory=list)
    stage: str = ""  # where it failed: load, compile, run
    failure: str = ""


def cache() -> Path:
    """The folder of all results; it ignores itself in git."""
    folder = Path(os.environ.get("PYCAM_BENCH_CACHE") or Path(__file__).parent / ".cache")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".gitignore").write_text("*\n")
    return folder


def place(entry: Entry, kind: str) -> Path:
    """The file of one model: "onnx", "npz" or "log"."""
    folder = cache() / "zoo" / kind
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{entry.name.replace('/', '-')}.{kind}"


def read(kind: type[Export] | type[Check]) -> dict[str, Any]:
    """The last line of each model."""
    path = record_path(kind)
    known = {f.name for f in fields(kind)}
    lines = path.read_text().splitlines() if path.exists() else []
    rows = ({k: v for k, v in json.loads(line).items() if k in known} for line in lines)
    return {row["name"]: kind(**row) for row in rows}


def record_path(kind: type[Export] | type[Check]) -> Path:
    return cache() / {"Export": "zoo-export.jsonl", "Check": "zoo.jsonl"}[kind.__name__]


def relative(actual: np.ndarray, expected: np.ndarray) -> float:
    """‖actual − expected‖ / ‖expected‖; infinite for different shapes, or where only one of them is zero."""
    if actual.shape != expected.shape:
        return math.inf
    error = np.linalg.norm((actual.astype(np.float64) - expected).ravel())
    size = np.linalg.norm(expected.astype(np.float64).ravel())
    return float(error / size) if size else (math.inf if error else 0.0)


def each(actual: np.ndarray, expected: np.ndarray) -> list[float]:
    """`relative` for each image."""
    return [relative(*pair) for pair in zip(actual, expected, strict=True)]


# ---------------------------------------------------------------------------------------------------- stage one: export


@dataclass
class Tap:
    """A value on the way and its gradient, in float32; `path` is the module and the function that made it."""

    path: str
    value: np.ndarray
    grad: np.ndarray | None = None
    live: bool = True

    def receive(self, grad: torch.Tensor) -> None:
        if self.live:
            self.grad = grad.float().numpy().copy()


class Tapper(TorchFunctionMode):
    """Records what every call of torch returns while a model runs, and later its gradient: also of functions that are
    no module. Keeps the last `budget` bytes of values."""

    def __init__(self, model: nn.Module, budget: int) -> None:
        super().__init__()
        self.taps: deque[Tap] = deque()
        self.model, self.budget, self._used = model, budget, 0
        self._modules: list[str] = [""]
        self._handles: list[Any] = []

    def __enter__(self) -> Tapper:
        for path, module in self.model.named_modules():
            self._handles += [
                module.register_forward_pre_hook(lambda *_, path=path: self._modules.append(path)),
                module.register_forward_hook(lambda *_: self._leave()),
            ]
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        for handle in self._handles:
            handle.remove()

    def _leave(self) -> None:
        self._modules.pop()

    def __torch_function__(
        self, func: Callable[..., Any], _types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for y in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(y, torch.Tensor) and y.ndim >= 3 and y.requires_grad and y.is_floating_point():
                self._tap(f"{self._modules[-1]}:{getattr(func, '__name__', func)}", y)
        return out

    def _tap(self, path: str, y: torch.Tensor) -> None:
        tap = Tap(path, y.detach().float().numpy().copy())
        y.register_hook(lambda grad: tap.receive(grad))
        self.taps.append(tap)
        self._used += tap.value.nbytes
        while len(self.taps) > 1 and self._used > self.budget:
            dropped = self.taps.popleft()
            dropped.live = False
            self._used -= dropped.value.nbytes


def input_gradient(
    model: nn.Module, x: torch.Tensor, cotangent: torch.Tensor, budget: int = KEPT_LAYERS
) -> tuple[np.ndarray, np.ndarray, list[Tap]]:
    """Output, input gradient, and the last values on the way (as many as fit into `budget` bytes), in the order of the
    forward."""
    x = x.clone().requires_grad_()
    with Tapper(model, budget) as tapper:
        y = model(x)
    (grad,) = torch.autograd.grad(y, x, cotangent.to(y.dtype))
    return y.detach().numpy(), grad.numpy(), [tap for tap in tapper.taps if tap.grad is not None]


def top_classes(y: torch.Tensor) -> torch.Tensor:
    """The cotangent that selects each image's top class, summed over positions. Classes lie on axis 1, those of tokens
    (N,T,C) on the last."""
    axis = 2 if y.ndim == 3 else 1
    others = [i for i in range(1, y.ndim) if i != axis]
    score = y.mean(others) if others else y
    chosen = torch.zeros_like(score).scatter_(1, score.argmax(1, keepdim=True), 1.0)
    for i in others:
        chosen = chosen.unsqueeze(i)
    return chosen.expand_as(y).contiguous()


def to_onnx(model: nn.Module, x: torch.Tensor, path: Path, notes: list[str]) -> tuple[str, float]:
    """Export by the first way that works and whose forward agrees with torch: the name of the way, and the error."""
    with torch.no_grad():
        expected = model(x).numpy()
    for way in ("dynamo", "dynamo, fixed batch", "legacy"):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                names: dict[str, Any] = {"input_names": ["input"], "output_names": ["logits"]}
                if way == "legacy":
                    torch.onnx.export(
                        model, (x,), str(path), dynamo=False, dynamic_axes={"input": {0: "batch"}}, **names
                    )
                else:
                    shapes = None if way.endswith("batch") else ({0: torch.export.Dim.AUTO},)
                    torch.onnx.export(
                        model, (x,), str(path), dynamo=True, external_data=False, dynamic_shapes=shapes, verbose=False,
                        **names,
                    )  # fmt: skip
            actual = session(str(path)).run(None, {"input": x.numpy()})[0]
            error = relative(actual, expected)
            if error <= FORWARD_TOLERANCE:
                return way, error
            notes.append(f"{way}: the export's forward differs from torch's by {error:.1e}")
        except Exception as error:  # whatever the exporter says becomes a note, and the next way is tried
            traceback.print_exc()
            notes.append(f"{way}: {short(error)}")
    raise StageError("export", "; ".join(notes))


def export(entry: Entry) -> Export:
    """Build, export, and keep torch's gradients."""
    result = Export(entry.name, entry.family)
    clock = time.perf_counter
    try:
        result.stage, start = "build", clock()
        model, x = build(entry)
        result.weights = sum(p.numel() for p in model.parameters())
        result.input_shape = list(x.shape)
        result.seconds["build"] = clock() - start

        result.stage, start = "export", clock()
        path = place(entry, "onnx")
        result.exporter, _ = to_onnx(model, x, path, result.notes)
        result.bytes = path.stat().st_size
        result.nodes = count_nodes(path)
        result.seconds["export"] = clock() - start

        result.stage, start = "reference", clock()
        make_reference(entry, result, model, x)
        result.seconds["reference"] = clock() - start
        result.stage = ""
    except StageError as error:
        result.stage, result.failure = error.stage, str(error)
    except Exception as error:
        traceback.print_exc()
        result.failure = short(error)
    return result


def make_reference(entry: Entry, result: Export, model: nn.Module, x: torch.Tensor) -> None:
    """Keep images, cotangent, output and gradients of torch in float64; leaves `model` in float64."""
    with torch.no_grad():
        cotangent = top_classes(model(x))
    _, single, taps32 = input_gradient(model, x, cotangent)
    y, double, taps = input_gradient(model.double(), x.double(), cotangent)
    if not (np.isfinite(y).all() and np.isfinite(double).all()):
        raise ValueError("torch's own output or gradient is not finite")
    if not double.any():
        raise ValueError("torch's own gradient is zero")
    noise = [relative(a.grad, b.grad) for a, b in zip(taps32, taps, strict=True)]
    result.output_shape = list(y.shape)
    result.torch_error = relative(single, double)
    result.alive = float((double != 0).mean())
    result.forward_error = relative(session(str(place(entry, "onnx"))).run(None, {"input": x.numpy()})[0], y)
    arrays: dict[str, np.ndarray] = {
        "x": x.numpy(), "cotangent": cotangent.numpy(), "y": y.astype(np.float32), "grad": double.astype(np.float32),
        "paths": np.array([tap.path for tap in taps]), "noise": np.array(noise),
    }  # fmt: skip
    for i, tap in enumerate(taps):
        arrays[f"value{i}"], arrays[f"grad{i}"] = tap.value, tap.grad
    np.savez(place(entry, "npz"), **arrays)


def session(model: str | bytes) -> ort.InferenceSession:
    """One thread, quiet."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def count_nodes(path: Path) -> int:
    return len(onnx.load(path, load_external_data=False).graph.node)


def short(error: BaseException) -> str:
    """An error and its causes in one line."""
    parts: list[str] = []
    seen: BaseException | None = error
    while seen is not None and len(parts) < 3:
        parts.append(f"{type(seen).__name__}: {' '.join(str(seen).split())[:300]}")
        seen = seen.__cause__
    return " ← ".join(parts)


# ----------------------------------------------------------------------------------------------------- stage two: check


def check(entry: Entry, exported: Export) -> Check:
    """Differentiate the export with pycam, run it, and compare."""
    result = Check(entry.name, entry.family, torch_error=exported.torch_error)
    try:
        path = place(entry, "onnx")
        result.stage = "export"
        if not path.exists():  # too large to be kept
            to_onnx(*build(entry), path, [])
        _check(entry, path, result)
        result.stage = ""
        result.status = verdict(result)
    except StageError as error:
        result.stage, result.failure, result.status = error.stage, str(error), "failed"
    except Exception as error:
        traceback.print_exc()
        result.failure, result.status = short(error), "failed"
    return result


def _check(entry: Entry, path: Path, result: Check) -> None:
    result.stage = "import"
    import pycam
    from pycam.graph.load import load
    from pycam.graph.locate import dims, locate_layers, locate_score, module_path
    from pycam.graph.normalise import normalise

    result.stage = "load"
    graph = normalise(load(path)).graph
    wrt = ["input"]
    names = {value.name for node in graph for value in node.outputs}
    try:
        score = locate_score(graph)
        layer = locate_layers(graph, "auto", score.value)[0]
    except Exception as error:
        traceback.print_exc()
        result.layer_failure = short(error)
    else:
        producer = layer.producer()
        if producer is not None and layer.name not in names and producer.inputs[0] is not None:
            layer = producer.inputs[0]  # channels-last features: `locate` put a Transpose behind what the model has
            producer = layer.producer()
        wrt.append(layer.name or "")
        result.layer, result.layer_shape = layer.name or "", list(dims(layer))
        result.layer_op = producer.op_type if producer is not None else ""
        result.module = module_path(producer) if producer is not None else ""

    result.stage = "compile"
    result.missing = missing_rules(graph)
    start = time.perf_counter()
    try:
        model = pycam.vjp(path, wrt=wrt)
    except Exception as error:
        if len(wrt) == 1:
            raise
        try:  # the layer alone tells more than nothing
            pycam.vjp(path, wrt=wrt[1:])
        except Exception as inner:
            result.layer_failure = short(inner)
        else:
            result.layer_failure = "compiles alone"
        raise error
    result.compile_seconds = time.perf_counter() - start
    result.nodes = len(model.graph.node)
    if result.layer:
        _expose(model, result.layer)

    result.stage = "run"
    kept = np.load(place(entry, "npz"))
    x, feeds = kept["x"], {f"{model.graph.output[0].name}.cotangent": kept["cotangent"]}
    running = session(model.SerializeToString())
    names = [output.name for output in running.get_outputs()]
    for draw in range(1 + NUDGES):
        noise = np.random.default_rng(draw).standard_normal(x.shape).astype(np.float32)
        start = time.perf_counter()
        feeds["input"] = x + np.float32(NUDGE * x.std()) * noise if draw else x
        outputs = dict(zip(names, running.run(None, feeds), strict=True))
        seconds = time.perf_counter() - start
        if draw and relative(outputs["input.gradient"], kept["grad"]) > (result.input_error or 0.0):
            continue
        result.nudges = draw
        result.run_seconds = seconds
        result.forward_error = relative(outputs[names[0]], kept["y"])
        result.input_error = relative(outputs["input.gradient"], kept["grad"])
        result.image_errors = each(outputs["input.gradient"], kept["grad"])
        if result.layer:
            _compare_layer(result, kept, outputs[result.layer], outputs[f"{result.layer}.gradient"])
        if max(result.input_error, result.layer_error or 0.0) <= TOLERANCE:
            break


def _expose(model: onnx.ModelProto, name: str) -> None:
    """Make a value an output as well."""
    if any(output.name == name for output in model.graph.output):
        return
    info = onnx.ValueInfoProto()
    info.CopyFrom(next(output for output in model.graph.output if output.name == f"{name}.gradient"))
    info.name = name
    model.graph.output.append(info)


def _compare_layer(result: Check, kept: Mapping[str, np.ndarray], value: np.ndarray, grad: np.ndarray) -> None:
    """Find the value of torch that is the layer, in whatever arrangement of axes, and compare the gradients."""
    found = list(_same(kept, value))
    if not found:
        result.layer_reference = "no value of torch equals it"
        return
    expected = {i: arrange(kept[f"grad{i}"]) for i, arrange in found}
    result.layer_error, i = min((relative(grad, array), i) for i, array in expected.items())
    if grad.shape[0] == len(result.image_errors):  # not where windows or heads are folded into the batch
        result.image_errors = [max(pair) for pair in zip(result.image_errors, each(grad, expected[i]), strict=True)]
    result.layer_torch_error, result.layer_reference = float(kept["noise"][i]), str(kept["paths"][i])


def _same(
    kept: Mapping[str, np.ndarray], value: np.ndarray
) -> Iterator[tuple[int, Callable[[np.ndarray], np.ndarray]]]:
    for i, path in enumerate(kept["paths"]):
        candidate = kept[f"value{i}"]
        if candidate.size != value.size or str(path).rpartition(":")[2] in PARTS:
            continue
        for order in _orders(candidate.ndim):
            arranged = candidate.transpose(order).reshape(value.shape)
            if relative(value, arranged) <= FORWARD_TOLERANCE:
                yield i, lambda array, order=order: array.transpose(order).reshape(value.shape)
                break


def _orders(ndim: int) -> Iterator[list[int]]:
    """Axes as they are, with the channels moved last, and moved back."""
    axes = list(range(ndim))
    yield axes
    yield [0, *axes[2:], 1]
    yield [0, ndim - 1, *axes[1:-1]]


def missing_rules(graph: Any) -> list[str]:
    """Every op between the input and the first output that pycam has no rule for, as `Op:input`."""
    from pycam.grad import registry
    from pycam.grad.reverse import between, carries_gradient

    knows = getattr(registry, "knows", lambda node, i: registry.find(node, i) or registry.stopped(node, i))
    path = between(list(graph), list(graph.inputs), [graph.outputs[0]])
    missing = [
        f"{f'{node.domain}::' if node.domain else ''}{node.op_type}:{i}"
        for node in path.nodes
        for i, x in enumerate(node.inputs)
        if x is not None and x in path.values and carries_gradient(x) and not knows(node, i)
    ]
    return sorted(set(missing))


def verdict(result: Check) -> str:
    """How the errors are to be read.

    - ok: small.
    - kink: the input's gradient is right for one of the two images, or for both once they are moved by a rounding
      error: a ReLU or the choice of a max-pool flipped. A wrong rule is wrong everywhere.
    - noise: torch's own gradient in float32 is hardly better.
    - mismatch: none of these.
    """
    pairs = [(result.input_error, result.torch_error), (result.layer_error, result.layer_torch_error)]
    large = [(error, noise or 0.0) for error, noise in pairs if error is not None and not error <= TOLERANCE]
    if not large:
        return "kink" if result.nudges else "ok"
    if min(result.image_errors, default=math.inf) <= TOLERANCE:
        return "kink"
    return "noise" if all(error <= NOISE_FACTOR * noise for error, noise in large) else "mismatch"


# ------------------------------------------------------------------------------------------------------------- mistakes


def bisect(entry: Entry) -> None:
    """Print the error of the gradient for every value that torch has as well, in the order of the forward.

    The mistake lies between the last value (the first one from below) whose gradient is right and the one before it.
    """
    import pycam
    from pycam.graph.load import load
    from pycam.graph.normalise import normalise

    path = place(entry, "onnx")
    model, x = build(entry)
    if not path.exists():
        to_onnx(model, x, path, [])
    with torch.no_grad():
        cotangent = top_classes(model(x))
    _, grad, taps = input_gradient(model.double(), x.double(), cotangent, budget=2**40)
    nodes = {y.name or "": (node.op_type, y) for node in normalise(load(path)).graph for y in node.outputs}
    proto = onnx.shape_inference.infer_shapes(onnx.load(path))
    known = {info.name: info for info in (*proto.graph.value_info, *proto.graph.output)}
    sizes = {tap.value.size for tap in taps}
    del proto.graph.output[:]
    proto.graph.output.extend(
        known[name]
        for name in nodes
        if name in known and known[name].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    )
    running = session(proto.SerializeToString())
    names = [output.name for output in running.get_outputs()]
    kept = {
        f"{kind}{i}": array for i, tap in enumerate(taps) for kind, array in (("value", tap.value), ("grad", tap.grad))
    }
    kept["paths"] = np.array([tap.path for tap in taps])
    found: dict[str, list[tuple[int, Callable[[np.ndarray], np.ndarray]]]] = {}
    for name, value in zip(names, running.run(None, {"input": x.numpy()}), strict=True):
        if value.size in sizes and (same := list(_same(kept, value))):
            found[name] = same
    gradients: dict[str, np.ndarray | str] = {}
    wanted = ["input", *found]
    for group in (wanted, *([name] for name in wanted)):  # one at a time where not all at once
        try:
            running = session(pycam.vjp(path, wrt=group).SerializeToString())
            feeds = {feed.name: cotangent.numpy() for feed in running.get_inputs()} | {"input": x.numpy()}
            names = [f"{name}.gradient" for name in group]
            gradients |= dict(zip(group, running.run(names, feeds), strict=True))
        except Exception as error:
            gradients |= {name: short(error) for name in group}
        if not any(isinstance(gradient, str) for gradient in gradients.values()):
            break
    for name, ours in gradients.items():
        if isinstance(ours, str):
            print(f"{name:30} {ours}")
            continue
        same = found.get(name, [])
        errors = [(relative(ours, arrange(kept[f"grad{i}"])), str(kept["paths"][i])) for i, arrange in same]
        error, module = min(errors) if same else (relative(ours, grad), "")
        print(f"{name:30} {nodes[name][0] if name in nodes else '':20} {error:.1e}  {module}")


# ------------------------------------------------------------------------------------------------------------ processes


def isolated(work: Callable[..., Any], entry: Entry, *arguments: Any, log: Path) -> Any:
    """`work(entry, …)` in a child process with limits; what it prints goes to `log`.

    Raises:
        StageError: it ran out of time, or died.
    """
    context = multiprocessing.get_context("fork")  # torch and timm are imported once, here
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(work, entry, arguments, sender, log))
    child.start()
    sender.close()
    try:
        if not receiver.poll(SECONDS):
            raise StageError("time", f"not done after {SECONDS} s")
        return receiver.recv()
    except EOFError:
        child.join(10)
        raise StageError("process", f"the process died with exit code {child.exitcode}") from None
    finally:
        child.kill()
        child.join()


def _child(work: Callable[..., Any], entry: Entry, arguments: tuple[Any, ...], sender: Connection, log: Path) -> None:
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    torch.set_num_threads(1)
    sender.send(work(entry, *arguments))


def run(stage: type[Export] | type[Check], chosen: Sequence[Entry], failed: bool, again: bool) -> None:
    """One stage over the models that lack a result (or failed, or all)."""
    for entry in chosen:
        old = read(stage).get(entry.name)
        if old is not None and not again and not (failed and (old.failure or getattr(old, "status", "") == "mismatch")):
            continue
        start, log = time.perf_counter(), place(entry, "log")
        arguments: tuple[Any, ...] = ()
        if stage is Check:
            exported = read(Export).get(entry.name)
            if exported is None or exported.failure:
                continue
            arguments, log = (exported,), log.with_suffix(".check.log")
        try:
            result = isolated(export if stage is Export else check, entry, *arguments, log=log)
        except StageError as error:
            result = stage(entry.name, entry.family, stage=error.stage, failure=str(error))
            if isinstance(result, Check):
                result.status = "failed"
        with open(record_path(stage), "a") as lines:
            lines.write(json.dumps(asdict(result)) + "\n")
        tidy(entry)
        print(f"{entry.name:45} {time.perf_counter() - start:6.1f} s  {line(result)}", flush=True)


def tidy(entry: Entry) -> None:
    """Delete an export that is large, or for which there is no room."""
    path = place(entry, "onnx")
    if not path.exists():
        return
    total = sum(file.stat().st_size for file in path.parent.iterdir())
    if path.stat().st_size > KEPT_EXPORT or total > KEPT_TOTAL:
        path.unlink()


def line(result: Export | Check) -> str:
    """A result for the terminal."""
    if result.failure:
        return f"FAILED in {result.stage}: {result.failure}"[:300]
    if isinstance(result, Export):
        notes = f" ({'; '.join(result.notes)})"[:200] if result.notes else ""
        return (
            f"{result.exporter}, {result.nodes} nodes, forward {result.forward_error:.1e}, "
            f"torch float32 {result.torch_error:.1e}, alive {result.alive:.0%}{notes}"
        )
    layer = result.layer_failure or f"layer {number(result.layer_error)} {result.layer} {result.layer_reference}"
    return f"{result.status}: input {number(result.input_error)}, torch {number(result.torch_error)}, {layer}"[:300]


# ---------------------------------------------------------------------------------------------------------- the section


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.0e}" if math.isfinite(value) else str(value)


def section(chosen: Sequence[Entry]) -> str:
    """The section of RESULTS.md: counts, failures by cause, and one row a model."""
    exports, checks = read(Export), read(Check)
    rows, counts, failures = [], Counter[str](), []
    for entry in chosen:
        exported, checked = exports.get(entry.name), checks.get(entry.name)
        if exported is None:
            counts["not run"] += 1
            continue
        if exported.failure or checked is None:
            status = f"torch: {exported.stage}" if exported.failure else "not checked"
            counts[status] += 1
            failures += [[entry.name, exported.stage, exported.failure]] if exported.failure else []
            rows.append([entry.name, entry.family, "–", exported.exporter or "–", *["–"] * 7, status])
            continue
        counts[checked.status if not checked.failure else f"pycam: {checked.stage}"] += 1
        if checked.failure:
            cause = f"no rule for {', '.join(checked.missing)}" if checked.missing else checked.failure
            failures.append([entry.name, checked.stage, cause])
        place_ = f"{checked.module or '–'} ({checked.layer_op})" if checked.layer else "none"
        rows.append([
            entry.name, entry.family, exported.nodes, exported.exporter,
            f"{checked.compile_seconds:.1f}" if checked.compile_seconds is not None else "–",
            number(checked.forward_error), number(checked.input_error), number(checked.torch_error),
            place_, "×".join(map(str, checked.layer_shape)) or "–",
            number(checked.layer_error), checked.status,
        ])  # fmt: skip
    header = [
        "model", "family", "nodes", "exporter", "compile, s", "forward", "input gradient", "torch float32's",
        "layer", "shape", "layer gradient", "status",
    ]  # fmt: skip
    total = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    text = (
        f"{report.circumstances(PACKAGES)}\n\n"
        f"`python -m bench.zoo`: {len(chosen)} models, random weights. Relative errors (2-norm) of `pycam.vjp`, run by "
        f"onnxruntime in float32, against torch in float64. `ok`: within {TOLERANCE:g}; `kink`: within it for one "
        f"of the two images, or once they move by a rounding error (a ReLU or a max-pool flipped); `noise`: within "
        f"{NOISE_FACTOR:g} × the error of torch's own float32 gradient.\n\n**{total}.**\n\n{report.table(header, rows)}"
    )
    if failures:
        cells = [[name, stage, cause.replace("|", "\\|")[:300]] for name, stage, cause in failures]
        text += "\n\nFailures:\n\n" + report.table(["model", "stage", "cause"], cells)
    return text + "\n\nLeft out: " + "; ".join(f"{name} ({why})" for name, why in SKIPPED.items()) + "."


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.zoo", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--export", action="store_true", help="only the export stage")
    parser.add_argument("--check", action="store_true", help="only the check stage, of what was exported")
    parser.add_argument("--only", metavar="REGEX", default="", help="models whose name matches")
    parser.add_argument("--failed", action="store_true", help="repeat what failed")
    parser.add_argument("--again", action="store_true", help="repeat everything")
    parser.add_argument("--table", action="store_true", help="print the section of RESULTS.md")
    parser.add_argument("--write", action="store_true", help="put it there")
    parser.add_argument("--bisect", action="store_true", help="print where the gradient goes wrong; needs --only")
    parser.add_argument("--list", action="store_true", help="print the models")
    options = parser.parse_args(argv)
    chosen = [entry for entry in entries() if re.search(options.only, entry.name)]
    if options.list:
        print("\n".join(f"{entry.name} {entry.family} {entry.shapes}" for entry in chosen))
    elif options.table or options.write:
        text = section(chosen)
        print(text)
        if options.write:
            report.write_section("Gradients through the model zoos", text)
    elif options.bisect:
        for entry in chosen:
            bisect(entry)
    else:
        torch.set_num_threads(1)
        stages = [s for s, wanted in ((Export, options.export), (Check, options.check)) if wanted] or [Export, Check]
        for group in [chosen] if len(stages) == 1 else [[entry] for entry in chosen]:
            for stage in stages:
                run(stage, group, options.failed, options.again)
    return 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
