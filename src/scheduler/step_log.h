// What an operator reads: SGLang's "Prefill batch." and "Decode batch." lines, and the generation rate. One thread;
// the rate may be asked under the caller's lock.
#pragma once

#include <array>
#include <cstdint>

#include "scheduler/batcher.h"

namespace plait {

// Tokens per second over the last few seconds, in a ring of short slots.
class RateWindow {
 public:
  void add(uint64_t tokens, Clock::time_point now);
  double per_second(Clock::time_point now) const;

 private:
  struct Slot {
    int64_t number = -1;  // since the clock's epoch
    uint64_t tokens = 0;
  };
  static constexpr auto kSlotLength = std::chrono::milliseconds(500);
  static constexpr int64_t kSlots = 10;

  static int64_t slot_number(Clock::time_point now);
  std::array<Slot, kSlots> slots_;
  Clock::time_point busy_since_;
};

class StepLog {
 public:
  // Of data-parallel rank `dp` of so many; lines name it where there are several.
  StepLog(int dp, int ranks);
  // After each step; `load` as it is then.
  void step_finished(const Batch& batch, const SchedulerLoad& load, Clock::time_point now);

 private:
  std::string prefix_;
  int64_t decode_steps_ = 0;  // since the last decode line
  uint64_t generated_tokens_ = 0;
  Clock::time_point last_decode_line_ = Clock::now();
};

}  // namespace plait
