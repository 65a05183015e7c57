"""Similarity of embeddings to references."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from PIL import Image

import pycam
from pycam.errors import TargetError
from pycam.targets import Similarity

TEXT = """(float[N, 3, 8, 12] x) => (float[SHAPE] y) {
    stem = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]>(x, w_stem)
    features = Relu(stem)
    hidden = Conv<kernel_shape = [1, 1]>(features, w_hidden)
    active = Sigmoid(hidden)
    REST
}"""

RESTS = {
    "vector": (
        "N, 4",
        "pooled = GlobalAveragePool(active) flat = Flatten(pooled) y = MatMul(flat, w_last)",
    ),
    "tokens": (
        "N, 24, 4",
        "rows = Reshape(active, form) tokens = Transpose<perm = [0, 2, 1]>(rows) y = MatMul(tokens, w_last)",
    ),
    "map": ("N, 6, 1, 1", "y = GlobalAveragePool(active)"),
}
REFERENCES = np.random.default_rng(8).normal(size=(3, 4)).astype(np.float32)

MEASURES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "cosine": lambda e, r: float(e @ r / np.linalg.norm(e) / np.linalg.norm(r)),
    "dot": lambda e, r: float(e @ r),
    "euclidean": lambda e, r: -float(np.linalg.norm(e - r)),
}


def drawn() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    shapes = {"w_stem": (5, 3, 3, 3), "w_hidden": (6, 5, 1, 1), "w_last": (6, 4)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def build(text_model: Any, rest: str = "vector") -> onnx.ModelProto:
    shape, nodes = RESTS[rest]
    return text_model(TEXT.replace("SHAPE", shape).replace("REST", nodes), form=np.array([0, 6, -1]), **drawn())


def embedding(a: np.ndarray, token: int | None = None) -> np.ndarray:
    """Features (5, h, w) → (4,)."""
    w = {name: array.astype(np.float64) for name, array in drawn().items()}
    active = 1 / (1 + np.exp(-np.einsum("oc,chw->ohw", w["w_hidden"][:, :, 0, 0], a))).reshape(6, -1)
    return (active.mean(1) if token is None else active[:, token]) @ w["w_last"]


@pytest.fixture(scope="module")
def x(draw: Any) -> np.ndarray:
    return draw(2, 3, 8, 12, seed=3)


@pytest.fixture(scope="module")
def features(x: np.ndarray, text_model: Any, forward: Any) -> np.ndarray:
    model = build(text_model)
    model.graph.output.append(onnx.ValueInfoProto(name="features"))
    return forward(model, {"x": x})["features"]


@pytest.mark.parametrize("objective", ["class", "counterfactual"])
@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("method", ["gradcam", "hirescam", "ablationcam"])
def test_measures(
    text_model: Any, reference: Any, close: Any, x: np.ndarray, features: np.ndarray, method: str, measure: str,
    objective: str,
) -> None:  # fmt: skip
    target = Similarity(measure=measure)
    explainer = pycam.Explainer(build(text_model), method, "features", target=target, objective=objective)
    result = explainer(x, [[0, -1], [2, -2]], reference=REFERENCES)
    sign, like = -1 if objective == "counterfactual" else 1, MEASURES[measure]
    z = np.array([[like(embedding(a), r.astype(float)) for r in REFERENCES] for a in features])
    order = z.argsort(1)[:, ::-1]
    targets = np.array([[0, order[0, 0]], [2, order[1, 1]]])
    np.testing.assert_array_equal(result.targets, targets)
    np.testing.assert_allclose(result.extras["score"], np.take_along_axis(z, targets, 1), rtol=1e-4)
    maps = [
        [
            reference(method, lambda b, t=t: sign * like(embedding(b), REFERENCES[t].astype(float)), features[n])
            for t in row
        ]
        for n, row in enumerate(targets)
    ]
    close(result.raw, np.array(maps))
    assert result.noun == "reference"


@pytest.mark.parametrize("token", [None, 0, -1])
def test_tokens(text_model: Any, reference: Any, close: Any, x: np.ndarray, features: np.ndarray, token: Any) -> None:
    explainer = pycam.Explainer(build(text_model, "tokens"), "layercam", "features", target=Similarity(token=token))
    result = explainer(x, reference=REFERENCES[0])
    found = [embedding(a, token) for a in features]
    np.testing.assert_allclose(result.extras["embedding"], found, rtol=1e-4, atol=1e-5)
    score = lambda b: MEASURES["cosine"](embedding(b, token), REFERENCES[0].astype(float))  # noqa: E731
    close(result.raw[:, 0], np.stack([reference("layercam", score, a) for a in features]))
    assert any("mean over axis 1" in note for note in explainer.spec.notes) == (token is None)


def test_references_of_each_image(text_model: Any, x: np.ndarray) -> None:
    explainer = pycam.Explainer(build(text_model), "gradcam", "features", target=Similarity())
    each = explainer(x, 0, reference=np.stack([REFERENCES[:1], REFERENCES[1:2]]))
    both = explainer(x, [[0], [1]], reference=REFERENCES)
    np.testing.assert_allclose(each.raw, both.raw, rtol=1e-5, atol=1e-7)
    own = both.extras["embedding"]
    same = explainer(x, 0, reference=own[:, None])
    np.testing.assert_allclose(same.extras["score"], 1, atol=1e-6)
    assert same.flat.all()  # nothing makes it more like itself
    np.testing.assert_allclose(own, explainer.embed(x), rtol=1e-5)
    with pytest.raises(TargetError, match="reference 2 is out of range: this model's references are 0 to 1"):
        explainer(x, 2, reference=REFERENCES[:2])
    assert explainer(x, "top3", reference=REFERENCES[:2]).targets.shape == (2, 2)
    nearest = pycam.Explainer(build(text_model), "gradcam", "features", target=Similarity(measure="euclidean"))
    assert np.isfinite(nearest(x, 0, reference=own[:, None]).raw).all()
    assert np.isfinite(explainer(x, 0, reference=np.zeros(4)).raw).all()


def test_an_embedding_with_more_axes(text_model: Any, x: np.ndarray) -> None:
    explainer = pycam.Explainer(build(text_model, "map"), "gradcam", "features", target=Similarity(measure="dot"))
    result = explainer(x, reference=np.eye(6, dtype=np.float32))
    assert result.extras["embedding"].shape == (2, 6)
    np.testing.assert_array_equal(result.targets[:, 0], result.extras["embedding"].argmax(1))


def test_sixteen_bits(text_model: Any, close: Any, x: np.ndarray) -> None:
    model = build(text_model)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    half = pycam.Explainer(model, "layercam", "features", target=Similarity())(
        x.astype(np.float16), 0, reference=REFERENCES
    )
    full = pycam.Explainer(build(text_model), "layercam", "features", target=Similarity())(x, 0, reference=REFERENCES)
    close(half.raw, full.raw, 0.02)


def test_exported(text_model: Any, forward: Any, tmp_path: Path, x: np.ndarray) -> None:
    pycam.export(build(text_model), tmp_path / "explain.onnx", layer="features", target=Similarity())
    targets, wide = np.array([[0, 2], [-1, 1]]), np.broadcast_to(REFERENCES, (2, 3, 4))
    alone = forward(tmp_path / "explain.onnx", {"x": x, "targets": targets, "reference": wide})
    wanted = pycam.Explainer(build(text_model), "gradcam", "features", target=Similarity(), head="graph")
    np.testing.assert_allclose(alone["heatmaps"], wanted(x, targets, reference=REFERENCES).heatmaps, atol=1e-5)


def test_bad_input(text_model: Any, x: np.ndarray) -> None:
    with pytest.raises(TargetError, match="measure='cos': choose one of cosine, dot, euclidean"):
        Similarity(measure="cos")
    with pytest.raises(TargetError, match="token='first'"):
        Similarity(token="first")  # type: ignore[arg-type]  # that is the test
    model = build(text_model)
    with pytest.raises(TargetError, match="token=0: the output 'y' has 2 axes"):
        pycam.Explainer(model, layer="features", target=Similarity(token=0))
    with pytest.raises(TargetError, match="token=24: the output 'y' has 24 tokens"):
        pycam.Explainer(build(text_model, "tokens"), layer="features", target=Similarity(token=24))
    explainer = pycam.Explainer(model, layer="features", target=Similarity())
    with pytest.raises(TargetError, match="the target 'similarity' needs reference="):
        explainer(x)
    with pytest.raises(TargetError, match=r"reference= has shape \(3,\); give an embedding \(4,\)"):
        explainer(x, reference=np.ones(3))


def test_faces(shared: Path, inside: Callable[..., Any]) -> None:
    """What makes a face like the same face, turned, lies in it; a cat is less like it."""
    region = np.zeros((224, 224))
    region[35:205, 35:185] = 1

    def face(name: str, box: tuple[int, ...], angle: float = 0) -> np.ndarray:
        with Image.open(shared / "images" / name) as image:
            return np.asarray(image.convert("RGB").crop(box).resize((224, 224)).rotate(angle), np.float32)[None]

    target = Similarity("global_pooling/Mean")
    explainer = pycam.Explainer(shared / "models" / "human_faceres.onnx", target=target)
    unknown = np.ones(1024, np.float32)
    own, cat = (
        explainer(picture, reference=unknown).extras["embedding"][0]
        for picture in (face("astronaut.png", (150, 20, 300, 190)), face("chelsea.png", (90, 10, 330, 250)))
    )
    result = explainer(face("astronaut.png", (150, 20, 300, 190), 12), reference=np.stack([cat, own]))
    assert result.targets.tolist() == [[1]]
    hit, energy, share = inside(result.heatmaps[0, 0], region)
    assert hit
    assert energy > share + 0.1
