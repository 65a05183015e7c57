"""Plants bugs in the CUDA kernels, one at a time, and says which the tests find.

    python tests/cuda/mutate.py                 all of them (see docs/gpu.md for how long, and for the score)
    python tests/cuda/mutate.py NAME …          some
    python tests/cuda/mutate.py --check         only whether each still applies to the text

A bug is caught if the tests on fibers fail, or else those on threads; a time out counts.  Exits with 1 if one was not
caught that is not expected to survive.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"


class Bug(NamedTuple):
    """`old` becomes `new` in cam_<part>.cuh, where it is there once; `survives`: why no test can find it."""

    name: str
    part: str
    old: str
    new: str
    survives: str = ""


ON_FIBERS, ON_THREADS = ("test_weigh.py", "test_finish.py"), ("test_sanitizers.py",)
BARRIER = "__syncthreads();"
BUGS = (
    # barriers
    Bug("sum-warps-barrier", "weigh", f"  {BARRIER}\n  // Element e of", "  // Element e of"),
    Bug("sum-channels-barrier", "weigh", f"  {BARRIER}\n  const int mine", "  const int mine"),
    Bug("reused-sums-barrier", "weigh", f"{BARRIER}  // whoever still reads it", ""),
    Bug("sum-positions-barrier", "weigh", f" = value;\n  {BARRIER}", " = value;"),
    Bug("before-ticket-barrier", "weigh", f"says so\n  {BARRIER}", "says so"),
    Bug("after-ticket-barrier", "weigh", f"- 1u);\n  {BARRIER}", "- 1u);"),
    Bug("reused-range-barrier", "heatmap", f"{BARRIER}  // whoever still reads the last", "// "),
    Bug("range-barrier", "heatmap", f"= high;\n  {BARRIER}", "= high;"),
    Bug("staged-barrier", "heatmap", "bad = __syncthreads_or(bad);", ""),
    Bug("statistics-barrier", "heatmap", f"NOT_FINITE : 0));\n  }}\n  {BARRIER}", "NOT_FINITE : 0));\n  }"),
    Bug(
        "lut-barrier",
        "head",
        f"cam::load_lut(job.lut, lut);\n  {BARRIER}\n  const auto*",
        "cam::load_lut(job.lut, lut);\n  const auto*",
    ),
    Bug(
        "divergent-barrier",
        "heatmap",
        "if (threadIdx.x % 32 == 0) shared",
        f"if (threadIdx.x % 32 == 0) {BARRIER} shared",
    ),
    # fences, tickets, what several blocks write
    Bug("fence-before-ticket", "weigh", "__threadfence();  // each thread", "// each thread"),
    Bug("fence-after-ticket", "weigh", "__threadfence();  // the others", "// the others"),
    Bug(
        "ticket-not-reset",
        "weigh",
        "atomicInc(ticket, static_cast<unsigned>(count) - 1u)",
        "atomicInc(ticket, 0xffffffffu)",
    ),
    Bug(
        "ticket-late",
        "weigh",
        "*shared == static_cast<unsigned>(count) - 1u",
        "*shared == static_cast<unsigned>(count)",
    ),
    Bug(
        "ticket-early",
        "weigh",
        "*shared == static_cast<unsigned>(count) - 1u",
        "*shared + 2u >= static_cast<unsigned>(count)",
    ),
    Bug("every-tile-reports", "heatmap", "if (reports && job.flags", "if (job.flags"),
    Bug(
        "tile-forgets-the-first",
        "head",
        "for (int i = 0; i < job.tiles; ++i) any",
        "for (int i = 1; i < job.tiles; ++i) any",
    ),
    # warps
    Bug(
        "mask-without-a-lane", "weigh", "sum[c] += __shfl_xor_sync(0xffffffffu", "sum[c] += __shfl_xor_sync(0x7fffffffu"
    ),
    Bug("short-butterfly", "weigh", "for (int step = 16; step > 0", "for (int step = 8; step > 0"),
    Bug("long-butterfly", "heatmap", "for (int step = 16; step > 0", "for (int step = 32; step > 0"),
    Bug("divergent-shuffle", "weigh", "group < p.channels / V;", "group < p.channels / V - (lane > 20);"),
    Bug("a-warp-is-forgotten", "heatmap", "for (int w = 0; w < warps; ++w)", "for (int w = 0; w < warps - 1; ++w)"),
    # memory
    Bug("vector-too-many", "weigh", "if (vector < area)\n      vectors", "if (vector <= area)\n      vectors"),
    Bug("misaligned-vector", "params", "reinterpret_cast<const uint4*>(p)", "reinterpret_cast<const uint4*>(p + 1)"),
    Bug("misaligned-store", "pixels", "if (job.aligned & HEATMAPS)", "if (job.width > 3)"),
    Bug("behind-shared-memory", "weigh", "shared[(warp * area + vector)", "shared[((warp + 1) * area + vector)"),
    Bug("layers-overlap", "head", "(columns + job.layer_count * job.width)", "(columns + job.width)"),
    Bug(
        "scratch-overlaps",
        "head",
        "reinterpret_cast<double*>(shared + STATISTICS_BYTES<LAYERS>)",
        "reinterpret_cast<double*>(shared)",
    ),
    Bug("last-tile-unbounded", "weigh", "< p.positions && mine < area", "< p.positions"),
    Bug("last-channel-unbounded", "weigh", "place.position == 0 && c < p.channels", "place.position == 0"),
    Bug(
        "row-end-unbounded", "pixels", "if (x + j < job.width) job.heatmaps", "if (x + j < job.width + 1) job.heatmaps"
    ),
    Bug(
        "fourth-byte",
        "pixels",
        "for (int b = 0; b < 3; ++b) {\n      const",
        "for (int b = 0; b < 4; ++b) {\n      const",
    ),
    # which number goes where
    Bug("cut-late", "weigh", "* area - first;", "* area - first + 1;"),
    Bug(
        "weight-of-the-neighbour",
        "weigh",
        "next = pick(weight, share.channel[k] + 1)",
        "next = pick(weight, share.channel[k])",
    ),
    Bug("low-half-twice", "params", "(16 * (j % 2))", "(16 * (j % 1))"),
    Bug("maps-of-one-image", "weigh", "const int image = map / p.maps, k_map", "const int image = map, k_map"),
    Bug("a-split-is-forgotten", "heatmap", "s < source.splits;", "s < source.splits - 1;"),
    Bug("a-row-is-forgotten", "pixels", "(job.height + job.tiles - 1) / job.tiles", "job.height / job.tiles"),
    Bug("blue-first", "pixels", "<< (8 * b);\n    shared", "<< (8 * (2 - b));\n    shared"),
    Bug("last-colour", "pixels", "i < 256;", "i < 255;"),
    # formulas
    Bug(
        "mean-of-one-less",
        "weigh",
        "1.f / static_cast<float>(p.height * p.width)",
        "1.f / static_cast<float>(p.height * p.width - 1)",
    ),
    Bug("weighting-swapped", "params", "weighting == POSITIVE", "weighting == RECTIFIED"),
    Bug("relu-hides-nan", "params", "x < 0.f ? 0.f : x", "x > 0.f ? x : 0.f"),
    Bug("plusplus-eps", "params", "2.0), 1e-6)", "2.0), 1e-7)"),
    Bug("plusplus-in-float", "params", "const double g = gradient", "const float g = gradient"),
    Bug("first-eps", "heatmap", "1.f / (1e-7f + (high - low))", "1.f / (1e-8f + (high - low))"),
    Bug("precise-eps", "heatmap", "1e-7 * job.layer_count", "1e-7"),
    Bug("never-precise", "heatmap", "SMALLEST_RANGE = 1.f / 16", "SMALLEST_RANGE = 0"),
    Bug("corner-pixel", "heatmap", "max((2 * i + 1) * n - o, 0)", "max((2 * i + 1) * n, 0)"),
    Bug("far-edge", "heatmap", "min(column.low + 1, w - 1)", "(column.low + 1)"),
    Bug("no-margin-cell", "heatmap", "j / 2;", "j / 2 + 1;"),
    Bug("no-last-of-a-cell", "heatmap", "max(first - j % 2, 0)", "max(first, 0)"),
    Bug("infinity-is-finite", "heatmap", "raw <= LARGEST;", "raw == raw;"),
    Bug("level-rounds-up", "pixels", "__fmaf_rd(m, 255.f, 0.5f)", "fmaf(m, 255.f, 0.5f)"),
    Bug("blend-rounds-down", "pixels", "+ 32768)", "+ 32767)"),
    # what no test here can find
    Bug(
        "ticket-reuse-barrier",
        "weigh",
        f"- 1u;\n  {BARRIER}",
        "- 1u;",
        "what comes next writes there only behind a barrier of its own",
    ),
    Bug(
        "overflow",
        "pixels",
        "(static_cast<Long>(image * job.maps + map) * job.height + y)",
        "((image * job.maps + map) * job.height + y)",
        "needs more than 2^31 pixels",
    ),
    Bug(
        "no-eps-in-float",
        "heatmap",
        "each / (1e-7f + range)",
        "each / range",
        "there the range is at least 1/16: a difference of 1.6e-6, within the tolerance",
    ),
)


def plant(bug: Bug, folder: Path) -> None:
    """The kernels in `folder`, with the bug."""
    for path in CSRC.glob("cam_*.cuh"):
        shutil.copy(path, folder)
    target = folder / f"cam_{bug.part}.cuh"
    text = target.read_text(encoding="utf-8")
    if text.count(bug.old) != 1:
        raise SystemExit(f"{bug.name}: {bug.old!r} is in {target.name} {text.count(bug.old)} times, not once")
    target.write_text(text.replace(bug.old, bug.new), encoding="utf-8")


def run(tests: tuple[str, ...], folder: Path) -> str:
    """ "" if the tests pass, else what failed first."""
    pytest = Path(sys.executable).with_name("pytest")
    options = ["-q", "-x", "-n", "0", "-m", "", "-p", "no:cacheprovider", "-W", "ignore", "--tb=line", "--no-header"]
    command = [pytest, *options, *(HERE / test for test in tests)]
    environment = {**os.environ, "PYCAM_CUDA_TEXT": str(folder)}
    try:
        done = subprocess.run(
            command, cwd=HERE.parents[1], env=environment, capture_output=True, text=True, check=False, timeout=600
        )
    except subprocess.TimeoutExpired:
        return "time out"
    if done.returncode == 0:
        return ""
    if "RuntimeError" in done.stdout:
        raise SystemExit(f"the kernels do not compile:\n{done.stdout[-3000:]}")
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return (lines or [f"exit {done.returncode}"])[0].removeprefix("FAILED ").split("/")[-1]


def find(bug: Bug) -> str:
    """The test that finds the bug, or ""."""
    with tempfile.TemporaryDirectory() as folder:
        plant(bug, Path(folder))
        return run(ON_FIBERS, Path(folder)) or run(ON_THREADS, Path(folder))


def main(names: list[str]) -> int:
    if names == ["--check"]:
        for bug in BUGS:
            with tempfile.TemporaryDirectory() as folder:
                plant(bug, Path(folder))
        print(f"{len(BUGS)} bugs apply")
        return 0
    unknown = set(names) - {bug.name for bug in BUGS}
    if unknown:
        raise SystemExit(f"no such bug: {', '.join(sorted(unknown))}")
    chosen = [bug for bug in BUGS if not names or bug.name in names]
    if by := run(ON_FIBERS, CSRC):
        raise SystemExit(f"the tests fail without a bug: {by}")
    missed, caught = [], 0
    for bug in chosen:
        start = time.monotonic()
        by = find(bug)
        caught += bool(by)
        if not by and not bug.survives:
            missed.append(bug.name)
        verdict = f"caught   {by[:100]}" if by else f"SURVIVES {bug.survives}"
        print(f"{bug.name:26} {time.monotonic() - start:4.0f} s  {verdict}", flush=True)
    print(f"{caught} of {len(chosen)} caught; not expected to survive: {', '.join(missed) or 'none'}")
    return bool(missed)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
