"""Signals and volumes: maps against torch's autograd, heads against numpy, every method, what needs a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

import pycam
from pycam.errors import HeadError, InputError, MethodError, TargetError
from pycam.head import volume

Stored = Mapping[str, np.ndarray]

LAYERS = {
    "signal": "features.3",
    "video": "features.3",
    "recurrent": "act",
    "linear": "act",
}
LAYOUTS = {"signal": "NCL", "video": "NCDHW", "recurrent": "NLC", "linear": "NDHWC"}
METHODS = ("gradcam", "gradcam++", "xgradcam", "layercam", "hirescam")


def resized(maps: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Half-pixel linear interpolation of the axes behind the second, by np.interp, in double."""
    found = maps.astype(np.float64)
    for axis, length in enumerate(size, start=2):
        before = found.shape[axis]
        at = (np.arange(length) + 0.5) * before / length - 0.5
        found = np.apply_along_axis(lambda line, at=at: np.interp(at, np.arange(len(line)), line), axis, found)
    return found


def unit(maps: np.ndarray) -> np.ndarray:
    axes = tuple(range(2, maps.ndim))
    lifted = maps - maps.min(axis=axes, keepdims=True)
    return lifted / (1e-7 + lifted.max(axis=axes, keepdims=True))


def heatmaps(raws: list[np.ndarray], size: tuple[int, ...]) -> np.ndarray:
    return unit(np.mean([resized(unit(np.maximum(raw, 0)), size) for raw in raws], axis=0))


def positions(layout: str, x: np.ndarray) -> tuple[int, ...]:
    return tuple(d for d, letter in zip(x.shape, layout, strict=True) if letter not in "NC")


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("method", METHODS)
def test_maps_are_those_of_autograd(folder: Path, reference: Stored, name: str, method: str) -> None:
    x = reference[f"{name}/x"]
    explainer = pycam.Explainer(folder / f"{name}.onnx", method, LAYERS[name])
    result = explainer(x)
    want = reference[f"{name}/{method}"]
    assert explainer.spec.layout == LAYOUTS[name]
    assert result.raw.shape == want.shape
    np.testing.assert_allclose(result.raw, want, atol=1e-4 * np.abs(want).max())
    np.testing.assert_allclose(result.scores, reference[f"{name}/y"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(result.heatmaps, heatmaps([want], positions(LAYOUTS[name], x)), atol=1e-3)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("head", ["graph", None, "reference"])
def test_every_head_gives_the_same(folder: Path, reference: Stored, name: str, head: str | None) -> None:
    x = reference[f"{name}/x"]
    result = pycam.Explainer(folder / f"{name}.onnx", layer=LAYERS[name], head=head)(x, [[0, -1]] * len(x))
    want = heatmaps([result.raw], positions(LAYOUTS[name], x))
    np.testing.assert_allclose(result.heatmaps, want, atol=1e-5)
    assert result.heatmaps.shape == (len(x), 2, *positions(LAYOUTS[name], x))
    assert result.flat.tolist() == (result.raw.max(axis=tuple(range(2, result.raw.ndim))) <= 0).tolist()


@pytest.mark.parametrize("head", ["graph", None])
@pytest.mark.parametrize("combine", ["mean", "max", "product"])
@pytest.mark.parametrize("name", ["signal", "video"])
def test_several_layers(folder: Path, reference: Stored, name: str, combine: str, head: str | None) -> None:
    x, layers = reference[f"{name}/x"], ["features.1", "features.5"]
    model = folder / f"{name}.onnx"
    result = pycam.Explainer(model, layer=layers, combine=combine, head=head)(x)
    alone = [pycam.Explainer(model, layer=layer)(x) for layer in layers]
    for raw, one, own in zip(result.raw, alone, result.per_layer(), strict=True):
        np.testing.assert_allclose(raw, one.raw, atol=1e-5 * np.abs(one.raw).max())
        np.testing.assert_allclose(own, one.heatmaps, atol=1e-5)
    fold = {"mean": np.mean, "max": np.max, "product": np.prod}[combine]
    size = positions(LAYOUTS[name], x)
    each = [resized(unit(np.maximum(raw, 0)), size) for raw in result.raw]
    want = unit(fold(each if combine == "mean" else [unit(one) for one in each], axis=0))
    np.testing.assert_allclose(result.heatmaps, want, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "layer"),
    [("signal", "features.5"), ("video", "features.5"), ("recurrent", "act"), ("linear", "act")],
)
def test_the_automatic_layer(folder: Path, name: str, layer: str) -> None:
    """The last features; behind an LSTM whose last step alone is read, those before it."""
    assert pycam.Explainer(folder / f"{name}.onnx").spec.layer == layer


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_listed(folder: Path, name: str) -> None:
    listed = pycam.layers(folder / f"{name}.onnx")
    rank = len(LAYOUTS[name])
    assert {len(layer.shape) for layer in listed} == {rank}
    assert LAYERS[name] in {layer.module for layer in listed}


@pytest.mark.parametrize("lower", ["fast", "portable"])
@pytest.mark.parametrize("name", LAYERS)
def test_exported(folder: Path, reference: Stored, tmp_path: Path, name: str, lower: Any) -> None:
    """The file alone: in onnxruntime, and where there is no LSTM in onnx's reference implementation."""
    x, model = reference[f"{name}/x"], folder / f"{name}.onnx"
    want = pycam.Explainer(model, layer=LAYERS[name])(x)
    path = pycam.export(model, tmp_path / "e.onnx", layer=LAYERS[name], classes=1, lower=lower)
    explainer = pycam.Explainer(path)
    assert explainer.spec.layout == LAYOUTS[name]
    result = explainer(x)
    np.testing.assert_allclose(result.heatmaps, want.heatmaps, atol=1e-5)
    np.testing.assert_allclose(result.raw, want.raw, atol=1e-5 * np.abs(want.raw).max())
    if name != "recurrent":
        names = [explainer.spec.heatmaps or "", explainer.spec.raw[0]]
        feeds = {"x": x, explainer.spec.targets: np.full((len(x), 1), -1)}
        found = ReferenceEvaluator(onnx.load(path)).run(names, feeds)
        np.testing.assert_allclose(found[0], want.heatmaps, atol=1e-4)
        assert found[1].shape == want.raw.shape
    shapes = {y.name: [d.dim_value or d.dim_param for d in y.type.tensor_type.shape.dim] for y in _graph(path).output}
    assert shapes[explainer.spec.heatmaps or ""][2:] == [d or "?" for d in _free(explainer, name)]


def _graph(path: Path) -> onnx.GraphProto:
    return onnx.load(path).graph


def _free(explainer: pycam.Explainer, name: str) -> list[Any]:
    return [d for d, letter in zip(explainer.input_shape, LAYOUTS[name], strict=True) if letter not in "NC"]


def test_raw_maps_alone_are_finished_here(folder: Path, reference: Stored, tmp_path: Path) -> None:
    for name in LAYERS:
        x, model = reference[f"{name}/x"], folder / f"{name}.onnx"
        path = pycam.export(model, tmp_path / f"{name}.onnx", layer=LAYERS[name], outputs=["raw"], classes=1)
        want = pycam.Explainer(model, layer=LAYERS[name])(x)
        np.testing.assert_allclose(pycam.Explainer(path)(x).heatmaps, want.heatmaps, atol=1e-6)
        with pytest.raises(HeadError, match="returns raw maps only"):
            pycam.Explainer(path, head="graph")


PICTURE = {"sess": "windows of a picture", "fullgrad": "the biases of convolutions over rows and columns"}
VOLUME = {
    **PICTURE,
    **dict.fromkeys(
        ("scorecam", "faster_scorecam", "sscam", "iscam", "rise", "occlusion", "guided_gradcam", "refinecam"),
        "rows and columns",
    ),
}
ATTENTION = ("attention_rollout", "chefer", "legrad")


def _options(method: Any, **options: Any) -> dict[str, Any]:
    few = {"samples": 5, "steps": 4, "components": 3, "references": 2}
    return {k: v for k, v in (few | options).items() if k in method.options}


def _as_pictures(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same network over pictures with one row: kernels (1, k)."""
    found = onnx.ModelProto()
    found.CopyFrom(model)
    for tensor in found.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.ndim == 3:
            tensor.CopyFrom(onnx.numpy_helper.from_array(array[:, :, None], tensor.name))
    for node in found.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Conv" and attribute.name in ("kernel_shape", "strides", "dilations"):
                attribute.ints[:] = [1, *attribute.ints]
            elif node.op_type == "Conv" and attribute.name == "pads":
                before, after = attribute.ints
                attribute.ints[:] = [0, before, 0, after]
    shape = found.graph.input[0].type.tensor_type.shape
    sizes = [d.dim_value for d in shape.dim]
    del shape.dim[1:]
    for size in (sizes[1], 1, sizes[2]):
        shape.dim.add().dim_value = size
    del found.graph.value_info[:]
    return found


@pytest.mark.parametrize("method", [m for m in pycam.methods() if m.name not in ATTENTION], ids=lambda m: m.name)
def test_a_signal_is_a_picture_with_one_row(folder: Path, generated: ModuleType, method: Any) -> None:
    """Every method, beside the same network over pictures."""
    if method.name == "dff":
        pytest.importorskip("sklearn", reason="dff needs scikit-learn")
    model = onnx.load(folder / "signal.onnx")
    x, classes, _ = generated.signals(2, 3)
    targets = [[int(c), -2] for c in classes] if method.targeted else None
    if method.name in PICTURE:
        with pytest.raises(MethodError, match=rf"{PICTURE[method.name]}, and what .* is a signal \(NCL\)"):
            pycam.Explainer(model, method.name)
        return
    options = _options(method, gaussian=False, cells=1)
    found = pycam.Explainer(model, method.name, **options)(x, targets)
    layer = "auto" if method.layers == "none" else "/features/features.5/Relu_output_0"
    picture = pycam.Explainer(_as_pictures(model), method.name, layer, **options)
    assert picture.spec.layout == "NCHW"
    want = picture(x[:, :, None], targets)
    assert found.heatmaps.shape == (2, want.heatmaps.shape[1], 256)
    assert found.raw.ndim == 3
    raw = want.raw.reshape(found.raw.shape)
    np.testing.assert_allclose(found.raw, raw, atol=3e-5 * (np.abs(raw).max() + 1e-9))
    np.testing.assert_allclose(found.heatmaps, want.heatmaps[:, :, 0], atol=1e-4)
    if "attributions" in found.extras:
        assert found.extras["attributions"].shape == (2, 2, 1, 256)


@pytest.mark.parametrize("method", [m for m in pycam.methods() if m.name not in ATTENTION], ids=lambda m: m.name)
def test_every_method_on_a_volume(folder: Path, reference: Stored, method: Any) -> None:
    if method.name == "dff":
        pytest.importorskip("sklearn", reason="dff needs scikit-learn")
    model, x = folder / "linear.onnx", reference["linear/x"]
    if method.name in VOLUME:
        with pytest.raises(MethodError, match=rf"{VOLUME[method.name]}, and what .* is a volume \(NDHWC\).*'gradcam'"):
            pycam.Explainer(model, method.name, **_options(method))
        return
    if method.name == "reciprocam":
        with pytest.raises(MethodError, match=r"blurs over rows and columns.*gaussian=False"):
            pycam.Explainer(model, method.name)
    if method.name == "cam":  # which is not seen through the Transposes of channels last
        x = reference["video/x"]
        want = pycam.Explainer(folder / "video.onnx")(x).raw
        found = pycam.Explainer(folder / "video.onnx", "cam")(x).raw
        np.testing.assert_allclose(found / np.abs(found).max(), want / np.abs(want).max(), atol=1e-5)
        return
    result = pycam.Explainer(model, method.name, **_options(method, gaussian=False))(x)
    count = result.targets.shape[1]
    grid = (6, 8, 10) if method.layers == "none" else (3, 4, 5)
    assert result.raw.shape == (2, count, *grid)
    assert result.heatmaps.shape == (2, count, 6, 8, 10)
    assert np.isfinite(result.raw).all()
    np.testing.assert_allclose(result.heatmaps, heatmaps([result.raw], (6, 8, 10)), atol=1e-4)
    if "attributions" in result.extras:
        assert result.extras["attributions"].shape == (2, count, 2, 6, 8, 10)


@pytest.mark.parametrize("method", ATTENTION)
@pytest.mark.parametrize("name", ["signal", "video"])
def test_attention_is_not_followed_there(folder: Path, name: str, method: str) -> None:
    with pytest.raises(MethodError, match="no attention"):
        pycam.Explainer(folder / f"{name}.onnx", method)


def test_pixel_gradients_of_a_volume(folder: Path, reference: Stored) -> None:
    """Against central differences at some voxels."""
    model, x = folder / "linear.onnx", reference["linear/x"]
    result = pycam.Explainer(model, "gradient")(x, [[1, 3]] * 2)
    explainer = pycam.Explainer(model, "gradient", head="graph")
    rng = np.random.default_rng(0)
    for _ in range(6):
        place = tuple(rng.integers(0, d) for d in x.shape[1:])
        d, h, w, c = place
        step = np.zeros_like(x)
        step[(slice(None), *place)] = 0.05
        slope = (explainer(x + step, 0).scores - explainer(x - step, 0).scores) / 0.1
        np.testing.assert_allclose(result.extras["attributions"][:, :, c, d, h, w], slope[:, [1, 3]], atol=2e-3)


@pytest.mark.parametrize(
    ("name", "method", "layer", "pointing", "energy"),
    [
        ("signal", "gradcam", "auto", 0.97, 0.7),
        ("signal", "layercam", "features.3", 0.95, 0.5),
        ("signal", "integrated_gradients", "auto", 0.85, 0.5),
        ("video", "layercam", "auto", 0.75, 0.14),
        ("video", "layercam", "features.3", 0.95, 0.2),
    ],
)
def test_it_points_at_what_was_made(
    folder: Path, generated: ModuleType, name: str, method: str, layer: str, pointing: float, energy: float
) -> None:
    """Of the burst, not the noise; of the square that moves, not those that stay. Area shares are 0.19 and 0.06."""
    draw = {"signal": generated.signals, "video": generated.clips}[name]
    x, classes, inside = draw(40, 7)
    result = pycam.Explainer(folder / f"{name}.onnx", method, layer)(x, classes)
    random = pycam.Explainer(folder / f"{name}.onnx", "random", layer)(x, classes)
    assert (result.scores.argmax(axis=1) == classes).mean() > 0.97
    shares = [_energy(r.heatmaps[:, 0], inside) for r in (result, random)]
    assert _pointing(result.heatmaps[:, 0], inside) >= pointing
    assert _pointing(result.heatmaps[:, 0], inside) > _pointing(random.heatmaps[:, 0], inside) + 0.2
    assert shares[0] >= energy
    assert shares[0] > 2 * inside.mean()


def _pointing(maps: np.ndarray, inside: np.ndarray) -> float:
    flat, there = maps.reshape(len(maps), -1), inside.reshape(len(maps), -1)
    return float(there[range(len(maps)), flat.argmax(axis=1)].mean())


def _energy(maps: np.ndarray, inside: np.ndarray) -> float:
    axes = tuple(range(1, maps.ndim))
    return float(((maps * inside).sum(axis=axes) / (maps.sum(axis=axes) + 1e-9)).mean())


def test_what_needs_rows_and_columns(folder: Path, reference: Stored, tmp_path: Path) -> None:
    signal = pycam.Explainer(folder / "signal.onnx")(reference["signal/x"])
    clip = pycam.Explainer(folder / "video.onnx")(reference["video/x"])
    assert "256 long heatmaps" in repr(signal)
    assert "8 × 20 × 20 heatmaps" in repr(clip)
    for result, size, help_ in ((signal, r"\(256,\)", "plot"), (clip, r"\(8, 20, 20\)", "take a slice")):
        pictures = np.zeros((len(result.targets), 20, 20, 3), np.uint8)
        calls: list[Callable[[], object]] = [
            result.boxes,
            result.signed,
            lambda result=result, pictures=pictures: result.overlay(pictures),
            lambda result=result: result.save(tmp_path / "a.png"),
            lambda result=result, pictures=pictures: result.report(tmp_path / "a.html", pictures),
        ]
        for call in calls:
            with pytest.raises(
                InputError, match=f"needs heatmaps with rows and columns, and these are {size}.*{help_}"
            ):
                call()
        assert "boxes" not in result.to_dict()
        assert result.shown(0.1).shape == result.heatmaps.shape
    one = replace(clip, heatmaps=clip.heatmaps[:, :, 3])
    assert one.boxes().shape == (2, 1, 4)
    assert one.overlay(np.zeros((2, 20, 20, 3), np.uint8)).shape == (2, 1, 20, 20, 3)
    with pytest.raises(MethodError, match=r"aug_smooth mirrors pictures.*is a volume \(NCDHW\)"):
        pycam.Explainer(folder / "video.onnx", aug_smooth=True)(reference["video/x"])
    with pytest.raises(TargetError):
        pycam.Explainer(folder / "video.onnx", target=pycam.targets.Segmentation())
    pre = pycam.Preprocess(size=(20, 20), mean=(0.0,), std=(1.0,), channels="L")
    with pytest.raises(InputError, match="prepares pictures, and the input 'x'"):
        pycam.export(folder / "video.onnx", tmp_path / "e.onnx", preprocess=pre)


def test_the_head_of_volumes() -> None:
    rng = np.random.default_rng(0)
    raws = [rng.normal(size=(2, 3, *size)).astype(np.float32) for size in ((2, 3, 4), (5, 1, 7))]
    raws[0][1, 2] = raws[1][1, 2] = -1
    maps, flat = volume.finish(raws, (6, 9, 8))
    np.testing.assert_allclose(maps, heatmaps(raws, (6, 9, 8)), atol=2e-6)
    assert flat.sum() == 1
    assert flat[1, 2]
    assert not maps[1, 2].any()
    raws[0][0, 0, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        volume.finish(raws, (6, 9, 8))


def test_free_sizes(folder: Path, reference: Stored) -> None:
    """One graph serves any length, any depth, height and width."""
    rng = np.random.default_rng(1)
    for name, sizes in (("recurrent", [(40, 3), (57, 3)]), ("linear", [(6, 8, 10, 2), (5, 7, 12, 2)])):
        explainer = pycam.Explainer(folder / f"{name}.onnx", layer=LAYERS[name], head="graph")
        for size in sizes:
            result = explainer(rng.normal(size=(1, *size)).astype(np.float32))
            assert result.heatmaps.shape == (1, 1, *size[:-1])
            np.testing.assert_allclose(result.heatmaps, heatmaps([result.raw], size[:-1]), atol=1e-5)
