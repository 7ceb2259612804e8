// A counter that threads wait for: they spin for a while, then park in the kernel.
//
// One thread advances a Signal, any number wait for it, any thread may cancel it; a cancelled Signal ends every wait on
// it, now and later. How long a thread spins is its own Patience: what the last waits taught it.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace plait::comm {

using Clock = std::chrono::steady_clock;
inline constexpr Clock::time_point kNoDeadline = Clock::time_point::max();

enum class WaitEnd { kReached, kCancelled, kDeadline };

// Of one thread. Waits that end soon make it spin, long ones make it park early; with more rank threads than cores it
// hardly spins at all, since the thread it waits for may need this very core.
class Patience {
 public:
  explicit Patience(bool cores_to_spare)
      : cores_to_spare_(cores_to_spare), spin_time_(cores_to_spare ? kLongest : kShortest) {}
  std::chrono::nanoseconds spin_time() const { return spin_time_; }
  void learn(std::chrono::nanoseconds waited);

 private:
  static constexpr std::chrono::nanoseconds kLongest{60'000};
  static constexpr std::chrono::nanoseconds kShortest{1'000};
  bool cores_to_spare_;
  std::chrono::nanoseconds spin_time_;
};

class alignas(64) Signal {
 public:
  uint32_t count() const { return word_.load(std::memory_order_acquire) >> 1; }
  bool reached(uint32_t target) const { return reached(word_.load(std::memory_order_acquire), target); }

  void advance();
  void cancel();
  // Until count() has reached `target` (counts wrap around; a target is less than 2^30 ahead).
  WaitEnd wait(uint32_t target, Clock::time_point deadline, Patience& patience);

 private:
  static bool reached(uint32_t word, uint32_t target) {
    return static_cast<int32_t>((word & ~uint32_t{1}) - (target << 1)) >= 0;
  }
  bool ended(uint32_t target, WaitEnd& end) const;
  void wake_parked();

  // The count, shifted left by one; bit 0 says cancelled. Advancing adds 2, so the bit survives.
  std::atomic<uint32_t> word_{0};
  std::atomic<uint32_t> parked_{0};
};

}  // namespace plait::comm
