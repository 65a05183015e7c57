// Every function against the reference head, and the sums against their formulas, on random shapes, types and layouts.
#include <memory>

#include "../../csrc/head.hpp"
#include "harness.hpp"
#include "jobs.hpp"

namespace {

#if defined(PYCAM_SANITIZED)
constexpr int TRIALS = 80;
#else
constexpr int TRIALS = 400;
#endif
constexpr int THREADS[] = {1, 2, 7};
using Index = Numbers::Index;

// A job with its memory.
struct Job {
  Kind kind, slope;
  pycam_weighing job{};
  std::unique_ptr<Numbers> activations, weights;

  explicit Job(Random& random) : kind(any_kind(random)), slope(any_kind(random)) {
    static constexpr std::size_t channels[] = {1, 2, 3, 4, 5, 7, 8, 16, 33};
    static constexpr pycam_weighting ways[] = {PYCAM_GIVEN, PYCAM_MEAN, PYCAM_POSITIVE, PYCAM_RECTIFIED, PYCAM_PLUSPLUS};
    job.images = random.between(1, 3);
    job.maps = random.between(1, 3);
    job.channels = random.one_of(channels);
    job.height = any_side(random);
    job.width = random.chance(3) ? job.height : any_side(random);
    if (random.chance(20)) {  // more than one tile of positions
      job.channels = random.between(1, 3), job.height = random.between(40, 60), job.width = random.between(50, 70);
    } else if (random.chance(20)) {  // more than one of channels, and of points in a row
      job.channels = random.between(2000, 3000), job.height = random.between(1, 2), job.width = random.between(5, 9);
    }
    job.weighting = random.one_of(ways);
    const Index shape = {job.images, job.maps, job.channels, job.height, job.width};
    const bool dense = job.weighting != PYCAM_GIVEN || random.chance(2);
    const bool one_image = random.chance(8), per_map = random.chance(8);
    activations = std::make_unique<Numbers>(random, shape, std::array<bool, 5>{one_image, !per_map, false, false, false},
                                            [&](const Index&) { return value_of(random, kind); });
    weights = std::make_unique<Numbers>(random, shape, std::array<bool, 5>{false, random.chance(8), false, !dense, !dense},
                                        [&](const Index&) { return value_of(random, slope); });
    job.activations = activations->tensor;
    job.weights = weights->tensor;
  }
  std::size_t area() const { return job.height * job.width; }
  std::size_t count() const { return job.images * job.maps; }
};

std::string told(const Job& j) {
  char text[200];
  std::snprintf(text, sizeof text, "%zux%zu maps, %zu channels, %zux%zu, weighting %d, types %d %d, kinds %d %d", j.job.images,
                j.job.maps, j.job.channels, j.job.height, j.job.width, j.job.weighting, j.job.activations.type,
                j.job.weights.type, static_cast<int>(j.kind), static_cast<int>(j.slope));
  return text;
}

double relu(double x) { return x > 0 ? x : 0; }

struct Sum {
  double value = 0, size = 0;  // the sum, and the sum of |w_c A_c| that its tolerance is relative to
  void add(double term, double before_relu) {
    value += term;
    size += std::fabs(before_relu);
  }
};

// The sums of one map, all positions.
std::vector<Sum> sums_of(const Job& j, std::size_t n, std::size_t k) {
  const std::size_t area = j.area();
  std::vector<Sum> sums(area);
  std::vector<double> a(area), g(area);
  for (std::size_t c = 0; c < j.job.channels; ++c) {
    double mean = 0, mean_size = 0, total = 0, alpha = 0;
    for (std::size_t q = 0; q < area; ++q) {
      const Index i = {n, k, c, q / j.job.width, q % j.job.width};
      a[q] = j.activations->at(i);
      g[q] = j.weights->at(i);
      mean += g[q] / static_cast<double>(area);
      mean_size += std::fabs(g[q]) / static_cast<double>(area);
      total += a[q];
    }
    for (const double v : g)
      if (v != 0) alpha += relu(v) * v * v / (2 * v * v + total * v * v * v + 1e-6);
    for (std::size_t q = 0; q < area; ++q) {
      const double product = g[q] * a[q];
      switch (j.job.weighting) {
        case PYCAM_GIVEN: sums[q].add(product, product); break;
        case PYCAM_MEAN: sums[q].add(mean * a[q], mean_size * a[q]); break;
        case PYCAM_POSITIVE: sums[q].add(relu(g[q]) * a[q], product); break;
        case PYCAM_RECTIFIED: sums[q].add(relu(product), product); break;
        case PYCAM_PLUSPLUS: sums[q].add(alpha * a[q], alpha * a[q]); break;
      }
    }
  }
  return sums;
}

// The raw map of layer `l`: (N, K, h, w) numbers.
std::unique_ptr<Numbers> layer_of(Random& random, std::size_t images, std::size_t maps, pycam_layer& layer) {
  layer.height = any_side(random);
  layer.width = any_side(random);
  const Kind kind = any_kind(random);
  auto raw = std::make_unique<Numbers>(random, Index{images, maps, 1, layer.height, layer.width},
                                       std::array<bool, 5>{false, false, true, false, false},
                                       [&](const Index&) { return value_of(random, kind); });
  layer.raw = raw->tensor;
  return raw;
}

// Everything that can be wanted, with its memory.
struct Output {
  std::vector<float> heatmaps;
  std::vector<std::uint8_t> levels, flat, lut;
  std::size_t images, maps;
  pycam_output out{};
  std::unique_ptr<Pictures> under, pictures;

  Output(Random& random, std::size_t image_count, std::size_t map_count) : images(image_count), maps(map_count) {
    out.height = random.chance(8) ? 1 : random.between(1, 40);
    out.width = random.chance(8) ? 1 : random.between(1, 40);
    const std::size_t size = images * maps * out.height * out.width;
    heatmaps.resize(size, -1.f);
    levels.resize(size, 77);
    flat.resize(images * maps, 77);
    lut.resize(768);
    for (auto& v : lut) v = static_cast<std::uint8_t>(random.below(256));
    out.heatmaps = heatmaps.data();
    out.levels = levels.data();
    out.flat = flat.data();
    out.lut = lut.data();
    out.alpha = random.one_of({0., 1., 0.5, random.uniform()});
    under = std::make_unique<Pictures>(random, images, 1, out.height, out.width);
    for (auto& v : under->bytes) v = static_cast<std::uint8_t>(random.below(256));
    out.images = under->start();
    out.image_image = under->image, out.image_row = under->row, out.image_pixel = under->pixel;
    pictures = std::make_unique<Pictures>(random, images, maps, out.height, out.width);
    out.pictures = pictures->start();
    out.picture_image = pictures->image, out.picture_map = pictures->map;
    out.picture_row = pictures->row, out.picture_pixel = pictures->pixel;
  }
  std::size_t area() const { return out.height * out.width; }
};

void agree(const std::vector<float>& got, const std::vector<float>& want, const std::string& what) {
  for (std::size_t i = 0; i < want.size(); ++i) {
    require(got[i] >= 0 && got[i] <= 1, "%s: heatmap[%zu] is %g", what.c_str(), i, static_cast<double>(got[i]));
    require(std::fabs(got[i] - want[i]) <= 1e-5f, "%s: heatmap[%zu] is %.9g, not %.9g", what.c_str(), i,
            static_cast<double>(got[i]), static_cast<double>(want[i]));
  }
}

// Pictures and levels must be those of the heatmaps, byte for byte, and nothing else may have been touched.
void pictures_agree(const Output& o, const std::vector<float>& heatmaps, const std::string& what) {
  std::vector<std::uint8_t> levels(heatmaps.size()), dense(3 * heatmaps.size());
  pycam_output plain = o.out;
  plain.levels = levels.data();
  plain.pictures = dense.data();
  plain.heatmaps = nullptr;
  plain.flat = nullptr;
  plain.picture_pixel = 3;
  plain.picture_row = static_cast<std::ptrdiff_t>(3 * o.out.width);
  plain.picture_map = static_cast<std::ptrdiff_t>(3 * o.area());
  plain.picture_image = static_cast<std::ptrdiff_t>(3 * o.area() * o.maps);
  require(pycam::reference.overlay(heatmaps.data(), o.images, o.maps, plain, 1) == PYCAM_OK, "reference");
  require(levels == o.levels, "%s: levels differ", what.c_str());
  std::vector<std::uint8_t> expected(o.pictures->bytes.size(), Pictures::CANARY);
  for (std::size_t i = 0; i < heatmaps.size(); ++i) {
    const std::size_t m = i / o.area(), q = i % o.area();
    const std::ptrdiff_t place = o.pictures->place(m / o.maps, m % o.maps, q / o.out.width, q % o.out.width);
    std::memcpy(expected.data() + place, &dense[3 * i], 3);
  }
  require(expected == o.pictures->bytes, "%s: pictures differ", what.c_str());
}

}  // namespace

TEST(sums_are_those_of_the_formulas) {
  for (int trial = 0; trial < TRIALS; ++trial) {
    Random random(static_cast<std::uint64_t>(trial));
    const Job j(random);
    std::vector<float> raw(j.count() * j.area()), same(raw.size()), reference(raw.size());
    require(pycam_weigh(&j.job, raw.data(), random.one_of(THREADS)) == PYCAM_OK, "%s", pycam_last_error());
    require(pycam_weigh(&j.job, same.data(), random.one_of(THREADS)) == PYCAM_OK, "%s", pycam_last_error());
    require(std::memcmp(raw.data(), same.data(), raw.size() * sizeof(float)) == 0, "%s: not the same bits", told(j).c_str());
    pycam::reference.weigh(j.job, reference.data(), 1);
    for (std::size_t m = 0; m < j.count(); ++m) {
      const std::vector<Sum> sums = sums_of(j, m / j.job.maps, m % j.job.maps);
      for (std::size_t q = 0; q < j.area(); ++q) {
        const float got = raw[m * j.area() + q], slow = reference[m * j.area() + q];
        const double want = sums[q].value, bound = 1e-5 * sums[q].size + 1e-37;  // the latter: not normal floats
        require(std::fabs(got - want) <= bound && std::fabs(slow - want) <= bound,
                "trial %d, %s: map %zu, position %zu is %.9g, of the reference %.9g, should be %.9g within %.2g", trial,
                told(j).c_str(), m, q, static_cast<double>(got), static_cast<double>(slow), want, bound);
      }
    }
  }
}

TEST(heatmaps_are_those_of_the_reference) {
  for (int trial = 0; trial < TRIALS; ++trial) {
    Random random(static_cast<std::uint64_t>(trial) + 1000);
    const std::size_t images = random.between(1, 3), maps = random.between(1, 3), count = random.between(1, 3);
    std::vector<pycam_layer> layers(count);
    std::vector<std::unique_ptr<Numbers>> memory;
    for (auto& layer : layers) memory.push_back(layer_of(random, images, maps, layer));
    Output o(random, images, maps);
    std::vector<float> want(o.heatmaps.size());
    std::vector<std::uint8_t> flat(o.flat.size());
    pycam_output plain{};
    plain.height = o.out.height, plain.width = o.out.width;
    plain.heatmaps = want.data(), plain.flat = flat.data();
    require(pycam::reference.finish(layers.data(), count, images, maps, plain, 1) == PYCAM_OK, "reference");
    const int threads = random.one_of(THREADS);
    require(pycam_finish(layers.data(), count, images, maps, &o.out, threads) == PYCAM_OK, "%s", pycam_last_error());
    char what[100];
    std::snprintf(what, sizeof what, "trial %d, %zu layers, %zux%zu to %zux%zu", trial, count, layers[0].height,
                  layers[0].width, o.out.height, o.out.width);
    agree(o.heatmaps, want, what);
    require(flat == o.flat, "%s: flat differs", what);
    pictures_agree(o, o.heatmaps, what);
  }
}

// Whatever else is wanted: the same bits of each.
TEST(outputs_do_not_depend_on_what_else_is_wanted) {
  for (int trial = 0; trial < TRIALS / 2; ++trial) {
    Random random(static_cast<std::uint64_t>(trial) + 2000);
    const std::size_t images = random.between(1, 2), maps = random.between(1, 3);
    pycam_layer layer;
    const auto memory = layer_of(random, images, maps, layer);
    Random twin = random;
    Output all(random, images, maps), some(twin, images, maps);
    if (twin.chance(2)) some.out.heatmaps = nullptr;
    if (twin.chance(2)) some.out.levels = nullptr;
    if (twin.chance(2)) some.out.flat = nullptr;
    if (twin.chance(2) && (some.out.heatmaps || some.out.levels || some.out.flat)) some.out.pictures = nullptr;
    require(pycam_finish(&layer, 1, images, maps, &all.out, 1) == PYCAM_OK, "%s", pycam_last_error());
    require(pycam_finish(&layer, 1, images, maps, &some.out, 2) == PYCAM_OK, "%s", pycam_last_error());
    const std::size_t bytes = all.heatmaps.size() * sizeof(float);
    require(!some.out.heatmaps || std::memcmp(all.heatmaps.data(), some.heatmaps.data(), bytes) == 0, "heatmaps");
    require(!some.out.levels || all.levels == some.levels, "levels");
    require(!some.out.flat || all.flat == some.flat, "flat");
    require(!some.out.pictures || all.pictures->bytes == some.pictures->bytes, "pictures");
  }
}

TEST(explaining_is_weighing_and_finishing) {
  for (int trial = 0; trial < TRIALS; ++trial) {
    Random random(static_cast<std::uint64_t>(trial) + 3000);
    const Job j(random);
    Output o(random, j.job.images, j.job.maps);
    std::vector<float> raw(j.count() * j.area());
    const bool kept = random.chance(2);
    require(pycam_explain(&j.job, kept ? raw.data() : nullptr, &o.out, random.one_of(THREADS)) == PYCAM_OK, "%s: %s",
            told(j).c_str(), pycam_last_error());
    if (!kept) require(pycam_weigh(&j.job, raw.data(), 1) == PYCAM_OK, "%s", pycam_last_error());
    const auto map = static_cast<std::ptrdiff_t>(j.area()), row = static_cast<std::ptrdiff_t>(j.job.width);
    const pycam_layer layer = {
        {raw.data(), PYCAM_F32, static_cast<std::ptrdiff_t>(j.job.maps) * map, map, 0, row, 1}, j.job.height, j.job.width};
    std::vector<float> want(o.heatmaps.size());
    std::vector<std::uint8_t> flat(o.flat.size());
    pycam_output plain{};
    plain.height = o.out.height, plain.width = o.out.width;
    plain.heatmaps = want.data(), plain.flat = flat.data();
    require(pycam::reference.finish(&layer, 1, j.job.images, j.job.maps, plain, 1) == PYCAM_OK, "reference");
    agree(o.heatmaps, want, told(j));
    require(flat == o.flat, "%s: flat differs", told(j).c_str());
    pictures_agree(o, o.heatmaps, told(j));
  }
}

TEST(overlays_are_those_of_the_reference) {
  for (int trial = 0; trial < TRIALS; ++trial) {
    Random random(static_cast<std::uint64_t>(trial) + 4000);
    const std::size_t images = random.between(1, 3), maps = random.between(1, 3);
    Output o(random, images, maps);
    std::vector<float> heatmaps(o.heatmaps.size());
    for (auto& v : heatmaps) {  // also halves of levels, and beyond [0, 1]
      const double half = (static_cast<double>(random.below(256)) + 0.5) / 255;
      v = static_cast<float>(random.one_of({random.uniform(), half, random.noise(), HUGE_VAL, -HUGE_VAL}));
    }
    o.out.heatmaps = nullptr;
    o.out.flat = nullptr;
    require(pycam_overlay(heatmaps.data(), images, maps, &o.out, random.one_of(THREADS)) == PYCAM_OK, "%s", pycam_last_error());
    pictures_agree(o, heatmaps, "overlay");
  }
}

TEST(pictures_may_be_painted_in_place) {
  for (int trial = 0; trial < TRIALS / 4; ++trial) {
    Random random(static_cast<std::uint64_t>(trial) + 5000);
    const std::size_t images = random.between(1, 3);
    pycam_layer layer;
    const auto memory = layer_of(random, images, 1, layer);
    Output apart(random, images, 1);
    require(pycam_finish(&layer, 1, images, 1, &apart.out, 1) == PYCAM_OK, "%s", pycam_last_error());
    pycam_output inside = apart.out;
    Pictures painted = *apart.under;
    inside.images = inside.pictures = painted.start();
    inside.picture_image = inside.image_image, inside.picture_row = inside.image_row, inside.picture_pixel = inside.image_pixel;
    require(pycam_finish(&layer, 1, images, 1, &inside, 2) == PYCAM_OK, "%s", pycam_last_error());
    for (std::size_t i = 0; i < images * apart.area(); ++i) {
      const std::size_t n = i / apart.area(), y = i % apart.area() / apart.out.width, x = i % apart.out.width;
      std::memcpy(apart.under->bytes.data() + apart.under->place(n, 0, y, x), apart.pictures->at(n, 0, y, x), 3);
    }
    require(painted.bytes == apart.under->bytes, "in place differs, trial %d", trial);
  }
}

TEST(nothing_is_done_for_no_images_or_no_maps) {
  pycam_weighing job{};
  job.channels = job.height = job.width = 3;
  pycam_output out{};
  out.height = out.width = 5;
  pycam_layer layer{};
  layer.height = layer.width = 2;
  for (const std::size_t images : {0u, 2u}) {
    job.images = images;
    job.maps = images ? 0 : 2;
    require(pycam_weigh(&job, nullptr, 0) == PYCAM_OK, "%s", pycam_last_error());
    require(pycam_explain(&job, nullptr, &out, 0) == PYCAM_OK, "%s", pycam_last_error());
    require(pycam_finish(&layer, 1, images, job.maps, &out, 0) == PYCAM_OK, "%s", pycam_last_error());
    require(pycam_overlay(nullptr, images, job.maps, &out, 0) == PYCAM_OK, "%s", pycam_last_error());
  }
}

int main(int count, char** names) { return run_tests(count, names); }
