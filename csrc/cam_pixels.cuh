// Part of cam_head.cuh: heatmaps, levels and pictures are written.
namespace cam {

// ---- pixels --------------------------------------------------------------------------------------------------------

// floor(255 m + 0.5): rounded down, the only rounding of a fused multiply-add does not carry it to the next integer.
CAM_INLINE int level_of(float m) { return static_cast<int>(__fmaf_rd(m, 255.f, 0.5f)); }

// The colours as words, red lowest.  Barrier: by the caller.
CAM_INLINE void load_lut(const Byte* lut, unsigned* shared) {
  for (int i = threadIdx.x; i < 256; i += blockDim.x) {
    unsigned word = 0;
#pragma unroll
    for (int b = 0; b < 3; ++b) word |= static_cast<unsigned>(__ldg(lut + 3 * i + b)) << (8 * b);
    shared[i] = word;
  }
}

CAM_INLINE unsigned blend(unsigned image, unsigned colour, int alpha) {
  const int from = static_cast<int>(image), to = static_cast<int>(colour);
  return static_cast<unsigned>((65536 * from + alpha * (to - from) + 32768) >> 16);
}

// Pixels (y, x) … (y, x + 3) of a picture, as far as there are.
template <int LAYERS>
CAM_INLINE void write_picture(const Finish<LAYERS>& job, int image, int map, int y, int x, const int (&level)[4],
                              const unsigned* lut) {
  const Byte* from = job.images + image * job.image_image + y * job.image_row + x * job.image_pixel;
  Byte* to = job.pictures + image * job.picture_image + map * job.picture_map + y * job.picture_row + x * job.picture_pixel;
  if (job.aligned & PICTURES) {  // twelve bytes in three words
    unsigned in[3], out[3] = {0, 0, 0};
#pragma unroll
    for (int w = 0; w < 3; ++w) in[w] = __ldcg(reinterpret_cast<const unsigned*>(from) + w);  // not ldg: may be `to`
#pragma unroll
    for (int i = 0; i < 12; ++i) {
      const unsigned colour = lut[level[i / 3]] >> (8 * (i % 3)) & 255u;
      out[i / 4] |= blend(in[i / 4] >> (8 * (i % 4)) & 255u, colour, job.alpha) << (8 * (i % 4));
    }
#pragma unroll
    for (int w = 0; w < 3; ++w) __stwb(reinterpret_cast<unsigned*>(to) + w, out[w]);
    return;
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (x + j >= job.width) break;
#pragma unroll
    for (int b = 0; b < 3; ++b) {
      const unsigned colour = lut[level[j]] >> (8 * b) & 255u;
      to[j * job.picture_pixel + b] = static_cast<Byte>(blend(from[j * job.image_pixel + b], colour, job.alpha));
    }
  }
}

// Everything that is wanted of pixels (y, x) … (y, x + 3), whose heatmap is m.
template <int LAYERS>
CAM_INLINE void write_pixels(const Finish<LAYERS>& job, int image, int map, int y, int x, const float (&m)[4],
                             const unsigned* lut) {
  const Long at = (static_cast<Long>(image * job.maps + map) * job.height + y) * job.width + x;
  if (job.heatmaps != nullptr) {
    if (job.aligned & HEATMAPS) {
      __stwb(reinterpret_cast<float4*>(job.heatmaps + at), make_float4(m[0], m[1], m[2], m[3]));
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (x + j < job.width) job.heatmaps[at + j] = m[j];
    }
  }
  if (job.levels == nullptr && job.pictures == nullptr) return;
  int level[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) level[j] = level_of(m[j]);
  if (job.levels != nullptr) {
    if (job.aligned & LEVELS) {
      const unsigned low = level[0] | level[1] << 8, high = level[2] | level[3] << 8;
      __stwb(reinterpret_cast<unsigned*>(job.levels + at), low | high << 16);
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (x + j < job.width) job.levels[at + j] = static_cast<Byte>(level[j]);
    }
  }
  if (job.pictures != nullptr) write_picture(job, image, map, y, x, level, lut);
}

CAM_INLINE float clamp(float m) { return m > 0.f ? (m < 1.f ? m : 1.f) : 0.f; }  // NaN: 0

// Calls write(y, x) for groups of four pixels of this tile's rows, x a multiple of 4.
template <int LAYERS, typename F>
CAM_INLINE void each_group(const Finish<LAYERS>& job, int tile, F write) {
  const int rows = (job.height + job.tiles - 1) / job.tiles, first = tile * rows, last = min(first + rows, job.height);
  const int groups = (job.width + 3) / 4;
  for (int i = threadIdx.x; i < (last - first) * groups; i += blockDim.x) write(first + i / groups, i % groups * 4);
}

// The rows of one tile of one map.
template <bool STAGED, int LAYERS>
CAM_INLINE void paint(const Maps<STAGED, LAYERS>& maps, int tile, const Statistics<LAYERS>& statistics, const unsigned* lut) {
  each_group(maps.job, tile, [&](int y, int x) {
    float m[4] = {0.f, 0.f, 0.f, 0.f};
    if (statistics.blank) {
    } else if (statistics.precise) {
      double sum[4];
      maps.sample(statistics, y, x, sum);
#pragma unroll
      for (int j = 0; j < 4; ++j) m[j] = clamp(static_cast<float>((sum[j] - statistics.low) * statistics.scale));
    } else {
      float sum[4];
      maps.sample(statistics, y, x, sum);
      const float low = static_cast<float>(statistics.low), scale = static_cast<float>(statistics.scale);
#pragma unroll
      for (int j = 0; j < 4; ++j) m[j] = clamp((sum[j] - low) * scale);
    }
    write_pixels(maps.job, maps.image, maps.map, y, x, m, lut);
  });
}

}  // namespace cam
