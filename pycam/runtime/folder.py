"""An explain graph in stages as a folder: one ONNX file per stage and `manifest.json`, which says how they are run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pycam.errors import ModelError

from .recipe import STAGES
from .spec import KEY

MANIFEST = "manifest.json"
VERSION = 1


def manifest(metadata: Mapping[str, str], stages: Mapping[str, str]) -> str:
    """The text of `manifest.json`: `version`, `stages` (name → file) and `metadata` (as an ONNX file carries it)."""
    parts = {key: _parsed(value) for key, value in metadata.items()}
    return json.dumps({"version": VERSION, "stages": dict(stages), "metadata": parts}, indent=1)


def read_folder(folder: str | os.PathLike[str]) -> dict[str, str]:
    """The metadata in a folder's manifest.

    Raises:
        ModelError: no manifest, or one that cannot be read.
    """
    metadata = _read(folder)["metadata"]
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}


def stage_files(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Stage → its file.

    Raises:
        ModelError: a stage is unknown, or its file is missing.
    """
    stages = _read(folder)["stages"]
    if set(stages) != {"explain"} and not {"prepare"} <= set(stages) <= set(STAGES):
        raise ModelError(f"{os.fspath(folder)!r} has the stages {', '.join(sorted(stages))}: export it again")
    files = {name: Path(folder) / file for name, file in stages.items()}
    missing = [file.name for file in files.values() if not file.is_file()]
    if missing:
        raise ModelError(f"{os.fspath(folder)!r} lacks {missing[0]!r}: copy the whole folder, or export it again")
    return files


def _read(folder: str | os.PathLike[str]) -> dict[str, Any]:
    path = Path(folder) / MANIFEST
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise ModelError(
            f"{os.fspath(folder)!r} is a directory without {MANIFEST}: give a model's file, or an exported folder"
        ) from None
    except ValueError as error:
        raise ModelError(f"{MANIFEST} in {os.fspath(folder)!r} cannot be read ({error}): export it again") from None
    sound = isinstance(found, dict) and all(isinstance(found.get(key), dict) for key in ("stages", "metadata"))
    if not sound or found.get("version") != VERSION or KEY not in found["metadata"]:
        raise ModelError(f"{MANIFEST} in {os.fspath(folder)!r} is not one that this pycam understands: export it again")
    return dict(found)


def _parsed(value: str) -> Any:
    """JSON within JSON is hard to read: what is an object becomes one."""
    return json.loads(value) if value.startswith("{") else value
