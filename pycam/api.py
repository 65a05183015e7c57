"""The one-call functions: `explain`, `export`, `layers`.  What they need is imported when they are called."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InputError, OutputError
from .explainer import Explainer
from .explanation import Explanation
from .preprocess import Preprocess
from .runtime.feeds import Targets
from .runtime.metadata import PREPROCESS, read_metadata
from .runtime.program import BATCH
from .runtime.spec import CLASSES
from .targets.base import check_target

if TYPE_CHECKING:
    from .graph.builder import Lower
    from .graph.locate import Layer
    from .graph.pins import Pins
    from .graph.pixels import Layout
    from .graph.sizes import Sizes
    from .head.combine import Combine
    from .targets.base import Target

Model = Any  # path, bytes or onnx.ModelProto

ASSETS = Path(__file__).parent / "assets"
DEFAULT_MODEL = ASSETS / "lite0_w8.onnx"
"""EfficientNet-Lite0 on ImageNet-1k, 4.8 MB: what explains a photo when no model is given."""


def explain(
    model: Model,
    image: Any,
    targets: Targets = None,
    *,
    preprocess: Preprocess | None = None,
    **options: Any,
) -> Explanation:
    """Explain one picture, in one call: read, preprocess, explain.

    Args:
        model: Path, bytes or ModelProto; for many pictures make an `Explainer` once instead.
        image: Path, bytes, open file, Pillow image or uint8 array (H, W, 3).
        targets: See `Explainer.__call__`.
        preprocess: How to prepare the picture; None: as the model's metadata say, else ImageNet's usual way.
        **options: Of `Explainer` (method, layer, providers, …).

    Raises:
        ImageError: the picture cannot be read.
        PycamError: see `Explainer`.
    """
    from .image import crop, read

    picture = read(image)
    explainer = Explainer(model, **options)
    pre = preprocess or preprocess_of(explainer)
    return explainer(feed(explainer, crop(picture, pre), pre), targets)


def preprocess_of(explainer: Explainer) -> Preprocess:
    """How pictures are prepared for `explainer`: as its model says, else a guess from its input's shape; classifiers
    are shown the middle of a picture, other models all of it that has their aspect."""
    if explainer.preprocess is not None:
        return explainer.preprocess
    guess = Preprocess.for_input(explainer.input_shape)
    return guess if explainer.spec.target in CLASSES else replace(guess, crop=1.0)


def feed(explainer: Explainer, crops: Any, pre: Preprocess) -> Any:
    """Crops uint8 (N, H, W, 3) or (H, W, 3) as the explainer's input: normalised, unless its graph does that itself."""
    import numpy as np

    from .image import prepare

    if explainer.takes_pixels:
        return np.asarray(crops).reshape(-1, *pre.size, 3)
    dtype = next(i.dtype for i in explainer.inputs if i.name == explainer.spec.image)
    return prepare(crops, pre).astype(dtype if dtype == np.float16 else np.float32, copy=False)


def export(
    model: Model,
    path: str | os.PathLike[str],
    *,
    method: str = "gradcam",
    layer: str | Sequence[str] = "auto",
    target: Target | None = None,
    output: str | None = None,
    outputs: Collection[str] = ("scores", "heatmaps", "raw"),
    preprocess: Preprocess | bool | None = None,
    tokens: Sequence[int] | None = None,
    size: Sizes | None = None,
    layout: Layout | None = None,
    pins: Pins | None = None,
    classes: int | None = None,
    lower: Lower = "fast",
    objective: str = "class",
    eigen_smooth: bool = False,
    combine: Combine = "mean",
    batch: int = BATCH,
    **options: Any,
) -> Path:
    """Write the explain graph: one plain ONNX file that any ONNX runtime executes.

    Its inputs are the model's own and `targets`, int64 (N, K), −1 for the top class; its outputs the model's own,
    `heatmaps` (N, K, H, W) in [0, 1], `raw` (N, K, h, w) and `explained` (N, K).

    A method that needs many variants of an image, or numpy, does not fit in one graph: its stages go to a folder, with
    a `manifest.json` that says how they are run (docs/stages.md).  `Explainer` runs either, without onnx or onnx-ir.

    Args:
        model: Path, bytes or ModelProto.
        path: Where to write, checked before the work begins: a file `*.onnx`, or a folder, which is made.
        method, layer, target, output, tokens, size, layout, pins: See `Explainer`.
        objective, eigen_smooth, combine, options: See `Explainer`.
        outputs: Which of "scores", "heatmaps", "raw" the graph returns.
        preprocess: Put preprocessing into the graph, whose input is then `image`, uint8 (N, H, W, 3): a `Preprocess`,
            or True for the one in the model's metadata.
        classes: 1 fixes K to 1, which is cheaper for layers in the middle; None leaves it free.
        lower: "fast": the gradient in the forms that measure fastest on onnxruntime; "portable": only in forms that
            OpenVINO, OpenCV, tract and the others get right as well.
        batch: Up to so many variants go into one file, which then explains one image at a time, all variants at once.

    Returns:
        The path.

    Raises:
        OutputError: the path cannot be written, or is a file where a folder is needed.
        PycamError: see `Explainer`.
    """
    from .image import check_writable

    whole = Path(path).suffix != ""
    target = check_target(target)
    place = check_writable(path, suffixes=(".onnx",)) if whole else Path(path)
    if isinstance(model, (str, os.PathLike)) and place.exists() and os.path.samefile(model, place):
        raise OutputError(f"{str(place)!r} is the model itself: write the explain graph somewhere else")
    if type(batch) is not int or batch < 1:
        raise InputError(f"batch={batch!r}: give the number of variants that may go into one file, 1 or more")
    if classes not in (None, 1):
        raise InputError(f"classes={classes}: 1 fixes one target per image, None leaves the number free")
    metadata = (
        read_metadata(model)
        if isinstance(model, (str, bytes, os.PathLike))
        else {p.key: p.value for p in model.metadata_props}
    )
    if preprocess is True:
        if PREPROCESS not in metadata:
            raise InputError(
                f"preprocess=True, but the model carries none (metadata {PREPROCESS!r}): give a Preprocess"
            )
        preprocess = Preprocess.from_json(metadata[PREPROCESS])
    from .compile import compile_model
    from .graph.save import check_place, save

    check_place(place, 1, os.fspath(model) if isinstance(model, (str, os.PathLike)) else None)

    graph = compile_model(
        model,
        method=method,
        layer=layer,
        target=target,
        output=output,
        outputs=outputs,
        tokens=tokens,
        size=size,
        layout=layout,
        pins=pins,
        many=classes != 1,
        preprocess=preprocess or None,
        lower=lower,
        objective=objective,
        eigen_smooth=eigen_smooth,
        combine=combine,
        options=options,
        joined=batch if whole else 0,
    )
    save(graph, place, metadata)
    return place


def layers(
    model: Model,
    output: str | None = None,
    *,
    size: Sizes | None = None,
    layout: Layout | None = None,
    pins: Pins | None = None,
) -> list[Layer]:
    """The layers that can be explained, in the order of computation: name, module path, shape, share of the compute.

    Args:
        model: Path, bytes or ModelProto.
        output: The model output that is explained; the first one if None.
        size, layout, pins: See `Explainer`.
    """
    from .graph.locate import list_layers, locate_score
    from .graph.normalise import normalise
    from .graph.pins import prepared
    from .graph.pixels import mark_image

    graph = normalise(prepared(model, size, pins)).graph
    mark_image(graph, layout)
    return list_layers(graph, locate_score(graph, output).value)
