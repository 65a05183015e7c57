"""PaddlePaddle → ONNX, by paddle2onnx, which keeps no layer's name: they are found again by the layers' values
(`naming.py`)."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pycam.errors import FrameworkError, InputError, ModelError
from pycam.preprocess import Preprocess

from .common import Argument, Axes, batch_hint, draw, indices, need, read_example, wanted
from .finish import Probe, default_outputs, finish

if TYPE_CHECKING:
    import onnx

_EXPORTER = "paddle2onnx"
OPSET = 17


def from_paddle(
    model: Any,
    example: Any,
    *,
    path: str | os.PathLike[str] | None = None,
    labels: Sequence[str] | None = None,
    preprocess: Preprocess | None = None,
    dynamic_batch: bool = True,
    dynamic_axes: Axes | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    opset: int = OPSET,
    check: bool = True,
) -> onnx.ModelProto | Path:
    """Export a `paddle.nn.Layer`; its sublayers keep their names (`layer4`, `body.1.conv`).

    It is exported in eval mode, and every sublayer's mode is put back. paddle2onnx's optimisers are left out: they
    install packages by themselves, and pycam folds constants anyway.

    Args:
        model: A `paddle.nn.Layer`.
        example: An input: a tensor or array, or a shape such as `(1, 3, 224, 224)`, of which float32 noise is drawn.
            Several as a list.
        path, labels, preprocess, dynamic_batch, dynamic_axes, output_names, opset, check: See `from_torch`.
        input_names: None: the parameters of `forward`.

    Returns:
        The ModelProto, or `path`.

    Raises:
        FrameworkError, InputError, ModelError, OutputError: As `from_torch`.
    """
    paddle = need("from_paddle", "paddle")
    exporter = need("from_paddle", "paddle2onnx")
    import onnx_ir as ir

    if not isinstance(model, paddle.nn.Layer):
        raise InputError(f"from_paddle takes a paddle.nn.Layer, not {type(model).__name__}")
    goal = wanted(path, labels, preprocess)
    given = read_example(example, model.forward, input_names, dynamic_batch, dynamic_axes)
    if given.keyed:
        raise InputError("from_paddle takes several inputs as a list, in the order of forward's parameters")
    arrays = [_array(argument) for argument in given.arguments]
    seen: dict[str, np.ndarray[Any, Any]] = {}
    with _evaluating(model), tempfile.TemporaryDirectory() as folder:
        try:
            with paddle.no_grad(), _noting(paddle, model, seen):
                result = model(*map(paddle.to_tensor, arrays))
        except Exception as error:  # whatever the model raises
            shapes = ", ".join(f"{a.keyword} {x.shape} {x.dtype}" for a, x in zip(given.arguments, arrays, strict=True))
            raise InputError(f"the model does not take the example ({shapes}): {error}{batch_hint(given)}") from error
        outputs = [t.numpy() for t in paddle.utils.flatten(result) if isinstance(t, paddle.Tensor)]
        specs = [_spec(paddle, argument, x) for argument, x in zip(given.arguments, arrays, strict=True)]
        file = _export(paddle, exporter, model, specs, Path(folder), opset)
        exported = ir.load(file)
        for value in exported.graph.initializers.values():  # they must outlive the folder
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = ir.tensor(value.const_value.numpy().copy(), name=value.name)
    feeds = {argument.name: x for argument, x in zip(given.arguments, arrays, strict=True)}
    names = list(output_names) if output_names is not None else default_outputs(len(outputs))
    return finish(exported, given.arguments, names, goal, Probe(feeds, outputs, list(seen.items())), check, _EXPORTER)


@contextlib.contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Eval mode within; then every layer's own mode again."""
    modes = [(layer, layer.training) for layer in model.sublayers(include_self=True)]
    model.eval()
    try:
        yield
    finally:
        for layer, mode in modes:
            layer.training = mode


@contextlib.contextmanager
def _noting(paddle: Any, model: Any, seen: dict[str, np.ndarray[Any, Any]]) -> Iterator[None]:
    """Note the outputs of all sublayers; of one that is called again, the last."""

    def note(path: str, result: Any) -> None:
        if isinstance(result, paddle.Tensor):
            seen.pop(path, None)
            seen[path] = result.numpy()

    hooks = [
        layer.register_forward_post_hook(lambda _layer, _inputs, result, path=path: note(path, result))
        for path, layer in model.named_sublayers()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _array(argument: Argument) -> np.ndarray[Any, Any]:
    value = draw(argument) if argument.value is None else argument.value
    array = np.asarray(value.numpy() if hasattr(value, "numpy") else value)
    return array[indices(argument)] if 0 in argument.free else array


def _spec(paddle: Any, argument: Argument, array: np.ndarray[Any, Any]) -> Any:
    shape = [None if axis in argument.free else size for axis, size in enumerate(argument.shape)]
    return paddle.static.InputSpec(shape, str(array.dtype), argument.name)


def _export(paddle: Any, exporter: Any, model: Any, specs: Sequence[Any], folder: Path, opset: int) -> Path:
    """First to a static program, then to ONNX."""
    target = folder / "model.onnx"
    try:
        paddle.jit.save(model, str(folder / "static"), specs)
        program = next((p for p in (folder / "static.json", folder / "static.pdmodel") if p.exists()), None)
        if program is None:
            raise FrameworkError("paddle.jit.save wrote no program: from_paddle knows those of paddle 3")
        weights = str(folder / "static.pdiparams")
        exporter.export(str(program), weights, str(target), opset, optimize_tool=None)
    except FrameworkError:
        raise
    except Exception as error:  # the exporters have many
        raise ModelError(
            f"paddle2onnx refuses the model ({type(error).__name__}: {error!s:.300}); its report is this error's "
            "cause. What a layer does to its input must be static: no numpy, no .item()"
        ) from error
    if not target.exists():
        raise ModelError("paddle2onnx wrote no model: what it printed says why")
    return target
