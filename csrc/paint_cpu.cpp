#include "paint_cpu.hpp"

#include <algorithm>

#include "numbers.hpp"

namespace pycam {
namespace {

// Three passes over a block that stays in the first-level cache, because only the first and the last can be vectorised.
constexpr size_t BLOCK = 1024;

// floor(255 m + 0.5) without rounding error, in float, where a vector holds twice as many as in double: a first guess, and the
// distance from it with m cut in two, so that each product is exact.  (Below 2^-13 it is not, but the level is 0 by far.)
INLINE int level_of(float m) {
  const float upper = float_of_bits(bits_of(m) & 0xfffff000u), rest = -255.f * (m - upper);
  const int guess = static_cast<int>(255.f * m + 0.5f);
  const float beyond = 255.f * upper + (0.5f - static_cast<float>(guess));
  const int too_high = static_cast<int>(bits_of(beyond - rest) >> 31);  // the sign
  const int not_higher = static_cast<int>(bits_of(beyond - 1.f - rest) >> 31);
  return guess - too_high + 1 - not_higher;
}

MULTI void level_all(const float* RESTRICT row, size_t count, std::uint8_t* RESTRICT levels) {
  float clamped[BLOCK];  // in a loop of its own: in one with the rest the compiler makes branches of it
#pragma omp simd
  for (size_t x = 0; x < count; ++x) clamped[x] = smaller(larger(row[x], 0.f), 1.f);
#pragma omp simd
  for (size_t x = 0; x < count; ++x) levels[x] = static_cast<std::uint8_t>(level_of(clamped[x]));
}

INLINE std::uint8_t mixed(int image, int colour, int alpha) {
  return static_cast<std::uint8_t>((65536 * image + alpha * (colour - image) + 32768) >> 16);
}

// `image` and `out` may be the same bytes.
MULTI void blend_all(const std::uint8_t* image, const std::uint8_t* RESTRICT colour, size_t bytes, int alpha,
                     std::uint8_t* out) {
#pragma omp simd
  for (size_t i = 0; i < bytes; ++i) out[i] = mixed(image[i], colour[i], alpha);
}

MULTI void blend_spread(const std::uint8_t* image, std::ptrdiff_t from, const std::uint8_t* RESTRICT colour, size_t pixels,
                        int alpha, std::uint8_t* out, std::ptrdiff_t to) {
  for (size_t x = 0; x < pixels; ++x, image += from, out += to, colour += 3)
    for (size_t i = 0; i < 3; ++i) out[i] = mixed(image[i], colour[i], alpha);
}

MULTI bool none_nan(const float* RESTRICT values, size_t count) {
  int bad = 0;
#pragma omp simd reduction(| : bad)
  for (size_t i = 0; i < count; ++i) bad |= values[i] != values[i];
  return bad == 0;
}

std::ptrdiff_t offset(size_t index, std::ptrdiff_t stride) { return static_cast<std::ptrdiff_t>(index) * stride; }

}  // namespace

Palette::Palette(const pycam_output& output) : colours{}, alpha(static_cast<int>(output.alpha * 65536 + 0.5)) {
  if (output.lut != nullptr)
    for (size_t i = 0; i < 256; ++i) memcpy(colours + i, output.lut + 3 * i, 3);
}

void paint_row(const pycam_output& output, const Palette& palette, size_t n, size_t k, size_t maps, size_t y,
               const float* row) {
  std::uint8_t levels[BLOCK], colours[3 * BLOCK + 1];
  const size_t width = output.width, first = ((n * maps + k) * output.height + y) * width;
  for (size_t x = 0; x < width; x += BLOCK) {
    const size_t pixels = std::min(BLOCK, width - x);
    std::uint8_t* const level = output.levels ? output.levels + first + x : levels;
    level_all(row + x, pixels, level);
    if (output.pictures == nullptr) continue;
    for (size_t i = 0; i < pixels; ++i)  // the fourth byte is overwritten by the next pixel
      memcpy(colours + 3 * i, palette.colours + level[i], 4);
    const std::uint8_t* const image =
        output.images + offset(n, output.image_image) + offset(y, output.image_row) + offset(x, output.image_pixel);
    std::uint8_t* const picture = output.pictures + offset(n, output.picture_image) + offset(k, output.picture_map) +
                                  offset(y, output.picture_row) + offset(x, output.picture_pixel);
    if (output.image_pixel == 3 && output.picture_pixel == 3)
      blend_all(image, colours, 3 * pixels, palette.alpha, picture);
    else
      blend_spread(image, output.image_pixel, colours, pixels, palette.alpha, picture, output.picture_pixel);
  }
}

bool no_nan(const float* values, size_t count) { return none_nan(values, count); }

}  // namespace pycam
