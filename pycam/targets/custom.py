"""Scores that users make themselves: a weighted sum of outputs, or an ONNX graph behind them."""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from pycam.errors import TargetError, nearest
from pycam.runtime.given import Given

from .base import Candidates, Target

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    from .outputs import Outputs

One: TypeAlias = "int | slice | None"
Index: TypeAlias = "One | tuple[One, ...]"

RESERVED = ("self", "x", "targets", "against")
"""Names that arguments of a call have already."""

END = 2**63 - 1
"""The end of an axis, for Slice."""


@dataclass(frozen=True)
class Weighted(Target):
    """A weighted sum of parts of the outputs: `z = Σ w·Σ output[index]`, (N, 1).

    Args:
        terms: (output, index, weight) each.  The index is an int (along axis 1), or a tuple for the axes behind that of
            the images: an int, a slice, or None for all; what it leaves is summed, and so are axes it does not name.
            An output of None is the one that the Explainer is told, or else the first.

    Raises:
        TargetError: there is no term, or one is not made like that.

    Example:
        >>> pycam.targets.Weighted([("age", None, 1.0), ("heatmap", (17, slice(0, 8), None), -0.5)])
    """

    kind: ClassVar[str] = "weighted"

    terms: tuple[tuple[str | None, Index, float], ...]

    def __post_init__(self) -> None:
        try:
            terms = tuple((name, index, float(weight)) for name, index, weight in self.terms)
        except (TypeError, ValueError):
            raise TargetError(f"terms={self.terms!r}: give (output, index, weight) for each term") from None
        if not terms:
            raise TargetError("terms=[]: give (output, index, weight) for one term or more")
        for name, index, weight in terms:
            _check_term(name, index, weight)
        object.__setattr__(self, "terms", terms)

    def candidates(self, model: Outputs) -> Candidates:
        """See `Target.candidates`."""
        g = model.g
        z: ir.Value | None = None
        ends: dict[ir.Value, None] = {}
        for name, index, weight in self.terms:
            value = model.logits(name, ()).value
            part = g.Mul(_summed(model, value, index if isinstance(index, tuple) else (index,)), weight)
            z = part if z is None else g.Add(z, part)
            ends[value] = None
        assert z is not None
        output = model.output(self.terms[0][0])
        return Candidates(g.Unsqueeze(z, [1]), output, tuple(ends), classes=1, noun="score")


@dataclass(frozen=True)
class Custom(Target):
    """A score that an ONNX graph computes from the model's outputs: it becomes part of the explain graph.

    Args:
        model: Path, bytes or ModelProto.  Its inputs are named as outputs of the model; others become inputs of the
            explain graph, that calls give by their names: float32 or int64, the first axis that of the images.  Its
            output is (N,) or (N, C), floating-point: the score, or scores of which `targets` choose.

    Raises (when compiling):
        TargetError: it reads no output of the model, or what it reads or gives has another shape or dtype.
        ModelError: it cannot be read.

    Example:
        >>> explainer = pycam.Explainer("detector.onnx", target=pycam.targets.Custom("score.onnx"))
        >>> explainer(x, limit=np.float32([[0.5]]))  # `limit`, an input of score.onnx that is no output of the model
    """

    kind: ClassVar[str] = "custom"

    model: str | os.PathLike[str] | bytes | onnx.ModelProto = field(hash=False)

    def options(self) -> dict[str, Any]:
        """Its options as JSON values: the graph is told by its SHA-256."""
        source: Any = self.model
        if isinstance(source, (str, os.PathLike)):
            try:
                source = Path(source).read_bytes()
            except OSError as error:
                raise TargetError(f"cannot read the graph {os.fspath(source)!r}: {error.strerror}") from None
        data = source if isinstance(source, bytes) else source.SerializeToString(deterministic=True)
        return {"model": f"sha256:{hashlib.sha256(data).hexdigest()}"}

    def candidates(self, model: Outputs) -> Candidates:
        """See `Target.candidates`."""
        from pycam.graph.load import load
        from pycam.graph.normalise import normalise

        loaded = load(self.model)
        graph = normalise(loaded).graph
        if len(graph.outputs) != 1:
            names = ", ".join(v.name or "" for v in graph.outputs)
            raise TargetError(f"the graph of the target 'custom' has {len(graph.outputs)} outputs ({names}): give one")
        read = [model.named[v.name or ""] for v in graph.inputs if v.name in model.named]
        if not read:
            names = ", ".join(v.name or "" for v in graph.inputs) or "none"
            raise TargetError(
                f"the graph of the target 'custom' reads none of the model's outputs: its inputs are {names}, and the "
                f"model's outputs {nearest(names, model.named)}"
            )
        taken = [v.name for v in graph.inputs if v.name in RESERVED and v.name not in model.named]
        if taken:
            raise TargetError(f"the graph of the target 'custom' calls an input {taken[0]!r}, as calls do: rename it")
        given = {v: _fed(model, v) for v in graph.inputs}
        wanted = graph.outputs[0]
        rank = len(wanted.shape) if wanted.shape is not None else None
        if rank not in (1, 2) or wanted.dtype is None or not wanted.dtype.is_floating_point():
            raise TargetError(
                f"the output {wanted.name!r} of the target 'custom' has shape {_written(wanted)} and dtype "
                f"{wanted.dtype}: make it (N,) or (N, C), floating-point"
            )
        size = wanted.shape[1] if rank == 2 and wanted.shape is not None else 1
        further = [v.name or "" for v in graph.inputs if v.name not in model.named]
        z = model.floats(_inlined(model, graph, given, loaded.folder))
        return Candidates(
            model.g.Unsqueeze(z, [1]) if rank == 1 else z,
            read[0],
            tuple(read),
            classes=size if isinstance(size, int) else None,
            noun="score",
            notes=(f"a call gives what the target's graph reads besides outputs: {', '.join(further)}",)
            if further
            else (),
        )


def _check_term(name: object, index: object, weight: float) -> None:
    parts = index if isinstance(index, tuple) else (index,)
    if name is not None and not isinstance(name, str):
        raise TargetError(f"the output {name!r} of a term: give its name, or None for the first")
    if not math.isfinite(weight):
        raise TargetError(f"the weight {weight} of a term of {name!r}: give a finite number")
    for part in parts:
        number = isinstance(part, int) and not isinstance(part, bool)
        if not (part is None or number or (isinstance(part, slice) and part.step != 0)):
            raise TargetError(f"the index {index!r} of a term of {name!r}: give ints, slices, or None for all")


def _summed(model: Outputs, value: ir.Value, index: tuple[One, ...]) -> ir.Value:
    """The sum of `value[:, *index]` for each image, (N,).

    Raises:
        TargetError: it has fewer axes, or such an entry is not there.
    """
    g = model.g
    sizes = list(value.shape) if value.shape is not None else []
    if index == (None,):
        index = ()
    if not sizes or len(index) >= len(sizes):
        raise TargetError(
            f"the index {index} of a term has {len(index)} axes behind that of the images, and the output "
            f"{value.name!r} has shape {_written(value)}"
        )
    wide = model.floats(value)
    cuts: list[tuple[int, slice]] = []
    for axis, part in enumerate(index, 1):
        size = sizes[axis]
        if isinstance(part, int):
            if isinstance(size, int) and not -size <= part < size:
                raise TargetError(
                    f"the index {part} of a term is out of range: axis {axis} of the output {value.name!r} has {size} "
                    "entries"
                )
            if not isinstance(size, int):  # Gather, unlike Slice, refuses what is not there
                wide = g.Gather(wide, g.constant([part]), axis=axis)
                continue
            part = slice(part, part + 1 or None)
        if part is not None:
            cuts.append((axis, part))
    if cuts:
        wide = g.Slice(wide, *(list(bounds) for bounds in zip(*map(_bounds, cuts), strict=True)))
    return g.ReduceSum(wide, list(range(1, len(sizes))), keepdims=0) if len(sizes) > 1 else wide


def _bounds(cut: tuple[int, slice]) -> tuple[int, int, int, int]:
    """Start, end, axis and step, as Slice takes them."""
    axis, part = cut
    step = 1 if part.step is None else part.step
    first, last = (0, END) if step > 0 else (END, -END)
    return (first if part.start is None else part.start, last if part.stop is None else part.stop, axis, step)


def _fed(model: Outputs, wanted: ir.Value) -> ir.Value:
    """What an input of the user's graph gets: an output of the model, or an input of the explain graph.

    Raises:
        TargetError: another dtype or rank.
    """
    import onnx_ir as ir

    name = wanted.name or ""
    rank = len(wanted.shape) if wanted.shape is not None else None
    if name in model.named:
        value = model.output(name)
        if value.dtype != wanted.dtype:
            value = model.floats(value)
        ranks = (rank, len(value.shape) if value.shape is not None else rank)
        if value.dtype != wanted.dtype or (rank is not None and ranks[0] != ranks[1]):
            there = model.output(name)
            raise TargetError(
                f"the graph of the target 'custom' wants {name!r} as {wanted.dtype} of shape {_written(wanted)}, and "
                f"the model's output is {there.dtype} of shape {_written(there)}"
            )
        return value
    dtypes = {ir.DataType.FLOAT: "float32", ir.DataType.INT64: "int64"}
    if wanted.dtype not in dtypes or not rank or isinstance(wanted.shape[0], int):  # type: ignore[index]  # it has a rank
        raise TargetError(
            f"the input {name!r} of the target 'custom' is no output of the model ({nearest(name, model.named)}), and "
            f"it is {wanted.dtype} of shape {_written(wanted)}: what a call gives is float32 or int64, (N, …) with N "
            "free; make what never changes an initializer"
        )
    sizes = tuple(d if isinstance(d, int) else None for d in list(wanted.shape or ())[1:])
    return model.take(name, Given(name, "array", ("N", *sizes), dtypes[wanted.dtype], required=True))


def _inlined(model: Outputs, source: ir.Graph, given: dict[ir.Value, ir.Value], folder: Path) -> ir.Value:
    """The nodes of `source` at the end of the model's graph, reading `given`; the value that its output becomes."""
    import onnx_ir as ir

    g = model.g
    versions = g.graph.opset_imports
    for domain, version in source.opset_imports.items():  # from OPSET on, no op changed its form
        versions[domain] = max(version, versions.get(domain, 0))
    (output,) = source.outputs
    stands: dict[ir.Value, ir.Value] = dict(given)
    for name, value in list(source.initializers.items()):
        if value.const_value is None:
            raise TargetError(f"the weight {name!r} of the target 'custom' has no value")
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value.base_dir = folder
        stands[value] = g.constant(value.const_value.numpy(), value.const_value.dtype)
    nodes = list(source)
    for old, new in stands.items():
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    for graph in (source, *source.subgraphs()):
        _rename(model, graph, inner=graph is not source)
    result = source.outputs[0]
    source.outputs.clear()
    source.remove(nodes)
    for node in nodes:
        for y in node.outputs:
            y.shape = None  # its symbols are those of another graph; they are inferred anew
        g.graph.append(node)
    return stands.get(output, result)


def _rename(model: Outputs, graph: ir.Graph, inner: bool) -> None:
    """Names that nothing in the model has, for the values that a graph makes and, a subgraph, is given."""
    for value in [*(y for node in graph for y in node.outputs), *(graph.inputs if inner else ())]:
        if value.name:
            value.name = model.g.fresh("custom")
    for node in graph:
        node.name = model.g.fresh(node.op_type)


def _written(value: ir.Value) -> str:
    return str([d if isinstance(d, int) else d.value or "?" for d in value.shape]) if value.shape is not None else "?"
