"""The compiler: a model, a method, a layer, a target → an explain graph.

    load → normalise → locate → differentiate → method → head → emit

Each step is a pure function of its own module; `compile_model` tells the story.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

from .errors import BatchAxisError, InputError, LayerError, MethodError, ModelError, UnsupportedOpError
from .grad import differentiate
from .graph import emit
from .graph.builder import LOWERS, Builder, Lower
from .graph.fold import fold_batchnorm
from .graph.load import Source, load
from .graph.locate import dims, locate_layers, locate_score, module_path, with_workable_layers
from .graph.normalise import normalise
from .graph.pixels import AXES, embed_preprocess, image_input, image_size
from .head.graph import heatmaps
from .method import get
from .method.combine import raw_map
from .preprocess import Preprocess
from .runtime.metadata import PREPROCESS
from .runtime.spec import KEY, Spec
from .targets.classes import Chosen, class_targets

OUTPUTS = ("scores", "heatmaps", "raw")


@dataclass(frozen=True)
class ExplainGraph:
    """What the compiler makes.

    Attributes:
        model: The explain graph; its metadata carry `spec`.
        folder: What its external data, if any, is relative to.
        spec: Names and facts that running it needs.
        repeats: K targets repeat large forward values of the tail (False: they share them all, at no cost).
    """

    model: onnx.ModelProto
    folder: Path
    spec: Spec
    repeats: bool


def compile_model(
    source: Source,
    *,
    method: str = "gradcam",
    layer: str | Sequence[str] = "auto",
    output: str | None = None,
    outputs: Collection[str] = OUTPUTS,
    many: bool = True,
    preprocess: Preprocess | None = None,
    stand_alone: bool = True,
    lower: Lower = "fast",
) -> ExplainGraph:
    """Compile a model into an explain graph.

    Args:
        source: Path, bytes or ModelProto.
        method: A name of `pycam.methods()`.
        layer: Tensor name, node name, module path, "auto", or a list of them, whose maps are averaged.
        output: The model output to explain; the first one if None.
        outputs: What the graph returns: any of "scores" (the model's own outputs), "heatmaps", "raw".
        many: The graph takes any number K of targets per image; else exactly one.
        preprocess: Put this preprocessing into the graph: its input is then `image`, uint8 (N, H, W, 3).
        stand_alone: The result holds its weights; else it refers to the files in `folder`, which costs no memory.
        lower: "fast": what measures fastest on onnxruntime; "portable": only forms that every runtime gets right.

    Raises:
        ModelError, LayerError, MethodError, TargetError, UnsupportedOpError: see `pycam.errors`.
    """
    weighing = get(method)
    if lower not in LOWERS:
        raise InputError(f"lower={lower!r}: choose one of {', '.join(LOWERS)}")
    wanted = _check_outputs(outputs)

    loaded = load(source)
    if any(entry.key == KEY for entry in loaded.proto.metadata_props):
        raise ModelError("the model is an explain graph already: give the model that it was made from")
    model = normalise(loaded)
    graph = model.graph
    image, layout = image_input(graph)
    if preprocess is not None:
        image, layout = embed_preprocess(graph, image, preprocess), "NHWC"
    located = locate_score(graph, output)
    score = located.value
    layers = locate_layers(graph, layer, score)
    fold_batchnorm(graph, keep=layers)

    g = Builder(graph, lower=lower)
    chosen = class_targets(g, score, batch=dims(image)[0], many=many)
    try:
        grads, repeat = differentiate(g, {score: chosen.cotangent}, layers, chosen.count)
    except BatchAxisError:
        raise
    except UnsupportedOpError as error:
        raise with_workable_layers(error, graph, score) from None
    raws = [
        raw_map(g, weighing, repeat.wide(a), _reached(da, a, score), chosen.count)
        for a, da in zip(layers, grads, strict=True)
    ]
    raws = [g.Cast(raw, to=ir.DataType.FLOAT) if raw.dtype != ir.DataType.FLOAT else raw for raw in raws]
    maps = None
    if "heatmaps" in wanted:
        maps = heatmaps(g, raws, image_size(g, image, layout), [dims(a)[2:] for a in layers])

    spec = Spec(
        method=weighing.name,
        layers=tuple(a.name or "" for a in layers),
        modules=tuple(module_path(node) if (node := a.producer()) is not None else "" for a in layers),
        image=image.name or "",
        layout=layout,
        targets=chosen.targets.name or "",
        explained=g.free("explained"),
        score=located.output.name or "",
        outputs=tuple(v.name or "" for v in graph.outputs) if "scores" in wanted else (),
        raw=tuple(g.free("raw" if len(raws) == 1 else f"raw.{i}") for i in range(len(raws))) if "raw" in wanted else (),
        heatmaps=g.free("heatmaps") if maps is not None else None,
        classes=chosen.classes,
        many=many,
        probabilities=located.probabilities,
        notes=tuple(located.notes),
    )
    _set_outputs(graph, spec, image, chosen, layers, raws, maps)
    metadata = {KEY: spec.to_json()} | ({PREPROCESS: preprocess.to_json()} if preprocess is not None else {})
    proto = emit.finish(model, metadata, stand_alone=stand_alone, portable=g.portable)
    return ExplainGraph(proto, loaded.folder, spec, repeat.heavy())


def forward_model(source: Source) -> tuple[onnx.ModelProto, Path]:
    """The model alone, normalised (what an explanation's cost is compared with), and the folder of its weights."""
    loaded = load(source)
    return emit.finish(normalise(loaded), stand_alone=False), loaded.folder


def _check_outputs(outputs: Collection[str]) -> set[str]:
    wanted = {outputs} if isinstance(outputs, str) else set(outputs)
    if wanted - set(OUTPUTS) or not wanted & {"heatmaps", "raw"}:
        raise MethodError(
            f"outputs={sorted(wanted)}: choose from {', '.join(OUTPUTS)}, with heatmaps or raw among them"
        )
    return wanted


def _reached(da: ir.Value | None, a: ir.Value, score: ir.Value) -> ir.Value:
    if da is None:
        raise LayerError(
            f"no differentiable path leads from the layer {a.name!r} to the score {score.name!r}: "
            "choose a later layer, see `pycam layers`"
        )
    return da


def _set_outputs(
    graph: ir.Graph,
    spec: Spec,
    image: ir.Value,
    chosen: Chosen,
    layers: Sequence[ir.Value],
    raws: Sequence[ir.Value],
    maps: ir.Value | None,
) -> None:
    batch, count = dims(chosen.targets)
    if not spec.outputs:
        graph.outputs.clear()
    if maps is not None and spec.heatmaps is not None:
        size = [dims(image)[axis] for axis in AXES[spec.layout]]
        emit.add_output(graph, maps, spec.heatmaps, [batch, count, *size], ir.DataType.FLOAT)
    for name, raw, layer in zip(spec.raw, raws, layers, strict=False):  # no names where raw maps are not wanted
        emit.add_output(graph, raw, name, [batch, count, *dims(layer)[2:]], ir.DataType.FLOAT)
    emit.add_output(graph, chosen.explained, spec.explained, [batch, count], ir.DataType.INT64)
