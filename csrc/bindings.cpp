// pycam._native: validate, release the GIL, call a head.  The documentation is in pycam/_native.pyi.
#include <cmath>
#include <iterator>

#include "head.hpp"
#include "outputs.hpp"

using namespace pycam;
using namespace pycam::bindings;

namespace {

constexpr const char* weightings[] = {"given", "mean", "positive", "rectified", "plusplus"};  // in the order of pycam_weighting

pycam_weighting weighting_of(const py::object& value) {
  const std::string expected = "one of " + tuple_text(Axes(std::begin(weightings), std::end(weightings)));
  const auto name = scalar<std::string>(value, "weighting", expected);
  const auto found = std::find(std::begin(weightings), std::end(weightings), name);
  if (found == std::end(weightings)) refuse("weighting", expected, "'" + name + "'");
  return static_cast<pycam_weighting>(found - std::begin(weightings));
}

int threads_of(const py::object& value) {
  constexpr py::ssize_t limit = 1024;
  const std::string expected = "0 (one per core) to " + std::to_string(limit);
  const auto threads = scalar<py::ssize_t>(value, "threads", expected);
  if (threads < 0 || threads > limit) refuse("threads", expected, std::to_string(threads));
  return static_cast<int>(threads);
}

size_t length(const Shape& shape, size_t axis) { return static_cast<size_t>(shape[axis]); }

pycam_weighing weighing(const py::object& activations, const py::object& weights, const py::object& weighting) {
  pycam_weighing job{};
  job.activations = tensor(activations, "activations", {"N", "C", "h", "w"});
  const Shape a = shape_of(py::reinterpret_borrow<py::array>(activations));
  const auto rank = py::isinstance<py::array>(weights) ? py::reinterpret_borrow<py::array>(weights).ndim() : 0;
  if (rank != 3 && rank != 5)
    refuse("weights", "a float32, float16 or bfloat16 array (N, K, C) or (N, K, C, h, w)", describe(weights));
  const bool everywhere = rank == 3;
  job.weights = tensor(weights, "weights", everywhere ? Axes{"N", "K", "C"} : Axes{"N", "K", "C", "h", "w"});
  const auto array = py::reinterpret_borrow<py::array>(weights);
  const py::ssize_t maps = array.shape(1);
  expect_shape(array, "weights", everywhere ? Shape{a[0], maps, a[1]} : Shape{a[0], maps, a[1], a[2], a[3]},
               "for activations " + tuple_text(a));
  job.images = length(a, 0);
  job.maps = static_cast<size_t>(maps);
  job.channels = length(a, 1);
  job.height = length(a, 2);
  job.width = length(a, 3);
  job.weighting = weighting_of(weighting);
  return job;
}

Shape lead_of(const pycam_weighing& job) {
  return {static_cast<py::ssize_t>(job.images), static_cast<py::ssize_t>(job.maps)};
}

Shape grid_of(const pycam_weighing& job) {
  return {static_cast<py::ssize_t>(job.height), static_cast<py::ssize_t>(job.width)};
}

py::array weigh(const Head& head, const py::object& activations, const py::object& weights, const py::object& weighting,
                const py::object& threads) {
  const pycam_weighing job = weighing(activations, weights, weighting);
  const Shape lead = lead_of(job), grid = grid_of(job);
  const int count = threads_of(threads);
  auto raw = fresh<float>({lead[0], lead[1], grid[0], grid[1]});
  float* to = raw.mutable_data();
  {
    const py::gil_scoped_release nogil;
    head.weigh(job, to, count);
  }
  return raw;
}

// "NaN at [n, k, y, x]" or "+inf at …" for the first value that no heatmap can be made of.
std::optional<std::string> unusable(const pycam_tensor& raw, const Shape& shape) {
  size_t count = 1;
  for (const py::ssize_t axis : shape) count *= static_cast<size_t>(axis);
  for (size_t i = 0; i < count; ++i) {
    const size_t x = i % length(shape, 3), y = i / length(shape, 3) % length(shape, 2);
    const size_t m = i / (length(shape, 3) * length(shape, 2));
    const pycam_tensor map = moved(raw, m / length(shape, 1), m % length(shape, 1));
    const float v = value_at(map, static_cast<ptrdiff_t>(y) * map.row + static_cast<ptrdiff_t>(x) * map.column);
    if (!(v <= std::numeric_limits<float>::max())) return (std::isnan(v) ? "NaN at " : "+inf at ") + index_text(i, shape);
  }
  return std::nullopt;
}

struct Raws {
  std::vector<py::array> alive;  // the caller may change its list while the GIL is released
  std::vector<pycam_layer> layers;
  std::vector<Shape> shapes;
};

Raws raws_of(const py::object& value) {
  const bool listed = py::isinstance<py::list>(value) || py::isinstance<py::tuple>(value);
  if (!listed || py::len(value) == 0)
    refuse("raws", "a list of at least one array (N, K, h, w)", listed ? "an empty one" : describe(value));
  Raws raws;
  for (const py::handle& item : py::reinterpret_borrow<py::sequence>(value)) {
    const std::string name = "raws[" + std::to_string(raws.layers.size()) + "]";
    const pycam_tensor raw = tensor(item, name, {"N", "K", "h", "w"});
    const auto array = py::reinterpret_borrow<py::array>(item);
    const Shape shape = shape_of(array), first = raws.shapes.empty() ? shape : raws.shapes[0];
    expect_shape(array, name, {first[0], first[1], shape[2], shape[3]}, "with the N and K of raws[0]");
    raws.layers.push_back({raw, length(shape, 2), length(shape, 3)});
    raws.alive.push_back(array);
    raws.shapes.push_back(shape);
  }
  return raws;
}

py::tuple finish(const Head& head, const py::object& raws_, const py::object& size, const py::object& outputs,
                 const py::object& images, const py::object& lut, const py::object& alpha, const py::object& threads) {
  const Raws raws = raws_of(raws_);
  const Shape& shape = raws.shapes[0];
  const Outputs out(names_of(outputs, 4), {shape[0], shape[1]}, {}, size, images, lut, alpha);
  const int count = threads_of(threads);
  {
    const py::gil_scoped_release nogil;
    const auto& layers = raws.layers;
    const auto& shapes = raws.shapes;
    const pycam_status status =
        head.finish(layers.data(), layers.size(), length(shape, 0), length(shape, 1), out.wanted, count);
    if (status != PYCAM_OK)
      for (size_t l = 0; l < layers.size(); ++l)
        if (const auto where = unusable(layers[l].raw, shapes[l]))
          throw py::value_error("raws[" + std::to_string(l) + "]: no heatmap can be made of " + *where);
    if (status != PYCAM_OK) throw py::value_error("raws: not finite");
    Painting::copy_opacity(out.wanted, length(shape, 0) * length(shape, 1), length(shape, 1));
  }
  return out.arrays();
}

py::tuple explain(const Head& head, const py::object& activations, const py::object& weights, const py::object& size,
                  const py::object& weighting, const py::object& outputs, const py::object& images, const py::object& lut,
                  const py::object& alpha, const py::object& threads) {
  const pycam_weighing job = weighing(activations, weights, weighting);
  const Shape lead = lead_of(job), grid = grid_of(job);
  const Outputs out(names_of(outputs, 5), lead, grid, size, images, lut, alpha);
  const int count = threads_of(threads);
  {
    const py::gil_scoped_release nogil;
    if (head.explain(job, out.raw, out.wanted, count) != PYCAM_OK) {
      std::vector<float> raw(job.images * job.maps * job.height * job.width);
      head.weigh(job, raw.data(), count);
      const auto row = static_cast<ptrdiff_t>(job.width), map = static_cast<ptrdiff_t>(job.height) * row;
      const pycam_tensor sums = {raw.data(), PYCAM_F32, static_cast<ptrdiff_t>(job.maps) * map, map, 0, row, 1};
      const auto where = unusable(sums, {lead[0], lead[1], grid[0], grid[1]});
      throw py::value_error("activations, weights: no heatmap can be made of their weighted sum, which is " +
                            where.value_or("not finite"));
    }
    Painting::copy_opacity(out.wanted, job.images * job.maps, job.maps);
  }
  return out.arrays();
}

// Heatmaps to one of "pictures" or "levels".
py::object shown(const Head& head, const char* output, const py::object& maps_, const py::object& images,
                 const py::object& lut, const py::object& alpha, const py::object& threads) {
  const auto maps = dense<float>(maps_, "maps", {"N", "K", "H", "W"});
  const Shape shape = shape_of(maps);
  const auto size = images.is_none() ? py::object(py::make_tuple(shape[2], shape[3])) : py::object(py::none());
  const Outputs out({output}, {shape[0], shape[1]}, {}, size, images, lut, alpha);
  const auto height = static_cast<py::ssize_t>(out.wanted.height), width = static_cast<py::ssize_t>(out.wanted.width);
  expect_shape(maps, "maps", {shape[0], shape[1], height, width}, "at the size of the images");
  const int count = threads_of(threads);
  const float* over = maps.data();
  const auto values = static_cast<size_t>(maps.size());
  {
    const py::gil_scoped_release nogil;
    if (head.overlay(over, length(shape, 0), length(shape, 1), out.wanted, count) != PYCAM_OK) {
      const float* nan = std::find_if(over, over + values, [](float v) { return std::isnan(v); });
      throw py::value_error("maps: NaN at " + index_text(static_cast<size_t>(nan - over), shape) + " has no colour");
    }
    Painting::copy_opacity(out.wanted, length(shape, 0) * length(shape, 1), length(shape, 1));
  }
  return out.arrays()[0];
}

void bind(py::module_& module, const char* suffix, const Head& head) {
  using Object = const py::object&;
  const auto name = [suffix](const char* stem) { return std::string(stem) + suffix; };
  const py::tuple usual = py::make_tuple("heatmaps", "flat");
  module.def(name("weigh").c_str(),
             [&head](Object a, Object w, Object weighting, Object threads) { return weigh(head, a, w, weighting, threads); },
             py::arg("activations"), py::arg("weights"), py::arg("weighting") = "given", py::kw_only(), py::arg("threads") = 1,
             "Activations (N,C,h,w) and weights (N,K,C[,h,w]) to raw maps (N,K,h,w).");
  module.def(name("finish").c_str(),
             [&head](Object raws, Object size, Object outputs, Object images, Object lut, Object alpha, Object threads) {
               return finish(head, raws, size, outputs, images, lut, alpha, threads);
             },
             py::arg("raws"), py::arg("size") = py::none(), py::arg("outputs") = usual, py::kw_only(),
             py::arg("images") = py::none(), py::arg("lut") = py::none(), py::arg("alpha") = 0.5, py::arg("threads") = 1,
             "Raw maps, one (N,K,h,w) per layer, to heatmaps, levels or pictures.");
  module.def(name("explain").c_str(),
             [&head](Object a, Object w, Object size, Object weighting, Object outputs, Object images, Object lut, Object alpha,
                     Object threads) {
               return explain(head, a, w, size, weighting, outputs, images, lut, alpha, threads);
             },
             py::arg("activations"), py::arg("weights"), py::arg("size") = py::none(), py::arg("weighting") = "mean",
             py::arg("outputs") = usual, py::kw_only(), py::arg("images") = py::none(), py::arg("lut") = py::none(),
             py::arg("alpha") = 0.5, py::arg("threads") = 1,
             "Activations and gradients or weights to heatmaps, levels or pictures.");
  module.def(name("overlay").c_str(),
             [&head](Object images, Object maps, Object lut, Object alpha, Object threads) {
               if (images.is_none()) refuse("images", "a uint8 array (N, H, W, 3 or 4)", "None");
               return shown(head, "pictures", maps, images, lut, alpha, threads);
             },
             py::arg("images"), py::arg("maps"), py::arg("lut"), py::arg("alpha") = 0.5, py::kw_only(), py::arg("threads") = 1,
             "Images (N,H,W,3 or 4), heatmaps (N,K,H,W) and colours (256,3) to pictures (N,K,H,W,3 or 4).");
  module.def(name("levels").c_str(),
             [&head](Object maps, Object threads) {
               return shown(head, "levels", maps, py::none(), py::none(), py::none(), threads);
             },
             py::arg("maps"), py::kw_only(), py::arg("threads") = 1, "Heatmaps (N,K,H,W) to levels of 0 to 255.");
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

// Calls share nothing but the pool and the threads, which lock, so the module also serves Python without a GIL.
PYBIND11_MODULE(_native, module, py::mod_gil_not_used()) {
  module.doc() = "Heads in C++: the contract is csrc/include/pycam.h, the documentation pycam/_native.pyi.";
  bind(module, "", vectorised);
  bind(module, "_ref", reference);
  module.def("finite", [](const py::object& values) {
    if (!py::isinstance<Array<float>>(values)) refuse("values", "a C-contiguous float32 array", describe(values));
    const auto array = py::reinterpret_borrow<Array<float>>(values);
    const float* data = array.data();
    const auto count = static_cast<size_t>(array.size());
    const py::gil_scoped_release nogil;
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
