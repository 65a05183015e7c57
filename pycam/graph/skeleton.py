"""A model without its weights, and where in the file they lie.

An `.onnx` file is a protobuf message with the weights inside it, as contiguous bytes.  ONNX can also refer to weights
by (file, offset, length): so a model on disk can be read as a *skeleton* whose large tensors point back into the very
same file.  The compiler then never copies a weight, and onnxruntime maps them straight from the original file:
compiling and running take less memory than loading the model does.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from pycam.runtime.wire import Data, Field, bytes_field, fields, varint_field

LARGE = 4096
"""Bytes from which a tensor stays in the file: a weight rather than a shape, an axis list or a scale."""

# Field numbers of onnx.proto
_MODEL_GRAPH, _GRAPH_INITIALIZER = 7, 5
_TENSOR_RAW_DATA, _TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION = 9, 13, 14
_EXTERNAL = 1  # TensorProto.DataLocation


def read_skeleton(path: Path) -> bytes:
    """The ONNX file at `path` as a serialised model whose large initialisers are external data in that same file.

    Raises:
        OSError: it cannot be read.
        Malformed: it is not a protobuf message.
    """
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:  # which cannot be mapped
            return b""
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return b"".join(_model(data, path.name))


def _model(data: Data, name: str) -> list[bytes]:
    return [
        bytes_field(_MODEL_GRAPH, b"".join(_graph(data, field, name)))
        if field.number == _MODEL_GRAPH
        else data[field.tag : field.stop]
        for field in fields(data, 0, len(data))
    ]


def _graph(data: Data, graph: Field, name: str) -> list[bytes]:
    return [
        bytes_field(_GRAPH_INITIALIZER, _tensor(data, field, name))
        if field.number == _GRAPH_INITIALIZER and field.stop - field.start > LARGE
        else data[field.tag : field.stop]
        for field in fields(data, graph.start, graph.stop)
    ]


def _tensor(data: Data, tensor: Field, name: str) -> bytes:
    """The tensor with its raw bytes replaced by their place; one that keeps its numbers otherwise is left as it is."""
    parts = list(fields(data, tensor.start, tensor.stop))
    raw = next((part for part in parts if part.number == _TENSOR_RAW_DATA), None)
    if raw is None:
        return data[tensor.start : tensor.stop]
    place = {"location": name, "offset": str(raw.start), "length": str(raw.stop - raw.start)}
    entries = [
        bytes_field(_TENSOR_EXTERNAL_DATA, bytes_field(1, key.encode()) + bytes_field(2, value.encode()))
        for key, value in place.items()
    ]
    kept = [data[part.tag : part.stop] for part in parts if part is not raw]
    return b"".join([*kept, *entries, varint_field(_TENSOR_DATA_LOCATION, _EXTERNAL)])
