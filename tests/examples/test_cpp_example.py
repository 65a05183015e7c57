"""examples/cpp says and paints what pycam says and paints in Python."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from PIL import Image

from pycam.colormap import colormap
from pycam.head import pick
from pycam.image import crop, crop_box, prepare, read
from pycam.preprocess import Preprocess

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Answers = Callable[..., list[dict[str, Any]]]


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def in_python(graph: Path, photo: np.ndarray, target: int) -> tuple[np.ndarray, np.ndarray, int, Preprocess]:
    """Logits, the map for the head, the class and the preprocessing, by onnxruntime on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    pre = Preprocess.from_json(session.get_modelmeta().custom_metadata_map["pycam.preprocess"])
    seen = crop(photo, pre)
    image = session.get_inputs()[0]
    fed = seen[None] if image.type == "tensor(uint8)" else prepare(seen, pre)
    names = [output.name for output in session.get_outputs()]
    found = session.run(names, {image.name: fed, "targets": np.array([[target]])})
    made = dict(zip(names, found, strict=True))
    return made["logits"][0], made["raw" if "raw" in made else "heatmaps"], int(made["explained"][0, 0]), pre


def painted(photo: np.ndarray, raw: np.ndarray, pre: Preprocess, lut: np.ndarray, alpha: float) -> list[np.ndarray]:
    """The overlay, for heatmaps 1e-5 below and above the reference head's: what pycam.h allows."""
    left, top, right, bottom = (round(side) for side in crop_box(photo.shape[0], photo.shape[1], pre))
    heatmap = pick("reference").finish([raw], (bottom - top, right - left))[0][0, 0].astype(np.float64)
    opacity = int(np.floor(65536 * alpha + 0.5))
    results = []
    for shift in (-1e-5, 1e-5):
        levels = np.floor(255 * np.clip(heatmap + shift, 0, 1) + 0.5).astype(np.intp)
        result = photo.astype(np.int64)
        part = result[top:bottom, left:right]
        part[...] = (65536 * part + opacity * (lut[levels].astype(np.int64) - part) + 32768) >> 16
        results.append(result)
    return results


@pytest.mark.parametrize(
    ("graph", "name", "target", "colours", "alpha"),
    [
        ("pixels", "coffee", -1, "jet", 0.5),
        ("pixels", "camera", -1, "viridis", 0.7),
        ("tensor", "coffee", 968, "jet", 1.0),
        ("heatmaps", "coffee", -1, "inferno", 0.3),
    ],
)
def test_classes_and_overlay(
    graph: str,
    name: str,
    target: int,
    colours: str,
    alpha: float,
    answers: Answers,
    graphs: dict[str, Path],
    photos: dict[str, Path],
    tmp_path: Path,
) -> None:
    photo = read(photos[name])
    source, picture = tmp_path / "photo.ppm", tmp_path / "overlay.ppm"
    Image.fromarray(photo).save(source)
    logits, raw, explained, pre = in_python(graphs[graph], photo, target)

    options = ["-o", picture, "--colormap", colours, "--alpha", alpha, "--top", 3]
    (answer,) = answers(graphs[graph], source, *options, *(() if target < 0 else ("--class", target)))

    chances = np.exp(logits.astype(np.float64) - logits.max())
    chances /= chances.sum()
    best = np.argsort(-chances)[:3]
    assert (answer["class"], answer["flat"], answer["overlay"]) == (explained, False, str(picture))
    assert [one["class"] for one in answer["top"]] == best.tolist()
    assert [one["score"] for one in answer["top"]] == pytest.approx(chances[best], rel=1e-4)
    assert answer["score"] == pytest.approx(chances[explained], rel=1e-4)
    low, high = painted(photo, raw, pre, colormap(colours), alpha)
    found = pixels(picture)
    assert ((found == low).all(-1) | (found == high).all(-1)).all()
    assert (found != photo).any()


def test_labels(answers: Answers, graphs: dict[str, Path], photos: dict[str, Path], tmp_path: Path) -> None:
    source = tmp_path / "a photo.ppm"
    Image.fromarray(read(photos["coffee"])).save(source)
    (answer,) = answers(graphs["silent"], source, "--class", "cup")
    assert (answer["file"], answer["class"], answer["label"]) == (str(source), 968, "cup")
    assert (answer["score"], answer["top"], answer["overlay"]) == (None, [], None)
    (answer,) = answers(graphs["pixels"], source, "--top", 1)
    assert answer["top"] == [{key: answer[key] for key in ("class", "label", "score")}]
    assert answer["label"] == "espresso"


def test_text(edge: Run, graphs: dict[str, Path], photos: dict[str, Path], tmp_path: Path) -> None:
    source = tmp_path / "photo.ppm"
    Image.fromarray(read(photos["coffee"])).save(source)
    done = edge(graphs["pixels"], source, "--top", 2)
    lines = done.stdout.splitlines()
    assert lines[0] == str(source)
    assert lines[1:4] == ["   95.3%  espresso", "    1.3%  cup", "  explained: espresso, method gradcam"]
    assert (done.returncode, done.stderr, len(lines)) == (0, "", 5)


def test_tall_photo(answers: Answers, graphs: dict[str, Path], photos: dict[str, Path], tmp_path: Path) -> None:
    """Fractions of pixels in the crop; there Pillow's own versions differ in rounding."""
    photo = read(photos["coffee"])[:333, :217]
    source = tmp_path / "tall.ppm"
    Image.fromarray(photo).save(source)
    logits, _, explained, _ = in_python(graphs["pixels"], photo, -1)
    (answer,) = answers(graphs["pixels"], source)
    assert answer["class"] == explained
    assert answer["score"] == pytest.approx(np.exp(logits.max()) / np.exp(logits).sum(), abs=2e-3)


# ---- pictures --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("jpeg")
def test_jpeg(answers: Answers, graphs: dict[str, Path], photos: dict[str, Path], tmp_path: Path) -> None:
    """A JPEG is decoded as Pillow does, to a level or two, and written as one that looks the same."""
    plain = tmp_path / "plain.ppm"
    for name, path in photos.items():  # the second is grey
        Image.fromarray(read(path)).save(plain)
        (one,) = answers(graphs["pixels"], plain, "-o", tmp_path / "one.ppm")
        (two,) = answers(graphs["pixels"], path, "-o", tmp_path / "two.ppm")
        (three,) = answers(graphs["pixels"], path, "-o", tmp_path / "three.JPG")
        assert one["label"] == two["label"] == three["label"], name
        assert two["score"] == pytest.approx(one["score"], abs=2e-3)
        wanted = pixels(tmp_path / "one.ppm").astype(int)
        assert np.abs(pixels(tmp_path / "two.ppm") - wanted).max() <= 8
        written = pixels(tmp_path / "three.JPG")
        assert np.abs(written - wanted).mean() < 3


@pytest.mark.usefixtures("jpeg")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(
    orientation: int, answers: Answers, graphs: dict[str, Path], photos: dict[str, Path], tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010E] = "an entry in front of it"
    turned = tmp_path / "turned.jpg"
    with Image.open(photos["coffee"]) as image:
        image.resize((120, 80)).save(turned, exif=exif, quality=95)
    answers(graphs["silent"], turned, "-o", tmp_path / "out.ppm", "--alpha", 0)
    assert np.abs(pixels(tmp_path / "out.ppm").astype(int) - read(turned)).max() <= 8


def test_grey_with_comments(answers: Answers, graphs: dict[str, Path], tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (31, 19), np.uint8)
    source = tmp_path / "grey.pgm"
    source.write_bytes(b"P5 # a comment\n#and\t another\n19\n31 255\n" + grey.tobytes())
    answers(graphs["silent"], source, "-o", tmp_path / "out.ppm", "--alpha", 0)
    assert np.array_equal(pixels(tmp_path / "out.ppm"), np.repeat(grey[..., None], 3, axis=2))


BROKEN = {
    "empty": (b"", "neither a binary PPM nor a JPEG"),
    "text": (b"P3 1 1 255 1 2 3", "neither a binary PPM nor a JPEG"),
    "header": (b"P6 12", "the header is no PPM's"),
    "words": (b"P6 four 4 255\n", "the header is no PPM's"),
    "sixteen": (b"P6 1 1 65535\n123456", "only pictures of 8 bits"),
    "zero": (b"P6 0 4 255\n", "the picture is empty"),
    "huge": (b"P6 99999999 99999999 255\n", "larger than 100 megapixels"),
    "short": (b"P6 2 2 255\n12345678901", "the file is truncated"),
}


def test_broken_pictures(
    edge: Run, answers: Answers, graphs: dict[str, Path], photos: dict[str, Path], tmp_path: Path
) -> None:
    """One after another: a photo that cannot be explained does not end the service."""
    for name, (data, _) in BROKEN.items():
        (tmp_path / name).write_bytes(data)
    good = tmp_path / "good.ppm"
    Image.fromarray(read(photos["coffee"])).save(good)
    names = [*(str(tmp_path / name) for name in BROKEN), "missing.ppm", str(tmp_path), str(good)]
    found = answers(graphs["silent"], lines="\n".join(["", *names]))
    assert [answer["file"] for answer in found] == names
    reasons = [reason for _, reason in BROKEN.values()] + ["No such file", "it is a folder"]
    for answer, reason in zip(found, reasons, strict=False):
        assert reason in answer["error"]
    assert found[-1]["label"] == "espresso"
    done = edge(graphs["silent"], names[0], good)
    assert done.returncode == 5
    assert names[0] in done.stderr
    assert "espresso" in done.stdout


@pytest.mark.usefixtures("jpeg")
def test_broken_jpeg(edge: Run, graphs: dict[str, Path], photos: dict[str, Path], tmp_path: Path) -> None:
    data = photos["coffee"].read_bytes()
    for name, broken in {"cut": data[:30000], "no_picture": data[:3] + bytes(500), "marker": data[:400]}.items():
        path = tmp_path / f"{name}.jpg"
        path.write_bytes(broken)
        done = edge(graphs["silent"], path)
        assert (done.returncode, done.stdout) == (5, "")
        assert str(path) in done.stderr


# ---- the service -----------------------------------------------------------------------------------------------------


def test_service(answers: Answers, graphs: dict[str, Path], photos: dict[str, Path], tmp_path: Path) -> None:
    """Overlays go into the folder; the same photo gets the same bytes, on any number of threads."""
    sources = [tmp_path / f"{name}.ppm" for name in photos]
    for path, source in zip(photos.values(), sources, strict=True):
        Image.fromarray(read(path)).save(source)
    pictures: list[list[bytes]] = []
    for threads in (1, 1, 3):
        folder = tmp_path / f"out{len(pictures)}"
        folder.mkdir()
        found = answers(graphs["pixels"], "-o", folder, "--threads", threads, lines="\n".join(map(str, sources)))
        assert [answer["label"] for answer in found] == ["espresso", "tripod"]
        assert all(answer["forward_ms"] > 0 and answer["head_ms"] > 0 for answer in found)
        assert sorted(path.name for path in folder.iterdir()) == ["camera_explained.ppm", "coffee_explained.ppm"]
        pictures.append([Path(answer["overlay"]).read_bytes() for answer in found])
    assert pictures[0] == pictures[1]
    first, third = (np.frombuffer(run[0], np.uint8).astype(int) for run in (pictures[0], pictures[2]))
    assert np.abs(first - third).max() <= 4  # the model's sums on three threads are in another order


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["{pixels}"], 2, "which photo?"),
        ([], 2, "which explain graph?"),
        (["{pixels}", "{photo}", "--serve"], 2, "from standard input"),
        (["{pixels}", "{photo}", "--colour", "x"], 2, "--colour: there is no such option"),
        (["{pixels}", "{photo}", "--alpha"], 2, "--alpha needs a value"),
        (["{pixels}", "{photo}", "--alpha", "1.5"], 2, "--alpha 1.5"),
        (["{pixels}", "{photo}", "--threads", "0"], 2, "--threads 0"),
        (["{pixels}", "{photo}", "--threads", "1.5"], 2, "--threads 1.5"),
        (["{pixels}", "{photo}", "--colormap", "hot"], 2, "there are jet, turbo"),
        (["{pixels}", "{photo}", "--class", "1000"], 2, "the model has 1000 classes"),
        (["{pixels}", "{photo}", "--class", "coffee"], 2, "nearest: coffee mug"),
        (["{pixels}", "{photo}", "-o", "out.png"], 2, "must end in .ppm"),
        (["{pixels}", "{photo}", "{photo}", "-o", "out.ppm"], 2, "is not a folder"),
        (["{pixels}", "{photo}", "--onnxruntime", "/missing/libonnxruntime.so"], 3, "/missing/libonnxruntime.so"),
        (["{pixels}", "{photo}", "--onnxruntime", "{libpycam}"], 3, "is another library"),
        (["missing.onnx", "{photo}"], 4, "missing.onnx"),
        (["{photo}", "{photo}"], 4, "photo.ppm"),
        (["{shipped}", "{photo}"], 4, "it is no explain graph"),
        (["{pixels}", "{photo}", "-o", "missing/out.ppm"], 6, "cannot write missing/out.ppm: No such file"),
    ],
)
def test_refused(
    arguments: list[str],
    code: int,
    reason: str,
    edge: Run,
    graphs: dict[str, Path],
    shipped: Path,
    workshop: Path,
    tmp_path: Path,
) -> None:
    photo = tmp_path / "photo.ppm"
    photo.write_bytes(b"P6 2 2 255\n" + bytes(12))
    (library,) = (workshop / "prefix").glob("lib*/**/libpycam.so")
    places = {"photo": photo, "shipped": shipped, "libpycam": library, **graphs}
    done = edge(*(argument.format(**places) for argument in arguments))
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("pycam_edge: ")
    assert reason in done.stderr


def without(key: str) -> Callable[[dict[str, str]], None]:
    def change(metadata: dict[str, str]) -> None:
        del metadata[key]

    return change


def spec(old: str, new: str) -> Callable[[dict[str, str]], None]:
    def change(metadata: dict[str, str]) -> None:
        assert old in metadata["pycam.spec"]
        metadata["pycam.spec"] = metadata["pycam.spec"].replace(old, new)

    return change


def preprocess(old: str, new: str) -> Callable[[dict[str, str]], None]:
    def change(metadata: dict[str, str]) -> None:
        assert old in metadata["pycam.preprocess"]
        metadata["pycam.preprocess"] = metadata["pycam.preprocess"].replace(old, new)

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without("pycam.preprocess"), "does not say how a photo becomes its input"),
        (spec('"method"', '"way"'), 'the field "method" is missing'),
        (spec('"levels": false', '"levels": 0'), "where true or false should be"),
        (spec('"notes": []', '"notes": ["\\ud83d"]'), "surrogate pair expected at byte"),
        (
            spec(
                "{",
                "[",
            ),
            "pycam.spec in its metadata cannot be read",
        ),
        (spec('"target": "class"', '"target": "detection"'), "it explains a detection"),
        (spec('"levels": false', '"levels": true'), "need the graph's own head"),
        (spec('"layout": "NHWC"', '"layout": "NCL"'), "NCL"),
        (spec('"targets": "targets"', '"targets": "aims"'), 'it takes "targets" besides'),
        (preprocess("[224, 224]", "[192, 224]"), "another shape"),
        (preprocess("[224, 224]", "[0, 224]"), "two positive numbers"),
        (preprocess("bicubic", "lanczos"), 'unknown resample "lanczos"'),
        (preprocess('"crop": 0.875', '"crop": 1.5'), "crop is not in (0, 1]"),
    ],
)
def test_graphs_of_other_kinds(
    change: Callable[[dict[str, str]], None], reason: str, edge: Run, graphs: dict[str, Path], tmp_path: Path
) -> None:
    model = onnx.load(graphs["pixels"])
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    change(metadata)
    onnx.helper.set_model_props(model, metadata)
    path, photo = tmp_path / "changed.onnx", tmp_path / "photo.ppm"
    onnx.save(model, path)
    photo.write_bytes(b"P6 2 2 255\n" + bytes(12))
    done = edge(path, photo)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.startswith(f"pycam_edge: {path}: ")
    assert reason in done.stderr
