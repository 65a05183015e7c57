// How the vectorised head is compiled: plain loops and `#pragma omp simd`.  On 2048 x 7 x 7 hand-written AVX-512 was at most
// 20 % faster.  Functions marked MULTI exist once per x86-64 level, and the loader picks; elsewhere there is the baseline
// (NEON on ARM).
//
// The name of a MULTI function is one in the whole program: Clang 14 makes what picks a version visible everywhere, also for
// functions of an unnamed namespace.  What it calls is INLINE, as the compiler makes versions of the function itself only, and
// nothing of std::, whose inline bodies would stay at the baseline level (Clang 19 leaves them undefined).
#pragma once
#include <string.h>  // not <cstring>: a plain memcpy is a builtin of the compiler, also inside a MULTI function

#if defined(PYCAM_CLONES)
#define MULTI PYCAM_CLONES
#else
#define MULTI
#endif
#if defined(_MSC_VER)
#define INLINE static __forceinline
#define RESTRICT __restrict
#define PREFETCH(address) static_cast<void>(address)
#else
#define INLINE static inline __attribute__((always_inline))
#define RESTRICT __restrict__
#define PREFETCH(address) __builtin_prefetch(address)
#endif

namespace pycam {

template <class T>
INLINE T larger(T a, T b) {
  return a > b ? a : b;
}
template <class T>
INLINE T smaller(T a, T b) {
  return a < b ? a : b;
}

}  // namespace pycam
