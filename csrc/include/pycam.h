/* pycam: heatmaps from the activations and gradients of a vision model, or from raw maps, and their overlays on pictures.
 *
 * C11 and C++17.  Link with libpycam (pkg-config: pycam; CMake: find_package(pycam), target pycam::pycam).
 *
 * This file is the contract: what every head computes (in C++, in CUDA, in the explain graph), how closely heads agree,
 * and how the functions are called.
 *
 * NUMBERS.  N images, K maps per image, C channels, positions (y, x) of h rows and w columns.
 * s(v) = (v - min v) / (1e-7 + max(v - min v)) over the positions of one map: the formula of the package grad-cam, eps
 * included.  The eps is visible for maps below about 1e-3, and two heads that differ in it do not agree there.
 *
 *   raw       sum_c of a term that `pycam_weighting` names, (N, K, h, w), signed
 *   heatmap   per layer r_l = resize(s(relu(raw_l))); the heatmap is s(mean_l relu(r_l)), (N, K, height, width) in [0, 1]
 *   resize    bilinear: output i samples the source at max(0, (i + 0.5) * n / o - 0.5), clamped at the far edge;
 *             no antialiasing when it shrinks (OpenCV INTER_LINEAR, ONNX Resize linear + half_pixel)
 *   flat      no raw value above zero in any layer: the heatmap is all zeros, never NaN.
 *             (A positive constant also gives zeros, by the formula, but is not flat.)
 *   level     floor(255 m + 0.5) without rounding error, m clamped to [0, 1]; the colour of a pixel is lut[level]
 *   blend     a = floor(65536 alpha + 0.5); out = (65536 image + a (colour - image) + 32768) >> 16: in integers,
 *             so that all heads give the same bytes; within half a level + 0.002 of the formula in real numbers
 *
 * TOLERANCE against the reference (head_ref.cpp: the same in double, without tricks).
 *   raw       |difference| <= 1e-5 * sum_c |w_c A_c| at each position, as long as these sums, and those of |g_c| and |A_c| over
 *             positions, are normal floats, and C <= 2^16 and h w <= 2^20; w_c A_c is the term before any relu, for
 *             PYCAM_MEAN |w_c| is the mean of |g_c|, and for PYCAM_PLUSPLUS no denominator may cancel (behind a ReLU, where
 *             A >= 0, none does)
 *   heatmap   |difference| <= 1e-5 for the same raw maps, everywhere, for any finite input, also where the second s
 *             magnifies rounding errors
 *   flat      equal for the same raw maps
 *   levels, pictures   equal for the same heatmaps
 * One head on one machine gives bitwise the same result on every call, from every thread, with any number of threads.
 * All of this holds in the floating-point environment that programs start with: not where denormals are taken for 0.
 *
 * NaN and +infinity in a raw map are an error (PYCAM_NOT_FINITE); -infinity is cut off by the relu.
 *
 * CALLS.  Every function is thread-safe and keeps no state but scratch memory, which stays with its thread: after a first
 * call, calls of the same shapes (of up to four, in turn) allocate nothing, as long as one map needs no more than 32 MB of
 * it.  Nothing is thrown.  Where a function does not return PYCAM_OK, what its outputs hold is unspecified.  Inputs are
 * never written to.
 * Outputs must not overlap inputs, but `pictures` may be `images` itself, with the same strides, where K is 1.
 */
#ifndef PYCAM_H
#define PYCAM_H

#include <stddef.h>
#include <stdint.h>

#if defined(PYCAM_STATIC) /* linked into something that does not export it */
#define PYCAM_API
#elif defined(_WIN32) && defined(PYCAM_BUILDING)
#define PYCAM_API __declspec(dllexport)
#elif defined(_WIN32)
#define PYCAM_API __declspec(dllimport)
#elif defined(__GNUC__)
#define PYCAM_API __attribute__((visibility("default")))
#else
#define PYCAM_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* The layout of the structs and the meaning of the functions below.  It grows when either changes; a library serves every
 * program that was compiled with the same number. */
#define PYCAM_ABI 1

typedef enum pycam_status {
  PYCAM_OK = 0,
  PYCAM_INVALID = 1,    /* an argument: pycam_last_error() says which and why */
  PYCAM_NOT_FINITE = 2, /* NaN or +infinity in a raw map; NaN in a heatmap */
  PYCAM_NO_MEMORY = 3,  /* for scratch, or a thread could not be started */
} pycam_status;

typedef enum pycam_type {
  PYCAM_F32 = 0,
  PYCAM_F16 = 1,  /* IEEE binary16 */
  PYCAM_BF16 = 2, /* the upper half of a float */
} pycam_type;

/* Numbers that are read: element (n, k, c, y, x) lies at data + n image + k map + c channel + y row + x column.
 * Strides count elements, not bytes; they may be 0 (the same for all) or negative.  `data` is aligned to its type.
 *   NCHW (n, C, h, w)    image C*h*w, map 0, channel h*w, row w, column 1
 *   NHWC (n, h, w, C)    image h*w*C, map 0, channel 1, row w*C, column C
 *   tokens (n, T, C), of which h*w from the second on are the grid: data + C, image T*C, map 0, channel 1, row w*C, column C
 *   weights (N, K, C)    image K*C, map C, channel 1, row 0, column 0 */
typedef struct pycam_tensor {
  const void* data;
  pycam_type type;
  ptrdiff_t image, map, channel, row, column;
} pycam_tensor;

/* What is summed over channels.  A: activations; g: weights or gradients. */
typedef enum pycam_weighting {
  PYCAM_GIVEN = 0,    /* g A: CAM and whatever gives weights (row = column = 0); HiResCAM (g: gradients) */
  PYCAM_MEAN = 1,     /* mean(g) A, the mean over positions: Grad-CAM */
  PYCAM_POSITIVE = 2, /* relu(g) A: LayerCAM */
  PYCAM_RECTIFIED = 3, /* relu(g A): GradCAMElementWise */
  PYCAM_PLUSPLUS = 4, /* w A, w = sum of relu(g) g^2 / (2 g^2 + (sum A) g^3 + 1e-6) over positions, 0 where g = 0: Grad-CAM++ */
} pycam_weighting;

typedef struct pycam_weighing {
  size_t images, maps, channels, height, width; /* N, K, C, h, w: only images and maps may be 0; C <= 2^31, h, w <= 2^24 */
  pycam_tensor activations;
  pycam_tensor weights; /* or gradients */
  pycam_weighting weighting;
} pycam_weighing;

/* The raw maps of one layer, (N, K, h, w); `channel` is not used. */
typedef struct pycam_layer {
  pycam_tensor raw;
  size_t height, width;
} pycam_layer;

/* What is wanted, at one size.  Each pointer may be null: not wanted.  Of levels and pictures no heatmap in float is kept. */
typedef struct pycam_output {
  size_t height, width; /* of heatmaps and pictures, 1 to 2^24: a raw map is resized to them in one step */
  float* heatmaps;      /* (N, K, height, width), dense */
  uint8_t* levels;      /* (N, K, height, width), dense */
  uint8_t* flat;        /* (N, K): 1 or 0 */

  /* Pictures: blend of each image and the colours of its heatmaps, red, green, blue in the order of `images` and `lut`.
   * Strides count bytes; a pixel stride of 4 leaves the fourth byte of `pictures` as it is. */
  uint8_t* pictures;
  ptrdiff_t picture_image, picture_map, picture_row, picture_pixel;
  const uint8_t* images;
  ptrdiff_t image_image, image_row, image_pixel;
  const uint8_t* lut; /* (256, 3); pycam_colormap() has some */
  double alpha;       /* opacity of the colours, 0 to 1 */
} pycam_output;

/* raw = weighted sums, (N, K, h, w), dense.  NaN and infinity pass through.
 * threads: how many may compute at once, this one included, at most 1024; 0: one per core this process may use. */
PYCAM_API pycam_status pycam_weigh(const pycam_weighing* job, float* raw, int threads);

/* Raw maps of one or more layers to what `output` wants. */
PYCAM_API pycam_status pycam_finish(const pycam_layer* layers, size_t layer_count, size_t images, size_t maps,
                                    const pycam_output* output, int threads);

/* Both, without leaving the cache in between: activations and gradients to heatmaps or overlays.  raw: as above, or null. */
PYCAM_API pycam_status pycam_explain(const pycam_weighing* job, float* raw, const pycam_output* output, int threads);

/* Heatmaps (N, K, height, width), dense, to pictures and levels: what `output` wants but heatmaps and flat, which must be
 * null.  NaN is PYCAM_NOT_FINITE. */
PYCAM_API pycam_status pycam_overlay(const float* heatmaps, size_t images, size_t maps, const pycam_output* output,
                                     int threads);

/* 256 colours, red, green, blue: "jet", "turbo", "viridis", "inferno", "magma" or "gray".  Null: there is no such name. */
PYCAM_API const uint8_t* pycam_colormap(const char* name);

/* What the last call in this thread that did not return PYCAM_OK had to say: the argument, what was expected, what was
 * found.  "" if there was none.  Valid until the thread's next call. */
PYCAM_API const char* pycam_last_error(void);

PYCAM_API const char* pycam_version(void); /* such as "0.1.0" */
PYCAM_API int pycam_abi(void);             /* PYCAM_ABI of the library */

/* The idle threads that calls left behind end, and the calling thread's scratch is freed.  No other call may be running. */
PYCAM_API void pycam_release(void);

#ifdef __cplusplus
}
#endif
#endif /* PYCAM_H */
