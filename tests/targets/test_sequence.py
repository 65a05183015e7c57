"""Sequences: a step, a token, or the whole; by steps and as CTC."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from PIL import Image, ImageDraw, ImageFont

import pycam
from pycam.errors import ModelError, TargetError
from pycam.runtime.found import check_found
from pycam.targets import Sequence

TOKENS = 4

TEXT = """(float[N, 3, 8, 24] x) => (float[SHAPE] y) {
    stem = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]>(x, w_stem)
    features = Relu(stem)
    hidden = Conv<kernel_shape = [1, 1]>(features, w_hidden)
    active = Sigmoid(hidden)
    columns = ReduceMean<keepdims = 0>(active, rows)
    steps = Transpose<perm = [0, 2, 1]>(columns)
    logits = MatMul(steps, w_last)
    laid = Transpose<perm = PERM>(logits)
    y = END(laid)
}"""
FORMS = {"NTV": ("N, 12, 4", [0, 1, 2], 2), "TNV": ("12, N, 4", [1, 0, 2], 2), "NVT": ("N, 4, 12", [0, 2, 1], 1)}


def drawn() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(4)
    shapes = {"w_stem": (5, 3, 3, 3), "w_hidden": (6, 5, 1, 1), "w_last": (6, TOKENS)}
    w = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    w["w_last"] -= w["w_last"].mean(0)
    return w


def build(text_model: Any, form: str = "NTV", end: str = "Identity") -> onnx.ModelProto:
    shape, perm, axis = FORMS[form]
    if end != "Identity":
        end += f"<axis = {axis}>"
    text = TEXT.replace("SHAPE", shape).replace("PERM", str(perm)).replace("END", end)
    return text_model(text, rows=np.array([2]), **drawn())


def tail(a: np.ndarray) -> np.ndarray:
    """Features (5, h, w) → logits (w, 4)."""
    w = {name: array.astype(np.float64) for name, array in drawn().items()}
    active = 1 / (1 + np.exp(-np.einsum("oc,chw->ohw", w["w_hidden"][:, :, 0, 0], a)))
    return active.mean(1).T @ w["w_last"]


def decode(logits: np.ndarray, blank: int | None, end: int | None = None) -> list[list[int]]:
    """The steps of each position."""
    best, found, last = logits.argmax(1).tolist(), [], -1
    for t, token in enumerate(best):
        if token == end:
            break
        if blank is None or (token != blank and token != last):
            found.append([t])
        elif token != blank:
            found[-1].append(t)
        last = token
    return found


@pytest.fixture(scope="module")
def x(draw: Any) -> np.ndarray:
    return draw(2, 3, 8, 24, seed=14)


@pytest.fixture(scope="module")
def features(x: np.ndarray, text_model: Any, forward: Any) -> np.ndarray:
    model = build(text_model)
    model.graph.output.append(onnx.ValueInfoProto(name="features"))
    return forward(model, {"x": x})["features"]


def maps(
    reference: Any, method: str, features: np.ndarray, terms: list[list[tuple[int, int]]], sign: float = 1
) -> np.ndarray:
    """For each image the raw map of a sum of logits at (step, token)."""
    return np.stack(
        [
            reference(method, lambda b, p=pairs: sign * float(sum(tail(b)[t, v] for t, v in p)), a)
            for a, pairs in zip(features, terms, strict=True)
        ]
    )


@pytest.mark.parametrize("blank", [None, 0, -1])
@pytest.mark.parametrize("end", ["Identity", "Softmax", "LogSoftmax"])
def test_positions(
    text_model: Any, reference: Any, close: Any, x: np.ndarray, features: np.ndarray, end: str, blank: int | None
) -> None:
    """Several at once: the best token there, one that is given, the second best; and the whole."""
    explainer = pycam.Explainer(build(text_model, end=end), "layercam", "features", target=Sequence(blank=blank))
    logits = [tail(a) for a in features]
    steps = [decode(z, None if blank is None else blank % TOKENS) for z in logits]
    assert min(map(len, steps)) >= 3
    positions, targets = [[1, 0, 2, -1]] * 2, [[-1, 3, -2, -1]] * 2
    result = explainer(x, targets, position=positions)
    ranks = [z.argsort(1)[:, ::-1] for z in logits]
    terms = [
        [[(t, ranks[n][t, 0]) for t in at[1]] for n, at in enumerate(steps)],
        [[(t, 3) for t in at[0]] for at in steps],
        [[(t, ranks[n][t, 1]) for t in at[2]] for n, at in enumerate(steps)],
        [[(t, ranks[n][t, 0]) for p in at for t in p] for n, at in enumerate(steps)],
    ]
    close(result.raw, np.stack([maps(reference, "layercam", features, row) for row in terms], 1))
    np.testing.assert_array_equal(result.extras["tokens"], [z.argmax(1) for z in logits])
    np.testing.assert_array_equal(result.extras["steps"], [[at[1][0], at[0][0], at[2][0], at[0][0]] for at in steps])
    shown = [[r[at[1][0], 0], 3, r[at[2][0], 1], -1] for r, at in zip(ranks, steps, strict=True)]
    np.testing.assert_array_equal(result.targets, shown)
    assert (result.noun, result.target) == ("token", "sequence")


@pytest.mark.parametrize("blank", [None, 0])
def test_a_token_wherever_it_is_said(
    text_model: Any, reference: Any, close: Any, x: np.ndarray, features: np.ndarray, blank: int | None
) -> None:
    explainer = pycam.Explainer(build(text_model), "gradcam", "features", target=Sequence(blank=blank))
    best = [tail(a).argmax(1) for a in features]
    token = next(v for v in range(1, TOKENS) if all((b == v).any() for b in best))
    result = explainer(x, token)
    terms = [[(t, token) for t in np.flatnonzero(b == token)] for b in best]
    close(result.raw[:, 0], maps(reference, "gradcam", features, terms))
    np.testing.assert_array_equal(result.targets, token)


def test_the_end(text_model: Any, reference: Any, close: Any, x: np.ndarray, features: np.ndarray) -> None:
    """Steps from the first end on do not count, and positions there are not found."""
    best = [tail(a).argmax(1) for a in features]
    end = next(v for v in range(TOKENS) if all(0 < (b == v).argmax() < 12 and (b == v).any() for b in best))
    explainer = pycam.Explainer(build(text_model), "layercam", "features", target=Sequence(end=end))
    terms = [[(p[0], b[p[0]]) for p in decode(tail(a), None, end)] for a, b in zip(features, best, strict=True)]
    close(explainer(x).raw[:, 0], maps(reference, "layercam", features, terms))
    np.testing.assert_array_equal(explainer(x).extras["length"][:, 0], [len(pairs) for pairs in terms])


@pytest.mark.parametrize(("ask", "message"), [
    ({"position": 11}, "position=11: image 0 says positions 0 to "),
    ({"targets": 0}, "image 0 says token 0 \\(nothing\\) nowhere"),
])  # fmt: skip
def test_what_is_not_there(
    text_model: Any, forward: Any, tmp_path: Path, x: np.ndarray, ask: dict[str, int], message: str
) -> None:
    """The graph gives a flat map and says that no step counts, of which an Explainer makes an error."""
    pycam.export(build(text_model), tmp_path / "explain.onnx", layer="features", target=Sequence(blank=0))
    spec = pycam.Explainer(tmp_path / "explain.onnx").spec
    wide = {"targets": -1, "position": -1} | ask
    feeds = {"x": x, **{name: np.full((2, 1), value) for name, value in wide.items()}}
    found = forward(tmp_path / "explain.onnx", feeds)
    assert not found["heatmaps"].any()
    extras = {key: found[name] for key, name in spec.extras.items()}
    np.testing.assert_array_equal(extras["steps"], -1)
    with pytest.raises(TargetError, match=message):
        check_found(spec, feeds, extras, ["nothing", "a", "b", "c"])
    nothing = {**extras, "length": extras["length"] * 0}
    best = {**feeds, "targets": np.full((2, 1), -1), "position": np.full((2, 1), -1)}
    with pytest.raises(TargetError, match="image 0 says nothing: every step is blank"):
        check_found(spec, best, nothing)


@pytest.mark.parametrize("method", ["ablationcam", "gradcam"])
@pytest.mark.parametrize("blank", [None, 0])
def test_methods_and_objectives(
    text_model: Any, reference: Any, close: Any, x: np.ndarray, features: np.ndarray, method: str, blank: int | None
) -> None:
    """Variants keep the steps and the tokens of the image itself, though they say something else."""
    explainer = pycam.Explainer(
        build(text_model, end="Softmax"), method, "features", target=Sequence(blank=blank), objective="counterfactual"
    )
    result = explainer(x, [[-1, -1]] * 2, position=[[-1, 1]] * 2)
    logits = [tail(a) for a in features]
    steps = [decode(z, blank) for z in logits]
    whole = [[(t, z[t].argmax()) for p in at for t in p] for z, at in zip(logits, steps, strict=True)]
    one = [[(t, z[t].argmax()) for t in at[1]] for z, at in zip(logits, steps, strict=True)]
    close(result.raw, np.stack([maps(reference, method, features, terms, -1) for terms in (whole, one)], 1))


def test_score_cam(text_model: Any, x: np.ndarray) -> None:
    """Runs the whole model on variants."""
    result = pycam.Explainer(build(text_model), "scorecam", "features", target=Sequence(blank=0))(
        x, position=[[0], [1]]
    )
    assert result.raw.shape == (2, 1, 4, 12)
    assert np.isfinite(result.raw).all()


@pytest.mark.parametrize("form", ["TNV", "NVT"])
@pytest.mark.parametrize("said", [False, True])
def test_other_orders(text_model: Any, x: np.ndarray, form: str, said: bool) -> None:
    """Found by the final softmax and the batch's name, or said."""
    plain = pycam.Explainer(build(text_model), "gradcam", "features", target=Sequence(blank=0))
    end = "Identity" if said else "Softmax"
    target = Sequence(blank=0, axes=form if said else None)
    other = pycam.Explainer(build(text_model, form, end), "gradcam", "features", target=target)
    for targets, position in ((None, None), ([[-1, -1]] * 2, [[0, 2]] * 2)):
        a, b = plain(x, targets, position=position), other(x, targets, position=position)
        np.testing.assert_allclose(b.raw, a.raw, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(b.targets, a.targets)
        np.testing.assert_array_equal(b.extras["steps"], a.extras["steps"])


def test_sixteen_bits(text_model: Any, close: Any, x: np.ndarray) -> None:
    model = build(text_model)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    half = pycam.Explainer(model, "layercam", "features", target=Sequence())(x.astype(np.float16), position=1)
    full = pycam.Explainer(build(text_model), "layercam", "features", target=Sequence())(x, position=1)
    close(half.raw, full.raw, 0.02)


def test_exported(text_model: Any, forward: Any, tmp_path: Path, x: np.ndarray) -> None:
    target = Sequence(blank=0)
    pycam.export(build(text_model, end="Softmax"), tmp_path / "explain.onnx", layer="features", target=target)
    targets, position = np.array([[-1, 2], [-1, -1]]), np.array([[1, 0], [-1, 2]])
    alone = forward(tmp_path / "explain.onnx", {"x": x, "targets": targets, "position": position})
    explainer = pycam.Explainer(build(text_model, end="Softmax"), "gradcam", "features", target=target, head="graph")
    result = explainer(x, targets, position=position)
    np.testing.assert_allclose(alone["heatmaps"], result.heatmaps, atol=1e-5)
    again = pycam.Explainer(tmp_path / "explain.onnx", target=target)
    np.testing.assert_array_equal(again(x, targets, position=position).targets, result.targets)


def test_bad_input(text_model: Any, cnn: Any, x: np.ndarray) -> None:
    with pytest.raises(TargetError, match="axes='NTC'"):
        Sequence(axes="NTC")
    with pytest.raises(TargetError, match=r"blank=0\.5"):
        Sequence(blank=0.5)  # type: ignore[arg-type]  # that is the test
    model = build(text_model)
    with pytest.raises(TargetError, match="blank=4: the model has 4 tokens, 0 to 3"):
        pycam.Explainer(model, layer="features", target=Sequence(blank=4))
    with pytest.raises(TargetError, match=r"the output 'y' has shape \['N', 20\]; a sequence is \(N, steps, tokens\)"):
        pycam.Explainer(cnn("gap"), layer="features", target=Sequence())
    with pytest.raises(ModelError, match="no output 'text'"):
        pycam.Explainer(model, layer="features", target=Sequence("text"))
    explainer = pycam.Explainer(model, layer="features", target=Sequence())
    with pytest.raises(TargetError, match="token 4 is out of range"):
        explainer(x, 4)
    with pytest.raises(TargetError, match="position="):
        explainer(x, position=-2)


def test_a_line_of_text(shared: Path) -> None:
    """Which pixels made each character: the map's maximum lies at the character, whose place is known."""
    font, text = ImageFont.load_default(32), "EXPLAIN 4217"
    line = Image.new("RGB", (int(font.getlength(text)) + 24, 48), "white")
    ImageDraw.Draw(line).text((12, 4), text, "black", font=font)
    x = np.ascontiguousarray(((np.asarray(line, np.float32) / 255 - 0.5) / 0.5).transpose(2, 0, 1)[None])
    path = shared / "models" / "ppocr_rec.onnx"
    metadata = {p.key: p.value for p in onnx.load(path).metadata_props}
    labels = ["", *metadata["character"].split("\n"), " "]
    explainer = pycam.Explainer(path, "layercam", "swish_17.tmp_0", target=Sequence(blank=0))
    for place, character in enumerate(text):
        result = explainer(x, position=place)
        assert labels[result.targets[0, 0]] == character
        if character == " ":
            continue
        left, right = (int(12 + font.getlength(text[:n])) for n in (place, place + 1))
        heat = result.heatmaps[0, 0].sum(0)
        assert left - 3 <= heat.argmax() <= right + 3
        assert (
            heat[left - 3 : right + 4].sum() > 0.8 * heat.sum() > 5 * (right - left + 7) / len(heat) * heat.sum() * 0.8
        )
