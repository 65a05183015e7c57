// Memory for results, recycled.
// A fresh heatmap of 224 x 224 is 49 pages, and touching a page for the first time costs the kernel as much as computing
// what goes there.  Blocks that numpy lets go of are kept, up to a limit, for results of the same size; those that were
// let go of first make room for others.
#pragma once
#include <cstddef>
#include <deque>
#include <iterator>
#include <mutex>
#include <new>

namespace pycam {

class Pool {
 public:
  static constexpr std::size_t alignment = 64, smallest = 1 << 14, limit = 1 << 25;  // 16 kB … 32 MB kept at most

  // Never destroyed: arrays may outlive the module.
  static Pool& instance() {
    static Pool& pool = *new Pool;
    return pool;
  }

  void* take(std::size_t bytes) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (auto block = idle_.rbegin(); block != idle_.rend(); ++block)  // the warmest first
        if (block->bytes == bytes) {
          void* data = block->data;
          idle_.erase(std::next(block).base());
          kept_ -= bytes;
          return data;
        }
    }
    return ::operator new(bytes, std::align_val_t{alignment});
  }

  void give(void* data, std::size_t bytes) noexcept {
    if (bytes < smallest || bytes > limit) return free(data);
    const std::lock_guard<std::mutex> lock(mutex_);
    try {
      idle_.push_back({data, bytes});
    } catch (const std::bad_alloc&) {  // no room to note it down: let it go
      return free(data);
    }
    kept_ += bytes;
    for (; kept_ > limit; idle_.pop_front()) {
      kept_ -= idle_.front().bytes;
      free(idle_.front().data);
    }
  }

 private:
  struct Block {
    void* data;
    std::size_t bytes;
  };

  static void free(void* data) { ::operator delete(data, std::align_val_t{alignment}); }

  std::mutex mutex_;
  std::deque<Block> idle_;  // let go of first … last
  std::size_t kept_ = 0;
};

}  // namespace pycam
