"""List the layers of a model that can be explained, from the input to the score."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from .aim import add_model_arguments, model_arguments
from .options import refuse_exported
from .table import table

HELP = "list the layers of a model that can be explained"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", nargs="?", help="ONNX file (default: the model that ships with pycam)")
    parser.add_argument("--output", help="the model output that is explained (default: the first)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_model_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the table."""
    from pycam.api import DEFAULT_MODEL, layers

    model = arguments.model or DEFAULT_MODEL
    refuse_exported(model)
    found = layers(model, arguments.output, **model_arguments(arguments))
    if arguments.json:
        print(json.dumps([asdict(layer) for layer in found]))
        return 0
    rows = [[x.name, x.module, x.op, "×".join(map(str, x.shape)), f"{x.share:.1%}"] for x in found]
    print(table(["layer", "module", "op", "shape", "compute behind"], rows))
    return 0
