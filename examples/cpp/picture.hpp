// Pictures in and out: PPM always, JPEG where libjpeg was there when this was compiled.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <vector>

struct Picture {
  size_t height = 0, width = 0;
  std::vector<std::uint8_t> pixels;  // (height, width, 3), red, green, blue
};

constexpr size_t MOST_PIXELS = 100'000'000;  // what is larger is refused before it is decoded

using Bytes = std::vector<std::uint8_t>;

// Binary PPM or PGM (P6, P5) of 8 bits, or JPEG, told apart by what is in the file.  A JPEG comes out upright.
// Failure(Exit::picture): it is missing, broken, too large or something else.
Picture read_picture(const std::filesystem::path& path);

// PPM or JPEG, by the ending of `path`; the file appears whole or not at all.
// Failure(Exit::output): it cannot be written.
void write_picture(const std::filesystem::path& path, const Picture& picture);

// Failure(Exit::usage): write_picture() knows no such ending.
void check_ending(const std::filesystem::path& path);

// jpeg.cpp, or no_jpeg.cpp in its place.  `name` is for messages.
extern const bool has_jpeg;
Picture decode_jpeg(const Bytes& file, const std::string& name);
Bytes encode_jpeg(const Picture& picture);
