// The reference head: the formulas of pycam.h, one after the other, in double.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "head.hpp"
#include "numbers.hpp"

namespace pycam {
namespace {

double relu(double x) { return x > 0 ? x : 0; }

double positive(double x) { return x < 0 ? 0 : x; }  // relu that keeps NaN

double element(const pycam_tensor& t, size_t n, size_t k, size_t c, size_t y, size_t x) {
  const auto step = [](size_t index, ptrdiff_t stride) { return static_cast<ptrdiff_t>(index) * stride; };
  return value_at(t, step(n, t.image) + step(k, t.map) + step(c, t.channel) + step(y, t.row) + step(x, t.column));
}

double plusplus(const std::vector<double>& a, const std::vector<double>& g) {
  double sum = 0, weight = 0;
  for (const double v : a) sum += v;
  for (const double v : g)
    if (v != 0) weight += relu(v) * v * v / (2 * v * v + sum * v * v * v + 1e-6);
  return weight;
}

// The terms of one channel, (h * w).
std::vector<double> terms(pycam_weighting weighting, const std::vector<double>& a, const std::vector<double>& g) {
  double mean = 0;
  for (const double v : g) mean += v;
  mean /= static_cast<double>(g.size());
  const double alphas = weighting == PYCAM_PLUSPLUS ? plusplus(a, g) : 0;
  std::vector<double> out(a.size());
  for (size_t q = 0; q < a.size(); ++q) switch (weighting) {
      case PYCAM_GIVEN: out[q] = g[q] * a[q]; break;
      case PYCAM_MEAN: out[q] = mean * a[q]; break;
      case PYCAM_POSITIVE: out[q] = positive(g[q]) * a[q]; break;
      case PYCAM_RECTIFIED: out[q] = positive(g[q] * a[q]); break;
      case PYCAM_PLUSPLUS: out[q] = alphas * a[q]; break;
    }
  return out;
}

void weigh(const pycam_weighing& job, float* raw, int) {
  const size_t area = job.height * job.width;
  std::vector<double> a(area), g(area), sum(area);
  for (size_t n = 0; n < job.images; ++n)
    for (size_t k = 0; k < job.maps; ++k, raw += area) {
      std::fill(sum.begin(), sum.end(), 0.0);
      for (size_t c = 0; c < job.channels; ++c) {
        for (size_t q = 0; q < area; ++q) {
          a[q] = element(job.activations, n, k, c, q / job.width, q % job.width);
          g[q] = element(job.weights, n, k, c, q / job.width, q % job.width);
        }
        const std::vector<double> each = terms(job.weighting, a, g);
        for (size_t q = 0; q < area; ++q) sum[q] += each[q];
      }
      for (size_t q = 0; q < area; ++q) raw[q] = static_cast<float>(sum[q]);
    }
}

void stretch(std::vector<double>& x) {  // s(x)
  const double low = *std::min_element(x.begin(), x.end());
  const double high = *std::max_element(x.begin(), x.end());
  for (double& v : x) v = (v - low) / (1e-7 + (high - low));
}

struct Sample {  // where output `i` of `o` falls on an axis of `n`: value = (1 - part) x[low] + part x[high]
  size_t low, high;
  double part;
  Sample(size_t i, size_t n, size_t o) {
    const double at = std::max(0.0, (static_cast<double>(i) + 0.5) * static_cast<double>(n) / static_cast<double>(o) - 0.5);
    low = std::min(static_cast<size_t>(at), n - 1);
    high = std::min(low + 1, n - 1);
    part = at - static_cast<double>(low);
  }
};

struct Heatmap {
  std::vector<float> values;
  bool flat = true, usable = true;
};

Heatmap heatmap(const pycam_layer* layers, size_t layer_count, size_t n, size_t k, size_t height, size_t width) {
  Heatmap result;
  std::vector<double> mean(height * width, 0.0);
  for (size_t l = 0; l < layer_count; ++l) {
    const auto& [raw, h, w] = layers[l];
    std::vector<double> map(h * w);
    for (size_t q = 0; q < map.size(); ++q) {
      const double v = element(raw, n, k, 0, q / w, q % w);
      result.usable &= v <= std::numeric_limits<float>::max();
      result.flat &= !(v > 0);
      map[q] = relu(v);
    }
    if (!result.usable) return result;
    stretch(map);
    for (size_t y = 0; y < height; ++y) {
      const Sample v(y, h, height);
      for (size_t x = 0; x < width; ++x) {
        const Sample u(x, w, width);
        const double top = (1 - u.part) * map[v.low * w + u.low] + u.part * map[v.low * w + u.high];
        const double bottom = (1 - u.part) * map[v.high * w + u.low] + u.part * map[v.high * w + u.high];
        mean[y * width + x] += relu((1 - v.part) * top + v.part * bottom) / static_cast<double>(layer_count);
      }
    }
  }
  stretch(mean);
  result.values.assign(mean.begin(), mean.end());
  return result;
}

std::uint8_t level(float m) { return static_cast<std::uint8_t>(std::floor(std::min(1.0, relu(m)) * 255 + 0.5)); }

void paint(const float* heatmap, size_t n, size_t k, size_t maps, const pycam_output& out) {
  const auto alpha = static_cast<std::int64_t>(out.alpha * 65536 + 0.5);
  const auto at = [](size_t index, ptrdiff_t stride) { return static_cast<ptrdiff_t>(index) * stride; };
  for (size_t y = 0; y < out.height; ++y)
    for (size_t x = 0; x < out.width; ++x) {
      const std::uint8_t l = level(heatmap[y * out.width + x]);
      if (out.levels) out.levels[((n * maps + k) * out.height + y) * out.width + x] = l;
      if (!out.pictures) continue;
      const std::uint8_t* from = out.images + at(n, out.image_image) + at(y, out.image_row) + at(x, out.image_pixel);
      std::uint8_t* to =
          out.pictures + at(n, out.picture_image) + at(k, out.picture_map) + at(y, out.picture_row) + at(x, out.picture_pixel);
      for (size_t i = 0; i < 3; ++i) {
        const std::int64_t image = from[i], colour = out.lut[3 * l + i];
        to[i] = static_cast<std::uint8_t>((65536 * image + alpha * (colour - image) + 32768) >> 16);
      }
    }
}

pycam_status finish(const pycam_layer* layers, size_t layer_count, size_t images, size_t maps, const pycam_output& out, int) {
  const size_t area = out.height * out.width;
  for (size_t m = 0; m < images * maps; ++m) {
    const Heatmap map = heatmap(layers, layer_count, m / maps, m % maps, out.height, out.width);
    if (!map.usable) return PYCAM_NOT_FINITE;
    if (out.flat) out.flat[m] = map.flat;
    if (out.heatmaps) std::copy(map.values.begin(), map.values.end(), out.heatmaps + m * area);
    paint(map.values.data(), m / maps, m % maps, maps, out);
  }
  return PYCAM_OK;
}

pycam_status explain(const pycam_weighing& job, float* raw, const pycam_output& out, int threads) {
  const size_t area = job.height * job.width;
  std::vector<float> own(raw ? 0 : job.images * job.maps * area);
  if (!raw) raw = own.data();
  weigh(job, raw, threads);
  const auto step = static_cast<ptrdiff_t>(area), row = static_cast<ptrdiff_t>(job.width);
  const pycam_tensor dense = {raw, PYCAM_F32, static_cast<ptrdiff_t>(job.maps) * step, step, 0, row, 1};
  const pycam_layer layer = {dense, job.height, job.width};
  return finish(&layer, 1, job.images, job.maps, out, threads);
}

pycam_status overlay(const float* heatmaps, size_t images, size_t maps, const pycam_output& out, int) {
  const size_t area = out.height * out.width;
  if (std::any_of(heatmaps, heatmaps + images * maps * area, [](float m) { return std::isnan(m); })) return PYCAM_NOT_FINITE;
  for (size_t m = 0; m < images * maps; ++m) paint(heatmaps + m * area, m / maps, m % maps, maps, out);
  return PYCAM_OK;
}

}  // namespace

const Head reference = {weigh, finish, explain, overlay};

}  // namespace pycam
