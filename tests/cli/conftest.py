"""What the tests of the command line share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

import pycam
from pycam.cli import main

Net = Callable[..., onnx.ModelProto]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`run("explain", …)` in an empty folder: exit code, standard output, standard error."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as stop:  # argparse
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def small(cnn: Net, with_metadata: Any, tmp_path: Path) -> Path:
    """The small CNN as a file, with labels and preprocessing."""
    pre = pycam.Preprocess(size=(16, 16), mean=(127.0,) * 3, std=(64.0,) * 3)
    labels = "\n".join(f"thing {i}" for i in range(20))
    path = tmp_path / "small.onnx"
    onnx.save(with_metadata(cnn("vgg"), {"pycam.preprocess": pre.to_json(), "pycam.labels": labels}), path)
    return path
