"""The wire walk against onnx's own reader, and against everything that is not an ONNX file."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

import pycam.image
from pycam.errors import ModelError
from pycam.runtime import wire
from pycam.runtime.metadata import LABELS, PREPROCESS, read_metadata

ASSETS = Path(pycam.image.__file__).with_name("assets")


def model(properties: dict[str, str] | None = None, weights: int = 4) -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", weights]) for name in "xy")
    w = helper.make_tensor("w", TensorProto.FLOAT, [weights], bytes(4 * weights), raw=True)
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [w])
    proto = helper.make_model(graph, producer_name="test", opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(proto, properties or {})
    return proto


SERIALISED = model({"key": "value"}).SerializeToString()


def field(number: int, wire: int, body: bytes = b"") -> bytes:
    return bytes([number << 3 | wire]) + body


def test_what_onnx_writes_is_read(tmp_path: Path) -> None:
    properties = {
        "a": "1",
        PREPROCESS: "{}",
        LABELS: "cat\ndög\n中文",
        "empty": "",
        "": "no key",
        "long": "x" * 100_000,
    }
    proto = model(properties)
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    assert read_metadata(path) == properties
    assert read_metadata(str(path)) == properties
    assert read_metadata(proto.SerializeToString()) == properties


def test_the_model_that_ships_carries_its_preprocessing_and_labels() -> None:
    path = ASSETS / "lite0_w8.onnx"
    found = read_metadata(path)
    assert found == {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert found.keys() == {PREPROCESS, LABELS}


def test_a_model_without_metadata_gives_an_empty_dict() -> None:
    assert read_metadata(model().SerializeToString()) == {}


def test_the_last_of_a_repeated_key_wins() -> None:
    proto = model({"key": "old"})
    proto.metadata_props.add(key="key", value="new")
    assert read_metadata(proto.SerializeToString()) == {"key": "new"}


def test_unknown_fields_are_skipped_and_their_wire_types_understood() -> None:
    extra = field(15, 0, b"\xff\x01") + field(15, 1, bytes(8)) + field(15, 2, b"\x03abc") + field(15, 5, bytes(4))
    assert read_metadata(extra + SERIALISED + extra) == {"key": "value"}
    entry = field(14, 2, b"\x08") + field(3, 0, b"\x01") + field(2, 2, b"\x01v") + field(1, 2, b"\x01k")
    assert read_metadata(SERIALISED + entry[:1] + bytes([len(entry) - 2]) + entry[2:])["k"] == "v"  # in any order


def test_the_weights_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sparse gigabyte of graph: steps are counted, time is not."""
    size = 1 << 30
    length = bytes([0x80, 0x80, 0x80, 0x80, 0x04])  # 2³⁰ as a varint
    path = tmp_path / "large.onnx"
    with path.open("wb") as file:
        file.write(field(1, 0, b"\x08") + field(7, 2, length))
        file.seek(size, os.SEEK_CUR)
        file.write(field(14, 2, b"\x06\x0a\x01k\x12\x01v"))
    steps = 0
    varint: Callable[..., tuple[int, int]] = wire._varint

    def counted(*arguments: object) -> tuple[int, int]:
        nonlocal steps
        steps += 1
        return varint(*arguments)

    monkeypatch.setattr(wire, "_varint", counted)
    assert read_metadata(path) == {"k": "v"}
    assert steps < 20


@pytest.mark.parametrize("cut", range(1, len(SERIALISED)))
def test_a_model_cut_anywhere_is_refused_unless_whole_fields_remain(cut: int) -> None:
    part = SERIALISED[:cut]
    try:
        assert read_metadata(part) in ({}, {"key": "value"})
    except ModelError as error:
        assert "truncated at byte" in str(error) or "no graph" in str(error)  # noqa: PT017  (either may be right)
    else:
        onnx.load_model_from_string(part)  # protobuf accepts it too


def test_truncation_says_where(tmp_path: Path) -> None:
    path = tmp_path / "half.onnx"
    path.write_bytes(SERIALISED[: len(SERIALISED) // 2])
    with pytest.raises(ModelError, match=rf"half\.onnx.*truncated at byte {len(SERIALISED) // 2}: field 7 at byte"):
        read_metadata(path)


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data.pkl", "x")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "not an ONNX file"),
        (b"hello, world\n" * 10, "not an ONNX file"),
        (b'{"a": 1}', "not an ONNX file"),
        (b"<html>", "not an ONNX file"),
        (bytes(100), "not an ONNX file"),
        (b"\xff" * 100, "not an ONNX file"),
        (b"\x80", "not an ONNX file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (_zip(), "export the model to ONNX"),
        (b"\x89HDF\r\n\x1a\n", "export the model to ONNX"),
        (b"\x1c\0\0\0TFL3" + bytes(50), "tf2onnx"),
        (b"\x1c\0\0\0ORTM" + bytes(50), "ORT format"),
        (field(1, 0, b"\x08"), "no graph"),
        (field(1, 0, b"\x08") + field(7, 0, b"\x08"), "field 7 has wire type 0 at byte 2"),
        (field(1, 0, b"\x08") + field(7, 3), "unknown wire type 3 at byte 2"),
        (field(1, 0, b"\x08") + field(0, 0, b"\x08"), "field number 0"),
        (field(1, 0, b"\xff" * 12), "malformed number"),
        (field(1, 0, b"\x08") + field(7, 1, bytes(3)), "truncated|wire type"),
        (SERIALISED + field(14, 2, b"\x03\x0a\x01\xff"), "utf-8"),
        (SERIALISED + field(14, 2, b"\x03\x0a\x09k"), "truncated"),
    ],
)
def test_what_is_not_onnx_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "other.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message) as error:
        read_metadata(path)
    assert "other.onnx" in str(error.value)
    with pytest.raises(ModelError, match=message):
        read_metadata(content)


@pytest.mark.parametrize("name", ["missing.onnx", ".", "a\0b.onnx"])
def test_a_path_that_cannot_be_opened(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match="cannot open"):
        read_metadata(f"{tmp_path}/{name}")


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").touch()
    with pytest.raises(ModelError, match="is empty"):
        read_metadata(tmp_path / "empty.onnx")
    with pytest.raises(ModelError, match="not an ONNX file"):
        read_metadata(b"")
