// The threads of cuda_model.hpp: every CUDA thread is an OS thread, and all blocks of a launch run at once.
// What a block's end frees, and what a launch's end orders, is what joining its threads orders.
#pragma once
#include <condition_variable>
#include <thread>

namespace model {

// Two halves, used in turn: a thread that wakes late must not be ordered after what others do on their way to the next
// barrier, or ThreadSanitizer would take a race for synchronised.
struct Barrier {
  struct Half {
    std::mutex mutex;
    std::condition_variable released;
    unsigned arrived = 0, done = 0;  // how many generations, after the last of this half
    int pending = 0, result = 0;
    Place place{"?", 0};
  };
  Half halves[2];
  std::atomic<unsigned> generation{0};
};
// Cannot change between two arrivals of the calling thread, so its order is nobody's business.
inline unsigned generation(const Barrier& barrier) { return barrier.generation.load(std::memory_order_relaxed); }

struct Warp {
  Barrier barrier;
  unsigned long long slots[2][32];
};

struct Block {
  const Launch& launch;
  unsigned number;
  Barrier barrier;
  std::vector<Warp> warps;
  SharedMemory shared;
  std::atomic<bool> met{false};  // whether an atomic operation of this block has met other blocks

  Block(const Launch& launch, unsigned number)
      : launch(launch), number(number), warps((launch.block + 31) / 32), shared(launch.shared_bytes) {}
};

struct Thread {
  Block* block;
  unsigned number;
};
inline thread_local Thread* current = nullptr;

// Other threads may be anywhere: the process cannot go on.
[[noreturn]] inline void fail(const std::string& error) {
  std::fprintf(stderr, "cuda_model: %s\n", error.c_str());
  std::_Exit(3);
}

inline int arrive(Barrier& barrier, unsigned need, Place place, int value) {
  const unsigned next = generation(barrier) + 1;
  Barrier::Half& half = barrier.halves[next % 2];
  std::unique_lock<std::mutex> lock(half.mutex);
  if (half.arrived == 0) half.place = place;
  if (!(half.place == place)) fail("barrier: some threads are at " + half.place.text() + ", others at " + place.text());
  half.pending |= value;
  if (++half.arrived == need) {
    half.result = half.pending;
    half.pending = 0, half.arrived = 0, half.done = next;
    barrier.generation.store(next, std::memory_order_relaxed);
    half.released.notify_all();
  } else {
    half.released.wait(lock, [&] { return half.done == next; });
  }
  return half.result;  // the next result in this half waits for this thread
}

inline std::string run(const Launch& launch, unsigned) {
  std::vector<std::unique_ptr<Block>> blocks;
  for (unsigned i = 0; i < launch.grid; ++i) blocks.push_back(std::make_unique<Block>(launch, i));
  std::vector<std::thread> threads;
  for (auto& block : blocks)
    for (unsigned i = 0; i < launch.block; ++i)
      threads.emplace_back([&launch, i, block = block.get()] {
        Thread self{block, i};
        current = &self;
        launch.kernel();
      });
  for (auto& thread : threads) thread.join();
  return "";
}

}  // namespace model
