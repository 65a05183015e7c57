"""`pycam explain`: what is said of an explanation, and what it was asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import pycam
from pycam.cli import timing

Net = Callable[..., onnx.ModelProto]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One call is enough to time."""
    monkeypatch.setattr(timing, "SECONDS", 0.0)


@pytest.fixture
def panels(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the latest picture was made of."""
    import pycam.pictures

    made: dict[str, Any] = {}
    draw = pycam.pictures.picture

    def spy(photo: Any, overlays: Any, titles: Any, subtitles: Any, **options: Any) -> Any:
        made.update(titles=titles, subtitles=subtitles, **options)
        return draw(photo, overlays, titles, subtitles, **options)

    monkeypatch.setattr("pycam.pictures.picture", spy)
    return made


# ---- times -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("patience", "count"), [(100.0, 2), (0.0, 1)])
def test_the_time_is_of_what_the_picture_shows(
    run: Run, small: Path, photos: dict[str, Path], monkeypatch: pytest.MonkeyPatch, patience: float, count: int
) -> None:
    calls: list[Any] = []
    explain = pycam.Explainer.__call__

    def spy(self: pycam.Explainer, x: Any, targets: Any = None, against: Any = None) -> pycam.Explanation:
        calls.append((targets.tolist(), against))
        return explain(self, x, targets, against)

    monkeypatch.setattr(pycam.Explainer, "__call__", spy)
    monkeypatch.setattr(timing, "PATIENCE", patience)  # one that takes longer is not repeated
    options = ("--target", "3,7", "--objective", "contrastive", "--against", "5")
    assert run("explain", photos["coffee"], "--model", small, *options)[0] == 0
    assert calls == [([[3, 7]], "5")] * count


def test_timed() -> None:
    calls: list[int] = []
    result, milliseconds = timing.timed(lambda: calls.append(1) or len(calls), again=False)
    assert (result, len(calls)) == (1, 1)
    assert 0 <= milliseconds < 1000


def test_a_forward_pass_that_fails_alone(
    run: Run, small: Path, photos: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def run(self, *_: Any) -> None:
            raise RuntimeError("no memory")

    monkeypatch.setattr("pycam.runtime.session.make_session", lambda *_, **__: Broken())
    code, out, err = run("explain", photos["coffee"], "--model", small)
    assert (code, err) == (0, "")
    assert "the forward pass alone was not timed, the model cannot run on (1, 3, 16, 16): no memory" in out
    record = json.loads(run("explain", photos["coffee"], "--model", small, "--json")[1])
    assert "no memory" in record["notes"][-1]
    assert set(record["times_ms"]) == {"explanation"}


def test_a_model_that_cannot_run(run: Run, text_model: Any, photos: dict[str, Path]) -> None:
    """It says that any size will do, and its last layer wants 8 × 8."""
    model = text_model(
        "(float[N, 3, H, W] x) => (float[N, 5] y) { a = Relu(x) f = Flatten(a) y = MatMul(f, w) }",
        w=np.ones((192, 5), np.float32),
    )
    onnx.save(model, "m.onnx")
    code, _, err = run("explain", photos["coffee"], "--model", "m.onnx")
    assert code == 1
    assert "the model cannot run on x (1, 3, 224, 224)" in err


# ---- objectives ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "aim", "caption"),
    [
        ("class", "", "matters"),
        ("counterfactual", "counterfactual", "speaks against it"),
        ("contrastive", "contrastive: 'thing 3' against 'thing 5', 'thing 7' against 'thing 5'", "tells them apart"),
    ],
)
def test_the_objective_is_said(
    run: Run, small: Path, photos: dict[str, Path], panels: dict[str, Any], objective: str, aim: str, caption: str
) -> None:
    options = ["--target", "3,7", "--objective", objective]
    if objective == "contrastive":
        options += ["--against", "thing 5"]
    code, out, err = run("explain", photos["coffee"], "--model", small, *options)
    assert (code, err) == (0, "")
    assert (f"\n  objective {aim}\n" in out) == bool(aim)
    assert ("objective" in out) == bool(aim)
    assert (aim or "gradcam") in panels["footer"]
    assert panels["caption"][1] == caption
    record = json.loads(run("explain", photos["coffee"], "--model", small, "--json", *options)[1])
    assert record["objective"] == objective
    assert record.get("against") == ([["thing 5", "thing 5"]] if objective == "contrastive" else None)
    assert record["extras"] == ({"against": [[5, 5]]} if objective == "contrastive" else {})
    assert record["options"] == {}


@pytest.mark.parametrize(
    ("objective", "message", "subtitle"),
    [
        ("class", "nothing in the photo speaks for 'class 3' at this layer", "nothing speaks for it"),
        ("counterfactual", "nothing in the photo speaks against 'class 3' at this layer", "nothing speaks against it"),
        ("contrastive", "nothing in the photo speaks for 'class 3' rather than 'class 5' at", "nothing speaks for it"),
    ],
)
def test_a_flat_map_is_said(
    run: Run, cnn: Net, photos: dict[str, Path], panels: dict[str, Any], objective: str, message: str, subtitle: str
) -> None:
    onnx.save(cnn(change={"w_fc": np.ones((20, 6)) * (1 if objective == "counterfactual" else -1)}), "m.onnx")
    options = ["--against", "5"] if objective == "contrastive" else []
    code, out, _ = run(
        "explain", photos["coffee"], "--model", "m.onnx", "--target", "3", "--objective", objective, *options
    )
    assert code == 0
    assert f"flat: {message}" in out
    assert panels["subtitles"][0].endswith(subtitle)


def test_concepts(run: Run, small: Path, photos: dict[str, Path], panels: dict[str, Any]) -> None:
    pytest.importorskip("sklearn")
    options = ("--method", "dff", "--option", "components=2")
    code, out, err = run("explain", photos["coffee"], "--model", small, *options)
    assert (code, err) == (0, "")
    record = json.loads(run("explain", photos["coffee"], "--model", small, "--json", *options)[1])
    scores = np.array(record["extras"]["concepts"])[0]
    assert scores.shape == (2, 20)
    best = scores.argmax(1)
    assert record["targets"] == [best.tolist()]
    assert record["options"]["components"] == 2
    assert panels["titles"] == [f"concept {k + 1} → thing {best[k]}" for k in range(2)]
    for k in range(2):
        assert panels["subtitles"][k].startswith(f"score {scores[k, best[k]]:.3g}")
        assert f"concept {k + 1} → thing {best[k]} (score {scores[k, best[k]]:.3g})" in out
    code, _, err = run("explain", photos["coffee"], "--model", small, *options, "--target", "3")
    assert code == 1
    assert "leave targets out" in err


def test_extras_in_json(run: Run, small: Path, photos: dict[str, Path]) -> None:
    """Small ones whole, large ones by their shape."""
    options = ("--method", "integrated_gradients", "--option", "steps=2", "--target", "3")
    large = json.loads(
        run("explain", photos["coffee"], "--model", small, "--json", "--target", "1,2", "--method", "gradient")[1]
    )
    assert large["extras"] == {"attributions": {"shape": [1, 2, 3, 16, 16]}}
    small_too = json.loads(run("explain", photos["coffee"], "--model", small, "--json", *options)[1])["extras"]
    assert np.shape(small_too["completeness"]) == (1, 1)


def test_an_extra_that_is_not_finite() -> None:
    maps = np.ones((1, 1, 2, 2), np.float32)
    found = pycam.Explanation(
        heatmaps=maps, raw=maps, scores={}, targets=np.zeros((1, 1), np.int64), flat=np.zeros((1, 1), bool),
        layer="", method="m", provider="p", objective="counterfactual",
        extras={"a": np.array([[1.5, np.nan]]), "b": np.zeros(1001)},
    ).to_dict()  # fmt: skip
    assert found["extras"] == {"a": [[1.5, None]], "b": {"shape": [1001]}}
    assert found["objective"] == "counterfactual"
    json.dumps(found, allow_nan=False)


# ---- targets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        (["3,7"], ["thing 3", "thing 7"]),
        ([" 3 , 7 "], ["thing 3", "thing 7"]),
        (["3", "thing 9"], ["thing 3", "thing 9"]),
        (["3,7", "thing 9"], ["thing 3", "thing 7", "thing 9"]),
        (["top2", "3"], [None, None, "thing 3"]),
        (["top16"], [None] * 16),
    ],
)
def test_several_targets(
    run: Run, small: Path, photos: dict[str, Path], given: list[str], labels: list[str | None]
) -> None:
    flags = [f"--target={text}" for text in given]
    code, out, err = run("explain", photos["coffee"], "--model", small, "--json", *flags)
    assert (code, err) == (0, "")
    found = json.loads(out)["labels"][0]
    assert len(found) == len(labels)
    assert all(want in (None, got) for want, got in zip(labels, found, strict=True))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("top0", "--target top0: give top1 … top16"),
        ("top17", "--target top17: give top1 … top16"),
        ("3,20", "class 20 is out of range"),
        ("3,", "no class is called '3,'"),
        ("3,thing 4", "no class is called '3,thing 4'"),
    ],
)
def test_targets_that_there_are_not(run: Run, small: Path, photos: dict[str, Path], target: str, message: str) -> None:
    code, out, err = run("explain", photos["coffee"], "--model", small, "--target", target)
    assert (code, out) == (1, "")
    assert message in err


# ---- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["batch=2"], "'rise' has no option 'batch'; its options: samples=2000, cells=8"),
        (["method=gradcam"], "no option 'method'"),
        (["providers=CPU"], "no option 'providers'"),
        (["head=cpu"], "no option 'head'"),
        (["samples=3", "samples=4"], "--option samples is given twice"),
        (["samples=28,56"], "write a list in brackets, as in --option 'samples=[28,56]'"),
        (["samples"], "write NAME=VALUE"),
        (["samples=[1,2]"], "method 'rise' takes a"),
    ],
)
@pytest.mark.parametrize("command", ["explain", "export"])
def test_options_that_are_none(
    run: Run, small: Path, photos: dict[str, Path], command: str, options: list[str], message: str
) -> None:
    first = ["explain", photos["coffee"], "--model", small] if command == "explain" else ["export", small, "folder"]
    flags = [word for option in options for word in ("--option", option)]
    code, out, err = run(*first, "--method", "RISE", *flags)
    assert (code, out) == (1, "")
    assert message in err


def test_options_of_an_exported_graph(run: Run, small: Path, photos: dict[str, Path]) -> None:
    assert run("export", small, "fem.onnx", "--method", "fem", "--option", "k=1.5")[0] == 0
    first = ("explain", photos["coffee"], "--model", "fem.onnx", "--option")
    assert run(*first, "k=1.5")[0] == 0
    for option, message in (
        ("k=2.5", "has its k built in"),
        ("batch=2", "'fem' has no option 'batch'; its options: k=1.5"),
    ):
        code, out, err = run(*first, option)
        assert (code, out) == (1, "")
        assert message in err


# ---- preprocessing ---------------------------------------------------------------------------------------------------


def test_a_guess_is_said(run: Run, cnn: Net, small: Path, photos: dict[str, Path]) -> None:
    onnx.save(cnn("conv"), "m.onnx")
    guess = "the model does not say how pictures are prepared: ImageNet's mean and deviation were assumed"

    def said(model: object, *flags: object) -> str:
        code, out, _ = run("explain", photos["coffee"], "--model", model, *flags)
        notes = json.loads(run("explain", photos["coffee"], "--model", model, "--json", *flags)[1])["notes"]
        assert code == 0
        assert out.count(guess) == sum(guess in note for note in notes) <= 1
        return next((line for line in out.splitlines() if guess in line), "")

    middle = ", and the middle 87.5% of the shorter side is shown to it (--crop 1 for all)"
    assert said("m.onnx") == f"note: {guess} (--mean, --std){middle}"
    assert said("m.onnx", "--mean", 127) == f"note: {guess} (--std){middle}"
    assert said("m.onnx", "--crop", 1) == f"note: {guess} (--mean, --std)"
    assert said("m.onnx", "--mean", 127, "--std", 64) == ""
    assert said(small) == ""
