// The reference head: the formulas of head.hpp, one after the other, in double.
#include <algorithm>
#include <cmath>
#include <vector>

#include "head.hpp"

namespace pycam {
namespace {

double relu(double x) { return x > 0 ? x : 0; }

void mean(const float* gradients, size_t rows, size_t area, float* weights) {
  for (size_t r = 0; r < rows; ++r) {
    double sum = 0;
    for (size_t q = 0; q < area; ++q) sum += gradients[r * area + q];
    weights[r] = static_cast<float>(sum / static_cast<double>(area));
  }
}

void weigh(const float* activations, const float* weights, const Weighing& job, float* raw) {
  const auto [images, maps, channels, area, kind, rectify] = job;
  for (size_t n = 0; n < images; ++n)
    for (size_t k = 0; k < maps; ++k)
      for (size_t q = 0; q < area; ++q) {
        double sum = 0;
        for (size_t c = 0; c < channels; ++c) {
          const size_t row = (n * maps + k) * channels + c;
          const double w = kind == Weights::per_channel ? weights[row] : weights[row * area + q];
          const double product = w * activations[(n * channels + c) * area + q];
          sum += rectify ? relu(product) : product;
        }
        raw[(n * maps + k) * area + q] = static_cast<float>(sum);
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

void finish(const Finishing& job, float* heatmaps, bool* flat) {
  const size_t area = job.height * job.width;
  for (size_t m = 0; m < job.maps; ++m) {
    std::vector<double> mean(area, 0.0);
    flat[m] = true;
    for (size_t l = 0; l < job.layer_count; ++l) {
      const auto [raw, height, width] = job.layers[l];
      std::vector<double> map(height * width);
      for (size_t q = 0; q < map.size(); ++q) {
        map[q] = relu(raw[m * map.size() + q]);
        if (map[q] > 0) flat[m] = false;
      }
      stretch(map);
      for (size_t y = 0; y < job.height; ++y) {
        const Sample v(y, height, job.height);
        for (size_t x = 0; x < job.width; ++x) {
          const Sample u(x, width, job.width);
          const double top = (1 - u.part) * map[v.low * width + u.low] + u.part * map[v.low * width + u.high];
          const double bottom = (1 - u.part) * map[v.high * width + u.low] + u.part * map[v.high * width + u.high];
          mean[y * job.width + x] += relu((1 - v.part) * top + v.part * bottom) / static_cast<double>(job.layer_count);
        }
      }
    }
    stretch(mean);
    for (size_t q = 0; q < area; ++q) heatmaps[m * area + q] = static_cast<float>(mean[q]);
  }
}

void overlay(const std::uint8_t* images, const float* heatmaps, const Painting& job, std::uint8_t* pictures) {
  for (size_t n = 0; n < job.images; ++n)
    for (size_t k = 0; k < job.maps; ++k)
      for (size_t q = 0; q < job.area; ++q) {
        const size_t pixel = (n * job.maps + k) * job.area + q;
        const double m = std::min(1.0, relu(heatmaps[pixel]));
        const auto index = static_cast<size_t>(std::floor(m * 255 + 0.5));
        for (size_t i = 0; i < 3; ++i) {
          const std::int64_t image = images[(n * job.area + q) * 3 + i], colour = job.lut[index * 3 + i];
          pictures[pixel * 3 + i] = static_cast<std::uint8_t>((65536 * image + job.alpha * (colour - image) + 32768) >> 16);
        }
      }
}

}  // namespace

const Head reference = {mean, weigh, finish, overlay};

}  // namespace pycam
