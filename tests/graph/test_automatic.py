"""The automatic layer of scores that keep positions: masks, boxes, several heads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from pycam.errors import LayerError
from pycam.graph.axes import dims
from pycam.graph.builder import Builder
from pycam.graph.load import load
from pycam.graph.locate import list_layers, locate_layers, narrows, path_values
from pycam.graph.normalise import normalise

SHARED = Path(__file__).parents[3] / "shared" / "models"
DOWN = "MaxPool<kernel_shape = [2, 2], strides = [2, 2]>"
SAME = "Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>"
UP = 'Resize<mode = "nearest">'
SIGNATURE = "(float[N, 4, H, W] x) => (float[N, c, h, w] OUTPUT)"


def weights() -> dict[str, np.ndarray]:
    """Convolutions of 4 channels, to as many and to 2; what is resized twice, or to another size."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    return {
        "w3": draw(4, 4, 3, 3), "w1": draw(4, 4, 1, 1), "w8": draw(4, 8, 3, 3), "head": draw(2, 4, 1, 1),
        "twice": np.array([1, 1, 2, 2], np.float32), "eightfold": np.array([1, 1, 8, 8], np.float32),
        "fourfold": np.array([1, 1, 4, 4], np.float32),
        "rows": np.array([0, 2, -1]), "dense": draw(64, 8), "out": draw(8, 2), "seven": np.array([-1, 64]),
    }  # fmt: skip


UNET = f"""
    a = {SAME}(x, w3) e1 = Relu(a) d1 = {DOWN}(e1)
    b = {SAME}(d1, w3) e2 = Relu(b) d2 = {DOWN}(e2)
    m = {SAME}(d2, w3) bottom = Relu(m)
    u2 = {UP}(bottom, , twice) c2 = Concat<axis = 1>(u2, e2) g2 = {SAME}(c2, w8) f2 = Relu(g2)
    u1 = {UP}(f2, , twice) c1 = Concat<axis = 1>(u1, e1) g1 = {SAME}(c1, w8) f1 = Relu(g1)
    z = Conv(f1, head) y = Sigmoid(z)"""
DEEPLAB = f"""
    a = {SAME}(x, w3) e = Relu(a) d = {DOWN}(e) dd = {DOWN}(d) s = {SAME}(dd, w3) trunk = Relu(s)
    far = Conv<kernel_shape = [3, 3], pads = [2, 2, 2, 2], dilations = [2, 2]>(trunk, w3) r = Relu(far)
    g = GlobalAveragePool(trunk) gr = Relu(g) size = Shape<start = 2>(trunk) lead = Shape<end = 2>(gr)
    full = Concat<axis = 0>(lead, size) wide = {UP}(gr, , , full) both = Concat<axis = 1>(r, wide)
    p = {SAME}(both, w8) last = Relu(p) z = Conv(last, head) y = {UP}(z, , fourfold)"""
PYRAMID = f"""
    a = {SAME}(x, w3) e = Relu(a) d = {DOWN}(e) s = {SAME}(d, w3) trunk = Relu(s)
    bins = AveragePool<kernel_shape = [8, 8], strides = [8, 8]>(trunk) q = Conv(bins, w1) qr = Relu(q)
    wide = {UP}(qr, , eightfold) both = Concat<axis = 1>(trunk, wide)
    p = {SAME}(both, w8) last = Relu(p) z = Conv(last, head) y = {UP}(z, , twice)"""
SCALES = f"""
    a = {SAME}(x, w3) e = Relu(a) d = {DOWN}(e) s = {SAME}(d, w3) trunk = Relu(s)
    h1 = {SAME}(trunk, w3) r1 = Relu(h1) z1 = Conv(r1, head) f1 = Reshape(z1, rows)
    d2 = {DOWN}(trunk) s2 = {SAME}(d2, w3) fine = Relu(s2) z2 = Conv(fine, head) f2 = Reshape(z2, rows)
    y = Concat<axis = 2>(f1, f2)"""
FPN = f"""
    a = {SAME}(x, w3) c2 = Relu(a) d = {DOWN}(c2) s = {SAME}(d, w3) c3 = Relu(s)
    l3 = Conv(c3, w1) l2 = Conv(c2, w1) up = {UP}(l3, , twice) m2 = Add(l2, up)
    p3 = {SAME}(l3, w3) p2 = {SAME}(m2, w3)
    z3 = Conv(p3, head) z2 = Conv(p2, head) f3 = Reshape(z3, rows) f2 = Reshape(z2, rows)
    y = Concat<axis = 2>(f2, f3)"""
REGIONS = f"""
    a = {SAME}(x, w3) e = Relu(a) d = {DOWN}(e) s = {SAME}(d, w3) trunk = Relu(s)
    r = RoiAlign<output_height = 4, output_width = 4>(trunk, boxes, which) c = {SAME}(r, w3) rr = Relu(c)
    flat = Reshape(rr, seven) h = Gemm(flat, dense) hr = Relu(h) y = Gemm(hr, out)"""
SUMMED = f"""
    a = {SAME}(x, w3) low = Relu(a) d = {DOWN}(low) s = {SAME}(d, w3) high = Relu(s)
    z1 = Conv(low, head) z2 = Conv(high, head) up = {UP}(z2, , twice) y = Add(z1, up)"""
TWO = f"""
    a = {SAME}(x, w3) e = Relu(a) d = {DOWN}(e) s = {SAME}(d, w3) trunk = Relu(s)
    b = {SAME}(trunk, w3) br = Relu(b) box = Conv(br, head)
    c = {SAME}(trunk, w3) cr = Relu(c) class = Conv(cr, head) y = Concat<axis = 1>(box, class)"""
NETS = {
    "unet": (UNET, "f1"), "deeplab": (DEEPLAB, "last"), "pyramid": (PYRAMID, "last"), "scales": (SCALES, "trunk"),
    "fpn": (FPN, "l3"), "regions": (REGIONS, "trunk"), "summed": (SUMMED, "low"), "two heads": (TWO, "trunk"),
}  # fmt: skip


def graph_of(text_model: Any, body: str, size: tuple[int | str, int | str] = (32, 32), more: str = "") -> ir.Graph:
    y = "float[N, c, h] y" if "rows" in body else "float[R, k] y" if "RoiAlign" in body else "float[N, c, h, w] y"
    inputs = f"float[N, 4, {size[0]}, {size[1]}] x"
    inputs += ", float[R, 4] boxes, int64[R] which" if "RoiAlign" in body else ""
    arrays = {k: v for k, v in weights().items() if f" {k})" in body or f" {k}," in body}
    return normalise(load(text_model(f"({inputs}) => ({y}{more}) {{ {body} }}", **arrays))).graph


def pick(graph: ir.Graph, ends: Sequence[str] = ("y",), layer: str = "auto") -> str | None:
    values = {v.name: v for node in graph for v in node.outputs}
    chosen = [values[name] for name in ends]
    (found,) = locate_layers(graph, layer, chosen[0], ends=chosen)
    return found.name


@pytest.mark.parametrize("size", [(32, 32), (32, 64), ("H", "W")])
@pytest.mark.parametrize("net", NETS)
def test_the_last_features_that_all_of_a_score_goes_through(
    text_model: Any, net: str, size: tuple[int | str, int | str]
) -> None:
    body, expected = NETS[net]
    if net == "fpn" and size == ("H", "W"):
        expected = "c2"  # which grid is the coarsest is not known
    assert pick(graph_of(text_model, body, size)) == expected


def test_several_ends(text_model: Any) -> None:
    """One head alone has its own features; both of them the trunk."""
    assert pick(graph_of(text_model, TWO), ["box"]) == "br"
    assert pick(graph_of(text_model, TWO), ["box", "class"]) == "trunk"
    assert pick(graph_of(text_model, SCALES), ["z2"]) == "fine"


def test_the_end_of_a_model_is_no_layer_of_it(text_model: Any) -> None:
    graph = graph_of(text_model, UNET)
    assert pick(graph, ["z"], "f1") == "f1"
    for name in ("z", "y"):
        with pytest.raises(LayerError, match=rf"'{name}'.*does not lead to the score"):
            pick(graph, ["z"], name)


def test_ends_without_features_in_common(text_model: Any) -> None:
    graph = graph_of(text_model, f"a = {SAME}(x, w3) b = Tanh(x) z = Conv(b, head) y = Concat<axis = 1>(a, z)")
    with pytest.raises(LayerError, match=r"no features.*all of 'y' depend on: name a layer"):
        pick(graph)


def test_what_targets_put_behind_a_model_is_no_layer(text_model: Any) -> None:
    """A mask that a target asks for is no image, and what it is multiplied with no features."""
    graph = graph_of(text_model, UNET)
    before = [layer.name for layer in list_layers(graph, graph.outputs[0])]
    g = Builder(graph)
    mask = ir.Value(name="mask", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["N", 2, 32, 32]))
    graph.inputs.append(mask)
    masked = g.Mul(g.Relu(graph.outputs[0]), g.Tanh(mask))
    for value in (masked, *(x for node in list(graph)[-3:] for x in node.outputs)):
        value.shape = ir.Shape(["N", 2, 32, 32])
    score = g.ReduceSum(masked, [2, 3], keepdims=0)
    assert [layer.name for layer in list_layers(graph, score)] == [*before, "y"]
    assert mask not in path_values(graph, score)
    assert {v.name for v in narrows(graph, path_values(graph, score))} >= {"a", "g1", "f1", "z", "y"}
    values = {v.name: v for node in graph for v in node.outputs}
    assert [v.name for v in locate_layers(graph, "auto", score)] == ["y"]
    assert [v.name for v in locate_layers(graph, "auto", score, ends=[values["z"]])] == ["f1"]


@pytest.mark.parametrize(
    ("model", "ends", "layer", "grid"),
    [
        ("selfie_seg", ["segment"], "seg.nchw", (128, 128)),
        ("ppocr_det", ["p2o.Add.281"], "batch_norm_1.tmp_4", None),
        ("human_centernet", ["tower_0/detections"], "tower_0/CenternetHead/mul:0", (128, 128)),
        (
            "human_blazeface", ["Identity:0", "Identity_1:0"], "StatefulPartitionedCall/functional_1/re_lu_30/Relu:0",
            (16, 16),
        ),
    ],
)  # fmt: skip
def test_real_models(model: str, ends: list[str], layer: str, grid: tuple[int, int] | None) -> None:
    path = SHARED / f"{model}.onnx"
    if not path.exists():
        pytest.skip("needs ../shared/models")
    graph = normalise(load(path)).graph
    assert pick(graph, ends) == layer
    found = next(v for node in graph for v in node.outputs if v.name == layer)
    assert grid is None or dims(found)[2:] == grid
