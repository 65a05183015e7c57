"""Write the explain graph of a model: one plain ONNX file that any ONNX runtime executes."""

from __future__ import annotations

import argparse

from .options import add_method_arguments, method_arguments

HELP = "write an explain graph"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", help="ONNX file")
    parser.add_argument("path", help="where to write: a file (.onnx), or a folder for a method in stages")
    add_method_arguments(parser)
    parser.add_argument(
        "--outputs", default="scores,heatmaps,raw", help="what it returns (default: scores,heatmaps,raw)"
    )
    parser.add_argument(
        "--preprocess",
        action="store_true",
        help="put the model's own preprocessing into the graph: its input is then uint8 pictures",
    )
    parser.add_argument(
        "--one", action="store_true", help="exactly one target per image: cheaper for layers in the middle"
    )
    parser.add_argument("--batch", type=int, help="put up to so many variants of an image into one file (default: 16)")
    parser.add_argument(
        "--portable",
        action="store_true",
        help="only forms that every runtime gets right, in place of the fastest on onnxruntime",
    )


def run(arguments: argparse.Namespace) -> int:
    """Export and say what came out."""
    from pycam.api import export
    from pycam.runtime.folder import read_folder
    from pycam.runtime.metadata import read_metadata
    from pycam.runtime.spec import Spec

    path = export(
        arguments.model,
        arguments.path,
        **method_arguments(arguments),
        **({} if arguments.batch is None else {"batch": arguments.batch}),
        outputs=[name.strip() for name in arguments.outputs.split(",")],
        preprocess=arguments.preprocess or None,
        classes=1 if arguments.one else None,
        lower="portable" if arguments.portable else "fast",
    )
    spec = Spec.from_metadata(read_folder(path) if path.is_dir() else read_metadata(path))
    assert spec is not None
    size = sum(file.stat().st_size for file in (path.iterdir() if path.is_dir() else [path]))
    print(f"wrote {path} ({size / 1e6:.1f} MB): {spec.method}{f' at {spec.layer}' if spec.layer else ''}")
    print(
        f"inputs: {spec.image} ({spec.layout}), {spec.targets} int64 (N, {'K' if spec.many else '1'}), −1 = top class"
    )
    print(
        f"outputs: {', '.join([*spec.outputs, *([spec.heatmaps] if spec.heatmaps else []), *spec.raw, spec.explained])}"
    )
    for note in spec.notes:
        print(f"note: {note}")
    return 0
