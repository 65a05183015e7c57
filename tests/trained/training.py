"""What the training scripts share: layers, the loop and the export."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from scenes import SIZE, WORDS
from torch import Tensor, nn

FOLDER = Path(__file__).parent
TEST_SEED = 2  # of the scenes that the printed accuracy is of; training draws its own
PREPROCESS = json.dumps({"size": [SIZE, SIZE], "mean": [0.0] * 3, "std": [255.0] * 3})


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Convolution 3×3, batch normalisation (folded into it by the export), ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def train(
    model: nn.Module, loss: Callable[[np.random.Generator, int], Tensor], steps: int, rate: float, seed: int
) -> nn.Module:
    """Minimise `loss`, which draws a step's batch from a generator: AdamW, one cycle of the rate; then `eval()`."""
    started, rng = time.perf_counter(), np.random.default_rng(seed)
    optimiser = torch.optim.AdamW(model.parameters(), rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, steps, pct_start=0.15)
    model.train()
    for step in range(1, steps + 1):
        value = loss(rng, step)
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        if step % (steps // 8) == 0:
            print(f"  step {step}: loss {value.item():.4f}, {time.perf_counter() - started:.0f} s", flush=True)
    return model.eval()


def export(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    name: str,
    labels: Sequence[str] = (),
    free: Mapping[str, Mapping[int, str]] | None = None,
) -> Path:
    """Write `<name>.onnx`: its batch and what else is `free` of any size, its labels and words in the metadata."""
    path = FOLDER / f"{name}.onnx"
    axes = {key: {0: "N"} | dict((free or {}).get(key, {})) for key in [*inputs, *outputs]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            tuple(inputs.values()),
            path,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
        )
    written = onnx.load(path)
    properties = {"words": "\n".join(WORDS)} if any(x.dtype == torch.int64 for x in inputs.values()) else {}
    properties |= {"pycam.labels": "\n".join(labels)} if labels else {}
    if any(len(x.shape) == 4 for x in inputs.values()):
        properties["pycam.preprocess"] = PREPROCESS
    onnx.helper.set_model_props(written, properties)
    onnx.checker.check_model(written, full_check=True)
    onnx.save(written, path)
    print(f"{path.name}: {path.stat().st_size} bytes, {sum(p.numel() for p in model.parameters())} parameters")
    return path
