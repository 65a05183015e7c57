"""The table of methods, the page that is made of it, and the page on stages, whose driver is an example."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import pycam
from pycam.api import DEFAULT_MODEL
from pycam.method import METHODS, Method, get
from pycam.method.registry import method

ROOT = Path(__file__).parents[2]


def load(path: str) -> ModuleType:
    """A script of the repository as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def page() -> ModuleType:
    return load("scripts/make_methods.py")


@pytest.fixture(scope="module")
def driver() -> ModuleType:
    return load("examples/run_stages.py")


def test_the_page_of_methods_is_of_this_table(page: ModuleType) -> None:
    """docs/methods.md is generated: run `python scripts/make_methods.py`."""
    assert page.TARGET.read_text(encoding="utf-8") == page.document()


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_method_says_what_it_is(method: Method, page: ModuleType) -> None:
    assert method.title
    assert method.cost
    assert method.draw.__doc__
    assert METHODS[method.name] is method
    assert method.paper == "" or method.paper[0].isdigit()
    assert list(page.explained(method)) == list(method.options)
    assert all(page.explained(method).values())


def test_the_advice_names_methods_that_there_are(page: ModuleType) -> None:
    assert METHODS.keys() >= page.WEAK
    names = {part for text, *_ in page.RAW for part in text.split("`")[1::2]}
    assert names <= METHODS.keys()


def test_all_are_listed() -> None:
    assert [m.name for m in pycam.methods()] == list(METHODS)


def test_the_page_on_stages_shows_the_example() -> None:
    """Everything between the imports and `main`."""
    source = (ROOT / "examples" / "run_stages.py").read_text(encoding="utf-8")
    shown = source[source.index("def load(") : source.index("def main(")].rstrip()
    assert shown in (ROOT / "docs" / "stages.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("rise", {"samples": 5, "seed": 3}),  # two streams of uniform noise, a sum
        ("smoothgrad", {"samples": 3}),  # normal noise like the image, gradients
        ("faster_scorecam", {"channels": 3}),  # indices that prepare finds, stacked
        ("gradcam", {"objective": "contrastive"}),  # one graph
    ],
)
def test_the_example_runs_stages_as_an_explainer_does(
    method: str, options: dict[str, Any], driver: ModuleType, tmp_path: Path
) -> None:
    folder = pycam.export(DEFAULT_MODEL, tmp_path / "explain", method=method, **options)
    x = np.random.default_rng(0).standard_normal((1, 3, 224, 224), np.float32)
    sessions, spec = driver.load(folder)
    targets = np.array([[-1, 3]])
    given = {spec["image"]: x, spec["targets"]: targets}
    if spec["against"] is not None:
        given[spec["against"]] = np.full_like(targets, -1)
    found = driver.explain(sessions, spec, given, batch=4)
    expected = pycam.Explainer(folder, batch=4)(x, targets)
    np.testing.assert_array_equal(found[spec["explained"]], expected.targets)
    np.testing.assert_allclose(found[spec["raw"][0]], expected.raw, rtol=1e-5, atol=1e-6 * np.abs(expected.raw).max())
    np.testing.assert_allclose(found[spec["heatmaps"]], expected.heatmaps, rtol=0, atol=1e-5)


PEERS = """
    GradCAM GradCAMPlusPlus GradCAMElementWise HiResCAM XGradCAM LayerCAM ScoreCAM AblationCAM EigenCAM EigenGradCAM
    SegEigenCAM KPCA_CAM FEM FinerCAM ShapleyCAM FullGrad RefineCAM SESS RandomCAM DeepFeatureFactorization
    GuidedBackprop Saliency InputXGradient Deconvolution GuidedGradCam IntegratedGradients Occlusion
    CAM GradCAMpp SmoothGradCAMpp SSCAM ISCAM ReciproCAM RISE LeGrad
"""


@pytest.mark.parametrize("name", PEERS.split())
def test_names_of_classes_in_other_libraries(name: str) -> None:
    """Of pytorch-grad-cam, captum, torchcam, openvino_xai."""
    assert get(name) in pycam.methods()


def test_names_are_not_taken_twice() -> None:
    for name in ("gradcam", "Grad-CAM", "saliency"):
        with pytest.raises(ValueError, match="a second method called"):
            method(name, "", "", cost="")(lambda s: [])
