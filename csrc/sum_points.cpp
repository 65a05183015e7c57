#include "sums.hpp"

namespace pycam {
namespace {

// Four points at a time: the running sums are loaded and stored once per four.
MULTI void points_sum(const float* RESTRICT g, Offset step, size_t points, size_t channels, float* RESTRICT sums) {
  size_t q = 0;
  for (; q + 4 <= points; q += 4, g += 4 * step) {
    const float *RESTRICT g1 = g + step, *RESTRICT g2 = g1 + step, *RESTRICT g3 = g2 + step;
#pragma omp simd
    for (size_t c = 0; c < channels; ++c) sums[c] += (g[c] + g1[c]) + (g2[c] + g3[c]);
  }
  for (; q < points; ++q, g += step) {
#pragma omp simd
    for (size_t c = 0; c < channels; ++c) sums[c] += g[c];
  }
}

MULTI void points_alpha(const float* RESTRICT g, Offset step, size_t points, size_t channels, const float* RESTRICT sums,
                        float* RESTRICT weights) {
  for (size_t q = 0; q < points; ++q, g += step) {
#pragma omp simd
    for (size_t c = 0; c < channels; ++c) weights[c] += plusplus(g[c], sums[c]);
  }
}

MULTI void points_dot(const float* RESTRICT a, Offset step, size_t points, size_t channels, const float* RESTRICT w,
                      float* RESTRICT raw) {
  size_t q = 0;
  for (; q + 4 <= points; q += 4, a += 4 * step) {
    const float *RESTRICT a1 = a + step, *RESTRICT a2 = a1 + step, *RESTRICT a3 = a2 + step;
    float s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
    for (size_t c = 0; c < channels; ++c) {
      s0 += w[c] * a[c];
      s1 += w[c] * a1[c];
      s2 += w[c] * a2[c];
      s3 += w[c] * a3[c];
    }
    raw[q] += s0;
    raw[q + 1] += s1;
    raw[q + 2] += s2;
    raw[q + 3] += s3;
  }
  for (; q < points; ++q, a += step) {
    float s = 0;
#pragma omp simd reduction(+ : s)
    for (size_t c = 0; c < channels; ++c) s += w[c] * a[c];
    raw[q] += s;
  }
}

template <class Term>
INLINE void term_points(const float* RESTRICT a, Offset a_step, const float* RESTRICT g, Offset g_step, size_t points,
                        size_t channels, float* RESTRICT raw) {
  for (size_t q = 0; q < points; ++q, a += a_step, g += g_step) {
    float s = 0;
#pragma omp simd reduction(+ : s)
    for (size_t c = 0; c < channels; ++c) s += Term::of(a[c], g[c]);
    raw[q] += s;
  }
}

MULTI void points_given(const float* a, Offset s, const float* g, Offset t, size_t n, size_t c, float* raw) {
  term_points<Product>(a, s, g, t, n, c, raw);
}
MULTI void points_positive(const float* a, Offset s, const float* g, Offset t, size_t n, size_t c, float* raw) {
  term_points<PositiveProduct>(a, s, g, t, n, c, raw);
}
MULTI void points_rectified(const float* a, Offset s, const float* g, Offset t, size_t n, size_t c, float* raw) {
  term_points<RectifiedProduct>(a, s, g, t, n, c, raw);
}
}  // namespace

const Sums by_points = {points_sum, points_alpha, points_dot, points_given, points_positive, points_rectified, nullptr};

}  // namespace pycam
