"""Scores that users make: weighted parts of outputs, and a graph of their own behind the outputs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

import pycam
from pycam.errors import ModelError, TargetError
from pycam.targets import Custom, Weighted

TEXT = """(float[N, 3, 8, 12] x) => (float[N, 4] scores, float[N, 6, 4, 6] maps, int64[N] best, float[N] level) {
    stem = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]>(x, w_stem)
    features = Relu(stem)
    hidden = Conv<kernel_shape = [1, 1]>(features, w_hidden)
    maps = Sigmoid(hidden)
    pooled = GlobalAveragePool(maps)
    flat = Flatten(pooled)
    scores = MatMul(flat, w_last)
    best = ArgMax<axis = 1, keepdims = 0>(scores)
    level = ReduceMax<keepdims = 0>(scores, along)
}"""


def drawn() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    shapes = {"w_stem": (5, 3, 3, 3), "w_hidden": (6, 5, 1, 1), "w_last": (6, 4)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def build(text_model: Any) -> onnx.ModelProto:
    return text_model(TEXT, along=np.array([1]), **drawn())


def halved(model: onnx.ModelProto) -> onnx.ModelProto:
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    return model


def tail(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features (5, h, w) → scores (4,), maps (6, h, w)."""
    w = {name: array.astype(np.float64) for name, array in drawn().items()}
    maps = 1 / (1 + np.exp(-np.einsum("oc,chw->ohw", w["w_hidden"][:, :, 0, 0], a)))
    return maps.mean((1, 2)) @ w["w_last"], maps


@pytest.fixture(scope="module")
def x(draw: Any) -> np.ndarray:
    return draw(2, 3, 8, 12, seed=3)


@pytest.fixture(scope="module")
def features(x: np.ndarray, text_model: Any, forward: Any) -> np.ndarray:
    model = build(text_model)
    model.graph.output.append(onnx.ValueInfoProto(name="features"))
    return forward(model, {"x": x})["features"]


def both(reference: Any, method: str, score: Callable[[np.ndarray], float], features: np.ndarray) -> np.ndarray:
    return np.stack([reference(method, score, a) for a in features])[:, None]


WEIGHTED: dict[str, tuple[Any, Callable[[np.ndarray, np.ndarray], float]]] = {
    "a column": ([("scores", 2, 1.0)], lambda z, m: z[2]),
    "the first output": ([(None, -1, -2.0)], lambda z, m: -2 * z[3]),
    "all": ([("scores", None, 1.0)], lambda z, m: z.sum()),
    "an output without axes": ([("level", None, 0.5), ("level", (), 0.5)], lambda z, m: z.max()),
    "a channel": ([("maps", 4, 0.1)], lambda z, m: 0.1 * m[4].sum()),
    "parts": (
        [("scores", 0, 1.0), ("maps", (1, slice(1, 3), None), -0.5), ("maps", (None, -1, slice(None, None, -2)), 0.25)],
        lambda z, m: z[0] - 0.5 * m[1, 1:3].sum() + 0.25 * m[:, -1, ::-2].sum(),
    ),
    "from the end": ([("maps", (slice(-3, None, 2), 0, -2), 1.0)], lambda z, m: m[-3::2, 0, -2].sum()),
}


@pytest.mark.parametrize("name", WEIGHTED)
@pytest.mark.parametrize(("method", "objective"), [("layercam", "counterfactual"), ("ablationcam", "class")])
def test_weighted(
    text_model: Any, reference: Any, close: Any, x: np.ndarray, features: np.ndarray, name: str, method: str,
    objective: str,
) -> None:  # fmt: skip
    terms, value = WEIGHTED[name]
    sign = -1 if objective == "counterfactual" else 1
    explainer = pycam.Explainer(build(text_model), method, "features", target=Weighted(terms), objective=objective)
    found = both(reference, method, lambda a: sign * float(value(*tail(a))), features)
    close(explainer(x).raw, found)
    np.testing.assert_array_equal(explainer(x).targets, 0)
    close(explainer(x, [[0, -1]] * 2).raw, found.repeat(2, 1))


def test_weighted_of_free_sizes(cnn: Any, images: np.ndarray) -> None:
    free = cnn("gap", height="H", width="W", extra_output="late")
    fixed = cnn("gap", extra_output="late")
    terms = [("y", 3, 1.0), ("late", (2, 1, slice(1, 5)), 1.0)]
    a, b = (pycam.Explainer(m, "gradcam", "early", target=Weighted(terms))(images) for m in (free, fixed))
    np.testing.assert_allclose(a.raw, b.raw, rtol=1e-4, atol=1e-6)


SCORE = """(float[n, 4] scores, float[n, 6, h, w] maps) => (float[n, 2] z) {
    top = Relu(maps)
    summed = ReduceSum<keepdims = 0>(top, places)
    mixed = MatMul(summed, w_stem)
    square = Mul(scores, scores)
    mean = ReduceMean(square, along)
    z = Add(mixed, mean)
}"""


def score_model(text_model: Any, opset: int = 18) -> onnx.ModelProto:
    """Its names are the model's, too."""
    w = np.random.default_rng(9).normal(size=(6, 2)).astype(np.float32)
    return text_model(SCORE, opset=opset, places=np.array([2, 3]), along=np.array([1]), w_stem=w)


def score(a: np.ndarray) -> np.ndarray:
    z, m = tail(a)
    return m.sum((1, 2)) @ np.random.default_rng(9).normal(size=(6, 2)).astype(np.float32) + (z**2).mean()


@pytest.mark.parametrize("opset", [18, 21, 24])
@pytest.mark.parametrize("method", ["layercam", "ablationcam"])
def test_custom(
    text_model: Any, reference: Any, close: Any, x: np.ndarray, features: np.ndarray, method: str, opset: int
) -> None:
    target = Custom(score_model(text_model, opset))
    explainer = pycam.Explainer(build(text_model), method, "features", target=target)
    result = explainer(x, [[1, 0]] * 2)
    close(
        result.raw, np.concatenate([both(reference, method, lambda a, t=t: score(a)[t], features) for t in (1, 0)], 1)
    )
    best = np.stack([score(a) for a in features]).argmax(1)
    np.testing.assert_array_equal(explainer(x).targets[:, 0], best)
    held = pycam.Explainer(build(text_model), "gradcam", "features", target=target, objective="contrastive")
    close(held(x, 1, 0).raw, both(reference, "gradcam", lambda a: score(a)[1] - score(a)[0], features))


@pytest.mark.parametrize("form", ["path", "bytes", "external"])
def test_sources(text_model: Any, tmp_path: Path, x: np.ndarray, form: str) -> None:
    model, path = score_model(text_model), tmp_path / "score.onnx"
    if form == "external":
        copy = onnx.load_from_string(model.SerializeToString())  # what is saved is changed
        onnx.save_model(
            copy, path, save_as_external_data=True, all_tensors_to_one_file=True, location="w.bin", size_threshold=0
        )
    else:
        path.write_bytes(model.SerializeToString())
    target = Custom(path.read_bytes() if form == "bytes" else path)
    wanted = pycam.Explainer(build(text_model), "gradcam", "features", target=Custom(model))(x)
    explainer = pycam.Explainer(build(text_model), "gradcam", "features", target=target)
    np.testing.assert_array_equal(explainer(x).raw, wanted.raw)
    assert json.loads(json.dumps(target.options())) == target.options()


def test_what_a_call_gives(text_model: Any, reference: Any, close: Any, x: np.ndarray, features: np.ndarray) -> None:
    """Inputs that are no outputs of the model; (N,) is one score."""
    text = "(float[n, 4] wanted, float[n, 4] scores, int64[n] which) => (float[n] z) {" + """
        less = Sub(scores, wanted)
        square = Mul(less, less)
        two = Reshape(which, column)
        chosen = GatherElements<axis = 1>(square, two)
        z = ReduceSum<keepdims = 0>(chosen, along)
    }"""  # fmt: skip
    target = Custom(text_model(text, column=np.array([-1, 1]), along=np.array([1])))
    explainer = pycam.Explainer(build(text_model), "layercam", "features", target=target)
    wanted, which = np.float32([[1, 2, 3, 4], [0, 1, 0, 1]]), np.array([2, 0])
    result = explainer(x, wanted=wanted, which=which)
    maps = [
        reference("layercam", lambda a, n=n: float((tail(a)[0] - wanted[n])[which[n]] ** 2), features[n])
        for n in range(2)
    ]
    close(result.raw[:, 0], np.stack(maps))
    assert any("wanted, which" in note for note in explainer.spec.notes)
    with pytest.raises(TargetError, match="the target 'custom' needs which="):
        explainer(x, wanted=wanted)
    with pytest.raises(TargetError, match=r"wanted= has shape \(2, 3\); it must have shape"):
        explainer(x, wanted=wanted[:, :3], which=which)


def test_a_score_with_a_branch(text_model: Any, x: np.ndarray) -> None:
    """Subgraphs come along, with names of their own."""
    text = """(float[n, 4] scores) => (float[n, 4] z) {
        most = ReduceMax<keepdims = 0>(scores)
        limit = Constant<value_float = -100.0>()
        large = Greater(most, limit)
        z = If(large) <
            then_branch = yes () => (float[n, 4] features) { features = Mul(scores, scores) },
            else_branch = no () => (float[n, 4] features) { features = Identity(scores) }
        >
    }"""
    square = "(float[n, 4] scores) => (float[n, 4] z) { z = Mul(scores, scores) }"
    branch, plain = (
        pycam.Explainer(build(text_model), "gradcam", "features", target=Custom(text_model(t)))(x)
        for t in (text, square)
    )
    np.testing.assert_allclose(branch.raw, plain.raw, rtol=1e-5, atol=1e-7)


def test_sixteen_bits(text_model: Any, close: Any, x: np.ndarray) -> None:
    """A graph for float32 reads float16 outputs, and one for float16 too."""
    full = pycam.Explainer(build(text_model), "layercam", "features", target=Custom(score_model(text_model)))(x, 0)
    for score_of in (score_model(text_model), halved(score_model(text_model))):
        half = pycam.Explainer(halved(build(text_model)), "layercam", "features", target=Custom(score_of))
        close(half(x.astype(np.float16), 0).raw, full.raw, 0.03)
    target = Weighted([("scores", 0, 1.0), ("maps", 1, 0.5)])
    full = pycam.Explainer(build(text_model), "layercam", "features", target=target)(x)
    half = pycam.Explainer(halved(build(text_model)), "layercam", "features", target=target)
    close(half(x.astype(np.float16)).raw, full.raw, 0.03)


@pytest.mark.parametrize("kind", ["weighted", "custom"])
def test_exported(text_model: Any, forward: Any, tmp_path: Path, x: np.ndarray, kind: str) -> None:
    target = Weighted(WEIGHTED["parts"][0]) if kind == "weighted" else Custom(score_model(text_model))
    pycam.export(build(text_model), tmp_path / "explain.onnx", layer="features", target=target)
    wanted = pycam.Explainer(build(text_model), "gradcam", "features", target=target, head="graph")(x)
    alone = forward(tmp_path / "explain.onnx", {"x": x, "targets": np.full((2, 1), -1)})
    np.testing.assert_allclose(alone["heatmaps"], wanted.heatmaps, atol=1e-5)
    pycam.Explainer(tmp_path / "explain.onnx", target=target)


def test_bad_terms(text_model: Any) -> None:
    for terms in ([], [("y", 1)], "y", [("y", 1, "half")]):
        with pytest.raises(TargetError, match="terms="):
            Weighted(terms)  # type: ignore[arg-type]  # that is the test
    for index in (1.5, "a", (slice(0, 3, 0),), True):
        with pytest.raises(TargetError, match="the index"):
            Weighted([("y", index, 1.0)])  # type: ignore[arg-type, list-item]  # that is the test
    with pytest.raises(TargetError, match="the weight nan"):
        Weighted([("y", 1, float("nan"))])  # type: ignore[arg-type]  # that is the test
    cases: list[tuple[Any, type[Exception], str]] = [
        (("scores", 4, 1), TargetError, "the index 4 of a term is out of range: axis 1 of the output 'scores' has 4"),
        (("scores", (0, 1), 1), TargetError, r"the index \(0, 1\) of a term has 2 axes"),
        (("level", 0, 1), TargetError, "'level' has shape"),
        (("best", None, 1), ModelError, "the output 'best' holds INT64"),
        (("logits", None, 1), ModelError, "no output 'logits'"),
    ]
    for term, error, message in cases:
        with pytest.raises(error, match=message):
            pycam.Explainer(build(text_model), layer="features", target=Weighted([term]))  # type: ignore[arg-type]


def test_bad_graphs(text_model: Any, tmp_path: Path) -> None:
    cases = {
        "(float[n, 4] scored) => (float[n, 4] z) { z = Relu(scored) }": "reads none of the model's outputs: its inputs",
        "(float[n, 4] scores) => (float[n, 4] z, float[n, 4] y) { z = Relu(scores) y = Neg(scores) }": "has 2 outputs",
        "(float[n, 4, 1] scores) => (float[n, 4, 1] z) { z = Relu(scores) }": "wants 'scores' as FLOAT of shape",
        "(double[n, 4] scores) => (double[n, 4] z) { z = Relu(scores) }": "wants 'scores' as DOUBLE of shape",
        "(float[n, 6, h, w] maps) => (float[n, 6, h, w] z) { z = Relu(maps) }": r"make it \(N,\) or \(N, C\)",
        "(float[n, 4] scores) => (int64[n, 1] z) { z = ArgMax<axis = 1>(scores) }": "and dtype INT64",
        "(float[n, 4] scores, float[4] w) => (float[n, 4] z) { z = Mul(scores, w) }": "the input 'w' of the target",
        "(float[n, 4] scores, bool[n, 4] w) => (float[n, 4] z) { z = Where(w, scores, scores) }": "it is BOOL",
    }  # fmt: skip
    for text, message in cases.items():
        with pytest.raises(TargetError, match=message):
            pycam.Explainer(build(text_model), layer="features", target=Custom(text_model(text)))
    with pytest.raises(ModelError, match="cannot open"):
        pycam.Explainer(build(text_model), layer="features", target=Custom(tmp_path / "nothing.onnx"))
    with pytest.raises(TargetError, match="cannot read the graph"):
        Custom(tmp_path / "nothing.onnx").options()


def test_pong(shared: Path) -> None:
    """The lead of one action over another, as a user writes it."""
    target = Weighted([("logits", 1, 1.0), ("logits", 2, -1.0)])
    path, x = shared / "models" / "pong_policy.onnx", np.random.default_rng(0).uniform(size=(1, 2, 80, 80))
    own = pycam.Explainer(path, target=target)(x.astype(np.float32))
    held = pycam.Explainer(path, objective="contrastive")(x.astype(np.float32), 1, 2)
    np.testing.assert_allclose(own.raw, held.raw, rtol=1e-3, atol=1e-5)
