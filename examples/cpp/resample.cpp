#include "resample.hpp"

#include <algorithm>
#include <cmath>

namespace {

// Pillow's arithmetic: weights in integers of 22 bits, an axis at a time, rounded to 8 bits in between.
constexpr int BITS = 22;

std::uint8_t rounded(int sum) { return static_cast<std::uint8_t>(std::clamp(sum >> BITS, 0, 255)); }

double bilinear(double x) { return std::max(0.0, 1 - std::abs(x)); }

double bicubic(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

struct Kernel {
  double (*weight)(double);
  double support;
};
constexpr Kernel kernels[] = {{bilinear, 1}, {bicubic, 2}};  // by Filter

// What one output reads: the inputs from `first` on, each times a weight.
struct Tap {
  size_t first;
  std::vector<int> weights;
};

std::vector<Tap> taps_of(size_t inputs, double low, double high, size_t outputs, const Kernel& kernel) {
  const double start = static_cast<float>(low);  // Pillow takes the box in float
  const double scale = static_cast<double>(static_cast<float>(high) - static_cast<float>(low)) / static_cast<double>(outputs);
  const double stretch = std::max(scale, 1.0), support = kernel.support * stretch;
  std::vector<Tap> taps;
  for (size_t i = 0; i < outputs; ++i) {
    const double centre = start + (static_cast<double>(i) + 0.5) * scale;
    const auto first = static_cast<size_t>(std::max(0.0, centre - support + 0.5));
    const size_t end = std::min(inputs, static_cast<size_t>(std::max(0.0, centre + support + 0.5)));
    std::vector<double> weights;
    double sum = 0;
    for (size_t j = first; j < end; ++j) {
      weights.push_back(kernel.weight((static_cast<double>(j) - centre + 0.5) * (1 / stretch)));
      sum += weights.back();
    }
    taps.push_back({first, {}});
    for (const double weight : weights) {
      const double fixed = weight / sum * (1 << BITS);
      taps.back().weights.push_back(static_cast<int>(fixed < 0 ? fixed - 0.5 : fixed + 0.5));
    }
  }
  return taps;
}

}  // namespace

Box crop_box(const Picture& picture, size_t height, size_t width, double share) {
  const auto rows = static_cast<double>(height), columns = static_cast<double>(width);
  const auto photo_rows = static_cast<double>(picture.height), photo_columns = static_cast<double>(picture.width);
  const double scale = share * std::min(photo_rows / rows, photo_columns / columns);
  const double left = (photo_columns - columns * scale) / 2, top = (photo_rows - rows * scale) / 2;
  return {left, top, left + columns * scale, top + rows * scale};
}

Picture resample(const Picture& picture, const Box& box, size_t height, size_t width, Filter filter) {
  const Kernel& kernel = kernels[static_cast<int>(filter)];
  const std::vector<Tap> columns = taps_of(picture.width, box.left, box.right, width, kernel);
  const std::vector<Tap> rows = taps_of(picture.height, box.top, box.bottom, height, kernel);
  const size_t first_row = rows.front().first, end_row = rows.back().first + rows.back().weights.size();

  Picture narrow{end_row - first_row, width, Bytes(3 * (end_row - first_row) * width)};
  std::uint8_t* out = narrow.pixels.data();
  for (size_t y = first_row; y < end_row; ++y)
    for (const Tap& tap : columns)
      for (size_t c = 0; c < 3; ++c) {
        const std::uint8_t* source = picture.pixels.data() + 3 * (y * picture.width + tap.first) + c;
        int sum = 1 << (BITS - 1);
        for (const int weight : tap.weights) sum += weight * *source, source += 3;
        *out++ = rounded(sum);
      }

  Picture small{height, width, Bytes(3 * height * width)};
  out = small.pixels.data();
  for (const Tap& tap : rows)
    for (size_t i = 0; i < 3 * width; ++i) {
      const std::uint8_t* source = narrow.pixels.data() + 3 * width * (tap.first - first_row) + i;
      int sum = 1 << (BITS - 1);
      for (const int weight : tap.weights) sum += weight * *source, source += 3 * width;
      *out++ = rounded(sum);
    }
  return small;
}
