"""Attention maps: found in every spelling, described, differentiable; and refused where a method cannot use them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from pycam.errors import MethodError, UnsupportedOpError
from pycam.grad import differentiate
from pycam.graph import emit
from pycam.graph.attention import Attention, attention_maps, global_attention
from pycam.graph.axes import dims
from pycam.graph.builder import Builder
from pycam.graph.load import load
from pycam.graph.locate import locate_score
from pycam.graph.normalise import normalise

Net = Callable[..., onnx.ModelProto]
Forward = Callable[..., dict[str, np.ndarray]]
EXPORTERS = Path(__file__).parents[1] / "reference" / "exporters"
OPSETS = {"fused": 23, "fused, 4-D": 23}
SPELT = ["plain", "masked", "mixed", "turned", "beside", "einsum"]
FUSED = ["fused", "fused, 4-D", "microsoft", "microsoft, packed"]


def maps_of(source: Any) -> tuple[ir.Model, ir.Value, list[Attention]]:
    model = normalise(load(source))
    score = locate_score(model.graph).value
    return model, locate_score(model.graph).value, attention_maps(model.graph, score)


def with_outputs(model: ir.Model, values: dict[str, ir.Value]) -> onnx.ModelProto:
    for name, value in values.items():
        emit.add_output(model.graph, value, name, None, ir.DataType.FLOAT)
    return emit.finish(model, stand_alone=True)


def attention_of(model: onnx.ModelProto, x: np.ndarray, block: int, tokens: np.ndarray) -> np.ndarray:
    """softmax(α·Q·Kᵀ) of each head, from the block's normalised tokens (N, T, C)."""
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    q, k = (tokens @ weights[f"w{name}{block}"] for name in ("q", "k"))
    q, k = (a.reshape(*a.shape[:2], 2, 4).swapaxes(1, 2) for a in (q, k))
    scores = q @ k.swapaxes(2, 3) / 2
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


# ---- what is found ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", SPELT + FUSED)
def test_every_spelling_is_found_and_described(vit: Net, form: str) -> None:
    _, _, maps = maps_of(vit(form, opset=OPSETS.get(form, 18)))
    assert len(maps) == 2
    for i, found in enumerate(maps):
        assert (found.heads, found.queries, found.keys) == (2, (4, 3, 1, 0), (4, 3, 1, 0))
        assert not found.windowed
        assert str(i) in found.name
        assert list(dims(found.value))[-2:] == [13, 13]
        assert len(dims(found.value)) == (3 if form == "beside" else 4)
    assert global_attention(maps) == (4, 3, 1, 0)


@pytest.mark.parametrize("form", ["plain", "masked", "turned", "beside", "einsum", "fused", "fused, 4-D", "microsoft"])
@pytest.mark.parametrize("batch", ["N", 2])
def test_probabilities_are_those_of_the_formula(
    vit: Net, forward: Forward, draw: Any, form: str, batch: int | str
) -> None:
    proto, x = vit(form, opset=OPSETS.get(form, 18), batch=batch), draw(2, 3, 8, 6)
    plain = vit("plain")
    plain.graph.output.extend(onnx.ValueInfoProto(name=name) for name in ("n0", "n1"))
    normalised = forward(plain, {"x": x})
    model, _, maps = maps_of(proto)
    g = Builder(model.graph)
    got = forward(with_outputs(model, {f"p.{i}": m.per_head(g, m.value) for i, m in enumerate(maps)}), {"x": x})
    for i in range(2):
        expected = attention_of(plain, x, i, normalised[f"n{i}"])
        np.testing.assert_allclose(got[f"p.{i}"], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got["y"], forward(proto, {"x": x})["y"], rtol=1e-4, atol=1e-5)


def test_values_keep_their_names_where_fused_ops_are_replaced(vit: Net) -> None:
    model, _, _ = maps_of(vit("fused", opset=23))
    names = {y.name for node in model.graph for y in node.outputs}
    assert {"a0", "a1", "x1"} <= names
    assert not any(node.op_type == "Attention" for node in model.graph)


def test_a_fused_op_that_is_an_output_as_well(vit: Net, forward: Forward, draw: Any) -> None:
    proto = vit("fused", opset=23)
    proto.graph.output.append(onnx.helper.make_tensor_value_info("a1", onnx.TensorProto.FLOAT, ["N", 13, 8]))
    model, _, maps = maps_of(proto)
    assert len(maps) == 2
    x = draw(2, 3, 8, 6)
    got, expected = forward(emit.finish(model, stand_alone=True), {"x": x}), forward(proto, {"x": x})
    np.testing.assert_allclose(got["a1"], expected["a1"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("torch_dynamo_vit", 2),
        ("torch_legacy_vit", 2),
        ("torch_dynamo_newest_vit", 2),
        ("jax_equinox_vit", 2),
        ("keras_vit", None),  # its exporter computes the numbers of heads and images as the graph runs
    ],
)
def test_models_of_exporters(name: str, heads: int | None) -> None:
    _, _, maps = maps_of(EXPORTERS / f"{name}.onnx")
    assert [m.heads for m in maps] == [heads, heads]
    assert global_attention(maps)[:2] == (4, 4)
    if name.startswith("torch"):
        assert [m.module for m in maps] == ["blocks.0", "blocks.1"]


# ---- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", SPELT + FUSED)
@pytest.mark.parametrize("end", ["class", "mean"])
def test_the_score_s_gradient_for_the_probabilities(vit: Net, forward: Forward, draw: Any, form: str, end: str) -> None:
    """By finite differences: the model is run on probabilities that are moved along a direction."""
    x, cotangent = draw(2, 3, 8, 6), draw(2, 5, seed=1)
    model, score, maps = maps_of(vit(form, end, opset=OPSETS.get(form, 18)))
    values = [m.value for m in maps]
    g = Builder(model.graph)
    seed = ir.Value(name="seed", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(dims(score)))
    cut = with_outputs(normal := maps_of(vit(form, end, opset=OPSETS.get(form, 18)))[0], {})
    names = [v.name or "" for v in values]
    assert {y.name for node in normal.graph for y in node.outputs} >= {*names}
    model.graph.inputs.append(seed)
    grads, _ = differentiate(g, {score: seed}, values)
    outputs = {f"p.{i}": v for i, v in enumerate(values)} | {f"g.{i}": v for i, v in enumerate(grads) if v is not None}
    got = forward(with_outputs(model, outputs), {"x": x, "seed": cotangent})
    for i, name in enumerate(names):
        gradient = got[f"g.{i}"]
        assert gradient.shape == got[f"p.{i}"].shape
        moved = onnx.ModelProto()
        moved.CopyFrom(cut)
        for node in moved.graph.node:
            for j, read in enumerate(node.input):
                if read == name:
                    node.input[j] = "given"
        moved.graph.input.append(onnx.helper.make_tensor_value_info("given", onnx.TensorProto.FLOAT, None))
        direction = gradient / np.linalg.norm(gradient) + 0.1 * draw(*gradient.shape, seed=2)
        step = 1e-2 / np.linalg.norm(direction)

        def at(size: float, i: int = i, moved: Any = moved, direction: Any = direction) -> float:
            y = forward(moved, {"x": x, "given": (got[f"p.{i}"] + size * direction).astype(np.float32)})["y"]
            return float((y.astype(np.float64) * cotangent).sum())

        assert (at(step) - at(-step)) / (2 * step) == pytest.approx(float((gradient * direction).sum()), rel=5e-3)


# ---- what methods cannot use -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["none"])
def test_a_transformer_without_attention(vit: Net, form: str) -> None:
    with pytest.raises(MethodError, match=r"no attention that the score depends on.*Softmax.*'gradcam' and 'eigencam'"):
        maps_of(vit(form, "mean", before=0))


def test_a_convolutional_network(cnn: Net) -> None:
    with pytest.raises(MethodError, match="no attention"):
        maps_of(cnn())


def test_a_softmax_that_gates_is_no_attention(text_model: Any) -> None:
    """Along the channels, or multiplied by a weight."""
    model = text_model(
        """(float[N, 4, 4, 4] x) => (float[N, 4] y) {
            s = Softmax<axis = 1>(x) a = Mul(x, s) b = MatMul(s, a) t = Softmax<axis = -1>(b) c = MatMul(t, w)
            g = GlobalAveragePool(c) y = Flatten(g)
        }""",
        w=np.eye(4, dtype=np.float32),
    )
    with pytest.raises(MethodError, match="no attention"):
        maps_of(model)


def test_windows_are_recognised_and_refused(vit: Net) -> None:
    _, _, maps = maps_of(vit("windows", "mean", before=0))
    assert [m.windowed for m in maps] == [True, True]
    with pytest.raises(MethodError, match=r"'node_ah0' is over windows.*'gradcam' or 'eigencam'"):
        global_attention(maps)


def test_attention_over_channels_is_refused(vit: Net) -> None:
    _, _, maps = maps_of(vit("channels"))
    assert [(m.queries, m.keys) for m in maps] == [(None, None)] * 2
    with pytest.raises(MethodError, match=r"is over channels.*'gradcam' or 'eigencam'"):
        global_attention(maps)


def test_attention_of_a_class_token_alone_is_refused(text_model: Any) -> None:
    model = text_model(
        """(float[N, 8, 4, 5] x) => (float[N, 8] y) {
            f = Reshape(x, rows) grid = Transpose<perm = [0, 2, 1]>(f)
            s = MatMul(query, f) p = Softmax(s) a = MatMul(p, grid) y = ReduceMean<keepdims = 0>(a, one)
        }""",
        rows=np.array([0, 8, -1]),
        one=np.array([1]),
        query=np.ones((1, 1, 8), np.float32),
    )
    _, _, maps = maps_of(model)
    assert [(m.queries, m.keys, m.heads) for m in maps] == [(None, (4, 5, 0, 0), 1)]
    with pytest.raises(MethodError, match="leads from some tokens to others"):
        global_attention(maps)


def test_different_grids_are_refused(vit: Net) -> None:
    _, _, one = maps_of(vit("plain"))
    _, _, two = maps_of(vit("plain", before=2))
    with pytest.raises(MethodError, match=r"4 × 3 tokens and 2 special ones, and .* 4 × 3 tokens and 1 special ones"):
        global_attention([*one, *two])
    with pytest.raises(MethodError, match="no attention was given"):
        global_attention([])


def test_heads_that_could_not_be_followed() -> None:
    value = ir.Value(name="p", shape=ir.Shape(["B", 13, 13]), type=ir.TensorType(ir.DataType.FLOAT))
    graph = ir.Graph([value], [], nodes=[], opset_imports={"": 21})
    with pytest.raises(MethodError, match=r"'block' has probabilities \['B', 13, 13\], and how many heads"):
        Attention(value, None, None, None, False, "block", "").per_head(Builder(graph), value)


def test_an_output_that_is_no_part_of_the_expansion(text_model: Any) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 18, "com.microsoft" : 1]>
        g (float[N, 8, 4, 5] x) => (float[N, 20, 8] y) {
            f = Reshape(x, rows) t = Transpose<perm = [0, 2, 1]>(f)
            a, k, v, qk = com.microsoft.MultiHeadAttention<num_heads = 2>(t, t, t)
            m = ReduceMean(qk, last) s = ReduceMean<keepdims = 0>(m, first) y = Add(a, s)
        }"""
    )
    arrays = {"rows": [0, 8, -1], "last": [-1], "first": [1]}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.array(v), k) for k, v in arrays.items())
    with pytest.raises(UnsupportedOpError, match=r"cannot expand MultiHeadAttention.*its output 'qk' is used"):
        maps_of(model)
