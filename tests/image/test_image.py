"""Reading and writing pictures, with everything a user's disk may hold."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import sys
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

import pycam.image
from pycam import image
from pycam.errors import ImageError, OutputError

Pixels = npt.NDArray[np.uint8]

RNG = np.random.default_rng(0)
PHOTO: Pixels = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
GREY = PHOTO[:, :, 0]


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


PNG = encoded(Image.fromarray(PHOTO))


# ---- read ------------------------------------------------------------------------------------------------------------


def test_every_kind_of_source_gives_the_same_pixels(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(PNG)
    with path.open("rb") as file:
        sources: list[Any] = [str(path), path, PNG, io.BytesIO(PNG), file, Image.fromarray(PHOTO), PHOTO]
        for source in sources:
            pixels = image.read(source)
            assert pixels.dtype == np.uint8
            assert pixels.flags.c_contiguous
            assert pixels.flags.writeable
            assert not np.shares_memory(pixels, PHOTO)
            np.testing.assert_array_equal(pixels, PHOTO)
        assert not file.closed


def test_a_pipe_is_read_although_it_cannot_seek() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as source, os.fdopen(writing, "wb") as sink:
        sink.write(PNG)
        sink.close()
        np.testing.assert_array_equal(image.read(source), PHOTO)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:16, :24] = (255, 0, 0)  # red marks the upper left corner
    stored = {  # what a camera stores so that a viewer which obeys the tag shows `upright`
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = image.read(encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif))
    assert pixels.shape == upright.shape
    assert np.abs(pixels.astype(int) - upright).mean() < 6  # JPEG blurs the edges


def test_transparency_is_laid_over_white() -> None:
    rgba = np.zeros((2, 3, 4), np.uint8)
    rgba[:, 1] = (200, 100, 0, 255)
    rgba[:, 2] = (0, 0, 0, 51)  # a fifth of black
    expected = [255, 255, 255], [200, 100, 0], [204, 204, 204]
    for source in (rgba, Image.fromarray(rgba), encoded(Image.fromarray(rgba))):
        np.testing.assert_array_equal(image.read(source)[0], expected)


def test_palette_and_grey_with_transparency() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 150, 100])
    palette.putpixel((1, 0), 1)
    np.testing.assert_array_equal(image.read(encoded(palette, transparency=0)), [[[255] * 3, [200, 150, 100]]])
    np.testing.assert_array_equal(image.read(Image.new("LA", (1, 1), (0, 0))), [[[255] * 3]])
    np.testing.assert_array_equal(
        image.read(encoded(Image.new("RGB", (1, 1), (1, 2, 3)), transparency=(1, 2, 3))), [[[255] * 3]]
    )


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr", "HSV", "P"])
def test_any_mode_becomes_rgb(mode: str) -> None:
    pixels = image.read(Image.fromarray(PHOTO).convert(mode))
    assert pixels.shape == PHOTO.shape
    assert pixels.dtype == np.uint8


def test_grey_becomes_rgb() -> None:
    expected = np.repeat(GREY[:, :, None], 3, 2)
    for source in (GREY, GREY[:, :, None], Image.fromarray(GREY), encoded(Image.fromarray(GREY))):
        np.testing.assert_array_equal(image.read(source), expected)


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    deep = np.array([[0, 257, 32768, 65535]], np.uint16)
    expected = np.repeat(np.array([[[0], [1], [128], [255]]], np.uint8), 3, 2)
    sources: list[Any] = [
        deep,
        deep.astype(">u2"),
        Image.fromarray(deep),
        Image.fromarray(deep.astype(np.int32)),
        encoded(Image.fromarray(deep)),
        encoded(Image.fromarray(deep), "TIFF"),
    ]
    for source in sources:
        np.testing.assert_array_equal(image.read(source), expected)
    np.testing.assert_array_equal(image.read(np.repeat(deep[:, :, None], 3, 2)), expected)


def test_a_mask_is_black_and_white() -> None:
    np.testing.assert_array_equal(image.read(np.array([[False, True]]))[0], [[0] * 3, [255] * 3])


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    animation = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(image.read(animation)[0, 0], [255, 0, 0])


def test_a_strided_view_is_read() -> None:
    np.testing.assert_array_equal(image.read(PHOTO[::-1, ::2]), PHOTO[::-1, ::2])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"no picture at all", "not a picture"),
        (b"\x89PNG\r\n\x1a\n", "not a picture"),
        (PNG[:100], "broken or truncated"),
        (PNG[: len(PNG) // 2], "broken or truncated"),
        (encoded(Image.fromarray(PHOTO), "JPEG")[:-200], "broken or truncated"),
        (encoded(Image.fromarray(PHOTO), "WEBP")[:-200], "picture|truncated"),
    ],
)
def test_a_broken_file_says_which_and_what_to_do(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=message) as error:
        image.read(path)
    assert "broken.png" in str(error.value)
    assert ":" in str(error.value)  # … : what would help
    with pytest.raises(ImageError, match=message):
        image.read(content)


@pytest.mark.parametrize("name", ["missing.png", ".", "missing/photo.png", "a\0b.png"])
def test_a_path_that_cannot_be_opened(tmp_path: Path, name: str) -> None:
    with pytest.raises(ImageError, match="cannot open"):
        image.read(f"{tmp_path}/{name}")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 5, 6), np.uint8), "channels last"),
        (np.zeros((1, 4, 4, 3), np.uint8), "channels last"),
        (np.zeros(5, np.uint8), "channels last"),
        (np.zeros((0, 4, 3), np.uint8), "empty"),
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((4, 4, 3), np.int64), "int64"),
        (np.zeros((4, 4, 4), np.float64), "float64"),
    ],
)
def test_an_array_that_is_no_picture(array: npt.NDArray[Any], message: str) -> None:
    with pytest.raises(ImageError, match=message):
        image.read(array)


def test_values_without_a_known_range_are_refused() -> None:
    with pytest.raises(ImageError, match="floating"):
        image.read(Image.new("F", (2, 2)))
    with pytest.raises(ImageError, match="range"):
        image.read(Image.fromarray(np.array([[-1]], np.int32)))
    with pytest.raises(ImageError, match="NoneType"):
        image.read(None)  # type: ignore[arg-type]


def test_a_huge_picture_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    header = bytearray(encoded(Image.new("RGB", (10, 10))))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # Pillow's own limit aside
    header[16:24] = (20000).to_bytes(4, "big") * 2
    with pytest.raises(ImageError, match="20000×20000, 400 megapixels"):  # though its CRC is wrong and data missing
        image.read(_with_crc(header))
    with pytest.raises(ImageError, match="30×20"):
        image.read(PNG, max_pixels=599)
    with pytest.raises(ImageError, match="30×20"):
        image.read(PHOTO, max_pixels=599)
    assert image.read(PNG, max_pixels=600).shape == (20, 30, 3)


def test_pillows_own_limit_is_an_image_error_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match="MAX_IMAGE_PIXELS"):
        image.read(PNG)


def _with_crc(png: bytearray) -> bytes:
    png[29:33] = zlib.crc32(bytes(png[12:29])).to_bytes(4, "big")
    return bytes(png)


# ---- write -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".PNG"])
@pytest.mark.parametrize("pixels", [PHOTO, GREY, PHOTO[::2, ::-1]], ids=["rgb", "grey", "view"])
def test_what_is_written_is_read_back(tmp_path: Path, suffix: str, pixels: Pixels) -> None:
    smooth = np.ascontiguousarray(pixels // 64 + 100)
    path = tmp_path / f"out{suffix}"
    image.write(path, smooth)
    expected = image.read(smooth)
    tolerance = 0 if suffix.lower() == ".png" else 6
    assert np.abs(image.read(path).astype(int) - expected).max() <= tolerance
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_bad_output_path_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file.png").write_bytes(b"old")
    (tmp_path / "folder.png").mkdir()
    cases = [
        ("out.bmp", r"must end in one of \.png"),
        ("out", "must end in one of"),
        ("", "must end in one of"),
        ("missing/out.png", "does not exist"),
        ("file.png/out.png", "is not a folder"),
        ("folder.png", "is a folder"),
    ]
    for name, message in cases:
        path = f"{tmp_path}/{name}" if name else ""
        with pytest.raises(OutputError, match=message):
            image.check_writable(path)
        with pytest.raises(OutputError, match=message):
            image.write(path, PHOTO)
    with pytest.raises(OutputError, match="it exists"):
        image.write(tmp_path / "file.png", PHOTO, overwrite=False)
    assert (tmp_path / "file.png").read_bytes() == b"old"
    assert image.check_writable(tmp_path / "file.png") == tmp_path / "file.png"
    assert image.check_writable(str(tmp_path / "m.onnx"), suffixes=[".onnx"]) == tmp_path / "m.onnx"
    with pytest.raises(OutputError, match=r"\.onnx"):
        image.check_writable(tmp_path / "m.png", suffixes=[".onnx"])


def test_permissions_are_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.png"
    path.write_bytes(b"old")
    denied: set[str] = set()
    monkeypatch.setattr(os, "access", lambda name, mode: str(name) not in denied)  # root may do anything
    for refused, message in ((tmp_path, "no permission"), (path, "read-only")):
        denied.clear()
        denied.add(os.path.realpath(refused))
        with pytest.raises(OutputError, match=message):
            image.check_writable(path)


def test_nothing_is_left_half_written(tmp_path: Path) -> None:
    path = tmp_path / "out.png"
    path.write_bytes(b"old")

    def half_written(error: Exception) -> None:
        with image.replacing(path) as file:
            file.write(b"new")
            raise error

    with pytest.raises(RuntimeError, match="midway"):
        half_written(RuntimeError("midway"))
    with pytest.raises(OutputError, match="No space left"):
        half_written(OSError(28, "No space left on device"))
    with pytest.raises(ImageError):
        image.write(path, np.zeros((2, 2, 3)))  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["out.png"]
    with pytest.raises(OutputError, match="No such file"), image.replacing(tmp_path / "missing" / "out.png"):
        pass


@pytest.mark.skipif(os.name == "nt", reason="links and modes of POSIX")
def test_a_link_is_followed_and_the_umask_obeyed(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    target = tmp_path / "store" / "real.png"
    (tmp_path / "link.png").symlink_to(target)
    image.write(tmp_path / "link.png", PHOTO)
    assert (tmp_path / "link.png").is_symlink()
    np.testing.assert_array_equal(image.read(target), PHOTO)
    (tmp_path / "plain").touch()
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_many_threads_write_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "out.png"
    threads = [threading.Thread(target=image.write, args=(path, PHOTO)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(image.read(path), PHOTO)
    assert os.listdir(tmp_path) == ["out.png"]


def test_importing_needs_no_pillow() -> None:
    modules = "pycam.image, pycam.pictures, pycam.colormap, pycam.runtime.metadata"
    code = f"import sys, {modules}; sys.exit(any(m in sys.modules for m in ('PIL', 'onnx', 'onnxruntime')))"
    root = Path(pycam.image.__file__).parent.parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
