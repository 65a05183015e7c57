// What a head is, in C++.  The contract (what is computed, and how closely heads agree) is include/pycam.h.
#pragma once
#include <cstddef>
#include <cstdint>

#include "include/pycam.h"

namespace pycam {

using std::size_t;

// One implementation: the functions of pycam.h, for arguments that are valid (check.hpp).  They throw nothing but
// bad_alloc and system_error (a thread could not be started); `status` is PYCAM_OK or PYCAM_NOT_FINITE.
struct Head {
  void (*weigh)(const pycam_weighing& job, float* raw, int threads);
  pycam_status (*finish)(const pycam_layer* layers, size_t layer_count, size_t images, size_t maps,
                         const pycam_output& output, int threads);
  pycam_status (*explain)(const pycam_weighing& job, float* raw, const pycam_output& output, int threads);
  pycam_status (*overlay)(const float* heatmaps, size_t images, size_t maps, const pycam_output& output, int threads);
};

extern const Head reference;   // head_ref.cpp: in double and without tricks; threads are ignored
extern const Head vectorised;  // head_cpu.cpp: the fast one

// What calls of `vectorised` left behind: idle threads, and the calling thread's scratch.  No call may be running.
void release();

// Whether none of `count` numbers is NaN or infinite: what a caller asks of an input before it is explained.
bool finite(const float* values, size_t count);

}  // namespace pycam
