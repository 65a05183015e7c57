"""The cache: what is kept gives the same bits, is told apart, survives races, damage and a full or locked disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import pycam
from pycam.errors import InputError, ModelError
from pycam.runtime import cache as caches
from pycam.runtime import optimised
from pycam.runtime.cache import Cache, locate
from pycam.runtime.identity import external_files, identity

Net = Callable[..., onnx.ModelProto]


def entries(folder: Path, kind: str = "*") -> list[Path]:
    return sorted(folder.glob(f"{kind}-*"))


def apart(model: onnx.ModelProto, folder: Path, name: str = "m.onnx") -> Path:
    """The model as a file, its weights in another."""
    folder.mkdir(exist_ok=True)
    onnx.save(model, folder / name, save_as_external_data=True, location=f"{name}.weights", size_threshold=0)
    return folder / name


@pytest.fixture(params=["path", "bytes", "proto", "external", "exported", "stages"])
def model(request: pytest.FixtureRequest, cnn: Net, tmp_path: Path) -> Any:
    """A model in every form that an Explainer takes."""
    path = tmp_path / "m.onnx"
    forms: dict[str, Callable[[], Any]] = {
        "path": lambda: (onnx.save(cnn("vgg"), path), path)[1],
        "bytes": lambda: cnn("vgg").SerializeToString(),
        "proto": lambda: cnn("vgg"),
        "external": lambda: apart(cnn("vgg"), tmp_path / "apart"),
        "exported": lambda: pycam.export(cnn("vgg"), path),
        "stages": lambda: pycam.export(cnn("vgg"), tmp_path / "stages", method="scorecam"),
    }
    return forms[request.param]()


def test_the_same_bits_from_the_cache(model: Any, images: np.ndarray, tmp_path: Path) -> None:
    want = pycam.Explainer(model, cache=False)(images, [[3, 1]] * 3)
    kept = None
    for _ in range(3):
        got = pycam.Explainer(model, cache=tmp_path / "cache")(images, [[3, 1]] * 3)
        np.testing.assert_array_equal(got.heatmaps, want.heatmaps)
        np.testing.assert_array_equal(got.raw, want.raw)
        np.testing.assert_array_equal(got.scores, want.scores)
        assert (got.layer, got.method, got.notes) == (want.layer, want.method, want.notes)
        assert kept in (None, entries(tmp_path / "cache"))
        kept = entries(tmp_path / "cache")
    assert kept
    assert not entries(tmp_path / "cache", "draft")


def test_several_targets_in_runs_of_their_own(cnn: Net, images: np.ndarray, tmp_path: Path) -> None:
    """That the compiler cannot put several into one pass is kept as well."""
    want = pycam.Explainer(cnn("turned"), layer="features")(images, "top3").heatmaps
    for _ in range(2):
        found = pycam.Explainer(cnn("turned"), layer="features", cache=tmp_path)(images, "top3")
        np.testing.assert_array_equal(found.heatmaps, want)


def test_a_second_process_needs_no_compiler(cnn: Net, tmp_path: Path) -> None:
    path, script = (
        tmp_path / "m.onnx",
        (
            "import sys, numpy, pycam\n"
            "print(float(pycam.Explainer(sys.argv[1])(numpy.ones((1, 3, 16, 16), 'float32')).heatmaps.sum()))\n"
            "print(*(m for m in ('onnx', 'onnx_ir') if m in sys.modules))"
        ),
    )
    onnx.save(cnn(), path)
    environment = {**os.environ, "PYCAM_CACHE": str(tmp_path / "cache")}
    runs = [
        subprocess.run(
            [sys.executable, "-c", script, path],
            env=environment,
            cwd=tmp_path,  # not the source tree, which has no compiled module
            capture_output=True,
            text=True,
            check=True,
        )
        for _ in range(2)
    ]
    (first, compiler), (second, none) = (run.stdout.split("\n")[:2] for run in runs)
    assert first == second
    assert compiler == "onnx onnx_ir"
    assert none == ""


def test_processes_that_race(cnn: Net, tmp_path: Path) -> None:
    """Six at once on an empty cache: all get the same, one entry is left of each kind, and no draft."""
    path, script = (
        tmp_path / "m.onnx",
        (
            "import sys, time, warnings, numpy, pycam\n"
            "warnings.simplefilter('error')\n"
            "import pycam.compiled, pycam.compile\n"
            "time.sleep(max(0, float(sys.argv[3]) - time.time()))\n"
            "for _ in range(3):\n"
            "    explainer = pycam.Explainer(sys.argv[1], threads=1, cache=sys.argv[2])\n"
            "print(float(explainer(numpy.ones((1, 3, 16, 16), 'float32')).heatmaps.sum()))"
        ),
    )
    onnx.save(cnn("vgg"), path)
    start = str(time.time() + 4)
    racing = [
        subprocess.Popen(
            [sys.executable, "-c", script, path, tmp_path / "cache", start],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(6)
    ]
    outputs = [process.communicate(timeout=120) for process in racing]
    assert [err for _, err in outputs] == [""] * 6
    assert len({out for out, _ in outputs}) == 1
    assert [len(entries(tmp_path / "cache", kind)) for kind in ("session", "compiled", "draft")] == [1, 1, 0]


def test_removal_while_others_load(cnn: Net, images: np.ndarray, tmp_path: Path) -> None:
    """A cache that is cleared all the time is no cache, and no error either."""
    script = (
        "import sys, time\nfrom pycam.runtime.cache import Cache\nend = time.time() + 3\n"
        "while time.time() < end: Cache(sys.argv[1]).clear()"
    )
    path = pycam.export(cnn(), tmp_path / "e.onnx")
    want = pycam.Explainer(path)(images).heatmaps
    clearing = subprocess.Popen([sys.executable, "-c", script, tmp_path / "cache"], cwd=tmp_path)
    while clearing.poll() is None:
        explainer = pycam.Explainer(path, cache=tmp_path / "cache", threads=1)
        np.testing.assert_array_equal(explainer(images).heatmaps, want)
    assert clearing.returncode == 0


# ---- what is told apart ----------------------------------------------------------------------------------------------


def test_options_are_told_apart(cnn: Net, tmp_path: Path) -> None:
    model, count = cnn("vgg"), 0
    for options in (
        {},
        {"method": "layercam"},
        {"layer": "early"},
        {"layer": ["early", "features"]},
        {"objective": "counterfactual"},
        {"head": "graph"},
        {"target": pycam.targets.Probability()},
        {"size": (16, 16)},
        {"method": "smoothgradcampp", "samples": 3},
        {"method": "smoothgradcampp", "samples": 4},
    ):
        pycam.Explainer(model, cache=tmp_path, **options)  # type: ignore[arg-type]
        assert len(entries(tmp_path, "compiled")) > count, options
        count = len(entries(tmp_path, "compiled"))
    pycam.Explainer(model, cache=tmp_path, threads=2, spin=False, shrink=True)  # which change no graph
    assert len(entries(tmp_path, "compiled")) == count


def test_pinned_arrays_are_told_apart(cnn: Net, images: np.ndarray, tmp_path: Path) -> None:
    model = cnn(extra_input=True)
    for value in (0.0, 1.0, 0.0):
        pins = {"shift": np.full((1, 6, 1, 1), value, np.float32)}
        got = pycam.Explainer(model, cache=tmp_path, pins=pins)(images).raw
        np.testing.assert_array_equal(got, pycam.Explainer(model, pins=pins)(images).raw)


def test_somebody_elses_target_is_compiled_each_time(cnn: Net, images: np.ndarray, tmp_path: Path) -> None:
    class Mine(pycam.targets.Class):
        """Whose code may change without a trace."""

    for _ in range(2):
        pycam.Explainer(cnn(), cache=tmp_path, target=Mine())(images)
    assert not entries(tmp_path, "compiled")
    assert len(entries(tmp_path, "session")) == 1


def test_a_changed_model_is_noticed(cnn: Net, images: np.ndarray, tmp_path: Path) -> None:
    for form in ("within", "apart"):
        for seed in (0, 1, 0, 2):
            path = tmp_path / f"{form}.onnx"
            if form == "within":
                onnx.save(cnn(seed=seed), path)
            else:
                path = apart(cnn(seed=seed), tmp_path / form)
            got = pycam.Explainer(path, cache=tmp_path / "cache")(images).raw
            np.testing.assert_array_equal(got, pycam.Explainer(path)(images).raw)


def test_digests_are_noted_of_files_that_have_settled(cnn: Net, tmp_path: Path) -> None:
    path, cache = apart(cnn(), tmp_path / "m"), Cache(tmp_path / "cache")
    weights = path.with_name("m.onnx.weights")
    assert external_files(path.read_bytes()) == ["m.onnx.weights"]
    first = identity(path, None, cache)
    assert not list(tmp_path.glob("cache/*.seen"))  # written just now: its time might not tell a further change
    for file in (path, weights):
        os.utime(file, (1e9, 1e9))
    assert identity(path, None, cache) == first
    assert len(list(tmp_path.glob("cache/*.seen"))) == 1
    weights.write_bytes(weights.read_bytes()[::-1])
    assert identity(path, None, cache) != first
    weights.unlink()
    with pytest.raises(ModelError, match=r"cannot read the model, or its weights: .*m\.onnx\.weights"):
        identity(path, None, cache)


def test_external_data_of_nested_tensors_is_found() -> None:
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="deep.bin")
    inner = onnx.helper.make_graph([onnx.helper.make_node("Constant", [], ["c"], value=tensor)], "inner", [], [])
    branch = onnx.helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
    model = onnx.helper.make_model(onnx.helper.make_graph([branch], "outer", [], []))
    assert external_files(model.SerializeToString()) == ["deep.bin"]
    assert (
        external_files(onnx.helper.make_model(onnx.helper.make_graph([], "location", [], [])).SerializeToString()) == []
    )


def test_another_onnxruntime_or_processor_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    key = optimised.optimised_key("model")
    assert key != optimised.optimised_key("other")
    with monkeypatch.context() as patch:
        patch.setattr(optimised.ort, "__version__", "0.0")
        assert optimised.optimised_key("model") != key
    with monkeypatch.context() as patch:
        patch.setattr(optimised, "processor", lambda: "another")
        assert optimised.optimised_key("model") != key
    assert optimised.optimised_key("model") == key
    assert optimised.processor()


# ---- damage ----------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "flipped": flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "emptied": lambda path: path.write_bytes(b""),
    "gone": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(
    "file", ["session-*/model.onnx", "session-*/model.data", "session-*/entry.json", "compiled-*/*.onnx"]
)
def test_damage_is_seen_said_and_mended(cnn: Net, images: np.ndarray, tmp_path: Path, file: str, damage: str) -> None:
    path, cache = tmp_path / "m.onnx", tmp_path / "cache"
    onnx.save(cnn("vgg"), path)
    want = pycam.Explainer(path, cache=cache)(images).heatmaps
    (victim,) = cache.glob(file)
    DAMAGE[damage](victim)
    with pytest.warns(RuntimeWarning, match=r"pycam's cache '.*' *: .* is damaged; it is removed and made again"):
        found = pycam.Explainer(path, cache=cache)(images).heatmaps
    np.testing.assert_array_equal(found, want)
    np.testing.assert_array_equal(pycam.Explainer(path, cache=cache)(images).heatmaps, want)  # without a warning


def test_what_onnxruntime_cannot_load_is_made_again(cnn: Net, images: np.ndarray, tmp_path: Path) -> None:
    """Files that are as they were written, but by something else."""
    path = pycam.export(cnn(), tmp_path / "e.onnx")
    want = pycam.Explainer(path, cache=tmp_path / "cache")(images).heatmaps
    (victim,) = entries(tmp_path / "cache")
    (victim / "model.onnx").write_bytes(b"something else")
    facts = json.loads((victim / "entry.json").read_text())
    stat = (victim / "model.onnx").stat()
    facts["files"]["model.onnx"] |= {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    (victim / "entry.json").write_text(json.dumps(facts))
    with pytest.warns(RuntimeWarning, match="onnxruntime cannot load it"):
        found = pycam.Explainer(path, cache=tmp_path / "cache")(images).heatmaps
    np.testing.assert_array_equal(found, want)


def test_foreign_files_in_an_entrys_place(cnn: Net, tmp_path: Path) -> None:
    path, cache = pycam.export(cnn(), tmp_path / "e.onnx"), tmp_path / "cache"
    pycam.Explainer(path, cache=cache)
    (entry,) = entries(cache)
    Cache(cache).clear()
    entry.mkdir()
    (entry / "readme.txt").write_text("mine")
    with pytest.warns(RuntimeWarning, match=r"entry.json is damaged"):
        pycam.Explainer(path, cache=cache)
    Cache(cache).clear()
    entry.write_text("a file")
    with pytest.warns(RuntimeWarning, match=r"entry.json is damaged"):
        pycam.Explainer(path, cache=cache)
    pycam.Explainer(path, cache=cache)


def test_a_copied_cache_is_believed(cnn: Net, tmp_path: Path) -> None:
    """Other times, the same digests: as in a container's image."""
    path, cache = pycam.export(cnn(), tmp_path / "e.onnx"), tmp_path / "cache"
    pycam.Explainer(path, cache=cache)
    (entry,) = entries(cache)
    before = {file.name: (file.touch(), file.stat().st_ino)[1] for file in entry.iterdir()}
    pycam.Explainer(path, cache=cache)
    assert {file.name: file.stat().st_ino for file in entry.iterdir()} == before


def test_a_cache_that_cannot_be_written(cnn: Net, images: np.ndarray, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    with pytest.warns(RuntimeWarning, match=r"pycam's cache '.*cache' cannot keep this model"):
        found = pycam.Explainer(cnn(), cache=blocked / "cache")(images)
    np.testing.assert_array_equal(found.raw, pycam.Explainer(cnn())(images).raw)


def test_a_model_that_nothing_runs_is_still_an_error(tmp_path: Path, cnn: Net) -> None:
    path = pycam.export(cnn(), tmp_path / "e.onnx")
    model = onnx.load(path)
    model.graph.node[0].op_type = "NoSuchOp"
    onnx.save(model, path)
    with pytest.raises(ModelError, match=r"refuses the model.*NoSuchOp"):
        pycam.Explainer(path, cache=tmp_path / "cache")
    assert not entries(tmp_path / "cache")


# ---- the folder ------------------------------------------------------------------------------------------------------


def test_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYCAM_CACHE", raising=False)
    assert locate(None) is None
    assert locate(False) is None
    assert os.path.basename(locate(True).root) == "pycam"  # type: ignore[union-attr]
    assert locate(tmp_path).root == str(tmp_path)  # type: ignore[union-attr]
    monkeypatch.setenv("PYCAM_CACHE", str(tmp_path / "here"))
    for asked in (None, True):
        assert locate(asked).root == str(tmp_path / "here")  # type: ignore[union-attr]
    assert locate(False) is None
    for wrong in (3, "", b"x", ["a"]):
        with pytest.raises(InputError, match=r"cache=.*: give a folder, True, False, or None"):
            locate(wrong)
    monkeypatch.delenv("PYCAM_CACHE")
    monkeypatch.setattr(caches.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert caches.usual() == str(tmp_path / "pycam")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert caches.usual() == os.path.expanduser("~/.cache/pycam")
    monkeypatch.setattr(caches.sys, "platform", "darwin")
    assert caches.usual() == os.path.expanduser("~/Library/Caches/pycam")
    monkeypatch.setattr(caches.sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", "appdata")
    assert caches.usual() == os.path.join("appdata", "pycam")


def test_off_unless_asked(cnn: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYCAM_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pycam.Explainer(cnn())
    assert list(tmp_path.iterdir()) == []


def put(cache: Cache, key: str, size: int, used: float) -> None:
    with cache.draft("session", key * 40, {}) as draft:
        Path(draft, "model.onnx").write_bytes(bytes(size))
    os.utime(Path(cache.root, f"session-{key * 40}"), (used, used))


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=5000)
    put(cache, "a", 1500, 100)
    put(cache, "b", 1500, 200)
    assert cache.find("session", "a" * 40) is not None  # is used, and so younger than b
    put(cache, "c", 1500, time.time() + 10)
    assert [name[-1] for name, _, _ in cache.entries()] == ["c", "a"]


def test_nobody_elses_files_are_touched(tmp_path: Path) -> None:
    (tmp_path / "my-photos").mkdir()
    (tmp_path / "my-photos" / "a.jpg").write_bytes(bytes(100))
    (tmp_path / "notes.seen").write_text("mine")
    (tmp_path / "draft-of-a-letter").mkdir()
    os.utime(tmp_path / "draft-of-a-letter", (0, 0))
    (tmp_path / "draft-abcd1234").mkdir()  # of a process that died long ago
    os.utime(tmp_path / "draft-abcd1234", (0, 0))
    cache = Cache(tmp_path, limit=1800)
    put(cache, "a", 900, 100)
    put(cache, "b", 900, 200)
    assert [name[-1] for name, _, _ in cache.entries()] == ["b"]
    cache.clear()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["draft-of-a-letter", "my-photos", "notes.seen"]


def test_a_draft_that_fails_leaves_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def fail() -> None:
        with cache.draft("session", "a" * 40, {}) as draft:
            Path(draft, "model.onnx").write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_others_cannot_read_it(cnn: Net, tmp_path: Path) -> None:
    """It holds the model's weights."""
    pycam.Explainer(cnn(), cache=tmp_path / "cache")
    assert {(path.stat().st_mode & 0o077) for path in (tmp_path / "cache", *entries(tmp_path / "cache"))} == {0}


# ---- the command line ------------------------------------------------------------------------------------------------


def test_the_command(cnn: Net, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pycam.cli import main

    folder = tmp_path / "cache"
    assert main(["cache", str(folder)]) == 0
    assert "(0 entries, 0.0 MB" in capsys.readouterr().out
    pycam.Explainer(cnn(), cache=folder)
    assert main(["cache", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "(2 entries" in out
    assert "session-" in out
    assert main(["cache", str(folder), "--clear"]) == 0
    assert "cleared" in capsys.readouterr().out
    assert list(folder.iterdir()) == []
