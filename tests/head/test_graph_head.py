"""The head inside the graph against the reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from pycam.graph.builder import Builder, Lower
from pycam.graph.emit import finish
from pycam.head import pick
from pycam.head.graph import _scales, heatmaps

Forward = Callable[..., dict[str, np.ndarray]]


def in_graph(
    raws: Sequence[np.ndarray], size: tuple[int, int], forward: Forward, symbolic: bool = False, lower: Lower = "fast"
) -> np.ndarray:
    inputs = [
        ir.Value(
            name=f"raw{i}",
            type=ir.TensorType(ir.DataType.FLOAT),
            shape=ir.Shape(["N", "K", f"h{i}", f"w{i}"] if symbolic else list(raw.shape)),
        )
        for i, raw in enumerate(raws)
    ]
    graph = ir.Graph(inputs, [], nodes=[], opset_imports={"": 21}, name="head")
    g = Builder(graph, lower=lower)
    small = [(f"h{i}", f"w{i}") if symbolic else raw.shape[2:] for i, raw in enumerate(raws)]
    result = g.Identity(heatmaps(g, inputs, g.constant(list(size)), small))
    result.name, result.type = "heatmaps", ir.TensorType(ir.DataType.FLOAT)
    graph.outputs.append(result)
    model = finish(ir.Model(graph, ir_version=10), stand_alone=True)
    return forward(model, {f"raw{i}": raw for i, raw in enumerate(raws)})["heatmaps"]


def agree(
    raws: Sequence[np.ndarray], size: tuple[int, int], forward: Forward, symbolic: bool = False, lower: Lower = "fast"
) -> np.ndarray:
    got = in_graph(raws, size, forward, symbolic, lower)
    want, flat = pick("reference").finish(raws, size)
    assert got.dtype == np.float32
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, atol=1e-5, rtol=0)
    assert np.isfinite(got).all()
    assert got.min() >= 0
    assert got.max() <= 1
    assert (got[flat] == 0).all()
    return got


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((1, 1, 7, 7), (224, 224)),
        ((2, 3, 7, 9), (32, 40)),
        ((3, 1, 1, 1), (5, 6)),
        ((1, 2, 1, 8), (9, 16)),
        ((1, 1, 14, 14), (14, 14)),
        ((2, 2, 20, 30), (10, 7)),  # smaller than the layer
        ((1, 10, 5, 5), (33, 1)),
        ((1, 1, 24, 24), (28, 28)),
    ],
)
@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("lower", ["fast", "portable"])
def test_shapes(
    draw: Any, forward: Forward, shape: tuple[int, ...], size: tuple[int, int], symbolic: bool, lower: Lower
) -> None:
    agree([draw(*shape)], size, forward, symbolic, lower)


def test_scales_never_fall_short() -> None:
    """A runtime makes `floor(small · scale)` of a size, with the float32 scale as it is: never one less."""
    for small in range(1, 130):
        for large in (*range(1, 260), 384, 512, 1023):
            found = _scales(Builder(ir.Graph([], [], nodes=[], name="g")).constant([large, large]), (small, small))
            assert found is not None
            assert math.floor(small * float(found[2])) == math.floor(np.float32(small) * found[2]) == large


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e4, 1e20])
def test_scales(draw: Any, forward: Forward, scale: float) -> None:
    got = agree([draw(2, 2, 6, 5) * np.float32(scale)], (24, 20), forward)
    assert got.max() > 0.5


def test_several_layers(draw: Any, forward: Forward) -> None:
    raws = [draw(2, 3, 7, 7, seed=1), draw(2, 3, 14, 13, seed=2) * 50, draw(2, 3, 3, 4, seed=3)]
    three = agree(raws, (28, 30), forward)
    two = agree(raws[:2], (28, 30), forward)
    assert np.abs(three - two).max() > 0.01
    raws[1] = -np.abs(raws[1])  # one layer has nothing to say
    agree(raws, (28, 30), forward)


@pytest.mark.parametrize("value", [-2.0, -1e-30, 0.0, 3.0])
def test_maps_without_contrast(forward: Forward, value: float) -> None:
    raw = np.full((2, 2, 4, 5), value, dtype=np.float32)
    assert (agree([raw], (8, 10), forward) == 0).all()
    raw[1, 1, 2, 2] = 7.0
    got = agree([raw], (8, 10), forward)
    assert got[1, 1].max() > 0.9
    assert (got[0] == 0).all()


def test_maps_that_are_all_negative(draw: Any, forward: Forward) -> None:
    assert (agree([-1 - np.abs(draw(2, 3, 5, 5))], (20, 20), forward) == 0).all()
