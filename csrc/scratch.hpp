// Memory that stays with its thread between calls, so that calls of the same shapes allocate nothing.
#pragma once
#include <cstddef>
#include <memory>

namespace pycam {

class Scratch {
 public:
  // More than this is given back when the call ends: it was for something unusually large.
  static constexpr std::size_t kept = std::size_t{32} << 20;

  // At least `bytes`, aligned to 64.  What was taken before is lost.
  char* take(std::size_t bytes) {
    if (count_ * sizeof(Block) < bytes) {
      clear();
      const std::size_t count = (bytes + sizeof(Block) - 1) / sizeof(Block);
      blocks_.reset(new Block[count]);  // not make_unique, which would write to all of it
      count_ = count;
    }
    return reinterpret_cast<char*>(blocks_.get());
  }
  void trim() {
    if (count_ * sizeof(Block) > kept) clear();
  }
  void clear() {
    blocks_.reset();
    count_ = 0;
  }

  static Scratch& of_this_thread() {
    static thread_local Scratch scratch;
    return scratch;
  }

 private:
  struct alignas(64) Block {
    char bytes[64];
  };
  std::unique_ptr<Block[]> blocks_;
  std::size_t count_ = 0;
};

// Arrays cut from one block, each aligned to 64 bytes.  With a null block it only measures.
class Carving {
 public:
  explicit Carving(char* block) : block_(block) {}
  template <class T>
  T* array(std::size_t count) {
    T* found = block_ ? reinterpret_cast<T*>(block_ + used_) : nullptr;
    used_ += (count * sizeof(T) + 63) / 64 * 64;
    return found;
  }
  std::size_t used() const { return used_; }

 private:
  char* block_;
  std::size_t used_ = 0;
};

}  // namespace pycam
