"""The CUDA kernels that finish raw maps, run on a CPU model of a block (cuda_model.hpp), against numpy in float64."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pycam.head.launch import FLAT, NOT_FINITE, Layer, Tensor, plan_explain, plan_finish, plan_overlay

Array = NDArray[Any]


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"cuda_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


contract = _load("contract")
finish_numpy, make_case, names, to_type, want = (
    getattr(contract, name) for name in ("finish_numpy", "make_case", "names", "to_type", "want")
)
WEIGHTINGS = ("given", "mean", "positive", "rectified", "plusplus")
few = settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck), derandomize=True)


@pytest.mark.parametrize("form", ["one", "two"])
@pytest.mark.parametrize(
    "shape", [(2, 1, 256, 7, 7), (1, 1, 2048, 7, 7), (1, 2, 130, 9, 8), (3, 1, 21, 5, 3), (2, 1, 64, 1, 1)], ids=str
)
def test_explain(model: Any, new_memory: Any, shape: tuple[int, int, int, int, int], form: Any) -> None:
    for seed in (0, 7):
        case = make_case(new_memory, "mean", "f32", shape)
        wanted = want(case.memory, *shape[:2], 33, 48)
        plan = plan_explain(case.job, case.raw.ctypes.data, wanted.output, form, multiprocessors=2)
        assert any(name in names(plan) for name in ("cam_finish", "cam_extremes")) == (form == "two")
        model.run(plan, case.memory, seed=seed, times=2)
        case.check_raw()
        wanted.check([case.raw])


@few
@given(
    st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 70), st.integers(1, 18), st.integers(1, 18)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from(WEIGHTINGS),
    st.integers(1, 2**16),
)
def test_forms_orders_and_batches_give_the_same_bits(
    model: Any, new_memory: Any, shape: Any, size: tuple[int, int], weighting: str, seed: int
) -> None:
    results = []
    for form, order, processors in (("one", 0, 1), ("one", seed, 1), ("two", seed + 1, 1), ("two", 0, 20)):
        case = make_case(new_memory, weighting, "f32", shape)
        wanted = want(case.memory, *shape[:2], *size)
        plan = plan_explain(case.job, case.raw.ctypes.data, wanted.output, form, processors)  # type: ignore[arg-type]
        model.run(plan, case.memory, seed=order)
        wanted.check([case.raw])
        results.append([case.raw, wanted.heatmaps, wanted.levels, wanted.pictures, wanted.flags])
    for result in results[1:]:
        for mine, first in zip(result, results[0], strict=True):
            np.testing.assert_array_equal(mine, first)
    case = make_case(new_memory, weighting, "f32", shape)
    wanted = want(case.memory, 1, shape[1], *size)  # the last image alone
    last = replace(
        case.job,
        images=1,
        activations=shifted(case.job.activations, shape[0] - 1),
        weights=shifted(case.job.weights, shape[0] - 1),
    )
    model.run(plan_explain(last, 0, wanted.output), case.memory)
    np.testing.assert_array_equal(wanted.heatmaps[0], results[0][1][-1])


def shifted(tensor: Tensor, images: int) -> Tensor:
    return replace(tensor, pointer=tensor.pointer + 4 * images * tensor.image)


def run_finish(
    model: Any, memory: Any, raws: Sequence[Array], size: tuple[int, int], seed: int = 0, **options: Any
) -> Any:
    layers = []
    for raw in raws:
        buffer = memory.take(raw)
        layers.append(Layer(Tensor.raw_maps(buffer.ctypes.data, raw.shape), *raw.shape[2:]))
    wanted = want(memory, *raws[0].shape[:2], *size, **options)
    model.run(plan_finish(layers, *raws[0].shape[:2], wanted.output, multiprocessors=3), memory, seed=seed)
    return wanted


def maps(seed: int, *sizes: tuple[int, int], lead: tuple[int, int] = (1, 2)) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((*lead, *size)).astype(np.float32) for size in sizes]


@few
@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=4),
    st.tuples(st.integers(1, 50), st.integers(1, 50)),
    st.sampled_from([3, 4]),
    st.integers(0, 3),
    st.integers(0, 2**16),
)
def test_finish(model: Any, new_memory: Any, sizes: Any, size: Any, pixel: int, offset: int, seed: int) -> None:
    raws = maps(seed, *sizes)
    run_finish(model, new_memory(), raws, size, seed=seed, pixel=pixel, offset=offset).check(raws)


@pytest.mark.parametrize(
    ("sizes", "size"),
    [([(120, 110)], (60, 40)), ([(7, 7), (130, 90)], (33, 50)), ([(7, 5)], (3, 7000)), ([(100, 100)], (100, 100))],
    ids=str,
)
def test_what_does_not_fit_shared_memory(model: Any, new_memory: Any, sizes: Any, size: tuple[int, int]) -> None:
    raws = maps(1, *sizes, lead=(2, 1))
    run_finish(model, new_memory(), raws, size, seed=2).check(raws)
    assert {"cam_extremes", "cam_paint"} <= model.kernels


def test_explain_of_what_does_not_fit(model: Any, new_memory: Any) -> None:
    for shape, size in (((1, 1, 300, 9, 7), (3, 6500)), ((1, 1, 3, 100, 101), (20, 12))):
        for raw_too in (True, False):
            case = make_case(new_memory, "mean", "f32", shape)  # type: ignore[arg-type]
            wanted = want(case.memory, *shape[:2], *size)
            plan = plan_explain(case.job, case.raw.ctypes.data if raw_too else 0, wanted.output, "one")
            model.run(plan, case.memory)
            if raw_too:
                case.check_raw()
                wanted.check([case.raw])
            else:
                assert np.abs(wanted.heatmaps - finish_numpy([case.expected], *size)).max() < 1e-4


STEEP = np.zeros((1, 1, 8, 8), np.float32)
STEEP[..., 3, 4] = 1
ODD = {
    "constant": [np.full((1, 1, 7, 7), 3.0, np.float32)],
    "nearly constant": [(3 + 1e-6 * np.arange(49).reshape(1, 1, 7, 7)).astype(np.float32)],
    "a large offset": [(1e4 + np.arange(49).reshape(1, 1, 7, 7) % 5 * 0.01).astype(np.float32)],
    "tiny": [(1e-9 * np.arange(49).reshape(1, 1, 7, 7)).astype(np.float32)],
    "denormal": [(1e-42 * np.arange(49).reshape(1, 1, 7, 7)).astype(np.float32)],
    "huge": [(6e36 * np.arange(49).reshape(1, 1, 7, 7)).astype(np.float32)],
    "one pixel": [STEEP],
    "one position": [np.full((1, 1, 1, 1), 2.0, np.float32)],
    "negative": [np.full((1, 1, 5, 5), -1.0, np.float32)],
    "minus infinity": [np.where(STEEP > 0, 1, -np.inf).astype(np.float32)],
    "layers that cancel": [STEEP[..., ::-1, :].copy(), 1 - STEEP[..., ::-1, :]],
    "tiny beside normal": [(5e-9 * np.arange(49).reshape(1, 1, 7, 7)).astype(np.float32), STEEP],
    "two below the eps": [(s * 1e-14 * np.arange(49).reshape(1, 1, 7, 7)).astype(np.float32) for s in (1, 3)],
    "a kink in the margin": [np.array([[[[0, 1, 1, 0.0]]]], np.float32), np.array([[[[1, 0.0]]]], np.float32)],
}


@pytest.mark.parametrize("what", ODD)
@pytest.mark.parametrize("size", [(29, 31), (224, 224), (3, 2), (1, 1)], ids=str)
def test_odd_maps(model: Any, new_memory: Any, what: str, size: tuple[int, int]) -> None:
    run_finish(model, new_memory(), ODD[what], size, seed=1).check(ODD[what])


@pytest.mark.parametrize("side", [7, 110])  # in shared memory, and not
def test_what_is_not_finite_is_flagged(model: Any, new_memory: Any, side: int) -> None:
    raws = np.ones((1, 4, side, side), np.float32) * np.arange(side, dtype=np.float32)
    raws[0, 1, 2, 3], raws[0, 2, 6, 6], raws[0, 3] = np.nan, np.inf, -np.inf
    wanted = run_finish(model, new_memory(), [raws], (12, 12))
    assert wanted.flags.tolist() == [[0, NOT_FINITE, NOT_FINITE, FLAT]]
    assert np.isfinite(wanted.heatmaps).all()


def test_raw_maps_of_half_precision_and_any_strides(model: Any, new_memory: Any) -> None:
    for kind in ("f16", "bf16"):
        memory = new_memory()
        bits, numbers = to_type(maps(4, (6, 9))[0], kind)
        turned = memory.take(np.ascontiguousarray(bits.transpose(0, 3, 2, 1)))  # (N,w,h,K)
        image, column, row, per_map = (stride // 2 for stride in turned.strides)
        layer = Layer(Tensor(turned.ctypes.data, kind, image, per_map, 0, row, column), 6, 9)
        wanted = want(memory, 1, 2, 20, 30)
        model.run(plan_finish([layer], 1, 2, wanted.output), memory)
        wanted.check([numbers])


def test_only_what_is_wanted(model: Any, new_memory: Any) -> None:
    raws = maps(9, (7, 7))
    all_of_it = run_finish(model, new_memory(), raws, (24, 24))
    for name in ("heatmaps", "levels", "flags", "pictures"):
        memory = new_memory()
        wanted = want(memory, 1, 2, 24, 24)
        others = {other: 0 for other in ("heatmaps", "levels", "flags", "pictures") if other != name}
        buffer = memory.take(raws[0])
        layer = Layer(Tensor.raw_maps(buffer.ctypes.data, buffer.shape), 7, 7)
        model.run(plan_finish([layer], 1, 2, replace(wanted.output, **others)), memory)
        np.testing.assert_array_equal(getattr(wanted, name), getattr(all_of_it, name))


@few
@given(
    st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 30), st.integers(1, 30)),
    st.sampled_from([3, 4]),
    st.integers(0, 3),
    st.integers(0, 2**16),
)
def test_overlay(model: Any, new_memory: Any, shape: Any, pixel: int, offset: int, seed: int) -> None:
    memory = new_memory()
    rng = np.random.default_rng(seed)
    # levels at the edge of the next one, and numbers outside of [0, 1]
    edges = np.nextafter(((rng.integers(0, 255, shape) + 0.5) / 255).astype(np.float32), np.float32(seed % 3 - 1))
    heatmaps = memory.take(np.where(rng.random(shape) < 0.5, edges, rng.random(shape) * 1.4 - 0.2).astype(np.float32))
    wanted = want(memory, *shape, pixel=pixel, offset=offset)
    plan = plan_overlay(heatmaps.ctypes.data, *shape[:2], replace(wanted.output, heatmaps=0), multiprocessors=3)
    model.run(plan, memory, seed=seed, times=2)
    wanted.check_colours(heatmaps)
    assert not wanted.flags.any()
    heatmaps[-1, -1, -1, -1] = np.nan
    model.run(plan, memory, seed=seed)
    assert wanted.flags[-1, -1] == NOT_FINITE
    assert np.count_nonzero(wanted.flags) == 1


def test_pictures_in_place(model: Any, new_memory: Any) -> None:
    raws = maps(3, (7, 7), lead=(2, 1))
    expected = run_finish(model, new_memory(), raws, (16, 20))
    memory = new_memory()
    wanted = want(memory, 2, 1, 16, 20)
    buffer = memory.take(raws[0])
    layer = Layer(Tensor.raw_maps(buffer.ctypes.data, buffer.shape), 7, 7)
    output = replace(wanted.output, pictures=wanted.output.images)
    model.run(plan_finish([layer], 2, 1, output), memory, seed=2)
    np.testing.assert_array_equal(wanted.images[:, None], expected.pictures)
