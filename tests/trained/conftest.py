"""The modules beside this file, which the training scripts import by name."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parent


def load(name: str) -> ModuleType:
    """`<name>.py` of this folder, once."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up there
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="session")
def scenes() -> ModuleType:
    """See `scenes.py`."""
    return load("scenes")


@pytest.fixture(scope="session")
def accuracy() -> ModuleType:
    """See `accuracy.py`."""
    load("scenes")
    return load("accuracy")
