"""The cached optimised model: onnxruntime writes what its optimiser made, and the next session begins with that.

Only for the CPU.  Other providers compile for themselves and keep that themselves (TensorRT by its option
`trt_engine_cache_enable`), or put what is theirs into the graph.  The weights lie in a file of their own, which is
mapped, not read.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from functools import lru_cache
from itertools import takewhile
from typing import Any

import onnxruntime as ort

from .cache import FORMAT, Cache, warn_unkept
from .identity import identity

KIND = "session"
MODEL, WEIGHTS = "model.onnx", "model.data"
_APART = "1024"  # bytes from which on a weight goes to the file of weights


def open_optimised(
    start: Callable[..., Any],
    model: str | os.PathLike[str] | bytes,
    folder: str | os.PathLike[str] | None,
    cache: Cache,
    known: str,
) -> Any:
    """A session of the optimised model; where there is none, one of the model itself, which leaves it for the next.

    Args:
        start: (source, change of the session's options) → session.
        model, folder: Of the model.
        cache: Where optimised models are.
        known: What tells this model from all others; "" to find that out.
    """
    key = optimised_key(known or identity(model, folder, cache))
    entry = cache.find(KIND, key)
    if entry is not None:
        try:
            return start(entry.path(MODEL), _as_it_is)
        except Exception as error:  # onnxruntime's exceptions share no base class
            cache.discard(entry, f"onnxruntime cannot load it ({error})")
    about = {"onnxruntime": ort.__version__, "model": "" if isinstance(model, bytes) else os.fspath(model)}
    session = None
    try:
        with cache.draft(KIND, key, about) as draft:
            session = start(change=lambda options: _keep(options, draft))
    except Exception as error:  # see above; of the model's own faults the next line tells
        session = session if session is not None else start()
        warn_unkept(cache, error)
    return session


def optimised_key(model: str) -> str:
    """What the optimised form of a model depends on: not the number of threads, nor what pycam is."""
    facts = (FORMAT, model, ort.__version__, ort.get_build_info(), processor())
    return hashlib.sha256(repr(facts).encode()).hexdigest()


@lru_cache(maxsize=1)
def processor() -> str:
    """The processor's name and abilities: the blocks in which weights are laid out are made for them."""
    if sys.platform != "linux":
        import platform

        return f"{platform.machine()} {platform.processor()}"
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        first = takewhile(str.strip, file)  # of the first core alone
        kept = ("model name", "cpu family", "model", "flags", "Features", "CPU part", "isa")
        return "".join(line for line in first if line.partition(":")[0].strip() in kept)


def _as_it_is(options: Any) -> None:
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL


def _keep(options: Any, folder: str) -> None:
    options.optimized_model_filepath = os.path.join(folder, MODEL)
    for name, value in (("file_name", WEIGHTS), ("min_size_in_bytes", _APART)):
        options.add_session_config_entry(f"session.optimized_model_external_initializers_{name}", value)
