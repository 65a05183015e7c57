// A head turns activations and weights into raw maps, raw maps into heatmaps, heatmaps into pictures.
// This file is the contract: what every head computes, and how closely heads must agree.  `reference` (head_ref.cpp) is
// the contract written as code, in double and without tricks; `vectorised` (head_cpu.cpp) is the fast one.
//
// Numbers.  s(x) = (x - min x) / (1e-7 + max(x - min x)), the formula of the package grad-cam, eps included: it is
// visible for maps below about 1e-3, and two heads that differ in it do not agree there.
//
//   weights   w_c = mean over positions of g_c
//   raw       sum_c w_c A_c, or sum_c relu(w_c A_c); w_c may also vary with the position
//   heatmap   per layer r_l = resize(s(relu(raw_l))); the heatmap is s(mean_l relu(r_l))
//   resize    bilinear: output i samples the source at max(0, (i + 0.5) * n / o - 0.5), clamped at the far edge;
//             no antialiasing when it shrinks (OpenCV INTER_LINEAR, ONNX Resize linear + half_pixel)
//   flat      no raw value above zero in any layer: the heatmap is all zeros, never NaN.
//             (A positive constant also gives zeros, by the formula, but is not flat.)
//   colour    index = floor(255 m + 0.5) without rounding error, m clamped to [0, 1]
//   blend     a = floor(65536 alpha + 0.5); out = (65536 image + a (colour - image) + 32768) >> 16: in integers,
//             so that all heads give the same bytes; within half a level + 0.002 of the formula in real numbers
//
// Tolerance against `reference`.
//   weights, raw   |difference| <= 1e-5 * sum_c |w_c A_c| at each position (1e-5 * mean |g| for the weights),
//                  as long as these sums are normal floats
//   heatmap        |difference| <= 1e-5, everywhere, for any finite input, also where the second s magnifies rounding errors
//   flat, picture  equal
// One head on one machine gives bitwise the same result on every call and from every thread.
//
// Callers check: shapes, and that raw values are neither NaN nor +infinity (-infinity is cut off by relu).
// Nothing here throws but bad_alloc.
#pragma once
#include <cstddef>
#include <cstdint>

namespace pycam {

using std::size_t;

// The weights of a map: one number per channel, or one per channel and position.
enum class Weights { per_channel, per_position };

struct Weighing {
  size_t images, maps, channels, area;  // maps per image; positions per map
  Weights kind;
  bool rectify;  // relu each product before it is summed
};

// The raw maps of one layer: (maps, height, width).
struct Layer {
  const float* raw;
  size_t height, width;
};

struct Finishing {
  const Layer* layers;
  size_t layer_count;    // at least 1
  size_t maps;           // per layer
  size_t height, width;  // of the heatmaps
};

struct Painting {
  size_t images, maps, area;  // maps per image; pixels per map
  const std::uint8_t* lut;    // (256, 3)
  std::uint32_t alpha;        // in 1/65536
};

// One implementation.  All arrays are dense and row-major.
struct Head {
  // gradients (rows, area) -> weights (rows)
  void (*mean)(const float* gradients, size_t rows, size_t area, float* weights);
  // activations (images, channels, area), weights (images, maps, channels[, area]) -> raw (images, maps, area)
  void (*weigh)(const float* activations, const float* weights, const Weighing& job, float* raw);
  // -> heatmaps (maps, height, width), flat (maps)
  void (*finish)(const Finishing& job, float* heatmaps, bool* flat);
  // images (images, area, 3), heatmaps (images, maps, area) -> pictures (images, maps, area, 3)
  void (*overlay)(const std::uint8_t* images, const float* heatmaps, const Painting& job, std::uint8_t* pictures);
};

extern const Head reference;
extern const Head vectorised;

// Whether none of `count` numbers is NaN or infinite: what a caller asks of an input before it is explained.
bool finite(const float* values, size_t count);

}  // namespace pycam
