#include "pack.hpp"

#include <cstring>

namespace pycam {
namespace {

MULTI void unpack_f16(const std::uint16_t* RESTRICT from, std::size_t count, float* RESTRICT to) {
#pragma omp simd
  for (std::size_t i = 0; i < count; ++i) to[i] = float_of_f16(from[i]);
}

MULTI void unpack_bf16(const std::uint16_t* RESTRICT from, std::size_t count, float* RESTRICT to) {
#pragma omp simd
  for (std::size_t i = 0; i < count; ++i) to[i] = float_of_bf16(from[i]);
}

using Offset = std::ptrdiff_t;

Offset offset(std::size_t index, Offset stride) { return static_cast<Offset>(index) * stride; }

const void* element(const pycam_tensor& t, Offset at) {
  return static_cast<const char*>(t.data) + at * static_cast<Offset>(bytes_of(t.type));
}

}  // namespace

void unpack(pycam_type type, const void* from, std::size_t count, float* to) {
  switch (type) {
    case PYCAM_F32: std::memcpy(to, from, count * sizeof(float)); break;
    case PYCAM_F16: unpack_f16(static_cast<const std::uint16_t*>(from), count, to); break;
    case PYCAM_BF16: unpack_bf16(static_cast<const std::uint16_t*>(from), count, to); break;
  }
}

Tile planes(const pycam_tensor& t, std::size_t c, std::size_t channels, std::size_t y, std::size_t rows, std::size_t width,
            float* tile) {
  const std::size_t area = rows * width;
  const Offset start = offset(c, t.channel) + offset(y, t.row);
  const bool dense = (t.column == 1 || width == 1) && (t.row == static_cast<Offset>(width) || rows == 1);
  if (dense && t.type == PYCAM_F32) return {static_cast<const float*>(element(t, start)), t.channel};
  if (dense && (t.channel == static_cast<Offset>(area) || channels == 1)) {
    unpack(t.type, element(t, start), channels * area, tile);
    return {tile, static_cast<Offset>(area)};
  }
  float* to = tile;
  for (std::size_t i = 0; i < channels; ++i)
    for (std::size_t j = 0; j < rows; ++j, to += width) {
      const Offset at = start + offset(i, t.channel) + offset(j, t.row);
      if (t.column == 1)
        unpack(t.type, element(t, at), width, to);
      else
        for (std::size_t x = 0; x < width; ++x) to[x] = value_at(t, at + offset(x, t.column));
    }
  return {tile, static_cast<Offset>(area)};
}

Tile point_row(const pycam_tensor& t, std::size_t channels, std::size_t y, std::size_t x, std::size_t points, float* tile) {
  const Offset start = offset(y, t.row) + offset(x, t.column);
  if (t.type == PYCAM_F32) return {static_cast<const float*>(element(t, start)), t.column};
  for (std::size_t i = 0; i < points; ++i)
    unpack(t.type, element(t, start + offset(i, t.column)), channels, tile + i * channels);
  return {tile, static_cast<Offset>(channels)};
}

}  // namespace pycam
