"""A progress bar on standard error; silent where that is not a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TextIO, TypeVar

T = TypeVar("T")


def progress(items: Sequence[T], what: str = "images", stream: TextIO | None = None) -> Iterator[T]:
    """Yield the items, showing how many are done and how long the rest will take."""
    stream = sys.stderr if stream is None else stream
    shown = len(items) > 1 and stream.isatty()
    start = time.monotonic()
    for i, item in enumerate(items):
        if shown:
            rest = (time.monotonic() - start) / i * (len(items) - i) if i else 0.0
            bar = "█" * round(20 * i / len(items))
            stream.write(f"\r{bar:░<20} {i}/{len(items)} {what}, {rest:.0f} s left ")
            stream.flush()
        yield item
    if shown:
        stream.write(f"\r{'█' * 20} {len(items)}/{len(items)} {what} in {time.monotonic() - start:.1f} s\n")
