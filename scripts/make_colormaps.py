"""Write csrc/colormaps.cpp: the tables of pycam.colormap as C data, for pycam_colormap().

python scripts/make_colormaps.py
"""

from __future__ import annotations

from pathlib import Path

from pycam.colormap import COLORMAPS, colormap

SOURCE = Path(__file__).resolve().parent.parent / "csrc" / "colormaps.cpp"
PER_LINE = 32  # numbers


def table(name: str) -> str:
    """The definition of one colour map."""
    values = [str(value) for value in colormap(name).ravel().tolist()]
    lines = [",".join(values[i : i + PER_LINE]) for i in range(0, len(values), PER_LINE)]
    return f"const std::uint8_t {name}[768] = {{\n" + ",\n".join(lines) + "};\n"


def text() -> str:
    """The whole file."""
    names = ", ".join(f'{{"{name}", {name}}}' for name in COLORMAPS)
    return (
        "// Written by scripts/make_colormaps.py from pycam/colormap.py: do not edit.\n"
        '#include "colormaps.hpp"\n\n'
        "namespace pycam {\nnamespace {\n\n"
        + "\n".join(table(name) for name in COLORMAPS)
        + f"\n}}  // namespace\n\nconst Colormap COLORMAPS[{len(COLORMAPS)}] = {{{names}}};\n\n}}  // namespace pycam\n"
    )


if __name__ == "__main__":
    SOURCE.write_text(text(), encoding="ascii")
