// The functions of pycam.h: check the arguments, call the head, keep every exception inside.
#include <cstring>
#include <new>
#include <stdexcept>
#include <system_error>

#include "check.hpp"
#include "colormaps.hpp"

using namespace pycam;

namespace {

// The status of `call()`; `blame()` finds the words for PYCAM_NOT_FINITE.
template <class Call, class Blame>
pycam_status guarded(bool valid, const Call& call, const Blame& blame) noexcept {
  if (!valid) return PYCAM_INVALID;
  try {
    const pycam_status status = call();
    if (status == PYCAM_NOT_FINITE) blame();
    return status;
  } catch (const std::bad_alloc&) {
    refuse("not enough memory for scratch");
  } catch (const std::length_error&) {
    refuse("not enough memory for scratch");
  } catch (const std::system_error& error) {
    refuse("a thread could not be started: %s", error.what());
  }
  return PYCAM_NO_MEMORY;
}

}  // namespace

pycam_status pycam_weigh(const pycam_weighing* job, float* raw, int threads) {
  const auto call = [&] {
    vectorised.weigh(*job, raw, threads);
    return PYCAM_OK;
  };
  return guarded(valid_weigh(job, raw, threads), call, [] {});
}

pycam_status pycam_finish(const pycam_layer* layers, size_t layer_count, size_t images, size_t maps, const pycam_output* output,
                          int threads) {
  return guarded(
      valid_finish(layers, layer_count, images, maps, output, threads),
      [&] { return vectorised.finish(layers, layer_count, images, maps, *output, threads); },
      [&] { blame_layers(layers, layer_count, images, maps); });
}

pycam_status pycam_explain(const pycam_weighing* job, float* raw, const pycam_output* output, int threads) {
  return guarded(
      valid_explain(job, raw, output, threads), [&] { return vectorised.explain(*job, raw, *output, threads); },
      [&] { blame_weighing(*job); });
}

pycam_status pycam_overlay(const float* heatmaps, size_t images, size_t maps, const pycam_output* output, int threads) {
  return guarded(
      valid_overlay(heatmaps, images, maps, output, threads),
      [&] { return vectorised.overlay(heatmaps, images, maps, *output, threads); },
      [&] { blame_heatmaps(heatmaps, images, maps, *output); });
}

const uint8_t* pycam_colormap(const char* name) {
  if (name == nullptr) return nullptr;
  for (const Colormap& colormap : COLORMAPS)
    if (std::strcmp(name, colormap.name) == 0) return colormap.colours;
  return nullptr;
}

const char* pycam_last_error(void) { return last_error(); }

const char* pycam_version(void) { return PYCAM_VERSION; }

int pycam_abi(void) { return PYCAM_ABI; }

void pycam_release(void) { release(); }
