// A CUDA block on a CPU, to run the kernels of csrc/cam_head.cuh in tests.  C++17, POSIX, a 64-bit machine.
//
// Two executors of the same model:
//   fibers (model_fibers.hpp, the default)   every CUDA thread is a fiber of one OS thread.  With a seed, several blocks are
//       interleaved, lanes, warps and blocks run in random order, and now and then one warp is starved until nothing else
//       can go on.  Reported: barriers that not all threads reach or that they reach at different places, deadlock, a lane
//       outside its own mask, a shuffle from outside the mask, vector and cached accesses (those through intrinsics) that
//       are misaligned or outside all buffers, writes behind the end of shared memory.
//   threads (model_threads.hpp, with MODEL_THREADS)   every CUDA thread is an OS thread, all blocks at once: for
//       -fsanitize=thread, which sees races, and -fsanitize=address,undefined.  With MODEL_WEAK_ATOMICS atomics order
//       nothing, so that only __threadfence orders memory between blocks, and a missing one is a race.
// Shared memory starts as NaN; each block has memory of its own.
//
// WHAT IT CANNOT SHOW.  Speed, occupancy, bank conflicts, coalescing.  What a real compiler makes of the text.  Caches that
// are not coherent: a fence releases before and acquires after the one atomic operation of a block, and __ldg of memory that the same
// launch writes looks right.  In fibers a race shows only if some order of whole stretches between barriers gives wrong
// numbers, and a missing fence never does.  In threads, ThreadSanitizer sees the interleavings that happened.  Two groups of
// lanes with different masks at once are refused, though CUDA allows them.  Rounding is the host's (no contraction,
// denormals kept): the same as CUDA's only if compiled as pycam.head.launch says.
#pragma once
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#define __device__
#define __global__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ inline __attribute__((noinline))
#define __launch_bounds__(...)

struct dim3 {
  unsigned x;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
using std::max;
using std::min;

namespace model {

struct Place {  // in the source
  const char* file;
  int line;
  bool operator==(const Place& other) const { return line == other.line && std::strcmp(file, other.file) == 0; }
  std::string text() const { return std::string(file) + ":" + std::to_string(line); }
};
#define MODEL_PLACE model::Place place = {__builtin_FILE(), __builtin_LINE()}

struct Range {  // memory that kernels may touch
  std::uintptr_t start, size;
};

struct Launch {
  unsigned grid, block;
  std::size_t shared_bytes;
  std::function<void()> kernel;  // what each CUDA thread runs
  std::vector<Range> buffers;    // none: not checked
};

// Shared memory of a block: NaN, and in fibers a guard behind it (in threads AddressSanitizer knows its end).
class SharedMemory {
 public:
  explicit SharedMemory(std::size_t bytes) : bytes_((bytes + 15) / 16 * 16) {
    start_ = static_cast<unsigned char*>(std::aligned_alloc(16, bytes_ + GUARD + 16));
    std::memset(start_, 0xff, bytes_ + GUARD);
  }
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;
  ~SharedMemory() { std::free(start_); }
  unsigned char* start() { return start_; }
  bool intact() const {
    return std::all_of(start_ + bytes_, start_ + bytes_ + GUARD, [](unsigned char byte) { return byte == 0xff; });
  }

 private:
#if defined(MODEL_THREADS)
  static constexpr std::size_t GUARD = 0;
#else
  static constexpr std::size_t GUARD = 256;
#endif
  std::size_t bytes_;
  unsigned char* start_;
};

}  // namespace model

// An executor defines: Barrier; Thread (`number` in its block, `block`); Block (`launch`, `number`, `barrier`, `warps`,
// `shared`); `current`, the thread that runs; fail(text), which does not return; arrive(barrier, need, place, value),
// which blocks until `need` threads are there and returns the bitwise or of their values; run(launch, seed), which returns
// what went wrong or "".
#if defined(MODEL_THREADS)
#include "model_threads.hpp"
#else
#include "model_fibers.hpp"
#endif

namespace model {

inline unsigned char* shared_memory() { return current->block->shared.start(); }
inline unsigned lane() { return current->number % 32; }
inline Warp& warp() { return current->block->warps[current->number / 32]; }

inline void warp_arrive(unsigned mask, Place place) {
  const unsigned first = current->number - lane(), size = min(current->block->launch.block - first, 32u);
  if (!(mask >> lane() & 1)) fail("warp: the calling lane is not in its mask, " + place.text());
  if (size < 32 && mask >> size) fail("warp: the mask names lanes that the block does not have, " + place.text());
  const int all = static_cast<int>(mask);
  if (arrive(warp().barrier, static_cast<unsigned>(__builtin_popcount(mask)), place, all) != all)
    fail("warp: lanes came with different masks, " + place.text());
}

template <typename T>
T shuffle(unsigned mask, T value, unsigned source, Place place) {
  static_assert(sizeof(T) <= 8, "");
  // Two slots: who is slow to read this shuffle's is not overtaken by the next one's writes.
  unsigned long long(&slots)[32] = warp().slots[generation(warp().barrier) % 2];
  std::memcpy(&slots[lane()], &value, sizeof(T));
  warp_arrive(mask, place);
  if (!(mask >> source & 1)) fail("shuffle: reads a lane that is not in the mask, " + place.text());
  T result;
  std::memcpy(&result, &slots[source], sizeof(T));
  return result;
}

template <typename T>
const T* checked(const T* p, Place place) {
  const auto at = reinterpret_cast<std::uintptr_t>(p);
  if (at % alignof(T)) fail("misaligned access, " + place.text());
  const auto& buffers = current->block->launch.buffers;
  const bool inside = std::any_of(buffers.begin(), buffers.end(), [&](const Range& range) {
    return at >= range.start && at + sizeof(T) <= range.start + range.size;
  });
  if (!inside && !buffers.empty()) fail("access outside all buffers, " + place.text());
  return p;
}

inline float half_to_float(unsigned short bits) {
  _Float16 half;
  std::memcpy(&half, &bits, 2);
  return static_cast<float>(half);
}

#if defined(MODEL_WEAK_ATOMICS)
constexpr int ORDER = __ATOMIC_RELAXED;
inline std::atomic<int> fence{0};
#else
constexpr int ORDER = __ATOMIC_ACQ_REL;
#endif

}  // namespace model

// ---- CUDA's own names ----------------------------------------------------------------------------------------------

#define threadIdx (dim3{model::current->number})
#define blockIdx (dim3{model::current->block->number})
#define blockDim (dim3{model::current->block->launch.block})
#define gridDim (dim3{model::current->block->launch.grid})

inline void __syncthreads(MODEL_PLACE) { model::arrive(model::current->block->barrier, blockDim.x, place, 0); }
inline int __syncthreads_or(int value, MODEL_PLACE) {
  return model::arrive(model::current->block->barrier, blockDim.x, place, value != 0);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int step, int = 32, MODEL_PLACE) {
  return model::shuffle(mask, value, model::lane() ^ static_cast<unsigned>(step), place);
}
// Before the block's atomic operation a fence lets others see what was written, after it it lets see what others wrote; one
// that did both in both places would hide that the other is missing.
inline void __threadfence() {
#if defined(MODEL_WEAK_ATOMICS)
  if (model::current->block->met.load(std::memory_order_relaxed))
    model::fence.load(std::memory_order_acquire);
  else
    model::fence.fetch_add(1, std::memory_order_release);
#endif
}
inline unsigned atomicInc(unsigned* p, unsigned limit) {
#if defined(MODEL_WEAK_ATOMICS)
  model::current->block->met.store(true, std::memory_order_relaxed);
#endif
  unsigned old = __atomic_load_n(p, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(p, &old, old >= limit ? 0 : old + 1, false, model::ORDER, __ATOMIC_RELAXED)) {
  }
  return old;
}
template <typename T>
T __ldg(const T* p, MODEL_PLACE) {
  return *model::checked(p, place);
}
template <typename T>
T __ldcg(const T* p, MODEL_PLACE) {
  return *model::checked(p, place);
}
template <typename T>
void __stwb(T* p, T value, MODEL_PLACE) {
  *const_cast<T*>(model::checked(p, place)) = value;
}
inline float __uint_as_float(unsigned bits) {
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}
// a b + c rounded down, for products that are exact in double
inline float __fmaf_rd(float a, float b, float c) {
  const double exact = static_cast<double>(a) * b + c;
  const float nearest = static_cast<float>(exact);
  return nearest > exact ? std::nextafter(nearest, -HUGE_VALF) : nearest;
}
