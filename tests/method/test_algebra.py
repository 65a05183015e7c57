"""Linear algebra between two stages: against numpy's whole decompositions and scikit-learn."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from pycam.errors import MethodError
from pycam.runtime import algebra

SHAPES = [(2, 1, 5, 3, 4), (1, 2, 40, 3, 3), (1, 1, 128, 16, 13), (1, 1, 230, 13, 11), (1, 2, 150, 16, 16)]


def features(*shape: int, seed: int = 0) -> np.ndarray:
    """Rectified, with a few strong directions, as layers have them."""
    rng = np.random.default_rng(seed)
    n, k, c, h, w = shape
    strong = rng.normal(size=(n, k, c, 6)) * 2.0 ** -np.arange(6)
    return np.maximum(strong @ rng.normal(size=(n, k, 6, h * w)), 0).reshape(shape).astype(np.float32)


def centred(a: np.ndarray) -> np.ndarray:
    """(C, h, w) → (h·w, C) in double, less the channels' means."""
    rows = a.reshape(len(a), -1).T.astype(np.float64)
    return rows - rows.mean(axis=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_svd(shape: tuple[int, ...]) -> None:
    a = features(*shape)
    (found,) = algebra.svd(a)
    assert found.shape == (*shape[:2], *shape[3:])
    assert found.dtype == np.float32
    for n, k in np.ndindex(*shape[:2]):
        rows = centred(a[n, k])
        wanted = rows @ np.linalg.svd(rows, full_matrices=False)[2][0]
        wanted *= np.sign(wanted[np.abs(wanted).argmax()])
        np.testing.assert_allclose(found[n, k].ravel(), wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())
    np.testing.assert_array_equal(algebra.svd(a)[0], found)


@pytest.mark.parametrize("gap", [1e-2, 1e-4, 1e-6, 1e-8])
@pytest.mark.parametrize(("channels", "positions"), [(150, 210), (210, 140), (30, 210), (400, 21)])
def test_svd_with_nearly_equal_singular_values(channels: int, positions: int, gap: float) -> None:
    """`σ₂ = (1 − gap)·σ₁`: the first is told from the second all the same."""
    rng = np.random.default_rng(1)
    count = min(channels, positions)
    u = np.linalg.qr(np.c_[np.ones(positions), rng.normal(size=(positions, count - 1))])[0]
    v = np.linalg.qr(rng.normal(size=(channels, count)))[0]
    values = np.r_[0, 1, 1 - gap, 0.9 * 0.98 ** np.arange(count - 3)]
    (found,) = algebra.svd((v * values @ u.T).reshape(1, 1, channels, positions // 7, 7))
    flat = found.ravel()
    np.testing.assert_allclose(flat * np.sign(flat @ u[:, 1]), u[:, 1], atol=1e-6)


@pytest.mark.parametrize("size", [9, 200])
def test_equal_singular_values_give_one_of_the_maps(size: int) -> None:
    """No singular vector is the first where all are equal: a unit one it is, and the same each time."""
    a = np.linalg.qr(np.c_[np.ones(size), np.random.default_rng(0).normal(size=(size, size - 1))])[0][:, 1:].T
    a = a.reshape(1, 1, size - 1, size, 1)
    (found,) = algebra.svd(a)
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-6)
    np.testing.assert_array_equal(algebra.svd(a)[0], found)


@pytest.mark.parametrize("function", [algebra.svd, algebra.kernel_pca])
@pytest.mark.parametrize("size", [(4, 3, 3), (150, 16, 16)])
def test_constant_features_give_zeros(function: algebra.Function, size: tuple[int, ...]) -> None:
    (found,) = function(np.full((1, 1, *size), 0.1, np.float32))
    np.testing.assert_array_equal(found, 0)


@pytest.mark.parametrize("function", [algebra.svd, algebra.kernel_pca])
def test_the_peak_is_positive(function: algebra.Function) -> None:
    one = np.array([[0.0, 3.0, -1.0, -2.0]])
    for a in (one, -one):
        (found,) = function(np.concatenate([a, a]).reshape(1, 1, 2, 2, 2))
        assert found.ravel()[1] == np.abs(found).max() > 0


@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_pca(shape: tuple[int, ...]) -> None:
    decomposition = pytest.importorskip("sklearn.decomposition")
    a = features(*shape)
    (found,) = algebra.kernel_pca(a)
    for n, k in np.ndindex(*shape[:2]):
        rows = centred(a[n, k])
        kernel = decomposition.KernelPCA(1, kernel="sigmoid", eigen_solver="dense")
        wanted = kernel.fit_transform(rows)[:, 0]
        wanted *= np.sign(wanted[np.abs(wanted).argmax()])
        np.testing.assert_allclose(found[n, k].ravel(), wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())


def test_lanczos_gives_up_for_the_whole_decomposition(monkeypatch: pytest.MonkeyPatch) -> None:
    a = features(1, 1, 150, 16, 16)
    before = algebra.svd(a)[0]
    monkeypatch.setattr(algebra, "_STEPS", 2)
    np.testing.assert_allclose(algebra.svd(a)[0], before, atol=1e-6 * np.abs(before).max())


def test_nmf_is_ordered_and_deterministic() -> None:
    pytest.importorskip("sklearn")
    a = features(2, 1, 12, 5, 4)[:, 0] - 0.5
    maps, concepts = algebra.nmf(a, components=3, seed=5, iterations=400)
    assert maps.shape == (2, 3, 5, 4)
    assert concepts.shape == (3, 12)
    assert maps.min() >= 0
    least = a.min((0, 2, 3))
    mass = (concepts - least).sum(1) * maps.sum((0, 2, 3))
    assert (np.diff(mass) < 0).all()
    whole = least[:, None, None] + np.einsum("kc,nkhw->nchw", concepts - least, maps)
    assert np.linalg.norm(whole - a) < 0.5 * np.linalg.norm(a - least[:, None, None])
    for first, second in zip(algebra.nmf(a, components=3, seed=5, iterations=400), (maps, concepts), strict=True):
        np.testing.assert_array_equal(first, second)
    assert not np.array_equal(algebra.nmf(a, components=3, seed=6, iterations=400)[0], maps)


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    algebra.check_installed(["svd", "kernel_pca"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sklearn" else object())
    algebra.check_installed(["svd"])
    with pytest.raises(MethodError, match=r"'sklearn', which is not installed: pip install 'pycam-onnx\[concepts\]'"):
        algebra.check_installed(["svd", "nmf"])
