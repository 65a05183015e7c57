"""Write the explain graph of a model: one plain ONNX file that any ONNX runtime executes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pycam.errors import InputError

from .options import add_method_arguments, exported, method_arguments

if TYPE_CHECKING:
    import onnx

    from pycam.runtime.spec import Spec

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
    """Export and say what came out.

    Raises:
        InputError: a batch below 1.
    """
    from pycam.api import export

    if arguments.batch is not None and arguments.batch < 1:
        raise InputError(f"batch={arguments.batch}: give the number of rows that may go through the model at once")
    path = export(
        arguments.model,
        arguments.path,
        **method_arguments(arguments, arguments.model),
        **({} if arguments.batch is None else {"batch": arguments.batch}),
        outputs=[name.strip() for name in arguments.outputs.split(",")],
        preprocess=arguments.preprocess or None,
        classes=1 if arguments.one else None,
        lower="portable" if arguments.portable else "fast",
    )
    spec = exported(path)
    assert spec is not None
    size = sum(file.stat().st_size for file in (path.iterdir() if path.is_dir() else [path]))
    print(f"wrote {path} ({size / 1e6:.1f} MB): {spec.method}{f' at {spec.layer}' if spec.layer else ''}")
    print(f"inputs: {', '.join(_inputs(path, spec))}")
    print(f"outputs: {', '.join(spec.returned)}")
    for note in spec.notes:
        print(f"note: {note}")
    return 0


def _inputs(path: Path, spec: Spec) -> list[str]:
    """All inputs in words: the image, the classes, and the model's others as the first stage has them."""
    import onnx

    from pycam.runtime.folder import stage_files

    files = stage_files(path) if path.is_dir() else {"explain": path}
    first = onnx.load(files.get("explain") or files["prepare"], load_external_data=False)
    shape = f"int64 (N, {'K' if spec.many else '1'})"
    ours = {spec.image: f"({spec.layout})", spec.targets: f"{shape}, −1 = top class"}
    if spec.against is not None:
        ours[spec.against] = f"{shape}, −1 = best class beside the target"
    others = {value.name: _described(value) for value in first.graph.input if value.name not in ours}
    return [f"{name} {words}" for name, words in (ours | others).items()]


def _described(value: onnx.ValueInfoProto) -> str:
    """`float32 (N, 4)`"""
    import onnx

    tensor = value.type.tensor_type
    sizes = [str(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim]
    return f"{onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name} ({', '.join(sizes)})"
