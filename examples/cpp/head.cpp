#include "head.hpp"

#include <pycam.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "failure.hpp"

namespace {

// The nearest whole pixels, at least one.
struct Span {
  size_t first, count;
};
Span pixels_between(double low, double high, size_t size) {
  const auto first = std::min(static_cast<size_t>(std::lround(low)), size - 1);
  const auto end = std::clamp(static_cast<size_t>(std::lround(high)), first + 1, size);
  return {first, end - first};
}

// A raw map where onnxruntime left it.
pycam_layer layer_of(const Ort::Value& map) {
  const std::vector<std::int64_t> shape = map.GetTensorTypeAndShapeInfo().GetShape();
  const auto height = static_cast<size_t>(shape[2]), width = static_cast<size_t>(shape[3]);
  pycam_layer layer{};
  layer.raw.data = map.GetTensorData<float>();
  layer.raw.type = PYCAM_F32;
  layer.raw.row = static_cast<ptrdiff_t>(width);
  layer.raw.column = 1;
  layer.height = height;
  layer.width = width;
  return layer;
}

}  // namespace

Painted paint(Picture& photo, const Answer& answer, const Look& look, int threads) {
  std::vector<pycam_layer> layers;
  for (const Ort::Value& map : answer.maps) layers.push_back(layer_of(map));

  const Span rows = pixels_between(answer.seen.top, answer.seen.bottom, photo.height);
  const Span columns = pixels_between(answer.seen.left, answer.seen.right, photo.width);
  std::uint8_t* const corner = photo.pixels.data() + 3 * (rows.first * photo.width + columns.first);
  std::uint8_t flat = 0;
  pycam_output output{};
  output.height = rows.count;
  output.width = columns.count;
  output.flat = &flat;
  output.images = output.pictures = corner;  // in place
  output.image_row = output.picture_row = static_cast<ptrdiff_t>(3 * photo.width);
  output.image_pixel = output.picture_pixel = 3;
  output.lut = pycam_colormap(look.colormap.c_str());
  output.alpha = look.alpha;

  const auto start = std::chrono::steady_clock::now();
  const pycam_status status = pycam_finish(layers.data(), layers.size(), 1, 1, &output, threads);
  const double head_ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  if (status != PYCAM_OK) throw Failure(Exit::head, std::string("pycam: ") + pycam_last_error());
  return {flat != 0, head_ms};
}

void check_look(const Look& look) {
  if (!pycam_colormap(look.colormap.c_str()))
    throw Failure(Exit::usage, "--colormap " + look.colormap + ": there are jet, turbo, viridis, inferno, magma and gray");
  if (!(look.alpha >= 0 && look.alpha <= 1)) throw Failure(Exit::usage, "--alpha is an opacity, 0 to 1");
}
