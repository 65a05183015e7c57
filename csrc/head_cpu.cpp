// The vectorised head.  Plain loops and `#pragma omp simd`: on 2048 x 7 x 7 hand-written AVX-512 was at most 20 % faster.
// The functions marked MULTI exist once per x86-64 level, and the loader picks; elsewhere there is the baseline (NEON on ARM).
//
// Inside a MULTI function: everything it calls is INLINE, as the compiler makes versions of the function itself only,
// and nothing of std::, whose inline bodies would stay at the baseline level (Clang 19 leaves them undefined).
#include <string.h>  // not <cstring>: a plain memcpy is a builtin of the compiler, also inside a MULTI function

#include <algorithm>
#include <cmath>
#include <vector>

#include "head.hpp"

#if defined(PYCAM_CLONES)
#define MULTI PYCAM_CLONES
#else
#define MULTI
#endif
#if defined(_MSC_VER)
#define INLINE static __forceinline
#define RESTRICT __restrict
#else
#define INLINE static inline __attribute__((always_inline))
#define RESTRICT __restrict__
#endif

namespace pycam {
namespace {

INLINE float larger(float a, float b) { return a > b ? a : b; }
INLINE float smaller(float a, float b) { return a < b ? a : b; }

// ---- weights and raw maps ------------------------------------------------------------------------------------------

// Four rows at a time: four independent sums hide the latency of the additions and of the horizontal sum at the end.
template <size_t AREA>
INLINE void mean_rows(const float* RESTRICT g, size_t rows, size_t area, float* RESTRICT weights) {
  const size_t n = AREA ? AREA : area;
  const float count = static_cast<float>(n);
  size_t r = 0;
  for (; r + 4 <= rows; r += 4, g += 4 * n) {
    float a = 0, b = 0, c = 0, d = 0;
#pragma omp simd reduction(+ : a, b, c, d)
    for (size_t q = 0; q < n; ++q) {
      a += g[q];
      b += g[q + n];
      c += g[q + 2 * n];
      d += g[q + 3 * n];
    }
    weights[r] = a / count;
    weights[r + 1] = b / count;
    weights[r + 2] = c / count;
    weights[r + 3] = d / count;
  }
  for (; r < rows; ++r, g += n) {
    float a = 0;
#pragma omp simd reduction(+ : a)
    for (size_t q = 0; q < n; ++q) a += g[q];
    weights[r] = a / count;
  }
}

// One term of the sum over channels.  `a` and `w` point to channel c (and, for a weight per position, its row).
template <Weights KIND, bool RECTIFY>
INLINE float term(const float* RESTRICT a, const float* RESTRICT w, size_t q) {
  const float product = a[q] * (KIND == Weights::per_channel ? *w : w[q]);
  return RECTIFY ? larger(product, 0.f) : product;
}

// Four channels at a time: the running sums are loaded and stored once per four.
template <size_t AREA, Weights KIND, bool RECTIFY>
INLINE void accumulate(const float* RESTRICT a, const float* RESTRICT w, size_t channels, size_t area, float* RESTRICT sum) {
  const size_t n = AREA ? AREA : area, step = KIND == Weights::per_channel ? 1 : n;
  for (size_t q = 0; q < n; ++q) sum[q] = 0;
  size_t c = 0;
  for (; c + 4 <= channels; c += 4, a += 4 * n, w += 4 * step) {
#pragma omp simd
    for (size_t q = 0; q < n; ++q)
      sum[q] += (term<KIND, RECTIFY>(a, w, q) + term<KIND, RECTIFY>(a + n, w + step, q)) +
                (term<KIND, RECTIFY>(a + 2 * n, w + 2 * step, q) + term<KIND, RECTIFY>(a + 3 * n, w + 3 * step, q));
  }
  for (; c < channels; ++c, a += n, w += step) {
#pragma omp simd
    for (size_t q = 0; q < n; ++q) sum[q] += term<KIND, RECTIFY>(a, w, q);
  }
}

// 7 x 7 is what most classifiers end in: with the size known, the sums stay in registers.
constexpr size_t COMMON_AREA = 49;

template <Weights KIND, bool RECTIFY>
INLINE void weigh_map(const float* a, const float* w, size_t channels, size_t area, float* raw) {
  if (area == COMMON_AREA) {
    float sum[COMMON_AREA];
    accumulate<COMMON_AREA, KIND, RECTIFY>(a, w, channels, area, sum);
    for (size_t q = 0; q < COMMON_AREA; ++q) raw[q] = sum[q];
  } else {
    accumulate<0, KIND, RECTIFY>(a, w, channels, area, raw);
  }
}

MULTI void mean(const float* gradients, size_t rows, size_t area, float* weights) {
  if (area == COMMON_AREA)
    mean_rows<COMMON_AREA>(gradients, rows, area, weights);
  else
    mean_rows<0>(gradients, rows, area, weights);
}

using WeighMap = void (*)(const float*, const float*, size_t, size_t, float*);
MULTI void sum_channel(const float* a, const float* w, size_t c, size_t n, float* raw) {
  weigh_map<Weights::per_channel, false>(a, w, c, n, raw);
}
MULTI void sum_channel_relu(const float* a, const float* w, size_t c, size_t n, float* raw) {
  weigh_map<Weights::per_channel, true>(a, w, c, n, raw);
}
MULTI void sum_position(const float* a, const float* w, size_t c, size_t n, float* raw) {
  weigh_map<Weights::per_position, false>(a, w, c, n, raw);
}
MULTI void sum_position_relu(const float* a, const float* w, size_t c, size_t n, float* raw) {
  weigh_map<Weights::per_position, true>(a, w, c, n, raw);
}

void weigh(const float* activations, const float* weights, const Weighing& job, float* raw) {
  static constexpr WeighMap table[2][2] = {{sum_channel, sum_channel_relu}, {sum_position, sum_position_relu}};
  const bool dense = job.kind == Weights::per_position;
  const WeighMap one = table[dense][job.rectify];
  const size_t step = job.channels * (dense ? job.area : 1);
  for (size_t n = 0; n < job.images; ++n)
    for (size_t k = 0; k < job.maps; ++k, weights += step, raw += job.area)
      one(activations + n * job.channels * job.area, weights, job.channels, job.area, raw);
}

// ---- heatmaps ------------------------------------------------------------------------------------------------------

// Where the outputs of one axis sample the source: low[i] + part[i] * (high[i] - low[i]).  In double and rounded once:
// a float coordinate is off by 4e-6 at 50, which a steep map would show.
struct Axis {
  std::vector<int> low, high;
  std::vector<float> part;
  Axis(size_t n, size_t o) : low(o), high(o), part(o) {
    const double scale = static_cast<double>(n) / static_cast<double>(o);
    for (size_t i = 0; i < o; ++i) {
      const double at = std::max(0.0, (static_cast<double>(i) + 0.5) * scale - 0.5);
      const size_t cell = std::min(static_cast<size_t>(at), n - 1);
      low[i] = static_cast<int>(cell);
      high[i] = static_cast<int>(std::min(cell + 1, n - 1));
      part[i] = static_cast<float>(at - static_cast<double>(cell));
    }
  }
};

// Marks the outputs that begin or end a cell of the source.  Within a cell (of all layers at once) a column of the
// result is linear in y, so the smallest and the largest value of the whole result are in the marked rows.
// The clamped margin is a cell of its own: with several layers the kink at its end can be an extreme.
void mark_corners(size_t n, size_t o, std::vector<bool>& corner) {
  const double scale = static_cast<double>(n) / static_cast<double>(o);
  const auto cell = [&](size_t i) { return std::floor((static_cast<double>(i) + 0.5) * scale - 0.5); };
  corner.front() = corner.back() = true;
  for (size_t i = 1; i < o; ++i)
    if (cell(i) != cell(i - 1)) corner[i] = corner[i - 1] = true;
}

// One layer of one map, as plain pointers.
struct Part {
  const float* raw;
  size_t height, width;
  const int *row_low, *row_high, *column_low, *column_high;
  const float *row_part, *column_part;
  float* rows;  // scratch (height, output width): s(relu(raw)), interpolated along x
};

// s(relu(raw)), interpolated along x.  Returns whether anything was above zero.
INLINE bool stretch_rows(const Part& part, size_t width, float* RESTRICT line) {
  const size_t area = part.height * part.width;
  const float* RESTRICT raw = part.raw;
  float low = larger(raw[0], 0.f), high = low;
#pragma omp simd reduction(min : low) reduction(max : high)
  for (size_t q = 0; q < area; ++q) {
    const float v = larger(raw[q], 0.f);
    low = smaller(low, v);
    high = larger(high, v);
  }
  const float range = 1e-7f + (high - low);
  const int *RESTRICT left = part.column_low, *RESTRICT right = part.column_high;
  const float* RESTRICT f = part.column_part;
  for (size_t y = 0; y < part.height; ++y) {
    const float* RESTRICT source = raw + y * part.width;
    float* RESTRICT target = part.rows + y * width;
#pragma omp simd
    for (size_t x = 0; x < part.width; ++x) line[x] = (larger(source[x], 0.f) - low) / range;
#pragma omp simd
    for (size_t x = 0; x < width; ++x) target[x] = line[left[x]] + f[x] * (line[right[x]] - line[left[x]]);
  }
  return high > 0.f;
}

// Row y of the sum over layers.
INLINE void mix_row(const Part* parts, size_t count, size_t y, size_t width, float* RESTRICT out) {
  for (size_t l = 0; l < count; ++l) {
    const Part& part = parts[l];
    const float* RESTRICT top = part.rows + static_cast<size_t>(part.row_low[y]) * width;
    const float* RESTRICT bottom = part.rows + static_cast<size_t>(part.row_high[y]) * width;
    const float f = part.row_part[y];
    if (l == 0) {
#pragma omp simd
      for (size_t x = 0; x < width; ++x) out[x] = top[x] + f * (bottom[x] - top[x]);
    } else {
#pragma omp simd
      for (size_t x = 0; x < width; ++x) out[x] += top[x] + f * (bottom[x] - top[x]);
    }
  }
}

enum class Outcome { done, flat, ill_conditioned };

// The second s divides rounding errors (about 3e-7 here) by the range of the mean map.  Below this range they could reach
// 1e-5: such maps (nearly constant, or tiny against the eps) are rare and are left to the reference.
constexpr float SMALLEST_RANGE = 1.f / 16;

// One heatmap.  s is affine and so is the interpolation along y: s is applied to the few rows of the sources, not to the output.
MULTI Outcome finish_map(const Part* parts, size_t count, const size_t* corners, size_t corner_count, size_t height, size_t width,
                         float* RESTRICT line, float* RESTRICT out) {
  bool positive = false;
  for (size_t l = 0; l < count; ++l) positive |= stretch_rows(parts[l], width, line);
  if (!positive) return Outcome::flat;

  float low = 3.4e38f, high = -3.4e38f;
  for (size_t i = 0; i < corner_count; ++i) {
    mix_row(parts, count, corners[i], width, line);
#pragma omp simd reduction(min : low) reduction(max : high)
    for (size_t x = 0; x < width; ++x) {
      low = smaller(low, line[x]);
      high = larger(high, line[x]);
    }
  }
  const float each = 1.f / static_cast<float>(count), range = (high - low) * each;
  if (range < SMALLEST_RANGE) return Outcome::ill_conditioned;

  const float shift = low * each, scale = each / (1e-7f + range);
  for (size_t l = 0; l < count; ++l) {
    float* RESTRICT rows = parts[l].rows;
    const size_t size = parts[l].height * width;
#pragma omp simd
    for (size_t i = 0; i < size; ++i) rows[i] = (rows[i] - shift) * scale;
  }
  for (size_t y = 0; y < height; ++y) {
    float* RESTRICT row = out + y * width;
    mix_row(parts, count, y, width, row);
#pragma omp simd
    for (size_t x = 0; x < width; ++x) row[x] = smaller(larger(row[x], 0.f), 1.f);  // the last ulp
  }
  return Outcome::done;
}

// Memory that stays with its thread between calls, unless it was for something unusually large.
class Scratch {
 public:
  float* take(size_t size) {
    if (memory().size() < size) memory().resize(size);
    return memory().data();
  }
  ~Scratch() {
    if (memory().size() > (size_t{1} << 22)) std::vector<float>().swap(memory());
  }

 private:
  static std::vector<float>& memory() {
    static thread_local std::vector<float> floats;
    return floats;
  }
};

void finish(const Finishing& job, float* heatmaps, bool* flat) {
  const size_t count = job.layer_count, area = job.height * job.width;
  std::vector<Axis> vertical, horizontal;
  std::vector<bool> corner(job.height);
  size_t widest = job.width, rows = 0;
  for (size_t l = 0; l < count; ++l) {
    const Layer& layer = job.layers[l];
    vertical.emplace_back(layer.height, job.height);
    horizontal.emplace_back(layer.width, job.width);
    mark_corners(layer.height, job.height, corner);
    widest = std::max(widest, layer.width);
    rows += layer.height;
  }
  std::vector<size_t> corners;
  for (size_t y = 0; y < job.height; ++y)
    if (corner[y]) corners.push_back(y);

  Scratch scratch;
  float* const line = scratch.take(widest + rows * job.width);
  float* next = line + widest;
  std::vector<Part> parts;
  for (size_t l = 0; l < count; ++l) {
    const Layer& layer = job.layers[l];
    const Axis &v = vertical[l], &h = horizontal[l];
    parts.push_back({layer.raw, layer.height, layer.width, v.low.data(), v.high.data(), h.low.data(), h.high.data(),
                     v.part.data(), h.part.data(), next});
    next += layer.height * job.width;
  }

  std::vector<Layer> single(job.layers, job.layers + count);
  for (size_t m = 0; m < job.maps; ++m, heatmaps += area) {
    const Outcome outcome = finish_map(parts.data(), count, corners.data(), corners.size(), job.height, job.width, line, heatmaps);
    flat[m] = outcome == Outcome::flat;
    if (outcome == Outcome::flat) std::fill_n(heatmaps, area, 0.f);
    if (outcome == Outcome::ill_conditioned) {
      for (size_t l = 0; l < count; ++l) single[l].raw = parts[l].raw;
      reference.finish({single.data(), count, 1, job.height, job.width}, heatmaps, flat + m);
    }
    for (Part& part : parts) part.raw += part.height * part.width;
  }
}

// ---- pictures ------------------------------------------------------------------------------------------------------

// Three passes over a block that stays in the first-level cache, because only the first and the last can be vectorised.
constexpr size_t BLOCK = 1024;

MULTI void paint(const std::uint8_t* RESTRICT image, const float* RESTRICT heatmap, size_t pixels,
                 const std::uint32_t* RESTRICT colours, int alpha, std::uint8_t* RESTRICT out) {
  int index[BLOCK];
  std::uint8_t colour[3 * BLOCK + 1];
#pragma omp simd
  for (size_t q = 0; q < pixels; ++q) {
    const float m = smaller(larger(heatmap[q], 0.f), 1.f);
    index[q] = static_cast<int>(static_cast<double>(m) * 255.0 + 0.5);  // exact in double
  }
  // The fourth byte is overwritten by the next pixel's first.
  for (size_t q = 0; q < pixels; ++q) memcpy(colour + 3 * q, colours + index[q], 4);
#pragma omp simd
  for (size_t i = 0; i < 3 * pixels; ++i)
    out[i] = static_cast<std::uint8_t>((65536 * image[i] + alpha * (colour[i] - image[i]) + 32768) >> 16);
}

void overlay(const std::uint8_t* images, const float* heatmaps, const Painting& job, std::uint8_t* pictures) {
  std::uint32_t colours[256] = {};  // four bytes each: one load, one store
  for (size_t i = 0; i < 256; ++i) memcpy(colours + i, job.lut + 3 * i, 3);
  for (size_t n = 0; n < job.images; ++n, images += 3 * job.area)
    for (size_t k = 0; k < job.maps; ++k, heatmaps += job.area, pictures += 3 * job.area)
      for (size_t q = 0; q < job.area; q += BLOCK)
        paint(images + 3 * q, heatmaps + q, std::min(BLOCK, job.area - q), colours, static_cast<int>(job.alpha), pictures + 3 * q);
}

// NaN and infinity have all exponent bits set.  No early exit: the usual answer is yes, and a branch would not vectorise.
MULTI bool all_finite(const float* values, size_t count) {
  std::uint32_t bad = 0;
#pragma omp simd reduction(| : bad)
  for (size_t i = 0; i < count; ++i) {
    std::uint32_t bits;
    __builtin_memcpy(&bits, values + i, sizeof bits);
    bad |= (bits & 0x7f800000u) == 0x7f800000u;
  }
  return bad == 0;
}

}  // namespace

const Head vectorised = {mean, weigh, finish, overlay};

bool finite(const float* values, size_t count) { return all_finite(values, count); }

}  // namespace pycam
