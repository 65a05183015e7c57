// Every argument that is not what pycam.h asks for, and what is said of it.
#include <cmath>
#include <functional>
#include <limits>

#include "harness.hpp"
#include "pycam.h"

namespace {

constexpr float NOT_A_NUMBER = std::numeric_limits<float>::quiet_NaN(), INFINITE = std::numeric_limits<float>::infinity();
constexpr auto FAR_AWAY = std::numeric_limits<std::ptrdiff_t>::max();

// Valid arguments of all functions: 2 images, 2 maps, 3 channels of 2 x 2, to 4 x 4.
struct Arguments {
  float activations[24], weights[12], raw[16], given[64];
  float heatmaps[64];
  std::uint8_t levels[64], flat[4], images[96], pictures[192], lut[768];
  pycam_weighing job{};
  pycam_layer layers[2]{};
  std::size_t layer_count = 2, image_count = 2, map_count = 2;
  pycam_output out{};
  int threads = 1;
  const pycam_weighing* job_given = &job;
  const pycam_layer* layers_given = layers;
  const pycam_output* out_given = &out;
  float* raw_given = raw;
  const float* heatmaps_given = given;

  Arguments() {
    for (float& v : activations) v = 1;
    for (float& v : weights) v = 1;
    for (float& v : raw) v = 1;
    for (float& v : given) v = 0.5f;
    for (std::uint8_t& v : lut) v = 9;
    for (std::uint8_t& v : images) v = 9;
    job.images = job.maps = job.height = job.width = 2;
    job.channels = 3;
    job.activations = {activations, PYCAM_F32, 12, 0, 4, 2, 1};
    job.weights = {weights, PYCAM_F32, 6, 3, 1, 0, 0};
    for (pycam_layer& layer : layers) layer = {{raw, PYCAM_F32, 8, 4, 0, 2, 1}, 2, 2};
    out.height = out.width = 4;
    out.heatmaps = heatmaps;
    out.levels = levels;
    out.flat = flat;
    out.pictures = pictures;
    out.picture_image = 96, out.picture_map = 48, out.picture_row = 12, out.picture_pixel = 3;
    out.images = images;
    out.image_image = 48, out.image_row = 12, out.image_pixel = 3;
    out.lut = lut;
    out.alpha = 0.5;
  }
  Arguments(const Arguments&) = delete;
  Arguments& operator=(const Arguments&) = delete;

  pycam_status weigh() const { return pycam_weigh(job_given, raw_given, threads); }
  pycam_status finish() const { return pycam_finish(layers_given, layer_count, image_count, map_count, out_given, threads); }
  pycam_status explain() const { return pycam_explain(job_given, raw_given, out_given, threads); }
  pycam_status overlay() const { return pycam_overlay(heatmaps_given, image_count, map_count, out_given, threads); }
};

using Spoil = std::function<void(Arguments&)>;
using Function = pycam_status (Arguments::*)() const;
struct Case {
  Spoil spoil;
  const char* message;
};

void each_refused(const std::vector<Case>& cases, const std::vector<Function>& functions, bool overlaying = false,
                  pycam_status expected = PYCAM_INVALID) {
  for (const Case& one : cases)
    for (const Function& function : functions) {
      Arguments arguments;
      if (overlaying) arguments.out.heatmaps = nullptr, arguments.out.flat = nullptr;
      require((arguments.*function)() == PYCAM_OK, "before \"%s\": %s", one.message, pycam_last_error());
      one.spoil(arguments);
      const pycam_status status = (arguments.*function)();
      require(status == expected, "status %d, not %d, with \"%s\"", status, expected, one.message);
      require(std::strcmp(pycam_last_error(), one.message) == 0, "said \"%s\", not \"%s\"", pycam_last_error(), one.message);
    }
}

template <class Enum>
void set_number(Enum& value, int number) {  // an enumerator that there is not
  static_assert(sizeof value == sizeof number);
  std::memcpy(&value, &number, sizeof number);
}

template <class T>
const T* askew(const T* pointer) {
  return reinterpret_cast<const T*>(reinterpret_cast<const char*>(pointer) + 1);
}
bool starts(const char* text, const char* beginning) { return std::strncmp(text, beginning, std::strlen(beginning)) == 0; }

}  // namespace

TEST(the_job) {
  each_refused(
      {
          {[](Arguments& a) { a.job_given = nullptr; }, "job: expected a pointer, found null"},
          {[](Arguments& a) { set_number(a.job.weighting, 5); },
           "job.weighting: expected PYCAM_GIVEN (0) to PYCAM_PLUSPLUS (4), found 5"},
          {[](Arguments& a) { set_number(a.job.weighting, -1); },
           "job.weighting: expected PYCAM_GIVEN (0) to PYCAM_PLUSPLUS (4), found -1"},
          {[](Arguments& a) { a.job.channels = 0; }, "job.channels: expected 1 to 2147483648, found 0"},
          {[](Arguments& a) { a.job.height = 0; }, "job.height: expected 1 to 16777216, found 0"},
          {[](Arguments& a) { a.job.width = 16777217; }, "job.width: expected 1 to 16777216, found 16777217"},
          {[](Arguments& a) { a.job.maps = SIZE_MAX / 4; },
           "job: 2 images x 4611686018427387903 maps x 2 x 2 are more than memory can hold"},
          {[](Arguments& a) { set_number(a.job.activations.type, 7); },
           "job.activations.type: expected PYCAM_F32 (0), PYCAM_F16 (1) or PYCAM_BF16 (2), found 7"},
          {[](Arguments& a) { set_number(a.job.weights.type, -2); },
           "job.weights.type: expected PYCAM_F32 (0), PYCAM_F16 (1) or PYCAM_BF16 (2), found -2"},
          {[](Arguments& a) { a.job.activations.data = nullptr; }, "job.activations.data: expected a pointer, found null"},
          {[](Arguments& a) { a.job.weights.data = nullptr; }, "job.weights.data: expected a pointer, found null"},
          {[](Arguments& a) { a.job.activations.channel = FAR_AWAY; },
           "job.activations.channel: stride 9223372036854775807 x 3 lies outside of memory"},
          {[](Arguments& a) { a.job.weights.image = -FAR_AWAY - 1; },
           "job.weights.image: stride -9223372036854775808 x 2 lies outside of memory"},
          {[](Arguments& a) { a.threads = -1; }, "threads: expected 0 (one per core) to 1024, found -1"},
          {[](Arguments& a) { a.threads = 1025; }, "threads: expected 0 (one per core) to 1024, found 1025"},
      },
      {&Arguments::weigh, &Arguments::explain});
  each_refused({{[](Arguments& a) { a.raw_given = nullptr; }, "raw: expected a pointer, found null"}}, {&Arguments::weigh});
}

TEST(the_layers) {
  each_refused(
      {
          {[](Arguments& a) { a.layers_given = nullptr; }, "layers: expected a pointer, found null"},
          {[](Arguments& a) { a.layer_count = 0; }, "layer_count: expected at least 1, found 0"},
          {[](Arguments& a) { a.layers[1].height = 0; }, "layers[1].height: expected 1 to 16777216, found 0"},
          {[](Arguments& a) { a.layers[0].width = SIZE_MAX; },
           "layers[0].width: expected 1 to 16777216, found 18446744073709551615"},
          {[](Arguments& a) { set_number(a.layers[1].raw.type, 3); },
           "layers[1].raw.type: expected PYCAM_F32 (0), PYCAM_F16 (1) or PYCAM_BF16 (2), found 3"},
          {[](Arguments& a) { a.layers[1].raw.data = nullptr; }, "layers[1].raw.data: expected a pointer, found null"},
          {[](Arguments& a) { a.layers[0].raw.row = FAR_AWAY / 2; },
           "layers[0].raw.row: stride 4611686018427387903 x 2 lies outside of memory"},
          {[](Arguments& a) { a.threads = -7; }, "threads: expected 0 (one per core) to 1024, found -7"},
      },
      {&Arguments::finish});
}

TEST(the_output) {
  const std::vector<Case> of_all = {
      {[](Arguments& a) { a.out_given = nullptr; }, "output: expected a pointer, found null"},
      {[](Arguments& a) { a.out.height = 0; }, "output.height: expected 1 to 16777216, found 0"},
      {[](Arguments& a) { a.out.width = 1u << 25; }, "output.width: expected 1 to 16777216, found 33554432"},
      {[](Arguments& a) { a.out.alpha = 1.5; }, "output.alpha: expected 0 to 1, found 1.5"},
      {[](Arguments& a) { a.out.alpha = -0.25; }, "output.alpha: expected 0 to 1, found -0.25"},
      {[](Arguments& a) { a.out.alpha = std::fabs(std::nan("")); }, "output.alpha: expected 0 to 1, found nan"},
      {[](Arguments& a) { a.out.images = nullptr; }, "output.images: expected a pointer, found null"},
      {[](Arguments& a) { a.out.lut = nullptr; }, "output.lut: expected a pointer, found null"},
      {[](Arguments& a) { a.out.image_row = -FAR_AWAY; },
       "output.image_row: stride -9223372036854775807 x 4 lies outside of memory"},
      {[](Arguments& a) { a.out.picture_map = FAR_AWAY; },
       "output.picture_map: stride 9223372036854775807 x 2 lies outside of memory"},
      {[](Arguments& a) { a.out.picture_pixel = 2; },
       "output.picture_pixel: pixels of pictures overlap: expected at least 3 (or at most -3), found 2"},
      {[](Arguments& a) { a.out.picture_map = 0; },
       "output.picture_map: pixels of pictures overlap: expected at least 3 (or at most -3), found 0"},
      {[](Arguments& a) { a.out.picture_row = -11; },
       "output.picture_row: pixels of pictures overlap: expected at least 12 (or at most -12), found -11"},
      {[](Arguments& a) { a.out.picture_image = 95; },
       "output.picture_image: pixels of pictures overlap: expected at least 96 (or at most -96), found 95"},
      {[](Arguments& a) { a.out.images = a.pictures; },
       "output.pictures: may be output.images only where maps is 1, found 2 maps"},
  };
  each_refused(of_all, {&Arguments::finish, &Arguments::explain});
  each_refused(of_all, {&Arguments::overlay}, true);

  const Spoil nothing = [](Arguments& a) {
    a.out.heatmaps = nullptr, a.out.levels = nullptr, a.out.flat = nullptr, a.out.pictures = nullptr, a.raw_given = nullptr;
  };
  each_refused({{nothing, "output: expected something to be wanted, found heatmaps, levels, flat and pictures all null"}},
               {&Arguments::finish, &Arguments::explain});
  const Spoil one_map = [](Arguments& a) {
    a.map_count = a.job.maps = 1;
    a.out.images = a.pictures;
    a.out.picture_image = 96;
  };
  const char* said = "output.pictures: is output.images, but their strides differ: (96, 12, 3) and (48, 12, 3)";
  each_refused({{one_map, said}}, {&Arguments::finish, &Arguments::explain});
}

TEST(an_overlay) {
  each_refused(
      {
          {[](Arguments& a) { a.out.heatmaps = a.heatmaps; },
           "output.heatmaps: expected null, as heatmaps are what is given, found a pointer"},
          {[](Arguments& a) { a.out.flat = a.flat; }, "output.flat: expected null, as only raw maps show it, found a pointer"},
          {[](Arguments& a) { a.out.levels = nullptr, a.out.pictures = nullptr; },
           "output: expected something to be wanted, found levels and pictures both null"},
          {[](Arguments& a) { a.heatmaps_given = nullptr; }, "heatmaps: expected a pointer, found null"},
          {[](Arguments& a) { a.threads = 4000; }, "threads: expected 0 (one per core) to 1024, found 4000"},
      },
      {&Arguments::overlay}, true);
}

// An address is in the message: only its beginning is the same every time.
TEST(pointers_that_are_not_aligned) {
  struct Askew {
    Function function;
    Spoil spoil;
    const char* message;
  };
  const Askew cases[] = {
      {&Arguments::weigh, [](Arguments& a) { a.job.activations.data = askew(a.activations); },
       "job.activations.data: expected a pointer that is a multiple of 4, found 0x"},
      {&Arguments::explain,
       [](Arguments& a) {
         a.job.weights.data = askew(a.weights);
         a.job.weights.type = PYCAM_BF16;
       },
       "job.weights.data: expected a pointer that is a multiple of 2, found 0x"},
      {&Arguments::weigh, [](Arguments& a) { a.raw_given = const_cast<float*>(askew(a.raw)); },
       "raw: expected a pointer that is a multiple of 4, found 0x"},
      {&Arguments::finish, [](Arguments& a) { a.out.heatmaps = const_cast<float*>(askew(a.heatmaps)); },
       "output.heatmaps: expected a pointer that is a multiple of 4, found 0x"},
      {&Arguments::overlay, [](Arguments& a) { a.heatmaps_given = askew(a.given); },
       "heatmaps: expected a pointer that is a multiple of 4, found 0x"},
  };
  for (const Askew& one : cases) {
    Arguments a;
    if (one.function == &Arguments::overlay) a.out.heatmaps = nullptr, a.out.flat = nullptr;
    one.spoil(a);
    require((a.*one.function)() == PYCAM_INVALID, "accepted: %s", one.message);
    require(starts(pycam_last_error(), one.message), "said \"%s\", not \"%s\"", pycam_last_error(), one.message);
  }
}

TEST(numbers_that_are_not_finite) {
  each_refused({{[](Arguments& a) { a.raw[7] = NOT_A_NUMBER; },
                 "layers[0].raw: expected finite numbers, found NaN at image 0, map 1, channel 0, row 1, column 1"},
                {[](Arguments& a) {
                   a.layers[0].raw.data = a.given;
                   a.raw[0] = -INFINITE;  // cut off by the relu: no error by itself
                   a.raw[12] = INFINITE;
                 },
                 "layers[1].raw: expected finite numbers, found +infinity at image 1, map 1, channel 0, row 0, column 0"}},
               {&Arguments::finish}, false, PYCAM_NOT_FINITE);
  each_refused({{[](Arguments& a) { a.activations[22] = NOT_A_NUMBER; },
                 "job.activations: expected finite numbers, found NaN at image 1, map 0, channel 2, row 1, column 0"},
                {[](Arguments& a) { a.weights[11] = INFINITE; },
                 "job.weights: expected finite numbers, found +infinity at image 1, map 1, channel 2, row 0, column 0"},
                {[](Arguments& a) {
                   for (float& v : a.activations) v = 3e38f;
                 },
                 "job: the weighted sum of finite numbers is too large for a float"}},
               {&Arguments::explain}, false, PYCAM_NOT_FINITE);
  each_refused({{[](Arguments& a) { a.given[63] = NOT_A_NUMBER; },
                 "heatmaps: expected finite numbers, found NaN at image 1, map 1, channel 0, row 3, column 3"}},
               {&Arguments::overlay}, true, PYCAM_NOT_FINITE);
}

TEST(half_numbers_that_are_not_finite) {
  Arguments a;
  std::uint16_t halves[24] = {};
  halves[5] = 0x7c00;  // +infinity in binary16, an ordinary number in bfloat16
  a.job.activations.data = halves;
  a.job.activations.type = PYCAM_BF16;
  require(a.explain() == PYCAM_OK, "bfloat16: %s", pycam_last_error());
  a.job.activations.type = PYCAM_F16;
  require(a.explain() == PYCAM_NOT_FINITE, "binary16");
  const char* said = "job.activations: expected finite numbers, found +infinity at image 0, map 0, channel 1, row 0, column 1";
  require(std::strcmp(pycam_last_error(), said) == 0, "said \"%s\"", pycam_last_error());
}

TEST(weighing_lets_them_pass) {
  Arguments a;
  a.activations[0] = NOT_A_NUMBER;
  require(a.weigh() == PYCAM_OK && std::isnan(a.raw[0]) && a.raw[1] == 3, "%s", pycam_last_error());
}

TEST(no_weighting_hides_nan) {
  for (const pycam_weighting way : {PYCAM_GIVEN, PYCAM_MEAN, PYCAM_POSITIVE, PYCAM_RECTIFIED, PYCAM_PLUSPLUS})
    for (const bool in_weights : {false, true}) {
      const float numbers[2] = {NOT_A_NUMBER, 1}, ones[2] = {1, 1};
      const pycam_tensor with = {numbers, PYCAM_F32, 0, 0, 1, 0, 0}, without = {ones, PYCAM_F32, 0, 0, 1, 0, 0};
      const pycam_weighing job = {1, 1, 2, 1, 1, in_weights ? without : with, in_weights ? with : without, way};
      float raw = 0;
      require(pycam_weigh(&job, &raw, 1) == PYCAM_OK && std::isnan(raw), "weighting %d, %s", way, in_weights ? "g" : "A");
    }
}

TEST(too_many_channels) {
  Arguments a;
  for (const std::size_t channels : {(std::size_t{1} << 31) + 1, std::size_t{1} << 61, ~std::size_t{0}}) {
    a.job.channels = channels;
    require(a.weigh() == PYCAM_INVALID && starts(pycam_last_error(), "job.channels: expected 1 to 2147483648"), "said \"%s\"",
            pycam_last_error());
  }
}

TEST(an_error_stays_until_the_next_one) {
  Arguments a;
  a.threads = -1;
  require(a.weigh() == PYCAM_INVALID, "accepted");
  a.threads = 1;
  require(a.weigh() == PYCAM_OK, "%s", pycam_last_error());
  require(starts(pycam_last_error(), "threads:"), "said \"%s\"", pycam_last_error());
}

TEST(colour_maps_by_name) {
  for (const char* name : {"jet", "turbo", "viridis", "inferno", "magma", "gray"}) {
    const std::uint8_t* colours = pycam_colormap(name);
    require(colours != nullptr, "no %s", name);
    require(colours == pycam_colormap(name), "%s moved", name);
  }
  require(pycam_colormap("gray")[3 * 77 + 1] == 77, "gray");
  for (const char* name : {"", "Jet", "jett", "je"}) require(pycam_colormap(name) == nullptr, "there is a \"%s\"", name);
  require(pycam_colormap(nullptr) == nullptr, "null");
}

int main(int count, char** names) { return run_tests(count, names); }
