// pycam._native: validate, release the GIL, call a head.  The documentation is in pycam/_native.pyi.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "head.hpp"
#include "pool.hpp"

namespace py = pybind11;
using namespace pycam;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;
using Axes = std::vector<const char*>;  // names, for the messages; N, K and M may be empty, the others may not
using Shape = std::vector<py::ssize_t>;

template <class Items>
std::string tuple_text(const Items& items) {
  std::string text = "(";
  for (size_t i = 0; i < items.size(); ++i) {
    if constexpr (std::is_same_v<Items, Axes>)
      text += items[i];
    else
      text += std::to_string(items[i]);
    text += i + 1 < items.size() ? ", " : items.size() == 1 ? ",)" : ")";
  }
  return items.empty() ? "()" : text;
}

Shape shape_of(const py::array& array) { return Shape(array.shape(), array.shape() + array.ndim()); }

bool aligned(const py::array& array) { return (array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_) != 0; }

std::string describe(const py::handle& value) {
  if (!py::isinstance<py::array>(value)) return py::str(py::type::handle_of(value).attr("__name__"));
  const auto array = py::reinterpret_borrow<py::array>(value);
  std::string text = std::string(py::str(array.dtype())) + " " + tuple_text(shape_of(array));
  if (!(array.flags() & py::array::c_style)) text += ", not C-contiguous";
  if (!aligned(array)) text += ", not aligned";
  return text;
}

[[noreturn]] void refuse(const std::string& name, const std::string& expected, const std::string& found) {
  throw py::value_error(name + ": expected " + expected + ", found " + found);
}

// `value` as a C-contiguous array of T with these axes, without a copy; ValueError otherwise.
template <class T>
Array<T> take(const py::handle& value, const std::string& name, const Axes& axes) {
  const std::string expected =
      std::string("a C-contiguous ") + (std::is_same_v<T, float> ? "float32" : "uint8") + " array " + tuple_text(axes);
  if (!py::isinstance<Array<T>>(value)) refuse(name, expected, describe(value));
  auto array = py::reinterpret_borrow<Array<T>>(value);
  if (!aligned(array) || array.ndim() != static_cast<py::ssize_t>(axes.size())) refuse(name, expected, describe(value));
  for (size_t i = 0; i < axes.size(); ++i) {
    const bool may_be_empty = std::string("NKM").find(axes[i]) != std::string::npos;
    if (array.shape(static_cast<py::ssize_t>(i)) == 0 && !may_be_empty)
      refuse(name, expected + " with " + axes[i] + " at least 1", describe(value));
  }
  return array;
}

// A new array whose memory comes from the pool and goes back there.
template <class T>
Array<T> fresh(const Shape& shape) {
  size_t bytes = sizeof(T);
  for (const py::ssize_t axis : shape) bytes *= static_cast<size_t>(axis);
  struct Block {
    void* data;
    size_t bytes;
  };
  auto* block = new Block{Pool::instance().take(bytes), bytes};
  const py::capsule owner(block, [](void* held) {
    auto* it = static_cast<Block*>(held);
    Pool::instance().give(it->data, it->bytes);
    delete it;
  });
  return Array<T>(shape, static_cast<const T*>(block->data), owner);
}

void expect_shape(const py::array& array, const std::string& name, const Shape& expected, const std::string& because) {
  const Shape found = shape_of(array);
  if (found != expected) refuse(name, "shape " + tuple_text(expected) + " " + because, tuple_text(found));
}

size_t size(const py::array& array, int axis) { return static_cast<size_t>(array.shape(axis)); }

size_t positive(py::ssize_t value, const std::string& name) {
  constexpr py::ssize_t limit = 1 << 24;  // keeps height * width * 4 far from overflow; memory ends long before
  if (value < 1 || value > limit) refuse(name, "1 to " + std::to_string(limit), std::to_string(value));
  return static_cast<size_t>(value);
}

// "NaN at [m, y, x]" or "+inf at …" for the first value that a heatmap cannot be made of.
std::optional<std::string> unusable(const float* values, const Shape& shape) {
  size_t count = 1;
  for (const py::ssize_t axis : shape) count *= static_cast<size_t>(axis);
  const auto usable = [](float v) { return v <= std::numeric_limits<float>::max(); };
  int bad = 0;
#pragma omp simd reduction(| : bad)
  for (size_t i = 0; i < count; ++i) bad |= !(values[i] <= std::numeric_limits<float>::max());
  if (!bad) return std::nullopt;
  size_t first = 0;
  while (usable(values[first])) ++first;
  std::string index;
  size_t rest = first;
  for (size_t axis = shape.size(); axis-- > 0;) {
    const auto length = static_cast<size_t>(shape[axis]);
    index = std::to_string(rest % length) + (index.empty() ? "" : ", ") + index;
    rest /= length;
  }
  return std::string(std::isnan(values[first]) ? "NaN" : "+inf") + " at [" + index + "]";
}

py::array weigh(const Head& head, const py::object& activations_, const py::object& weights_, bool rectify) {
  const auto activations = take<float>(activations_, "activations", {"N", "C", "h", "w"});
  const Shape a = shape_of(activations);
  const auto rank = py::isinstance<py::array>(weights_) ? py::reinterpret_borrow<py::array>(weights_).ndim() : 0;
  const bool dense = rank == 5;
  if (rank != 3 && !dense) refuse("weights", "a C-contiguous float32 array (N, K, C) or (N, K, C, h, w)", describe(weights_));
  const auto weights =
      take<float>(weights_, "weights", dense ? Axes{"N", "K", "C", "h", "w"} : Axes{"N", "K", "C"});
  const py::ssize_t maps = weights.shape(1);
  expect_shape(weights, "weights", dense ? Shape{a[0], maps, a[1], a[2], a[3]} : Shape{a[0], maps, a[1]},
               "for activations " + tuple_text(a));

  auto raw = fresh<float>({a[0], maps, a[2], a[3]});
  const Weighing job = {size(activations, 0), size(raw, 1), size(activations, 1), size(raw, 2) * size(raw, 3),
                        dense ? Weights::per_position : Weights::per_channel, rectify};
  const float *from = activations.data(), *by = weights.data();
  float* to = raw.mutable_data();
  {
    const py::gil_scoped_release nogil;
    head.weigh(from, by, job, to);
  }
  return raw;
}

py::tuple finish(const Head& head, const py::object& raws_, py::ssize_t height, py::ssize_t width) {
  const bool listed = py::isinstance<py::list>(raws_) || py::isinstance<py::tuple>(raws_);
  if (!listed || py::len(raws_) == 0)
    refuse("raws", "a list of at least one array (M, h, w)", listed ? "an empty one" : describe(raws_));
  std::vector<Array<float>> raws;  // keeps them alive
  std::vector<Layer> layers;
  for (const py::handle& item : py::reinterpret_borrow<py::sequence>(raws_)) {
    const std::string name = "raws[" + std::to_string(raws.size()) + "]";
    raws.push_back(take<float>(item, name, {"M", "h", "w"}));
    const auto& raw = raws.back();
    expect_shape(raw, name, {raws[0].shape(0), raw.shape(1), raw.shape(2)}, "with the M of raws[0]");
    layers.push_back({raw.data(), size(raw, 1), size(raw, 2)});
  }
  const Finishing job = {layers.data(), layers.size(), size(raws[0], 0), positive(height, "height"), positive(width, "width")};
  auto maps = fresh<float>({raws[0].shape(0), height, width});
  Array<bool> flat(Shape{raws[0].shape(0)});
  float* to = maps.mutable_data();
  bool* flags = flat.mutable_data();
  std::vector<Shape> shapes;
  for (const auto& raw : raws) shapes.push_back(shape_of(raw));
  {
    const py::gil_scoped_release nogil;
    for (size_t l = 0; l < layers.size(); ++l)
      if (const auto where = unusable(layers[l].raw, shapes[l]))
        throw py::value_error("raws[" + std::to_string(l) + "]: no heatmap can be made of " + *where);
    head.finish(job, to, flags);
  }
  return py::make_tuple(maps, flat);
}

py::tuple fused(const Head& head, const py::object& activations_, const py::object& gradients_, py::ssize_t height,
                py::ssize_t width) {
  const auto activations = take<float>(activations_, "activations", {"N", "C", "h", "w"});
  const auto gradients = take<float>(gradients_, "gradients", {"N", "C", "h", "w"});
  const Shape a = shape_of(activations);
  expect_shape(gradients, "gradients", a, "like activations");
  const size_t images = size(activations, 0), channels = size(activations, 1), h = size(activations, 2), w = size(activations, 3);
  const size_t out_height = positive(height, "height"), out_width = positive(width, "width");

  auto maps = fresh<float>({a[0], height, width});
  Array<bool> flat(Shape{a[0]});
  const float *from = activations.data(), *slope = gradients.data();
  float* to = maps.mutable_data();
  bool* flags = flat.mutable_data();
  {
    const py::gil_scoped_release nogil;
    std::vector<float> weights(images * channels), raw(images * h * w);
    head.mean(slope, images * channels, h * w, weights.data());
    head.weigh(from, weights.data(), {images, 1, channels, h * w, Weights::per_channel, false}, raw.data());
    if (const auto where = unusable(raw.data(), {a[0], a[2], a[3]}))
      throw py::value_error("activations, gradients: no heatmap can be made of their weighted sum, which is " + *where);
    const Layer layer = {raw.data(), h, w};
    head.finish({&layer, 1, images, out_height, out_width}, to, flags);
  }
  return py::make_tuple(maps, flat);
}

py::array overlay(const Head& head, const py::object& images_, const py::object& maps_, const py::object& lut_, double alpha) {
  const auto images = take<std::uint8_t>(images_, "images", {"N", "H", "W", "3"});
  const auto maps = take<float>(maps_, "maps", {"N", "K", "H", "W"});
  const auto lut = take<std::uint8_t>(lut_, "lut", {"256", "3"});
  const Shape i = shape_of(images);
  expect_shape(images, "images", {i[0], i[1], i[2], 3}, "(red, green, blue last)");
  expect_shape(lut, "lut", {256, 3}, "(a colour per level)");
  expect_shape(maps, "maps", {i[0], maps.shape(1), i[1], i[2]}, "for images " + tuple_text(i));
  if (!(alpha >= 0 && alpha <= 1)) refuse("alpha", "0 to 1", std::to_string(alpha));

  auto pictures = fresh<std::uint8_t>({i[0], maps.shape(1), i[1], i[2], 3});
  const Painting job = {size(images, 0), size(maps, 1), size(images, 1) * size(images, 2), lut.data(),
                        static_cast<std::uint32_t>(alpha * 65536 + 0.5)};
  const std::uint8_t* under = images.data();
  const float* over = maps.data();
  const auto count = static_cast<size_t>(maps.size());
  std::uint8_t* to = pictures.mutable_data();
  {
    const py::gil_scoped_release nogil;
    int nan = 0;
#pragma omp simd reduction(| : nan)
    for (size_t q = 0; q < count; ++q) nan |= over[q] != over[q];
    if (nan) throw py::value_error("maps: NaN has no colour");
    head.overlay(under, over, job, to);
  }
  return pictures;
}

void bind(py::module_& module, const char* suffix, const Head& head) {
  const auto name = [suffix](const char* stem) { return std::string(stem) + suffix; };
  module.def(name("weigh").c_str(),
             [&head](const py::object& a, const py::object& w, bool rectify) { return weigh(head, a, w, rectify); },
             py::arg("activations"), py::arg("weights"), py::arg("rectify") = false,
             "Activations (N,C,h,w) and weights (N,K,C[,h,w]) to raw maps (N,K,h,w).");
  module.def(name("finish").c_str(), [&head](const py::object& r, py::ssize_t h, py::ssize_t w) { return finish(head, r, h, w); },
             py::arg("raws"), py::arg("height"), py::arg("width"),
             "Raw maps, one (M,h,w) per layer, to heatmaps (M,height,width) and flat (M,).");
  module.def(name("fused").c_str(),
             [&head](const py::object& a, const py::object& g, py::ssize_t h, py::ssize_t w) { return fused(head, a, g, h, w); },
             py::arg("activations"), py::arg("gradients"), py::arg("height"), py::arg("width"),
             "Grad-CAM: activations and gradients (N,C,h,w) to heatmaps (N,height,width) and flat (N,).");
  module.def(name("overlay").c_str(),
             [&head](const py::object& i, const py::object& m, const py::object& l, double alpha) {
               return overlay(head, i, m, l, alpha);
             },
             py::arg("images"), py::arg("maps"), py::arg("lut"), py::arg("alpha"),
             "Images (N,H,W,3), heatmaps (N,K,H,W) and colours (256,3) to pictures (N,K,H,W,3).");
}

std::string compiler() {
#define PYCAM_TEXT_(x) #x
#define PYCAM_TEXT(x) PYCAM_TEXT_(x)
#if defined(__clang__)
  return "clang " PYCAM_TEXT(__clang_major__) "." PYCAM_TEXT(__clang_minor__);
#elif defined(__GNUC__)
  return "gcc " PYCAM_TEXT(__GNUC__) "." PYCAM_TEXT(__GNUC_MINOR__);
#elif defined(_MSC_VER)
  return "msvc " PYCAM_TEXT(_MSC_VER);
#else
  return "unknown";
#endif
}

bool has_clones() {
#if defined(PYCAM_CLONES)
  return true;
#else
  return false;
#endif
}

}  // namespace

// Calls share nothing but the pool, which locks, so the module also serves Python without a GIL.
PYBIND11_MODULE(_native, module, py::mod_gil_not_used()) {
  module.doc() = "Heads in C++: the contract is csrc/head.hpp, the documentation pycam/_native.pyi.";
  bind(module, "", vectorised);
  bind(module, "_ref", reference);
  module.def("finite", [](const py::object& values) {
    if (!py::isinstance<Array<float>>(values)) refuse("values", "a C-contiguous float32 array", describe(values));
    const auto array = py::reinterpret_borrow<Array<float>>(values);
    const float* data = array.data();
    const auto count = static_cast<size_t>(array.size());
    py::gil_scoped_release release;
    return finite(data, count);
  }, py::arg("values"), "Whether no value is NaN or infinite.");
  module.def("features", [] {
    py::dict facts;
    facts["clones"] = has_clones();
    facts["compiler"] = compiler();
    facts["version"] = PYCAM_VERSION;
    return facts;
  }, "How this module was built.");
}
