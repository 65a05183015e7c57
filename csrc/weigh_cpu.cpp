// Weights per channel are computed first, then the channels are summed with them; each byte is read once.  Sums are broken off
// after some hundred terms, so that their rounding errors stay near 1e-6.
#include "weigh_cpu.hpp"

#include <algorithm>

#include "pack.hpp"
#include "sums.hpp"

namespace pycam {
namespace {

constexpr size_t AREA = 1024;  // positions at a time; more where one row has more
constexpr size_t DEPTH = 128;  // channels at a time
constexpr size_t RUN = 2048;   // channels of a point at a time
constexpr size_t TILE = 8192;  // floats of a tile

// ---- the parts of a job ----------------------------------------------------------------------------------------------

// How a job is cut into tiles, and the scratch of one map.
struct Cut {
  size_t rows;      // of planes at a time
  size_t channels;  // of planes at a time
  size_t points;    // of a row at a time
  float *sums, *weights, *partial, *first, *second;  // (C), (C), (C or area of `rows`), tiles

  Cut(const pycam_weighing& job, Carving carving) {
    rows = std::min(job.height, std::max<size_t>(1, AREA / job.width));
    channels = std::min({job.channels, DEPTH, std::max<size_t>(4, TILE / (rows * job.width) / 4 * 4)});
    points = std::min({job.width, std::max<size_t>(4, TILE / job.channels)});
    const size_t tile = std::max(rows * job.width * channels, points * job.channels);
    sums = carving.array<float>(job.channels);
    weights = carving.array<float>(job.channels);
    partial = carving.array<float>(std::max(job.channels, rows * job.width));
    first = carving.array<float>(tile);
    second = carving.array<float>(tile);
    used = carving.used();
  }
  size_t used;
};

// visit(c, channels, y, rows) for every tile of planes; visit(y, x, points) for every tile of points.
template <class Visit>
void each_planes(const pycam_weighing& job, const Cut& cut, const Visit& visit) {
  for (size_t y = 0; y < job.height; y += cut.rows)
    for (size_t c = 0; c < job.channels; c += cut.channels)
      visit(c, std::min(cut.channels, job.channels - c), y, std::min(cut.rows, job.height - y));
}
template <class Visit>
void each_points(const pycam_weighing& job, const Cut& cut, const Visit& visit) {
  for (size_t y = 0; y < job.height; ++y)
    for (size_t x = 0; x < job.width; x += cut.points) visit(y, x, std::min(cut.points, job.width - x));
}

// totals[c] = what `of_planes` or `of_points`, whichever suits the tensor, add for channel c, over all of its tiles.
template <class ByPlanes, class ByPoints>
void total_channels(const pycam_weighing& job, const pycam_tensor& t, const Cut& cut, float* totals, const ByPlanes& of_planes,
                    const ByPoints& of_points) {
  std::fill_n(totals, job.channels, 0.f);
  if (!channels_together(t)) {
    each_planes(job, cut, [&](size_t c, size_t channels, size_t y, size_t rows) {
      of_planes(planes(t, c, channels, y, rows, job.width, cut.first), c, channels, rows * job.width, totals + c);
    });
    return;
  }
  size_t since = 0;  // points in `partial`
  const auto settle = [&] {
    for (size_t c = 0; c < job.channels; ++c) totals[c] += cut.partial[c];
    std::fill_n(cut.partial, job.channels, 0.f);
    since = 0;
  };
  std::fill_n(cut.partial, job.channels, 0.f);
  each_points(job, cut, [&](size_t y, size_t x, size_t points) {
    of_points(point_row(t, job.channels, y, x, points, cut.first), points, cut.partial);
    if ((since += points) >= AREA / 4) settle();
  });
  settle();
}

void sum_channels(const pycam_weighing& job, const pycam_tensor& t, const Cut& cut, float* sums) {
  total_channels(
      job, t, cut, sums,
      [](const Tile& tile, size_t, size_t channels, size_t area, float* to) {
        by_planes.sum(tile.data, tile.step, channels, area, to);
      },
      [&](const Tile& tile, size_t points, float* to) { by_points.sum(tile.data, tile.step, points, job.channels, to); });
}

void alpha_channels(const pycam_weighing& job, const pycam_tensor& t, const Cut& cut, const float* sums, float* weights) {
  total_channels(
      job, t, cut, weights,
      [&](const Tile& tile, size_t c, size_t channels, size_t area, float* to) {
        by_planes.alpha(tile.data, tile.step, channels, area, sums + c, to);
      },
      [&](const Tile& tile, size_t points, float* to) { by_points.alpha(tile.data, tile.step, points, job.channels, sums, to); });
}

void dot_channels(const pycam_weighing& job, const pycam_tensor& t, const Cut& cut, const float* weights, float* raw) {
  std::fill_n(raw, job.height * job.width, 0.f);
  if (channels_together(t)) {
    each_points(job, cut, [&](size_t y, size_t x, size_t points) {
      const Tile tile = point_row(t, job.channels, y, x, points, cut.first);
      for (size_t c = 0; c < job.channels; c += RUN)
        by_points.dot(tile.data + c, tile.step, points, std::min(RUN, job.channels - c), weights + c, raw + y * job.width + x);
    });
    return;
  }
  each_planes(job, cut, [&](size_t c, size_t channels, size_t y, size_t rows) {
    const size_t area = rows * job.width;
    const Tile tile = planes(t, c, channels, y, rows, job.width, cut.first);
    std::fill_n(cut.partial, area, 0.f);
    by_planes.dot(tile.data, tile.step, channels, area, weights + c, cut.partial);
    for (size_t q = 0; q < area; ++q) raw[y * job.width + q] += cut.partial[q];
  });
}

void sum_terms(const pycam_weighing& job, const pycam_tensor& a, const pycam_tensor& g, const Cut& cut,
               TermChannels Sums::*term, float* raw) {
  std::fill_n(raw, job.height * job.width, 0.f);
  if (channels_together(a) && channels_together(g)) {
    each_points(job, cut, [&](size_t y, size_t x, size_t points) {
      const Tile left = point_row(a, job.channels, y, x, points, cut.first);
      const Tile right = point_row(g, job.channels, y, x, points, cut.second);
      for (size_t c = 0; c < job.channels; c += RUN)
        (by_points.*term)(left.data + c, left.step, right.data + c, right.step, points, std::min(RUN, job.channels - c),
                          raw + y * job.width + x);
    });
    return;
  }
  each_planes(job, cut, [&](size_t c, size_t channels, size_t y, size_t rows) {
    const size_t area = rows * job.width;
    const Tile left = planes(a, c, channels, y, rows, job.width, cut.first);
    const Tile right = planes(g, c, channels, y, rows, job.width, cut.second);
    std::fill_n(cut.partial, area, 0.f);
    (by_planes.*term)(left.data, left.step, right.data, right.step, channels, area, cut.partial);
    for (size_t q = 0; q < area; ++q) raw[y * job.width + q] += cut.partial[q];
  });
}

}  // namespace

size_t weighing_scratch(const pycam_weighing& job) { return Cut(job, Carving(nullptr)).used; }

void weigh_map(const pycam_weighing& job, size_t n, size_t k, float* raw, char* scratch) {
  const Cut cut(job, Carving(scratch));
  const pycam_tensor a = moved(job.activations, n, k), g = moved(job.weights, n, k);
  const auto channels = static_cast<Offset>(job.channels);
  const bool per_channel = g.row == 0 && g.column == 0;
  switch (job.weighting) {
    case PYCAM_GIVEN:
      if (!per_channel) return sum_terms(job, a, g, cut, &Sums::given, raw);
      for (Offset c = 0; c < channels; ++c) cut.weights[c] = value_at(g, c * g.channel);
      break;
    case PYCAM_MEAN: {
      const bool whole = cut.rows == job.height && !channels_together(a) && !channels_together(g);
      if (whole) return sum_terms(job, a, g, cut, &Sums::mean, raw);
      const float area = static_cast<float>(job.height * job.width);
      sum_channels(job, g, cut, cut.weights);
      for (size_t c = 0; c < job.channels; ++c) cut.weights[c] /= area;
      break;
    }
    case PYCAM_POSITIVE: return sum_terms(job, a, g, cut, &Sums::positive, raw);
    case PYCAM_RECTIFIED: return sum_terms(job, a, g, cut, &Sums::rectified, raw);
    case PYCAM_PLUSPLUS:
      sum_channels(job, a, cut, cut.sums);
      alpha_channels(job, g, cut, cut.sums, cut.weights);
      break;
  }
  dot_channels(job, a, cut, cut.weights, raw);
}

}  // namespace pycam
