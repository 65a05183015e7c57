"""What an explanation costs, beside the forward pass alone."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from pycam.errors import PycamError

if TYPE_CHECKING:
    from pycam.explainer import Explainer

SECONDS = 0.5  # how long to measure a time
PATIENCE = 3.0  # what took longer is not done again, only to time it

Result = TypeVar("Result")


def timed(call: Callable[[], Result], again: bool) -> tuple[Result, float]:
    """A call's result and its time in milliseconds; with `again`, a warm call's, unless the first took too long."""
    start = time.perf_counter()
    result = call()
    first = time.perf_counter() - start
    if not again or first > PATIENCE:
        return result, 1e3 * first
    return result, median_ms(call, warm=True)


def median_ms(call: Callable[[], Any], warm: bool = False) -> float:
    """Median time of a call in milliseconds, over about SECONDS (but one call), after one to warm up if it needs it."""
    if not warm:
        call()
    taken: list[float] = []
    end = time.perf_counter() + SECONDS
    while not taken or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        taken.append(1e3 * (time.perf_counter() - start))
    return statistics.median(taken)


def forward_ms(model: Any, explainer: Explainer, x: Any, arguments: argparse.Namespace) -> tuple[float | None, str]:
    """(the plain forward pass, to compare with; "") or (None, why it could not be timed).

    Where only the explain graph is at hand there is nothing to time, and nothing to say.

    Its session must be gone before the explanation is timed, and come before it: the idle threads of one session go on
    spinning for a while and take the core from the other's.
    """
    from pycam.compile import forward_model
    from pycam.runtime.session import make_session

    from .options import exported, session_arguments

    if exported(model) is not None or isinstance(x, dict):
        return None, ""
    try:
        proto, folder = forward_model(model)
        settings = session_arguments(arguments)
        how = {name: settings[name] for name in ("providers", "threads", "spin")}
        session = make_session(proto.SerializeToString(), folder=folder, **how)
    except PycamError as error:
        return None, f"the forward pass alone was not timed: {error}"
    try:
        return median_ms(lambda: session.run(None, {explainer.spec.image: x})), ""
    except Exception as error:  # onnxruntime's exceptions share no base class
        return None, f"the forward pass alone was not timed, the model cannot run on {np.shape(x)}: {error}"


def words(times: dict[str, float]) -> list[str]:
    """The times as people read them."""
    explain = f"explanation {times['explanation']:.2f} ms"
    if "forward" not in times:
        return [explain]
    return [f"forward {times['forward']:.2f} ms", f"{explain} ({times['explanation'] / times['forward']:.2f}×)"]
