// The CUDA head: raw maps from activations and gradients, heatmaps and pictures from raw maps.  The contract: include/pycam.h.
//
// One text for three compilers: nvcc, NVRTC (no include path there, so the text includes nothing but its own parts) and g++,
// for tests, behind a model of a CUDA block (tests/cuda/cuda_model.hpp).  pycam/head/launch.py says which kernels are
// launched for what, with which grid, shared memory and parameters.
//
//   cam_weigh_*            raw maps as partial sums over channels; 16- or 8-byte loads, h*w <= 64 or <= 256
//   cam_channel_weights_*  one weight per channel from gradients of any size and layout (mean, Grad-CAM++)
//   cam_weigh_any_*        partial sums for any size, strides and weighting, weights given
//   cam_finish             raw maps (or partial sums) of one or more layers to what is wanted; raw maps in shared memory
//   cam_extremes, cam_paint   the same for maps that do not fit there: first the statistics, then the pixels
//   cam_overlay            heatmaps to levels and pictures
//
// All grids have one dimension: block = map * (blocks per map) + part, so that maps are limited by 2^31 only.
// Sums are formed in a fixed order that depends on shapes alone; there are no floating-point atomics.  Every fused
// multiply-add is written as such: compiled without contraction, all three compilers round alike.
#ifndef PYCAM_CAM_HEAD_CUH
#define PYCAM_CAM_HEAD_CUH

#if defined(__CUDACC__)
#define CAM_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#define CAM_HALF(result, bits) asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(bits))
#else  // the model, included before this text
#define CAM_SHARED(name) unsigned char* name = model::shared_memory()
#define CAM_HALF(result, bits) result = model::half_to_float(bits)
#endif
#define CAM_INLINE __device__ __forceinline__

// pycam.head.launch.source() puts these texts in place.
#include "cam_params.cuh"
#include "cam_weigh.cuh"
#include "cam_heatmap.cuh"
#include "cam_pixels.cuh"

namespace cam {

// ---- what kernels are made of --------------------------------------------------------------------------------------

constexpr int SCRATCH_BYTES = 64 * sizeof(double), LUT_BYTES = 256 * sizeof(unsigned);

// Rows of one tile of a map, statistics included.  shared: Statistics, scratch, lut, columns, values
template <int LAYERS>
CAM_INLINE void finish(const Finish<LAYERS>& job, int map, int tile, Byte* shared) {
  auto* statistics = reinterpret_cast<Statistics<LAYERS>*>(shared);
  auto* scratch = reinterpret_cast<double*>(shared + STATISTICS_BYTES<LAYERS>);
  auto* lut = reinterpret_cast<unsigned*>(shared + STATISTICS_BYTES<LAYERS> + SCRATCH_BYTES);
  auto* columns = reinterpret_cast<Column*>(shared + STATISTICS_BYTES<LAYERS> + SCRATCH_BYTES + LUT_BYTES);
  auto* values = reinterpret_cast<float*>(columns + job.layer_count * job.width);
  if (job.pictures != nullptr) cam::load_lut(job.lut, lut);
  const Maps<true, LAYERS> maps{job, map / job.maps, map % job.maps, values, columns};
  measure(maps, tile == 0, *statistics, scratch);
  paint(maps, tile, *statistics, lut);
}

// One copy for all kernels that may finish their maps: inlined, it would be most of each of them.
__device__ __noinline__ void finish_all(const Finish<1>& job, int map, Byte* shared) { finish(job, map, 0, shared); }

// What a block of a weighing computes.
struct Work {
  int map, part;   // of the map's splits * tiles blocks
  float* partial;  // of the part's split
  CAM_INLINE explicit Work(const Weigh& p) {
    const int blocks = p.splits * p.tiles;
    map = static_cast<int>(blockIdx.x) / blocks, part = static_cast<int>(blockIdx.x) % blocks;
    partial = p.partial + (static_cast<Long>(map) * p.splits + part % p.splits) * p.height * p.width;
  }
};

// After a weighing: the whole finish, by the last block of the map, if it is wanted in the same launch.
CAM_INLINE void finish_if_last(const Weigh& p, const Finish<1>& job, int map, Byte* shared) {
  if (p.finishes && is_last(p.ticket + map, p.splits * p.tiles, reinterpret_cast<unsigned*>(shared)))
    finish_all(job, map, shared);
}

}  // namespace cam

// ---- kernels -------------------------------------------------------------------------------------------------------

#ifndef CAM_MAPS_ONLY  // without: what takes raw maps, a tenth of the time to compile
#define CAM_WEIGH(NAME, TYPE, V, K, MODE, BLOCKS)                                                                        \
  extern "C" __global__ void __launch_bounds__(256, BLOCKS)                                                              \
      cam_weigh_##NAME(const __grid_constant__ cam::Weigh p, const __grid_constant__ cam::Finish<1> job) {               \
    CAM_SHARED(shared);                                                                                                  \
    const cam::Work work(p);                                                                                             \
    cam::weigh_vectors<TYPE, V, K, MODE>(p, work.map, work.part, reinterpret_cast<float*>(shared), work.partial);        \
    cam::finish_if_last(p, job, work.map, shared);                                                                       \
  }
#define CAM_WEIGH_SIZES(NAME, TYPE, MODE)                    \
  CAM_WEIGH(NAME##_64, TYPE, 16 / sizeof(TYPE), 2, MODE, 2)  \
  CAM_WEIGH(NAME##_256, TYPE, 4, 8, MODE, 1)
#define CAM_WEIGH_MODES(NAME, TYPE)                          \
  CAM_WEIGH_SIZES(NAME##_channel, TYPE, cam::BY_CHANNEL)     \
  CAM_WEIGH_SIZES(NAME##_mean, TYPE, cam::BY_MEAN)           \
  CAM_WEIGH_SIZES(NAME##_plusplus, TYPE, cam::BY_PLUSPLUS)   \
  CAM_WEIGH_SIZES(NAME##_element, TYPE, cam::BY_ELEMENT)
CAM_WEIGH_MODES(f32, float)
CAM_WEIGH_MODES(f16, cam::f16)
CAM_WEIGH_MODES(bf16, cam::bf16)

#define CAM_WEIGH_ANY(NAME, A, G)                                                                                        \
  extern "C" __global__ void __launch_bounds__(256, 2)                                                                   \
      cam_weigh_any_##NAME(const __grid_constant__ cam::Weigh p, const __grid_constant__ cam::Finish<1> job) {           \
    CAM_SHARED(shared);                                                                                                  \
    const cam::Work work(p);                                                                                             \
    cam::weigh_any<A, G>(p, work.map, work.part, reinterpret_cast<float*>(shared), work.partial);                        \
    cam::finish_if_last(p, job, work.map, shared);                                                                       \
  }
CAM_WEIGH_ANY(f32_f32, float, float)
CAM_WEIGH_ANY(f16_f16, cam::f16, cam::f16)
CAM_WEIGH_ANY(bf16_bf16, cam::bf16, cam::bf16)
CAM_WEIGH_ANY(f16_f32, cam::f16, float)
CAM_WEIGH_ANY(bf16_f32, cam::bf16, float)

#define CAM_CHANNEL_WEIGHTS(NAME, TYPE)                                                                             \
  extern "C" __global__ void __launch_bounds__(256, 2) cam_channel_weights_##NAME(const __grid_constant__ cam::Weigh p) { \
    CAM_SHARED(shared);                                                                                             \
    cam::weigh_channels<TYPE>(p, blockIdx.x / p.tiles, blockIdx.x % p.tiles, reinterpret_cast<double*>(shared));    \
  }
CAM_CHANNEL_WEIGHTS(f32, float)
CAM_CHANNEL_WEIGHTS(f16, cam::f16)
CAM_CHANNEL_WEIGHTS(bf16, cam::bf16)
#endif  // CAM_MAPS_ONLY

extern "C" __global__ void __launch_bounds__(256, 2) cam_finish(const __grid_constant__ cam::Finish<cam::MAX_LAYERS> job) {
  CAM_SHARED(shared);
  cam::finish(job, static_cast<int>(blockIdx.x) / job.tiles, static_cast<int>(blockIdx.x) % job.tiles, shared);
}

extern "C" __global__ void __launch_bounds__(256, 2) cam_extremes(const __grid_constant__ cam::Finish<cam::MAX_LAYERS> job) {
  CAM_SHARED(shared);
  using Statistics = cam::Statistics<cam::MAX_LAYERS>;
  const int map = blockIdx.x;
  const cam::Maps<false, cam::MAX_LAYERS> maps{job, map / job.maps, map % job.maps, nullptr, nullptr};
  auto* statistics = reinterpret_cast<Statistics*>(shared);
  cam::measure(maps, true, *statistics, reinterpret_cast<double*>(shared + cam::STATISTICS_BYTES<cam::MAX_LAYERS>));
  const auto* from = reinterpret_cast<const unsigned*>(statistics);
  auto* to = reinterpret_cast<unsigned*>(static_cast<Statistics*>(job.statistics) + map);
  for (int i = threadIdx.x; i < static_cast<int>(sizeof(Statistics) / 4); i += blockDim.x) to[i] = from[i];
}

extern "C" __global__ void __launch_bounds__(256, 2) cam_paint(const __grid_constant__ cam::Finish<cam::MAX_LAYERS> job) {
  CAM_SHARED(shared);
  const int map = static_cast<int>(blockIdx.x) / job.tiles;
  auto* lut = reinterpret_cast<unsigned*>(shared);
  if (job.pictures != nullptr) cam::load_lut(job.lut, lut);
  __syncthreads();
  const cam::Maps<false, cam::MAX_LAYERS> maps{job, map / job.maps, map % job.maps, nullptr, nullptr};
  cam::paint(maps, blockIdx.x % job.tiles, static_cast<const cam::Statistics<cam::MAX_LAYERS>*>(job.statistics)[map], lut);
}

// The heatmaps are layer 0, dense.  Blocks report NaN and infinity to the last of their map, which writes the flags.
extern "C" __global__ void __launch_bounds__(256, 2) cam_overlay(const __grid_constant__ cam::Finish<1> job) {
  CAM_SHARED(shared);
  const int map = static_cast<int>(blockIdx.x) / job.tiles, tile = static_cast<int>(blockIdx.x) % job.tiles;
  const int image = map / job.maps, k = map % job.maps;
  auto* lut = reinterpret_cast<unsigned*>(shared);
  if (job.pictures != nullptr) cam::load_lut(job.lut, lut);
  __syncthreads();
  const auto* heatmaps = static_cast<const float*>(job.layers[0].data) + static_cast<cam::Long>(map) * job.height * job.width;
  bool bad = false;
  cam::each_group(job, tile, [&](int y, int x) {
    float m[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float v = __ldg(heatmaps + static_cast<cam::Long>(y) * job.width + min(x + j, job.width - 1));
      bad |= !(v <= cam::LARGEST);
      m[j] = cam::clamp(v);
    }
    cam::write_pixels(job, image, k, y, x, m, lut);
  });
  bad = __syncthreads_or(bad);
  if (job.flags == nullptr) return;
  const int maps_in_all = static_cast<int>(gridDim.x) / job.tiles;
  auto* tickets = static_cast<unsigned*>(job.statistics);
  auto* found = tickets + maps_in_all + map * job.tiles;
  if (threadIdx.x == 0) found[tile] = bad;
  if (!cam::is_last(tickets + map, job.tiles, lut)) return;
  if (threadIdx.x == 0) {
    unsigned any = 0;
    for (int i = 0; i < job.tiles; ++i) any |= __ldcg(found + i);
    job.flags[map] = any ? cam::NOT_FINITE : 0;
  }
}
#endif  // PYCAM_CAM_HEAD_CUH
