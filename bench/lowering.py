"""What each way to lower a gradient costs in onnxruntime: the measurements behind the choices in `pycam/grad`.

    python -m bench.lowering [--repeats 15]

prints a markdown table: per case the time of the forward op, and of each form of its gradient as a multiple of it
(the one that pycam emits is bold).  One thread; forms take turns (ABAB…) and medians are compared, so that a noisy
machine slows all of them alike.  All forms of a case are checked against each other first, except where a runtime's
op is known to differ: MaxUnpool writes one gradient per position where windows overlap, in place of their sum.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from pycam.gradient import vjp

Array = NDArray[np.float32]
Constant = NDArray[Any]
Feed = Mapping[str, Array]


@dataclass
class Case:
    """A forward op, the forms of its gradient as `{name: (nodes, constants)}`, and their inputs."""

    name: str
    forward: str  # nodes from x to y
    inputs: dict[str, Array]  # x, and w if the op has weights
    forms: dict[str, tuple[str, dict[str, Constant]]] = field(default_factory=dict)
    ours: str = "pycam"  # what to call the form that vjp emits
    differs: tuple[str, ...] = ()  # forms that are wrong for this case


def model(nodes: str, inputs: Feed, constants: Mapping[str, NDArray[np.generic]], output: str) -> onnx.ModelProto:
    """A model from text; inputs have the shapes of the arrays."""
    names = ", ".join(f"float[{', '.join(map(str, a.shape))}] {k}" for k, a in inputs.items())
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 21]> bench ({names}) => (float {output}) {{ {nodes} }}'
    )
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items())
    proto.graph.output[0].ClearField("type")
    return onnx.shape_inference.infer_shapes(proto, strict_mode=True)


def alone(proto: onnx.ModelProto, output: str) -> onnx.ModelProto:
    """The part of a model that computes one output: onnxruntime would run the rest as well."""
    needed = {output}
    for node in list(proto.graph.node)[::-1]:
        if needed.isdisjoint(node.output):
            proto.graph.node.remove(node)
        else:
            needed.update(node.input)
    for values, kept in ((proto.graph.output, {output}), (proto.graph.input, needed)):
        for value in [v for v in values if v.name not in kept]:
            values.remove(value)
    return proto


def session(proto: onnx.ModelProto) -> ort.InferenceSession:
    """On one CPU thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def alternate(sessions: Mapping[str, ort.InferenceSession], feed: Feed, repeats: int) -> dict[str, float]:
    """Median seconds per run of each session, taking turns."""
    feeds = {k: {i.name: feed[i.name] for i in s.get_inputs()} for k, s in sessions.items()}
    times: dict[str, list[float]] = {k: [] for k in sessions}
    for turn in range(repeats + 2):
        for name, each in sessions.items():
            start = time.perf_counter()
            each.run(None, feeds[name])
            if turn >= 2:  # the first ones warm up
                times[name].append(time.perf_counter() - start)
    return {k: float(np.median(v)) for k, v in times.items()}


def measure(case: Case, repeats: int) -> str:
    """One line of the table."""
    weights = {k: v for k, v in case.inputs.items() if k != "x"}
    inputs = {"x": case.inputs["x"]}
    forward = model(case.forward, inputs, weights, "y")
    y = session(forward).run(None, inputs)[0]
    dy = np.random.default_rng(1).normal(size=y.shape).astype(np.float32)
    gradient = alone(vjp(forward, ["x"]), "x.gradient")
    sessions = {"forward": session(forward), case.ours: session(gradient)}
    for name, (nodes, constants) in case.forms.items():
        sessions[name] = session(model(nodes, {**inputs, "y": y, "dy": dy}, {**weights, **constants}, "dx"))
    feed = {**inputs, "y": y, "dy": dy, "y.cotangent": dy}
    want = _run(sessions[case.ours], feed)
    for name in case.forms:
        if name not in case.differs:
            np.testing.assert_allclose(_run(sessions[name], feed), want, rtol=1e-3, atol=1e-3, err_msg=name)
    seconds = alternate(sessions, feed, repeats)
    base = seconds.pop("forward")
    cells = [f"**{k} {t / base:.2f}**" if k == case.ours else f"{k} {t / base:.2f}" for k, t in seconds.items()]
    return f"| {case.name} | {1e3 * base:.2f} | {' · '.join(cells)} |"


def _run(each: ort.InferenceSession, feed: Feed) -> Array:
    result: Array = each.run(None, {i.name: feed[i.name] for i in each.get_inputs()})[0]
    return result


def normal(*shape: int) -> Array:
    """Numbers to compute with."""
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def convolutions() -> Iterator[Case]:
    """Flipped weights against ConvTranspose; at stride 2 the flipped form needs zeros between the positions."""
    for name, cin, cout, size, k, s, group in (
        ("3x3 s1 64→64 56²", 64, 64, 56, 3, 1, 1),
        ("1x1 s1 256→64 56²", 256, 64, 56, 1, 1, 1),
        ("3x3 s1 512→512 7²", 512, 512, 7, 3, 1, 1),
        ("3x3 s2 128→128 56²", 128, 128, 56, 3, 2, 1),
        ("1x1 s2 256→512 56²", 256, 512, 56, 1, 2, 1),
        ("3x3 s1 depthwise 96 56²", 96, 96, 56, 3, 1, 96),
        ("3x3 s2 depthwise 96 56²", 96, 96, 56, 3, 2, 96),
        ("5x5 s2 depthwise 144 56²", 144, 144, 56, 5, 2, 144),
    ):
        pad = k // 2
        out = (size + 2 * pad - k) // s + 1
        over = (out - 1) * s + k - 2 * pad - size  # ≤ 0: what no window reaches
        x, w = normal(1, cin, size, size), normal(cout, cin // group, k, k)
        common = f"kernel_shape=[{k},{k}], group={group}"
        begin, end = k - 1 - pad, k - 1 - pad - over - (s - 1)
        flipped = w.reshape(group, cout // group, -1, k, k).swapaxes(1, 2).reshape(cin, -1, k, k)[:, :, ::-1, ::-1]
        forms: dict[str, tuple[str, dict[str, Constant]]] = {}
        if s == 1:
            nodes = f"dx = ConvTranspose<{common}, pads=[{pad},{pad},{pad},{pad}]>(dy, w)"
            forms["ConvTranspose"] = (nodes, {})
        else:
            pads = f"pads=[{begin},{begin},{max(end, 0)},{max(end, 0)}]"
            nodes = "a = Reshape(dy, apart) b = Pad(a, zeros) c = Reshape(b, whole) e = Slice(c, from, to, axes) "
            forms["Conv over zeros"] = (
                nodes + f"dx = Conv<{common}, {pads}>(e, v)",
                {
                    "apart": np.array([1, cout, out, 1, out, 1]),
                    "zeros": np.array([0] * 9 + [s - 1, 0, s - 1]),
                    "whole": np.array([1, cout, out * s, out * s]),
                    "from": np.array([0, 0]),
                    "to": np.array([out * s + min(end, 0)] * 2),
                    "axes": np.array([2, 3]),
                    "v": np.ascontiguousarray(flipped),
                },
            )
        forward = f"y = Conv<{common}, strides=[{s},{s}], pads=[{pad},{pad},{pad},{pad}]>(x, w)"
        yield Case(name, forward, {"x": x, "w": w}, forms, "Conv, flipped" if s == 1 else "ConvTranspose")


def activations() -> Iterator[Case]:
    """ReLU masks."""
    zero = {"zero": np.float32(0).reshape(())}
    yield Case(
        "ReLU 256x56²",
        "y = Relu(x)",
        {"x": normal(1, 256, 56, 56)},
        {
            "Cast": ("m = Greater(y, zero) c = Cast<to=1>(m) dx = Mul(dy, c)", {**zero}),
            "Where": ("m = Greater(y, zero) dx = Where(m, dy, zero)", {**zero}),
            "Sign": ("s = Sign(y) dx = Mul(dy, s)", {}),
            "Clip": (
                "b = Mul(y, big) m = Clip(b, zero, one) dx = Mul(dy, m)",
                {**zero, "one": np.float32(1).reshape(()), "big": np.float32(1e30).reshape(())},
            ),
        },
    )


POOLS = (
    ("3x3 s2 p1 64 112²", 64, 112, 3, 2, 1),
    ("2x2 s2 64 112²", 64, 112, 2, 2, 0),
    ("3x3 s1 p1 192 28²", 192, 28, 3, 1, 1),
    ("5x5 s1 p2 256 20²", 256, 20, 5, 1, 2),
)


def max_pools() -> Iterator[Case]:
    """The portable form against those that need `Indices`, which other runtimes have wrong."""
    for name, channels, size, k, s, pad in POOLS:
        window = f"MaxPool<kernel_shape=[{k},{k}], strides=[{s},{s}], pads=[{pad},{pad},{pad},{pad}]>(x)"
        shape = np.array([1, channels, size, size])
        flat = {"all": np.array([-1]), "shape": shape, "zeros": np.zeros(channels * size**2, np.float32)}
        scatter = (
            f"q, i = {window} j = Reshape(i, all) d = Reshape(dy, all) "
            'z = ScatterElements<reduction="add">(zeros, j, d) dx = Reshape(z, shape)'
        )
        around = f"kernel_shape=[{k},{k}], strides=[{s},{s}], pads=[{pad},{pad},{pad},{pad}]"
        unpool = f"q, i = {window} dx = MaxUnpool<{around}>(dy, i, shape)"
        forms = {"ScatterElements": (scatter, flat), "MaxUnpool": (unpool, {"shape": shape})}
        wrong = ("MaxUnpool",) if k > s else ()
        yield Case(f"max {name}", f"y = {window}", {"x": normal(*shape)}, forms, differs=wrong)


def average_pools() -> Iterator[Case]:
    """An average pool again (stride 1), upsampling (windows that tile), else ConvTranspose of one channel."""
    for name, channels, size, k, s, pad in POOLS:
        around = f"kernel_shape=[{k},{k}], strides=[{s},{s}], pads=[{pad},{pad},{pad},{pad}]"
        tail = max(((size + 2 * pad - k) // s) * s + k - pad - size, 0)
        reshaped: dict[str, Constant] = {
            "flat": np.array([channels, 1, (size + 2 * pad - k) // s + 1, (size + 2 * pad - k) // s + 1]),
            "shape": np.array([1, channels, size, size]),
            "w": np.full((1, 1, k, k), 1 / k**2, np.float32),
        }
        transposed = f"ConvTranspose<strides=[{s},{s}], pads=[{pad},{pad},{tail},{tail}]>"
        forms: dict[str, tuple[str, dict[str, Constant]]] = {
            "one channel": (f"a = Reshape(dy, flat) b = {transposed}(a, w) dx = Reshape(b, shape)", reshaped),
            "depthwise": (
                f"dx = {transposed[:-1]}, group={channels}>(dy, w)",
                {"w": np.full((channels, 1, k, k), 1 / k**2, np.float32)},
            ),
        }
        forward = f"y = AveragePool<{around}, count_include_pad=1>(x)"
        yield Case(f"average {name}", forward, {"x": normal(1, channels, size, size)}, forms)


def upsamplings() -> Iterator[Case]:
    """Nearest upsampling: an average pool against sums over blocks and matrices."""
    for channels, size, s in ((256, 40, 2), (64, 112, 2), (21, 32, 4)):
        repeat = np.kron(np.eye(size, dtype=np.float32), np.ones((1, s), np.float32))
        scales = 'coordinate_transformation_mode="asymmetric", nearest_mode="floor"'
        yield Case(
            f"nearest x{s} {channels} {size}²",
            f"y = Resize<{scales}>(x, , scales)",
            {"x": normal(1, channels, size, size), "scales": np.array([1, 1, s, s], np.float32)},
            {
                "ReduceSum": (
                    "a = Reshape(dy, blocks) dx = ReduceSum<keepdims=0>(a, axes)",
                    {"blocks": np.array([1, channels, size, s, size, s]), "axes": np.array([3, 5])},
                ),
                "MatMul": ("a = MatMul(dy, t) dx = MatMul(r, a)", {"r": repeat, "t": repeat.T.copy()}),
            },
        )


def main() -> None:
    """Measure everything and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=15, help="runs of each form per case")
    repeats = parser.parse_args().repeats
    print(f"onnxruntime {ort.__version__}, one thread, medians of {repeats} runs in turns\n")
    print("| case | forward, ms | gradients, times the forward |\n|---|---|---|")
    for cases in (convolutions, activations, max_pools, average_pools, upsamplings):
        for case in cases():
            print(measure(case, repeats), flush=True)


if __name__ == "__main__":
    main()
