"""JAX → ONNX, by jax2onnx, which keeps no module's name: they are found again by the modules' values (`naming.py`)."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pycam.errors import InputError, ModelError
from pycam.preprocess import Preprocess

from .common import Argument, Axes, batch_hint, draw, indices, need, read_example, wanted
from .finish import Probe, default_outputs, finish
from .naming import Recorded

if TYPE_CHECKING:
    import onnx

_EXPORTER = "jax2onnx"
_CALL = "__call__"
Record = Callable[[Any, str | None, Any], None]


def from_jax(
    model: Any,
    example: Any,
    *,
    variables: Any = None,
    vmap: bool = False,
    arguments: Mapping[str, Any] | None = None,
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
    """Export a flax (nnx or linen) or equinox module, or any function of arrays; modules keep their paths
    (`blocks.1.conv`, `Conv_0`).

    A copy in eval mode is exported (`nnx.Module.eval`, `eqx.nn.inference_mode`). The layout stays as it is, NHWC in
    flax. A plain function has no modules, so its layers go by the names of tensors.

    Args:
        model: The module or the function.
        example: An input: an array, or a shape such as `(1, 224, 224, 3)`, of which float32 noise is drawn. Several as
            a list. With the batch axis also where `vmap`.
        variables: Of a linen module, as `init` returned them.
        vmap: The module takes one image (as equinox's do): map it over the batch.
        arguments: Further arguments by name, which the export fixes: `{"train": False}`.
        path, labels, preprocess, dynamic_batch, dynamic_axes, output_names, opset, check: See `from_torch`; jax2onnx
            picks the opset where None is given.
        input_names: None: the parameters of the function.

    Returns:
        The ModelProto, or `path`.

    Raises:
        FrameworkError, InputError, ModelError, OutputError: As `from_torch`.
    """
    jax = need("from_jax", "jax")
    exporter = need("from_jax", "jax2onnx")
    goal = wanted(path, labels, preprocess)
    source = _source(model, variables)
    given = read_example(example, source.signature, input_names, dynamic_batch, dynamic_axes)
    if given.keyed:
        raise InputError("from_jax takes several inputs as a list, in the order of the function's parameters")
    arrays = [_array(argument) for argument in given.arguments]
    function = partial(source.function, **(arguments or {}))
    mapped = jax.vmap(function) if vmap else function
    try:
        outputs = [np.asarray(leaf) for leaf in jax.tree.leaves(mapped(*map(jax.numpy.asarray, arrays)))]
        modules = _recorded(jax, source, function, arrays, vmap)
    except Exception as error:  # whatever the model raises
        shapes = ", ".join(f"{a.keyword} {x.shape} {x.dtype}" for a, x in zip(given.arguments, arrays, strict=True))
        raise InputError(f"the model does not take the example ({shapes}): {error}{batch_hint(given)}") from error
    specs = [jax.ShapeDtypeStruct(a.symbolic, x.dtype) for a, x in zip(given.arguments, arrays, strict=True)]
    options = {} if opset is None else {"opset": opset}
    try:
        exported = exporter.to_onnx(mapped, specs, model_name=type(model).__name__, return_mode="ir", **options)
    except Exception as error:  # the exporter has many
        fixed = any(word in f"{type(error).__name__}: {error}".lower() for word in ("dimension", "symbolic", "concret"))
        help_ = "; the model may fix an axis that is to be free: try dynamic_batch=False" if fixed else ""
        raise ModelError(
            f"jax2onnx refuses the model ({type(error).__name__}: {error!s:.300}); its report is this error's "
            f"cause{help_}"
        ) from error
    feeds = {argument.name: x for argument, x in zip(given.arguments, arrays, strict=True)}
    names = list(output_names) if output_names is not None else default_outputs(len(outputs))
    return finish(exported, given.arguments, names, goal, Probe(feeds, outputs, modules), check, _EXPORTER)


@dataclass(frozen=True)
class _Source:
    """A model as a function; `signature` has its parameters, `recording` notes its modules' outputs in between."""

    function: Callable[..., Any]
    signature: Callable[..., Any]
    recording: Callable[[Record], contextlib.AbstractContextManager[None]]


def _source(model: Any, variables: Any) -> _Source:
    """A flax or equinox module; their packages are not imported here: a module's is there."""
    nnx, linen, eqx = (sys.modules.get(name) for name in ("flax.nnx", "flax.linen", "equinox"))
    if linen is not None and isinstance(model, linen.Module):
        if variables is None:
            raise InputError("a linen module needs variables=, the parameters that its init returned")
        return _Source(partial(model.apply, variables), model.__call__, partial(_linen, linen))
    if variables is not None:
        raise InputError(f"variables= are for flax.linen modules, not for {type(model).__name__}")
    if nnx is not None and isinstance(model, nnx.Module):
        copy = nnx.clone(model)
        copy.eval()
        paths = {id(module): ".".join(map(str, path)) for path, module in nnx.iter_modules(copy) if path}
        kinds = {type(module) for path, module in nnx.iter_modules(copy) if path}
        return _Source(copy, copy.__call__, partial(_patched, paths, kinds))
    if eqx is not None and isinstance(model, eqx.Module):
        copy = eqx.nn.inference_mode(model)
        found = dict(_eqx_modules(eqx, copy, ""))
        paths = {id(module): path for path, module in found.items()}
        return _Source(copy, copy.__call__, partial(_patched, paths, {type(module) for module in found.values()}))
    if not callable(model):
        raise InputError(f"from_jax takes a flax or equinox module, or a function, not {type(model).__name__}")
    return _Source(model, model, lambda record: contextlib.nullcontext())


def _array(argument: Argument) -> np.ndarray[Any, Any]:
    """The example, with one image more than one where their number is free."""
    array = draw(argument) if argument.value is None else np.asarray(argument.value)
    return array[indices(argument)] if 0 in argument.free else array


def _recorded(jax: Any, source: _Source, function: Callable[..., Any], arrays: Sequence[Any], vmap: bool) -> Recorded:
    """Path and output of every module; of a mapped one image by image."""
    runs: list[dict[str, Any]] = []
    images = [[x[i] for x in arrays] for i in range(len(arrays[0]))] if vmap else [list(arrays)]
    for image in images:
        seen: dict[str, Any] = {}

        def record(module: Any, path: str | None, y: Any, seen: dict[str, Any] = seen) -> None:
            # what is traced (within jit or an inner vmap) has no value
            if path and isinstance(y, jax.Array) and not isinstance(y, jax.core.Tracer):
                seen.pop(path, None)
                seen[path] = np.asarray(y)

        with source.recording(record):
            function(*map(jax.numpy.asarray, image))
        runs.append(seen)
    if not vmap:
        return list(runs[0].items())
    return [(path, np.stack([run[path] for run in runs])) for path in runs[0] if all(path in run for run in runs)]


@contextlib.contextmanager
def _linen(linen: Any, record: Record) -> Iterator[None]:
    def note(following: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        y = following(*args, **kwargs)
        if context.method_name == "__call__":
            record(context.module, ".".join(context.module.path), y)
        return y

    with linen.intercept_methods(note):
        yield


@contextlib.contextmanager
def _patched(paths: Mapping[int, str], kinds: set[type], record: Record) -> Iterator[None]:
    """Modules of flax.nnx and equinox have no hooks: for as long as this lasts, their classes' `__call__` notes what it
    returns."""
    own = {kind: vars(kind).get(_CALL) for kind in kinds}

    def noting(call: Callable[..., Any]) -> Callable[..., Any]:
        def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
            y = call(self, *args, **kwargs)
            record(self, paths.get(id(self)), y)
            return y

        return noted

    calls = {kind: getattr(kind, _CALL) for kind in kinds if any(_CALL in vars(base) for base in kind.__mro__)}
    try:
        for kind, call in calls.items():
            setattr(kind, _CALL, noting(call))
        yield
    finally:
        for kind in calls:
            if own[kind] is None:
                delattr(kind, _CALL)
            else:
                setattr(kind, _CALL, own[kind])


def _eqx_modules(eqx: Any, value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Path → module, for all within `value`: fields by their names, items of lists and dicts by theirs."""
    if isinstance(value, eqx.Module) and path:
        yield path, value
    items: Sequence[tuple[str, Any]] = ()
    if isinstance(value, eqx.Module) and is_dataclass(value):
        items = [(field.name, getattr(value, field.name, None)) for field in fields(value)]
    elif isinstance(value, (list, tuple)):
        items = [(str(i), item) for i, item in enumerate(value)]
    elif isinstance(value, dict):
        items = [(str(key), item) for key, item in value.items()]
    for name, item in items:
        yield from _eqx_modules(eqx, item, f"{path}.{name}" if path else name)
