"""List the methods: name, cost, paper."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from .table import table

HELP = "list the methods"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the table."""
    from pycam.method import methods

    if arguments.json:
        print(json.dumps([{k: v for k, v in asdict(m).items() if k != "weigh"} for m in methods()]))
    else:
        print(
            table(
                ["name", "method", "plan", "cost", "paper"],
                [[m.name, m.title, m.plan, m.cost, m.paper or "–"] for m in methods()],
            )
        )
    return 0
