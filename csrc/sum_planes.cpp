#include "sums.hpp"

namespace pycam {
namespace {

constexpr size_t COMMON_AREA = 49;  // 7 x 7 is what most classifiers end in: with the size known, sums stay in registers
constexpr size_t MANY = 64;         // positions from which on channels are read one after the other: four such rows side by
                                    // side are more than the hardware's prefetcher follows

// Four small channels at a time: four independent sums hide the latency of the additions and of the horizontal sum at the end.
template <size_t FIXED>
INLINE void sum_planes_(const float* RESTRICT g, Offset step, size_t channels, size_t area, float* RESTRICT sums) {
  const size_t n = FIXED ? FIXED : area;
  size_t i = 0;
  for (; n < MANY && i + 4 <= channels; i += 4, g += 4 * step) {
    const float *RESTRICT g1 = g + step, *RESTRICT g2 = g1 + step, *RESTRICT g3 = g2 + step;
    float a = 0, b = 0, c = 0, d = 0;
#pragma omp simd reduction(+ : a, b, c, d)
    for (size_t q = 0; q < n; ++q) {
      a += g[q];
      b += g1[q];
      c += g2[q];
      d += g3[q];
    }
    sums[i] += a;
    sums[i + 1] += b;
    sums[i + 2] += c;
    sums[i + 3] += d;
  }
  for (; i < channels; ++i, g += step) {
    float a = 0;
#pragma omp simd reduction(+ : a)
    for (size_t q = 0; q < n; ++q) a += g[q];
    sums[i] += a;
  }
}

MULTI void planes_sum(const float* g, Offset step, size_t channels, size_t area, float* sums) {
  if (area == COMMON_AREA)
    sum_planes_<COMMON_AREA>(g, step, channels, area, sums);
  else
    sum_planes_<0>(g, step, channels, area, sums);
}

MULTI void planes_alpha(const float* RESTRICT g, Offset step, size_t channels, size_t area, const float* RESTRICT sums,
                        float* RESTRICT weights) {
  for (size_t c = 0; c < channels; ++c, g += step) {
    float w = 0;
    const float sum = sums[c];
#pragma omp simd reduction(+ : w)
    for (size_t q = 0; q < area; ++q) w += plusplus(g[q], sum);
    weights[c] += w;
  }
}

// Four channels at a time: the running sums are loaded and stored once per four.
template <size_t FIXED>
INLINE void dot_planes_(const float* RESTRICT a, Offset step, size_t channels, size_t area, const float* RESTRICT w,
                        float* RESTRICT sum) {
  const size_t n = FIXED ? FIXED : area;
  size_t c = 0;
  for (; n < MANY && c + 4 <= channels; c += 4, a += 4 * step) {
    const float *RESTRICT a1 = a + step, *RESTRICT a2 = a1 + step, *RESTRICT a3 = a2 + step;
    const float w0 = w[c], w1 = w[c + 1], w2 = w[c + 2], w3 = w[c + 3];
#pragma omp simd
    for (size_t q = 0; q < n; ++q) sum[q] += (w0 * a[q] + w1 * a1[q]) + (w2 * a2[q] + w3 * a3[q]);
  }
  for (; c < channels; ++c, a += step) {
#pragma omp simd
    for (size_t q = 0; q < n; ++q) sum[q] += w[c] * a[q];
  }
}

MULTI void planes_dot(const float* a, Offset step, size_t channels, size_t area, const float* w, float* RESTRICT raw) {
  if (area == COMMON_AREA) {
    float sum[COMMON_AREA] = {};
    dot_planes_<COMMON_AREA>(a, step, channels, area, w, sum);
    for (size_t q = 0; q < COMMON_AREA; ++q) raw[q] += sum[q];
  } else {
    dot_planes_<0>(a, step, channels, area, w, raw);
  }
}

// Grad-CAM where one tile of rows has the whole map: weights and sums of a few channels in turn, so that two streams come
// from memory at once.
constexpr size_t TOGETHER = 4;


template <size_t FIXED>
INLINE void mean_dot_planes_(const float* RESTRICT a, Offset a_step, const float* RESTRICT g, Offset g_step, size_t channels,
                             size_t area, float* RESTRICT sum) {
  const size_t n = FIXED ? FIXED : area;
  const float count = static_cast<float>(n);
  for (size_t c = 0; c < channels; c += TOGETHER) {
    const size_t some = channels - c < TOGETHER ? channels - c : TOGETHER;
    float w[TOGETHER] = {};
    sum_planes_<FIXED>(g + static_cast<Offset>(c) * g_step, g_step, some, n, w);
    for (size_t i = 0; i < TOGETHER; ++i) w[i] /= count;
    dot_planes_<FIXED>(a + static_cast<Offset>(c) * a_step, a_step, some, n, w, sum);
  }
}

MULTI void planes_mean(const float* a, Offset a_step, const float* g, Offset g_step, size_t channels, size_t area,
                           float* RESTRICT raw) {
  if (area == COMMON_AREA) {
    float sum[COMMON_AREA] = {};
    mean_dot_planes_<COMMON_AREA>(a, a_step, g, g_step, channels, area, sum);
    for (size_t q = 0; q < COMMON_AREA; ++q) raw[q] += sum[q];
  } else {
    mean_dot_planes_<0>(a, a_step, g, g_step, channels, area, raw);
  }
}

template <class Term, size_t FIXED>
INLINE void term_planes_(const float* RESTRICT a, Offset a_step, const float* RESTRICT g, Offset g_step, size_t channels,
                         size_t area, float* RESTRICT sum) {
  const size_t n = FIXED ? FIXED : area;
  size_t c = 0;
  for (; c + 2 <= channels; c += 2, a += 2 * a_step, g += 2 * g_step) {
    const float *RESTRICT a1 = a + a_step, *RESTRICT g1 = g + g_step;
#pragma omp simd
    for (size_t q = 0; q < n; ++q) sum[q] += Term::of(a[q], g[q]) + Term::of(a1[q], g1[q]);
  }
  for (; c < channels; ++c, a += a_step, g += g_step) {
#pragma omp simd
    for (size_t q = 0; q < n; ++q) sum[q] += Term::of(a[q], g[q]);
  }
}

template <class Term>
INLINE void term_planes(const float* a, Offset a_step, const float* g, Offset g_step, size_t channels, size_t area,
                        float* RESTRICT raw) {
  if (area == COMMON_AREA) {
    float sum[COMMON_AREA] = {};
    term_planes_<Term, COMMON_AREA>(a, a_step, g, g_step, channels, area, sum);
    for (size_t q = 0; q < COMMON_AREA; ++q) raw[q] += sum[q];
  } else {
    term_planes_<Term, 0>(a, a_step, g, g_step, channels, area, raw);
  }
}

MULTI void planes_given(const float* a, Offset s, const float* g, Offset t, size_t c, size_t n, float* raw) {
  term_planes<Product>(a, s, g, t, c, n, raw);
}
MULTI void planes_positive(const float* a, Offset s, const float* g, Offset t, size_t c, size_t n, float* raw) {
  term_planes<PositiveProduct>(a, s, g, t, c, n, raw);
}
MULTI void planes_rectified(const float* a, Offset s, const float* g, Offset t, size_t c, size_t n, float* raw) {
  term_planes<RectifiedProduct>(a, s, g, t, c, n, raw);
}

}  // namespace

const Sums by_planes = {planes_sum, planes_alpha, planes_dot, planes_given, planes_positive, planes_rectified, planes_mean};

}  // namespace pycam
