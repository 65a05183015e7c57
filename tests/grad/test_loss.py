"""Gradients of the losses and of CastLike."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import special

from pycam.gradient import vjp

LABELS = np.array([2, 0, 1, 2])
PIXELS = np.array([[[0, 1, 2], [2, 2, 1]], [[1, 1, 0], [0, 2, 2]]])
SCORES, IMAGE = {"x": (4, 3), "t": LABELS}, {"x": (2, 3, 2, 3), "t": PIXELS}
STORED = {"weights": {"w": np.array([0.5, 2.0, 1.5])}}


def nll(
    log_p: np.ndarray, t: np.ndarray, weight: Any = None, reduction: str = "mean", ignore_index: Any = None
) -> np.ndarray:
    """From the specification: label by label."""
    losses, weights = np.zeros(t.shape), np.zeros(t.shape)
    for at in np.ndindex(t.shape):
        if t[at] != ignore_index:
            weights[at] = 1.0 if weight is None else weight[t[at]]
            losses[at] = -weights[at] * log_p[(at[0], t[at], *at[1:])]
    return np.asarray({"none": losses, "sum": losses.sum(), "mean": losses.sum() / weights.sum()}[reduction])


def sce(x: np.ndarray, *rest: Any, **attributes: Any) -> tuple[np.ndarray, ...]:
    log_p = special.log_softmax(x, axis=1)
    return nll(log_p, *rest, **attributes), log_p


OPS = {"SoftmaxCrossEntropyLoss": sce, "NegativeLogLikelihoodLoss": nll}
CASES: dict[str, tuple[Any, ...]] = {}
for _op in OPS:
    for _reduction in ("none", "sum", "mean"):
        _batched = {"batched": _reduction == "none"}
        for _ignored in ("", ", ignore_index=2", ", ignore_index=-100"):
            _form = f'{_op}<reduction="{_reduction}"{_ignored}>'
            CASES[_form] = (f"y = {_form}(x, t)", SCORES, _batched)
            CASES[f"{_form} weighted"] = (f"y = {_form}(x, t, w)", IMAGE, {**STORED, **_batched})
CASES["weights"] = ("y = SoftmaxCrossEntropyLoss(x, t, w)", {**IMAGE, "w": np.array([0.5, 2.0, 1.5])})
CASES["log p"] = ("z, p = SoftmaxCrossEntropyLoss(x, t) y = Sub(p, z)", SCORES)
CASES["ignored outside of the classes"] = (
    'y = SoftmaxCrossEntropyLoss<reduction="sum", ignore_index=-1>(x, t)',
    {"x": (4, 3), "t": np.array([2, -1, 1, -1])},
)
CASES["int32"] = ("y = SoftmaxCrossEntropyLoss(x, t)", {"x": (4, 3), "t": LABELS.astype(np.int32)})
CASES["CastLike"] = ("y = CastLike(x, l)", {"x": (2, 3), "l": (1,)}, {"wrt": ["x"], "batched": False})


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_gradient(check: Any, case: tuple[Any, ...]) -> None:
    body, inputs, *options = case
    check(body, inputs, ops=OPS, **(options[0] if options else {}))


def test_no_gather(check: Any) -> None:
    """The gradient is made of sums and products: it is portable, and several scores can share it."""
    model = vjp(check.model('y = SoftmaxCrossEntropyLoss<reduction="none">(x, t)', SCORES), ["x"])
    assert not {"Gather", "GatherElements", "ScatterElements"} & {node.op_type for node in model.graph.node}
