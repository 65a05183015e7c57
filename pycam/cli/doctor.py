"""Say what this installation can do: versions, providers, heads; with a model, whether it can be explained."""

from __future__ import annotations

import argparse
import platform
from importlib.metadata import PackageNotFoundError, version

from pycam.errors import PycamError

from .table import table

HELP = "check the installation, or whether a model can be explained"
_PACKAGES = ("pycam-onnx", "numpy", "onnxruntime", "onnxruntime-gpu", "onnx", "onnx-ir", "pillow")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", nargs="?", help="ONNX file to check")


def run(arguments: argparse.Namespace) -> int:
    """Print the findings; 1 if something would keep pycam from explaining."""
    rows = [["python", platform.python_version()], *([name, _version(name)] for name in _PACKAGES)]
    print(table(["package", "version"], rows))
    healthy = _runtime() & _heads()
    if arguments.model is not None:
        healthy &= _model(arguments.model)
    return 0 if healthy else 1


def _runtime() -> bool:
    try:
        import onnxruntime
    except ImportError as error:
        print(f"providers: none, {error}: pip install 'pycam-onnx[cpu]'")
        return False
    print(f"providers: {', '.join(onnxruntime.get_available_providers())}")
    return True


def _heads() -> bool:
    from pycam.head import available

    found = available()
    print("heads: graph" + "".join(f", {name}" + (f" (not here: {why})" if why else "") for name, why in found.items()))
    return any(not why for why in found.values())


def _model(model: str) -> bool:
    from pycam.explainer import Explainer

    try:
        explainer = Explainer(model)
        print(f"model: explained by {explainer.spec.method} at {explainer.spec.layer} on {explainer.provider}")
        for note in explainer.spec.notes:
            print(f"note: {note}")
        healthy = True
    except PycamError as error:
        print(f"model: {error}")
        healthy = False
    missing = _without_rule(model)
    print(f"ops without a gradient rule between input and score: {', '.join(missing) if missing else 'none'}")
    return healthy


def _without_rule(model: str) -> list[str]:
    """Ops on the path from the inputs to the score that stop a gradient because nobody wrote their rule."""
    from pycam.grad.registry import find, stopped
    from pycam.grad.reverse import between
    from pycam.graph.load import load
    from pycam.graph.locate import locate_score
    from pycam.graph.normalise import normalise

    graph = normalise(load(model)).graph
    path = between(list(graph), list(graph.inputs), [locate_score(graph).value])
    return sorted(
        {
            node.op_type
            for node in path.nodes
            for i, x in enumerate(node.inputs)
            if x in path.values and find(node, i) is None and not stopped(node, i)
        }
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "–"
