"""What is linear algebra rather than graph, in numpy: called between two stages of an explain graph.

Each function takes arrays and options and gives a tuple of float32 arrays.  All are deterministic; signs are fixed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pycam.errors import MethodError

from .noise import draw

Function: TypeAlias = Callable[..., tuple[NDArray[np.float32], ...]]
Matrix: TypeAlias = NDArray[np.float64]
Apply: TypeAlias = Callable[[Matrix], Matrix]

FUNCTIONS: dict[str, Function] = {}

_NEEDS = {"nmf": ("sklearn.decomposition", "concepts")}  # function → (module, the extra of pycam that brings it)
_DENSE = 96  # up to so many rows LAPACK's whole decomposition is the fastest
_STEPS = 240
_TOLERANCE = 1e-13  # of a residual, relative to the eigenvalue: what float64 allows for


def function(apply: Function) -> Function:
    """Register a function under its own name."""
    FUNCTIONS[apply.__name__] = apply
    return apply


def check_installed(names: Iterable[str]) -> None:
    """Whether what these functions call is installed; it is imported, so that the first call does not wait for it.

    Raises:
        MethodError: it is not; says how to get it.
    """
    for name in (name for name in names if name in _NEEDS):
        module, extra = _NEEDS[name]
        package = module.split(".")[0]
        if importlib.util.find_spec(package) is None:
            raise MethodError(
                f"{name!r} is computed by the package {package!r}, which is not installed: "
                f"pip install 'pycam-onnx[{extra}]'"
            )
        importlib.import_module(module)


@function
def svd(features: NDArray[Any]) -> tuple[NDArray[np.float32], ...]:
    """`X·v₁`: `X` (h·w, C) the features minus their channel means, `v₁` its first right singular vector (2008.00299).

    A singular vector leaves the sign open.  Here the entry largest in size is positive (SegEigenCAM's rule): a map's
    mean is 0, so that the smaller of the two regions that it tells apart, mostly the object, is the positive one.

    Where the two largest singular values are equal, so are the maps that they stand for, and none is the first; the
    closer they are, the more of the last digits of the features the map depends on (about `1e-16·σ₁²/(σ₁² − σ₂²)` is
    due to the computation).

    Args:
        features: (N, K, C, h, w).

    Returns:
        float32 (N, K, h, w).
    """
    n, k, c, h, w = features.shape
    rows = features.reshape(n * k, c, h * w)
    maps = np.stack([_signed(_first_component(one)) for one in map(_centred, rows)])
    return (maps.reshape(n, k, h, w).astype(np.float32),)


@function
def kernel_pca(features: NDArray[Any]) -> tuple[NDArray[np.float32], ...]:
    """`√λ₁·u₁`: the first kernel principal component (2410.00267), kernel `tanh(<x, x'>/C + 1)` of the features at two
    positions minus their channel means, centred; the sign as that of `svd`.

    Args:
        features: (N, K, C, h, w).

    Returns:
        float32 (N, K, h, w).
    """
    n, k, c, h, w = features.shape
    maps = []
    for rows in map(_centred, features.reshape(n * k, c, h * w)):
        value, vector = _of_matrix(_sigmoid_kernel(rows))
        # A kernel's entries are of size 1: what is as small as this is the rounding of them.
        length = np.sqrt(value) if value > 1e-14 * h * w else 0.0
        maps.append(_signed(vector * length))
    return (np.stack(maps).reshape(n, k, h, w).astype(np.float32),)


def _sigmoid_kernel(rows: Matrix) -> Matrix:
    """`tanh(<x, x'>/C + 1)` for all pairs of positions, centred in the space of the kernel."""
    kernel = rows.T @ rows
    kernel /= len(rows)
    kernel += 1.0
    np.tanh(kernel, out=kernel)
    means = kernel.mean(axis=0)
    kernel -= means
    kernel -= means[:, None] - means.mean()
    return np.asarray(kernel)


def _of_matrix(matrix: Matrix) -> tuple[float, Matrix]:
    return leading(len(matrix), lambda v: matrix @ v, lambda: matrix)


@function
def nmf(features: NDArray[Any], *, components: int, seed: int, iterations: int) -> tuple[NDArray[np.float32], ...]:
    """Concepts of a batch: `A − b ≈ concepts·maps`, all but A and b non-negative (1806.10206), `b` the least of each
    channel; by scikit-learn's NMF from a random start.

    The concepts come in the order of the mass that they explain, `Σ concept · Σ map`, the largest first.

    Args:
        features: (N, C, h, w).
        components: How many concepts.
        seed: Of the start.
        iterations: At most; scikit-learn warns where they do not suffice.

    Returns:
        float32 (N, components, h, w): how much of each concept there is; float32 (components, C): the features that
        each stands for, `concepts + b`.
    """
    from sklearn.decomposition import NMF

    n, c, h, w = features.shape
    flat = features.swapaxes(0, 1).reshape(c, n * h * w)
    least = flat.min(axis=1, keepdims=True)
    model = NMF(n_components=components, init="random", random_state=seed, max_iter=iterations)
    concepts = model.fit_transform(flat - least)
    maps = model.components_
    order = np.argsort(-concepts.sum(axis=0, dtype=np.float64) * maps.sum(axis=1, dtype=np.float64), kind="stable")
    spread = maps[order].reshape(components, n, h, w).swapaxes(0, 1)
    return np.ascontiguousarray(spread, np.float32), np.ascontiguousarray((concepts + least).T[order], np.float32)


def leading(size: int, apply: Apply, whole: Callable[[], Matrix]) -> tuple[float, Matrix]:
    """The largest eigenvalue of a symmetric matrix without negative ones, and its eigenvector.

    A small matrix is decomposed whole; of a large one, Lanczos' method with full orthogonalisation finds the one pair,
    from a start that is drawn with a fixed seed.

    Args:
        size: Rows of the matrix.
        apply: Its product with a vector.
        whole: Makes it.
    """
    if size > _DENSE:
        found = _lanczos(apply, np.random.Generator(np.random.Philox(size)).standard_normal(size), min(size, _STEPS))
        if found is not None:
            return found
    values, vectors = np.linalg.eigh(whole())
    return float(values[-1]), np.asarray(vectors[:, -1])


def _lanczos(apply: Apply, start: Matrix, most: int) -> tuple[float, Matrix] | None:
    """None if `most` steps do not suffice."""
    basis = np.empty((most, len(start)))
    basis[0] = start / np.linalg.norm(start)
    small = np.zeros((most, most))
    for i in range(most):
        product = apply(basis[i])
        small[i, i] = product @ basis[i]
        for _ in range(2):  # once more: what rounding left
            product = product - basis[: i + 1].T @ (basis[: i + 1] @ product)
        rest = float(np.linalg.norm(product))
        if i % 4 == 3 or i + 1 == most or rest <= _TOLERANCE * abs(small[i, i]):
            values, vectors = np.linalg.eigh(small[: i + 1, : i + 1])
            if rest * abs(vectors[-1, -1]) <= _TOLERANCE * abs(values[-1]):
                vector = basis[: i + 1].T @ vectors[:, -1]
                return float(values[-1]), vector / np.linalg.norm(vector)
        if i + 1 < most:
            small[i, i + 1] = small[i + 1, i] = rest
            basis[i + 1] = product / rest
    return None


def _centred(rows: NDArray[Any]) -> Matrix:
    """(C, h·w) in double, less the mean of each channel."""
    wide = rows.astype(np.float64)
    wide -= wide.mean(axis=1, keepdims=True)
    wide[rows.max(axis=1) == rows.min(axis=1)] = 0  # without what rounding the mean left
    return np.asarray(wide)


def _first_component(rows: Matrix) -> Matrix:
    """`σ₁·u₁` (h·w,) of `rows.T`, by the eigenvectors of the smaller of the two products."""
    channels, positions = rows.shape
    if positions <= channels:
        value, vector = leading(positions, lambda v: (rows @ v) @ rows, lambda: rows.T @ rows)
        return np.asarray(vector * np.sqrt(max(value, 0.0)))
    return np.asarray(leading(channels, lambda v: rows @ (v @ rows), lambda: rows @ rows.T)[1] @ rows)


def _signed(found: Matrix) -> Matrix:
    """`found` or its negative: that whose entry largest in size is positive."""
    return np.asarray(-found if -found.min() > found.max() else found)


@function
def noise_maps(image: NDArray[Any], *, samples: int, seed: int, channels_last: bool) -> tuple[NDArray[np.float32], ...]:
    """Normal noise of the image's size, mean 0 and variance 1, float32 (samples, H, W): one map for all channels."""
    size = image.shape[1:3] if channels_last else image.shape[2:]
    return (draw("normal", size, seed, range(samples)),)
