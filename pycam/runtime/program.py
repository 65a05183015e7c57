"""`Program`: a compiled or exported explain graph, ready to run: one session, or a session per stage of its recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pycam.errors import InputError

from .algebra import FUNCTIONS, check_installed
from .noise import draw
from .recipe import Recipe
from .spec import Spec

Arrays = dict[str, NDArray[Any]]
Progress = Callable[[Sequence[Any], str], Iterable[Any]]

BATCH = 16
"""Variants that go through the model at once, if nothing else is said."""


class Program(Protocol):
    """What an Explainer runs."""

    @property
    def spec(self) -> Spec:
        """What the graph says about itself."""

    @property
    def session(self) -> Any:
        """The session that takes the image."""

    def run(self, feeds: Arrays, targets: Arrays) -> Arrays:
        """All outputs by name.

        Args:
            feeds: {input name: array}, N images.
            targets: {input name: array (N, …)}: the targets int64 (N, K), what they are held against, if anything, and
                what else the target is given.

        Raises:
            InputError: the model cannot run on these.
        """


@dataclass(frozen=True)
class Whole:
    """One graph."""

    session: Any
    spec: Spec

    def run(self, feeds: Arrays, targets: Arrays) -> Arrays:
        """See `Program.run`."""
        given = {**feeds, **targets}
        images = [given] if self.spec.plan == "single pass" else _images(given, self.spec)
        try:
            return _joined([_run(self.session, self.spec.returned, one) for one in images], self.spec)
        except _Failed as error:
            raise _cannot_run(feeds, error) from error.__cause__


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
        images = _images(given, self.spec) if self.recipe.varies else [given]
        try:
            return _joined([self._explain(one) for one in images], self.spec)
        except _Failed as error:
            raise _cannot_run(feeds, error) from error.__cause__

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
            for name, array in _run(session, names, given).items():
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
    return _run(session, [o.name for o in session.get_outputs()], {name: made[name] for name in _inputs(session)})


class _Failed(Exception):
    """onnxruntime's exceptions share no base class."""


def _run(session: Any, names: Sequence[str], given: Arrays) -> Arrays:
    try:
        arrays = session.run(list(names), given)
    except Exception as error:
        raise _Failed(str(error)) from error
    return dict(zip(names, arrays, strict=True))


def _cannot_run(feeds: Arrays, error: _Failed) -> InputError:
    shapes = ", ".join(f"{name} {array.shape}" for name, array in feeds.items())
    return InputError(f"the model cannot run on {shapes}: {error}")


def _images(given: Arrays, spec: Spec) -> list[Arrays]:
    """One dictionary per image; settings go to each."""
    batched = given.keys() if spec.batched is None else {*spec.batched, *spec.chosen}
    return [
        {name: array[n : n + 1] if name in batched else array for name, array in given.items()}
        for n in range(len(given[spec.image]))
    ]


def _joined(runs: Sequence[Arrays], spec: Spec) -> Arrays:
    """The outputs of all images, each along its batch axis; what has none is the same for all."""
    if len(runs) == 1:
        return runs[0]
    axes = {name: spec.axes.get(name, 0) for name in runs[0]}
    return {
        name: runs[0][name] if axis is None else np.concatenate([run[name] for run in runs], axis)
        for name, axis in axes.items()
    }
