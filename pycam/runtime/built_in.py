"""What an exported explain graph has built in, and what may still be asked of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pycam.errors import HeadError, MethodError, ModelError

from .program import Program
from .spec import Spec

if TYPE_CHECKING:
    from pycam.targets.base import Target


def check_names(program: Program) -> None:
    """Inputs and outputs that the graph says it has must be there."""
    session, spec = program.session, program.spec
    there = {value.name for value in (*session.get_inputs(), *session.get_outputs())}
    missing = [name for name in (spec.image, spec.targets, *spec.returned) if name not in there]
    if missing:
        raise ModelError(
            f"the explain graph's own description names {missing[0]!r}, which is not there: export it again"
        )


def check_settled(spec: Spec, layout: Any, pins: Any, size: Any, tokens: Any) -> None:
    """An exported graph's inputs are as they are."""
    named = layout if isinstance(layout, Mapping) or layout is None else {spec.image: layout}
    asked = next((word for word, value in (("pins=", pins), ("size=", size), ("tokens=", tokens)) if value), "layout=")
    if asked != "layout=" or (named is not None and dict(named) != {spec.image: spec.layout}):
        raise MethodError(
            f"the explain graph has its inputs built in (the image {spec.image!r} is {spec.layout}): "
            f"leave {asked} out, or export the model again with it"
        )


def check_exported(
    spec: Spec,
    method: str,
    layer: str | Sequence[str],
    target: Target | None,
    output: str | None,
    head: str | None,
    objective: str,
    eigen_smooth: bool,
    combine: str,
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
        "target": target is None or (target.kind, target.options()) == (spec.target, spec.target_options),
        "output": output in (None, spec.score),
        "method": same_method,
        "objective": objective in ("class", spec.objective),
        "eigen_smooth": not eigen_smooth or spec.eigen_smooth,
        "combine": combine in ("mean", spec.combine),
        **{name: name in spec.options and spec.options[name] == _plain(value) for name, value in options.items()},
    }
    wrong = [name for name, same in fine.items() if not same]
    if wrong:
        built: dict[str, Any] = {
            "method": spec.method,
            "layer": spec.layer,
            "target": spec.target,
            "output": spec.score,
            "objective": spec.objective,
        }
        built |= {"eigen_smooth": spec.eigen_smooth, "combine": spec.combine, **spec.options}
        raise MethodError(
            f"the explain graph has its {', '.join(wrong)} built in ("
            f"{', '.join(f'{name} {value!r}' for name, value in built.items())}): export the model again for another"
        )
    if head == "graph" and spec.heatmaps is None:
        raise HeadError("the explain graph returns raw maps only: choose another head, or export it with heatmaps")
    if head not in (None, "graph") and not spec.raw:
        raise HeadError(f"the explain graph returns heatmaps only, so the head {head!r} has nothing to do")


def _plain(value: object) -> object:
    """An option as it comes back from JSON."""
    return list(value) if isinstance(value, tuple) else value
