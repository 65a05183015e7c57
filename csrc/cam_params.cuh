// Part of cam_head.cuh: parameters of kernels, and numbers.
namespace cam {

using Byte = unsigned char;
using Long = long long;

// ---- parameters: pycam/head/jobs.py packs them ---------------------------------------------------------------------

enum Type { F32, F16, BF16 };                                  // pycam_type
enum Weighting { GIVEN, MEAN, POSITIVE, RECTIFIED, PLUSPLUS };  // pycam_weighting
enum Flag { FLAT = 1, NOT_FINITE = 2 };                        // of a map, in Finish::flags
enum Aligned { HEATMAPS = 1, LEVELS = 2, PICTURES = 4 };       // which outputs take four pixels in one access

struct f16 {
  unsigned short bits;
};
struct bf16 {
  unsigned short bits;
};

struct Tensor {
  const void* data;
  Long image, map, channel, row, column;  // strides, in elements
};

struct Weigh {
  Tensor activations, weights;  // or gradients
  float* partial;               // (maps of all images, splits, h*w)
  unsigned* ticket;             // (maps of all images), zero before and after a launch
  float* channel_weights;       // (maps of all images, channels): what cam_channel_weights writes
  int maps, channels, height, width;
  int splits, tiles;  // blocks per map: channels are dealt to `splits`; positions (or channel weights) to `tiles`
  int positions;      // any-kernels: positions that a block takes at once, a power of two; the other threads: channels
  int channels_first;  // any-kernels: neighbouring threads take neighbouring channels, not positions
  int weighting, weights_type;
  int finishes;  // whether the last block of a map finishes it, in the same launch
  int unused;
};

// One layer of a finish.  The raw map is the sum of `splits` arrays, `split` elements apart.
struct Source {
  const void* data;
  Long image, map, split, row, column;
  int type, height, width, splits;
};

template <int LAYERS>
struct Finish {
  float* raw;  // of the first layer, dense
  float* heatmaps;
  Byte *levels, *flags, *pictures;
  const Byte *images, *lut;
  void* statistics;  // large maps: (maps of all images) Statistics; overlay: (maps, tiles) int, after as many tickets as maps
  Long picture_image, picture_map, picture_row, picture_pixel, image_image, image_row, image_pixel;  // in bytes
  int maps, height, width;
  int tiles;  // blocks per map, which share its rows
  int alpha;  // in 1/65536
  int aligned, layer_count, unused;
  Source layers[LAYERS];
};

constexpr int MAX_LAYERS = 32;  // 2.3 KB of parameters, of 4 KB that every architecture has

// ---- numbers -------------------------------------------------------------------------------------------------------

constexpr float LARGEST = 3.402823466e38f;

CAM_INLINE float to_float(float x) { return x; }
CAM_INLINE float to_float(bf16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }
CAM_INLINE float to_float(f16 x) {
  float result;
  CAM_HALF(result, x.bits);
  return result;
}

CAM_INLINE float load(const float* p) { return __ldcg(p); }
template <typename T>
CAM_INLINE float load(const T* p) {
  return to_float(T{__ldcg(&p->bits)});
}

// Element `at` of an array whose type is known at run time.  Past the first-level cache (ldcg): partial sums come from
// other blocks.
CAM_INLINE float load(const void* data, int type, Long at) {
  if (type == F32) return load(static_cast<const float*>(data) + at);
  if (type == F16) return load(static_cast<const f16*>(data) + at);
  return load(static_cast<const bf16*>(data) + at);
}

// V elements, 16 or 8 bytes, as they lie in memory: unpacking late saves registers where many loads are in flight.
template <typename T, int V>
struct Vector {
  static constexpr int WORDS = V * static_cast<int>(sizeof(T)) / 4;
  unsigned words[WORDS];

  CAM_INLINE void load(const T* p, int vector) {
    if constexpr (WORDS == 4) {
      const uint4 q = __ldg(reinterpret_cast<const uint4*>(p) + vector);
      words[0] = q.x, words[1] = q.y, words[2] = q.z, words[3] = q.w;
    } else {
      const uint2 q = __ldg(reinterpret_cast<const uint2*>(p) + vector);
      words[0] = q.x, words[1] = q.y;
    }
  }
  CAM_INLINE void clear() {
#pragma unroll
    for (int w = 0; w < WORDS; ++w) words[w] = 0;
  }
  CAM_INLINE float operator[](int j) const {  // j is a constant once loops are unrolled
    if constexpr (sizeof(T) == 4)
      return __uint_as_float(words[j]);
    else
      return to_float(T{static_cast<unsigned short>(words[j / 2] >> (16 * (j % 2)))});
  }
};

CAM_INLINE float fused(float a, float b, float c) { return fmaf(a, b, c); }
CAM_INLINE double fused(double a, double b, double c) { return fma(a, b, c); }

// relu that keeps NaN
CAM_INLINE float relu(float x) { return x < 0.f ? 0.f : x; }

// Grad-CAM++: relu(g) g^2 / (2 g^2 + (sum A) g^3 + 1e-6).  In double: the denominator can cancel, and g^3 underflow.
CAM_INLINE float plusplus_term(float gradient, double activation_sum) {
  if (gradient <= 0.f) return 0.f;  // and NaN passes through
  const double g = gradient, square = g * g;
  return static_cast<float>(square * g / fma(square, fma(activation_sum, g, 2.0), 1e-6));
}

// One term of a sum over channels.
CAM_INLINE float element_term(float activation, float weight, int weighting) {
  if (weighting == POSITIVE) weight = relu(weight);
  const float product = activation * weight;
  return weighting == RECTIFIED ? relu(product) : product;
}

}  // namespace cam
