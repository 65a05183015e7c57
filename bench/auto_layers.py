"""What `layer="auto"` picks on the model zoos, and whether that is right: docs/auto-layers.md.

Every classification, segmentation, detection and video model of torchvision, and the smallest models of every module of
timm (`bench/zoo_models.py`), with seeded random weights: nothing is downloaded.

    python -m bench.auto_layers --export             # export all; goes on where it stopped
    python -m bench.auto_layers --pick               # what pycam picks on what was exported
    python -m bench.auto_layers --table              # print docs/auto-layers.md; --write writes it
    python -m bench.auto_layers --export --pick --only 'timm/(tnt|crossvit)' --again

An export is kept without its weights (they point into one sparse file of zeros), some hundred kilobytes a model in
``$PYCAM_BENCH_CACHE/auto-layers``: picking anew takes seconds a model.  One JSON line a model lies in
``auto-layers-export.jsonl`` and ``auto-layers.jsonl`` beside it.

Whether a pick is right is judged by what torch's modules did, never by the ONNX graph:

- no module with weights that works on all positions comes later, apart from those of the last attention;
- by torch's gradients the score depends on most positions of what was picked;
- its grid is that of the modules there.

Scores that keep positions (masks, boxes) have no such reference: they are listed, not judged.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.auto_exports import Exported, append, export_all, place, read

# ---------------------------------------------------------------------------------------------------------------- pick


@dataclass
class Picked:
    """What pycam picked, and whether that is right."""

    name: str
    family: str
    task: str
    layer: str = ""
    module: str = ""
    after: str = ""  # the module, or the last one before
    kind: str = ""  # features, (N, h, w, C), tokens
    shape: list[int | str] = field(default_factory=list)  # (N, C, h, w) in any case
    special: list[int] = field(default_factory=list)  # tokens before and after the grid
    behind: float = 0.0  # share of the model's multiply-adds behind the layer
    right: bool | None = None
    why: str = ""
    failure: str = ""


def pick(found: Exported) -> Picked:
    """Locate "auto" in an export."""
    from pycam.graph.layout import channels_last
    from pycam.graph.load import load
    from pycam.graph.locate import dims, list_layers, locate_layers, locate_score, module_path
    from pycam.graph.normalise import normalise
    from pycam.graph.tokens import placed

    result = Picked(found.name, found.family, found.task)
    try:
        graph = normalise(load(place(found.name))).graph
        ends = [y for y in graph.outputs if y.dtype is not None and y.dtype.is_floating_point()]
        score = locate_score(graph, ends[0].name).value
        shares = {layer.name: layer.share for layer in list_layers(graph, score)}
        keeps_positions = found.task in ("segmentation", "detection")
        (value,) = locate_layers(graph, "auto", score, ends=ends if keeps_positions else ())
    except Exception as error:
        result.failure = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return result
    node, tokens = value.producer(), placed(value)
    own = tokens.made if tokens is not None else value.meta.get("layer_of", value)
    result.layer, result.shape = own.name or "", list(dims(value))
    result.module = (module_path(node) if node is not None else "").removeprefix("model.")
    node = own.producer()
    while node is not None and not result.after:  # in front of what merely moves numbers, or lies in no module
        result.after = module_path(node).removeprefix("model.") if node.op_type not in MOVES else ""
        node = next((x.producer() for x in node.inputs if x is not None and x.producer() is not None), None)
    result.kind = "tokens" if tokens is not None else "(N, h, w, C)" if channels_last(own) else "features"
    result.special = [tokens.tokens.before, tokens.tokens.after] if tokens is not None else []
    result.behind = shares.get(result.layer, 0.0)
    if not keeps_positions:
        result.right, result.why = judge(found, result)
    return result


def judge(found: Exported, picked: Picked) -> tuple[bool, str]:
    """Whether all that torch's modules do with the image's positions lies in front of what was picked, but for what
    the last attention makes of them."""
    grid = list(picked.shape[2:])
    path = picked.after
    if not any(_within(call[0], path) for call in found.calls):
        path = re.sub(r"_\d+$", "", path)  # the older exporter numbers the calls of a module
    at = max((i for i, call in enumerate(found.calls) if _within(call[0], path)), default=-1)
    if at < 0:
        return False, f"torch called no module {path!r}"
    if found.calls[at][0] == path and found.calls[at][4] <= 0.5:
        return False, f"the score depends on {found.calls[at][4]:.0%} of the positions of {path!r}"
    later = [c for c in found.calls[at + 1 :] if c[3] and c[4] > 0.5 and _positions(c[2]) > 1]
    later = [c for c in later if not _within(c[0], path) and not ATTENTION.search(c[0])]
    if later:
        return False, f"{later[-1][0]} {later[-1][2]} comes later"
    before = [c for c in found.calls[: at + 1] if _positions(c[2]) > 1]
    if not any(_has_grid(c[2], grid) for c in before[-8:]):
        return False, f"{grid} is not the grid of {before[-1][0] if before else path}"
    return True, ""


MOVES = {"Slice", "Reshape", "Transpose", "Gather", "Split", "Concat", "Squeeze", "Unsqueeze"}
ATTENTION = re.compile(r"attn|attention|(^|[._])(q|k|v|kv|qkv)($|[._])", re.IGNORECASE)


def _within(module: str, path: str) -> bool:
    return module == path or module.startswith(f"{path}.")


def _positions(shape: list[int]) -> int:
    return shape[1] if len(shape) == 3 else min(shape[2] * shape[3], shape[1] * shape[2]) if len(shape) == 4 else 0


def _has_grid(shape: list[int], grid: list[Any]) -> bool:
    if len(shape) == 3:
        return 0 <= shape[1] - grid[0] * grid[1] < 17 or shape[2] == grid[0] * grid[1]
    return len(shape) == 4 and grid in (shape[1:3], shape[2:])


def pick_all(only: re.Pattern[str], again: bool) -> None:
    exported = read(Exported, "auto-layers-export.jsonl")
    done = {} if again else read(Picked, "auto-layers.jsonl")
    for name, found in exported.items():
        if only.search(name) and name not in done and not found.failure:
            result = pick(found)
            append("auto-layers.jsonl", result)
            verdict = {True: "right", False: f"WRONG: {result.why}", None: ""}[result.right]
            where = f"{result.module} {result.kind} {result.shape} {result.special}"
            print(f"{name}: {result.failure or where} {verdict}", flush=True)


# --------------------------------------------------------------------------------------------------------------- table

WHY = """# What `layer="auto"` picks

Made by `python -m bench.auto_layers --export --pick --table --write`, on torchvision's models and the smallest ones of
every module of timm, with seeded random weights; `pycam layers model.onnx` lists the layers of yours.

**Scores of the whole image** (classes, values, embeddings): the last features (N, C, h, w) before they are pooled or
flattened. All of the image that the score sees goes through them, and behind them nothing looks at neighbours any more:
what one position says is that of one place in the picture.

**Tokens** of a transformer: the same, as far as the score depends on all of them. Where tokens are averaged, that is
behind the last block. Where only a class token is read, it is **before the last attention**: in that layer the class
token looks at the patches for the last time, and behind it the score depends on the class token alone. The gradient for
every patch is exactly zero there, and a map made of it is empty or noise. Special tokens (class, distillation,
registers) lie on no position of the image: they are taken off before the method, and put back behind it.

**Scores that keep positions** (masks, boxes): the last features that everything goes through, before their last
projection: what the last convolution of a U-Net, of DeepLab or FCN reads. On trained models these showed the right
region where a U-Net's bottleneck did not ([bench/RESULTS.md](../bench/RESULTS.md), "Targets: the right region").
Where a pyramid of features parts early, that would be an early layer: then it is the end of the backbone, the last on
the coarsest grid that all levels depend on. A box of one level shows sharper at a layer of this level: name it.

**Where it cannot tell.** Tokens on a grid are followed from the image through the graph, which needs images of one
size: where the model leaves height and width free, they have to be given. Where tokens cannot be followed, their number
is that of a grid of the image's proportions and the fewest special tokens before it (197 = 14·14 + 1); or the user says
how they lie: `tokens=(height, width, special tokens before, after)`.

In the table, *behind* is the share of the model's multiply-adds behind the layer; + a, b are special tokens before and
after the grid. *Right* compares with what torch's modules did, never with the graph: no module with weights that works
on all positions comes later, apart from those of the last attention, and by torch's gradients the score depends on all
positions of what was picked. For masks and boxes there is no such reference: these are to be looked at.
"""


def table() -> str:
    """docs/auto-layers.md"""
    rows = read(Picked, "auto-layers.jsonl")
    exported = read(Exported, "auto-layers-export.jsonl")
    parts = [WHY]
    for title, tasks, source in (
        ("torchvision: classification", ("classification",), "torchvision"),
        ("torchvision: segmentation and detection", ("segmentation", "detection"), "torchvision"),
        ("torchvision: video", ("video",), "torchvision"),
        ("timm", ("classification",), "timm"),
    ):
        chosen = [r for r in rows.values() if r.task in tasks and r.name.startswith(source) and not r.failure]
        lines = [f"| {r.family.split('.')[-1]} | {_short(r.name)} | {_where(r)} |" for r in sorted(chosen, key=_key)]
        if lines:
            judged = [r for r in chosen if r.right is not None]
            count = f"{sum(bool(r.right) for r in judged)} of {len(judged)} judged are right." if judged else ""
            head = "| family | model | module | as | C × h × w | behind | right |\n|---|---|---|---|---|---:|---|"
            parts.append("\n".join([f"## {title}\n", *([count, ""] if count else []), head, *lines, ""]))
    failed = [f"- {_short(r.name)}: {r.failure}" for r in sorted(rows.values(), key=_key) if r.failure]
    absent = [f"- {_short(e.name)}: not exported: {e.failure[:160]}" for e in exported.values() if e.failure]
    parts.append("\n".join(["## Left out\n", *failed, *absent, ""]))
    return "\n".join(parts)


def _key(row: Picked) -> tuple[str, str]:
    return row.family, row.name


def _short(name: str) -> str:
    return name.partition("/")[2]


def _where(row: Picked) -> str:
    special = f" + {', '.join(map(str, row.special))}" if any(row.special) else ""
    verdict = {True: "yes", False: f"**no**: {row.why}", None: ""}[row.right]
    module = f"`{row.module}`" if row.module else f"behind `{row.after}`" if row.after else f"`{row.layer}`"
    size = " × ".join(map(str, row.shape[1:]))
    return f"{module} | {row.kind} | {size}{special} | {row.behind:.1%} | {verdict}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--export", action="store_true")
    parser.add_argument("--pick", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--only", type=re.compile, default=re.compile(""), metavar="REGEX")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--way", choices=("dynamo", "legacy"), default="dynamo", help="which exporter is tried first")
    given = parser.parse_args()
    if given.export:
        export_all(given.only, given.again, sorted(("dynamo", "legacy"), key=lambda way: way != given.way))
    if given.pick:
        pick_all(given.only, given.again)
    if given.table and given.write:
        (Path(__file__).parents[1] / "docs" / "auto-layers.md").write_text(table())
    elif given.table:
        print(table())


if __name__ == "__main__":
    sys.exit(main())
