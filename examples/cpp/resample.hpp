// What a model sees of a photo, as `pycam.image.crop` has it, which asks Pillow.  The bytes are the same where Pillow
// resamples columns first, as here; from version 13 on it takes rows first for tall pictures, which rounds otherwise.
#pragma once

#include "picture.hpp"

enum class Filter { bilinear, bicubic };

struct Box {
  double left, top, right, bottom;
};

// The largest centred box of the aspect height : width, times `share`; fractions of pixels included.
Box crop_box(const Picture& picture, size_t height, size_t width, double share);

// The box at another size, antialiased where it shrinks.
Picture resample(const Picture& picture, const Box& box, size_t height, size_t width, Filter filter);
