// The colour maps of pycam/colormap.py, by name.
#pragma once
#include <cstdint>

namespace pycam {

struct Colormap {
  const char* name;
  const std::uint8_t* colours;  // (256, 3): red, green, blue
};

extern const Colormap COLORMAPS[6];

}  // namespace pycam
