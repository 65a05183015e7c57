"""A session that gives back, at the end of each run, the memory that the run needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnxruntime as ort

KEY = "memory.enable_memory_arena_shrinkage"


class Shrinking(ort.InferenceSession):  # type: ignore[misc]  # onnxruntime is untyped
    """Its arena, from which the values of a run are cut, shrinks to what it was before the run.

    Without that onnxruntime keeps the most that any run ever needed, ready for the next one.
    """

    def run(self, names: Sequence[str] | None, feeds: Mapping[str, Any], run_options: Any = None) -> Any:
        """See `InferenceSession.run`."""
        return super().run(names, feeds, self._with_shrinkage(run_options))

    def run_with_iobinding(self, binding: Any, run_options: Any = None) -> None:
        """See `InferenceSession.run_with_iobinding`."""
        super().run_with_iobinding(binding, self._with_shrinkage(run_options))

    def _with_shrinkage(self, options: Any) -> Any:
        options = ort.RunOptions() if options is None else options
        options.add_run_config_entry(KEY, ";".join(_ARENAS[name] for name in self.get_providers() if name in _ARENAS))
        return options


_ARENAS = {"CPUExecutionProvider": "cpu:0"}
"""Provider → its arena, as the run's configuration names it.  Devices keep theirs: `gpu_mem_limit` bounds CUDA's."""
