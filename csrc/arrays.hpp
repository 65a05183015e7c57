// What the bindings need of numpy: arrays checked and described without a copy, and new ones in the pool's memory.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include "include/pycam.h"
#include "numbers.hpp"
#include "pool.hpp"

namespace pycam::bindings {

namespace py = pybind11;

template <class T>
using Array = py::array_t<T, py::array::c_style>;
using Axes = std::vector<std::string>;  // names, for the messages; N and K may be empty, the others may not
using Shape = std::vector<py::ssize_t>;

// ---- messages -------------------------------------------------------------------------------------------------------

inline std::string text(const std::string& item) { return item; }
inline std::string text(py::ssize_t item) { return std::to_string(item); }

template <class Item>
std::string tuple_text(const std::vector<Item>& items) {
  std::string all = "(";
  for (size_t i = 0; i < items.size(); ++i) all += (i ? ", " : "") + text(items[i]);
  return all + (items.size() == 1 ? ",)" : ")");
}

inline std::string type_name(const py::handle& value) { return py::str(py::type::handle_of(value).attr("__name__")); }

[[noreturn]] inline void refuse(const std::string& name, const std::string& expected, const std::string& found) {
  throw py::value_error(name + ": expected " + expected + ", found " + found);
}

inline Shape shape_of(const py::array& array) { return Shape(array.shape(), array.shape() + array.ndim()); }
inline Shape strides_of(const py::array& array) { return Shape(array.strides(), array.strides() + array.ndim()); }
inline bool contiguous(const py::array& array) { return (array.flags() & py::array::c_style) != 0; }
inline bool aligned(const py::array& array) { return (array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_) != 0; }

inline std::string describe(const py::handle& value) {
  if (!py::isinstance<py::array>(value)) return type_name(value);
  const auto array = py::reinterpret_borrow<py::array>(value);
  return std::string(py::str(array.dtype())) + " " + tuple_text(shape_of(array));
}

// `value` as a T, which `expected` says in words.
template <class T>
T scalar(const py::handle& value, const std::string& name, const std::string& expected) {
  try {
    return value.cast<T>();
  } catch (const py::cast_error&) {
    refuse(name, expected, describe(value));
  }
}

// ---- arrays that are given ------------------------------------------------------------------------------------------

// `value` as an array with these axes, of which N and K alone may be empty.
inline py::array with_axes(const py::handle& value, const std::string& name, const std::string& expected, const Axes& axes) {
  const auto array = py::reinterpret_borrow<py::array>(value);
  if (array.ndim() != static_cast<py::ssize_t>(axes.size())) refuse(name, expected, describe(value));
  for (size_t i = 0; i < axes.size(); ++i)
    if (array.shape(static_cast<py::ssize_t>(i)) == 0 && axes[i] != "N" && axes[i] != "K")
      refuse(name, expected + " with " + axes[i] + " at least 1", describe(value));
  return array;
}

inline void expect_shape(const py::array& array, const std::string& name, const Shape& expected, const std::string& because) {
  const Shape found = shape_of(array);
  if (found != expected) refuse(name, "shape " + tuple_text(expected) + " " + because, tuple_text(found));
}

// The type of the numbers, if it is one that heads read.
inline std::optional<pycam_type> type_of(const py::dtype& dtype) {
  constexpr int float32 = 11, float16 = 23;  // NPY_FLOAT and NPY_HALF, of numpy's ABI
  if (dtype.byteorder() != '=') return std::nullopt;
  if (dtype.num() == float32) return PYCAM_F32;
  if (dtype.num() == float16) return PYCAM_F16;
  // No type of numpy's own: ml_dtypes (and whoever else) registers one under a number drawn at run time, by this name.
  // The name of a structure of two bytes is another, whatever its fields are called.
  if (dtype.itemsize() == 2 && std::string(py::str(dtype.attr("name"))) == "bfloat16") return PYCAM_BF16;
  return std::nullopt;
}

// `value` as what heads read, with any strides.  The axes are those of a pycam_tensor: N, K, C, h and w.
inline pycam_tensor tensor(const py::handle& value, const std::string& name, const Axes& axes) {
  const std::string expected = "a float32, float16 or bfloat16 array " + tuple_text(axes);
  if (!py::isinstance<py::array>(value)) refuse(name, expected, describe(value));
  const auto type = type_of(py::reinterpret_borrow<py::array>(value).dtype());
  if (!type) refuse(name, expected, describe(value));
  const py::array array = with_axes(value, name, expected, axes);
  pycam_tensor result{};
  result.data = array.data();
  result.type = *type;
  const py::ssize_t item = array.itemsize();
  for (size_t i = 0; i < axes.size(); ++i) {
    const auto axis = static_cast<py::ssize_t>(i);
    const py::ssize_t step = array.shape(axis) > 1 ? array.strides(axis) : 0;  // that of a single item means nothing
    if (step % item != 0 && array.size() != 0)
      refuse(name, "strides that are multiples of " + std::to_string(item) + " bytes", tuple_text(strides_of(array)));
    (axes[i] == "N" ? result.image : axes[i] == "K" ? result.map : axes[i] == "C" ? result.channel
                                   : axes[i] == "h" ? result.row : result.column) = step / item;
  }
  if (!aligned(array) && array.size() != 0) refuse(name, expected, describe(value) + ", not aligned");
  return result;
}

// `value` as a dense array of T with these axes.
template <class T>
Array<T> dense(const py::handle& value, const std::string& name, const Axes& axes) {
  const std::string expected =
      std::string("a C-contiguous ") + (sizeof(T) == 4 ? "float32" : "uint8") + " array " + tuple_text(axes);
  if (!py::isinstance<py::array_t<T>>(value)) refuse(name, expected, describe(value));
  const py::array array = with_axes(value, name, expected, axes);
  if (!contiguous(array)) refuse(name, expected, describe(value) + ", not C-contiguous");
  if (!aligned(array)) refuse(name, expected, describe(value) + ", not aligned");
  return py::reinterpret_borrow<Array<T>>(array);
}

// `value` as pictures (N, H, W, 3 or 4) whose pixels may lie anywhere, but whose colours lie side by side.
inline py::array pictures(const py::handle& value, const std::string& name) {
  const std::string expected = "a uint8 array (N, H, W, 3 or 4)";
  if (!py::isinstance<py::array_t<std::uint8_t>>(value)) refuse(name, expected, describe(value));
  const py::array array = with_axes(value, name, expected, {"N", "H", "W", "the last axis"});
  if (array.shape(3) != 3 && array.shape(3) != 4) refuse(name, expected + " (red, green, blue last)", describe(value));
  if (array.strides(3) != 1 && array.size() != 0)
    refuse(name, expected + " whose last axis has a stride of 1", "strides " + tuple_text(strides_of(array)));
  return array;
}

// ---- new arrays -----------------------------------------------------------------------------------------------------

// Memory comes from the pool and goes back there.
template <class T>
Array<T> fresh(const Shape& shape) {
  size_t bytes = sizeof(T);
  for (const py::ssize_t axis : shape) {
    const auto length = static_cast<size_t>(std::max<py::ssize_t>(axis, 1));  // numpy wants memory also where there is nothing
    if (bytes > static_cast<size_t>(std::numeric_limits<py::ssize_t>::max()) / length) throw std::bad_alloc();
    bytes *= length;
  }
  struct Block {
    void* data;
    size_t bytes;
  };
  auto* block = new Block{nullptr, bytes};
  const py::capsule owner(block, [](void* held) {
    auto* it = static_cast<Block*>(held);
    if (it->data) Pool::instance().give(it->data, it->bytes);
    delete it;
  });
  block->data = Pool::instance().take(bytes);
  return Array<T>(shape, static_cast<const T*>(block->data), owner);
}

// The index of the `count`th number of an array, "[n, k, y, x]".
inline std::string index_text(size_t count, const Shape& shape) {
  std::string index;
  for (size_t axis = shape.size(); axis-- > 0;) {
    const auto length = static_cast<size_t>(shape[axis]);
    index = std::to_string(count % length) + (index.empty() ? "" : ", ") + index;
    count /= length;
  }
  return "[" + index + "]";
}

}  // namespace pycam::bindings
