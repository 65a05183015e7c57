"""The image input, and preprocessing inside the graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import pycam
from pycam.errors import InputError, ModelError
from pycam.graph.pixels import image_input
from pycam.image import prepare

Net = Callable[..., onnx.ModelProto]


def graph_with(*shapes: list[int | str | None], dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Graph:
    inputs = [
        ir.Value(name=f"x{i}", type=ir.TensorType(dtype), shape=ir.Shape(shape)) for i, shape in enumerate(shapes)
    ]
    return ir.Graph(inputs, [], nodes=[], opset_imports={"": 21}, name="g")


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ([1, 3, 224, 224], "NCHW"),
        (["N", 3, "H", "W"], "NCHW"),
        ([1, 224, 224, 3], "NHWC"),
        (["N", "H", "W", 3], "NHWC"),
        ([1, 28, 28, 1], "NHWC"),
        ([1, 1, 28, 28], "NCHW"),
        ([1, 3, 224, 3], "NCHW"),
        ([None, None, None, None], "NCHW"),
        ([1, 2, 80, 80], "NCHW"),
        ([1, 12, 64, 64], "NCHW"),
        ([1, 64, 64, 4], "NHWC"),
        (["N", 1, 16000], "NCL"),
        (["N", 16000, 1], "NLC"),
        (["N", "L", 6], "NLC"),
        (["N", 6, "L"], "NCL"),
        (["N", None], "NL"),
        (["N", 3, 8, 112, 112], "NCDHW"),
        (["N", 8, 112, 112, 3], "NDHWC"),
    ],
)
def test_layouts(shape: list[int | str | None], layout: str) -> None:
    assert image_input(graph_with(shape))[1] == layout


def test_the_first_input_of_rank_four_is_the_image() -> None:
    assert image_input(graph_with([1], ["N", 10], ["N", 3, 8, 8], ["N", 3, 4, 4]))[0].name == "x2"


def test_without_a_picture_it_is_a_volume_or_else_a_signal() -> None:
    assert image_input(graph_with([1], ["N", 10], ["N", 3, 8, 8, 8]))[0].name == "x2"
    assert image_input(graph_with([1], ["N", 10], ["N", 3, 8]))[0].name == "x1"
    assert image_input(graph_with([1], ["N", 10], ["N", 3, 8]), {"x2": "NLC"})[1] == "NLC"


def test_no_image_input() -> None:
    with pytest.raises(ModelError, match=r"no image input.*its inputs are x0 \[1, 512\], x1 \['N', 3\]"):
        image_input(graph_with([1, 512], ["N", 3], dtype=ir.DataType.INT64))


PIXELS = np.random.default_rng(0).integers(0, 256, size=(2, 16, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("channels", ["RGB", "BGR", "L"])
def test_inside_the_graph_it_is_what_it_is_outside(cnn: Net, tmp_path: Path, layout: str, channels: str) -> None:
    count = len(channels)
    model = cnn("vgg", layout=layout, channels=count)
    pre = pycam.Preprocess(
        size=(16, 16),
        mean=(123.0, 110.0, 100.5)[:count],
        std=(58.0, 57.0, 3.25)[:count],
        layout=layout,  # type: ignore[arg-type]
        channels=channels,  # type: ignore[arg-type]
    )
    want = pycam.Explainer(model)(prepare(PIXELS, pre), [[3, -1]] * 2)
    explainer = pycam.Explainer(pycam.export(model, tmp_path / "explain.onnx", preprocess=pre))
    assert explainer.takes_pixels
    assert explainer.spec.layout == "NHWC"
    assert explainer.preprocess == pre
    got = explainer(PIXELS, [[3, -1]] * 2)
    np.testing.assert_allclose(got.scores, want.scores, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got.heatmaps, want.heatmaps, atol=1e-4)
    assert np.array_equal(got.targets, want.targets)


def test_preprocessing_of_the_models_own_metadata(cnn: Net, with_metadata: Any, tmp_path: Path) -> None:
    pre = pycam.Preprocess(size=(16, 16), mean=(1.0, 2.0, 3.0), std=(50.0, 60.0, 70.0))
    model = with_metadata(cnn(), {"pycam.preprocess": pre.to_json(), "pycam.labels": "a\nb"})
    want = pycam.Explainer(model)(prepare(PIXELS, pre)).heatmaps
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    for source in (model, path, path.read_bytes()):
        explainer = pycam.Explainer(pycam.export(source, tmp_path / "explain.onnx", preprocess=True))
        assert explainer.takes_pixels
        assert explainer.labels == ("a", "b")
        np.testing.assert_allclose(explainer(PIXELS).heatmaps, want, atol=1e-4)
    with pytest.raises(InputError, match=r"preprocess=True, but the model carries none.*give a Preprocess"):
        pycam.export(cnn(), tmp_path / "none.onnx", preprocess=True)


def test_a_dynamic_size_becomes_that_of_the_preprocessing(cnn: Net, tmp_path: Path) -> None:
    pre = pycam.Preprocess(size=(16, 16), mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0))
    path = pycam.export(cnn(height="H", width="W"), tmp_path / "explain.onnx", preprocess=pre)
    explainer = pycam.Explainer(path)
    assert explainer.input_shape[1:] == (16, 16, 3)
    assert explainer(PIXELS).heatmaps.shape == (2, 1, 16, 16)


def test_names_that_the_model_uses_itself(cnn: Net, tmp_path: Path) -> None:
    """The small CNN has a value called `image`; here also its input, and an output `heatmaps`, `raw`, `targets`."""
    pre = pycam.Preprocess(size=(16, 16), mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0))
    for old, new in (("x", "image"), ("early", "image"), ("early", "targets"), ("early", "heatmaps"), ("y", "raw")):
        model = cnn(layout="NHWC")
        for node in model.graph.node:
            node.output[:] = ["inner" if y == "image" else new if y == old else y for y in node.output]
            node.input[:] = ["inner" if x == "image" else new if x == old else x for x in node.input]
        for value in [*model.graph.input, *model.graph.output]:
            value.name = new if value.name == old else value.name
        explainer = pycam.Explainer(pycam.export(model, tmp_path / "explain.onnx", preprocess=_nhwc(pre)))
        assert explainer(PIXELS, 3).heatmaps.max() > 0.5, (old, new)
        assert explainer.spec.score == ("raw" if old == "y" else "y")


def _nhwc(pre: pycam.Preprocess) -> pycam.Preprocess:
    return pycam.Preprocess(size=pre.size, mean=pre.mean, std=pre.std, layout="NHWC")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": (8, 16)}, r"makes \['N', 3, 8, 16\] \(RGB, NCHW\), but the input 'x' .* takes \['N', 3, 16, 16\]"),
        ({"layout": "NHWC"}, r"makes \['N', 16, 16, 3\] \(RGB, NHWC\)"),
        ({"channels": "L", "mean": (0.0,), "std": (1.0,)}, r"makes \['N', 1, 16, 16\] \(L, NCHW\)"),
    ],
)
def test_preprocessing_that_does_not_fit_the_model(
    cnn: Net, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    fields: dict[str, Any] = {"size": (16, 16), "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    with pytest.raises(InputError, match=message):
        pycam.export(cnn(), tmp_path / "explain.onnx", preprocess=pycam.Preprocess(**(fields | change)))
    assert not list(tmp_path.iterdir())
