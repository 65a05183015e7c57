"""Exports for `bench/auto_layers.py`, without their weights, and what torch's modules did in each model."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import resource
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import onnx
import torch
import torchvision
from torch import nn

from bench.zoo_models import SEED, Entry, First, entries, liven

SECONDS = 300
MEMORY = 10 * 2**30
ZEROS = 8 * 2**30
"""Bytes of the sparse file that all weights point into."""
LARGE = 16384
"""Bytes from which a tensor is a weight."""


@dataclass
class Exported:
    """What torch knows about a model."""

    name: str
    family: str
    task: str = "classification"
    way: str = ""  # dynamo, legacy
    input_shape: list[int] = field(default_factory=list)
    output_shapes: list[list[int]] = field(default_factory=list)
    features: list[int] | None = None  # what timm's forward_features returns
    stage: str = ""  # timm's feature_info[-1]
    calls: list[list[Any]] = field(default_factory=list)  # see `_watch`: module, class, shape, weights, alive
    seconds: float = 0.0
    failure: str = ""


def cache() -> Path:
    """The folder of all results; it ignores itself in git."""
    folder = Path(os.environ.get("PYCAM_BENCH_CACHE") or Path(__file__).parent / ".cache")
    (folder / "auto-layers").mkdir(parents=True, exist_ok=True)
    (folder / ".gitignore").write_text("*\n")
    return folder


def place(name: str) -> Path:
    """Where the export of a model lies."""
    return cache() / "auto-layers" / f"{name.replace('/', '-')}.onnx"


def read(kind: type[Any], file: str) -> dict[str, Any]:
    """The last line of each model."""
    path, known = cache() / file, {f.name for f in fields(kind)}
    lines = path.read_text().splitlines() if path.exists() else []
    rows = ({k: v for k, v in json.loads(line).items() if k in known} for line in lines)
    return {row["name"]: kind(**row) for row in rows}


def detectors() -> Iterator[Entry]:
    """torchvision's detectors, on small images."""
    for name in torchvision.models.list_models(module=torchvision.models.detection):
        family = torchvision.models.get_model_builder(name).__module__.removeprefix("torchvision.models.")
        size = {"ssd300_vgg16": 300, "ssdlite320_mobilenet_v3_large": 320}.get(name, 256)
        given = (("weights_backbone", None), *((("min_size", size), ("max_size", size)) if size == 256 else ()))
        yield Entry(f"torchvision/{name}", family, ((3, size, size),), given)


def everything() -> list[Entry]:
    return [*entries(), *detectors()]


class Flat(nn.Module):
    """A detector whose outputs are boxes, labels, scores … of one image."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> Any:
        return tuple(self.model(list(x))[0].values())


def export(entry: Entry, ways: list[str]) -> Exported:
    """Build a model, watch its modules, and export it without its weights."""
    found, start = Exported(entry.name, entry.family), time.perf_counter()
    try:
        found.task = entry.family.split(".")[0] if "." in entry.family else "classification"
        model, x = _build(entry, found)
        _watch(model, x, found)
        _to_onnx(model, x, entry, ways if found.task != "detection" else ["legacy"], found)
    except Exception as error:
        traceback.print_exc()
        found.failure = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    found.seconds = time.perf_counter() - start
    return found


def _build(entry: Entry, found: Exported) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(SEED)
    source, _, name = entry.name.partition("/")
    if source == "torchvision":
        model = torchvision.models.get_model(name, weights=None, **dict(entry.options))
    else:
        import timm

        model = timm.create_model(name, pretrained=False, **dict(entry.options))
    model.eval().requires_grad_(False)
    liven(model)
    errors: list[str] = []
    for shape in entry.shapes:
        x = torch.rand(1 if found.task == "detection" else 2, *shape)
        try:
            with torch.no_grad():
                y = model(x) if found.task != "detection" else model(list(x))
                if source == "timm":
                    features = model.forward_features(x)
                    features = features[0] if isinstance(features, (tuple, list)) else features
                    found.features = list(features.shape) if isinstance(features, torch.Tensor) else None
                    found.stage = _stage(model)
        except Exception as error:  # the model's own words about a size that does not suit it
            errors.append(f"{shape}: {type(error).__name__}: {error}")
            continue
        if found.task == "detection":
            return Flat(model).eval(), x
        return (model if isinstance(y, torch.Tensor) else First(model).eval()), x
    raise RuntimeError("; ".join(errors))


def _stage(model: nn.Module) -> str:
    info = getattr(model, "feature_info", None)
    last = list(info)[-1] if info else None
    return str(last.get("module", "")) if isinstance(last, Mapping) else ""


def _watch(model: nn.Module, x: torch.Tensor, found: Exported) -> None:
    """Every module that returned three axes or more, and on what share of its positions the output depends."""
    handles = []
    found.calls = []

    def hook(name: str) -> Any:
        def record(module: nn.Module, _: Any, y: Any) -> None:
            y = y[0] if isinstance(y, (tuple, list)) and y else y
            if not isinstance(y, torch.Tensor) or y.ndim < 3:
                return
            weights = not list(module.children()) and any(p.ndim > 1 for p in module.parameters())
            call = [name, type(module).__name__, list(y.shape), weights, 0.0]
            found.calls.append(call)
            if y.requires_grad:
                y.register_hook(lambda grad: call.__setitem__(4, max(call[4], _alive(grad))))

        return record

    for name, module in model.named_modules():
        path = name.removeprefix("model.") if isinstance(model, (First, Flat)) else name
        handles.append(module.register_forward_hook(hook(path)))
    x = x.clone().requires_grad_()
    y = model(x)
    for handle in handles:
        handle.remove()
    outputs = y if isinstance(y, (tuple, list)) else [y]
    seeds = [(v * torch.rand_like(v)).sum() for v in outputs if v.requires_grad]
    if seeds:
        torch.stack(seeds).sum().backward()
    found.input_shape = list(x.shape)
    found.output_shapes = [list(v.shape) for v in outputs]


def _alive(grad: torch.Tensor) -> float:
    """The largest share of positions with a gradient, whichever axis the channels lie along: (N, T, C), (N, C, h, w) or
    (N, h, w, C)."""
    live = grad[0] != 0
    if grad.ndim == 3:
        return float(live.any(-1).float().mean())
    return max(float(live.any(0).float().mean()), float(live.any(-1).float().mean()))


def _to_onnx(model: nn.Module, x: torch.Tensor, entry: Entry, ways: list[str], found: Exported) -> None:
    path, errors = place(entry.name), []
    full = path.with_suffix(".full")
    for way in ways:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if way == "legacy":
                    free = {} if found.task == "detection" else {"input": {0: "batch"}}
                    torch.onnx.export(
                        model, (x,), str(full), dynamo=False, input_names=["input"], dynamic_axes=free, opset_version=18
                    )
                else:
                    torch.onnx.export(
                        model, (x,), str(full), dynamo=True, external_data=False, verbose=False, input_names=["input"],
                        dynamic_shapes=({0: torch.export.Dim.AUTO},),
                    )  # fmt: skip
            _strip(full, path)
            found.way = way
            return
        except Exception as error:  # whatever the exporter says, the next way is tried
            errors.append(f"{way}: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
        finally:
            full.unlink(missing_ok=True)
    raise RuntimeError("; ".join(errors))


def _strip(source: Path, target: Path) -> None:
    """Let all large tensors point into a sparse file of zeros."""
    zeros = target.parent / "zeros.bin"
    if not zeros.exists():
        with zeros.open("wb") as file:
            file.truncate(ZEROS)
    model = onnx.load(source)
    for tensor in model.graph.initializer:
        count = len(tensor.raw_data)
        if count >= LARGE and tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16):
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in {"location": zeros.name, "offset": "0", "length": str(count)}.items():
                tensor.external_data.add(key=key, value=value)
    target.write_bytes(model.SerializeToString())


def export_all(only: re.Pattern[str], again: bool, ways: list[str]) -> None:
    """Each model in a process of its own, with limits on time and memory."""
    done = read(Exported, "auto-layers-export.jsonl")
    fork = multiprocessing.get_context("fork")
    for entry in everything():
        if not only.search(entry.name) or (entry.name in done and not again):
            continue
        process = fork.Process(target=_export_alone, args=(entry, ways))
        process.start()
        process.join(SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
        if entry.name not in read(Exported, "auto-layers-export.jsonl") or process.exitcode:
            append("auto-layers-export.jsonl", Exported(entry.name, entry.family, failure="too long, or too large"))


def _export_alone(entry: Entry, ways: list[str]) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    torch.set_num_threads(1)
    found = export(entry, ways)
    append("auto-layers-export.jsonl", found)
    print(f"{entry.name}: {found.way or found.failure} ({found.seconds:.1f} s)", flush=True)


def append(file: str, row: Any) -> None:
    with (cache() / file).open("a") as lines:
        lines.write(json.dumps(asdict(row)) + "\n")
