"""What pycam promises to its users: the names, and what is not imported."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import numpy as np
import onnx
import pytest

import pycam

NAMES = ["Explainer", "Explanation", "Preprocess", "PycamError", "explain", "export", "layers", "methods", "vjp"]
ROOT = Path(pycam.__file__).parents[1]


def python(code: str, *arguments: str) -> str:
    """What a fresh interpreter prints; its warnings are errors."""
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_names_are_those_of_the_design() -> None:
    assert sorted(pycam.__all__) == NAMES
    for name in NAMES:
        assert getattr(pycam, name).__doc__, name
        assert name in dir(pycam)
    with pytest.raises(AttributeError, match="no attribute 'gradcam'"):
        _ = pycam.gradcam


def test_importing_everything_hides_no_public_name() -> None:
    code = """
        import importlib, inspect, pkgutil, pycam
        for module in pkgutil.walk_packages(pycam.__path__, "pycam."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
        print(*(n for n in pycam.__all__ if inspect.ismodule(getattr(pycam, n))))
    """
    assert python(inspect.cleandoc(code)) == ""


def test_no_submodule_is_called_like_a_public_function() -> None:
    modules = {m.name for m in iter_modules(pycam.__path__)}
    assert not modules & {n for n in NAMES if callable(getattr(pycam, n))}


def test_the_signatures_of_the_design() -> None:
    explainer = inspect.signature(pycam.Explainer).parameters
    assert list(explainer)[:7] == ["model", "method", "layer", "target", "providers", "threads", "head"]
    assert explainer["method"].default == "gradcam"
    assert explainer["layer"].default == "auto"
    assert list(inspect.signature(pycam.explain).parameters)[:2] == ["model", "image"]
    assert {"method", "layer", "preprocess", "outputs", "lower"} <= set(inspect.signature(pycam.export).parameters)
    assert list(inspect.signature(pycam.vjp).parameters) == ["model", "wrt", "output", "lower", "rules"]


def test_importing_pycam_costs_nothing() -> None:
    heavy = "onnx onnx_ir torch PIL onnxruntime numpy"
    assert python(f"import sys, pycam; print(*(m for m in '{heavy}'.split() if m in sys.modules))") == ""


@pytest.fixture
def exported(cnn: Callable[..., onnx.ModelProto], images: np.ndarray, tmp_path: Path) -> Path:
    """A folder with an explain graph, its input and the heatmaps of classes 3 and −1."""
    path = pycam.export(cnn(), tmp_path / "explain.onnx")
    targets = [[3, -1]] * 3
    np.save(tmp_path / "x.npy", images)
    np.save(tmp_path / "heatmaps.npy", pycam.Explainer(cnn(), head="graph")(images, targets).heatmaps)
    return path


def test_an_explain_graph_runs_without_the_compiler(exported: Path) -> None:
    code = """
        import sys, numpy as np, pycam
        folder = sys.argv[1]
        explainer = pycam.Explainer(folder + "/explain.onnx")
        result = explainer(np.load(folder + "/x.npy"), [[3, -1]] * 3)
        np.testing.assert_allclose(result.heatmaps, np.load(folder + "/heatmaps.npy"), atol=1e-6)
        result.boxes(), result.to_dict()
        print(*(m for m in ("onnx", "onnx_ir", "PIL", "torch") if m in sys.modules))
    """
    assert python(inspect.cleandoc(code), str(exported.parent)) == ""


def test_an_explain_graph_runs_without_pycam(exported: Path) -> None:
    code = """
        import sys, numpy as np, onnxruntime as ort
        folder = sys.argv[1]
        session = ort.InferenceSession(folder + "/explain.onnx", providers=["CPUExecutionProvider"])
        feeds = {"x": np.load(folder + "/x.npy"), "targets": np.array([[3, -1]] * 3)}
        heatmaps, scores, explained = session.run(["heatmaps", "y", "explained"], feeds)
        np.testing.assert_allclose(heatmaps, np.load(folder + "/heatmaps.npy"), atol=1e-6)
        assert (explained == np.stack([[3] * 3, scores.argmax(1)], axis=1)).all()
        assert heatmaps.max() > 0.5
        print(*(m for m in ("pycam", "onnx") if m in sys.modules))
    """
    assert python(inspect.cleandoc(code), str(exported.parent)) == ""


def test_errors_are_drawn_as_they_are() -> None:
    errors = import_module("pycam.errors")
    for name, error in inspect.getmembers(errors, inspect.isclass):
        assert error.__module__ != "pycam.errors" or issubclass(error, pycam.PycamError), name
        assert error.__module__ != "pycam.errors" or name in (errors.__doc__ or ""), f"{name} is not in the tree"
