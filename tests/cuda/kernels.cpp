// The kernels of csrc/cam_head.cuh on the model, by name: a library for ctypes (model_launch).
// With MODEL_THREADS a program instead: it replays a file that tests/cuda/conftest.py writes (see `replay`).
#include "cuda_model.hpp"

#include "cam_head.cuh"

#include <map>

namespace {

using Arguments = const void* const*;
using Kernel = void (*)(Arguments);

template <typename T>
const T& argument(Arguments arguments, int i) {
  return *static_cast<const T*>(arguments[i]);
}
using One = cam::Finish<1>;
using Many = cam::Finish<cam::MAX_LAYERS>;

#define WEIGH(NAME) \
  {#NAME, [](Arguments a) { NAME(argument<cam::Weigh>(a, 0), argument<One>(a, 1)); }}
#define MODES(TYPE, SIZE) \
  WEIGH(cam_weigh_##TYPE##_channel_##SIZE), WEIGH(cam_weigh_##TYPE##_mean_##SIZE), \
      WEIGH(cam_weigh_##TYPE##_plusplus_##SIZE), WEIGH(cam_weigh_##TYPE##_element_##SIZE)
#define TYPE(NAME)                                                                                       \
  MODES(NAME, 64), MODES(NAME, 256), WEIGH(cam_weigh_any_##NAME##_##NAME), {                             \
    "cam_channel_weights_" #NAME, [](Arguments a) { cam_channel_weights_##NAME(argument<cam::Weigh>(a, 0)); } \
  }
#define FINISH(NAME, STRUCT) \
  {#NAME, [](Arguments a) { NAME(argument<STRUCT>(a, 0)); }}

const std::map<std::string, Kernel> kernels = {
    TYPE(f32), TYPE(f16), TYPE(bf16), WEIGH(cam_weigh_any_f16_f32), WEIGH(cam_weigh_any_bf16_f32),
    FINISH(cam_finish, Many), FINISH(cam_extremes, Many), FINISH(cam_paint, Many), FINISH(cam_overlay, One)};

std::string launch(const char* name, unsigned grid, unsigned block, std::size_t shared, Arguments arguments,
                   std::vector<model::Range> buffers, unsigned seed) {
  const auto found = kernels.find(name);
  if (found == kernels.end()) return std::string("no kernel ") + name;
  if (grid == 0 || block == 0 || block > 1024 || shared > 48 * 1024) return "not a valid launch";
  const Kernel kernel = found->second;
  return model::run({grid, block, shared, [=] { kernel(arguments); }, std::move(buffers)}, seed);
}

}  // namespace

#if !defined(MODEL_THREADS)
extern "C" const char* model_launch(const char* name, unsigned grid, unsigned block, std::size_t shared, Arguments arguments,
                                    const model::Range* buffers, std::size_t buffer_count, unsigned seed) {
  static std::string error;
  error = launch(name, grid, block, shared, arguments, {buffers, buffers + buffer_count}, seed);
  return error.c_str();
}

// Sizes that pycam/head/kernels.py and jobs.py state too.
extern "C" const int model_sizes[] = {sizeof(cam::Tensor), sizeof(cam::Weigh), sizeof(cam::Source), sizeof(One), sizeof(Many),
                                      cam::STATISTICS_BYTES<1>, cam::STATISTICS_BYTES<cam::MAX_LAYERS>, cam::SCRATCH_BYTES,
                                      cam::LUT_BYTES, sizeof(cam::Statistics<cam::MAX_LAYERS>), sizeof(cam::Column)};
#else

// replay FILE: 64-bit numbers and bytes.  Buffers: count, then (address, size, bytes) each.  Launches: count, then (name in
// 64 bytes, grid, block, shared, count of arguments, then (size, bytes) each).  A number in an argument that lies in a
// buffer's range is an address: it becomes the address of the buffer here.  Afterwards the buffers' bytes are written back.
int main(int count, char** values) {
  std::FILE* file = count == 2 ? std::fopen(values[1], "r+b") : nullptr;
  if (!file) return std::fputs("usage: replay FILE\n", stderr), 2;
  const auto read = [&](void* to, std::size_t size) {
    if (size && std::fread(to, size, 1, file) != 1) std::fputs("the file is too short\n", stderr), std::exit(2);
  };
  const auto number = [&] {
    std::uint64_t value = 0;
    read(&value, 8);
    return value;
  };
  struct Buffer {
    std::uint64_t address, size;
    long offset;
    unsigned char* data;
  };
  std::vector<Buffer> buffers(number());
  for (Buffer& buffer : buffers) {
    buffer.address = number(), buffer.size = number(), buffer.offset = std::ftell(file);
    // Exactly as long as asked for, so that AddressSanitizer knows the end.
    if (posix_memalign(reinterpret_cast<void**>(&buffer.data), 256, buffer.size)) return 2;
    read(buffer.data, buffer.size);
  }
  for (std::uint64_t left = number(); left > 0; --left) {
    char name[64];
    read(name, sizeof name);
    const std::uint64_t grid = number(), block = number(), shared = number();
    std::vector<std::vector<std::uint64_t>> arguments(number());
    std::vector<const void*> pointers;
    for (auto& argument : arguments) {
      argument.resize((number() + 7) / 8);
      read(argument.data(), argument.size() * 8);
      for (std::uint64_t& word : argument)
        for (const Buffer& buffer : buffers)
          if (word >= buffer.address && word < buffer.address + buffer.size) {
            word = reinterpret_cast<std::uint64_t>(buffer.data) + (word - buffer.address);
            break;
          }
      pointers.push_back(argument.data());
    }
    const auto blocks = static_cast<unsigned>(grid), threads = static_cast<unsigned>(block);
    const std::string error = launch(name, blocks, threads, shared, pointers.data(), {}, 0);
    if (!error.empty()) return std::fprintf(stderr, "%s\n", error.c_str()), 3;
  }
  for (const Buffer& buffer : buffers) {
    std::fseek(file, buffer.offset, SEEK_SET);
    std::fwrite(buffer.data, 1, buffer.size, file);
    std::free(buffer.data);
  }
  return std::fclose(file);
}
#endif
