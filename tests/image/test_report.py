"""The HTML report: one file, nothing from outside, everything escaped."""

from __future__ import annotations

import base64
import hashlib
import io
import shutil
import subprocess
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import pycam
from pycam import pictures
from pycam.colormap import COLORMAPS, colormap
from pycam.errors import ImageError, InputError, OutputError
from pycam.pictures import Entry, signed_levels, write_report

NASTY = "<script>alert('x')</script>\"&'</title>"
VOID = {"meta", "img", "input", "br", "link"}


class Page(HTMLParser):
    """Tags with their attributes, the text outside of scripts, and whether every tag is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.scripts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), f"an attribute of <{tag}> is there twice"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        (self.scripts if self.open and self.open[-1] in ("script", "style") else self.text).append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def result(cnn: Any, images: np.ndarray) -> pycam.Explanation:
    return pycam.Explainer(cnn())(images, "top2")


@pytest.fixture
def photos(result: pycam.Explanation) -> np.ndarray:
    n, _, height, width = result.heatmaps.shape
    return np.random.default_rng(0).integers(0, 256, (n, height, width, 3), np.uint8)


def test_everything_is_inside(result: pycam.Explanation, photos: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "out.html"
    result.report(path, photos)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    n, k = result.targets.shape
    assert text.startswith("<!DOCTYPE html>")
    for scheme in ("http:", "https:", "//", "url(", "@import"):
        assert scheme not in "".join(page.text)
    assert "http" not in text.replace("http-equiv", "")
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "poster", "data"):
            assert (attributes.get(name) or "data:").startswith("data:")
        assert not [name for name in attributes if name.startswith("on")]
    assert not page.all("link")
    assert not page.all("iframe")
    for word in ("fetch(", "XMLHttpRequest", "WebSocket", "import(", "url(", "@import", "eval(", "innerHTML"):
        assert word not in "".join(page.scripts)
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")
    digest = base64.b64encode(hashlib.sha256(page.scripts[-1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy  # the browser runs this script and no other
    assert len(page.all("canvas")) == n * k + 1  # and the colour bar
    assert len(page.all("section")) == n + 1


def test_maps_and_photos_are_the_explanations(result: pycam.Explanation, photos: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "out.html"
    result.report(path, photos)
    page = Page(path.read_text(encoding="utf-8"))
    size = result.heatmaps.shape[2:]
    maps = [a for a in page.all("canvas") if "data-heatmap" in a]
    for name, expected in (
        ("data-heatmap", np.round(result.heatmaps * 255)),
        ("data-signed", 128 + np.round(127 * signed_levels(result.raw, size))),
    ):
        found = [np.frombuffer(zlib.decompress(base64.b64decode(a[name] or "")), np.uint8) for a in maps]
        np.testing.assert_array_equal(np.stack(found).reshape(expected.shape), expected)
    shown = [a["src"] or "" for a in page.all("img") if "image/png" in (a["src"] or "")]
    assert len(shown) == len(photos)
    for source, photo in zip(shown, photos, strict=True):
        png = base64.b64decode(source.removeprefix("data:image/png;base64,"))
        np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(png))), photo)
    tables = {a["value"]: a["data-table"] for a in page.all("option") if a["value"] in COLORMAPS}
    assert list(tables) == list(COLORMAPS)
    for name, table in tables.items():
        assert base64.b64decode(table or "") == colormap(name or "").tobytes()


def test_controls_have_labels(result: pycam.Explanation, photos: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "out.html"
    result.report(path, photos, colormap="magma", alpha=0.25, threshold=0.4)
    page = Page(path.read_text(encoding="utf-8"))
    fields = {a["id"]: a for tag in ("input", "select") for a in page.all(tag)}
    assert (
        set(fields) == {"opacity", "threshold", "outline", "colours", "show"} == {a["for"] for a in page.all("label")}
    )
    assert (fields["opacity"]["value"], fields["threshold"]["value"]) == ("25", "40")
    assert [a["value"] for a in page.all("option") if "selected" in a] == ["magma"]
    assert all(a.get("aria-label") for a in page.all("canvas") if "data-heatmap" in a)
    assert all("alt" in a for a in page.all("img"))
    assert any(a.get("name") == "viewport" for a in page.all("meta"))
    assert page.all("html")[0]["lang"] == "en"
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))


def test_labels_are_escaped_wherever_they_come_from(
    result: pycam.Explanation, photos: np.ndarray, tmp_path: Path
) -> None:
    nasty = replace(
        result, labels=(NASTY,) * 20, layer=NASTY, provider=NASTY, method=NASTY, notes=(NASTY,), flat=~result.flat
    )
    path = tmp_path / "out.html"
    nasty.report(path, photos, [NASTY] * len(photos), title=NASTY, facts={NASTY: NASTY}, left_out={NASTY: NASTY})
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert len(page.all("script")) == 1
    assert "alert('x')" not in "".join(page.scripts)
    assert text.count("<script>") == 1
    assert NASTY in page.text  # as text
    assert len([t for t in page.text if NASTY in t]) > 10


def test_several_methods_stand_side_by_side(cnn: Any, images: np.ndarray, tmp_path: Path) -> None:
    results = [pycam.Explainer(cnn(), name)(images[:1], [[3, 5]]) for name in ("gradcam", "layercam")]
    photo = np.zeros((*results[0].heatmaps.shape[2:], 3), np.uint8)
    path = tmp_path / "out.html"
    write_report(path, [Entry("a", photo, results)])
    page = Page(path.read_text(encoding="utf-8"))
    captions = [t for t in page.text if t in ("photo", "Grad-CAM", "LayerCAM")]
    assert captions[:6] == ["photo", "Grad-CAM", "LayerCAM"] * 2
    assert sum("image/png" in (a["src"] or "") for a in page.all("img")) == 1  # the photo is in the file once
    other = pycam.Explainer(cnn())(images[:1], [[3, 4]])
    with pytest.raises(InputError, match="different targets"):
        write_report(path, [Entry("a", photo, [results[0], other])])


def test_without_raw_maps_or_class_scores(result: pycam.Explanation, photos: np.ndarray, tmp_path: Path) -> None:
    bare = replace(result, raw=(), scores={})
    bare.report(tmp_path / "out.html", photos)
    page = Page((tmp_path / "out.html").read_text(encoding="utf-8"))
    assert not any("data-signed" in a for a in page.all("canvas"))
    assert "What the model says" not in page.text


def test_the_same_run_gives_the_same_file(result: pycam.Explanation, photos: np.ndarray, tmp_path: Path) -> None:
    for name in ("a.html", "b.htm"):
        result.report(tmp_path / name, photos)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.htm").read_bytes()


def test_what_does_not_fit(result: pycam.Explanation, photos: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "out.html"
    for options, kind, message in (
        ({"alpha": 1.5}, InputError, "alpha=1.5"),
        ({"threshold": -1}, InputError, "threshold=-1"),
        ({"colormap": "jett"}, ImageError, "unknown colour map 'jett'; nearest"),
        ({"names": ["a"]}, InputError, "3 images and 1 names"),
    ):
        with pytest.raises(kind, match=message):
            result.report(path, photos, **options)
    with pytest.raises(InputError, match="uint8 images of shape"):
        result.report(path, photos[:, :-1])
    with pytest.raises(OutputError, match=r"must end in one of \.html"):
        result.report(tmp_path / "out.png", photos)
    with pytest.raises(OutputError, match="does not exist"):
        result.report(tmp_path / "no" / "out.html", photos)
    with pytest.raises(InputError, match="at least one photo"):
        write_report(path, [])
    with pytest.raises(InputError, match=r"a: the photo is \(8, 8\)"):
        write_report(path, [Entry("a", np.zeros((8, 8, 3), np.uint8), [result])])
    with pytest.raises(InputError, match="a: expected a uint8 photo"):
        write_report(path, [Entry("a", np.zeros((8, 8)), [result])])  # type: ignore[arg-type]
    assert not path.exists()  # nothing was left behind


def test_the_script_is_sound() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node, to parse the report's script")
    script = Path(pictures.__file__).with_name("report.js")
    done = subprocess.run([node, "--check", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
