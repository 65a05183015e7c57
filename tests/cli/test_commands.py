"""`pycam methods | layers | doctor | export`: what a newcomer looks up, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

import pycam

Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("name", ["occlusion", "Grad-CAM", "dff"])
def test_one_method(run: Run, name: str) -> None:
    from pycam.method import get

    method = get(name)
    code, out, err = run("methods", name)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == method.title
    facts = {line.split("  ")[0]: line[line.find("  ") :].strip() for line in lines[2:10]}
    assert facts["name"] == method.name
    assert facts["paper"] == f"arXiv:{method.paper}"
    assert facts["plan"] == method.plan
    assert facts["options"] == (", ".join(f"{k}={v!r}" for k, v in method.options.items()) or "–")
    assert (method.draw.__doc__ or "").splitlines()[0] in out
    assert max(map(len, lines)) <= 120
    record = json.loads(run("methods", name, "--json")[1])
    assert record["name"] == method.name
    assert "draw" not in record


def test_every_method_is_described(run: Run) -> None:
    for method in pycam.methods():
        assert (method.draw.__doc__ or "").strip(), method.name
    assert "doi:10.1109/TIP.2021.3089943" in run("methods", "layercam")[1]
    code, out, err = run("methods", "hires")
    assert (code, out) == (1, "")
    assert "no method 'hires'; nearest: hirescam" in err


@pytest.mark.parametrize("command", ["layers", "doctor"])
def test_an_exported_folder(run: Run, small: Path, command: str) -> None:
    assert run("export", small, "folder", "--method", "rise", "--option", "samples=4")[0] == 0
    code, _, err = run(command, "folder")
    assert code == 1
    assert "'folder' is an exported explain graph (rise is built in): give the model that it was made from" in err
    Path("empty").mkdir()
    code, _, err = run(command, "empty")
    assert code == 1
    assert "a directory without manifest.json" in err


def test_layers_of_an_exported_file(run: Run, small: Path) -> None:
    assert run("export", small, "explain.onnx")[0] == 0
    code, out, err = run("layers", "explain.onnx")
    assert (code, out) == (1, "")
    assert "is an exported explain graph (gradcam at features is built in)" in err
    assert "coverage: not of an exported explain graph" in run("doctor", "explain.onnx")[1]


def test_export_says_all_inputs_and_outputs(run: Run, small: Path) -> None:
    code, out, _ = run("export", small, "explain.onnx", "--objective", "contrastive")
    assert code == 0
    assert "inputs: x (NCHW), targets int64 (N, K), −1 = top class, against int64 (N, K), −1 = best class" in out
    model = onnx.load("explain.onnx")
    said = next(line for line in out.splitlines() if line.startswith("outputs: "))
    assert said.removeprefix("outputs: ").split(", ") == [value.name for value in model.graph.output]
    assert "against" in said
    out = run("export", small, "folder", "--method", "integrated_gradients", "--option", "steps=2")[1]
    assert "inputs: x (NCHW), targets int64" in out
    assert "attributions" in out
    assert "completeness" in out


def test_export_of_a_model_with_two_inputs(run: Run, text_model: Any) -> None:
    model = text_model(
        "(float[N, 3, 8, 8] x, float[N, 3] extra) => (float[N, 3] y)"
        "{ a = Relu(x) g = GlobalAveragePool(a) f = Flatten(g) y = Add(f, extra) }"
    )
    onnx.save(model, "two.onnx")
    code, out, err = run("export", "two.onnx", "explain.onnx")
    assert (code, err) == (0, "")
    assert "extra float32 (N, 3)" in out


@pytest.mark.parametrize("batch", ["0", "-3"])
def test_no_batch(run: Run, small: Path, batch: str) -> None:
    code, out, err = run("export", small, "explain.onnx", f"--batch={batch}")
    assert (code, out) == (1, "")
    assert f"batch={batch}: give the number of rows" in err
    assert not Path("explain.onnx").exists()


def test_help_on_layers(run: Run) -> None:
    words = " ".join(run("explain", "--help")[1].split())
    assert "repeat to average several (methods that look at one layer take one)" in words
    assert "ImageNet's" in words
