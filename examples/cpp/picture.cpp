#include "picture.hpp"

#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <initializer_list>
#include <iterator>
#include <string>

#include "failure.hpp"

namespace fs = std::filesystem;

namespace {

Bytes read_file(const fs::path& path) {
  const auto failed = [&](const char* why) { return Failure(Exit::picture, "cannot read " + path.string() + ": " + why); };
  if (std::error_code none; fs::is_directory(path, none)) throw failed("it is a folder");
  std::ifstream file(path, std::ios::binary);
  if (!file) throw failed(std::strerror(errno));
  Bytes bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (file.bad()) throw failed(std::strerror(errno));
  return bytes;
}

// ---- PPM -----------------------------------------------------------------------------------------------------------

// The next number of the header, behind spaces and comments; it ends with one space.
size_t header_number(const Bytes& file, size_t& at, const std::string& name) {
  const auto more = [&] { return at < file.size(); };
  while (more() && (std::isspace(file[at]) || file[at] == '#')) {
    if (file[at] == '#')
      while (more() && file[at] != '\n') ++at;
    else
      ++at;
  }
  const size_t start = at;
  size_t number = 0;
  for (; more() && std::isdigit(file[at]) && at - start < 9; ++at) number = 10 * number + (file[at] - '0');
  if (at == start || !more() || !std::isspace(file[at])) throw Failure(Exit::picture, name + ": the header is no PPM's");
  return number;
}

Picture decode_ppm(const Bytes& file, const std::string& name) {
  const auto failed = [&](const std::string& why) { return Failure(Exit::picture, name + ": " + why); };
  size_t at = 2;
  const size_t width = header_number(file, at, name), height = header_number(file, at, name);
  const size_t top = header_number(file, at, name), channels = file[1] == '6' ? 3 : 1;
  ++at;
  if (top != 255) throw failed("the largest value is " + std::to_string(top) + ": only pictures of 8 bits (255) are read");
  if (width == 0 || height == 0) throw failed("the picture is empty");
  if (width > MOST_PIXELS / height) throw failed("the picture is larger than 100 megapixels");
  if (file.size() - at < channels * width * height) throw failed("the file is truncated");

  Picture picture{height, width, Bytes(3 * width * height)};
  if (channels == 3)
    std::memcpy(picture.pixels.data(), file.data() + at, picture.pixels.size());
  else
    for (size_t i = 0; i < picture.pixels.size(); ++i) picture.pixels[i] = file[at + i / 3];
  return picture;
}

Bytes encode_ppm(const Picture& picture) {
  const std::string header = "P6\n" + std::to_string(picture.width) + " " + std::to_string(picture.height) + "\n255\n";
  Bytes file(header.begin(), header.end());
  file.insert(file.end(), picture.pixels.begin(), picture.pixels.end());
  return file;
}

// ---- by name -------------------------------------------------------------------------------------------------------

std::string ending(const fs::path& path) {
  std::string text = path.extension().string();
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

bool is_jpeg(const fs::path& path) { return ending(path) == ".jpg" || ending(path) == ".jpeg"; }

}  // namespace

Picture read_picture(const fs::path& path) {
  const Bytes file = read_file(path);
  const auto begins = [&](std::initializer_list<std::uint8_t> magic) {
    return file.size() >= magic.size() && std::equal(magic.begin(), magic.end(), file.begin());
  };
  if (begins({'P', '6'}) || begins({'P', '5'})) return decode_ppm(file, path.string());
  if (begins({0xFF, 0xD8, 0xFF})) return decode_jpeg(file, path.string());
  throw Failure(Exit::picture, path.string() + " is neither a binary PPM nor a JPEG: convert it");
}

void check_ending(const fs::path& path) {
  if (is_jpeg(path) && !has_jpeg)
    throw Failure(Exit::usage, "cannot write " + path.string() + ": this was built without libjpeg; take .ppm");
  if (!is_jpeg(path) && ending(path) != ".ppm")
    throw Failure(Exit::usage, "cannot write " + path.string() + ": its name must end in .ppm, .jpg or .jpeg");
}

void write_picture(const fs::path& path, const Picture& picture) {
  check_ending(path);
  const Bytes file = is_jpeg(path) ? encode_jpeg(picture) : encode_ppm(picture);
  fs::path unfinished = path;
  unfinished += "." + std::to_string(getpid()) + ".tmp";
  std::ofstream stream(unfinished, std::ios::binary);
  stream.write(reinterpret_cast<const char*>(file.data()), static_cast<std::streamsize>(file.size()));
  stream.close();
  const int reason = errno;
  std::error_code error;
  if (stream) fs::rename(unfinished, path, error);
  if (stream && !error) return;
  const std::string why = stream ? error.message() : std::strerror(reason);
  fs::remove(unfinished, error);
  throw Failure(Exit::output, "cannot write " + path.string() + ": " + why);
}
