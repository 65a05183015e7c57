"""List the kinds of targets: what can be explained; or say everything about one."""

from __future__ import annotations

import argparse
import inspect
import json
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

from .table import table

if TYPE_CHECKING:
    from pycam.targets import Target

HELP = "list the kinds of targets, or describe one"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("kind", nargs="?", help="kind to describe (default: list all)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the table, or the description.

    Raises:
        TargetError: there is no kind of that name.
    """
    from pycam.targets import get, kinds

    if arguments.kind is not None:
        found = get(arguments.kind)
        print(json.dumps(_plain(found)) if arguments.json else _description(found))
    elif arguments.json:
        print(json.dumps([_plain(one) for one in kinds().values()]))
    else:
        print(table(["kind", "what is explained"], [[kind, _summary(one)] for kind, one in kinds().items()]))
        print("\n`pycam targets KIND` says everything about one; `pycam explain photo.jpg --as KIND` explains it.")
    return 0


def _summary(target: type[Target]) -> str:
    return inspect.cleandoc(target.__doc__ or "").partition("\n\n")[0].replace("\n", " ")


def _plain(target: type[Target]) -> dict[str, Any]:
    return {"kind": target.kind, "class": target.__name__, "summary": _summary(target), "options": _options(target)}


def _options(target: type[Target]) -> dict[str, str]:
    return {f.name: "required" if f.default is MISSING else repr(f.default) for f in fields(target)}


def _description(target: type[Target]) -> str:
    options = ", ".join(f"{name}={value}" for name, value in _options(target).items()) or "–"
    lines = [f"{target.kind}   pycam.targets.{target.__name__}", f"options: {options}", ""]
    return "\n".join([*lines, inspect.cleandoc(target.__doc__ or "")])
