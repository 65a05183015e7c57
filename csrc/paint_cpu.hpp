// Heatmaps to levels and pictures, one row at a time.
#pragma once
#include "head.hpp"

namespace pycam {

struct Palette {
  std::uint32_t colours[256];  // red, green, blue and a byte that is overwritten: one load, one store
  int alpha;                   // in 1/65536
  explicit Palette(const pycam_output& output);
};

// Row y of image n and map k: what `output` wants of it.
void paint_row(const pycam_output& output, const Palette& palette, size_t n, size_t k, size_t maps, size_t y, const float* row);

// Whether a heatmap has no NaN.
bool no_nan(const float* values, size_t count);

}  // namespace pycam
