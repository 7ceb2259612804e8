// What the machine can do at best: the denominators of the benchmarks' shares.
#pragma once

#include "base/thread_pool.h"

namespace plait::bench {

// Reads memory far larger than the caches with all members of the pool, in pieces of `piece_bytes`; the best piece.
class ReadBandwidth {
 public:
  explicit ReadBandwidth(ThreadPool& pool, size_t total_bytes, size_t piece_bytes);
  ~ReadBandwidth();
  // Measures for about `seconds` and returns the best so far, in bytes per second.
  double measure(double seconds);
  double best() const { return best_; }

 private:
  ThreadPool& pool_;
  size_t total_bytes_, piece_bytes_;
  size_t next_ = 0;
  std::byte* data_ = nullptr;
  double best_ = 0;
};

// Multiply-adds (as 2 operations) per second of all members of the pool, with operands in registers; the best of some
// runs.
double float32_peak(ThreadPool& pool);
double bfloat16_peak(ThreadPool& pool);  // with vdpbf16ps; 0 where there is none

}  // namespace plait::bench
