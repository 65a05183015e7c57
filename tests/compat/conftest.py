"""The examples, and the libraries that they run with."""

from __future__ import annotations

import importlib.util
import json
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).parent
NAMES = ("", ".ablation_layer", ".utils.image", ".utils.model_targets", ".utils.reshape_transforms")


def _loaded(name: str) -> ModuleType:
    """A module of this folder, which is no package."""
    key = f"compat_{name}"
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, FOLDER / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[key] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[key])
    return sys.modules[key]


def library(name: str) -> SimpleNamespace:
    """What a script imports of pycam.compat, or of pytorch_grad_cam."""
    names: dict[str, Any] = {}
    for module in NAMES:
        found = import_module(name + module)
        names |= {key: getattr(found, key) for key in dir(found) if not key.startswith("_")}
    return SimpleNamespace(**names)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`example`: the name of each."""
    if "example" in metafunc.fixturenames:
        metafunc.parametrize("example", list(_loaded("scripts").EXAMPLES))


@pytest.fixture(scope="session")
def scripts() -> ModuleType:
    """`scripts.py`."""
    return _loaded("scripts")


@pytest.fixture(scope="session")
def lib() -> SimpleNamespace:
    """pycam.compat, as scripts import it."""
    return library("pycam.compat")


@pytest.fixture(scope="session")
def peer() -> SimpleNamespace:
    """pytorch_grad_cam, as scripts import it."""
    pytest.importorskip("pytorch_grad_cam", reason="pytorch-grad-cam is not installed", exc_type=ImportError)
    return library("pytorch_grad_cam")


@pytest.fixture(scope="session")
def stored() -> dict[str, np.ndarray]:
    """What pytorch-grad-cam gave: "<example>/<key>" → array."""
    with np.load(FOLDER / "compat.npz") as arrays:
        assert json.loads(str(arrays["about"]))["grad-cam"] == "1.5.7"
        return {key: arrays[key] for key in arrays.files if key != "about"}


@pytest.fixture(scope="session")
def onnx_model() -> Any:
    """`onnx_model(net)`: path of the exported network."""

    def find(net: str) -> str:
        own = FOLDER / f"{net}.onnx"
        return str(own if own.exists() else FOLDER.parent / "reference" / f"peers_{net}.onnx")

    return find
