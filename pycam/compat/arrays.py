"""Arrays as scripts hand them over: numpy's, torch's, and one that answers to a few of torch's methods."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pycam.errors import InputError


class Tensor(np.ndarray[Any, Any]):
    """A numpy array that also takes the calls that scripts make on an input tensor: they move nothing."""

    def to(self, *_: Any, **__: Any) -> Tensor:
        """Itself: the explainer knows where it runs (`providers=`)."""
        return self

    cuda = cpu = detach = to

    def numpy(self) -> NDArray[Any]:
        """A plain array."""
        return np.asarray(self)

    def unsqueeze(self, dim: int) -> Tensor:
        """With a further axis of size 1."""
        return np.expand_dims(self, dim).view(Tensor)


def to_numpy(value: Any) -> NDArray[Any]:
    """An array of numpy's, from whatever has one.

    Raises:
        InputError: it is not an array.
    """
    if hasattr(value, "detach"):  # torch, which need not be imported here
        value = value.detach().cpu().numpy()
    try:
        return np.asarray(value)
    except ValueError as error:
        raise InputError(f"not an array: {error}") from None


def inputs_of(value: Any) -> NDArray[Any] | dict[str, NDArray[Any]]:
    """What the model is given."""
    if isinstance(value, Mapping):
        return {name: to_numpy(array) for name, array in value.items()}
    return to_numpy(value)


def like(value: Any, array: Any) -> Any:
    """`array` (or a dict of arrays) as the kind of array that `value` is: torch's, a `Tensor`, or numpy's."""
    if isinstance(array, Mapping):
        return {name: like(value, one) for name, one in array.items()}
    if isinstance(value, Tensor):
        return array.view(Tensor)
    if type(value).__module__.partition(".")[0] == "torch":
        return sys.modules["torch"].from_numpy(array)
    return array
