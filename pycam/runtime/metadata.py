"""The text that an ONNX file carries about itself, read without onnx and without touching the weights.

An ONNX file is one protobuf message, `ModelProto`.  Stepping from field to field over a memory map reaches
`metadata_props` (field 14) in a few dozen steps however many gigabytes of weights lie in field 7.
"""

from __future__ import annotations

import mmap
import os

from pycam.errors import ModelError
from pycam.runtime.wire import BYTES, VARINT, Data, Field, Malformed, fields

__all__ = ["LABELS", "PREPROCESS", "read_metadata"]

PREPROCESS = "pycam.preprocess"
"""Key of a `pycam.image.Preprocess` as JSON."""

LABELS = "pycam.labels"
"""Key of the class names, one a line, in index order."""

_GRAPH, _METADATA = 7, 14

# onnx.proto's ModelProto: what a field must look like on the wire (field 14 and others came later; unknown ones may be
# newer still and are skipped)
_WIRE = {1: VARINT, 2: BYTES, 3: BYTES, 4: BYTES, 5: VARINT, 6: BYTES, 7: BYTES, 8: BYTES, 14: BYTES}

# What people pass by mistake: offset, magic, what it is
_OTHERS = (
    (0, b"version https://git-lfs", "a Git LFS pointer: run `git lfs pull`"),
    (0, b"PK\x03\x04", "a zip archive (PyTorch, Keras?): export the model to ONNX first"),
    (0, b"\x89HDF", "an HDF5 file (Keras?): export the model to ONNX first"),
    (4, b"TFL3", "a TensorFlow Lite model: convert it with tf2onnx first"),
    (4, b"ORTM", "a model in ORT format: give the .onnx file that it was made from"),
)


def read_metadata(source: str | os.PathLike[str] | bytes) -> dict[str, str]:
    """`metadata_props` of an ONNX model: a path or the serialised bytes -> key: value, `{}` if it has none.

    Time and memory do not grow with the weights.  Raises `ModelError`: missing, empty, truncated, or not ONNX.
    """
    if isinstance(source, bytes):
        return _metadata(source, "the model given as bytes")
    name = repr(os.fspath(source))
    try:
        with open(source, "rb") as file:
            empty = os.fstat(file.fileno()).st_size == 0  # and so cannot be mapped
            data = None if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise ModelError(f"cannot open {name}: {getattr(error, 'strerror', None) or error}; check the path") from error
    if data is None:
        raise ModelError(f"{name}: the file is empty")
    with data:
        return _metadata(data, name)


def _metadata(data: Data, name: str) -> dict[str, str]:
    found: dict[str, str] = {}
    seen: set[int] = set()  # the fields of ModelProto that were well-formed
    try:
        for field in fields(data, 0, len(data)):
            if _WIRE.get(field.number, field.wire) != field.wire:
                raise Malformed(f"field {field.number} has wire type {field.wire} at byte {field.tag:,}")
            seen.add(field.number)
            if field.number == _METADATA:
                key, value = _entry(data, field)
                found[key] = value
        if _GRAPH not in seen:
            raise Malformed("it holds no graph")
    except (Malformed, UnicodeDecodeError) as error:
        raise ModelError(f"{name}: {_reason(data, seen, error)}") from error
    return found


def _entry(data: Data, field: Field) -> tuple[str, str]:
    """Key and value of a StringStringEntryProto; protobuf leaves out what is empty."""
    parts = {part.number: data[part.start : part.stop] for part in fields(data, field.start, field.stop)}
    return parts.get(1, b"").decode(), parts.get(2, b"").decode()


def _reason(data: Data, seen: set[int], error: Exception) -> str:
    """Tell a broken model from something that never was one."""
    for offset, magic, what in _OTHERS:
        if data[offset : offset + len(magic)] == magic:
            return f"not an ONNX file but {what}"
    return str(error) if seen & _WIRE.keys() else f"not an ONNX file ({error})"
