"""The table of targets, and the page that is made of it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest

import pycam
from pycam import targets
from pycam.errors import TargetError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def page() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_targets", ROOT / "scripts" / "make_targets.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_targets_is_of_this_table(page: ModuleType) -> None:
    """docs/targets.md is generated: run `python scripts/make_targets.py`."""
    assert page.PAGE.read_text(encoding="utf-8") == page.document()


@pytest.mark.parametrize("kind", targets.kinds().values(), ids=targets.kinds())
def test_every_kind_says_what_it_is(kind: type[targets.Target], page: ModuleType) -> None:
    said, options = page.parts(kind)
    assert said
    assert list(options) == [f.name for f in fields(kind)]
    assert all(options.values())
    assert targets.get(kind.kind) is kind
    assert kind.__name__ in targets.__all__


def test_a_kind_that_there_is_not() -> None:
    with pytest.raises(TargetError, match=r"no kind of target is called 'segment'; there are .*segmentation"):
        targets.get("segment")


def test_targets_cost_nothing_to_import(tmp_path: Path) -> None:
    """An exported graph runs without the compiler."""
    code = "import sys; from pycam import targets; targets.kinds(); print(*sys.modules)"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    loaded = set(made.stdout.split())
    assert not loaded & {"onnx", "onnx_ir", "onnxruntime", "PIL"}


def test_a_target_is_no_class(text_model: object) -> None:
    assert pycam.targets.Class() == pycam.targets.Class()
    assert hash(pycam.targets.Segmentation(class_axis=1)) != hash(pycam.targets.Segmentation())
