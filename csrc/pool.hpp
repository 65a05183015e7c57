// Memory for results, recycled.
// A fresh heatmap of 224 x 224 is 49 pages, and touching a page for the first time costs the kernel as much as computing
// what goes there.  Blocks that numpy lets go of are kept, up to a limit, for results of the same size.
#pragma once
#include <cstddef>
#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
#include <vector>

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
    bytes = rounded(bytes);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      const auto found = idle_.find(bytes);
      if (found != idle_.end() && !found->second.empty()) {
        void* block = found->second.back();
        found->second.pop_back();
        kept_ -= bytes;
        return block;
      }
    }
    void* block = std::aligned_alloc(alignment, bytes);
    if (block == nullptr) throw std::bad_alloc();
    return block;
  }

  void give(void* block, std::size_t bytes) noexcept {
    bytes = rounded(bytes);
    if (bytes >= smallest) {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (kept_ + bytes <= limit) {
        try {
          idle_[bytes].push_back(block);
          kept_ += bytes;
          return;
        } catch (const std::bad_alloc&) {
          // no room to note it down: let it go
        }
      }
    }
    std::free(block);
  }

 private:
  static std::size_t rounded(std::size_t bytes) { return (bytes + alignment) / alignment * alignment; }  // never 0

  std::mutex mutex_;
  std::map<std::size_t, std::vector<void*>> idle_;
  std::size_t kept_ = 0;
};

}  // namespace pycam
