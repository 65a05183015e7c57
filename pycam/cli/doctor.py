"""Say what this installation can do: versions, providers, heads; with a model, whether it can be explained."""

from __future__ import annotations

import argparse
import os
import platform
from collections import Counter
from importlib.metadata import PackageNotFoundError, version

from pycam.errors import PycamError

from .options import exported, refuse_exported
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
    from pycam.runtime.providers import installed

    try:
        import onnxruntime
    except ImportError as error:
        print(f"providers: none, {error}: pip install 'pycam-onnx[cpu]'")
        return False
    print(f"providers: {', '.join(onnxruntime.get_available_providers())}")
    for name, state in installed().items():
        print(f"  {name}: {state}")
    return True


def _heads() -> bool:
    from pycam.head import available

    found = available()
    print("heads: graph" + "".join(f", {name}" + (f" (not here: {why})" if why else "") for name, why in found.items()))
    return any(not why for why in found.values())


def _model(model: str) -> bool:
    from pycam.explainer import Explainer

    if os.path.isdir(model):
        refuse_exported(model)
    try:
        explainer = Explainer(model)
        print(f"model: explained by {explainer.spec.method} at {explainer.spec.layer} on {explainer.provider}")
        for note in explainer.spec.notes:
            print(f"note: {note}")
        healthy = True
    except PycamError as error:
        print(f"model: {error}")
        healthy = False
    try:
        if exported(model) is not None:
            print("coverage: not of an exported explain graph, whose method and layer are built in")
            return healthy
        _coverage(model)
    except PycamError as error:
        print(f"coverage: {error}")
    return healthy


def _coverage(model: str) -> None:
    """The ops between the inputs and the score: how many, and how the rule table has them."""
    from pycam.grad.coverage import gaps, status
    from pycam.grad.reverse import between
    from pycam.graph.load import load
    from pycam.graph.locate import list_layers, locate_score, workable_layers
    from pycam.graph.normalise import normalise
    from pycam.graph.pixels import mark_image

    graph = normalise(load(model)).graph
    mark_image(graph)
    score = locate_score(graph).value
    path = between(list(graph), list(graph.inputs), [score])
    counts = Counter((node.domain, node.op_type) for node in path.nodes)
    rows = [
        [f"{domain}::{op}" if domain else op, str(count), status(op, domain)]
        for (domain, op), count in sorted(counts.items(), key=lambda entry: entry[0])
    ]
    print(table(["op on the path", "nodes", "gradient"], rows))
    missing = gaps(path)
    if not missing:
        print("ops without a gradient between input and score: none")
        return
    for node, why in missing.items():
        print(f"without a gradient: {node.op_type} (node {node.name or node.outputs[0].name!r}): {why}")
    fine, all_layers = workable_layers(graph, score), list_layers(graph, score)
    print(f"layers that can be explained all the same: {len(fine)} of {len(all_layers)}: {', '.join(fine) or 'none'}")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "–"
