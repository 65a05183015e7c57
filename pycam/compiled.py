"""The explain graphs of a model, compiled, or from the cache, where the same was compiled before.

    (model, options) ─key→ cache ─found→ sources        without onnx, onnx-ir or the compiler
                             └──not──→ compile ─keep→ sources

What is kept depends on the model with its weights, every option, and the code that compiled it: pycam's files, onnx and
onnx-ir.  A target, or an option, of whose meaning a key cannot be made is compiled each time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .errors import BatchAxisError
from .runtime.cache import FORMAT, Cache, Entry, warn_unkept
from .runtime.identity import identity
from .runtime.metadata import read_metadata
from .runtime.spec import Spec

if TYPE_CHECKING:
    from .compile import ExplainGraph

KIND = "compiled"


class Compiled(NamedTuple):
    """Explain graphs that sessions can be made of.

    Attributes:
        sources: Stage → its model, serialised.
        folder: Where the weights lie that they refer to.
        identities: Stage → what tells it, with its weights, from all others; {} where nobody asked.
        spec, repeats: See `compile.ExplainGraph`.
    """

    sources: Mapping[str, bytes]
    folder: str
    identities: Mapping[str, str]
    spec: Spec
    repeats: bool


def compiled(settings: Mapping[str, Any], many: bool, cache: Cache | None) -> Compiled:
    """The explain graphs for some arguments of `compile_model`.

    Args:
        settings: The arguments, but for `many` and `stand_alone`.
        many: See `compile_model`.
        cache: Where they may be, and are put.

    Raises:
        PycamError: see `compile_model`.
    """
    key = _key(settings, many, cache) if cache is not None else ""
    entry = cache.find(KIND, key) if cache is not None and key else None
    found = _found(entry, settings["source"], key) if entry is not None else None
    if found is not None:
        return found
    from .compile import compile_model  # brings onnx and onnx-ir, which running an exported graph does without

    try:
        graph = compile_model(**settings, many=many, stand_alone=False)
    except BatchAxisError as error:
        if cache is not None and key:
            _keep(cache, key, {}, {"error": str(error), "op": error.op, "value": error.value})
        raise
    stages = {name: model.SerializeToString() for name, model in graph.models.items()}
    if cache is not None and key:
        _keep(
            cache, key, stages, {"stages": list(stages), "repeats": graph.repeats, "model": _name(settings["source"])}
        )
    return _made(graph, stages, key)


def _made(graph: ExplainGraph, stages: Mapping[str, bytes], key: str) -> Compiled:
    return Compiled(stages, os.fspath(graph.folder), _identities(stages, key), graph.spec, graph.repeats)


def _found(entry: Entry, source: Any, key: str) -> Compiled | None:
    """What an entry of the cache says; None if somebody removed it meanwhile.

    Raises:
        BatchAxisError: that the compiler raised it.
    """
    about = entry.about
    if "error" in about:
        raise BatchAxisError(about["error"], about["op"], about["value"])
    try:
        sources = {name: Path(entry.path(f"{name}.onnx")).read_bytes() for name in about["stages"]}
    except OSError:
        return None
    first = next(data for name, data in sources.items() if name in ("explain", "prepare"))
    spec = Spec.from_metadata(read_metadata(first))
    assert spec is not None
    folder = os.path.dirname(os.path.realpath(source)) if isinstance(source, (str, os.PathLike)) else "."
    return Compiled(sources, folder, _identities(sources, key), spec, about["repeats"])


def _identities(stages: Mapping[str, Any], key: str) -> dict[str, str]:
    return {name: f"{key} {name}" for name in stages} if key else {}


def _keep(cache: Cache, key: str, stages: Mapping[str, bytes], about: Mapping[str, Any]) -> None:
    try:
        with cache.draft(KIND, key, about) as draft:
            for name, data in stages.items():
                Path(draft, f"{name}.onnx").write_bytes(data)
    except OSError as error:
        warn_unkept(cache, error)


def _key(settings: Mapping[str, Any], many: bool, cache: Cache) -> str:
    """What the compiler's result depends on; "" where that cannot be said."""
    source, target = settings["source"], settings["target"]
    if target is not None and not type(target).__module__.startswith(f"{__package__}."):
        return ""  # somebody else's code
    try:
        data = source if isinstance(source, (str, os.PathLike, bytes)) else source.SerializeToString()
        facts = {
            **settings,
            "source": (identity(data, None, cache), _name(source)),
            "target": None if target is None else (type(target).__qualname__, target.options()),
            "many": many,
            "code": (FORMAT, _code()),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=_plain).encode()).hexdigest()
    except (TypeError, ValueError):  # an option that is no plain value; a protobuf of more than 2 GB
        return ""


def _name(source: Any) -> str:
    """Of the model's file, to which its weights are referred."""
    return os.path.basename(os.path.realpath(source)) if isinstance(source, (str, os.PathLike)) else ""


def _plain(value: Any) -> Any:
    """An array as JSON."""
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biuf":
        array = np.asarray(value)
        return [array.dtype.str, array.shape, hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()]
    raise TypeError(f"{type(value).__name__} has no key")


@lru_cache(maxsize=1)
def _code() -> list[Any]:
    """What tells this pycam, onnx and onnx-ir from others: versions would not tell a pycam that is being worked on."""
    found: list[Any] = []
    for folder, folders, files in os.walk(os.path.dirname(__file__)):
        folders[:] = [name for name in folders if name not in ("__pycache__", "assets")]
        stats = ((name, os.stat(os.path.join(folder, name))) for name in files if name.endswith(".py"))
        found += sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)
    for package in ("onnx", "onnx_ir", "onnxruntime"):
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            stat = os.stat(spec.origin)
            found.append((package, stat.st_size, stat.st_mtime_ns))
    return sorted(found)
