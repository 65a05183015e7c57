"""Reading a model: its forms, its external data, and what is no model at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

import pycam
from pycam.errors import ModelError
from pycam.graph.load import load

Net = Callable[..., onnx.ModelProto]


def saved_externally(model: onnx.ModelProto, path: Path) -> Path:
    """`path`, with every weight in one file beside it; returns that file."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    onnx.save_model(copy, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path.with_name("weights.bin")


def test_path_bytes_and_proto_give_the_same(cnn: Net, images: np.ndarray, tmp_path: Path) -> None:
    model = cnn()
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    sources = [model, path, str(path), path.read_bytes()]
    assert load(model).proto == load(path.read_bytes()).proto == model
    maps = [pycam.Explainer(source)(images, 2).heatmaps for source in sources]
    assert all(np.array_equal(m, maps[0]) for m in maps)


def test_loading_and_compiling_leave_a_proto_as_it_was(cnn: Net) -> None:
    model = cnn(batchnorm=True, end="Dropout", opset=11)
    before = model.SerializeToString(deterministic=True)
    pycam.Explainer(model)
    pycam.layers(model)
    assert model.SerializeToString(deterministic=True) == before


def test_weights_in_another_file(cnn: Net, images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = cnn("flatten")
    path = tmp_path / "model.onnx"
    weights = saved_externally(model, path)
    assert path.stat().st_size < 10_000 < weights.stat().st_size
    monkeypatch.chdir(tmp_path.parent)  # the file is sought beside the model, not in the working folder
    want = pycam.Explainer(model)(images, 2)
    assert np.array_equal(pycam.Explainer(path)(images, 2).heatmaps, want.heatmaps)
    exported = pycam.export(path, tmp_path / "explain.onnx")
    weights.unlink()
    assert np.array_equal(pycam.Explainer(exported, head="cpu")(images, 2).heatmaps, want.heatmaps)


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_weights_in_a_file_that_is_too_short(cnn: Net, tmp_path: Path, keep: int) -> None:
    path = tmp_path / "model.onnx"
    weights = saved_externally(cnn("flatten"), path)
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"weights\.bin.*truncated.*bytes where .* are needed"):
        load(path)


def test_weights_in_a_file_that_is_missing(cnn: Net, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    saved_externally(cnn("flatten"), path).unlink()
    for call in (load, pycam.Explainer, pycam.layers):
        with pytest.raises(ModelError, match=r"keeps the weight '\w+' in .*weights\.bin', which is missing: put that"):
            call(path)


@pytest.mark.parametrize("content", [b"", b"just some text\n" * 20, b"\x89PNG\r\n\x1a\n" + bytes(200), b"\x08\x08"])
def test_what_is_no_model(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.onnx.*(not an ONNX|is empty|no graph)"):
        load(path)
    with pytest.raises(ModelError, match=r"the bytes.*(not an ONNX|no graph)"):
        load(content)


def test_a_graph_that_computes_nothing(cnn: Net) -> None:
    empty, without_output, without_opset = cnn(), cnn(), cnn()
    del empty.graph.node[:]
    del without_output.graph.output[:]
    del without_opset.opset_import[:]
    for model, why in ((empty, "0 nodes"), (without_output, "0 outputs"), (without_opset, "names no opset")):
        with pytest.raises(ModelError, match=why):
            load(model)


@pytest.mark.parametrize("path", ["nowhere.onnx", "."])
def test_a_path_that_cannot_be_read(path: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot (open|read).*: (No such file|Is a directory)"):
        load(tmp_path / path)
