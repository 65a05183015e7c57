"""What the exports share: frameworks that may be missing, the inputs that are given, and how they are drawn."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pycam.errors import FrameworkError, InputError, nearest
from pycam.preprocess import Preprocess

Axes: TypeAlias = Mapping[str, Mapping[int, str]]
"""Input → axis → name of a free axis."""

BATCH = "N"

# what brings a framework's exporter
_PIP = {
    "from_torch": "pip install 'pycam-onnx[torch]' (torch and onnxscript)",
    "from_keras": "pip install 'pycam-onnx[keras]' (keras, tensorflow and tf2onnx)",
    "from_jax": "pip install 'pycam-onnx[jax]' (jax and jax2onnx)",
    "from_paddle": (
        "pip install paddlepaddle, and pip install --no-deps paddle2onnx: it asks for an older onnx than pycam does, "
        "but works with the newer one"
    ),
}


def need(function: str, package: str) -> Any:
    """Import `package` for `function`.

    Raises:
        FrameworkError: it is not installed, or fails to import; says what to install.
    """
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != package:
            raise FrameworkError(f"{function}: {package!r} needs {error.name!r}: {_PIP[function]}") from error
        raise FrameworkError(f"{function} needs {package!r}, which is not installed: {_PIP[function]}") from None
    except ImportError as error:
        raise FrameworkError(f"{function}: {package!r} is installed but fails to import: {error}") from error


@dataclass(frozen=True)
class Argument:
    """One input of a model.

    Attributes:
        keyword: The parameter of the model's function that takes it.
        name: What the ONNX input is called.
        shape: Of the example.
        value: The example, None where a shape was given.
        free: Axis → name of an axis whose size stays free.
    """

    keyword: str
    name: str
    shape: tuple[int, ...]
    value: Any
    free: Mapping[int, str]

    @property
    def symbolic(self) -> tuple[int | str, ...]:
        """The shape with free axes by their names."""
        return tuple(self.free.get(axis, size) for axis, size in enumerate(self.shape))


@dataclass(frozen=True)
class Given:
    """The inputs as they were given; `keyed`: by name."""

    arguments: list[Argument]
    keyed: bool


def read_example(
    example: Any,
    function: Callable[..., Any],
    input_names: Sequence[str] | None,
    dynamic_batch: bool,
    dynamic_axes: Axes | None,
) -> Given:
    """An example, an array or a shape (a tuple of ints); several as a list, or as a dict by parameter of `function`.

    Raises:
        InputError: it is none of these; names that do not fit; an axis that is not there.
    """
    keyed = isinstance(example, Mapping)
    several = list(example.values()) if keyed else [example] if _is_one(example) else list(example)
    keywords = [str(k) for k in example] if keyed else _parameters(function, len(several))
    names = list(input_names) if input_names is not None else keywords
    if len(names) != len(several) or len(set(names)) != len(names):
        raise InputError(f"input_names={names}: give one name for each of the {len(several)} inputs, all different")
    free = {name: {0: BATCH} if dynamic_batch else {} for name in names}
    for name, axes in (dynamic_axes or {}).items():
        if name not in free:
            raise InputError(f"dynamic_axes: there is no input {name!r}; there are {nearest(name, names)}")
        free[name] |= dict(axes)
    arguments = []
    for keyword, name, value in zip(keywords, names, several, strict=True):
        shape = tuple(value) if _is_shape(value) else tuple(int(size) for size in value.shape)
        wrong = [axis for axis in free[name] if not 0 <= axis < len(shape)]
        if wrong:
            raise InputError(
                f"the input {name!r} has shape {shape}, in which axis {wrong[0]} cannot be free: "
                + ("say dynamic_batch=False where there is no batch" if not shape else "axes count from 0")
            )
        arguments.append(Argument(keyword, name, shape, None if _is_shape(value) else value, free[name]))
    return Given(arguments, keyed)


def _is_shape(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and bool(value) and all(type(size) is int and size > 0 for size in value)


def _is_one(example: Any) -> bool:
    """Whether it is one array or one shape, not several."""
    if _is_shape(example) or hasattr(example, "shape"):
        return True
    if isinstance(example, (tuple, list)) and example and all(_is_shape(v) or hasattr(v, "shape") for v in example):
        return False
    raise InputError(
        f"the example is {example!r:.80}: give an array, or its shape as a tuple of positive ints such as "
        "(1, 3, 224, 224); a list of these for several inputs, or a dict by the name of the parameter"
    )


def _parameters(function: Callable[..., Any], count: int) -> list[str]:
    """Names of the first `count` positional parameters."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        known = [p.name for p in inspect.signature(function).parameters.values() if p.kind in kinds]
    except (TypeError, ValueError):  # a builtin has no signature
        known = []
    names = known[:count]
    return names + [f"input_{i}" if count > 1 else "input" for i in range(len(names), count)]


def indices(argument: Argument, more: int = 0) -> list[int]:
    """Which rows of the example are run: two at least where their number is free, since exporters take a single one for
    a constant; and the first one `more` times again."""
    count = argument.shape[0] if argument.shape else 0
    if 0 not in argument.free:
        return list(range(count))
    return [*range(count), *[0] * (max(2, count) - count + more)]


def batch_hint(given: Given) -> str:
    """What to say where the model fails on the example."""
    free = any(0 in argument.free for argument in given.arguments)
    return "; the batch is to be free, so it got more images than one: else say dynamic_batch=False" if free else ""


def draw(argument: Argument) -> NDArray[np.float32]:
    """Normal noise of the example's shape, the same every time."""
    return np.random.default_rng(0).normal(size=argument.shape).astype(np.float32)


@dataclass(frozen=True)
class Wanted:
    """What becomes of an export: where it goes, and what it says about itself."""

    path: Path | None
    labels: tuple[str, ...]
    preprocess: Preprocess | None


def wanted(path: str | os.PathLike[str] | None, labels: Sequence[str] | None, preprocess: Preprocess | None) -> Wanted:
    """Checked before the work begins.

    Raises:
        OutputError: the path cannot be written.
        InputError: the labels are no texts of one line; no `Preprocess`.
    """
    if path is not None:
        from pycam.image import check_writable

        path = check_writable(path, suffixes=(".onnx",))
    if labels is not None:
        if isinstance(labels, str) or not all(isinstance(label, str) for label in labels) or not len(labels):
            raise InputError("labels: give the names of the classes as a list of texts, in the order of the outputs")
        bad = [label for label in labels if len(label.splitlines()) > 1 or "\n" in label]
        if bad:
            raise InputError(f"labels: a name is one line, not {bad[0]!r}")
    if preprocess is not None and not isinstance(preprocess, Preprocess):
        raise InputError(f"preprocess: give a pycam.Preprocess, not {type(preprocess).__name__}")
    return Wanted(path, tuple(labels or ()), preprocess)
