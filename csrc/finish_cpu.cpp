#include "finish_cpu.hpp"

#include <algorithm>
#include <cmath>
#include <iterator>

#include "pack.hpp"

namespace pycam {

// ---- what follows from the shapes ------------------------------------------------------------------------------------

void Axis::sample(size_t n, size_t o) {
  low.resize(o);
  high.resize(o);
  part.resize(o);
  rounded.resize(o);
  const double scale = static_cast<double>(n) / static_cast<double>(o);
  for (size_t i = 0; i < o; ++i) {
    const double at = std::max(0.0, (static_cast<double>(i) + 0.5) * scale - 0.5);
    const size_t cell = std::min(static_cast<size_t>(at), n - 1);
    low[i] = static_cast<int>(cell);
    high[i] = static_cast<int>(std::min(cell + 1, n - 1));
    part[i] = at - static_cast<double>(cell);
    rounded[i] = static_cast<float>(part[i]);
  }
}

namespace {

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

// ---- kernels -----------------------------------------------------------------------------------------------------------

// Two rows of a layer, interpolated along x, and how far the wanted row is from the first to the second.
template <class T>
struct Pair {
  const T *top, *bottom;
  T part;
};

struct Range {
  float low, high;  // of relu(raw)
  bool usable;      // neither NaN nor +infinity
};

MULTI Range range_of(const float* RESTRICT raw, size_t count) {
  float low = larger(raw[0], 0.f), high = low;
  int bad = 0;
#pragma omp simd reduction(min : low) reduction(max : high) reduction(| : bad)
  for (size_t q = 0; q < count; ++q) {
    const float v = larger(raw[q], 0.f);
    low = smaller(low, v);
    high = larger(high, v);
    bad |= !(raw[q] <= 3.402823466e38f);
  }
  return {low, high, bad == 0};
}

// s(relu(raw)) of one row, interpolated along x.
template <class T>
INLINE void stretch_row_(const float* RESTRICT raw, size_t width, T low, T range, const int* RESTRICT left,
                         const int* RESTRICT right, const T* RESTRICT part, size_t out_width, T* RESTRICT line,
                         T* RESTRICT out) {
#pragma omp simd
  for (size_t x = 0; x < width; ++x) line[x] = (static_cast<T>(larger(raw[x], 0.f)) - low) / range;
#pragma omp simd
  for (size_t x = 0; x < out_width; ++x) out[x] = line[left[x]] + part[x] * (line[right[x]] - line[left[x]]);
}
MULTI void stretch_row(const float* raw, size_t width, float low, float range, const int* left, const int* right,
                       const float* part, size_t out_width, float* line, float* out) {
  stretch_row_<float>(raw, width, low, range, left, right, part, out_width, line, out);
}
MULTI void stretch_row(const float* raw, size_t width, double low, double range, const int* left, const int* right,
                       const double* part, size_t out_width, double* line, double* out) {
  stretch_row_<double>(raw, width, low, range, left, right, part, out_width, line, out);
}

// The sum over layers of one row.
template <class T>
INLINE void mix_row_(const Pair<T>* pairs, size_t count, size_t width, T* RESTRICT out) {
  for (size_t l = 0; l < count; ++l) {
    const T *RESTRICT top = pairs[l].top, *RESTRICT bottom = pairs[l].bottom;
    const T f = pairs[l].part;
    if (l == 0) {
#pragma omp simd
      for (size_t x = 0; x < width; ++x) out[x] = top[x] + f * (bottom[x] - top[x]);
    } else {
#pragma omp simd
      for (size_t x = 0; x < width; ++x) out[x] += top[x] + f * (bottom[x] - top[x]);
    }
  }
}

template <class T>
INLINE void extremes_(const Pair<T>* pairs, size_t count, size_t width, T* RESTRICT line, T& low_, T& high_) {
  mix_row_<T>(pairs, count, width, line);
  T low = low_, high = high_;
#pragma omp simd reduction(min : low) reduction(max : high)
  for (size_t x = 0; x < width; ++x) {
    low = smaller(low, line[x]);
    high = larger(high, line[x]);
  }
  low_ = low;
  high_ = high;
}
MULTI void extremes(const Pair<float>* pairs, size_t count, size_t width, float* line, float& low, float& high) {
  extremes_<float>(pairs, count, width, line, low, high);
}
MULTI void extremes(const Pair<double>* pairs, size_t count, size_t width, double* line, double& low, double& high) {
  extremes_<double>(pairs, count, width, line, low, high);
}

template <class T>
INLINE void scale_(T* RESTRICT values, size_t count, T shift, T scale) {
#pragma omp simd
  for (size_t i = 0; i < count; ++i) values[i] = (values[i] - shift) * scale;
}
MULTI void scale_all(float* values, size_t count, float shift, float scale) { scale_<float>(values, count, shift, scale); }
MULTI void scale_all(double* values, size_t count, double shift, double scale) { scale_<double>(values, count, shift, scale); }

// The finished row.  It is clamped for the last ulp.
MULTI void write_row(const Pair<float>* pairs, size_t count, size_t width, float*, float* RESTRICT out) {
  mix_row_<float>(pairs, count, width, out);
#pragma omp simd
  for (size_t x = 0; x < width; ++x) out[x] = smaller(larger(out[x], 0.f), 1.f);
}
MULTI void write_row(const Pair<double>* pairs, size_t count, size_t width, double* RESTRICT line, float* RESTRICT out) {
  mix_row_<double>(pairs, count, width, line);
#pragma omp simd
  for (size_t x = 0; x < width; ++x) out[x] = static_cast<float>(smaller(larger(line[x], 0.), 1.));
}

// ---- one map -------------------------------------------------------------------------------------------------------------

// The scratch of one map.  Only what needs it is kept in the wider type, but room is made for it always.
struct Room {
  size_t used;
  float* row;                   // of the result, where it is not wanted as a heatmap
  const float** raw;            // per layer, dense
  Range* ranges;                // per layer
  double** rows;                // per layer: (height, output width), of float or double
  Pair<double>* pairs;          // per layer
  double* line;
  float* packed;                // all layers

  Room(const Plan& plan, Carving carving) {
    const size_t count = plan.vertical.size(), width = plan.shapes[1];
    size_t widest = width, area = 0;
    for (size_t l = 0; l < count; ++l) {
      widest = std::max(widest, plan.shapes[2 * l + 3]);
      area += plan.shapes[2 * l + 2] * plan.shapes[2 * l + 3];
    }
    row = carving.array<float>(width);
    raw = carving.array<const float*>(count);
    ranges = carving.array<Range>(count);
    rows = carving.array<double*>(count);
    pairs = carving.array<Pair<double>>(count);
    line = carving.array<double>(widest);
    packed = carving.array<float>(area);
    for (size_t l = 0; l < count; ++l) {
      double* const block = carving.array<double>(plan.shapes[2 * l + 2] * width);
      if (rows) rows[l] = block;
    }
    used = carving.used();
  }
};

const float* part_of(const Axis& axis, float) { return axis.rounded.data(); }
const double* part_of(const Axis& axis, double) { return axis.part.data(); }

// The second s divides rounding errors (about 3e-7 here) by the range of the mean map.  Below this range they could reach
// 1e-5: such maps (nearly constant, or tiny against the eps) are rare and are computed in double.
constexpr float SMALLEST_RANGE = 1.f / 16;

// Whether the numbers were good enough in T.  s is affine and so is the interpolation along y: s is applied to the few rows
// of the sources, not to the output.
template <class T>
bool finish_in(const Plan& plan, const Room& room, float* heatmap, RowSink sink, void* context) {
  const size_t count = plan.vertical.size(), height = plan.shapes[0], width = plan.shapes[1];
  auto* const pairs = reinterpret_cast<Pair<T>*>(room.pairs);
  auto* const line = reinterpret_cast<T*>(room.line);
  const auto rows = [&](size_t l) { return reinterpret_cast<T*>(room.rows[l]); };
  const auto pair_up = [&](size_t y) {
    for (size_t l = 0; l < count; ++l) {
      const Axis& axis = plan.vertical[l];
      const T* const all = rows(l);
      const auto low = static_cast<size_t>(axis.low[y]), high = static_cast<size_t>(axis.high[y]);
      pairs[l] = {all + low * width, all + high * width, part_of(axis, T{})[y]};
    }
  };

  for (size_t l = 0; l < count; ++l) {
    const Axis& axis = plan.horizontal[l];
    const size_t h = plan.shapes[2 * l + 2], w = plan.shapes[2 * l + 3];
    const T low = room.ranges[l].low, range = static_cast<T>(1e-7) + (static_cast<T>(room.ranges[l].high) - low);
    for (size_t y = 0; y < h; ++y)
      stretch_row(room.raw[l] + y * w, w, low, range, axis.low.data(), axis.high.data(), part_of(axis, T{}), width, line,
                  rows(l) + y * width);
  }

  T low = static_cast<T>(3e38), high = static_cast<T>(-3e38);
  for (const size_t y : plan.corners) {
    pair_up(y);
    extremes(pairs, count, width, line, low, high);
  }
  const T each = 1 / static_cast<T>(count), range = (high - low) * each;
  if (sizeof(T) < sizeof(double) && range < static_cast<T>(SMALLEST_RANGE)) return false;

  const T shift = low, scale = each / (static_cast<T>(1e-7) + range);
  for (size_t l = 0; l < count; ++l) scale_all(rows(l), plan.shapes[2 * l + 2] * width, shift * each, scale);
  for (size_t y = 0; y < height; ++y) {
    float* const row = heatmap ? heatmap + y * width : room.row;
    pair_up(y);
    write_row(pairs, count, width, line, row);
    sink(context, y, row);
  }
  return true;
}

// The dense floats of a layer's map; copied where they do not lie like that.
const float* dense_map(const pycam_layer& layer, size_t n, size_t k, float* packed) {
  return planes(moved(layer.raw, n, k), 0, 1, 0, layer.height, layer.width, packed).data;
}

}  // namespace

namespace {

// The plans of a thread's last few calls, so that one that goes between some shapes makes each of them once.
struct Plans {
  Plan kept[4];
  size_t oldest = 0;
};

Plans& plans_of_this_thread() {
  static thread_local Plans plans;
  return plans;
}

}  // namespace

const Plan& Plan::of(const pycam_layer* layers, size_t layer_count, size_t height, size_t width) {
  const auto shape = [&](size_t i) {
    if (i < 2) return i == 0 ? height : width;
    return i % 2 == 0 ? layers[i / 2 - 1].height : layers[i / 2 - 1].width;
  };
  const size_t count = 2 * layer_count + 2;
  Plans& plans = plans_of_this_thread();
  for (const Plan& plan : plans.kept) {
    bool same = plan.shapes.size() == count;
    for (size_t i = 0; same && i < count; ++i) same = plan.shapes[i] == shape(i);
    if (same) return plan;
  }
  Plan fresh;
  for (size_t i = 0; i < count; ++i) fresh.shapes.push_back(shape(i));
  fresh.make();
  Plan& place = plans.kept[plans.oldest];
  plans.oldest = (plans.oldest + 1) % std::size(plans.kept);
  return place = std::move(fresh);
}

void Plan::forget() { plans_of_this_thread() = {}; }

void Plan::make() {
  const size_t count = shapes.size() / 2 - 1;
  vertical.resize(count);
  horizontal.resize(count);
  std::vector<bool> corner(shapes[0]);
  for (size_t l = 0; l < count; ++l) {
    vertical[l].sample(shapes[2 * l + 2], shapes[0]);
    horizontal[l].sample(shapes[2 * l + 3], shapes[1]);
    mark_corners(shapes[2 * l + 2], shapes[0], corner);
  }
  for (size_t y = 0; y < shapes[0]; ++y)
    if (corner[y]) corners.push_back(y);
  scratch = Room(*this, Carving(nullptr)).used;
}

Outcome finish_map(const Plan& plan, const pycam_layer* layers, size_t n, size_t k, float* heatmap, RowSink sink,
                   void* context, char* scratch) {
  const Room room(plan, Carving(scratch));
  bool positive = false;
  float* packed = room.packed;
  for (size_t l = 0; l < plan.vertical.size(); ++l) {
    const size_t area = layers[l].height * layers[l].width;
    room.raw[l] = dense_map(layers[l], n, k, packed);
    packed += area;
    room.ranges[l] = range_of(room.raw[l], area);
    if (!room.ranges[l].usable) return Outcome::not_finite;
    positive |= room.ranges[l].high > 0;
  }
  if (!positive) {
    const size_t width = plan.shapes[1];
    for (size_t y = 0; y < plan.shapes[0]; ++y) {
      float* const row = heatmap ? heatmap + y * width : room.row;
      std::fill_n(row, width, 0.f);
      sink(context, y, row);
    }
    return Outcome::flat;
  }
  if (!finish_in<float>(plan, room, heatmap, sink, context)) finish_in<double>(plan, room, heatmap, sink, context);
  return Outcome::done;
}

}  // namespace pycam
