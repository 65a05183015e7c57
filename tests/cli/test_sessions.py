"""`--provider`, `--threads`, `--no-spin` and `--cache`, and what `pycam doctor` says of providers."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

from pycam.cli.options import add_session_arguments, session_arguments
from pycam.errors import InputError
from pycam.runtime import providers

Run = Callable[..., tuple[int, str, str]]


def parsed(*texts: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_session_arguments(parser)
    return session_arguments(parser.parse_args(texts))


def test_nothing_asked() -> None:
    assert parsed() == {"providers": None, "threads": None, "spin": True, "cache": None}


def test_all_asked() -> None:
    options = ["--provider", "TensorRT:trt_fp16_enable=True,device_id=1", "--provider", "cpu", "--threads", "2"]
    assert parsed(*options, "--no-spin", "--cache", "here") == {
        "providers": [("TensorRT", {"trt_fp16_enable": "True", "device_id": "1"}), "cpu"],
        "threads": 2,
        "spin": False,
        "cache": "here",
    }
    assert parsed("--cache")["cache"] is True


@pytest.mark.parametrize("text", ["CUDA:", "CUDA:device_id", "CUDA:=1", "CUDA:a=1,b"])
def test_options_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match=r"--provider '.*': write NAME:OPTION=VALUE"):
        parsed("--provider", text)


def test_explaining_from_the_cache(run: Run, small: Path, photos: dict[str, Path], tmp_path: Path) -> None:
    options = [
        "--model",
        small,
        "--json",
        "--provider",
        "cpu",
        "--threads",
        1,
        "--no-spin",
        "--cache",
        tmp_path / "cache",
    ]
    for _ in range(2):
        code, out, err = run("explain", photos["coffee"], *options)
        assert (code, err) == (0, "")
        assert json.loads(out)["provider"] == "CPUExecutionProvider"
    assert sorted(path.name.partition("-")[0] for path in (tmp_path / "cache").glob("*-*")) == ["compiled", "session"]


def test_a_provider_that_is_not_there(run: Run, small: Path, photos: dict[str, Path]) -> None:
    code, _, err = run("explain", photos["coffee"], "--model", small, "--provider", "TPU")
    assert code == 1
    assert "the provider TPUExecutionProvider is unknown" in err


def test_doctor_says_which_providers_start(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "providers: " in run("doctor")[1]
    names = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: names)
    out = run("doctor")[1]
    assert "CUDAExecutionProvider: cannot start: " in out  # whatever this machine is, the wheel for it is not installed
    monkeypatch.setattr(providers, "_started", lambda name: "starts")
    assert "CUDAExecutionProvider: starts" in run("doctor")[1]
