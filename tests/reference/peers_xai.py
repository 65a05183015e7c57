"""Cases of openvino_xai, by its own code on OpenVINO models made from the ONNX files, and the attention methods,
restated in plain torch from their papers."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import openvino as ov
import torch
from openvino_xai.methods.black_box.rise import RISE
from openvino_xai.methods.white_box.recipro_cam import ReciproCAM, ViTReciproCAM
from openvino_xai.methods.white_box.torch import TorchViTReciproCAM

from tests.reference.peers_cam import finals
from tests.reference.peers_nets import GRID, Case, Subject, forward_outputs, generator, pick

LIBRARY = "openvino-xai 1.1.0, openvino 2024.4.0"
RISE_OPTIONS: dict[str, Any] = {"num_masks": 32, "num_cells": 4, "prob": 0.5}


@contextlib.contextmanager
def float32_inference() -> Iterator[None]:
    """OpenVINO computes in bfloat16 by default on CPUs that have it: here it is told not to."""
    compile_model = ov.Core.compile_model

    def exact(core: Any, *args: Any, **options: Any) -> Any:
        return compile_model(core, *args, **options | {"config": {"INFERENCE_PRECISION_HINT": "f32"}})

    with mock.patch.object(ov.Core, "compile_model", exact):
        yield


def rise_draws(mask: int) -> tuple[np.ndarray, np.ndarray]:
    """Uniform numbers of one mask: the grid (cells,cells) from its stream, the shifts (rows, columns) from that of
    index + 2³²."""
    cells = RISE_OPTIONS["num_cells"]
    grid = generator(mask).random((cells, cells), dtype=np.float32)
    return grid, generator(mask + (1 << 32)).random(2, dtype=np.float32)


class RiseRandom:
    """Stands for the generator of openvino_xai's RISE, which asks for a grid and two shifts per mask; counts them."""

    def __init__(self) -> None:
        self.masks = 0
        self.shifts = 0

    def random(self, size: tuple[int, int]) -> np.ndarray:
        grid, self.uniform = rise_draws(self.masks)
        assert grid.shape == size
        self.masks += 1
        return grid

    def integers(self, low: int, high: float) -> int:
        assert low == 0
        self.shifts += 1
        return int(self.uniform[(self.shifts - 1) % 2] * np.float32(high))


def scaled(raw: np.ndarray) -> np.ndarray:
    """openvino_xai's scaling without its factor 255: ``(x − min)/(max − min + 1e-12)`` per map (…,h,w)."""
    low, high = raw.min((-2, -1), keepdims=True), raw.max((-2, -1), keepdims=True)
    return (raw - low) / (high - low + 1e-12)


def rise_masks(size: tuple[int, int]) -> np.ndarray:
    """RISE's masks (M,H,W), restated: a grid of cells×cells bits, resized (bicubic) to (cells+1) cells, cropped at the
    shift, clipped."""
    cells = RISE_OPTIONS["num_cells"]
    cell_h, cell_w = (math.ceil(length / cells) for length in size)
    masks = []
    for index in range(RISE_OPTIONS["num_masks"]):
        uniform, shifts = rise_draws(index)
        grid = (uniform < RISE_OPTIONS["prob"]).astype(np.float32)
        down, right = int(shifts[0] * np.float32(cell_h)), int(shifts[1] * np.float32(cell_w))
        full = cv2.resize(grid, ((cells + 1) * cell_w, (cells + 1) * cell_h), interpolation=cv2.INTER_CUBIC)
        masks.append(np.clip(full[down : down + size[0], right : right + size[1]], 0, 1))
    return np.stack(masks)


def rise(subject: Subject, path: Path) -> Case:
    size, masks = subject.net.size, rise_masks(subject.net.size)
    with torch.no_grad():
        images = torch.from_numpy(masks)[:, None, None] * subject.x
        logits = subject.model(images.flatten(0, 1)).unflatten(0, images.shape[:2]).numpy()
    n = np.arange(len(subject.x))[:, None]
    restated = np.einsum("mnk,mhw->nkhw", logits[:, n, subject.targets], masks)
    note = "raw = Σ_i y_i·mask_i, not divided; `masks` (M,H,W) were used; `scaled` min-maxed. Draws: rise_draws."
    raw, library = restated, "restated"
    if size[0] == size[1]:  # the peer swaps height and width when it resizes
        explainer = RISE(ov.convert_model(path), lambda output: output[0])
        found = []
        for x, classes in zip(subject.x.numpy(), subject.targets, strict=True):
            random = RiseRandom()
            with mock.patch.object(np.random, "default_rng", lambda seed, random=random: random):
                maps = explainer.generate_saliency_map(x[None], classes.tolist(), scale_output=False, **RISE_OPTIONS)
            assert (random.masks, random.shifts) == (RISE_OPTIONS["num_masks"], 2 * RISE_OPTIONS["num_masks"])
            found.append([maps[int(c)] for c in classes])
        raw, library = np.array(found), LIBRARY
        np.testing.assert_allclose(raw, restated, rtol=1e-4, atol=1e-4)
    else:
        note += " The peer swaps height and width of a non-square input: restated."
    return Case("rise", library, {"raw": raw, "scaled": scaled(raw), "masks": masks}, "", RISE_OPTIONS, note)


def ov_name(model: ov.Model, tensor: str) -> str:
    """The OpenVINO node that makes an ONNX tensor."""
    for node in model.get_ordered_ops():
        if any(tensor in output.get_names() for output in node.outputs()):
            return node.get_friendly_name()
    raise ValueError(f"no OpenVINO node makes {tensor!r}")


def white_box(explainer: Any, subject: Subject) -> np.ndarray:
    """Maps (N,K,h,w) of the targets, one image per call."""
    found = [explainer.generate_saliency_map(x[None]) for x in subject.x.numpy()]
    return np.stack([maps.reshape(-1, *maps.shape[-2:])[row] for maps, row in zip(found, subject.targets, strict=True)])


def recipro(subject: Subject, path: Path, tensors: dict[str, str]) -> Iterator[Case]:
    model = ov.convert_model(path)
    if subject.net.reshape is None:
        note = (
            "raw: logits of the tail on A at one position (1×1, no Gaussian); `scaled` min-maxed, at the layer's size."
        )
        layer, node = subject.net.layers["last"], ov_name(model, tensors["last"])
        raw = white_box(ReciproCAM(model, target_layer=node, embed_scaling=False), subject)
        peer = white_box(ReciproCAM(model, target_layer=node), subject) / 255
        np.testing.assert_allclose(raw, restated_recipro(subject, layer), rtol=1e-4, atol=1e-4)
        yield Case("reciprocam", LIBRARY, {"raw": raw, "scaled": peer}, layer, {}, note)
        layer = subject.net.layers["middle"]  # the peer refuses layers with h ≥ C
        raw = restated_recipro(subject, layer)
        yield Case("reciprocam/middle", "restated", {"raw": raw, "scaled": scaled(raw)}, layer, {}, note)
        return
    for key, options in {
        "reciprocam": {},
        "reciprocam/no_cls_token": {"cls_token": False},
        "reciprocam/single": {"use_gaussian": False},
    }.items():
        node = ov_name(model, tensors["stream"])
        raw = white_box(ViTReciproCAM(model, target_layer=node, embed_scaling=False, **options), subject)
        np.testing.assert_allclose(raw, restated_vit_recipro(subject, **options), rtol=1e-4, atol=1e-4)
        note = "blocks.1's output (skip path) and blocks.2.norm1's output both masked; class token as the option says."
        yield Case(key, LIBRARY, {"raw": raw, "scaled": scaled(raw)}, "blocks.1", options, note)
    # openvino_xai's torch form masks the norm's output only and leaves the skip path whole: the class token, which
    # alone reaches the score from a last block, comes out the same.
    form = TorchViTReciproCAM(subject.model, target_layer="blocks.2.norm1", embed_scaling=False)
    np.testing.assert_allclose(white_box(form, subject), restated_vit_recipro(subject), rtol=1e-4, atol=1e-4)


def restated_recipro(subject: Subject, layer: str) -> np.ndarray:
    """Logits (N,K,h,w) with the layer's output kept at one position."""
    module = subject.model.get_submodule(layer)
    with torch.no_grad(), forward_outputs(subject.model, [layer]) as seen:
        subject.model(subject.x)
    found = []
    for a, x, row in zip(seen[0], subject.x, subject.targets, strict=True):
        h, w = a.shape[1:]
        variants = a * torch.eye(h * w).reshape(h * w, 1, h, w)
        handle = module.register_forward_hook(lambda _m, _i, _o, variants=variants: variants)
        with torch.no_grad():
            logits = subject.model(x[None].expand(h * w, -1, -1, -1))
        handle.remove()
        found.append(logits[:, row].T.reshape(len(row), h, w).numpy())
    return np.stack(found)


def restated_vit_recipro(subject: Subject, use_gaussian: bool = True, cls_token: bool = True) -> np.ndarray:
    """Logits (N,K,h,w) with the residual stream into the last block and its first norm's output masked alike: the class
    token whole or zero, the patch tokens by a 3×3 Gaussian or a single one at the position."""
    count = GRID * GRID
    single = torch.eye(count).reshape(count, 1, GRID, GRID)
    kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
    spread = torch.nn.functional.conv2d(single, kernel[None, None], padding=1) if use_gaussian else single
    mask = torch.cat([torch.full((count, 1), float(cls_token)), spread.reshape(count, count)], 1)[:, :, None]
    last = subject.model.get_submodule("blocks.2")
    with torch.no_grad(), forward_outputs(subject.model, ["blocks.1", "blocks.2.norm1"]) as seen:
        subject.model(subject.x)
    found = []
    with torch.no_grad():
        for stream, normed, row in zip(*seen, subject.targets, strict=True):
            tokens = mask * stream + last.attn(mask * normed)
            tokens = tokens + last.mlp(last.norm2(tokens))
            logits = subject.model.head(subject.model.norm(tokens)[:, 0])
            found.append(logits[:, row].T.reshape(len(row), GRID, GRID).numpy())
    return np.stack(found)


def attention_cases(subject: Subject) -> Iterator[Case]:
    """Rollout, Chefer's relevance and LeGrad; raw maps (N,K,8,8), rollout without K."""
    model, size, depth = subject.model, subject.net.size, len(subject.model.blocks)
    paths = [f"blocks.{i}.attn.softmax" for i in range(depth)]
    with forward_outputs(model, paths) as maps, forward_outputs(model, [f"blocks.{i}" for i in range(depth)]) as states:
        output = model(subject.x)
    eye = torch.eye(maps[0].shape[-1])
    grid = (len(subject.x), GRID, GRID)

    rollout = eye
    for attention in maps:
        mixed = attention.mean(1) + eye
        rollout = mixed / mixed.sum(-1, keepdim=True) @ rollout
    raw = rollout[:, 0, 1:].reshape(grid).detach().numpy()
    note = (
        "R = Π (mean_h A + I, rows divided by their sum), later blocks on the left; class row, patch columns. (N,8,8)"
    )
    yield Case(
        "rollout", "restated (2005.00928)", {"raw": raw, "final": finals(raw[:, None], size)[:, 0]}, "", {}, note
    )

    heads = {
        "cls": lambda state: model.head(model.norm(state)[:, 0]),
        "mean": lambda state: model.head(model.norm(state.mean(1))),
    }

    def relevance(classes: np.ndarray) -> torch.Tensor:
        gradients = torch.autograd.grad(pick(output, classes).sum(), maps, retain_graph=True)
        total = eye.expand(len(subject.x), -1, -1)
        for attention, g in zip(maps, gradients, strict=True):
            total = total + (g * attention).relu().mean(1) @ total
        return total[:, 0, 1:].reshape(grid)

    def legrad(classes: np.ndarray, head: str) -> torch.Tensor:
        total = torch.zeros(grid)
        for attention, state in zip(maps, states, strict=True):
            score = output if head == "final" else heads[head](state)
            (g,) = torch.autograd.grad(pick(score, classes).sum(), attention, retain_graph=True)
            total = total + g.relu().mean((1, 2))[:, 1:].reshape(grid) / depth
        return total

    def case(key: str, library: str, function: Any, note: str) -> Case:
        raw = subject.columns(lambda classes: function(classes).detach().numpy())
        return Case(key, library, {"raw": raw, "final": finals(raw, size)}, "", {}, note)

    note = "R ← R + mean_h relu(g·A)·R from R = I, first block first; class row, patch columns."
    yield case("chefer", "restated (2103.15679)", relevance, note)
    each = "Mean over blocks, heads and query tokens of relu(dy/dA), patch columns; "
    scores = {
        "cls": "y of block l = head(norm(Z_l))[class token]",
        "mean": "y of block l = head(norm(mean of all tokens of Z_l)), as legrad-torch 1.1 does for CLIP",
        "final": "y = the model's score for every block",
    }
    for head, text in scores.items():
        yield case(f"legrad/{head}", "restated (2404.03214)", lambda c, head=head: legrad(c, head), each + text)


def cases(subject: Subject, path: Path, tensors: dict[str, str]) -> Iterator[Case]:
    with float32_inference():
        yield rise(subject, path)
        yield from recipro(subject, path, tensors)


def restated_cases(subject: Subject) -> Iterator[Case]:
    if subject.net.reshape is not None:
        yield from attention_cases(subject)
