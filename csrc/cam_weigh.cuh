// Part of cam_head.cuh: raw maps, as sums over channels.
namespace cam {

// ---- raw maps, h*w <= 32 K: vectors --------------------------------------------------------------------------------
//
// V consecutive channels of h*w positions are exactly h*w aligned vectors of V elements: a group.  A warp streams groups; lane
// `lane` holds vectors lane, lane + 32, … of each, so which channel and position an element belongs to is the same in every
// group.  A vector touches two channels at most, as h*w >= V.  It is 16 bytes, but 8 of a 16-bit type above h*w = 64, where
// 16 would take more registers than there are.

enum Mode { BY_CHANNEL, BY_MEAN, BY_PLUSPLUS, BY_ELEMENT };

template <int V, int K>
struct Share {  // what a lane holds of a group
  int channel[K];  // of the group, of the first element of the lane's k-th vector
  int cut[K];      // elements j < cut belong to `channel`, the others to the next

  CAM_INLINE Share(int lane, int area) {
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int first = (lane + 32 * k) * V;
      channel[k] = first / area;
      cut[k] = (channel[k] + 1) * area - first;
    }
  }

  // sum[c] = scale * the sum of value(k, j) over the positions of channel c, in every lane.
  template <typename R, typename F>
  CAM_INLINE void sum_channels(F value, R scale, R (&sum)[V]) const {
#pragma unroll
    for (int c = 0; c < V; ++c) sum[c] = 0;
#pragma unroll
    for (int k = 0; k < K; ++k) {
      R here = 0, next = 0;
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const R v = value(k, j);
        here = j < cut[k] ? fused(v, scale, here) : here;
        next = j < cut[k] ? next : fused(v, scale, next);
      }
#pragma unroll
      for (int c = 0; c < V; ++c) sum[c] += c == channel[k] ? here : c == channel[k] + 1 ? next : 0;
    }
#pragma unroll
    for (int c = 0; c < V; ++c)
#pragma unroll
      for (int step = 16; step > 0; step /= 2) sum[c] += __shfl_xor_sync(0xffffffffu, sum[c], step);
  }
};

// table[i], without the local memory that an index unknown to the compiler would need
template <typename R, int V>
CAM_INLINE R pick(const R (&table)[V], int i) {
  R result = 0;
#pragma unroll
  for (int c = 0; c < V; ++c) result = c == i ? table[c] : result;
  return result;
}

// The vectors of a group that are this lane's: all loads before any use, so that they are in flight together.
template <typename T, int V, int K>
CAM_INLINE void load_group(const T* data, const Weigh& p, int group, Vector<T, V> (&vectors)[K]) {
  const int area = p.height * p.width, lane = threadIdx.x % 32;
  const T* first = data + static_cast<Long>(group) * V * area;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int vector = lane + 32 * k;
    if (vector < area)
      vectors[k].load(first, vector);
    else
      vectors[k].clear();
  }
}

// The weights of a group's channels, the same in every lane.
template <int MODE, typename T, int V, int K>
CAM_INLINE void group_weights(const Weigh& p, Long weights_at, int group, const Share<V, K>& share,
                              const Vector<T, V> (&a)[K], Vector<T, V> (&g)[K], float (&weight)[V]) {
  if constexpr (MODE == BY_CHANNEL) {
#pragma unroll
    for (int c = 0; c < V; ++c)
      weight[c] = load(p.weights.data, p.weights_type, weights_at + (static_cast<Long>(group) * V + c) * p.weights.channel);
  } else if constexpr (MODE == BY_MEAN) {
    // Scaled before it is summed: the sum of large gradients would overflow.
    share.sum_channels([&](int k, int j) { return g[k][j]; }, 1.f / static_cast<float>(p.height * p.width), weight);
  } else {
    double total[V];
    share.sum_channels([&](int k, int j) { return static_cast<double>(a[k][j]); }, 1.0, total);
    load_group(static_cast<const T*>(p.weights.data) + weights_at, p, group, g);  // not earlier: registers are short
    share.sum_channels(
        [&](int k, int j) {
          const double here = pick(total, share.channel[k]), next = pick(total, share.channel[k] + 1);
          return plusplus_term(g[k][j], j < share.cut[k] ? here : next);
        },
        1.f, weight);
  }
}

// This block's share of a raw map, to partial[h*w].  shared: h*w * V floats per warp.
template <typename T, int V, int K, int MODE>
CAM_INLINE void weigh_vectors(const Weigh& p, int map, int split, float* shared, float* partial) {
  const int area = p.height * p.width, lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const int image = map / p.maps, k_map = map % p.maps;
  const T* activations = static_cast<const T*>(p.activations.data) + image * p.activations.image + k_map * p.activations.map;
  const Long weights_at = image * p.weights.image + k_map * p.weights.map;
  const Share<V, K> share(lane, area);

  float sum[K][V];
#pragma unroll
  for (int k = 0; k < K; ++k)
#pragma unroll
    for (int j = 0; j < V; ++j) sum[k][j] = 0;

  // The bounds are the same for all lanes of a warp, so the shuffles inside may name all of them.
  for (int group = split * warps + warp; group < p.channels / V; group += p.splits * warps) {
    Vector<T, V> a[K], g[K];
    load_group(activations, p, group, a);
    if constexpr (MODE == BY_MEAN || MODE == BY_ELEMENT)
      load_group(static_cast<const T*>(p.weights.data) + weights_at, p, group, g);
    if constexpr (MODE == BY_ELEMENT) {
#pragma unroll
      for (int k = 0; k < K; ++k)
#pragma unroll
        for (int j = 0; j < V; ++j) sum[k][j] += element_term(a[k][j], g[k][j], p.weighting);
    } else {
      float weight[V];
      group_weights<MODE>(p, weights_at, group, share, a, g, weight);
#pragma unroll
      for (int k = 0; k < K; ++k) {
        const float here = pick(weight, share.channel[k]), next = pick(weight, share.channel[k] + 1);
#pragma unroll
        for (int j = 0; j < V; ++j) sum[k][j] = fmaf(j < share.cut[k] ? here : next, a[k][j], sum[k][j]);
      }
    }
  }

#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int vector = lane + 32 * k;
    if (vector < area) {
#pragma unroll
      for (int j = 0; j < V; ++j) shared[(warp * area + vector) * V + j] = sum[k][j];
    }
  }
  __syncthreads();
  // Element e of a group is position e % (h*w), so a warp's sums are V maps on end.
  for (int q = threadIdx.x; q < area; q += blockDim.x) {
    float total = 0;
    for (int m = 0; m < warps * V; ++m) total += shared[m * area + q];
    partial[q] = total;
  }
}

// ---- raw maps, any size and strides --------------------------------------------------------------------------------

// A block's threads as a table of positions and channels; neighbours are along whatever is contiguous in memory.
struct Place {
  int position, channel, channels;
  CAM_INLINE explicit Place(const Weigh& p) : channels(static_cast<int>(blockDim.x) / p.positions) {
    const int t = threadIdx.x;
    position = p.channels_first ? t / channels : t % p.positions;
    channel = p.channels_first ? t % channels : t / p.positions;
  }
};

// shared: blockDim.x floats
template <typename A, typename G>
CAM_INLINE void weigh_any(const Weigh& p, int map, int part, float* shared, float* partial) {
  const Place place(p);
  const int area = p.height * p.width, split = part % p.splits, tile = part / p.splits;
  const int q = tile * p.positions + place.position;
  float sum = 0;
  if (q < area) {
    const int image = map / p.maps, k = map % p.maps;
    const int y = p.height == 1 ? 0 : q / p.width, x = q - y * p.width;
    const A* a = static_cast<const A*>(p.activations.data) + image * p.activations.image + k * p.activations.map +
                 y * p.activations.row + x * p.activations.column;
    const G* g = static_cast<const G*>(p.weights.data) + image * p.weights.image + k * p.weights.map + y * p.weights.row +
                 x * p.weights.column;
#pragma unroll 4
    for (int c = split * place.channels + place.channel; c < p.channels; c += p.splits * place.channels)
      sum += element_term(load(a + c * p.activations.channel), load(g + c * p.weights.channel), p.weighting);
  }
  shared[place.channel * p.positions + place.position] = sum;
  __syncthreads();
  const int mine = tile * p.positions + static_cast<int>(threadIdx.x);
  if (static_cast<int>(threadIdx.x) < p.positions && mine < area) {
    float total = 0;
    for (int c = 0; c < place.channels; ++c) total += shared[c * p.positions + static_cast<int>(threadIdx.x)];
    partial[mine] = total;
  }
}

// The sum of what the threads of one channel have, in each of them.  shared: blockDim.x doubles
CAM_INLINE double sum_positions(const Weigh& p, const Place& place, double value, double* shared) {
  __syncthreads();  // whoever still reads it
  shared[place.channel * p.positions + place.position] = value;
  __syncthreads();
  double sum = 0;
  for (int i = 0; i < p.positions; ++i) sum += shared[place.channel * p.positions + i];
  return sum;
}

// Calls add(y, x) for every p.positions-th position, from `first` on.
template <typename F>
CAM_INLINE void each_position(const Weigh& p, int first, F add) {
  for (int q = first; q < p.height * p.width; q += p.positions) {
    const int y = p.height == 1 ? 0 : q / p.width;
    add(y, q - y * p.width);
  }
}

// Weights of `channels` consecutive channels of a map: the mean of the gradients, or Grad-CAM++.
template <typename T>
CAM_INLINE void weigh_channels(const Weigh& p, int map, int tile, double* shared) {
  const Place place(p);
  const int area = p.height * p.width, c = tile * place.channels + place.channel;
  const int image = map / p.maps, k = map % p.maps;
  const auto start = [&](const Tensor& t) {
    return static_cast<const T*>(t.data) + image * t.image + k * t.map + (c < p.channels ? c : 0) * t.channel;
  };
  const T *a = start(p.activations), *g = start(p.weights);
  const int first = c < p.channels ? place.position : area;

  double weight = 0, activation_sum = 0;
  if (p.weighting == MEAN) {
    each_position(p, first, [&](int y, int x) { weight += load(g + y * p.weights.row + x * p.weights.column); });
  } else {
    each_position(p, first, [&](int y, int x) {
      activation_sum += load(a + y * p.activations.row + x * p.activations.column);
    });
    activation_sum = sum_positions(p, place, activation_sum, shared);
    each_position(p, first, [&](int y, int x) {
      weight += plusplus_term(load(g + y * p.weights.row + x * p.weights.column), activation_sum);
    });
  }
  weight = sum_positions(p, place, weight, shared);
  if (p.weighting == MEAN) weight /= area;
  if (place.position == 0 && c < p.channels)
    p.channel_weights[static_cast<Long>(map) * p.channels + c] = static_cast<float>(weight);
}

// Whether this block is the last of `count` to come here, with what the others wrote before visible to all its threads.
// The ticket wraps to zero: ready for the next launch.  Starts and ends with nobody using `shared`.
CAM_INLINE bool is_last(unsigned* ticket, int count, unsigned* shared) {
  __threadfence();  // each thread: what it wrote, before the ticket says so
  __syncthreads();
  if (threadIdx.x == 0) *shared = atomicInc(ticket, static_cast<unsigned>(count) - 1u);
  __syncthreads();
  const bool last = *shared == static_cast<unsigned>(count) - 1u;
  __syncthreads();
  __threadfence();  // the others' writes, before what comes next reads them
  return last;
}

}  // namespace cam
