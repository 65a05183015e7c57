"""A folder of things that are dear to make: every entry a folder of its own, made elsewhere and renamed to its place.

    <root>/<kind>-<key>/entry.json    what it is, and the size, time and sha256 of its files
    <root>/draft-…/                   an entry that is being made

Any number of processes may use it at once: a rename is atomic, and who comes second throws its own away.  An entry
whose files are not as they were written is removed, with a warning, and made again.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from pycam.errors import InputError

VARIABLE = "PYCAM_CACHE"
"""Environment variable: the folder; where it is set there is a cache unless a call says cache=False."""

LIMIT = 4 * 2**30
"""Bytes that are kept at most; those that were used longest ago go first."""

FORMAT = 1
"""Changes when what is written does."""

_ENTRY, _DRAFT, _NOTE = r"[a-z]+-[0-9a-f]{40}", r"draft-\w{8}", r"[0-9a-f]{40}\.seen"
"""Names of what pycam puts into the folder; anything else there is not touched."""

_ABOUT = "entry.json"
_STALE = 24 * 3600.0  # seconds after which a draft's process is taken for dead


class Entry(NamedTuple):
    """Something kept."""

    folder: str
    about: dict[str, Any]
    """What its maker said about it."""
    inode: int
    """Of its `entry.json`: another one there is another entry."""

    def path(self, name: str) -> str:
        """Of one of its files."""
        return os.path.join(self.folder, name)


class Cache:
    """See the module.

    Args:
        root: The folder; it is made when first written to.
        limit: Bytes that are kept at most.
    """

    def __init__(self, root: str | os.PathLike[str], limit: int = LIMIT) -> None:
        self.root, self.limit = os.path.abspath(root), limit

    def find(self, kind: str, key: str) -> Entry | None:
        """What is kept under a key; None if there is nothing, or nothing sound."""
        folder, inode = self._folder(kind, key), 0
        try:
            with open(os.path.join(folder, _ABOUT), encoding="utf-8") as file:
                inode = os.fstat(file.fileno()).st_ino
                found = json.load(file)
            entry = Entry(folder, found["about"], inode)
            wrong = next(
                (name for name, facts in found["files"].items() if not _as_written(entry.path(name), facts)), ""
            )
        except (FileNotFoundError, NotADirectoryError):
            wrong = _ABOUT if os.path.lexists(folder) else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            wrong = _ABOUT
        if wrong is None:
            return None
        if wrong:
            self.discard(Entry(folder, {}, inode), f"{wrong} is damaged")
            return None
        with suppress(OSError):  # of somebody else's, or read-only
            os.utime(folder)  # it was used
        return entry

    @contextmanager
    def draft(self, kind: str, key: str, about: Mapping[str, Any]) -> Iterator[str]:
        """A folder to write into; when the block ends its files become the entry, unless somebody was quicker.

        Raises:
            OSError: it cannot be written.
        """
        import shutil  # only what a hit needs is imported at once
        import tempfile

        os.makedirs(self.root, mode=0o700, exist_ok=True)
        draft = tempfile.mkdtemp(prefix="draft-", dir=self.root)
        try:
            yield draft
            _seal(draft, about)
            with suppress(FileExistsError) if os.name == "nt" else _taken():
                os.rename(draft, self._folder(kind, key))
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        self.trim()

    def discard(self, entry: Entry, why: str) -> None:
        """Remove an entry and say why; unless somebody removed it meanwhile, and perhaps put another there."""
        try:
            same = os.stat(entry.path(_ABOUT)).st_ino == entry.inode
        except OSError:
            same = entry.inode == 0 and os.path.lexists(entry.folder)  # there was none before
        if same:
            import warnings

            message = f"pycam's cache {entry.folder!r}: {why}; it is removed and made again"
            warnings.warn(message, RuntimeWarning, stacklevel=2)
            self._remove(entry.folder)

    def entries(self) -> list[tuple[str, int, float]]:
        """(name, bytes, time of the last use), the latest first."""
        found = []
        for name in self._names(_ENTRY):
            folder = os.path.join(self.root, name)
            with suppress(OSError):  # somebody removed it meanwhile
                with os.scandir(folder) as files:
                    size = sum(file.stat().st_size for file in files)
                found.append((name, size, os.stat(folder).st_mtime))
        return sorted(found, key=lambda entry: -entry[2])

    def trim(self) -> None:
        """Remove what was used longest ago until the rest is within the limit, and drafts that nobody finished."""
        import shutil

        total = 0
        for name, size, _ in self.entries():
            total += size
            if total > self.limit:
                self._remove(os.path.join(self.root, name))
        for name in self._names(_DRAFT):
            folder = os.path.join(self.root, name)
            with suppress(OSError):
                if time.time() - os.stat(folder).st_mtime > _STALE:
                    shutil.rmtree(folder, ignore_errors=True)

    def clear(self) -> None:
        """Remove everything that pycam put there, and nothing else."""
        for name in self._names(_ENTRY):
            self._remove(os.path.join(self.root, name))
        for name in self._names(_NOTE):
            with suppress(OSError):
                os.remove(os.path.join(self.root, name))

    def _names(self, pattern: str) -> list[str]:
        """Of what is in the folder and has such a name."""
        import re

        there = os.listdir(self.root) if os.path.isdir(self.root) else []
        return [name for name in there if re.fullmatch(pattern, name)]

    def _folder(self, kind: str, key: str) -> str:
        return os.path.join(self.root, f"{kind}-{key[:40]}")

    def _remove(self, folder: str) -> None:
        """At once for others, who see all of it or nothing."""
        import shutil
        import tempfile

        with suppress(OSError):  # somebody else did, or may
            away = tempfile.mkdtemp(prefix="draft-", dir=self.root)
            os.rename(folder, os.path.join(away, "old"))
            shutil.rmtree(away, ignore_errors=True)


def locate(asked: Any) -> Cache | None:
    """The cache that is asked for: a folder, True (the usual one), False (none), or None (as the environment says).

    Raises:
        InputError: something else.
    """
    if asked is None:
        asked = os.environ.get(VARIABLE) or False
    if asked is False:
        return None
    if asked is True:
        return Cache(os.environ.get(VARIABLE) or usual())
    if not isinstance(asked, (str, os.PathLike)) or not os.fspath(asked):
        raise InputError(f"cache={asked!r}: give a folder, True, False, or None")
    return Cache(asked)


def usual() -> str:
    """The folder where this system keeps caches, and pycam's in it."""
    if sys.platform == "win32":
        home = os.environ.get("LOCALAPPDATA") or os.path.expanduser(r"~\AppData\Local")
    elif sys.platform == "darwin":
        home = os.path.expanduser("~/Library/Caches")
    else:
        home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(home, "pycam")


def warn_unkept(cache: Cache, error: object) -> None:
    """Say that something could not be kept: the work goes on, and will have to be done again."""
    import warnings

    warnings.warn(f"pycam's cache {cache.root!r} cannot keep this model: {error}", RuntimeWarning, stacklevel=3)


def sha256(path: str | os.PathLike[str]) -> str:
    """Of a file."""
    import hashlib

    with open(path, "rb") as file:
        found = hashlib.sha256()
        while part := file.read(2**20):
            found.update(part)
    return found.hexdigest()


def _seal(folder: str, about: Mapping[str, Any]) -> None:
    """Bring the files to the disk, and write what they are beside them."""
    files = {}
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        _flush(path)
        stat = os.stat(path)
        files[name] = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": sha256(path)}
    path = os.path.join(folder, _ABOUT)
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"about": dict(about), "files": files}, file, indent=1)
    _flush(path)


def _flush(path: str) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _as_written(path: str, facts: Mapping[str, Any]) -> bool:
    """Whether a file is what was written: by its size and time, and by its digest where it is not of that time."""
    try:
        stat = os.stat(path)
    except OSError:
        return False
    if stat.st_size != facts["size"]:
        return False
    return bool(stat.st_mtime_ns == facts["mtime_ns"] or sha256(path) == facts["sha256"])


@contextmanager
def _taken() -> Iterator[None]:
    """A rename that finds the place taken by a folder that is not empty."""
    try:
        yield
    except OSError as error:
        import errno

        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
