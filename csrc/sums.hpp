// The kernels of weigh_cpu.cpp: sums over positions and over channels, of dense floats.  By planes (the positions of a channel
// lie side by side: NCHW) channel c begins at c * step; by points (the channels of a position do: NHWC, tokens) point q does.
#pragma once
#include <cstddef>

#include "simd.hpp"

namespace pycam {

using std::size_t;
using Offset = std::ptrdiff_t;

// ---- terms -----------------------------------------------------------------------------------------------------------

// relu that keeps NaN
INLINE float positive(float x) { return x < 0.f ? 0.f : x; }

struct Product {
  INLINE float of(float a, float g) { return g * a; }
};
struct PositiveProduct {
  INLINE float of(float a, float g) { return positive(g) * a; }
};
struct RectifiedProduct {
  INLINE float of(float a, float g) { return positive(g * a); }
};

// relu(g) alpha.  The quotient of pycam.h divided through by g^2, which neither overflows nor vanishes where that does.
INLINE float plusplus(float g, float sum) { return g <= 0.f ? 0.f : g / (2.f + sum * g + 1e-6f / (g * g)); }

// ---- kernels ---------------------------------------------------------------------------------------------------------

// sums[c] += the sum of channel c over positions.
using SumChannels = void (*)(const float* g, Offset step, size_t outer, size_t inner, float* sums);
// weights[c] += the sum of relu(g) alpha of channel c; sums: of its activations.
using AlphaChannels = void (*)(const float* g, Offset step, size_t outer, size_t inner, const float* sums, float* weights);
// raw[q] += the sum over channels of w[c] a.
using DotChannels = void (*)(const float* a, Offset step, size_t outer, size_t inner, const float* w, float* raw);
// raw[q] += the sum over channels of a term of a and g.
using TermChannels = void (*)(const float* a, Offset a_step, const float* g, Offset g_step, size_t outer, size_t inner,
                              float* raw);

// `outer` and `inner` are channels and positions by planes, positions and channels by points.
struct Sums {
  SumChannels sum;
  AlphaChannels alpha;
  DotChannels dot;
  TermChannels given, positive, rectified;
  TermChannels mean;  // mean(g) a, by planes only: by points it takes all of g first
};

extern const Sums by_planes, by_points;

}  // namespace pycam
