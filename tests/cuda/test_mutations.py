"""The script that plants bugs (mutate.py) still works: each bug applies to the text, and the tests find a handful."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("mutate.py")


def mutate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)


def test_every_bug_applies_to_the_text() -> None:
    done = mutate("--check")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) >= 20


def test_an_unknown_bug_is_an_error() -> None:
    done = mutate("no-such-bug")
    assert done.returncode == 1
    assert "no such bug: no-such-bug" in done.stderr


@pytest.mark.zoo
def test_a_handful_of_bugs_is_found(model: object) -> None:  # skips where there is no compiler
    names = ("sum-warps-barrier", "mask-without-a-lane", "behind-shared-memory", "plusplus-eps", "no-margin-cell")
    done = mutate(*names)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(names)} of {len(names)} caught" in done.stdout
