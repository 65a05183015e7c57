// What a call of the bindings is asked for, by name, as a pycam_output and the new arrays that it points to.
#pragma once
#include <array>
#include <type_traits>

#include "arrays.hpp"

namespace pycam::bindings {

inline const char* const output_names[] = {"heatmaps", "levels", "pictures", "flat", "raw"};  // of finish all but the last
using Names = std::vector<std::string>;

// `value` as names among the first `count` of output_names.
inline Names names_of(const py::object& value, size_t count) {
  const Axes known(output_names, output_names + count);
  const std::string expected = "a tuple or list of names of " + tuple_text(known);
  if (!py::isinstance<py::tuple>(value) && !py::isinstance<py::list>(value)) refuse("outputs", expected, describe(value));
  Names names;
  for (const py::handle& item : py::reinterpret_borrow<py::sequence>(value)) {
    const auto name = py::isinstance<py::str>(item) ? item.cast<std::string>() : describe(item);
    if (std::find(known.begin(), known.end(), name) == known.end()) refuse("outputs", expected, name);
    names.push_back(name);
  }
  return names;
}

struct Size {
  py::ssize_t height, width;
};

// (height, width); for None that of `images`, which it must not differ from.
inline Size size_of(const py::object& value, const std::optional<py::array>& images) {
  constexpr py::ssize_t limit = 1 << 24;  // keeps height * width * 4 far from overflow; memory ends long before
  const std::string expected = "(height, width), each 1 to " + std::to_string(limit);
  if (value.is_none() && images) return {images->shape(1), images->shape(2)};
  if (!py::isinstance<py::tuple>(value) && !py::isinstance<py::list>(value))
    refuse("size", expected + (images ? "" : ", where there are no images whose size it could be"), describe(value));
  const auto pair = py::reinterpret_borrow<py::sequence>(value);
  if (pair.size() != 2) refuse("size", expected, py::str(value));
  Size size{};
  try {
    size = {pair[0].cast<py::ssize_t>(), pair[1].cast<py::ssize_t>()};
  } catch (const py::cast_error&) {
    refuse("size", expected, py::str(value));
  }
  if (std::min(size.height, size.width) < 1 || std::max(size.height, size.width) > limit)
    refuse("size", expected, py::str(value));
  if (images && (size.height != images->shape(1) || size.width != images->shape(2)))
    refuse("size", tuple_text(Shape{images->shape(1), images->shape(2)}) + ", that of the images", py::str(value));
  return size;
}

// Images under heatmaps, the colours over them, and the pictures that both make.
struct Painting {
  py::array images;
  Array<std::uint8_t> lut, pictures;

  Painting(py::array under, const py::object& colours, const py::object& opacity, const Shape& lead, pycam_output& out)
      : images(std::move(under)), lut(dense<std::uint8_t>(colours, "lut", {"256", "3"})) {
    expect_shape(lut, "lut", {256, 3}, "(a colour per level)");
    const auto alpha = scalar<double>(opacity, "alpha", "0 to 1");
    if (!(alpha >= 0 && alpha <= 1)) refuse("alpha", "0 to 1", std::to_string(alpha));
    const Shape shape = shape_of(images);
    if (shape[0] != lead[0])
      refuse("images", std::to_string(lead[0]) + " of them, one for the maps of each", std::to_string(shape[0]));
    pictures = fresh<std::uint8_t>({lead[0], lead[1], shape[1], shape[2], shape[3]});
    out.pictures = pictures.mutable_data();
    out.picture_image = pictures.strides(0);
    out.picture_map = pictures.strides(1);
    out.picture_row = pictures.strides(2);
    out.picture_pixel = pictures.strides(3);
    out.images = static_cast<const std::uint8_t*>(images.data());
    out.image_image = images.strides(0);
    out.image_row = images.strides(1);
    out.image_pixel = images.strides(2);
    out.lut = lut.data();
    out.alpha = alpha;
  }

  // The fourth byte of each pixel, which heads leave alone: that of the image.  Needs no GIL.
  static void copy_opacity(const pycam_output& out, size_t count, size_t maps) {
    if (out.picture_pixel != 4 || !out.pictures) return;
    for (size_t m = 0; m < count; ++m)
      for (size_t y = 0; y < out.height; ++y) {
        const auto at = [](size_t index, ptrdiff_t stride) { return static_cast<ptrdiff_t>(index) * stride; };
        const std::uint8_t* from = out.images + at(m / maps, out.image_image) + at(y, out.image_row) + 3;
        std::uint8_t* to = out.pictures + (m * out.height + y) * out.width * 4 + 3;
        for (size_t x = 0; x < out.width; ++x) to[4 * x] = from[at(x, out.image_pixel)];
      }
  }
};

// The results that `names` asks for.
struct Outputs {
  pycam_output wanted{};
  float* raw = nullptr;

  // lead: N and K; grid: h and w of raw maps, where those can be asked for.
  Outputs(Names names, const Shape& lead, const Shape& grid, const py::object& size, const py::object& images_,
          const py::object& lut, const py::object& alpha)
      : names_(std::move(names)) {
    std::optional<py::array> images;
    if (!images_.is_none()) images = pictures(images_, "images");
    const Size sides = size_of(size, images);
    wanted.height = static_cast<size_t>(sides.height);
    wanted.width = static_cast<size_t>(sides.width);
    const Shape shape = {lead[0], lead[1], sides.height, sides.width};
    for (const std::string& name : names_) {
      if (name == "heatmaps") keep(name, shape, wanted.heatmaps);
      if (name == "levels") keep(name, shape, wanted.levels);
      if (name == "flat") keep<bool>(name, lead, wanted.flat);
      if (name == "raw") keep(name, {lead[0], lead[1], grid[0], grid[1]}, raw);
      if (name == "pictures" && !painting_) {
        if (!images) refuse("images", "a uint8 array (N, H, W, 3 or 4) for the pictures in outputs", describe(images_));
        painting_.emplace(std::move(*images), lut, alpha, lead, wanted);
        made_[py::str(name)] = painting_->pictures;
      }
    }
  }

  py::tuple arrays() const {
    py::tuple result(names_.size());
    for (size_t i = 0; i < names_.size(); ++i) result[i] = made_[py::str(names_[i])];
    return result;
  }

 private:
  // What a pycam_output has is what numpy is given, but for its bytes that are 0 or 1.
  template <class Item = void, class Field>
  void keep(const std::string& name, const Shape& shape, Field*& field) {
    if (field) return;  // named twice
    auto array = fresh<std::conditional_t<std::is_void_v<Item>, Field, Item>>(shape);
    static_assert(sizeof(*array.mutable_data()) == sizeof(Field));
    field = reinterpret_cast<Field*>(array.mutable_data());
    made_[py::str(name)] = array;
  }

  Names names_;
  std::optional<Painting> painting_;
  py::dict made_;
};

}  // namespace pycam::bindings
