"""The CUDA kernels that make raw maps, run on a CPU model of a block (cuda_model.hpp), against numpy in float64."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pycam.head import jobs, kernels
from pycam.head.launch import Layer, Output, Plan, Tensor, Weighing, kernel_names, plan_finish, plan_overlay, plan_weigh


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"cuda_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


contract = _load("contract")
Case, make_case, names, to_type, weigh_numpy = (
    getattr(contract, name) for name in ("Case", "make_case", "names", "to_type", "weigh_numpy")
)
few = settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck), derandomize=True)
LAYOUTS = ("dense", "tokens", "odd")


WEIGHTINGS = ("given", "mean", "positive", "rectified", "plusplus")


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("size", [(7, 7), (14, 13)], ids=str)
@pytest.mark.parametrize("weighting", [*WEIGHTINGS, "channel"])
def test_vectors(model: Any, new_memory: Any, weighting: str, size: tuple[int, int], kind: str) -> None:
    """Dense maps that 16-byte loads can take, one kernel for each."""
    case = make_case(
        new_memory, weighting.replace("channel", "given"), kind, (2, 2, 72, *size), by_channel=weighting == "channel"
    )
    plan = plan_weigh(case.job, case.raw.ctypes.data)
    mode = weighting if weighting in ("channel", "mean", "plusplus") else "element"
    assert names(plan)[0] == f"cam_weigh_{kind}_{mode}_{64 if size == (7, 7) else 256}"
    model.run(plan, case.memory, seed=3)
    case.check_raw()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_strides(model: Any, new_memory: Any, weighting: str, kind: str, layout: str) -> None:
    case = make_case(new_memory, weighting, kind, (2, 1, 37, 5, 6), layout)
    plan = plan_weigh(case.job, case.raw.ctypes.data)
    assert f"cam_weigh_any_{kind}_{'f32' if weighting in ('mean', 'plusplus') else kind}" in names(plan)
    model.run(plan, case.memory, seed=5)
    case.check_raw()


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_float_weights_of_half_activations(model: Any, new_memory: Any, kind: str) -> None:
    for channels in (64, 61):  # by vectors, and not
        case = make_case(new_memory, "given", kind, (1, 3, channels, 7, 7), by_channel=True, weights_kind="f32")
        model.run(plan_weigh(case.job, case.raw.ctypes.data), case.memory)
        case.check_raw()


@few
@given(
    st.sampled_from(WEIGHTINGS),
    st.sampled_from(["f32", "f16", "bf16"]),
    st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 100), st.integers(1, 20), st.integers(1, 20)),
    st.booleans(),
    st.integers(0, 2**16),
)
def test_any_shape(
    model: Any, new_memory: Any, weighting: str, kind: str, shape: Any, by_channel: bool, seed: int
) -> None:
    by_channel &= weighting in ("given", "positive", "rectified")
    case = make_case(new_memory, weighting, kind, shape, by_channel=by_channel, seed=seed)
    model.run(plan_weigh(case.job, case.raw.ctypes.data), case.memory, seed=seed)
    case.check_raw()


def test_large_maps(model: Any, new_memory: Any) -> None:
    """More positions than are split over channels, and summed where they lie."""
    case = make_case(new_memory, "mean", "f32", (1, 1, 5, 91, 97))
    model.run(plan_weigh(case.job, case.raw.ctypes.data), case.memory)
    case.check_raw()


def test_plusplus_where_its_denominator_cancels(model: Any, new_memory: Any) -> None:
    """2 g^2 + (sum A) g^3 + 1e-6 near zero, and g^3 below the smallest float."""
    for gradient, activation in ((0.5, -4.0 / 49), (1e-14, 20.0)):
        case = make_case(new_memory, "plusplus", "f32", (1, 1, 8, 7, 7))
        memory = new_memory()
        a = memory.take(np.full((1, 8, 7, 7), activation, np.float32))
        g = memory.take(np.full((1, 8, 7, 7), gradient, np.float32))
        expected, size = weigh_numpy(a[:, None], g[:, None], "plusplus")
        job = replace(
            case.job,
            activations=Tensor.dense(a.ctypes.data, "f32", a.shape),
            weights=Tensor.dense(g.ctypes.data, "f32", g.shape),
        )
        raw = memory.empty((1, 1, 7, 7), np.float32)
        model.run(plan_weigh(job, raw.ctypes.data), memory)
        Case(memory, job, raw, expected, size).check_raw()


def test_nan_passes_through_raw_maps(model: Any, new_memory: Any) -> None:
    for weighting in WEIGHTINGS:
        for channels in (16, 15):
            case = make_case(new_memory, weighting, "f32", (1, 1, channels, 6, 6))
            case.memory.buffers[1][0].flat[40] = np.nan  # of the gradients
            model.run(plan_weigh(case.job, case.raw.ctypes.data), case.memory)
            assert np.isnan(case.raw).any(), weighting


# ---- plans -----------------------------------------------------------------------------------------------------------


def test_sizes_are_those_of_the_kernels(model: Any) -> None:
    types = (jobs.TENSOR, jobs.WEIGH, jobs.SOURCE, jobs.FINISH_ONE, jobs.FINISH_MANY)
    numbers = (*kernels.STATISTICS.values(), kernels.SCRATCH, kernels.LUT, kernels.RECORD, kernels.COLUMN)
    assert model.sizes(11) == [*(kind.itemsize for kind in types), *numbers]


def test_every_kernel_is_known(model: Any) -> None:
    assert [name for name in kernel_names() if not model.knows(name)] == []
    assert not model.knows("cam_weigh_f64")


TENSOR = Tensor.dense(4096, "f32", (1, 8, 7, 7))
JOB = Weighing(1, 1, 8, 7, 7, TENSOR, TENSOR, "mean")
OUTPUT = Output(8, 8, heatmaps=4096)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: plan_weigh(replace(JOB, weighting="median"), 4096), "weighting: expected one of given, mean"),
        (lambda: plan_weigh(replace(JOB, channels=0), 4096), "channels: expected at least 1, found 0"),
        (lambda: plan_weigh(replace(JOB, height=0), 4096), "activations: expected 1 to 32767 on each side"),
        (lambda: plan_weigh(JOB, 0), "raw: expected an address"),
        (lambda: plan_weigh(replace(JOB, weights=replace(TENSOR, type="f16")), 4096), "of one type, found f32 and f16"),
        (lambda: plan_weigh(replace(JOB, weights=replace(TENSOR, type="f64")), 4096), "found 'f64'"),
        (lambda: plan_weigh(replace(JOB, weights=replace(TENSOR, pointer=4097)), 4096), "aligned to f32, found 0x1001"),
        (lambda: plan_finish([], 1, 1, OUTPUT), "layers: expected 1 to 32, found 0"),
        (lambda: plan_finish([Layer(TENSOR, 7, 7)], 1, 1, replace(OUTPUT, width=40000)), "found 8 x 40000"),
        (lambda: plan_finish([Layer(TENSOR, 7, 7)], 1, 1, replace(OUTPUT, pictures=4096)), "also needs output.images"),
        (lambda: plan_finish([Layer(TENSOR, 7, 7)], 1, 1, replace(OUTPUT, alpha=1.5)), "alpha: expected 0 to 1"),
        (lambda: plan_finish([Layer(TENSOR, 7, 7)], 2**20, 2**12, OUTPUT), "explain fewer images at once"),
        (lambda: plan_overlay(4096, 1, 1, OUTPUT), "output.heatmaps: expected 0"),
    ],
)
def test_bad_plans_say_what_is_wrong(make: Callable[[], Plan], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make().launches(0)


def test_nothing_to_do_launches_nothing() -> None:
    assert plan_weigh(replace(JOB, images=0), 4096).launches(0) == ()
    assert plan_finish([Layer(TENSOR, 7, 7)], 0, 3, OUTPUT).launches(0) == ()
