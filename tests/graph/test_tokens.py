"""Tokens on the image's grid as layers: which values they are, which one `auto` takes, what is put behind them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import pycam
from pycam.errors import InputError, LayerError
from pycam.graph.axes import BATCH, Factor, Tokens, dims, regrouped
from pycam.graph.axis_rules import follow_axes
from pycam.graph.load import load
from pycam.graph.locate import locate_layers, locate_score, module_path, workable_layers
from pycam.graph.normalise import normalise
from pycam.graph.sizes import fix_sizes
from pycam.graph.tokens import grids

Net = Callable[..., onnx.ModelProto]
Forward = Callable[..., dict[str, np.ndarray]]
EXPORTERS = Path(__file__).parents[1] / "reference" / "exporters"
FORMS = ["plain", "masked", "mixed", "turned", "beside", "einsum", "fused", "fused, 4-D", "microsoft"]
OPSETS = {"fused": 23, "fused, 4-D": 23}


def found(model: Any, layer: Any = "auto") -> list[ir.Value]:
    graph = normalise(load(model)).graph
    return locate_layers(graph, layer, locate_score(graph).value)


def tokens_of(model: Any) -> dict[str, Tokens]:
    return {value.name or "": t for value, t in grids(follow_axes(normalise(load(model)).graph)).items()}


def relative(actual: np.ndarray, expected: np.ndarray) -> float:
    assert actual.shape == expected.shape
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


# ---- which values are tokens on the grid -----------------------------------------------------------------------------


@pytest.mark.parametrize(("before", "after"), [(0, 0), (1, 0), (5, 0), (0, 2), (1, 3)])
def test_special_tokens_are_counted(vit: Net, before: int, after: int) -> None:
    known = tokens_of(vit(end="mean", before=before, after=after))
    assert known["grid"] == (4, 3, 0, 0)
    for name in ("tokens", "x0", "n0", "q0", "r0", "h1", "x2", "last"):
        assert known[name] == (4, 3, before, after), name
    assert not known.keys() & {"patches", "rows", "start", "stop", "qt0", "s0", "p0", "pooled", "y"}


@pytest.mark.parametrize("form", [*FORMS, "windows", "none", "channels"])
def test_the_residual_stream_is_followed_through_every_attention(vit: Net, form: str) -> None:
    special = form not in ("windows", "none")
    known = tokens_of(vit(form, before=int(special), opset=OPSETS.get(form, 18), end="class" if special else "mean"))
    assert known["x2"] == (4, 3, int(special), 0)


@pytest.mark.parametrize("batch", ["N", 1, 2])
def test_a_fixed_batch(vit: Net, batch: int | str) -> None:
    assert tokens_of(vit("plain", batch=batch))["a1"] == (4, 3, 1, 0)


BODIES = {
    "taken apart and put together": """
        cls = Slice(x0, zero, one, one) rest = Slice(x0, one, end, one) t = Concat<axis = 1>(rest, cls)""",
    "split": "cls, rest = Split<axis = 1>(x0, parts) t = Concat<axis = 1>(rest, cls)",
    "gathered": "cls = Gather<axis = 1>(x0, zero) rest = Gather<axis = 1>(x0, others) t = Concat<axis = 1>(rest, cls)",
    "padded": "rest = Slice(x0, one, end, one) t = Pad(rest, pads)",
    "flattened to two axes": """
        rest = Slice(x0, one, end, one) cls = Slice(x0, zero, one, one) both = Concat<axis = 1>(rest, cls)
        f = Reshape(both, two) m = MatMul(f, square) t = Reshape(m, three)""",
    "rows in parts": """
        rest = Slice(x0, one, end, one) cls = Slice(x0, zero, one, one)
        r = Reshape(rest, parted) s = Transpose<perm = [0, 1, 3, 2, 4, 5]>(r)
        u = Transpose<perm = [0, 1, 3, 2, 4, 5]>(s) w = Reshape(u, again)
        t = Concat<axis = 1>(w, cls)""",
}
CONSTANTS = {
    "zero": [0], "one": [1], "end": [2**62], "parts": [1, 12], "others": list(range(1, 13)), "two": [-1, 8],
    "three": [-1, 13, 8], "pads": [0, 0, 0, 0, 1, 0], "parted": [0, 2, 2, 3, 1, 8], "again": [0, 12, 8],
}  # fmt: skip


@pytest.mark.parametrize("body", BODIES)
def test_tokens_that_are_taken_apart(text_model: Any, body: str) -> None:
    text = f"""(float[N, 3, 8, 6] x) => (float[N, 8] y) {{
        p = Conv<strides = [2, 2]>(x, w_patch) flat = Reshape(p, rows) grid = Transpose<perm = [0, 2, 1]>(flat)
        mean = ReduceMean(grid, one) x0 = Concat<axis = 1>(mean, grid) {BODIES[body]}
        y = ReduceMean<keepdims = 0>(t, one)
    }}"""
    arrays: dict[str, Any] = {k: np.array(v) for k, v in CONSTANTS.items()} | {"rows": np.array([0, 8, -1])}
    weights = {"w_patch": np.ones((8, 3, 2, 2), np.float32), "square": np.eye(8, dtype=np.float32)}
    model = text_model(text, **{k: v for k, v in (arrays | weights).items() if k in text})
    known = tokens_of(model)
    assert known["x0"] == (4, 3, 1, 0)
    assert known["t"] == (4, 3, 0, 1) if body != "padded" else known["rest"] == (4, 3, 0, 0)


def test_what_is_no_grid_any_more(text_model: Any) -> None:
    """Some of the positions, positions in another order, and another batch are no tokens on the grid."""
    model = text_model(
        """(float[N, 8, 4, 5] x) => (float[N, 8] y) {
            f = Reshape(x, rows) grid = Transpose<perm = [0, 2, 1]>(f)
            half = Slice(grid, zero, ten, one)
            turned = Transpose<perm = [0, 3, 2, 1]>(x) swapped = Reshape(turned, tokens)
            windows = Reshape(grid, two)
            y1 = ReduceMean<keepdims = 0>(half, one) y2 = ReduceMean<keepdims = 0>(swapped, one)
            y3 = ReduceMean<keepdims = 0>(grid, one) w = ReduceMean<keepdims = 0>(windows, one)
            y4 = ReduceMax(w) y12 = Add(y1, y2) y123 = Add(y12, y3) y = Add(y123, y4)
        }""",
        rows=np.array([0, 8, -1]),
        zero=np.array([0]),
        ten=np.array([10]),
        one=np.array([1]),
        tokens=np.array([0, 20, 8]),
        two=np.array([-1, 10, 8]),
    )
    assert list(tokens_of(model)) == ["grid"]


def test_factors_of_axes() -> None:
    """A reshape only regroups factors; a batch or special tokens are never cut apart."""
    batch, rows, columns = Factor("batch", BATCH), Factor("rows", 4), Factor("columns", 3)
    other = Factor("other", 8)
    axes = ((batch,), (rows, columns), (other,))
    assert regrouped(axes, [BATCH, 4, 3, 8]) == ((batch,), (rows,), (columns,), (other,))
    parts = regrouped(axes, [BATCH, 2, 2, 3, 2, 4])
    assert parts is not None
    assert [[f.role for f in axis] for axis in parts] == [
        ["batch"], ["rows"], ["other"], ["columns"], ["other"], ["other"],
    ]  # fmt: skip
    assert regrouped(parts, [BATCH, 12, 8]) == axes
    assert regrouped(axes, [BATCH // 2, 24, 8]) is None
    tokens = (Factor("tokens", 13, Tokens(4, 3, 1)),)
    assert regrouped(((batch,), tokens), [BATCH, 13]) == ((batch,), tokens)
    assert regrouped((((batch,), (Factor("tokens", 14, Tokens(4, 3, 2)),))), [BATCH, 2, 7]) is None


# ---- auto ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_auto_before_the_last_attention_where_a_class_token_is_read(vit: Net, form: str) -> None:
    (layer,) = found(vit(form, opset=OPSETS.get(form, 18)))
    assert (layer.name, list(layer.shape or [])[1:]) == ("x1/features", [8, 4, 3])


def test_auto_with_several_special_tokens(vit: Net) -> None:
    assert [v.name for v in found(vit("plain", "two", before=2))] == ["x1/features"]
    assert [v.name for v in found(vit("plain", "class", before=3, after=2))] == ["x1/features"]


@pytest.mark.parametrize(("form", "before"), [("plain", 0), ("plain", 1), ("none", 0), ("windows", 0)])
def test_auto_before_the_mean_of_all_tokens(vit: Net, form: str, before: int) -> None:
    assert [v.name for v in found(vit(form, "mean", before=before))] == ["last/features"]


def test_auto_where_tokens_are_mixed_without_attention(vit: Net) -> None:
    """A class token that a product along the tokens made of all of them (after it, patches lead nowhere)."""
    assert [v.name for v in found(vit("none", "class", before=1))] == ["x1/features"]


def test_auto_takes_features_rather_than_what_they_were_flattened_to(text_model: Any) -> None:
    model = text_model(
        """(float[N, 3, 8, 8] x) => (float[N, 3] y) {
            a = Relu(x) f = Reshape(a, rows) t = Transpose<perm = [0, 2, 1]>(f) y = ReduceMean<keepdims = 0>(t, one)
        }""",
        rows=np.array([0, 3, -1]),
        one=np.array([1]),
    )
    assert [v.name for v in found(model)] == ["a"]


# ---- by name ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x1", "n1", "node_n1", "q1", "grid", "last"])
def test_tokens_by_name(vit: Net, name: str) -> None:
    (layer,) = found(vit("plain", "mean"), name)
    assert list(layer.shape or [])[1:] == [8, 4, 3]


@pytest.mark.parametrize(
    ("model", "name", "tensor"),
    [
        ("torch_dynamo_vit", "blocks.0", "add_95/features"),
        ("torch_legacy_vit", "blocks.0", "/blocks/blocks.0/Add_1_output_0/features"),
        ("torch_dynamo_vit", "blocks.1.norm1", "layer_norm_2/features"),
        ("torch_legacy_vit", "blocks.1.norm1", "/blocks/blocks.1/norm1/LayerNormalization_output_0/features"),
        ("keras_vit", "block1_add2", "vit_1/block1_add2_1/Add:0/features"),
    ],
)
def test_tokens_by_module_path(model: str, name: str, tensor: str) -> None:
    (layer,) = found(EXPORTERS / f"{model}.onnx", name)
    assert layer.name == tensor
    node = layer.producer()
    assert node is not None
    assert module_path(node).split("/")[-1] == {"block1_add2": "block1_add2_1"}.get(name, name)


def test_tokens_are_listed_and_taken(vit: Net) -> None:
    model = vit("plain", "mean")
    listed = {layer.name: layer.shape for layer in pycam.layers(model)}
    assert listed["x1"] == ("N", 13, 8)
    assert listed["patches"] == ("N", 8, 4, 3)
    tokens = [name for name, shape in listed.items() if len(shape) == 3]
    assert [v.name for v in found(model, tokens)] == [f"{name}/features" for name in tokens]
    graph = normalise(load(model)).graph
    assert set(tokens) <= set(workable_layers(graph, locate_score(graph).value))


def test_a_layer_twice_and_auto_after_it(vit: Net, forward: Forward, draw: Any) -> None:
    """What is put behind one layer changes nothing for the next."""
    assert [v.name for v in found(vit(), ["x1", "auto", "n1"])] == ["x1/features", "x1/features_pycam", "n1/features"]
    x = draw(2, 3, 8, 6)
    raws = pycam.Explainer(vit(), layer=["x1", "auto"], threads=1)(x, targets=1).raw
    np.testing.assert_allclose(raws[0], raws[1], rtol=1e-5)


# ---- what is put behind a layer --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("before", "after"), [(0, 0), (1, 0), (0, 1), (2, 3)])
@pytest.mark.parametrize("batch", ["N", 2])
def test_the_map_is_made_of_the_grid_s_tokens(
    vit: Net, forward: Forward, draw: Any, before: int, after: int, batch: int | str
) -> None:
    """LayerCAM is the product of activations and positive gradients, summed over channels; scores stay as they are."""
    model, x = vit("plain", "mean", before=before, after=after, batch=batch), draw(2, 3, 8, 6)
    result = pycam.Explainer(model, method="layercam", layer="x1", threads=1)(x, targets=[[3], [1]])
    differentiated = pycam.vjp(model, wrt=["x1"])
    differentiated.graph.output.append(onnx.ValueInfoProto(name="x1"))
    got = forward(differentiated, {"x": x, "y.cotangent": np.eye(5, dtype=np.float32)[[3, 1]]})
    product = (got["x1"] * got["x1.gradient"].clip(0)).sum(2)[:, before : before + 12].reshape(2, 4, 3)
    assert relative(result.raw[:, 0], product) <= 1e-5
    assert relative(np.asarray(result.scores), forward(model, {"x": x})["y"]) <= 1e-6


@pytest.mark.parametrize("name", sorted(path.stem for path in EXPORTERS.glob("*_vit.onnx")))
def test_maps_of_transformers_are_the_framework_s_own(name: str) -> None:
    arrays = dict(np.load(EXPORTERS / f"{name}.npz"))
    about = json.loads(str(arrays["about"]))
    model = EXPORTERS / f"{name}.onnx"
    result = pycam.Explainer(model, method="layercam", layer=about["inner"], threads=1)(
        arrays["x"], targets=arrays["targets"]
    )
    product = (arrays["A"] * arrays["g_logit"].clip(0)).sum(2)[:, -16:].reshape(2, 4, 4)
    assert relative(result.raw[:, 0], product) <= 1e-4


def test_several_targets_share_a_pass(vit: Net, draw: Any) -> None:
    explainer, x = pycam.Explainer(vit(), threads=1), draw(2, 3, 8, 6)
    together = explainer(x, targets=[[0, 4], [2, 1]]).raw
    for k, targets in enumerate(([0, 2], [4, 1])):
        np.testing.assert_allclose(together[:, k], explainer(x, targets=targets).raw[:, 0], rtol=1e-4, atol=1e-6)


# ---- tokens that the user places -------------------------------------------------------------------------------------


def placed(model: Any, layer: str, tokens: Any) -> tuple[str | None, list[int | str]]:
    graph = normalise(load(model)).graph
    (value,) = locate_layers(graph, layer, locate_score(graph).value, tokens=tokens)
    return value.name, list(dims(value))[1:]


@pytest.mark.parametrize(
    ("tokens", "grid", "automatic"),
    [
        ((4, 3, 1), [4, 3], "x1/features"),
        ((4, 3, 0, 1), [4, 3], "last/features"),  # whose first token, which is read, is then one of the grid's
        ([6, 2, 1], [6, 2], "x1/features"),
        ((5, 2, 1, 2), [5, 2], "x1/features"),
    ],
)
def test_the_user_says_how_tokens_lie(vit: Net, tokens: Any, grid: list[int], automatic: str) -> None:
    """Whatever the graph says."""
    assert placed(vit(), "x1", tokens) == ("x1/features", [8, *grid])
    assert placed(vit(), "auto", tokens) == (automatic, [8, *grid])


def test_one_row_of_tokens_by_name(vit: Net) -> None:
    assert placed(vit(), "x1", (1, 13)) == ("x1/features", [8, 1, 13])


def test_tokens_of_a_free_image(vit: Net) -> None:
    """Their number is that of the position table."""
    model = vit("plain", "mean", height="H", before=0)
    assert placed(model, "grid", (4, 3)) == ("grid/features", [8, 4, 3])
    assert placed(model, "auto", (4, 3)) == ("last/features", [8, 4, 3])


def test_the_map_of_placed_tokens_is_that_of_found_ones(vit: Net, forward: Forward, draw: Any) -> None:
    (found_here,) = found(vit(), "x1")
    graph = normalise(load(vit())).graph
    (given,) = locate_layers(graph, "x1", locate_score(graph).value, tokens=(4, 3, 1))
    assert dims(given) == dims(found_here)


def test_a_token_count_that_does_not_fit(vit: Net) -> None:
    with pytest.raises(
        LayerError, match=r"'x1'.*13 tokens, and tokens=\(4, 4\) are 4·4 = 16; it would fit \(4, 3, 1\)"
    ):
        placed(vit(), "x1", (4, 4))
    with pytest.raises(LayerError, match=r"tokens=\(4, 3, 2, 1\) are 4·3 \+ 2 \+ 1 = 15"):
        placed(vit(), "x1", (4, 3, 2, 1))


def test_tokens_for_layers_that_hold_none(vit: Net, cnn: Net) -> None:
    with pytest.raises(
        LayerError, match=r"'patches' holds no tokens.*most in the model have 13 tokens.*fit \(4, 3, 1\)"
    ):
        placed(vit(), "patches", (4, 3))
    with pytest.raises(LayerError, match=r"holds no tokens \(N, T, C\), nor does the model: leave tokens= out"):
        placed(cnn(), "auto", (4, 3))


@pytest.mark.parametrize("tokens", [(4,), (4, 3, 1, 0, 0), (0, 3), (4, 3, -1), (4.0, 3)])
def test_tokens_that_are_none(vit: Net, tokens: Any) -> None:
    with pytest.raises(LayerError, match=r"give \(height, width\) of the grid"):
        placed(vit(), "x1", tokens)


def test_tokens_that_cannot_be_followed_are_counted(vit: Net) -> None:
    """An op in between that axes cannot be followed through, as the patches of a TNT are put together."""
    model = vit(height=6)  # a square image of 3 × 3 patches
    position = next(t for t in model.graph.initializer if t.name == "position")
    position.CopyFrom(onnx.numpy_helper.from_array(np.zeros((1, 10, 8), np.float32), "position"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.arange(8).reshape(8, 1), "order"))
    rows = next(n for n in model.graph.node if n.output[0] == "rows")
    rows.input[0] = "back"
    at = list(model.graph.node).index(rows)
    for i, (op, x, y, attributes) in enumerate(
        [
            ("Transpose", ["patches"], "there", {"perm": [1, 0, 2, 3]}),
            ("GatherND", ["there", "order"], "taken", {}),
            ("Transpose", ["taken"], "back", {"perm": [1, 0, 2, 3]}),
        ]
    ):
        model.graph.node.insert(at + i, onnx.helper.make_node(op, x, [y], name=f"node_{y}", **attributes))
    assert not tokens_of(model)
    (layer,) = found(model)
    assert (layer.name, list(layer.shape or [])[1:]) == ("x1/features", [8, 3, 3])


def test_branches_that_never_meet(text_model: Any) -> None:
    """Two sizes of patches, whose class scores are added: the coarse ones, behind all that mixes them."""
    branch = """
        p@ = Conv<strides = [@, @]>(x, w@) f@ = Reshape(p@, rows) g@ = Transpose<perm = [0, 2, 1]>(f@)
        m@ = MatMul(g@, square) t@ = Tanh(m@) s@ = Sigmoid(t@) u@ = Mul(t@, s@)
        y@ = ReduceMean<keepdims = 0>(u@, one)"""
    body = branch.replace("@", "2") + branch.replace("@", "4")
    model = text_model(
        f"(float[N, 3, 16, 16] x) => (float[N, 8] y) {{ {body} y = Add(y2, y4) }}",
        w2=np.ones((8, 3, 2, 2), np.float32),
        w4=np.ones((8, 3, 4, 4), np.float32),
        square=np.eye(8, dtype=np.float32),
        rows=np.array([0, 8, -1]),
        one=np.array([1]),
    )
    assert [v.name for v in found(model)] == ["u4/features"]


# ---- images of free size ---------------------------------------------------------------------------------------------


def test_auto_does_not_stop_in_front_of_tokens(vit: Net) -> None:
    with pytest.raises(LayerError, match=r"no features behind 'patches' but tokens.*fix the size.*'x'.*tokens="):
        found(vit("plain", "mean", height="H", before=0))


def test_sizes_make_tokens_known(vit: Net) -> None:
    loaded = load(vit("plain", "mean", height="H", before=0))
    for sizes in ((8, 6), {"x": [None, 3, 8, None]}):
        graph = normalise(fix_sizes(loaded, sizes)).graph
        (layer,) = locate_layers(graph, "auto", locate_score(graph).value)
        assert (layer.name, list(layer.shape or [])[1:]) == ("last/features", [8, 4, 3])
    assert dims(normalise(loaded).graph.inputs[0]) == ("N", 3, "H", 6)  # left as it is


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((8, 8), r"do not fit the input 'x', which is \['N', 3, 'H', 6\]"),
        ((0, 6), "do not fit the input 'x'"),
        ((8,), r"size=\[8\]: give \(height, width\)"),
        ({"y": [8]}, "no input 'y' to give sizes to; it has x"),
        ({"x": [8, 6]}, r"for the input 'x', which has 4 axes \['N', 3, 'H', 6\]"),
    ],
)
def test_sizes_that_do_not_fit(vit: Net, sizes: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fix_sizes(load(vit("plain", "mean", height="H", before=0)), sizes)


def test_sizes_for_a_model_without_images(text_model: Any) -> None:
    with pytest.raises(InputError, match="no image input of four axes"):
        fix_sizes(load(text_model("(float[N, L] x) => (float[N, L] y) { y = Relu(x) }")), (8, 8))


# ---- errors ----------------------------------------------------------------------------------------------------------


def test_special_tokens_are_no_image(vit: Net) -> None:
    with pytest.raises(LayerError, match=r"'start'.*shape \['N', 1, 8\].*tokens \(N, T, C\).*not known to be"):
        found(vit(), "start")


def test_text_is_no_image(text_model: Any) -> None:
    model = text_model(
        """(int64[N, 7] ids, float[N, 8, 2, 2] image) => (float[N, 8] y) {
            text = Gather(table, ids)
            a = Tanh(text)
            t = ReduceMean<keepdims = 0>(a, one)
            i = GlobalAveragePool(image)
            f = Flatten(i)
            y = Mul(t, f)
        }""",
        table=np.ones((5, 8), np.float32),
        one=np.array([1]),
    )
    with pytest.raises(LayerError, match=r"'a'.*\['N', 7, 8\].*not known to be those of an image's patches \(text"):
        found(model, "a")


def test_free_sizes_of_the_image(vit: Net) -> None:
    model = vit("plain", "mean", height="H", before=0)
    with pytest.raises(LayerError, match=r"give the model's input 'x' \['N', 3, 'H', 6\] fixed sizes"):
        found(model, "grid")


# ---- shapes that exporters compute -----------------------------------------------------------------------------------


def test_sizes_that_follow_from_computed_targets(text_model: Any) -> None:
    """`flatten(2)` and `expand(-1, …)` as torch's older exporter writes them, with a free batch."""
    model = text_model(
        """(float[N, 8, 4, 5] x) => (float[N, 8] y) {
            s = Shape(x) lead = Slice(s, zero, two, zero) target = Concat<axis = 0>(lead, free)
            f = Reshape(x, target) grid = Transpose<perm = [0, 2, 1]>(f)
            n = Gather(s, first) u = Unsqueeze(n, zero) wide = Concat<axis = 0>(u, free, free)
            flat = Reshape(wide, free) fixed = Equal(flat, frees) shape = Where(fixed, ones, flat)
            cls = Expand(token, shape) t = Concat<axis = 1>(cls, grid)
            z = Reshape(t, kept) y = ReduceMean<keepdims = 0>(z, one)
        }""",
        **{k: np.array(v) for k, v in {"zero": [0], "two": [2], "free": [-1], "first": 0, "one": [1]}.items()},
        frees=np.array([-1, -1, -1]),
        ones=np.array([1, 1, 1]),
        kept=np.array([0, 0, 8]),
        token=np.ones((1, 1, 8), np.float32),
    )
    graph = normalise(load(model)).graph
    shapes = {y.name: list(dims(y)) for node in graph for y in node.outputs}
    assert shapes["f"] == ["N", 8, 20]
    assert shapes["cls"] == ["N", 1, 8]
    assert shapes["t"] == ["N", 21, 8]
    assert tokens_of(model)["z"] == (4, 5, 1, 0)


def test_auto_with_another_input_beside_the_image(text_model: Any) -> None:
    """What every path from the image leads through, whatever text brings to the score."""
    model = text_model(
        """(float[N, 8, 4, 5] x, float[N, 7, 8] text) => (float[N, 8] y) {
            f = Reshape(x, rows) grid = Transpose<perm = [0, 2, 1]>(f) a = Tanh(grid) b = Sigmoid(a) c = Add(a, b)
            i = ReduceMean<keepdims = 0>(c, one) d = Tanh(text) t = ReduceMean<keepdims = 0>(d, one) y = Mul(i, t)
        }""",
        rows=np.array([0, 8, -1]),
        one=np.array([1]),
    )
    assert [v.name for v in found(model)] == ["c/features"]
