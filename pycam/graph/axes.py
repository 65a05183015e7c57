"""Where the image's positions and the batch lie in each value: followed from the image through the model.

An axis is a product of factors, as reshapes merge and split them: `(N, C, h, w)` has one for rows and one for columns,
`(N, h·w, C)` an axis of both, `(N·heads, T, T)` an axis of the batch and the heads, a window of a Swin transformer
rows and columns beside the batch.  What an op does to the axes is one small function; a value that cannot be followed
has none, and a residual sum gets its axes from the operand that can.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias

import onnx_ir as ir

BATCH = 1_000_003
"""The prime that stands for the size of the batch, so that no other factor is taken for it."""

Role: TypeAlias = Literal["batch", "rows", "columns", "tokens", "other"]


class Tokens(NamedTuple):
    """Tokens on the image's grid, row by row, with special ones (class, distillation, registers) before and after."""

    height: int
    width: int
    before: int = 0
    after: int = 0

    @property
    def positions(self) -> int:
        """h·w: the tokens on the grid."""
        return self.height * self.width

    @property
    def total(self) -> int:
        """T: the special tokens as well."""
        return self.before + self.positions + self.after


class Factor(NamedTuple):
    """A factor of an axis' size; `tokens` says where the grid lies if the role is "tokens"."""

    role: Role
    size: int
    tokens: Tokens | None = None


Axis: TypeAlias = tuple[Factor, ...]
"""Factors, outermost first; none for size 1."""
Axes: TypeAlias = tuple[Axis, ...]
Known: TypeAlias = "Mapping[ir.Value, Axes]"
Dims: TypeAlias = "tuple[int | str, ...]"

BATCH_AXIS: Axis = (Factor("batch", BATCH),)


def dims(value: ir.Value) -> Dims:
    """Dimensions of a value; "?" where nothing is known."""
    if value.shape is None:
        return ()
    return tuple(d if isinstance(d, int) else d.value or "?" for d in value.shape)


def size_of(axis: Axis) -> int:
    """The size of an axis, with `BATCH` for that of the batch."""
    return math.prod(factor.size for factor in axis)


def tokens_of(axis: Axis) -> Tokens | None:
    """The tokens that an axis holds, if it holds all positions of the image's grid."""
    if len(axis) == 1:
        return axis[0].tokens
    if [factor.role for factor in axis] == ["rows", "columns"]:
        return Tokens(axis[0].size, axis[1].size)
    return None


def on_grid(axis: Axis) -> bool:
    """Whether positions of the image lie along an axis."""
    return any(factor.role in ("rows", "columns", "tokens") for factor in axis)


def has_batch(axis: Axis) -> bool:
    """Whether images of the batch lie along an axis."""
    return any(factor.role == "batch" for factor in axis)


def axis_of(role: Role, size: int | str) -> Axis | None:
    """An axis of one factor; None if its size is not known."""
    if not isinstance(size, int):
        return None
    return (Factor(role, size),) if size != 1 else ()


def lay_out(tokens: Tokens) -> Axis:
    """The axis that `tokens` lie along."""
    if tokens.before or tokens.after:
        return (Factor("tokens", tokens.total, tokens),)
    return (Factor("rows", tokens.height), Factor("columns", tokens.width))


def complete(axes: Sequence[Axis | None]) -> Axes | None:
    """`axes`, if all are known."""
    return tuple(axis for axis in axes if axis is not None) if None not in axes else None


def best(axes: Sequence[Axis]) -> Axis:
    """The one that says most: of the grid, else of the batch."""
    return max(axes, key=lambda axis: 2 * on_grid(axis) + has_batch(axis))


def fits(axes: Axes, shape: Dims) -> bool:
    """Whether `axes` can be those of an array of this shape."""
    return len(axes) == len(shape) and all(
        not isinstance(d, int) or has_batch(axis) or d == size_of(axis) for axis, d in zip(axes, shape, strict=True)
    )


def takes_grid(tokens: Tokens, chosen: Iterable[int]) -> bool:
    """Whether any of the `chosen` tokens is one of the grid's."""
    return any(tokens.before <= i < tokens.before + tokens.positions for i in chosen)


def cut(axis: Axis, start: int, end: int, step: int = 1) -> Axis | None:
    """The part `start:end:step` of an axis; None where it holds some positions of the grid but not all."""
    if has_batch(axis):
        return None
    size = size_of(axis)
    chosen = range(size)[start:end:step]
    if len(chosen) == size:
        return axis if step == 1 else None
    if len(axis) == 1 and axis[0].role in ("rows", "columns"):
        return axis_of(axis[0].role, len(chosen))
    tokens = tokens_of(axis)
    if tokens is None:
        return axis_of("other", len(chosen)) if not on_grid(axis) else None
    if not takes_grid(tokens, chosen):
        return axis_of("other", len(chosen))
    before, after = tokens.before - chosen.start, chosen.stop - tokens.before - tokens.positions
    return lay_out(tokens._replace(before=before, after=after)) if step == 1 and min(before, after) >= 0 else None


def possible_sizes(axes: Axes, shape: Dims, batch_names: Collection[int | str]) -> Iterable[list[int]]:
    """What the sizes may be of an array with all factors of `axes`, where the batch or one size is not known."""
    named = [BATCH if isinstance(d, str) and d in batch_names else d for d in shape]
    total, sizes = math.prod(map(size_of, axes)), [d if isinstance(d, int) else 0 for d in named]
    known = math.prod(s for s in sizes if s)
    free = sizes.count(0)
    if free == 1 and total % known == 0:
        yield [s or total // known for s in sizes]
    elif known == total:
        yield sizes
    elif free == 0 and sizes and total % BATCH == 0:
        batch, rest = divmod(known * BATCH, total)
        before = next((i for i, axis in enumerate(axes) if has_batch(axis)), 0)
        for i in dict.fromkeys((min(before, len(sizes) - 1), 0)):
            if not rest and batch and sizes[i] % batch == 0:
                yield [s // batch * BATCH if j == i else s for j, s in enumerate(sizes)]


def regrouped(axes: Axes, sizes: Sequence[int]) -> Axes | None:
    """The factors of `axes`, in their order, as axes of the given sizes."""
    factors = [factor for axis in axes for factor in axis][::-1]
    made: list[Axis] = []
    for size in sizes:
        axis: list[Factor] = []
        while size > 1:
            if not factors:
                return None
            factor = factors.pop()
            if size % factor.size:
                if factor.size % size or factor.role in ("batch", "tokens"):
                    return None
                # Rows cut apart are coarse rows, and what lies within them.
                factors.append(Factor("other", factor.size // size))
                factor = factor._replace(size=size)
            size //= factor.size
            axis.append(factor)
        made.append(_merged(axis))
    return tuple(made) if not factors else None


def _merged(axis: Sequence[Factor]) -> Axis:
    """Put together what a factor was cut into."""
    made: list[Factor] = []
    for factor in axis:
        if made and factor.role == "other" and made[-1].role in ("rows", "columns", "other"):
            made[-1] = made[-1]._replace(size=made[-1].size * factor.size)
        else:
            made.append(factor)
    return tuple(made)
