"""PyTorch → ONNX, by torch's own exporter (`torch.onnx.export(dynamo=True)`), which notes every node's module."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pycam.errors import InputError, ModelError
from pycam.preprocess import Preprocess

from .common import Argument, Axes, Given, batch_hint, draw, indices, need, read_example, wanted
from .finish import Probe, default_outputs, finish

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

_EXPORTER = "torch.onnx.export"


def from_torch(
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
    opset: int | None = None,
    check: bool = True,
) -> onnx.ModelProto | Path:
    """Export a `torch.nn.Module`; its layers keep their module paths (`layer4`, `features.18`, `blocks.11.norm1`).

    The model is exported in eval mode, and every module's mode is put back.

    Args:
        model: A `torch.nn.Module`, not compiled, scripted or wrapped for several devices.
        example: An input: a tensor or array, or a shape such as `(1, 3, 224, 224)`, of which noise is drawn in the
            model's dtype. Several as a list, or as a dict by `forward`'s parameters.
        path: Where to write the model, `*.onnx`; weights above 2 GB go to `<path>.data`.
        labels: The classes' names, in the order of the outputs.
        preprocess: How pictures become inputs.
        dynamic_batch: Leave the first axis of every input free ("N").
        dynamic_axes: Further free axes, input → axis → name: `{"x": {2: "height", 3: "width"}}`.
        input_names: None: the parameters of `forward`.
        output_names: None: the keys where the model returns a dict, else "output", or "output_0", "output_1", ….
        opset: None: what torch's exporter takes by itself.
        check: Compare the outputs with the model's, by onnxruntime on the CPU (not for bfloat16, which it lacks).

    Returns:
        The ModelProto, or `path`.

    Raises:
        FrameworkError: torch or onnxscript is not installed.
        InputError: no such model, or an example that it does not take; names, labels or preprocessing that do not fit.
        ModelError: the export fails, with the exporter's error as its cause, or computes something else.
        OutputError: the path cannot be written, or the model needs one.
    """
    torch = need("from_torch", "torch")
    need("from_torch", "onnxscript")
    _check_model(torch, model)
    goal = wanted(path, labels, preprocess)
    given = read_example(example, model.forward, input_names, dynamic_batch, dynamic_axes)
    tensors = [_tensor(torch, model, argument) for argument in given.arguments]
    more = _rows(tensors, given, 1)  # one image more than the export sees, so that a fixed batch size shows
    with _evaluating(model), torch.no_grad():
        keys, outputs = _run(torch, model, more, given)
        args, kwargs = _call(_rows(tensors, given), given)
        options = {"dynamo": True, "opset_version": opset, "verbose": False, "optimize": False}  # but see _optimised
        try:
            program = torch.onnx.export(model, args, kwargs=kwargs, dynamic_shapes=_shapes(torch, given), **options)
        except Exception as error:  # the exporter has many
            raise ModelError(_why(error, given)) from error
    exact = all(t.dtype != torch.bfloat16 for t in (*more, *outputs))
    feeds = {a.name: _numpy(t) for a, t in zip(given.arguments, more, strict=True)} if exact else {}
    probe = Probe(feeds, [_numpy(t) for t in outputs] if exact else [])
    names = list(output_names) if output_names is not None else keys
    exported = _optimised(program)
    return finish(exported, given.arguments, names, goal, probe, check and exact, _EXPORTER)


def _check_model(torch: Any, model: Any) -> None:
    help_ = ""
    if not isinstance(model, torch.nn.Module):
        help_ = f"not {type(model).__name__}"
    elif isinstance(model, torch.jit.ScriptModule):
        help_ = "not a scripted or traced one: give the module that it was made from"
    elif hasattr(model, "_orig_mod"):
        help_ = "not a compiled one: give the module as it was before torch.compile"
    elif isinstance(model, (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)):
        help_ = "not one wrapped for several devices: give model.module"
    if help_:
        raise InputError(f"from_torch takes a torch.nn.Module, {help_}")


@contextlib.contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Eval mode within; then every module's own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _tensor(torch: Any, model: Any, argument: Argument) -> Any:
    """The example on the model's device."""
    weights = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    if argument.value is None:
        return torch.from_numpy(draw(argument)).to(weights.device, weights.dtype)
    return torch.as_tensor(argument.value).detach().to(weights.device)


def _rows(tensors: Sequence[Any], given: Given, more: int = 0) -> list[Any]:
    pairs = zip(tensors, given.arguments, strict=True)
    return [t[indices(argument, more)] if 0 in argument.free else t for t, argument in pairs]


def _call(tensors: Sequence[Any], given: Given) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if not given.keyed:
        return tuple(tensors), {}
    return (), {argument.keyword: t for argument, t in zip(given.arguments, tensors, strict=True)}


def _run(torch: Any, model: Any, tensors: Sequence[Any], given: Given) -> tuple[list[str], list[Any]]:
    """Names and tensors of the outputs."""
    args, kwargs = _call(tensors, given)
    try:
        result = model(*args, **kwargs)
    except Exception as error:  # whatever the model raises
        pairs = zip(given.arguments, tensors, strict=True)
        shapes = ", ".join(f"{argument.keyword} {tuple(t.shape)} {t.dtype}" for argument, t in pairs)
        raise InputError(f"the model does not take the example ({shapes}): {error}{batch_hint(given)}") from error
    named = list(_flat(torch, result))
    if not named:
        raise InputError(f"the model returns no tensor but {type(result).__name__}: export a module that does")
    keys = [key for key, _ in named]
    fine = isinstance(result, Mapping) and len(set(keys)) == len(keys)
    return keys if fine else default_outputs(len(named)), [t for _, t in named]


def _flat(torch: Any, result: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(result, torch.Tensor):
        yield key, result
    elif isinstance(result, Mapping):
        for name, value in result.items():
            yield from _flat(torch, value, f"{key}.{name}" if key else str(name))
    elif isinstance(result, (tuple, list)):
        for i, value in enumerate(result):
            yield from _flat(torch, value, f"{key}.{i}" if key else str(i))


def _shapes(torch: Any, given: Given) -> Any:
    """`dynamic_shapes` of torch.export: axes of one name have one size."""
    names = {name for argument in given.arguments for name in argument.free.values()}
    sizes = {name: torch.export.Dim(name) for name in names}
    axes = [{axis: sizes[name] for axis, name in argument.free.items()} or None for argument in given.arguments]
    if not given.keyed:
        return tuple(axes)
    return {argument.keyword: each for argument, each in zip(given.arguments, axes, strict=True)}


def _optimised(program: Any) -> ir.Model:
    """What the exporter does by itself, but that convolutions stay apart from batch norms: with the value between them
    its name would go. (Runtimes fuse them when they load the model.)"""
    outputs = program.model.graph.outputs
    count = len(outputs)
    convolutions = [node for node in program.model.graph if node.op_type in ("Conv", "ConvTranspose")]
    values = [node.outputs[0] for node in convolutions if not node.outputs[0].is_graph_output()]
    outputs.extend(y for y in values if any(user.op_type == "BatchNormalization" for user, _ in y.uses()))
    program.optimize()  # an output must stay
    model: ir.Model = program.model
    del model.graph.outputs[count:]
    return model


def _numpy(tensor: Any) -> Any:
    return tensor.detach().cpu().numpy()


def _why(error: BaseException, given: Given) -> str:
    """What the exporter stumbled over, which is at the root of its report, and what may help."""
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    reason = next((line.strip() for line in str(root).splitlines() if line.strip()), "")
    free = sorted({name for argument in given.arguments for name in argument.free.values()})
    help_ = "the exporter's report is this error's cause"
    if "data-dependent" in str(root):
        help_ += "; the model decides by its data what it computes: put torch.where or torch.cond in place of `if`"
    elif free and any(word in str(root).lower() for word in ("dynamic", "constraint", "speciali")):
        help_ += f"; the model may fix an axis that is to be free ({', '.join(free)}): try dynamic_batch=False"
    return f"torch.onnx.export refuses the model ({type(root).__name__}: {reason:.300}); {help_}"
