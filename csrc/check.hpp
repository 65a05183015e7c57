// The boundary of the C ABI: whether arguments are what pycam.h asks for, and what to say where they are not.
// Messages go to a buffer of the thread; nothing here allocates or throws.
#pragma once
#include "head.hpp"

#if defined(__GNUC__)
#define PYCAM_PRINTF __attribute__((format(printf, 1, 2)))
#else
#define PYCAM_PRINTF
#endif

namespace pycam {

// The message of pycam_last_error().
const char* last_error() noexcept;
// Sets it, as printf would.  Returns false, so that a check can end with it.
PYCAM_PRINTF bool refuse(const char* format, ...) noexcept;

// What each function takes; false, and a message, where it is not valid.
bool valid_weigh(const pycam_weighing* job, const float* raw, int threads) noexcept;
bool valid_finish(const pycam_layer* layers, size_t layer_count, size_t images, size_t maps, const pycam_output* output,
                  int threads) noexcept;
bool valid_explain(const pycam_weighing* job, const float* raw, const pycam_output* output, int threads) noexcept;
bool valid_overlay(const float* heatmaps, size_t images, size_t maps, const pycam_output* output, int threads) noexcept;

// The messages of PYCAM_NOT_FINITE: they look for the number that a head stumbled over.
void blame_layers(const pycam_layer* layers, size_t layer_count, size_t images, size_t maps) noexcept;
void blame_weighing(const pycam_weighing& job) noexcept;
void blame_heatmaps(const float* heatmaps, size_t images, size_t maps, const pycam_output& output) noexcept;

}  // namespace pycam
