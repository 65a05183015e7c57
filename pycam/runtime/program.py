"""`Program`: a compiled or exported explain graph, ready to run: one session, or one per stage (`staged.Staged`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pycam.errors import InputError

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


class Whole:
    """One graph."""

    def __init__(self, session: Any, spec: Spec) -> None:
        self.session, self.spec = session, spec

    def run(self, feeds: Arrays, targets: Arrays) -> Arrays:
        """See `Program.run`."""
        given = {**feeds, **targets}
        images = [given] if self.spec.plan == "single pass" else one_by_one(given, self.spec)
        try:
            return joined([run_session(self.session, self.spec.returned, one) for one in images], self.spec)
        except Failed as error:
            raise cannot_run(feeds, error) from error.__cause__


class Failed(Exception):
    """A run did: onnxruntime's exceptions share no base class."""


def run_session(session: Any, names: Sequence[str], given: Arrays) -> Arrays:
    """The outputs of those names, by name.  Raises `Failed`."""
    try:
        arrays = session.run(list(names), given)
    except Exception as error:
        raise Failed(str(error)) from error
    return dict(zip(names, arrays, strict=True))


def cannot_run(feeds: Arrays, error: Failed) -> InputError:
    """What a user is told of it."""
    shapes = ", ".join(f"{name} {array.shape}" for name, array in feeds.items())
    return InputError(f"the model cannot run on {shapes}: {error}")


def one_by_one(given: Arrays, spec: Spec) -> list[Arrays]:
    """One dictionary per image; settings go to each."""
    batched = given.keys() if spec.batched is None else {*spec.batched, *spec.chosen}
    return [
        {name: array[n : n + 1] if name in batched else array for name, array in given.items()}
        for n in range(len(given[spec.image]))
    ]


def joined(runs: Sequence[Arrays], spec: Spec) -> Arrays:
    """The outputs of all images, each along its batch axis; what has none is the same for all."""
    if len(runs) == 1:
        return runs[0]
    axes = {name: spec.axes.get(name, 0) for name in runs[0]}
    return {
        name: runs[0][name] if axis is None else np.concatenate([run[name] for run in runs], axis)
        for name, axis in axes.items()
    }
