"""Show what the cache holds, or clear it.

The cache keeps compiled explain graphs and optimised models, so that a process starts faster the second time.
"""

from __future__ import annotations

import argparse
import time

from .table import table

HELP = "show or clear what is kept to start faster"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("folder", nargs="?", help="default: that of PYCAM_CACHE, else the usual one of this system")
    parser.add_argument("--clear", action="store_true", help="remove all of it")


def run(arguments: argparse.Namespace) -> int:
    """Print the entries, or remove them."""
    from pycam.runtime.cache import locate

    cache = locate(arguments.folder or True)
    assert cache is not None
    entries = cache.entries()
    total = f"{len(entries)} {'entry' if len(entries) == 1 else 'entries'}, {_megabytes(sum(e[1] for e in entries))}"
    if arguments.clear:
        cache.clear()
        print(f"cleared {cache.root}: {total}")
        return 0
    print(f"cache: {cache.root} ({total}; at most {_megabytes(cache.limit)})")
    rows = [
        [name, _megabytes(size), time.strftime("%Y-%m-%d %H:%M", time.localtime(used))] for name, size, used in entries
    ]
    if rows:
        print(table(["entry", "size", "last used"], rows))
    return 0


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
