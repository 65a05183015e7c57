"""The table of methods and the page that is made of it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import pycam
from pycam.method import METHODS, Method

ROOT = Path(__file__).parents[2]


def test_the_page_of_methods_is_of_this_table() -> None:
    """docs/methods.md is generated: run `python scripts/make_methods.py`."""
    spec = importlib.util.spec_from_file_location("make_methods", ROOT / "scripts" / "make_methods.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.TARGET.read_text(encoding="utf-8") == module.document()


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_method_says_what_it_is(method: Method) -> None:
    assert method.title
    assert method.cost
    assert method.draw.__doc__
    assert METHODS[method.name] is method
    assert method.paper == "" or method.paper[0].isdigit()


def test_all_are_listed() -> None:
    assert [m.name for m in pycam.methods()] == list(METHODS)
