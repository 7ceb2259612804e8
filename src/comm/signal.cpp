#include "comm/signal.h"

#include <cerrno>
#include <climits>
#include <ctime>
#include <linux/futex.h>
#include <sys/syscall.h>

#include <unistd.h>

#include "base/launch_region.h"
#include "base/pause.h"

namespace plait::comm {
namespace {

constexpr int kPausesPerLook = 4;
constexpr int kLooksPerClock = 16;

// Sleeps while the word is `expected`, until woken or the deadline; may also wake for no reason.
void park(std::atomic<uint32_t>& word, uint32_t expected, Clock::time_point deadline) {
  static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t));
  timespec until{};
  if (deadline != kNoDeadline) {
    const auto nanoseconds = std::chrono::nanoseconds(deadline.time_since_epoch()).count();
    until.tv_sec = nanoseconds / 1'000'000'000;
    until.tv_nsec = nanoseconds % 1'000'000'000;
  }
  syscall(SYS_futex, &word, FUTEX_WAIT_BITSET_PRIVATE, expected, deadline == kNoDeadline ? nullptr : &until, nullptr,
          FUTEX_BITSET_MATCH_ANY);
}

}  // namespace

// Yielding instead of parking would cost a whole time slice on a machine with other work.
void Patience::learn(std::chrono::nanoseconds waited) {
  if (!cores_to_spare_) return;
  if (waited <= kLongest * 2)
    spin_time_ = std::min(spin_time_ * 2, kLongest);
  else
    spin_time_ = std::max(spin_time_ / 2, kShortest);
}

void Signal::advance() {
  // Sequentially consistent, as is the waiter's rise of parked_: one of the two sees the other.
  word_.fetch_add(2, std::memory_order_seq_cst);
  wake_parked();
}

void Signal::cancel() {
  word_.fetch_or(1, std::memory_order_seq_cst);
  wake_parked();
}

void Signal::wake_parked() {
  if (parked_.load(std::memory_order_seq_cst) != 0)
    syscall(SYS_futex, &word_, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

bool Signal::ended(uint32_t target, WaitEnd& end) const {
  const uint32_t word = word_.load(std::memory_order_acquire);
  if (reached(word, target)) {
    end = WaitEnd::kReached;
    return true;
  }
  end = WaitEnd::kCancelled;
  return (word & 1) != 0;
}

WaitEnd Signal::wait(uint32_t target, Clock::time_point deadline, Patience& patience) {
  WaitEnd end = WaitEnd::kReached;
  about_to_block("waiting for another rank");
  if (ended(target, end)) return end;
  const auto begin = Clock::now();
  const auto spin_until = begin + patience.spin_time();
  do {
    for (int look = 0; look < kLooksPerClock; ++look) {
      for (int i = 0; i < kPausesPerLook; ++i) pause();
      if (ended(target, end)) {
        patience.learn(Clock::now() - begin);
        return end;
      }
    }
  } while (Clock::now() < spin_until);
  for (;;) {
    parked_.fetch_add(1, std::memory_order_seq_cst);
    const uint32_t word = word_.load(std::memory_order_seq_cst);
    if (!reached(word, target) && (word & 1) == 0) park(word_, word, deadline);
    parked_.fetch_sub(1, std::memory_order_relaxed);
    if (ended(target, end)) break;
    if (Clock::now() >= deadline) return WaitEnd::kDeadline;
  }
  patience.learn(Clock::now() - begin);
  return end;
}

}  // namespace plait::comm
