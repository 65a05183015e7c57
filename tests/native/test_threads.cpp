// The same bits from any number of threads, from several callers at once, in a forked child and after pycam_release.
#include <atomic>
#include <thread>

#if defined(__linux__)
#include <dirent.h>
#include <sys/wait.h>
#include <unistd.h>
#endif

#include "harness.hpp"
#include "pycam.h"

namespace {

constexpr std::size_t IMAGES = 3, MAPS = 4, CHANNELS = 24, SIDE = 9, OUT = 48;

// One job, and its results in one piece to compare.
struct Explained {
  std::vector<float> activations, gradients;
  pycam_weighing job{};
  struct Result {
    std::vector<float> raw, heatmaps;
    std::vector<std::uint8_t> pictures, levels;
    bool operator==(const Result& other) const {
      return std::memcmp(raw.data(), other.raw.data(), raw.size() * sizeof(float)) == 0 &&
             std::memcmp(heatmaps.data(), other.heatmaps.data(), heatmaps.size() * sizeof(float)) == 0 &&
             pictures == other.pictures && levels == other.levels;
    }
  };

  explicit Explained(unsigned seed = 1) {
    const auto next = [&seed] { return static_cast<float>((seed = seed * 1664525u + 1013904223u) >> 8) * 0x1p-24f - 0.3f; };
    activations.resize(IMAGES * CHANNELS * SIDE * SIDE);
    gradients.resize(IMAGES * MAPS * CHANNELS * SIDE * SIDE);
    for (float& v : activations) v = next();
    for (float& v : gradients) v = next();
    job.images = IMAGES, job.maps = MAPS, job.channels = CHANNELS, job.height = job.width = SIDE;
    job.activations = {activations.data(), PYCAM_F32, CHANNELS * SIDE * SIDE, 0, SIDE * SIDE, SIDE, 1};
    job.weights = {gradients.data(), PYCAM_F32, MAPS * CHANNELS * SIDE * SIDE, CHANNELS * SIDE * SIDE, SIDE * SIDE, SIDE, 1};
    job.weighting = PYCAM_MEAN;
  }

  Result with(int threads) const {
    Result result;
    result.raw.resize(IMAGES * MAPS * SIDE * SIDE);
    result.heatmaps.resize(IMAGES * MAPS * OUT * OUT);
    result.levels.resize(result.heatmaps.size());
    result.pictures.resize(3 * result.heatmaps.size());
    std::vector<std::uint8_t> images(IMAGES * OUT * OUT * 3, 100);
    pycam_output out{};
    out.height = out.width = OUT;
    out.heatmaps = result.heatmaps.data();
    out.levels = result.levels.data();
    out.pictures = result.pictures.data();
    out.images = images.data();
    out.picture_pixel = out.image_pixel = 3;
    out.picture_row = out.image_row = 3 * OUT;
    out.picture_map = out.image_image = 3 * OUT * OUT;
    out.picture_image = static_cast<std::ptrdiff_t>(MAPS) * out.picture_map;
    out.lut = pycam_colormap("turbo");
    out.alpha = 0.4;
    require(pycam_explain(&job, result.raw.data(), &out, threads) == PYCAM_OK, "%s", pycam_last_error());
    return result;
  }
};

#if defined(__linux__)
int threads_of_this_process() {
  int count = 0;
  DIR* tasks = opendir("/proc/self/task");
  while (const dirent* entry = readdir(tasks)) count += entry->d_name[0] != '.';
  closedir(tasks);
  return count;
}

// What runs without the library's threads: one, and a sanitizer's own.
int settled() {
  pycam_release();
  return threads_of_this_process();
}

#if !defined(PYCAM_SANITIZED)  // their run times do not survive a fork of several threads
// The exit status of a child that runs `action`; a child that hangs is ended by its alarm.
template <class Action>
int in_child(const Action& action) {
  std::fflush(nullptr);
  const pid_t child = fork();
  require(child >= 0, "fork");
  if (child == 0) {
    alarm(30);
    _exit(action() ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  return status;
}
#endif
#endif

}  // namespace

TEST(the_same_bits_from_any_number_of_threads) {
  const Explained explained;
  const auto alone = explained.with(1);
  for (const int threads : {2, 7, 0, 1, 3, 7, 2, 1024})
    for (int again = 0; again < 5; ++again) require(explained.with(threads) == alone, "%d threads", threads);
}

TEST(the_same_bits_for_several_callers_at_once) {
  const Explained one(1), two(2);
  const auto first = one.with(1), second = two.with(1);
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 5; ++caller)
    callers.emplace_back([&, caller] {
      for (int again = 0; again < 20; ++again) {
        const bool odd = (caller + again) % 2 != 0;
        wrong += !((odd ? two : one).with(1 + (caller + again) % 4) == (odd ? second : first));
      }
    });
  for (std::thread& caller : callers) caller.join();
  require(wrong == 0, "%d of 100 calls", wrong.load());
}

TEST(errors_are_those_of_their_own_thread) {
  require(pycam_weigh(nullptr, nullptr, 1) == PYCAM_INVALID, "accepted");
  std::string other = "?";
  std::thread([&other] { other = pycam_last_error(); }).join();
  require(other.empty(), "another thread heard \"%s\"", other.c_str());
  require(std::strcmp(pycam_last_error(), "job: expected a pointer, found null") == 0, "\"%s\"", pycam_last_error());
}

TEST(release_ends_the_threads_and_calls_still_work) {
  pycam_release();
  pycam_release();
  const Explained explained;
  const auto alone = explained.with(1);
  for (int again = 0; again < 10; ++again) {
    require(explained.with(3) == alone, "round %d", again);
    pycam_release();
  }
}

#if defined(__linux__)
TEST(no_more_threads_than_asked_for) {
  const Explained explained;
  const int before = settled();
  explained.with(1);
  require(threads_of_this_process() == before, "one thread started more");
  explained.with(3);
  require(threads_of_this_process() <= before + 2, "three threads are %d", threads_of_this_process() - before + 1);
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 3; ++caller) callers.emplace_back([&explained] { explained.with(3); });
  for (std::thread& caller : callers) caller.join();
  require(settled() == before, "release left %d", threads_of_this_process() - before);
}

#if !defined(PYCAM_SANITIZED)
TEST(fork_between_calls) {
  const Explained explained;
  const auto alone = explained.with(3);
  const auto works = [&] { return explained.with(3) == alone && threads_of_this_process() == 3 && explained.with(1) == alone; };
  require(in_child(works) == 0, "a child with threads of its own");
  require(in_child([&] {
            pycam_release();
            return explained.with(2) == alone;
          }) == 0, "a child that releases");
  require(in_child([&] { return in_child([&] { return explained.with(3) == alone; }) == 0; }) == 0, "a grandchild");
  require(explained.with(3) == alone, "the parent, later");
}

// The child is made while another thread is inside a call, and may have any lock.
TEST(fork_during_calls) {
  const Explained explained;
  const auto alone = explained.with(1);
  std::atomic<bool> over{false};
  std::atomic<int> calls{0};
  std::thread busy([&] {
    while (!over) {
      explained.with(3);
      ++calls;
    }
  });
  while (calls == 0) std::this_thread::yield();
  int failed = 0;
  for (int again = 0; again < 20; ++again) failed += in_child([&] { return explained.with(2) == alone; }) != 0;
  over = true;
  busy.join();
  require(failed == 0, "%d of 20 children", failed);
}
#endif
#endif

int main(int count, char** names) { return run_tests(count, names); }
