"""What all exports share, without a framework."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

import pycam
import pycam.frameworks as frameworks
from pycam.errors import FrameworkError, InputError, ModelError, OutputError
from pycam.frameworks import common, finish, naming

CLASSES = 5
LABELS = ["ape", "bee", "cat", "dog", "emu"]
PREPROCESS = pycam.Preprocess(size=(24, 24), mean=(123.0, 117.0, 104.0), std=(58.0, 57.0, 57.0))


def images(count: int, shape: Sequence[int] = (3, 24, 24)) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(count, *shape)).astype(np.float32)


def test_pycam_imports_no_framework() -> None:
    code = (
        "import sys, pycam, pycam.frameworks; assert set(pycam.frameworks.__all__) <= set(dir(pycam.frameworks));"
        "bad = {'torch', 'keras', 'tensorflow', 'jax', 'paddle', 'onnx', 'onnx_ir'} & {*sys.modules}; assert not bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names_are_there_lazily() -> None:
    for name in frameworks.__all__:
        assert callable(getattr(frameworks, name))
    with pytest.raises(AttributeError, match="from_caffe"):
        frameworks.from_caffe  # noqa: B018


@pytest.mark.parametrize(
    ("name", "package", "help_"),
    [
        ("from_torch", "torch", r"pycam-onnx\[torch\]"),
        ("from_keras", "keras", r"pycam-onnx\[keras\]"),
        ("from_jax", "jax", r"pycam-onnx\[jax\]"),
        ("from_paddle", "paddle", "paddle2onnx"),
    ],
)
def test_a_framework_that_is_missing(name: str, package: str, help_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(FrameworkError, match=rf"{package}.*not installed.*{help_}") as caught:
        getattr(frameworks, name)(object(), (1, 3, 8, 8))
    assert isinstance(caught.value, ImportError)


def small(dim: str = "batch") -> ir.Model:
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 18]> net (float[{dim}, 3, 24, 24] a) => (float[{dim}, 5] z) {{
            features = Conv<kernel_shape = [3, 3]>(a, w)
            active = Relu(features)
            pooled = GlobalAveragePool(active)
            z = Flatten(pooled)
        }}"""
    )
    w = np.random.default_rng(0).normal(size=(CLASSES, 3, 3, 3)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    model.doc_string = "made in /home/somebody"
    return ir.from_proto(model)


def done(model: ir.Model, **options: Any) -> Any:
    """`finish` on the small model, as exports call it."""
    given = common.read_example((1, 3, 24, 24), lambda image: image, None, True, None)
    goal = common.wanted(options.pop("path", None), options.pop("labels", None), options.pop("preprocess", None))
    probe = options.pop("probe", finish.Probe({}, []))
    outputs, check = options.pop("outputs", ["logits"]), options.pop("check", False)
    return finish.finish(model, given.arguments, outputs, goal, probe, check, "the exporter")


def test_metadata_are_written_and_read(tmp_path: Path) -> None:
    path = done(small(), path=tmp_path / "net.onnx", labels=LABELS, preprocess=PREPROCESS)
    assert path == tmp_path / "net.onnx"
    explainer = pycam.Explainer(path, threads=1)
    assert explainer.labels == tuple(LABELS)
    assert explainer.preprocess == PREPROCESS
    assert b"somebody" not in path.read_bytes()


def test_names_and_free_axes(shapes: Any) -> None:
    proto = done(small())
    assert shapes(proto.graph.input) == {"image": ["N", 3, 24, 24]}
    assert shapes(proto.graph.output) == {"logits": ["N", 5]}
    assert not proto.metadata_props
    onnx.checker.check_model(proto)


def test_weights_that_a_protobuf_cannot_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = images(2)
    want = pycam.Explainer(done(small()), layer="active", threads=1)(x)
    monkeypatch.setattr(finish, "LARGEST", 100)
    with pytest.raises(OutputError, match="give a path"):
        done(small())
    path = done(small(), path=tmp_path / "net.onnx", labels=LABELS)
    assert (tmp_path / "net.onnx.data").stat().st_size >= CLASSES * 27 * 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.onnx", "net.onnx.data"]
    result = pycam.Explainer(path, layer="active", threads=1)(x)
    np.testing.assert_allclose(result.heatmaps, want.heatmaps, atol=1e-6)
    (tmp_path / "other").mkdir()
    with pytest.raises(ModelError, match="differs"):
        done(small(), path=tmp_path / "other/net.onnx", check=True, probe=probe_of(0.0))
    assert not (tmp_path / "other/net.onnx.data").exists()


def probe_of(value: float, batch: int = 2) -> finish.Probe:
    return finish.Probe({"image": images(batch)}, [np.full((batch, CLASSES), value, np.float32)])


def test_an_export_that_computes_something_else() -> None:
    with pytest.raises(ModelError, match=r"'logits'.*differs from the model's.*check=False"):
        done(small(), check=True, probe=probe_of(1.0))
    wrong = finish.Probe({"image": images(2)}, [np.zeros((2, CLASSES + 1), np.float32)])
    with pytest.raises(ModelError, match=r"shape \(2, 5\).*\(2, 6\)"):
        done(small(), check=True, probe=wrong)


def test_an_export_that_fixes_the_batch() -> None:
    with pytest.raises(ModelError, match=r"fixed axis 0 of the input 'image' to 1.*dynamic_batch=False"):
        done(small(dim="1"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": LABELS[1:]}, "4 names for the 5 classes"),
        ({"labels": "cat"}, "list of texts"),
        ({"labels": []}, "list of texts"),
        ({"labels": ["a", "b", "c", "d", "e\nf"]}, "one line"),
        ({"preprocess": {"size": (24, 24)}}, r"pycam\.Preprocess, not dict"),
        ({"preprocess": pycam.Preprocess(size=(32, 24), mean=(0,) * 3, std=(1,) * 3)}, r"\(N, 3, 32, 24\).*'image'"),
        ({"preprocess": pycam.Preprocess((24, 24), (0,) * 3, (1,) * 3, layout="NHWC")}, "check size, layout"),
        ({"outputs": ["a", "b"]}, "give 1 names"),
        ({"outputs": ["image"]}, "different"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        done(small(), **options)


def test_a_path_is_checked_first(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"\.onnx"):
        common.wanted(tmp_path / "net.pt", None, None)
    with pytest.raises(OutputError, match="does not exist"):
        common.wanted(tmp_path / "no/net.onnx", None, None)


def two(image: Any, tokens: Any = None) -> None:
    """A function's parameters."""


def test_examples() -> None:
    one = common.read_example((1, 3, 8, 8), two, None, True, {"image": {2: "height"}})
    assert [a.symbolic for a in one.arguments] == [("N", 3, "height", 8)]
    both = common.read_example([(1, 3, 8, 8), np.zeros((2, 4))], two, ["x", "y"], False, None)
    assert [(a.keyword, a.name, a.symbolic) for a in both.arguments] == [
        ("image", "x", (1, 3, 8, 8)),
        ("tokens", "y", (2, 4)),
    ]
    named = common.read_example({"tokens": (1, 4)}, two, None, True, None)
    assert named.keyed
    assert [a.name for a in named.arguments] == ["tokens"]
    unnamed = common.read_example([(1, 4), (2, 4)], lambda *inputs: None, None, True, None)
    assert [a.name for a in unnamed.arguments] == ["input_0", "input_1"]
    assert common.indices(one.arguments[0]) == [0, 0]
    assert common.indices(unnamed.arguments[1], 1) == [0, 1, 0]


@pytest.mark.parametrize(
    ("example", "options", "message"),
    [
        ("photo.jpg", {}, r"array, or its shape"),
        ((1, 0, 8), {}, r"array, or its shape"),
        ([], {}, r"array, or its shape"),
        ((1, 3), {"input_names": ["a", "b"]}, "one name for each of the 1"),
        ((1, 3), {"dynamic_axes": {"imag": {1: "c"}}}, r"no input 'imag'; there are image"),
        ((1, 3), {"dynamic_axes": {"image": {2: "c"}}}, "axis 2 cannot be free"),
        (np.zeros(()), {}, "dynamic_batch=False"),
    ],
)
def test_bad_examples(example: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        common.read_example(example, two, *(options.get(k, d) for k, d in DEFAULTS.items()))


DEFAULTS = {"input_names": None, "dynamic_batch": True, "dynamic_axes": None}


def test_values_name_the_modules() -> None:
    """A residual branch that adds next to nothing, a bias of zeros, a Sequential, another layout, a folded module."""
    x, f, y = images(3, (4, 5, 6)) * np.array([1.0, 2.0, 3.0], np.float32)[:, None, None, None, None]
    values = [x, x.copy(), f, x + np.float32(1e-8), y, np.zeros((3, 7), np.float32)]
    recorded = [
        ("stem", x.transpose(0, 2, 3, 1)),
        ("block.branch", f),
        ("block", x),
        ("gone", f * 1.1),
        ("last.0", y),
        ("last", y),
    ]
    assert naming.matched(values, recorded) == {1: "stem", 2: "block.branch", 3: "block", 4: "last.0"}


def test_nodes_get_the_modules_names() -> None:
    graph = onnx.parser.parse_graph(
        "g (float[2] x) => (float[2] z) { a = Exp(x)\n b = Identity(a)\n c = Neg(b)\n z = Neg(c) }"
    )
    graph.node[3].name = "/b/0/Neg"
    a = np.array([1.0, 2.0], np.float32)
    naming.name_nodes(graph, {"a": a, "b": a, "c": -a, "z": a}, [("a", a), ("b.0", -a)])
    assert [node.name for node in graph.node] == ["/a/Exp", "", "/b/0/Neg_1", "/b/0/Neg"]


def test_wrong_shapes_are_dropped() -> None:
    graph = onnx.parser.parse_graph("g (float[N, 2] x) => (float[N, 2] z) { a = Exp(x)\n b = Exp(a)\n z = Exp(b) }")
    infos = [helper.make_tensor_value_info(n, 1, s) for n, s in (("a", ["N", 2]), ("b", [2, "N"]))]
    graph.value_info.extend(infos)
    finish._drop_wrong_shapes(graph, {name: np.zeros((3, 2)) for name in "abz"})
    assert [info.name for info in graph.value_info] == ["a"]
