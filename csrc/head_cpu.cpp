// The vectorised head: every map is a task; a thread weighs, finishes and paints it before it takes the next, so that what
// it made is still in its cache.  The same code makes each map whichever thread takes it: the bits do not depend on how many.
#include <algorithm>
#include <atomic>
#include <exception>
#include <new>

#include "finish_cpu.hpp"
#include "paint_cpu.hpp"
#include "simd.hpp"
#include "weigh_cpu.hpp"
#include "workers.hpp"

namespace pycam {
namespace {

// What is done to each map.  Null: not asked for.
struct Call {
  size_t images, maps;
  const pycam_weighing* weighing = nullptr;
  float* raw = nullptr;
  const pycam_layer* layers = nullptr;
  const Plan* plan = nullptr;
  const float* heatmaps = nullptr;  // that are there already
  const pycam_output* output = nullptr;
  const Palette* palette = nullptr;
  std::atomic<int> status{PYCAM_OK};
};

struct Row {
  const Call* call;
  size_t n, k;
  static void paint(void* context, size_t y, const float* row) {
    const auto* self = static_cast<const Row*>(context);
    paint_row(*self->call->output, *self->call->palette, self->n, self->k, self->call->maps, y, row);
  }
  static void ignore(void*, size_t, const float*) {}
};

pycam_status finish_one(const Call& call, const pycam_layer* layers, size_t n, size_t k, char* scratch) {
  const pycam_output& out = *call.output;
  const size_t m = n * call.maps + k;
  Row row = {&call, n, k};
  float* const heatmap = out.heatmaps ? out.heatmaps + m * out.height * out.width : nullptr;
  const RowSink sink = out.pictures || out.levels ? Row::paint : Row::ignore;
  const Outcome outcome = finish_map(*call.plan, layers, n, k, heatmap, sink, &row, scratch);
  if (out.flat) out.flat[m] = outcome == Outcome::flat;
  return outcome == Outcome::not_finite ? PYCAM_NOT_FINITE : PYCAM_OK;
}

pycam_status do_map(const Call& call, size_t m) {
  const size_t n = m / call.maps, k = m % call.maps;
  if (call.heatmaps) {
    const pycam_output& out = *call.output;
    const float* map = call.heatmaps + m * out.height * out.width;
    if (!no_nan(map, out.height * out.width)) return PYCAM_NOT_FINITE;
    for (size_t y = 0; y < out.height; ++y) paint_row(out, *call.palette, n, k, call.maps, y, map + y * out.width);
    return PYCAM_OK;
  }
  if (!call.weighing) return finish_one(call, call.layers, n, k, Scratch::of_this_thread().take(call.plan->scratch));

  const pycam_weighing& job = *call.weighing;
  const size_t area = job.height * job.width;
  Carving sizes(nullptr);
  sizes.array<float>(call.raw ? 0 : area);
  Scratch& scratch = Scratch::of_this_thread();
  char* const block = scratch.take(sizes.used() + std::max(weighing_scratch(job), call.plan ? call.plan->scratch : 0));
  float* const raw = call.raw ? call.raw + m * area : reinterpret_cast<float*>(block);
  weigh_map(job, n, k, raw, block + sizes.used());
  if (!call.output) return PYCAM_OK;
  const pycam_layer layer = {{raw, PYCAM_F32, 0, 0, 0, static_cast<std::ptrdiff_t>(job.width), 1}, job.height, job.width};
  return finish_one(call, &layer, n, k, block + sizes.used());
}

void task(void* context, size_t m) noexcept {
  auto& call = *static_cast<Call*>(context);
  int status = PYCAM_NO_MEMORY;
  try {
    status = do_map(call, m);
  } catch (const std::exception&) {
    // bad_alloc or length_error: said by the status
  }
  Scratch::of_this_thread().trim();
  if (status != PYCAM_OK) call.status.store(status, std::memory_order_relaxed);
}

pycam_status run(Call& call, int threads) {
  share(call.images * call.maps, thread_count(threads), task, &call);
  const int status = call.status.load();
  if (status == PYCAM_NO_MEMORY) throw std::bad_alloc();
  return static_cast<pycam_status>(status);
}

void weigh(const pycam_weighing& job, float* raw, int threads) {
  Call call{job.images, job.maps};
  call.weighing = &job;
  call.raw = raw;
  run(call, threads);
}

pycam_status finish(const pycam_layer* layers, size_t layer_count, size_t images, size_t maps, const pycam_output& output,
                    int threads) {
  const Palette palette(output);
  Call call{images, maps};
  call.layers = layers;
  call.plan = &Plan::of(layers, layer_count, output.height, output.width);
  call.output = &output;
  call.palette = &palette;
  return run(call, threads);
}

pycam_status explain(const pycam_weighing& job, float* raw, const pycam_output& output, int threads) {
  const Palette palette(output);
  const pycam_layer shape = {{}, job.height, job.width};
  Call call{job.images, job.maps};
  call.weighing = &job;
  call.raw = raw;
  call.plan = &Plan::of(&shape, 1, output.height, output.width);
  call.output = &output;
  call.palette = &palette;
  return run(call, threads);
}

pycam_status overlay(const float* heatmaps, size_t images, size_t maps, const pycam_output& output, int threads) {
  const Palette palette(output);
  Call call{images, maps};
  call.heatmaps = heatmaps;
  call.output = &output;
  call.palette = &palette;
  return run(call, threads);
}

// NaN and infinity have all exponent bits set.  No early exit: the usual answer is yes, and a branch would not vectorise.
MULTI bool all_finite(const float* values, size_t count) {
  std::uint32_t bad = 0;
#pragma omp simd reduction(| : bad)
  for (size_t i = 0; i < count; ++i) {
    std::uint32_t bits;
    memcpy(&bits, values + i, sizeof bits);
    bad |= (bits & 0x7f800000u) == 0x7f800000u;
  }
  return bad == 0;
}

}  // namespace

const Head vectorised = {weigh, finish, explain, overlay};

void release() {
  end_threads();
  Scratch::of_this_thread().clear();
  Plan::forget();
}

bool finite(const float* values, size_t count) { return all_finite(values, count); }

}  // namespace pycam
