#include "base/thread_pool.h"

#include <fstream>

#include <sched.h>

#include "base/assert.h"
#include "base/pause.h"

namespace plait {
namespace {

// About 50 us: longer than the gap between the operations of a step, shorter than anybody notices at the end of one.
constexpr int kSpins = 20000;

// Of State::entrance: the loop in hand can be entered; below it the number of helpers inside.
constexpr uint32_t kOpen = uint32_t{1} << 31;

}  // namespace

struct ThreadPool::State {
  explicit State(int members) : size(members) {}

  void work(int member) {
    for (;;) {
      const int64_t begin = next.fetch_add(grain, std::memory_order_relaxed);
      if (begin >= count) return;
      call(context, begin, std::min(begin + grain, count), member);
    }
  }

  void helper(int member) {
    uint64_t seen = 0;
    for (;;) {
      for (int spin = 0; spin < kSpins && generation.load(std::memory_order_acquire) == seen; ++spin) pause();
      generation.wait(seen, std::memory_order_acquire);
      seen = generation.load(std::memory_order_acquire);
      if (stopping.load(std::memory_order_relaxed)) return;
      if ((entrance.fetch_add(1, std::memory_order_acquire) & kOpen) != 0) work(member);
      entrance.fetch_sub(1, std::memory_order_release);
    }
  }

  const int size;
  std::vector<std::thread> threads;
  // The loop in hand; written by the owner before the entrance opens, read by helpers that found it open.
  int64_t count = 0;
  int64_t grain = 1;
  void* context = nullptr;
  Call call = nullptr;
  std::atomic<bool> stopping{false};
  alignas(64) std::atomic<uint64_t> generation{0};
  alignas(64) std::atomic<int64_t> next{0};
  alignas(64) std::atomic<uint32_t> entrance{0};
};

ThreadPool::ThreadPool(int threads) : state_(std::make_unique<State>(threads > 0 ? threads : usable_cores())) {
  for (int member = 1; member < state_->size; ++member)
    state_->threads.emplace_back([state = state_.get(), member] { state->helper(member); });
}

ThreadPool::~ThreadPool() {
  state_->stopping.store(true, std::memory_order_relaxed);
  state_->generation.fetch_add(1, std::memory_order_release);
  state_->generation.notify_all();
  for (auto& thread : state_->threads) thread.join();
}

int ThreadPool::size() const {
  return state_->size;
}

void ThreadPool::run(int64_t count, int64_t grain, void* context, Call call) {
  if (count <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  State& state = *state_;
  if (state.size == 1 || count <= grain) {
    for (int64_t begin = 0; begin < count; begin += grain) call(context, begin, std::min(begin + grain, count), 0);
    return;
  }
  state.count = count;
  state.grain = grain;
  state.context = context;
  state.call = call;
  state.next.store(0, std::memory_order_relaxed);
  state.entrance.fetch_or(kOpen, std::memory_order_release);
  state.generation.fetch_add(1, std::memory_order_release);
  state.generation.notify_all();
  state.work(0);
  // Every helper must have left the loop before its context dies. One that has not come yet stays outside: on a busy
  // machine it may have no core for milliseconds. Those inside are at most one chunk behind.
  state.entrance.fetch_and(~kOpen, std::memory_order_relaxed);
  for (int spin = 0; state.entrance.load(std::memory_order_acquire) != 0; ++spin) {
    if (spin < kSpins)
      pause();
    else
      std::this_thread::yield();
  }
}

int usable_cores() {
  int cores = static_cast<int>(std::thread::hardware_concurrency());
  cpu_set_t mask;
  if (sched_getaffinity(0, sizeof(mask), &mask) == 0) cores = CPU_COUNT(&mask);
  // cgroup v2: "max 100000" or "<quota> <period>", both in microseconds
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  int64_t quota = 0, period = 0;
  if (file >> quota >> period && quota > 0 && period > 0)
    cores = std::min<int>(cores, static_cast<int>((quota + period - 1) / period));
  return std::max(cores, 1);
}

}  // namespace plait
