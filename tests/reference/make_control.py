"""Models with control flow and recurrent layers as torch exports them, and torch's gradients for their input.

    python tests/reference/make_control.py        # with torch 2.14.1, onnx and onnxscript

writes `control/<name>.onnx` and `control/<name>.npz` (inputs by name, `cotangent`, `gradient` for `x`, and the output
`y`).  `legacy`: TorchScript, which keeps loops and branches; `dynamo`: `torch.cond`, and recurrent layers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

HERE = Path(__file__).parent / "control"


class LSTM(nn.Module):
    """Two bidirectional layers, batch first."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 5, num_layers=2, bidirectional=True, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y, (h, c) = self.lstm(x)
        return torch.cat([y.mean(1), h.sum(0), c.sum(0)], 1)


class GRU(nn.Module):
    """A bidirectional layer, and one that goes on from its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.GRU(4, 5, bidirectional=True)
        self.second = nn.GRU(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        y, h = self.first(x)
        z, last = self.second(y, h[:1])
        return z.mean(0) + last[0]


class RNN(nn.Module):
    """ReLU, with an initial state."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(4, 5, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.rnn(x, x[:1, :, :1].expand(1, -1, 5).contiguous())
        return y.mean(0)


class Steps(nn.Module):
    """A hand-written recurrence that collects its states in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.size(1), 5)
        states: list[Tensor] = []
        for t in range(x.size(0)):
            h = torch.tanh(self.cell(torch.cat([x[t], h], 1)))
            states.append(h)
        return torch.stack(states, 1).mean(1) * h


class Until(nn.Module):
    """A loop that ends by its condition, with a branch inside."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 4) * 0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        k = 0
        while k < 9 and bool(y.abs().sum() < 100.0):
            if bool(y.sum() > 0):  # noqa: SIM108  # a branch is what it is about
                y = y + torch.relu(y @ self.w)
            else:
                y = y * 1.5 - torch.sigmoid(y)
            k += 1
        return y.sin()


class Branch(nn.Module):
    """`torch.cond`."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda x: torch.tanh(self.a(x)), lambda x: self.b(x).relu() + 1, (x,))


class Scanned(nn.Module):
    """`torch.scan`."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 4) * 0.5)

    def forward(self, x: Tensor) -> Tensor:
        from torch._higher_order_ops.scan import scan

        def step(h: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.tanh(h @ self.w + u)
            return h, h * u

        last, ys = scan(step, torch.zeros(2, 4), x)
        return ys.sum(0) * last


def without_traces(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without the stack traces that the dynamo exporter notes at its nodes."""
    graphs = [model.graph]
    nodes = [node for function in model.functions for node in function.node]
    while graphs:
        graph = graphs.pop()
        nodes += graph.node
        graphs += [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
    for node in nodes:
        kept = [p for p in node.metadata_props if "stack_trace" not in p.key and ".py" not in p.value]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
        node.doc_string = ""
    return model


def main() -> None:
    """Write all of them."""
    HERE.mkdir(exist_ok=True)
    for name, module, shape, how, dynamic in (
        ("legacy_lstm", LSTM(), (2, 6, 4), "legacy", {0: "N", 1: "T"}),
        ("dynamo_lstm", LSTM(), (2, 6, 4), "dynamo", None),
        ("legacy_gru", GRU(), (6, 2, 4), "legacy", {0: "T", 1: "N"}),
        ("dynamo_gru", GRU(), (6, 2, 4), "dynamo", None),
        ("legacy_rnn", RNN(), (6, 2, 4), "legacy", {0: "T", 1: "N"}),
        ("legacy_steps", Steps(), (6, 2, 4), "script", {0: "T", 1: "N"}),
        ("legacy_until", Until(), (2, 4), "script", {0: "N"}),
        ("dynamo_cond", Branch(), (3, 4), "dynamo", None),
        ("dynamo_scan", Scanned(), (6, 2, 4), "dynamo", None),
    ):
        torch.manual_seed(1)
        for p in module.parameters():
            nn.init.normal_(p, std=0.4)
        module.eval()
        x = torch.randn(shape, requires_grad=True)
        y = module(x)
        cotangent = torch.randn_like(y)
        (gradient,) = torch.autograd.grad(y, x, cotangent)
        path = HERE / f"{name}.onnx"
        if how == "dynamo":
            torch.onnx.export(module, (x.detach(),), path, dynamo=True, input_names=["x"], output_names=["y"],
                              external_data=False)  # fmt: skip
        else:
            exported = torch.jit.script(module) if how == "script" else module
            torch.onnx.export(exported, (x.detach(),), path, dynamo=False, input_names=["x"], output_names=["y"],
                              dynamic_axes={"x": dynamic}, opset_version=17)  # fmt: skip
        onnx.save(without_traces(onnx.load(path)), path)
        arrays = {"x": x, "y": y, "cotangent": cotangent, "gradient": gradient}
        np.savez_compressed(path.with_suffix(".npz"), **{k: v.detach().numpy() for k, v in arrays.items()})
        print(name, path.stat().st_size)


if __name__ == "__main__":
    main()
