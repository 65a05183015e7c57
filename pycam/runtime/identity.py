"""What tells one model from all others: sha256 of its file and of the files that hold its weights, without onnx.

Reading gigabytes to find out that nothing changed would cost what the cache saves.  So the digest of a file is noted in
the cache, with sizes, times and inodes of the files; it is believed as long as those are the same, and noted only of
files that had not just been written, whose time might not tell a further change.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from pycam.errors import ModelError

from .cache import Cache, sha256
from .wire import BYTES, Data, Malformed, fields

_SETTLED = 2.0  # seconds: no file system's times are coarser

_GRAPH, _NODES, _INITIALIZERS, _EXTERNAL = 7, 1, 5, 13
_ATTRIBUTES, _TENSOR, _BODY, _TENSORS, _BODIES = 5, 5, 6, 10, 11  # of a node; of an attribute


def identity(model: str | os.PathLike[str] | bytes, folder: str | os.PathLike[str] | None, cache: Cache) -> str:
    """The digest of a model with its external data, as hexadecimal text.

    Args:
        model: Path or bytes.
        folder: Where external data lies, if not beside the file (of bytes: in the working directory).
        cache: Where digests of files are noted.

    Raises:
        ModelError: a file cannot be read.
    """
    try:
        if isinstance(model, bytes):
            return _of(model, os.fspath(folder or "."))[0]
        return _of_file(os.path.realpath(model), folder, cache)
    except OSError as error:
        raise ModelError(f"cannot read the model, or its weights: {error}") from error


def external_files(data: Data) -> list[str]:
    """Where the tensors of a serialised model lie that are not within it: locations as the model has them."""
    if data.find(b"location") < 0:  # the key of what is looked for
        return []
    try:
        graphs = [field for field in fields(data, 0, len(data)) if field.number == _GRAPH]
        return sorted({place for graph in graphs for place in _in_graph(data, graph.start, graph.stop)})
    except (Malformed, UnicodeDecodeError) as error:
        raise ModelError(f"the model is not valid ONNX: {error}") from None


def _of_file(path: str, folder: str | os.PathLike[str] | None, cache: Cache) -> str:
    where = os.fspath(folder) if folder is not None else os.path.dirname(path)
    name = hashlib.sha256(f"{path}\0{where}".encode()).hexdigest()[:40]
    note = os.path.join(cache.root, f"{name}.seen")
    with suppress(OSError, ValueError, KeyError, TypeError):
        with open(note, encoding="utf-8") as file:
            seen = json.load(file)
        if all(_stat(one) == known for one, known in seen["files"].items()) and path in seen["files"]:
            return str(seen["sha256"])
    before = _stat(path)
    with open(path, "rb") as whole, mmap.mmap(whole.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found, others = _of(data, where)
    stats = {one: _stat(one) for one in (path, *others)}
    if stats[path] == before and max(stat[1] for stat in stats.values()) / 1e9 < time.time() - _SETTLED:
        with suppress(OSError):  # a cache that cannot be written to is told of elsewhere
            _write(note, json.dumps({"files": stats, "sha256": found}))
    return found


def _of(data: Data, folder: str) -> tuple[str, list[str]]:
    """(digest, the paths of external files)."""
    whole = hashlib.sha256(data)
    paths = []
    for place in external_files(data):
        paths.append(os.path.join(folder, place))
        whole.update(f"\0{place}\0{sha256(paths[-1])}".encode())
    return whole.hexdigest(), paths


def _in_graph(data: Data, start: int, stop: int) -> Iterator[str]:
    for field in fields(data, start, stop):
        if field.number == _INITIALIZERS and field.wire == BYTES:
            yield from _in_tensor(data, field.start, field.stop)
        elif field.number == _NODES and data.find(b"location", field.start, field.stop) >= 0:
            yield from _in_node(data, field.start, field.stop)


def _in_node(data: Data, start: int, stop: int) -> Iterator[str]:
    inside = {_TENSOR: _in_tensor, _TENSORS: _in_tensor, _BODY: _in_graph, _BODIES: _in_graph}
    for attribute in fields(data, start, stop):
        if attribute.number == _ATTRIBUTES and attribute.wire == BYTES:
            for field in fields(data, attribute.start, attribute.stop):
                if field.number in inside and field.wire == BYTES:
                    yield from inside[field.number](data, field.start, field.stop)


def _in_tensor(data: Data, start: int, stop: int) -> Iterator[str]:
    for field in fields(data, start, stop):
        if field.number == _EXTERNAL and field.wire == BYTES:
            entry = {part.number: data[part.start : part.stop] for part in fields(data, field.start, field.stop)}
            if entry.get(1) == b"location":
                yield entry.get(2, b"").decode()


def _stat(path: str) -> list[int]:
    stat = os.stat(path)
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _write(path: str, text: str) -> Any:
    """All of it, or nothing."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    draft = f"{path}.{os.getpid()}.{time.monotonic_ns()}"
    with open(draft, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(draft, path)
