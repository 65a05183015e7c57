// What an embedder of an explain graph does in C++17: heatmaps to a picture; and how an error reads.
#include <pycam.h>

#include <cstdint>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <vector>

static_assert(PYCAM_ABI == 1);

namespace {

void check(pycam_status status) {
  if (status != PYCAM_OK) throw std::runtime_error(pycam_last_error());
}

}  // namespace

int main() {
  constexpr std::size_t height = 40, width = 60;
  std::vector<float> heatmap(height * width);
  for (std::size_t i = 0; i < heatmap.size(); ++i) heatmap[i] = static_cast<float>(i % width) / width;
  std::vector<std::uint8_t> image(3 * height * width, 128), picture(image.size());

  pycam_output output{};
  output.height = height;
  output.width = width;
  output.images = image.data();
  output.pictures = picture.data();
  output.image_image = output.picture_image = 3 * height * width;
  output.image_row = output.picture_row = 3 * width;
  output.image_pixel = output.picture_pixel = 3;
  output.lut = pycam_colormap("viridis");
  output.alpha = 0.5;
  check(pycam_overlay(heatmap.data(), 1, 1, &output, 0));
  std::ofstream file("explained.ppm", std::ios::binary);
  file << "P6 " << width << ' ' << height << " 255\n";
  file.write(reinterpret_cast<const char*>(picture.data()), static_cast<std::streamsize>(picture.size()));

  output.alpha = 2;
  try {
    check(pycam_overlay(heatmap.data(), 1, 1, &output, 0));
  } catch (const std::runtime_error& error) {
    std::cout << pycam_version() << ", " << pycam_abi() << ": " << error.what() << '\n';
    return file ? 0 : 1;
  }
  return 1;
}
