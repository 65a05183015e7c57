"""Explain graphs in stages: recipes, noise, folders, and running them without the compiler."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import pycam
from pycam.errors import InputError, MethodError, ModelError, OutputError
from pycam.runtime.noise import draw as draw_noise
from pycam.runtime.recipe import Collected, Host, Noise, Recipe

Net = Any
TARGETS = [[3, 7], [0, 19]]


def close(a: pycam.Explanation, b: pycam.Explanation, tolerance: float = 1e-5) -> None:
    scale = max(1.0, float(np.abs(b.raw).max()))
    np.testing.assert_allclose(a.raw, b.raw, rtol=0, atol=tolerance * scale)
    np.testing.assert_allclose(a.heatmaps, b.heatmaps, rtol=0, atol=tolerance * 10)
    np.testing.assert_array_equal(a.targets, b.targets)


# ── noise ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_noise_depends_on_seed_and_variant_alone(kind: Any) -> None:
    whole = draw_noise(kind, (3, 4), 5, range(6))
    parts = np.concatenate([draw_noise(kind, (3, 4), 5, [i]) for i in range(6)])
    np.testing.assert_array_equal(whole, parts)
    generator = np.random.Generator(np.random.Philox(key=[5, 2]))
    expected = (generator.standard_normal if kind == "normal" else generator.random)((3, 4), dtype=np.float32)
    np.testing.assert_array_equal(whole[2], expected)
    assert whole.dtype == np.float32
    assert not np.array_equal(whole, draw_noise(kind, (3, 4), 6, range(6)))
    assert not np.array_equal(whole, draw_noise(kind, (3, 4), 5, range(6), stream=1))


def test_noise_has_the_moments_of_its_kind() -> None:
    normal, uniform = draw_noise("normal", (100, 100), 0, [0]), draw_noise("uniform", (100, 100), 0, [0])
    assert abs(normal.mean()) < 0.03
    assert abs(normal.std() - 1) < 0.03
    assert abs(uniform.mean() - 0.5) < 0.02
    assert 0 <= uniform.min() <= uniform.max() < 1


# ── recipes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_recipe_survives_json() -> None:
    recipe = Recipe(
        ids="ids",
        variant="v",
        at_most=7,
        noise=(Noise("n", "normal", (), "x", 3, 0), Noise("m", "uniform", (4, 4), None, 3, 1)),
        host=(Host("svd", ("f",), ("r",), {"rank": 2}),),
        collected=(Collected("y", "e", "stack"), Collected("s", "t", "sum")),
        gradients=True,
    )
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


# ── programs ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", ["scorecam", "ablationcam"])
def test_the_batch_does_not_matter(cnn: Net, draw: Any, method: str) -> None:
    x = draw(2, 3, 16, 16)
    whole = pycam.Explainer(cnn("vgg"), method, layer="features", batch=64)(x, TARGETS)
    for batch in (1, 2, 4, 5):
        close(pycam.Explainer(cnn("vgg"), method, layer="features", batch=batch)(x, TARGETS), whole)


def test_the_same_call_gives_the_same_bits(cnn: Net, draw: Any) -> None:
    x, explainer = draw(1, 3, 16, 16), pycam.Explainer(cnn("vgg"), "scorecam", layer="features", batch=4)
    np.testing.assert_array_equal(explainer(x, 3).raw, explainer(x, 3).raw)


def test_images_of_a_batch_are_explained_one_by_one(cnn: Net, draw: Any) -> None:
    x, explainer = draw(3, 3, 16, 16), pycam.Explainer(cnn("mlp"), "scorecam", layer="features")
    together = explainer(x, [[1], [2], [3]])
    for n in range(3):
        alone = explainer(x[n : n + 1], n + 1)
        np.testing.assert_array_equal(together.raw[n : n + 1], alone.raw)
    assert np.asarray(together.scores).shape == (3, 20)


def test_no_batch_is_refused(cnn: Net) -> None:
    with pytest.raises(InputError, match="batch=0: give the number of rows"):
        pycam.Explainer(cnn(), "scorecam", batch=0)


def test_variants_of_a_model_for_two_images_are_refused(cnn: Net) -> None:
    with pytest.raises(MethodError, match="takes batches of exactly 2: export it with a free batch size"):
        pycam.Explainer(cnn(batch=2), "scorecam", layer="features")


# ── exported ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("method", "tail"), [("scorecam", "gap"), ("ablationcam", "vgg"), ("eigencam", "gap")])
def test_a_folder_gives_what_the_explainer_gives(cnn: Net, draw: Any, tmp_path: Path, method: str, tail: str) -> None:
    x, model = draw(2, 3, 16, 16), cnn(tail)
    path = pycam.export(model, tmp_path / "explain", method=method, layer="features")
    assert path.is_dir()
    assert {"manifest.json", "prepare.onnx"} <= {file.name for file in path.iterdir()}
    exported, made = pycam.Explainer(path), pycam.Explainer(model, method, layer="features")
    close(exported(x, TARGETS), made(x, TARGETS))
    assert exported.spec.plan == made.spec.plan
    for file in path.glob("*.onnx"):
        onnx.checker.check_model(str(file), full_check=True)


@pytest.mark.parametrize(("method", "tail"), [("scorecam", "gap"), ("ablationcam", "vgg"), ("ablationcam", "gap")])
def test_variants_that_fit_in_a_batch_make_one_graph(
    cnn: Net, draw: Any, forward: Any, tmp_path: Path, method: str, tail: str
) -> None:
    x, model = draw(2, 3, 16, 16), cnn(tail)
    path = pycam.export(model, tmp_path / "explain.onnx", method=method, layer="features", batch=6)
    expected = pycam.Explainer(model, method, layer="features")(x, TARGETS)
    close(pycam.Explainer(path)(x, TARGETS), expected)
    alone = forward(path, {"x": x[:1], "targets": np.array(TARGETS[:1])})  # by onnxruntime, without pycam
    np.testing.assert_allclose(alone["heatmaps"], expected.heatmaps[:1], rtol=0, atol=1e-5)


def test_more_variants_than_the_batch_need_a_folder(cnn: Net, tmp_path: Path) -> None:
    with pytest.raises(
        OutputError, match=r"it is one file, and this method runs in 3 stages: give a folder .* raise batch="
    ):
        pycam.export(cnn(), tmp_path / "explain.onnx", method="scorecam", layer="features", batch=5)
    assert not list(tmp_path.iterdir())


def test_a_single_pass_goes_to_a_folder_too(cnn: Net, draw: Any, tmp_path: Path) -> None:
    x = draw(2, 3, 16, 16)
    path = pycam.export(cnn(), tmp_path / "explain", method="gradcam")
    close(pycam.Explainer(path)(x, TARGETS), pycam.Explainer(cnn(), "gradcam")(x, TARGETS))


def test_stages_share_their_weights(cnn: Net, tmp_path: Path) -> None:
    """The prefix runs in the first stage, the whole model in the second: each weight is written once."""
    path = pycam.export(cnn("flatten"), tmp_path / "explain", method="scorecam", layer="features")
    biggest = 20 * 6 * 64 * 4
    assert biggest <= (path / "weights.bin").stat().st_size < 1.5 * biggest


_ALONE = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("onnx", "onnx_ir"):
            raise ImportError(f"{name} is not there")
sys.meta_path.insert(0, Blocked())
import numpy as np, pycam
result = pycam.Explainer(sys.argv[1])(np.load(sys.argv[2]), [[3, 7], [0, 19]])
np.save(sys.argv[3], result.raw)
assert not {"onnx", "onnx_ir"} & set(sys.modules)
"""


@pytest.mark.parametrize("method", ["scorecam", "eigencam"])
def test_a_folder_runs_without_onnx(cnn: Net, draw: Any, tmp_path: Path, method: str) -> None:
    x = draw(2, 3, 16, 16)
    np.save(tmp_path / "x.npy", x)
    path = pycam.export(cnn("vgg"), tmp_path / "explain", method=method, layer="features")
    names = [path, tmp_path / "x.npy", tmp_path / "raw.npy"]
    # Not in the source tree, which `-c` would put on sys.path in front of what is installed.
    subprocess.run([sys.executable, "-c", _ALONE, *map(str, names)], check=True, timeout=120, cwd=tmp_path)
    np.testing.assert_array_equal(np.load(names[2]), pycam.Explainer(path)(x, TARGETS).raw)


def test_an_exported_folder_replaces_an_older_one(cnn: Net, tmp_path: Path) -> None:
    pycam.export(cnn(), tmp_path / "explain", method="scorecam", layer="features")
    pycam.export(cnn(), tmp_path / "explain", method="eigencam", layer="features")
    assert pycam.Explainer(tmp_path / "explain").spec.method == "eigencam"
    assert not (tmp_path / "explain" / "step.onnx").exists()


def test_a_folder_with_other_files_is_left_alone(cnn: Net, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(OutputError, match=r"cannot write .*the folder holds other files"):
        pycam.export(cnn(), tmp_path / "mine", method="scorecam", layer="features")
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["letter.txt"]
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*it is a file"):
        pycam.export(cnn(), tmp_path / "file", method="scorecam", layer="features")


def test_broken_folders(cnn: Net, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is a directory without manifest\.json"):
        pycam.Explainer(tmp_path)
    path = pycam.export(cnn(), tmp_path / "explain", method="scorecam", layer="features")
    (path / "step.onnx").unlink()
    with pytest.raises(ModelError, match=r"lacks 'step\.onnx': copy the whole folder"):
        pycam.Explainer(path)
    manifest = json.loads((path / "manifest.json").read_text())
    for broken, message in (
        ("{", "cannot be read"),
        (json.dumps(manifest | {"version": 99}), "not one that this pycam understands"),
        (json.dumps(manifest | {"stages": {"step": "step.onnx"}}), "has the stages step"),
    ):
        (path / "manifest.json").write_text(broken)
        with pytest.raises(ModelError, match=message):
            pycam.Explainer(path)


def test_what_is_built_in_cannot_be_changed(cnn: Net, tmp_path: Path) -> None:
    path = pycam.export(cnn(), tmp_path / "explain", method="eigencam", layer="features")
    for changes in ({"method": "layercam"}, {"objective": "counterfactual"}, {"eigen_smooth": True}, {"samples": 3}):
        with pytest.raises(MethodError, match=f"has its {next(iter(changes))} built in"):
            pycam.Explainer(path, **changes)


def test_unknown_options(cnn: Net) -> None:
    with pytest.raises(MethodError, match="the method 'scorecam' has no option 'samples'; its options: "):
        pycam.Explainer(cnn(), "scorecam", samples=3)


def test_a_folder_that_only_looks_like_an_export_is_left_alone(cnn: Net, tmp_path: Path) -> None:
    """Web apps have a manifest.json as well."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "manifest.json").write_text('{"name": "my app"}')
    with pytest.raises(OutputError, match="the folder holds other files"):
        pycam.export(cnn(), tmp_path / "app", method="scorecam", layer="features")
    path = pycam.export(cnn(), tmp_path / "explain", method="scorecam", layer="features")
    (path / "mine.txt").write_text("dear")
    with pytest.raises(OutputError, match="the folder holds other files"):
        pycam.export(cnn(), path, method="scorecam", layer="features")
    assert (path / "mine.txt").exists()
    assert (tmp_path / "app" / "manifest.json").exists()


def test_an_export_that_fails_leaves_the_old_one(cnn: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pycam.export(cnn(), tmp_path / "explain", method="scorecam", layer="features")
    before = sorted(file.name for file in path.iterdir())
    real = os.replace

    def fails(source: Any, target: Any) -> None:
        if str(source).endswith(".tmp"):
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OutputError, match="No space left"):
        pycam.export(cnn(), path, method="eigencam", layer="features")
    assert sorted(file.name for file in path.iterdir()) == before
    assert [p.name for p in tmp_path.iterdir()] == ["explain"]


def test_places_to_export_to(cnn: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="it is the folder that this process works in"):
        pycam.export(cnn(), ".", method="eigencam", layer="features")
    (tmp_path / "link").symlink_to(tmp_path / "here")
    pycam.export(cnn(), tmp_path / "link", method="scorecam", layer="features")
    assert pycam.Explainer(tmp_path / "here").spec.method == "scorecam"
    with pytest.raises(OutputError, match="does not exist: make it first"):
        pycam.export(cnn(), tmp_path / "nowhere" / "explain", method="scorecam")


def test_one_graph_with_variants_says_that_it_takes_one_image(cnn: Net, draw: Any, tmp_path: Path) -> None:
    path = pycam.export(cnn("vgg"), tmp_path / "explain.onnx", method="ablationcam", layer="features")
    sizes = {v.name: v.type.tensor_type.shape.dim[0].dim_value for v in onnx.load(path).graph.input}
    assert sizes == {"x": 1, "targets": 1}
    assert pycam.Explainer(path)(draw(3, 3, 16, 16), 2).raw.shape == (3, 1, 8, 8)
