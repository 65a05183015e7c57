// The fibers of cuda_model.hpp: every CUDA thread is a stack of its own on one OS thread.
// makecontext starts a fiber, _setjmp and _longjmp switch between them (no system calls, unlike swapcontext).
// Compile with -U_FORTIFY_SOURCE: its longjmp refuses to leave the stack.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

namespace model {

struct Barrier {
  unsigned arrived = 0, generation = 0;
  int pending = 0, result = 0;
  Place place{"?", 0};
};
inline unsigned generation(const Barrier& barrier) { return barrier.generation; }

struct Warp {
  Barrier barrier;
  unsigned long long slots[2][32];
};

struct Block;

struct Thread {
  static constexpr std::size_t STACK = 128 << 10;
  Block* block = nullptr;
  unsigned number = 0;
  const Barrier* waits_for = nullptr;  // until its generation is not waits_since
  unsigned waits_since = 0;
  bool started = false, done = false;
  jmp_buf where;
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[STACK]};

  bool blocked() const { return waits_for && waits_for->generation == waits_since; }
};

struct Block {
  const Launch& launch;
  unsigned number;
  Barrier barrier;
  std::vector<Warp> warps;
  SharedMemory shared;
  std::vector<std::unique_ptr<Thread>> threads;

  Block(const Launch& launch, unsigned number)
      : launch(launch), number(number), warps((launch.block + 31) / 32), shared(launch.shared_bytes) {}
};

inline Thread* current = nullptr;

// Runs the blocks of one launch.
class Scheduler {
 public:
  Scheduler(const Launch& launch, unsigned seed) : launch_(launch), random_(seed), shuffled_(seed != 0) {}

  std::string run() {
    self = this;
    while (error_.empty()) {
      while (next_ < launch_.grid && blocks_.size() < (shuffled_ ? RESIDENT : 1)) blocks_.push_back(start(next_++));
      if (blocks_.empty()) break;
      const bool progress = turn();
      for (std::size_t i = blocks_.size(); i-- > 0 && error_.empty();) retire(i, progress);
    }
    return error_;
  }

  static Scheduler* self;  // of the launch that runs

  void yield() {
    if (_setjmp(current->where) == 0) _longjmp(scheduler_, 1);
  }
  [[noreturn]] void stop(const std::string& error) {
    if (error_.empty()) error_ = error;
    for (;;) yield();
  }

 private:
  static constexpr std::size_t RESIDENT = 8;  // blocks at once

  std::unique_ptr<Block> start(unsigned number) {
    auto block = std::make_unique<Block>(launch_, number);
    for (unsigned i = 0; i < launch_.block; ++i) {
      if (spare_.empty()) spare_.push_back(std::make_unique<Thread>());
      auto thread = std::move(spare_.back());
      spare_.pop_back();
      thread->block = block.get(), thread->number = i, thread->waits_for = nullptr, thread->done = false;
      block->threads.push_back(std::move(thread));
    }
    return block;
  }

  // Every warp of every block once, in random order; but one of them only when the others cannot go on.
  bool turn() {
    std::vector<std::pair<Block*, unsigned>> warps;
    for (auto& block : blocks_)
      for (unsigned w = 0; w < block->warps.size(); ++w) warps.emplace_back(block.get(), w);
    if (shuffled_) {
      std::shuffle(warps.begin(), warps.end(), random_);
      std::shuffle(std::begin(lanes_), std::end(lanes_), random_);
      if (!starved_.first && random_() % 2) starved_ = warps[random_() % warps.size()];
    }
    bool progress = false;
    for (auto& warp : warps)
      if (warp != starved_) progress |= run_warp(*warp.first, warp.second);
    if (!progress && starved_.first) {
      progress = run_warp(*starved_.first, starved_.second);
      starved_ = {};
    }
    return progress;
  }

  // A warp, until each lane waits for others or is done.
  bool run_warp(Block& block, unsigned warp) {
    bool any = false;
    for (bool again = true; again;) {
      again = false;
      for (unsigned lane : lanes_) {
        const unsigned i = 32 * warp + lane;
        if (i >= block.threads.size()) continue;
        Thread& thread = *block.threads[i];
        if (thread.done || thread.blocked()) continue;
        thread.waits_for = nullptr;
        resume(thread);
        again = any = true;
        if (!error_.empty()) return true;
      }
    }
    return any;
  }

  void resume(Thread& thread) {
    current = &thread;
    if (_setjmp(scheduler_) != 0) return;
    if (thread.started) _longjmp(thread.where, 1);
    thread.started = true;
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.get();
    thread.context.uc_stack.ss_size = Thread::STACK;
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, &Scheduler::body, 0);
    setcontext(&thread.context);
  }

  // A fiber lives on after its kernel, for the next one.
  static void body() {
    for (;;) {
      self->launch_.kernel();
      current->done = true;
      self->yield();
    }
  }

  void retire(std::size_t i, bool progress) {
    Block& block = *blocks_[i];
    const Thread* open = nullptr;
    std::size_t count = 0;
    for (auto& thread : block.threads)
      if (!thread->done) open = thread.get(), ++count;
    if (open) {
      if (!progress)
        error_ = "deadlock: " + std::to_string(count) + " of " + std::to_string(launch_.block) + " threads wait at " +
                 (open->waits_for ? open->waits_for->place.text() : "?") + ", the others are done or wait elsewhere";
      return;
    }
    if (!block.shared.intact()) error_ = "a write behind the end of shared memory";
    if (starved_.first == &block) starved_ = {};
    for (auto& thread : block.threads) spare_.push_back(std::move(thread));
    blocks_.erase(blocks_.begin() + static_cast<std::ptrdiff_t>(i));
  }

  const Launch& launch_;
  std::mt19937 random_;
  bool shuffled_;
  unsigned next_ = 0;
  unsigned lanes_[32] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                         16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31};
  std::vector<std::unique_ptr<Block>> blocks_;
  std::pair<Block*, unsigned> starved_{};
  std::string error_;
  jmp_buf scheduler_;
  inline static std::vector<std::unique_ptr<Thread>> spare_;
};
inline Scheduler* Scheduler::self = nullptr;

[[noreturn]] inline void fail(const std::string& error) { Scheduler::self->stop(error); }

inline int arrive(Barrier& barrier, unsigned need, Place place, int value) {
  if (barrier.arrived == 0) barrier.place = place;
  if (!(barrier.place == place)) fail("barrier: some threads are at " + barrier.place.text() + ", others at " + place.text());
  barrier.pending |= value;
  if (++barrier.arrived == need) {
    barrier.result = barrier.pending;
    barrier.pending = 0, barrier.arrived = 0;
    ++barrier.generation;
  } else {
    current->waits_for = &barrier, current->waits_since = barrier.generation;
    Scheduler::self->yield();
  }
  return barrier.result;
}

inline std::string run(const Launch& launch, unsigned seed) { return Scheduler(launch, seed).run(); }

}  // namespace model
