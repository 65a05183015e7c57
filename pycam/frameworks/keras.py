"""Keras → ONNX, by Keras's own `model.export(format="onnx")` (tf2onnx); its layers get their names back."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pycam.errors import FrameworkError, InputError, ModelError
from pycam.preprocess import Preprocess

from .common import Argument, Axes, Given, batch_hint, draw, indices, need, read_example, wanted
from .finish import Probe, default_outputs, finish

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

_EXPORTER = "Keras's export"
_SIZE = 224
"""Of an axis of the example that the model leaves free."""


def from_keras(
    model: Any,
    example: Any = None,
    *,
    path: str | os.PathLike[str] | None = None,
    labels: Sequence[str] | None = None,
    preprocess: Preprocess | None = None,
    dynamic_batch: bool = True,
    dynamic_axes: Axes | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    opset: int | None = None,
    check: bool = True,
) -> onnx.ModelProto | Path:
    """Export a Keras 3 model on the TensorFlow backend; its layers keep their names (`block5_conv3`, `top_activation`).

    Inputs stay NHWC. It is exported for inference; the model is called once, else it is left as it was.

    Args:
        model: A `keras.Model`.
        example: None: the model's own inputs. Else an array or a shape such as `(1, 224, 224, 3)`, of which float32
            noise is drawn: needed by models that say no shape before they are called. Several as a list.
        path, labels, preprocess, dynamic_batch, check: See `from_torch`. More than 2 GB are beyond tf2onnx.
        dynamic_axes: Further free axes, input → axis → name. Those that the model itself leaves free are so anyway.
        input_names: None: those of the model's inputs.
        output_names: None: the names of the layers that make them.
        opset: None: what Keras takes by itself.

    Returns:
        The ModelProto, or `path`.

    Raises:
        FrameworkError, InputError, ModelError, OutputError: As `from_torch`; the first also for another backend.
    """
    keras = need("from_keras", "keras")
    if not isinstance(model, keras.Model):
        raise InputError(f"from_keras takes a keras.Model, not {type(model).__name__}")
    if keras.backend.backend() != "tensorflow":
        raise FrameworkError(
            f"from_keras needs the TensorFlow backend, not {keras.backend.backend()!r}: set KERAS_BACKEND=tensorflow "
            "(a Keras model on torch's backend is a torch.nn.Module: from_torch takes it)"
        )
    need("from_keras", "tensorflow")
    need("from_keras", "tf2onnx")
    import onnx_ir as ir

    goal = wanted(path, labels, preprocess)
    given = _given(model, example, input_names, dynamic_batch, dynamic_axes)
    arrays = [_array(argument) for argument in given.arguments]
    try:
        result = model(arrays[0] if len(arrays) == 1 else arrays, training=False)
    except Exception as error:  # whatever the model raises
        shapes = ", ".join(f"{a.name} {x.shape} {x.dtype}" for a, x in zip(given.arguments, arrays, strict=True))
        raise InputError(f"the model does not take the example ({shapes}): {error}{batch_hint(given)}") from error
    outputs = [np.asarray(leaf) for leaf in keras.tree.flatten(result)]
    specs = [_spec(keras, argument, array) for argument, array in zip(given.arguments, arrays, strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/model.onnx"
        try:
            signature = specs if len(specs) == 1 else [specs]
            model.export(file, format="onnx", verbose=False, input_signature=signature, opset_version=opset)
            exported = ir.from_proto(_read(file))
        except Exception as error:  # Keras, TensorFlow and tf2onnx have many
            raise ModelError(
                f"Keras's export refuses the model ({type(error).__name__}: {error!s:.300}); its report is this "
                "error's cause"
            ) from error
    _check_operators(exported.graph)
    _number_back(exported.graph, str(model.name))
    feeds = {argument.name: array for argument, array in zip(given.arguments, arrays, strict=True)}
    made = list(getattr(model, "output_names", None) or ())
    default = made if len(set(made)) == len(outputs) else default_outputs(len(outputs))
    names = list(output_names) if output_names is not None else default
    return finish(exported, given.arguments, names, goal, Probe(feeds, outputs), check, _EXPORTER)


def _read(file: str) -> onnx.ModelProto:
    import onnx

    return onnx.load(file)


def _check_operators(graph: ir.Graph) -> None:
    """tf2onnx leaves what it cannot convert as it was."""
    import onnx

    unknown = sorted({node.op_type for node in graph if node.domain == "" and not onnx.defs.has(node.op_type)})
    if unknown:
        raise ModelError(
            f"tf2onnx has nothing for TensorFlow's {', '.join(unknown)}: use other layers"
            + (" (Erfc comes from an exact GELU; approximate=True works)" if "Erfc" in unknown else "")
        )


def _given(
    model: Any, example: Any, input_names: Sequence[str] | None, dynamic_batch: bool, dynamic_axes: Axes | None
) -> Given:
    """The example; where there is none, the model's inputs, with its free axes."""
    if example is not None:
        given = read_example(example, model.call, input_names, dynamic_batch, dynamic_axes)
        if given.keyed:
            raise InputError("from_keras takes several inputs as a list, in the order of the model's inputs")
        return given
    try:
        inputs = list(model.inputs or ())
    except (AttributeError, ValueError):  # a Sequential that was not built
        inputs = []
    if not inputs:
        raise InputError(f"the model {model.name!r} says no shape of its inputs: give an example, an array or a shape")
    names = list(input_names) if input_names is not None else [str(value.name) for value in inputs]
    if len(names) != len(inputs):
        raise InputError(f"input_names={names}: give one name for each of the {len(inputs)} inputs")
    free = {
        name: {axis: f"{name}_{axis}" for axis, size in enumerate(value.shape) if size is None and axis}
        for name, value in zip(names, inputs, strict=True)
    }
    for name, axes in (dynamic_axes or {}).items():
        free[name] = {**free.get(name, {}), **axes}
    shapes = [tuple(size or (_SIZE if axis else 1) for axis, size in enumerate(value.shape)) for value in inputs]
    pairs = zip(shapes, inputs, strict=True)
    values = [shape if value.dtype == "float32" else np.zeros(shape, value.dtype) for shape, value in pairs]
    return read_example(values, model.call, names, dynamic_batch, free)


def _array(argument: Argument) -> np.ndarray[Any, Any]:
    array = draw(argument) if argument.value is None else np.asarray(argument.value)
    return array[indices(argument, 1)] if 0 in argument.free else array


def _spec(keras: Any, argument: Argument, array: np.ndarray[Any, Any]) -> Any:
    shape = tuple(None if axis in argument.free else size for axis, size in enumerate(argument.shape))
    return keras.InputSpec(dtype=str(array.dtype), shape=shape, name=argument.name)


def _number_back(graph: ir.Graph, root: str) -> None:
    """Call nodes by the layers' own names: while it exports, Keras gives every layer one number more.

    `net_1/conv2d_1_2/Relu` of a model named `net` becomes `net/conv2d_1/Relu`.
    """
    numbered = re.compile(re.escape(root) + r"_\d+")
    for node in graph:
        parts = (node.name or "").split("/")
        if len(parts) > 1 and numbered.fullmatch(parts[0]):
            node.name = "/".join([*(re.sub(r"_\d+$", "", part) for part in parts[:-1]), parts[-1]])
