"""List the methods: name, cost, paper."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from .table import table

HELP = "list the methods"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def _options(options: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in options.items())


def run(arguments: argparse.Namespace) -> int:
    """Print the table."""
    from pycam.method import methods

    if arguments.json:
        print(json.dumps([{k: v for k, v in vars(m).items() if k != "draw"} for m in methods()]))
    else:
        print(
            table(
                ["name", "method", "plan", "cost", "needs", "options", "paper"],
                [
                    [m.name, m.title, m.plan, m.cost, m.needs or "–", _options(m.options) or "–", m.paper or "–"]
                    for m in methods()
                ],
            )
        )
    return 0
