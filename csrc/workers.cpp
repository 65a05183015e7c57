#include "workers.hpp"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <signal.h>
#include <unistd.h>
#endif

namespace pycam {
namespace {

long process() {
#if defined(__unix__) || defined(__APPLE__)
  return static_cast<long>(getpid());
#else
  return 0;
#endif
}

// While it lives, threads are started with all signals blocked: the process's handlers run on its own threads.
class SignalsBlocked {
#if defined(__unix__) || defined(__APPLE__)
 public:
  SignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t before_;
#else
 public:
  SignalsBlocked() {}  // so that it is not unused
#endif
};

struct Call {
  std::size_t count;
  Task task;
  void* context;
  std::atomic<std::size_t> next{0};

  void work() {
    for (std::size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) task(context, i);
  }
};

class Workers {
 public:
  const long owner = process();

  void run(Call& call, std::size_t helpers) {
    const std::unique_lock<std::mutex> mine(busy_, std::try_to_lock);
    if (mine.owns_lock()) start(call, helpers);
    call.work();
    if (mine.owns_lock()) finish();
  }

  void end() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      ending_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
    ending_ = false;
  }

 private:
  void start(Call& call, std::size_t helpers) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (threads_.size() < helpers) hire(helpers);
      call_ = &call;
      wanted_ = helpers;
    }
    helpers == 1 ? wake_.notify_one() : wake_.notify_all();
  }

  void hire(std::size_t helpers) {
    const SignalsBlocked blocked;
    while (threads_.size() < helpers) threads_.emplace_back([this] { serve(); });
  }

  // The call lives on the caller's stack: nobody may have it when this returns.
  void finish() {
    std::unique_lock<std::mutex> lock(mutex_);
    call_ = nullptr;
    wanted_ = 0;
    done_.wait(lock, [this] { return working_ == 0; });
  }

  void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return ending_ || wanted_ > 0; });
      if (ending_) return;
      --wanted_;
      ++working_;
      Call& call = *call_;
      lock.unlock();
      call.work();
      lock.lock();
      if (--working_ == 0) done_.notify_one();
    }
  }

  std::mutex busy_;  // held by the call that has the threads
  std::mutex mutex_;  // guards what follows
  std::condition_variable wake_, done_;
  std::vector<std::thread> threads_;
  Call* call_ = nullptr;
  std::size_t wanted_ = 0, working_ = 0;
  bool ending_ = false;
};

std::atomic<Workers*> current{nullptr};

// A forked child has the object but none of its threads, and perhaps a mutex that one of them held: it gets a new one.
// They are never destroyed: threads may wait in them when the process ends.
Workers& workers() {
  Workers* found = current.load(std::memory_order_acquire);
  while (found == nullptr || found->owner != process()) {
    auto* fresh = new Workers;
    if (current.compare_exchange_strong(found, fresh, std::memory_order_acq_rel)) return *fresh;
    delete fresh;
  }
  return *found;
}

}  // namespace

std::size_t thread_count(int asked) {
  if (asked > 0) return static_cast<std::size_t>(asked);
#if defined(__linux__)
  cpu_set_t cores;
  if (sched_getaffinity(0, sizeof cores, &cores) == 0) return static_cast<std::size_t>(std::max(1, CPU_COUNT(&cores)));
#endif
  return std::max(1u, std::thread::hardware_concurrency());
}

void share(std::size_t count, std::size_t threads, Task task, void* context) {
  Call call{count, task, context};
  const std::size_t helpers = std::min(threads, count) - (count > 0);
  if (helpers == 0 || count == 0)
    call.work();
  else
    workers().run(call, helpers);
}

void end_threads() {
  Workers* found = current.load(std::memory_order_acquire);
  if (found != nullptr && found->owner == process()) found->end();
}

}  // namespace pycam
