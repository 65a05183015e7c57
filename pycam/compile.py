"""The compiler: a model, a method, a layer, a target → an explain graph.

    load → normalise → target → locate → method (which differentiates what it needs) → head → cut into stages → emit

Each step is a pure function of its own module; `compile_model` tells the story.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import onnx_ir as ir

from .errors import InputError, LayerError, MethodError, ModelError
from .graph import emit
from .graph.builder import LOWERS, PREFIX, Builder, Lower
from .graph.cut import cut, join
from .graph.depend import batched_inputs
from .graph.fold import fold_batchnorm
from .graph.load import Source, load
from .graph.locate import dims, locate_layers, module_path
from .graph.normalise import normalise
from .graph.pins import Pins, prepared
from .graph.pixels import Image, Layout, embed_preprocess, image_input
from .graph.shapes import appended, infer
from .graph.sizes import Sizes
from .graph.views import as_picture, as_positions, framed, model_value
from .head.combine import COMBINES
from .head.graph import from_minimum, map_heatmaps
from .method import Method, check_options, get
from .method.scene import Scene
from .preprocess import Preprocess
from .runtime.layouts import is_picture, position_axes
from .runtime.metadata import PREPROCESS
from .runtime.recipe import Recipe
from .runtime.spec import KEY, Spec
from .targets import Target, objectives
from .targets.base import Candidates
from .targets.choose import choose, class_input, target_count
from .targets.outputs import Outputs
from .targets.usual import usual

OUTPUTS = ("scores", "heatmaps", "raw")


@dataclass(frozen=True)
class ExplainGraph:
    """What the compiler makes.

    Attributes:
        models: The stages by name (see `runtime.recipe`), or one graph called "explain"; its, or the first stage's,
            metadata carry `spec`.
        folder: What their external data, if any, is relative to.
        spec: Names and facts that running them needs.
        repeats: K targets repeat large forward values of the tail (False: they share them all, at no cost).
    """

    models: Mapping[str, onnx.ModelProto]
    folder: Path
    spec: Spec
    repeats: bool

    @property
    def model(self) -> onnx.ModelProto:
        """The graph, where there is one."""
        (only,) = self.models.values()
        return only


def compile_model(
    source: Source,
    *,
    method: str = "gradcam",
    layer: str | Sequence[str] = "auto",
    target: Target | None = None,
    output: str | None = None,
    outputs: Collection[str] = OUTPUTS,
    tokens: Sequence[int] | None = None,
    size: Sizes | None = None,
    layout: Layout | None = None,
    pins: Pins | None = None,
    many: bool = True,
    preprocess: Preprocess | None = None,
    stand_alone: bool = True,
    lower: Lower = "fast",
    objective: str = "class",
    eigen_smooth: bool = False,
    combine: str = "mean",
    options: Mapping[str, Any] | None = None,
    joined: int = 0,
) -> ExplainGraph:
    """Compile a model into an explain graph.

    Args:
        source: Path, bytes or ModelProto.
        method: A name of `pycam.methods()`.
        layer: Tensor name, node name, module path, "auto", "all", or a list of names, whose maps are combined.
        target: What is explained; None: see `targets.usual`.
        output: The model output to explain, where the target does not say; the first one if None.
        outputs: What the graph returns: any of "scores" (the model's own outputs), "heatmaps", "raw".
        tokens: How tokens lie on the image's grid, where the graph does not tell: see `locate_layers`.
        size: The image's height and width, or the dimensions of inputs, where the model leaves them free.
        layout: How the axes of the image input lie, see `image_input`.
        pins: Inputs that are one number, or array, for good: see `pin_inputs`.
        many: The graph takes any number K of targets per image; else exactly one.
        preprocess: Put this preprocessing into the graph: its input is then `image`, uint8 (N, H, W, 3).
        stand_alone: The result holds its weights; else it refers to the files in `folder`, which costs no memory.
        lower: "fast": what measures fastest on onnxruntime; "portable": only forms that every runtime gets right.
        objective: What is differentiated: a name of `targets.objectives.OBJECTIVES`.
        eigen_smooth: Project weighted activations onto their first singular vector in place of summing them.
        combine: What the heatmap of several layers is of theirs: "mean", "max" or "product".
        options: Of the method.
        joined: Where a method has variants, and at most so many: one graph with all of them in one batch.

    Raises:
        ModelError, LayerError, MethodError, TargetError, UnsupportedOpError: see `pycam.errors`.
    """
    found, goal = get(method), objectives.get(objective)
    settings = check_options(found, options or {})
    _check(found, layer, lower, eigen_smooth, combine)
    wanted = _check_outputs(outputs)

    loaded = prepared(source, size, pins)
    if any(entry.key == KEY for entry in loaded.proto.metadata_props):
        raise ModelError("the model is an explain graph already: give the model that it was made from")
    model = normalise(loaded)
    graph = model.graph
    x, axes = image_input(graph, layout)
    image = Image(x, axes) if preprocess is None else embed_preprocess(graph, x, preprocess)
    taken = _targets(graph, image, output, many, goal.contrast)
    aim = target if target is not None else usual(taken.model)
    located = _candidates(aim, taken.model)
    ends = located.ends if located.positions else ()
    layers = (
        locate_layers(graph, layer, located.z, ends, tokens, points=located.points) if found.layers != "none" else []
    )
    fold_batchnorm(graph, keep=[*layers, *located.ends])
    seen = image.floats or (x if is_picture(axes) else as_picture(graph, x, position_axes(axes), "picture"))

    g = Builder(graph, lower=lower)
    chosen = choose(g, located, taken.model.targets, taken.against, taken.model.count)
    frame = framed(g, image, seen, axes)
    scene = Scene(g, *frame, layers, located.z, chosen, goal, found.title, eigen_smooth, located.fixed)
    for name, value in located.extras.items():
        scene.report(name, value)
    if chosen.against is not None:
        scene.report("against", chosen.against)
    if aim.kind != "class" and found.targeted:  # whose score is the model's output itself
        scene.report("score", objectives.CLASS.value(g, located.z, chosen))
    raws = [scene.read(raw) for raw in found(scene, settings)]
    shown = [from_minimum(g, raw) for raw in raws] if found.levels else raws
    maps = map_heatmaps(g, shown, scene.grids, image, combine) if "heatmaps" in wanted else None
    raws = [as_positions(g, raw, grid, scene.axes) for raw, grid in zip(raws, scene.grids, strict=False)]
    spec = replace(
        _describe(graph, found, aim, located, image, scene, many),
        targets=taken.model.targets.name or "",
        against=taken.against.name if taken.against is not None else None,
        given=taken.model.given,
        outputs=tuple(v.name or "" for v in graph.outputs) if "scores" in wanted else (),
        raw=tuple(g.free("raw" if len(raws) == 1 else f"raw.{i}") for i in range(len(raws))) if "raw" in wanted else (),
        heatmaps=g.free("heatmaps") if maps is not None else None,
        options=settings,
        combine=combine,
    )
    _set_outputs(graph, spec, image, scene, located.shown, raws, maps)
    stages, recipe = _in_stages(graph, scene, spec, joined)
    metadata = {KEY: replace(spec, recipe=recipe).to_json()}
    if preprocess is not None:
        metadata[PREPROCESS] = preprocess.to_json()
    models = {
        name: emit.finish(
            model if stage is graph else ir.Model(stage, ir_version=model.ir_version),
            metadata if name in ("explain", "prepare") else None,
            stand_alone=stand_alone,
            portable=g.portable,
        )
        for name, stage in stages.items()
    }
    return ExplainGraph(models, loaded.folder, replace(spec, recipe=recipe), any(r.heavy() for r in scene.repeats))


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


class _Taken(NamedTuple):
    """What the target is given."""

    model: Outputs
    against: ir.Value | None


def _targets(graph: ir.Graph, image: Image, output: str | None, many: bool, contrast: bool) -> _Taken:
    """The model's outputs beside the inputs `targets` and, for a contrast, `against`."""
    g, batch = Builder(graph, f"{PREFIX}/target"), dims(image.value)[0]
    targets = class_input(g, "targets", batch, many)
    against = class_input(g, "against", batch, many) if contrast else None
    count = target_count(g, targets) if many else None
    return _Taken(Outputs(g, image.value, image.layout, targets, count, output), against)


def _candidates(target: Target, model: Outputs) -> Candidates:
    """What the target makes of the outputs, with shapes, as it will be differentiated."""
    graph = model.g.graph
    before = len(graph)
    located = target.candidates(model)
    infer(appended(graph, before), model.g.opsets, model.g.fresh("dim"))
    if located.z not in located.ends:
        located.z.name = f"{PREFIX}/{located.noun} scores of {located.output.name}"  # errors name it
    return located


def _describe(
    graph: ir.Graph, method: Method, target: Target, located: Candidates, image: Image, scene: Scene, many: bool
) -> Spec:
    """The spec, but for its inputs and outputs."""
    batch = dims(image.value)[0]
    own = [v for v in graph.inputs if v not in scene.seams.placeholders]
    return Spec(
        method=method.name,
        layers=tuple(model_value(a).name or "" for a in scene.layers),
        modules=tuple(module_path(node) if (node := a.producer()) is not None else "" for a in scene.layers),
        image=image.value.name or "",
        layout=image.layout,
        targets="",
        explained=scene.g.free("explained"),
        score=located.output.name or "",
        outputs=(),
        raw=(),
        heatmaps=None,
        extras={name: scene.g.free(name) for name in scene.reports},
        classes=located.classes,
        many=many,
        probabilities=located.probabilities,
        plan=method.plan if scene.varies else "single pass",
        objective=scene.objective.name,
        eigen_smooth=scene.eigen,
        targeted=method.targeted,
        levels=method.levels,
        batched=tuple(v.name or "" for v in batched_inputs(own)),
        axes={v.name or "": axis for v in graph.outputs if (axis := _batch_axis(v, batch)) != 0},
        notes=located.notes,
        target=target.kind,
        target_options=target.options(),
        noun=located.noun,
        per_image=located.per_image,
    )


def _check(method: Method, layer: str | Sequence[str], lower: Lower, eigen_smooth: bool, combine: str) -> None:
    if lower not in LOWERS:
        raise InputError(f"lower={lower!r}: choose one of {', '.join(LOWERS)}")
    if combine not in COMBINES:
        raise InputError(f"combine={combine!r}: choose one of {', '.join(COMBINES)}")
    names: Any = [layer] if isinstance(layer, str) else layer
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise LayerError(f"layer={layer!r}: give a name, a list of names, or 'auto'")
    if method.layers == "none" and layer != "auto":
        raise MethodError(f"{method.title} looks at the whole model, not at a layer: leave {layer!r} out")
    if eigen_smooth and not method.weighs:
        raise MethodError(f"eigen_smooth works on methods that weigh activations, and {method.title} does not")


def _in_stages(graph: ir.Graph, scene: Scene, spec: Spec, joined: int) -> tuple[dict[str, ir.Graph], Recipe | None]:
    """The graph whole, where one will do; else cut."""
    seams, batch = scene.seams, dims(scene.x)[0]
    if scene.varies and isinstance(batch, int) and batch != 1:
        raise MethodError(
            f"{scene.title} runs the model on variants of one image, and this one takes batches of exactly {batch}: "
            "export it with a free batch size, or with 1"
        )
    if scene.varies:
        _take_one_image(graph, spec)
    fits = seams.at_most is not None and seams.at_most <= joined and not (batch == 1 and seams.at_most > 1)
    if not seams.placeholders:
        return {"explain": graph}, None
    if seams.joins and fits:
        join(graph, seams)
        return {"explain": graph}, None
    return cut(graph, seams, single=batch == 1)


def _take_one_image(graph: ir.Graph, spec: Spec) -> None:
    """Let the inputs say that there is one image, where there are variants of it."""
    for value in graph.inputs:
        if value.name in (spec.batched or ()) and value.shape is not None:
            value.shape = ir.Shape([1, *list(value.shape)[1:]])


def _batch_axis(value: ir.Value, batch: int | str) -> int | None:
    """Which axis of an output is the batch's; None: it has none.  The first, where nothing tells."""
    shape = dims(value)
    if value.shape is not None and not shape:
        return None
    if not shape or shape[0] == batch or "?" in (batch, shape[0]):
        return 0
    if batch in shape and not (batch == 1 and isinstance(shape[0], int)):
        return shape.index(batch)
    return None if isinstance(shape[0], int) else 0


def _set_outputs(
    graph: ir.Graph,
    spec: Spec,
    image: Image,
    scene: Scene,
    shown: ir.Value | None,
    raws: Sequence[ir.Value],
    maps: ir.Value | None,
) -> None:
    batch, count = (1 if scene.varies else dims(image.value)[0]), "K" if spec.many else 1
    if not spec.targeted:
        count = dims(raws[0])[1]
    if not spec.outputs:
        graph.outputs.clear()
    if maps is not None and spec.heatmaps is not None:
        size = [dims(image.value)[axis] for axis in position_axes(image.layout)]
        emit.add_output(graph, maps, spec.heatmaps, [batch, count, *size], ir.DataType.FLOAT)
    for name, raw in zip(spec.raw, raws, strict=False):  # no names where raw maps are not wanted
        emit.add_output(graph, raw, name, [batch, count, *(dims(raw)[2:] or "??")], ir.DataType.FLOAT)
    for key, name in spec.extras.items():
        value = scene.reports[key]
        emit.add_output(graph, value, name, None, value.dtype or ir.DataType.FLOAT)
    explained = scene.explained or shown or scene.chosen.explained
    emit.add_output(graph, explained, spec.explained, [batch, count], ir.DataType.INT64)
