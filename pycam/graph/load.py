"""Read a model: path, bytes or ModelProto → a checked ModelProto whose weights may still lie outside it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple, TypeAlias

import onnx
from google.protobuf.message import DecodeError

from pycam.errors import ModelError
from pycam.runtime.metadata import read_metadata
from pycam.runtime.wire import Malformed

from .skeleton import read_skeleton

Source: TypeAlias = "str | os.PathLike[str] | bytes | onnx.ModelProto"


class Loaded(NamedTuple):
    """A model as it was read."""

    proto: onnx.ModelProto
    folder: Path
    """What its external data is relative to."""
    file: str
    """The model's own file in that folder, to which `proto` refers for its weights; "" where there is none."""


def load(source: Source) -> Loaded:
    """Read and check `source`.

    The weights stay where they are: in external files, which must be present and long enough, or within the model's own
    file, to which the result then refers as external data (see `skeleton.py`).

    Raises:
        ModelError: not an ONNX file, truncated, empty, or external data missing.
    """
    if isinstance(source, onnx.ModelProto):
        loaded, name = Loaded(source, Path(), ""), "the ModelProto"
    elif not isinstance(source, (bytes, str, os.PathLike)):
        raise ModelError(f"a model is a path, bytes or a ModelProto, not {type(source).__name__}")
    elif isinstance(source, bytes):
        loaded, name = Loaded(_parse(source, "the bytes"), Path(), ""), "the bytes"
    else:
        name = repr(os.fspath(source))
        read_metadata(source)  # tells a broken file from one that never was a model
        path = Path(source).resolve()  # weights are looked up beside the file itself, not beside a link to it
        try:
            data = read_skeleton(path)
        except OSError as error:
            raise ModelError(f"cannot read the model {name}: {error.strerror or error}") from None
        except Malformed as error:
            raise ModelError(f"{name} is not an ONNX model, or it is damaged: {error}") from None
        loaded = Loaded(_parse(data, name), path.parent, path.name)
    proto = loaded.proto
    if not proto.graph.node or not proto.graph.output:
        raise ModelError(
            f"{name} holds no graph: it has {len(proto.graph.node)} nodes and {len(proto.graph.output)} outputs"
        )
    if not proto.opset_import:
        raise ModelError(f"{name} names no opset: it is not a complete ONNX model")
    _check_external(proto, loaded.folder, name)
    return loaded


def _parse(data: bytes, name: str) -> onnx.ModelProto:
    try:
        proto = onnx.load_model_from_string(data)
    except DecodeError:
        proto = onnx.ModelProto()
    if not proto.ir_version:
        raise ModelError(
            f"{name} ({len(data):,} bytes) is not an ONNX model, or it is truncated: export or copy it again"
        )
    return proto


def _check_external(proto: onnx.ModelProto, folder: Path, name: str) -> None:
    """Fail now, with the file's name, rather than in the middle of a compilation."""
    for tensor in proto.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        info = {entry.key: entry.value for entry in tensor.external_data}
        file = folder / info.get("location", "")
        if not file.is_file():
            raise ModelError(
                f"{name} keeps the weight {tensor.name!r} in {str(file)!r}, which is missing: "
                "put that file beside the model"
            )
        need = int(info.get("offset", 0)) + int(info.get("length", 0))
        if file.stat().st_size < need:
            raise ModelError(
                f"{name} keeps the weight {tensor.name!r} in {str(file)!r}, which is truncated: "
                f"{file.stat().st_size:,} bytes where {need:,} are needed"
            )
