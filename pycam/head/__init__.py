"""Heads: raw maps to heatmaps, heatmaps to pictures.  `pick` chooses one; the contract is `protocol.Head`."""

from __future__ import annotations

import os
from contextlib import suppress
from importlib import import_module

from pycam.errors import HeadError
from pycam.head.protocol import Head

__all__ = ["Head", "available", "pick"]

# Best first.  A module is imported when its head is asked for, and has it as HEAD; ImportError: it cannot run here.
_MODULES = {
    "cpu": "pycam.head.cpu",
    "reference": "pycam.head.reference",
}


def _load(name: str) -> Head:
    head: Head = import_module(_MODULES[name]).HEAD
    return head


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


def pick(name: str | None = None) -> Head:
    """The head called `name`; without a name the one in the environment variable PYCAM_HEAD; else the best there is.

    Raises:
        HeadError: it is unknown or not available here; the message lists what there is.
    """
    wanted = name or os.environ.get("PYCAM_HEAD") or None
    for candidate in _MODULES:
        if wanted in (None, candidate):
            with suppress(ImportError):
                return _load(candidate)
    listing = "; ".join(f"{known} ({reason or 'available'})" for known, reason in available().items())
    asked = "no head is available" if wanted is None else f"head {wanted!r} is unknown or not available"
    source = "" if name or wanted is None else ", asked for by the environment variable PYCAM_HEAD"
    raise HeadError(f"{asked}{source}; heads: {listing}")
