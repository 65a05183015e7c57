"""Heads: raw maps to heatmaps, heatmaps to pictures.  `pick` chooses one; the contract is `protocol.Head`."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from typing import Any

from pycam.errors import HeadError, InputError
from pycam.head.protocol import Head

__all__ = ["Head", "available", "pick"]

# Best first.  A module is imported when its head is asked for, and has it as HEAD; ImportError: it cannot run here.
_MODULES = {
    "cpu": "pycam.head.cpu",
    "reference": "pycam.head.reference",
    "cuda": "pycam.head.cuda",  # last: it is chosen for what is on a CUDA device already
}


def _load(name: str) -> Head:
    head: Head = import_module(_MODULES[name]).HEAD
    return head


def _limited(head: Any, threads: int | None) -> Head:
    """`head` on so many threads at most; one that computes elsewhere has no such setting."""
    limited: Head = replace(head, threads=threads) if hasattr(head, "threads") else head
    return limited


def available() -> dict[str, str]:
    """Every head by name, best first: an empty string if it can be used here, otherwise why not."""
    found = {}
    for name in _MODULES:
        try:
            _load(name)
            found[name] = ""
        except ImportError as error:
            found[name] = str(error)
    return found


def pick(name: str | None = None, threads: int | None = None) -> Head:
    """The head called `name`; without a name the one in the environment variable PYCAM_HEAD; else the best there is.

    Args:
        name: One of `available()`, or None.
        threads: How many threads a call may use, the calling one included; None: one per core that this process may
            use.  Fewer are used where there is too little work; the results are bitwise the same with any number.

    Raises:
        HeadError: it is unknown or not available here; the message lists what there is.
        InputError: no threads.
    """
    if threads is not None and threads < 1:
        raise InputError(f"threads={threads}: give a positive number, or None")
    wanted = name or os.environ.get("PYCAM_HEAD") or None
    for candidate in _MODULES:
        if wanted in (None, candidate):
            with suppress(ImportError):
                return _limited(_load(candidate), threads)
    listing = "; ".join(f"{known} ({reason or 'available'})" for known, reason in available().items())
    asked = "no head is available" if wanted is None else f"head {wanted!r} is unknown or not available"
    source = "" if name or wanted is None else ", asked for by the environment variable PYCAM_HEAD"
    raise HeadError(f"{asked}{source}; heads: {listing}")
