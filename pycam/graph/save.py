"""Write an explain graph: one file, or a folder of stages that share one file of weights."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING

import onnx

from pycam.errors import ModelError, OutputError
from pycam.image import replacing
from pycam.runtime.folder import MANIFEST, manifest, read_folder, stage_files
from pycam.runtime.metadata import LABELS, PREPROCESS
from pycam.runtime.spec import KEY

if TYPE_CHECKING:
    from pycam.compile import ExplainGraph

WEIGHTS = "weights.bin"
_SMALL = 1024  # bytes up to which a weight stays in its graph
_ALIGNED = 4096  # so that a runtime can map it


def check_place(path: Path, stages: int, model: str | None = None) -> None:
    """Raise OutputError where the path is a file's and there are several stages, or a folder with other things.

    `model`: the file that is exported, which must not lie in a folder that is replaced.
    """
    problem = ""
    if path.suffix == ".onnx":
        if stages > 1:
            problem = (
                f"it is one file, and this method runs in {stages} stages: give a folder (a name without '.onnx'), or, "
                "where nothing is random or left to numpy and all variants of an image may go through the model at "
                "once, raise batch="
            )
    elif path.is_dir() and path.samefile("."):
        problem = "it is the folder that this process works in: give the name of another"
    elif path.is_dir():
        if set(os.listdir(path)) - _exported_files(path):
            problem = "the folder holds other files: choose an empty or a new one"
        elif model is not None and Path(model).resolve().parent == path.resolve():
            problem = "the model itself lies there: choose another folder"
    elif path.exists():
        problem = "it is a file: choose another name, or one that ends in '.onnx'"
    elif not path.absolute().parent.is_dir():
        problem = f"the folder {str(path.absolute().parent)!r} does not exist: make it first"
    if problem:
        raise OutputError(f"cannot write {str(path)!r}: {problem}")


def _exported_files(path: Path) -> set[str]:
    """The names of the files in a folder that an export wrote; none if it is no export's."""
    try:
        stages = stage_files(path)
        metadata = read_folder(path)
    except ModelError:
        return set()
    return {MANIFEST, WEIGHTS, *(file.name for file in stages.values())} if KEY in metadata else set()


def save(graph: ExplainGraph, path: Path, metadata: Mapping[str, str]) -> None:
    """Write `graph` to a file `*.onnx`, or else to a folder; whole or not at all.

    Args:
        graph: Stand-alone.
        path: Where to.
        metadata: Of the model: its labels and its preprocessing go along.

    Raises:
        OutputError: see `check_place`; or the disk is full.
    """
    check_place(path, len(graph.models))
    if path.suffix == ".onnx":
        with replacing(path) as file:
            file.write(graph.model.SerializeToString())
        return
    place = path.resolve()
    made, old = (place.with_name(f".{place.name}.{secrets.token_hex(4)}.{kind}") for kind in ("tmp", "old"))
    try:
        made.mkdir()
        _write_stages(graph, made, metadata)
        if place.is_dir():
            os.replace(place, old)
        try:
            os.replace(made, place)
        except OSError:
            if old.is_dir():
                os.replace(old, place)
            raise
    except OSError as error:
        raise OutputError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _write_stages(graph: ExplainGraph, folder: Path, metadata: Mapping[str, str]) -> None:
    files = {name: f"{name}.onnx" for name in graph.models}
    with open(folder / WEIGHTS, "xb") as weights:
        places: dict[bytes, tuple[int, int]] = {}
        for name, model in graph.models.items():
            (folder / files[name]).write_bytes(_with_shared_weights(model, weights, places).SerializeToString())
    carried = {key: value for key, value in metadata.items() if key in (LABELS, PREPROCESS)}
    carried |= {KEY: graph.spec.to_json()}
    (folder / MANIFEST).write_text(manifest(carried, files), encoding="utf-8")


def _with_shared_weights(
    model: onnx.ModelProto, weights: IO[bytes], places: dict[bytes, tuple[int, int]]
) -> onnx.ModelProto:
    """A copy whose large weights lie in the file `weights`, each once; `places`: digest → offset and length."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        data = tensor.raw_data
        if len(data) <= _SMALL:
            continue
        digest = hashlib.sha256(data).digest()
        if digest not in places:
            weights.write(b"\0" * (-weights.tell() % _ALIGNED))
            places[digest] = (weights.tell(), len(data))
            weights.write(data)
        offset, length = places[digest]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", WEIGHTS), ("offset", str(offset)), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)
    return copy
