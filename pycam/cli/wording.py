"""What an explanation means, in words: they depend on its objective, and on whether it was given its targets."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pycam.explanation import Explanation


def rival(result: Explanation, k: int) -> str | None:
    """Name of the class that map k of the first image is held against; None unless the objective is a contrast."""
    if "against" not in result.extras:
        return None
    other = int(result.extras["against"][0, k])
    return result.labels[other] if other < len(result.labels) else f"class {other}"


def objective(result: Explanation) -> str:
    """`contrastive: 'espresso' against 'cup'`; "" for what a class speaks for, which goes without saying."""
    if result.objective == "class":
        return ""
    pairs = [
        f"{result.label(0, k)!r} against {other!r}"
        for k in range(result.targets.shape[1])
        if (other := rival(result, k)) is not None
    ]
    return ": ".join(filter(None, [result.objective, ", ".join(pairs)]))


def flat(result: Explanation, k: int) -> str:
    """What an empty map k of the first image says."""
    if "concepts" in result.extras:
        return f"concept {k + 1} is nowhere in the photo"
    where, label, other = " at this layer" if result.layer else "", result.label(0, k), rival(result, k)
    if other is not None:
        return f"nothing in the photo speaks for {label!r} rather than {other!r}{where}"
    return f"nothing in the photo speaks {_side(result)} {label!r}{where}"


def flat_shortly(result: Explanation) -> str:
    """The same where a panel's title names the class."""
    return "nowhere" if "concepts" in result.extras else f"nothing speaks {_side(result)} it"


def title(result: Explanation, k: int) -> str:
    """Of panel k: the class, or the concept and the class that it speaks for."""
    label = result.label(0, k)
    return f"concept {k + 1} → {label}" if "concepts" in result.extras else label


def own_score(result: Explanation, k: int) -> str | None:
    """The score of map k, in words: of a concept for its class, or of a target that is no class; None where the class's
    own score says it."""
    if "concepts" in result.extras:
        return f"score {float(result.extras['concepts'][0, k, int(result.targets[0, k])]):.3g}"
    if "score" not in result.extras:
        return None
    if "box_scores" in result.extras:
        box = ", ".join(f"{v:.0f}" for v in result.extras["boxes"][0, k])
        return f"{float(result.extras['box_scores'][0, k]):.1%} at {box}"
    area = f" on {float(result.extras['area'][0, k]):.1%}" if "area" in result.extras else ""
    return f"score {float(result.extras['score'][0, k]):.4g}{area}"


def _side(result: Explanation) -> str:
    return "against" if result.objective == "counterfactual" else "for"
