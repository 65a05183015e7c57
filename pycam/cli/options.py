"""Options that commands share: what is explained, and how."""

from __future__ import annotations

import argparse
import json
from typing import Any

from pycam.errors import InputError


def add_method_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    parser.add_argument("--method", default="gradcam", help="see `pycam methods` (default: gradcam)")
    parser.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="of the method, see `pycam methods`"
    )
    parser.add_argument(
        "--layer", action="append", help="see `pycam layers`; repeat to average several (default: auto)"
    )
    parser.add_argument("--output", help="the model output to explain (default: the first)")
    parser.add_argument(
        "--objective",
        default="class",
        help="class (what speaks for the target), counterfactual (against it), contrastive (for it and not another)",
    )
    parser.add_argument(
        "--eigen-smooth",
        action="store_true",
        help="project weighted activations onto their first singular vector, in place of summing them",
    )


def method_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """They as keyword arguments of `Explainer` and `export`.

    Raises:
        InputError: an --option that is not NAME=VALUE.
    """
    return {
        "method": arguments.method,
        "layer": arguments.layer or "auto",
        "output": arguments.output,
        "objective": arguments.objective,
        "eigen_smooth": arguments.eigen_smooth,
        **dict(_option(text) for text in arguments.option),
    }


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name.isidentifier() and equals and value):
        raise InputError(f"--option {text!r}: write NAME=VALUE, as in --option samples=500")
    try:
        return name, json.loads(value.lower() if value in ("True", "False") else value)
    except ValueError:
        return name, value
