"""Models and explain graphs → programs that an Explainer runs: compile or load them, and start their sessions."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import BatchAxisError, ModelError
from .runtime.built_in import check_names
from .runtime.device import open_session
from .runtime.metadata import read_metadata
from .runtime.program import Program, Progress, Whole
from .runtime.session import make_session
from .runtime.spec import Spec

if TYPE_CHECKING:
    import onnx

    from .compiled import Compiled

    Model = str | os.PathLike[str] | bytes | onnx.ModelProto


class Starter(NamedTuple):
    """Makes programs.

    Attributes:
        settings: Of `make_session`.
        batch, progress: Of `Staged`.
    """

    settings: Mapping[str, Any]
    batch: int
    progress: Progress | None

    def start(self, sources: Mapping[str, Any], spec: Spec, folder: Any, identities: Mapping[str, str]) -> Program:
        """A program.

        Args:
            sources: Stage → path or bytes.
            spec: Of them.
            folder: Where the weights lie that they refer to; None: beside them, if anywhere.
            identities: Stage → what tells it from all others, where that is known.
        """

        def about(name: str) -> dict[str, Any]:
            return {"folder": folder, "identity": identities.get(name, ""), **self.settings}

        if "explain" in sources:
            return Whole(open_session(sources["explain"], **about("explain")), spec)
        from .runtime.staged import Staged

        sessions = {name: make_session(source, **about(name)) for name, source in sources.items()}
        return Staged(sessions, spec, self.batch, self.progress)


class Exported:
    """The program of an exported graph: a file, bytes, a ModelProto, or a folder of stages.

    Attributes:
        one: The program for one target per image.
    """

    def __init__(self, model: Model, spec: Spec, starter: Starter) -> None:
        if isinstance(model, (str, os.PathLike)) and os.path.isdir(model):
            from .runtime.folder import stage_files

            self.one = starter.start(stage_files(model), spec, None, {})
            return
        source = model if isinstance(model, (str, os.PathLike, bytes)) else model.SerializeToString()
        self.one = starter.start({"explain": source}, spec, None, {})
        check_names(self.one)

    def several(self) -> Program | None:
        """The program for several targets per image; None where each target needs its own run."""
        return self.one if self.one.spec.many else None


class Compiling:
    """The programs of a model that is compiled here; that for several targets when it is first needed.

    Args:
        arguments: Of `compile_model`.
        starter: Makes the programs.

    Attributes:
        one: The program for one target per image; it serves several too unless it would repeat large values.
    """

    def __init__(self, arguments: Mapping[str, Any], starter: Starter) -> None:
        self._arguments, self._starter = arguments, starter
        self._lock = threading.Lock()
        self._signature = _signature(arguments["source"])
        self._many: Program | None = None
        try:
            graph = self._compiled(many=True)
        except BatchAxisError:
            graph = None
        self._refused, self._settled = graph is None, False
        if graph is not None and not graph.repeats:
            self.one = self._many = self._program(graph)
        else:
            self.one = self._program(self._compiled(many=False))

    def several(self) -> Program | None:
        """The program for several targets per image; None where each target needs its own run."""
        with self._lock:
            if self._many is None and not self._settled:
                source = self._arguments["source"]
                if _signature(source) != self._signature:
                    raise ModelError(
                        f"the model {os.fspath(source)!r} has changed since this Explainer was made: make a new one"
                    )
                if not self._refused:
                    self._many = self._program(self._compiled(many=True))
                self._settled = True
            return self._many

    def _compiled(self, many: bool) -> Compiled:
        from .compiled import compiled

        return compiled(self._arguments, many, self._starter.settings["cache"])

    def _program(self, graph: Compiled) -> Program:
        return self._starter.start(graph.sources, graph.spec, graph.folder, graph.identities)


def metadata_of(model: Model) -> dict[str, str]:
    """What a model, or an exported folder, says about itself: key → value.

    Raises:
        ModelError: it is none.
    """
    if isinstance(model, (str, os.PathLike)) and os.path.isdir(model):
        from .runtime.folder import read_folder

        return read_folder(model)
    if isinstance(model, (str, os.PathLike, bytes)):
        return read_metadata(model)
    if not hasattr(model, "metadata_props"):
        raise ModelError(f"a model is a path, bytes or a ModelProto, not {type(model).__name__}")
    return {p.key: p.value for p in model.metadata_props}


def _signature(model: object) -> tuple[int, ...]:
    """What tells a model file from one that took its place; () for a model in memory or a file that is gone."""
    try:
        found = os.stat(model) if isinstance(model, (str, os.PathLike)) else None
    except OSError:
        found = None
    return (found.st_ino, found.st_size, found.st_mtime_ns) if found is not None else ()
