"""The command line, as a person and as a script use it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import pycam
from pycam.cli import main
from pycam.image import read

Net = Callable[..., onnx.ModelProto]
Run = Callable[..., tuple[int, str, str]]


# ---- explain ---------------------------------------------------------------------------------------------------------


def test_a_newcomers_command(run: Run) -> None:
    """No photo, no model: those that ship."""
    code, out, err = run("explain", "--threads", "1")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].endswith("coffee.jpg")
    assert lines[1].split()[1] == "espresso"
    assert float(lines[1].split()[0].rstrip("%")) > 80
    assert len([line for line in lines if "%" in line]) == 5
    assert "method gradcam, layer " in out
    assert "CPUExecutionProvider" in out
    assert "forward" in out
    assert "×)" in out
    picture = Path("coffee_explained.png")
    assert f"wrote {picture}" in out
    pixels = read(picture)
    assert min(pixels.shape[:2]) > 200
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 1000  # a photo with colours, not an empty canvas


def test_several_photos_into_a_folder(run: Run, small: Path, photos: dict[str, Path]) -> None:
    Path("out").mkdir()
    code, out, err = run("explain", *photos.values(), "--model", small, "-o", "out")
    assert (code, err) == (0, "")
    assert sorted(p.name for p in Path("out").iterdir()) == ["camera_explained.png", "coffee_explained.png"]
    assert out.index("coffee.jpg") < out.index("camera.jpg")


def test_a_bad_photo_among_good_ones(run: Run, small: Path, photos: dict[str, Path]) -> None:
    bad = Path("bad.jpg")
    bad.write_bytes(photos["coffee"].read_bytes()[:3000])
    Path("out").mkdir()
    code, out, err = run(
        "explain", photos["coffee"], bad, "missing.png", photos["camera"], "--model", small, "-o", "out"
    )
    assert code == 1
    assert sorted(p.name for p in Path("out").iterdir()) == ["camera_explained.png", "coffee_explained.png"]
    assert out.count("wrote ") == 2
    assert "bad.jpg" in err
    assert "broken or truncated" in err
    assert "missing.png" in err
    assert "pycam: 2 of 4 photos failed" in err


def test_json(run: Run, small: Path, photos: dict[str, Path]) -> None:
    code, out, _ = run(
        "explain", *photos.values(), "--model", small, "--json", "--target", "top2", "--method", "layercam"
    )
    assert code == 0
    records = [json.loads(line) for line in out.splitlines()]
    assert [Path(r["photo"]).name for r in records] == ["coffee.jpg", "camera.jpg"]
    for record in records:
        assert record["method"] == "layercam"
        assert record["layer"] == "features"
        assert Path(record["picture"]).is_file()
        assert np.array(record["targets"]).shape == (1, 2)
        assert record["labels"][0][0] == f"thing {record['targets'][0][0]}" == record["top"][0][0]
        assert np.array(record["boxes"]).shape == (1, 2, 4)
        assert 0 < record["top"][0][1] <= 1
        assert record["times_ms"]["explanation"] > 0
    one = json.loads(run("explain", photos["coffee"], "--model", small, "--json")[1])
    assert one["times_ms"]["forward"] > 0
    assert sum(p for _, p in one["top"]) <= 1 + 1e-6


@pytest.mark.parametrize(
    ("target", "count", "label"),
    [("7", 1, "thing 7"), ("thing 4", 1, "thing 4"), ("top2", 2, None), ("-1", 1, None), ("-20", 0, "out of range"),
     ("20", 0, "out of range"), ("thing", 0, "nearest: thing"), ("3.5", 0, "no class is called '3.5'")],
)  # fmt: skip
def test_targets(run: Run, small: Path, photos: dict[str, Path], target: str, count: int, label: str | None) -> None:
    code, out, err = run("explain", photos["coffee"], "--model", small, "--json", "--target", target)
    if not count:
        assert code == 1
        assert str(label) in err
        assert not list(Path().iterdir())
        return
    assert (code, err) == (0, "")
    record = json.loads(out)
    assert len(record["labels"][0]) == count
    if label is not None:
        assert record["labels"][0] == [label]
    else:
        assert record["labels"][0][0] == record["top"][0][0]


def test_layers_and_method(run: Run, small: Path, photos: dict[str, Path]) -> None:
    code, out, _ = run(
        "explain", photos["coffee"], "--model", small, "--method", "hirescam", "--layer", "early", "--layer", "features"
    )
    assert code == 0
    assert "method hirescam, layer early, features" in out
    for option, value, message in (
        ("--layer", "earli", "no layer 'earli'; nearest: before, stem, early"),
        ("--method", "hires", "no method 'hires'; nearest: hirescam"),
        ("--provider", "TPU", "provider TPUExecutionProvider"),
        ("--threads", "0", "threads=0"),
        ("--output", "z", "no output 'z'"),
        ("--colormap", "jett", "colour map 'jett'"),
        ("--alpha", "2", "opacity between 0 and 1"),
        ("--labels", "nowhere.txt", "cannot read the labels 'nowhere.txt'"),
        ("--model", "nowhere.onnx", "nowhere.onnx"),
        ("--std", "0", "std must be positive"),
    ):
        code, out, err = run("explain", photos["coffee"], "--model", small, option, value)
        assert (code, out) == (1, ""), option
        assert err.startswith("pycam: "), err
        assert message in err
    assert sorted(p.name for p in Path().iterdir()) == ["coffee_explained.png"]


def test_labels_of_a_file(run: Run, small: Path, photos: dict[str, Path]) -> None:
    Path("labels.txt").write_text("\n".join(f"größe {i}" for i in range(20)), encoding="utf-8")
    code, out, _ = run("explain", photos["coffee"], "--model", small, "--labels", "labels.txt", "--target", "größe 3")
    assert code == 0
    assert "größe" in out
    assert not re.search(r"thing \d", out)


def test_mean_and_std(run: Run, small: Path, photos: dict[str, Path]) -> None:
    def top(*options: object) -> Any:
        code, out, err = run("explain", photos["coffee"], "--model", small, "--json", *options)
        assert code == 0, err
        return json.loads(out)["top"]

    assert top("--mean", 127, "--std", 64) == top()
    assert top("--mean", 127, 127, 127) == top()
    assert top("--mean", 0) != top()
    assert run("explain", photos["coffee"], "--model", small, "--mean", 1, 2)[0] == 1


def test_where_pictures_go(run: Run, small: Path, photos: dict[str, Path]) -> None:
    shutil.copy(photos["coffee"], "a.jpg")
    Path("folder").mkdir()
    assert run("explain", "a.jpg", "--model", small, "-o", "b.jpg")[0] == 0
    assert read("b.jpg").ndim == 3
    assert run("explain", "a.jpg", "--model", small, "-o", "folder")[0] == 0
    assert Path("folder/a_explained.png").is_file()
    Path("other").mkdir()
    shutil.copy("a.jpg", "other/a.png")
    for arguments, message in (
        (["a.jpg", "b.jpg", "-o", "c.png"], "2 photos need a folder to write to"),
        (["a.jpg", "other/a.png"], "two photos would both write"),
        (["a.jpg", "-o", "nowhere/c.png"], "does not exist"),
        (["a.jpg", "-o", "c.txt"], "must end in one of"),
    ):
        code, out, err = run("explain", "--model", small, *arguments)
        assert (code, out) == (1, "")
        assert message in err
    assert not Path("a_explained.png").exists()


def test_a_note_of_the_compiler_is_printed(run: Run, cnn: Net, photos: dict[str, Path]) -> None:
    onnx.save(cnn("conv", end="Softmax"), "m.onnx")
    _, out, _ = run("explain", photos["coffee"], "--model", "m.onnx")
    assert "note: the score is the logit 'logits'" in out
    out = run("explain", photos["coffee"], "--model", "m.onnx", "--json")[1]
    assert "stepped behind" in json.loads(out)["notes"][0]


# ---- export ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [[], ["--preprocess"], ["--one"], ["--outputs", "raw,scores"], ["--outputs", "heatmaps"]]
)
def test_export_then_explain(run: Run, small: Path, photos: dict[str, Path], options: list[str]) -> None:
    code, out, _ = run("export", small, "explain.onnx", "--method", "hirescam", "--layer", "early", *options)
    assert code == 0
    assert "wrote explain.onnx" in out
    assert "hirescam at early" in out
    assert ("(N, 1)" if options == ["--one"] else "(N, K)") in out
    assert ("image (NHWC)" if options == ["--preprocess"] else "x (NCHW)") in out
    want = json.loads(
        run("explain", photos["coffee"], "--model", small, "--method", "hirescam", "--layer", "early", "--json")[1]
    )
    got = json.loads(run("explain", photos["coffee"], "--model", "explain.onnx", "--json", "-o", "exported.png")[1])
    assert got["targets"] == want["targets"]
    assert got["labels"] == want["labels"]
    assert got["layer"] == "early"
    assert np.abs(np.array(got["boxes"]) - np.array(want["boxes"])).max() <= 1
    assert "forward" not in got["times_ms"]
    assert (got["top"] == []) == (options == ["--outputs", "heatmaps"])


def test_an_export_that_fails(run: Run, small: Path) -> None:
    for arguments, message in (
        (["m.onnx"], "No such file"),
        ([small, "--outputs", "scores"], "heatmaps"),
        ([small, "--layer", "nothing"], "no layer 'nothing'"),
    ):
        code, out, err = run("export", arguments[0], "explain.onnx", *arguments[1:])
        assert (code, out) == (1, "")
        assert message in err
    assert not list(Path().iterdir())


# ---- layers, methods, doctor -----------------------------------------------------------------------------------------


def test_layers(run: Run, small: Path) -> None:
    code, out, _ = run("layers", small)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split()[:4] == ["layer", "module", "op", "shape"]
    assert [line.split()[0] for line in lines[1:]] == ["before", "stem", "early", "late", "features"]
    assert "N×6×8×8" in lines[-1]
    records = json.loads(run("layers", small, "--json")[1])
    assert records[-1]["name"] == "features"
    assert records[-1]["shape"] == ["N", 6, 8, 8]
    code, out, err = run("layers", "nothing.onnx")
    assert (code, out) == (1, "")
    assert "nothing.onnx" in err
    assert len(run("layers")[1].splitlines()) > 30  # of the model that ships


def test_methods(run: Run) -> None:
    code, out, _ = run("methods")
    assert code == 0
    listed, hint = out.split("\n\n")
    names = [line.split()[0] for line in listed.splitlines()[1:]]
    assert names == [m.name for m in pycam.methods()]
    assert max(map(len, out.splitlines())) <= 120
    assert "pycam methods NAME" in hint
    assert [r["name"] for r in json.loads(run("methods", "--json")[1])] == names


def warped(text_model: Any) -> onnx.ModelProto:
    """A model with an op that nobody knows between two layers."""
    model: onnx.ModelProto = text_model(
        """(float[N, 3, 8, 8] x) => (float[N, 3] y) {
            a = Relu(x)
            w = Sigmoid(a)
            c = Tanh(w)
            g = GlobalAveragePool(c)
            y = Flatten(g)
        }"""
    )
    node = next(node for node in model.graph.node if node.output[0] == "w")
    node.domain, node.op_type = "acme", "Warp"
    model.opset_import.append(onnx.helper.make_opsetid("acme", 1))
    for name in ("w", "c"):
        model.graph.value_info.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 3, 8, 8]))
    return model


def test_doctor(run: Run, small: Path, text_model: Any) -> None:
    code, out, _ = run("doctor")
    assert code == 0
    for word in ("python", "onnxruntime", "providers: ", "CPUExecutionProvider", "heads: graph, cpu, reference"):
        assert word in out
    code, out, _ = run("doctor", small)
    assert code == 0
    assert "model: explained by gradcam at features on CPUExecutionProvider" in out
    assert "ops without a gradient between input and score: none" in out
    assert re.search(r"Gemm +2 +rule", out)
    onnx.save(warped(text_model), "warped.onnx")
    code, out, _ = run("doctor", "warped.onnx")
    assert code == 1  # onnxruntime does not know the op either
    assert re.search(r"acme::Warp +1 +unknown", out)
    assert "without a gradient: Warp (node 'node_w'): no gradient rule" in out
    assert "layers that can be explained all the same: 2 of 3: w, c" in out
    Path("text.onnx").write_text("not a model")
    code, out, err = run("doctor", "text.onnx")
    assert code == 1
    assert "not an ONNX file" in out + err


def test_doctor_with_an_explain_graph(run: Run, small: Path) -> None:
    run("export", small, "explain.onnx")
    code, out, err = run("doctor", "explain.onnx")
    assert (code, err) == (0, "")
    assert "model: explained by gradcam at features" in out


# ---- usage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["explode"],
        ["explain", "--nonsense"],
        ["explain", "--threads", "many"],
        ["export", "m.onnx"],
        ["layers", "a", "b"],
    ],
)
def test_wrong_usage(run: Run, arguments: list[str]) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert "usage: pycam" in err


@pytest.mark.parametrize("command", ["explain", "export", "layers", "methods", "doctor"])
def test_help(run: Run, command: str) -> None:
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"usage: pycam {command}" in out


def test_as_a_module(small: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "pycam", "layers", str(small), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path(pycam.__file__).parents[1])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[-1]["name"] == "features"


def test_an_interruption(run: Run, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pycam.api.layers", interrupt)
    code, _, err = run("layers", small)
    assert code == 130
    assert err == "pycam: interrupted\n"


def test_the_progress_bar() -> None:
    import io

    from pycam.progress import progress

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal, file = Terminal(), io.StringIO()
    assert list(progress([1, 2, 3], stream=terminal)) == [1, 2, 3]
    assert "2/3 images" in terminal.getvalue()
    assert terminal.getvalue().endswith("s\n")
    assert list(progress([1, 2, 3], stream=file)) == [1, 2, 3]
    assert file.getvalue() == ""
    single = Terminal()
    assert list(progress([1], stream=single)) == [1]
    assert single.getvalue() == ""


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"pycam {pycam.__version__}\n"
