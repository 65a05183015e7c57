"""`pycam compare`."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pycam.image import read

Run = Callable[..., tuple[int, str, str]]


def test_a_grid_of_methods_photos_and_classes(run: Run, small: Path, photos: dict[str, Path]) -> None:
    code, out, err = run(
        *(
            "compare",
            photos["coffee"],
            photos["camera"],
            "--model",
            small,
            "--method",
            "gradcam",
            "--method",
            "layercam",
        ),
        *("--target", "top2", "--target", "3", "-o", "grid.png", "--report", "grid.html"),
    )
    assert (code, err) == (0, "")
    assert "coffee.jpg: thing " in out
    assert "gradcam at " in out
    assert out.endswith("wrote grid.png\nwrote grid.html\n")
    assert read("grid.png").shape[1] > 3 * 300
    assert "layercam" in Path("grid.html").read_text(encoding="utf-8").lower()


def test_alone_it_explains_a_photo_with_the_model_that_ships(run: Run) -> None:
    code, out, _ = run("compare")
    assert code == 0
    assert "coffee.jpg: espresso" in out
    assert read("comparison.png").shape[1] > 4 * 300


def test_marks_and_signs_show(run: Run, small: Path, photos: dict[str, Path]) -> None:
    pictures = []
    for i, flags in enumerate([(), ("--contours", "0.3,0.6"), ("--boxes",), ("--boxes", "0.5"), ("--signed",)]):
        given = ("compare", photos["coffee"], "--model", small, "--method", "gradcam", *flags, "-o", f"{i}.png")
        assert run(*given)[0] == 0
        pictures.append(read(f"{i}.png"))
    assert len({picture.shape for picture in pictures}) == 1
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)


def test_a_method_that_the_model_cannot_serve(run: Run, small: Path, photos: dict[str, Path]) -> None:
    given = ("compare", photos["coffee"], "--model", small, "--method", "cam", "--method", "gradcam", "-o", "grid.png")
    code, _, err = run(*given)
    assert code == 1
    assert "global average pooling" in err
    assert not Path("grid.png").exists()
    code, out, err = run(*given, "--skip-failing")
    assert code == 0
    assert err.startswith("left out: cam: ")
    assert "gradcam at" in out


def test_an_option_goes_to_the_methods_that_have_it(run: Run, small: Path, photos: dict[str, Path]) -> None:
    given = ("compare", photos["coffee"], "--model", small, "--method", "rise", "--method", "gradcam", "-o", "g.png")
    assert run(*given, "--option", "samples=8")[0] == 0
    first = read("g.png")
    assert run(*given, "--option", "samples=9")[0] == 0
    assert not np.array_equal(first, read("g.png"))
    code, _, err = run(*given, "--option", "sampels=8")
    assert code == 1
    assert "none of the methods rise, gradcam has an option 'sampels'" in err


def test_progress_is_shown_on_a_terminal(
    run: Run, small: Path, photos: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = Terminal()
    monkeypatch.setattr("sys.stderr", shown)
    assert run("compare", photos["coffee"], "--model", small, "--method", "gradcam", "--method", "layercam")[0] == 0
    assert "1/2 explanations" in shown.getvalue()


def test_labels_from_a_file(run: Run, small: Path, photos: dict[str, Path], tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"name {i}" for i in range(20)))
    code, out, _ = run("compare", photos["coffee"], "--model", small, "--labels", names, "--target", "name 4")
    assert code == 0
    assert "coffee.jpg: name 4" in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--method", "gradcma"), "nearest: gradcam"),
        (("--target", "thing 77"), "thing 77"),
        (("--colormap", "jett"), "nearest: jet"),
        (("--alpha", "2"), "--alpha 2.0"),
        (("--contours", "0.5,1.5"), "contour level 1.5"),
        (("--contours", "half"), "--contours 'half'"),
        (("--boxes", "1"), "--boxes 1.0"),
        (("-o", "grid.txt"), "must end in one of .png"),
        (("--report", "grid.png"), "must end in one of .html"),
        (("--labels", "missing.txt"), "cannot read the labels"),
    ],
)
def test_bad_flags(run: Run, small: Path, photos: dict[str, Path], flags: tuple[str, ...], message: str) -> None:
    code, _, err = run("compare", photos["coffee"], "--model", small, "--method", "gradcam", *flags)
    assert code == 1
    assert message in err
    assert not list(Path().glob("*.png"))


def test_a_photo_that_is_not_there(run: Run, small: Path, photos: dict[str, Path]) -> None:
    code, _, err = run("compare", photos["coffee"], "nowhere.jpg", "--model", small)
    assert code == 1
    assert "cannot open 'nowhere.jpg'" in err
