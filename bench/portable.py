"""Whether `lower="portable"` runs everywhere: gradients and explain graphs in other runtimes, against onnxruntime.

    python -m bench.portable [--only REGEX] [--runtimes NAME…] [--python OTHER/bin/python] [--node FOLDER] [--models …]

Per model: the gradient for its images (`pycam.vjp`) and the explain graph of a layer in the middle (`pycam.export`),
for one class per image and for any number; for small graphs of one op the gradient.  Each runs as it is, with a free
batch; where a runtime fails at that, with all sizes fixed; where it still fails, the plain model is run as well, to see
whether the gradient is to blame.  The error is relative to the largest entry of what onnxruntime computes; it may be
1e-4, or what becomes of rounding: ten times what onnxruntime's own result changes by when its inputs do by 1e-6.

Nothing needs to be there but onnxruntime: `--python` is where OpenVINO, cv2, tract and onnx are looked for (this one),
`--node` a folder with `node_modules` of onnxruntime-node and onnxruntime-web:

    ONNXRUNTIME_NODE_INSTALL=skip npm install --prefix FOLDER onnxruntime-node onnxruntime-web
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper
from onnx.shape_inference import infer_shapes
from PIL import Image, ImageDraw, ImageFont

import pycam
from bench import report
from bench.runtimes import MARK
from pycam.compile import forward_model
from pycam.errors import BatchAxisError, PycamError

HERE = Path(__file__).parent
TOLERANCE = 1e-4
SECONDS = 300.0
"""A runtime may take so long for a graph."""

NAMES = {
    "onnxruntime-node": "onnxruntime-node",
    "onnxruntime-web": "onnxruntime-web (wasm)",
    "openvino": "OpenVINO",
    "opencv": "cv2.dnn",
    "tract": "tract",
    "reference": "onnx.reference",
}
IN_NODE = ("onnxruntime-node", "onnxruntime-web")

SHARED = ("lite0", "mnist_cnn_tf", "selfie_seg", "fashion_scene_cnn", "ppocr_det")
FREE = {"ppocr_det": (1, 3, 64, 128)}
"""Sizes of inputs that leave more than the batch free."""

Feed = Mapping[str, np.ndarray]


# ---------------------------------------------------------------- graphs


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


OPS: dict[str, tuple[str, Feed, Feed]] = {
    "max-pool 3×3 s2": (
        "y = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)", {"x": normal(2, 4, 13, 13)}, {}),
    "max-pool 3×3 s2, ceil": (
        "y = MaxPool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(x)", {"x": normal(2, 4, 12, 12)}, {}),
    "max-pool 2×2 s2": ("y = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x)", {"x": normal(2, 4, 13, 12)}, {}),
    "conv 3×3 s1": ("y = Conv<pads=[1,1,1,1]>(x, w)", {"x": normal(2, 4, 9, 9)}, {"w": normal(6, 4, 3, 3)}),
    "conv 3×3 s2": ("y = Conv<strides=[2,2], pads=[1,1,1,1]>(x, w)",
                    {"x": normal(2, 4, 10, 10)}, {"w": normal(6, 4, 3, 3)}),
    "depthwise conv s2": ("y = Conv<strides=[2,2], pads=[1,1,1,1], group=4>(x, w)",
                          {"x": normal(2, 4, 10, 10)}, {"w": normal(4, 1, 3, 3)}),
    "grouped conv s2": ("y = Conv<strides=[2,2], pads=[0,1,1,0], group=2>(x, w)",
                        {"x": normal(2, 4, 11, 11)}, {"w": normal(6, 2, 3, 3)}),
    "conv, dilated": ("y = Conv<dilations=[2,2], pads=[2,2,2,2]>(x, w)",
                      {"x": normal(2, 4, 10, 10)}, {"w": normal(6, 4, 3, 3)}),
    "ConvTranspose s2": ("y = ConvTranspose<strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]>(x, w)",
                         {"x": normal(2, 4, 6, 6)}, {"w": normal(4, 3, 3, 3)}),
    "average pool with pads": ("y = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)",
                               {"x": normal(2, 4, 11, 11)}, {}),
    "average pool s1 with pads": ("y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(x)",
                                  {"x": normal(2, 4, 8, 8)}, {}),
    "average pool 2×2 s2": ("y = AveragePool<kernel_shape=[2,2], strides=[2,2]>(x)", {"x": normal(2, 4, 8, 8)}, {}),
    "bilinear Resize ×2": ('y = Resize<mode="linear">(x, , s)',
                           {"x": normal(2, 3, 6, 5)}, {"s": np.array([1, 1, 2, 2], np.float32)}),
    "bilinear Resize to a size": (
        'y = Resize<mode="linear", coordinate_transformation_mode="align_corners">(x, , , s)',
        {"x": normal(2, 3, 6, 5)}, {"s": np.array([2, 3, 9, 7])}),
    "nearest Resize ×2": (
        'y = Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">(x, , s)',
        {"x": normal(2, 3, 6, 5)}, {"s": np.array([1, 1, 2, 2], np.float32)}),
    "Gather, duplicates": ("y = Gather<axis=1>(x, i)", {"x": normal(2, 5, 3)}, {"i": np.array([0, 2, 2, 4, -1])}),
    "Gather, many duplicates": ("y = Gather<axis=1>(x, i)", {"x": normal(2, 5, 3)}, {"i": np.array([2] * 6 + [0])}),
    "Gather, indices an input": ("y = Gather<axis=1>(x, i)",
                                 {"x": normal(2, 5, 3), "i": np.array([0, 2, 2, 4, -1])}, {}),
    "GatherElements, duplicates": ("y = GatherElements<axis=1>(x, i)",
                                   {"x": normal(2, 5)}, {"i": np.array([[0, 2, 2], [4, 4, -1]])}),
    "Slice, step 2": ("y = Slice(x, b, e, a, s)", {"x": normal(2, 3, 9)},
                      {"b": np.array([1]), "e": np.array([9]), "a": np.array([2]), "s": np.array([2])}),
    "Pad, reflect": ('y = Pad<mode="reflect">(x, p)', {"x": normal(2, 3, 6, 6)}, {"p": np.array([0, 0, 1, 2] * 2)}),
    "TopK": ("y, i = TopK<axis=1>(x, k)", {"x": normal(2, 7)}, {"k": np.array([3])}),
    "ReduceMax": ("y = ReduceMax<keepdims=0>(x, a)", {"x": normal(2, 4, 5)}, {"a": np.array([2])}),
    "CumSum": ("y = CumSum(x, a)", {"x": normal(2, 4, 5)}, {"a": np.array(1)}),
    "Einsum": ('y = Einsum<equation="bij,bkj->bik">(x, z)', {"x": normal(2, 4, 5), "z": normal(2, 3, 5)}, {}),
    "LSTM": ("y = LSTM<hidden_size=4>(x, w, r, b)", {"x": normal(3, 2, 5)},
             {"w": normal(1, 16, 5), "r": normal(1, 16, 4), "b": normal(1, 32)}),
    "GRU": ("y = GRU<hidden_size=4, linear_before_reset=1>(x, w, r, b)", {"x": normal(3, 2, 5)},
            {"w": normal(1, 12, 5), "r": normal(1, 12, 4), "b": normal(1, 24)}),
    "LayerNormalization": ("y = LayerNormalization(x, s, b)",
                           {"x": normal(2, 4, 6)}, {"s": normal(6), "b": normal(6)}),
    "InstanceNormalization": ("y = InstanceNormalization(x, s, b)",
                              {"x": normal(2, 4, 6, 6)}, {"s": normal(4), "b": normal(4)}),
    "GroupNormalization": ("y = GroupNormalization<num_groups=2>(x, s, b)",
                           {"x": normal(2, 4, 6, 6)}, {"s": normal(4), "b": normal(4)}),
    "Softmax": ("y = Softmax<axis=-1>(x)", {"x": normal(2, 4, 6)}, {}),
    "Gelu": ("y = Gelu(x)", {"x": normal(2, 4, 6)}, {}),
    "GridSample": ("y = GridSample<align_corners=0>(x, grid)",
                   {"x": normal(2, 3, 6, 6), "grid": np.tanh(normal(2, 4, 4, 2))}, {}),
}  # fmt: skip


def op_model(nodes: str, inputs: Feed, weights: Feed) -> onnx.ModelProto:
    kinds = {"float32": "float", "int64": "int64"}
    names = ", ".join(f"{kinds[a.dtype.name]}[{', '.join(map(str, a.shape))}] {k}" for k, a in inputs.items())
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 21]> op ({names}) => (float y) {{ {nodes} }}'
    )
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items())
    model.graph.output[0].ClearField("type")
    result = infer_shapes(model)
    if not result.graph.output[0].type.tensor_type.HasField("shape"):  # nothing is inferred for GroupNormalization
        result.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", 1, inputs["x"].shape))
    return result


def smooth(*shape: int) -> np.ndarray:
    """As a photo is: patches of 8 by 8, and a little noise."""
    spatial = (1, 1, 0) if shape[-1] in (1, 3) else (0, 1, 1)
    coarse = normal(shape[0], *(-(-d // 8) if s else d for d, s in zip(shape[1:], spatial, strict=True)))
    for axis, s in enumerate(spatial, 1):
        coarse = np.repeat(coarse, 8, axis) if s else coarse
    cut = coarse[:, : shape[1], : shape[2], : shape[3]]
    return (cut + 0.2 * normal(*shape, seed=3)).astype(np.float32)


def writing(*shape: int) -> np.ndarray:
    """Black letters on white, in [-1, 1]: what a text detector answers with more than zeros."""
    page = Image.new("L", (shape[3], shape[2]), 255)
    ImageDraw.Draw(page).text((6, shape[2] // 4), "pycam 42", fill=0, font=ImageFont.load_default(22))
    gray = np.asarray(page, np.float32) / 127.5 - 1
    return np.broadcast_to(gray, shape).copy() + 0.02 * normal(*shape, seed=3)


def _moved(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.float32(1e-6) * normal(*x.shape, seed=2)) if x.dtype.kind == "f" else x


@dataclass
class Graph:
    """One graph to run: as it is, with fixed sizes, and what it was made from."""

    model: str
    kind: str
    free: onnx.ModelProto | None  # with a free batch; None: nothing of it is free
    fixed: onnx.ModelProto
    plain: onnx.ModelProto
    normalised: onnx.ModelProto
    feed: dict[str, np.ndarray]
    noise: float = 0.0  # what a change of the inputs by 1e-6 does to the result

    def __post_init__(self) -> None:
        names = [v.name for v in self.fixed.graph.output]
        moved = {k: _moved(v) for k, v in self.feed.items()}
        error = worst(run(self.fixed, self.feed, names), run(self.fixed, moved, names))
        assert not isinstance(error, str)
        self.noise = error


def graphs(models: Path | None, only: str) -> Iterator[Graph]:
    for name, path in _files(models):
        if re.search(only, name):
            yield from _of_model(name, onnx.load(path))
    for name, (nodes, inputs, weights) in OPS.items():
        if re.search(only, name):
            yield _gradient(name, None, op_model(nodes, inputs, weights), dict(inputs))


def _files(models: Path | None) -> Iterator[tuple[str, Path]]:
    if models is not None:
        yield from ((name, models / f"{name}.onnx") for name in SHARED)
    stored = HERE.parent / "tests" / "reference"
    yield from (
        (path.stem, path) for path in [*sorted(stored.glob("*.onnx")), *sorted(stored.glob("exporters/*.onnx"))]
    )


def _of_model(name: str, model: onnx.ModelProto) -> Iterator[Graph]:
    initial = {i.name for i in model.graph.initializer}
    (image,) = (v for v in model.graph.input if v.name not in initial)
    dims = [d.dim_value for d in image.type.tensor_type.shape.dim]
    shape = FREE.get(name) or (dims[0] or 2, *dims[1:])
    feed = {image.name: (writing if name == "ppocr_det" else smooth)(*shape)}
    fixed = pinned(model, feed)
    free = model if 0 in dims else None
    yield _gradient(name, free, fixed, feed)
    layer = _middle(fixed)
    for kind, classes in (("one class", 1), ("K classes", None)):
        try:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "explain.onnx"
                made = []
                for each in (free, fixed):
                    if each is not None:
                        place = layer if each is fixed else _same_place(free, fixed, layer)
                        pycam.export(each, file, layer=place, classes=classes, lower="portable")
                        made.append(onnx.load(file))
        except BatchAxisError:
            continue
        targets = np.array([[-1] if classes else [-1, 0]] * shape[0])
        whole = {**feed, "targets": targets}
        yield Graph(name, kind, made[0] if free is not None or not classes else None, pinned(made[-1], whole), fixed,
                    forward_model(fixed)[0], whole)  # fmt: skip


def _gradient(name: str, free: onnx.ModelProto | None, fixed: onnx.ModelProto, feed: dict[str, np.ndarray]) -> Graph:
    output = fixed.graph.output[0].name
    y = run(fixed, feed, [output])[0]
    wrt = [k for k, v in feed.items() if v.dtype.kind == "f"]
    made = [pycam.vjp(m, wrt, output, lower="portable") if m is not None else None for m in (free, fixed)]
    whole = {**feed, f"{output}.cotangent": normal(*y.shape, seed=1)}
    assert made[1] is not None
    return Graph(name, "gradient", made[0], pinned(made[1], whole), fixed, forward_model(fixed)[0], whole)


def _middle(model: onnx.ModelProto) -> str:
    """The layer nearest to the middle that can be explained."""
    layers = pycam.layers(model)
    for i in sorted(range(len(layers)), key=lambda i: abs(i - len(layers) // 2)):
        with tempfile.TemporaryDirectory() as folder:
            try:
                pycam.export(model, Path(folder) / "explain.onnx", layer=layers[i].name, classes=1)
            except PycamError:
                continue
            return layers[i].name
    raise AssertionError("no layer can be explained")


def _same_place(free: onnx.ModelProto | None, fixed: onnx.ModelProto, name: str) -> str:
    """The layer of `free` that is `name` in `fixed`: names may differ where shapes are folded."""
    assert free is not None
    names = [layer.name for layer in pycam.layers(free)]
    if name in names:
        return name
    index = [layer.name for layer in pycam.layers(fixed)].index(name)
    return names[min(index, len(names) - 1)]


def pinned(model: onnx.ModelProto, feed: Feed) -> onnx.ModelProto:
    """`model` with the sizes of `feed` for its inputs, and all others inferred from them."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for value in result.graph.input:
        if value.name in feed:
            kind = value.type.tensor_type
            value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, kind.elem_type, feed[value.name].shape))
    del result.graph.value_info[:]
    names = [v.name for v in result.graph.output]
    for value, y in zip(result.graph.output, run(result, feed, names), strict=True):
        value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, y.shape))
    return result


def run(model: onnx.ModelProto, feed: Feed, names: Sequence[str]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(list(names), {i.name: feed[i.name] for i in session.get_inputs()}))


# ---------------------------------------------------------------- runtimes


class Runtime:
    """A runtime in a process that is started again when it dies."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
        self.name, self.command, self.folder = name, command, folder
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        self.process: subprocess.Popen[str] | None = None
        self.version = ""
        self.count = 0

    def start(self) -> str | None:
        """Why the runtime is not there, or None."""
        try:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                env=self.environment,
            )  # fmt: skip
        except OSError as error:
            return str(error)
        said = self._read()
        self.version = said.get("version", "")
        return None if self.version else str(said.get("missing", said.get("error")))

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def error(self, model: onnx.ModelProto, feed: Feed) -> float | str:
        """How far it is from onnxruntime, or what it says in place of a result."""
        names = [v.name for v in model.graph.output]
        wants = run(model, feed, names)
        self.count += 1
        place = self.folder / f"{self.name}.{self.count}"
        onnx.save(model, f"{place}.onnx")
        known = {v.name for v in model.graph.input}
        inputs = []
        for i, (name, array) in enumerate((k, v) for k, v in feed.items() if k in known):
            array.tofile(f"{place}.in{i}")
            inputs.append([name, array.dtype.name, array.shape, f"{place}.in{i}"])
        asked = {"model": f"{place}.onnx", "inputs": inputs, "outputs": names, "out": f"{place}.out"}
        said = self._ask(json.dumps(asked))
        if "error" in said:
            result: float | str = said["error"]
        else:
            result = worst(wants, [np.fromfile(file, dtype).reshape(shape) for dtype, shape, file in said["outputs"]])
        for file in self.folder.glob(f"{place.name}.*"):
            file.unlink()
        return result

    def _ask(self, line: str) -> dict[str, Any]:
        if self.process is None and self.start() is not None:
            return {"error": "does not start again"}
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        said = self._read()
        if "died" in said:
            self.stop()
            return {"error": said["died"]}
        return said

    def _read(self) -> dict[str, Any]:
        assert self.process is not None
        assert self.process.stdout is not None
        while True:
            if not select.select([self.process.stdout], [], [], SECONDS)[0]:
                return {"died": f"no answer within {SECONDS:.0f} s"}
            line = self.process.stdout.readline()
            if not line:
                return {"died": f"the process died ({self.process.wait()})"}
            if line.startswith(MARK):
                found: dict[str, Any] = json.loads(line[len(MARK) :])
                return found


def worst(wants: Sequence[np.ndarray], gots: Sequence[np.ndarray]) -> float | str:
    """The largest error of several outputs, each relative to its largest entry."""
    errors = [0.0]
    for want, got in zip(wants, gots, strict=True):
        if want.shape != got.shape:
            return f"shape {list(got.shape)}, want {list(want.shape)}"
        scale = float(np.abs(want).max(initial=0.0))
        error = float(np.abs(got.astype(np.float64) - want).max(initial=0.0)) / (scale or 1.0)
        errors.append(math.inf if math.isnan(error) else error)
    return max(errors)


# ---------------------------------------------------------------- table


@dataclass
class Cell:
    """What a runtime made of a graph."""

    graph: Graph
    error: float | str
    fixed: bool = False  # only with fixed sizes
    free: float | str = 0.0  # what it made of free sizes
    plain: float | str = field(default=0.0)
    normalised: float | str = field(default=0.0)

    @property
    def right(self) -> bool:
        return good(self.error, self.graph)

    @property
    def forward_fails(self) -> bool:
        """In both forms: where only the model as given is refused, the gradient has to work."""
        return not good(self.plain) and not good(self.normalised)

    @property
    def verdict(self) -> str:
        if self.right:
            return f"{self.error:.0e}{'' if good(self.error) else ' ʳ'}{' ᶠ' if self.fixed else ''}"
        if self.forward_fails:
            return "forward fails"
        what = "forward at opset 21 " if not good(self.normalised) else ""
        return f"**{what}{'fails' if isinstance(self.error, str) else f'{self.error:.0e}'}**"


def good(error: float | str, graph: Graph | None = None) -> bool:
    return not isinstance(error, str) and error <= max(TOLERANCE, 10 * graph.noise if graph is not None else 0.0)


def measure(runtime: Runtime, graph: Graph) -> Cell:
    free = runtime.error(graph.free, graph.feed) if graph.free is not None else 0.0
    if graph.free is not None and good(free, graph):
        return Cell(graph, free)
    cell = Cell(graph, runtime.error(graph.fixed, graph.feed), graph.free is not None, free)
    if not cell.right:
        cell.plain = runtime.error(graph.plain, graph.feed)
        cell.normalised = runtime.error(graph.normalised, graph.feed)
    return cell


def text(cells: Mapping[str, list[Cell]], runtimes: Sequence[Runtime], missing: Mapping[str, str]) -> str:
    """The table: a line per model, the worst of its graphs; and below it what was said."""
    names = list(dict.fromkeys(cell.graph.model for found in cells.values() for cell in found))
    rows = []
    for name in names:
        kinds = [c.graph.kind for c in next(iter(cells.values())) if c.graph.model == name]
        row = [name, "+".join({"gradient": "g", "one class": "1", "K classes": "K"}[k] for k in kinds)]
        row += [_worst([c for c in cells[r.name] if c.graph.model == name]) for r in runtimes]
        rows.append(row)
    sums = ["**right**", ""]
    for runtime in runtimes:
        found = cells[runtime.name]
        ours = [c for c in found if not c.forward_fails]
        exact, right = sum(good(c.error) for c in ours), sum(c.right for c in ours)
        sums.append(f"{exact}{f' + {right - exact} ʳ' if right > exact else ''} of {len(ours)}")
    head = ["model", "graphs", *(f"{NAMES[r.name]} {r.version}" for r in runtimes)]
    parts = [report.circumstances(["onnxruntime", "onnx", "onnx-ir", "numpy"]), report.table(head, [*rows, sums])]
    parts.append(
        "g: gradient for the images, 1 and K: explain graph of a layer in the middle for one class and for K. Entries: "
        "the largest error over the graphs of a line, relative to onnxruntime's largest entry. ᶠ: runs only with all "
        "sizes fixed. ʳ: over 1e-4, but no more than rounding makes of it. The last line leaves out the graphs whose "
        "forward model fails there."
    )
    parts += [f"{NAMES[name]}: not run ({why})." for name, why in missing.items()]
    details = []
    for runtime in runtimes:
        for cell in cells[runtime.name]:
            where = f"- {NAMES[runtime.name]}, {cell.graph.model}, {cell.graph.kind}"
            if not cell.right:
                details.append(f"{where}: {_said(cell.error)}")
                if not good(cell.plain):
                    details.append(f"  - forward: {_said(cell.plain)}")
                if not good(cell.normalised):
                    details.append(f"  - forward at opset 21: {_said(cell.normalised)}")
            elif cell.fixed:
                details.append(f"{where}, free sizes: {_said(cell.free)}")
    return "\n\n".join([*parts, "Details:", "\n".join(details) or "none"])


def _worst(cells: Sequence[Cell]) -> str:
    if not cells:
        return "–"
    bad = [c for c in cells if not c.right]
    if bad:
        return " · ".join(dict.fromkeys(c.verdict for c in bad))
    largest = max(c.error for c in cells if not isinstance(c.error, str))
    rounded = any(not good(c.error) for c in cells)
    return f"{largest:.0e}{' ʳ' if rounded else ''}{' ᶠ' if any(c.fixed for c in cells) else ''}"


def _said(error: float | str) -> str:
    return f"error {error:.1e}" if not isinstance(error, str) else f"`{error[:300].replace('`', '')}`"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.portable", description=(__doc__ or "").partition("\n")[0])
    shared = Path(os.environ.get("PYCAM_SHARED") or HERE.parents[1] / "shared") / "models"
    parser.add_argument(
        "--models", type=Path, default=shared if shared.is_dir() else None, help="folder of real models"
    )
    parser.add_argument("--only", default="", help="regular expression of models and ops")
    parser.add_argument("--runtimes", nargs="+", default=list(NAMES), choices=list(NAMES))
    parser.add_argument("--python", default=sys.executable, help="interpreter that has the Python runtimes")
    parser.add_argument("--node", type=Path, help="folder whose node_modules have onnxruntime-node and -web")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    options = parser.parse_args(argv)

    with tempfile.TemporaryDirectory() as folder:
        runtimes, missing = [], {}
        for name in options.runtimes:
            if name in IN_NODE and options.node is None:
                missing[name] = "no --node given"
                continue
            script = [
                *(
                    ["node", str(HERE / "runtimes.cjs")]
                    if name in IN_NODE
                    else [options.python, str(HERE / "runtimes.py")]
                ),
                name,
            ]
            environment = {"NODE_PATH": str(options.node / "node_modules")} if name in IN_NODE else {}
            runtime = Runtime(name, script, environment, Path(folder))
            why = runtime.start()
            if why is None:
                runtimes.append(runtime)
            else:
                missing[name] = why
        cells: dict[str, list[Cell]] = {r.name: [] for r in runtimes}
        for graph in graphs(options.models, options.only):
            for runtime in runtimes:
                cells[runtime.name].append(cell := measure(runtime, graph))
                print(
                    f"{graph.model}, {graph.kind}, {NAMES[runtime.name]}: {cell.verdict}", file=sys.stderr, flush=True
                )
        for runtime in runtimes:
            runtime.stop()
    result = text(cells, runtimes, missing)
    print(result)
    if options.out is not None:
        options.out.write_text(result + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
