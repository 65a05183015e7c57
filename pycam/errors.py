"""Every error that pycam raises on purpose.

    PycamError
    ├── ModelError          not ONNX, truncated, external data missing, malformed
    │   └── UnsupportedOpError   an op on the path without a gradient rule
    │       └── BatchAxisError   an op that moves the batch axis: one target at a time
    ├── LayerError          unknown layer, or no path from it to the score
    ├── MethodError         unknown method, or one that this model cannot serve
    ├── TargetError         class out of range, wrong number of targets
    ├── InputError          wrong name, shape or dtype of an input, NaN in it
    ├── ImageError          unreadable or absurdly large picture
    ├── OutputError         a path that cannot be written
    ├── ProviderError       an execution provider that was asked for and is not there
    ├── FrameworkError      a training framework, or its exporter, that is not installed
    └── HeadError           an unknown head, or one that is not built

A message says what was wrong, where, and what would help.  Those about a bad argument are also `ValueError`s.
"""

from __future__ import annotations

from collections.abc import Iterable


class PycamError(Exception):
    """Base of all errors raised by pycam."""


class ModelError(PycamError, ValueError):
    """The model cannot be read or is not valid ONNX."""


class UnsupportedOpError(ModelError):
    """An operator on the differentiated path has no gradient rule.

    Attributes:
        op: The operator, as `domain::Op` where it has a domain.
        value: The name of the first output of its node.
    """

    def __init__(self, message: str, op: str = "", value: str = "") -> None:
        super().__init__(message)
        self.op = op
        self.value = value


class BatchAxisError(UnsupportedOpError):
    """An operator on the path moves or mixes the batch axis, so several targets cannot share one pass."""


class LayerError(PycamError, ValueError):
    """The layer is unknown or does not lead to the score."""


class MethodError(PycamError, ValueError):
    """The method is unknown or does not apply to this model."""


class TargetError(PycamError, ValueError):
    """The targets do not fit the model or the batch."""


class InputError(PycamError, ValueError):
    """An input does not fit the model."""


class ImageError(PycamError, ValueError):
    """A picture cannot be read."""


class OutputError(PycamError, OSError):
    """A result cannot be written where it was asked for."""


class ProviderError(PycamError, RuntimeError):
    """A requested execution provider is not available."""


class FrameworkError(PycamError, ImportError):
    """A framework, or its exporter, is not installed or cannot be used."""


class HeadError(PycamError, ValueError):
    """The head is unknown or not available in this build."""


def nearest(name: str, known: Iterable[str], count: int = 5) -> str:
    """`"a, b, c"`: the known names most like `name` (all of them when they are few)."""
    names = list(dict.fromkeys(known))
    if len(names) <= count:
        return ", ".join(names)
    import difflib  # for errors alone

    close = difflib.get_close_matches(name, names, n=count, cutoff=0.3)
    return ", ".join(close or names[:count])


def ordinal(number: int) -> str:
    """1 → "1st", 2 → "2nd", 12 → "12th"."""
    last = number % 10 if number % 100 not in (11, 12, 13) else 0
    return f"{number}{('th', 'st', 'nd', 'rd')[last] if last < 4 else 'th'}"
