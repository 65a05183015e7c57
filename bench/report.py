"""What the benchmarks share: tables in markdown, the machine they ran on, and the file that keeps their results."""

from __future__ import annotations

import datetime
import importlib.metadata
import math
import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path

RESULTS = Path(__file__).parent / "RESULTS.md"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A markdown table; the first column is aligned left, the others right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def geometric_mean(values: Iterable[float]) -> float:
    """The geometric mean; NaN for no values."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def processor() -> str:
    """The processor's name and the number of cores this process may use."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = fields.get("model name") or platform.processor() or platform.machine()
    if "model" in fields:
        name += f" (family {fields.get('cpu family')}, model {fields['model']})"
    flags = fields.get("flags", "").split()
    widest = next((flag for flag in ("avx512f", "avx2", "sse4_2") if flag in flags), "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}{', ' + widest if widest else ''}, {cores} cores"


def circumstances(packages: Sequence[str]) -> str:
    """One paragraph: date, machine, Python and the versions of `packages` that are installed."""
    installed = []
    for package in packages:
        try:
            installed.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return f"{datetime.date.today().isoformat()} · {processor()} · {system} · {', '.join(installed)}"


def write_section(title: str, text: str, path: Path = RESULTS) -> None:
    """Put `text` under the heading ``## title`` of the results file: in place of what stood there, or at the end."""
    content = (
        path.read_text() if path.exists() else "# Results\n\nWritten by the scripts beside this file with `--write`.\n"
    )
    head, *sections = content.split("\n## ")
    titles = [section.partition("\n")[0] for section in sections]
    new = f"{title}\n\n{text.strip()}\n"
    if title in titles:
        sections[titles.index(title)] = new
    else:
        sections.append(new)
    path.write_text("\n## ".join([head.rstrip("\n") + "\n", *(section.rstrip("\n") + "\n" for section in sections)]))
