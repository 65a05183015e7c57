// A few threads that share the maps of one call.  They sleep between calls and never spin, so that they take nothing from
// an inference engine's own threads; one call at a time has them, and another that comes meanwhile works alone, so that
// there are never more of them at work than one call was allowed.
#pragma once
#include <cstddef>

namespace pycam {

// How many threads `asked` means: itself, or for 0 one per core that this process may use.
std::size_t thread_count(int asked);

using Task = void (*)(void* context, std::size_t index) noexcept;

// task(context, i) for every i < count, at most `threads` at once, this thread among them.  Returns when all are done.
// Throws std::system_error if a thread cannot be started; then no task has begun.
void share(std::size_t count, std::size_t threads, Task task, void* context);

// Ends the threads.  No call may be running.
void end_threads();

}  // namespace pycam
