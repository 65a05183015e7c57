"""Methods × images × classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pycam
from pycam.api import feed, preprocess_of
from pycam.errors import ImageError, InputError, MethodError, PycamError, TargetError
from pycam.image import crop, read
from pycam.pictures import Box, compare

METHODS = ["cam", "gradcam", "gradcam++"]


@pytest.fixture
def pictures() -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (2, 20, 24, 3), np.uint8))


def test_each_cell_is_what_an_explainer_says(shipped: Path, photos: dict[str, Path]) -> None:
    paths = [photos["coffee"], photos["camera"]]
    found = compare(shipped, paths, METHODS, ["top2", "tiger cat", 281])
    assert found.names == ("coffee.jpg", "camera.jpg")
    assert list(found.results) == METHODS
    assert found.model == "lite0_w8"
    for method, results in found.results.items():
        explainer = pycam.Explainer(shipped, method)
        pre = preprocess_of(explainer)
        for path, photo, result in zip(paths, found.photos, results, strict=True):
            np.testing.assert_array_equal(photo, crop(read(path), pre))
            top = explainer(feed(explainer, photo, pre), "top2").targets[0].tolist()
            cat = explainer.labels.index("tiger cat")
            assert result.targets.tolist() == [[*top, *dict.fromkeys(c for c in (cat, 281) if c not in top)]]
            expected = explainer(feed(explainer, photo, pre), result.targets)
            np.testing.assert_array_equal(result.heatmaps, expected.heatmaps)
    sheet = found.picture()
    rows = sum(r.targets.shape[1] for r in found.results["cam"])
    assert sheet.shape[0] > rows * 200
    assert sheet.dtype == np.uint8


def test_what_is_drawn(cnn: Any, pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, Any] = {}

    def spy(rows: Any, titles: Any, columns: Any, **options: Any) -> Any:
        made.update(rows=rows, titles=titles, columns=columns, **options)
        return rows

    monkeypatch.setattr("pycam.pictures.comparison.grid", spy)
    found = compare(cnn(), pictures, METHODS, [3, 5], names=["a", "b"])
    found.picture("magma", 0.25, contours=(0.5,), boxes=0.3, marks=[[Box((1, 1, 9, 9))], []])
    assert made["titles"] == ["class 3", "class 5"] * 2
    assert made["columns"] == ["photo", "Class Activation Mapping", "Grad-CAM", "Grad-CAM++"]
    assert made["column_subtitles"][0] == ""
    assert len(set(made["column_subtitles"][1:])) == 1
    assert [text.rsplit(" · ", 1)[1] for text in made["row_subtitles"]] == ["a", "a", "b", "b"]
    assert [len(row[0]) for row in made["marks"]] == [1, 1, 0, 0]
    for i, row in enumerate(made["rows"]):
        n, k = divmod(i, 2)
        for j, method in enumerate(METHODS):
            result = found.results[method][n]
            shown = result.overlay(found.photos[n][None], "magma", 0.25)[0, k]
            np.testing.assert_array_equal(row[1 + j], shown)
            contours, *boxes = made["marks"][i][1 + j]
            assert contours.levels == (0.5,)
            assert [list(box.xyxy) for box in boxes] == (
                [] if result.flat[0, k] else [result.boxes(0.3)[0, k].tolist()]
            )
    found.picture(signed=True)
    np.testing.assert_array_equal(made["rows"][0][1], found.results["cam"][0].signed(found.photos[0][None])[0, 0])
    assert made["colormap"] == "RdBu"


def test_a_method_that_the_model_cannot_serve(cnn: Any, pictures: list[np.ndarray], tmp_path: Path) -> None:
    model = cnn("vgg")  # flattened: CAM needs global average pooling
    with pytest.raises(MethodError, match="global average pooling"):
        compare(model, pictures, METHODS)
    found = compare(model, pictures, METHODS, skip_failing=True)
    assert list(found.results) == ["gradcam", "gradcam++"]
    assert "global average pooling" in found.left_out["cam"]
    assert found.picture().shape[0] > compare(model, pictures, METHODS[1:]).picture().shape[0]  # it says so
    found.report(tmp_path / "r.html")
    assert "Left out" in (tmp_path / "r.html").read_text(encoding="utf-8")
    with pytest.raises(MethodError, match="global average pooling"):  # nothing would be left
        compare(model, pictures, ["cam"], skip_failing=True)
    with pytest.raises(MethodError, match="finds by itself"):
        compare(model, pictures, ["dff"])


def test_a_method_that_fails_while_it_explains(
    cnn: Any, pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    explain = pycam.Explainer.__call__

    def broken(self: Any, *arguments: Any) -> Any:
        if self.spec.method == "layercam":
            raise InputError("no memory")
        return explain(self, *arguments)

    monkeypatch.setattr(pycam.Explainer, "__call__", broken)
    with pytest.raises(InputError, match="no memory"):
        compare(cnn(), pictures, ["gradcam", "layercam"], 3)
    found = compare(cnn(), pictures, ["gradcam", "layercam"], 3, skip_failing=True)
    assert list(found.results) == ["gradcam"]
    assert found.left_out == {"layercam": "no memory"}


def test_options_labels_and_layers_reach_their_methods(cnn: Any, pictures: list[np.ndarray]) -> None:
    layer = next(iter(pycam.layers(cnn()))).name
    found = compare(
        cnn(),
        pictures[:1],
        ["rise", "gradcam", "gradient"],
        3,
        layer=layer,
        options={"rise": {"samples": 8, "seed": 4}},
        labels=[f"thing {i}" for i in range(20)],
    )
    assert found.results["gradcam"][0].layer == layer
    assert found.results["gradient"][0].layer == ""
    assert found.results["rise"][0].label() == "thing 3"
    explainer = pycam.Explainer(cnn(), "rise", samples=8, seed=4)
    x = feed(explainer, found.photos[0], preprocess_of(explainer))
    np.testing.assert_array_equal(found.results["rise"][0].raw, explainer(x, 3).raw)


def test_bad_arguments(cnn: Any, pictures: list[np.ndarray], tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], type[PycamError], str]] = [
        ({"images": []}, InputError, "0 images"),
        ({"names": ["a"]}, InputError, "2 images and 1 names"),
        ({"methods": []}, InputError, "no method"),
        ({"methods": ["gradcam", "GradCAM"]}, InputError, "'gradcam' is given twice"),
        ({"methods": ["gradcma"], "skip_failing": True}, MethodError, "nearest: gradcam"),
        ({"targets": []}, InputError, "no target"),
        ({"targets": "no such label"}, TargetError, "no such label"),
        ({"targets": 10_000}, TargetError, "10000"),
        ({"images": [tmp_path / "no.jpg"]}, ImageError, "cannot open"),
    ]
    for options, kind, message in cases:
        with pytest.raises(kind, match=message):
            compare(**{"model": cnn(), "images": pictures, "methods": ["gradcam"], "targets": 3} | options)
    found = compare(cnn(), pictures, ["gradcam"], 3)
    for drawn, kind, message in (
        ({"colormap": "jett"}, InputError, "nearest"),
        ({"alpha": 2}, InputError, "alpha"),
        ({"contours": (2,)}, InputError, "contour level 2"),
        ({"boxes": 1.5}, InputError, "threshold=1.5"),
        ({"marks": [[]]}, InputError, "2 photos and 1 lists"),
        ({"marks": [[Box((900, 900, 999, 999))], []]}, InputError, "outside"),
    ):
        with pytest.raises(kind, match=message):
            found.picture(**drawn)
