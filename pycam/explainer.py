"""`Explainer`: load or compile once, call from many threads."""

from __future__ import annotations

import operator
import os
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import BatchAxisError, InputError, MethodError, ModelError, TargetError
from .explanation import Explanation
from .head import pick
from .head.combine import Combine, finished
from .preprocess import Preprocess
from .progress import progress as show_progress
from .runtime.augment import smoothed
from .runtime.built_in import check_exported, check_names, check_settled
from .runtime.feeds import Targets, check_against, check_inputs, check_targets, describe_inputs
from .runtime.folder import read_folder, stage_files
from .runtime.found import check_found
from .runtime.given import Call, check_given, reference_count
from .runtime.layouts import position_axes
from .runtime.metadata import LABELS, PREPROCESS, read_metadata
from .runtime.program import BATCH, Program, Staged, Whole
from .runtime.session import make_session
from .runtime.spec import Spec
from .targets.base import Target, check_target

if TYPE_CHECKING:
    import onnx

    from .compile import ExplainGraph
    from .graph.pins import Pins
    from .graph.pixels import Layout
    from .graph.sizes import Sizes

OUTPUTS = ("scores", "heatmaps", "raw")


class Explainer:
    """Explains a model's decisions; one object serves many threads, and calls leave no trace in it.

    Args:
        model: Path, bytes or ModelProto of a model (compiled here), or of an exported explain graph (run as it is).
        method: A name of `pycam.methods()`.
        layer: Tensor name, node name, module path of the source framework, "auto", "all", or a list of names, whose
            maps are combined.
        target: What is explained: a value of `pycam.targets`, such as `Segmentation()`.  Else classes (or a
            detection or segmentation, where the outputs look like one: `Explainer.spec.target` says), and this is what
            to explain when a call does not say: None (the top class), a class, or "top3".
        providers: onnxruntime execution providers; an unavailable one is an error.  None: CUDA if there, else CPU.
        threads: Threads within an op; None leaves it to onnxruntime.
        head: "graph" (heatmaps are computed by the explain graph), "cpu" (native) or "reference".  None: the fastest.
        output: The model output to explain; the first one if None.
        objective: "class": the score of the target; "counterfactual": its negative, what speaks against it;
            "contrastive": the score less that of another class, why this and not that.
        eigen_smooth: Project the weighted activations onto their first singular vector in place of summing them.
        aug_smooth: Average the maps of six versions of the image: mirrored or not, its values times 0.9, 1 and 1.1.
        combine: What the heatmap of several layers is of theirs: "mean", "max" or "product".  Those of each layer are
            `Explanation.per_layer()`.
        tokens: (height, width), (height, width, before) or (height, width, before, after): the grid of a transformer's
            tokens, and how many special ones lie around it, where the graph does not tell.
        size: The image's (height, width), or {input: dimensions}, for a model that leaves them free: then it is known
            where tokens lie.  The explain graph takes this size alone.
        layout: How the axes of the image input lie, where its shape does not tell: "NCHW", "NHWC"; of signals "NCL",
            "NLC", "NL"; of volumes and video "NCDHW", "NDHWC".  {input: layout} also says which input is the image.
        pins: {input: value} for inputs that are settings, the same for good: they become constants of the graph.
        batch: How many variants of an image may go through the model at once, for methods that need some: it bounds
            memory.  More are split.
        progress: Show how far the variants of an image are, on standard error.
        **options: Of the method, see `pycam.methods()`.

    Attributes:
        spec: What the explain graph says about itself.
        labels: Class names, if the model carries them (metadata `pycam.labels`), else ().
        inputs: The graph's inputs but the targets, (name, dtype, shape).
        preprocess: How to prepare pictures, if the model says so (metadata `pycam.preprocess`), else None.

    A model given as a path is not read into memory: its weights are mapped from the file, so replace a file that is in
    use by renaming a new one over it, never by writing into it (or give `path.read_bytes()`).

    Raises:
        PycamError: see `pycam.errors`.

    Example:
        >>> explainer = pycam.Explainer("resnet50.onnx")
        >>> explainer(x).heatmaps.shape
        (1, 1, 224, 224)
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | bytes | onnx.ModelProto,
        method: str = "gradcam",
        layer: str | Sequence[str] = "auto",
        target: Target | Targets = None,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
        head: str | None = None,
        output: str | None = None,
        *,
        objective: str = "class",
        eigen_smooth: bool = False,
        aug_smooth: bool = False,
        combine: Combine = "mean",
        tokens: Sequence[int] | None = None,
        size: Sizes | None = None,
        layout: Layout | None = None,
        pins: Pins | None = None,
        batch: int = BATCH,
        progress: bool = False,
        **options: Any,
    ) -> None:
        if not isinstance(method, str):
            raise MethodError(f"method={method!r}: give a name of `pycam.methods()`")
        if isinstance(model, (str, os.PathLike)):
            model = os.path.abspath(model)  # it may be read again, from wherever the process is then
        aim = check_target(target)
        self._options: dict[str, Any] = {"providers": providers, "threads": threads}
        self._batch, self._progress = _rows(batch), show_progress if progress else None
        self.aug_smooth = aug_smooth
        self._lock = threading.Lock()
        self._compile: dict[str, Any] | None = None
        metadata = _metadata(model)
        spec = Spec.from_metadata(metadata)
        if spec is None:
            self._head = None if head == "graph" else pick(head)
            outputs = ("scores", "raw") if self._head is not None else OUTPUTS
            self._signature = _signature(model)
            self._compile = {
                "source": model,
                "method": method,
                "layer": layer,
                "target": aim,
                "output": output,
                "outputs": outputs,
                "tokens": tokens,
                "size": size,
                "layout": layout,
                "pins": pins,
                "objective": objective,
                "eigen_smooth": eigen_smooth,
                "combine": combine,
                "options": options,
            }
            self._one, self._many = self._build()
        else:
            check_settled(spec, layout, pins, size, tokens)
            check_exported(spec, method, layer, aim, output, head, objective, eigen_smooth, combine, options)
            self._head = pick(head) if spec.heatmaps is None or head not in (None, "graph") else None
            self._one = self._load(model, spec)
            self._many = self._one if spec.many else None
        self.spec = self._one.spec
        self.target: Targets = None if isinstance(target, Target) else target
        self.labels: tuple[str, ...] = tuple(metadata[LABELS].split("\n")) if LABELS in metadata else ()
        self.preprocess = Preprocess.from_json(metadata[PREPROCESS]) if PREPROCESS in metadata else None
        self.provider: str = self._one.session.get_providers()[0]
        inputs = tuple(i for i in describe_inputs(self._one.session) if i.name not in self.spec.chosen)
        one_by_one = self.spec.plan != "single pass"  # then any number of images will do
        self.inputs = tuple(i._replace(shape=(None, *i.shape[1:])) if one_by_one and i.shape else i for i in inputs)

    @property
    def input_shape(self) -> tuple[int | str | None, ...]:
        """Shape of the image input as the model declares it; a free size is a name or None."""
        return next(i.shape for i in self.inputs if i.name == self.spec.image)

    @property
    def takes_pixels(self) -> bool:
        """Whether preprocessing is part of the graph: its image input is uint8 (N, H, W, 3)."""
        return any(i.name == self.spec.image and i.dtype == np.uint8 for i in self.inputs)

    def __call__(
        self,
        x: ArrayLike | Mapping[str, ArrayLike],
        targets: Targets = None,
        against: Targets = None,
        **given: Any,
    ) -> Explanation:
        """Explain a batch.

        Args:
            x: The input batch, or {input name: array} for models with several inputs; shapes and dtypes as the model's.
            targets: Classes to explain: None (the default target), an int for all images, (N,) one per image,
                (N, K) several per image, "top3" for the three best, or a label.  −1 is the best class, −2 the second
                best, and so on.
            against: For the objective "contrastive", the class that each target is held against: None (the best class
                beside the target), an int or a label for all, or (N, K).
            **given: What else the target takes, such as mask=, box=, position= or reference=: see its docstring.

        Raises:
            InputError: wrong name, shape or dtype, NaN or infinity.
            TargetError: a class out of range, or a number of targets that does not fit the images.
        """
        feeds = check_inputs(x, self.inputs, self.spec.image)
        wanted = self.target if targets is None else targets
        if not self.spec.targeted and targets is not None:
            raise TargetError(f"the method {self.spec.method!r} finds by itself what it explains: leave targets out")
        image = feeds[self.spec.image]
        classes = self.spec.classes
        if "reference" in self.spec.given and given.get("reference") is not None:
            classes = reference_count(given["reference"])
        chosen = check_targets(wanted, len(image), classes, self.labels, self.spec.noun)
        arrays: dict[str, NDArray[Any]] = {self.spec.targets: chosen}
        if self.spec.against is not None:
            arrays[self.spec.against] = check_against(against, chosen.shape, self.spec.classes, self.labels)
        elif against is not None:
            raise TargetError("against= belongs to the objective 'contrastive': make the Explainer with it")
        if self.spec.given or given:
            images, count = chosen.shape
            call = Call(images, count, *(1, *self._size(image))[-2:])
            arrays |= check_given(given, self.spec.given, call, self.spec.target)
        found = smoothed(self._explain, feeds, self.spec, arrays) if self.aug_smooth else self._explain(feeds, arrays)
        check_found(self.spec, arrays, found.extras | {"explained": found.targets}, self.labels)
        return found

    def embed(self, x: ArrayLike | Mapping[str, ArrayLike]) -> NDArray[Any]:
        """The embeddings of other images: what the target `Similarity` takes as `reference=`.

        Args:
            x: See `__call__`.

        Returns:
            (N, D).

        Raises:
            InputError: see `__call__`.
            TargetError: the target is no similarity.
        """
        if "embedding" not in self.spec.extras:
            raise TargetError(f"the target {self.spec.target!r} compares no embeddings: use pycam.targets.Similarity()")
        feeds = check_inputs(x, self.inputs, self.spec.image)
        images = len(feeds[self.spec.image])
        blank = {one.input: np.zeros(one.sizes(Call(images, 1, 1, 1)), one.dtype) for one in self.spec.given.values()}
        targets = {name: np.full((images, 1), -1, np.int64) for name in (self.spec.targets, self.spec.against) if name}
        session = self._one.session
        given = {
            name: array
            for name, array in {**feeds, **targets, **blank}.items()
            if name in {i.name for i in session.get_inputs()}
        }
        return np.asarray(session.run([self.spec.extras["embedding"]], given)[0])  # and nothing behind it

    def _size(self, image: NDArray[Any]) -> tuple[int, ...]:
        """Height and width; length of a signal; depth, height and width of a volume."""
        return tuple(image.shape[axis] for axis in position_axes(self.spec.layout))

    def _explain(self, feeds: dict[str, NDArray[Any]], targets: dict[str, NDArray[Any]]) -> Explanation:
        spec, outputs = self._run(feeds, targets)
        raws = [outputs[name] for name in spec.raw]
        extras = {key: outputs[name] for key, name in spec.extras.items()}
        size = self._size(feeds[spec.image])
        heatmaps, flat = finished(self._head, raws, outputs.get(spec.heatmaps or ""), size, spec)
        scores = {name: outputs[name] for name in spec.outputs}
        return Explanation(
            heatmaps=heatmaps,
            raw=raws[0] if len(raws) == 1 else tuple(raws),
            scores=next(iter(scores.values())) if len(scores) == 1 else scores,
            targets=outputs[spec.explained],
            flat=flat,
            layer=spec.layer,
            method=spec.method,
            provider=self.provider,
            notes=spec.notes,
            labels=self.labels,
            extras=extras,
            objective=spec.objective,
            target=spec.target,
            noun=spec.noun,
        )

    def _run(
        self, feeds: dict[str, NDArray[Any]], targets: dict[str, NDArray[Any]]
    ) -> tuple[Spec, dict[str, NDArray[Any]]]:
        one, count = self._one, targets[self.spec.targets].shape[1]
        if count == 1:
            return one.spec, one.run(feeds, targets)
        many = self._several()
        if many is not None:
            return many.spec, many.run(feeds, targets)
        sliced = [
            {name: array[:, k : k + 1] if name in one.spec.per_target else array for name, array in targets.items()}
            for k in range(count)
        ]
        runs = [one.run(feeds, each) for each in sliced]
        for_all = {*one.spec.outputs, *(one.spec.extras[key] for key in one.spec.per_image)}
        return one.spec, {
            name: first if name in for_all else np.concatenate([run[name] for run in runs], axis=1)
            for name, first in runs[0].items()
        }

    def _build(self) -> tuple[Program, Program | None]:
        """(program for one target per image, for several); one serves both unless it would repeat large values."""
        try:
            graph = self._compiled(many=True)
        except BatchAxisError:
            graph = None
        if graph is not None and not graph.repeats:
            both = self._program(graph)
            return both, both
        return self._program(self._compiled(many=False)), None

    def _several(self) -> Program | None:
        """The program for several targets, compiled when first needed; None where each target needs its own run."""
        with self._lock:
            if self._many is None and self._compile is not None:
                if _signature(self._compile["source"]) != self._signature:
                    raise ModelError(
                        f"the model {os.fspath(self._compile['source'])!r} has changed since this Explainer was made: "
                        "make a new one"
                    )
                try:
                    self._many = self._program(self._compiled(many=True))
                except BatchAxisError:
                    self._compile = None  # asked once is enough
            return self._many

    def _compiled(self, many: bool) -> ExplainGraph:
        from .compile import compile_model  # brings onnx and onnx-ir, which running an exported graph does without

        assert self._compile is not None
        return compile_model(**self._compile, many=many, stand_alone=False)

    def _program(self, graph: ExplainGraph) -> Program:
        return self._started(
            {name: model.SerializeToString() for name, model in graph.models.items()}, graph.spec, graph.folder
        )

    def _load(self, model: Any, spec: Spec) -> Program:
        """The program of an exported graph: a file, bytes, a ModelProto, or a folder of stages."""
        if isinstance(model, (str, os.PathLike)) and os.path.isdir(model):
            return self._started(stage_files(model), spec, None)
        source = model if isinstance(model, (str, os.PathLike, bytes)) else model.SerializeToString()
        program = self._started({"explain": source}, spec, None)
        check_names(program)
        return program

    def _started(self, sources: Mapping[str, Any], spec: Spec, folder: Any) -> Program:
        sessions = {name: make_session(source, folder=folder, **self._options) for name, source in sources.items()}
        if "explain" in sessions:
            return Whole(sessions["explain"], spec)
        return Staged(sessions, spec, self._batch, self._progress)


def _signature(model: object) -> tuple[int, ...]:
    """What tells a model file from one that took its place; () for a model in memory or a file that is gone."""
    try:
        found = os.stat(model) if isinstance(model, (str, os.PathLike)) else None
    except OSError:
        found = None
    return (found.st_ino, found.st_size, found.st_mtime_ns) if found is not None else ()


def _metadata(model: str | os.PathLike[str] | bytes | onnx.ModelProto) -> dict[str, str]:
    if isinstance(model, (str, os.PathLike)) and os.path.isdir(model):
        return read_folder(model)
    if isinstance(model, (str, os.PathLike, bytes)):
        return read_metadata(model)
    if not hasattr(model, "metadata_props"):
        raise ModelError(f"a model is a path, bytes or a ModelProto, not {type(model).__name__}")
    return {p.key: p.value for p in model.metadata_props}


def _rows(batch: Any) -> int:
    """`batch`, checked."""
    try:
        rows = 0 if isinstance(batch, bool) else operator.index(batch)
    except TypeError:
        rows = 0
    if rows < 1:
        raise InputError(f"batch={batch!r}: give the number of rows that may go through the model at once, 1 or more")
    return rows
