#include "failure.hpp"
#include "picture.hpp"

const bool has_jpeg = false;

Picture decode_jpeg(const Bytes&, const std::string& name) {
  throw Failure(Exit::picture, name + " is a JPEG, and this was built without libjpeg: convert it to PPM");
}

Bytes encode_jpeg(const Picture&) { throw Failure(Exit::output, "this was built without libjpeg"); }
