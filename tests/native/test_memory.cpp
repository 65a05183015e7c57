// What the library asks of the system: nothing after a first call; and what it does when it gets nothing.
// malloc and pthread_create are this program's own, in front of glibc's.
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>

#include <atomic>
#include <thread>

#include "harness.hpp"
#include "pycam.h"

extern "C" {
void* __libc_malloc(std::size_t);
void* __libc_calloc(std::size_t, std::size_t);
void* __libc_realloc(void*, std::size_t);
void* __libc_memalign(std::size_t, std::size_t);
}

namespace {

std::atomic<long> allocations{0};
std::atomic<long> left{-1};  // allocations that still succeed; negative: all
std::atomic<bool> no_threads{false};

bool granted() {
  allocations.fetch_add(1);
  if (left.load() < 0) return true;
  if (left.load() == 0) return false;
  left.fetch_sub(1);
  return true;
}

}  // namespace

extern "C" {
void* malloc(std::size_t size) noexcept { return granted() ? __libc_malloc(size) : nullptr; }
// Never refused: glibc ends the process where it cannot note down that a thread has something to destroy.
void* calloc(std::size_t count, std::size_t size) noexcept {
  allocations.fetch_add(1);
  return __libc_calloc(count, size);
}
void* realloc(void* old, std::size_t size) noexcept { return granted() ? __libc_realloc(old, size) : nullptr; }
void* memalign(std::size_t alignment, std::size_t size) noexcept {
  return granted() ? __libc_memalign(alignment, size) : nullptr;
}
void* aligned_alloc(std::size_t alignment, std::size_t size) noexcept { return memalign(alignment, size); }
int posix_memalign(void** to, std::size_t alignment, std::size_t size) noexcept {
  *to = memalign(alignment, size);
  return *to ? 0 : ENOMEM;
}
int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*start)(void*), void* argument) noexcept {
  if (no_threads) return EAGAIN;
  using Create = int (*)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
  static const auto next = reinterpret_cast<Create>(dlsym(RTLD_NEXT, "pthread_create"));
  return next(thread, attributes, start, argument);
}
}

namespace {

constexpr std::size_t IMAGES = 3, MAPS = 3, CHANNELS = 16, SIDE = 12, OUT = 40, COUNT = IMAGES * MAPS;

// All functions on one job, in every type and layout, with memory of their own.
struct Work {
  std::vector<float> floats = std::vector<float>(COUNT * CHANNELS * SIDE * SIDE);
  std::vector<std::uint16_t> halves = std::vector<std::uint16_t>(floats.size());  // ordinary numbers in either type
  std::vector<float> raw = std::vector<float>(COUNT * SIDE * SIDE), heatmaps = std::vector<float>(COUNT * OUT * OUT);
  std::vector<std::uint8_t> images = std::vector<std::uint8_t>(3 * IMAGES * OUT * OUT, 1);
  std::vector<std::uint8_t> pictures = std::vector<std::uint8_t>(COUNT * 3 * OUT * OUT);
  pycam_weighing job{};
  pycam_output out{};

  Work() {
    for (std::size_t i = 0; i < floats.size(); ++i) {
      floats[i] = static_cast<float>(i % 17) / 17;
      halves[i] = static_cast<std::uint16_t>(0x3800 + i % 1021);
    }
    job.images = IMAGES, job.maps = MAPS, job.channels = CHANNELS, job.height = job.width = SIDE;
    out.height = out.width = OUT;
    out.heatmaps = heatmaps.data();
    out.pictures = pictures.data();
    out.images = images.data();
    out.picture_pixel = out.image_pixel = 3;
    out.picture_row = out.image_row = 3 * OUT;
    out.picture_map = out.image_image = 3 * OUT * OUT;
    out.picture_image = static_cast<std::ptrdiff_t>(MAPS) * out.picture_map;
    out.lut = pycam_colormap("jet");
    out.alpha = 0.5;
  }
  static pycam_tensor layout(const void* data, pycam_type type, bool channels_last) {
    constexpr std::ptrdiff_t map = CHANNELS * SIDE * SIDE;
    return channels_last ? pycam_tensor{data, type, MAPS * map, map, 1, SIDE * CHANNELS, CHANNELS}
                         : pycam_tensor{data, type, MAPS * map, map, SIDE * SIDE, SIDE, 1};
  }
  // Call number `i`, or all of them.
  static constexpr int CALLS = 32;
  pycam_status call(int i, int threads) {
    constexpr std::ptrdiff_t area = SIDE * SIDE;
    const pycam_layer layers[2] = {{{raw.data(), PYCAM_F32, MAPS * area, area, 0, SIDE, 1}, SIDE, SIDE},
                                   {{raw.data(), PYCAM_F32, MAPS * area, area, 0, 1, SIDE}, SIDE, SIDE}};
    pycam_output painted = out;
    painted.heatmaps = nullptr;
    if (i == CALLS - 1) return pycam_finish(layers, 2, IMAGES, MAPS, &out, threads);
    if (i == CALLS - 2) return pycam_overlay(heatmaps.data(), IMAGES, MAPS, &painted, threads);
    const auto type = static_cast<pycam_type>(i % 3);
    const void* data = type == PYCAM_F32 ? static_cast<const void*>(floats.data()) : halves.data();
    job.weighting = static_cast<pycam_weighting>(i / 6);
    job.activations = job.weights = layout(data, type, i / 3 % 2 != 0);
    if (const pycam_status status = pycam_weigh(&job, raw.data(), threads)) return status;
    return pycam_explain(&job, nullptr, &out, threads);
  }
  pycam_status all(int threads) {
    pycam_status status = PYCAM_OK;
    for (int i = 0; i < CALLS && status == PYCAM_OK; ++i) status = call(i, threads);
    return status;
  }
};

}  // namespace

TEST(the_count_is_of_everything) {
  const long before = allocations;
  int* volatile object = new int(1);  // volatile: else the compiler leaves both out
  void* volatile block = std::malloc(1);
  delete object;
  std::free(block);
  require(allocations - before == 2, "counted %ld of 2", allocations - before);
}

// Which thread gets a map is chance, so that the first call of a thread may be a late one: what is certain is that each
// thread allocates in at most one call of each function.
TEST(nothing_is_allocated_after_a_first_call) {
  Work work;
  for (const int threads : {1, 3})
    for (int i = 0; i < Work::CALLS; ++i) {
      int with_allocations = 0;
      for (int again = 0; again < 20; ++again) {
        const long before = allocations;
        require(work.call(i, threads) == PYCAM_OK, "%s", pycam_last_error());
        with_allocations += allocations != before;
        require(again == 0 || threads > 1 || allocations == before, "call %d: %ld allocations", i, allocations - before);
      }
      require(with_allocations <= 2 * threads, "call %d of %d threads: %d of 20 allocated", i, threads, with_allocations);
    }
  const long before = allocations;
  require(pycam_weigh(nullptr, nullptr, 1) == PYCAM_INVALID && pycam_last_error()[0] != 0, "accepted");
  require(allocations == before, "an error allocated");
}

// Allocation number 0, 1, 2 … fails: an error each time, until there are enough; then the result is right.
TEST(no_memory_is_an_error_and_nothing_breaks) {
  Work work, calm;
  require(calm.all(1) == PYCAM_OK, "%s", pycam_last_error());
  for (const int threads : {1, 2}) {
    int refusals = 0;
    for (long granted_ones = 0;; ++granted_ones) {
      require(granted_ones < 1000, "never enough");
      pycam_status status = PYCAM_OK;
      std::string said;
      std::thread fresh([&] {  // without scratch
        left = granted_ones;
        status = work.all(threads);
        left = -1;
        said = pycam_last_error();
        pycam_release();
      });
      fresh.join();
      if (status == PYCAM_OK) break;
      require(status == PYCAM_NO_MEMORY, "status %d: %s", status, said.c_str());
      const bool expected = said == "not enough memory for scratch" || said.find("a thread could not be started") == 0;
      require(expected, "said \"%s\"", said.c_str());
      ++refusals;
    }
    require(refusals > 0, "nothing was ever refused");
    require(work.pictures == calm.pictures && work.heatmaps == calm.heatmaps, "another result afterwards");
  }
}

TEST(threads_that_cannot_be_started_are_an_error) {
  Work work;
  pycam_release();
  no_threads = true;
  const pycam_status status = work.all(3);
  const std::string said = pycam_last_error();
  const pycam_status alone = work.all(1);
  no_threads = false;
  require(status == PYCAM_NO_MEMORY, "status %d", status);
  require(said == "a thread could not be started: Resource temporarily unavailable", "said \"%s\"", said.c_str());
  require(alone == PYCAM_OK, "alone: %s", pycam_last_error());
  require(work.all(3) == PYCAM_OK, "later: %s", pycam_last_error());
}

int main(int count, char** names) { return run_tests(count, names); }
