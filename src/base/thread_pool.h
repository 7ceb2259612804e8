// A fixed team of threads for data-parallel loops on one rank.
//
// The owner (a rank's thread) is member 0 and works too; `threads` - 1 helpers wait for it. Between loops helpers spin
// for a short while (decode steps follow each other within microseconds), then park: an idle engine uses no CPU.
// parallel_for may be called by one thread at a time; it is not reentrant.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <type_traits>

namespace plait {

class ThreadPool {
 public:
  // threads >= 1; 0 means one per core that this process may use.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const;

  // Calls body(begin, end, member) until [0, count) is covered by chunks of at most `grain`, member in [0, size()).
  // Chunks are handed out dynamically, so a result must not depend on which member computed it.
  template <typename Body>
  void parallel_for(int64_t count, int64_t grain, Body&& body) {
    using Plain = std::remove_reference_t<Body>;
    run(count, grain, const_cast<void*>(static_cast<const void*>(&body)),
        [](void* context, int64_t begin, int64_t end, int member) {
          (*static_cast<Plain*>(context))(begin, end, member);
        });
  }

 private:
  using Call = void (*)(void* context, int64_t begin, int64_t end, int member);
  void run(int64_t count, int64_t grain, void* context, Call call);

  struct State;
  std::unique_ptr<State> state_;
};

// Cores that this process may run on (affinity mask and cgroup quota considered), at least 1.
int usable_cores();

}  // namespace plait
