"""`Explainer`: load or compile once, call from many threads."""

from __future__ import annotations

import operator
import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import InputError, MethodError, TargetError
from .explanation import Explanation
from .head import pick
from .loading import Compiling, Exported, Starter, metadata_of
from .runtime.built_in import check_exported, check_settled
from .runtime.device import place_of
from .runtime.feeds import Targets, check_against, check_inputs, check_targets, describe_inputs
from .runtime.found import check_found
from .runtime.layouts import position_axes
from .runtime.metadata import LABELS, PREPROCESS
from .runtime.outcome import check_device, check_place, choose_head, outcome
from .runtime.program import BATCH, Program
from .runtime.spec import Spec

if TYPE_CHECKING:
    import onnx

    from .graph.pins import Pins
    from .graph.pixels import Layout
    from .graph.sizes import Sizes
    from .head.combine import Combine
    from .preprocess import Preprocess
    from .runtime.cache import Cache
    from .runtime.providers import Asked
    from .targets.base import Target

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
        providers: onnxruntime execution providers in order of preference, such as "CUDA" or ("TensorRT", {option:
            value}); one that cannot be had is an error.  None: CUDA if there, else CPU.
        threads: Threads within an op, and of the native head; None leaves it to onnxruntime, and to the head.
        head: "graph" (heatmaps are computed by the explain graph), "cpu" (native), "cuda" (on the device, through CuPy)
            or "reference".  None: "cuda" where the maps are on a CUDA device already, else "cpu".
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
        device: Where `heatmaps` and `raw` of an explanation are: "cpu", as numpy arrays, or "cuda", as CuPy arrays; the
            model must run there too, in one graph.  See `docs/gpu.md`.
        spin: Idle threads of a session wait actively for a while; False: they sleep, and leave the cores to others.
        shrink: Give memory back after each run, in place of keeping the most that any needed.
        cache: Keep what starting took, so that the next process starts faster: a folder, True (the usual one), False,
            or None: as the environment variable PYCAM_CACHE says, else not.  See `docs/sessions.md`.
        **options: Of the method, see `pycam.methods()`.

    Attributes:
        spec: What the explain graph says about itself.
        labels: Class names, if the model carries them (metadata `pycam.labels`), else ().
        inputs: The graph's inputs but the targets, (name, dtype, shape).
        preprocess: How to prepare pictures, if the model says so (metadata `pycam.preprocess`), else None.
        device, batch: As given.

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
        providers: Asked | Sequence[Asked] | None = None,
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
        device: str = "cpu",
        spin: bool = True,
        shrink: bool = False,
        cache: str | os.PathLike[str] | bool | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(method, str):
            raise MethodError(f"method={method!r}: give a name of `pycam.methods()`")
        if isinstance(model, (str, os.PathLike)):
            model = os.path.abspath(model)  # it may be read again, from wherever the process is then
        aim = _target(target)
        self.device = check_device(device)
        self._options: dict[str, Any] = {"providers": providers, "threads": threads, "spin": spin, "shrink": shrink}
        self.batch = _rows(batch)
        starter = Starter({**self._options, "cache": _cache(cache)}, self.batch, _shown() if progress else None)
        self.aug_smooth = aug_smooth
        metadata = metadata_of(model)
        spec = Spec.from_metadata(metadata)
        self._programs: Exported | Compiling
        if spec is None:
            self._head = None if head == "graph" else pick(head, threads)
            outputs = ("scores", "raw") if self._head is not None else OUTPUTS
            arguments = {
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
            self._programs = Compiling(arguments, starter)
        else:
            check_settled(spec, layout, pins, size, tokens)
            check_exported(spec, method, layer, aim, output, head, objective, eigen_smooth, combine, options)
            self._head = pick(head, threads) if spec.heatmaps is None or head not in (None, "graph") else None
            self._programs = Exported(model, spec, starter)
        self._one = self._programs.one
        self.spec = self._one.spec
        self._head = choose_head(self._head, head, self._one.session, self.spec, device)
        self.target: Targets = target if aim is None else None  # type: ignore[assignment]  # then it is no Target
        self.labels: tuple[str, ...] = tuple(metadata[LABELS].split("\n")) if LABELS in metadata else ()
        self.preprocess = _preprocess(metadata[PREPROCESS]) if PREPROCESS in metadata else None
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
                Where the model runs on a CUDA device, arrays of CuPy, torch … that lie there are read in place.
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
        check_place(feeds, self._one.session)
        wanted = self.target if targets is None else targets
        if not self.spec.targeted and targets is not None:
            raise TargetError(f"the method {self.spec.method!r} finds by itself what it explains: leave targets out")
        image = feeds[self.spec.image]
        classes = self.spec.classes
        if "reference" in self.spec.given and given.get("reference") is not None:
            from .runtime.given import reference_count

            classes = reference_count(given["reference"])
        chosen = check_targets(wanted, len(image), classes, self.labels, self.spec.noun)
        arrays: dict[str, NDArray[Any]] = {self.spec.targets: chosen}
        if self.spec.against is not None:
            arrays[self.spec.against] = check_against(against, chosen.shape, self.spec.classes, self.labels)
        elif against is not None:
            raise TargetError("against= belongs to the objective 'contrastive': make the Explainer with it")
        if self.spec.given or given:
            from .runtime.given import Call, check_given

            images, count = chosen.shape
            call = Call(images, count, *(1, *self._size(image))[-2:])
            arrays |= check_given(given, self.spec.given, call, self.spec.target)
        found = self._smoothed(feeds, arrays)
        check_found(self.spec, arrays, found.extras | {"explained": found.targets}, self.labels)
        return found

    def warmup(self, batch: int = 1, *, size: Sizes | None = None, targets: int = 1) -> float:
        """Explain once, for nothing: what a first call allocates, compiles or loads is then there for the next ones.

        Args:
            batch: Images per call, as in the calls to come.
            size: See `Explainer`: for a model that leaves the image's size free, or those of other inputs.
            targets: Targets per image.

        Returns:
            The seconds that it took.

        Raises:
            InputError: a size that is free and was not given, or that the model does not take.
        """
        from .runtime.neutral import neutral_inputs, neutral_targets

        start = time.perf_counter()
        feeds = neutral_inputs(self.inputs, self.spec, _rows(batch), size)
        shape = self._size(feeds[self.spec.image])
        self._smoothed(feeds, neutral_targets(self.spec, batch, _rows(targets), shape))
        return time.perf_counter() - start

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
        from .runtime.neutral import neutral_targets

        session, targets = self._one.session, neutral_targets(self.spec, len(feeds[self.spec.image]), 1, (1, 1))
        there = {i.name for i in session.get_inputs()}
        given = {name: array for name, array in {**feeds, **targets}.items() if name in there}
        place = place_of(session)
        with place.turn():
            found = session.run([self.spec.extras["embedding"]], given)  # and nothing behind it
            return place.fetch({"": found[0]})[""]

    def _size(self, image: NDArray[Any]) -> tuple[int, ...]:
        """Height and width; length of a signal; depth, height and width of a volume."""
        return tuple(image.shape[axis] for axis in position_axes(self.spec.layout))

    def _smoothed(self, feeds: dict[str, NDArray[Any]], arrays: dict[str, NDArray[Any]]) -> Explanation:
        if not self.aug_smooth:
            return self._explain(feeds, arrays)
        from .runtime.augment import smoothed

        return smoothed(self._explain, feeds, self.spec, arrays)

    def _explain(self, feeds: dict[str, NDArray[Any]], targets: dict[str, NDArray[Any]]) -> Explanation:
        program = self._one if targets[self.spec.targets].shape[1] == 1 else self._programs.several() or self._one
        spec, place = program.spec, place_of(program.session)
        with place.turn():
            made = self._run(program, feeds, targets)
            size = self._size(feeds[spec.image])
            heatmaps, flat, raws, outputs = outcome(place, made, self._head, size, spec, self.device)
        extras = {key: outputs[name] for key, name in spec.extras.items()}
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
            threads=self._options["threads"],
        )

    def _run(
        self, one: Program, feeds: dict[str, NDArray[Any]], targets: dict[str, NDArray[Any]]
    ) -> dict[str, NDArray[Any]]:
        count = targets[self.spec.targets].shape[1]
        if count == 1 or one.spec.many:
            return one.run(feeds, targets)
        sliced = [
            {name: array[:, k : k + 1] if name in one.spec.per_target else array for name, array in targets.items()}
            for k in range(count)
        ]
        runs = [one.run(feeds, each) for each in sliced]
        for_all = {*one.spec.outputs, *(one.spec.extras[key] for key in one.spec.per_image)}
        return {
            name: first if name in for_all else np.concatenate([run[name] for run in runs], axis=1)
            for name, first in runs[0].items()
        }


def _target(target: Any) -> Target | None:
    """See `check_target`, which the usual case does without."""
    if target is None:
        return None
    from .targets.base import check_target

    return check_target(target)


def _cache(asked: Any) -> Cache | None:
    """See `locate`, which the usual case does without."""
    if asked is False or (asked is None and not os.environ.get("PYCAM_CACHE")):
        return None
    from .runtime.cache import locate

    return locate(asked)


def _preprocess(text: str) -> Preprocess:
    from .preprocess import Preprocess

    return Preprocess.from_json(text)


def _shown() -> Any:
    from .progress import progress

    return progress


def _rows(batch: Any) -> int:
    """A number of rows, checked."""
    try:
        rows = 0 if isinstance(batch, bool) else operator.index(batch)
    except TypeError:
        rows = 0
    if rows < 1:
        raise InputError(f"batch={batch!r}: give the number of rows that may go through the model at once, 1 or more")
    return rows
