#include "check.hpp"

#include <algorithm>
#include <array>
#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace pycam {
namespace {

constexpr size_t MOST = PTRDIFF_MAX;      // no object is larger
constexpr size_t LONGEST_SIDE = 1 << 24;  // of maps and pictures: far from where an index overflows
constexpr int MOST_THREADS = 1024;

thread_local char message[512];

// An enumerator out of range must not be loaded as an enum: that alone would be undefined.
template <class Enum>
int number_of(const Enum& value) noexcept {
  int number;
  static_assert(sizeof value == sizeof number);
  std::memcpy(&number, &value, sizeof number);
  return number;
}

// a * b, or more than any object may have where that overflows.
constexpr size_t times(size_t a, size_t b) { return b != 0 && a > MOST / b ? MOST + 1 : a * b; }
constexpr size_t plus(size_t a, size_t b) { return a > MOST || b > MOST - a ? MOST + 1 : a + b; }
constexpr size_t magnitude(ptrdiff_t stride) {
  return stride < 0 ? size_t{0} - static_cast<size_t>(stride) : static_cast<size_t>(stride);
}

// One axis of something with strides; how far its last index lies from its first.
struct Axis {
  const char* name;
  size_t extent;
  ptrdiff_t stride;
  size_t reach() const { return times(extent - 1, magnitude(stride)); }
};

bool side(const char* name, const char* field, size_t value) noexcept {
  return (value >= 1 && value <= LONGEST_SIDE) ||
         refuse("%s.%s: expected 1 to %zu, found %zu", name, field, LONGEST_SIDE, value);
}

bool sides(const char* name, size_t height, size_t width) noexcept {
  return side(name, "height", height) && side(name, "width", width);
}

bool thread_limit(int threads) noexcept {
  return (threads >= 0 && threads <= MOST_THREADS) ||
         refuse("threads: expected 0 (one per core) to %d, found %d", MOST_THREADS, threads);
}

bool pointer(const char* name, const void* data, size_t alignment) noexcept {
  if (data == nullptr) return refuse("%s: expected a pointer, found null", name);
  return reinterpret_cast<std::uintptr_t>(data) % alignment == 0 ||
         refuse("%s: expected a pointer that is a multiple of %zu, found %p", name, alignment, data);
}

// Dense (N, K, height, width) of `size` bytes each.
bool dense(const char* name, size_t images, size_t maps, size_t height, size_t width, size_t size) noexcept {
  return times(times(times(images, maps), times(height, width)), size) <= MOST ||
         refuse("%s: %zu images x %zu maps x %zu x %zu are more than memory can hold", name, images, maps, height, width);
}

// Whether `axes` (none empty), each element `size` bytes, stay within what a pointer can address.
template <size_t COUNT>
bool reachable(const char* name, const std::array<Axis, COUNT>& axes, size_t size) noexcept {
  size_t reach = 0;
  for (const Axis& axis : axes) reach = plus(reach, axis.reach());
  if (times(reach, size) <= MOST) return true;
  const Axis* worst = axes.data();
  for (const Axis& axis : axes)
    if (axis.reach() > worst->reach()) worst = &axis;
  return refuse("%s.%s: stride %td x %zu lies outside of memory", name, worst->name, worst->stride, worst->extent);
}

bool tensor(const char* name, const pycam_tensor& t, size_t images, size_t maps, size_t channels, size_t height,
            size_t width) noexcept {
  const int type = number_of(t.type);
  if (type < PYCAM_F32 || type > PYCAM_BF16)
    return refuse("%s.type: expected PYCAM_F32 (0), PYCAM_F16 (1) or PYCAM_BF16 (2), found %d", name, type);
  if (images == 0 || maps == 0) return true;  // nothing is read
  const size_t size = type == PYCAM_F32 ? 4 : 2;
  char data[64];
  std::snprintf(data, sizeof data, "%s.data", name);
  return pointer(data, t.data, size) &&
         reachable<5>(name, {{{"image", images, t.image}, {"map", maps, t.map}, {"channel", channels, t.channel},
                              {"row", height, t.row}, {"column", width, t.column}}}, size);
}

bool weighing(const pycam_weighing* job) noexcept {
  if (job == nullptr) return refuse("job: expected a pointer, found null");
  const int weighting = number_of(job->weighting);
  if (weighting < PYCAM_GIVEN || weighting > PYCAM_PLUSPLUS)
    return refuse("job.weighting: expected PYCAM_GIVEN (0) to PYCAM_PLUSPLUS (%d), found %d", PYCAM_PLUSPLUS, weighting);
  constexpr size_t most = size_t{1} << 31;
  if (job->channels < 1 || job->channels > most)
    return refuse("job.channels: expected 1 to %zu, found %zu", most, job->channels);
  const auto each = [job](const char* name, const pycam_tensor& t) {
    return tensor(name, t, job->images, job->maps, job->channels, job->height, job->width);
  };
  return sides("job", job->height, job->width) &&
         dense("job", job->images, job->maps, job->height, job->width, sizeof(float)) &&
         each("job.activations", job->activations) && each("job.weights", job->weights);
}

// Two pixels of `pictures` in one place would be written by two threads: sorted by stride, each axis must step over
// everything that the smaller ones span.
bool pictures_apart(const pycam_output& out, size_t images, size_t maps) noexcept {
  std::array<Axis, 4> axes = {{{"picture_image", images, out.picture_image}, {"picture_map", maps, out.picture_map},
                               {"picture_row", out.height, out.picture_row}, {"picture_pixel", out.width, out.picture_pixel}}};
  if (!reachable("output", axes, 1)) return false;
  std::sort(axes.begin(), axes.end(), [](const Axis& a, const Axis& b) { return magnitude(a.stride) < magnitude(b.stride); });
  size_t span = 3;
  for (const Axis& axis : axes) {
    if (axis.extent == 1) continue;
    if (magnitude(axis.stride) < span)
      return refuse("output.%s: pixels of pictures overlap: expected at least %zu (or at most -%zu), found %td", axis.name,
                    span, span, axis.stride);
    span += axis.reach();
  }
  return true;
}

bool pictures(const pycam_output& out, size_t images, size_t maps) noexcept {
  if (!(out.alpha >= 0 && out.alpha <= 1)) return refuse("output.alpha: expected 0 to 1, found %g", out.alpha);
  if (!pointer("output.images", out.images, 1) || !pointer("output.lut", out.lut, 1)) return false;
  if (!reachable<3>("output", {{{"image_image", images, out.image_image}, {"image_row", out.height, out.image_row},
                                {"image_pixel", out.width, out.image_pixel}}}, 1))
    return false;
  if (!pictures_apart(out, images, maps)) return false;
  if (out.pictures != out.images) return true;
  if (maps != 1) return refuse("output.pictures: may be output.images only where maps is 1, found %zu maps", maps);
  return (out.picture_image == out.image_image && out.picture_row == out.image_row && out.picture_pixel == out.image_pixel) ||
         refuse("output.pictures: is output.images, but their strides differ: (%td, %td, %td) and (%td, %td, %td)",
                out.picture_image, out.picture_row, out.picture_pixel, out.image_image, out.image_row, out.image_pixel);
}

bool wanted(const pycam_output* output, size_t images, size_t maps, bool raw_wanted) noexcept {
  if (output == nullptr) return refuse("output: expected a pointer, found null");
  const pycam_output& out = *output;
  if (!sides("output", out.height, out.width) || !dense("output", images, maps, out.height, out.width, sizeof(float)))
    return false;
  if (images == 0 || maps == 0) return true;  // nothing is written
  if (!raw_wanted && !out.heatmaps && !out.levels && !out.flat && !out.pictures)
    return refuse("output: expected something to be wanted, found heatmaps, levels, flat and pictures all null");
  if (out.heatmaps && !pointer("output.heatmaps", out.heatmaps, alignof(float))) return false;
  return !out.pictures || pictures(out, images, maps);
}

// What a number is that is not finite, else null.
const char* kind_of(std::uint32_t bits, std::uint32_t infinity, std::uint32_t sign) noexcept {
  const std::uint32_t rest = bits & ~sign;
  if (rest < infinity) return nullptr;
  return rest > infinity ? "NaN" : bits & sign ? "-infinity" : "+infinity";
}

const char* kind_at(const pycam_tensor& t, ptrdiff_t offset) noexcept {
  if (t.type == PYCAM_F32) {
    std::uint32_t bits;
    std::memcpy(&bits, static_cast<const float*>(t.data) + offset, sizeof bits);
    return kind_of(bits, 0x7f800000u, 0x80000000u);
  }
  const std::uint32_t bits = static_cast<const std::uint16_t*>(t.data)[offset];
  return kind_of(bits, t.type == PYCAM_F16 ? 0x7c00u : 0x7f80u, 0x8000u);
}

// Says where the first number that is not finite lies (-infinity counts where `negative_too`); false if there is none.
bool blame(const char* name, const pycam_tensor& t, const std::array<size_t, 5>& extents, bool negative_too) noexcept {
  const std::array<ptrdiff_t, 5> strides = {t.image, t.map, t.channel, t.row, t.column};
  std::array<size_t, 5> at = {};
  for (;;) {
    ptrdiff_t offset = 0;
    for (size_t i = 0; i < at.size(); ++i) offset += static_cast<ptrdiff_t>(at[i]) * strides[i];
    const char* kind = kind_at(t, offset);
    if (kind && (negative_too || kind[0] != '-')) {
      refuse("%s: expected finite numbers, found %s at image %zu, map %zu, channel %zu, row %zu, column %zu", name, kind,
             at[0], at[1], at[2], at[3], at[4]);
      return true;
    }
    size_t axis = at.size();  // the next index; an axis of stride 0 is the same all along
    while (axis-- > 0) {
      if (strides[axis] != 0 && ++at[axis] < extents[axis]) break;
      at[axis] = 0;
    }
    if (axis > at.size()) return false;
  }
}

}  // namespace

const char* last_error() noexcept { return message; }

bool refuse(const char* format, ...) noexcept {
  va_list values;
  va_start(values, format);
  std::vsnprintf(message, sizeof message, format, values);
  va_end(values);
  return false;
}

bool valid_weigh(const pycam_weighing* job, const float* raw, int threads) noexcept {
  if (!weighing(job) || !thread_limit(threads)) return false;
  return job->images == 0 || job->maps == 0 || pointer("raw", raw, alignof(float));
}

bool valid_finish(const pycam_layer* layers, size_t layer_count, size_t images, size_t maps, const pycam_output* output,
                  int threads) noexcept {
  if (layers == nullptr) return refuse("layers: expected a pointer, found null");
  if (layer_count == 0) return refuse("layer_count: expected at least 1, found 0");
  for (size_t l = 0; l < layer_count; ++l) {
    char name[48], raw[64];
    std::snprintf(name, sizeof name, "layers[%zu]", l);
    std::snprintf(raw, sizeof raw, "%s.raw", name);
    pycam_tensor read = layers[l].raw;
    read.channel = 0;  // not used
    if (!sides(name, layers[l].height, layers[l].width) ||
        !tensor(raw, read, images, maps, 1, layers[l].height, layers[l].width))
      return false;
  }
  return wanted(output, images, maps, false) && thread_limit(threads);
}

bool valid_explain(const pycam_weighing* job, const float* raw, const pycam_output* output, int threads) noexcept {
  if (!weighing(job) || !wanted(output, job->images, job->maps, raw != nullptr) || !thread_limit(threads)) return false;
  return raw == nullptr || pointer("raw", raw, alignof(float));
}

bool valid_overlay(const float* heatmaps, size_t images, size_t maps, const pycam_output* output, int threads) noexcept {
  if (!wanted(output, images, maps, true)) return false;
  if (output->heatmaps) return refuse("output.heatmaps: expected null, as heatmaps are what is given, found a pointer");
  if (output->flat) return refuse("output.flat: expected null, as only raw maps show it, found a pointer");
  if (!thread_limit(threads)) return false;
  if (images == 0 || maps == 0) return true;
  if (!output->levels && !output->pictures)
    return refuse("output: expected something to be wanted, found levels and pictures both null");
  return pointer("heatmaps", heatmaps, alignof(float));
}

void blame_layers(const pycam_layer* layers, size_t layer_count, size_t images, size_t maps) noexcept {
  refuse("layers: NaN or +infinity in a raw map");
  for (size_t l = 0; l < layer_count; ++l) {
    char name[48];
    std::snprintf(name, sizeof name, "layers[%zu].raw", l);
    if (blame(name, layers[l].raw, {images, maps, 1, layers[l].height, layers[l].width}, false)) return;
  }
}

void blame_weighing(const pycam_weighing& job) noexcept {
  refuse("job: the weighted sum of finite numbers is too large for a float");
  const std::array<size_t, 5> extents = {job.images, job.maps, job.channels, job.height, job.width};
  if (!blame("job.activations", job.activations, extents, true)) blame("job.weights", job.weights, extents, true);
}

void blame_heatmaps(const float* heatmaps, size_t images, size_t maps, const pycam_output& output) noexcept {
  const auto row = static_cast<ptrdiff_t>(output.width), map = row * static_cast<ptrdiff_t>(output.height);
  const pycam_tensor dense = {heatmaps, PYCAM_F32, map * static_cast<ptrdiff_t>(maps), map, 0, row, 1};
  refuse("heatmaps: NaN has no colour");
  blame("heatmaps", dense, {images, maps, 1, output.height, output.width}, false);
}

}  // namespace pycam
