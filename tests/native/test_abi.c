/* pycam.h as C11 sees it, the layout that PYCAM_ABI 1 stands for, and numbers worked out by hand. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "pycam.h"

_Static_assert(PYCAM_ABI == 1, "a new number: write its layout down here");
_Static_assert(sizeof(pycam_status) == sizeof(int) && sizeof(pycam_type) == sizeof(int), "enums are ints");
_Static_assert(sizeof(pycam_weighting) == sizeof(int), "enums are ints");
_Static_assert(PYCAM_OK == 0 && PYCAM_INVALID == 1 && PYCAM_NOT_FINITE == 2 && PYCAM_NO_MEMORY == 3, "statuses");
_Static_assert(PYCAM_F32 == 0 && PYCAM_F16 == 1 && PYCAM_BF16 == 2, "types");
_Static_assert(PYCAM_GIVEN == 0 && PYCAM_MEAN == 1 && PYCAM_POSITIVE == 2, "weightings");
_Static_assert(PYCAM_RECTIFIED == 3 && PYCAM_PLUSPLUS == 4, "weightings");
#if UINTPTR_MAX == UINT64_MAX
_Static_assert(sizeof(pycam_tensor) == 56 && offsetof(pycam_tensor, image) == 16, "layout");
_Static_assert(offsetof(pycam_tensor, type) == 8 && offsetof(pycam_tensor, column) == 48, "layout");
_Static_assert(sizeof(pycam_weighing) == 160 && offsetof(pycam_weighing, activations) == 40, "layout");
_Static_assert(offsetof(pycam_weighing, weights) == 96 && offsetof(pycam_weighing, weighting) == 152, "layout");
_Static_assert(sizeof(pycam_layer) == 72 && offsetof(pycam_layer, height) == 56, "layout");
_Static_assert(sizeof(pycam_output) == 128 && offsetof(pycam_output, heatmaps) == 16, "layout");
_Static_assert(offsetof(pycam_output, pictures) == 40 && offsetof(pycam_output, images) == 80, "layout");
_Static_assert(offsetof(pycam_output, lut) == 112 && offsetof(pycam_output, alpha) == 120, "layout");
#endif

static int failures;

static void expect(int holds, const char* what) {
  if (holds) return;
  printf("FAILED %s (last error: \"%s\")\n", what, pycam_last_error());
  ++failures;
}

static void near_to(const float* got, const double* want, size_t count, const char* what) {
  for (size_t i = 0; i < count; ++i) expect(fabs((double)got[i] - want[i]) <= 1e-5, what);
}

/* A row 0, 1 made four wide samples it at -0.25, 0.25, 0.75, 1.25: clamped, 0, 0.25, 0.75, 1. */
static void a_row(void) {
  const float raw[2] = {0, 1};
  const pycam_layer layer = {{raw, PYCAM_F32, 0, 0, 0, 0, 1}, 1, 2};
  const double heatmap[4] = {0, 0.25, 0.75, 1};
  const uint8_t level[4] = {0, 64, 191, 255};
  const uint8_t image[12] = {100, 100, 100, 100, 100, 100, 100, 100, 100, 100, 100, 100};
  float heatmaps[4];
  uint8_t levels[4], flat[1], pictures[12];
  pycam_output out = {0};
  out.height = 1;
  out.width = 4;
  out.heatmaps = heatmaps;
  out.levels = levels;
  out.flat = flat;
  out.pictures = pictures;
  out.picture_row = out.image_row = 12;
  out.picture_pixel = out.image_pixel = 3;
  out.images = image;
  out.lut = pycam_colormap("gray");
  out.alpha = 0.5;
  expect(pycam_finish(&layer, 1, 1, 1, &out, 1) == PYCAM_OK, "a row");
  near_to(heatmaps, heatmap, 4, "a row's heatmap");
  expect(memcmp(levels, level, 4) == 0 && flat[0] == 0, "a row's levels");
  expect(pictures[0] == 50 && pictures[4] == 82 && pictures[6] == 146 && pictures[11] == 178, "a row's picture");
}

/* Two channels of one row: A = (1, 2), (3, -1); g = (1, 3), (-2, 0), so that mean g = 2 and -1. */
static void sums(void) {
  const float a[4] = {1, 2, 3, -1}, g[4] = {1, 3, -2, 0};
  const struct {
    pycam_weighting weighting;
    double raw[2];
  } cases[] = {
      {PYCAM_GIVEN, {1 - 6, 6}},
      {PYCAM_MEAN, {2 - 3, 4 + 1}},
      {PYCAM_POSITIVE, {1, 6}},
      {PYCAM_RECTIFIED, {1, 6}},
      /* channel 0: sum A = 3; 1 / (2 + 3) + 27 / (18 + 81) = 0.2 + 0.272727; channel 1: no g above zero */
      {PYCAM_PLUSPLUS, {0.4727272, 2 * 0.4727272}},
  };
  pycam_weighing job = {0};
  job.images = job.maps = job.height = 1;
  job.channels = job.width = 2;
  job.activations = (pycam_tensor){a, PYCAM_F32, 0, 0, 2, 0, 1};
  job.weights = (pycam_tensor){g, PYCAM_F32, 0, 0, 2, 0, 1};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; ++i) {
    float raw[2];
    job.weighting = cases[i].weighting;
    expect(pycam_weigh(&job, raw, 1) == PYCAM_OK, "a sum");
    near_to(raw, cases[i].raw, 2, "a sum's value");
  }
}

static void flat_and_constant(void) {
  const float raw[6] = {-1, 0, -2, 5, 5, 5};
  const pycam_layer layer = {{raw, PYCAM_F32, 0, 3, 0, 0, 1}, 1, 3};
  float heatmaps[6];
  uint8_t flat[2];
  pycam_output out = {0};
  out.height = 1;
  out.width = 3;
  out.heatmaps = heatmaps;
  out.flat = flat;
  expect(pycam_finish(&layer, 1, 1, 2, &out, 0) == PYCAM_OK, "flat");
  expect(flat[0] == 1 && flat[1] == 0, "flat: nothing positive, a constant");
  for (int i = 0; i < 6; ++i) expect(heatmaps[i] == 0 && !signbit(heatmaps[i]), "flat: zeros");
}

int main(void) {
  expect(pycam_last_error()[0] == 0, "no error yet");
  expect(pycam_abi() == PYCAM_ABI, "abi");
  expect(strcmp(pycam_version(), PYCAM_TEST_VERSION) == 0, "version");
  a_row();
  sums();
  flat_and_constant();
  pycam_release();
  printf("%d passed, %d failed\n", failures == 0, failures);
  return failures != 0;
}
