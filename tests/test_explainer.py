"""The explainer end to end, on small seeded networks: targets, heads, forms of models, threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import pycam
from pycam.errors import HeadError, InputError, MethodError, ModelError
from pycam.head import pick

Net = Callable[..., onnx.ModelProto]

TAILS = ("gap", "mean", "flatten", "vgg", "mlp", "conv", "turned")
METHODS = ("gradcam", "gradcam++", "xgradcam", "layercam", "hirescam", "gradcam_elementwise")
TEN = [0, 1, 2, 3, 5, 8, 13, 19, -1, -2]


def maps_of(result: pycam.Explanation) -> np.ndarray:
    assert isinstance(result.raw, np.ndarray)
    return result.raw


# ---- targets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("layer", ["features", "early"])
def test_ten_targets_in_one_call_are_ten_calls(cnn: Net, images: np.ndarray, tail: str, layer: str) -> None:
    explainer = pycam.Explainer(cnn(tail), layer=layer)
    together = explainer(images, [TEN] * 3)
    assert together.heatmaps.shape == (3, 10, 16, 16)
    assert maps_of(together).shape == (3, 10, 8, 8)
    apart = [explainer(images, [target] * 3) for target in TEN]
    scale = np.abs(together.raw).max()
    assert scale > 1e-3
    for k, one in enumerate(apart):
        np.testing.assert_allclose(maps_of(together)[:, k], maps_of(one)[:, 0], atol=1e-6 * scale, rtol=1e-5)
        np.testing.assert_allclose(together.heatmaps[:, k], one.heatmaps[:, 0], atol=1e-5)
        assert np.array_equal(together.targets[:, k], one.targets[:, 0])
        assert np.array_equal(together.flat[:, k], one.flat[:, 0])
    different = {together.heatmaps[0, k].tobytes() for k in range(8)}
    assert len(different) > 4


@pytest.mark.parametrize("tail", ["gap", "vgg", "conv", "turned"])
def test_a_batch_is_its_images(cnn: Net, images: np.ndarray, tail: str) -> None:
    explainer = pycam.Explainer(cnn(tail))
    targets = [[3, -1], [7, 0], [-2, 3]]
    together = explainer(images, targets)
    for n in range(3):
        one = explainer(images[n : n + 1], targets[n : n + 1])
        np.testing.assert_allclose(together.heatmaps[n], one.heatmaps[0], atol=1e-5)
        assert np.array_equal(together.targets[n], one.targets[0])


def test_how_targets_are_given(cnn: Net, images: np.ndarray, with_metadata: Any) -> None:
    labels = [f"class {'abcdefghijklmnopqrst'[i]}" for i in range(20)]
    explainer = pycam.Explainer(with_metadata(cnn(), {"pycam.labels": "\n".join(labels)}))
    best = np.argsort(-explainer(images).scores, axis=1, kind="stable")
    cases: list[tuple[Any, Any]] = [
        (None, best[:, :1]),
        (-1, best[:, :1]),
        (7, [[7]] * 3),
        (np.int32(7), [[7]] * 3),
        ("7", [[7]] * 3),
        ("class c", [[2]] * 3),
        ("CLASS C", [[2]] * 3),
        ([4, 5, 6], [[4], [5], [6]]),
        ([4, -1, -3], [[4], [best[1, 0]], [best[2, 2]]]),
        (np.array([[1, 2], [3, 4], [5, -2]], dtype=np.int8), [[1, 2], [3, 4], [5, best[2, 1]]]),
        ("top3", best[:, :3]),
        ("top1", best[:, :1]),
        (list(range(-1, -17, -1)) and [list(range(-1, -17, -1))] * 3, best[:, :16]),
    ]
    for given, want in cases:
        got = explainer(images, given)
        assert got.targets.tolist() == np.asarray(want).tolist(), given
        assert got.targets.dtype == np.int64
        assert got.label(1, 0) == labels[got.targets[1, 0]]


def test_the_default_target(cnn: Net, images: np.ndarray) -> None:
    explainer = pycam.Explainer(cnn(), target="top2")
    assert explainer(images).targets.shape == (3, 2)
    assert explainer(images, 5).targets.tolist() == [[5]] * 3


def test_equal_scores_rank_by_number(cnn: Net, images: np.ndarray) -> None:
    explainer = pycam.Explainer(cnn(change={"w_fc": np.zeros((20, 6)), "b_fc": np.zeros(20)}))
    assert explainer(images, "top3").targets.tolist() == [[0, 1, 2]] * 3


# ---- methods ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", ["gap", "mean"])
def test_cam_is_the_weighted_sum_of_the_paper(
    cnn: Net, cnn_weights: Any, images: np.ndarray, forward: Any, tail: str
) -> None:
    model = cnn(tail, extra_output="features")
    features = forward(model, {"x": images})["features"]
    want = np.einsum("kc,nchw->nkhw", cnn_weights()["w_fc"][[3, 8]], features)
    got = pycam.Explainer(model, method="cam")(images, [[3, 8]] * 3)
    np.testing.assert_allclose(maps_of(got), want, rtol=1e-4, atol=1e-5)
    grad = pycam.Explainer(model, method="gradcam")(images, [[3, 8]] * 3)
    np.testing.assert_allclose(grad.raw, want / 64, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("tail", ["flatten", "vgg", "conv"])
def test_cam_says_where_it_does_not_apply(cnn: Net, tail: str) -> None:
    with pytest.raises(MethodError, match=r"global average pooling and linear.*use 'gradcam'"):
        pycam.Explainer(cnn(tail), method="cam", layer="features")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tail", ["vgg", "conv"])
def test_every_method_is_its_formula(cnn: Net, images: np.ndarray, forward: Any, tail: str, method: str) -> None:
    model = cnn(tail, extra_output="features")
    a = forward(model, {"x": images})["features"].astype(np.float64)
    vjp = pycam.vjp(model, ["features"], output="y")
    cotangent = np.eye(20, dtype=np.float32)[[3, 3, 3]]
    g = forward(vjp, {"x": images, "y.cotangent": cotangent})["features.gradient"].astype(np.float64)

    def over(x: np.ndarray) -> np.ndarray:
        return x.sum(axis=(2, 3), keepdims=True)

    weights = {
        "gradcam": lambda: over(g) / 64,
        "gradcam++": lambda: over(np.maximum(g, 0) * g**2 / (2 * g**2 + over(a) * g**3 + 1e-6)),
        "xgradcam": lambda: over(g * a) / (over(a) + 1e-7),
        "layercam": lambda: np.maximum(g, 0),
        "hirescam": lambda: g,
        "gradcam_elementwise": lambda: g,
    }[method]()
    terms = np.maximum(weights * a, 0) if method == "gradcam_elementwise" else weights * a
    got = maps_of(pycam.Explainer(model, method=method, layer="features")(images, 3))[:, 0]
    want = terms.sum(axis=1)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4 * np.abs(want).max())


def test_names_of_methods_are_forgiving(cnn: Net) -> None:
    model = cnn()
    assert {pycam.Explainer(model, method=m).spec.method for m in ("Grad-CAM++", "gradcam++", "GRAD_CAM ++")} == {
        "gradcam++"
    }
    assert [m.name for m in pycam.methods()][:3] == ["cam", "gradcam", "gradcam++"]


def test_two_layers_are_averaged(cnn: Net, images: np.ndarray) -> None:
    model = cnn("conv")
    both = pycam.Explainer(model, layer=["early", "active"], head="graph")(images, 3)
    assert isinstance(both.raw, tuple)
    assert [raw.shape for raw in both.raw] == [(3, 1, 8, 8), (3, 1, 8, 8)]
    assert both.layer == "early, active"
    for raw, layer in zip(both.raw, ("early", "active"), strict=True):
        one = pycam.Explainer(model, layer=layer)(images, 3)
        np.testing.assert_allclose(raw, one.raw, rtol=1e-4, atol=1e-6)
        assert np.abs(both.heatmaps - one.heatmaps).max() > 0.05
    np.testing.assert_allclose(both.heatmaps, pick("reference").finish(both.raw, (16, 16))[0], atol=1e-5)


# ---- heads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["auto", ["early", "features"]])
def test_all_heads_agree(cnn: Net, images: np.ndarray, layer: Any) -> None:
    results = {
        h: pycam.Explainer(cnn("vgg"), layer=layer, head=h)(images, [TEN] * 3) for h in ("reference", "cpu", "graph")
    }
    assert results["reference"].flat.any() == (layer == "auto")
    for head, result in results.items():
        np.testing.assert_allclose(result.heatmaps, results["reference"].heatmaps, atol=1e-5, err_msg=head)
        assert np.array_equal(result.flat, results["reference"].flat), head
        assert result.heatmaps.dtype == np.float32
        assert result.flat.dtype == np.bool_


@pytest.mark.parametrize("head", ["graph", "cpu", "reference"])
@pytest.mark.parametrize("zero", [True, False])
def test_a_flat_map_is_zeros(cnn: Net, images: np.ndarray, head: str, zero: bool) -> None:
    """No gradient at all, and gradients that all speak against the class."""
    weights = np.zeros((20, 6)) if zero else -np.ones((20, 6))
    result = pycam.Explainer(cnn(change={"w_fc": weights}), head=head)(images, [[3, 4]] * 3)
    assert result.flat.all()
    assert not result.heatmaps.any()
    assert (np.asarray(result.raw) <= 0).all()
    assert result.boxes().tolist() == [[[0] * 4] * 2] * 3
    layercam = pycam.Explainer(cnn(change={"w_fc": weights}), method="gradcam++", head=head)(images)
    assert np.isfinite(layercam.heatmaps).all()


# ---- exported graphs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", ["gap", "conv"])
@pytest.mark.parametrize(
    "outputs",
    [("scores", "heatmaps", "raw"), ("heatmaps",), ("raw",), ("scores", "raw"), ("scores", "heatmaps"), "raw"],
)
def test_an_exported_graph_explains_the_same(
    cnn: Net, images: np.ndarray, tmp_path: Path, tail: str, outputs: Any
) -> None:
    model = cnn(tail)
    want = pycam.Explainer(model)(images, [[3, -1]] * 3)
    path = pycam.export(model, tmp_path / "explain.onnx", outputs=outputs)
    got = pycam.Explainer(path)(images, [[3, -1]] * 3)
    np.testing.assert_allclose(got.heatmaps, want.heatmaps, atol=1e-5)
    assert np.array_equal(got.targets, want.targets)
    assert np.array_equal(got.flat, want.flat)
    assert (got.layer, got.method, got.notes) == (want.layer, want.method, want.notes)
    if "raw" in outputs:
        np.testing.assert_allclose(got.raw, want.raw, rtol=1e-4, atol=1e-5)
    else:
        assert got.raw == ()
    if "scores" in outputs:
        np.testing.assert_allclose(got.scores, want.scores, rtol=1e-5)
    else:
        assert got.scores == {}
    names = {o.name for o in onnx.load(path).graph.output}
    assert names == {"explained"} | {
        {"scores": "y"}.get(o, o) for o in ([outputs] if isinstance(outputs, str) else outputs)
    }


def test_an_exported_graph_is_valid_and_says_its_shapes(cnn: Net, tmp_path: Path) -> None:
    for tail in ("gap", "conv"):
        model = onnx.load(pycam.export(cnn(tail), tmp_path / "explain.onnx"))
        onnx.checker.check_model(model, full_check=True)
        assert {node.domain for node in model.graph.node} == {""}
        shapes = {
            v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
            for v in [*model.graph.input, *model.graph.output]
        }
        assert shapes == {
            "x": ["N", 3, 16, 16],
            "targets": ["N", "K"],
            "y": ["N", 20],
            "heatmaps": ["N", "K", 16, 16],
            "raw": ["N", "K", 8, 8],
            "explained": ["N", "K"],
        }


@pytest.mark.parametrize("tail", ["gap", "conv", "turned"])
def test_one_target_per_image(cnn: Net, images: np.ndarray, tmp_path: Path, tail: str) -> None:
    path = pycam.export(cnn(tail), tmp_path / "explain.onnx", classes=1)
    targets = next(i for i in onnx.load(path).graph.input if i.name == "targets")
    assert [d.dim_param or d.dim_value for d in targets.type.tensor_type.shape.dim] == ["N", 1]
    want = pycam.Explainer(cnn(tail))(images, [[3, -1]] * 3)
    got = pycam.Explainer(path)(images, [[3, -1]] * 3)  # a run for each
    np.testing.assert_allclose(got.heatmaps, want.heatmaps, atol=1e-5)
    assert np.array_equal(got.targets, want.targets)
    assert not np.array_equal(got.heatmaps[:, 0], got.heatmaps[:, 1])


def test_what_an_exported_graph_has_built_in(cnn: Net, tmp_path: Path) -> None:
    path = pycam.export(cnn(), tmp_path / "explain.onnx", method="layercam", layer="early")
    for fine in (
        {},
        {"layer": "early"},
        {"layer": ["early"]},
        {"method": "layercam"},
        {"method": "Layer-CAM"},
        {"output": "y"},
    ):
        assert pycam.Explainer(path, **fine).spec.layers == ("early",)
    for wrong in (
        {"layer": "features"},
        {"layer": ["features"]},
        {"layer": ["early", "features"]},
        {"method": "hirescam"},
        {"output": "z"},
    ):
        with pytest.raises(MethodError, match=rf"has its {next(iter(wrong))} built in.*'layercam'.*'early'.*export"):
            pycam.Explainer(path, **wrong)  # type: ignore[arg-type]
    raw, heatmaps = (pycam.export(cnn(), tmp_path / f"{o}.onnx", outputs=[o]) for o in ("raw", "heatmaps"))
    with pytest.raises(HeadError, match="returns raw maps only"):
        pycam.Explainer(raw, head="graph")
    with pytest.raises(HeadError, match="returns heatmaps only"):
        pycam.Explainer(heatmaps, head="cpu")


# ---- forms of models -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", ["gap", "mean", "mlp", "conv"])
@pytest.mark.parametrize("method", METHODS)
def test_dynamic_height_and_width(cnn: Net, draw: Any, tail: str, method: str) -> None:
    """Both symbolic and not equal: neither may stand in for the other."""
    dynamic = pycam.Explainer(cnn(tail, height="H", width="W"), method=method, head="graph")
    for height, width in ((16, 16), (10, 22), (24, 8)):
        x = draw(2, 3, height, width)
        got = dynamic(x, [[3, -1]] * 2)
        want = pycam.Explainer(cnn(tail, height=height, width=width), method=method)(x, [[3, -1]] * 2)
        assert got.heatmaps.shape == (2, 2, height, width)
        np.testing.assert_allclose(got.heatmaps, want.heatmaps, atol=1e-4)
        np.testing.assert_allclose(got.raw, want.raw, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", ["cam", "gradcam", "gradcam++", "hirescam"])
def test_nothing_known_but_ranks(cnn: Net, draw: Any, method: str) -> None:
    model = cnn("gap", batch="N", height="H", width="W")
    for value in [*model.graph.input, *model.graph.output]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_param"):
                dim.Clear()
    x = draw(2, 3, 10, 22)
    got = pycam.Explainer(model, method=method)(x, [[3, -1]] * 2)
    want = pycam.Explainer(cnn("gap", batch=2, height=10, width=22), method=method)(x, [[3, -1]] * 2)
    np.testing.assert_allclose(got.heatmaps, want.heatmaps, atol=1e-4)


@pytest.mark.parametrize("tail", TAILS)
def test_a_batch_that_is_fixed(cnn: Net, images: np.ndarray, tail: str) -> None:
    want = pycam.Explainer(cnn(tail))(images, [[3, -1]] * 3)
    for n in (1, 3):
        got = pycam.Explainer(cnn(tail, batch=n))(images[:n], [[3, -1]] * n)
        np.testing.assert_allclose(got.heatmaps, want.heatmaps[:n], atol=1e-5)


@pytest.mark.parametrize("tail", TAILS)
def test_channels_last(cnn: Net, images: np.ndarray, tail: str) -> None:
    width = 16 if tail in ("flatten", "vgg") else 12  # those have a weight for every position
    want = pycam.Explainer(cnn(tail, height=16, width=width))(images[..., :width], 3)
    explainer = pycam.Explainer(cnn(tail, height=16, width=width, layout="NHWC"))
    assert explainer.spec.layout == "NHWC"
    got = explainer(images[..., :width].transpose(0, 2, 3, 1), 3)
    assert got.heatmaps.shape == (3, 1, 16, width)
    np.testing.assert_allclose(got.heatmaps, want.heatmaps, atol=1e-5)


@pytest.mark.parametrize("end", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("opset", [11, 18])
def test_a_softmax_is_stepped_behind(cnn: Net, images: np.ndarray, end: str, opset: int) -> None:
    plain = pycam.Explainer(cnn("vgg", opset=opset))(images, [[3, -1]] * 3)
    explainer = pycam.Explainer(cnn("vgg", end=end, opset=opset))
    result = explainer(images, [[3, -1]] * 3)
    np.testing.assert_allclose(result.heatmaps, plain.heatmaps, atol=1e-5)
    assert np.array_equal(result.targets, plain.targets)
    scores = np.exp(result.scores) if end == "LogSoftmax" else result.scores  # type: ignore[arg-type]
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-5)  # the output is still what the model says
    assert result.notes == (f"the score is the logit 'logits': the final {end} is stepped behind",)
    assert explainer.spec.probabilities == (end == "Softmax")
    assert plain.notes == ()


def test_two_outputs(cnn: Net, images: np.ndarray, forward: Any) -> None:
    model = cnn("vgg", extra_output="active")
    del model.graph.output[1].type.tensor_type.shape.dim[2:]
    want = forward(model, {"x": images})
    result = pycam.Explainer(model)(images, 3)
    assert isinstance(result.scores, dict)
    assert list(result.scores) == ["y", "active"]
    for name, array in result.scores.items():
        np.testing.assert_allclose(array, want[name], rtol=1e-4, atol=1e-5)
    other = pycam.Explainer(model, output="active")
    assert other.spec.classes == 16
    assert other(images).targets.tolist() == want["active"].argmax(axis=1)[:, None].tolist()


def test_two_inputs(cnn: Net, images: np.ndarray, draw: Any) -> None:
    explainer = pycam.Explainer(cnn("conv", extra_input=True))
    shift = draw(1, 6, 1, 1, seed=9)
    got = explainer({"x": images, "shift": shift}, [[3, -1]] * 3)
    without = explainer({"x": images, "shift": 0 * shift}, [[3, -1]] * 3)
    plain = pycam.Explainer(cnn("conv"))(images, [[3, -1]] * 3)
    np.testing.assert_allclose(without.heatmaps, plain.heatmaps, atol=1e-5)
    assert np.abs(got.heatmaps - plain.heatmaps).max() > 0.01


def test_scores_with_positions_are_summed(text_model: Any, draw: Any) -> None:
    """An output (N, C, H, W) taken for classes: the score is the class's sum over positions."""
    w = draw(5, 4, 1, 1)
    head = "(float[N, 4, 6, 7] x) => (float[N, 5, 6, 7] y) {{ {} }}"
    model = text_model(head.format("a = Relu(x) b = Tanh(a) y = Conv(b, w)"), w=w)
    x = draw(2, 4, 6, 7)
    result = pycam.Explainer(model, layer="b", method="hirescam", target=pycam.targets.Class())(x, [[1, -1]] * 2)
    scores = np.asarray(result.scores).sum(axis=(2, 3))
    assert result.targets[:, 1].tolist() == scores.argmax(axis=1).tolist()
    b = np.tanh(np.maximum(x, 0))
    want = np.stack([np.einsum("c,nchw->nhw", w[1, :, 0, 0], b), *[np.zeros((2, 6, 7))]], axis=1)
    np.testing.assert_allclose(maps_of(result)[:, 0], want[:, 0], rtol=1e-4, atol=1e-5)


@pytest.fixture
def half(cnn: Net) -> onnx.ModelProto:
    """The small CNN in float16."""
    model = cnn("mlp")
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    return model


@pytest.mark.parametrize("head", ["cpu", "graph"])
def test_half_precision(cnn: Net, half: onnx.ModelProto, images: np.ndarray, head: str) -> None:
    want = pycam.Explainer(cnn("mlp"))(images, 3)
    got = pycam.Explainer(half, head=head)(images.astype(np.float16), 3)
    assert got.heatmaps.dtype == np.float32
    np.testing.assert_allclose(got.heatmaps, want.heatmaps, atol=0.02)


def test_a_photo_in_half_precision(cnn: Net, half: onnx.ModelProto, photos: dict[str, Path]) -> None:
    want = pycam.explain(cnn("mlp"), photos["coffee"], 3)
    np.testing.assert_allclose(pycam.explain(half, photos["coffee"], 3).heatmaps, want.heatmaps, atol=0.02)


def test_the_shipped_model_at_real_photos(shipped: Path, photos: dict[str, Path]) -> None:
    best = {name: pycam.explain(shipped, path, threads=1) for name, path in photos.items()}
    assert best["coffee"].label() == "espresso"
    assert best["camera"].label() == "tripod"
    assert all(result.heatmaps.max() > 0.99 for result in best.values())


# ---- sharing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", ["gap", "conv"])
def test_eight_threads_get_the_same_bits(cnn: Net, draw: Any, tail: str) -> None:
    explainer = pycam.Explainer(cnn(tail), threads=1)
    batches = [draw(2, 3, 16, 16, seed=seed) for seed in range(16)]
    targets = [[3, -1], [5, 6]]
    with ThreadPoolExecutor(8) as pool:  # first, so that what is compiled when first needed is needed by all at once
        together = list(pool.map(lambda x: explainer(x, targets), batches))
    for x, result in zip(batches, together, strict=True):
        alone = explainer(x, targets)
        assert np.array_equal(result.heatmaps, alone.heatmaps)
        assert np.array_equal(result.raw, alone.raw)
        assert np.array_equal(result.scores, alone.scores)


def test_calls_leave_no_trace(cnn: Net, images: np.ndarray) -> None:
    explainer = pycam.Explainer(cnn("conv"))
    before = images.copy()
    first = explainer(images, 3)
    kept = first.heatmaps.copy()
    explainer(images, [TEN] * 3)
    explainer(-images, 4)
    assert np.array_equal(first.heatmaps, kept)
    assert np.array_equal(images, before)
    assert np.array_equal(explainer(images, 3).heatmaps, kept)


# ---- the explanation -------------------------------------------------------------------------------------------------


def test_what_an_explanation_says_of_itself(cnn: Net, images: np.ndarray) -> None:
    result = pycam.Explainer(cnn(), providers=["CPU"])(images, [[3, -1]] * 3)
    assert (result.layer, result.method, result.provider) == ("features", "gradcam", "CPUExecutionProvider")
    assert result.label(0, 0) == "class 3"
    record = result.to_dict()
    assert record["targets"] == result.targets.tolist()
    assert record["labels"][0][0] == "class 3"
    assert np.array(record["boxes"]).shape == (3, 2, 4)


def test_boxes(cnn: Net, images: np.ndarray) -> None:
    result = pycam.Explainer(cnn())(images, [[3, 5]] * 3)
    boxes = result.boxes(0.5)
    assert boxes.dtype == np.int64
    for n in range(3):
        for k in range(2):
            left, top, right, bottom = boxes[n, k]
            heatmap = result.heatmaps[n, k]
            if result.flat[n, k]:
                continue
            assert 0 <= left < right <= 16
            assert 0 <= top < bottom <= 16
            assert heatmap[top:bottom, left:right].max() > 0.5 * heatmap.max()
            assert (heatmap[top, left:right] > 0.5 * heatmap.max()).any()


def test_saving(cnn: Net, images: np.ndarray, tmp_path: Path) -> None:
    from pycam.image import read

    result = pycam.Explainer(cnn())(images, [[3, 5]] * 3)
    pictures = np.full((3, 16, 16, 3), 200, dtype=np.uint8)
    result.save(tmp_path / "maps.png", colormap="gray")
    result.save(tmp_path / "overlay.png", pictures)
    grey, overlay = read(tmp_path / "maps.png"), read(tmp_path / "overlay.png")
    assert grey.shape == overlay.shape == (48, 32, 3)
    np.testing.assert_allclose(grey[16:32, 16:, 0], result.heatmaps[1, 1] * 255, atol=1)
    assert np.array_equal(overlay[32:, :16], result.overlay(pictures)[2, 0])


def test_a_replaced_model_is_noticed(cnn: Net, images: np.ndarray, tmp_path: Path) -> None:
    """The graph for several targets is compiled when it is first needed: it must be of the same model."""
    path = tmp_path / "m.onnx"
    path.write_bytes(cnn("turned").SerializeToString())
    explainer = pycam.Explainer(path, layer="features")
    explainer(images)
    other = tmp_path / "other.onnx"
    other.write_bytes(cnn("turned", seed=1).SerializeToString())
    other.replace(path)
    with pytest.raises(ModelError, match="has changed since this Explainer was made"):
        explainer(images, "top3")


def test_an_explanation_is_shown_in_one_line(cnn: Net, images: np.ndarray) -> None:
    shown = repr(pycam.Explainer(cnn())(images, "top2"))
    assert shown.startswith("<Explanation of 3 × 2 targets: ")
    assert "\n" not in shown


def test_pictures_of_pixel_attributions_saturate_the_largest(cnn: Net, draw: Any) -> None:
    """A few pixels would leave the others black; the heatmaps themselves stay as they are."""
    x = draw(1, 3, 16, 16)
    result = pycam.Explainer(cnn(), "gradient")(x, 3)
    top = np.quantile(result.heatmaps[0, 0], 0.99)
    np.testing.assert_allclose(result.shown()[0, 0], np.minimum(result.heatmaps[0, 0] / top, 1), rtol=1e-5)
    np.testing.assert_array_equal(result.shown(clip=0), result.heatmaps)
    pictures = [result.overlay(np.zeros((1, 16, 16, 3), np.uint8), "gray", 1.0, clip) for clip in (None, 0.0)]
    assert pictures[0].mean() > pictures[1].mean()
    other = pycam.Explainer(cnn(), "gradcam")(x, 3)
    np.testing.assert_array_equal(other.shown(), other.heatmaps)
    with pytest.raises(InputError, match="clip=1: give a share of the pixels"):
        result.overlay(np.zeros((1, 16, 16, 3), np.uint8), clip=1)
