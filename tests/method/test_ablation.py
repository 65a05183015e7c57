"""Ablation-CAM and Recipro-CAM: every tail run by hand, by matrices, and the arrays of other libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import pycam
from pycam.errors import MethodError

TARGETS = np.array([[3, 7], [0, 12]])
TOLERANCE = 1e-5
TAILS = ("gap", "flatten", "mlp", "conv")
AFFINE = ("gap", "flatten")
GAUSSIAN = np.outer([1, 2, 1], [1, 2, 1]) / 16


def features(net: Any, x: np.ndarray) -> np.ndarray:
    return np.asarray(net.forward(x)[1][1]).reshape(len(x), 6, 8, 8)


def tail_scores(net: Any, a: np.ndarray) -> np.ndarray:
    """What lies behind the features, (M, 6, 8, 8) → (M, classes)."""
    z = a.reshape(len(a), -1)
    for matrix, bias, activation in net.layers[2:]:
        z = z @ matrix.T + bias
        z = np.maximum(z, 0) if activation == "relu" else z
    return np.asarray(z)


def ablated(net: Any, x: np.ndarray, far: float = 1e7) -> np.ndarray:
    maps = []
    for a, row in zip(features(net, x), TARGETS, strict=True):
        fill = 0.0 if a.min() == 0 else a.min() - far
        variants = np.stack([np.where(np.arange(6)[:, None, None] == c, fill, a) for c in range(6)])
        y = tail_scores(net, a[None])[:, row]
        w = (y - tail_scores(net, variants)[:, row]) / y
        maps.append(np.einsum("ck,chw->khw", w, a))
    return np.stack(maps)


def masks(gaussian: bool) -> np.ndarray:
    """(64, 8, 8): one position each, or a Gaussian around it that is cut at the borders."""
    found = np.zeros((8, 8, 10, 10))
    for i in range(8):
        for j in range(8):
            found[i, j, i : i + 3, j : j + 3] = GAUSSIAN if gaussian else np.diag([0, 1, 0])
    return found[:, :, 1:-1, 1:-1].reshape(64, 8, 8)


def kept(net: Any, x: np.ndarray, gaussian: bool) -> np.ndarray:
    maps = []
    for a, row in zip(features(net, x), TARGETS, strict=True):
        y = tail_scores(net, a * masks(gaussian)[:, None])[:, row]
        maps.append(y.T.reshape(len(row), 8, 8))
    return np.stack(maps)


@pytest.mark.parametrize("tail", TAILS)
def test_ablationcam(cnn: Any, net: Any, relative: Any, images: np.ndarray, tail: str) -> None:
    explainer = pycam.Explainer(cnn(tail), "ablationcam", layer="features", batch=4)
    result = explainer(images[:2], TARGETS)
    assert explainer.spec.plan == ("single pass" if tail in AFFINE else "split")
    assert relative(result.raw, ablated(net(tail), images[:2])) <= TOLERANCE


@pytest.mark.parametrize("tail", ["gap", "conv"])
def test_ablationcam_of_what_is_never_0(
    cnn: Any, cnn_weights: Any, net: Any, relative: Any, halved: Any, images: np.ndarray, tail: str
) -> None:
    """Where the minimum is not 0 a channel goes far below it; in float16 as far as that holds."""
    bias = cnn_weights(tail)["b_conv2"] + 60
    matrices = net(tail)
    matrix, _, activation = matrices.layers[1]
    matrices.layers[1] = (matrix, bias.astype(np.float64).repeat(64), activation)
    assert features(matrices, images[:2]).min() > 0
    model = cnn(tail, change={"b_conv2": bias})
    result = pycam.Explainer(model, "ablationcam", layer="features")(images[:2], TARGETS)
    assert relative(result.raw, ablated(matrices, images[:2])) <= TOLERANCE
    half = pycam.Explainer(halved(model), "ablationcam", layer="features")(images[:2].astype(np.float16), TARGETS)
    assert relative(half.raw, ablated(matrices, images[:2], far=1e3)) <= 2e-2


def test_ablationcam_of_features_that_are_0(
    cnn: Any, cnn_weights: Any, net: Any, relative: Any, images: np.ndarray
) -> None:
    """What is 0 anyway is not run but once, nor does it stop anything if that is all there is."""
    for dead in ([1, 4], list(range(6))):
        bias = np.where(np.isin(np.arange(6), dead), -99, cnn_weights("conv")["b_conv2"])
        matrices = net("conv")
        matrix, _, activation = matrices.layers[1]
        matrices.layers[1] = (matrix, bias.astype(np.float64).repeat(64), activation)
        model = cnn("conv", change={"b_conv2": bias})
        explainer = pycam.Explainer(model, "ablationcam", layer="features", batch=4)
        result = explainer(images[:2], TARGETS)
        if len(dead) < 6:
            assert relative(result.raw, ablated(matrices, images[:2])) <= TOLERANCE
        else:
            np.testing.assert_array_equal(result.raw, 0)
            assert result.flat.all()


@pytest.mark.parametrize("gaussian", [True, False])
@pytest.mark.parametrize("tail", TAILS)
def test_reciprocam(cnn: Any, net: Any, relative: Any, images: np.ndarray, tail: str, gaussian: bool) -> None:
    explainer = pycam.Explainer(cnn(tail), "reciprocam", layer="features", batch=10, gaussian=gaussian)
    result = explainer(images[:2], TARGETS)
    assert explainer.spec.plan == ("single pass" if tail in AFFINE else "split")
    assert relative(result.raw, kept(net(tail), images[:2], gaussian)) <= TOLERANCE


@pytest.mark.parametrize("tail", ["gap", "conv"])
@pytest.mark.parametrize("method", ["ablationcam", "reciprocam"])
def test_forms_of_a_model(
    cnn: Any, relative: Any, images: np.ndarray, tmp_path: Path, halved: Any, method: str, tail: str
) -> None:
    """Channels last, free sizes, one image at a time, float16, any batch of variants, exported: the same maps."""

    def raw(model: Any, x: np.ndarray = images[:2], **more: Any) -> np.ndarray:
        return np.asarray(pycam.Explainer(model, method, layer="features", **more)(x, TARGETS).raw)

    wanted = raw(cnn(tail))
    assert relative(raw(cnn(tail), batch=1), wanted) <= TOLERANCE
    if tail != "gap":  # a single pass takes as many images as the model does
        assert relative(raw(cnn(tail, batch=1)), wanted) <= TOLERANCE
    assert relative(raw(cnn(tail, height="H", width="W")), wanted) <= TOLERANCE
    assert relative(raw(cnn(tail, layout="NHWC"), images[:2].transpose(0, 2, 3, 1)), wanted) <= TOLERANCE
    assert relative(raw(halved(cnn(tail)), images[:2].astype(np.float16)), wanted) <= 2e-2
    for place in (tmp_path / "stages", tmp_path / "one.onnx"):
        if tail != "gap" or place.suffix:
            pycam.export(cnn(tail), place, method=method, layer="features", batch=64)
            assert relative(pycam.Explainer(place)(images[:2], TARGETS).raw, wanted) <= TOLERANCE


@pytest.mark.parametrize("method", ["ablationcam", "reciprocam"])
def test_many_targets_share_one_run(cnn: Any, images: np.ndarray, method: str) -> None:
    """The gradient that only told that the tail is not affine repeats nothing."""
    explainer = pycam.Explainer(cnn("conv"), method, layer="features")
    many = explainer(images, [[3, 7, 11]] * 3).raw
    for k, target in enumerate((3, 7, 11)):
        np.testing.assert_allclose(many[:, [k]], explainer(images, target).raw, rtol=1e-4, atol=1e-5)


def test_tokens_of_which_norms_are_written_out(peers: Any, relative: Any) -> None:
    """A norm in the ops of older opsets is masked like one that is a single node."""
    peer = peers("vit")
    model = onnx.load(peer.path)
    explained = [
        pycam.Explainer(m, "reciprocam", peer.layers["stream"])(peer.x, peer.targets).raw
        for m in (model, written_out(model))
    ]
    assert relative(explained[1], explained[0]) <= TOLERANCE


def written_out(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model with every LayerNormalization in parts."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    constants = {"norm/two": 2.0, "norm/eps": 1e-6}
    result.graph.initializer.extend(helper.make_tensor(k, 1, [], [v]) for k, v in constants.items())
    result.graph.initializer.append(helper.make_tensor("norm/axes", 7, [1], [-1]))
    for i, node in enumerate(model.graph.node):
        if node.op_type != "LayerNormalization":
            result.graph.node.append(node)
            continue
        x, scale, bias = node.input
        names = {
            part: f"norm/{i}/{part}" for part in ("mean", "centred", "square", "var", "sum", "root", "unit", "big")
        }
        steps = [
            ("ReduceMean", [x, "norm/axes"], "mean"),
            ("Sub", [x, names["mean"]], "centred"),
            ("Pow", [names["centred"], "norm/two"], "square"),
            ("ReduceMean", [names["square"], "norm/axes"], "var"),
            ("Add", [names["var"], "norm/eps"], "sum"),
            ("Sqrt", [names["sum"]], "root"),
            ("Div", [names["centred"], names["root"]], "unit"),
            ("Mul", [names["unit"], scale], "big"),
        ]
        result.graph.node.extend(helper.make_node(op, inputs, [names[to]], name=names[to]) for op, inputs, to in steps)
        result.graph.node.append(helper.make_node("Add", [names["big"], bias], [node.output[0]], name=f"norm/{i}/end"))
    return result


@pytest.mark.parametrize("options", [{"gaussian": 3}, {"class_token": "yes"}, {"sigma": 1.0}])
def test_bad_options(cnn: Any, options: dict[str, Any]) -> None:
    with pytest.raises(MethodError, match=next(iter(options))):
        pycam.Explainer(cnn(), "reciprocam", layer="features", **options)


@pytest.mark.parametrize(
    ("model", "case", "layer", "options"),
    [
        *(("cnn_linear", c, "last", {}) for c in ("ablationcam",)),
        ("cnn_mlp", "ablationcam", "last", {}),
        ("cnn_mlp", "ablationcam/signed", "signed", {}),
        ("vit", "ablationcam", "last", {}),
        ("vit", "ablationcam/stream", "stream", {}),
        ("cnn_linear", "reciprocam", "last", {"gaussian": False}),
        ("cnn_linear", "reciprocam/middle", "middle", {"gaussian": False}),
        ("cnn_mlp", "reciprocam", "last", {"gaussian": False}),
        ("cnn_mlp", "reciprocam/middle", "middle", {"gaussian": False}),
        ("vit", "reciprocam", "stream", {}),
        ("vit", "reciprocam/no_cls_token", "stream", {"class_token": False}),
        ("vit", "reciprocam/single", "stream", {"gaussian": False}),
    ],
)
def test_peers(peers: Any, relative: Any, model: str, case: str, layer: str, options: dict[str, Any]) -> None:
    peer = peers(model)
    explainer = pycam.Explainer(peer.path, case.split("/")[0], peer.layers[layer], **options)
    result = explainer(peer.x, peer.targets)
    assert relative(result.raw, peer[f"{case}/raw"]) <= 1e-4
    if case.startswith("ablationcam"):  # openvino_xai does not go through a ReLU
        assert np.abs(result.heatmaps - peer[f"{case}/final"]).max() <= 1e-3
