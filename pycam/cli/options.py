"""Options that commands share: what is explained, and how."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pycam.errors import InputError, MethodError, ModelError

from .aim import add_target_arguments, target_arguments

if TYPE_CHECKING:
    from pycam.runtime.spec import Spec

_PYTHON = {"True": "true", "False": "false", "None": "null"}  # as JSON spells them


def add_method_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    parser.add_argument("--method", default="gradcam", help="see `pycam methods` (default: gradcam)")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of the method, see `pycam methods NAME`; a list as [28,56]; repeat for several",
    )
    parser.add_argument(
        "--layer",
        action="append",
        help="see `pycam layers`; repeat to average several (methods that look at one layer take one) (default: auto)",
    )
    parser.add_argument(
        "--combine",
        default="mean",
        help="what the map of several layers is of theirs: mean, max, product (default: mean)",
    )
    parser.add_argument("--output", help="the model output to explain (default: the first)")
    add_target_arguments(parser)
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


def method_arguments(arguments: argparse.Namespace, model: Any) -> dict[str, Any]:
    """They as keyword arguments of `Explainer` and `export`.

    Raises:
        InputError: an --option that is not NAME=VALUE, or given twice.
        MethodError: an --option that the method does not have.
    """
    return {
        "method": arguments.method,
        "layer": arguments.layer or "auto",
        "output": arguments.output,
        "objective": arguments.objective,
        "eigen_smooth": arguments.eigen_smooth,
        **({"combine": arguments.combine} if "combine" in arguments else {}),
        **target_arguments(arguments),
        **_options(arguments.option, arguments.method, model),
    }


def add_session_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of where and how a model runs."""
    parser.add_argument(
        "--provider",
        action="append",
        metavar="NAME[:OPTION=VALUE,…]",
        help="onnxruntime execution provider, in order of preference, as CUDA or TensorRT:trt_fp16_enable=True; repeat "
        "for several (default: CUDA if it is there, else CPU)",
    )
    parser.add_argument("--threads", type=int, help="threads within an op (default: all cores)")
    parser.add_argument(
        "--no-spin", action="store_true", help="idle threads sleep, in place of waiting actively for a while"
    )
    parser.add_argument(
        "--cache",
        nargs="?",
        const=True,
        metavar="FOLDER",
        help="keep what starting took for the next time, there or in the usual place, see `pycam cache` (default: as "
        "the environment variable PYCAM_CACHE says, else not)",
    )


def session_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """They as keyword arguments of `Explainer`.

    Raises:
        InputError: a --provider that is not NAME or NAME:OPTION=VALUE,…
    """
    return {
        "providers": None if arguments.provider is None else [_provider(text) for text in arguments.provider],
        "threads": arguments.threads,
        "spin": not arguments.no_spin,
        "cache": arguments.cache,
    }


def _provider(text: str) -> Any:
    name, colon, rest = text.partition(":")
    if not colon:
        return name
    pairs = [part.partition("=") for part in rest.split(",")]
    if not all(key and equals for key, equals, _ in pairs):
        raise InputError(f"--provider {text!r}: write NAME:OPTION=VALUE,…, as in --provider CUDA:device_id=1")
    return name, {key: value for key, _, value in pairs}


def read_labels(path: str) -> tuple[str, ...]:
    """Class names, one a line.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        return tuple(Path(path).read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the labels {path!r}: {error}") from None


def exported(model: Any) -> Spec | None:
    """What an exported explain graph says about itself, a file or a folder; None for a model.

    Raises:
        ModelError: the file cannot be read.
    """
    from pycam.runtime.folder import read_folder
    from pycam.runtime.metadata import read_metadata
    from pycam.runtime.spec import Spec

    return Spec.from_metadata(read_folder(model) if os.path.isdir(model) else read_metadata(model))


def refuse_exported(model: Any) -> None:
    """Raise ModelError where `model` is an explain graph: what asks about layers and ops wants the model itself."""
    spec = exported(model)
    if spec is not None:
        built = f"{spec.method}{f' at {spec.layer}' if spec.layer else ''}"
        raise ModelError(
            f"{os.fspath(model)!r} is an exported explain graph ({built} is built in): "
            "give the model that it was made from"
        )


def _options(texts: Sequence[str], method: str, model: Any) -> dict[str, Any]:
    """The --options, by name: of the method, and nothing else that a keyword may mean."""
    options: dict[str, Any] = {}
    for text in texts:
        name, value = _option(text)
        if name in options:
            raise InputError(f"--option {name} is given twice: give it once")
        options[name] = value
    if not options:
        return {}
    owner, known = _known(method, model)
    for name in options:
        if name not in known:
            listed = ", ".join(f"{k}={v!r}" for k, v in known.items()) or "none"
            raise MethodError(f"the method {owner!r} has no option {name!r}; its options: {listed}")
    return options


def _known(method: str, model: Any) -> tuple[str, Mapping[str, Any]]:
    """The method's name and its options, of an exported graph without the compiler."""
    spec = exported(model)
    if spec is not None:
        return spec.method, spec.options
    from pycam.method import get

    found = get(method)
    return found.name, found.options


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name.isidentifier() and equals and value):
        raise InputError(f"--option {text!r}: write NAME=VALUE, as in --option samples=500")
    if re.fullmatch(r"\s*[-\d.]+(\s*,\s*[-\d.]+)+\s*", value):
        raise InputError(f"--option {text!r}: write a list in brackets, as in --option '{name}=[{value.strip()}]'")
    try:
        return name, json.loads(_PYTHON.get(value, value))
    except ValueError:
        return name, value
