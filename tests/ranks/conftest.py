"""What the tests of signals and volumes share."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

FOLDER = Path(__file__).parent


@pytest.fixture(scope="session")
def folder() -> Path:
    """Where the networks lie."""
    return FOLDER


@pytest.fixture(scope="session")
def reference() -> Mapping[str, np.ndarray]:
    """What `make_ranks.py` stored: "<network>/x", "<network>/y", "<network>/<method>"."""
    with np.load(FOLDER / "ranks.npz") as stored:
        return dict(stored)


@pytest.fixture(scope="session")
def generated() -> ModuleType:
    """See `generated.py`."""
    spec = importlib.util.spec_from_file_location("generated", FOLDER / "generated.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["generated"] = module
    spec.loader.exec_module(module)
    return module
