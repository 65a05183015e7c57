// Parts of a tensor as dense floats: where they lie, if that is how they lie, else copied into a small tile that stays in
// the first-level cache.  So each kernel exists for dense floats only, and the whole input is never copied.
#pragma once
#include "numbers.hpp"

namespace pycam {

// `count` elements that follow each other, as floats.
void unpack(pycam_type type, const void* from, std::size_t count, float* to);

// Channels or points `step` floats apart.
struct Tile {
  const float* data;
  std::ptrdiff_t step;
};

// Channels [c, c + channels) of rows [y, y + rows): per channel the positions, dense.  `tile` has room for them.
Tile planes(const pycam_tensor& t, std::size_t c, std::size_t channels, std::size_t y, std::size_t rows, std::size_t width,
            float* tile);

// Points [x, x + points) of row y: per point all channels, dense.  Only for tensors whose channels lie side by side.
Tile point_row(const pycam_tensor& t, std::size_t channels, std::size_t y, std::size_t x, std::size_t points, float* tile);

// Whether each point's channels lie side by side: NHWC, tokens.
inline bool channels_together(const pycam_tensor& t) { return t.channel == 1 && t.column != 1; }

}  // namespace pycam
