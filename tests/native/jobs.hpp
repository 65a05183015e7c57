// Random jobs: numbers of every type in memory of every layout, and pictures likewise.  What lies between elements is NaN
// or a canary, and memory ends with the last element, so that a wrong address shows.
#pragma once
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "pycam.h"

class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}
  std::size_t below(std::size_t n) { return static_cast<std::size_t>(engine_() % n); }
  std::size_t between(std::size_t low, std::size_t high) { return low + below(high - low + 1); }
  bool chance(std::size_t one_in) { return below(one_in) == 0; }
  double uniform() { return static_cast<double>(engine_() >> 11) * 0x1p-53; }
  double noise() {  // about normal
    double sum = -6;
    for (int i = 0; i < 12; ++i) sum += uniform();
    return sum;
  }
  template <class T, std::size_t COUNT>
  T one_of(const T (&items)[COUNT]) {
    return items[below(COUNT)];
  }

 private:
  std::mt19937_64 engine_;
};

// ---- the types that are read, in their own words ----------------------------------------------------------------------

inline std::uint16_t half_of(double value) {  // truncated
  const std::uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const double size = std::fabs(value);
  if (size < 0x1p-14) return static_cast<std::uint16_t>(sign | static_cast<int>(std::ldexp(size, 24)));
  const int exponent = std::ilogb(size);
  const int fraction = static_cast<int>(std::ldexp(size, 10 - exponent)) - 1024;
  return static_cast<std::uint16_t>(sign | ((exponent + 15) << 10) | fraction);
}

inline double of_half(std::uint16_t bits) {
  const int exponent = (bits >> 10) & 31, fraction = bits & 1023;
  const double size = exponent == 0    ? std::ldexp(fraction, -24)
                      : exponent == 31 ? fraction ? std::nan("") : HUGE_VAL
                                       : std::ldexp(1024 + fraction, exponent - 25);
  return bits & 0x8000 ? -size : size;
}

inline float float_from(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Numbers with five axes (n, k, c, y, x) somewhere in memory.
class Numbers {
 public:
  using Index = std::array<std::size_t, 5>;
  pycam_tensor tensor{};
  Index extents{};

  template <class Value>  // Value(n, k, c, y, x) -> double
  Numbers(Random& random, const Index& shape, const std::array<bool, 5>& same, const Value& value) : extents(shape) {
    static constexpr pycam_type types[] = {PYCAM_F32, PYCAM_F16, PYCAM_BF16};
    tensor.type = random.one_of(types);
    const std::array<std::ptrdiff_t*, 5> strides = {&tensor.image, &tensor.map, &tensor.channel, &tensor.row, &tensor.column};
    std::ptrdiff_t next = random.chance(3) ? 2 : 1, start = 0, last = 0;
    for (const std::size_t axis : order(random)) {
      if (same[axis]) continue;  // stride 0
      const auto reach = static_cast<std::ptrdiff_t>(extents[axis] - 1) * next;
      const bool backwards = random.chance(5);
      *strides[axis] = backwards ? -next : next;
      if (backwards) start += reach;
      last += reach;
      next = (reach + next) + static_cast<std::ptrdiff_t>(random.chance(3) ? random.below(4) : 0);
    }
    const std::size_t size = size_of();
    gap_ = random.below(4) * size;
    bytes_.resize(gap_ + (static_cast<std::size_t>(last) + 1) * size, 0xff);  // NaN in every type
    origin_ = gap_ + static_cast<std::size_t>(start) * size;
    tensor.data = bytes_.data() + origin_;
    each([&](const Index& i) { put(i, value(i)); });
  }
  Numbers(const Numbers&) = delete;
  Numbers& operator=(const Numbers&) = delete;

  void put(const Index& i, double value) {
    const auto single = static_cast<float>(value);
    std::uint32_t bits;
    std::memcpy(&bits, &single, sizeof bits);
    const std::uint16_t half = tensor.type == PYCAM_F16 ? half_of(value) : static_cast<std::uint16_t>(bits >> 16);
    std::memcpy(place(i), tensor.type == PYCAM_F32 ? static_cast<const void*>(&bits) : &half, size_of());
  }

  double at(const Index& i) const {
    std::uint32_t bits = 0;
    std::uint16_t half;
    if (tensor.type == PYCAM_F32) {
      std::memcpy(&bits, place(i), 4);
      return float_from(bits);
    }
    std::memcpy(&half, place(i), 2);
    return tensor.type == PYCAM_F16 ? of_half(half) : float_from(static_cast<std::uint32_t>(half) << 16);
  }

  template <class Action>
  void each(const Action& action) const {
    Index i{};
    for (i[0] = 0; i[0] < extents[0]; ++i[0])
      for (i[1] = 0; i[1] < extents[1]; ++i[1])
        for (i[2] = 0; i[2] < extents[2]; ++i[2])
          for (i[3] = 0; i[3] < extents[3]; ++i[3])
            for (i[4] = 0; i[4] < extents[4]; ++i[4]) action(i);
  }

 private:
  std::size_t size_of() const { return tensor.type == PYCAM_F32 ? 4 : 2; }

  // Axes from the innermost: as NCHW, as NHWC, or any.
  static Index order(Random& random) {
    static constexpr Index known[] = {{4, 3, 2, 1, 0}, {2, 4, 3, 1, 0}};
    Index axes = known[random.below(2)];
    if (random.chance(3))
      for (std::size_t i = axes.size(); i > 1; --i) std::swap(axes[i - 1], axes[random.below(i)]);
    return axes;
  }

  std::uint8_t* place(const Index& i) const {
    std::ptrdiff_t offset = 0;
    const std::ptrdiff_t strides[] = {tensor.image, tensor.map, tensor.channel, tensor.row, tensor.column};
    for (std::size_t axis = 0; axis < 5; ++axis) offset += static_cast<std::ptrdiff_t>(i[axis]) * strides[axis];
    return const_cast<std::uint8_t*>(bytes_.data()) + static_cast<std::ptrdiff_t>(origin_) +
           offset * static_cast<std::ptrdiff_t>(size_of());
  }

  std::vector<std::uint8_t> bytes_;
  std::size_t gap_ = 0, origin_ = 0;
};

// What maps look like in life and in bad luck.
enum class Kind { noise, positive, negative, zeros, constant, nearly_constant, peak, steps, tiny, large, count };

inline double value_of(Random& random, Kind kind) {
  switch (kind) {
    case Kind::positive: return random.uniform() + 3;
    case Kind::negative: return -random.uniform() - 1e-3;
    case Kind::zeros: return 0;
    case Kind::constant: return 0.75;
    case Kind::nearly_constant: return 1 + 1e-6 * random.uniform();
    case Kind::peak: return random.chance(20) ? 1 : 0;
    case Kind::steps: return static_cast<double>(random.below(3)) - 1;
    case Kind::tiny: return random.noise() * 1e-7;
    case Kind::large: return random.noise() * 1e4;
    default: return random.noise();
  }
}
inline Kind any_kind(Random& random) { return static_cast<Kind>(random.below(static_cast<std::size_t>(Kind::count))); }

inline std::size_t any_side(Random& random) {
  static constexpr std::size_t usual[] = {7, 14, 16, 17, 31};
  return random.chance(2) ? random.between(1, 9) : random.one_of(usual);
}

// Pictures (n, k, height, width, 3) in memory of some layout.
struct Pictures {
  static constexpr std::uint8_t CANARY = 0xa5;
  std::vector<std::uint8_t> bytes;
  std::ptrdiff_t origin = 0, image = 0, map = 0, row = 0, pixel = 0;

  Pictures(Random& random, std::size_t images, std::size_t maps, std::size_t height, std::size_t width) {
    pixel = random.chance(3) ? 4 : 3;
    const auto spare = [&random] { return static_cast<std::ptrdiff_t>(random.chance(2) ? random.below(6) : 0); };
    const auto length = [](std::size_t count, std::ptrdiff_t step) { return static_cast<std::ptrdiff_t>(count) * step; };
    row = length(width, pixel) + spare();
    map = length(height, row) + spare();
    image = length(maps, map) + spare();
    const std::ptrdiff_t reach =
        length(images - 1, image) + length(maps - 1, map) + length(height - 1, row) + length(width - 1, pixel);
    bytes.assign(static_cast<std::size_t>(reach) + 3, CANARY);
    if (random.chance(3)) {  // bottom up
      origin = length(height - 1, row);
      row = -row;
    }
  }
  std::ptrdiff_t place(std::size_t n, std::size_t k, std::size_t y, std::size_t x) const {
    const auto step = [](std::size_t i, std::ptrdiff_t stride) { return static_cast<std::ptrdiff_t>(i) * stride; };
    return origin + step(n, image) + step(k, map) + step(y, row) + step(x, pixel);
  }
  std::uint8_t* start() { return bytes.data() + origin; }
  const std::uint8_t* at(std::size_t n, std::size_t k, std::size_t y, std::size_t x) const {
    return bytes.data() + place(n, k, y, x);
  }
};
