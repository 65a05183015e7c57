"""Twelve torchvision classifiers with seeded random weights, and their ONNX exports by both exporters of torch.

No weights are downloaded. A randomly initialised deep network is degenerate: activations vanish or explode and all
classes look alike. So every batch-norm gets statistics fitted to seeded images, after which activations and gradients
have the size they have in a trained network. The shifts are drawn around 1, not 0: with zero-mean pre-activations such
a network is chaotic (float32 rounding grows to 4e-5 of the last activations of ResNet-50, against 1e-6 with this
shift), and nothing could be compared to 1e-4. About a tenth of the units stays off.

    python -m bench.models            # export everything, check it against torch, print a table

Weights and exports are cached in ``$PYCAM_BENCH_CACHE`` (default: ``bench/.cache``).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from torch import nn

from bench.peers import torchvision

SEED = 20261
CLASSES = 1000
EXPORTERS = ("dynamo", "legacy")


@dataclass(frozen=True)
class Spec:
    """How to build one model, and the two layers that are explained (module paths, as ``get_submodule`` and pycam take
    them).

    No layer here is changed in place by the op behind it: peers that hook modules would see the changed values. (That
    is why DenseNet's last layer is the dense block and not ``features``, whose output torchvision rectifies in place.)
    """

    last: str
    middle: str
    size: int = 224
    linear_tail: str = ""  # the final linear layer, where nothing but global average pooling lies between it and `last`
    options: tuple[tuple[str, Any], ...] = ()

    def layer(self, which: str) -> str:
        return {"last": self.last, "middle": self.middle}[which]


_NO_AUX = (("aux_logits", False), ("transform_input", False), ("init_weights", True))

MODELS: dict[str, Spec] = {
    "resnet50": Spec("layer4", "layer3", linear_tail="fc"),
    "vgg16": Spec("features.29", "features.22"),
    "googlenet": Spec("inception5b", "inception4d", linear_tail="fc", options=_NO_AUX),
    "densenet121": Spec("features.denseblock4", "features.denseblock3"),
    "mobilenet_v2": Spec("features.18", "features.13", linear_tail="classifier.1"),
    "mobilenet_v3_large": Spec("features.16", "features.12"),
    "efficientnet_b0": Spec("features.8", "features.4", linear_tail="classifier.1"),
    "squeezenet1_1": Spec("features.12", "features.7"),
    "shufflenet_v2_x1_0": Spec("conv5", "stage3", linear_tail="fc"),
    "inception_v3": Spec("Mixed_7c", "Mixed_6e", size=299, linear_tail="fc", options=_NO_AUX),
    "regnet_y_400mf": Spec("trunk_output", "trunk_output.block3", linear_tail="fc"),
    "convnext_tiny": Spec("features.7", "features.5.4"),
}


class ExportFailed(RuntimeError):
    """The torch exporter refused the model, or the exported model disagrees with torch."""


def cache() -> Path:
    """The folder of weights and exports; it ignores itself in git."""
    folder = Path(os.environ.get("PYCAM_BENCH_CACHE") or Path(__file__).parent / ".cache")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".gitignore").write_text("*\n")
    return folder


def images(name: str, count: int, seed: int = SEED) -> torch.Tensor:
    """Seeded images ``(count, 3, size, size)``, about standardised: coarse blobs with finer noise, so that maps have a
    structure in space."""
    size = MODELS[name].size
    generator = torch.Generator().manual_seed(seed)
    octaves = ((6, 1.0), (24, 0.5), (size, 0.25))
    return sum(
        amplitude
        * nn.functional.interpolate(
            torch.randn(count, 3, side, side, generator=generator), (size, size), mode="bicubic"
        )
        for side, amplitude in octaves
    )  # type: ignore[return-value]


def calibrate(model: nn.Module, batches: Sequence[torch.Tensor]) -> None:
    """Give every batch-norm a random affine part, and running statistics that are the plain average over `batches`."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    model.eval()
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.0)
        nn.init.normal_(norm.bias, 1.0, 0.2)
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
        norm.train()
    with torch.no_grad():
        for batch in batches if norms else ():
            model(batch)
    model.eval()


def build(name: str) -> nn.Module:
    """The seeded model in eval mode; weights are made once and kept in the cache, so that all processes have the very
    same ones."""
    spec = MODELS[name]
    weights = cache() / "weights" / f"{name}.pt"
    torch.manual_seed(SEED)
    model = getattr(torchvision.models, name)(weights=None, num_classes=CLASSES, **dict(spec.options)).eval()
    if weights.exists():
        model.load_state_dict(torch.load(weights))
        return model
    for key, parameter in model.named_parameters():
        if key.endswith("layer_scale"):  # ConvNeXt starts at 1e-6, where its blocks do nothing
            nn.init.uniform_(parameter, 0.1, 0.5)
    calibrate(model, [images(name, 8, SEED + i) for i in range(4)])
    weights.parent.mkdir(exist_ok=True)
    torch.save(model.state_dict(), weights)
    return model


def gradients(
    model: nn.Module, x: torch.Tensor, classes: torch.Tensor, layers: Sequence[str]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Activations and the gradient of the summed class scores (``classes`` of shape (N,)) for each layer."""
    seen: list[torch.Tensor] = []
    handles = [
        model.get_submodule(layer).register_forward_hook(lambda _m, _i, out: seen.append(out)) for layer in layers
    ]
    try:
        logits = model(x)
    finally:
        for handle in handles:
            handle.remove()
    score = logits.gather(1, classes[:, None]).sum()
    return [(a.detach(), g) for a, g in zip(seen, torch.autograd.grad(score, seen), strict=True)]


def check_sane(name: str, model: nn.Module) -> str:
    """Raise unless logits tell classes and images apart and both layers have finite, non-zero gradients; return the
    figures."""
    spec, x = MODELS[name], images(name, 2)
    with torch.no_grad():
        logits = model(x)
    classes = logits.argmax(1)
    pairs = gradients(model, x, classes, (spec.middle, spec.last))
    figures = {
        "logits": logits.std(1).min().item(),
        "images": (logits[0] - logits[1]).std().item() / logits.std().item(),
        "A": min(a.std().item() for a, _ in pairs),
        "g": min(g.std().item() for _, g in pairs),
    }
    live = min((g != 0).float().mean().item() for _, g in pairs)
    finite = all(torch.isfinite(t).all() for pair in pairs for t in pair)
    text = ", ".join(f"{key} {value:.2g}" for key, value in figures.items()) + f", live {live:.0%}"
    if not finite or live < 0.05 or min(figures.values()) < 1e-9 or figures["images"] < 1e-3:
        raise ValueError(f"{name} is degenerate: {text}")
    return text


def export(name: str, exporter: str, *, model: nn.Module | None = None) -> Path:
    """Export with a dynamic batch, check the forward against torch (1e-4 relative), and return the path; cached."""
    path = cache() / exporter / f"{name}.onnx"
    if path.exists():
        return path
    path.parent.mkdir(exist_ok=True)
    model = model or build(name)
    draft = path.with_suffix(".tmp")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            to_onnx(model, images(name, 2), draft, exporter)
    except Exception as error:
        raise ExportFailed(f"{exporter} exporter on {name}: {type(error).__name__}: {error}") from error
    error_ = forward_error(name, draft, model)
    if not error_ <= 1e-4:
        raise ExportFailed(f"{exporter} export of {name} disagrees with torch: relative error {error_:.1e}")
    draft.rename(path)
    return path


def to_onnx(model: nn.Module, x: torch.Tensor, path: Path, exporter: str) -> None:
    """``torch.onnx.export`` with a dynamic batch, one file, input ``input`` and output ``logits``."""
    names: dict[str, Any] = {"input_names": ["input"], "output_names": ["logits"]}
    if exporter == "dynamo":
        shapes = ({0: torch.export.Dim("batch")},)
        torch.onnx.export(
            model, (x,), str(path), dynamo=True, external_data=False, dynamic_shapes=shapes, verbose=False, **names
        )
    else:
        axes = {"input": {0: "batch"}, "logits": {0: "batch"}}
        torch.onnx.export(model, (x,), str(path), dynamo=False, dynamic_axes=axes, **names)


def forward_error(name: str, path: Path, model: nn.Module) -> float:
    """Relative error of onnxruntime's logits against torch's, at a batch size that was not the exported one."""
    x = images(name, 3, SEED + 100)
    with torch.no_grad():
        expected = model(x).numpy()
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    actual = session.run(None, {"input": x.numpy()})[0]
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.models", description="Export the twelve models by both exporters."
    )
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--exporters", nargs="+", default=list(EXPORTERS), choices=EXPORTERS)
    options = parser.parse_args(argv)
    record, failures = cache() / "exports.json", 0
    results: dict[str, str] = json.loads(record.read_text()) if record.exists() else {}
    for name in options.models:
        model = build(name)
        print(f"{name:20} {check_sane(name, model)}", flush=True)
        for exporter in options.exporters:
            start = time.perf_counter()
            try:
                path = export(name, exporter, model=model)
                text = f"ok, {path.stat().st_size / 1e6:.1f} MB, {time.perf_counter() - start:.1f} s, {path}"
            except ExportFailed as error:
                failures += 1
                text = "".join(traceback.format_exception_only(error)).strip()
            results[f"{exporter}/{name}"] = text
            record.write_text(json.dumps(results, indent=1))
            print(f"  {exporter:8} {text}", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
