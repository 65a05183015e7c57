"""`Explainer`: load or compile once, call from many threads."""

from __future__ import annotations

import operator
import os
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import BatchAxisError, HeadError, InputError, MethodError, ModelError, TargetError
from .explanation import Explanation
from .head import pick
from .preprocess import Preprocess
from .progress import progress as show_progress
from .runtime.augment import smoothed
from .runtime.feeds import Targets, check_against, check_inputs, check_targets, describe_inputs
from .runtime.folder import read_folder, stage_files
from .runtime.metadata import LABELS, PREPROCESS, read_metadata
from .runtime.program import BATCH, Program, Staged, Whole
from .runtime.session import make_session
from .runtime.spec import ROUNDING, Spec

if TYPE_CHECKING:
    import onnx

    from .compile import ExplainGraph

OUTPUTS = ("scores", "heatmaps", "raw")


class Explainer:
    """Explains a model's decisions; one object serves many threads, and calls leave no trace in it.

    Args:
        model: Path, bytes or ModelProto of a model (compiled here), or of an exported explain graph (run as it is).
        method: A name of `pycam.methods()`.
        layer: Tensor name, node name, module path of the source framework, "auto", or a list: their maps are averaged.
        target: What to explain when a call does not say: None (the top class), a class, or "top3".
        providers: onnxruntime execution providers; an unavailable one is an error.  None: CUDA if there, else CPU.
        threads: Threads within an op; None leaves it to onnxruntime.
        head: "graph" (heatmaps are computed by the explain graph), "cpu" (native) or "reference".  None: the fastest.
        output: The model output to explain; the first one if None.
        objective: "class": the score of the target; "counterfactual": its negative, what speaks against it;
            "contrastive": the score less that of another class, why this and not that.
        eigen_smooth: Project the weighted activations onto their first singular vector in place of summing them.
        aug_smooth: Average the maps of six versions of the image: mirrored or not, its values times 0.9, 1 and 1.1.
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
        target: Targets = None,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
        head: str | None = None,
        output: str | None = None,
        *,
        objective: str = "class",
        eigen_smooth: bool = False,
        aug_smooth: bool = False,
        batch: int = BATCH,
        progress: bool = False,
        **options: Any,
    ) -> None:
        if not isinstance(method, str):
            raise MethodError(f"method={method!r}: give a name of `pycam.methods()`")
        if isinstance(model, (str, os.PathLike)):
            model = os.path.abspath(model)  # it may be read again, from wherever the process is then
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
                "output": output,
                "outputs": outputs,
                "objective": objective,
                "eigen_smooth": eigen_smooth,
                "options": options,
            }
            self._one, self._many = self._build()
        else:
            _check_exported(spec, method, layer, output, head, objective, eigen_smooth, options)
            self._head = pick(head) if spec.heatmaps is None or head not in (None, "graph") else None
            self._one = self._load(model, spec)
            self._many = self._one if spec.many else None
        self.spec = self._one.spec
        self.target = target
        self.labels: tuple[str, ...] = tuple(metadata[LABELS].split("\n")) if LABELS in metadata else ()
        self.preprocess = Preprocess.from_json(metadata[PREPROCESS]) if PREPROCESS in metadata else None
        self.provider: str = self._one.session.get_providers()[0]
        chosen = (self.spec.targets, self.spec.against)
        inputs = tuple(i for i in describe_inputs(self._one.session) if i.name not in chosen)
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
        self, x: ArrayLike | Mapping[str, ArrayLike], targets: Targets = None, against: Targets = None
    ) -> Explanation:
        """Explain a batch.

        Args:
            x: The input batch, or {input name: array} for models with several inputs; shapes and dtypes as the model's.
            targets: Classes to explain: None (the default target), an int for all images, (N,) one per image,
                (N, K) several per image, "top3" for the three best, or a label.  −1 is the best class, −2 the second
                best, and so on.
            against: For the objective "contrastive", the class that each target is held against: None (the best class
                beside the target), an int or a label for all, or (N, K).

        Raises:
            InputError: wrong name, shape or dtype, NaN or infinity.
            TargetError: a class out of range, or a number of targets that does not fit the images.
        """
        feeds = check_inputs(x, self.inputs, self.spec.image)
        wanted = self.target if targets is None else targets
        if not self.spec.targeted and targets is not None:
            raise TargetError(f"the method {self.spec.method!r} finds by itself what it explains: leave targets out")
        chosen = check_targets(wanted, len(feeds[self.spec.image]), self.spec.classes, self.labels)
        given = {self.spec.targets: chosen}
        if self.spec.against is not None:
            given[self.spec.against] = check_against(against, chosen.shape, self.spec.classes, self.labels)
        elif against is not None:
            raise TargetError("against= belongs to the objective 'contrastive': make the Explainer with it")
        if not self.aug_smooth:
            return self._explain(feeds, given)
        return smoothed(self._explain, feeds, self.spec, given)

    def _explain(self, feeds: dict[str, NDArray[Any]], targets: dict[str, NDArray[np.int64]]) -> Explanation:
        image = feeds[self.spec.image]
        spec, outputs = self._run(feeds, targets)
        height, width = image.shape[2:] if spec.layout == "NCHW" else image.shape[1:3]
        raws = [outputs[name] for name in spec.raw]
        shown = [_from_minimum(raw) for raw in raws] if spec.levels else raws
        if self._head is not None:
            try:
                heatmaps, flat = self._head.finish(shown, (height, width))
            except ValueError as error:
                raise _not_finite(str(error)) from None
        else:
            heatmaps = outputs[spec.heatmaps or ""]
            if not np.isfinite(heatmaps.sum()):
                raise _not_finite("NaN in the heatmaps")
            flat = np.all([m.max(axis=(2, 3)) <= 0 for m in shown or [heatmaps]], axis=0)
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
            extras={key: outputs[name] for key, name in spec.extras.items()},
            objective=spec.objective,
        )

    def _run(
        self, feeds: dict[str, NDArray[Any]], targets: dict[str, NDArray[np.int64]]
    ) -> tuple[Spec, dict[str, NDArray[Any]]]:
        one, count = self._one, targets[self.spec.targets].shape[1]
        if count == 1:
            return one.spec, one.run(feeds, targets)
        many = self._several()
        if many is not None:
            return many.spec, many.run(feeds, targets)
        runs = [one.run(feeds, {name: t[:, k : k + 1] for name, t in targets.items()}) for k in range(count)]
        for_all = set(one.spec.outputs)  # the model's own
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
        _check_names(program)
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


def _plain(value: object) -> object:
    """An option as it comes back from JSON."""
    return list(value) if isinstance(value, tuple) else value


def _from_minimum(raw: NDArray[np.float32]) -> NDArray[np.float32]:
    """See `head.graph.from_minimum`."""
    lifted = raw - raw.min(axis=(2, 3), keepdims=True)
    noise = np.abs(raw).max(axis=(2, 3), keepdims=True) * np.float32(ROUNDING)
    return np.asarray(np.where(lifted.max(axis=(2, 3), keepdims=True) <= noise, 0, lifted), np.float32)


def _not_finite(why: str) -> InputError:
    return InputError(f"the explanation is not finite ({why}): this input makes the model's numbers overflow")


def _check_names(program: Program) -> None:
    """Inputs and outputs that the graph says it has must be there."""
    session, spec = program.session, program.spec
    there = {value.name for value in (*session.get_inputs(), *session.get_outputs())}
    missing = [name for name in (spec.image, spec.targets, *spec.returned) if name not in there]
    if missing:
        raise ModelError(
            f"the explain graph's own description names {missing[0]!r}, which is not there: export it again"
        )


def _check_exported(
    spec: Spec,
    method: str,
    layer: str | Sequence[str],
    output: str | None,
    head: str | None,
    objective: str,
    eigen_smooth: bool,
    options: Mapping[str, Any],
) -> None:
    """An exported graph has its method, layer and output built in: asking for others must not pass in silence."""
    names = list(zip(spec.layers, spec.modules, strict=True))
    asked = [layer] if isinstance(layer, str) else list(layer)
    same_layer = layer in ("auto", spec.layer) or (
        len(asked) == len(names) and all(one in known for one, known in zip(asked, names, strict=True))
    )
    separators = str.maketrans("", "", "-_ ")  # which names of methods may hold or not, see method.registry
    same_method = method.lower().translate(separators) in ("gradcam", spec.method.translate(separators))
    fine = {
        "layer": same_layer,
        "output": output in (None, spec.score),
        "method": same_method,
        "objective": objective in ("class", spec.objective),
        "eigen_smooth": not eigen_smooth or spec.eigen_smooth,
        **{name: name in spec.options and spec.options[name] == _plain(value) for name, value in options.items()},
    }
    wrong = [name for name, same in fine.items() if not same]
    if wrong:
        built: dict[str, Any] = {
            "method": spec.method,
            "layer": spec.layer,
            "output": spec.score,
            "objective": spec.objective,
        }
        built |= {"eigen_smooth": spec.eigen_smooth, **spec.options}
        raise MethodError(
            f"the explain graph has its {', '.join(wrong)} built in ("
            f"{', '.join(f'{name} {value!r}' for name, value in built.items())}): export the model again for another"
        )
    if head == "graph" and spec.heatmaps is None:
        raise HeadError("the explain graph returns raw maps only: choose another head, or export it with heatmaps")
    if head not in (None, "graph") and not spec.raw:
        raise HeadError(f"the explain graph returns heatmaps only, so the head {head!r} has nothing to do")
