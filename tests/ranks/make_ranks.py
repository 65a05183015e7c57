"""Train and export the networks of this folder, and their maps by torch's autograd, `ranks.npz`.

python tests/ranks/make_ranks.py (torch; two minutes on one core)

`signal.onnx` and `video.onnx` are trained; `recurrent.onnx` and `linear.onnx` keep the weights they were born with.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from generated import BANDS, FRAMES, LENGTH, SIDE, STEPS, clips, signals
from torch import Tensor, nn

FOLDER = Path(__file__).parent


class Net(nn.Module):
    """Features, global average pooling, a linear layer."""

    def __init__(self, features: nn.Sequential, channels: int, classes: int) -> None:
        super().__init__()
        self.features, self.classes = features, nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classes(self.features(x).flatten(2).mean(-1))


def signal() -> Net:
    """(N, 1, 256) → (N, 4)."""
    layers = [nn.Conv1d(1, 16, 9, 2, 4), nn.ReLU(), nn.Conv1d(16, 24, 7, 2, 3), nn.ReLU()]
    return Net(nn.Sequential(*layers, nn.Conv1d(24, 24, 5, 2, 2), nn.ReLU()), 24, len(BANDS))


def video() -> Net:
    """(N, 1, 8, 20, 20) → (N, 4)."""
    layers = [nn.Conv3d(1, 12, 3, 1, 1), nn.ReLU(), nn.Conv3d(12, 16, 3, 2, 1), nn.ReLU()]
    return Net(nn.Sequential(*layers, nn.Conv3d(16, 20, 3, 1, 1), nn.ReLU()), 20, len(STEPS))


class Recurrent(nn.Module):
    """(N, L, 3), channels last → (N, 5): a convolution, and an LSTM whose last step is read."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv1d(3, 10, 5, 2, 2), nn.ReLU()
        self.lstm, self.classes = nn.LSTM(10, 12, batch_first=True), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        steps, _ = self.lstm(self.act(self.conv(x.transpose(1, 2))).transpose(1, 2))
        return self.classes(steps[:, -1])


class Linear(nn.Module):
    """(N, D, H, W, 2), channels last → (N, 4): a convolution, and a linear layer for each position."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear, self.act = nn.Conv3d(2, 6, 3, 2, 1), nn.Linear(6, 7), nn.ReLU()
        self.classes = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        found = torch.relu(self.conv(x.permute(0, 4, 1, 2, 3))).permute(0, 2, 3, 4, 1)
        return self.classes(self.act(self.linear(found)).mean((1, 2, 3)).square())


def train(net: nn.Module, draw: Callable[[int, int], Any], steps: int, batch: int = 64) -> nn.Module:
    """Adam, one cycle, on examples that are never seen twice."""
    started, optimiser = time.perf_counter(), torch.optim.Adam(net.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, steps)
    for step in range(steps):
        x, classes, _ = draw(batch, 1000 + step)
        loss = nn.functional.cross_entropy(net(torch.tensor(x)), torch.tensor(classes))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    x, classes, _ = draw(1000, 1)
    with torch.no_grad():
        share = (net(torch.tensor(x)).argmax(1).numpy() == classes).mean()
    print(f"{share:.1%} of 1000 right after {time.perf_counter() - started:.0f} s")
    return net.eval()


def maps(net: nn.Module, layer: nn.Module, x: Tensor, channels: int) -> dict[str, np.ndarray]:
    """Raw maps (N, 1, …) of the top class by autograd, as pytorch-grad-cam's formulas have them."""
    kept: list[Tensor] = []
    hook = layer.register_forward_hook(lambda module, args, y: kept.append(y))
    y = net(x)
    hook.remove()
    (a,) = kept
    top = y.argmax(1)
    (g,) = torch.autograd.grad(y.gather(1, top[:, None]).sum(), a)
    a, g = a.detach().movedim(channels, 1), g.movedim(channels, 1)
    over = tuple(range(2, a.ndim))
    total = a.sum(over, keepdim=True)
    alpha = g**2 / (2 * g**2 + total * g**3 + 1e-6)
    weights = {
        "gradcam": g.mean(over, keepdim=True),
        "gradcam++": (torch.relu(g) * alpha).sum(over, keepdim=True),
        "xgradcam": (g * a).sum(over, keepdim=True) / (total + 1e-7),
        "layercam": torch.relu(g),
        "hirescam": g,
    }
    return {name: (w * a).sum(1, keepdim=True).numpy() for name, w in weights.items()}


def export(net: nn.Module, x: Tensor, name: str, free: dict[int, str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net, (x,), FOLDER / f"{name}.onnx", dynamo=False, opset_version=17, input_names=["x"], output_names=["y"],
            dynamic_axes={"x": {0: "N"} | free, "y": {0: "N"}},
        )  # fmt: skip
    print(name, (FOLDER / f"{name}.onnx").stat().st_size, "bytes")


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    sound, film = train(signal(), signals, 500), train(video(), clips, 700)
    rng = torch.Generator().manual_seed(5)
    cases: dict[str, tuple[nn.Module, nn.Module, Tensor, int, dict[int, str]]] = {
        "signal": (sound, sound.features[3], torch.tensor(signals(3, 2)[0]), 1, {}),
        "video": (film, film.features[3], torch.tensor(clips(2, 2)[0]), 1, {}),
    }
    steps, voxels = Recurrent().eval(), Linear().eval()
    cases["recurrent"] = (steps, steps.act, torch.randn(2, 40, 3, generator=rng), 1, {1: "L"})
    cases["linear"] = (voxels, voxels.act, torch.randn(2, 6, 8, 10, 2, generator=rng), 4, {1: "D", 2: "H", 3: "W"})
    arrays: dict[str, np.ndarray] = {}
    for name, (net, layer, x, channels, free) in cases.items():
        export(net, x, name, free)
        arrays |= {f"{name}/x": x.numpy(), f"{name}/y": net(x).detach().numpy()}
        arrays |= {f"{name}/{method}": found for method, found in maps(net, layer, x, channels).items()}
    np.savez_compressed(FOLDER / "ranks.npz", **{k: v.astype(np.float32) for k, v in arrays.items()})


if __name__ == "__main__":
    assert LENGTH % 8 == 0
    assert FRAMES % 2 == SIDE % 2 == 0
    main()
