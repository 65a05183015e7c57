"""Pictures in and out: read a file, make a model's input of it, write a result.

    read(path) -> (H,W,3) --crop(pre)--> (h,w,3) --prepare(pre)--> float32 (N,C,h,w) or (N,h,w,C)

`crop` is what the model sees, so it is also what overlays are drawn on.  Pixels are uint8 RGB everywhere; Pillow is
imported only by the functions that need it, so that `import pycam` does without.
"""

from __future__ import annotations

import contextlib
import io
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pycam.errors import ImageError, InputError, OutputError
from pycam.preprocess import Preprocess

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["FORMATS", "Preprocess", "check_writable", "crop", "crop_box", "prepare", "read", "replacing", "write"]

Pixels = npt.NDArray[np.uint8]

MAX_PIXELS = 100_000_000
"""Largest picture that `read` decodes unless told otherwise: 300 MB as RGB."""

FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {"optimize": True}),
    ".jpg": ("JPEG", {"quality": 92, "subsampling": 0}),  # no chroma subsampling: it smears heatmap edges
    ".jpeg": ("JPEG", {"quality": 92, "subsampling": 0}),
    ".webp": ("WEBP", {"quality": 92}),
}
"""Suffix -> Pillow's format name and its options."""


# ---- read ------------------------------------------------------------------------------------------------------------


def read(
    source: str | os.PathLike[str] | bytes | IO[bytes] | Image.Image | npt.NDArray[Any],
    *,
    max_pixels: int = MAX_PIXELS,
) -> Pixels:
    """The picture as a fresh uint8 array `(H,W,3)`, RGB, upright.

    `source` is a path, the bytes of a file, an open binary file (left open), a Pillow image, or an array: uint8, uint16
    or bool, `(H,W)`, `(H,W,1)`, `(H,W,3)` or `(H,W,4)`.  EXIF orientation is applied, transparency is laid over white,
    grey becomes RGB, 16 bits are scaled to 8, and of an animation the first frame is taken.

    Raises `ImageError`: missing, empty, truncated, not a picture, or above `max_pixels` (checked before decoding).
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    from PIL import Image

    if isinstance(source, Image.Image):
        return _decode(source, "the image given", max_pixels)
    with _opened(source) as (file, name):
        if not file.read(1):
            raise ImageError(f"{name} is empty: give it again, or another picture")
        file.seek(0)
        try:
            image = Image.open(file)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise ImageError(
                f"{name} is too large: {error}; raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
            ) from None
        except Exception as error:  # Pillow's parsers raise nearly anything on a broken header
            raise ImageError(f"{name} is not a picture that Pillow can read: convert it to PNG or JPEG") from error
        with image:
            return _decode(image, name, max_pixels)


@contextlib.contextmanager
def _opened(source: str | os.PathLike[str] | bytes | IO[bytes]) -> Iterator[tuple[IO[bytes], str]]:
    """A seekable binary file over `source` and its name for messages; closed afterwards if it was opened here."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        yield io.BytesIO(source), f"the picture given as {len(source)} bytes"
    elif isinstance(source, (str, os.PathLike)):
        try:
            file = open(source, "rb")  # noqa: SIM115  (closed below: only opening it may say "cannot open")
        except (OSError, ValueError) as error:  # ValueError: a null byte in the path
            reason = getattr(error, "strerror", None) or error
            raise ImageError(f"cannot open {os.fspath(source)!r}: {reason}; check the path") from error
        with file:
            yield file, repr(os.fspath(source))
    elif hasattr(source, "read"):
        seekable = source.seekable()
        yield source if seekable else io.BytesIO(source.read()), repr(getattr(source, "name", "the file given"))
    else:
        raise ImageError(
            f"cannot read a picture from {type(source).__name__}: give a path, bytes, file, image or array"
        )


def _decode(image: Image.Image, name: str, max_pixels: int) -> Pixels:
    """Decode, once the size in the header is known to be acceptable."""
    from PIL import ImageOps

    _check_size(*image.size, name, max_pixels)
    try:
        return _to_rgb(ImageOps.exif_transpose(image))
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # truncated or corrupt: OSError, SyntaxError, struct.error … depending on the decoder
        raise ImageError(f"{name} is broken or truncated ({error}): copy or download it again") from error


def _to_rgb(image: Image.Image) -> Pixels:
    from PIL import Image

    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own convert() clips at 255 in place of scaling
        grey = np.asarray(image)
        fits = grey.dtype.itemsize == 2 or (grey.min() >= 0 and grey.max() <= 65535)
        return _grey_to_rgb(_to_eight_bits(grey.astype(np.uint16) if fits else grey))
    if image.mode == "F":
        raise ImageError("a picture of floating-point values has no defined white: scale it to 0–255 and give uint8")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.array(image.convert("RGB"))


def _from_array(array: npt.NDArray[Any], max_pixels: int) -> Pixels:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ImageError(f"expected an array (H,W), (H,W,1), (H,W,3) or (H,W,4), channels last, got {array.shape}")
    _check_size(array.shape[1], array.shape[0], "the array given", max_pixels)
    pixels = _to_eight_bits(array)
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    if channels == 4:
        from PIL import Image

        return _to_rgb(Image.fromarray(np.ascontiguousarray(pixels)))
    return np.array(pixels, order="C") if channels == 3 else _grey_to_rgb(pixels.reshape(pixels.shape[:2]))


def _check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    if width * height == 0:
        raise ImageError(f"{name} is empty: {width}×{height} pixels")
    if width * height > max_pixels:
        raise ImageError(
            f"{name} is {width}×{height}, {width * height / 1e6:.0f} megapixels, above the limit of "
            f"{max_pixels / 1e6:g}: shrink it, or raise max_pixels"
        )


def _to_eight_bits(array: npt.NDArray[Any]) -> Pixels:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return np.array([0, 255], np.uint8)[array.astype(np.intp)]
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:  # in either byte order
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 = 255 · 257: exact at both ends
    raise ImageError(f"cannot tell the range of {array.dtype} pixels: scale them to 0–255 and give uint8")


def _grey_to_rgb(grey: Pixels) -> Pixels:
    return np.repeat(grey[:, :, None], 3, axis=2)


# ---- the model's input -----------------------------------------------------------------------------------------------


def crop_box(height: int, width: int, pre: Preprocess) -> tuple[float, float, float, float]:
    """`(left, top, right, bottom)` of what `crop` keeps, in pixels of a picture `height`×`width`; fractions included.

    The largest centred box of the model's aspect, times `pre.crop`.  It places a heatmap on the whole photo.
    """
    rows, columns = pre.size
    scale = pre.crop * min(height / rows, width / columns)
    left, top = (width - columns * scale) / 2, (height - rows * scale) / 2
    return left, top, left + columns * scale, top + rows * scale


def crop(image: Pixels, pre: Preprocess) -> Pixels:
    """What the model sees: uint8 `(H,W,3)` -> uint8 `(*pre.size, 3)`, centre crop and antialiased resize at once."""
    from PIL import Image

    _check_pixels(image, 3)
    rows, columns = pre.size
    box = crop_box(image.shape[0], image.shape[1], pre)
    resample = Image.Resampling[pre.resample.upper()]
    return np.array(Image.fromarray(np.ascontiguousarray(image)).resize((columns, rows), resample, box=box))


def prepare(crops: Pixels | Sequence[Pixels], pre: Preprocess) -> npt.NDArray[np.float32]:
    """The model's input from `crop`s: one `(H,W,3)`, a batch `(N,H,W,3)` or a sequence of `(H,W,3)`, all of `pre.size`.

    float32, C-contiguous: `(N,C,H,W)` or `(N,H,W,C)` by `pre.layout`, `(x − mean) / std` on 0–255.
    Raises `InputError` on other sizes and `ImageError` on what is not a picture.
    """
    batch = [crops] if isinstance(crops, np.ndarray) and crops.ndim == 3 else crops
    if not len(batch):
        raise InputError("no picture was given: the batch is empty")
    for image in batch:
        _check_pixels(image, 3)
        if image.shape[:2] != pre.size:
            raise InputError(f"the model takes {pre.size[0]}×{pre.size[1]}, got {image.shape[:2]}: crop it first")
    pixels = _CHANNELS[pre.channels](np.stack(list(batch)))
    values = (pixels.astype(np.float32) - np.array(pre.mean, np.float32)) / np.array(pre.std, np.float32)
    return np.ascontiguousarray(values if pre.layout == "NHWC" else values.transpose(0, 3, 1, 2))


_CHANNELS = {
    "RGB": lambda rgb: rgb,
    "BGR": lambda rgb: rgb[..., ::-1],
    # ITU-R 601 luma in Pillow's fixed point (the weights sum to 65536, so that grey stays what it is)
    "L": lambda rgb: ((rgb @ np.array([19595, 38470, 7471], np.uint32) + 32768) >> 16)[..., None],
}
"""Channel order -> uint8 `(N,H,W,3)` to `(N,H,W,C)`."""


def _check_pixels(image: npt.NDArray[Any], ndim: int) -> None:
    if image.dtype != np.uint8 or image.ndim != ndim or image.shape[-1] != 3 or 0 in image.shape:
        raise ImageError(f"expected a uint8 picture (H,W,3), as read() returns it, got {image.dtype} {image.shape}")


# ---- write -----------------------------------------------------------------------------------------------------------


def check_writable(path: str | os.PathLike[str], overwrite: bool = True, suffixes: Sequence[str] | None = None) -> Path:
    """The path, if a result can be written there; call it before long work.

    `suffixes` are the endings allowed (default: the pictures in `FORMATS`).  Raises `OutputError`: unknown suffix, the
    folder is missing, not a folder or not writable, the path is a folder or a read-only file, or exists while
    `overwrite` is false.
    """
    path = Path(path)
    allowed = tuple(FORMATS) if suffixes is None else tuple(suffixes)
    target = os.path.realpath(path)  # the folder that counts is the one behind a link
    folder = os.path.dirname(target)
    exists = os.path.exists(target)
    problems = (
        (path.suffix.lower() not in allowed, f"the name must end in one of {', '.join(allowed)}"),
        (not os.path.exists(folder), f"the folder {folder!r} does not exist: make it first"),
        (not os.path.isdir(folder), f"{folder!r} is not a folder"),
        (os.path.isdir(target), "it is a folder: add a file name"),
        (exists and not overwrite, "it exists: remove it, choose another name, or allow overwriting"),
        (not os.access(folder, os.W_OK | os.X_OK), f"no permission to write in {folder!r}"),
        (exists and not os.access(target, os.W_OK), "it is read-only"),
    )
    for wrong, reason in problems:
        if wrong:
            raise OutputError(f"cannot write {str(path)!r}: {reason}")
    return path


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A binary file that becomes `path` when the block ends well, and leaves no trace when it does not.

    The bytes go to a hidden file beside it, which then takes its place in one step.  `OSError` -> `OutputError`.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            with open(temporary, "xb") as file:  # not tempfile: its files are private whatever the umask says
                yield file
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {os.fspath(path)!r}: {error.strerror or error}") from error


def write(path: str | os.PathLike[str], image: Pixels, overwrite: bool = True) -> None:
    """Write uint8 `(H,W,3)` or `(H,W)` as PNG, JPEG or WebP, by the suffix of `path`; whole or not at all.

    Raises `OutputError` as `check_writable` does, or when the disk is full; `ImageError` on what is not a picture.
    """
    from PIL import Image

    path = check_writable(path, overwrite)
    if image.ndim != 2 or image.dtype != np.uint8 or 0 in image.shape:
        _check_pixels(image, 3)
    kind, options = FORMATS[path.suffix.lower()]
    with replacing(path) as file:
        Image.fromarray(np.ascontiguousarray(image)).save(file, kind, **options)
