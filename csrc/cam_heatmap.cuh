// Part of cam_head.cuh: what normalises a heatmap, and its values.
namespace cam {

// ---- heatmaps ------------------------------------------------------------------------------------------------------

struct LayerRange {
  float low, high;  // of relu(raw)
  float inverse;    // 1 / (1e-7 + high - low)
};

// What normalises a map: heatmap = (sum over layers of s(relu(raw)), resized - low) * scale.
template <int LAYERS>
struct Statistics {
  double low, scale;
  int precise;  // compute in double: rounding errors of float could reach 1e-5
  int blank;    // all zeros: flat, or not finite
  LayerRange layers[LAYERS];
};

template <int LAYERS>
constexpr int STATISTICS_BYTES = (static_cast<int>(sizeof(Statistics<LAYERS>)) + 15) / 16 * 16;

// The second s divides rounding errors (about 3e-7) by the range of the mean map: below this they could reach 1e-5.
constexpr float SMALLEST_RANGE = 1.f / 16;
// Above this, 1 / range is not a normal float.
constexpr float LARGEST_RANGE = 1e37f;

// Where output i of o falls on an axis of n: (i + 0.5) n / o - 0.5 = ((2 i + 1) n - o) / (2 o), exactly, in integers.
// launch.py lets sizes up to 32767 through, so that nothing overflows.
struct Tap {
  int low;
  float part;
};
CAM_INLINE int tap_numerator(int i, int n, int o) { return max((2 * i + 1) * n - o, 0); }
CAM_INLINE Tap tap(int i, int n, int o) {
  const int at = tap_numerator(i, n, o), low = at / (2 * o);
  return {low, static_cast<float>(at - low * 2 * o) / static_cast<float>(2 * o)};
}
CAM_INLINE double precise_part(int i, int low, int n, int o) {
  return static_cast<double>(tap_numerator(i, n, o) - low * 2 * o) / static_cast<double>(2 * o);
}

// The smallest and the largest value of a heatmap are where an output begins or ends a cell of the source: within a cell
// (of all layers at once) the bilinear surface has its extremes at the corners of the rectangle that is sampled.  The
// clamped margin before cell 0 is a cell too: with several layers the kink at its end can be an extreme.  (Its begin is not:
// the smallest margin of all layers is constant.)  Per axis and layer the first outputs of cells 0 … n and the outputs
// before them are 2 (n + 1) candidates, some of them equal; where there are no more outputs than that, all are.
template <bool VERTICAL, int LAYERS>
CAM_INLINE int corner_count(const Finish<LAYERS>& job) {
  int count = 0;
  for (int l = 0; l < job.layer_count; ++l) count += 2 * ((VERTICAL ? job.layers[l].height : job.layers[l].width) + 1);
  return min(count, VERTICAL ? job.height : job.width);
}
template <bool VERTICAL, int LAYERS>
CAM_INLINE int corner(const Finish<LAYERS>& job, int count, int j) {
  const int o = VERTICAL ? job.height : job.width;
  if (count == o) return j;
  for (int l = 0;; ++l) {
    const int n = VERTICAL ? job.layers[l].height : job.layers[l].width;
    if (j < 2 * (n + 1)) {
      const int cell = j / 2;  // whose first output is the smallest i with (2 i + 1) n - o >= 2 o cell
      const int first = (2 * o * cell + o + n - 1) / (2 * n);
      return min(max(first - j % 2, 0), o - 1);
    }
    j -= 2 * (n + 1);
  }
}

// The raw maps of a finish: staged in shared memory after relu, or read where they are.
struct Column {  // of a staged map: where an output falls
  int low;
  float part;
};
template <bool STAGED, int LAYERS>
struct Maps {
  const Finish<LAYERS>& job;
  int image, map;    // of the image
  float* values;     // staged: relu(raw) of all layers on end
  Column* columns;   // staged: (layers, output width)

  // The sum of the splits, in their order.
  CAM_INLINE float raw(const Source& source, int y, int x) const {
    const Long at = image * source.image + map * source.map + y * source.row + x * source.column;
    float sum = load(source.data, source.type, at);
    for (int s = 1; s < source.splits; ++s) sum += load(source.data, source.type, at + s * source.split);
    return sum;
  }
  // relu(raw); what is not finite is reported elsewhere and counts as zero.
  CAM_INLINE float value(const Source& source, int staged_at, int y, int x) const {
    if constexpr (STAGED) return values[staged_at + y * source.width + x];
    const float v = raw(source, y, x);
    return v > 0.f && v <= LARGEST ? v : 0.f;
  }

  // For outputs (y, x) … (y, x + P - 1): the sum over layers of s(relu(raw)), resized.
  template <typename R, int P>
  CAM_INLINE void sample(const Statistics<LAYERS>& statistics, int y, int x, R (&sum)[P]) const {
#pragma unroll
    for (int j = 0; j < P; ++j) sum[j] = 0;
    int staged_at = 0;
    for (int l = 0; l < job.layer_count; ++l) {
      const Source& source = job.layers[l];
      const LayerRange& range = statistics.layers[l];
      const int h = source.height, w = source.width;
      const R low = range.low;
      R inverse = range.inverse;
      if constexpr (sizeof(R) == 8) inverse = 1.0 / (1e-7 + (static_cast<double>(range.high) - range.low));
      const Tap row = tap(y, h, job.height);
      const int below = min(row.low + 1, h - 1);
      R down = row.part;
      if constexpr (sizeof(R) == 8) down = precise_part(y, row.low, h, job.height);
#pragma unroll
      for (int j = 0; j < P; ++j) {
        const int i = min(x + j, job.width - 1);
        Tap column;
        if constexpr (STAGED)
          column = {columns[l * job.width + i].low, columns[l * job.width + i].part};
        else
          column = tap(i, w, job.width);
        const int right = min(column.low + 1, w - 1);
        R across = column.part;
        if constexpr (sizeof(R) == 8) across = precise_part(i, column.low, w, job.width);
        // Less `low` before anything else, so that a small range on a large offset is not rounded away.
        const R top_left = value(source, staged_at, row.low, column.low) - low;
        const R top_right = value(source, staged_at, row.low, right) - low;
        const R bottom_left = value(source, staged_at, below, column.low) - low;
        const R bottom_right = value(source, staged_at, below, right) - low;
        const R top = fused(across, top_right - top_left, top_left);
        const R bottom = fused(across, bottom_right - bottom_left, bottom_left);
        sum[j] = fused(fused(down, bottom - top, top), inverse, sum[j]);
      }
      staged_at += h * w;
    }
  }
};

// The smallest `low` and the largest `high` of a block, in every thread.  shared: 64 numbers
template <typename R>
CAM_INLINE void block_range(R& low, R& high, R* shared) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    const R other_low = __shfl_xor_sync(0xffffffffu, low, step), other_high = __shfl_xor_sync(0xffffffffu, high, step);
    low = other_low < low ? other_low : low;
    high = other_high > high ? other_high : high;
  }
  const int warp = threadIdx.x / 32, warps = blockDim.x / 32;
  __syncthreads();  // whoever still reads the last result
  if (threadIdx.x % 32 == 0) shared[2 * warp] = low, shared[2 * warp + 1] = high;
  __syncthreads();
  for (int w = 0; w < warps; ++w) {
    low = shared[2 * w] < low ? shared[2 * w] : low;
    high = shared[2 * w + 1] > high ? shared[2 * w + 1] : high;
  }
}

// The extremes of the sum over layers, after resizing.
template <typename R, bool STAGED, int LAYERS>
CAM_INLINE void corner_range(const Maps<STAGED, LAYERS>& maps, const Statistics<LAYERS>& statistics, double* shared, R& low,
                             R& high) {
  const int rows = corner_count<true>(maps.job), columns = corner_count<false>(maps.job);
  low = LARGEST, high = -LARGEST;
  for (int i = threadIdx.x; i < rows * columns; i += blockDim.x) {
    R v[1];
    const int y = corner<true>(maps.job, rows, i / columns), x = corner<false>(maps.job, columns, i % columns);
    maps.sample(statistics, y, x, v);
    low = v[0] < low ? v[0] : low;
    high = v[0] > high ? v[0] : high;
  }
  block_range(low, high, reinterpret_cast<R*>(shared));
}

// Fills `statistics` (in shared memory) for one map, and what is staged; `reports`: writes flags and the raw map too.
template <bool STAGED, int LAYERS>
CAM_INLINE void measure(const Maps<STAGED, LAYERS>& maps, bool reports, Statistics<LAYERS>& statistics, double* shared) {
  const Finish<LAYERS>& job = maps.job;
  const int number = maps.image * job.maps + maps.map;
  bool positive = false, bad = false, wide = false;
  int staged_at = 0;
  for (int l = 0; l < job.layer_count; ++l) {
    const Source& source = job.layers[l];
    const int area = source.height * source.width;
    float low = LARGEST, high = 0;
    for (int q = threadIdx.x; q < area; q += blockDim.x) {
      const float raw = maps.raw(source, q / source.width, q % source.width);
      const bool finite = raw <= LARGEST;  // false for NaN and +inf; -inf is cut off
      bad |= !finite;
      const float v = raw > 0.f && finite ? raw : 0.f;
      if constexpr (STAGED) maps.values[staged_at + q] = v;
      if (job.raw != nullptr && reports && l == 0) job.raw[static_cast<Long>(number) * area + q] = raw;
      low = v < low ? v : low;
      high = v > high ? v : high;
    }
    if constexpr (STAGED) {
      for (int x = threadIdx.x; x < job.width; x += blockDim.x) {
        const Tap t = tap(x, source.width, job.width);
        maps.columns[l * job.width + x] = {t.low, t.part};
      }
    }
    block_range(low, high, reinterpret_cast<float*>(shared));
    if (threadIdx.x == 0) statistics.layers[l] = {low, high, 1.f / (1e-7f + (high - low))};
    positive |= high > 0.f;
    wide |= high - low > LARGEST_RANGE;
    staged_at += area;
  }
  bad = __syncthreads_or(bad);  // also a barrier: what is staged and the ranges of the layers are there

  float low, high;
  corner_range(maps, statistics, shared, low, high);
  const float each = 1.f / static_cast<float>(job.layer_count), range = (high - low) * each;
  const bool precise = wide || range < SMALLEST_RANGE;
  double precise_low = low, scale = each / (1e-7f + range);
  if (precise) {
    double precise_high;
    corner_range(maps, statistics, shared, precise_low, precise_high);
    scale = 1.0 / (1e-7 * job.layer_count + (precise_high - precise_low));
  }
  if (threadIdx.x == 0) {
    statistics.low = precise_low, statistics.scale = scale;
    statistics.precise = precise, statistics.blank = bad || !positive;
    if (reports && job.flags != nullptr) job.flags[number] = static_cast<Byte>((positive ? 0 : FLAT) | (bad ? NOT_FINITE : 0));
  }
  __syncthreads();
}

}  // namespace cam
