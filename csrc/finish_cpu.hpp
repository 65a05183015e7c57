// Raw maps to heatmaps, one row at a time.
#pragma once
#include <vector>

#include "head.hpp"
#include "scratch.hpp"

namespace pycam {

// Where the outputs of one axis sample the source: value[i] = s[low[i]] + part[i] * (s[high[i]] - s[low[i]]).
struct Axis {
  std::vector<int> low, high;
  std::vector<double> part;  // a float coordinate is off by 4e-6 at 50, which a steep map would show
  std::vector<float> rounded;
  void sample(size_t n, size_t o);
};

// What follows from the shapes alone.  Kept by the thread for its next calls.
class Plan {
 public:
  // Valid until the thread asks for another.
  static const Plan& of(const pycam_layer* layers, size_t layer_count, size_t height, size_t width);
  static void forget();  // those of this thread

  std::vector<size_t> shapes;             // height and width of the heatmaps, then of each layer
  std::vector<Axis> vertical, horizontal;  // per layer
  std::vector<size_t> corners;            // rows that have the smallest and the largest value of any heatmap
  size_t scratch;                         // bytes that `finish_map` needs

 private:
  void make();
};

enum class Outcome { done, flat, not_finite };

// Takes row y of a heatmap, `width` floats in [0, 1].
using RowSink = void (*)(void* context, size_t y, const float* row);

// The heatmap of image n and map k, row after row; a flat map gives rows of zeros.  Where `heatmap` is not null the rows
// are those of it, else they lie in scratch.
Outcome finish_map(const Plan& plan, const pycam_layer* layers, size_t n, size_t k, float* heatmap, RowSink sink,
                   void* context, char* scratch);

}  // namespace pycam
