// Weighted sums over channels: activations and weights (or gradients) to raw maps.
#pragma once
#include "head.hpp"
#include "scratch.hpp"

namespace pycam {

// Bytes of scratch that `weigh_map` needs.
size_t weighing_scratch(const pycam_weighing& job);

// The raw map (h * w) of image n and map k.
void weigh_map(const pycam_weighing& job, size_t n, size_t k, float* raw, char* scratch);

}  // namespace pycam
