// The three types that are read, as floats.  Plain integer steps, so that loops over them vectorise at every level.
#pragma once
#include <cstddef>
#include <cstdint>

#include "include/pycam.h"
#include "simd.hpp"

namespace pycam {

INLINE float float_of_bits(std::uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

INLINE std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

// The exponent of binary16 is moved to that of a float.  Denormals, without their leading 1, get one for a moment: so no float
// denormal is met, which some programs tell the processor to take for 0.
INLINE float float_of_f16(std::uint16_t half) {
  const std::uint32_t magnitude = (half & 0x7fffu) << 13, sign = (half & 0x8000u) << 16, smallest = 0x38800000u;  // 2^-14
  const std::uint32_t denormal = bits_of(float_of_bits(magnitude + smallest) - float_of_bits(smallest));
  const std::uint32_t normal = magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : magnitude + 0x38000000u;
  return float_of_bits((magnitude < 0x00800000u ? denormal : normal) | sign);
}

INLINE float float_of_bf16(std::uint16_t upper) { return float_of_bits(static_cast<std::uint32_t>(upper) << 16); }

// One way of reading each type: `Stored` is what lies in memory, `get` makes a float of it.
struct F32 {
  using Stored = float;
  INLINE float get(float value) { return value; }
};
struct F16 {
  using Stored = std::uint16_t;
  INLINE float get(std::uint16_t value) { return float_of_f16(value); }
};
struct BF16 {
  using Stored = std::uint16_t;
  INLINE float get(std::uint16_t value) { return float_of_bf16(value); }
};

inline std::size_t bytes_of(pycam_type type) { return type == PYCAM_F32 ? 4 : 2; }

// The element that `offset` (in elements) leads to, and tensors that begin elsewhere.
inline float value_at(const pycam_tensor& tensor, std::ptrdiff_t offset) {
  if (tensor.type == PYCAM_F32) return static_cast<const float*>(tensor.data)[offset];
  const std::uint16_t half = static_cast<const std::uint16_t*>(tensor.data)[offset];
  return tensor.type == PYCAM_F16 ? float_of_f16(half) : float_of_bf16(half);
}

inline pycam_tensor moved(pycam_tensor tensor, std::size_t image, std::size_t map) {
  const std::ptrdiff_t offset =
      static_cast<std::ptrdiff_t>(image) * tensor.image + static_cast<std::ptrdiff_t>(map) * tensor.map;
  tensor.data = static_cast<const char*>(tensor.data) + offset * static_cast<std::ptrdiff_t>(bytes_of(tensor.type));
  return tensor;
}

}  // namespace pycam
