"""List the methods: name, plan, cost, paper, needs; or say everything about one."""

from __future__ import annotations

import argparse
import inspect
import json
import textwrap
from typing import TYPE_CHECKING, Any

from .table import table

if TYPE_CHECKING:
    from pycam.method import Method

HELP = "list the methods, or describe one"
_COST, _NEEDS = 34, 16  # columns of a terminal; with the names and the plans they make about 120
_WIDTH = 100

_LAYERS = {"many": "one layer or several", "one": "one layer", "none": "the whole model"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("name", nargs="?", help="method to describe (default: list all)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the table, or the description.

    Raises:
        MethodError: there is no method of that name.
    """
    from pycam.method import get, methods

    if arguments.name is not None:
        found = get(arguments.name)
        print(json.dumps(_plain(found)) if arguments.json else _description(found))
    elif arguments.json:
        print(json.dumps([_plain(m) for m in methods()]))
    else:
        rows = [
            [m.name, m.plan, _short(m.cost, _COST), m.paper or "–", _short(m.needs, _NEEDS) or "–"] for m in methods()
        ]
        print(table(["name", "plan", "cost", "paper", "needs"], rows))
        print("\n`pycam methods NAME` says everything about one, its options among it.")
    return 0


def _plain(method: Method) -> dict[str, Any]:
    return {k: v for k, v in vars(method).items() if k != "draw"}


def _short(text: str, width: int) -> str:
    return textwrap.shorten(text, width, placeholder=" …")


def _description(method: Method) -> str:
    facts = {
        "name": method.name,
        "paper": _paper(method.paper),
        "plan": method.plan,
        "cost": method.cost,
        "needs": method.needs or "–",
        "looks at": _LAYERS[method.layers],
        "targets": "as given" if method.targeted else "it finds by itself what it explains",
        "options": ", ".join(f"{name}={value!r}" for name, value in method.options.items()) or "–",
    }
    pad = max(map(len, facts)) + 2
    lines = [
        textwrap.fill(value, _WIDTH, initial_indent=name.ljust(pad), subsequent_indent=" " * pad)
        for name, value in facts.items()
    ]
    return "\n".join([method.title, "", *lines, "", inspect.cleandoc(method.draw.__doc__ or "")]).rstrip()


def _paper(paper: str) -> str:
    """An arXiv number or a DOI, said to be one."""
    if not paper:
        return "–"
    return f"doi:{paper}" if paper.startswith("10.") else f"arXiv:{paper}"
