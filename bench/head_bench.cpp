// libpycam's head against the memory: time and bytes per second beside a plain copy on the same machine, in one run.
//
//   cmake -B build -DPYCAM_BENCH=ON && cmake --build build && build/head_bench [repetitions]
//
// Candidates take turns (A B C, A B C, …), figures are medians.  Inputs are more than the caches hold (several sets of
// arrays in turn) unless a line says "in cache".  Bytes are those that any head must move: activations and gradients or
// weights in, results out, the image of an overlay in; a copy counts what it reads and what it writes.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "pycam.h"

namespace {

using Clock = std::chrono::steady_clock;

struct Candidate {
  std::string title;
  double bytes;
  std::function<void(std::size_t)> run;  // of the set with this number
  bool in_cache = false;                 // run once before it is timed
  std::vector<double> seconds{};
};

constexpr std::size_t BEYOND_CACHE = std::size_t{128} << 20;

void require(pycam_status status) {
  if (status == PYCAM_OK) return;
  std::fprintf(stderr, "pycam: %s\n", pycam_last_error());
  std::exit(1);
}

std::uint16_t bf16(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return static_cast<std::uint16_t>(bits >> 16);
}

std::vector<float> noise(std::size_t count, std::mt19937& random) {
  std::vector<float> values(count);
  for (float& v : values) v = static_cast<float>(random() % 2048) / 512.f - 1.5f;
  return values;
}

struct Case {
  std::size_t images, channels, side, out;
  pycam_type type = PYCAM_F32;
  bool points = false, overlay = false, in_cache = false;
  int threads = 1;

  std::string title() const {
    std::string text = "(" + std::to_string(images) + "," + std::to_string(channels) + "," + std::to_string(side) + "," +
                       std::to_string(side) + ") -> " + std::to_string(out);
    if (type == PYCAM_BF16) text += " bf16";
    if (points) text += " NHWC";
    if (overlay) text += " overlay";
    if (in_cache) text += " in cache";
    if (threads > 1) text += ", " + std::to_string(threads) + " threads";
    return text;
  }
};

Candidate candidate(const Case& c, std::mt19937& random) {
  const std::size_t area = c.side * c.side, count = c.images * c.channels * area, pixels = c.images * c.out * c.out;
  const std::size_t each = c.type == PYCAM_F32 ? 4 : 2, sets = c.in_cache ? 1 : 1 + BEYOND_CACHE / (2 * count * each);
  struct Data {
    std::vector<std::vector<float>> f32;
    std::vector<std::vector<std::uint16_t>> b16;
    std::vector<float> maps;
    std::vector<std::uint8_t> images, pictures;
  };
  auto data = std::make_shared<Data>();
  for (std::size_t i = 0; i < 2 * sets; ++i) {
    std::vector<float> values = noise(count, random);
    if (c.type == PYCAM_F32) {
      data->f32.push_back(std::move(values));
    } else {
      data->b16.emplace_back(count);
      std::transform(values.begin(), values.end(), data->b16.back().begin(), bf16);
    }
  }
  data->maps.resize(pixels);
  if (c.overlay) {
    data->images.assign(3 * pixels, 100);
    data->pictures.resize(3 * pixels);
  }
  const auto run = [c, data, sets, area](std::size_t turn) {
    const auto tensor = [&](std::size_t which) {
      const std::size_t i = 2 * (turn % sets) + which;
      const void* at = c.type == PYCAM_F32 ? static_cast<const void*>(data->f32[i].data()) : data->b16[i].data();
      const auto a = static_cast<std::ptrdiff_t>(area), channels = static_cast<std::ptrdiff_t>(c.channels),
                 side = static_cast<std::ptrdiff_t>(c.side);
      return c.points ? pycam_tensor{at, c.type, a * channels, 0, 1, side * channels, channels}
                      : pycam_tensor{at, c.type, a * channels, 0, a, side, 1};
    };
    const pycam_weighing job = {c.images, 1, c.channels, c.side, c.side, tensor(0), tensor(1), PYCAM_MEAN};
    pycam_output output = {};
    output.height = output.width = c.out;
    if (c.overlay) {
      const auto row = static_cast<std::ptrdiff_t>(3 * c.out);
      output.images = data->images.data();
      output.pictures = data->pictures.data();
      output.image_image = output.picture_image = output.picture_map = row * static_cast<std::ptrdiff_t>(c.out);
      output.image_row = output.picture_row = row;
      output.image_pixel = output.picture_pixel = 3;
      output.lut = pycam_colormap("jet");
      output.alpha = 0.5;
    } else {
      output.heatmaps = data->maps.data();
    }
    require(pycam_explain(&job, nullptr, &output, c.threads));
  };
  const double bytes = 2.0 * static_cast<double>(count * each) + static_cast<double>(pixels) * (c.overlay ? 6 : 4);
  return {c.title(), bytes, run, c.in_cache};
}

Candidate copy(std::size_t bytes) {
  auto from = std::make_shared<std::vector<char>>(BEYOND_CACHE + bytes, 'a'), to = std::make_shared<std::vector<char>>(BEYOND_CACHE + bytes);
  const std::size_t sets = 1 + BEYOND_CACHE / bytes;
  return {"copy of " + std::to_string(bytes >> 20) + " MiB", 2.0 * static_cast<double>(bytes), [=](std::size_t turn) {
            std::memcpy(to->data() + turn % sets * bytes, from->data() + turn % sets * bytes, bytes);
          }};
}

}  // namespace

int main(int count, char** arguments) {
  const int repetitions = count > 1 ? std::atoi(arguments[1]) : 31;
  if (repetitions < 1) {
    std::fprintf(stderr, "head_bench [repetitions, 1 or more]\n");
    return 2;
  }
  std::mt19937 random(0);
  std::vector<Candidate> all;
  all.push_back(copy(std::size_t{16} << 20));
  const std::vector<Case> cases = {
      {1, 2048, 7, 224},
      {1, 2048, 7, 224, PYCAM_F32, false, false, true},
      {1, 512, 14, 224},
      {32, 2048, 7, 224},
      {32, 2048, 7, 224, PYCAM_BF16},
      {32, 2048, 7, 224, PYCAM_F32, true},
      {32, 2048, 7, 224, PYCAM_F32, false, true},
      {32, 2048, 7, 224, PYCAM_F32, false, false, false, 2},
      {32, 2048, 7, 224, PYCAM_F32, false, true, false, 2},
  };
  for (const Case& c : cases) all.push_back(candidate(c, random));
  for (int turn = 0; turn <= repetitions; ++turn)
    for (Candidate& each : all) {
      if (each.in_cache) each.run(static_cast<std::size_t>(turn));
      const auto start = Clock::now();
      each.run(static_cast<std::size_t>(turn));
      const std::chrono::duration<double> took = Clock::now() - start;
      if (turn > 0) each.seconds.push_back(took.count());  // the first touches the memory
    }
  std::printf("pycam %s, medians of %d\n%-52s%12s%10s%14s\n", pycam_version(), repetitions, "", "us", "GB/s", "of the copy");
  double bandwidth = 0;
  for (Candidate& each : all) {
    std::nth_element(each.seconds.begin(), each.seconds.begin() + repetitions / 2, each.seconds.end());
    const double median = each.seconds[static_cast<std::size_t>(repetitions) / 2], rate = each.bytes / median / 1e9;
    if (bandwidth == 0) bandwidth = rate;
    std::printf("%-52s%12.1f%10.2f%13.0f%%\n", each.title.c_str(), median * 1e6, rate, 100 * rate / bandwidth);
  }
  return 0;
}
