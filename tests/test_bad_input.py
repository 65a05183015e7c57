"""Bad input gets a clear error, of the right type, that says what would help; and nothing is lost."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

import pycam
from pycam.cli import main
from pycam.errors import (
    HeadError,
    ImageError,
    InputError,
    LayerError,
    MethodError,
    ModelError,
    OutputError,
    ProviderError,
    TargetError,
    UnsupportedOpError,
)

Net = Callable[..., onnx.ModelProto]


@pytest.fixture(scope="module")
def explainer(cnn: Net) -> pycam.Explainer:
    return pycam.Explainer(cnn())


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.new("RGB", (40, 30), "red").save(path)
    return path


# ---- the model -------------------------------------------------------------------------------------------------------

NOT_MODELS = {
    "empty": b"",
    "text": b"a model, honestly\n" * 40,
    "html": b"<!DOCTYPE html><html><body>404</body></html>",
    "png": b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
    "zeros": bytes(100),
    "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 4842340\n",
    "torch": b"PK\x03\x04" + bytes(200),
}


@pytest.mark.parametrize("kind", NOT_MODELS)
@pytest.mark.parametrize("call", ["Explainer", "layers", "export", "explain", "vjp"])
def test_what_is_no_model(kind: str, call: str, tmp_path: Path, photo: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(NOT_MODELS[kind])
    more: tuple[Any, ...] = {"export": (tmp_path / "out.onnx",), "explain": (photo,), "vjp": (["x"],)}.get(call, ())
    with pytest.raises(ModelError, match=r"model\.onnx.*(not an ONNX|is empty|no graph|field)") as caught:
        getattr(pycam, call)(path, *more)
    if kind == "lfs":
        assert "git lfs pull" in str(caught.value)
    if kind == "torch":
        assert "export the model to ONNX" in str(caught.value)
    with pytest.raises(ModelError):
        getattr(pycam, call)(path.read_bytes(), *more)
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize(("name", "why"), [("missing.onnx", "No such file"), ("folder.onnx", "[Ii]s a directory")])
def test_a_model_that_cannot_be_opened(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "folder.onnx").mkdir()
    for call in (pycam.Explainer, pycam.layers):
        with pytest.raises(ModelError, match=rf"{name}.*{why}"):
            call(tmp_path / name)


@pytest.mark.parametrize("model", [None, 5, np.zeros(3), bytearray(b"model")])
def test_what_cannot_even_be_a_model(model: Any) -> None:
    for call in (pycam.Explainer, pycam.layers):
        with pytest.raises(ModelError, match=rf"path, bytes or a ModelProto, not {type(model).__name__}"):
            call(model)


def test_a_model_with_names_that_are_no_text(cnn: Net) -> None:
    data = cnn().SerializeToString()
    assert data.count(b"node_features") == 1
    with pytest.raises(ModelError):
        pycam.layers(data.replace(b"node_features", b"node_\xff\xfeatures"))
    with pytest.raises(ModelError, match="no text"):
        pycam.layers(data.replace(b":\x01x\x12", b":\x01\xff\x12").replace(b"small", b"sm\xffll"))


def test_a_truncated_model_wherever_it_is_cut(shipped: Path, tmp_path: Path) -> None:
    """Cut anywhere, the shipped model is never taken for a model, and never ends in another error or a crash."""
    data = shipped.read_bytes()
    path = tmp_path / "cut.onnx"
    cuts = (
        np.random.default_rng(0).integers(1, len(data), 40).tolist()
        + list(range(1, 40))
        + [len(data) - 1, len(data) // 2]
    )
    for cut in cuts:
        path.write_bytes(data[:cut])
        for source in (path, data[:cut]):
            with pytest.raises(ModelError):
                pycam.layers(source)
        with pytest.raises(ModelError, match=r"cut\.onnx"):
            pycam.Explainer(path)


def test_a_small_model_cut_at_every_byte(cnn: Net, tmp_path: Path) -> None:
    """Behind the graph only metadata are left to lose: what then still is a model must explain like one."""
    data = cnn(seed=1).SerializeToString()
    fine = 0
    for cut in [*range(0, len(data), 97), *range(len(data) - 60, len(data))]:
        try:
            pycam.layers(data[:cut])
        except ModelError:
            continue
        fine += 1
    assert fine < 60


def test_a_damaged_model(cnn: Net) -> None:
    """Single bytes changed: an error of pycam's own, or a model."""
    data = bytearray(cnn().SerializeToString())
    rng = np.random.default_rng(0)
    refused = 0
    for at in rng.integers(0, len(data), 60):
        broken = data.copy()
        broken[at] ^= int(rng.integers(1, 256))
        try:
            pycam.Explainer(bytes(broken))
        except pycam.PycamError:
            refused += 1
    assert refused > 0


@pytest.mark.parametrize("end", ["missing", "truncated"])
def test_external_data(cnn: Net, tmp_path: Path, end: str) -> None:
    path = tmp_path / "model.onnx"
    onnx.save_model(cnn("flatten"), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    weights = tmp_path / "weights.bin"
    content = weights.read_bytes()
    weights.unlink()
    if end == "truncated":
        weights.write_bytes(content[: len(content) // 2])
    for call in (pycam.Explainer, pycam.layers, lambda p: pycam.export(p, tmp_path / "out.onnx")):
        with pytest.raises(ModelError, match=rf"keeps the weight '\w+' in .*weights\.bin', which is {end}"):
            call(path)
    assert not (tmp_path / "out.onnx").exists()


def test_a_model_of_integers(text_model: Any) -> None:
    model = text_model("(float[N, 3, 8, 8] x) => (int64[N, 1] y) { f = Flatten(x) y = ArgMax<axis = 1>(f) }")
    with pytest.raises(ModelError, match=r"output 'y' holds INT64.*cannot be differentiated"):
        pycam.Explainer(model)


def test_a_model_without_an_image(text_model: Any) -> None:
    model = text_model("(float[N, 512] sound) => (float[N, 512] y) { y = Relu(sound) }")
    with pytest.raises(LayerError, match=r"found no features \(N, C, l\) .* with more than one position"):
        pycam.Explainer(model)


def test_a_score_without_classes(text_model: Any) -> None:
    model = text_model(
        """(float[N, 3, 8, 8] x) => (float y) {
            a = Relu(x)
            y = ReduceSum<keepdims = 0>(a)
        }"""
    )
    with pytest.raises(TargetError, match=r"output 'y' has no batch axis.*classes lie along axis 1 of \(N, classes\)"):
        pycam.Explainer(model, layer="a")


def test_an_output_that_is_not_there(cnn: Net) -> None:
    with pytest.raises(ModelError, match="no output 'probabilities'; it has y"):
        pycam.Explainer(cnn(), output="probabilities")


@pytest.mark.parametrize("call", ["Explainer", "vjp"])
def test_an_op_without_a_rule(text_model: Any, call: str) -> None:
    """The error names the op, the node, the opset, and what would help."""
    model = text_model(
        """(float[N, 3, 8, 8] x) => (float[N, 3] y) {
            a = Relu(x)
            u = Unique<axis=0>(a)
            c = Tanh(u)
            g = GlobalAveragePool(c)
            y = Flatten(g)
        }""",
        opset=11,
    )
    more = {"Explainer": {"layer": "a"}, "vjp": {"wrt": ["a"]}}[call]
    with pytest.raises(UnsupportedOpError, match=r"Unique \(node 'node_u', opset \d+\): .*equal inputs") as caught:
        getattr(pycam, call)(model, **more)
    assert isinstance(caught.value, ModelError)
    if call == "Explainer":
        assert str(caught.value).endswith("layers that would still work: u, c")


def test_an_op_without_a_rule_in_front_of_the_layer_is_no_matter(text_model: Any, draw: Any) -> None:
    model = text_model(
        """(float[N, 3, 8, 8] x) => (float[N, 3] y) {
            d = Det(x)
            axes = Constant<value_ints = [2, 3]>()
            wide = Unsqueeze(d, axes)
            a = Mul(x, wide)
            b = Relu(a)
            g = GlobalAveragePool(b)
            y = Flatten(g)
        }"""
    )
    assert pycam.Explainer(model)(draw(2, 3, 8, 8)).layer == "b"


# ---- layer, method, head, provider -----------------------------------------------------------------------------------


def test_an_unknown_layer(cnn: Net, shipped: Path) -> None:
    with pytest.raises(LayerError, match=r"no layer 'feature'; nearest: .*features.*`pycam layers`"):
        pycam.Explainer(cnn(), layer="feature")
    name = pycam.layers(shipped)[-1].name
    with pytest.raises(LayerError) as caught:
        pycam.Explainer(shipped, layer=name + "x")
    assert name in str(caught.value)


def test_a_layer_off_the_path(cnn: Net) -> None:
    wrong = r"layer 'active'.*does not lead to the score 'pycam/class scores of features'.*pycam layers"
    with pytest.raises(LayerError, match=wrong):
        pycam.Explainer(cnn("conv", extra_output="features"), layer="active", output="features")


def test_an_unknown_method(cnn: Net) -> None:
    with pytest.raises(MethodError, match=r"no method 'gradcan'; nearest: gradcam, .*`pycam methods` lists them all"):
        pycam.Explainer(cnn(), method="gradcan")


def test_an_unknown_head(cnn: Net) -> None:
    with pytest.raises(HeadError, match=r"head 'gpu' is unknown or not available.*cpu.*reference"):
        pycam.Explainer(cnn(), head="gpu")


@pytest.mark.parametrize("providers", [["TPU"], ["CPU", "TPU"], ["TPUExecutionProvider"], [], "TPU"])
def test_a_provider_that_is_not_there(cnn: Net, providers: Any, tmp_path: Path) -> None:
    with pytest.raises(ProviderError, match=r"provider .*(TPUEx|empty).*which has .*CPUExecutionProvider"):
        pycam.Explainer(cnn(), providers=providers)
    path = pycam.export(cnn(), tmp_path / "explain.onnx")
    with pytest.raises(ProviderError, match=r"TPUExecutionProvider|empty"):
        pycam.Explainer(path, providers=providers)


@pytest.mark.parametrize("threads", [0, -2])
def test_no_threads(cnn: Net, threads: int) -> None:
    with pytest.raises(InputError, match=rf"threads={threads}: give a positive number, or None"):
        pycam.Explainer(cnn(), threads=threads)


# ---- the input -------------------------------------------------------------------------------------------------------

GOOD = np.zeros((2, 3, 16, 16), dtype=np.float32)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ({"X": GOOD}, r"no input 'X'; it has x"),
        ({"x": GOOD, "mask": GOOD}, r"no input 'mask'; it has x"),
        ({}, r"input 'x' is missing; the model needs x"),
        (GOOD.astype(np.float64), r"'x' is float64; the model takes float32: x\.astype\(np\.float32\)"),
        (GOOD.astype(np.uint8), r"'x' is uint8; the model takes float32"),
        (GOOD[0], r"'x' has shape \(3, 16, 16\); the model takes \(N, 3, 16, 16\)"),
        (GOOD[None], r"'x' has shape \(1, 2, 3, 16, 16\)"),
        (GOOD[:, :2], r"'x' has shape \(2, 2, 16, 16\)"),
        (GOOD.transpose(0, 2, 3, 1), r"'x' has shape \(2, 16, 16, 3\)"),
        (GOOD[:, :, :15], r"'x' has shape \(2, 3, 15, 16\)"),
        (GOOD[:0], r"'x' is empty: shape \(0, 3, 16, 16\)"),
        (np.float32(3), r"'x' has shape \(\)"),
        (None, r"'x'"),
        ("photo.jpg", r"'x'"),
        ([[1.0, 2.0], [3.0]], r"'x'"),
    ],
)
def test_inputs_that_do_not_fit(explainer: pycam.Explainer, x: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        explainer(x)


def test_several_inputs(cnn: Net) -> None:
    explainer = pycam.Explainer(cnn(extra_input=True))
    with pytest.raises(InputError, match=r"2 inputs \(x, shift\): give \{name: array\}"):
        explainer(GOOD)
    with pytest.raises(InputError, match=r"input 'shift' is missing; the model needs x, shift"):
        explainer({"x": GOOD})


@pytest.mark.parametrize("bad", [[np.nan], [np.inf], [-np.inf], [np.inf, -np.inf], [np.nan, np.inf]])
def test_values_that_are_not_finite(explainer: pycam.Explainer, bad: list[float]) -> None:
    x = GOOD.copy()
    for i, value in enumerate(bad):
        x[1, 2, 3, 4 + i] = value
    with pytest.raises(InputError, match=rf"'x' holds {bad[0]} at \(1, 2, 3, 4\): its explanation"):
        explainer(x)


def test_sizes_that_only_the_model_knows_not_to_fit(cnn: Net, draw: Any) -> None:
    """Height and width are free by name, but the linear layer has a weight for every position."""
    explainer = pycam.Explainer(cnn("flatten", height="H", width="W"))
    assert explainer(GOOD, 3).heatmaps.shape == (2, 1, 16, 16)
    with pytest.raises(InputError, match=r"cannot run on x \(2, 3, 32, 32\): "):
        explainer(draw(2, 3, 32, 32), 3)


def test_large_values_are_values(explainer: pycam.Explainer) -> None:
    result = explainer(GOOD + np.float32(1e36), 3)
    assert np.isfinite(result.heatmaps).all()


def test_values_that_overflow_in_the_model(cnn: Net) -> None:
    """Finite inputs whose activations are not: an error from every head, never NaN in a heatmap."""
    for head in ("cpu", "graph", "reference"):
        explainer = pycam.Explainer(cnn("conv"), head=head)
        with pytest.raises(InputError, match=r"not finite|overflow"):
            explainer(GOOD + np.float32(3e38), 3)


# ---- targets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (20, r"class 20 is out of range: .*0 to 19"),
        (-17, r"class -17 is out of range.*−16"),
        ([0, 20], "class 20 is out of range"),
        ([[0, 1], [2, 99]], "class 99 is out of range"),
        (10**12, "class 1000000000000 is out of range"),
        ("20", "class 20 is out of range"),
        ([3], r"2 image\(s\) need targets of shape \(2,\) or \(2, K\); got \(1,\)"),
        ([3, 4, 5], r"got \(3,\)"),
        ([[1, 2]], r"got \(1, 2\)"),
        (np.zeros((2, 1, 1), dtype=int), r"got \(2, 1, 1\)"),
        (1.0, "must be integers"),
        ([1.5, 2.5], "must be integers"),
        ([True, False], "must be integers"),
        ([], "one or more per image|must be integers"),
        ([[], []], "one or more per image"),
        ([[1, 2], [3]], r"targets"),
        ("cat", r"'cat' is a label, but the model carries none.*'top3'"),
        ("top0", "top0"),
        ("top²", "top²"),
        ("²", "²"),
        ("--5", "--5"),
        ("", "label"),
        (["cat", "dog"], "must be integers"),
    ],
)
def test_targets_that_do_not_fit(explainer: pycam.Explainer, targets: Any, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        explainer(GOOD, targets)


def test_several_targets_of_one_image(explainer: pycam.Explainer) -> None:
    with pytest.raises(TargetError, match=r"for several classes of one image write \[\[1, 2, 3\]\]"):
        explainer(GOOD[:1], [1, 2, 3])


def test_a_label_that_is_not_there(shipped: Path) -> None:
    with pytest.raises(TargetError, match=r"no class is called 'expresso'; nearest: .*espresso"):
        pycam.Explainer(shipped, threads=1)(np.zeros((1, 3, 224, 224), np.float32), "expresso")


def test_fewer_classes_than_ranks(cnn: Net) -> None:
    explainer = pycam.Explainer(cnn(extra_output="features"), output="features", layer="early")  # 6 "classes"
    assert explainer(GOOD, -6).targets.shape == (2, 1)
    with pytest.raises(TargetError, match="class -7 is out of range"):
        explainer(GOOD, -7)
    assert explainer(GOOD, "top16").targets.shape == (2, 6)


# ---- pictures --------------------------------------------------------------------------------------------------------


def test_pictures_that_cannot_be_read(shipped: Path, photos: dict[str, Path], tmp_path: Path) -> None:
    text, cut, empty = tmp_path / "text.jpg", tmp_path / "cut.jpg", tmp_path / "empty.jpg"
    text.write_text("not a picture")
    cut.write_bytes(photos["coffee"].read_bytes()[:20000])
    empty.write_bytes(b"")
    for path, why in (
        (text, "not a picture"),
        (cut, "broken or truncated"),
        (empty, "is empty"),
        (tmp_path / "no.jpg", "No such file"),
    ):
        with pytest.raises(ImageError, match=rf"{path.name}.*{why}"):
            pycam.explain(shipped, path)


def test_a_picture_that_is_absurdly_large(shipped: Path, tmp_path: Path) -> None:
    """Told from its header: 40 gigapixels would not fit into memory."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for width, height in ((200_000, 200_000), (20_000, 8_000)):
        path = tmp_path / "huge.png"
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        path.write_bytes(
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", header)
            + chunk(b"IDAT", zlib.compress(bytes(10)))
            + chunk(b"IEND", b"")
        )
        with pytest.raises(ImageError, match=r"huge\.png.*(too large|megapixels)"):
            pycam.explain(shipped, path)


def test_a_model_that_takes_no_pictures(text_model: Any, photo: Path) -> None:
    model = text_model(
        """(float[N, 12, 8, 8] x) => (float[N, 12] y) { a = Relu(x) g = GlobalAveragePool(a) y = Flatten(g) }"""
    )
    with pytest.raises(InputError, match=r"12.*prepare the array yourself, or give a Preprocess"):
        pycam.explain(model, photo)


# ---- results that cannot be written ----------------------------------------------------------------------------------


@pytest.fixture
def nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    import pycam.compile

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the path was not checked first")

    monkeypatch.setattr(pycam.compile, "compile_model", refuse)


@pytest.mark.usefixtures("nothing_is_compiled")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere/explain.onnx", "does not exist"),
        ("explain.txt", r"must end in one of \.onnx"),
        ("folder.onnx", "is a folder"),
        ("file/explain.onnx", "is not a folder|does not exist"),
    ],
)
def test_an_export_that_cannot_be_written(cnn: Net, tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "file").write_text("a file")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputError, match=f"cannot write .*{message}"):
        pycam.export(cnn(), tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs a user whom permissions bind")
def test_a_folder_without_permission(cnn: Net, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="no permission"):
        pycam.export(cnn(), tmp_path / "explain.onnx")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"method": "nothing"}, MethodError),
        ({"layer": "nothing"}, LayerError),
        ({"output": "nothing"}, ModelError),
        ({"outputs": ("nothing",)}, MethodError),
        ({"outputs": ("scores",)}, MethodError),
        ({"classes": 5}, InputError),
    ],
)
def test_an_export_that_fails_leaves_what_was_there(
    cnn: Net, tmp_path: Path, options: Any, error: type[Exception]
) -> None:
    path = tmp_path / "explain.onnx"
    path.write_bytes(b"precious")
    with pytest.raises(error):
        pycam.export(cnn(), path, **options)
    assert path.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_fills_up(cnn: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "explain.onnx"
    path.write_bytes(b"precious")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match=r"cannot write .*No space left"):
        pycam.export(cnn(), path)
    assert path.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["nowhere/out.png", "out.txt", "folder.png"])
def test_a_picture_that_cannot_be_written(explainer: pycam.Explainer, tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        explainer(GOOD, 3).save(tmp_path / name)
    assert [p.name for p in tmp_path.rglob("*")] == ["folder.png"]


@pytest.mark.usefixtures("nothing_is_compiled")
@pytest.mark.parametrize("name", ["nowhere/out.png", "out.txt", "folder.png/x/y.png"])
def test_the_command_line_checks_before_it_works(
    photo: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.png").mkdir()
    assert main(["explain", str(photo), "-o", str(tmp_path / name)]) == 1
    assert "pycam: cannot write" in capsys.readouterr().err
    assert main(["export", str(photo), str(tmp_path / "nowhere" / "x.onnx")]) == 1
    assert "does not exist" in capsys.readouterr().err


# ---- what is asked of an explanation ---------------------------------------------------------------------------------


def test_bad_wishes(explainer: pycam.Explainer) -> None:
    result = explainer(GOOD, 3)
    pictures = np.zeros((2, 16, 16, 3), dtype=np.uint8)
    for threshold in (-0.1, 1.0, float("nan")):
        with pytest.raises(InputError, match=r"threshold=.*share of the maximum"):
            result.boxes(threshold)
    for wrong in (pictures[:1], pictures[0], pictures.astype(np.float32), pictures[:, :8], pictures[..., :1]):
        with pytest.raises(InputError, match=r"overlay needs uint8 images of shape \(2, 16, 16, 3\)"):
            result.overlay(wrong)
    for alpha in (-0.5, 1.5, float("nan")):
        with pytest.raises(InputError, match="alpha"):
            result.overlay(pictures, alpha=alpha)
    with pytest.raises(InputError, match=r"colour map 'jett'.*jet"):
        result.overlay(pictures, colormap="jett")


# ---- exported graphs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda spec: "not JSON",
        lambda spec: "[1, 2]",
        lambda spec: "3",
        lambda spec: "{}",
        lambda spec: json.dumps({k: v for k, v in spec.items() if k != "image"}),
        lambda spec: json.dumps(spec | {"image": "somebody"}),
        lambda spec: json.dumps(spec | {"targets": "somebody"}),
        lambda spec: json.dumps(spec | {"explained": "somebody"}),
        lambda spec: json.dumps(spec | {"raw": ["somebody"]}),
        lambda spec: json.dumps(spec | {"raw": 5}),
        lambda spec: json.dumps(spec | {"raw": [5]}),
        lambda spec: json.dumps(spec | {"layout": "HWC"}),
        lambda spec: json.dumps(spec | {"classes": "many"}),
        lambda spec: json.dumps(spec | {"modules": []}),
        lambda spec: json.dumps(spec | {"heatmaps": None, "raw": []}),
    ],
)
def test_a_description_that_was_tampered_with(cnn: Net, tmp_path: Path, change: Any, images: np.ndarray) -> None:
    path = pycam.export(cnn(), tmp_path / "explain.onnx")
    model = onnx.load(path)
    entry = next(p for p in model.metadata_props if p.key == "pycam.spec")
    entry.value = change(json.loads(entry.value))
    onnx.save(model, path)
    with pytest.raises(ModelError, match=r"explain graph.*export it again"):
        pycam.Explainer(path)


def test_what_a_later_version_may_add_is_ignored(cnn: Net, tmp_path: Path, images: np.ndarray) -> None:
    path = pycam.export(cnn(), tmp_path / "explain.onnx")
    model = onnx.load(path)
    entry = next(p for p in model.metadata_props if p.key == "pycam.spec")
    entry.value = json.dumps(json.loads(entry.value) | {"news": [1, 2]})
    onnx.save(model, path)
    assert pycam.Explainer(path)(images, 3).heatmaps.max() > 0.5


@pytest.mark.parametrize("call", ["export", "layers", "vjp"])
def test_an_explain_graph_is_not_compiled_again(cnn: Net, tmp_path: Path, call: str) -> None:
    path = pycam.export(cnn(), tmp_path / "explain.onnx")
    if call == "export":
        with pytest.raises(ModelError, match=r"explain graph already"):
            pycam.export(path, tmp_path / "again.onnx")
        assert not (tmp_path / "again.onnx").exists()
    elif call == "layers":
        assert pycam.layers(path)[-1].name == "features"
    else:
        assert pycam.vjp(path, ["features"], output="y")


def test_broken_preprocessing_in_the_metadata(cnn: Net, with_metadata: Any) -> None:
    with pytest.raises(InputError, match="preprocess: not JSON"):
        pycam.Explainer(with_metadata(cnn(), {"pycam.preprocess": "{"}))


# ---- vjp -------------------------------------------------------------------------------------------------------------


def test_vjp_of_names_that_are_not_there(cnn: Net) -> None:
    with pytest.raises(LayerError, match=r"no value called 'feature'; nearest: .*features"):
        pycam.vjp(cnn(), ["feature"])
    with pytest.raises(LayerError, match=r"no value called 'z'"):
        pycam.vjp(cnn(), ["x"], output="z")
    with pytest.raises(LayerError, match=r"no differentiable path leads from 'y' to 'features'"):
        pycam.vjp(cnn(), ["y"], output="features")


def test_export_does_not_overwrite_the_model(cnn: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(cnn().SerializeToString())
    before = path.read_bytes()
    with pytest.raises(OutputError, match="is the model itself: write the explain graph somewhere else"):
        pycam.export(path, path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"method": None}, MethodError, "method=None: give a name of"),
        ({"layer": None}, LayerError, "layer=None: give a name, a list of names, or 'auto'"),
        ({"layer": 3}, LayerError, "layer=3: give a name"),
        ({"layer": [3]}, LayerError, "give a name, a list of names"),
    ],
)
def test_names_that_are_none(cnn: Net, wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pycam.Explainer(cnn(), **wrong)
