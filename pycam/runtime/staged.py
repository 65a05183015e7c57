"""`Staged`: an explain graph that was cut into stages, run as its recipe says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pycam.errors import InputError

from .algebra import FUNCTIONS, check_installed
from .noise import draw
from .program import BATCH, Arrays, Failed, Progress, cannot_run, joined, one_by_one, run_session
from .recipe import Recipe
from .spec import Spec


@dataclass(frozen=True)
class Staged:
    """Several graphs, run as the recipe says.

    Attributes:
        sessions: One per stage.
        spec: With a recipe.
        batch: Rows that go through the model at once, at most: variants, or variants × targets for gradients.
        progress: Wraps the batches of variants; None shows nothing.
    """

    sessions: Mapping[str, Any]
    spec: Spec
    batch: int = BATCH
    progress: Progress | None = None

    def __post_init__(self) -> None:
        if self.recipe.host:
            check_installed(call.function for call in self.recipe.host)

    @property
    def session(self) -> Any:
        """The session that takes the image."""
        return self.sessions["prepare"]

    @property
    def recipe(self) -> Recipe:
        """How the stages are run."""
        assert self.spec.recipe is not None
        return self.spec.recipe

    def run(self, feeds: Arrays, targets: Arrays) -> Arrays:
        """See `Program.run`."""
        given = {**feeds, **targets}
        images = one_by_one(given, self.spec) if self.recipe.varies else [given]
        try:
            return joined([self._explain(one) for one in images], self.spec)
        except Failed as error:
            raise cannot_run(feeds, error) from error.__cause__

    def _explain(self, given: Arrays) -> Arrays:
        made = dict(given)
        made |= _stage(self.sessions["prepare"], made)
        made |= self._host(made, late=False)
        if self.recipe.varies:
            made |= self._steps(made, given[self.spec.targets].shape[1])
        if "finish" in self.sessions:
            made |= _stage(self.sessions["finish"], made)
        made |= self._host(made, late=True)
        if "head" in self.sessions:
            made |= _stage(self.sessions["head"], made)
        return {name: made[name] for name in self.spec.returned}

    def _host(self, made: Arrays, late: bool) -> Arrays:
        """What the functions of numpy give."""
        found: Arrays = {}
        for call in (call for call in self.recipe.host if call.late is late):
            sources = [{**made, **found}[name] for name in call.sources]
            if not all(np.isfinite(source).all() for source in sources):
                raise InputError("the explanation is not finite: this input makes the model's numbers overflow")
            results = FUNCTIONS[call.function](*sources, **call.options)
            found |= dict(zip(call.results, results, strict=True))
        return found

    def _steps(self, made: Arrays, targets: int) -> Arrays:
        """What all variants give, folded."""
        recipe, session = self.recipe, self.sessions["step"]
        ids = made[recipe.ids or ""]
        size = 1 if recipe.single else max(1, self.batch // targets) if recipe.gradients else self.batch
        batches: Sequence[NDArray[np.int64]] = [ids[i : i + size] for i in range(0, len(ids), size)]
        names = [c.output for c in recipe.collected]
        fixed = {i.name: made[i.name] for i in session.get_inputs() if i.name in made}
        stacked: dict[str, list[NDArray[Any]]] = {c.output: [] for c in recipe.collected if c.fold == "stack"}
        sums: dict[str, NDArray[np.float64]] = {}
        kinds: dict[str, Any] = {}
        reads_ids = recipe.variant in _inputs(session)
        for variants in self.progress(batches, "batches") if self.progress is not None else batches:
            given = fixed | ({recipe.variant: variants} if reads_ids else {})
            for noise in recipe.noise:
                shape = made[noise.like].shape[1:] if noise.like is not None else noise.shape
                given[noise.name] = draw(noise.kind, shape, noise.seed, variants.tolist(), noise.stream)
            for name, array in run_session(session, names, given).items():
                if name in stacked:
                    stacked[name].append(array)
                else:  # in double: the sum is then the same, to float32, whatever the batch
                    sums[name] = sums[name] + array if name in sums else array.astype(np.float64)
                    kinds[name] = array.dtype
        return {
            c.input: np.concatenate(stacked[c.output]) if c.fold == "stack" else sums[c.output].astype(kinds[c.output])
            for c in recipe.collected
        }


def _inputs(session: Any) -> set[str]:
    return {i.name for i in session.get_inputs()}


def _stage(session: Any, made: Arrays) -> Arrays:
    return run_session(
        session, [o.name for o in session.get_outputs()], {name: made[name] for name in _inputs(session)}
    )
