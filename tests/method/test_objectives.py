"""Objectives: what speaks against a class, and why this one and not that one; for methods of every plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import pycam
from pycam.errors import MethodError, TargetError
from pycam.graph.builder import Builder
from pycam.targets.base import Candidates
from pycam.targets.choose import choose, class_input, target_count
from pycam.targets.objectives import finer

TARGETS = np.array([[3, 7], [0, 12]])
AGAINST = np.array([[1, 3], [12, 5]])
TOLERANCE = 1e-5

Value = Callable[[np.ndarray, int, int], float]
VALUES: dict[str, Value] = {
    "class": lambda z, t, o: z[t],
    "counterfactual": lambda z, t, o: -z[t],
    "contrastive": lambda z, t, o: z[t] - z[o],
}


def weigh(net: Any, method: str, x: np.ndarray, value: Value, t: int, o: int) -> np.ndarray:
    """The raw map of one image (1, 3, 16, 16), by numpy."""
    after = net.forward(x)[1]
    a = after[1].reshape(6, 8, 8)

    def tail(flat: np.ndarray) -> np.ndarray:
        z = flat
        for matrix, bias, activation in net.layers[2:]:
            z = z @ matrix.T + bias
            z = np.maximum(z, 0) if activation == "relu" else z
        return z

    if method in ("gradcam", "layercam"):
        dz = np.array([value(e, t, o) for e in np.eye(20)])  # every objective is linear in z
        rows = np.array([net.gradients(x, np.array([c]))[2][0] for c in range(20)])
        g = (dz @ rows).reshape(6, 8, 8)
        w = g.mean((1, 2), keepdims=True) if method == "gradcam" else np.maximum(g, 0)
        return (w * a).sum(0)
    if method == "ablationcam":
        y = value(after[-1][0], t, o)
        fill = 0 if a.min() == 0 else a.min() - 1e7
        drops = []
        for c in range(6):
            ablated = a.copy()
            ablated[c] = fill
            drops.append((y - value(tail(ablated.reshape(1, -1))[0], t, o)) / y)
        return np.einsum("c,chw->hw", drops, a)
    grid = np.arange(16) * 7 / 15  # corners aligned
    low = np.minimum(grid.astype(int), 6)
    r = np.zeros((16, 8))
    r[np.arange(16), low], r[np.arange(16), low + 1] = 1 - (grid - low), grid - low
    masks = r @ a @ r.T
    masks = masks - masks.min((1, 2), keepdims=True)
    masks /= masks.max((1, 2), keepdims=True) + 1e-8
    y = np.array([value(net.forward(x * mask)[1][-1][0], t, o) for mask in masks])
    w = np.exp(y - y.max())
    return np.einsum("c,chw->hw", w / w.sum(), a)


@pytest.mark.parametrize("objective", ["counterfactual", "contrastive"])
@pytest.mark.parametrize("tail", ["gap", "conv"])
@pytest.mark.parametrize("method", ["gradcam", "layercam", "scorecam", "ablationcam"])
def test_by_brute_force(
    cnn: Any, net: Any, relative: Any, images: np.ndarray, method: str, tail: str, objective: str
) -> None:
    explainer = pycam.Explainer(cnn(tail), method, "features", objective=objective)
    result = explainer(images[:2], TARGETS, AGAINST if objective == "contrastive" else None)
    wanted = np.empty((2, 2, 8, 8))
    for n, k in np.ndindex(TARGETS.shape):
        wanted[n, k] = weigh(net(tail), method, images[n : n + 1], VALUES[objective], TARGETS[n, k], AGAINST[n, k])
    assert relative(result.raw, wanted) <= TOLERANCE
    np.testing.assert_array_equal(result.targets, TARGETS)
    assert explainer.spec.objective == objective


@pytest.mark.parametrize("method", ["gradcam", "ablationcam"])
def test_what_a_target_is_held_against(cnn: Any, relative: Any, images: np.ndarray, method: str) -> None:
    """None and −1: the best class beside it; a number or a label: that one for all."""
    explainer = pycam.Explainer(cnn("conv"), method, "features", objective="contrastive")
    ranks = np.asarray(explainer(images).scores).argsort(1)[:, ::-1]
    best, second = ranks[:, :1], ranks[:, 1:2]
    top = explainer(images)
    np.testing.assert_array_equal(top.extras["against"], second)
    np.testing.assert_array_equal(explainer(images, second).extras["against"], best)
    assert relative(top.raw, explainer(images, best, second).raw) <= 1e-6
    assert relative(explainer(images, second).raw, explainer(images, second, best).raw) <= 1e-6
    assert relative(explainer(images, 4, 9).raw, explainer(images, [4] * 3, np.full((3, 1), 9)).raw) <= 1e-6
    alone = explainer(images[1:2], TARGETS[1:], AGAINST[1:])
    assert relative(alone.raw, explainer(images[:2], TARGETS, AGAINST).raw[1:]) <= 1e-5


def test_bad_input(cnn: Any, images: np.ndarray) -> None:
    with pytest.raises(MethodError, match="no objective 'contrast'; there are class, counterfactual, contrastive"):
        pycam.Explainer(cnn("gap"), objective="contrast")
    with pytest.raises(TargetError, match="against= belongs to the objective 'contrastive'"):
        pycam.Explainer(cnn("gap"))(images, 1, 2)
    contrast = pycam.Explainer(cnn("gap"), objective="contrastive")
    with pytest.raises(TargetError):
        contrast(images, 1, 20)
    with pytest.raises(TargetError):
        contrast(images, TARGETS[:1].repeat(3, 0), np.zeros((3, 3), np.int64))


@pytest.mark.parametrize("layer", ["cnn_linear/last", "cnn_mlp/last", "cnn_mlp/signed", "vit/last", "vit/stream"])
def test_parity(peers: Any, relative: Any, layer: str) -> None:
    """With grad-cam 1.5.7, whose targets were `−y` and `y_p − y_q`."""
    name, where = layer.split("/")
    peer, suffix = peers(name), "" if where == "last" else f"/{where}"
    for objective, against in {"counterfactual": None, "contrastive": peer.targets[:, ::-1]}.items():
        explainer = pycam.Explainer(peer.path, "gradcam", peer.layers[where], objective=objective)
        result = explainer(peer.x, peer.targets, against)
        assert relative(result.raw, peer[f"gradcam/{objective}{suffix}/raw"]) <= 1e-4
        np.testing.assert_allclose(result.heatmaps, peer[f"gradcam/{objective}{suffix}/final"], atol=1e-3)


def finer_by_numpy(z: np.ndarray, t: int, alpha: float, references: int) -> float:
    distance = np.abs(z - z[t])
    distance[t] = -1
    others = np.argsort(distance)[1 : references + 1]
    p = np.exp(z - z.max())
    p = p[others] / p.sum()
    return float((p * (z[t] - alpha * z[others])).sum() / (p.sum() + 1e-9))


@pytest.mark.parametrize("many", [True, False])
@pytest.mark.parametrize(("alpha", "references"), [(1.0, 3), (0.5, 1), (1.0, 9)])
def test_finer_itself(text_model: Any, forward: Any, draw: Any, many: bool, alpha: float, references: int) -> None:
    """Both of its forms, as a graph of their own: `y` (N, K) and `dy/dz` (K·N, C)."""
    model = ir.from_proto(text_model("(float[N, 6] z) => (float[N, 6] same) { same = Identity(z) }"))
    g = Builder(model.graph)
    z = model.graph.inputs[0]
    targets = class_input(g, "targets", "N", many)
    chosen = choose(g, Candidates(z, z, (z,)), targets, None, target_count(g, targets) if many else None)
    goal = finer(alpha, references)
    for name, value in {"y": goal.value(g, z, chosen), "dz": goal.cotangent(g, z, chosen)}.items():
        value.name, value.type = name, ir.TensorType(ir.DataType.FLOAT)
        model.graph.outputs.append(value)
    model.graph.sort()
    scores = draw(2, 6, seed=3)
    chosen_classes = np.array([[0, 5], [4, 2]])[:, : 2 if many else 1]
    found = forward(ir.to_proto(model), {"z": scores, targets.name: chosen_classes})
    step, moves = 1e-5, np.eye(6) * 1e-5
    for n, k in np.ndindex(chosen_classes.shape):
        row, t = scores[n].astype(np.float64), chosen_classes[n, k]
        assert found["y"][n, k] == pytest.approx(finer_by_numpy(row, t, alpha, references), abs=1e-5)
        slope = [
            (finer_by_numpy(row + e, t, alpha, references) - finer_by_numpy(row - e, t, alpha, references)) / (2 * step)
            for e in moves
        ]
        np.testing.assert_allclose(found["dz"][2 * k + n], slope, atol=1e-4)
