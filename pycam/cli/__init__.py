"""The command line, `pycam explain | compare | export | layers | methods | targets | cache | doctor`, a module each."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

import pycam
from pycam.errors import PycamError

COMMANDS = ("explain", "compare", "export", "layers", "methods", "targets", "cache", "doctor")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 fine, 1 something failed, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="pycam", description="Say why a vision model decided: ONNX in, heatmaps out.")
    parser.add_argument("--version", action="version", version=f"pycam {pycam.__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="command")
    modules = {name: import_module(f".{name}", __name__) for name in COMMANDS}
    for name, module in modules.items():
        module.add_arguments(subparsers.add_parser(name, help=module.HELP, description=module.__doc__))
    arguments = parser.parse_args(argv)
    try:
        return int(modules[arguments.command].run(arguments))
    except PycamError as error:
        print(f"pycam: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("pycam: interrupted", file=sys.stderr)
        return 130
